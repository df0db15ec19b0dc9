"""The loop's laws: what is due when, nothing outside touches training, resuming is exact."""

import json

import numpy as np
import pytest
import torch
from conftest import TINY

from rlearly import checkpoint, compose
from rlearly.cadence import FixedRatio
from rlearly.config import ConfigError
from rlearly.sinks import JsonLines, Sinks


class Silent:
    def __init__(self):
        self.said = []

    def look(self, at, updates, latest):
        pass

    def say(self, text):
        self.said.append(text)


def make_loop(folder, *words, stop=lambda: False):
    folder.mkdir(exist_ok=True)
    config = compose.compose([*TINY, *words])
    return compose.build(
        config,
        folder,
        make_sinks=lambda: Sinks(JsonLines(folder / "metrics.jsonl"), []),
        watcher=Silent(),
        device=torch.device("cpu"),
        stop_requested=stop,
    )


def rows(folder):
    """The metrics file without what the clock decides."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    timed = ("speed/", "eval/seconds")
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(timed)} for line in lines
    ]


def plain(tree):
    """A state as comparable Python, to the bit, clocks left out."""
    if isinstance(tree, dict):
        return {k: plain(v) for k, v in tree.items() if k not in ("elapsed_seconds", "sinks")}
    if isinstance(tree, list | tuple):
        return [type(tree).__name__, *map(plain, tree)]
    if isinstance(tree, torch.Tensor):
        tree = tree.detach().cpu().numpy()
    return (str(tree.dtype), tree.shape, tree.tobytes()) if isinstance(tree, np.ndarray) else tree


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.3, 0.5, 1, 1.5, 2, 4])
def test_fixed_ratio_spreads_updates_evenly_from_the_first_step(ratio):
    cadence = FixedRatio(ratio)
    due = [cadence.updates_due(step) for step in range(1000)]
    assert due[0] >= 1 and max(due) - min(due) <= 1
    assert abs(sum(due) - ratio * 1000) <= 1
    if ratio == 0.5:
        assert due[:6] == [1, 0, 1, 0, 1, 0]


def test_fixed_ratio_keeps_its_credit_and_refuses_nothing_to_do():
    one, two = FixedRatio(0.3), FixedRatio(0.3)
    for step in range(7):
        one.updates_due(step)
    two.load_state_dict(one.state_dict())
    assert [one.updates_due(s) for s in range(20)] == [two.updates_due(s) for s in range(20)]
    with pytest.raises(ConfigError, match="replay_ratio: expected a number above 0"):
        FixedRatio(0)
    with pytest.raises(ConfigError, match="replay_ratio"):
        FixedRatio(float("inf"))
    rare = FixedRatio(1e-5)
    assert sum(rare.updates_due(step) for step in range(250_000)) == 3


def test_updates_start_after_the_seed_frames_at_the_given_ratio(tmp_path):
    loop = make_loop(tmp_path, "train_frames=180", "seed_frames=100", "replay_ratio=0.5")
    assert loop.run()
    assert loop.steps == 180 and loop.updates == 40 and loop.episodes == 18


def test_rows_and_evaluations_come_when_due_and_not_at_step_zero(tmp_path):
    loop = make_loop(
        tmp_path,
        "train_frames=200",
        "log_every_frames=50",
        "eval_every_frames=100",
        "eval_episodes=2",
        "video_size=24",
    )
    loop.run()
    written = rows(tmp_path)
    assert [r["frames"] for r in written if "eval/episode_return" in r] == [100, 200]
    assert [r["frames"] for r in written if "train/updates" in r] == [50, 100, 150, 200]
    assert all(r["steps"] == r["frames"] for r in written)
    assert [p.name for p in sorted((tmp_path / "videos").iterdir())] == [
        "eval_000000000100.mp4",
        "eval_000000000200.mp4",
    ]


def test_updates_after_the_last_row_are_written_at_the_end(tmp_path):
    make_loop(tmp_path, "train_frames=130", "log_every_frames=1000").run()
    (row,) = [r for r in rows(tmp_path) if "train/updates" in r]
    assert (row["frames"], row["train/updates"]) == (130, 15) and row["loss/critic"] > 0


def test_evaluation_logging_and_videos_change_nothing_in_training(tmp_path):
    quiet = make_loop(tmp_path / "quiet", "train_frames=200")
    busy = make_loop(
        tmp_path / "busy",
        "train_frames=200",
        "eval_every_frames=30",
        "eval_episodes=1",
        "video_size=24",
        "log_every_frames=7",
        "checkpoint_every_frames=40",
    )
    quiet.run()
    busy.run()
    one, two = plain(quiet.state_dict()), plain(busy.state_dict())
    for part in ("agent", "replay", "env", "cadence"):
        assert one[part] == two[part], part


@pytest.mark.parametrize("agent", ["drqv2", "drm"])
@pytest.mark.parametrize("stop_at", [3, 77, 130, 151])
def test_resumed_run_equals_uninterrupted_run(tmp_path, agent, stop_at):
    words = (
        f"agent={agent}",
        "train_frames=220",
        "log_every_frames=40",
        "eval_every_frames=75",
        "eval_episodes=1",
        "replay.capacity=120",
        *(["agent.perturb_every_steps=50"] if agent == "drm" else []),
    )
    straight = make_loop(tmp_path / "straight", *words)
    assert straight.run()
    stopped = make_loop(tmp_path / "resumed", *words)
    stopped.stop_requested = lambda: stopped.steps >= stop_at
    assert not stopped.run() and stopped.steps == stop_at
    stopped.close()
    with (tmp_path / "resumed" / "metrics.jsonl").open("a") as stream:
        stream.write("a row that was written after the checkpoint\n")
    resumed = make_loop(tmp_path / "resumed", *words)
    resumed.load_state_dict(checkpoint.load_newest(tmp_path / "resumed" / "checkpoints")[1])
    assert resumed.run()
    assert plain(straight.state_dict()) == plain(resumed.state_dict())
    assert rows(tmp_path / "straight") == rows(tmp_path / "resumed")


def test_changed_intervals_take_effect_on_resuming(tmp_path):
    first = make_loop(tmp_path, "train_frames=200", "eval_every_frames=20", "eval_episodes=1")
    first.run()
    later = make_loop(tmp_path, "train_frames=320", "eval_every_frames=50", "eval_episodes=1")
    later.load_state_dict(checkpoint.load_newest(tmp_path / "checkpoints")[1])
    later.run()
    frames = [r["frames"] for r in rows(tmp_path) if "eval/episode_return" in r]
    assert frames == [*range(20, 201, 20), 250, 300]


def test_failing_checkpoint_in_mid_run_does_not_end_it(tmp_path, monkeypatch):
    loop = make_loop(tmp_path, "train_frames=130", "checkpoint_every_frames=50")
    save, calls = checkpoint.save, []

    def full_disk_once(*arguments):
        calls.append(arguments[1])
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        return save(*arguments)

    monkeypatch.setattr(checkpoint, "save", full_disk_once)
    assert loop.run() and calls == [50, 100, 130]
    assert any("No space left" in text for text in loop.watcher.said)


def test_stop_during_an_evaluation_repeats_it_after_resuming(tmp_path):
    words = ("train_frames=130", "eval_every_frames=60", "eval_episodes=2", "video_size=24")
    straight = make_loop(tmp_path / "straight", *words)
    straight.run()
    stopped = make_loop(tmp_path / "stopped", *words)
    asked = []
    stopped.stop_requested = lambda: asked.append(0) or len(asked) > 65  # the fifth step of it
    assert not stopped.run() and stopped.steps == 60
    assert not list((tmp_path / "stopped" / "videos").iterdir()), "no half-written video is left"
    resumed = make_loop(tmp_path / "stopped", *words)
    resumed.load_state_dict(checkpoint.load_newest(tmp_path / "stopped" / "checkpoints")[1])
    resumed.run()
    assert rows(tmp_path / "straight") == rows(tmp_path / "stopped")


def test_run_says_what_the_replay_takes_and_refuses_what_cannot_fit(tmp_path, monkeypatch):
    from rlearly import machine

    loop = make_loop(tmp_path / "a", "train_frames=200")
    assert "replay: 5,000 transitions of 1,742 bytes" in loop.watcher.said[0]
    monkeypatch.setattr(machine, "available_bytes", lambda: 4_000_000_000)
    folder = tmp_path / "b"
    with pytest.raises(ConfigError) as error:
        make_loop(folder, "replay.capacity=3000000", "train_frames=5000000")
    sentence = str(error.value)
    assert "5.23 GB" in sentence and "4.00 GB" in sentence
    capacity = int(sentence.split("replay.capacity=")[1].split()[0])
    room = 4_000_000_000 - machine.WORKING_BYTES
    assert 0.9 * room < capacity * 1742 < room
    make_loop(folder, f"replay.capacity={capacity}", "train_frames=5000000")


def test_failing_tracker_costs_itself_only(tmp_path, caplog):
    class Broken(JsonLines):
        def write(self, at, metrics):
            raise OSError("no network")

    sinks = Sinks(JsonLines(tmp_path / "m.jsonl"), [Broken(tmp_path / "x.jsonl")])
    from rlearly.types import Progress

    for i in range(3):
        sinks.write(Progress(2 * i, i), {"a/b": 1.0})
    assert len((tmp_path / "m.jsonl").read_text().splitlines()) == 3
    assert caplog.text.count("Broken failed and is off from here: no network") == 1
