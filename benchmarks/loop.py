"""Env steps per second of whole training loops, compared with plain loops and Stable-Baselines3.

`python benchmarks/loop.py` prints a Markdown table. `agents=[td3,drm]` selects agents, `env=` and
`visual_env=` envs, `threads=`, `rounds=` and `slices=` the amount of work; `json=FILE` saves the
numbers. `precision=`, `compile=` and `overrides=['num_envs=4']` apply only to rlearly.

Every side steps the same env with the same hyper-parameters, batch size 256, and an update at every
step (from images at every second step; PPO: 2048 steps, then 10 epochs of 32 minibatches).
`drq_eps` and `drq_eps_state` (on `atari_env=` and `discrete_env=`) have the batches and networks
that discrete.py describes, an update at every step, and one action in 100 at random. Every side
logs as it usually does, and has begun to learn before it is timed. rlearly's side is a real run:
`builder.build` with all sinks, but without evaluations, videos and checkpoints.
"""

from __future__ import annotations

import importlib
import io
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import discrete
import turns

from rlearly.config.fields import setting
from rlearly.core.errors import ConfigError

SB3 = "Stable-Baselines3"
MEMORY_KEPT = "plain, memory kept"
STATE, VISUAL = ("td3", "sac", "ppo"), ("drm", "drqv2")
DISCRETE = tuple(discrete.ENVS)
UNIT_STEPS = {"td3": 50, "sac": 50, "ppo": 2048, "drm": 2, "drqv2": 2}
UNIT_STEPS |= {"drq_eps": 4, "drq_eps_state": 50}
"""Agent steps per unit of work: a rollout for PPO, one update for agents that see images."""

SLICES = {"td3": 4, "sac": 4, "ppo": 1, "drm": 1, "drqv2": 1}
SLICES |= {"drq_eps": 2, "drq_eps_state": 4}
STARTS_STEPS = {"td3": 500, "sac": 500, "drm": 20, "drqv2": 20}
STARTS_STEPS |= {"drq_eps": 100, "drq_eps_state": 500}
"""Random steps before learning."""

