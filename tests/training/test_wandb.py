"""Online tracking, and syncing later, against a server on this machine. Takes a minute:
`pytest -m cluster tests/training/test_wandb.py`."""

import json
import os
import signal
import subprocess
import sys

import pytest
from slurm_here import until
from wandb_here import WandbServer

pytestmark = pytest.mark.cluster

PATIENCE = 400
WORDS = [
    "agent=td3",
    "env=Pendulum-v1",
    "eval_every_frames=2000",
    "eval_episodes=1",
    "log_every_frames=400",
    "plasticity.every_steps=0",
    "agent.hidden_dim=8",
    "agent.learning_starts_steps=20",
]


@pytest.fixture
def server():
    running = WandbServer()
    yield running
    running.stop()


def command(*overrides, server=None):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment |= server.environment if server else {}
    return subprocess.Popen([sys.executable, "-m", "rlearly.sweep", *overrides], env=environment)


ENDLESS = "train_frames=100000"
"""More frames than a run can do before it is stopped."""


def few_more(out):
    """The train_frames with which the stopped runs of a sweep end soon."""
    done = [row["frames"] for folder in made(out) for row in rows_of(folder)]
    return f"train_frames={max(done) + 1000}"


def run_dirs(out):
    return sorted((out / "runs" / "td3" / "Pendulum-v1").iterdir())


def made(out):
    return [file.parent for file in out.glob("runs/*/*/*/metrics.jsonl")]


def rows_of(folder):
    """The whole rows, also while the run writes."""
    whole = (folder / "metrics.jsonl").read_text(encoding="utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def assert_sent(server, out, seeds):
    """The server has every run under its own id in the sweep's group, each row once."""
    assert len(server.runs) == len(run_dirs(out)) == seeds
    for folder in run_dirs(out):
        run = server.runs[(folder / "wandb_id").read_text(encoding="utf-8")]
        assert run["groupName"] == out.name
        sent = [
            {key: value for key, value in row.items() if not key.startswith("_")}
            for row in run["rows"]
            if "eval/video" not in row
        ]
        assert sent == rows_of(folder)


def test_online_sweep_is_a_group_and_resumes_under_its_ids(server, tmp_path):
    out = tmp_path / "my sweep"
    overrides = [*WORDS, "seeds=2", f"sweep_dir={out}", "wandb.mode=online"]
    first = command(*overrides, ENDLESS, server=server)
    until(lambda: any(len(run["rows"]) >= 2 for run in server.runs.values()), PATIENCE, "some rows")
    first.send_signal(signal.SIGTERM)
    assert first.wait(PATIENCE) == 75
    before = set(server.runs)
    assert before and not list(out.rglob("done.json"))
    assert command(*overrides, few_more(out), server=server).wait(PATIENCE) == 0
    assert before <= set(server.runs)
    assert_sent(server, out, seeds=2)


def test_offline_sweep_is_sent_later_by_one_command(server, tmp_path):
    """A stopped run has written two parts; syncing twice sends nothing twice."""
    out = tmp_path / "offline"
    overrides = [*WORDS, "seeds=2", f"sweep_dir={out}", "wandb.mode=offline"]
    first = command(*overrides, ENDLESS)
    until(lambda: any(rows_of(folder) for folder in made(out)), PATIENCE, "some rows")
    first.send_signal(signal.SIGTERM)
    assert first.wait(PATIENCE) == 75
    assert command(*overrides, few_more(out)).wait(PATIENCE) == 0
    assert not server.runs
    for _ in range(2):
        assert command(f"sync={out}", server=server).wait(PATIENCE) == 0
        assert_sent(server, out, seeds=2)


def test_run_that_was_deleted_on_the_server_goes_on_under_another_id(server, tmp_path):
    """Takes half a minute more, in which wandb's client asks again and again."""
    out = tmp_path / "out"
    overrides = [*WORDS, "seeds=1", f"sweep_dir={out}", "wandb.mode=online"]
    assert command(*overrides, "train_frames=1000", server=server).wait(240) == 0
    (folder,) = run_dirs(out)
    first = (folder / "wandb_id").read_text(encoding="utf-8")
    server.deleted.add(first)
    assert command(*overrides, "train_frames=2000", server=server).wait(240) == 0
    second = (folder / "wandb_id").read_text(encoding="utf-8")
    assert set(server.runs) == {first, second} and first != second
    assert [row["frames"] for row in server.runs[second]["rows"]][-1] == 2000
