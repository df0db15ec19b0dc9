"""The contracts find what is broken: an agent, env, rule or intervention for each law."""

import dataclasses
import random

import numpy as np
import plugin_parts
import plugin_rules
import pytest
import tiny_envs
import torch
from gymnasium.spaces import Box
from gymnasium.wrappers import TimeLimit
from plugin_parts import LinearQ, linear_q

import rlearly
from rlearly.plasticity.interventions.base import Intervention
from rlearly.testing import (
    AGENT_LAWS,
    ENV_LAWS,
    INTERVENTION_LAWS,
    SELECTION_LAWS,
    AgentContract,
    EnvContract,
    InterventionContract,
    LawBroken,
    SelectionContract,
    check_agent,
    check_env,
    check_intervention,
    check_selection,
)


class TestLinearQ(AgentContract):
    agent = linear_q


class TestOwnNetwork(AgentContract):
    agent = "sac"
    settings = {  # noqa: RUF012
        "batch_size": 16,
        "learning_starts_steps": 10,
        "network": "plugin_networks:batch_norm",
    }


class TestStepReach(EnvContract):
    env = "tiny_envs:StepReach-v0"
    most_steps = tiny_envs.STEPS


class TestLast(SelectionContract):
    rule = plugin_rules.Last


class TestNoise(InterventionContract):
    intervention = plugin_rules.Noise
    settings = {"every_steps": 1}  # noqa: RUF012


# --- agents ---


class Shape(LinearQ):
    def act(self, obs, **kwargs):
        return super().act(obs, **kwargs)[:, None]


class Dtype(LinearQ):
    def act(self, obs, **kwargs):
        return super().act(obs, **kwargs).astype(np.int32)


class Range(LinearQ):
    def act(self, obs, **kwargs):
        return super().act(obs, **kwargs) + 1


class MixesRows(LinearQ):
    def value(self, obs):
        value = super().value(obs)
        return value - value.mean()


class ForgetsCounter(LinearQ):
    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.updates = 0


class ForgetsTarget(LinearQ):
    def state_dict(self):
        return {k: v for k, v in super().state_dict().items() if k != "target"}

    def load_state_dict(self, state):
        super().load_state_dict({**state, "target": self.target.state_dict()})


class SavesObjects(LinearQ):
    def state_dict(self):
        return {**super().state_dict(), "config": self.config}


class GlobalTorch(LinearQ):
    def act(self, obs, *, step, explore):
        return torch.randint(self.actions, (len(obs),)).numpy()


class GlobalNumpy(LinearQ):
    def update(self, batch, *, step):
        np.random.random()  # noqa: NPY002
        return super().update(batch, step=step)


class GlobalPython(LinearQ):
    def __init__(self, *args, **kwargs):
        random.random()
        super().__init__(*args, **kwargs)


class Unseeded(LinearQ):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.noise = torch.Generator()
        self.noise.seed()

    def update(self, batch, *, step):
        with torch.no_grad():
            self.q.bias.add_(torch.randn(3, generator=self.noise))
        return super().update(batch, step=step)


class OneSeed(LinearQ):
    def __init__(self, config, spec, *, seeds, **kwargs):
        super().__init__(config, spec, seeds=type(seeds)(0), **kwargs)


class NotDetached(LinearQ):
    def update(self, batch, *, step):
        loss = self.q(batch.obs.flatten(1)).mean()
        return {**super().update(batch, step=step), "loss/critic": loss}


class NotScalar(LinearQ):
    def update(self, batch, *, step):
        return {**super().update(batch, step=step), "critic/q": batch.reward}


class BadName(LinearQ):
    def update(self, batch, *, step):
        return {**super().update(batch, step=step), "loss": 1.0}


class NotFinite(LinearQ):
    def update(self, batch, *, step):
        return {**super().update(batch, step=step), "loss/critic": float("nan")}


class StopsLearning(LinearQ):
    """Its evaluation switches something that is not in its state, as an eval() does."""

    frozen = False

    def act(self, obs, *, step, explore):
        self.frozen |= not explore
        return super().act(obs, step=step, explore=explore)

    def update(self, batch, *, step):
        if self.frozen:
            return {"loss/critic": 0.0}
        return super().update(batch, step=step)


class DrawsInEvaluation(LinearQ):
    def act(self, obs, *, step, explore):
        return super().act(obs, step=step, explore=True)


class ValueShape(LinearQ):
    def value(self, obs):
        return super().value(obs)[:, None]


class LearnsNothing(LinearQ):
    def update(self, batch, *, step):
        return {"loss/critic": 0.0}


class ChangesBatch(LinearQ):
    def update(self, batch, *, step):
        batch.reward.clamp_(-0.1, 0.1)
        return super().update(batch, step=step)


