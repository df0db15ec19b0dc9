"""What a user's own module may hold, for tests of plug-ins: agents, good and bad ones."""

import copy
import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from rlearly.agents import AgentSpec
from rlearly.config.fields import setting
from rlearly.config.interventions import INTERVENTIONS
from rlearly.nn.optim import adam, optimize


@dataclass(frozen=True)
class Config:
    """A Q-learner's settings."""

    lr: float = setting(1e-2, "Adam's learning rate", above=0)
    batch_size: int = setting(16, "transitions per update", at_least=1)
    nstep: int = setting(1, "steps of reward before bootstrapping", at_least=1)
    discount: float = setting(0.9, "gamma, per agent step", at_least=0, at_most=1)
    explore: float = setting(0.2, "probability of a random action", at_least=0, at_most=1)
    target_every_updates: int = setting(3, "updates between copies to the target", at_least=1)

    def seed_frames(self, frames_per_step):
        return 20 * frames_per_step


class LinearQ:
    """Q-learning with a linear function and a target, which needs nothing of ours but Adam."""

    def __init__(
        self, config, spec, *, seeds, device, monitor=None, interventions=(), compute=None
    ):
        self.config = config
        self.actions = int(spec.action.n)
        weights = seeds.torch("weights")
        self.q = torch.nn.utils.skip_init(
            torch.nn.Linear, int(np.prod(spec.observation.shape)), self.actions
        )
        with torch.no_grad():
            self.q.weight.normal_(generator=weights)
            self.q.bias.zero_()
        self.target = copy.deepcopy(self.q)
        self.adam = adam(self.q, config.lr)
        self.noise = seeds.torch("exploration")
        self.updates = 0

    @torch.no_grad()
    def act(self, obs, *, step, explore):
        best = self.q(torch.from_numpy(obs).flatten(1)).argmax(1)
        if explore:
            other = torch.randint(self.actions, best.shape, generator=self.noise)
            random = torch.rand(best.shape, generator=self.noise) < self.config.explore
            best = torch.where(random, other, best)
        return best.numpy()

    @torch.no_grad()
    def value(self, obs):
        return self.q(torch.from_numpy(obs).flatten(1)).max(1).values.numpy()

    def update(self, batch, *, step):
        self.updates += 1
        with torch.no_grad():
            best = self.target(batch.next_obs.flatten(1)).max(1).values
            target_q = batch.reward[:, 0] + batch.discount[:, 0] * best
        q = self.q(batch.obs.flatten(1)).gather(1, batch.action[:, None])[:, 0]
        loss = (q - target_q).square().mean()
        optimize(loss, self.adam)
        if self.updates % self.config.target_every_updates == 0:
            self.target.load_state_dict(self.q.state_dict())
        return {"loss/critic": loss.detach(), "critic/q": q.detach().mean()}

    def state_dict(self):
        return {
            "q": self.q.state_dict(),
            "target": self.target.state_dict(),
            "adam": self.adam.state_dict(),
            "noise": self.noise.get_state(),
            "updates": self.updates,
        }

    def load_state_dict(self, state):
        self.q.load_state_dict(state["q"])
        self.target.load_state_dict(state["target"])
        self.adam.load_state_dict(state["adam"])
        self.noise.set_state(state["noise"])
        self.updates = state["updates"]


def no_agent(config, spec, **parts):
    return object()


def fails(config, spec, **parts):
    raise KeyError("width")


class FailsLate(LinearQ):
    def update(self, batch, *, step):
        if step > 40:
            raise IndexError("no such layer")
        return super().update(batch, step=step)


class ReturnsNothing(LinearQ):
    def update(self, batch, *, step):
        super().update(batch, step=step)


class OneAction(LinearQ):
    def act(self, obs, *, step, explore):
        return super().act(obs, step=step, explore=explore)[0]


@dataclass
class Thawed:
    """Not frozen."""

    batch_size: int = 16
    nstep: int = 1
    discount: float = 0.9
    seed_frames = Config.seed_frames


@dataclass(frozen=True)
class WithoutSeedFrames:
    batch_size: int = 16
    nstep: int = 1
    discount: float = 0.9


@dataclass(frozen=True)
class WithoutDefault(WithoutSeedFrames):
    seed_frames = Config.seed_frames
    width: int = dataclasses.field(kw_only=True)


@dataclass(frozen=True)
class WithoutBatch:
    lr: float = 0.1
    seed_frames = Config.seed_frames


@dataclass(frozen=True)
class OddType(Config):
    shape: set[int] = dataclasses.field(default_factory=set)


linear_q = AgentSpec(
    config_class=Config,
    make=LinearQ,
    networks=("critic",),
    actions=("discrete",),
    run_defaults=("replay_ratio=1", "video_size=0", "replay.capacity=1000"),
    refused_interventions=dict.fromkeys(INTERVENTIONS, "it hands its function to nobody"),
)
accepts_all = dataclasses.replace(linear_q, refused_interventions={})
makes_nothing = dataclasses.replace(linear_q, make=no_agent)
make_fails = dataclasses.replace(linear_q, make=fails)
fails_late = dataclasses.replace(linear_q, make=FailsLate)
returns_nothing = dataclasses.replace(linear_q, make=ReturnsNothing)
one_action = dataclasses.replace(linear_q, make=OneAction)
thawed = dataclasses.replace(linear_q, config_class=Thawed)
without_seed_frames = dataclasses.replace(linear_q, config_class=WithoutSeedFrames)
without_default = dataclasses.replace(linear_q, config_class=WithoutDefault)
without_batch = dataclasses.replace(linear_q, config_class=WithoutBatch)
odd_type = dataclasses.replace(linear_q, config_class=OddType)
no_class = dataclasses.replace(linear_q, config_class=dict)
not_called = dataclasses.replace(linear_q, make=3)
odd_actions = dataclasses.replace(linear_q, actions=("Box",))
one_text = dataclasses.replace(linear_q, networks="critic")
