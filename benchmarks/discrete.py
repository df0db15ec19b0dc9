"""The cases of drq_eps in the benchmarks, and Stable-Baselines3's DQN with the same networks.

`drq_eps` is Atari's size (stacks of four 84x84 images, 6 actions, batch 32, n-step 10) and
`drq_eps_state` CartPole's (4 numbers, 2 actions, 128 x 128, batch 64, n-step 3); hyper-parameters
are rlearly's defaults for these envs. Stable-Baselines3's DQN does less: it has no dueling head, no
double Q-learning and no augmentation. It clips gradients, which drq_eps does not.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

ENVS = {"drq_eps": "atari/Pong", "drq_eps_state": "CartPole-v1"}
"""Case -> env."""

SPACES = {
    "drq_eps": (Box(0, 255, (4, 84, 84), np.uint8), Discrete(6)),
    "drq_eps_state": (Box(-np.inf, np.inf, (4,), np.float32), Discrete(2)),
}
"""Case -> observations and actions."""

CAPACITY = 5_000
"""Transitions that each side's replay buffer holds in a loop."""

EPSILON = 0.01
"""Probability of a random action in a loop."""


def agent_of(case: str) -> str:
    """The agent of a case; the others' cases have its name."""
    return "drq_eps" if case in ENVS else case


def agent_config(case: str, env: str | None = None) -> Any:
    """drq_eps's hyper-parameters."""
    from rlearly.config import resolve

    return resolve.compose(["agent=drq_eps", f"env={env or ENVS[case]}"]).agent


def spec_of(case: str) -> Any:
    """What drq_eps is told about an env with the spaces of a case."""
    from rlearly.core.types import EnvSpec

    observation, action = SPACES[case]
    return EnvSpec(observation, action, 1)


def make_env(name: str) -> gymnasium.Env:
    """The env that all sides step: of Atari's games rlearly's, and gymnasium's own otherwise."""
    from rlearly import envs

    if name.startswith("atari/"):
        return envs.make(envs.config_for(name), pixels=None, model_seed=0)
    return gymnasium.make(name)


class SpacesOnly(gymnasium.Env):
    """An env with spaces, which is never stepped."""

    def __init__(self, case: str):
        self.observation_space, self.action_space = SPACES[case]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return self.observation_space.sample(), {}


def plain_learner(case: str) -> Any:
    """plain.py's learner."""
    from plain import DrQEps

    observation, action = SPACES[case]
    return DrQEps(agent_config(case), observation.shape, int(action.n))


def dqn(env: gymnasium.Env, config: Any, *, learning_starts_steps: int = 0) -> Any:
    """Stable-Baselines3's DQN with drq_eps's network, but without the output for the value."""
    import stable_baselines3
    from plain import atari_convnet
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from torch import Tensor

    class Convolutions(BaseFeaturesExtractor):
        def __init__(self, space: Any):
            super().__init__(space, 64 * 11 * 11)
            self.convnet = atari_convnet()

        def forward(self, pixels: Tensor) -> Tensor:
            return self.convnet(pixels)

    shape: Any = env.observation_space.shape
    images = len(shape) == 3
    policy: dict[str, Any] = {"net_arch": [config.hidden_dim] * (1 if images else 2)}
    policy["optimizer_kwargs"] = {"eps": config.adam_eps}
    if images:
        policy["features_extractor_class"] = Convolutions
    return stable_baselines3.DQN(
        "CnnPolicy" if images else "MlpPolicy",
        env,
        learning_rate=config.lr,
        buffer_size=CAPACITY,
        learning_starts=learning_starts_steps,
        batch_size=config.batch_size,
        gamma=config.discount,
        n_steps=config.nstep,
        train_freq=1,
        gradient_steps=1,
        target_update_interval=config.target_every_updates,
        exploration_initial_eps=EPSILON,
        exploration_final_eps=EPSILON,
        policy_kwargs=policy,
        device="cpu",
    )
