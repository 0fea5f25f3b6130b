import stat

import pytest

from fedglioma.errors import ConfigError
from fedglioma_server.runfolder import RunFolder


def test_second_process_is_kept_out_of_a_run_folder(tmp_path):
    folder = RunFolder(tmp_path)
    with (
        folder.locked(),
        pytest.raises(ConfigError, match="another process is running here"),
        folder.locked(),
    ):
        pass


def test_lock_ends_with_the_run(tmp_path):
    folder = RunFolder(tmp_path)
    for _ in range(2):
        with folder.locked():
            pass


def test_what_names_patients_is_for_the_owner_alone_from_the_start(tmp_path):
    folder = RunFolder(tmp_path)
    folder.work.mkdir(mode=0o755)
    with folder.locked():
        assert stat.S_IMODE(folder.work.stat().st_mode) == 0o700
