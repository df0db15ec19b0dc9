"""`python -m rlearly.experiments.study FILE out=DIR`: run a study's runs, and read them together.

A study file is YAML: envs, a number of seeds, words that all runs share, and arms, each a name and
further words of `rlearly.train`; `TEACHER` in them is the env's file of snapshots, made by a
teacher that is trained first. `metrics` names what is read beside the returns. Running the command again goes on where it stopped.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlearly.compose import compose
from rlearly.config import ConfigError, describe, from_words, frozen, setting
from rlearly.experiments import aggregate

STUDIES = Path(__file__).parent / "studies"


@dataclass(frozen=True)
class StudyConfig:
    """How a study is run; what is run stands in its file."""

    out: str = setting("", "folder for runs, teachers and results; empty: studies/<name>")
    workers: int = setting(1, "runs at once; each takes the threads its words say", at_least=1)
    results: str | None = setting(
        None, "CSV of runs that are done already, which are then not run again"
    )
    teachers: str | None = setting(
        None, "folder of ENV.h5 files of teachers; null: they are trained first, in out"
    )
    dry_run: bool = setting(False, "print the commands that are still to be run, and exit")
    only_read: bool = setting(False, "run nothing; read what is there")


@dataclass(frozen=True)
class Run:
    """One run: which arm on which env with which seed, and its words."""

    arm: str
    env: str
    seed: int
    words: list[str]

    @property
    def needs_teacher(self) -> bool:
        return any(word.startswith("snapshot=") for word in self.words)

    def folder(self, out: Path) -> Path:
        return out / "runs" / self.arm / self.env / str(self.seed)


@dataclass(frozen=True)
class Study:
    """A plan of runs."""

    title: str
    envs: list[str]
    seeds: int
    arms: dict[str, list[str]]
    common: list[str] = field(default_factory=list)
    teacher: list[str] = field(default_factory=list)
    teacher_snapshots: list[str] = field(default_factory=list)
    ablations: dict[str, Any] = field(default_factory=dict)
    metrics: list[str] = field(default_factory=list)

    @staticmethod
    def load(path: Path) -> Study:
        """The study in a file, or the shipped one of that name.

        Raises:
            ConfigError: there is none, or it is malformed.
        """
        file = path if path.suffix == ".yaml" else STUDIES / f"{path}.yaml"
        if not file.is_file():
            shipped = ", ".join(sorted(p.stem for p in STUDIES.glob("*.yaml")))
            raise ConfigError(f"There is no study {path}; shipped ones: {shipped}.")
        try:
            tree: Any = OmegaConf.to_container(OmegaConf.load(file))
            return Study(**tree)
        except (YAMLError, OmegaConfBaseException, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"{file} does not load as a study ({reason}).") from None

    def __post_init__(self) -> None:
        parts = [(self.envs, self.seeds, self.arms)]
        if self.ablations:
            try:
                parts.append(tuple(self.ablations[key] for key in ("envs", "seeds", "arms")))
            except KeyError as error:
                raise ConfigError(f"ablations: expected envs, seeds and arms, lacks {error}.") from None
        for envs, seeds, arms in parts:
            for name, words in {
                "envs": envs,
                "common": self.common,
                "metrics": self.metrics,
                **arms,
            }.items():
                if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
                    raise ConfigError(f"{name}: expected a list of words, received {words!r}.")
            if not isinstance(seeds, int) or seeds < 1:
                raise ConfigError(f"seeds: expected a number of at least 1, received {seeds!r}.")

    def check(self) -> None:
        """Compose every run and teacher, so that a typo is found before anything is trained.

        Raises:
            ConfigError: one of them does not compose, or there is no teacher and one is wanted.
        """
        with tempfile.TemporaryDirectory() as folder:
            runs = self.runs(Path(folder))
            taught = dict.fromkeys(run.env for run in runs if run.needs_teacher)
            if taught and not self.teacher:
                raise ConfigError("teacher: expected its words, since arms start from TEACHER.")
            for env in taught:
                (Path(folder) / f"{env}.h5").touch()
                _compose(f"teacher on {env}", [*self.teacher, f"env={env}"])
            for run in {(run.arm, run.env): run for run in runs}.values():
                _compose(f"{run.arm} on {run.env}", run.words)

    def runs(self, teachers: Path) -> list[Run]:
        """Every run, seed by seed, so that a stopped study has all arms at some seeds."""
        parts = [(self.envs, self.seeds, self.arms)]
        if self.ablations:
            parts.append((self.ablations["envs"], self.ablations["seeds"], self.ablations["arms"]))
        planned = []
        for names, seeds, arms in parts:
            for seed in range(seeds):
                for arm, words in arms.items():
                    for env in names:
                        teacher = f"snapshot={teachers / env}.h5"
                        own = [w.replace("snapshot=TEACHER", teacher) for w in words]
                        words_of = [*self.common, *own, f"env={env}", f"seed={seed}"]
                        planned.append(Run(arm, env, seed, words_of))
        return planned


def _compose(what: str, words: list[str]) -> None:
    try:
        compose(words)
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from None


def training(words: list[str], folder: Path) -> list[str]:
    """The command that trains in `folder`, or goes on there."""
    resume = (folder / "checkpoints").is_dir() and any((folder / "checkpoints").iterdir())
    where = [f"resume={folder}"] if resume else [*words, f"run_dir={folder}"]
    return ["rlearly.train", *where]


def recording(study: Study, teachers: Path, env: str) -> list[str]:
    """The command that records an env's teacher."""
    words = [f"run={teachers / env}", f"out={teachers / env}.h5", *study.teacher_snapshots]
    return ["rlearly.teacher", *words]


