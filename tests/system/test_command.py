"""One guard turns failures into a sentence and a status, in whatever part of a command."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlearly.core import exit_status
from rlearly.core.errors import ConfigError, RunFailed
from rlearly.system.command import BUG, as_command

ROOT = Path(__file__).parents[2]
COMMANDS = ("train", "evaluate", "teacher", "report", "sweep", "doctor")
FULL, DENIED = (errno.ENOSPC, "No space left on device"), (errno.EACCES, "Permission denied")
FAILURES = {
    "expected x.": (2, ConfigError("expected x.")),
    "the env raised.": (1, RunFailed("the env raised.")),
    "a.pt: No space left on device; free space": (2, OSError(*FULL, "a.pt")),
    "No space left on device; free": (2, OSError(*FULL)),
    "out/x: Permission denied; change": (2, PermissionError(*DENIED, b"out/x")),
    "a -> b: Is a directory.": (2, OSError(errno.EISDIR, "Is a directory", "a", None, "b")),
    "memory ran out; free some": (1, MemoryError()),
    "memory ran out (out of memory); ": (1, torch.OutOfMemoryError("out of memory.\nsee")),
    "memory ran out (can't allocate memory: 8": (1, RuntimeError("can't allocate memory: 8 bytes")),
    "the package x is not installed in ": (2, ModuleNotFoundError("no x", name="x.y")),
}
BUGS = (KeyError("x"), ConnectionError("no path"), ModuleNotFoundError("x", name="rlearly.x"))


@pytest.mark.parametrize("sentence", FAILURES)
def test_expected_failure_is_one_sentence_and_a_status(sentence, capsys):
    status, error = FAILURES[sentence]

    @as_command
    def main(arguments):
        raise error

    assert main([]) == status
    said = capsys.readouterr().err
    assert said.startswith(f"rlearly: {sentence}") and said.count("\n") == 1
    assert said.endswith(".\n")


@pytest.mark.parametrize("error", BUGS, ids=repr)
def test_bug_is_raised_with_a_note_and_an_interrupt_without(error):
    @as_command
    def main(arguments):
        raise error

    for _ in range(2):
        with pytest.raises(type(error)) as raised:
            main([])
        assert raised.value.__notes__ == [BUG]

    @as_command
    def interrupted(arguments):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted([])


# --- in a process of its own ---

DEMO = """
import os, signal, sys, threading, time
from rlearly.system.command import as_command, exit_with, importing

def press():
    os.kill(os.getpid(), signal.SIGINT)

if {at_import}: press()

@as_command
def main(arguments):
    print("begun", flush=True)
    {body}
    print("ended")
    return 0
"""


def run(tmp_path, body="pass", at_import=False, **kwargs):
    (tmp_path / "demo.py").write_text(DEMO.format(body=body, at_import=at_import), encoding="utf-8")
    program = "from rlearly.system.command import exit_with; exit_with('demo')"
    command = [sys.executable, "-c", program]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    kwargs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | kwargs
    return subprocess.run(command, env=environment, encoding="utf-8", timeout=60, **kwargs)


INTERRUPTS = {
    "in main": "press()",
    "twice": "\n    try: press()\n    finally: press()",
    "turned into another error": "\n    try: press()\n    except BaseException: raise ImportError('half')",  # noqa: E501
    "in a destructor": "type('X', (), {'__del__': lambda self: press()})(); press()",
    "in imports in main": "\n    with importing():\n        try: press()\n        except KeyboardInterrupt: time.sleep(60)",  # noqa: E501
}


@pytest.mark.parametrize("where", INTERRUPTS)
def test_interrupt_ends_with_130_and_no_traceback(where, tmp_path):
    done = run(tmp_path, INTERRUPTS[where])
    assert (done.returncode, done.stderr) == (130, "rlearly: interrupted.\n")
    assert done.stdout == "begun\n"


def test_interrupted_command_closes_what_it_opened(tmp_path):
    done = run(tmp_path, "\n    try: press()\n    finally: print('closed')")
    assert (done.returncode, done.stdout) == (130, "begun\nclosed\n")


def test_interrupt_while_the_interpreter_ends_is_silent(tmp_path):
    late = "threading._register_atexit(press)"
    done = run(tmp_path, late)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize("command", COMMANDS)
def test_interrupt_during_the_imports_of_a_command(command, tmp_path):
    (tmp_path / "omegaconf.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n",
        encoding="utf-8",
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    words = [sys.executable, "-m", f"rlearly.{command}", "run=x"]
    done = subprocess.run(words, env=environment, capture_output=True, encoding="utf-8", timeout=60)
    assert (done.returncode, done.stderr) == (130, "rlearly: interrupted.\n")


def test_bug_shows_its_traceback_and_last_that_it_is_ours(tmp_path):
    done = run(tmp_path, "{}['x']")
    assert done.returncode == 1 and done.stderr.startswith("Traceback")
    assert done.stderr.splitlines()[-2:] == ["KeyError: 'x'", BUG]


def test_output_that_cannot_be_written_is_one_sentence(tmp_path):
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = run(tmp_path, "print('x')", stdout=full)
    assert done.returncode == 2 and "No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1


def test_command_runs_without_an_output(tmp_path):
    done = run(tmp_path, preexec_fn=lambda: os.close(1), stdout=None)
    assert (done.returncode, done.stderr) == (0, "")


def test_statuses_are_documented_as_they_are():
    page = (ROOT / "docs" / "resuming.md").read_text(encoding="utf-8")
    for status, meaning in exit_status.MEANINGS.items():
        assert f"| {status} | {meaning} |" in page.replace("\\|", "|")
