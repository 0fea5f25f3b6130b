import os
import socket
import threading
from pathlib import Path

import pytest

from fedglioma.data.smallfile import read_small


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 1000)
    assert read_small(path, 1000) == b"x" * 1000
    with pytest.raises(OSError, match="larger than"):
        read_small(path, 999)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(OSError, match="larger than 1 MiB"):
        read_small(path, 1 << 20)


def test_neither_absent_nor_a_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_small(tmp_path / "absent", 10)
    with pytest.raises(IsADirectoryError):
        read_small(tmp_path, 10)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_no_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    path = Path("/dev/zero") if kind == "device" else Path("a")
    if kind == "pipe":
        os.mkfifo(path)
    found: list[BaseException] = []

    def read() -> None:
        try:
            read_small(path, 10)
        except OSError as error:
            found.append(error)

    with socket.socket(socket.AF_UNIX) as server:
        if kind == "socket":
            server.bind("a")
        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        thread.join(60)
    assert len(found) == 1