class ChangesObservations(LinearQ):
    def act(self, obs, *, step, explore):
        obs /= 10
        return super().act(obs, step=step, explore=explore)


class MeasuresByDrawing(LinearQ):
    def __init__(self, *args, monitor=None, **kwargs):
        super().__init__(*args, monitor=monitor, **kwargs)
        self.measures = monitor.every_steps > 0

    def update(self, batch, *, step):
        if self.measures:
            torch.rand((), generator=self.noise)
        return super().update(batch, step=step)


BROKEN_AGENTS = {
    Shape: "acts_within_the_action_space",
    Dtype: "acts_within_the_action_space",
    Range: "acts_within_the_action_space",
    MixesRows: "evaluates_each_observation_alone",
    ForgetsCounter: "loaded_agent_continues_to_the_bit",
    ForgetsTarget: "loaded_agent_continues_to_the_bit",
    SavesObjects: "loaded_agent_continues_to_the_bit",
    GlobalTorch: "nothing_draws_from_a_global_generator",
    GlobalNumpy: "nothing_draws_from_a_global_generator",
    GlobalPython: "nothing_draws_from_a_global_generator",
    Unseeded: "same_seed_same_learning",
    OneSeed: "same_seed_same_learning",
    NotDetached: "updates_return_metrics",
    NotScalar: "updates_return_metrics",
    BadName: "updates_return_metrics",
    NotFinite: "updates_return_metrics",
    StopsLearning: "evaluation_is_deterministic_and_changes_nothing",
    DrawsInEvaluation: "evaluation_is_deterministic_and_changes_nothing",
    ValueShape: "values_are_one_number_for_each_observation",
    LearnsNothing: "updates_change_the_agent",
    ChangesBatch: "updates_and_acting_leave_their_inputs_alone",
    ChangesObservations: "updates_and_acting_leave_their_inputs_alone",
    MeasuresByDrawing: "measuring_plasticity_changes_nothing",
}


@pytest.mark.parametrize("make", BROKEN_AGENTS, ids=lambda make: make.__name__)
def test_broken_agent_breaks_its_law(make):
    with pytest.raises(LawBroken, match=rf"(?m)^{BROKEN_AGENTS[make]}: "):
        check_agent(dataclasses.replace(linear_q, make=make))


@pytest.mark.parametrize(
    ("spec", "law"),
    [
        (plugin_parts.accepts_all, "interventions_act_or_are_refused"),
        (
            dataclasses.replace(rlearly.agents.agent_spec("td3"), networks=("actor",)),
            "interventions_act_or_are_refused",
        ),
        (dataclasses.replace(linear_q, networks=["critic"]), "declares_itself_well"),
    ],
)
def test_wrong_declaration_breaks_its_law(spec, law):
    settings = {} if spec.make is LinearQ else {"hidden_dim": 8, "batch_size": 8}
    with pytest.raises(LawBroken, match=rf"(?m)^{law}: "):
        check_agent(spec, settings)


def test_every_law_of_agents_is_broken_by_one_here():
    named = {*BROKEN_AGENTS.values(), "interventions_act_or_are_refused", "declares_itself_well"}
    assert named == {law.__name__ for law in AGENT_LAWS}


# --- envs ---


class Outside(tiny_envs.StateReach):
    observation_space = Box(-0.1, 0.1, (2,), np.float32)


class Reused(tiny_envs.StateReach):
    """Returns the same array each time."""

    buffer = None

    def _state(self):
        if self.buffer is None:
            self.buffer = np.zeros(2, np.float32)
        self.buffer[:] = super()._state()
        return self.buffer


class IgnoresSeed(tiny_envs.StateReach):
    def reset(self, *, seed=None, options=None):
        return super().reset(options=options)


class Global(tiny_envs.StateReach):
    def reset(self, *, seed=None, options=None):
        np.random.random()  # noqa: NPY002
        return super().reset(seed=seed, options=options)


class Endless(tiny_envs.StateReach):
    def step(self, action):
        obs, reward, *_ = super().step(action)
        return obs, reward, False, False, {}


class Unbounded(tiny_envs.StateReach):
    action_space = Box(-np.inf, 0, (1,), np.float32)


class Elsewhere(tiny_envs.StateReach):
    """Counts its steps where no one can see it."""

    def __init__(self):
        super().__init__()
        count = iter(range(10**9))
        self.more = lambda: next(count)

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, reward + 1e-6 * self.more(), *rest


class Grey(tiny_envs.PixelReach):
    def __init__(self):
        super().__init__(render_mode="rgb_array")

    def render(self):
        return self._image()[..., 0]


