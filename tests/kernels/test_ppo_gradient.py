"""The gradient of PPO's loss by hand, and learning by it, beside autograd's."""

import numpy as np
import pytest
import torch
from conftest import random_rollout

from rlearly.agents import ppo
from rlearly.config.interventions import (
    InjectionConfig,
    L2InitConfig,
    LayerNormConfig,
    ReDoConfig,
    ResetConfig,
    ShrinkPerturbConfig,
    SpectralNormConfig,
    WeightDecayConfig,
)
from rlearly.kernels.ppo_gradient import RolloutRows, minibatches
from rlearly.nn.policies import CategoricalActor
from rlearly.plasticity.interventions.architecture import AddLayerNorm, AddSpectralNorm
from rlearly.plasticity.interventions.injection import PlasticityInjection
from rlearly.plasticity.interventions.redo import ReDo
from rlearly.plasticity.interventions.regularisers import L2Init, WeightDecay
from rlearly.plasticity.interventions.resets import ResetLayers, ShrinkAndPerturb
from rlearly.plasticity.monitor import PlasticityMonitor
from rlearly.system import threads
from rlearly.system.seeding import Seeds


@pytest.fixture(params=["state_spec", "discrete_spec", "masked_spec"])
def spec(request):
    """Continuous actions, discrete ones, and discrete ones with masks."""
    return request.getfixturevalue(request.param)


def make(spec, by="hand", interventions=(), monitor=None, **settings):
    settings = {"hidden_dim": 16, "rollout_steps": 9, "minibatches": 4, "epochs": 3} | settings
    agent = ppo.PPO(
        ppo.Config(**settings),
        spec,
        seeds=Seeds(3),
        device=torch.device("cpu"),
        interventions=interventions,
        monitor=monitor,
    )
    if by == "autograd":
        agent.fast_gradient = None
    return agent


def unsettle(agent):
    """Let means, values and deviations be far from what they are at the start."""
    with torch.no_grad():
        for _, log_std in agent.actor.named_parameters(recurse=False):
            log_std.copy_(torch.tensor([-0.5, 0.0, 0.3]))
        for network, advantage in ((agent.actor.policy, 40), (agent.critic.v, 2)):
            network[4].weight.mul_(advantage)
            for layer in (network[0], network[2], network[4]):
                generator = torch.Generator().manual_seed(len(layer.bias))
                layer.bias.normal_(std=0.3, generator=generator)


@torch.no_grad()
def random_data(agent, rows, seed=0):
    """obs, action, old log-probability, old value and advantage, near enough to be of a rollout."""
    generator = torch.Generator().manual_seed(seed)
    obs, action, noise = (torch.randn(rows, n, generator=generator) for n in (7, 3, 3))
    states = obs
    if isinstance(agent.actor, CategoricalActor):
        mask = torch.ones(rows, 3)
        if agent.mask_size:
            mask[:, :2] = action[:, :2] > 0
            obs = torch.cat([states, mask], 1)
        action = mask.multinomial(1, generator=generator)[:, 0]
    old_log_prob = agent.actor(obs).log_prob(action)
    old_value = agent.critic(states) + 0.4 * noise[:, 1]
    return obs, action, old_log_prob + 0.3 * noise[:, 0], old_value, noise[:, 2]


@pytest.mark.parametrize("rows", [2, 33, 64])
@pytest.mark.parametrize("entropy_weight", [0.0, 0.3])
@pytest.mark.parametrize("value_weight", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("clip_value", [True, False])
def test_gradient_by_hand_is_autograds(spec, rows, entropy_weight, value_weight, clip_value):
    agent = make(
        spec,
        entropy_weight=entropy_weight,
        value_weight=value_weight,
        clip_value=clip_value,
    )
    unsettle(agent)
    for seed in range(3):
        data = random_data(agent, rows, seed)
        total, parts = agent._loss(*data)
        expected = torch.autograd.grad(total, list(agent.fast_gradient.parameters))
        log_prob, value = np.empty((2, rows), np.float32)
        own_rows = RolloutRows.of(*data, mask_size=agent.mask_size)
        shuffled = own_rows.shuffled(torch.arange(rows), 1)
        agent.fast_gradient.begin()
        agent.fast_gradient.differentiate(shuffled, log_prob, value)
        for parameter, gradient in zip(agent.fast_gradient.parameters, expected, strict=True):
            scale = float(gradient.abs().max())
            assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-5 * scale + 1e-9)
        with torch.no_grad():
            ours = agent.actor(data[0]).log_prob(data[1])
            assert torch.allclose(torch.from_numpy(log_prob), ours, atol=1e-5)
            critic = agent.critic(data[0][:, :7])
            assert torch.allclose(torch.from_numpy(value), critic, atol=1e-5)
    if rows == 64:  # every case of both clips is tested
        ratio, moved = np.exp(log_prob - data[2].numpy()), value - data[3].numpy()
        advantage = shuffled.advantage
        for outside in (ratio > 1.2, ratio < 0.8, abs(ratio - 1) < 0.2):
            assert (outside & (advantage > 0)).any() and (outside & (advantage < 0)).any()
        target = shuffled.target
        near = data[3].numpy() + np.clip(moved, -0.2, 0.2)
        chosen = abs(value - target) > abs(near - target)
        assert (chosen & (abs(moved) > 0.2)).any() and (~chosen & (abs(moved) > 0.2)).any()
        assert 0.1 < float(parts["policy/clip_fraction"]) < 0.9


