"""rlearly in a notebook: progress below the cell, the interrupt, and figures shown inline."""

import asyncio
import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TESTS = Path(__file__).parents[1]

TRAIN = """
import rlearly
run = rlearly.train(
    agent="ppo", env="tiny_envs:StateReach-v0", train_frames=512, agent__rollout_steps=128,
    agent__minibatches=4, eval_every_frames=256, eval_episodes=1, run_dir="run", threads=1,
)
run
"""
INTERRUPTED = """
import os, signal, threading
threading.Timer(3.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
stopped = rlearly.train(
    agent="ppo", env="tiny_envs:StateReach-v0", train_frames=100_000_000, agent__rollout_steps=128,
    agent__minibatches=4, eval_every_frames=0, run_dir="stopped", threads=1,
)
print(stopped.finished, stopped.checkpoints[-1] > 0)
done = rlearly.train(resume=stopped.path, train_frames=stopped.frames + 128, progress=False)
print(done.finished)
"""
OWN = """
import tiny_envs
class Mine(tiny_envs.StateReach):
    pass
mine = rlearly.train(
    agent="ppo", env=Mine, train_frames=256, agent__rollout_steps=128, agent__minibatches=4,
    eval_every_frames=0, progress=False,
)
mine.config.env.name
"""


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """The outputs of a notebook's cells."""
    if sys.platform == "win32":
        asyncio.set_event_loop_policy(asyncio.WindowsSelectorEventLoopPolicy())
    folder = tmp_path_factory.mktemp("notebook")
    codes = [TRAIN, "run.plot()", "rlearly.report(run)", INTERRUPTED, OWN]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in codes])
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    client = NotebookClient(notebook, timeout=300, kernel_name="python3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
        patch.setenv("IPYTHONDIR", str(folder))
        client.resources["metadata"] = {"path": str(folder)}
        client.execute()
    return [cell["outputs"] for cell in notebook.cells]


def text(outputs):
    return "".join(out.get("text", "") for out in outputs if out["output_type"] == "stream")


def shown(outputs, kind):
    return [out["data"][kind] for out in outputs if kind in out.get("data", {})]


def test_progress_is_printed_below_the_cell(cells):
    said = text(cells[0])
    assert "evaluation at 256 frames" in said and "done: 512 frames" in said
    assert said.count("\n") < 20


def test_a_run_is_shown_as_a_table(cells):
    assert "ppo, tiny_envs:StateReach-v0, 0" in shown(cells[0], "text/html")[-1]


def test_figures_are_shown_inline(cells):
    assert len(shown(cells[1], "image/png")[0]) > 10_000
    assert "data:image/png;base64," in shown(cells[2], "text/html")[0]


def test_the_interrupt_saves_and_the_run_continues(cells):
    assert "saved at" in text(cells[3])
    assert text(cells[3]).endswith("False True\nTrue\n")


def test_a_class_of_the_notebook_is_an_env(cells):
    assert shown(cells[4], "text/plain") == ["'given/Mine'"]
