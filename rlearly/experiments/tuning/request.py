"""What a search is asked to do: its settings, the overrides of its runs, and its space."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rlearly.config.fields import group, setting
from rlearly.config.overrides import parse_text, split_overrides
from rlearly.config.resolve import DEFAULT_AGENT, compose, seed_frames
from rlearly.config.schema import RunConfig
from rlearly.config.structured import describe_fields, did_you_mean, from_overrides
from rlearly.core.errors import ConfigError
from rlearly.experiments.launchers.ray import RayConfig
from rlearly.experiments.plan import Plan, Run
from rlearly.experiments.report.curves import FINAL_EVALUATIONS
from rlearly.experiments.report.statistics import MIN_RUNS
from rlearly.experiments.study import pinned, seeds_of
from rlearly.experiments.tuning.objective import OBJECTIVES
from rlearly.experiments.tuning.pruning import PruneConfig, rungs_of
from rlearly.experiments.tuning.space import Space, Value, defaults_of, space_of
from rlearly.experiments.tuning.trials import TRIALS, Trial, Trials

SPACE = "space."
DEFAULTS = "defaults"
"""The arm of the runs that are not tuned."""


@dataclass(frozen=True)
class TuneConfig:
    """How to search, and where."""

    trials: int = setting(50, "trials in all, pruned ones included", at_least=1)
    seeds: str = setting("3", "seeds of each trial; 3: seeds 0 to 2; 4,8: seeds 4 and 8")
    held_out_seeds: str = setting(
        "5",
        "seeds on which the best trial and the defaults are compared at the end; 5: that many new "
        "seeds; 0: none; 100,101: these two",
    )
    objective: str = setting(
        "iqm",
        "how a trial's scores are combined; lower_bound: lower end of the IQM's 95 % interval",
        choices=OBJECTIVES,
    )
    last_evaluations: int = setting(
        FINAL_EVALUATIONS, "a run's score is the mean of its last evaluations", at_least=1
    )
    seed: int = setting(0, "seed of the search: the same seed proposes the same trials", at_least=0)
    tune_dir: str | None = setting(None, "directory; null: tunes/ and a name made from the command")
    launcher: str = setting("local", "where the runs go", choices=("local", "slurm", "ray"))
    workers: int | None = setting(
        None, "runs at once; null: one per GPU, or else per core; ray: as many as fit", at_least=1
    )
    trials_at_once: int | None = setting(
        None, "trials that run at the same time; null: as many as keep the workers busy", at_least=1
    )
    prune: PruneConfig = group(PruneConfig, "which trials are ended early")
    ray: RayConfig = group(RayConfig, "launcher=ray")
    dry_run: bool = setting(False, "print the space and the first trial's commands, and exit")
    status: str | None = setting(None, "directory of a search: show its trials")
    report: str | None = setting(None, "directory of a search: write its page again")


VERBS = ("status", "report")


@dataclass(frozen=True)
class Request:
    """A validated search that can begin."""

    config: TuneConfig
    fixed: list[str]
    """Overrides of all runs, the agent and the env among them."""
    space: Space
    seeds: list[int]
    held_out_seeds: list[int]

    @cached_property
    def run_config(self) -> RunConfig:
        """Of the runs that are not tuned."""
        return compose(self.fixed)

    @property
    def env(self) -> str:
        return parse_text(dict(split_overrides(self.fixed))["env"])

    @property
    def title(self) -> str:
        return f"Tuning {self.run_config.agent_name} on {self.env}"

    @cached_property
    def rungs(self) -> list[int]:
        """Frames at which trials are judged."""
        run = self.run_config
        return rungs_of(
            self.config.prune, run.train_frames, run.eval_every_frames, seed_frames(run)
        )

    @cached_property
    def defaults(self) -> dict[str, Value]:
        """The settings of runs that are not tuned, those that the space holds."""
        return defaults_of(self.fixed, self.space)[0]

    @property
    def search(self) -> dict[str, Any]:
        """What identifies the search: a directory holds the trials of one."""
        config = self.config
        return {
            "overrides": sorted(self.fixed, key=lambda word: word.partition("=")[0]),
            "space": {key: str(found) for key, found in self.space.items()},
            "seeds": self.seeds,
            "objective": config.objective,
            "last_evaluations": config.last_evaluations,
            "seed": config.seed,
            "prune": asdict(config.prune),
        }

    @property
    def asked(self) -> dict[str, Any]:
        """What a later command may change, and its overrides in their order."""
        return {
            "trials": self.config.trials,
            "held_out_seeds": self.held_out_seeds,
            "overrides": self.fixed,
        }

    @property
    def folder(self) -> Path:
        if self.config.tune_dir:
            return Path(self.config.tune_dir).absolute()
        digest = hashlib.sha256(json.dumps(self.search).encode()).hexdigest()[:6]
        label = re.sub(r"[^\w.+=-]", "-", f"{self.run_config.agent_name}_{self.env}")
        return Path("tunes", f"{label[:60]}-{digest}").absolute()

    def runs_of(self, trial: Trial) -> list[Run]:
        """A trial's runs, on the same seeds as those of all trials, to compare them fairly."""
        return self._runs(trial.name, trial.overrides, self.seeds)

    def held_out_runs(self, trial: Trial) -> list[Run]:
        """A trial's runs on the held-out seeds."""
        return self._runs(trial.name, trial.overrides, self.held_out_seeds)

    def default_runs(self) -> list[Run]:
        """The runs that are not tuned, on the held-out seeds."""
        return self._runs(DEFAULTS, [], self.held_out_seeds)

    def _runs(self, arm: str, own: Sequence[str], seeds: Sequence[int]) -> list[Run]:
        return [
            Run(arm, self.env, seed, pinned([*self.fixed, *own, f"seed={seed}"])) for seed in seeds
        ]

    def plan(self, runs: Sequence[Run]) -> Plan:
        return Plan(self.title, list(runs))


