"""Values that depend on the agent step alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Schedule(Protocol):
    """A frozen function of the step; a tensor of steps gives a tensor."""

    def __call__(self, step: int | Tensor) -> float | Tensor: ...


@dataclass(frozen=True)
class Linear:
    """`start` at step 0, `end` from `duration_steps` on, a straight line between."""

    start: float
    end: float
    duration_steps: int

    def __call__(self, step: int | Tensor) -> float | Tensor:
        if isinstance(step, Tensor):
            mix = (step.double() / self.duration_steps).clamp(0.0, 1.0)
        else:
            mix = min(max(step / self.duration_steps, 0.0), 1.0)
        return self.start * (1.0 - mix) + self.end * mix


@dataclass(frozen=True)
class Step:
    """`first` before `at_step`, `then` from it on."""

    first: float
    then: float
    at_step: int

    def __call__(self, step: int | Tensor) -> float | Tensor:
        if isinstance(step, Tensor):
            return (step < self.at_step) * self.first + (step >= self.at_step) * self.then
        return self.first if step < self.at_step else self.then
