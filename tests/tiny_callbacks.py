"""Callbacks for tests."""

import numpy as np

from rlearly.training.callbacks import Callback


class Idle(Callback):
    """Overrides every method, and does nothing."""

    def on_start(self, run):
        pass

    def on_step(self, run):
        pass

    def on_episode(self, run, episode):
        pass

    def on_update(self, run, metrics):
        pass

    def on_evaluation(self, run, metrics):
        pass


class Widen(Callback):
    """Starts with near goals, and moves them away by a random step after every third episode."""

    def __init__(self, first=0.1, evaluation=False):
        self.width = first
        self.evaluation = evaluation
        self.episodes = 0
        self.random = np.random.default_rng(0)

    def on_start(self, run):
        run.envs.set_attr("width", self.width, evaluation=self.evaluation)

    def on_episode(self, run, episode):
        self.episodes += 1
        if self.episodes % 3 == 0:
            self.width += float(self.random.uniform(0, 0.05))
            run.envs.set_attr("width", self.width, evaluation=self.evaluation)
            run.log({"curriculum/width": self.width})

    def state_dict(self):
        return {
            "width": np.float64(self.width),
            "episodes": self.episodes,
            "random": self.random.bit_generator.state,
        }

    def load_state_dict(self, state):
        self.width, self.episodes = state["width"], state["episodes"]
        self.random.bit_generator.state = state["random"]


class Stopper(Callback):
    def __init__(self, at_steps):
        self.at_steps = at_steps

    def on_step(self, run):
        if run.steps >= self.at_steps:
            run.stop("enough")


class Failing(Callback):
    """Raises in one method, once the run has as many steps."""

    def __init__(self, method, at_steps=0):
        self.at_steps = at_steps
        setattr(self, method, self.fail)

    def on_step(self, run):
        pass

    def fail(self, run, *_):
        if run.steps >= self.at_steps:
            raise KeyError("no such level")


class Misspelt(Callback):
    def on_epsiode(self, run, episode):
        pass


class Opaque(Callback):
    def state_dict(self):
        return {"seen": [1, {2}]}


def make_widen(**kwargs):
    return Widen(**kwargs)


def not_one():
    return "a text"


LEVEL = 3
