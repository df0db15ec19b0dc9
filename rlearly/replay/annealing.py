"""n-step returns whose n and gamma change while the agent learns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rlearly.core.errors import ConfigError
from rlearly.nn.schedules import Schedule, schedule_of, values_of

MAX_NSTEP = 1000
"""An n beyond which a schedule is taken for a slip."""


@dataclass(frozen=True)
class Annealing:
    """n and gamma by the agent step; n is rounded down.

    DrM on MetaWorld has n = floor(3 + 7 exp(-step / 1e6)) and gamma = 0.997 - 0.02 exp(-step / 5e5)
    - 0.007 exp(-step / 1.6e6) (official cfgs/task/metaworld.yaml). Deviation: in the official code
    nothing calls the method that would move the loader's n on, and the line that would move gamma
    is commented out, so that its runs keep 10 and 0.97; here both are annealed, as configured.
    """

    nstep: Schedule
    discount: Schedule

    def at(self, step: int) -> tuple[int, float]:
        return math.floor(self.nstep(step)), float(self.discount(step))

    @property
    def max_nstep(self) -> int:
        """The most that n ever is."""
        return math.floor(max(values_of(self.nstep)))


def annealing_for(agent: Any) -> Annealing | None:
    """What an agent's config anneals; None: nothing, n and gamma are numbers.

    Raises:
        ConfigError: a schedule is none, n falls under 1, or gamma leaves [0, 1].
    """
    words = {key: getattr(agent, f"{key}_schedule", None) for key in ("nstep", "discount")}
    if not any(words.values()):
        return None
    made: dict[str, Schedule] = {}
    for key, (least, most) in {"nstep": (1, MAX_NSTEP), "discount": (0, 1)}.items():
        try:
            made[key] = schedule_of(words[key] or getattr(agent, key))
        except ValueError:
            raise ConfigError(
                f"agent.{key}_schedule: expected linear(START,END,STEPS), step(FIRST,THEN,AT_STEP) "
                "or decay(END,AMOUNT,STEPS), which is END + AMOUNT exp(-step / STEPS) and takes "
                f"more pairs of AMOUNT and STEPS, of whole steps of at least 1, received "
                f"{words[key]!r}."
            ) from None
        values = values_of(made[key])
        if not all(least <= value <= most for value in values):
            raise ConfigError(
                f"agent.{key}_schedule: expected one that stays from {least} to {most}, and "
                f"{words[key]} goes from {values[0]:.4g} to {values[-1]:.4g}."
            )
    return Annealing(made["nstep"], made["discount"])
