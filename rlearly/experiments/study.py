"""What a sweep runs: a study file or a grid of words, as a plan of runs that have names.

A study file is YAML: envs, a number of seeds, words that all runs share, and arms, each a name and
further words of `rlearly.train`; `TEACHER` in them is the env's file of snapshots, made by a
teacher that is trained first. `metrics` names what is read beside the returns, `published` holds a
paper's numbers, env by env and arm by arm.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlearly import checkpoint
from rlearly.compose import RESUMABLE, compose
from rlearly.config import ConfigError, RunConfig, as_word, choices, did_you_mean, parse_overrides
from rlearly.experiments.metric_names import check_metric
from rlearly.run_dir import write

STUDIES = Path(__file__).parent / "studies"
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
        start = as_word("snapshot", snapshot)
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


HELP = (
    """A study file is YAML with the keys
  title              of its report
  envs               a list, as env= takes them
  seeds              how many: 5 is 0 to 4; seeds= of the command goes before it
  arms               NAME: [words of rlearly.train], as in RR 2: [agent=td3, replay_ratio=2]
  common             words that all runs share
  teacher            words of the run that is trained first on each env, for arms that start from it
                     by snapshot=TEACHER
  teacher_snapshots  words of rlearly.teacher, as in [episodes=10, every_steps=10]
  ablations          envs, seeds and arms of their own, in addition
  metrics            what is read beside the returns, as in [plasticity/fau_critic]
  published          a paper's numbers: ENV: {ARM: number}
Copy a shipped one to begin with: """
    + f"{STUDIES}\n"
)


@dataclass(frozen=True)
class Study:
    """A study file."""

    title: str
    envs: list[str]
    seeds: int
    arms: dict[str, list[str]]
    common: list[str] = field(default_factory=list)
    teacher: list[str] = field(default_factory=list)
    teacher_snapshots: list[str] = field(default_factory=list)
    ablations: dict[str, Any] = field(default_factory=dict)
    metrics: list[str] = field(default_factory=list)
    published: dict[str, dict[str, float]] = field(default_factory=dict)

    @staticmethod
    def load(path: Path) -> Study:
        """The study in a file, or the shipped one of that name.

        Raises:
            ConfigError: there is none, or it is malformed.
        """
        named = path.suffix in (".yaml", ".yml") or len(path.parts) > 1
        file = path if named else STUDIES / f"{path}.yaml"
        if not file.is_file():
            what = f"There is no file {path}" if named else f"There is no study {path}"
            raise ConfigError(f"{what}; shipped ones: {', '.join(shipped())}.")
        try:
            tree: Any = OmegaConf.to_container(OmegaConf.load(file))
        except (
            OSError,
            UnicodeDecodeError,
            YAMLError,
            OmegaConfBaseException,
            ValueError,
        ) as error:
            raise ConfigError(f"{file} does not load as a study ({_reason(error)}).") from None
        keys = {name.name: name for name in dataclasses.fields(Study)}
        if not isinstance(tree, dict):
            raise ConfigError(
                f"{file} does not load as a study: expected the keys {', '.join(keys)}, received a "
                f"{type(tree).__name__}."
            )
        for key in tree:
            if key not in keys:
                raise ConfigError(
                    f"{file}: there is no key {key!r}; {did_you_mean(str(key), keys)}"
                )
        lacks = [key for key in ("title", "envs", "seeds", "arms") if key not in tree]
        if lacks:
            raise ConfigError(f"{file} does not load as a study: it lacks {', '.join(lacks)}.")
        return Study(**tree)

    def __post_init__(self) -> None:
        for name in ("ablations", "published"):
            if not isinstance(getattr(self, name), dict):
                raise ConfigError(f"{name}: expected keys, received {getattr(self, name)!r}.")
        for envs, seeds, arms in self._parts():
            if not isinstance(arms, dict):
                raise ConfigError(f"arms: expected NAME: [words], received {arms!r}.")
            for name, words in {
                "envs": envs,
                "common": self.common,
                "metrics": self.metrics,
                "teacher": self.teacher,
                "teacher_snapshots": self.teacher_snapshots,
                **arms,
            }.items():
                if not isinstance(name, str):
                    raise ConfigError(f"arms: expected names, received {name!r}; quote it.")
                if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
                    raise ConfigError(f"{name}: expected a list of words, received {words!r}.")
            for arm in arms:
                if plain(arm) != arm:
                    raise ConfigError(
                        f"arms: expected a name that a folder can have, received {arm!r}; take "
                        f"{plain(arm)!r}."
                    )
            if not isinstance(seeds, int) or seeds < 1:
                raise ConfigError(f"seeds: expected a number of at least 1, received {seeds!r}.")
        self._check_published()
        for name in self.metrics:
            check_metric(name)

    def _check_published(self) -> None:
        """Whether every number is of an arm on an env that is run."""
        arms_on: dict[str, dict[str, None]] = {}
        for envs, _, arms in self._parts():
            for env in envs:
                arms_on.setdefault(env, {}).update(dict.fromkeys(arms))
        for env, numbers in self.published.items():
            if env not in arms_on:
                raise ConfigError(
                    f"published: there is no env {env!r} in this study; "
                    f"{did_you_mean(str(env), arms_on)}"
                )
            if not isinstance(numbers, dict) or not all(
                isinstance(value, int | float) for value in numbers.values()
            ):
                raise ConfigError(f"published: {env}: expected ARM: number, received {numbers!r}.")
            for arm in numbers:
                if arm not in arms_on[env]:
                    raise ConfigError(
                        f"published: {env}: there is no arm {arm!r} on it in this study; "
                        f"{did_you_mean(str(arm), arms_on[env])}"
                    )

    def _parts(self) -> Iterator[tuple[list[str], int, dict[str, list[str]]]]:
        """Envs, seeds and arms: of the study, and of its ablations."""
        yield self.envs, self.seeds, self.arms
        if self.ablations:
            try:
                envs, seeds, arms = (self.ablations[key] for key in ("envs", "seeds", "arms"))
            except KeyError as error:
                raise ConfigError(
                    f"ablations: expected envs, seeds and arms, lacks {error}."
                ) from None
            yield envs, seeds, arms

    def plan(
        self,
        *,
        seeds: Sequence[int] | None = None,
        words: Sequence[str] = (),
        teachers: str | None = None,
    ) -> Plan:
        """Every run, seed by seed, so that a sweep in progress has all arms at some seeds.

        Args:
            seeds: in the place of the study's own numbers of them.
            words: further ones for every run, not for teachers.
        """
        planned = []
        for envs, count, arms in self._parts():
            for seed in range(count) if seeds is None else seeds:
                for arm, own in arms.items():
                    for env in envs:
                        of_run = [*self.common, *own, *words, f"env={env}", f"seed={seed}"]
                        planned.append(Run(arm, env, seed, _settled(of_run)))
        return Plan(
            self.title,
            planned,
            self.metrics,
            self.published,
            self.teacher and _settled(self.teacher),
            self.teacher_snapshots,
            teachers,
        )


def _reason(error: Exception) -> str:
    """A YAML error with the line where it is; of any other its first line."""
    mark, what = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is not None:
        return f"line {mark.line + 1}: {what or 'it is no YAML'}"
    return str(error).splitlines()[0]


def shipped() -> list[str]:
    """The names of the studies in this package."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


