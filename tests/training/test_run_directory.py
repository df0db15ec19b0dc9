"""The lock of a run directory."""

import errno
import fcntl
import os
import subprocess
import sys
import threading

import pytest

from rlearly.core.errors import ConfigError
from rlearly.experiments.job import in_use
from rlearly.training import run_directory

HOLDER = (
    "import sys, pathlib; from rlearly.training import run_directory\n"
    "with run_directory.locked(pathlib.Path(sys.argv[1])):\n"
    "    print('locked', flush=True); input()\n"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def test_directory_is_locked_by_one_process_at_a_time(tmp_path, holder):
    in_use = pytest.raises(ConfigError, match="is in use: another process is training there")
    with in_use, run_directory.locked(tmp_path):
        pass
    holder.communicate("\n")
    with run_directory.locked(tmp_path):
        pass


def test_dead_process_holds_no_lock(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert (tmp_path / "run.lock").exists()
    with run_directory.locked(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EPERM])
def test_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog, number):
    def flock(handle, operation):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    entered = False
    with run_directory.locked(tmp_path):
        entered = True
    (record,) = caplog.records
    assert entered and "cannot be locked on this file system (no locks here)" in record.message


def test_asking_whether_a_directory_is_in_use_gets_in_nobodys_way(tmp_path, holder):
    lock = tmp_path / "run.lock"
    assert in_use(lock)
    holder.communicate("\n")
    handles = [os.open(lock, os.O_RDONLY) for _ in range(2)]
    for handle in handles:  # as two commands hold it for a moment when they ask
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    assert not in_use(lock)
    threading.Timer(0.3, lambda: [os.close(handle) for handle in handles]).start()
    with run_directory.locked(tmp_path):
        assert in_use(lock)
    assert not in_use(lock) and not in_use(tmp_path / "no.lock")


def test_directory_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    refused = pytest.raises(ConfigError, match="cannot be written")
    with refused, run_directory.locked(tmp_path / "file"):
        pass
