"""Saving an env in mid-episode and continuing to the bit: by replaying the episode's actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import logging

import gymnasium
import numpy as np

from rlearly.envs.pixels import Pixels
from rlearly.seeding import episode_seed


log = logging.getLogger(__name__)


class Episodes(gymnasium.Wrapper):
    """An env whose every episode follows from a seed of its own and the actions taken.

    `reset()` draws the episode's seed from `generator`; so the state in mid-episode is that seed
    and the actions since, and loading it in a fresh env repeats them: exact for every env that is
    deterministic given its seed, at the cost of stepping through the episode again. Images are
    taken only for the frames that the observation still holds.
    """

    def __init__(self, env: gymnasium.Env, generator: np.random.Generator):
        super().__init__(env)
        self.generator = generator
        self.seed: int | None = None
        self.actions: list[np.ndarray] = []
        self.obs: np.ndarray | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        self.seed = episode_seed(self.generator) if seed is None else seed
        self.actions = []
        obs, info = self.env.reset(seed=self.seed, options=options)
        self.obs = obs
        return obs, info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.actions.append(np.array(action))
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.obs = obs
        return obs, float(reward), terminated, truncated, info

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.bit_generator.state,
            "seed": self.seed,
            "actions": [action.tolist() for action in self.actions],
            "obs": None if self.obs is None else np.array(self.obs),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return to the saved episode and step; `obs` is then its observation.

        An env that does not get there again (it keeps something from one episode to the next) is
        reported, and `obs` is None: the caller begins a new episode.
        """
        self.generator.bit_generator.state = state["generator"]
        self.seed, self.obs, self.actions = state["seed"], None, []
        if self.seed is None:
            return
        pixels = self._pixels()
        first_seen = len(state["actions"]) - (pixels.stack if pixels else 0)
        try:
            self.obs, _ = self.env.reset(seed=self.seed)
            for i, action in enumerate(state["actions"]):
                if pixels:
                    pixels.blind = i < first_seen
                self.step(np.array(action, dtype=np.float32))
        finally:
            if pixels:
                pixels.blind = False
        if self.obs is None or not np.array_equal(self.obs, state["obs"]):
            log.warning(
                "The env did not return to its saved state when the episode's actions were "
                "repeated from its seed: the run goes on, with a new episode, but not to the bit."
            )
            self.seed, self.obs, self.actions = None, None, []

    def _pixels(self) -> Pixels | None:
        env: Any = self.env
        while isinstance(env, gymnasium.Wrapper):
            if isinstance(env, Pixels):
                return env
            env = env.env
        return None
