"""Folders with odd names, and the commands that are printed for them."""

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_STATE

from rlearly import evaluate, report, teacher, train
from rlearly.api import session
from rlearly.config import resolve
from rlearly.core.exit_status import BAD_REQUEST, DONE, SAVED
from rlearly.core.types import Progress
from rlearly.experiments.study import grid
from rlearly.training.sinks import TensorBoard
from rlearly.training.stop_requests import StopRequests
from rlearly.training.video import Video

RUN = [*TINY_STATE["td3"], "train_frames=120", "agent.learning_starts_steps=40", "video_size=0"]
NAMES = ("lr=0.1,seed=3", "größe", "My Drive (1)", 'it\'s $HOME `x` "y" #~;[a]', "1e3")


class StopsSoon(StopRequests):
    """Asks to stop as Ctrl-C does, after a few steps."""

    calls = 0

    def __call__(self):
        self.calls += 1
        return self.calls > 20


def pasted(command):
    """The arguments after `python -m MODULE`, as bash passes them on."""
    show = "import sys; print(end=chr(0).join(sys.argv[1:]))"
    script = f"show() {{ {shlex.quote(sys.executable)} -c '{show}' \"$@\"; }}; show {command}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, encoding="utf-8", check=True)
    return done.stdout.split("\0")[3:]


@pytest.mark.parametrize("name", NAMES)
def test_stopped_run_continues_with_the_printed_command(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(session, "StopRequests", StopsSoon)
        assert train.main([*RUN, f"run_dir={name}"]) == SAVED
    assert [path.name for path in tmp_path.iterdir()] == [name]
    words = pasted(capsys.readouterr().out.partition("continue with: ")[2].strip())
    assert train.main(words) == DONE
    assert (tmp_path / name / "done.json").exists()
    assert train.main([*RUN, f"run_dir={name}"]) == BAD_REQUEST
    assert pasted(capsys.readouterr().err.partition("continue it with: ")[2].strip()) == words


def test_folder_that_a_sweep_names_is_accepted_by_every_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["intervention=[redo,layer_norm],redo", "wandb.group='a,b',x", "agent=td3"]
    run = Path(grid([*RUN, *words], [0]).runs[0].name)
    assert "=[redo,layer_norm]" in str(run) and "='a,b'" in str(run)
    assert train.main([*RUN, f"run_dir={run}"]) == 0
    capsys.readouterr()

    assert evaluate.main([f"run={run}", "episodes=1", "video_size=0"]) == 0
    snapshots = run / "t=1,2.h5"
    assert teacher.main([f"run={run}", f"out={snapshots}", "episodes=1"]) == 0
    assert train.main([f"resume={run}"]) == 0
    assert "is finished" in capsys.readouterr().out
    assert report.main([f"run={run}"]) == 0 and (run / "report.png").exists()
    assert report.main([str(run), str(run), f"out={run}/c=1,2.png"]) == 0
    assert (run / "c=1,2.csv").exists()
    started = resolve.compose([*RUN, f"jump_start.run={run}"])
    assert started.jump_start.run == str(tmp_path / run)
    assert resolve.compose([*RUN, f"snapshot={snapshots}"]).snapshot == str(tmp_path / snapshots)

    for command, key in ((evaluate, "run"), (teacher, "run"), (train, "resume")):
        capsys.readouterr()
        assert command.main([str(run)]) == 2
        hint = capsys.readouterr().err.partition("did you mean ")[2].removesuffix("?\n")
        assert pasted(f"1 2 3 {hint}") == [f"{key}={run}"]


@pytest.mark.parametrize("name", ["~", "s3:", "a:b"])
def test_videos_and_events_are_in_their_folder_though_its_name_looks_like_another_place(
    name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with Video(Path(name) / "x" / "v.mp4") as video:
        video.add(np.zeros((32, 32, 3), np.uint8))
    events = TensorBoard(Path(name) / "x" / "events")
    events.write(Progress(frames=1, steps=1), {"loss": 1.0})
    events.close()
    found = {path.name.split(".")[0] for path in (tmp_path / name / "x").rglob("*")}
    assert found == {"v", "events"} and len(list(tmp_path.iterdir())) == 1