BROKEN_ENVS = {
    Outside: "observations_are_in_their_space",
    Reused: "observations_are_in_their_space",
    IgnoresSeed: "the_seed_of_a_reset_determines_the_episode",
    Global: "nothing_draws_from_a_global_generator",
    Endless: "episodes_end",
    Unbounded: "has_spaces_that_agents_take",
    Elsewhere: "states_can_be_saved_and_restored_exactly",
    Grey: "rendered_frames_are_images",
}


@pytest.mark.parametrize("make", BROKEN_ENVS, ids=lambda make: make.__name__)
def test_broken_env_breaks_its_law(make):
    with pytest.raises(LawBroken, match=rf"(?m)^{BROKEN_ENVS[make]}: "):
        check_env(make, most_steps=30)


def test_every_law_of_envs_is_broken_by_one_here_and_good_envs_keep_them_all():
    assert set(BROKEN_ENVS.values()) == {law.__name__ for law in ENV_LAWS}
    check_env("CartPole-v1")
    check_env(lambda: TimeLimit(tiny_envs.PixelReach("rgb_array"), 5), most_steps=5)


# --- selection rules ---


class GlobalChoice(plugin_rules.Last):
    def choose(self, random):
        return int(np.random.randint(self.count))  # noqa: NPY002


class ForgetsStarted(plugin_rules.Last):
    def load_state_dict(self, state):
        self.over = state["over"]


class SharesState(plugin_rules.Scored):
    def state_dict(self):
        return {**super().state_dict(), "scores": self.scores}


class SortsSnapshots(plugin_rules.Last):
    def prepare(self, snapshots):
        super().prepare(snapshots)
        snapshots.values.sort()


BROKEN_RULES = {
    plugin_rules.NoChoice: "has_all_methods",
    plugin_rules.Outside: "chooses_snapshots_that_exist",
    GlobalChoice: "draws_only_from_the_generator_that_it_is_given",
    ForgetsStarted: "loaded_rule_continues_to_the_bit",
    SharesState: "loaded_rule_continues_to_the_bit",
    SortsSnapshots: "leaves_the_snapshots_alone",
}


@pytest.mark.parametrize("make", BROKEN_RULES, ids=lambda make: make.__name__)
def test_broken_rule_breaks_its_law(make):
    with pytest.raises(LawBroken, match=rf"(?m)^{BROKEN_RULES[make]}: "):
        check_selection(make)


def test_every_law_of_rules_is_broken_by_one_here_and_our_rules_keep_them_all():
    assert set(BROKEN_RULES.values()) == {law.__name__ for law in SELECTION_LAWS}
    for make in (rlearly.Uniform, rlearly.LearnerError, rlearly.ReturnToGo, rlearly.Novelty):
        check_selection(make)
    check_selection(lambda: rlearly.ValueClusters(3))
    check_selection(rlearly.ReverseForward)
    check_selection(lambda: rlearly.DemonstrationWindow("reverse"))


# --- interventions ---


class DoesNothing(Intervention):
    pass


class WrongMetric(plugin_rules.Noise):
    def before_update(self, step):
        return dict.fromkeys(super().before_update(step), np.nan)


class ForgetsCount(plugin_rules.Noise):
    def load_state_dict(self, state):
        super().load_state_dict({**state, "count": self.count})


class GlobalNoise(Intervention):
    @torch.no_grad()
    def before_update(self, step):
        self.modules.networks["critic"].register_buffer("noise", torch.randn(3))
        for parameter in self.modules.networks["critic"].parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.01)
        return {}


class OwnSeed(plugin_rules.Draws):
    def __init__(self, config, *, weights):
        super().__init__(config, weights=torch.Generator())
        self.weights.seed()


BROKEN_INTERVENTIONS = {
    DoesNothing: "it_changes_what_an_agent_learns",
    WrongMetric: "updates_return_metrics",
    ForgetsCount: "loaded_agent_continues_to_the_bit",
    GlobalNoise: "nothing_draws_from_a_global_generator",
    OwnSeed: "same_seed_same_learning",
}


@pytest.mark.parametrize("cls", BROKEN_INTERVENTIONS, ids=lambda cls: cls.__name__)
def test_broken_intervention_breaks_its_law(cls):
    settings = {"every_steps": 1} if issubclass(cls, plugin_rules.Noise) else {}
    with pytest.raises(LawBroken, match=rf"(?m)^{BROKEN_INTERVENTIONS[cls]}: "):
        check_intervention(cls, settings, ["td3"])


def test_every_law_of_interventions_is_broken_by_one_here():
    assert set(BROKEN_INTERVENTIONS.values()) == {law.__name__ for law in INTERVENTION_LAWS}


def test_all_broken_laws_are_reported_together():
    with pytest.raises(LawBroken, match=r"(?s)evaluates.*evaluation_.*nothing_draws") as caught:
        check_agent(dataclasses.replace(linear_q, make=GlobalTorch))
    assert "global random generator of torch" in str(caught.value)
