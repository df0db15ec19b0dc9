"""Runs on one machine share its cores."""

import contextlib
import json
import os
import subprocess
import sys

import psutil
import pytest

from rlearly.system import cores, machine


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    monkeypatch.setattr(cores, "_allowed", lambda: [0, 1, 2, 3])


@contextlib.contextmanager
def another(folder, threads, allowed=(0, 1, 2, 3)):
    """A run in a process of its own."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = psutil.Process(process.pid).create_time()
    folder.mkdir(parents=True, exist_ok=True)
    entry = folder / f"{process.pid}-{started}.json"
    entry.write_text(json.dumps({"threads": threads, "cores": list(allowed)}))
    try:
        yield entry
    finally:
        process.kill()
        process.wait()


def threads_of(folder, asked=None, most=None):
    with cores.shared(asked, most, folder) as share:
        return share.threads


def test_a_run_takes_what_helps_it_and_what_others_have_left(tmp_path, four_cores):
    assert threads_of(tmp_path) == 4
    assert threads_of(tmp_path, most=2) == 2
    with another(tmp_path, 1):
        assert threads_of(tmp_path) == 3 and threads_of(tmp_path, most=2) == 2
        with another(tmp_path, 2):
            assert threads_of(tmp_path) == threads_of(tmp_path, most=2) == 1
            with another(tmp_path, 2):
                assert threads_of(tmp_path) == 1, "each run has one"


def test_what_is_asked_for_is_taken_and_counts_for_others(tmp_path, four_cores):
    with another(tmp_path, 4), cores.shared(3, 1, tmp_path) as share:
        assert share.threads == 3
        (own,) = tmp_path.glob(f"{os.getpid()}-*.json")
        assert json.loads(own.read_text()) == {"threads": 3, "cores": [0, 1, 2, 3]}
    assert not list(tmp_path.glob(f"{os.getpid()}-*.json"))


def test_killed_runs_and_those_on_other_cores_do_not_count(tmp_path, four_cores):
    with another(tmp_path, 3) as dead:
        pass
    assert dead.exists() and threads_of(tmp_path) == 4 and not dead.exists()
    reused = tmp_path / f"{os.getpid()}-1.0.json"  # this process's number, of another time
    reused.write_text(json.dumps({"threads": 3, "cores": [0]}))
    assert threads_of(tmp_path) == 4
    with another(tmp_path, 3, allowed=(8, 9)):
        assert threads_of(tmp_path) == 4
    with another(tmp_path, 3) as broken:
        broken.write_text("{")
        assert threads_of(tmp_path) == 4


def test_where_nothing_can_be_written_a_run_is_alone(tmp_path, four_cores):
    (tmp_path / "file").write_text("")
    assert threads_of(tmp_path / "file" / "cores") == 4
    assert threads_of(tmp_path / "file" / "cores", most=2) == 2
    assert threads_of(tmp_path / "file" / "cores", asked=7) == 7


def test_a_failing_run_gives_its_cores_back(tmp_path, four_cores):
    with pytest.raises(KeyError), cores.shared(None, None, tmp_path):
        raise KeyError
    assert threads_of(tmp_path) == 4
