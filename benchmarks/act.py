"""Actions per second from single observations, compared with plain networks and Stable-Baselines3.

`python benchmarks/act.py` prints a Markdown table. `agents=[td3,drm]` selects agents, `threads=`,
`rounds=` and `times=` set the amount of work, `json=FILE` saves the numbers. `precision=` and
`compile=` apply only to rlearly.

Each side acts as it does when exploring in training, from a numpy observation to a numpy action:
rlearly by `Agent.act`, `plain` by the networks of plain.py and plain_loops.py in eager torch (PPO
also computes log-probability and value, which the usual loop stores at each step),
Stable-Baselines3 by `predict`. Sizes are those of dog_run (9x84x84, 38 actions) and HalfCheetah
(17 numbers, 6 actions). `drq_eps` (Atari's 4x84x84, 6 actions) and `drq_eps_state` (CartPole's 4
numbers, 2 actions) take the best action on every side; discrete.py has more on them.
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

SB3 = "Stable-Baselines3"
STATE, VISUAL = ("td3", "sac", "ppo"), ("drm", "drqv2")
DISCRETE = tuple(discrete.ENVS)
LATE_STEP = 10**6
"""An agent step at which every agent acts with its policy."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """Settings of the benchmark."""

    agents: list[str] = field(default_factory=lambda: [*STATE, *VISUAL, *DISCRETE])
    threads: int = setting(1, "CPU threads of each side", at_least=1)
    rounds: int = setting(9, "timed turns of each side", at_least=1)
    times: int = setting(0, "actions per turn; 0: 1000, or 100 from images", at_least=0)
    precision: str | None = setting(None, "precision= of rlearly's side")
    compile: bool | None = setting(None, "compile= of rlearly's side")
    json: str | None = setting(None, "JSON file to write the numbers to")


def prepare(side: str, case: str, threads: int) -> Callable[[], Any]:
    """A function that takes one action, always from the same observation."""
    import numpy as np
    import torch

    from rlearly.system import machine

    agent, *overrides = case.split()
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    if agent in DISCRETE:
        space = discrete.SPACES[agent][0]
        space.seed(0)
        obs = space.sample()
    elif agent in VISUAL:
        obs = random.integers(0, 256, (9, 84, 84), dtype=np.uint8)
    else:
        obs = random.normal(size=17).astype(np.float32)
    if side == turns.OURS:
        machine.set_threads(threads)
    torch.set_num_threads(threads)
    if side == turns.OURS:
        learner = ours(agent, overrides)
        return lambda: learner.act(obs[None], step=LATE_STEP, explore=agent not in DISCRETE)
    if side == SB3:
        learner = stable_baselines(agent)
        return lambda: learner.predict(obs, deterministic=agent in DISCRETE)
    return plainly(agent, obs)


def env_of(agent: str) -> str:
    if agent in DISCRETE:
        return discrete.ENVS[agent]
    return "dog_run" if agent in VISUAL else "HalfCheetah-v5"


def ours(agent: str, overrides: list[str]) -> Any:
    """An agent of its task's size, built without an env."""
    import numpy as np
    from gymnasium.spaces import Box

    from rlearly.config import resolve
    from rlearly.core.types import EnvSpec
    from rlearly.system import machine
    from rlearly.training import builder

    if agent in DISCRETE:
        spec = discrete.spec_of(agent)
    elif agent in VISUAL:
        spec = EnvSpec(Box(0, 255, (9, 84, 84), np.uint8), Box(-1, 1, (38,), np.float32), 2)
    else:
        spec = EnvSpec(Box(-np.inf, np.inf, (17,), np.float32), Box(-1, 1, (6,), np.float32), 1)
    name = discrete.agent_of(agent)
    config = resolve.compose([f"agent={name}", f"env={env_of(agent)}", *overrides])
    return builder.make_agent(config, spec, machine.choose_device("cpu"))


def plainly(agent: str, obs: Any) -> Callable[[], Any]:
    import plain
    import plain_loops
    import torch

    if agent in DISCRETE:
        learner: Any = discrete.plain_learner(agent)

        def act() -> Any:
            return learner.act(torch.as_tensor(obs).unsqueeze(0)).numpy()

    elif agent == "ppo":
        learner = plain_loops.PPO()

        def act() -> Any:
            action, density, _, value = learner.judge(torch.Tensor(obs[None]))
            return action.numpy(), density, value

    elif agent == "td3":
        learner = plain.TD3()

        def act() -> Any:
            action = learner.actor(torch.Tensor(obs[None]))
            action += torch.normal(0, torch.full((6,), 0.1))
            return action.numpy().clip(-1, 1)

    elif agent == "sac":
        learner = plain.SAC()

        def act() -> Any:
            return learner.act(torch.Tensor(obs[None]))[0].numpy()

    else:
        learner = plain.Visual(drm=agent == "drm")

        def act() -> Any:
            features = learner.encoder(torch.as_tensor(obs).unsqueeze(0))
            return learner.sample(learner.actor(features), 0.2).numpy()

    return torch.no_grad()(act)


def stable_baselines(agent: str) -> Any:
    import gymnasium
    import numpy as np
    import stable_baselines3
    from gymnasium.spaces import Box

    if agent in DISCRETE:
        return discrete.dqn(discrete.SpacesOnly(agent), discrete.agent_config(agent))

    class Sized(gymnasium.Env):
        """An env with spaces only."""

        observation_space = Box(-np.inf, np.inf, (17,), np.float32)
        action_space = Box(-1, 1, (6,), np.float32)

    kinds = {"td3": "TD3", "sac": "SAC", "ppo": "PPO"}
    kwargs = {} if agent == "ppo" else {"policy_kwargs": {"net_arch": [256, 256]}}
    return getattr(stable_baselines3, kinds[agent])("MlpPolicy", Sized(), device="cpu", **kwargs)


def measure(agent: str, config: BenchmarkConfig) -> list[turns.Row]:
    return turns.compare(
        __file__,
        " ".join([agent, *turns.given(precision=config.precision, compile=config.compile)]),
        ["plain", *([] if agent in VISUAL else [SB3]), turns.OURS],
        threads=config.threads,
        rounds=config.rounds,
        times=config.times or (100 if agent in VISUAL or agent == "drq_eps" else 1000),
        unit="actions/s",
    )


def main() -> int:
    if turns.serve(prepare):
        return 0
    from rlearly.config import resolve

    try:
        config = turns.parse_config(BenchmarkConfig(), __doc__)
        for agent in config.agents:
            if agent not in STATE + VISUAL + DISCRETE:
                known = ", ".join(STATE + VISUAL + DISCRETE)
                raise ConfigError(f"agents: expected some of {known}, received {agent!r}.")
            overrides = turns.given(precision=config.precision, compile=config.compile)
            name = discrete.agent_of(agent)
            resolve.compose([f"agent={name}", f"env={env_of(agent)}", *overrides])
    except ConfigError as error:
        print(f"benchmarks/act.py: {error}", file=sys.stderr)
        return 2
    turns.report((measure(agent, config) for agent in config.agents), config.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
