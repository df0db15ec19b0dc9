"""One contract for every agent, from pixels and from states."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import SMALL, random_batch, random_rollout, with_actions_for
from gymnasium.spaces import Discrete

from rlearly.agents import AGENTS, agent_spec
from rlearly.agents.modules import AgentModules, NetworkBuilder, each_layer
from rlearly.config.schema import AdaptiveRatioConfig
from rlearly.nn.networks import fan_in_, mlp
from rlearly.nn.optim import adam
from rlearly.plasticity.monitor import PlasticityMonitor
from rlearly.system.seeding import Seeds
from rlearly.testing import AGENT_LAWS, AgentSubject
from rlearly.training.metrics import MetricMeans
from rlearly.training.update_schedule import AdaptiveRatio

METAWORLD = {"q_dropout": 0.01, "q_layer_norm": True, "lambda_constant": True}
"""DrM's variant for MetaWorld."""

KINDS = [
    (agent, kind)
    for agent in AGENTS
    for kind in ("pixels", "state", "fused", "metaworld")
    if kind == "state" or agent_spec(agent).observes_pixels
    if agent != "drq_eps" or kind in ("pixels", "state")
] + [("ppo", "discrete")]
"""fused: a dict of pixels and a vector; discrete: PPO's discrete actions, from states."""


@pytest.fixture(params=KINDS, ids="-".join)
def case(request):
    return request.param


@pytest.fixture
def spec(case, pixel_spec, state_spec, fused_spec, discrete_spec):
    others = {"state": state_spec, "fused": fused_spec, "discrete": discrete_spec}
    return with_actions_for(case[0], others.get(case[1], pixel_spec))


@pytest.fixture
def build(case, spec):
    declared = agent_spec(case[0])
    known = {field.name for field in dataclasses.fields(declared.config_class)}

    def build(seed=0, monitor=None, **settings):
        own = METAWORLD if case[1] == "metaworld" else {}
        chosen = {key: value for key, value in (SMALL | own | settings).items() if key in known}
        return declared.make(
            declared.config_class(**chosen),
            spec,
            seeds=Seeds(seed),
            device=torch.device("cpu"),
            monitor=monitor,
        )

    return build


def observations(spec, count=5):
    obs = random_batch(spec, size=count).obs
    if isinstance(obs, dict):
        return {key: part.numpy() for key, part in obs.items()}
    return obs.numpy()


def weights(agent):
    return {
        f"{name}.{key}": p.detach().clone()
        for name, network in agent.networks.items()
        for key, p in network.named_parameters()
    }


@pytest.fixture
def learn(case, spec):
    """Give an agent something random of the kind that it learns from, once."""
    on_policy = agent_spec(case[0]).on_policy

    def learn(agent, seed=0, step=20, begun=()):
        if on_policy:
            return agent.update(random_rollout(agent, spec, seed, begun=begun), step=step)
        return agent.update(random_batch(spec, seed=seed), step=step)

    return learn


@pytest.mark.parametrize("law", AGENT_LAWS, ids=lambda law: law.__name__)
def test_law(law, case, spec):
    own = METAWORLD if case[1] == "metaworld" else {}
    declared = agent_spec(case[0])
    known = {field.name for field in dataclasses.fields(declared.config_class)}
    settings = {key: value for key, value in (SMALL | own).items() if key in known}
    law(AgentSubject(declared, spec, settings))


def test_updates_change_every_network(build, learn):
    agent = build()
    before = weights(agent)
    for i in range(2):  # TD3 moves its actor and targets at every second one
        learn(agent, i)
    changed = {k.split(".")[0] for k, p in weights(agent).items() if not torch.equal(p, before[k])}
    assert changed == {k.split(".")[0] for k in before}


def test_values_differ_from_one_observation_to_another(build, spec):
    value = build().value(observations(spec))
    assert value.dtype == np.float32 and len(set(value.tolist())) == 5


def test_first_steps_explore_uniformly(build, spec, case):
    if agent_spec(case[0]).on_policy:
        pytest.skip("an agent on policy acts by its policy from the first step on")
    agent = build(exploration_steps=1000, learning_starts_steps=1000)
    many = observations(spec, 400)
    actions = np.concatenate([agent.act(many, step=s, explore=True) for s in range(5)])
    if isinstance(spec.action, Discrete):
        np.testing.assert_allclose(np.bincount(actions) / len(actions), 1 / 3, atol=0.05)
        return
    assert abs(actions.mean()) < 0.05
    assert abs(actions.std() - 3**-0.5) < 0.02


def test_every_network_that_learns_is_measured(build, learn, case):
    agent = build(monitor=PlasticityMonitor(every_steps=1))
    metrics = {}
    for i in range(2):
        metrics |= learn(agent, i, 20 + i)
    names = {k.removeprefix("now/plasticity/weight_norm_") for k in metrics if "weight_norm" in k}
    expected = {"critic"} if case[0] == "drq_eps" else {"actor", "critic"}
    expected |= {"value"} if case[0] == "drm" else set()
    assert names == expected | (set() if case[1] in ("state", "discrete") else {"encoder"})
    for name in names:
        assert float(metrics[f"now/plasticity/distance_{name}"]) > 0
        assert float(metrics[f"now/plasticity/gradient_norm_{name}"]) > 0
        assert 0 <= float(metrics[f"now/plasticity/dormant_ratio_{name}"]) <= 1
        if case[0] != "ppo":
            assert 0 < float(metrics[f"now/plasticity/fau_{name}"]) < 1
    single = case[0] in ("ppo", "drq_eps")
    recorded_stacks = ["critic"] if single else ["critic_q1", "critic_q2"]
    for head in [*names & {"actor"}, *recorded_stacks]:
        assert 1 <= float(metrics[f"now/plasticity/effective_rank_{head}"]) <= 16
    policy_measured = {"plasticity/dormant_ratio", "now/plasticity/dormant_ratio"} & metrics.keys()
    assert bool(policy_measured) == ("actor" in names)


def test_an_update_off_policy_reads_nothing_back_from_the_device(build, learn, case, monkeypatch):
    if agent_spec(case[0]).on_policy:
        pytest.skip("a rollout's advantages are computed on the host")
    agent, means, update_schedule = build(), MetricMeans(), AdaptiveRatio(AdaptiveRatioConfig())
    learn(agent)  # what is allocated at first may look around

    def refuse(*words):
        raise AssertionError("a GPU would have to be waited for")

    with monkeypatch.context() as patched:
        for name in ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__"):
            patched.setattr(torch.Tensor, name, refuse)
        for i in range(2):
            metrics = learn(agent, i, 21 + i)
            means.add(metrics)
            update_schedule.observe(metrics | {"plasticity/fau_critic": torch.ones(())})
    assert means.take()["loss/critic"] > 0


def test_an_agent_without_an_actor_is_measured():
    network = mlp(3, 8, 1)
    builder = NetworkBuilder(each_layer(fan_in_), torch.Generator(), torch.device("cpu"))
    modules = AgentModules(
        {"critic": builder.build("critic", network)},
        builder,
        optimizers={"critic": adam(network, 1e-3)},
        generators={},
        monitor=PlasticityMonitor(every_steps=1),
    )
    modules.begin_update(0)
    network(torch.ones(2, 3), modules.activations("critic")).sum().backward()
    metrics = modules.end_update()
    assert "now/plasticity/weight_norm_critic" in metrics
    assert "now/plasticity/dormant_ratio" not in metrics
