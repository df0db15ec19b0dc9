"""When to update: how many gradient steps each step of the env pays for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from rlearly.config.schema import AdaptiveRatioConfig
from rlearly.core.errors import ConfigError
from rlearly.core.types import Metrics, UpdateSchedule
from rlearly.nn.schedules import Decay, Schedule, Step, schedule_of, values_of


class OncePerRollout:
    """One update each time that `steps` agent steps have been taken: a rollout is full."""

    def __init__(self, steps: int):
        self.steps = steps
        self.taken = 0

    def updates_due(self, step: int) -> int:
        self.taken += 1
        due = self.taken == self.steps
        self.taken %= self.steps
        return int(due)

    def observe(self, metrics: Metrics) -> None:
        """A rollout's length does not change."""

    def end_episode(self) -> None:
        """A rollout goes on over the ends of episodes."""

    def events(self) -> Metrics:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.taken = state["taken"]


class Credit:
    """Updates that are owed: fractions accumulate exactly, and the first one is owed at once."""

    def __init__(self, ratio: float):
        self.owed = max(Fraction(0), 1 - Fraction(str(ratio)))

    def earn(self, ratio: float) -> int:
        """The whole updates that are due after a step worth `ratio` of them."""
        self.owed += Fraction(str(ratio))
        due = int(self.owed)
        self.owed -= due
        return due

    def state_dict(self) -> dict[str, Any]:
        return {"owed": [self.owed.numerator, self.owed.denominator]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.owed = Fraction(*state["owed"])


class ScheduledRatio:
    """Updates a step as a schedule of the agent step says; a constant one spreads them evenly.

    Ratio 0.5 is DrQ-v2's update every second agent step.
    """

    def __init__(self, schedule: Schedule):
        self.schedule = schedule
        self.ratio = float(schedule(0))
        self.credit = Credit(self.ratio)
        self._events: dict[str, float] = {}

    def updates_due(self, step: int) -> int:
        before, self.ratio = self.ratio, float(self.schedule(step))
        if self.ratio != before and isinstance(self.schedule, Step):
            self._events = {"event/replay_ratio": self.ratio}
        return self.credit.earn(self.ratio)

    def observe(self, metrics: Metrics) -> None:
        """A schedule learns nothing from metrics."""

    def end_episode(self) -> None:
        """A schedule does not know episodes."""

    def events(self) -> Metrics:
        """A jump of the ratio; once."""
        events, self._events = self._events, {}
        return events

    def state_dict(self) -> dict[str, Any]:
        return {"credit": self.credit.state_dict(), "ratio": self.ratio}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.credit.load_state_dict(state["credit"])
        self.ratio = state["ratio"]


class AdaptiveRatio:
    """Few updates until the critic's plasticity has recovered, many from then on.

    arXiv 2310.07418, section 5: the ratio is `low` until two checks in a row find means of the
    critic's FAU that differ by at most `threshold`, and `high` for ever after. Checks are made at
    every so many ends of episodes, or before the first update of every so many agent steps. The
    first check compares with the very first update's FAU (as the official code does).

    A check's mean is over the updates of the episode that just ended (`window` "episode", the
    official one: one in 50), or over all since the check before ("interval", which checks by steps
    always use). Copies of an env whose episodes end together share that window. A check that has
    no update to read is not made.
    """

    def __init__(self, config: AdaptiveRatioConfig):
        self.config = config
        self.credit = Credit(config.low)
        self.switched = False
        self.before: Tensor | None = None  # the FAU that the next check compares with
        self.total = torch.zeros((), dtype=torch.float64)  # of the window's FAUs
        self.count = 0
        self.window_over = False
        self.episodes = 0
        self.intervals_done = 0
        self._events: dict[str, float] = {}

    @property
    def ratio(self) -> float:
        return self.config.high if self.switched else self.config.low

    def updates_due(self, step: int) -> int:
        every = self.config.check_every_steps
        if every and step // every > self.intervals_done:
            self.intervals_done = step // every
            self._check()
        return self.credit.earn(self.ratio)

    def observe(self, metrics: Metrics) -> None:
        """Take note of an update's `plasticity/fau_critic`."""
        if self.switched:
            return
        fau = torch.as_tensor(metrics["plasticity/fau_critic"], dtype=torch.float64)
        if self.before is None:
            self.before = fau
        if self.window_over:
            self._empty()
        self.total = self.total + fau  # where the device has it: nothing waits
        self.count += 1

    def end_episode(self) -> None:
        if self.config.check_every_steps:
            return
        self.episodes += 1
        if self.episodes % self.config.check_every_episodes == 0:
            self._check()
        self.window_over = self.config.window == "episode"

    def _check(self) -> None:
        if self.switched or self.before is None or not self.count:
            return
        now, before = float(self.total) / self.count, float(self.before)
        self._events = {"event/fau_critic": now, "event/fau_critic_before": before}
        if abs(now - before) <= self.config.threshold:
            self.switched = True
            self._events["event/replay_ratio"] = self.ratio
        self.before = torch.tensor(now, dtype=torch.float64)
        self._empty()

    def _empty(self) -> None:
        self.total, self.count = torch.zeros((), dtype=torch.float64), 0
        self.window_over = False

    def events(self) -> Metrics:
        """What the last check found; once."""
        events, self._events = self._events, {}
        return events

    def state_dict(self) -> dict[str, Any]:
        return {
            "credit": self.credit.state_dict(),
            "switched": self.switched,
            "before": self.before,
            "total": self.total,
            "count": self.count,
            "window_over": self.window_over,
            "episodes": self.episodes,
            "intervals_done": self.intervals_done,
            "events": dict(self._events),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.credit.load_state_dict(state["credit"])
        self.switched = state["switched"]
        self.before, self.total, self.count = state["before"], state["total"], state["count"]
        self.window_over = state["window_over"]
        self.episodes, self.intervals_done = state["episodes"], state["intervals_done"]
        self._events = dict(state["events"])


# --- as config says it ---

MOST = 100.0
"""Updates a step beyond which a request is taken for a slip."""


def off_policy_schedule(replay_ratio: Any, adaptive: AdaptiveRatioConfig) -> UpdateSchedule:
    """The cadence that `replay_ratio` asks for.

    Raises:
        ConfigError: it asks for none, or for a ratio that is out of range.
    """
    if replay_ratio != "adaptive":
        return ScheduledRatio(ratio_schedule(replay_ratio))
    if adaptive.high <= adaptive.low:
        raise ConfigError(
            f"adaptive_ratio.high: expected a number above adaptive_ratio.low = {adaptive.low}, "
            f"received {adaptive.high}."
        )
    return AdaptiveRatio(adaptive)


def ratio_schedule(replay_ratio: Any) -> Schedule:
    """A number, 'linear(START,END,STEPS)' or 'step(FIRST,THEN,AT_STEP)' as a schedule.

    Raises:
        ConfigError: it is none of these, or a ratio is not in (0, 100].
    """
    wanted = (
        f"replay_ratio: expected a number above 0 and at most {MOST:g}, adaptive, "
        "linear(START,END,STEPS) or step(FIRST,THEN,AT_STEP) of such numbers and agent steps "
        f"of at least 1, received {replay_ratio!r}."
    )
    try:
        schedule = schedule_of(replay_ratio)
    except (TypeError, ValueError):
        raise ConfigError(wanted) from None
    if isinstance(schedule, Decay) or not all(0 < ratio <= MOST for ratio in values_of(schedule)):
        raise ConfigError(wanted)
    return schedule


def mean_ratio(replay_ratio: Any, adaptive: AdaptiveRatioConfig, steps: int) -> float:
    """Updates a step over a run of so many agent steps; of an adaptive one, at most."""
    if replay_ratio == "adaptive":
        return adaptive.high
    schedule = ratio_schedule(replay_ratio)
    points = [float(schedule(round(steps * at / 100))) for at in range(101)]
    return math.fsum(points) / len(points)
