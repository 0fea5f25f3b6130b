"""Tables that ``survival`` cannot read, in words."""

from pathlib import Path

import pytest

from tests.cli_fixture import call, reason_of


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["gone.csv"], 2, "gone.csv"),
        (["table.csv", "--time", "height"], 2, "height"),
        (["table.csv", "--unit", "weeks"], 2, "--unit weeks: choose"),
        (["table.csv", "--out", "table.csv"], 2, "is a file; name a folder"),
        (["empty.csv"], 4, "empty.csv"),
    ],
)
def test_survival_tells_what_it_cannot_read(
    words: list[str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.csv").write_text("os_days,os_event,idh\n10,1,0\n20,0,1\n30,1,1\n40,1,0\n")
    (tmp_path / "empty.csv").write_text("")
    result = call("survival", *words)
    assert result.exit_code == code
    assert said in reason_of(result)
