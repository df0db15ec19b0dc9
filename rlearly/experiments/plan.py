"""TODO."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlearly.config.overrides import format_override, parse_overrides
from rlearly.config.resolve import RESUMABLE, compose
from rlearly.config.schema import RunConfig
from rlearly.core.errors import ConfigError
from rlearly.training import checkpoint
from rlearly.training.run_directory import write

PLAN = "plan.json"
FORMAT = 1

THREADS = "threads=1"
"""Of every run that names none: the thread count is part of a result's last bits, so it must not
depend on where a run is run."""


@dataclass(frozen=True)
class Run:
    """One run of a sweep: which arm on which env with which seed, and its words."""

    arm: str
    env: str
    seed: int
    words: list[str]

    @property
    def name(self) -> str:
        """Its directory, seen from the sweep's."""
        return f"runs/{plain(self.arm)}/{plain(self.env)}/{self.seed}"

    @property
    def title(self) -> str:
        return f"{self.arm} on {self.env}, seed {self.seed}"

    @property
    def train_frames(self) -> int | None:
        """What its words say; None: they leave it to the env."""
        return _frames_in(self.words)

    @property
    def needs_teacher(self) -> bool:
        return "snapshot=TEACHER" in self.words

    def resolved(self, snapshot: Path) -> list[str]:
        """Its words, starting from this file of snapshots if it starts from a teacher's."""
        start = format_override("snapshot", snapshot)
        return [start if w == "snapshot=TEACHER" else w for w in self.words]


def _frames_in(words: Sequence[str]) -> int | None:
    """The last train_frames of some words, if it is a number."""
    frames = _effective(words).get("train_frames")
    with contextlib.suppress(TypeError, ValueError):
        return int(float(frames))  # pyright: ignore
    return None


def plain(name: str) -> str:
    """A name as a folder's: `ALE/Pong-v5` has none of its own."""
    return re.sub(r"[^\w.+=,()\[\]' -]", "-", name)


@dataclass(frozen=True)
class Plan:
    """Every run of a sweep, and the teachers that they need."""

    title: str
    runs: list[Run]
    metrics: list[str] = field(default_factory=list)
    published: dict[str, dict[str, float]] = field(default_factory=dict)
    teacher: list[str] = field(default_factory=list)
    teacher_snapshots: list[str] = field(default_factory=list)
    teachers: str | None = None
    """A folder of ENV.h5 files; None: they are trained in the sweep."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("The plan is empty: expected at least one run.")
        names: dict[str, Run] = {}
        for run in self.runs:
            other = names.setdefault(run.name, run)
            if other is not run:
                raise ConfigError(
                    f"{run.name} would hold two runs, {other.title} and {run.title}: "
                    "give their arms other names."
                )

    def run(self, name: str) -> Run:
        return next(run for run in self.runs if run.name == name)

    def taught(self) -> list[str]:
        """The envs whose teachers are trained in the sweep."""
        if self.teachers:
            return []
        return list(dict.fromkeys(run.env for run in self.runs if run.needs_teacher))

    def snapshots(self, sweep: Path, env: str) -> Path:
        """Where the snapshots of an env's teacher are."""
        folder = Path(self.teachers) if self.teachers else sweep / "teachers"
        return folder / f"{plain(env)}.h5"

    def teacher_words(self, env: str) -> list[str]:
        return [*self.teacher, f"env={env}"]

    def first_seeds(self) -> list[Run]:
        """A run of each arm on each env: its other seeds differ in nothing else."""
        return list({(run.arm, run.env): run for run in reversed(self.runs)}.values())[::-1]

    def check(self) -> None:
        """Compose every arm and teacher, so that a typo is found before anything is trained.

        Raises:
            ConfigError: one of them does not compose, or there is no teacher and one is wanted.
        """
        for run in self.first_seeds():
            if run.needs_teacher and self.teachers:
                file = self.snapshots(Path(), run.env)
                if not file.is_file():
                    raise ConfigError(f"teachers: expected {file}, which is not there.")
        if self.taught() and not self.teacher:
            raise ConfigError("teacher: expected its words, since arms start from TEACHER.")
        for env in self.taught():
            try:
                compose(self.teacher_words(env))
            except ConfigError as error:
                raise ConfigError(f"teacher on {env}: {error}") from None
        self.configs()

    def configs(self) -> list[tuple[Run, RunConfig]]:
        """A run of each arm on each env, with what its words compose to.

        Raises:
            ConfigError: they do not compose.
        """
        found = []
        with tempfile.NamedTemporaryFile(suffix=".h5") as no_snapshots:
            for run in self.first_seeds():
                try:
                    found.append((run, compose(run.resolved(Path(no_snapshots.name)))))
                except ConfigError as error:
                    raise ConfigError(f"{run.arm} on {run.env}: {error}") from None
        return found

    def job_configs(self, sweep: Path, names: Sequence[str]) -> dict[str, RunConfig]:
        """What the words of runs and teachers compose to, by their names as jobs."""
        of_arms = {(run.arm, run.env): config for run, config in self.configs()}
        found = {run.name: of_arms[run.arm, run.env] for run in self.runs}
        for env in self.taught():
            name = str(self.snapshots(sweep, env).relative_to(sweep).with_suffix(""))
            found[name] = compose(self.teacher_words(env))
        return {name: found[name] for name in names}

    def joined(self, earlier: Plan, sweep: Path) -> Plan:
        """This plan, and what an earlier one of the same sweep has beside it.

        Words that a resumed run may be given anew, such as train_frames, are this plan's.

        Raises:
            ConfigError: they give one run, or the teachers, different words.
        """
        before = {run.name: run for run in earlier.runs}
        runs = [
            self._agreed(run, before[run.name], sweep) if run.name in before else run
            for run in self.runs
        ]
        mine = {run.name for run in self.runs}
        rest = [run for run in earlier.runs if run.name not in mine]
        both = dataclasses.replace(
            self,
            runs=runs + rest,
            metrics=list(dict.fromkeys([*self.metrics, *earlier.metrics])),
            published={**earlier.published, **self.published},
        )
        if not any(run.needs_teacher for run in self.runs):
            return dataclasses.replace(
                both,
                teacher=earlier.teacher,
                teacher_snapshots=earlier.teacher_snapshots,
                teachers=earlier.teachers,
            )
        if earlier.taught() and self.taught():
            ours = [*self.teacher, *self.teacher_snapshots]
            theirs = [*earlier.teacher, *earlier.teacher_snapshots]
            if _effective(ours) != _effective(theirs):
                _refuse(sweep, "its teachers", theirs, ours)
        return both

    @staticmethod
    def _agreed(run: Run, before: Run, sweep: Path) -> Run:
        """A run with the words that hold from now on.

        Raises:
            ConfigError: its words are not those that it had, and it cannot be resumed with them.
        """
        now, then = _effective(run.words), _effective(before.words)
        changed = {key for key in now | then if now.get(key) != then.get(key)}
        if not changed:
            return before
        if not changed <= set(MAY_CHANGE) & set(now):
            _refuse(sweep, run.title, before.words, run.words)
        folder = sweep / run.name
        frames, done = run.train_frames, frames_done(folder)
        if frames is not None and frames < done:
            raise ConfigError(
                f"train_frames: expected at least the {done} frames that {run.title} has done, "
                f"received {frames}; name a larger number, or another sweep_dir=."
            )
        if (
            _end(folder)
            and not finished(folder, frames)
            and not checkpoint.found(folder / "checkpoints")
        ):
            raise ConfigError(
                f"train_frames: {run.title} is done with {done} frames and has no checkpoint left "
                "to go on from: name another sweep_dir=."
            )
        return run

    def save(self, sweep: Path) -> None:
        tree = {"format": FORMAT, **dataclasses.asdict(self)}
        sweep.mkdir(parents=True, exist_ok=True)
        write(sweep / PLAN, json.dumps(tree, indent=1))

    @staticmethod
    def load(sweep: Path) -> Plan:
        """The plan of a sweep's directory.

        Raises:
            ConfigError: it has none, or one that cannot be read.
        """
        file = sweep / PLAN
        if not file.is_file():
            raise ConfigError(
                f"{sweep} is not a sweep's directory (it has no {PLAN}); name one that "
                "`python -m rlearly.sweep` made."
            )
        try:
            tree = json.loads(file.read_text())
            if not isinstance(tree, dict) or tree.pop("format", None) != FORMAT:
                raise ValueError(f"it does not say format {FORMAT}")
            runs = [Run(**run) for run in tree.pop("runs")]
            return Plan(runs=runs, **tree)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            own = isinstance(error, OSError | ValueError)
            reason = str(error) if own else "its keys are not those of a plan"
            raise ConfigError(
                f"{file} does not load as a plan ({reason}); delete it and give the sweep's "
                "command again: runs that are done stay done."
            ) from None


