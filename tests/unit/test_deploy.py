"""deploy/ against the program: what the files promise each other, and what they promise the commands."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fedglioma import errors
from fedglioma.config.server import PORT, load_server_config
from fedglioma_client.gauges import ClientGauges
from fedglioma_server.gate import CALLS, FLEET
from fedglioma_server.gauges import ServerGauges

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILES = tuple(sorted(DEPLOY.glob("Dockerfile.*")))
UNITS = tuple(sorted((DEPLOY / "systemd").glob("*.service")))
MANIFESTS = tuple(
    path for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")) if path.name != "kustomization.yaml"
)
EXACT = re.compile(r"[\w./-]+:v?\d+\.\d+\.\d+[\w.-]*")
HOPELESS = {2, 4, 5, 6, 7}
"""Exit codes that starting again cannot mend."""


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def instructions(path: Path) -> list[tuple[str, str]]:
    """Return a Dockerfile's instructions and what they say, continued lines joined, comments dropped."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined]


def script(name: str) -> Any:
    """Return a program of deploy/ as a module."""
    spec = importlib.util.spec_from_file_location(name, DEPLOY / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ran(*words: str | Path, at: Path = DEPLOY) -> subprocess.CompletedProcess[str]:
    """Return how a program of the system ended."""
    return subprocess.run(words, cwd=at, capture_output=True, text=True, check=False)  # noqa: S603


def pins() -> dict[str, str]:
    lines = (DEPLOY / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


# Images


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_image_is_built_in_two_stages_from_an_exact_python(path: Path) -> None:
    said = instructions(path)
    python = dict(text.split("=") for word, text in said if word == "ARG" and "=" in text)["PYTHON"]
    assert re.fullmatch(r"3\.\d+\.\d+-slim-\w+", python)
    assert [text for word, text in said if word == "FROM"] == [
        "python:${PYTHON} AS build",
        "python:${PYTHON}",
    ]
    made_with = (DEPLOY / "constraints.txt").read_text().splitlines()[1]
    assert made_with == f"# Python {python.rpartition('.')[0]}"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_everything_that_an_image_copies_is_there_and_reaches_the_build(path: Path) -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = []
    for word, text in instructions(path):
        if word == "COPY" and "--from" not in text:
            copied += text.split()[:-1]
    assert copied
    assert [name for name in copied if not (ROOT / name).exists() or name not in allowed] == []


def test_no_data_key_or_setting_reaches_a_build() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert next(line for line in lines if not line.startswith("#")) == "*"
    assert {"**/*.key", "**/*.pem"} <= set(lines)
    allowed = {line[1:] for line in lines if line.startswith("!")}
    assert not allowed & {"site_config", "runs", "synthetic", "cache", "consortium", ".", ".git"}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_image_ends_as_a_user_without_rights_and_says_how_it_is(path: Path) -> None:
    said = instructions(path)
    last = max(i for i, (word, _) in enumerate(said) if word == "FROM")
    final = dict(said[last:])
    assert final["USER"] == "10001:10001"
    assert "--uid 10001" in path.read_text()
    assert final["HEALTHCHECK"]
    assert json.loads(final["ENTRYPOINT"])[0] == path.suffix.replace(".", "fedglioma-")
    assert json.loads(final["HEALTHCHECK"].partition("CMD ")[2])


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_every_installation_in_an_image_is_held_to_the_constraints(path: Path) -> None:
    steps = [step.strip() for word, text in instructions(path) if word == "RUN" for step in text.split("&&")]
    installing = [step for step in steps if step.startswith("pip install")]
    assert len(installing) == 3
    assert all("--constraint deploy/constraints.txt" in step for step in installing)
    assert "apt-get" not in path.read_text()


def test_constraints_fit_the_project_and_cover_what_it_needs() -> None:
    pinned = pins()
    for line in requires("fedglioma") or []:
        needed = Requirement(line)
        extra = {"extra": "server"}
        if needed.name == "fedglioma" or (needed.marker and not needed.marker.evaluate(extra)):
            continue
        assert needed.specifier.contains(pinned[canonicalize_name(needed.name)]), line
    closure = script("constraints").closure(("fedglioma[client,server]",))
    assert set(closure) <= set(pinned)


def test_constraints_leave_out_what_a_gpu_build_of_pytorch_names_itself() -> None:
    hardware = script("constraints").HARDWARE
    assert not [name for name in pins() if hardware.fullmatch(name)]
    assert pins()["torch"] == pins()["torch"].partition("+")[0]


def test_health_of_a_client_is_that_of_its_node(tmp_path: Path) -> None:
    health = script("client_health")
    settings = tmp_path / "ningxia.yaml"
    settings.write_text("site: ningxia\ndata: data\n")
    stub = "import time; print('runs', flush=True); time.sleep(60)"
    node = [sys.executable, "-c", stub, "fedglioma_client.node", str(settings)]
    with subprocess.Popen(node, stdout=subprocess.PIPE) as process:  # noqa: S603 (a stub)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"runs\n"
            assert (str(settings)) in [str(found) for _, found in health.nodes()]
            assert health.complaint("S", settings) == ""
            os.kill(process.pid, signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            state = next(state for state, found in health.nodes() if found == settings)
            assert "state T" in health.complaint(state, settings)
        finally:
            process.kill()
    settings.write_text("site: ningxia\ndata: data\nmetrics_port: 9\n")
    assert "do not answer" in health.complaint("S", settings)


# Compose


def test_compose_publishes_the_servers_port_and_else_only_on_loopback() -> None:
    services = load(DEPLOY / "compose.yaml")["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert sorted(port for port in ports if not port.startswith("127.0.0.1:")) == [f"{PORT}:{PORT}"]


def test_compose_names_exact_images_and_this_version() -> None:
    images = {service["image"] for service in load(DEPLOY / "compose.yaml")["services"].values()}
    assert all(EXACT.fullmatch(image) for image in images)
    ours = {image for image in images if image.startswith("fedglioma-")}
    assert ours == {f"fedglioma-{what}:{version('fedglioma')}" for what in ("server", "client")}


def test_compose_guards_every_service() -> None:
    services = load(DEPLOY / "compose.yaml")["services"]
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not service.get("privileged"), name
    assert [name for name, service in services.items() if service.get("user", "").startswith("0")] == [
        "prepare"
    ]
    assert services["prepare"]["network_mode"] == "none"


def test_compose_mounts_files_that_are_there_and_volumes_that_are_named() -> None:
    table = load(DEPLOY / "compose.yaml")
    for service in table["services"].values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), mount
                assert mount.endswith(":ro"), mount
            else:
                assert source in table["volumes"], mount
    for service in table["services"].values():
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_compose_keeps_each_secret_where_it_belongs() -> None:
    services = load(DEPLOY / "compose.yaml")["services"]
    mounted = {
        name: {mount.split(":")[0] for mount in service.get("volumes", [])}
        for name, service in services.items()
    }

    def readers(volume: str) -> set[str]:
        return {name for name, volumes in mounted.items() if volume in volumes} - {"prepare"}

    assert readers("authority") == set()
    assert readers("server-settings") == {"server"}
    assert readers("ningxia") == {"ningxia"}
    assert readers("zhengzhou") == {"zhengzhou"}
    assert readers("grafana-secret") == {"grafana"}


def test_demo_settings_are_what_the_programs_read(tmp_path: Path) -> None:
    text = (DEPLOY / "demo" / "prepare.sh").read_text()
    found = re.search(r"<<'YAML'\n(.*?)^YAML$", text, re.DOTALL | re.MULTILINE)
    assert found
    (tmp_path / "server.yaml").write_text(found[1])
    config = load_server_config(tmp_path / "server.yaml")
    assert config.port == PORT
    assert f"127.0.0.1:{config.metrics_port}" in (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    services = load(DEPLOY / "compose.yaml")["services"]
    assert set(config.expected) <= set(services)
    assert ran("/bin/sh", "-n", "demo/prepare.sh").returncode == 0


# Prometheus and Grafana


def metric_names() -> set[str]:
    gauges = (ServerGauges("run"), ClientGauges("ningxia"))
    return {
        name
        for registry in (gauge.registry for gauge in gauges)
        for family in registry.collect()
        for name in (
            family.name,
            *(f"{family.name}_{suffix}" for suffix in ("total", "sum", "count", "bucket")),
        )
    }


def expressions() -> Iterator[str]:
    for path in (DEPLOY / "grafana" / "dashboards").glob("*.json"):
        board = json.loads(path.read_text())
        yield from (target["expr"] for panel in board["panels"] for target in panel.get("targets", []))
    for group in load(DEPLOY / "prometheus" / "rules.yml")["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def test_dashboards_and_alerts_ask_for_metrics_that_exist() -> None:
    asked = {name for text in expressions() for name in re.findall(r"\bfedglioma_\w+", text)}
    assert asked <= metric_names()


@pytest.mark.parametrize(("board", "heading"), [("server", "## Server"), ("site", "## Site")])
def test_dashboard_shows_every_metric_of_the_page(board: str, heading: str) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text().partition(heading)[2].partition("\n## ")[0]
    told = set(re.findall(r"^\| `(fedglioma_\w+)`", page, re.MULTILINE))
    assert told
    shown = (DEPLOY / "grafana" / "dashboards" / f"fedglioma-{board}.json").read_text()
    assert [name for name in sorted(told) if name not in shown] == []


@pytest.mark.parametrize("board", ["server", "site"])
def test_dashboard_lies_in_a_grid_without_overlap(board: str) -> None:
    panels = json.loads((DEPLOY / "grafana" / "dashboards" / f"fedglioma-{board}.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not taken & cells, panel["title"]
        taken |= cells


def test_grafana_finds_its_dashboards_and_prometheus_where_compose_puts_them() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    where = load(provisioning / "dashboards" / "fedglioma.yaml")["providers"][0]["options"]["path"]
    url = load(provisioning / "datasources" / "prometheus.yaml")["datasources"][0]["url"]
    services = load(DEPLOY / "compose.yaml")["services"]
    assert any(f":{where}/" in mount for mount in services["grafana"]["volumes"])
    assert f"--web.listen-address={url.removeprefix('http://')}" in services["prometheus"]["command"]
    assert services["grafana"]["network_mode"] == services["prometheus"]["network_mode"]


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool (Debian: prometheus) is not installed")
@pytest.mark.parametrize(
    "words",
    [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "rules.yml"],
        ["test", "rules", "rules_test.yml"],
    ],
    ids=" ".join,
)
def test_prometheus_accepts_configuration_rules_and_their_tests(words: list[str]) -> None:
    done = ran("promtool", *words, at=DEPLOY / "prometheus")
    assert done.returncode == 0, done.stdout + done.stderr


# systemd


def service(path: Path) -> dict[str, str]:
    """Return what a unit says of its service; what is said twice is joined by a space."""
    said: dict[str, str] = {}
    for line in path.read_text().partition("[Service]")[2].partition("[Install]")[0].splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            said[key] = f"{said[key]} {value}" if key in said else value
    return said


@pytest.mark.parametrize("path", UNITS, ids=lambda p: p.name)
def test_unit_is_not_started_again_where_a_person_is_needed(path: Path) -> None:
    said = service(path)
    assert said["Restart"] == "on-failure"
    assert {int(code) for code in said["RestartPreventExitStatus"].split()} == HOPELESS
    ours = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.FedGliomaError)
    }
    assert ours - HOPELESS == {1, 3}
    assert said["SuccessExitStatus"] == "130"


@pytest.mark.parametrize("path", UNITS, ids=lambda p: p.name)
def test_unit_runs_as_its_own_user_with_the_key_as_a_credential(path: Path) -> None:
    said = service(path)
    user = (DEPLOY / "systemd" / "fedglioma.sysusers").read_text().splitlines()[-1].split()[1]
    assert said["User"] == user
    name = said["LoadCredential"].split(":")[0]
    place = path.name.replace("@", "@ningxia")
    assert f"key: /run/credentials/{place}/{name}" in " ".join(path.read_text().replace("\n#", " ").split())


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
@pytest.mark.parametrize("path", UNITS, ids=lambda p: p.name)
def test_systemd_accepts_the_unit_and_finds_it_closed(path: Path, tmp_path: Path) -> None:
    here = tmp_path / path.name.replace("@", "@ningxia")
    program = Path(sys.executable).parent
    here.write_text(path.read_text().replace("/opt/fedglioma/bin", str(program)))
    done = ran("systemd-analyze", "verify", here)
    about = [line for line in done.stderr.splitlines() if here.name in line]
    assert done.returncode == 0, done.stderr
    assert about == []
    done = ran("systemd-analyze", "security", "--offline=true", "--threshold=20", here)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


# Kubernetes


def objects() -> dict[tuple[str, str], Any]:
    found = {}
    for path in MANIFESTS:
        for one in yaml.safe_load_all(path.read_text()):
            found[one["kind"], one["metadata"]["name"]] = one
    return found


def test_kustomization_names_every_manifest() -> None:
    named = load(DEPLOY / "kubernetes" / "kustomization.yaml")["resources"]
    assert sorted(named) == [path.name for path in MANIFESTS]


def test_kubernetes_objects_are_of_the_kinds_and_versions_that_clusters_serve() -> None:
    assert {(one["apiVersion"], kind) for (kind, _), one in objects().items()} == {
        ("v1", "Namespace"),
        ("v1", "ConfigMap"),
        ("v1", "PersistentVolumeClaim"),
        ("v1", "Service"),
        ("apps/v1", "Deployment"),
        ("networking.k8s.io/v1", "NetworkPolicy"),
    }


def test_kubernetes_selectors_find_the_pod_and_ports_have_names_that_exist() -> None:
    found = objects()
    deployment = found["Deployment", "fedglioma-server"]["spec"]
    labels = deployment["template"]["metadata"]["labels"].items()
    service = found["Service", "fedglioma-server"]["spec"]
    policy = found["NetworkPolicy", "fedglioma-server"]["spec"]
    assert deployment["selector"]["matchLabels"].items() <= labels
    assert service["selector"].items() <= labels
    assert policy["podSelector"]["matchLabels"].items() <= labels
    ports = {
        port["name"]: port["containerPort"]
        for container in deployment["template"]["spec"]["containers"]
        for port in container["ports"]
    }
    assert ports["federation"] == PORT == service["ports"][0]["port"]
    assert service["ports"][0]["targetPort"] == "federation"
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == set(ports)
    assert policy["egress"] == []


def test_kubernetes_runs_one_server_at_a_time_without_rights() -> None:
    spec = objects()["Deployment", "fedglioma-server"]["spec"]
    assert (spec["replicas"], spec["strategy"]["type"]) == (1, "Recreate")
    pod = spec["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == 10001
    for container in pod["containers"]:
        assert EXACT.fullmatch(container["image"])
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_kubernetes_volumes_come_from_manifests_or_from_commands_of_the_readme() -> None:
    found, readme = objects(), (DEPLOY / "README.md").read_text()
    pod = found["Deployment", "fedglioma-server"]["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
    assert mounted == set(volumes)
    assert ("PersistentVolumeClaim", volumes["runs"]["persistentVolumeClaim"]["claimName"]) in found
    assert ("ConfigMap", volumes["settings"]["configMap"]["name"]) in found
    assert f"create secret generic {volumes['tls']['secret']['secretName']} " in readme
    assert f"create configmap {volumes['sites']['configMap']['name']} " in readme


def test_kubernetes_settings_are_what_the_server_reads(tmp_path: Path) -> None:
    found = objects()
    settings = found["ConfigMap", "fedglioma-settings"]["data"]
    (tmp_path / "server.yaml").write_text(settings["server.yaml"])
    config = load_server_config(tmp_path / "server.yaml")
    assert config.port == PORT
    assert f"http://127.0.0.1:{config.metrics_port}/metrics" in settings["metrics.conf"]
    pod = found["Deployment", "fedglioma-server"]["spec"]["template"]["spec"]
    places = [Path(mount["mountPath"]) for mount in pod["containers"][0]["volumeMounts"]]
    for needed in (config.certificate, config.key, config.ca, config.sites, config.out, config.cache):
        assert needed is not None
        assert any(place in (needed, *needed.parents) for place in places), needed


@pytest.mark.parametrize(("code", "words"), [(0, "finished or stopped"), (7, "a person is needed")])
def test_kubernetes_loop_says_how_the_server_ended_and_leaves_on_sigterm(
    tmp_path: Path, code: int, words: str
) -> None:
    pod = objects()["Deployment", "fedglioma-server"]["spec"]["template"]["spec"]
    stub = tmp_path / "fedglioma-server"
    stub.write_text(f"#!/bin/sh\nexit {code}\n")
    stub.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    loop = [*pod["containers"][0]["command"], *pod["containers"][0]["args"]]
    with subprocess.Popen(loop, env=environment, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdout is not None
        assert words in process.stdout.readline()
        time.sleep(0.2)
        process.terminate()
        assert process.wait(60) == 0


# nginx


def test_nginx_lets_through_what_the_servers_own_gate_does() -> None:
    text = (DEPLOY / "nginx" / "superlink.conf").read_text()
    found = re.search(r"location ~ \^/v1/fleet/\(\?<call>([\w|-]+)\)\\z", text)
    assert found
    assert {f"{FLEET}{call}" for call in found[1].split("|")} == CALLS


def test_nginx_passes_to_the_servers_default_port() -> None:
    assert f"server 127.0.0.1:{PORT} " in (DEPLOY / "nginx" / "passthrough.conf").read_text()


# All of it


def test_every_file_of_deploy_has_a_line_in_its_readme() -> None:
    readme = (DEPLOY / "README.md").read_text()
    files = [path for path in DEPLOY.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    names = [path.relative_to(DEPLOY).as_posix() for path in files if path.name != "README.md"]
    assert [name for name in names if f"`{name}`" not in readme] == []


def test_no_image_is_taken_by_a_tag_that_moves() -> None:
    for path in DEPLOY.rglob("*"):
        if path.is_file() and path.suffix in {".yaml", ".yml", ".server", ".client"}:
            assert not re.search(r"^[^#]*(image:|FROM).*:latest", path.read_text(), re.MULTILINE), path
