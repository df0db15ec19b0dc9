"""The lock and the identity of a run directory."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rlearly.config.resolve import compose
from rlearly.config.schema import RunConfig
from rlearly.core.errors import ConfigError
from rlearly.system.locks import in_use
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


@pytest.fixture
def identified(tmp_path):
    """A run directory with an identity and a wandb id."""
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "wandb_id").write_text("abc", encoding="utf-8")
    return folder, run_directory.identify(folder)["id"]


def test_copy_of_a_run_is_another_run_and_its_original_stays_what_it_is(tmp_path, identified):
    folder, first = identified
    copy = shutil.copytree(folder, tmp_path / "b")
    assert run_directory.original_of(copy) == folder
    found = run_directory.identify(copy)
    assert found["id"] != first and found["path"] == str(copy)
    assert found["copied_from"] == {"id": first, "path": str(folder), "name": "a"}
    assert not (copy / "wandb_id").exists()
    assert run_directory.original_of(copy) is None, "it is a copy only once"
    assert run_directory.identify(copy) == found
    assert run_directory.original_of(folder) is None
    assert run_directory.identify(folder)["id"] == first
    assert (folder / "wandb_id").read_text(encoding="utf-8") == "abc"


def test_run_that_was_moved_or_is_seen_under_another_path_keeps_its_identity(
    tmp_path, identified, monkeypatch
):
    folder, first = identified
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    for same in (tmp_path / "link", tmp_path / "x" / ".." / "a", folder.relative_to(folder)):
        (tmp_path / "x").mkdir(exist_ok=True)
        assert run_directory.original_of(same) is None
        assert run_directory.identify(same)["id"] == first
    moved = folder.rename(tmp_path / "b")
    folder.mkdir()
    run_directory.identify(folder)  # another run, where the first one was
    assert run_directory.original_of(moved) is None
    found = run_directory.identify(moved)
    assert found["id"] == first and found["path"] == str(moved)
    assert (moved / "wandb_id").read_text(encoding="utf-8") == "abc"


def test_original_that_is_gone_or_cannot_be_read_is_no_original(tmp_path, identified):
    folder, first = identified
    copy = shutil.copytree(folder, tmp_path / "b")
    (folder / "identity.json").write_text("{", encoding="utf-8")
    assert run_directory.original_of(copy) is None
    shutil.rmtree(folder)
    assert run_directory.identify(copy)["id"] == first
    (copy / "identity.json").write_text("[]", encoding="utf-8")
    assert run_directory.identify(copy)["id"] != first
    assert json.loads((copy / "identity.json").read_text(encoding="utf-8"))["copied_from"] is None


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


def test_run_dir_with_a_name_that_is_too_long_is_refused_by_its_key(tmp_path):
    config = compose(["agent=td3", "env=Pendulum-v1", f"run_dir={tmp_path / ('x' * 300)}"])
    with pytest.raises(ConfigError, match=r"run_dir: .* cannot be written \(File name too long\)"):
        run_directory.create(config)


@pytest.mark.parametrize("target", ["nowhere", "file", "runs"])
def test_runs_that_is_no_folder_is_one_sentence(tmp_path, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "runs").symlink_to(target)
    with pytest.raises(ConfigError, match="runs cannot be written"):
        run_directory.create(compose(["agent=td3", "env=Pendulum-v1"]))