PLASTICITY = [
    "plasticity/fau_critic",
    "plasticity/fau_actor",
    "plasticity/dormant_ratio",
    "plasticity/effective_rank_critic",
    "train/replay_ratio",
]
"""What is read of a grid's runs beside their returns, as far as they have written it."""


def grid(words: Sequence[str], seeds: Iterable[int]) -> Plan:
    """Every combination of the words that list several values, on every seed.

    An arm is named by the values that vary: `drm`, or `drm replay_ratio=2`.

    Raises:
        ConfigError: a word does not parse, an env is missing, or a word says the seed.
    """
    listed = dict(choices(word) for word in words)
    for key, instead in (("seed", "seeds=10 or seeds=3,5"), ("run_dir", "sweep_dir=")):
        if key in listed:
            raise ConfigError(f"{key}: every run of a sweep has its own; write {instead}.")
    if "env" not in listed:
        raise ConfigError("env: expected one or several, as in env=dog_run,dog_walk.")
    if "resume" in listed:
        raise ConfigError("resume: the same sweep command again resumes its runs.")
    agents = listed.pop("agent", ["drm"])
    envs = listed.pop("env")
    vary = [key for key, values in listed.items() if len(values) > 1]
    planned = []
    for seed in seeds:
        for agent, env, *values in itertools.product(agents, envs, *listed.values()):
            chosen = dict(zip(listed, values, strict=True))
            arm = " ".join([agent, *(f"{key}={_unescaped(chosen[key])}" for key in vary)])
            own = [f"{key}={value}" for key, value in chosen.items()]
            of_run = [f"agent={agent}", f"env={env}", *own, f"seed={seed}"]
            planned.append(Run(arm, _unescaped(env), seed, _settled(of_run)))
    title = f"{', '.join(agents)} on {', '.join(map(_unescaped, envs))}"
    return Plan(title, planned, PLASTICITY)


def _unescaped(value: str) -> str:
    """Without the grammar's backslashes."""
    return re.sub(r"\\(.)", r"\1", value)


def _settled(words: Sequence[str]) -> list[str]:
    """With a number of threads, which is the machine's otherwise, and the snapshot file's whole
    path: a run need not start where the sweep did."""
    words = [
        as_word("snapshot", Path(word.partition("=")[2].strip("'\"")).absolute())
        if word.startswith("snapshot=") and word not in ("snapshot=TEACHER", "snapshot=null")
        else word
        for word in words
    ]
    named = any(word.startswith("threads=") for word in words)
    return [*words] if named else [*words, THREADS]
