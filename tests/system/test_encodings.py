"""Text files are UTF-8, and any text can be printed, whatever the locale."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from check_encodings import without_encoding

ROOT = Path(__file__).parents[2]
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

RUN = """
import os, sys
from rlearly import evaluate, report, train

name = "gr\\xf6\\xdfe".encode(sys.argv[1])
folder = os.fsdecode(os.path.join(os.fsencode(sys.argv[2]), name))
tiny = "agent=td3 env=Pendulum-v1 train_frames=40 eval_every_frames=20 eval_episodes=1"
tiny += " video_size=0 agent.hidden_dim=8 agent.learning_starts_steps=20 seed_frames=20"
statuses = [train.main([*tiny.split(), f"run_dir='{folder}'"])]
statuses += [evaluate.main([f"run='{folder}'", "video_size=0", "episodes=1"])]
statuses += [train.main([f"resume='{folder}'", "train_frames=60"])]
statuses += [report.main([f"run={folder}"])]
print(statuses)
"""


def run(code, *arguments, **environment):
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, env={**os.environ, **environment})


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("open('a')", ["open"]),
        ("open('a', 'wb'); open('a', mode='rb'); path.open('rb')", []),
        ("path.open('w'); path.open(newline='')", ["open", "open"]),
        ("path.read_text(); path.write_text('a')", ["read_text", "write_text"]),
        ("open('a', encoding='utf-8'); path.read_text(encoding='utf-8')", []),
        ("run([], text=True); run([], encoding='utf-8'); run([])", ["run"]),
        ("NamedTemporaryFile('w'); NamedTemporaryFile(); os.open('a', 1)", ["NamedTemporaryFile"]),
    ],
)
def test_text_that_is_opened_without_encoding_is_found(code, found):
    assert [name for _, name in without_encoding(code)] == found


def test_lint_includes_the_check_of_encodings():
    assert "tests/check_encodings.py" in (ROOT / "Makefile").read_text(encoding="utf-8")
    done = subprocess.run([sys.executable, "tests/check_encodings.py"], cwd=ROOT)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("utf-8", "−ö ".encode() + b"\xf6"),
        ("latin-1", b"\\u2212\xf6 \xf6"),
        ("ascii", b"\\u2212\\xf6 \xf6"),
    ],
)
def test_what_an_encoding_lacks_is_printed_as_an_escape(encoding, printed):
    code = (
        "import sys, types; from rlearly.system.command import exit_with\n"
        "def main(): print('\\u2212\\xf6 \\udcf6'); print('\\u2212', file=sys.stderr); return 0\n"
        "sys.modules['command'] = types.SimpleNamespace(main=main)\n"
        "exit_with('command')"
    )
    done = run(code, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stdout) == (0, printed + b"\n"), done.stderr


@pytest.fixture(scope="module")
def latin1(tmp_path_factory):
    """The environment of a German user on a system of the nineties."""
    folder = tmp_path_factory.mktemp("locales")
    command = ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(folder / "de_DE.ISO-8859-1")]
    if not shutil.which("localedef") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs localedef and the sources of locales")
    return {"LOCPATH": str(folder), "LC_ALL": "de_DE.ISO-8859-1", "PYTHONUTF8": "0"}


@pytest.mark.parametrize("locale", ["ASCII", "Latin-1"])
def test_run_in_a_folder_with_umlauts_is_evaluated_resumed_and_reported(tmp_path, locale, request):
    environment = ASCII if locale == "ASCII" else request.getfixturevalue("latin1")
    encoding = "utf-8" if locale == "ASCII" else "latin-1"
    done = run(RUN, encoding, str(tmp_path), PYTHONIOENCODING="utf-8:replace", **environment)
    assert done.stdout.endswith(b"[0, 0, 0, 0]\n"), done.stdout + done.stderr
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + "größe".encode(encoding)))
    assert "run_dir" in (folder / "config.yaml").read_text(encoding="utf-8")
