"""Searches whose runs are made up: curves that follow from the settings, without training."""

import functools
import json
import math

import numpy as np

from rlearly.core.exit_status import DONE, FAILED, SAVED
from rlearly.experiments.plan import Plan
from rlearly.experiments.tuning.request import request_of, split
from rlearly.experiments.tuning.tuner import Tuner, continued_trials

EVERY_FRAMES = 100
WORDS = [
    "agent=td3",
    "env=tiny_envs:StateReach-v0",
    "train_frames=900",
    f"eval_every_frames={EVERY_FRAMES}",
    "agent.learning_starts_steps=0",
    "env.action_repeat=1",
    "last_evaluations=1",
]


class Killed(Exception):
    """Stands for the death of the process that leads a search."""


def settings_of(run):
    return dict(word.split("=", 1) for word in run.overrides)


def reached(run, frames):
    """A return that is the higher the nearer lr is to 1e-3, grows with frames, and has luck."""
    off = abs(math.log10(float(settings_of(run).get("agent.lr", 3e-4))) + 3)
    luck = np.random.default_rng([run.seed, int(1e9 * off) % 2**31]).normal()
    return 100 * (1 - math.exp(-frames / 300)) * (1 - 0.4 * off) + luck


class SimulatedPool:
    """Runs whose every wait is one evaluation of each.

    fails: `fails(run, frames)`, whether a run ends with an error instead of that evaluation.
    dies_after: the number of waits after which the search is killed.
    """

    def __init__(self, folder, workers=1, curve=reached, fails=None, dies_after=None):
        self.folder, self.workers, self.curve = folder, workers, curve
        self.fails = fails or (lambda run, frames: False)
        self.waits, self.dies_after = 0, dies_after
        self.stopping = False
        self.running, self.saving = set(), set()
        self.started = []

    @property
    def free(self):
        return self.workers - len(self.running)

    def start(self, name):
        self.started.append(name)
        self.running.add(name)

    def save(self, name):
        self.saving.add(name)

    def stop(self):
        self.stopping = True
        self.saving |= self.running

    def close(self):
        pass

    def ended(self, wait_seconds):
        self.waits += 1
        if self.waits == self.dies_after:
            self.running = set()
            raise Killed
        runs = {run.name: run for run in Plan.load(self.folder).runs}
        found = {name: self._advance(runs[name]) for name in sorted(self.running)}
        found = {name: status for name, status in found.items() if status is not None}
        self.running -= found.keys()
        self.saving -= found.keys()
        return found

    def _advance(self, run):
        if run.name in self.saving:
            return SAVED
        file = self.folder / run.name / "metrics.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        frames = EVERY_FRAMES * (len(rows) + 1)
        failed = self.fails(run, frames)
        if failed:
            return FAILED if failed is True else failed
        value = self.curve(run, frames)
        rows.append(json.dumps({"frames": frames, "eval/episode_return": value}))
        file.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        if frames < run.train_frames:
            return None
        (file.parent / "done.json").write_text(json.dumps({"frames": frames}), encoding="utf-8")
        return DONE


@functools.cache
def request(*words):
    return request_of(*split([*WORDS, *words]))


def search(folder, *words, **pool):
    """Lead a simulated search; returns its trials, and the pool."""
    asked = request(*words)
    folder.mkdir(parents=True, exist_ok=True)
    trials = continued_trials(asked, folder)
    simulated = SimulatedPool(folder, **pool)
    tuner = Tuner(asked, folder, trials, simulated, lambda line: None)
    tuner.run()
    return trials, simulated
