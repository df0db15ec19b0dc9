"""Small envs for tests, registered with gymnasium on import."""

from __future__ import annotations

import os
import signal

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

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


class StateReach(gymnasium.Env):
    """Move a point on a line to a goal: the state is (goal, point).

    The goal is uniform in [-0.8, 0.8]; the point starts at 0 and moves by 0.35 * action; reward
    1 - |point - goal| at each of 10 steps, then the time is up (truncated); at |point| = 1 it
    falls off the line (terminated). Standing still earns 6 on average; going straight to the goal
    and staying there about 9.7.
    """

    metadata = {"render_modes": []}  # noqa: RUF012
    observation_space = Box(-1, 1, (2,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, render_mode=None):
        if "BROKEN_IMPORT" in os.environ:
            raise RuntimeError("broken")
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.goal = self.np_random.uniform(-0.8, 0.8)
        self.point = 0.0
        self.steps = 0
        return self._state(), {}

    def step(self, action):
        assert -1 <= action[0] <= 1, "an env is given actions within its bounds"
        self.point = float(np.clip(self.point + 0.35 * float(action[0]), -1, 1))
        self.steps += 1
        fell = abs(self.point) == 1
        return self._state(), 1 - abs(self.point - self.goal), fell, self.steps == STEPS, {}

    def _state(self):
        return np.array([self.goal, self.point], np.float32)


class StepReach(StateReach):
    """StateReach with three actions: left, stay and right. The best return is about 9.3."""

    action_space = Discrete(3)

    def step(self, action):
        assert self.action_space.contains(action)
        return super().step(np.array([action - 1.0], np.float32))


class StepPixelReach(PixelReach):
    """PixelReach with three actions: left, stay and right."""

    action_space = Discrete(3)

    def step(self, action):
        return super().step(np.array([action - 1.0], np.float32))


class Faulty(StateReach):
    """StateReach that fails at one of its steps, in one of several ways, unless it was mended."""

    def __init__(self, render_mode=None, fault="raise", at_step=150):
        super().__init__(render_mode)
        self.fault = fault
        self.at_step = at_step
        self.taken = 0

    def reset(self, *, seed=None, options=None):
        if self.fault == "reset" and self.taken >= self.at_step and self._broken():
            raise OSError("the simulator is gone")
        return super().reset(seed=seed, options=options)

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        self.taken += 1
        if self.taken == self.at_step and self._broken():
            if self.fault == "raise":
                raise ZeroDivisionError("division by zero")
            if self.fault == "observation":
                obs = np.array([np.nan, 0], np.float32)
            if self.fault == "infinite":
                obs = np.array([np.inf, 0], np.float32)
            if self.fault == "shape":
                obs = np.zeros(4, np.float32)
            if self.fault == "reward":
                reward = float("nan")
            if self.fault == "kill":
                os.kill(os.getpid(), signal.SIGSEGV)
        return obs, reward, terminated, truncated, info

    def _broken(self):
        return "MENDED" not in os.environ


class GoalReach(StateReach):
    """StateReach that tells whether the point has come within 0.1 of its goal by now."""

    def reset(self, *, seed=None, options=None):
        self.succeeded = False
        return super().reset(seed=seed, options=options)

    def step(self, action):
        obs, reward, terminated, truncated, _ = super().step(action)
        self.succeeded |= abs(self.point - self.goal) < 0.1
        return obs, reward, terminated, truncated, {"success": self.succeeded}


class WideReach(StateReach):
    """StateReach whose goal is within `width` times 0.8. Each episode follows from its seed."""

    width = 1.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.goal *= self.width
        return self._state(), {"width": self.width}

    def step(self, action):
        obs, reward, terminated, truncated, _ = super().step(action)
        return obs, reward, terminated, truncated, {"width": self.width}


class FusedReach(PixelReach):
    """PixelReach with the bar's place and the steps so far in a vector beside the image."""

    observation_space = gymnasium.spaces.Dict(
        pixels=Box(0, 255, (24, 24, 3), np.uint8), vector=Box(-np.inf, np.inf, (2,), np.float64)
    )

    def _image(self):
        return {"pixels": super()._image(), "vector": np.array([self.bar, float(self.steps)])}

    def render(self):
        return super()._image()


class GreyReach(PixelReach):
    """PixelReach in grey: the goal is darker than the bar."""

    observation_space = Box(0, 255, (24, 24), np.uint8)

    def _image(self):
        image = super()._image()
        return np.maximum(image[..., 0] // 2, image[..., 1])


class MaskedReach(gymnasium.Env):
    """Move a point on five squares to a goal: left, not at all, or right.

    The state is (goal, point), of -2 to 2, halved. `info["action_mask"]` forbids to leave the
    squares, and to do so raises. The goal is drawn, the point starts in the middle; reward
    1 - |point - goal| / 4 at each of 10 steps, then the time is up (truncated). Standing still
    earns 7 on average, going straight to the goal and staying there 9.9.
    """

    metadata = {"render_modes": []}  # noqa: RUF012
    observation_space = Box(-1, 1, (2,), np.float32)
    action_space = Discrete(3)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.goal = int(self.np_random.integers(-2, 3))
        self.point = 0
        self.steps = 0
        return self._state(), self._info()

    def step(self, action):
        if not self._info()["action_mask"][action]:
            raise ValueError(f"action {action} is forbidden at {self.point}")
        self.point += int(action) - 1
        self.steps += 1
        reward = 1 - abs(self.point - self.goal) / 4
        return self._state(), reward, False, self.steps == STEPS, self._info()

    def _state(self):
        return np.array([self.goal, self.point], np.float32) / 2

    def _info(self):
        return {"action_mask": np.array([self.point > -2, True, self.point < 2], np.int8)}


gymnasium.register("Faulty-v0", Faulty)
gymnasium.register("FusedReach-v0", FusedReach)
gymnasium.register("GoalReach-v0", GoalReach)
gymnasium.register("GreyReach-v0", GreyReach)
gymnasium.register("MaskedReach-v0", MaskedReach)
gymnasium.register("PixelReach-v0", PixelReach)
gymnasium.register("StateReach-v0", StateReach)
gymnasium.register("StepReach-v0", StepReach)
gymnasium.register("WideReach-v0", WideReach)
gymnasium.register("StepPixelReach-v0", StepPixelReach)