PPO_STEPS = 10**7
"""Length of the run, over which PPO's learning rate falls to 0."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """Settings of the benchmark."""

    agents: list[str] = field(default_factory=lambda: [*STATE, "drm", *DISCRETE])
    env: str = setting("HalfCheetah-v5", "env of the agents that see states")
    visual_env: str = setting("dog_run", "env of the agents that see images")
    atari_env: str = setting(discrete.ENVS["drq_eps"], "env of drq_eps: an Atari game")
    discrete_env: str = setting(discrete.ENVS["drq_eps_state"], "env of drq_eps_state")
    threads: int = setting(1, "CPU threads of each side", at_least=1)
    rounds: int = setting(5, "timed turns of each side", at_least=1)
    slices: int = setting(0, "units of work per turn; 0: the default of each agent", at_least=0)
    precision: str | None = setting(None, "precision= of rlearly's side")
    compile: bool | None = setting(None, "compile= of rlearly's side")
    overrides: list[str] = field(
        default_factory=list, metadata={"help": "overrides of rlearly's config"}
    )
    json: str | None = setting(None, "JSON file to write the numbers to")


# --- in the processes of the sides ---


class SliceOver(Exception):
    """The requested number of steps is done."""


class SliceWatcher:
    """Updates a display, as the training command does, and ends each slice.

    It raises SliceOver at the very end of a step, so the next `run` continues from there.
    """

    def __init__(self, train_frames: int):
        from rich.console import Console

        from rlearly.training.display import Display

        self.display = Display(train_frames, Console(file=io.StringIO()))
        self.until_steps = 0

    def on_progress(self, at: Any, updates: int, latest: Mapping[str, Any]) -> None:
        self.display.on_progress(at, updates, latest)
        if at.steps >= self.until_steps:
            raise SliceOver

    def message(self, text: str) -> None:
        """Ignore messages."""


def build(
    agent: str, env: str, overrides: list[str], threads: int, folder: Path
) -> tuple[Any, Callable[[int], None]]:
    """A real run of rlearly, and a function that advances it by a number of steps."""
    from rlearly.config import resolve
    from rlearly.system import machine
    from rlearly.training import builder
    from rlearly.training.sinks import TensorBoard, make_sinks

    usual = ["eval_every_frames=0", "checkpoint_every_frames=0", "video_size=0", "device=cpu"]
    if agent in STATE + DISCRETE:
        usual += [f"train_frames={PPO_STEPS}"]
    else:
        usual += ["replay.capacity=20000", f"seed_frames={2 * STARTS_STEPS[agent]}"]
        usual += [f"agent.exploration_steps={STARTS_STEPS[agent]}"]
    if agent in DISCRETE:
        usual += [f"replay.capacity={discrete.CAPACITY}", f"agent.epsilon_end={discrete.EPSILON}"]
        usual += ["agent.epsilon_steps=1"]
    if agent in ("td3", "sac", *DISCRETE):
        usual += [f"agent.learning_starts_steps={STARTS_STEPS[agent]}"]
    name = discrete.agent_of(agent)
    config = resolve.compose([f"agent={name}", f"env={env}", *usual, *overrides])
    machine.set_threads(threads)
    watcher = SliceWatcher(config.train_frames)
    events = TensorBoard(folder / "events")
    loop = builder.build(
        config,
        folder,
        make_sinks=lambda: make_sinks(config, folder, events),
        display=watcher,
        device=machine.choose_device("cpu"),
    )

    def advance(steps: int) -> None:
        watcher.until_steps = loop.at.steps + steps
        try:
            loop.run()
        except SliceOver:
            return
        raise SystemExit("benchmarks/loop.py: the run has ended before the measurement")

    return loop, advance


def plainly(agent: str, env: str, folder: Path) -> Any:
    import plain_loops

    loop: Iterator[None]
    if agent == "ppo":
        loop = plain_loops.ppo(env, folder=folder, train_steps=PPO_STEPS)
    elif agent in DISCRETE:
        starts = STARTS_STEPS[agent]
        loop = plain_loops.q_learning(agent, env, starts_steps=starts, folder=folder)
    elif agent in STATE:
        starts = STARTS_STEPS[agent]
        loop = plain_loops.off_policy(agent, env, starts_steps=starts, folder=folder)
    else:
        from rlearly.config import resolve

        feature_dim = resolve.compose([f"agent={agent}", f"env={env}"]).agent.feature_dim
        loop = plain_loops.visual(
            agent,
            env,
            starts_steps=STARTS_STEPS[agent],
            feature_dim=feature_dim,
            folder=folder,
        )

    def advance(steps: int) -> None:
        for _ in range(steps):
            next(loop)

    return advance


def stable_baselines(agent: str, env: str) -> Any:
    import gymnasium
    import numpy as np
    import stable_baselines3
    from stable_baselines3.common.noise import NormalActionNoise
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    if agent in DISCRETE:
        config, starts = discrete.agent_config(agent, env), STARTS_STEPS[agent]
        learner: Any = discrete.dqn(discrete.make_env(env), config, learning_starts_steps=starts)
        return lambda steps: learner.learn(steps, reset_num_timesteps=False, log_interval=1)
    kind = {
        "td3": stable_baselines3.TD3,
        "sac": stable_baselines3.SAC,
        "ppo": stable_baselines3.PPO,
    }[agent]
    made = gymnasium.make(env)
    kwargs: dict[str, Any] = {"device": "cpu", "learning_rate": 3e-4}
    if agent == "ppo":
        vector = DummyVecEnv([lambda: gymnasium.wrappers.RecordEpisodeStatistics(made)])
        kwargs["env"] = VecNormalize(vector, gamma=0.99)
    else:
        kwargs |= {"env": made, "batch_size": 256, "learning_starts": STARTS_STEPS[agent]}
        kwargs |= {"train_freq": 1, "gradient_steps": 1, "policy_kwargs": {"net_arch": [256, 256]}}
    if agent == "td3":
        size = np.ones(made.action_space.shape or ())
        kwargs["action_noise"] = NormalActionNoise(0.0 * size, 0.1 * size)
    learner = kind("MlpPolicy", **kwargs)
    return lambda steps: learner.learn(steps, reset_num_timesteps=False, log_interval=1)


def prepare_env_libraries() -> None:
    """Choose the rendering backend, and hide warnings about the envs' models."""
    from rlearly.envs.gl_backend import choose_backend

    choose_backend()
    mujoco: Any = importlib.import_module("mujoco")
    mujoco.set_mju_user_warning(lambda text: None)
    logging.getLogger("absl").setLevel(logging.ERROR)