def split(arguments: Sequence[str]) -> tuple[TuneConfig, list[str], dict[str, str]]:
    """The search's own config, the overrides of its runs, and the ranges of `space.KEY=RANGE`.

    Raises:
        ConfigError: an argument is not key=value, or is a wrong setting of the search.
    """
    own, overrides, ranges = [], [], {}
    names = [name for name, *_ in describe_fields(TuneConfig)]
    known = {*names, *(name for name, *_ in describe_fields(RunConfig)), "space"}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key in VERBS and not value:
            raise ConfigError(f"{key}: expected the directory of a search, as in {key}=tunes/NAME.")
        if not equals or argument.startswith("-"):
            raise ConfigError(f"Expected key=value, received {argument!r} (--help lists the keys).")
        if key.startswith(SPACE):
            name = key.removeprefix(SPACE)
            if name in ranges:
                raise ConfigError(f"{key}: is given twice; keep one of them.")
            ranges[name] = value
        elif key.split(".")[0] in names:
            own.append(argument)
        elif key.split(".")[0] not in known:
            raise ConfigError(
                f"There is no key {key!r}; {did_you_mean(key, known)} (--help lists the keys of "
                "searches, python -m rlearly.train --help those of runs.)"
            )
        else:
            overrides.append(argument)
    return from_overrides(TuneConfig(), own), overrides, ranges


def request_of(
    config: TuneConfig, overrides: Sequence[str], ranges: dict[str, str] | None = None
) -> Request:
    """The search that a config asks for, for runs with these overrides.

    Args:
        ranges: dotted key of a setting -> its range, as typed after `space.KEY=`.

    Raises:
        ConfigError: it cannot be met.
    """
    for key, instead in (("run_dir", "tune_dir="), ("resume", "the same command again")):
        if any(word.partition("=")[0] == key for word in overrides):
            raise ConfigError(f"{key}: every run of a search has its own; use {instead}.")
    fixed = list(overrides)
    if not any(word.startswith("agent=") for word in fixed):
        fixed.insert(0, f"agent={DEFAULT_AGENT}")
    run = compose(fixed)
    if not run.eval_every_frames:
        raise ConfigError(
            "eval_every_frames: trials are compared by their evaluations; expected at least 1, "
            "received 0."
        )
    seeds = seeds_of(config.seeds)
    if config.objective == "lower_bound" and len(seeds) < MIN_RUNS:
        raise ConfigError(
            f"objective=lower_bound: an interval needs at least {MIN_RUNS} seeds, received "
            f"{len(seeds)}."
        )
    space = space_of(fixed, ranges or {})
    return Request(config, fixed, space, seeds, _held_out(config.held_out_seeds, seeds))


def saved_request(trials: Trials) -> Request:
    """The search whose trials were saved, as its last command asked for it.

    Raises:
        ConfigError: it no longer composes, as the env or a setting is gone.
    """
    search, asked = trials.search, trials.asked
    try:
        config = TuneConfig(
            trials=asked["trials"],
            objective=search["objective"],
            last_evaluations=search["last_evaluations"],
            seed=search["seed"],
            prune=PruneConfig(**search["prune"]),
        )
        fixed = asked["overrides"]
        space = space_of(fixed, search["space"], own=False)
        return Request(config, fixed, space, search["seeds"], asked["held_out_seeds"])
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{TRIALS}: its keys are not those of a search ({error}); put it back, or name another "
            "tune_dir=."
        ) from None


def _held_out(text: str, seeds: Sequence[int]) -> list[int]:
    """The held-out seeds: so many after the largest seed of the trials, or a list.

    Raises:
        ConfigError: they are no seeds, or trials have one of them too.
    """
    if text == "0":
        return []
    found = seeds_of(text, "held_out_seeds")
    if "," not in text and "[" not in text:
        return [max(seeds) + 1 + number for number in found]
    shared = sorted(set(found) & set(seeds))
    if shared:
        listed = ", ".join(map(str, shared))
        raise ConfigError(
            f"held_out_seeds: expected seeds that no trial has, received {listed}, which seeds= "
            "names too."
        )
    return found
