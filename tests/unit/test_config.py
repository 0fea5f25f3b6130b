"""The settings of a run and of a site, and what is said when they are wrong."""

from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedglioma.config.reading import read_yaml
from fedglioma.config.run import RunConfig, run_table
from fedglioma.config.server import load_server_config
from fedglioma.config.site import SITE_NAME, Policy, PrivacyLimits, SiteConfig, load_site_config, site_name
from fedglioma.errors import ConfigError, PolicyError

ROOT = Path(__file__).resolve().parents[2]


def text_file(folder: Path, text: str | bytes, name: str = "henan.yaml") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_defaults_of_a_run_are_the_papers_recipe() -> None:
    run = RunConfig()
    assert (run.batch_size, run.lr, run.crop, run.width, run.model) == (2, 1e-4, 128, 16, "mdpnet")
    assert run.pos_grid == (16, 16, 16)


def test_settings_cannot_be_changed_after_they_were_checked() -> None:
    with pytest.raises(ValidationError):
        RunConfig().rounds = 3  # type: ignore[misc]


@pytest.mark.parametrize(("crop", "edge"), [(16, 2), (17, 3), (64, 8), (100, 13), (128, 16)])
def test_token_grid_covers_the_crop(crop: int, edge: int) -> None:
    assert RunConfig(crop=crop).pos_grid == (edge, edge, edge)


@pytest.mark.parametrize(
    ("strategy", "weighting", "expected"),
    [
        ("fedavg", "auto", "uncertainty"),
        ("fedprox", "auto", "fixed"),
        ("fedprox", "uncertainty", "uncertainty"),
        ("fedavg", "fixed", "fixed"),
        ("fedbn", "auto", "uncertainty"),
        ("fedadam", "auto", "uncertainty"),
    ],
)
def test_task_weights_follow_the_strategy_unless_they_are_said(
    strategy: Any, weighting: Any, expected: str
) -> None:
    assert RunConfig(strategy=strategy, weighting=weighting).task_weighting == expected


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"strategy": "fedadam"}, 0.1),
        ({"strategy": "fedyogi"}, 0.01),
        ({"strategy": "fedavgm"}, 1.0),
        ({"strategy": "fedadam", "server_lr": 0.03}, 0.03),
    ],
)
def test_servers_learning_rate_is_the_strategys_own_unless_it_is_said(given: Any, found: float) -> None:
    assert RunConfig(**given).server_learning_rate == found


def test_round_waits_for_stragglers_until_the_deadline_unless_it_is_said() -> None:
    assert RunConfig().straggler_wait_s is None
    assert RunConfig(grace_s=0).straggler_wait_s == 0
    assert RunConfig(grace_s=30).straggler_wait_s == 30


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"norm_limit": 0.5}, "at least 1, or 0 for none"),
        ({"trim": 0.5}, "trim"),
        ({"server_momentum": 1.0}, "server_momentum"),
        ({"beta_2": 1.0}, "beta_2"),
        ({"tau": 0}, "tau"),
        ({"byzantine": -1}, "byzantine"),
        ({"payload": "int4"}, "payload"),
        ({"strategy": "krum"}, "strategy"),
        ({"purpose": "profit"}, "purpose"),
        ({"grace_s": -2}, "grace_s"),
    ],
)
def test_setting_of_the_federation_out_of_bounds_is_refused(table: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RunConfig.from_mapping(table, "settings")


def test_poly_schedule_falls_from_the_first_rate_towards_zero() -> None:
    run = RunConfig(lr=0.5, rounds=4, local_epochs=5)
    rates = [run.learning_rate(epoch) for epoch in range(20)]
    assert rates[0] == 0.5
    assert rates[10] == pytest.approx(0.5 * 0.5**0.9)
    assert all(one > other > 0 for one, other in pairwise(rates))


def test_constant_schedule_stays() -> None:
    run = RunConfig(schedule="const", rounds=2)
    assert {run.learning_rate(epoch) for epoch in range(2)} == {run.lr}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("rounds", value) for value in (0, -1, 1.5, "many", None, [1], {})),
        *(("lr", value) for value in (0, -1e-9, float("nan"), float("inf"), "fast")),
        *(("width", value) for value in (0, 97)),
        *(("crop", value) for value in (15, 257)),
        *(("spacing_mm", value) for value in (0.4, 8.1, float("nan"))),
        *(("selection", value) for value in (-0.1, 1)),
        *(("bootstrap", value) for value in (99, 100_001)),
        *(("model", value) for value in ("resnet", "MDPNet", 3)),
        *(("round_timeout_s", value) for value in (0, float("inf"))),
        ("seed", -1),
        ("quorum", 0),
        ("weight_decay", -1),
        ("proximal_mu", float("inf")),
        ("flips", "perhaps"),
    ],
)
def test_value_out_of_bounds_is_named_with_its_place_and_what_is_allowed(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^here: {name}: .* is not allowed \(") as raised:
        RunConfig.from_mapping({name: value}, "here")
    assert "\n" not in str(raised.value)


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"^here: rounds: 0 is .*; lr: -1 is .*; colour: unknown setting$"):
        RunConfig.from_mapping({"rounds": 0, "lr": -1, "colour": "red"}, "here")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("batch_sise", "batch_size"),
        ("round", "rounds"),
        ("learning_rate", None),
        ("local-epoch", "local_epochs"),
    ],
)
def test_unknown_setting_comes_with_what_was_meant(typed: str, meant: str | None) -> None:
    with pytest.raises(ConfigError) as raised:
        RunConfig.from_mapping({typed: 1}, "here")
    hint = f", did you mean {meant}?" if meant else ""
    assert str(raised.value) == f"here: {typed.replace('-', '_')}: unknown setting{hint}"


