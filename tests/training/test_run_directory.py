"""The lock of a run directory."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from rlearly.config.resolve import compose
from rlearly.config.schema import RunConfig
from rlearly.core.errors import ConfigError
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
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    )
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


def test_directory_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    refused = pytest.raises(ConfigError, match="cannot be written")
    with refused, run_directory.locked(tmp_path / "file"):
        pass


def test_directory_that_could_not_be_filled_is_removed(tmp_path, monkeypatch):
    def full(path, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    config = RunConfig(run_dir=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match="No space left on device"):
        run_directory.create(config)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    assert run_directory.create(config) == tmp_path / "run"


@pytest.mark.parametrize("target", ["nowhere", "file", "runs"])
def test_runs_that_is_no_folder_is_one_sentence(tmp_path, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "runs").symlink_to(target)
    with pytest.raises(ConfigError, match="runs cannot be written"):
        run_directory.create(compose(["agent=td3", "env=Pendulum-v1"]))
