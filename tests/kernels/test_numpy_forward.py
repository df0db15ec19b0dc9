"""Acting in numpy beside the networks as torch calls them."""

import numpy as np
import pytest
import torch
from conftest import random_batch, random_rollout, with_actions_for
from torch import nn

from rlearly.agents import agent_spec
from rlearly.agents.ppo import PPO
from rlearly.config.interventions import (
    InjectionConfig,
    LayerNormConfig,
    ResetConfig,
    SpectralNormConfig,
)
from rlearly.kernels import numpy_forward
from rlearly.nn.networks import StateActor, fan_in_, initialise_, mlp
from rlearly.plasticity.interventions.architecture import AddLayerNorm, AddSpectralNorm
from rlearly.plasticity.interventions.injection import PlasticityInjection
from rlearly.plasticity.interventions.resets import ResetLayers
from rlearly.system.seeding import Seeds

SETTINGS = {
    "td3": {"hidden_dim": 32, "learning_starts_steps": 0, "exploration_noise": 0.3},
    "sac": {"hidden_dim": 32, "learning_starts_steps": 0},
    "ppo": {"hidden_dim": 32, "rollout_steps": 8, "minibatches": 2},
    "drq_eps": {"hidden_dim": 32, "learning_starts_steps": 0, "epsilon_end": 0.2},
}
"""For each agent that acts from states, what it is built with here."""

FORWARDS = {
    "td3": ("_mean", "_q1"),
    "sac": ("_policy_outputs", "_q1", "_q2"),
    "ppo": ("_policy", "_value"),
    "drq_eps": ("_stack_outputs",),
}
"""The networks that an agent acts and judges by, as functions of arrays."""

agents = pytest.mark.parametrize("name", FORWARDS)


@pytest.fixture
def state_spec(request, state_spec):
    params = getattr(request.node, "callspec", None)
    return with_actions_for(params.params["name"], state_spec) if params else state_spec


def make(name, spec, seed=3, interventions=()):
    declared = agent_spec(name)
    config = declared.config_class(**SETTINGS[name])
    return declared.make(
        config, spec, seeds=Seeds(seed), device=torch.device("cpu"), interventions=interventions
    )


def learn(agent, spec, seed=0):
    """Twice, so that TD3 moves its actor."""
    for at in range(2):
        if isinstance(agent, PPO):
            agent.update(random_rollout(agent, spec, seed + at), step=at)
        else:
            agent.update(random_batch(spec, seed=seed + at), step=at)


def states(count=9, seed=0, width=7):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32) * 3


def stack(*widths):
    """A plain stack with random weights."""
    network = mlp(*widths, nn.Tanh)
    initialise_(network, torch.Generator().manual_seed(0), fan_in_)
    return network


@agents
def test_plain_networks_act_in_numpy_and_all_others_are_called(name, state_spec):
    agent = make(name, state_spec)
    kinds = [type(getattr(agent, forward)) for forward in FORWARDS[name]]
    assert set(kinds) == {numpy_forward.NumpyForward}
    weights = torch.Generator()
    for other in (
        AddLayerNorm(LayerNormConfig()),
        AddSpectralNorm(SpectralNormConfig()),
        PlasticityInjection(InjectionConfig(1000), weights=weights),
    ):
        agent = make(name, state_spec, interventions=[other])
        kinds = [type(getattr(agent, forward)) for forward in FORWARDS[name]]
        assert set(kinds) == {numpy_forward.TorchForward}
    for unknown in (StateActor(7, 2, 4), nn.Sequential(nn.Linear(7, 2), nn.Sigmoid())):
        assert isinstance(numpy_forward.make_forward(unknown), numpy_forward.TorchForward)
    assert isinstance(
        numpy_forward.make_forward(stack(7, 8, 2).to("meta")), numpy_forward.TorchForward
    )


@agents
def test_acting_and_judging_equal_the_torch_path_within_rounding(name, state_spec):
    one, two = make(name, state_spec), make(name, state_spec)
    recorded_stacks = {"_q1": "critic.q1", "_q2": "critic.q2", "_value": "critic.v"}
    recorded_stacks["_stack_outputs"] = "critic.q"
    for forward in FORWARDS[name]:
        head = two.networks[recorded_stacks.get(forward, "actor.policy").split(".")[0]]
        for part in recorded_stacks.get(forward, "actor.policy").split(".")[1:]:
            head = getattr(head, part)
        setattr(two, forward, numpy_forward.TorchForward(head))
    for agent in (one, two):
        learn(agent, state_spec)
    for count in (1, 9):
        obs = states(count)
        found = [
            (a.act(obs, step=9, explore=True), a.act(obs, step=9, explore=False), a.value(obs))
            for a in (one, two)
        ]
        for ours, theirs in zip(*found, strict=True):
            assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
            assert ours.dtype in (np.float32, np.int64)
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert torch.equal(
        one.generators["exploration"].get_state(), two.generators["exploration"].get_state()
    )


@agents
def test_a_state_is_answered_alike_whatever_is_beside_it(name, state_spec):
    agent = make(name, state_spec)
    obs = states(16)
    actions, values = agent.act(obs, step=9, explore=False), agent.value(obs)
    for at in range(16):
        alone = obs[at : at + 1]
        assert np.array_equal(agent.act(alone, step=9, explore=False)[0], actions[at])
        assert np.array_equal(agent.value(alone)[0], values[at])
    assert np.array_equal(agent.act(obs[::-1], step=9, explore=False), actions[::-1])


@agents
def test_answers_follow_whatever_changes_the_weights(name, state_spec):
    def build(seed):
        reset = ResetLayers(ResetConfig(4), weights=torch.Generator().manual_seed(0))
        return make(name, state_spec, seed, [reset])

    def answers(agent):
        actions = [] if name == "drq_eps" else [agent.act(obs, step=9, explore=False)]
        return np.column_stack([*actions, agent.value(obs)])

    def fresh_answers():
        """Of a twin that never acted before."""
        twin = build(seed=4)
        twin.load_state_dict(agent.state_dict())
        return answers(twin)

    obs, agent, acted_before = states(), build(seed=3), build(seed=5)
    before = answers(agent)
    answers(acted_before)
    learn(agent, state_spec)
    learnt = answers(agent)
    assert (learnt != before).all() and np.array_equal(learnt, fresh_answers())
    for network in agent.networks.values():
        for parameter in network.parameters():
            parameter.data = parameter.data.clone()  # lies elsewhere now
    learn(agent, state_spec, seed=7)
    moved = answers(agent)
    assert (moved != learnt).all() and np.array_equal(moved, fresh_answers())
    (reset,) = agent.modules.interventions
    assert reset.before_update(9) == {"event/reset": 1.0}
    assert (answers(agent) != moved).all() and np.array_equal(answers(agent), fresh_answers())
    acted_before.load_state_dict(agent.state_dict())
    assert np.array_equal(answers(acted_before), answers(agent))


def test_answers_are_the_callers_own():
    forward = numpy_forward.make_forward(stack(7, 8, 2))
    one = forward(states(3))
    kept = one.copy()
    forward(states(3, seed=1))
    assert np.array_equal(one, kept)


def test_what_is_not_a_number_reaches_the_action():
    forward = numpy_forward.make_forward(stack(7, 8, 2))
    obs = states(2)
    obs[1, 3] = np.nan
    assert np.isnan(forward(obs)).tolist() == [[False, False], [True, True]]
