"""What a sweep runs: a study file or a grid of words, as a plan of runs that have names.

A study file is YAML: envs, a number of seeds, words that all runs share, and arms, each a name and
further words of `rlearly.train`; `TEACHER` in them is the env's file of snapshots, made by a
teacher that is trained first. `metrics` names what is read beside the returns, `published` holds a
paper's numbers, env by env and arm by arm.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlearly.config.overrides import format_override, sweep_values
from rlearly.config.structured import did_you_mean
from rlearly.core.errors import ConfigError
from rlearly.experiments.metric_names import check_metric
from rlearly.experiments.plan import THREADS, Plan, Run, plain

STUDIES = Path(__file__).parent / "studies"


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
    listed = dict(sweep_values(word) for word in words)
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
        format_override("snapshot", Path(word.partition("=")[2].strip("'\"")).absolute())
        if word.startswith("snapshot=") and word not in ("snapshot=TEACHER", "snapshot=null")
        else word
        for word in words
    ]
    named = any(word.startswith("threads=") for word in words)
    return [*words] if named else [*words, THREADS]
