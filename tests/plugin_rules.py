"""Interventions and selection rules, as a user's own module may hold them; good and bad ones."""

from dataclasses import dataclass

import numpy as np
import torch

from rlearly.config.fields import setting
from rlearly.plasticity.interventions.base import Intervention, PeriodicIntervention


@dataclass(frozen=True)
class ClipConfig:
    bound: float = setting(1.0, "largest absolute value of a weight", above=0)
    networks: list[str] | None = setting(None, "networks to apply it to; null: all")


class Clip(Intervention):
    """Weight clipping (arXiv 2407.01704)."""

    config_class = ClipConfig

    @torch.no_grad()
    def before_update(self, step):
        for name in self.selected():
            for parameter in self.modules.networks[name].parameters():
                parameter.clamp_(-self.config.bound, self.config.bound)
        return {}


@dataclass(frozen=True)
class NoiseConfig:
    every_steps: int = setting(30, "agent steps between disturbances", at_least=1)
    size: float = setting(0.01, "standard deviation of the noise", at_least=0)


class Noise(PeriodicIntervention):
    """Adds noise to every weight now and then, and counts how often."""

    config_class = NoiseConfig

    def __init__(self, config, *, weights):
        super().__init__(config, weights=weights)
        self.count = 0

    @torch.no_grad()
    def before_update(self, step):
        if not self.is_due(step):
            return {}
        self.mark_done(step)
        self.count += 1
        for name in self.selected():
            for parameter in self.modules.networks[name].parameters():
                noise = torch.randn(parameter.shape, generator=self.weights)
                parameter.add_(noise, alpha=self.config.size / self.count)
        return {"event/noise": float(self.count)}

    def state_dict(self):
        return {**super().state_dict(), "count": self.count}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.count = state["count"]


class Draws(Intervention):
    """Draws at every update, and leaves its stream to be saved by others."""

    @torch.no_grad()
    def before_update(self, step):
        parameter = next(self.modules.networks["critic"].parameters())
        parameter.add_(torch.randn(parameter.shape, generator=self.weights), alpha=0.01)
        return {}


class RaisesLate(Intervention):
    def before_update(self, step):
        raise LookupError("no such layer")


class RaisesAtOnce(Intervention):
    def __init__(self, config, *, weights):
        raise LookupError("no such layer")


class OddSettings(Intervention):
    config_class = dict


class Last:
    """Starts at the last snapshots, the more of them the more episodes it has started."""

    def __init__(self, growth=1):
        self.growth = growth
        self.started = 0
        self.over = 0

    def prepare(self, snapshots):
        self.count = len(snapshots)

    def choose(self, random: np.random.Generator):
        self.started += self.growth
        first = max(self.count - self.started, 0)
        return random.integers(first, self.count)

    def report(self, index, score):
        pass

    def episode_over(self, start, *, succeeded, episode_return, steps):
        self.over += 1

    def state_dict(self):
        return {"started": self.started, "over": self.over}

    def load_state_dict(self, state):
        self.started, self.over = state["started"], state["over"]


class Scored(Last):
    """Is told how wrong the learner was."""

    uses_scores = True

    def __init__(self):
        super().__init__()
        self.scores = []

    def report(self, index, score):
        self.scores.append(score)

    def state_dict(self):
        return {**super().state_dict(), "scores": list(self.scores)}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.scores = list(state["scores"])


class Outside(Last):
    def choose(self, random):
        return self.count


class Raises(Last):
    def choose(self, random):
        raise LookupError("no snapshot")


class NoChoice:
    def prepare(self, snapshots):
        pass