def test_long_value_does_not_flood_the_terminal() -> None:
    with pytest.raises(ConfigError) as raised:
        RunConfig.from_mapping({"rounds": "9" * 5000}, "here")
    assert len(str(raised.value)) < 250


def test_shares_must_leave_patients_to_train_on() -> None:
    RunConfig(selection=0.5, report=0.44)
    with pytest.raises(ConfigError, match=r"^here: selection \+ report: at least 5 % of the patients"):
        RunConfig.from_mapping({"selection": 0.5, "report": 0.45}, "here")


def test_keys_are_written_with_hyphens_or_underscores() -> None:
    table = {"batch-size": 4, "local_epochs": 2}
    assert RunConfig.from_mapping(table, "here") == RunConfig(batch_size=4, local_epochs=2)


@settings(max_examples=50)
@given(
    st.builds(
        RunConfig,
        rounds=st.integers(1, 10**6),
        lr=st.floats(1e-12, 1e3),
        spacing_mm=st.floats(0.5, 8),
        selection=st.floats(0, 0.4),
        report=st.floats(0, 0.4),
        strategy=st.sampled_from(["fedavg", "fedprox", "fedadam", "multikrum"]),
        payload=st.sampled_from(["float32", "bfloat16", "int8"]),
        norm_limit=st.just(0.0) | st.floats(1, 1e6),
        flips=st.booleans(),
    )
)
def test_settings_survive_json_to_the_bit(run: RunConfig) -> None:
    assert RunConfig.model_validate_json(run.model_dump_json()) == run


def test_settings_come_from_a_file(tmp_path: Path) -> None:
    path = text_file(tmp_path, "run:\n  rounds: 3\n  lr: 1e-3\nsites: [henan]\n")
    assert run_table(path) == {"rounds": 3, "lr": "1e-3"}
    assert RunConfig.from_mapping(run_table(path), "here") == RunConfig(rounds=3, lr=1e-3)
    assert run_table(text_file(tmp_path, "batch-size: 4\n")) == {"batch_size": 4}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"rounds: 3\n\tlr: 4\n", r"line 2 not valid YAML"),
        (b"rounds: [3\n", r"line \d not valid YAML"),
        (b"rounds: 3\nrounds: 'x\n", r"not valid YAML"),
        (b"rounds: \x00\n", r"not valid YAML"),
        (b"\xff\xfe\x00r", r"cannot be read \('utf-8' codec"),
        (b"- 1\n- 2\n", r"'key: value' lines, this one holds list"),
        (b"rounds\n", r"this one holds str"),
        (b"{{1: 2}: 3}\n", r"not valid YAML"),
        (b"!!python/object/new:os.system [true]\n", r"not valid YAML"),
    ],
)
def test_file_that_is_no_table_is_refused_in_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = text_file(tmp_path, content)
    with pytest.raises(ConfigError, match=said) as raised:
        read_yaml(path)
    assert str(raised.value).startswith(f"{path}:")
    assert "\n" not in str(raised.value)


