"""Agent steps per second of envs and of a training loop, compared with plain baselines.

`python benchmarks/env.py` prints a Markdown table. `cases=[...]` selects cases, `rounds=` and
`threads=` set the amount of work, `json=FILE` saves the numbers. A case is a task followed by
`pixels`, `states` or `loop`. The sides take turns in processes of their own (turns.py). The
baselines are what one writes without a framework: dm_control's suite with physics.render at each
step, gymnasium's own rgb_array rendering resized to 84x84, gymnasium.make's step; of Atari, four
steps of ale-py's env, whose last two grey screens are resized by Pillow.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from turns import OURS, Row, compare, parse_config, report, serve

from rlearly.config.fields import setting
from rlearly.core.errors import ConfigError

FAST = "rlearly, env.render=fast"
BUFFER = "rlearly, the model's buffer"
SUITE = "dm_control"
GYMNASIUM = "gymnasium"
IN_TURN = "rlearly, overlap=false"
SIDES = {
    "dog_run pixels": (OURS, FAST, BUFFER, SUITE),
    "cheetah_run pixels": (OURS, FAST, BUFFER, SUITE),
    "walker_run pixels": (OURS, FAST, BUFFER, SUITE),
    "HalfCheetah-v5 pixels": (OURS, FAST, BUFFER, GYMNASIUM),
    "atari/Pong pixels": (OURS, GYMNASIUM),
    "cheetah_run states": (OURS, SUITE),
    "HalfCheetah-v5 states": (OURS, GYMNASIUM),
    "cheetah_run loop": (OURS, IN_TURN),
    "dog_run loop": (OURS, IN_TURN),
}
"""Case -> its sides."""

TIMES = {"pixels": 20, "states": 2000, "loop": 12}
"""Units of work per turn."""
LOOP = {
    "cheetah_run": "preset=cpu seed_frames=320",
    "dog_run": "seed_frames=600 replay.capacity=2000 agent.nstep=1",
}
"""Task -> overrides of a DrM run; updates begin before the first turn."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """Settings of the benchmark."""

    cases: list[str] = field(default_factory=lambda: list(SIDES))
    threads: int = setting(1, "CPU threads of each side", at_least=1)
    rounds: int = setting(9, "timed turns of each side", at_least=1)
    json: str | None = setting(None, "JSON file to write the numbers to")


# --- in the processes of the sides ---


def prepare(side: str, case: str, threads: int) -> Callable[[], Any]:
    """A function that takes one agent step."""
    import torch

    torch.set_num_threads(threads)
    name, kind = case.split()
    if kind == "loop":
        return _loop(name, threads, overlap=side == OURS)
    if side == SUITE:
        return _plain_suite(name, pixels=kind == "pixels")
    if name.startswith("atari/") and side == GYMNASIUM:
        return _plain_atari(name)
    if side == GYMNASIUM:
        return _plain_gymnasium(name, pixels=kind == "pixels")
    return _stepper(_our_env(name, side, pixels=kind == "pixels"))


def _our_env(name: str, side: str, *, pixels: bool) -> Any:
    from rlearly import envs
    from rlearly.envs import mujoco_rendering

    config = replace(envs.config_for(name), render="fast" if side == FAST else "exact")
    if pixels and config.family != "atari":
        config = replace(config, action_repeat=2)
    if side == BUFFER:
        mujoco_rendering.DMControlRenderer._resize_buffer = lambda renderer, physics, size: None  # pyright: ignore
        mujoco_rendering.MujocoRenderer._make_renderer = _renderer_in_the_models_buffer  # pyright: ignore
    return envs.make(config, pixels=pixels, model_seed=0)


def _renderer_in_the_models_buffer(renderer: Any, model: Any, size: int) -> Any:
    import mujoco

    return mujoco.Renderer(model, size, size)


def _stepper(env: Any) -> Callable[[], None]:
    from rlearly.training.evaluation import checked_reset, checked_step

    discrete = not env.action_space.shape
    actions = _numbers(env) if discrete else _actions(env.action_space.shape[0])
    seeds = itertools.count()
    checked_reset(env, "a benchmark", seed=next(seeds))

    def step() -> None:
        _, _, terminated, truncated, _ = checked_step(env, next(actions), "a benchmark")
        if terminated or truncated:
            checked_reset(env, "a benchmark", seed=next(seeds))

    return step


def _actions(count: int) -> Any:
    many = np.random.default_rng(0).uniform(-1, 1, (1000, count)).astype(np.float32)
    return itertools.cycle(many)


def _numbers(env: Any) -> Any:
    return itertools.cycle(np.random.default_rng(0).integers(0, env.action_space.n, 1000))


def _plain_suite(name: str, *, pixels: bool) -> Callable[[], None]:
    from rlearly.envs.gl_backend import choose_backend

    choose_backend()
    from dm_control import suite

    domain, task = name.split("_", 1)
    env: Any = suite.load(domain, task, task_kwargs={"random": 0})
    low, high = env.action_spec().minimum, env.action_spec().maximum
    actions = _actions(len(low))
    images: deque[np.ndarray] = deque(maxlen=3)
    env.reset()

    def step() -> np.ndarray:
        action = low + (next(actions).astype(np.float64) + 1) / 2 * (high - low)
        total = 0.0
        for _ in range(2):
            time_step = env.step(action)
            total += time_step.reward or 0.0
            if time_step.last():
                break
        if not pixels:
            seen = time_step.observation  # pyright: ignore[reportPossiblyUnbound]
            obs = np.concatenate([np.ravel(part) for part in seen.values()]).astype(np.float32)
        else:
            images.append(env.physics.render(84, 84, camera_id=0).transpose(2, 0, 1).copy())
            obs = np.concatenate(images)
        if time_step.last():  # pyright: ignore[reportPossiblyUnbound]
            env.reset()
        return obs

    return step  # pyright: ignore[reportReturnType]


def _plain_gymnasium(name: str, *, pixels: bool) -> Callable[[], None]:
    from rlearly.envs.gl_backend import choose_backend

    choose_backend()
    import gymnasium
    from PIL import Image

    env: Any = gymnasium.make(name, render_mode="rgb_array" if pixels else None)
    actions = _actions(env.action_space.shape[0])
    images: deque[np.ndarray] = deque(maxlen=3)
    env.reset(seed=0)

    def step() -> None:
        for _ in range(2 if pixels else 1):
            _, _, terminated, truncated, _ = env.step(next(actions))
            if terminated or truncated:
                env.reset()
        if pixels:
            image = Image.fromarray(env.render()).resize((84, 84), Image.Resampling.BOX)
            images.append(np.asarray(image).transpose(2, 0, 1))
            np.concatenate(images)

    return step


def _plain_atari(name: str) -> Callable[[], None]:
    import ale_py
    import gymnasium
    from PIL import Image

    gymnasium.register_envs(ale_py)
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    game = f"{name.removeprefix('atari/')}NoFrameskip-v4"
    env: Any = gymnasium.make(game, obs_type="grayscale")
    actions = _numbers(env)
    images: deque[np.ndarray] = deque(maxlen=4)
    env.reset(seed=0)

    def step() -> None:
        action, screens = next(actions), []
        for _ in range(4):
            obs, _, terminated, truncated, _ = env.step(action)
            screens.append(obs)
            if terminated or truncated:
                env.reset()
                break
        image = Image.fromarray(np.maximum(screens[-1], screens[max(len(screens) - 2, 0)]))
        images.append(np.asarray(image.resize((84, 84), Image.Resampling.BOX)))
        np.stack(images)

    return step


def _loop(name: str, threads: int, *, overlap: bool) -> Callable[[], Any]:
    import torch

    from rlearly.config import resolve
    from rlearly.system import machine
    from rlearly.training import builder
    from rlearly.training.sinks import JsonLines, Sinks

    class Silent:
        def on_progress(self, at: Any, updates: int, latest: Any) -> None:
            pass

        def message(self, text: str) -> None:
            pass

    machine.set_threads(threads)
    folder = Path(tempfile.mkdtemp())
    overrides = f"agent=drm env={name} {LOOP[name]} eval_every_frames=0"
    loop = builder.build(
        resolve.compose([*overrides.split(), f"overlap={str(overlap).lower()}"]),
        folder,
        make_sinks=lambda: Sinks(JsonLines(folder / "metrics.jsonl"), []),
        display=Silent(),
        device=torch.device("cpu"),
    )
    while not loop.updates:
        loop._step()
    return loop._step


# --- in the one that is run ---


def measure(case: str, config: BenchmarkConfig) -> list[Row]:
    kind = case.split()[1]
    return compare(
        __file__,
        case,
        SIDES[case],
        threads=config.threads,
        rounds=config.rounds,
        times=TIMES[kind],
        unit="steps/s",
        units_each=1,
    )


def main() -> int:
    if serve(prepare):
        os._exit(0)  # rendering contexts of other threads cannot be freed in this one
    try:
        config = parse_config(BenchmarkConfig(), __doc__)
        for case in config.cases:
            if case not in SIDES:
                raise ConfigError(f"cases: expected some of {', '.join(SIDES)}, received {case!r}.")
    except ConfigError as error:
        print(f"benchmarks/env.py: {error}", file=sys.stderr)
        return 2
    report((measure(case, config) for case in config.cases), config.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
