"""Schedules: values that depend on the agent step only."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


class Schedule(Protocol):
    """A function of the agent step; a tensor of steps gives a tensor."""

    def __call__(self, step: int | Tensor) -> float | Tensor: ...


@dataclass(frozen=True)
class Linear:
    """`start` at step 0, linearly to `end` at `duration_steps`, then constant."""

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
    """`first` before `at_step`, `then` from that step on."""

    first: float
    then: float
    at_step: int

    def __call__(self, step: int | Tensor) -> float | Tensor:
        if isinstance(step, Tensor):
            return (step < self.at_step) * self.first + (step >= self.at_step) * self.then
        return self.first if step < self.at_step else self.then


@dataclass(frozen=True)
class Decay:
    """`end` + the sum of amount * exp(-step / steps) over `parts`, pairs of amount and steps."""

    end: float
    parts: tuple[tuple[float, float], ...]

    def __call__(self, step: int | Tensor) -> float | Tensor:
        if isinstance(step, Tensor):
            return self.end + sum(a * (-step.double() / steps).exp() for a, steps in self.parts)
        return self.end + sum(a * math.exp(-step / steps) for a, steps in self.parts)


def schedule_of(value: Any) -> Schedule:
    """Parse a number, 'linear(START,END,STEPS)', 'step(FIRST,THEN,AT_STEP)' or
    'decay(END,AMOUNT,STEPS,...)'.

    Raises:
        ValueError: it is none of these, or a number of steps is not an integer of at least 1.
    """
    if isinstance(value, bool):
        raise ValueError(f"not a schedule: {value}")
    match = re.fullmatch(r"(linear|step|decay)\(([^()]+)\)", str(value).strip())
    if match is None:
        return Step(float(value), float(value), 1)
    kind, arguments = match.groups()
    numbers = [float(argument) for argument in arguments.split(",")]
    steps = numbers[2::2]
    if not all(map(math.isfinite, numbers)) or any(not s.is_integer() or s < 1 for s in steps):
        raise ValueError(f"not a schedule: {value}")
    if kind == "decay" and len(numbers) % 2 and steps:
        return Decay(numbers[0], tuple(zip(numbers[1::2], steps, strict=True)))
    first, then, at = numbers  # or ValueError
    if kind == "decay":
        raise ValueError(f"not a schedule: {value}")
    return Linear(first, then, int(at)) if kind == "linear" else Step(first, then, int(at))


FAR_STEPS = (0, *(10**k for k in range(13)))


def values_of(schedule: Schedule) -> list[float]:
    """Values of a schedule from its start to far beyond its end."""
    return [float(schedule(step)) for step in FAR_STEPS]
