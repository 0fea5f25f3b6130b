"""Files of a run folder: whole or not there, and read only as what they are."""

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma.case import GENES
from fedglioma.config.run import RunConfig
from fedglioma.errors import ConfigError
from fedglioma.newfile import PART
from fedglioma_server.records import (
    DataIssue,
    HeldOutRound,
    RoundRecord,
    RunRecord,
    SiteData,
    SiteRound,
    SplitCount,
    read_json,
    read_rounds,
    write_json,
    write_rounds,
    write_text,
)
from fedglioma_server.runfolder import RunFolder

names = st.text(max_size=20)
numbers = st.floats(allow_nan=False, allow_infinity=False)
by_gene = st.fixed_dictionaries({gene: st.none() | numbers for gene in GENES})
seconds = st.dictionaries(names, numbers, max_size=3)
rounds_on_record = st.builds(
    RoundRecord,
    round=st.integers(0, 10**6),
    seconds=seconds,
    sites=st.dictionaries(
        names,
        st.builds(
            SiteRound,
            status=st.sampled_from(["ok", "error", "refused", "no_reply", "idle"]),
            reason=st.none() | names,
            weights=seconds,
            loss=st.none() | numbers,
            loss_by_task=by_gene,
            seconds=seconds,
            update_norm=st.none() | numbers,
        ),
        max_size=3,
    ),
    heldout=st.builds(
        HeldOutRound,
        cases=st.integers(0, 10**6),
        loss=st.none() | numbers,
        loss_by_task=by_gene,
        auc=by_gene,
        accuracy=by_gene,
    ),
    log_variances=st.dictionaries(st.sampled_from(GENES), numbers, max_size=3),
    selected=st.booleans(),
)


def run_record(**changed: object) -> RunRecord:
    table = {
        "run_id": "run",
        "created": "2026-01-01T00:00:00+00:00",
        "engine": "inline",
        "command": "fedglioma-server simulate",
        "synthetic": True,
        "versions": {"fedglioma": "0"},
        "settings": RunConfig(),
        "cohorts": ["a", "b"],
        "data_digest": "0" * 64,
        "parameters": 5,
        "payload_bytes": 20,
        "splits": {"henan": SplitCount(train=3)},
    }
    return RunRecord.model_validate(table | changed)


def held_out(loss: float | None = 1.5) -> HeldOutRound:
    empty = dict.fromkeys(GENES)
    return HeldOutRound(cases=3, loss=loss, loss_by_task=empty, auc=empty, accuracy=empty)


def full(*_words: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@settings(deadline=None, max_examples=40)
@given(rounds_on_record, rounds_on_record)
def test_rounds_survive_the_disk_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, one: RoundRecord, other: RoundRecord
) -> None:
    path = tmp_path_factory.getbasetemp() / "rounds.jsonl"
    write_rounds(path, [one, other])
    assert read_rounds(path) == [one, other]
    assert path.read_bytes().count(b"\n") == 2


def test_line_end_of_unicode_in_a_sites_words_ends_no_line(tmp_path: Path) -> None:
    line = RoundRecord(
        round=1,
        heldout=held_out(),
        sites={"henan": SiteRound(status="refused", reason="one\u2028two\x85three\r\n")},
    )
    write_rounds(tmp_path / "rounds.jsonl", [line, line])
    assert read_rounds(tmp_path / "rounds.jsonl") == [line, line]


def test_run_record_survives_the_disk(tmp_path: Path) -> None:
    record = run_record(
        status="completed",
        sites={
            "henan": SiteData(
                cases=5,
                labels=dict.fromkeys(GENES, (None, 7, 0)),
                modalities={"flair+t1": None, "none": 5},
                small_cell_limit=5,
            )
        },
        class_counts=dict.fromkeys(GENES, (2.5, 7.0)),
        issues=[DataIssue(site="henan", kind="excluded", code="label", cases=2, explanation="the case")],
    )
    write_json(tmp_path / "run.json", record)
    assert read_json(tmp_path / "run.json", RunRecord) == record


def test_number_that_is_none_is_written_as_null_and_not_as_nan(tmp_path: Path) -> None:
    line = RoundRecord(round=1, heldout=held_out(float("nan")))
    write_rounds(tmp_path / "rounds.jsonl", [line])
    assert "NaN" not in (tmp_path / "rounds.jsonl").read_text(encoding="utf-8")
    assert read_rounds(tmp_path / "rounds.jsonl")[0].heldout.loss is None
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "other.json", {"loss": float("nan")})
    assert not (tmp_path / "other.json").exists()


def test_absent_or_empty_rounds_are_none(tmp_path: Path) -> None:
    assert read_rounds(tmp_path / "rounds.jsonl") == []
    write_rounds(tmp_path / "rounds.jsonl", [])
    assert read_rounds(tmp_path / "rounds.jsonl") == []


