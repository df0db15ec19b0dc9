"""A trained policy as a function of the env's own observations."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlearly.core.spaces import stack_observations
from rlearly.core.types import Agent
from rlearly.envs.raw_view import FrameStacks, RawView, rows_of
from rlearly.system.threads import torch_threads


class Policy:
    """`policy(observation)` is the action for one observation of the env, or for a batch of them.

    Both are the env's own: flattening, normalising, scaling and stacking images, and scaling
    actions are part of the policy. If the agent sees images, the policy keeps the newest frames:
    call `reset()` at the beginning of each episode.

    Example:
        >>> import gymnasium, rlearly
        >>> run = rlearly.train(
        ...     agent="ppo", env="Pendulum-v1", train_frames=2048, eval_every_frames=0,
        ...     progress=False, run_dir=getfixture("tmp_path") / "run",
        ... )
        >>> env = gymnasium.make("Pendulum-v1")
        >>> observation, _ = env.reset(seed=0)
        >>> run.policy(observation).shape
        (1,)
    """

    def __init__(self, agent: Agent, view: RawView, *, step: int, threads: int, on_policy: bool):
        """
        Args:
            agent: with its trained weights.
            step: agent steps that it was trained for.
            threads: torch's CPU threads, on which the last bits of an action may depend.
            on_policy: the agent draws actions with `sample`, which changes no state.
        """
        self.agent = agent
        self.view = view
        self.step = step
        self.threads = threads
        self.on_policy = on_policy
        self.frames = FrameStacks(view) if view.size else None

    @property
    def observation_space(self) -> Any:
        """The space of one observation. Frames that rlearly renders may have any size."""
        return self.view.observation

    @property
    def action_space(self) -> Any:
        return self.view.action

    def reset(self, rows: np.ndarray | None = None) -> None:
        """Begin a new episode; in a batch, only in the rows where a mask [N] is true."""
        if self.frames:
            self.frames.reset(rows)

    def __call__(
        self, observation: Any, *, deterministic: bool = True, action_mask: Any = None
    ) -> Any:
        """The action for an observation, or the actions [N, ...] for N of them.

        Args:
            observation: one, or N along a first axis of each part. Actions for N may differ in
                their last bits from those for one at a time.
            deterministic: take the most likely action, as evaluations do; otherwise draw one, as
                training does.
            action_mask: `info["action_mask"]` of discrete actions, if the agent learned with it.

        Raises:
            ConfigError: the observation does not fit the env's space, or the mask is missing.
        """
        batch = self.view.is_batch(observation)
        seen = self._seen(observation, batch, action_mask)
        with torch_threads(self.threads):
            actions = self._act(seen, deterministic)
        own = [self.view.to_action(action) for action in actions]
        return np.stack(own) if batch else own[0]

    def _seen(self, observation: Any, batch: bool, mask: Any) -> Any:
        """Observations as the agent sees them, [N, *O]."""
        rows = rows_of(self.view.observation, observation) if batch else [observation]
        if self.frames:
            return self.frames.add(rows)
        masks = [None] * len(rows) if mask is None else (mask if batch else [mask])
        states = [self.view.state(row, m) for row, m in zip(rows, masks, strict=True)]
        return stack_observations(states)

    def _act(self, seen: Any, deterministic: bool) -> np.ndarray:
        if deterministic or not self.on_policy:
            return self.agent.act(seen, step=self.step, explore=not deterministic)
        agent: Any = self.agent
        return agent.sample(seen)
