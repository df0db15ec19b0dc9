"""Success: whether an episode has reached its goal, for tasks that have one."""

from __future__ import annotations

from typing import Any

import gymnasium


class SuccessTracker(gymnasium.Wrapper):
    """Counts the simulator frames of an episode in which its goal is reached.

    The env below tells of each frame by `info["success"]`. From here on `info["success"]` is
    whether the episode has succeeded by now: whether more than `over_frames` of its frames had
    reached the goal. It stays true until the next reset, so an episode's last step tells of it all.
    It must be below `ActionRepeat`, which passes on the last frame's info alone.
    """

    def __init__(self, env: gymnasium.Env, over_frames: int = 0):
        super().__init__(env)
        self.over_frames = over_frames
        self.reached_frames = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self.reached_frames = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.reached_frames += bool(info.get("success", False))
        succeeded = self.reached_frames > self.over_frames
        return obs, reward, terminated, truncated, {**info, "success": succeeded}
