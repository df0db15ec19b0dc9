"""The cost of measuring plasticity, as a share of the updates between two measurements.

`python benchmarks/plasticity.py` prints a Markdown table. `agents=[td3,sac]` selects agents,
`rounds=` and `threads=` set the amount of work. Three agents of a kind take turns learning from the
same batches: one without measurements, one measured in each pair of updates (TD3 and SAC update
their actors only in every second one), and one with the critic's FAU read at every update, as
`replay_ratio=adaptive` needs it.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import turns
from gymnasium.spaces import Box

from rlearly.agents import AGENTS, agent_spec
from rlearly.config.fields import setting
from rlearly.config.schema import PlasticityConfig
from rlearly.core.errors import ConfigError
from rlearly.core.types import Batch, EnvSpec, Rollout
from rlearly.plasticity.monitor import PlasticityMonitor
from rlearly.system.seeding import Seeds

CPU = torch.device("cpu")
STATES = EnvSpec(Box(-np.inf, np.inf, (17,), np.float32), Box(-1, 1, (6,), np.float32), 1)
IMAGES = EnvSpec(Box(0, 255, (9, 84, 84), np.uint8), Box(-1, 1, (38,), np.float32), 2)
UPDATES_A_STEP = {"td3": 1.0, "sac": 1.0, "drqv2": 0.5, "drm": 0.5, "ppo": 1 / 2048}


@dataclass(frozen=True)
class BenchmarkConfig:
    """Settings of the benchmark."""

    agents: list[str] = field(default_factory=lambda: ["td3", "sac", "ppo", "drqv2", "drm"])
    rounds: int = setting(
        0, "pairs of updates per agent; 0: 200, or 8 from images, or 5 rollouts of ppo", at_least=0
    )
    threads: int = setting(1, "CPU threads", at_least=1)


def learner(name: str, monitor: PlasticityMonitor) -> Callable[[], None]:
    """A function that does two updates of an agent of default size, always from the same data."""
    declared = agent_spec(name)
    spec = IMAGES if declared.observes_pixels else STATES
    config = declared.config_class()
    agent = declared.make(config, spec, seeds=Seeds(0), device=CPU, monitor=monitor)
    if declared.on_policy:
        return lambda: _two_rollouts(agent, spec, config.for_actions(spec.action).rollout_steps)
    batch = _batch(spec, config.batch_size)
    steps = iter(range(0, 10**9, 10**4))  # each update is in a measurement interval of its own

    def learn() -> None:
        step = next(steps)
        for _ in range(2):
            agent.update(batch, step=step)

    return learn


def _two_rollouts(agent: Any, spec: EnvSpec, count: int) -> None:
    random = np.random.default_rng(0)
    for turn in range(2):
        obs = random.normal(size=(count + 1, 1, *spec.observation.shape)).astype(np.float32)
        actions = np.stack([agent.act(obs[t], step=0, explore=True) for t in range(count)])
        never = np.zeros((count, 1), bool)
        rollout = Rollout(actions, random.normal(size=(count, 1)), never, never, obs[1:])
        agent.update(rollout, step=10**4 * (agent.learnt_steps + turn))


def _batch(spec: EnvSpec, size: int) -> Batch:
    random = torch.Generator().manual_seed(0)
    shape = (size, *spec.observation.shape)
    if spec.observation.dtype == np.uint8:
        images = [torch.randint(0, 256, shape, generator=random, dtype=torch.uint8) for _ in "ab"]
        obs, next_obs = images
    else:
        obs, next_obs = (torch.randn(shape, generator=random) for _ in "ab")
    action = torch.rand((size, *spec.action.shape), generator=random) * 2 - 1
    ones = torch.ones(size, 1)
    return Batch(obs, action, torch.randn(size, 1, generator=random), ones * 0.99, next_obs)


def measure(name: str, rounds: int) -> dict[str, float | str]:
    """Medians over rounds in which the three agents take turns."""
    monitors = {
        "plain": PlasticityMonitor(0),
        "measured": PlasticityMonitor(every_steps=1),
        "each_update": PlasticityMonitor(0, critic_each_update=name != "ppo"),
    }
    kinds = {kind: learner(name, monitor) for kind, monitor in monitors.items()}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(rounds + 2):
        for kind, learn in kinds.items():
            began = time.perf_counter()
            learn()
            if turn > 1:  # the first turns allocate memory
                seconds[kind].append(time.perf_counter() - began)
    plain = statistics.median(seconds["plain"]) / 2
    pairs = zip(*seconds.values(), strict=True)
    extra = [(measured - base, each - base) for base, measured, each in pairs]
    reading = statistics.median(one for one, _ in extra) / (2 if name == "ppo" else 1)
    each = statistics.median(two for _, two in extra) / 2
    every = PlasticityConfig().every_steps
    updates = max(UPDATES_A_STEP[name] * every, 1.0)
    return {
        "agent": name,
        "update_ms": plain * 1e3,
        "reading_ms": reading * 1e3,
        "share_percent": 100 * reading / (plain * updates),
        "fau_each_update_percent": 100 * each / plain,
    }


def main() -> int:
    try:
        config = turns.parse_config(BenchmarkConfig(), __doc__)
        unknown = set(config.agents) - set(AGENTS)
        if unknown:
            raise ConfigError(
                f"agents: expected some of {', '.join(AGENTS)}, received {', '.join(unknown)}."
            )
    except ConfigError as error:
        print(f"benchmarks/plasticity.py: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(config.threads)
    print("| agent | update ms | a measurement ms | share of the updates | FAU at every update |")
    print("|---|---:|---:|---:|---:|")
    for name in config.agents:
        rounds = config.rounds or (
            8 if agent_spec(name).observes_pixels else 5 if name == "ppo" else 200
        )
        row = measure(name, rounds)
        each = "" if name == "ppo" else f"{row['fau_each_update_percent']:.1f} %"
        print(
            f"| {name} | {row['update_ms']:.2f} | {row['reading_ms']:.1f} "
            f"| {row['share_percent']:.2f} % | {each} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
