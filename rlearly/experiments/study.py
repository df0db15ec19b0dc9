"""Study files and grids: what a sweep runs, turned into a plan.

`rlearly/experiments/studies` holds the shipped studies, `Study` describes the keys of such a file.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlearly.config.metric_names import check_metric
from rlearly.config.overrides import format_override, parse_text, sweep_values
from rlearly.config.structured import did_you_mean, read_yaml
from rlearly.core.errors import ConfigError
from rlearly.experiments.plan import TEACHERS, THREADS, Plan, Run, folder_name

STUDIES = Path(__file__).parent / "studies"
OF_RUNS = ("start_from", "start_from.run")
GRID_METRICS = ["fau_critic", "fau_actor", "dormant_ratio", "effective_rank_critic"]
"""Plasticity metrics of a grid; its report leaves out those that its runs do not write."""


def _key(help: str, default: Any = list) -> Any:
    return field(default_factory=default, metadata={"help": help})


@dataclass(frozen=True)
class Study:
    """The keys of a study file; title, envs, seeds and arms are required."""

    title: str = _key("title of the report", str)
    envs: list[str] = _key("names of envs, as env= takes them")
    seeds: int = _key(
        "number of seeds, 5 means 0 to 4; seeds= on the command line overrides it", int
    )
    arms: dict[str, list[str]] = _key("NAME: [overrides], as in RR 2: [replay_ratio=2]", dict)
    common: list[str] = _key("overrides for all runs")
    teacher: list[str] = _key(
        "overrides of a run that is trained first on each env; arms start from it with "
        "snapshot=TEACHER"
    )
    teacher_snapshots: list[str] = _key("overrides of rlearly.teacher, as in [episodes=10]")
    ablations: dict[str, Any] = _key("more runs, with envs, seeds and arms of their own", dict)
    metrics: list[str] = _key("shown in addition to returns, as in [plasticity/fau_critic]")
    published: dict[str, dict[str, float]] = _key("a paper's numbers, ENV: {ARM: number}", dict)

    @staticmethod
    def load(path: Path) -> Study:
        """The study in a file, or the shipped one with that name.

        Raises:
            ConfigError: there is none, or it is malformed.
        """
        named = path.suffix in (".yaml", ".yml") or len(path.parts) > 1
        file = path if named else STUDIES / f"{path}.yaml"
        if not file.is_file():
            what = f"There is no file {path}" if named else f"There is no study {path}"
            raise ConfigError(f"{what}; shipped studies: {', '.join(shipped())}.")
        try:
            tree: Any = OmegaConf.to_container(read_yaml(file), resolve=True)
        except (OSError, YAMLError, OmegaConfBaseException, ValueError) as error:
            raise ConfigError(f"{file} does not load as a study ({_reason(error)}).") from None
        keys = [key.name for key in dataclasses.fields(Study)]
        if not isinstance(tree, dict):
            raise ConfigError(
                f"{file} does not load as a study: expected the keys {', '.join(keys)}, received a "
                f"{type(tree).__name__}."
            )
        for key in tree:
            _check_known(key, keys, f"{file}: there is no key {key!r}")
        missing = [key for key in keys[:4] if key not in tree]
        if missing:
            raise ConfigError(f"{file} does not load as a study: it lacks {', '.join(missing)}.")
        return Study(**tree)

    def __post_init__(self) -> None:
        for name in ("ablations", "published"):
            if not isinstance(getattr(self, name), dict):
                raise ConfigError(f"{name}: expected keys, received {getattr(self, name)!r}.")
        names = ("common", "metrics", "teacher", "teacher_snapshots")
        lists = {name: getattr(self, name) for name in names}
        for envs, seeds, arms in self._parts():
            if not isinstance(arms, dict):
                raise ConfigError(f"arms: expected NAME: [overrides], received {arms!r}.")
            for arm in arms:
                if not isinstance(arm, str):
                    raise ConfigError(f"arms: expected names, received {arm!r}; quote it.")
                if folder_name(arm) != arm:
                    raise ConfigError(
                        f"arms: expected a name that a folder can have, received {arm!r}; use "
                        f"{folder_name(arm)!r}."
                    )
            for name, value in {**lists, "envs": envs, **arms}.items():
                if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
                    raise ConfigError(f"{name}: expected a list of strings, received {value!r}.")
            if not isinstance(seeds, int) or seeds < 1:
                raise ConfigError(f"seeds: expected a number of at least 1, received {seeds!r}.")
        self._check_published()
        for name in self.metrics:
            check_metric(name)

    def _check_published(self) -> None:
        """Every number must belong to an arm on an env that is run."""
        arms_on: dict[str, list[str]] = {}
        for envs, _, arms in self._parts():
            for env in envs:
                arms_on.setdefault(env, []).extend(arms)
        for env, numbers in self.published.items():
            _check_known(env, arms_on, f"published: there is no env {env!r} in this study")
            if not isinstance(numbers, dict) or not all(
                isinstance(value, int | float) for value in numbers.values()
            ):
                raise ConfigError(f"published: {env}: expected ARM: number, received {numbers!r}.")
            for arm in numbers:
                problem = f"published: {env}: there is no arm {arm!r} on it in this study"
                _check_known(arm, arms_on[env], problem)

    def _parts(self) -> Iterator[tuple[list[str], int, dict[str, list[str]]]]:
        """Envs, seeds and arms of the study, and then of its ablations."""
        yield self.envs, self.seeds, self.arms
        if self.ablations:
            try:
                yield self.ablations["envs"], self.ablations["seeds"], self.ablations["arms"]
            except KeyError as error:
                raise ConfigError(f"ablations: expected envs, seeds, arms; no {error}.") from None

    def plan(
        self,
        *,
        seeds: Sequence[int] | None = None,
        overrides: Sequence[str] = (),
        teachers: str | None = None,
    ) -> Plan:
        """Every run, seed by seed, so that a sweep in progress has all arms at some seeds.

        Args:
            seeds: instead of the study's own number of them.
            overrides: further ones for every run, not for teachers.
            teachers: a folder of ENV.h5 files; None: teachers are trained.
        """
        runs = []
        for envs, count, arms in self._parts():
            numbers = range(count) if seeds is None else seeds
            for seed, (arm, own), env in itertools.product(numbers, arms.items(), envs):
                complete = [*self.common, *own, *overrides, f"env={env}", f"seed={seed}"]
                runs.append(Run(arm, env, seed, pinned(complete)))
        teacher = self.teacher and pinned(self.teacher)
        tables = self.metrics, self.published
        return Plan(self.title, runs, *tables, teacher, self.teacher_snapshots, teachers)


def _check_known(name: Any, valid: Iterable[str], problem: str) -> None:
    if name not in valid:
        raise ConfigError(f"{problem}; {did_you_mean(str(name), valid)}")


def _reason(error: Exception) -> str:
    """The line and problem of a YAML error; the first line of any other."""
    mark, what = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is not None:
        return f"line {mark.line + 1}: {what or 'it is not YAML'}"
    return str(error).splitlines()[0]


def shipped() -> list[str]:
    """The names of the studies in this package."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def grid(overrides: Sequence[str], seeds: Iterable[int]) -> Plan:
    """The plan of every combination of the values that the overrides list, with every seed.

    An arm is named by the values that vary: `drm`, or `drm replay_ratio=2`.

    Raises:
        ConfigError: an override does not parse, sets the seed or the directory, or no env is given.
    """
    listed = dict(sweep_values(override) for override in overrides)
    for key, instead in (("seed", "seeds=10 or seeds=3,5"), ("run_dir", "sweep_dir=")):
        if key in listed:
            raise ConfigError(f"{key}: every run of a sweep has its own; write {instead}.")
    if "env" not in listed:
        raise ConfigError("env: expected one or several, as in env=dog_run,dog_walk.")
    if "resume" in listed:
        raise ConfigError("resume: repeat the command of the sweep to resume its runs.")
    agents = [parse_text(agent) for agent in listed.pop("agent", ["drm"])]
    envs = [parse_text(env) for env in listed.pop("env")]
    vary = [key for key, values in listed.items() if len(values) > 1]
    runs = []
    for seed in seeds:
        for agent, env, *values in itertools.product(agents, envs, *listed.values()):
            chosen = dict(zip(listed, values, strict=True))
            arm = " ".join([agent, *(f"{key}={chosen[key]}" for key in vary)])
            own = [f"{key}={value}" for key, value in chosen.items()]
            complete = [f"agent={agent}", f"env={env}", *own, f"seed={seed}"]
            runs.append(Run(arm, env, seed, pinned(complete)))
    title = f"{', '.join(agents)} on {', '.join(envs)}"
    metrics = [*(f"plasticity/{name}" for name in GRID_METRICS), "train/replay_ratio"]
    return Plan(title, runs, metrics)


def seeds_of(text: str, key: str = "seeds") -> list[int]:
    """`10` as 0 to 9, `3,5,8` and `[3,5]` as these numbers. `key`: for the error message.

    Raises:
        ConfigError: it is none of these, or empty, or names a seed twice.
    """
    listed = text.startswith("[") or "," in text
    parts = [part.strip() for part in text.strip("[]").split(",") if part.strip() or not listed]
    if not parts or not all(part.isdecimal() for part in parts):
        raise ConfigError(f"{key}: expected a number or a list like 3,5,8, received {text!r}.")
    seeds = [int(part) for part in parts] if listed else list(range(int(text)))
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"{key}: expected at least one, each once, received {text!r}.")
    return seeds


def pinned(overrides: Sequence[str]) -> list[str]:
    """Add a thread count and make the paths of snapshots and of other runs and models absolute.

    A run may start on another machine, or in another folder, than the sweep.
    """
    pinned = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key in ("snapshot", *OF_RUNS, *TEACHERS) and value not in (
            "TEACHER",
            "null",
        ):
            override = format_override(key, Path(parse_text(value)).absolute())
        pinned.append(override)
    named = any(override.startswith("threads=") for override in overrides)
    return pinned if named else [*pinned, THREADS]
