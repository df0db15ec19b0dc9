"""The types that all parts share: env specs, batches, and the interfaces of replaceable parts.

A `Protocol` here is an interface: any class with these methods will do, without inheriting from it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:  # importing torch takes a second, which --help and the config do without
    from torch import Tensor

Metrics = Mapping[str, "Tensor | float"]
"""Values by `group/name`; tensors are detached and 0-dimensional."""


@dataclass(frozen=True)
class EnvSpec:
    """All that an agent knows about an env.

    observation: Box of uint8 [C, H, W] pixels or float32 [D] states, or a Dict with "pixels" and
        "vector", one of each.
    action: Box of float32 [A] in [-1, 1], or Discrete with the numbers 0 .. n - 1.
    frames_per_step: simulator frames per agent step (the action repeat).
    action_mask: a state's last n numbers are a mask of the n discrete actions, 1 for those that are
        allowed and 0 for the others (see `rlearly.core.spaces.split_mask`).
    """

    observation: Any
    action: Any
    frames_per_step: int
    action_mask: bool = False

    @property
    def mask_size(self) -> int:
        """Length of the action mask in a state; 0: there is none."""
        return int(self.action.n) if self.action_mask else 0


@dataclass(frozen=True)
class Batch:
    """B transitions of up to n steps, sampled from a replay buffer.

    obs, next_obs: [B, *O] as stored, or a dict of such tensors.
    action: [B, A] in [-1, 1]; int64 [B] for a discrete action space.
    reward: [B, 1] discounted sum of the rewards of the k <= n steps from obs to next_obs.
    discount: [B, 1] gamma^k; 0 if next_obs is terminal. A truncated episode still bootstraps.
    """

    obs: Any
    action: Tensor
    reward: Tensor
    discount: Tensor
    next_obs: Any


@dataclass(frozen=True)
class Rollout:
    """T consecutive steps of each of N envs, all taken by the current policy; numpy arrays.

    action: [T, N, A] as the agent returned it; int64 [T, N] for a discrete action space.
    reward, terminated, truncated: [T, N].
    next_obs: [T, N, *O] the observation after each step; at an episode's end, its final one.
    valid: bool [T, N], False where an env reset itself instead of taking a step, after the end of
        its episode: this entry of the other arrays is 0 and no transition. None: all are steps.
    """

    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    next_obs: np.ndarray
    valid: np.ndarray | None = None


class Progress(NamedTuple):
    """How far a run has come; frames = steps * action repeat."""

    frames: int
    steps: int


class Stateful(Protocol):
    """Something that a checkpoint saves and restores.

    After `load_state_dict(state_dict())`, a new instance continues exactly, to the bit. States are
    nested dicts, lists and tuples of plain Python values, tensors, numpy arrays and `AppendLog`s.
    """

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Agent(Stateful, Protocol):
    """Acts and learns; knows nothing of update ratios, replay, logging or files."""

    def act(self, obs: Any, *, step: int, explore: bool) -> np.ndarray:
        """Actions [N, A] in [-1, 1] for observations [N, *O], an array or a dict of arrays.

        For a discrete action space they are int64 [N]. Without `explore` they are the policy's
        mode (tanh of the mean for a squashed Gaussian). An on-policy agent may exceed [-1, 1] when
        it explores, because it must learn from the action that it drew: the trainer and
        `ScaledActions` clip what the env receives.
        """
        ...

    def value(self, obs: Any) -> np.ndarray:
        """The critic's estimate [N] of the return of the policy from observations [N, *O]."""
        ...

    def update(self, batch: Any, *, step: int) -> Metrics:
        """Learn from one sample of a `Memory`.

        Off policy that is one gradient step on a `Batch`; on policy, all epochs on a `Rollout`.
        `step` counts agent steps, not updates.

        Metrics are logged as means over updates, with two exceptions, which are logged at once:
        `event/NAME` reports something that happened in this update, and `now/NAME` is the current
        value of NAME.
        """
        ...


@runtime_checkable
class BeginsFromAnother(Protocol):
    """An agent that can begin with parts of one that another run has saved: `start_from=`."""

    def take_over(self, state: Mapping[str, Any], parts: Collection[str]) -> None:
        """Begin with these parts of a `state_dict`: networks (with their targets and whatever is
        learned beside them), optimizers (their moments; settings stay this agent's), normalizers.

        All else stays as it is in a new agent, random streams too. It has not acted or learned yet.

        Raises:
            Misfit: a part does not fit this agent; nothing of that part was taken over.
        """
        ...


class Memory(Stateful, Protocol):
    """The experience that an agent learns from; each env adds its own steps in order."""

    def __len__(self) -> int:
        """The number of transitions that can be sampled now."""
        ...

    def begin_episode(self, obs: Any, *, env_index: int) -> None:
        """Start an episode of one env at its first observation [*O]."""
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
        """Add the step that one env took from its last observation: action [A] or a number."""
        ...

    def skip(self, *, env_index: int) -> None:
        """Called where an env resets itself while the others take a step, which it does not."""
        ...

    def sample(self, batch_size: int) -> Any:
        """The argument of `Agent.update`: a `Batch` or a `Rollout`."""
        ...

    def clear(self) -> None:
        """Exclude everything added so far from sampling; running episodes continue."""
        ...

    def take_over(self, state: Mapping[str, Any], *, nstep: int, frame_stack: int) -> None:
        """Begin with the transitions of another run's `state_dict`, before anything is added.

        Args:
            nstep, frame_stack: what they were sampled with there.

        Raises:
            Misfit: they do not fit.
        """
        ...

    def metrics(self) -> Mapping[str, float]:
        """Properties of the samples that change during a run, to be logged."""
        ...

    def close(self) -> None:
        """End its threads; it is not used afterwards."""
        ...


class UpdateSchedule(Stateful, Protocol):
    """Decides how many updates follow each agent step (the updates-to-data ratio)."""

    def updates_due(self, step: int) -> int:
        """The number of updates after this agent step; call once per step."""
        ...

    def skip(self) -> None:
        """Called where an env resets itself while the others take a step, which it does not."""

    def observe(self, metrics: Metrics) -> None:
        """Called with the metrics of every update."""

    def end_episode(self) -> None:
        """Called when an episode of any env ends."""

    def events(self) -> Metrics:
        """Its decisions since the last call, under `event/` names; usually none."""
        return {}


class Sink(Protocol):
    """A destination for metrics and videos: a file, TensorBoard, wandb."""

    def write(self, at: Progress, metrics: Mapping[str, float]) -> None: ...

    def video(self, at: Progress, path: str) -> None: ...

    def close(self) -> None: ...
