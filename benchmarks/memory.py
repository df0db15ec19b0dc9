"""Bytes per stored image transition, compared with a plain list of stacked observations.

`python benchmarks/memory.py` prints a Markdown table. `env=` selects the env, `transitions=` how
many are stored; `overrides=['replay.compression=zstd']` adds overrides for rlearly's config;
`json=FILE` saves the numbers.

One episode of `episode_steps` random actions is rendered once, then stored repeatedly until there
are enough transitions. Each side does this in its own process, and the growth of its resident
memory is measured. rlearly's side is the replay buffer of its config. The plain side is a list of
each step's stack, action, reward and discount, as the official code keeps them. The memory for a
million transitions is extrapolated; the uncompressed size is the sum of the arrays of a transition.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import turns

from rlearly.config.fields import setting
from rlearly.core.errors import ConfigError

PLAIN = "plain"


@dataclass(frozen=True)
class BenchmarkConfig:
    """Settings of the benchmark."""

    env: str = setting("dog_run", "env to render")
    transitions: int = setting(5000, "transitions stored by each side", at_least=10)
    episode_steps: int = setting(250, "agent steps of the episode that is rendered", at_least=5)
    overrides: list[str] = field(
        default_factory=list, metadata={"help": "overrides of rlearly's config"}
    )
    json: str | None = setting(None, "JSON file to write the numbers to")


def composed(env: str, overrides: list[str]) -> Any:
    from rlearly.config import resolve

    return resolve.compose(
        ["agent=drm", f"env={env}", "obs=pixels", "train_frames=1000000000", *overrides]
    )


def draw(config: BenchmarkConfig, path: Path) -> None:
    """Write the observations, actions and rewards of one episode."""
    from rlearly.training import builder

    env = builder.make_env(composed(config.env, config.overrides))
    env.action_space.seed(0)
    obs, _ = env.reset(seed=0)
    seen, actions, rewards = [obs], [], []
    for _ in range(config.episode_steps):
        actions.append(env.action_space.sample())
        obs, reward, *_ = env.step(actions[-1])
        seen.append(obs)
        rewards.append(float(reward))
    env.close()
    np.savez(path, obs=np.array(seen), actions=np.array(actions), rewards=np.array(rewards))


def steps(path: str, count: int) -> Iterator[tuple[np.ndarray, np.ndarray, float, np.ndarray]]:
    """The episode's steps (obs, action, reward, next obs), over and over, `count` of them."""
    with np.load(path) as saved:
        obs, actions, rewards = saved["obs"], saved["actions"], saved["rewards"]
    for number in range(count):
        at = number % len(actions)
        yield obs[at], actions[at], float(rewards[at]), obs[at + 1]


class Stacks:
    """The plain side: a list of each step's stack, action, reward and discount."""

    def __init__(self) -> None:
        self.kept: list[tuple[Any, ...]] = []
        self.counted = 0

    def begin_episode(self, obs: np.ndarray, *, env_index: int) -> None:
        self.first = obs.copy()

    def add(self, action: np.ndarray, reward: float, next_obs: np.ndarray, **_: Any) -> None:
        if self.first is not None:
            nothing = np.zeros_like(action)
            self.kept.append((self.first, nothing, np.float32(0), np.float32(1)))
            self.first = None
        self.kept.append((next_obs.copy(), action.copy(), np.float32(reward), np.float32(1)))
        self.counted = sum(part.nbytes for part in self.kept[-1])


def ours(env: str, overrides: list[str], capacity: int, ends: ExitStack) -> tuple[Any, int]:
    """The replay buffer of a run that is ready to start, and a transition's uncompressed bytes."""
    import loop as loops

    from rlearly import envs
    from rlearly.training import builder

    loops.prepare_env_libraries()
    overrides = ["obs=pixels", f"replay.capacity={capacity}", *overrides]
    folder = ends.enter_context(tempfile.TemporaryDirectory())
    loop, _ = loops.build("drm", env, overrides, 1, Path(folder))
    ends.callback(loop.close)
    config = composed(env, overrides)
    spec = envs.env_spec(loop.envs[0], config.env)
    return loop.memory, builder.transition_layout(config, spec).transition_bytes


def resident_bytes() -> int:
    import psutil

    gc.collect()
    return psutil.Process().memory_info().rss


def fill(side: str, env: str, path: str, count: int, episode: int, overrides: list[str]) -> None:
    """Store one episode, then measure storing the others; runs in its own process."""
    with ExitStack() as ends:
        if side == PLAIN:
            memory: Any = Stacks()
            counted = 0
        else:
            slots = count + episode + count // episode + 10
            memory, counted = ours(env, overrides, slots, ends)
        before, began = 0, 0.0
        for number, (obs, action, reward, next_obs) in enumerate(steps(path, count + episode)):
            if number == episode:  # by now all that storing needs is allocated
                before, began = resident_bytes(), time.perf_counter()
            if number % episode == 0:
                memory.begin_episode(obs, env_index=0)
            last = number % episode == episode - 1
            memory.add(action, reward, next_obs, terminated=False, truncated=last, env_index=0)
        seconds = time.perf_counter() - began
        taken = resident_bytes() - before
        print(f"{taken} {counted or memory.counted} {seconds}", flush=True)


def measure(config: BenchmarkConfig) -> list[turns.Row]:
    episode, count = config.episode_steps, config.transitions
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "episode.npz"
        draw(config, path)
        found = {}
        for side in (PLAIN, turns.OURS):
            overrides = [side, config.env, str(path), str(count), str(episode), *config.overrides]
            command = [sys.executable, "-W", "ignore", __file__, "--fill", *overrides]
            done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", env=os.environ)
            if done.returncode:
                raise SystemExit(f"the side {side!r} has ended; see above.")
            found[side] = [float(word) for word in done.stdout.splitlines()[-1].split()]
    rows = []
    for side, (taken, counted, seconds) in found.items():
        each = taken / count
        note = (
            f"uncompressed: {counted:,.0f}; a million: {each / 1e3:.1f} GB; "
            f"storing one takes {1e6 * seconds / count:.0f} us"
        )
        ratio = None if side == turns.OURS else taken / found[turns.OURS][0]
        case = " ".join([config.env, *config.overrides])
        rows.append(turns.Row(case, side, 1, each, "bytes", ratio, note))
    return rows


def main() -> int:
    if sys.argv[1:2] == ["--fill"]:
        side, env, path, count, episode, *overrides = sys.argv[2:]
        fill(side, env, path, int(count), int(episode), overrides)
        return 0
    try:
        config = turns.parse_config(BenchmarkConfig(), __doc__)
        composed(config.env, config.overrides)
    except ConfigError as error:
        print(f"benchmarks/memory.py: {error}", file=sys.stderr)
        return 2
    rows = measure(config)
    print(turns.HEAD.replace("rate", "a transition").replace("faster", "smaller"))
    print(turns.show(rows))
    if config.json:
        turns.keep(config.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