def prepare(side: str, case: str, threads: int, ends: ExitStack) -> Callable[[], Any]:
    """A function that runs one unit of work of a side that has begun to learn.

    `ends`: receives what must be closed at the end.
    """
    import torch

    from rlearly.system import machine

    name, *overrides = case.split()
    agent, env = name.split(":")
    torch.manual_seed(0)
    folder = Path(ends.enter_context(tempfile.TemporaryDirectory()))
    prepare_env_libraries()
    if side == MEMORY_KEPT:
        machine.set_threads(threads)
    torch.set_num_threads(threads)
    if side == turns.OURS:
        loop, advance = build(agent, env, overrides, threads, folder)
        ends.callback(loop.close)
    elif side == SB3:
        advance = stable_baselines(agent, env)
    else:
        advance = plainly(agent, env, folder)
    unit = UNIT_STEPS[agent]
    if agent in STARTS_STEPS:
        advance(STARTS_STEPS[agent] + unit)
    return lambda: advance(unit)


# --- in the one that is run ---


def words_of(config: BenchmarkConfig) -> list[str]:
    """The overrides for rlearly's side."""
    return [*turns.given(precision=config.precision, compile=config.compile), *config.overrides]


def env_of(agent: str, config: BenchmarkConfig) -> str:
    if agent in DISCRETE:
        return config.atari_env if agent == "drq_eps" else config.discrete_env
    return config.visual_env if agent in VISUAL else config.env


def measure(agent: str, config: BenchmarkConfig) -> list[turns.Row]:
    env = env_of(agent, config)
    return turns.compare(
        __file__,
        " ".join([f"{agent}:{env}", *words_of(config)]),
        ["plain", MEMORY_KEPT if agent in VISUAL else SB3, turns.OURS],
        threads=config.threads,
        rounds=config.rounds,
        times=config.slices or SLICES[agent],
        unit="agent steps/s",
        units_each=UNIT_STEPS[agent],
    )


def main() -> int:
    with ExitStack() as ends:
        if turns.serve(partial(prepare, ends=ends)):
            return 0
    try:
        config = turns.parse_config(BenchmarkConfig(), __doc__)
        check(config)
    except ConfigError as error:
        print(f"benchmarks/loop.py: {error}", file=sys.stderr)
        return 2
    turns.report((measure(agent, config) for agent in config.agents), config.json)
    return 0


def check(config: BenchmarkConfig) -> None:
    """Check the agents' names and the overrides for rlearly.

    Raises:
        ConfigError: a name is unknown, or an override is refused.
    """
    from rlearly.config import resolve

    for agent in config.agents:
        if agent not in STATE + VISUAL + DISCRETE:
            known = ", ".join(STATE + VISUAL + DISCRETE)
            raise ConfigError(f"agents: expected some of {known}, received {agent!r}.")
        name, env = discrete.agent_of(agent), env_of(agent, config)
        resolve.compose([f"agent={name}", f"env={env}", *words_of(config)])


if __name__ == "__main__":
    sys.exit(main())
