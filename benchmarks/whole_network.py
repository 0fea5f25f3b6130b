"""Memory of the whole MDPNet, trained for real: eight sites inline, three deployed, by our own commands.

Width 16 and crop 64, two made-up patients at each site, one batch per round. The peak is of the whole life of
all processes: start, training, release and report.
"""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import deployed
from deployed import BIN
from sampling import SERVER, Sampler, marked, peaks

from fedglioma.config.run import RunConfig
from fedglioma_server.runfolder import RunFolder

EDGE = 64
SPACING_MM = 176 / EDGE
SETTINGS = RunConfig(
    width=16, crop=EDGE, spacing_mm=SPACING_MM, batch_size=2, selection=0, report=0, payload="float32"
)
PATIENTS_PER_SITE = 2
DEPLOYED_SITES = ("ningxia", "zhengzhou", "henan")


def options(rounds: int) -> list[str]:
    """Return the settings as options of ``simulate`` and ``start``."""
    wanted = SETTINGS.model_dump(mode="json", exclude_defaults=True) | {"width": 16, "rounds": rounds}
    return deployed.options_of(wanted | {"batch_size": 2, "lr": SETTINGS.lr, "local_epochs": 1})


def command(words: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run one of our commands to its end."""
    answer = subprocess.run(  # noqa: S603 (our own command)
        [str(BIN / words[0]), *words[1:]],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        raise RuntimeError(f"{' '.join(words[:2])}: exit code {answer.returncode}: {answer.stderr[-1500:]}")


def inline(folder: Path, sites: int, rounds: int) -> str:
    """Return what a simulation with the inline engine took, in a line."""
    out = folder / "run"
    words = ["fedglioma-server", "simulate", "--synthetic", str(PATIENTS_PER_SITE * sites)]
    words += ["--synthetic-size", str(EDGE), "--sites", str(sites), "--small-cell-limit", "1"]
    with Sampler(role=lambda _command: SERVER) as sampler:
        command([*words, "--out", str(out), *options(rounds)], marked(sampler.mark))
    return _line("inline", sampler, RunFolder(out), sites)


def over_tls(folder: Path, rounds: int) -> str:
    """Return what a deployed federation took, in a line."""
    with Sampler(role=deployed.role) as sampler:
        environment = marked(sampler.mark)
        cohorts = folder / "cohorts"
        patients = str(PATIENTS_PER_SITE * len(DEPLOYED_SITES))
        made = ["fedglioma-server", "synthesize", str(cohorts), "--by-site", "--size", str(EDGE)]
        command([*made, "--patients", patients, "--sites", ",".join(DEPLOYED_SITES)], environment)
        consortium = deployed.provision(folder, DEPLOYED_SITES, environment)
        sampler.samples.clear()  # neither is part of a federation
        clients = {site: client(consortium / "kits" / site, cohorts / site) for site in DEPLOYED_SITES}
        deployed.run(folder, environment, clients, settings=options(rounds), consortium=consortium)
    return _line("deployed", sampler, RunFolder(folder / "run"), len(DEPLOYED_SITES))


def client(kit: Path, data: Path) -> list[str]:
    """Return the command of a hospital, after its settings were filled in as its IT would."""
    settings = kit / f"{kit.name}.yaml"
    text = settings.read_text(encoding="utf-8")
    filled = text.replace("EDIT-THIS/cohort", str(data)).replace("small_cell_limit: 5", "small_cell_limit: 1")
    settings.write_text(filled, encoding="utf-8")
    return [str(BIN / "fedglioma-client"), "--site", kit.name, "--config-dir", str(kit), "--once"]


def _line(engine: str, sampler: Sampler, folder: RunFolder, sites: int) -> str:
    lines = [line for line in folder.rounds() if line.round > 0]
    trained = sum(site.status == "ok" for line in lines for site in line.sites.values())
    if trained != sites * len(lines):
        raise RuntimeError(f"{engine}: {trained} updates in {len(lines)} rounds of {sites} sites")
    server, everything = peaks(sampler.samples)
    seconds = sum(sum(line.seconds.values()) for line in lines) / len(lines)
    return (
        f"{engine}, {sites} sites, {folder.read().payload_bytes / 1e6:.0f} MB: all processes "
        f"{everything / 1000:.2f} GB at most, the server's {server / 1000:.2f} GB; {len(lines)} round, "
        f"{seconds:.0f} s, {trained} updates"
    )
