"""The cost of a checkpoint with a full replay buffer: time, bytes, and share of a run's time.

`python benchmarks/checkpoint.py` prints a Markdown table. `runs=[drm:dog_run,td3:Hopper-v5]`
selects the runs, each with its own settings; `capacity=` sets the size of the buffer, which is
written once as a whole, in `folder=`, for comparison; `json=FILE` saves the numbers. Between two
checkpoints at the default interval the buffer gets new transitions of random numbers. The share is
relative to the time that this machine needs for the steps and updates of an interval, measured in
the same run.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import turns

from rlearly import envs
from rlearly.config import resolve
from rlearly.config.fields import setting
from rlearly.core.append_log import AppendLog
from rlearly.core.errors import ConfigError
from rlearly.replay.buffer import ReplayBuffer
from rlearly.system import machine
from rlearly.training import builder, checkpoint


@dataclass(frozen=True)
class BenchmarkConfig:
    """Settings of the benchmark."""

    runs: list[str] = field(default_factory=lambda: ["td3:Hopper-v5", "drm:dog_run"])
    capacity: int = setting(1_000_000, "transitions in the full replay buffer", at_least=1000)
    rounds: int = setting(3, "checkpoints of each kind", at_least=1)
    folder: str | None = setting(None, "folder for the checkpoints; null: a temporary one")
    load: bool = setting(True, "also load a checkpoint, which needs as much memory as the buffer")
    threads: int = setting(1, "CPU threads", at_least=1)
    json: str | None = setting(None, "JSON file to write the numbers to")


def fill(replay: ReplayBuffer, rows: int, generator: np.random.Generator) -> None:
    """Add transitions of random numbers in blocks, which is faster than one by one."""
    block = 1000
    for _ in range(0, rows, block):
        at = np.arange(replay.added, replay.added + block) % replay.capacity
        shape = (block, *replay.layout.frame_shape)
        if replay.layout.frame_dtype == "uint8":
            frames = generator.integers(0, 256, shape, dtype=np.uint8)
        else:
            frames = generator.normal(size=shape).astype(replay.layout.frame_dtype)
        for index, frame in zip(at.tolist(), frames, strict=True):
            replay.frames.write(index, frame[None])
        replay.actions[at] = generator.uniform(-1, 1, (block, replay.layout.actions))
        replay.added += block


def written_bytes(folder: Path, since: set[str]) -> int:
    files = [f for f in folder.rglob("*") if f.is_file() and str(f) not in since]
    return sum(f.stat().st_size for f in files)


def seconds(call: Callable[[], Any], times: int = 3) -> float:
    """The shortest time that a call takes."""
    found = []
    for _ in range(times):
        began = time.monotonic()
        call()
        found.append(time.monotonic() - began)
    return min(found)


def measure(name: str, asked: BenchmarkConfig, folder: Path) -> tuple[str, list[turns.Row]]:
    """A line of the table, and the rates of checkpoints compared with writing everything anew."""
    agent_name, env_name = name.split(":")
    config = resolve.compose(
        [f"agent={agent_name}", f"env={env_name}", f"replay.capacity={asked.capacity}"]
    )
    device = machine.choose_device("auto")
    env = builder.make_env(config)
    spec = envs.env_spec(env, config.env)
    env.reset(seed=0)
    step_seconds = seconds(lambda: env.step(np.zeros(spec.action.shape, np.float32)))
    env.close()
    interval_frames = config.checkpoint_every_frames
    rows = interval_frames // spec.frames_per_step
    agent = builder.make_agent(config, spec, device)
    generator = np.random.default_rng(0)
    layout = builder.transition_layout(config, spec)

    def empty() -> ReplayBuffer:
        return ReplayBuffer(
            layout, capacity=asked.capacity, nstep=3, discount=0.99, generator=generator
        )

    replay = empty()
    replay.added = asked.capacity  # full, of zeros that take no memory
    checkpoints = checkpoint.Checkpoints(folder, keep=2)
    timed: dict[str, list[float]] = {"whole": [], "new": [], "quick": []}
    sizes = 0
    for number in range(asked.rounds + 1):
        fill(replay, rows, generator)
        state = {"agent": agent.state_dict(), "replay": replay.state_dict()}
        before = {str(f) for f in folder.rglob("*") if f.is_file()}
        began = time.monotonic()
        checkpoints.save(number, state)
        timed["new" if number else "whole"].append(time.monotonic() - began)
        sizes = written_bytes(folder, before)
        state["replay"] = {**state["replay"], "slots": AppendLog(0, 0, replay._rows)}
        began = time.monotonic()
        checkpoint.Checkpoints(folder / "without", keep=1).save(number, state)
        timed["quick"].append(time.monotonic() - began)
    loading = float("nan")
    if asked.load:
        began = time.monotonic()
        _, loaded = checkpoint.load_newest(folder)
        empty().load_state_dict(loaded["replay"])
        loading = time.monotonic() - began
    new = statistics.median(timed["new"])
    batch = replay.sample(config.agent.batch_size)
    update_seconds = seconds(lambda: agent.update(batch, step=0))
    seconds_a_step = step_seconds + float(config.replay_ratio) * update_seconds
    share = new / (rows * seconds_a_step)
    whole = asked.capacity * layout.transition_bytes
    once, unit = timed["whole"][0], "checkpoints/s"
    kept = [
        turns.Row(name, "all of it written", asked.threads, 1 / once, unit, ratio=once / new),
        turns.Row(name, turns.OURS, asked.threads, 1 / new, unit),
    ]
    line = (
        f"| {agent_name} on {env_name} | {machine.gigabytes(whole)} | {timed['whole'][0]:.2f} | "
        f"{machine.gigabytes(sizes)} | {new:.2f} | {timed['whole'][0] / new:.1f} | "
        f"{statistics.median(timed['quick']):.2f} | {rows * seconds_a_step:,.0f} | {share:.3%} | "
        f"{loading:.2f} |"
    )
    return line, kept


def main() -> int:
    try:
        asked = turns.parse_config(BenchmarkConfig(), __doc__)
    except ConfigError as error:
        print(f"benchmarks/checkpoint.py: {error}", file=sys.stderr)
        return 2
    machine.set_threads(asked.threads)
    print(
        "| run | full replay | all of it written, s | a checkpoint writes | takes, s | ratio | "
        "without transitions, s | an interval takes, s | share | verified and loaded, s |\n"
        "|---|---|---|---|---|---|---|---|---|---|"
    )
    rows: list[turns.Row] = []
    for name in asked.runs:
        place = Path(asked.folder or tempfile.mkdtemp()) / name.replace(":", "-")
        place.mkdir(parents=True)
        try:
            line, found = measure(name, asked, place)
        finally:
            shutil.rmtree(place)
        print(line, flush=True)
        rows += found
    if asked.json:
        turns.keep(asked.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