MAY_CHANGE = tuple(key for key in RESUMABLE if key != "snapshot")
"""What a sweep's command may give its runs anew. Where a study's snapshots are is not for each run
to say, and a grid's other file would be another arm."""


def frames_done(run: Path) -> int:
    """Frames that a run directory's run can go on from, or has finished with."""
    frames = max((int(path.name) for path in checkpoint.found(run / "checkpoints")), default=0)
    return frames if _end(run) is None else _train_frames(run) or frames


def finished(run: Path, train_frames: int | None) -> bool:
    """Whether a run directory's run is done, with as many frames as it is to have."""
    end = _end(run)
    return end is not None and (
        train_frames is None or end.get("frames", train_frames) >= train_frames
    )


def _end(run: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads((run / "done.json").read_text()))
    return None


def changed_words(run: Path, words: Sequence[str]) -> list[str]:
    """Those of a run's words that its directory's config does not have, and may be given."""
    with contextlib.suppress(OSError, YAMLError, OmegaConfBaseException):
        config = OmegaConf.load(run / "config.yaml")
        return [
            f"{key}={text}"
            for key, text in _effective(words).items()
            if key in MAY_CHANGE
            and parse_overrides([f"{key}={text}"])[0][1] != OmegaConf.select(config, key)
        ]
    return []


def _train_frames(run: Path) -> int | None:
    with contextlib.suppress(OSError, YAMLError, OmegaConfBaseException):
        return OmegaConf.select(OmegaConf.load(run / "config.yaml"), "train_frames")
    return None


def _effective(words: Sequence[str]) -> dict[str, str]:
    """Values by key: of one that is there twice, the later one; quotes say nothing."""
    pairs = (word.partition("=")[::2] for word in words)
    return {key: re.sub(r"^(['\"])(.*)\1$", r"\2", value) for key, value in pairs}


def _refuse(sweep: Path, what: str, theirs: Sequence[str], mine: Sequence[str]) -> None:
    then, now = _effective(theirs), _effective(mine)
    before, after = (
        " ".join(f"{k}={v}" for k, v in sorted(one.items()) if other.get(k) != v) or "nothing else"
        for one, other in ((then, now), (now, then))
    )
    raise ConfigError(
        f"{sweep / PLAN} has other words for {what} ({before}) than this command ({after}): name "
        "another sweep_dir=."
    )
