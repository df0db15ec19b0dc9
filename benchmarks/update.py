"""Updates per second of each agent, compared with plain baselines and Stable-Baselines3.

`python benchmarks/update.py` prints a Markdown table. `agents=[drm,td3]` selects agents, `threads=`
and `rounds=` set the amount of work, `json=FILE` saves the numbers. `precisions=[fp32,bf16]` and
`compile=true` apply to rlearly's sides; the others compute in float32. `plain` is
benchmarks/plain.py with the default allocator; `plain, memory kept` has the allocator setting that
rlearly uses too. Sizes are those of dog_run (256 images of 9x84x84, 38 actions, feature 100, hidden
1024), HalfCheetah (17 numbers, 6 actions, 256 x 256, batch 256) and, for discrete actions, Atari
(`drq_eps`: 32 images of 4x84x84, 6 actions) and CartPole (`drq_eps_state`); discrete.py has more on
these two. Stable-Baselines3's sides also sample their batches. Its DQN copies its target network
outside of an update, so the copy is not counted; plain's is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import discrete
import turns

from rlearly.config.fields import setting
from rlearly.core.errors import ConfigError

VISUAL = ("drm", "drqv2")
STATE = ("td3", "sac")
DISCRETE = tuple(discrete.ENVS)
SB3 = "Stable-Baselines3"
PLAIN, KEPT = "plain", "plain, memory kept"
PRECISIONS = ("fp32", "bf16", "tf32")


@dataclass(frozen=True)
class BenchmarkConfig:
    """Settings of the benchmark."""

    agents: list[str] = field(default_factory=lambda: [*VISUAL, *STATE, *DISCRETE])
    precisions: list[str] = field(default_factory=lambda: ["fp32", "bf16"])
    compile: bool = setting(False, "add a compiled side for each precision")
    threads: int = setting(1, "CPU threads of each side", at_least=1)
    rounds: int = setting(7, "timed turns of each side", at_least=1)
    json: str | None = setting(None, "JSON file to write the numbers to")


# --- in the processes of the sides ---


def prepare(side: str, agent: str, threads: int) -> Callable[[], Any]:
    """A function that does one update, always from the same batch of random numbers."""
    import torch
    from plain import BASELINES

    from rlearly.system import machine

    torch.manual_seed(0)
    if side.startswith(turns.OURS) or side == KEPT:
        machine.set_threads(threads)
    torch.set_num_threads(threads)
    batch = _discrete_batch(agent) if agent in DISCRETE else _batch(agent in VISUAL)
    if side == SB3:
        return _stable_baselines(agent)
    if side in (PLAIN, KEPT):
        learner: Any
        if agent in DISCRETE:
            learner = discrete.plain_learner(agent)
        else:
            learner = BASELINES[agent]()
        return lambda: learner.update(batch)
    learner = _ours(agent, side)
    steps = iter(range(10_000, 10**9))
    return lambda: learner.update(batch, step=next(steps))


def _batch(images: bool) -> Any:
    import torch

    from rlearly.core.types import Batch

    if images:
        both = [torch.randint(0, 256, (256, 9, 84, 84), dtype=torch.uint8) for _ in "ab"]
    else:
        both = [torch.randn(256, 17) for _ in "ab"]
    action = torch.rand(256, 38 if images else 6) * 2 - 1
    ones = torch.ones(256, 1)
    return Batch(both[0], action, torch.randn(256, 1), ones * 0.99, both[1])


def _discrete_batch(agent: str) -> Any:
    import torch

    from rlearly.core.types import Batch

    config, (observations, actions) = discrete.agent_config(agent), discrete.SPACES[agent]
    shape = (config.batch_size, *observations.shape)
    if agent == "drq_eps":
        both = [torch.randint(0, 256, shape, dtype=torch.uint8) for _ in "ab"]
    else:
        both = [torch.randn(shape) for _ in "ab"]
    action, ones = torch.randint(0, int(actions.n), shape[:1]), torch.ones(shape[0], 1)
    discount = ones * config.discount**config.nstep
    return Batch(both[0], action, torch.randn(shape[0], 1), discount, both[1])


def _ours(agent: str, side: str) -> Any:
    import numpy as np
    import torch
    from gymnasium.spaces import Box

    from rlearly.agents import agent_spec
    from rlearly.core.types import EnvSpec
    from rlearly.nn.precision import ComputeOptions
    from rlearly.system.seeding import Seeds

    declared = agent_spec(discrete.agent_of(agent))
    if agent in DISCRETE:
        spec, config = discrete.spec_of(agent), discrete.agent_config(agent)
    elif agent in VISUAL:
        spec = EnvSpec(Box(0, 255, (9, 84, 84), np.uint8), Box(-1, 1, (38,), np.float32), 2)
        config = declared.config_class(feature_dim=100)
    else:
        spec = EnvSpec(Box(-np.inf, np.inf, (17,), np.float32), Box(-1, 1, (6,), np.float32), 1)
        config = declared.config_class()
    options = side.split()[1:]
    return declared.make(
        config,
        spec,
        seeds=Seeds(0),
        device=torch.device("cpu"),
        compute=ComputeOptions(options[0], "compiled" in options),
    )


def _stable_baselines(agent: str) -> Callable[[], None]:
    import gymnasium
    import numpy as np
    import stable_baselines3

    random = np.random.default_rng(0)
    if agent in DISCRETE:
        config, env = discrete.agent_config(agent), discrete.SpacesOnly(agent)
        learner: Any = discrete.dqn(env, config)
        learner._setup_learn(10**6, None)
        for _ in range(200):
            obs, after = (env.observation_space.sample()[None] for _ in "ab")
            action, reward = np.array([[env.action_space.sample()]]), random.normal(size=1)
            learner.replay_buffer.add(obs, after, action, reward, np.zeros(1, bool), [{}])
        return lambda: learner.train(gradient_steps=1, batch_size=config.batch_size)
    env = gymnasium.make("HalfCheetah-v5")
    kind = {"td3": stable_baselines3.TD3, "sac": stable_baselines3.SAC}[agent]
    kwargs: dict[str, Any] = {"net_arch": [256, 256]}
    learner = kind("MlpPolicy", env, batch_size=256, policy_kwargs=kwargs, device="cpu")
    learner._setup_learn(10**6, None)
    for _ in range(1000):
        obs, after = random.normal(size=(2, 1, 17))
        action, reward = random.uniform(-1, 1, (1, 6)), random.normal(size=1)
        learner.replay_buffer.add(obs, after, action, reward, np.zeros(1, bool), [{}])
    return lambda: learner.train(gradient_steps=1, batch_size=256)


# --- in the one that is run ---


def measure(agent: str, config: BenchmarkConfig) -> list[turns.Row]:
    """The rate of every side, relative to each of rlearly's sides."""
    others = [PLAIN, KEPT, *([] if agent in VISUAL else [SB3])]
    ours = [
        f"{turns.OURS} {precision}{end}"
        for precision in config.precisions
        for end in ("", " compiled")[: 1 + config.compile]
    ]
    return turns.compare(
        __file__,
        agent,
        [*others, *ours],
        ours=ours,
        threads=config.threads,
        rounds=config.rounds,
        times={"drq_eps": 4}.get(agent, 1 if agent in VISUAL else 100),
        unit="updates/s",
    )


def main() -> int:
    if turns.serve(prepare):
        return 0
    try:
        config = turns.parse_config(BenchmarkConfig(), __doc__)
        agents = VISUAL + STATE + DISCRETE
        for given, known in ((config.agents, agents), (config.precisions, PRECISIONS)):
            for name in given:
                if name not in known:
                    raise ConfigError(f"expected some of {', '.join(known)}, received {name!r}.")
    except ConfigError as error:
        print(f"benchmarks/update.py: {error}", file=sys.stderr)
        return 2
    turns.report((measure(agent, config) for agent in config.agents), config.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
