"""The trials of a search, kept as trials.json in its directory.

The file is replaced as a whole, by the one process that holds the directory's lock, so that it is
complete after a kill and on network file systems. All else is recomputed from it: proposals depend
on the seed, the number of a trial and the trials before it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlearly.core.errors import ConfigError
from rlearly.experiments.tuning.objective import WORST
from rlearly.experiments.tuning.space import Value, override
from rlearly.system.atomic import write

TRIALS = "trials.json"
FORMAT = 1

RUNNING, COMPLETE, PRUNED = "running", "complete", "pruned"


@dataclass
class Trial:
    """One set of values of the tuned settings, and its scores."""

    number: int
    params: dict[str, Value]
    state: str = RUNNING
    value: float | None = None
    """Its objective once it is complete; -infinity if runs failed."""
    rungs: dict[int, float] = field(default_factory=dict)
    """Frames of a rung -> the objective there."""
    scores: list[float] = field(default_factory=list)
    """The final score of each seed's run, once all have ended; -infinity if the run failed. Empty
    for a trial that ended earlier because too many of its runs had failed."""
    defaults: bool = False
    """Whether its values are those of runs that are not tuned."""

    @property
    def name(self) -> str:
        return f"trial {self.number}"

    @property
    def overrides(self) -> list[str]:
        return [override(key, value) for key, value in self.params.items()]

    @property
    def failed(self) -> bool:
        return self.state == COMPLETE and self.value == WORST


@dataclass
class Trials:
    """All trials of a search in order, and the runs that failed."""

    search: dict[str, Any]
    """What identifies the search, see `Request.search`."""
    asked: dict[str, Any] = field(default_factory=dict)
    """What else the last command asked for, see `Request.asked`."""
    trials: list[Trial] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    """Name of a run that failed -> the last line that it printed."""

    def __iter__(self):
        return iter(self.trials)

    def __len__(self) -> int:
        return len(self.trials)

    def in_state(self, state: str) -> list[Trial]:
        return [trial for trial in self.trials if trial.state == state]

    def best(self) -> Trial | None:
        """The complete trial with the highest value, the first of several; None if all failed."""
        scored = [trial for trial in self.in_state(COMPLETE) if not trial.failed]
        return max(scored, key=lambda trial: trial.value or 0.0, default=None)

    def only_failures(self) -> bool:
        """Whether trials have ended, and nothing that any of them did has a score."""
        ended = [trial for trial in self.trials if trial.state != RUNNING]
        return bool(ended) and all(trial.failed and not trial.rungs for trial in ended)

    def save(self, folder: Path) -> None:
        tree = {
            "format": FORMAT,
            "search": self.search,
            "asked": self.asked,
            "trials": [_as_tree(trial) for trial in self.trials],
            "failures": self.failures,
        }
        write(folder / TRIALS, json.dumps(tree, indent=1, allow_nan=False))


def load_trials(folder: Path) -> Trials:
    """The trials in a search's directory.

    Raises:
        ConfigError: there are none, or they cannot be read.
    """
    file = folder / TRIALS
    if not file.is_file():
        raise ConfigError(
            f"{folder} is not the directory of a search (it has no {TRIALS}); name one that "
            "`python -m rlearly.tune` made."
        )
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        if tree.pop("format", None) != FORMAT:
            raise ValueError(f"it does not have format {FORMAT}")
        trials = [_from_tree(one) for one in tree.pop("trials")]
        return Trials(trials=trials, **tree)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        clear = isinstance(error, OSError | ValueError)
        reason = str(error) if clear else "its keys are not those of trials"
        raise ConfigError(
            f"{file} cannot be read ({reason}); put it back, or name another tune_dir=."
        ) from None


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two searches, as `seeds 0 1, not 0 1 2`; empty if nothing does."""
    old, new = dict(_flat(before)), dict(_flat(now))
    return "; ".join(
        f"{key} {old.get(key, 'not set')}, not {new.get(key, 'not set')}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every dotted key of nested mappings, with its value in words."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _words(value)


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _as_tree(trial: Trial) -> dict[str, Any]:
    """A trial as JSON, which has no infinity: it is written as null."""
    return {
        **vars(trial),
        "value": _finite(trial.value),
        "rungs": {str(frames): _finite(value) for frames, value in trial.rungs.items()},
        "scores": [_finite(score) for score in trial.scores],
    }


def _from_tree(tree: dict[str, Any]) -> Trial:
    trial = Trial(**tree)
    trial.rungs = {int(frames): _or_worst(value) for frames, value in trial.rungs.items()}
    trial.scores = [_or_worst(score) for score in trial.scores]
    if trial.state == COMPLETE:
        trial.value = _or_worst(trial.value)
    return trial


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isinf(value) else value


def _or_worst(value: float | None) -> float:
    return WORST if value is None else value