def test_file_that_is_not_there_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone.yaml: no such settings file"):
        read_yaml(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)


@pytest.mark.parametrize("text", ["", "# a comment\n", "---\n", "\ufeffrounds: 3\n"])
def test_file_may_be_empty_or_begin_as_windows_writes_it(tmp_path: Path, text: str) -> None:
    assert read_yaml(text_file(tmp_path, text)) in ({}, {"rounds": 3})


def test_paths_of_a_site_count_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    config = load_site_config(
        text_file(tmp_path / "deep", "site: henan\ndata: ../images\ncache: /var/cache\n")
    )
    assert config.data.resolve() == tmp_path / "images"
    assert config.cache == Path("/var/cache")


def test_site_file_defaults_are_careful(tmp_path: Path) -> None:
    config = load_site_config(text_file(tmp_path, "site: henan\ndata: images\n"))
    assert (config.device, config.workers, config.small_cell_limit, config.layout) == ("cpu", 1, 5, "auto")
    assert config.policy == Policy()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: images\n", "site: is needed and not set"),
        ("site: henan\n", "data: is needed and not set"),
        ("", "site: is needed and not set; data: is needed and not set"),
        ("site: henan\ndata: images\nbatch: 3\n", "batch: unknown setting"),
        ("site: henan\ndata: images\nworker: 3\n", r"worker: unknown setting, did you mean workers\?"),
        ("site: henan\ndata: images\npolicy: {modles: [mdpnet]}\n", r"policy\.modles: unknown setting"),
        ("site: henan\ndata: images\npolicy: 3\n", "policy: 3 is not allowed"),
        ("site: henan\ndata: images\nlayout: nnunet\n", "layout: 'nnunet' is not allowed"),
        ("site: henan\ndata: images\nworkers: 0\n", "workers: 0 is not allowed"),
        ("site: henan\ndata: images\nthreads: 257\n", "threads: 257 is not allowed"),
        ("site: henan\ndata: images\nsmall_cell_limit: 0\n", "small_cell_limit: 0 is not allowed"),
        ("site: henan\ndata: 3\n", "data: 3 is not allowed"),
        ("site: Henan\ndata: images\n", "a site's name is 1-32 lower-case letters"),
        ("site: ../henan\ndata: images\n", "a site's name is 1-32 lower-case letters"),
        ("site: 2024-01-01\ndata: images\n", "site: datetime.date"),
        ("site: ningxia\ndata: images\n", "site: 'ningxia' does not match the file's name"),
        ("1: 2\nsite: henan\ndata: images\n", "1: .*not allowed|1: unknown setting"),
    ],
)
def test_site_file_with_a_mistake_is_named_with_it(tmp_path: Path, text: str, said: str) -> None:
    path = text_file(tmp_path, text)
    with pytest.raises(ConfigError, match=said) as raised:
        load_site_config(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("path", sorted((ROOT / "site_config").glob("*.yaml")), ids=lambda path: path.stem)
def test_settings_files_that_we_ship_are_right(path: Path) -> None:
    assert load_site_config(path).site == path.stem


def test_example_explains_every_setting() -> None:
    told = read_yaml(ROOT / "site_config" / "example.yaml")
    assert set(told) == set(SiteConfig.model_fields)
    assert set(told["policy"]) == set(Policy.model_fields)
    assert set(told["privacy"]) == set(PrivacyLimits.model_fields)


def test_policy_allows_what_it_names() -> None:
    Policy().check(
        model="mdpnet",
        strategy="fedprox",
        payload="int8",
        purpose="research",
        rounds=1000,
        local_epochs=20,
    )


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"model": "resnet"}, "policy: model resnet is not among mdpnet"),
        ({"strategy": "fedsgd"}, "policy: strategy fedsgd is not among fedavg, fedprox"),
        ({"payload": "int4"}, "policy: payload int4 is not among float32, bfloat16, int8"),
        ({"purpose": "clinical"}, "policy: purpose clinical is not among research"),
        ({"rounds": 11}, "policy: 11 rounds asked for, at most 10 allowed"),
        ({"local_epochs": 3}, "policy: 3 local epochs asked for, at most 2 allowed"),
    ],
)
def test_policy_refuses_the_first_thing_it_does_not_allow(asked: dict[str, Any], said: str) -> None:
    policy = Policy(max_rounds=10, max_local_epochs=2)
    terms: dict[str, Any] = {
        "model": "mdpnet",
        "strategy": "fedavg",
        "payload": "float32",
        "purpose": "research",
        "rounds": 10,
        "local_epochs": 2,
    }
    policy.check(**terms)
    with pytest.raises(PolicyError, match=said):
        policy.check(**(terms | asked))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("henan", "henan"),
        ("  Henan  ", "henan"),
        ("St. Mary's Hospital", "st-mary-s-hospital"),
        ("Zhengzhou/First", "zhengzhou-first"),
        ("Hôpital Nord", "hopital-nord"),
        ("site_1-b", "site_1-b"),
        ("--a--", "a"),
        ("x" * 50, "x" * 32),
        ("a" * 31 + " b", "a" * 31),
    ],
)
def test_free_text_becomes_a_sites_name(text: str, name: str) -> None:
    assert site_name(text) == name


