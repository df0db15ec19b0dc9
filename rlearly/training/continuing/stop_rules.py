"""Rules that end a run early: `stop_when=`."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rlearly.core.errors import ConfigError

COMPARISONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
COMPARISON = re.compile(r"\s*([\w/]+)\s*(>=|<=|>|<)\s*(\S+)\s*")
CALL = re.compile(r"\s*(\w+)\s*\((.*)\)\s*")
GRAMMAR = (
    "METRIC>=NUMBER (or <=, >, <), reached(METRIC>=NUMBER,evaluations=N) or "
    "no_progress(METRIC,evaluations=N,min_delta=NUMBER)"
)


class StopRule(Protocol):
    """Judges the newest value of one metric after each evaluation."""

    text: str
    metric: str

    def judge(self, value: float) -> str | None:
        """Why the run ends now; None: it goes on."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Reached:
    """Ends the run once a metric has passed a threshold in `evaluations` evaluations in a row."""

    def __init__(
        self, text: str, metric: str, comparison: str, threshold: float, evaluations: int = 1
    ):
        self.text = text
        self.metric = metric
        self.comparison = comparison
        self.threshold = threshold
        self.evaluations = evaluations
        self.count = 0

    def judge(self, value: float) -> str | None:
        holds = COMPARISONS[self.comparison](value, self.threshold)
        self.count = self.count + 1 if holds else 0
        if self.count < self.evaluations:
            return None
        row = f" in {self.count} evaluations in a row" if self.evaluations > 1 else ""
        return f"{self.metric} was {self.comparison} {self.threshold:g}{row}, {value:.4g} now"

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]


class NoProgress:
    """Ends the run once a metric has not exceeded its best value by more than `min_delta` in
    `evaluations` evaluations in a row."""

    def __init__(self, text: str, metric: str, evaluations: int, min_delta: float = 0.0):
        self.text = text
        self.metric = metric
        self.evaluations = evaluations
        self.min_delta = min_delta
        self.best: float | None = None
        self.count = 0

    def judge(self, value: float) -> str | None:
        if self.best is None or value > self.best + self.min_delta:
            self.best, self.count = value, 0
            return None
        self.count += 1
        if self.count < self.evaluations:
            return None
        by = f" by more than {self.min_delta:g}" if self.min_delta else ""
        return (
            f"{self.metric} has not exceeded {self.best:.4g}{by} in {self.count} evaluations "
            f"in a row, {value:.4g} now"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.count = state["best"], state["count"]


class StopRules:
    """The rules of a run; the first one that is met ends it.

    `observe` takes every row of metrics, and `judge` is called after each evaluation: a rule is
    judged by the newest value of its metric, and not before there is one.
    """

    def __init__(self, rules: Sequence[StopRule] = ()):
        self.rules = list(rules)
        self.newest: dict[str, float] = {}

    def observe(self, row: Mapping[str, float]) -> None:
        for rule in self.rules:
            if rule.metric in row:
                self.newest[rule.metric] = float(row[rule.metric])

    def judge(self) -> str | None:
        """Why the run ends now; None: it goes on."""
        reasons = [
            reason
            for rule in self.rules
            if rule.metric in self.newest and (reason := rule.judge(self.newest[rule.metric]))
        ]
        return reasons[0] if reasons else None

    def state_dict(self) -> dict[str, Any]:
        return {
            "newest": dict(self.newest),
            "rules": {rule.text: rule.state_dict() for rule in self.rules},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Rules that the state does not have begin anew: `stop_when` may change on resuming."""
        self.newest = dict(state["newest"])
        for rule in self.rules:
            if rule.text in state["rules"]:
                rule.load_state_dict(state["rules"][rule.text])


def parse(text: str) -> StopRule:
    """The rule that a text describes; the name of its metric is not checked.

    Raises:
        ConfigError: it does not parse.
    """
    wrong = ConfigError(f"stop_when: expected {GRAMMAR}, received {text!r}.")
    call = CALL.fullmatch(text)
    name, inner = (call[1], call[2]) if call else ("reached", text)
    first, *rest = inner.split(",")
    pairs = [part.partition("=") for part in rest]
    given = {key.strip(): value.strip() for key, _, value in pairs}
    takes: dict[str, tuple[str, ...]] = {
        "reached": ("evaluations",),
        "no_progress": ("evaluations", "min_delta"),
    }
    if name not in takes or set(given) - set(takes[name]) or len(given) < len(rest):
        raise wrong
    try:
        numbers: dict[str, Any] = {
            key: int(float(value)) if key == "evaluations" else float(value)
            for key, value in given.items()
        }
        if name == "no_progress":
            metric = first.strip()
            if not re.fullmatch(r"[\w/]+", metric):
                raise wrong
            rule: StopRule = NoProgress(text, metric, **numbers)
        else:
            parts = COMPARISON.fullmatch(first)
            if parts is None:
                raise wrong
            rule = Reached(text, parts[1], parts[2], float(parts[3]), **numbers)
    except (ValueError, TypeError, OverflowError):
        raise wrong from None
    if numbers.get("evaluations", 1) < 1 or numbers.get("min_delta", 0) < 0:
        raise ConfigError(
            f"stop_when: expected evaluations of at least 1 and a min_delta of at least 0, "
            f"received {text!r}."
        )
    return rule