def commands(
    study: Study, runs: Sequence[Run], out: Path, teachers: Path
) -> Iterator[list[str]]:
    """Every command that is still to be run, teachers first."""
    for env in dict.fromkeys(run.env for run in runs if run.needs_teacher):
        if not (teachers / f"{env}.h5").exists():
            if not (teachers / env / "done.json").exists():
                yield training([*study.teacher, f"env={env}"], teachers / env)
            yield recording(study, teachers, env)
    for run in runs:
        if not (run.folder(out) / "done.json").exists():
            yield training(run.words, run.folder(out))


class Runner:
    """Runs commands in processes of their own, a line a start and an end."""

    def __init__(self, out: Path, teachers: Path, workers: int):
        self.out = out
        self.teachers = teachers
        self.workers = workers
        self.stopping = False
        self._running: set[subprocess.Popen[bytes]] = set()

    def stop(self, number: int, frame: Any) -> None:
        """A signal: the running processes save and stop, the others do not start."""
        self.stopping = True
        for process in list(self._running):
            process.send_signal(signal.SIGTERM)

    def claim(self, words: list[str], folder: Path) -> None:
        """Note by which words a folder is filled.

        Raises:
            ConfigError: it was filled by others.
        """
        note = folder.with_name(f"{folder.name}.words.json")
        if note.is_file():
            earlier = json.loads(note.read_text())
            if earlier != words:
                changed = sorted(set(earlier) ^ set(words))
                raise ConfigError(
                    f"{folder} was made by other words ({' '.join(changed)}): name another out=, "
                    "or delete it."
                )
            return
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(words))

    def train(self, words: list[str], folder: Path, what: str) -> bool:
        """Train in `folder`, or go on there; True if it is done."""
        if (folder / "done.json").exists():
            return True
        return self.command(training(words, folder), folder.with_suffix(".log"), what)

    def command(self, words: list[str], log: Path, what: str) -> bool:
        if self.stopping:
            return False
        print(f"start {what}\n", end="", flush=True)  # one write: workers share the screen
        with log.open("a") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", *words], stdout=stream, stderr=stream
            )
            self._running.add(process)
            status = process.wait()
            self._running.discard(process)
        last = (log.read_text().strip().splitlines() or [""])[-1]
        ends = {0: "done", 75: "stopped"}
        print(f"{ends.get(status, 'FAILED')} {what}: {last}\n", end="", flush=True)
        return status == 0

    def teach(self, study: Study, env: str) -> bool:
        """Train and record the teacher of an env."""
        folder = self.teachers
        snapshots = folder / f"{env}.h5"
        if snapshots.exists():
            return True
        if not self.train([*study.teacher, f"env={env}"], folder / env, f"teacher on {env}"):
            return False
        log = folder / f"{env}.teacher.log"
        return self.command(recording(study, folder, env), log, f"recording on {env}")

    def all(self, study: Study, runs: Sequence[Run]) -> bool:
        """Everything; one that fails does not stop the others.

        Raises:
            ConfigError: a folder holds another run than its place says; nothing was started.
        """
        envs = list(dict.fromkeys(run.env for run in runs if run.needs_teacher))
        for env in envs:
            ready = (self.teachers / f"{env}.h5").exists()
            trained = (self.teachers / env).exists()
            if trained or not ready:
                self.claim([*study.teacher, f"env={env}"], self.teachers / env)
        for run in runs:
            self.claim(run.words, run.folder(self.out))
        with ThreadPoolExecutor(self.workers) as pool:
            taught = dict(zip(envs, pool.map(lambda e: self.teach(study, e), envs), strict=True))
            ready = [r for r in runs if not r.needs_teacher or taught[r.env]]
            results = pool.map(
                lambda r: self.train(
                    r.words, r.folder(self.out), f"{r.arm} on {r.env}, seed {r.seed}"
                ),
                ready,
            )
            return all(list(results)) and len(ready) == len(runs)


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    names = [w for w in words if "=" not in w and not w.startswith("-")]
    if len(names) != 1 or "--help" in words:
        print("Usage: python -m rlearly.experiments.study FILE [key=value ...]\n\nKeys")
        for name, type_name, text, default, _ in describe(StudyConfig):
            print(f"  {name:10} {type_name.replace(' | None', '?')}, {default}: {text}")
        shipped = ", ".join(sorted(p.stem for p in STUDIES.glob("*.yaml")))
        print(f"\nShipped studies, by name: {shipped}")
        return 0 if "--help" in words else 2
    try:
        config = from_words(StudyConfig(), [w for w in words if "=" in w])
        return run(Path(names[0]), config)
    except ConfigError as error:
        print(f"rlearly: {error}", file=sys.stderr)
        return 2