@pytest.mark.parametrize("text", ["", "   ", "***", "宁夏", "宁夏1院", "Москва 2"])
def test_text_that_makes_no_name_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write it in the letters a to z and digits"):
        site_name(text)


@settings(max_examples=200)
@given(st.text(max_size=60))
def test_every_name_that_is_made_is_one_and_is_made_of_itself(text: str) -> None:
    try:
        name = site_name(text)
    except ConfigError:
        return
    assert SITE_NAME.fullmatch(name)
    assert site_name(name) == name


def test_date_in_yaml_is_no_surprise(tmp_path: Path) -> None:
    assert read_yaml(text_file(tmp_path, "seen: 2024-01-01\n")) == {"seen": date(2024, 1, 1)}


def server_file(folder: Path, text: str) -> Path:
    return text_file(folder, text, "server.yaml")


def test_servers_certificate_may_be_done_without_on_the_command_line(tmp_path: Path) -> None:
    path = server_file(tmp_path, "port: 0\n")
    with pytest.raises(ConfigError, match="certificate and key are needed"):
        load_server_config(path)
    assert load_server_config(path, {"insecure": True, "address": None}).insecure


def test_options_given_replace_the_servers_file_and_are_checked_with_it(tmp_path: Path) -> None:
    path = server_file(tmp_path, "insecure: true\nport: 1\nrun: {rounds: 3, weight-decay: 0.5, lr: 0}\n")
    config = load_server_config(
        path, {"port": 2, "out": tmp_path / "other"}, {"lr": 0.1, "weight_decay": 0.7}
    )
    assert (config.port, config.out) == (2, tmp_path / "other")
    assert (config.run.rounds, config.run.lr, config.run.weight_decay) == (3, 0.1, 0.7)
    with pytest.raises(ConfigError, match=r"server\.yaml: run: lr: 0 is not allowed"):
        load_server_config(path)
    with pytest.raises(ConfigError, match=r"server\.yaml with the options given: port: 70000 is not allowed"):
        load_server_config(path, {"port": 70000}, {"lr": 0.1})


def test_run_in_the_servers_file_is_read_like_a_file_of_its_own(tmp_path: Path) -> None:
    assert load_server_config(server_file(tmp_path, "insecure: true\nrun:\n")).run == RunConfig()
    written = server_file(tmp_path, "insecure: true\nrun: {local-epochs: 4}\n")
    assert load_server_config(written).run.local_epochs == 4
    with pytest.raises(ConfigError, match=r"run: batch_sise: unknown setting, did you mean batch_size\?"):
        load_server_config(server_file(tmp_path, "insecure: true\nrun: {batch-sise: 4}\n"))
    with pytest.raises(ConfigError, match="holds 'key: value' lines, this one holds int"):
        load_server_config(server_file(tmp_path, "insecure: true\nrun: 3\n"))
