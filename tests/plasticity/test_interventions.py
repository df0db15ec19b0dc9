"""Each intervention: what must change, and what must not."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from conftest import SMALL, random_batch, random_rollout, with_actions_for
from gymnasium.spaces import Box
from torch import nn

from rlearly.agents import AGENTS, agent_spec, drqv2
from rlearly.config.interventions import (
    INTERVENTIONS,
    AugmentationConfig,
    CReLUConfig,
    FreezeEncoderConfig,
    InjectionConfig,
    L2InitConfig,
    LayerNormConfig,
    ReDoConfig,
    ResetConfig,
    ShrinkPerturbConfig,
    SpectralNormConfig,
    WeightDecayConfig,
)
from rlearly.config.resolve import compose
from rlearly.config.schema import RunConfig
from rlearly.core.errors import ConfigError
from rlearly.core.types import EnvSpec
from rlearly.nn.networks import layers
from rlearly.nn.surgery import hidden_layers, injected_heads, recorded_stacks, spectral_layers
from rlearly.plasticity.interventions import registry
from rlearly.plasticity.interventions.architecture import AddLayerNorm, AddSpectralNorm, UseCReLU
from rlearly.plasticity.interventions.injection import PlasticityInjection
from rlearly.plasticity.interventions.redo import ReDo
from rlearly.plasticity.interventions.regularisers import L2Init, WeightDecay
from rlearly.plasticity.interventions.resets import ResetLayers, ShrinkAndPerturb
from rlearly.plasticity.interventions.switches import FreezeEncoder, SwitchAugmentation
from rlearly.plasticity.measures import unit_scores
from rlearly.plasticity.monitor import PlasticityMonitor
from rlearly.system.seeding import Seeds
from rlearly.training.update_schedule import off_policy_schedule

CPU = torch.device("cpu")


def stream():
    return torch.Generator().manual_seed(5)


def build(agent, spec, *parts, monitor=None, seed=0, **settings):
    declared = agent_spec(agent)
    known = {field.name for field in dataclasses.fields(declared.config_class)}
    kwargs = {key: value for key, value in (SMALL | settings).items() if key in known}
    return declared.make(
        declared.config_class(**kwargs),
        spec,
        seeds=Seeds(seed),
        device=CPU,
        monitor=monitor,
        interventions=parts,
    )


def begin(agent):
    """Learning begins at step 0, so that the interval of step 100 is not the first."""
    for part in agent.modules.interventions:
        part.needs_activations(0)
        part.before_update(0)


def learn(agent, spec, count=1, first_step=20, seed=0):
    """Updates on random data; the metrics of each."""
    found = []
    for i in range(count):
        if hasattr(agent, "acted"):
            data = random_rollout(agent, spec, seed + i)
        else:
            data = random_batch(spec, seed=seed + i)
        found.append(agent.update(data, step=first_step + i))
    return found


def weights(agent):
    return {
        f"{name}.{key}": p.detach().clone()
        for name, network in agent.networks.items()
        for key, p in network.named_parameters()
    }


def changed(before, after):
    return {key for key in before if not torch.equal(before[key], after[key])}


def moments(agent, parameter):
    return list(agent.modules.optimizer_moments(parameter))


# --- shrink and perturb ---


def test_shrink_and_perturb_mixes_in_a_fixed_share(state_spec):
    part = ShrinkAndPerturb(ShrinkPerturbConfig(100, alpha=0.75), weights=stream())
    agent = build("td3", state_spec, part)
    learn(agent, state_spec, 2)
    before = weights(agent)
    assert part.before_update(99) == {} and not changed(before, weights(agent))
    fresh_stream = stream()
    metrics = part.before_update(100)
    assert float(metrics["event/perturbation_alpha"]) == 0.75
    after = weights(agent)
    assert changed(before, after) == set(before)
    for name in agent.networks:  # each with a draw of its own, in order
        drawn = agent.modules.fresh_copy(name, fresh_stream)
        for key, phi in drawn.named_parameters():
            expected = 0.75 * before[f"{name}.{key}"] + 0.25 * phi
            torch.testing.assert_close(after[f"{name}.{key}"], expected)
    assert not any(o.state for o in agent.optimizers.values())
    assert part.before_update(101) == {}, "once an interval"


def test_dormancy_decides_at_the_end_of_an_update_where_it_is_not_measured_at_each(state_spec):
    part = ShrinkAndPerturb(ShrinkPerturbConfig(100, alpha_min=0.3), weights=stream())
    agent = build("sac", state_spec, part)
    with torch.no_grad():
        agent.actor.policy[0].weight.zero_()
        agent.actor.policy[0].bias.fill_(-1.0)  # a dead layer, so at least half is dormant
    learn(agent, state_spec, 1, first_step=99)  # the first update: no policy update
    odd, even = learn(agent, state_spec, 2, first_step=100)
    assert float(odd["event/perturbation_alpha"]) == pytest.approx(0.3)
    assert "event/perturbation_alpha" not in even
    assert "plasticity/fau_actor" not in odd, "no metric was asked for"


def test_shrink_and_perturb_of_one_network_leaves_the_others_and_their_optimizers(state_spec):
    part = ShrinkAndPerturb(
        ShrinkPerturbConfig(100, alpha=0.5, networks=["critic"]), weights=stream()
    )
    agent = build("td3", state_spec, part)
    learn(agent, state_spec, 2)
    before = weights(agent)
    part.before_update(100)
    touched = {key.split(".")[0] for key in changed(before, weights(agent))}
    assert touched == {"critic", "critic_target"}
    assert not agent.optimizers["critic"].state and agent.optimizers["actor"].state


def test_shrink_and_perturb_leaves_what_is_frozen(pixel_spec):
    shrink = ShrinkAndPerturb(ShrinkPerturbConfig(30, alpha=0.5, scope="all"), weights=stream())
    frozen = [
        FreezeEncoder(FreezeEncoderConfig(21)),
        PlasticityInjection(InjectionConfig(21, networks=["critic"]), weights=stream()),
    ]
    agent = build("drqv2", pixel_spec, *frozen, shrink)
    learn(agent, pixel_spec, 3)
    before = weights(agent)
    shrink.before_update(30)
    touched = changed(before, weights(agent))
    still = {k for k in before if k.startswith("encoder.") or ".base." in k or ".anchor." in k}
    assert not touched & still and touched == set(before) - still


# --- resets ---


@pytest.mark.parametrize("which", ["heads", "last"])
def test_reset_gives_heads_fresh_weights_and_targets_the_same(pixel_spec, which):
    part = ResetLayers(ResetConfig(100, layers=which), weights=stream())
    agent = build("drqv2", pixel_spec, part)
    learn(agent, pixel_spec, 2)
    before = weights(agent)
    trunk_moments = [m.clone() for m in moments(agent, agent.critic.trunk[0].weight)]
    assert part.before_update(100) == {"event/reset": 1.0}
    after = weights(agent)
    heads_of = {"actor": ["policy"], "critic": ["q1", "q2"], "critic_target": ["q1", "q2"]}
    expected = {
        f"{network}.{head}.{at}.weight"
        for network, names in heads_of.items()
        for head in names
        for at in ((0, 2, 4) if which == "heads" else (4,))
    }
    assert {key for key in changed(before, after) if key.endswith("weight")} == expected
    for head in ("q1", "q2"):
        target = getattr(agent.critic_target, head)[4]
        assert torch.equal(target.weight, getattr(agent.critic, head)[4].weight)
        assert float(target.bias.abs().sum()) == 0.0
    assert not moments(agent, agent.critic.q1[4].weight), "the optimizer begins anew with it"
    assert bool(moments(agent, agent.critic.q1[0].weight)) == (which == "last")
    kept = moments(agent, agent.critic.trunk[0].weight)
    assert len(kept) == 2 and all(map(torch.equal, kept, trunk_moments))
    learn(agent, pixel_spec, 1)  # moments of different ages learn on together


# --- ReDo ---


def kill(layer, rows):
    """Make these units of a layer silent for any input."""
    with torch.no_grad():
        layer.weight[rows] = 0.0
        layer.bias[rows] = -1.0


def test_redo_recycles_dormant_units_and_nothing_else(state_spec):
    part = ReDo(ReDoConfig(100, threshold=0.0), weights=stream())
    agent = build("td3", state_spec, part)
    learn(agent, state_spec, 4)
    kill(agent.critic.q2[2], [1, 5])
    q2, target = agent.critic.q2, agent.critic_target.q2
    learn(agent, state_spec, 2, first_step=30, seed=9)  # an update that moves the policy
    before = weights(agent)
    activations = {"actor": [], "critic": []}
    batch = random_batch(state_spec)
    agent.critic(batch.obs, batch.action, activations["critic"])
    agent.actor(batch.obs, activations["actor"])
    silent = [unit_scores(layer) <= 0.0 for layer in activations["critic"]]
    assert silent[3][[1, 5]].all(), "they are what the test made them"
    count = sum(int(s.sum()) for s in silent) + sum(
        int((unit_scores(layer) <= 0.0).sum()) for layer in activations["actor"]
    )
    output = agent.critic.q2(torch.cat([batch.obs, batch.action], -1))
    metrics = part.after_update(100, activations)
    assert float(metrics["event/recycled_units"]) == count
    after = weights(agent)

    fresh = agent.modules.fresh_copy("critic", torch.Generator().manual_seed(1))
    bound = 1 / 16**0.5
    assert fresh.q2[2].weight.abs().max() <= bound
    for network in (q2, target):
        rows = network[2].weight[[1, 5]]
        assert rows.abs().max() <= bound and (rows != 0).all(), "incoming weights are fresh"
        assert (network[4].weight[:, [1, 5]] == 0).all(), "outgoing weights are none"
    assert torch.equal(q2[2].weight[[1, 5]], target[2].weight[[1, 5]])
    torch.testing.assert_close(
        agent.critic.q2(torch.cat([batch.obs, batch.action], -1)), output
    )  # what was silent was not heard

    alive = [i for i in range(16) if not silent[3][i]]
    assert torch.equal(after["critic.q2.2.weight"][alive], before["critic.q2.2.weight"][alive])
    assert torch.equal(
        after["critic_target.q2.4.weight"][:, alive], before["critic_target.q2.4.weight"][:, alive]
    )
    for moment in moments(agent, q2[2].weight):
        assert (moment[[1, 5]] == 0).all() and (moment[alive] != 0).any()
    for moment in moments(agent, q2[4].weight):
        assert (moment[:, [1, 5]] == 0).all() and (moment[:, alive] != 0).any()
    if not any(s.any() for s in silent[:2]):
        assert not {k for k in changed(before, after) if k.startswith("critic.q1")}


def test_redo_clears_what_reads_a_recycled_channel_of_the_encoder(pixel_spec):
    part = ReDo(ReDoConfig(100, threshold=0.0), weights=stream())
    agent = build("drm", pixel_spec, part)
    learn(agent, pixel_spec, 1)
    conv = agent.encoder.convolutions[6]
    kill(conv, [2])
    activations = {name: [] for name in agent.modules.online}
    agent.encoder(random_batch(pixel_spec).obs, activations["encoder"])
    before = weights(agent)
    part.after_update(100, activations)
    after = weights(agent)
    channels = conv.weight.shape[0]
    for network in ("actor", "critic", "critic_target", "value"):
        own = after[f"{network}.trunk.0.weight"]
        assert (own[:, 2::channels] == 0).all(), network
        kept = [i for i in range(agent.encoder.features) if i % channels != 2]
        assert torch.equal(own[:, kept], before[f"{network}.trunk.0.weight"][:, kept])
    assert (after["encoder.convolutions.6.weight"][2] != 0).any()
    others = [0, 1, 3]
    key = "encoder.convolutions.6.weight"
    assert torch.equal(after[key][others], before[key][others])


def test_redo_knows_both_halves_of_a_crelu_unit(state_spec):
    part = ReDo(ReDoConfig(100, threshold=0.0), weights=stream())
    agent = build("td3", state_spec, UseCReLU(CReLUConfig()), part)
    with torch.no_grad():
        agent.actor.policy[2].weight[3] = 0.0
        agent.actor.policy[2].bias[3] = 0.0  # zero whatever comes: both halves are silent
    activations = {"actor": [], "critic": []}
    agent.actor(random_batch(state_spec).obs, activations["actor"])
    assert activations["actor"][1].shape == (16, 16), "a unit is what its halves are together"
    assert float(part.after_update(100, activations)["event/recycled_units"]) == 1
    assert (agent.actor.policy[4].weight[:, [3, 19]] == 0).all()
    assert (agent.actor.policy[4].weight[:, [2, 4, 18, 20]] != 0).all()


def test_recycled_unit_also_loses_its_normalisation(state_spec):
    part = ReDo(ReDoConfig(100, threshold=0.0), weights=stream())
    agent = build("td3", state_spec, AddLayerNorm(LayerNormConfig()), part)
    norm = agent.actor.policy[1]
    with torch.no_grad():
        norm.weight.fill_(3.0)
        norm.weight[4], norm.bias[4] = 0.0, -1.0
    activations = {"actor": [], "critic": []}
    agent.actor(random_batch(state_spec).obs, activations["actor"])
    part.after_update(100, activations)
    assert (float(norm.weight[4]), float(norm.bias[4])) == (1.0, 0.0)
    assert float(norm.weight[5]) == 3.0


# --- injection ---


def test_injection_changes_no_output_and_then_only_the_fresh_head_learns(pixel_spec):
    part = PlasticityInjection(InjectionConfig(50), weights=stream())
    agent = build("drqv2", pixel_spec, part)
    plain = build("drqv2", pixel_spec)
    learn(agent, pixel_spec, 2)
    learn(plain, pixel_spec, 2)
    as_without = {k.replace(".base", ""): p for k, p in weights(agent).items()}
    assert not changed(weights(plain), as_without), "until then it is the run without"
    obs = random_batch(pixel_spec).obs.numpy()
    outputs = agent.value(obs), agent.act(obs, step=50, explore=False)
    before = weights(agent)
    count = sum(p.numel() for p in agent.critic.parameters() if p.requires_grad)
    assert count == sum(p.numel() for p in plain.critic.parameters())
    assert part.before_update(49) == {} and part.before_update(50) == {"event/injection": 1.0}
    np.testing.assert_allclose(agent.value(obs), outputs[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(agent.act(obs, step=50, explore=False), outputs[1], atol=1e-6)
    after = weights(agent)
    assert all(".anchor." in key or ".fresh." in key for key in changed(before, after))
    assert count == sum(p.numel() for p in agent.critic.parameters() if p.requires_grad)
    head, target = agent.critic.q1, agent.critic_target.q1
    for one, two in ((head.fresh, head.anchor), (head.fresh, target.fresh)):
        assert all(map(torch.equal, one.state_dict().values(), two.state_dict().values()))

    assert part.before_update(51) == {}, "once"
    learn(agent, pixel_spec, 2, first_step=51)
    moved = {key for key in changed(after, weights(agent)) if key.startswith("critic.q1")}
    assert moved and all(key.startswith("critic.q1.fresh.") for key in moved)
    assert not np.allclose(agent.value(obs), outputs[0], rtol=1e-5, atol=1e-6)


def test_injected_agent_is_restored_with_what_it_learns(state_spec):
    agent = build("td3", state_spec, PlasticityInjection(InjectionConfig(21), weights=stream()))
    learn(agent, state_spec, 4)
    fresh = build(
        "td3",
        state_spec,
        PlasticityInjection(InjectionConfig(21), weights=torch.Generator()),
        seed=7,
    )
    fresh.load_state_dict(copy.deepcopy(agent.state_dict()))
    obs = random_batch(state_spec).obs.numpy()
    assert np.array_equal(agent.value(obs), fresh.value(obs))
    for either in (agent, fresh):
        (metrics,) = learn(either, state_spec, 1, first_step=24, seed=3)
        assert not any(name.startswith("event/") for name in metrics)
    assert not changed(weights(agent), weights(fresh))
    assert all(head.active for head in injected_heads(fresh.critic_target))


# --- layers ---


def test_layer_norm_comes_before_every_activation(pixel_spec):
    agent = build("drm", pixel_spec, AddLayerNorm(LayerNormConfig()))
    for name in ("encoder", "actor", "critic", "value"):
        for _, head in recorded_stacks(agent.networks[name]):
            parts = [type(p) for p in head]
            for at, kind in enumerate(parts):
                if kind is nn.ReLU:
                    assert parts[at - 1] in (nn.LayerNorm, nn.GroupNorm)
    batch = random_batch(pixel_spec)
    normed = agent.encoder.convolutions[:2](batch.obs.float() / 255)
    torch.testing.assert_close(normed.mean((1, 2, 3)), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(normed.std((1, 2, 3)), torch.ones(16), atol=1e-2, rtol=0)
    only = build("drm", pixel_spec, AddLayerNorm(LayerNormConfig(["critic"])))
    assert not any(isinstance(m, nn.LayerNorm) for m in only.actor.policy)
    assert any(isinstance(m, nn.LayerNorm) for m in only.critic.q2)


def test_crelu_passes_both_signs_on(state_spec, pixel_spec):
    agent = build("td3", state_spec, UseCReLU(CReLUConfig()))
    first, second, third = (m for m in agent.actor.policy if isinstance(m, nn.Linear))
    x = random_batch(state_spec).obs
    one = first(x)
    two = second(torch.cat([one.clamp(min=0), (-one).clamp(min=0)], 1))
    expected = third(torch.cat([two.clamp(min=0), (-two).clamp(min=0)], 1))
    torch.testing.assert_close(agent.actor(x), expected)
    visual, plain = build("drm", pixel_spec, UseCReLU(CReLUConfig())), build("drm", pixel_spec)
    assert visual.encoder.features == 2 * plain.encoder.features
    assert visual.encoder(random_batch(pixel_spec).obs).shape[1] == visual.encoder.features


def test_spectral_norm_holds_hidden_layers_at_one_and_acting_does_not_move_it(state_spec):
    agent = build("sac", state_spec, AddSpectralNorm(SpectralNormConfig()))
    learn(agent, state_spec, 6)
    found = spectral_layers(agent.critic) + spectral_layers(agent.critic_target)
    assert len(found) == 8, "two hidden layers of two heads, and the target's"
    for layer in found:
        effective = layer(torch.eye(layer.in_features)) - layer.bias
        assert float(torch.linalg.matrix_norm(effective, 2)) == pytest.approx(1.0, abs=0.02)
    state = {k: v.clone() for k, v in agent.actor.state_dict().items()}
    agent.act(random_batch(state_spec).obs.numpy(), step=50, explore=True)
    agent.value(random_batch(state_spec).obs.numpy())
    assert all(torch.equal(v, state[k]) for k, v in agent.actor.state_dict().items())


def norms(network):
    """The largest singular values of what hidden layers really multiply by."""
    found = []
    for layer in spectral_layers(network):
        effective = layer(torch.eye(layer.in_features)) - layer.bias
        found.append(float(torch.linalg.matrix_norm(effective, 2)))
    return found


@pytest.mark.parametrize("agent", ["td3", "ppo"])
@pytest.mark.parametrize("kind", ["reset", "shrink", "redo"])
def test_spectral_norm_holds_when_weights_are_replaced(state_spec, agent, kind):
    other = {
        "reset": ResetLayers(ResetConfig(21), weights=stream()),
        "shrink": ShrinkAndPerturb(ShrinkPerturbConfig(21, alpha=0.0), weights=stream()),
        "redo": ReDo(ReDoConfig(21, threshold=1.0), weights=stream()),
    }[kind]
    learner = build(agent, state_spec, AddSpectralNorm(SpectralNormConfig()), other)
    for i in range(4):
        (metrics,) = learn(learner, state_spec, 1, first_step=20 + i, seed=i)
        assert float(metrics["loss/critic"]) < 100.0
        for network in learner.networks.values():
            assert norms(network) == pytest.approx([1.0] * len(norms(network)), abs=0.1)


@pytest.mark.parametrize(
    "name", ["reset", "shrink_perturb", "spectral_norm", "layer_norm", "injection", "redo"]
)
@pytest.mark.parametrize("actions", ["state_spec", "discrete_spec"])
def test_rollout_is_learnt_from_by_the_networks_that_took_its_actions(request, actions, name):
    spec = request.getfixturevalue(actions)
    settings = {
        "reset": dataclasses.replace(RunConfig().reset, every_steps=1),
        "redo": dataclasses.replace(RunConfig().redo, every_steps=1, threshold=0.9),
        "shrink_perturb": dataclasses.replace(RunConfig().shrink_perturb, every_steps=1, alpha=0.5),
        "injection": dataclasses.replace(RunConfig().injection, at_step=1),
    }
    config = RunConfig(intervention=[name], **settings)
    agent = build("ppo", spec, *registry.build_interventions(config, Seeds(0)))
    used = []
    optimize = agent._run_epochs
    agent._run_epochs = lambda data: used.append(data) or optimize(data)
    for step in (1, 2, 3):
        rollout = random_rollout(agent, spec, step)
        obs = torch.from_numpy(np.concatenate(agent.acted))
        with torch.no_grad():
            action = torch.from_numpy(rollout.action).flatten(0, 1)
            expected = agent.actor(obs).log_prob(action)
        used.clear()
        agent.update(rollout, step=step)
        ((_, _, log_prob, _, _),) = used
        torch.testing.assert_close(log_prob, expected)


def test_reset_after_an_injection_begins_anew(state_spec):
    injection, reset = (
        PlasticityInjection(InjectionConfig(21), weights=stream()),
        ResetLayers(ResetConfig(30), weights=stream()),
    )
    agent = build("td3", state_spec, injection, reset)
    learn(agent, state_spec, 6)
    assert all(head.active for head in injected_heads(agent.critic))
    reset.before_update(30)
    drawn = stream()
    agent.modules.fresh_copy("actor", drawn)  # drawn before the critic
    fresh = agent.modules.fresh_copy("critic", drawn)
    x = random_batch(state_spec)
    for network in (agent.critic, agent.critic_target):
        for mine, wanted in zip(network(x.obs, x.action), fresh(x.obs, x.action), strict=True):
            torch.testing.assert_close(mine, wanted)
        assert not any(head.active for head in injected_heads(network))
    learn(agent, state_spec, 2, first_step=31)


def test_spectral_norms_gradient_is_torchs(state_spec):
    agent = build("td3", state_spec, AddSpectralNorm(SpectralNormConfig()))
    layer = spectral_layers(agent.actor)[0]
    layer.iterate(200)
    theirs = nn.Linear(layer.in_features, layer.out_features)
    theirs.load_state_dict({"weight": layer.weight.detach(), "bias": layer.bias.detach()})
    theirs = nn.utils.parametrizations.spectral_norm(theirs, n_power_iterations=200)
    x = random_batch(state_spec).obs
    for one in (layer, theirs):
        one(x).square().sum().backward()
    torch.testing.assert_close(layer(x), theirs(x), rtol=1e-4, atol=1e-5)
    other = theirs.parametrizations.weight.original.grad
    torch.testing.assert_close(layer.weight.grad, other, rtol=1e-3, atol=1e-4)


# --- regularisers ---


def test_weight_decay_is_adams(state_spec):
    ours = build("td3", state_spec, WeightDecay(WeightDecayConfig(0.1)))
    theirs = build("td3", state_spec)
    for name, optimizer in theirs.optimizers.items():
        (group,) = optimizer.param_groups
        own = torch.optim.Adam(group["params"], lr=group["lr"], weight_decay=0.1)
        theirs.optimizers[name] = own
    learn(ours, state_spec, 6)
    learn(theirs, state_spec, 6)
    one, two = weights(ours), weights(theirs)
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-6, msg=key)
    assert changed(two, weights(build("td3", state_spec)))


def test_l2_init_is_a_term_in_the_loss(state_spec):
    agent = build(
        "td3",
        state_spec,
        L2Init(L2InitConfig(0.05, networks=["critic"])),
    )
    start = [p.detach().clone() for p in agent.critic.parameters()]
    learn(agent, state_spec, 3)
    twin = build("td3", state_spec)
    twin.load_state_dict(
        copy.deepcopy(agent.state_dict())
        | {"modules": copy.deepcopy(agent.modules.state_dict()) | {"interventions": {}}}
    )
    batch = random_batch(state_spec, seed=8)
    noise = twin.generators["policy_noise"].get_state()
    target_q = twin._target_q(batch)
    twin.generators["policy_noise"].set_state(noise)
    q1, q2 = twin.critic(batch.obs, batch.action)
    loss = nn.functional.mse_loss(q1, target_q) + nn.functional.mse_loss(q2, target_q)
    own = twin.critic.parameters()
    loss = loss + 0.05 * sum((p - s).square().sum() for p, s in zip(own, start, strict=True))
    twin.critic.zero_grad()
    loss.backward()
    twin.optimizers["critic"].step()
    agent.update(batch, step=40)
    for ours, literal in zip(agent.critic.parameters(), twin.critic.parameters(), strict=True):
        torch.testing.assert_close(ours, literal, rtol=1e-4, atol=1e-6)


# --- switches ---


def test_frozen_encoder_learns_no_more_and_the_rest_does(pixel_spec):
    agent = build("drqv2", pixel_spec, FreezeEncoder(FreezeEncoderConfig(21)))
    learn(agent, pixel_spec, 1)
    before = weights(agent)
    frozen, after = learn(agent, pixel_spec, 2, first_step=21)
    assert frozen["event/freeze_encoder"] == 1.0 and "event/freeze_encoder" not in after
    networks = {key.split(".")[0] for key in changed(before, weights(agent))}
    assert networks == {"actor", "critic", "critic_target"}
    resumed = build("drqv2", pixel_spec, FreezeEncoder(FreezeEncoderConfig(21)))
    resumed.load_state_dict(copy.deepcopy(agent.state_dict()))
    assert "event/freeze_encoder" not in learn(resumed, pixel_spec, 1, first_step=23)[0]
    assert not [k for k in changed(before, weights(resumed)) if k.startswith("encoder")]


@pytest.mark.parametrize("on", [True, False])
def test_augmentation_is_switched_at_its_step(pixel_spec, on, monkeypatch):
    shifted = []
    monkeypatch.setattr(
        drqv2, "random_shift", lambda images, pad, generator: shifted.append(1) or images
    )
    agent = build("drqv2", pixel_spec, SwitchAugmentation(AugmentationConfig(22, on=on)))
    counts = []
    for step in range(20, 24):
        (metrics,) = learn(agent, pixel_spec, 1, first_step=step)
        assert ("event/augmentation" in metrics) == (step == 22)
        counts.append(len(shifted))
        shifted.clear()
    assert counts == ([0, 0, 2, 2] if on else [2, 2, 0, 0])


# --- all together ---


def possible():
    for agent in AGENTS:
        for name in INTERVENTIONS:
            if name not in agent_spec(agent).refused_interventions:
                yield agent, name, "usual"
                if agent == "drm":
                    yield agent, name, "fused"


@pytest.mark.parametrize(("agent", "name", "kind"), list(possible()))
@pytest.mark.parametrize("each_update", [False, True], ids=["0.5", "adaptive"])
def test_every_agent_takes_every_intervention(
    agent, name, kind, each_update, pixel_spec, state_spec, fused_spec
):
    """For a few updates over its first interval; and a resumed one goes on to the bit."""
    if each_update and agent_spec(agent).on_policy:
        pytest.skip("an agent on policy has no replay ratio")
    spec = pixel_spec if agent_spec(agent).observes_pixels else state_spec
    spec = with_actions_for(agent, fused_spec if kind == "fused" else spec)
    settings = {
        key: dataclasses.replace(getattr(RunConfig(), key), **{field: 22})
        for key, field in (
            ("redo", "every_steps"),
            ("reset", "every_steps"),
            ("shrink_perturb", "every_steps"),
            ("injection", "at_step"),
            ("freeze_encoder", "at_step"),
            ("augmentation", "at_step"),
        )
    }
    config = RunConfig(intervention=[name], **settings)

    def make():
        parts = registry.build_interventions(config, Seeds(0))
        assert [part.name for part in parts] == [name]
        monitor = PlasticityMonitor(every_steps=2, critic_each_update=each_update)
        return build(agent, spec, *parts, monitor=monitor)

    one, two = make(), make()
    update_schedule = off_policy_schedule(
        "adaptive" if each_update else 0.5, RunConfig().adaptive_ratio
    )
    first = learn(one, spec, 3)
    for metrics in first:
        update_schedule.observe(metrics)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    both = [learn(either, spec, 3, first_step=23, seed=50) for either in (one, two)]
    assert not changed(weights(one), weights(two))
    for one_metrics, two_metrics in zip(*both, strict=True):
        assert one_metrics.keys() == two_metrics.keys()
        for key, value in one_metrics.items():
            assert np.isfinite(float(value)), key
            assert float(value) == float(two_metrics[key]), key
    for metrics in first + both[0]:
        assert ("plasticity/fau_critic" in metrics) >= each_update
    assert all(any("weight_norm" in k for k in m) for m in (first[0] | first[1],))


def test_all_interventions_of_an_agent_work_together(pixel_spec):
    names = [n for n in INTERVENTIONS if n not in agent_spec("drqv2").refused_interventions]
    config = RunConfig(
        intervention=names,
        redo=dataclasses.replace(RunConfig().redo, every_steps=21),
        reset=dataclasses.replace(RunConfig().reset, every_steps=22),
        injection=dataclasses.replace(RunConfig().injection, at_step=23),
        shrink_perturb=dataclasses.replace(RunConfig().shrink_perturb, every_steps=24),
    )
    agent = build(
        "drqv2",
        pixel_spec,
        *registry.build_interventions(config, Seeds(0)),
        monitor=PlasticityMonitor(1),
    )
    for metrics in learn(agent, pixel_spec, 8):
        assert all(np.isfinite(float(value)) for value in metrics.values())
    for name in ("critic", "critic_target"):
        assert len(hidden_layers(agent.networks[name])) == 4


def test_no_global_randomness_is_used_by_any_intervention(pixel_spec):
    torch.manual_seed(1)
    before = torch.random.get_rng_state().clone()
    names = [n for n in INTERVENTIONS if n not in agent_spec("drqv2").refused_interventions]
    parts = registry.build_interventions(RunConfig(intervention=names), Seeds(0))
    learn(build("drqv2", pixel_spec, *parts), pixel_spec, 1, first_step=400_000)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_fresh_weights_are_the_agents_own_kind(state_spec):
    ppo = build("ppo", state_spec, PlasticityInjection(InjectionConfig(0), weights=stream()))
    fresh = ppo.modules.fresh_copy("actor", stream())
    last = [layer for layer in layers(fresh) if isinstance(layer, nn.Linear)][2::3]
    for layer in last:  # of base, fresh and anchor
        torch.testing.assert_close(
            layer.weight @ layer.weight.T, 1e-4 * torch.eye(3), rtol=1e-3, atol=1e-7
        )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("agent=td3 intervention=redoo", "no intervention 'redoo'; did you mean redo"),
        ("agent=ppo intervention=crelu", r"ppo cannot use it \(its hidden units are tanh.*redo"),
        ("agent=td3 intervention=freeze_encoder", "td3 cannot use it .*no encoder"),
        ("agent=drqv2 obs=state intervention=augmentation", "observes states here; obs=pixels"),
        ("agent=drm intervention=shrink_perturb", "one of DrM's own parts"),
        ("agent=td3 redo.threshold=0.2", "has no effect without intervention=redo"),
        ("agent=td3 intervention=redo redo.threshold=2", "redo.threshold: expected a number at"),
        ("agent=td3 intervention=redo redo.networks=[x]", "expected some of actor, critic"),
        (
            "agent=td3 intervention=reset reset.networks=[encoder]",
            "some of actor, critic, the networks",
        ),
        ("agent=drqv2 intervention=reset reset.networks=[encoder] obs=pixels", "of actor, critic,"),
        (
            "agent=drqv2 intervention=shrink_perturb shrink_perturb.networks=[encoder] obs=pixels",
            "some of actor, critic,",
        ),
        (
            "agent=td3 intervention=shrink_perturb shrink_perturb.alpha=1 "
            "shrink_perturb.alpha_min=0",
            "has no effect with shrink_perturb.alpha",
        ),
        ("agent=td3 intervention=crelu replay_ratio=adaptive", "half of CReLU's are active"),
        (
            "agent=td3 replay_ratio=adaptive adaptive_ratio.check_every_steps=9 "
            "adaptive_ratio.window=episode",
            "adaptive_ratio.window: has no effect with",
        ),
        ("agent=td3 replay_ratio=linear(0.5,2)", "replay_ratio: expected a number above 0"),
        ("agent=td3 intervention=redo,reset", r"write 'intervention=\[A,B\]'"),
        ("agent=td3 adaptive_ratio.low=1", "has no effect without replay_ratio=adaptive"),
        ("agent=td3 replay_ratio=0", "replay_ratio: expected a number above 0"),
        ("agent=ppo adaptive_ratio.low=1", "agent=ppo is on policy"),
        ("agent=td3 plasticity.dormant_threshold=-1", "dormant_threshold: expected a number at"),
    ],
)
def test_what_cannot_be_had_is_refused_in_a_sentence(words, sentence):
    with pytest.raises(ConfigError, match=sentence):
        compose(["env=Hopper-v5", *words.split()])


def test_smallest_share_above_the_largest_is_refused():
    with pytest.raises(ConfigError, match=r"alpha_min: expected at most alpha_max = 0\.3"):
        ShrinkAndPerturb(ShrinkPerturbConfig(10, alpha_min=0.9, alpha_max=0.3), weights=stream())


def test_env_that_turns_out_to_give_states_has_no_encoder_to_act_on():
    from rlearly.training.builder import make_agent

    for words in ("intervention=freeze_encoder", "intervention=redo redo.networks=[encoder]"):
        config = compose(["env=Hopper-v5", "agent=drqv2", *words.split()])
        spec = EnvSpec(Box(-1, 1, (7,), np.float32), Box(-1, 1, (3,), np.float32), 1)
        with pytest.raises(ConfigError, match="are states here, so there is no encoder"):
            make_agent(config, spec, CPU)


def test_interventions_are_named_alone_or_in_a_list():
    for word, names in (
        ("intervention=redo", ["redo"]),
        ("intervention=[redo,layer_norm,redo,none]", ["layer_norm", "redo"]),
        ("intervention=none", []),
        ("seed=1", []),
    ):
        assert compose(["env=Hopper-v5", "agent=td3", word]).intervention == names
    config = compose(["env=Hopper-v5", "agent=td3", "intervention=redo", "redo.networks=actor"])
    (part,) = registry.build_interventions(config, Seeds(0))
    assert part.applies_to("actor") and not part.applies_to("critic")


def test_strengths_are_those_of_the_terms_in_the_loss():
    """Adam's weight decay adds strength * w; the gradient of strength * |w - w0|^2 has a 2."""
    for name, strength, scale in (("weight_decay", 1e-5, 1e-5), ("l2_init", 1e-2, 2e-2)):
        (part,) = registry.build_interventions(RunConfig(intervention=[name]), Seeds(0))
        assert getattr(RunConfig(), name).strength == strength and part.gradient_scale == scale


def test_layer_norm_adds_none_where_q_heads_have_one(pixel_spec):
    own = {"q_dropout": 0.01, "q_layer_norm": True}
    plain = build("drqv2", pixel_spec, **own)
    both = build("drqv2", pixel_spec, AddLayerNorm(LayerNormConfig()), **own)
    for name, more in (("critic", 0), ("actor", 2)):
        norms = [
            sum(isinstance(m, nn.LayerNorm) for m in agent.networks[name].modules())
            for agent in (plain, both)
        ]
        assert norms[1] - norms[0] == more, name
