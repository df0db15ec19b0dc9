"""An env: walk along a corridor to a lamp."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

LENGTH = 9


class Corridor(gymnasium.Env):
    """Go left, stay or go right, to a lamp somewhere in a corridor of nine places.

    The observation is (place, lamp), each from -1 to 1. Every step away from the lamp costs 0.1,
    and reaching it earns 1 and ends the episode. One step in ten slips and goes nowhere.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = Box(-1, 1, (2,), np.float32)
    action_space = Discrete(3)

    def __init__(self, render_mode: str | None = None, slip: float = 0.1):
        self.render_mode = render_mode
        self.slip = slip

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)  # seeds self.np_random, the only source of randomness
        self.place = LENGTH // 2
        others = [place for place in range(LENGTH) if place != self.place]
        self.lamp = int(self.np_random.choice(others))
        return self._observation(), {}

    def step(self, action: int):
        if self.np_random.random() >= self.slip:
            self.place = int(np.clip(self.place + int(action) - 1, 0, LENGTH - 1))
        found = self.place == self.lamp
        return self._observation(), 1.0 if found else -0.1, found, False, {"success": found}

    def _observation(self) -> np.ndarray:
        return np.array([self.place, self.lamp], np.float32) / (LENGTH // 2) - 1

    def render(self) -> np.ndarray:
        image = np.zeros((LENGTH, LENGTH, 3), np.uint8)
        image[:, self.lamp, 0] = 255
        image[:, self.place, 1] = 255
        return image.repeat(8, axis=0).repeat(8, axis=1)


gymnasium.register("Corridor-v0", entry_point=Corridor, max_episode_steps=30)