@torch.no_grad()
def test_outputs_are_the_networks(spec):
    agent = make(spec)
    unsettle(agent)
    obs = random_data(agent, 37)[0]
    policy, value = agent.fast_gradient.outputs(obs.numpy(), 4)
    for ours, theirs in zip(policy, agent.actor(obs), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.allclose(value, agent.critic(obs[:, :7]), atol=1e-5)


def test_gradients_are_clipped_as_torch_does(state_spec):
    agent = make(state_spec)
    form, generator = agent.fast_gradient, np.random.default_rng(0)
    for length in (3.0, 0.3, np.nan):
        drawn = generator.normal(size=form.gradients.shape).astype(np.float32)
        form.gradients[:] = drawn * np.float32(0.3 / np.linalg.norm(drawn))
        form.gradients[5:6] = length
        theirs = [torch.nn.Parameter(torch.zeros_like(p)) for p in form.parameters]
        for one, other in zip(theirs, form.parameters, strict=True):
            one.grad = other.grad.clone()
        torch.nn.utils.clip_grad_norm_(theirs, 0.5)
        form.clip_gradients(0.5)
        for one, other in zip(theirs, form.parameters, strict=True):
            assert torch.allclose(one.grad, other.grad, rtol=1e-6, equal_nan=True)


def same_learning(one, two, spec, num_envs, updates=4):
    """Both learn from the same rollouts; everything that comes of it is equal within rounding."""
    metrics = {}
    for at in range(updates):
        rollout = random_rollout(one, spec, seed=at, steps=9, num_envs=num_envs)
        two.acted = [normal.copy() for normal in one.acted]
        two.obs_rms.load_state_dict(one.obs_rms.state_dict())
        ours, theirs = one.update(rollout, step=at), two.update(rollout, step=at)
        assert list(ours) == list(theirs)
        for name, value in ours.items():
            expected = float(theirs[name])
            assert float(value) == pytest.approx(expected, rel=2e-3, abs=2e-4), (name, at)
        metrics |= ours
    for name, network in one.networks.items():
        other = dict(two.networks[name].named_parameters())
        for key, parameter in network.named_parameters():
            assert torch.allclose(parameter, other[key], atol=2e-4), key
            assert torch.allclose(parameter.grad, other[key].grad, atol=2e-3), key
    ours, theirs = (agent.optimizers["both"].state_dict() for agent in (one, two))
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for place, moments in ours["state"].items():
        for name, moment in moments.items():
            assert torch.allclose(moment, theirs["state"][place][name], atol=2e-3), name
    return metrics


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("clip_value", [True, False])
def test_learning_is_the_same_by_either_path(spec, num_envs, clip_value):
    settings = {"clip_value": clip_value, "entropy_weight": 0.01, "lr": 1e-3}
    one = make(spec, monitor=PlasticityMonitor(every_steps=2), **settings)
    two = make(spec, by="autograd", monitor=PlasticityMonitor(every_steps=2), **settings)
    assert one.fast_gradient is not None and two.fast_gradient is None
    before = [p.detach().clone() for p in one.actor.parameters()]
    one.update(random_rollout(one, spec, steps=9), step=0)
    one.load_state_dict(two.state_dict())
    for network in one.networks.values():
        for parameter in network.parameters():
            parameter.data = parameter.data.clone()  # lies elsewhere now
    metrics = same_learning(one, two, spec, num_envs)
    moved = max(
        float((p.detach() - q).abs().max())
        for p, q in zip(one.actor.parameters(), before, strict=True)
    )
    assert moved > 0.02, "a hundred times what the paths may differ by"
    assert "now/plasticity/gradient_norm_actor" in metrics


def stream():
    return torch.Generator().manual_seed(0)


BY_HAND = {
    "weight_decay": lambda: WeightDecay(WeightDecayConfig(0.1)),
    "l2_init": lambda: L2Init(L2InitConfig(0.05, networks=["critic"])),
    "shrink_perturb": lambda: ShrinkAndPerturb(ShrinkPerturbConfig(2, alpha=0.5), weights=stream()),
    "reset": lambda: ResetLayers(
        ResetConfig(2, layers="last", networks=["actor"]), weights=stream()
    ),
    "redo": lambda: ReDo(ReDoConfig(2, threshold=0.9), weights=stream()),
}
BY_AUTOGRAD = {
    "layer_norm": lambda: AddLayerNorm(LayerNormConfig(["actor"])),
    "spectral_norm": lambda: AddSpectralNorm(SpectralNormConfig(["critic"])),
    "injection": lambda: PlasticityInjection(
        InjectionConfig(2, networks=["critic"]), weights=stream()
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_what_interventions_do_is_the_same_by_either_path(state_spec, name):
    intervene = BY_HAND[name]
    one, plain = make(state_spec, interventions=[intervene()]), make(state_spec)
    two = make(state_spec, by="autograd", interventions=[intervene()])
    metrics = same_learning(one, two, state_spec, num_envs=2)
    assert one.fast_gradient is not None
    assert "weight" in name or "l2" in name or any(key.startswith("event/") for key in metrics)
    for at in range(4):
        plain.update(random_rollout(plain, state_spec, seed=at, steps=9, num_envs=2), step=at)
    ours, theirs = one.critic.v[2].weight, plain.critic.v[2].weight
    if name != "reset":
        assert (ours - theirs).abs().max() > 2e-3, "it does something"


@pytest.mark.parametrize("name", BY_AUTOGRAD)
def test_networks_with_other_layers_learn_by_autograd(state_spec, name):
    agent = make(state_spec, interventions=[BY_AUTOGRAD[name]()])
    assert agent.fast_gradient is None
    for at in range(3):
        agent.update(random_rollout(agent, state_spec, seed=at, steps=9), step=at)


def test_minibatches_are_torchs():
    for rows in range(4, 40):
        for parts in range(1, rows // 2 + 1):
            expected = [(int(p[0]), int(p[-1]) + 1) for p in torch.arange(rows).tensor_split(parts)]
            assert list(minibatches(rows, parts)) == expected


def test_advantages_are_normalised_in_each_minibatch(state_spec):
    agent = make(state_spec)
    data = random_data(agent, 14)
    order = torch.randperm(14, generator=stream())
    shuffled = RolloutRows.of(*data).shuffled(order, 4)
    assert torch.equal(torch.from_numpy(shuffled.obs), data[0][order])
    assert torch.equal(torch.from_numpy(shuffled.target), (data[4] + data[3])[order])
    for start, end in minibatches(14, 4):
        advantage = data[4][order[start:end]].double()
        expected = (advantage - advantage.mean()) / advantage.std()
        np.testing.assert_allclose(shuffled.minibatch(start, end).advantage, expected, atol=1e-5)


def test_small_minibatches_take_one_thread_and_give_the_others_back(state_spec, monkeypatch):
    agent, before, seen = make(state_spec), torch.get_num_threads(), []
    step, blas = agent.optimizers["both"].step, threads._blas_libraries()

    def noted(flat):
        seen.append((torch.get_num_threads(), *(lib["num_threads"] for lib in blas.info())))
        step(flat)

    agent.optimizers["both"].step = noted
    try:
        torch.set_num_threads(2)
        with threads.one_thread():
            pass
        agent.update(random_rollout(agent, state_spec, steps=9), step=0)
        assert all(set(counts) == {1} for counts in seen) and seen and torch.get_num_threads() == 2
        monkeypatch.setattr(ppo, "SINGLE_THREAD_WORK", 0)
        seen.clear()
        agent.update(random_rollout(agent, state_spec, steps=9), step=0)
        assert {counts[0] for counts in seen} == {2}
    finally:
        torch.set_num_threads(before)
