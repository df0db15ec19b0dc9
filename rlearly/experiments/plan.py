"""The plan of a sweep: its runs and their teachers, kept as plan.json in the sweep's directory."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlearly.config.overrides import format_override, parse_value, split_overrides
from rlearly.config.resolve import RESUMABLE, compose, fixed_settings
from rlearly.config.schema import RunConfig
from rlearly.config.structured import as_dictconfig, key_types, read_yaml
from rlearly.core.errors import ConfigError
from rlearly.system.atomic import write
from rlearly.system.disk import short_name
from rlearly.training import checkpoint

PLAN = "plan.json"
FORMAT = 2

THREADS = "threads=1"
"""Added to every run that does not set its threads. The last bits of a result depend on their
number, which must therefore not depend on the machine."""

TEACHERS = ("jump_start.run", "jump_start.model")

MAY_CHANGE = tuple(key for key in RESUMABLE if key not in ("snapshot", "wandb.group", *TEACHERS))
"""Settings that a repeated sweep command may change for existing runs. A snapshot file or a teacher
is not one of them: a study determines where its own is, and a different one makes a different
arm. The wandb group is that of the sweep's directory."""

FOLLOW = ("snapshot", "wandb.group")
"""Settings that change with the sweep's directory, if that is moved or copied."""


@dataclass(frozen=True)
class Run:
    """One run of a sweep: an arm on an env with a seed, and its overrides for `rlearly.train`."""

    arm: str
    env: str
    seed: int
    overrides: list[str]

    @property
    def name(self) -> str:
        """Its directory, relative to the sweep's."""
        return f"runs/{folder_name(self.arm)}/{folder_name(self.env)}/{self.seed}"

    @property
    def title(self) -> str:
        return f"{self.arm} on {self.env}, seed {self.seed}"

    @property
    def train_frames(self) -> int | None:
        """The train_frames of its overrides; None: the env's default."""
        frames = None
        for override in self.overrides:
            if _key(override) == "train_frames":
                with contextlib.suppress(ValueError):
                    frames = int(float(override.partition("=")[2].strip("'\"")))
        return frames

    @property
    def arm_overrides(self) -> list[str]:
        """Its overrides without the seed: the same for all seeds of its arm on its env."""
        return [override for override in self.overrides if _key(override) != "seed"]

    @property
    def needs_teacher(self) -> bool:
        return "snapshot=TEACHER" in self.overrides


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
    """A folder of ENV.h5 files; None: the sweep trains its teachers."""

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

    def teacher_envs(self) -> list[str]:
        """The envs for which the sweep trains a teacher."""
        if self.teachers:
            return []
        return list(dict.fromkeys(run.env for run in self.runs if run.needs_teacher))

    def teacher_name(self, env: str) -> str:
        """The directory of an env's teacher, relative to the sweep's."""
        return f"teachers/{folder_name(env)}"

    def snapshots(self, sweep: Path, env: str) -> Path:
        """The snapshot file of an env's teacher."""
        folder = Path(self.teachers) if self.teachers else sweep / "teachers"
        return folder / f"{folder_name(env)}.h5"

    def teacher_overrides(self, env: str) -> list[str]:
        return [*self.teacher, f"env={env}"]

    def check(self) -> None:
        """Compose every arm and teacher, so that a typo is found before anything is trained.

        Raises:
            ConfigError: one of them does not compose, or a teacher is missing.
        """
        for run in self.runs:
            if run.needs_teacher and self.teachers:
                file = self.snapshots(Path(), run.env)
                if not file.is_file():
                    raise ConfigError(f"teachers: expected the file {file}, which does not exist.")
        if self.teacher_envs() and not self.teacher:
            raise ConfigError("teacher: expected overrides, since some arms use snapshot=TEACHER.")
        self.configs()

    def configs(self) -> dict[str, RunConfig]:
        """The config of every job by its name, except for its seed and snapshot file.

        Raises:
            ConfigError: one does not compose.
        """
        of_teachers = {
            self.teacher_name(env): _composed(f"teacher on {env}", self.teacher_overrides(env))
            for env in self.teacher_envs()
        }
        return of_teachers | {
            run.name: _composed(f"{run.arm} on {run.env}", run.arm_overrides) for run in self.runs
        }

    def joined(self, earlier: Plan, sweep: Path) -> Plan:
        """This plan together with the runs that only an earlier plan of the same sweep has.

        Settings that a resumed run may change, such as train_frames, are taken from this plan.

        Raises:
            ConfigError: the two give one run, or the teachers, different settings.
        """
        others = {run.name: run for run in earlier.runs}
        runs = [_continued(run, others.pop(run.name, run), sweep) for run in self.runs]
        both = dataclasses.replace(
            self,
            runs=[*runs, *others.values()],
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
        if earlier.teacher_envs() and self.teacher_envs():
            env = self.teacher_envs()[0]
            then, now = (
                _settings(plan.teacher_overrides(env))
                | dict(split_overrides(plan.teacher_snapshots))
                for plan in (earlier, self)
            )
            if then != now:
                raise _contradiction(sweep, "its teachers", then, now)
        return both

    def save(self, sweep: Path) -> None:
        tree = {"format": FORMAT, **dataclasses.asdict(self)}
        sweep.mkdir(parents=True, exist_ok=True)
        write(sweep / PLAN, json.dumps(tree, indent=1))

    @staticmethod
    def load(sweep: Path) -> Plan:
        """The plan of a sweep's directory.

        Raises:
            ConfigError: there is none, or it cannot be read.
        """
        file = sweep / PLAN
        if not file.is_file():
            raise ConfigError(
                f"{sweep} is not the directory of a sweep (it has no {PLAN}); name one that "
                "`python -m rlearly.sweep` made."
            )
        try:
            tree = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(tree, dict) or tree.pop("format", None) != FORMAT:
                raise ValueError(f"it does not have format {FORMAT}")
            runs = [Run(**run) for run in tree.pop("runs")]
            return Plan(runs=runs, **tree)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            clear = isinstance(error, OSError | ValueError)
            reason = str(error) if clear else "its keys are not those of a plan"
            raise ConfigError(
                f"{file} cannot be read as a plan ({reason}); delete it and repeat the command of "
                "the sweep: finished runs stay finished."
            ) from None


def folder_name(name: str) -> str:
    """A name with - for what a folder's name cannot contain: `ALE/Pong-v5` -> `ALE-Pong-v5`.

    The end of a name that is too long for a folder is replaced by a hash.
    """
    return short_name(re.sub(r"[^\w.+=,()\[\]' -]", "-", name))


def finished(run: Path, train_frames: int | None) -> bool:
    """Whether the run in a directory is done: with as many frames as requested, or early."""
    end = _end(run)
    return end is not None and (
        train_frames is None or "stopped" in end or end.get("frames", train_frames) >= train_frames
    )


def _end(run: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads((run / "done.json").read_text(encoding="utf-8")))
    return None


def train_frames_of(run: Path) -> int | None:
    """The train_frames of the run in a directory; None: its config cannot be read."""
    return OmegaConf.select(_saved_config(run), "train_frames")


def changed_overrides(run: Path, overrides: Sequence[str]) -> list[str]:
    """The overrides that may change on resuming, and differ from the config in the directory."""
    config = _saved_config(run)
    last = {_key(override): override for override in overrides} if config else {}
    types = dict(key_types(as_dictconfig(RunConfig())))
    values = {
        key: parse_value(*split_overrides([override])[0], types[key])
        for key, override in last.items()
        if key in (*MAY_CHANGE, *FOLLOW)
    }
    return [
        last[key]
        for key, value in values.items()
        if value != OmegaConf.select(config, key)
        and (key != "snapshot" or Path(value).is_absolute())
    ]


def _saved_config(run: Path) -> Any:
    with contextlib.suppress(OSError, YAMLError, OmegaConfBaseException):
        return read_yaml(run / "config.yaml")
    return OmegaConf.create()


def with_snapshots(overrides: Sequence[str], file: Path) -> list[str]:
    """The overrides with this snapshot file instead of snapshot=TEACHER."""
    own = format_override("snapshot", file)
    return [own if override == "snapshot=TEACHER" else override for override in overrides]


def _key(override: str) -> str:
    return override.partition("=")[0]


def _composed(title: str, overrides: Sequence[str]) -> RunConfig:
    """The config of these overrides.

    Raises:
        ConfigError: they do not compose; the message starts with the title.
    """
    try:
        return _compose(*overrides)
    except ConfigError as error:
        raise ConfigError(f"{title}: {error}") from None


@functools.cache
def _compose(*overrides: str) -> RunConfig:
    """Compose overrides, with any existing file in place of a teacher's snapshots."""
    return compose(with_snapshots(overrides, Path(__file__)))


def _settings(overrides: Sequence[str]) -> dict[str, Any]:
    """The fixed settings that overrides compose to, and those of MAY_CHANGE, by dotted key."""
    config = _composed("this command or an earlier one", overrides)
    view = as_dictconfig(config)
    return fixed_settings(config) | {key: OmegaConf.select(view, key) for key in MAY_CHANGE}


def _continued(run: Run, earlier: Run, sweep: Path) -> Run:
    """The run with the overrides to use from now on.

    Raises:
        ConfigError: the earlier run cannot continue with these settings.
    """
    if run.overrides == earlier.overrides:
        return earlier
    then, now = _settings(earlier.arm_overrides), _settings(run.arm_overrides)
    changed = {key for key in then | now if then.get(key) != now.get(key)}
    if not changed:
        return earlier
    if not changed <= set(MAY_CHANGE) & set(map(_key, run.overrides)):
        raise _contradiction(sweep, run.title, then, now)
    end, frames = _end(sweep / run.name), now["train_frames"]
    kept = [
        int(path.name) for path in checkpoint.list_checkpoints(sweep / run.name / "checkpoints")
    ]
    done = (end or {}).get("frames", max(kept, default=0))
    if frames < done:
        raise ConfigError(
            f"train_frames: expected at least the {done} frames that {run.title} has done, "
            f"received {frames}; give a larger number, or another sweep_dir=."
        )
    if end and frames > done and not kept:
        raise ConfigError(
            f"train_frames: {run.title} is done with {done} frames and has no checkpoint left "
            "to go on from: give another sweep_dir=."
        )
    return run


def _contradiction(
    sweep: Path, what: str, then: dict[str, Any], now: dict[str, Any]
) -> ConfigError:
    keys = sorted(key for key in then | now if then.get(key) != now.get(key))
    before, after = (
        " ".join(f"{key}={one[key]}" for key in keys if key in one) for one in (then, now)
    )
    return ConfigError(
        f"{sweep / PLAN} has other settings for {what} ({before}) than this command ({after}): "
        "keep those, or give another sweep_dir=."
    )
