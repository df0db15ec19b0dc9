"""The few types that every part speaks: what an agent sees of an env, a batch, and the seams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from gymnasium.spaces import Box

if TYPE_CHECKING:  # keeps --help and the config free of a second's import
    from torch import Tensor

Metrics = Mapping[str, "Tensor | float"]
"""Values by `group/name`. Tensors are detached and 0-dimensional."""


@dataclass(frozen=True)
class EnvSpec:
    """All that an agent sees of an env.

    `observation`: a Box of uint8 [C, H, W] pixels or float32 [D] state, or a Dict of "pixels" and
    "vector", which are one of each. `action`: float32 [A] in [-1, 1]. `frames_per_step`: simulator
    frames in one agent step (the action repeat).
    """

    observation: Any
    action: Box
    frames_per_step: int


@dataclass(frozen=True)
class Batch:
    """B transitions of up to n steps.

    obs, next_obs [B, *O] as stored, or a dict of them; action [B, A] in [-1, 1]; reward [B, 1] the
    discounted sum of the window's rewards; discount [B, 1] gamma^(steps in the window), 0 only on
    termination: a truncated episode still bootstraps.
    """

    obs: Any
    action: Tensor
    reward: Tensor
    discount: Tensor
    next_obs: Any


@dataclass(frozen=True)
class Rollout:
    """T steps of N copies of the env, in order, all of them taken by the policy as it is now.

    action [T, N, A] as the agent gave it; reward, terminated, truncated [T, N]; next_obs
    [T, N, *O]: what each step led to, an episode's final observation included. Arrays on the host.
    """

    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    next_obs: np.ndarray


class Progress(NamedTuple):
    """Where a run stands. frames = steps * action repeat."""

    frames: int
    steps: int


class Stateful(Protocol):
    """`load_state_dict(state_dict())` in a fresh instance continues to the bit.

    States are nested dicts and lists of plain Python values, tensors, numpy arrays and tapes.
    """

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Agent(Stateful, Protocol):
    """Acts and learns; knows nothing of update ratios, replay, logging or files."""

    def act(self, obs: Any, *, step: int, explore: bool) -> np.ndarray:
        """Actions [N, A] in [-1, 1] for observations [N, *O], an array or a dict of arrays as the
        env gives them; the mean action if not `explore`.

        An agent on policy may return actions beyond [-1, 1] when it explores: it must learn from
        the action that it drew, and the loop, like `ScaledActions`, cuts what an env is given.
        """
        ...

    def value(self, obs: Any) -> np.ndarray:
        """What the critic expects from following the policy [N] from observations [N, *O]."""
        ...

    def update(self, batch: Any, *, step: int) -> Metrics:
        """Learn once from what memory gave: off policy one gradient step on a Batch, on policy all
        that a Rollout is good for. `step` counts agent steps, not updates.

        Metrics named `event/...` tell of something that happened in this update, and `now/NAME`
        is NAME as it is now: both are logged at once. All others are logged as means over updates.
        """
        ...


class Memory(Stateful, Protocol):
    """What the agent learns from. Each of the env's copies adds its own experience, in order."""

    def __len__(self) -> int:
        """Transitions that can be learnt from now."""
        ...

    def begin_episode(self, obs: Any, *, env_index: int) -> None:
        """A copy's episode starts at `obs` [*O]."""
        ...

    def add(
        self,
        action: np.ndarray,
        reward: float,
        next_obs: Any,
        *,
        terminated: bool,
        truncated: bool,
        env_index: int,
    ) -> None:
        """A copy's step from its newest observation. action [A], next_obs [*O]."""
        ...

    def sample(self, batch_size: int) -> Any:
        """What `Agent.update` takes."""
        ...

    def clear(self) -> None:
        """Nothing that was added before is learnt from again; running episodes go on."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """What is worth logging of what samples are like now."""
        ...


class UpdateSchedule(Stateful, Protocol):
    """Decides how many updates are due after each agent step."""

    def updates_due(self, step: int) -> int: ...

    def observe(self, metrics: Metrics) -> None:
        """Called with the metrics of every update."""

    def end_episode(self) -> None:
        """Called when an episode of any env ends."""

    def events(self) -> Metrics:
        """What was decided since the last call, under `event/` names; usually nothing."""
        return {}


class Sink(Protocol):
    """A destination for metrics and videos."""

    def write(self, at: Progress, metrics: Mapping[str, float]) -> None: ...

    def video(self, at: Progress, path: str) -> None: ...

    def close(self) -> None: ...
