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
