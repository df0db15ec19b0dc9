"""When to update: how many gradient updates are due after each agent step."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from rlearly.config.schema import AdaptiveRatioConfig
from rlearly.core.errors import ConfigError
from rlearly.core.types import Metrics, UpdateSchedule
from rlearly.nn.schedules import Decay, Schedule, Step, schedule_of, values_of


class OncePerRollout(UpdateSchedule):
    """One update after every `steps` agent steps and skipped ones, when a rollout is full."""

    def __init__(self, steps: int):
        self.steps = steps
        self.taken = 0

    def updates_due(self, step: int) -> int:
        self.taken = (self.taken + 1) % self.steps
        return int(self.taken == 0)

    def skip(self) -> None:
        self.taken += 1

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.taken = state["taken"]


class Credit:
    """Fractions of updates, accumulated exactly; the first update is due at once."""

    def __init__(self, ratio: float):
        self.owed = max(Fraction(0), 1 - Fraction(str(ratio)))

    def earn(self, ratio: float) -> int:
        """The whole updates due after a step that adds `ratio` updates."""
        self.owed += Fraction(str(ratio))
        due = int(self.owed)
        self.owed -= due
        return due

    def state_dict(self) -> dict[str, Any]:
        return {"owed": [self.owed.numerator, self.owed.denominator]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.owed = Fraction(*state["owed"])


class ScheduledRatio(UpdateSchedule):
    """Updates per agent step from a schedule over agent steps.

    A constant ratio of 0.5 is DrQ-v2's update at every second agent step.
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

    def events(self) -> Metrics:
        """The new ratio after a step of the schedule, reported once."""
        events, self._events = self._events, {}
        return events

    def state_dict(self) -> dict[str, Any]:
        return {"credit": self.credit.state_dict(), "ratio": self.ratio}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.credit.load_state_dict(state["credit"])
        self.ratio = state["ratio"]


ADAPTIVE_STATE = (
    "switched", "before", "total", "count", "window_over", "episodes", "intervals_done",
)  # fmt: skip


class AdaptiveRatio(UpdateSchedule):
    """A low replay ratio until the critic's plasticity has recovered, a high one afterwards.

    arXiv 2310.07418, section 5: the ratio is `low` until two consecutive checks find mean FAUs
    (fraction of active units) of the critic that differ by at most `threshold`, then `high` for
    good. A check is made every `check_every_episodes` episodes, or before the first update of every
    `check_every_steps` agent steps. As in the official code, the first check compares with the FAU
    of the very first update.

    A check averages over the updates of the episode that just ended (`window` "episode", as in the
    official code), or over all updates since the last check ("interval"; checks by steps always
    average so). If the episodes of several envs end together, they share a window. A check without
    any update to average is skipped.
    """

    def __init__(self, config: AdaptiveRatioConfig):
        self.config = config
        self.credit = Credit(config.low)
        self.switched = False
        self.before: Tensor | None = None  # the FAU that the next check compares with
        self.total = torch.zeros((), dtype=torch.float64)  # of the FAUs in the window
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
        """Add an update's `plasticity/fau_critic` to the window."""
        if self.switched:
            return
        fau = torch.as_tensor(metrics["plasticity/fau_critic"], dtype=torch.float64)
        if self.before is None:
            self.before = fau
        if self.window_over:
            self._reset_window()
        self.total = self.total + fau  # on its device, without waiting for it
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
        self._reset_window()

    def _reset_window(self) -> None:
        self.total, self.count = torch.zeros((), dtype=torch.float64), 0
        self.window_over = False

    def events(self) -> Metrics:
        """The result of the last check, reported once."""
        events, self._events = self._events, {}
        return events

    def state_dict(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in ADAPTIVE_STATE},
            "credit": self.credit.state_dict(),
            "events": dict(self._events),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in ADAPTIVE_STATE:
            setattr(self, name, state[name])
        self.credit.load_state_dict(state["credit"])
        self._events = dict(state["events"])


# --- from the config ---

MAX_RATIO = 100.0
"""A larger ratio is refused as a typo."""


def off_policy_schedule(replay_ratio: Any, adaptive: AdaptiveRatioConfig) -> UpdateSchedule:
    """The update schedule for `replay_ratio`.

    Raises:
        ConfigError: it does not parse, or a ratio is out of range.
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
    expected = (
        f"replay_ratio: expected a number above 0 and at most {MAX_RATIO:g}, adaptive, "
        "linear(START,END,STEPS) or step(FIRST,THEN,AT_STEP) of such numbers and agent steps "
        f"of at least 1, received {replay_ratio!r}."
    )
    try:
        schedule = schedule_of(replay_ratio)
    except (TypeError, ValueError):
        raise ConfigError(expected) from None
    if isinstance(schedule, Decay) or not all(
        0 < ratio <= MAX_RATIO for ratio in values_of(schedule)
    ):
        raise ConfigError(expected)
    return schedule
