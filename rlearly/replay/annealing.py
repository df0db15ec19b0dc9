"""n-step returns with an n and gamma that change during training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rlearly.core.errors import ConfigError
from rlearly.nn.schedules import Schedule, schedule_of, values_of

MAX_NSTEP = 1000
"""A schedule that exceeds this n is refused as a mistake."""


@dataclass(frozen=True)
class Annealing:
    """n and gamma as functions of the agent step; n is rounded down.

    DrM on MetaWorld has n = floor(3 + 7 exp(-step / 1e6)) and gamma = 0.997 - 0.02 exp(-step / 5e5)
    - 0.007 exp(-step / 1.6e6) (official cfgs/task/metaworld.yaml). Deviation: in the official code
    nothing calls the method that would change the loader's n, and the line that would change gamma
    is commented out, so its runs keep 10 and 0.97; here both are annealed, as configured.
    """

    nstep: Schedule
    discount: Schedule

    def at(self, step: int) -> tuple[int, float]:
        return math.floor(self.nstep(step)), float(self.discount(step))

    @property
    def max_nstep(self) -> int:
        """The largest n of the schedule."""
        return math.floor(max(values_of(self.nstep)))


def annealing_for(agent: Any) -> Annealing | None:
    """The annealing in an agent's config; None if n and gamma are constant.

    Raises:
        ConfigError: a schedule does not parse, n falls below 1, or gamma leaves [0, 1].
    """
    texts = {key: getattr(agent, f"{key}_schedule", None) for key in ("nstep", "discount")}
    if not any(texts.values()):
        return None
    schedules: dict[str, Schedule] = {}
    for key, (low, high) in {"nstep": (1, MAX_NSTEP), "discount": (0, 1)}.items():
        try:
            schedules[key] = schedule_of(texts[key] or getattr(agent, key))
        except ValueError:
            raise ConfigError(
                f"agent.{key}_schedule: expected linear(START,END,STEPS), step(FIRST,THEN,AT_STEP) "
                "or decay(END,AMOUNT,STEPS,...), which is END plus AMOUNT exp(-step / STEPS) for "
                "each pair of AMOUNT and STEPS, with whole numbers of steps of at least 1, "
                f"received {texts[key]!r}."
            ) from None
        values = values_of(schedules[key])
        if not all(low <= value <= high for value in values):
            raise ConfigError(
                f"agent.{key}_schedule: expected values between {low} and {high}, received "
                f"{texts[key]}, which goes from {values[0]:.4g} to {values[-1]:.4g}."
            )
    return Annealing(**schedules)
