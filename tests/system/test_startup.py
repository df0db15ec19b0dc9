"""Where a command may be started."""

import getpass
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from rlearly.system.startup import name_user_and_home

ROOT = Path(__file__).parents[2]

EDITABLE = """
import importlib.machinery, importlib.util, os, sys
class Editable:
    @staticmethod
    def find_spec(name, path=None, target=None):
        place = os.path.join(sys.argv[1], *name.split("."))
        if name.split(".")[0] == "rlearly":
            if os.path.isdir(place):
                place = os.path.join(place, "__init__")
            return importlib.util.spec_from_file_location(name, place + ".py")
sys.meta_path.insert(sys.meta_path.index(importlib.machinery.PathFinder) + 1, Editable)
import rlearly
assert rlearly.__file__ is None
from rlearly.system.command import exit_with
def main():
    import rlearly.core.types
    from rlearly import SnapshotRL, __version__
    print(__version__, rlearly.__file__)
    return 0
command = importlib.util.module_from_spec(importlib.machinery.ModuleSpec("command", None))
command.main = lambda: main()
sys.modules["command"] = command
exit_with("command")
"""
"""As with an editable installation, whose finder comes after the one of folders."""


def test_command_works_in_the_folder_that_holds_the_checkout(tmp_path):
    (tmp_path / "rlearly" / "docs").mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", EDITABLE, str(ROOT)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"{ROOT / 'rlearly' / '__init__.py'}\n")


@pytest.mark.parametrize("module", ["rlearly.train", "rlearly.report", "rlearly.doctor"])
def test_deleted_working_folder_is_one_sentence(tmp_path, module):
    script = f"cd {tmp_path}/gone && rmdir {tmp_path}/gone && exec {sys.executable} -m {module} x=1"
    (tmp_path / "gone").mkdir()
    done = subprocess.run(
        ["sh", "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("rlearly: The working folder cannot be used")


def test_user_without_a_name_and_a_home_has_both_in_a_command(monkeypatch):
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(RuntimeError):
        Path.home()
    name_user_and_home()
    assert Path.home() == Path("/") and getpass.getuser() == f"user{os.getuid()}"
    monkeypatch.setenv("HOME", "/home/me")
    name_user_and_home()
    assert Path.home() == Path("/home/me")