def run(path: Path, config: StudyConfig) -> int:
    """Run what is missing, then read everything; 0 if all runs are done."""
    study = Study.load(path)
    out = Path(config.out or Path("studies") / path.stem).absolute()
    teachers = Path(config.teachers).absolute() if config.teachers else out / "teachers"
    earlier = aggregate.read_csv(Path(config.results)) if config.results else []
    have = {(c.arm, c.env, c.seed) for c in earlier}
    runs = [r for r in study.runs(teachers) if (r.arm, r.env, r.seed) not in have]
    study.check()
    if config.dry_run:
        for command in commands(study, runs, out, teachers):
            print(shlex.join(["python", "-m", *command]))
        return 0
    complete = True
    if not config.only_read:
        runner = Runner(out, teachers, config.workers)
        for name in ("SIGINT", "SIGTERM"):
            signal.signal(getattr(signal, name), runner.stop)
        complete = runner.all(study, runs)
        if runner.stopping:
            print("stopped; the same command goes on.")
            return 75
    curves = [*earlier, *(c for r in runs if (c := aggregate.read_run(r.folder(out), r, study.metrics)))]
    if not curves:
        raise ConfigError(f"{out}: there is no finished run to read.")
    missing = len(earlier) + len(runs) - len(curves)
    aggregate.write(curves, out, study.title)
    print(aggregate.table(curves))
    if missing:
        print(f"{missing} of {missing + len(curves)} runs are not done and not in here.")
    print(f"{out / 'curves.csv'}, {out / 'table.csv'} and {out / 'curves.png'}")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
