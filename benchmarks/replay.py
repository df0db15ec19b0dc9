"""The cost of adding to and sampling from a replay buffer, compared with copies and other buffers.

`python benchmarks/replay.py` prints a Markdown table; `json=FILE` saves the numbers. Each side runs
in a process of its own, and they take turns. Images are `images=` real ones of dog_run, rendered
first (50 ms each without a GPU) under smooth random actions; each side keeps `transitions=` of
them, repeated in order. States are HalfCheetah's (17 numbers, 6 actions). Buffers are full before
the first turn.

`episodes in files` works like the published loader of DrQ-v2 and DrM, in a plain form: stacked
observations, one compressed file per episode and an uncompressed copy in memory, and every sample
of a batch drawn and assembled separately, in the learner's process.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from turns import OURS, Row, compare, parse_config, report, serve

from rlearly.config.fields import setting
from rlearly.core.errors import ConfigError

SIDES = {
    "sample images": [OURS, "a copy", "rlearly, zstd", "rlearly, disk", "episodes in files"],
    "add an image": [OURS, "a copy", "rlearly, zstd", "rlearly, disk", "episodes in files"],
    "sample states": [OURS, "a copy", "Stable-Baselines3"],
    "add a state": [OURS, "a copy", "Stable-Baselines3"],
}
TIMES = {"sample images": 5, "add an image": 500, "sample states": 2000, "add a state": 5000}
BATCH, STACK, NSTEP, DISCOUNT = 256, 3, 3, 0.99
EPISODE_STEPS, STATES = 500, 50_000


@dataclass(frozen=True)
class BenchmarkConfig:
    """Settings of the benchmark."""

    cases: list[str] = field(default_factory=lambda: list(SIDES))
    images: int = setting(500, "images to render", at_least=50)
    transitions: int = setting(20_000, "transitions that each side keeps", at_least=1000)
    threads: int = setting(1, "CPU threads of each side", at_least=1)
    rounds: int = setting(7, "timed turns of each side", at_least=1)
    frames: str | None = setting(None, ".npy file of images [N, 3, 84, 84]; null: render them")
    json: str | None = setting(None, "JSON file to write the numbers to")


# --- in the processes of the sides ---


def prepare(side: str, case: str, threads: int) -> Callable[[], Any]:
    """A function that samples one batch or adds one transition."""
    import torch

    from rlearly.system import machine

    machine.set_threads(threads)
    torch.set_num_threads(threads)
    if "image" in case:
        images = np.load(os.environ["REPLAY_IMAGES"])
        count = int(os.environ["REPLAY_TRANSITIONS"])
        if side == "a copy":
            return _copy(2 * BATCH * STACK if case.startswith("sample") else 1, images[0])
        adds, in_files = case.startswith("add"), side == "episodes in files"
        memory = EpisodesInFiles(write=adds) if in_files else _buffer(side, images, count)
        steps = _steps(memory, images)
        for _ in range(0 if adds and in_files else count + 2):
            next(steps)
        return (lambda: next(steps)) if adds else _keep_one(lambda: memory.sample(BATCH))
    state = np.zeros(17, np.float32)
    if side == "a copy":
        return _copy(2 * BATCH if case.startswith("sample") else 1, state)
    if side == "Stable-Baselines3":
        return _stable_baselines(case)
    memory = _buffer(side, state[None], STATES)
    steps = _steps(memory, np.random.default_rng(0).normal(size=(999, 17)).astype(np.float32))
    for _ in range(STATES + 2):
        next(steps)
    if case == "add a state":
        return lambda: next(steps)
    return _keep_one(lambda: memory.sample(BATCH))


def _keep_one(sample: Callable[[], Any]) -> Callable[[], None]:
    """Keep the last batch alive until the next one is sampled, as in training."""
    kept: list[Any] = [None]

    def work() -> None:
        kept[0] = sample()

    return work


def _copy(count: int, one: np.ndarray) -> Callable[[], Any]:
    import torch

    source = torch.from_numpy(np.repeat(one[None], count, axis=0))
    into = torch.empty_like(source)
    return lambda: into.copy_(source)


def _buffer(side: str, frames: np.ndarray, capacity: int) -> Any:
    from rlearly.replay.buffer import ReplayBuffer, TransitionLayout
    from rlearly.replay.frame_store import CompressedFrameStore, RawFrameStore

    shape, dtype = frames.shape[1:], str(frames.dtype)
    image = len(shape) == 3
    store: Any = None
    if side == "rlearly, zstd":
        store = CompressedFrameStore(capacity, shape)
    elif side == "rlearly, disk":
        store = RawFrameStore(capacity, shape, dtype, folder=Path(tempfile.gettempdir()))
    return ReplayBuffer(
        TransitionLayout(shape, dtype, STACK if image else 1, 38 if image else 6),
        capacity=capacity,
        nstep=NSTEP if image else 1,
        discount=DISCOUNT,
        generator=np.random.default_rng(0),
        frames=store,
    )


def _steps(memory: Any, frames: np.ndarray) -> Iterator[None]:
    """Add one transition per iteration, beginning new episodes where needed."""
    stack = STACK if frames.ndim == 4 else 1
    action = np.zeros(38 if frames.ndim == 4 else 6, np.float32)
    stacks = np.concatenate([np.roll(frames, back, axis=0) for back in range(stack)[::-1]], axis=1)
    if stack == 1:
        stacks = frames
    step = 0
    while True:
        memory.begin_episode(stacks[step % len(stacks)])
        for left in range(EPISODE_STEPS)[::-1]:
            step += 1
            obs = stacks[step % len(stacks)]
            memory.add(action, 1.0, obs, terminated=False, truncated=not left)
            yield


class EpisodesInFiles:
    """Episodes of stacked observations, as in the published loader.

    `write`: write each episode to a file and read it back, instead of keeping it directly.
    """

    def __init__(self, *, write: bool) -> None:
        self.write = write
        self.folder = tempfile.TemporaryDirectory()
        self.episodes: list[dict[str, np.ndarray]] = []
        self.running: dict[str, list[Any]] = {}
        self.random = random.Random(0)

    def begin_episode(self, obs: np.ndarray) -> None:
        self.running = {name: [] for name in ("observation", "action", "reward", "discount")}
        self._append(obs, np.zeros(38, np.float32), 0.0, 1.0)

    def add(
        self,
        action: np.ndarray,
        reward: float,
        obs: np.ndarray,
        *,
        terminated: bool,
        truncated: bool,
    ) -> None:
        self._append(obs, action, reward, 1.0)
        if not (terminated or truncated):
            return
        episode = {name: np.array(values) for name, values in self.running.items()}
        if not self.write:
            self.episodes.append(episode)
            return
        path = Path(self.folder.name) / f"{len(self.episodes)}.npz"
        np.savez_compressed(path, **episode)  # pyright: ignore  (numpy's own keyword)
        with np.load(path) as loaded:
            self.episodes.append({name: loaded[name] for name in loaded})
        path.unlink()

    def _append(self, obs: np.ndarray, action: np.ndarray, reward: float, discount: float) -> None:
        values = (obs, action, np.full(1, reward, np.float32), np.full(1, discount, np.float32))
        for kept, value in zip(self.running.values(), values, strict=True):
            kept.append(value)

    def sample(self, batch_size: int) -> tuple[Any, ...]:
        import torch

        samples = [self._one() for _ in range(batch_size)]
        return tuple(
            torch.stack([torch.as_tensor(value) for value in values])
            for values in zip(*samples, strict=True)
        )

    def _one(self) -> tuple[np.ndarray, ...]:
        episode = self.random.choice(self.episodes)
        first = self.random.randint(0, len(episode["reward"]) - 1 - NSTEP)
        reward, discount = np.zeros(1, np.float32), np.ones(1, np.float32)
        for step in range(first + 1, first + 1 + NSTEP):
            reward = reward + discount * episode["reward"][step]
            discount = discount * episode["discount"][step] * np.float32(DISCOUNT)
        return (
            episode["observation"][first],
            episode["action"][first + 1],
            reward,
            discount,
            episode["observation"][first + NSTEP],
        )


def _sb3_buffer(capacity: int) -> Any:
    from gymnasium.spaces import Box
    from stable_baselines3.common.buffers import ReplayBuffer

    obs, action = Box(-np.inf, np.inf, (17,), np.float32), Box(-1, 1, (6,), np.float32)
    return ReplayBuffer(capacity, obs, action, device="cpu", handle_timeout_termination=True)


def _stable_baselines(case: str) -> Callable[[], Any]:
    buffer = _sb3_buffer(STATES)
    state, action = np.zeros((1, 17), np.float32), np.zeros((1, 6), np.float32)
    reward, done, info = np.ones(1), np.zeros(1, bool), [{}]

    def add() -> None:
        buffer.add(state, state, action, reward, done, info)

    for _ in range(STATES):
        add()
    if case == "add a state":
        return add
    return _keep_one(lambda: buffer.sample(BATCH))


# --- in the one that is run ---


def render(count: int) -> np.ndarray:
    """Images of dog_run, one per agent step, under smoothly changing actions."""
    from rlearly.config import resolve
    from rlearly.training import builder

    env = builder.make_env(resolve.compose(["agent=drm", "env=dog_run"]))
    generator = np.random.default_rng(0)
    action = np.zeros(env.action_space.shape or (), np.float32)
    obs, _ = env.reset(seed=0)
    images = []
    while len(images) < count:
        images.append(obs[-3:].copy())
        noise = generator.normal(size=action.shape)
        action = np.clip(0.9 * action + 0.3 * noise, -1, 1).astype(np.float32)
        obs, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            obs, _ = env.reset(seed=len(images))
    env.close()
    return np.stack(images)


def bytes_each(side: str, case: str, images: np.ndarray | None) -> float | None:
    """Memory of one transition; None if the side keeps nothing."""
    if side == "a copy":
        return None
    if side == "Stable-Baselines3":
        buffer = _sb3_buffer(1000)
        arrays = [value for value in vars(buffer).values() if isinstance(value, np.ndarray)]
        return sum(array.nbytes for array in arrays) / 1000
    if images is None:
        return _buffer(side, np.zeros((1, 17), np.float32), 1000).layout.transition_bytes
    if side == "episodes in files":
        return STACK * images[0].nbytes + 38 * 4 + 4 + 4
    buffer = _buffer(side, images, len(images))
    rest = buffer.layout.transition_bytes - buffer.layout.frame_bytes
    if side == "rlearly, zstd":
        from rlearly.replay.storage import INDEX_BYTES

        buffer.frames.write(0, images)
        return rest + INDEX_BYTES + buffer.frames.compressed_bytes / len(images)
    return rest if side == "rlearly, disk" else buffer.layout.transition_bytes


def measure(case: str, config: BenchmarkConfig, images: np.ndarray | None) -> list[Row]:
    sampled = case.startswith("sample")
    rows = compare(
        __file__,
        case,
        SIDES[case],
        threads=config.threads,
        rounds=config.rounds,
        times=TIMES[case],
        unit="batches/s" if sampled else "transitions/s",
    )
    noted = []
    for row in rows:
        size = bytes_each(row.side, case, images)
        noted.append(
            row if size is None else replace(row, note=f"{size:,.0f} bytes per transition")
        )
    return noted


def main() -> int:
    if serve(prepare):
        return 0
    try:
        config = parse_config(BenchmarkConfig(), __doc__)
        for case in config.cases:
            if case not in SIDES:
                raise ConfigError(f"cases: expected some of {', '.join(SIDES)}, received {case!r}.")
    except ConfigError as error:
        print(f"benchmarks/replay.py: {error}", file=sys.stderr)
        return 2
    with contextlib.ExitStack() as stack:
        images = None
        if any("image" in case for case in config.cases):
            images = np.load(config.frames) if config.frames else render(config.images)
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            np.save(f"{folder}/images.npy", images)
            os.environ["REPLAY_IMAGES"] = f"{folder}/images.npy"
            os.environ["REPLAY_TRANSITIONS"] = str(config.transitions)
        report(
            (measure(c, config, images if "image" in c else None) for c in config.cases),
            config.json,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
