"""Small envs for tests, registered with gymnasium on import."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium.spaces import Box

GOAL = 0.7
STEPS = 10


class PixelReach(gymnasium.Env):
    """Move a bar left or right to a goal that only the image shows.

    The goal is -0.7 or 0.7 with equal odds; the bar starts at 0 and moves by 0.35 * action;
    reward 1 - |bar - goal| / 1.4 at each of 10 steps, then the time is up (truncated). Whoever
    does not look moves the same way for both goals, and since |x - 0.7| + |x + 0.7| >= 1.4 for
    every x, the returns for the two goals add up to 10 at most: the worse one is at most 5. Whoever
    looks reaches 9.75 for both.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = Box(0, 255, (24, 24, 3), np.uint8)
    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, render_mode=None, terminates=False):
        self.render_mode = render_mode
        self.terminates = terminates

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.goal = GOAL if self.np_random.random() < 0.5 else -GOAL
        self.bar = 0.0
        self.steps = 0
        return self._image(), {"goal": self.goal}

    def step(self, action):
        self.bar = float(np.clip(self.bar + 0.35 * float(action[0]), -1, 1))
        self.steps += 1
        over = self.steps == STEPS
        reward = 1 - abs(self.bar - self.goal) / (2 * GOAL)
        return self._image(), reward, over and self.terminates, over and not self.terminates, {}

    def _image(self):
        image = np.zeros((24, 24, 3), np.uint8)
        for channel, x in enumerate((self.goal, self.bar)):
            column = round((x + 1) / 2 * 21)
            image[:, column : column + 3, channel] = 255
        return image

    def render(self):
        return self._image()


gymnasium.register("PixelReach-v0", PixelReach)
