"""Lock files, on file systems with and without locks."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys

import pytest

from rlearly.system.locks import FileLock, in_use

WITHOUT_LOCKS = [
    errno.ENOSYS,
    errno.ENOLCK,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EINVAL,
    errno.EACCES,
    errno.EIO,
]

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>
int flock(int handle, int operation) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size > 0) {
        path[size] = 0;
        if (!strncmp(path, getenv("WITHOUT_LOCKS"), strlen(getenv("WITHOUT_LOCKS")))) {
            errno = atoi(getenv("LOCK_ERROR"));
            return -1;
        }
    }
    return ((int (*)(int, int)) dlsym(RTLD_NEXT, "flock"))(handle, operation);
}
"""
"""A library that has flock fail for the files of one folder."""


def failing_with(monkeypatch, number):
    def flock(handle, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("number", WITHOUT_LOCKS)
def test_file_system_without_locks_is_said_once_and_is_not_in_use(
    tmp_path, monkeypatch, caplog, number
):
    failing_with(monkeypatch, number)
    lock = FileLock(tmp_path / "lock")
    assert lock.acquire() and lock.acquire()
    lock.release()
    (record,) = caplog.records
    assert f"cannot be locked on this file system ({os.strerror(number)})" in record.message
    assert in_use(tmp_path / "lock") is None


def test_lock_that_another_holds_is_in_use(tmp_path):
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert not in_use(tmp_path / "lock")
    assert first.acquire() and in_use(tmp_path / "lock") and not second.acquire()
    first.release()
    assert not in_use(tmp_path / "lock") and second.acquire()


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EWOULDBLOCK])
def test_only_a_lock_that_would_block_is_in_use(tmp_path, monkeypatch, number):
    failing_with(monkeypatch, number)
    assert not FileLock(tmp_path / "lock").acquire()


def test_lock_file_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        FileLock(tmp_path / "file" / "lock").acquire()


@pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EACCES])
def test_sweep_and_its_runs_work_without_locks_and_say_so_once(tmp_path, number):
    (tmp_path / "shim.c").write_text(SHIM, encoding="utf-8")
    library = tmp_path / "shim.so"
    build = ["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "shim.c", "-ldl"]
    subprocess.run(build, check=True)
    folder = tmp_path / "lustre" / "sweep"
    command = [sys.executable, "-m", "rlearly.sweep", "agent=td3", "env=Pendulum-v1"]
    command += ["train_frames=60", "seeds=1", "eval_every_frames=0", "agent.hidden_dim=8"]
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "WITHOUT_LOCKS": str(folder.parent),
        "LOCK_ERROR": str(number),
    }
    done = subprocess.run(
        [*command, f"sweep_dir={folder}"],
        env=environment,
        capture_output=True,
        encoding="utf-8",
    )
    log = (folder / "jobs/runs/td3/Pendulum-v1/0.log").read_text(encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr + log
    sentence = f"cannot be locked on this file system ({os.strerror(number)})"
    assert [sentence in line for line in done.stderr.splitlines()] == [True]
    assert log.count(sentence) == 1