@pytest.mark.parametrize("line", [b"{", b"{}", b"[]", b'{"round": 1}', b"", b"\xff\xfe"])
def test_line_that_is_no_round_is_named_with_its_number(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rounds.jsonl"
    write_rounds(path, [RoundRecord(round=0, heldout=held_out())])
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(ConfigError, match=r"rounds\.jsonl: line 2: ") as raised:
        read_rounds(path)
    assert "\n" not in str(raised.value)
    assert "RoundRecord" not in str(raised.value)
    assert "no round's record of this version" in str(raised.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"{}", b"[]", b"null", b"\xff\xfe\x00", b'{"run_id": "x", "more": 1}']
)
def test_file_that_is_no_record_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.json: no run's record of this version") as raised:
        read_json(tmp_path / "run.json", RunRecord, "run's record")
    assert "\n" not in str(raised.value)
    assert "RunRecord" not in str(raised.value)
    assert "validation" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"run_id": "x"', "it is not JSON, or cut short"),
        (b"\xff\xfe\x00", "it is not text"),
        (b'{"run_id": 5, "zz9": 1}', "missing or not as expected: run_id, created, engine and "),
        (b'["zz9"]', "something else stands in it"),
    ],
)
def test_what_is_wrong_with_a_record_is_said_by_our_own_names_alone(
    tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ConfigError, match=said) as raised:
        read_json(tmp_path / "run.json", RunRecord)
    assert "zz9" not in str(raised.value)


def test_setting_that_a_record_may_not_have_is_said_with_its_reason(tmp_path: Path) -> None:
    table = run_record().model_dump(mode="json")
    table["settings"]["norm_limit"] = 0.5
    (tmp_path / "run.json").write_text(json.dumps(table), encoding="utf-8")
    with pytest.raises(ConfigError, match="norm_limit: at least 1, or 0 for none"):
        read_json(tmp_path / "run.json", RunRecord)


def test_record_with_a_setting_without_effect_stays_readable(tmp_path: Path) -> None:
    table = run_record().model_dump(mode="json")
    table["settings"]["sampling_rate"] = 0.5
    (tmp_path / "run.json").write_text(json.dumps(table), encoding="utf-8")
    assert read_json(tmp_path / "run.json", RunRecord).settings.sampling_rate == 0.5
    with pytest.raises(ConfigError, match="sampling_rate: without effect while privacy is none"):
        RunConfig.from_mapping(table["settings"], "settings.yaml")


def test_absent_record_asks_whether_this_is_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.json: not there; is this a run folder\?"):
        read_json(tmp_path / "run.json", RunRecord)


def test_record_with_an_unknown_field_or_status_is_refused(tmp_path: Path) -> None:
    for changed in ({"patients": ["P1"]}, {"status": "paused"}):
        table = run_record().model_dump(mode="json") | changed
        (tmp_path / "run.json").write_text(json.dumps(table), encoding="utf-8")
        with pytest.raises(ConfigError, match="no record of this version"):
            read_json(tmp_path / "run.json", RunRecord)


def test_text_is_written_into_new_folders_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file.txt"
    for text in ("first, longer", "second é\n"):
        write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_write_that_fails_leaves_the_old_file_and_no_other(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    write_text(path, "old")
    monkeypatch.setattr(*((os, "fsync", full) if where == "fsync" else (Path, "replace", full)))
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        write_text(path, "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]
    assert path.read_text() == "old"


def test_file_is_on_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    flush = os.fsync

    def fsync(descriptor: int) -> None:
        seen.append([path.name for path in tmp_path.iterdir()])
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "run.json", "text")
    assert len(seen[0]) == 1
    assert Path(seen[0][0]).match(PART)
    assert seen[1:] == [["run.json"]]  # the folder's list of names follows


def test_update_changes_what_is_named_and_checks_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_json(folder.record_file, run_record())
    folder.update(status="completed", finished="2026-01-02T00:00:00+00:00")
    assert folder.read() == run_record(status="completed", finished="2026-01-02T00:00:00+00:00")
    with pytest.raises(ValueError, match="status"):
        folder.update(status="paused")
    assert folder.read().status == "completed"


def test_folder_is_new_ours_or_refused(tmp_path: Path) -> None:
    RunFolder(tmp_path / "absent").require_new_or_ours()
    RunFolder(tmp_path).require_new_or_ours()
    for name in ("work", "cohort"):
        (tmp_path / name).mkdir()
    (tmp_path / ".run.json.99.part").write_text("{")
    RunFolder(tmp_path).require_new_or_ours()
    (tmp_path / "photo.jpg").write_text("")
    with pytest.raises(ConfigError, match=r"holds photo\.jpg but no run; name a new or empty folder"):
        RunFolder(tmp_path).require_new_or_ours()
    write_json(tmp_path / "run.json", run_record())
    RunFolder(tmp_path).require_new_or_ours()
    with pytest.raises(ConfigError, match=r"photo\.jpg: is a file; name a folder"):
        RunFolder(tmp_path / "photo.jpg").require_new_or_ours()


def test_sweep_removes_half_written_files_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in (
        ".run.json.99.part",
        "model/.model.safetensors.99.part",
        "model/a.part",
        ".hidden",
        "run.json",
    ):
        (tmp_path / name).write_text("")
    RunFolder(tmp_path).sweep()
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == [".hidden", "model/a.part", "run.json"]
