"""The privacy command and the line budget of check: what a data manager sees, in text and as JSON."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flwr.app import Context, RecordDict
from typer.testing import CliRunner

from fedglioma.audit import AuditLog
from fedglioma.config.privacy import PrivacyTerms
from fedglioma.config.run import RunConfig
from fedglioma.config.site import PrivacyLimits, SiteConfig, load_site_config
from fedglioma.errors import ConfigError, PolicyError
from fedglioma.privacy.ledger import Ledger
from fedglioma_client import cli
from fedglioma_client.budget import check_budget, ledger_of, limit_of
from fedglioma_client.privacy_screen import bar, spans
from fedglioma_client.site import SITE_CONFIG_KEY, Site, resolve_site
from fedglioma_client.verdict import Status
from tests.ledger_fixture import AMPLE, gaussian_epsilon, key, noise, spend, tags

Command = Callable[..., Result]


def write_settings(root: Path, **privacy: object) -> Path:
    (root / "site_config").mkdir(exist_ok=True)
    path = root / "site_config" / "north.yaml"
    lines = "".join(f"  {name}: {json.dumps(value)}\n" for name, value in privacy.items())
    path.write_text(f"site: north\ndata: ../data\nstate: ../state\n{'privacy:' if lines else ''}\n{lines}")
    return path


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    write_settings(tmp_path)
    return Ledger(tmp_path / "state", "north")


@pytest.fixture
def privacy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setattr("fedglioma.log.configure", lambda *_args, **_options: None)
    monkeypatch.setenv("FEDGLIOMA_CONFIG_DIR", str(tmp_path / "site_config"))
    monkeypatch.setenv("FEDGLIOMA_SITE", "north")
    monkeypatch.setenv("COLUMNS", "300")

    def call(*words: str) -> Result:
        return CliRunner().invoke(cli.app, ["privacy", *words], catch_exceptions=False)

    return call


def data_of(result: Result) -> dict[str, Any]:
    envelope = json.loads(result.stdout)
    assert envelope["exit_code"] == result.exit_code
    data: dict[str, Any] = envelope["data"]
    return data


def settings_of(tmp_path: Path) -> SiteConfig:
    return load_site_config(tmp_path / "site_config" / "north.yaml")


def fill(ledger: Ledger) -> None:
    """Twelve rounds of a run, a repeated one, counts, and a round of another run that is open."""
    for number in range(1, 13):
        about = {"clip_norm": 0.5, "clipping": "flat"}
        reservation = ledger.reserve(key(number, run="first"), noise(9, 4), tags(1, 2), AMPLE, about=about)
        ledger.commit(reservation, b"%d" % number)
    spend(ledger, key(0, run="first", what="counts"), 20.0)
    ledger.reserve(key(1, run="second"), noise(9), tags(3), AMPLE)


def test_without_a_ledger_nothing_was_spent(privacy: Command, ledger: Ledger, tmp_path: Path) -> None:
    result = privacy()
    assert result.exit_code == 0
    assert "spent      nothing" in result.stdout
    assert "epsilon 10 in a lifetime" in result.stdout
    assert "not covered by any epsilon" in result.stdout
    assert not (tmp_path / "state").exists()


def test_screen_has_everything_on_one_page(privacy: Command, ledger: Ledger) -> None:
    fill(ledger)
    result = privacy()
    assert result.exit_code == 0
    spent = gaussian_epsilon(*[9] * 48, 20)
    for part in (
        "a patient with all scans",
        "Poisson sampling",
        "accountant prv, at delta 1e-05",
        f"epsilon {spent:.3g}, by the patient who lost most",
        "epsilon 10 in a lifetime",
        f"epsilon {10 - spent:.3g}; ",
        f"{spent / 10:.0%}",
        "run second, round 1, update",
        "intact, 28 lines, head " + ledger.head().digest,
        "an older copy of this folder would not be noticed",
        "counts     run first, round 0, noise 20",
        "not covered by any epsilon",
    ):
        assert part in result.stdout
    (row,) = [line for line in result.stdout.splitlines() if line.startswith("first")]
    assert row.split()[1:8] == ["1-12", "12", "48", "9", "1", "0.5", "3"]
    assert len(result.stdout.splitlines()) <= 40


def test_json_has_every_release(privacy: Command, ledger: Ledger) -> None:
    fill(ledger)
    data = data_of(privacy("--format", "json"))
    assert data["epsilon_spent"] == pytest.approx(gaussian_epsilon(*[9] * 48, 20), rel=1e-6)
    assert data["epsilon_left"] == pytest.approx(10 - data["epsilon_spent"])
    assert data["epsilon_limit"] == 10
    assert data["ledger"] | {"head": ledger.head().digest, "lines": 28, "intact": True} == data["ledger"]
    assert [release["state"] for release in data["releases"]] == ["released"] * 13 + ["open"]
    assert data["releases"][0]["mechanisms"] == [{"noise_multiplier": 9, "sampling_rate": 1, "steps": 4}]
    assert data["releases"][0]["about"] == {"clip_norm": 0.5, "clipping": "flat"}
    assert [run["run"] for run in data["runs"]] == ["first", "second"]
    assert len(data["not_covered"]) >= 4


def test_every_round_has_what_was_spent_until_then(privacy: Command, ledger: Ledger) -> None:
    fill(ledger)
    rounds = data_of(privacy("--format", "json"))["rounds"]
    assert [(one["run"], one["round"], one["attempt"]) for one in rounds] == [
        ("first", number, 1) for number in range(1, 13)
    ]
    for number, one in enumerate(rounds, start=1):
        assert one["cumulative"] == pytest.approx(gaussian_epsilon(*[9] * (4 * number)), rel=1e-3)
        assert not one["at_most"]
    shown = " ".join(privacy().stdout.split())
    assert f"run first, 1: {gaussian_epsilon(*[9] * 4):.3g}, 2:" in shown
    assert f"12: {gaussian_epsilon(*[9] * 48):.3g} " in shown


def test_of_many_rounds_some_are_exact_and_the_others_bounded_from_above(
    privacy: Command, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedglioma.privacy.ledger_runs.MOST_EXACT", 12)
    for number in range(1, 31):
        spend(ledger, key(number, run="long"), 9.0)
    spend(ledger, key(0, run="other", what="counts"), 20.0)
    rounds = data_of(privacy("--format", "json"))["rounds"]
    exact = [gaussian_epsilon(*[9] * number) for number in range(1, 31)]
    assert sum(not one["at_most"] for one in rounds) == 12
    assert (rounds[0]["at_most"], rounds[-1]["at_most"]) == (False, False)
    for one, true in zip(rounds, exact, strict=True):
        assert one["cumulative"] >= true * 0.999
        assert one["cumulative"] <= true * (1.35 if one["at_most"] else 1.001)
    values = [one["cumulative"] for one in rounds]
    assert values == sorted(values)
    assert privacy().stdout.count("\n  run long, ") == 1


def test_rounds_left_are_those_that_the_ledger_then_allows(
    privacy: Command, ledger: Ledger, tmp_path: Path
) -> None:
    fill(ledger)
    ledger.settle()
    left = data_of(privacy("--format", "json"))["rounds_left"]
    limit = limit_of(settings_of(tmp_path))
    assert left == ledger.rounds_left(noise(9, 4), tags(1, 2), limit) > 0


def test_warning_when_little_is_left(privacy: Command, ledger: Ledger, tmp_path: Path) -> None:
    fill(ledger)
    write_settings(tmp_path, max_epsilon=round(gaussian_epsilon(*[9] * 48, 20) / 0.85, 3))
    result = privacy()
    assert result.exit_code == 0
    assert "WARNING: 85% of the budget is spent" in result.stdout


def test_overspent_budget_is_shown_as_full(privacy: Command, ledger: Ledger, tmp_path: Path) -> None:
    fill(ledger)
    write_settings(tmp_path, max_epsilon=1)
    result = privacy()
    assert result.exit_code == 0
    assert f"[{'#' * 40}]" in result.stdout
    assert "left       epsilon 0; 0 more rounds" in result.stdout


def test_no_limit_is_said(privacy: Command, ledger: Ledger, tmp_path: Path) -> None:
    fill(ledger)
    write_settings(tmp_path, max_epsilon=None)
    result = privacy()
    assert "none is set" in result.stdout
    assert "WARNING: no limit is set" in result.stdout
    data = data_of(privacy("--format", "json"))
    assert (data["epsilon_limit"], data["epsilon_left"], data["rounds_left"]) == (None, None, None)


def test_epsilon_that_cannot_be_worked_out_is_null_and_said(privacy: Command, ledger: Ledger) -> None:
    from fedglioma.privacy.accounting import Mechanism
    from fedglioma.privacy.ledger_entries import Budget

    endless = Budget(epsilon=math.inf, delta=1e-5)
    part = Mechanism(noise_multiplier=0.4, sampling_rate=0.5, steps=5000)
    ledger.commit(ledger.reserve(key(1), [part], tags(1), endless), b"update")
    assert "beyond what can be worked out" in privacy().stdout
    data = data_of(privacy("--format", "json"))
    assert (data["epsilon_spent"], data["epsilon_left"]) == (None, 0)


def test_tampering_ends_with_five_and_says_what_was_found(privacy: Command, ledger: Ledger) -> None:
    fill(ledger)
    content = ledger.path.read_bytes()
    ledger.path.write_bytes(content.replace(b'"steps":4', b'"steps":1', 1))
    result = privacy()
    assert result.exit_code == 5
    assert "line 2 was changed" in result.stderr
    assert "docs/privacy-ledger.md" in result.stderr
    assert "line 2 was changed" in data_of(privacy("--format", "json"))["error"]


def test_older_copy_is_found_by_the_audit_log(privacy: Command, ledger: Ledger, tmp_path: Path) -> None:
    fill(ledger)
    log = AuditLog(tmp_path / "state" / "audit.jsonl")
    log.append("sent", kind="train", round="12", digests=["1" * 64], ledger=ledger.head().digest)
    assert "audit log: agrees" in privacy().stdout
    log.append("sent", kind="train", round="13", digests=["1" * 64], ledger="a" * 64)
    result = privacy()
    assert result.exit_code == 5
    assert "an older copy of the ledger was put back" in result.stderr


def test_answers_without_differential_privacy_are_counted(
    privacy: Command, ledger: Ledger, tmp_path: Path
) -> None:
    log = AuditLog(tmp_path / "state" / "audit.jsonl")
    for number in (1, 2):
        log.append("sent", kind="train", round=str(number), digests=["1" * 64])
    assert "WARNING: 2 training answers left without differential privacy" in privacy().stdout


def test_wrong_settings_end_with_two(privacy: Command, tmp_path: Path) -> None:
    write_settings(tmp_path, max_epsilon=-1)
    result = privacy()
    assert result.exit_code == 2
    assert "max_epsilon" in result.stderr


def test_preflight_has_a_line_on_the_budget(ledger: Ledger, tmp_path: Path) -> None:
    (verdict,) = check_budget(settings_of(tmp_path))
    assert (verdict.status, verdict.subject) == (Status.OK, "budget")
    assert "nothing private was ever sent" in verdict.detail
    fill(ledger)
    assert check_budget(settings_of(tmp_path))[0].status is Status.OK
    write_settings(tmp_path, max_epsilon=1)
    (verdict,) = check_budget(settings_of(tmp_path))
    assert (verdict.status, verdict.exit_code) == (Status.WARNING, 0)
    ledger.path.unlink()
    (verdict,) = check_budget(settings_of(tmp_path))
    assert (verdict.status, verdict.exit_code) == (Status.FAILED, 5)


def test_settings_name_the_second_copy_beside_themselves(tmp_path: Path) -> None:
    write_settings(tmp_path, head_copy="../disk/north.head", max_epsilon=None, accountant="rdp")
    config = settings_of(tmp_path)
    assert config.privacy.head_copy is not None
    assert config.privacy.head_copy.resolve() == (tmp_path / "disk" / "north.head").resolve()
    assert limit_of(config).epsilon == math.inf
    (tmp_path / "disk").mkdir()
    spend(ledger_of(config), key(1))
    assert (tmp_path / "disk" / "north.head").is_file()


TERMS = PrivacyTerms(
    noise_multiplier=1.0, clip_norm=1.0, sampling_rate=0.1, delta=1e-5, steps_per_round=10, rounds=10
)


@pytest.mark.parametrize(
    ("limits", "terms", "secure", "said"),
    [
        ({"required": True}, None, False, "differentially private runs only"),
        ({"max_delta": 1e-6}, TERMS, False, "delta 1e-05 offered, at most 1e-06 allowed"),
        ({"min_noise_multiplier": 1.1}, TERMS, False, "noise multiplier 1 offered, at least 1.1 allowed"),
        ({"max_clip_norm": 0.5}, TERMS, False, "clip norm 1 offered, at most 0.5 allowed"),
        ({"max_counts_epsilon": 0.4}, TERMS, False, "counts epsilon 0.5 offered, at most 0.4 allowed"),
        (
            {},
            TERMS.model_copy(update={"counts_epsilon": 100.0}),
            False,
            "counts epsilon 100 offered, at most 2",
        ),
        ({"max_sampling_rate": 0.05}, TERMS, False, "sampling rate 0.1 offered, at most 0.05 allowed"),
        ({"require_secure_aggregation": True}, TERMS, False, "secure aggregation"),
        ({"require_secure_aggregation": True}, None, False, "secure aggregation"),
    ],
)
def test_terms_that_the_site_does_not_allow_are_refused(
    limits: dict[str, Any], terms: PrivacyTerms | None, secure: bool, said: str
) -> None:
    with pytest.raises(PolicyError, match=f"privacy: .*{said}"):
        PrivacyLimits(**limits).check(terms, secure_aggregation=secure)


def test_terms_at_the_limits_are_allowed() -> None:
    limits = PrivacyLimits(
        required=True,
        min_noise_multiplier=1.0,
        max_clip_norm=1.0,
        max_sampling_rate=0.1,
        require_secure_aggregation=True,
    )
    limits.check(TERMS, secure_aggregation=True)
    PrivacyLimits().check(None, secure_aggregation=False)


@pytest.mark.parametrize(
    "line", ["max_epsilon: 0", "max_delta: 0.5", "accountant: gdp", "noise: 1", "max_sampling_rate: 2"]
)
def test_setting_that_is_none_is_named(tmp_path: Path, line: str) -> None:
    path = write_settings(tmp_path)
    path.write_text(f"{path.read_text()}privacy:\n  {line}\n")
    with pytest.raises(ConfigError, match=f"privacy.{line.split(':')[0]}"):
        load_site_config(path)


def test_bar_and_spans_are_what_they_show() -> None:
    assert bar(0) == f"[{'.' * 40}] 0%"
    assert bar(0.5) == f"[{'#' * 20}{'.' * 20}] 50%"
    assert bar(math.inf).endswith("over 100%")
    assert spans((1, 2, 3, 5, 7, 8)) == "1-3, 5, 7-8"
    assert spans(()) == ""


def test_limit_that_was_lowered_meanwhile_is_heard_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_settings(tmp_path, max_epsilon=4)
    prepared = Site(load_site_config(path), ())
    monkeypatch.setattr("fedglioma_client.site._real_site", lambda *_: prepared)
    node = Context(1, 2, {SITE_CONFIG_KEY: str(path)}, RecordDict(), {})
    assert limit_of(resolve_site(node, RunConfig()).config).epsilon == 4
    write_settings(tmp_path, max_epsilon=1)
    assert limit_of(resolve_site(node, RunConfig()).config).epsilon == 1
