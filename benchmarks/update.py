"""Updates a second of each agent, beside a plain baseline and Stable-Baselines3, in one run.

`python benchmarks/update.py` prints a Markdown table; `agents=[drm,td3]`, `threads=`, `rounds=` say
what and how long, `json=FILE` keeps the numbers. Every side runs in a process of its own, all with
the same number of threads, and they take turns: what the machine does meanwhile hits all alike.
`plain` is benchmarks/plain.py with the allocator as it is, `plain, memory kept` with the setting of
it that rlearly makes too. Sizes are dog_run's (256 images of 9x84x84, 38 actions, feature 100,
hidden 1024) and HalfCheetah's (17 numbers, 6 actions, 256 x 256, batch 256).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlearly.config import ConfigError, from_words, setting

VISUAL = ("drm", "drqv2")
STATE = ("td3", "sac")
SB3 = "Stable-Baselines3"


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is measured."""

    agents: list[str] = field(default_factory=lambda: [*VISUAL, *STATE])
    threads: int = setting(1, "CPU threads of each side", at_least=1)
    rounds: int = setting(7, "turns of each side", at_least=1)
    json: str | None = setting(None, "a file for the numbers")


# --- in the processes of the sides ---


def prepare(side: str, agent: str, threads: int) -> Callable[[], None]:
    """One update when called, from the same batch of random numbers."""
    import torch

    sys.path.insert(0, str(Path(__file__).parent))
    from plain import BASELINES

    from rlearly import machine

    torch.manual_seed(0)
    if side == "rlearly" or side == "plain, memory kept":
        machine.settle(threads)
    torch.set_num_threads(threads)
    batch = _batch(agent in VISUAL)
    if side == SB3:
        return _stable_baselines(agent)
    if side.startswith("plain"):
        learner: Any = BASELINES[agent]()
        return lambda: learner.update(batch)
    learner = _ours(agent)
    steps = iter(range(10_000, 10**9))
    return lambda: learner.update(batch, step=next(steps))


def _batch(images: bool) -> Any:
    import torch

    from rlearly.types import Batch

    if images:
        both = [torch.randint(0, 256, (256, 9, 84, 84), dtype=torch.uint8) for _ in "ab"]
    else:
        both = [torch.randn(256, 17) for _ in "ab"]
    action = torch.rand(256, 38 if images else 6) * 2 - 1
    ones = torch.ones(256, 1)
    return Batch(both[0], action, torch.randn(256, 1), ones * 0.99, both[1])


def _ours(agent: str) -> Any:
    import numpy as np
    import torch
    from gymnasium.spaces import Box

    from rlearly.agents import agent_module
    from rlearly.plasticity import Gauge
    from rlearly.seeding import Seeds
    from rlearly.types import EnvSpec

    module = agent_module(agent)
    if agent in VISUAL:
        spec = EnvSpec(Box(0, 255, (9, 84, 84), np.uint8), Box(-1, 1, (38,), np.float32), 2)
        config = module.Config(feature_dim=100)
    else:
        spec = EnvSpec(Box(-np.inf, np.inf, (17,), np.float32), Box(-1, 1, (6,), np.float32), 1)
        config = module.Config()
    device = torch.device("cpu")
    return module.make(config, spec, seeds=Seeds(0), device=device, gauge=Gauge(0))


def _stable_baselines(agent: str) -> Callable[[], None]:
    import gymnasium
    import numpy as np
    import stable_baselines3

    env = gymnasium.make("HalfCheetah-v5")
    kind = {"td3": stable_baselines3.TD3, "sac": stable_baselines3.SAC}[agent]
    words: dict[str, Any] = {"net_arch": [256, 256]}
    learner = kind("MlpPolicy", env, batch_size=256, policy_kwargs=words, device="cpu")
    learner._setup_learn(10**6, None)
    random = np.random.default_rng(0)
    for _ in range(1000):
        obs, after = random.normal(size=(2, 1, 17))
        action, reward = random.uniform(-1, 1, (1, 6)), random.normal(size=1)
        learner.replay_buffer.add(obs, after, action, reward, np.zeros(1, bool), [{}])
    return lambda: learner.train(gradient_steps=1, batch_size=256)


def serve(side: str, agent: str, threads: int) -> None:
    """Read how many updates are wanted, answer with the seconds that they took."""
    update = prepare(side, agent, threads)
    print("ready", flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            update()
        print(time.perf_counter() - began, flush=True)


# --- in the one that is run ---


class Side:
    def __init__(self, name: str, agent: str, threads: int):
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, "--serve", name, agent, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        self._answer()

    def seconds(self, updates: int) -> float:
        assert self.process.stdin
        self.process.stdin.write(f"{updates}\n")
        self.process.stdin.flush()
        return float(self._answer()) / updates

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline().strip()
        if not line:
            raise SystemExit(f"benchmarks/update.py: the side {self.name!r} has ended; see above.")
        return line


def measure(agent: str, config: BenchmarkConfig) -> dict[str, Any]:
    """Median seconds of each side, and each ratio to rlearly's of the same turn."""
    names = ["plain", "plain, memory kept", "rlearly"]
    names += [SB3] if agent in STATE else []
    sides = [Side(name, agent, config.threads) for name in names]
    updates = 1 if agent in VISUAL else 100
    for side in sides:
        side.seconds(max(2, updates // 2))
    turns = [{side.name: side.seconds(updates) for side in sides} for _ in range(config.rounds)]
    for side in sides:
        side.close()
    return {
        "agent": agent,
        "threads": config.threads,
        "seconds": {name: statistics.median(turn[name] for turn in turns) for name in names},
        "ratio": {
            name: statistics.median(turn[name] / turn["rlearly"] for turn in turns)
            for name in names
        },
    }


def main() -> int:
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return 0
    try:
        config = from_words(BenchmarkConfig(), sys.argv[1:])
        for agent in config.agents:
            if agent not in VISUAL + STATE:
                known = ", ".join(VISUAL + STATE)
                raise ConfigError(f"agents: expected some of {known}, received {agent!r}.")
    except ConfigError as error:
        print(f"benchmarks/update.py: {error}", file=sys.stderr)
        return 2
    print("| agent | threads | side | updates/s | rlearly is faster by |\n|---|---|---|---:|---:|")
    found = []
    for agent in config.agents:
        found.append(measure(agent, config))
        for name, seconds in found[-1]["seconds"].items():
            ratio = "" if name == "rlearly" else f"{found[-1]['ratio'][name]:.2f}"
            print(
                f"| {agent} | {config.threads} | {name} | {1 / seconds:.4g} | {ratio} |", flush=True
            )
    if config.json:
        Path(config.json).write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
