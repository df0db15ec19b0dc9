"""DrM's mechanisms against slow, literal formulas and worked examples."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import random_batch
from torch import nn

from rlearly.agents import drm, drqv2
from rlearly.agents.drm import AwakenExploration, DormancyGuidedTarget
from rlearly.agents.modules import AgentModules, NetworkBuilder
from rlearly.config.interventions import ShrinkPerturbConfig
from rlearly.nn.layers import draw_dropout_from
from rlearly.nn.networks import Actor, Critic, FusedFeatures, Value, initialise_
from rlearly.nn.schedules import Linear
from rlearly.plasticity.interventions.resets import ShrinkAndPerturb
from rlearly.plasticity.measures import active_fraction, dormant_ratio
from rlearly.system.seeding import Seeds

CPU = torch.device("cpu")
SMALL = {"hidden_dim": 16, "feature_dim": 8, "encoder_channels": 4}


def literal_dormant_ratio(layers, threshold):
    dormant, neurons = 0, 0
    for layer in layers:
        rows, columns = layer.shape
        scores = [sum(abs(float(layer[i, j])) for i in range(rows)) / rows for j in range(columns)]
        mean = sum(scores) / columns
        for score in scores:
            dormant += mean == 0 or score / mean <= threshold
            neurons += 1
    return dormant / neurons


def test_dormant_ratio_of_a_worked_example():
    # Scores 1, 0, 5: mean 2, normalised 0.5, 0, 2.5. One of three is at most 0.025.
    layer = torch.tensor([[1.0, 0.0, -4.0], [-1.0, 0.0, 6.0]])
    assert float(dormant_ratio([layer], 0.025)) == pytest.approx(1 / 3)
    assert float(dormant_ratio([layer], 0.5)) == pytest.approx(2 / 3)


def test_dead_layer_is_fully_dormant():
    dead, alive = torch.zeros(4, 3), torch.ones(4, 5)
    assert float(dormant_ratio([dead, alive], 0.025)) == pytest.approx(3 / 8)


def test_dormant_ratio_equals_the_literal_formula():
    generator = torch.Generator().manual_seed(0)
    layers = [
        torch.randn(8, n, generator=generator).clamp(min=0.6 * k) for k, n in ((0, 9), (1, 7))
    ]
    layers[0][:, :4] *= 1e-3
    for threshold in (0.0, 0.025, 0.9, 1.0):
        expected = literal_dormant_ratio(layers, threshold)
        assert float(dormant_ratio(layers, threshold)) == pytest.approx(expected)


def test_active_fraction_counts_units_above_zero():
    layers = [torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0, 3.0]])]
    assert float(active_fraction(layers)) == pytest.approx(3 / 8)


def test_actor_records_the_four_tensors_that_the_official_hooks_measure():
    actor = Actor(features=6, actions=2, feature_dim=4, hidden_dim=5)
    initialise_(actor, torch.Generator().manual_seed(0))
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    record, pre_activations = [], []
    mean = actor(x, record, pre_activations)
    weights = dict(actor.named_parameters())
    projected = x @ weights["trunk.0.weight"].T + weights["trunk.0.bias"]
    normed = torch.tanh(nn.functional.layer_norm(projected, (4,)))
    one = torch.relu(normed @ weights["policy.0.weight"].T + weights["policy.0.bias"])
    two = torch.relu(one @ weights["policy.2.weight"].T + weights["policy.2.bias"])
    out = two @ weights["policy.4.weight"].T + weights["policy.4.bias"]
    for got, expected in zip([*record, *pre_activations], (one, two, projected, out), strict=True):
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(mean, torch.tanh(out))


def test_fused_actor_adds_the_vector_behind_its_trunk_and_measures_it():
    """DrM's Adroit agent: every linear layer is measured, those before a ReLU after it."""
    actor = Actor(features=6, actions=2, feature_dim=4, hidden_dim=5, vector=3)
    initialise_(actor, torch.Generator().manual_seed(0))
    random = torch.Generator().manual_seed(1)
    x, v = torch.randn(7, 6, generator=random), torch.randn(7, 3, generator=random)
    record, pre_activations = [], []
    mean = actor(FusedFeatures(x, v), record, pre_activations)
    w = dict(actor.named_parameters())

    def layer(name, inputs):
        return inputs @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    projected = layer("trunk.0", x)
    trunk = torch.tanh(nn.functional.layer_norm(projected, (4,)))
    of_vector = torch.relu(layer("fusion.vector.0", v))
    added = layer("fusion.vector.2", of_vector)
    of_both = torch.relu(layer("fusion.joint.0", trunk + added))
    joint = layer("fusion.joint.2", of_both)
    one = torch.relu(layer("policy.0", joint))
    two = torch.relu(layer("policy.2", one))
    out = layer("policy.4", two)
    expected = (of_vector, of_both, one, two, projected, added, joint, out)
    for got, wanted in zip([*record, *pre_activations], expected, strict=True):
        torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(mean, torch.tanh(out))
    assert not torch.equal(mean, actor(FusedFeatures(x, v + 1.0)))


def test_q_heads_with_dropout_and_layer_norm_are_their_formula():
    critic = Critic(6, 2, feature_dim=4, hidden_dim=50, dropout=0.2, norm=True)
    initialise_(critic, torch.Generator().manual_seed(0))
    draw_dropout_from(torch.Generator().manual_seed(3), critic)
    random = torch.Generator().manual_seed(1)
    features, action = torch.randn(7, 6, generator=random), torch.randn(7, 2, generator=random)
    q1, q2 = critic(features, action)
    w = dict(critic.named_parameters())
    inputs = torch.cat([critic.trunk(features), action], dim=-1)
    masks = torch.Generator().manual_seed(3)
    for head, got in (("q1", q1), ("q2", q2)):
        x = inputs
        for linear, norm in ((0, 2), (4, 6)):
            x = x @ w[f"{head}.{linear}.weight"].T + w[f"{head}.{linear}.bias"]
            x = x * torch.empty_like(x).bernoulli_(0.8, generator=masks) / 0.8
            mean, spread = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
            x = (x - mean) / (spread + 1e-5).sqrt()
            x = torch.relu(x * w[f"{head}.{norm}.weight"] + w[f"{head}.{norm}.bias"])
        torch.testing.assert_close(got, x @ w[f"{head}.8.weight"].T + w[f"{head}.8.bias"])
    critic.eval()
    assert torch.equal(critic(features, action)[0], critic(features, action)[0])
    assert not torch.equal(critic(features, action)[0], q1)


def test_dropout_is_drawn_for_critic_and_target_and_goes_on_where_it_was_saved(pixel_spec):
    config = drqv2.Config(**SMALL, q_dropout=0.5)

    def build(seed):
        return drqv2.make(config, pixel_spec, seeds=Seeds(seed), device=CPU)

    one, two = build(0), build(1)
    two.load_state_dict(one.state_dict())
    batch = random_batch(pixel_spec)
    features = one.encoder(batch.obs)
    for critic in ("critic", "critic_target"):
        drawn = [agent.networks[critic](features, batch.action)[0] for agent in (one, one, two)]
        assert not torch.equal(drawn[0], drawn[1])
        assert torch.equal(drawn[0], drawn[2])
        two.load_state_dict(one.state_dict())
    plain = drqv2.make(drqv2.Config(**SMALL), pixel_spec, seeds=Seeds(0), device=CPU)
    assert "dropout" not in plain.generators


def test_awakening_is_the_first_update_after_exploration_with_dormancy_below_the_threshold():
    awaken = AwakenExploration(Linear(1.0, 0.1, 100), 10.0, asleep_until_step=2000, device=CPU)
    awake, asleep = torch.tensor(0.1), torch.tensor(0.4)

    def sigma(beta):
        return 1 / (1 + math.exp(-10 * (beta - 0.2)))

    awaken.observe(2000, awake)  # still exploring
    assert float(awaken.std(2000, awake)) == pytest.approx(sigma(0.1))
    awaken.observe(2002, asleep)
    assert float(awaken.std(2002, asleep)) == pytest.approx(sigma(0.4))
    awaken.observe(2004, awake)
    assert int(awaken.awaken_step) == 2004
    assert float(awaken.std(2004, awake)) == pytest.approx(1.0)
    assert float(awaken.std(2054, awake)) == pytest.approx(0.55)
    awaken.observe(2054, asleep)
    awaken.observe(2056, awake)
    assert int(awaken.awaken_step) == 2004, "it awakens once"
    assert float(awaken.std(2104, asleep)) == pytest.approx(max(sigma(0.4), 0.1))
    assert float(awaken.std(9999, awake)) == pytest.approx(max(sigma(0.1), 0.1))


def make_guided(constant=False):
    value = Value(5, 4, 8)
    initialise_(value, torch.Generator().manual_seed(0))
    return DormancyGuidedTarget(
        value, lr=1e-3, expectile=0.9, lambda_max=0.6, slope=50.0, constant=constant
    )


def test_target_trusts_the_value_net_more_when_fewer_neurons_are_dormant():
    guided = make_guided()
    features, min_q = (
        torch.randn(3, 5, generator=torch.Generator().manual_seed(2)),
        torch.ones(3, 1),
    )
    shares = []
    for beta in (0.0, 0.2, 0.25, 1.0):
        share = 0.6 / (1 + math.exp(50 * (beta - 0.2)))
        with torch.no_grad():
            v = guided.value_net(features)
            got = guided.value(features, min_q, torch.tensor(beta))
        torch.testing.assert_close(got, share * v + (1 - share) * min_q, rtol=1e-4, atol=1e-6)
        shares.append(share)
    assert all(a > b for a, b in pairwise(shares)) and shares[1] == pytest.approx(0.3)
    assert float(make_guided(constant=True).share(torch.tensor(0.9))) == pytest.approx(0.6)


def test_value_net_fits_the_expectile():
    guided = make_guided()
    features = torch.randn(4, 5, generator=torch.Generator().manual_seed(3))
    q = torch.tensor([[3.0], [-3.0], [2.0], [-1.0]])
    with torch.no_grad():
        v = guided.value_net(features)
    expected = 0.0
    for i in range(4):
        error = float(q[i] - v[i])
        expected += (0.9 if error > 0 else 0.1) * error**2 / 4
    assert float(guided.fit(features, q, None)["loss/value"]) == pytest.approx(expected, rel=1e-5)


def body_of(networks, intervention, optimizers):
    builder = NetworkBuilder(
        lambda name, network, weights: initialise_(network, weights),
        torch.Generator(),
        CPU,
        [intervention],
    )
    targets = {"critic_target": "critic"} if "critic" in networks else {}
    return AgentModules(networks, builder, targets=targets, optimizers=optimizers, generators={})


def perturbed(scope, dormancy, alpha_min=0.2, alpha_max=0.9):
    generator = torch.Generator().manual_seed(0)
    networks = {
        "encoder": nn.Sequential(nn.Conv2d(3, 4, 3)),
        "actor": Actor(6, 2, 4, 5),
        "critic": Critic(6, 2, 4, 5),
        "critic_target": Critic(6, 2, 4, 5),
        "value": Value(6, 4, 5),
    }
    for network in networks.values():
        for parameter in network.parameters():
            parameter.data = torch.full_like(parameter, 10.0)
    optimizers = {n: torch.optim.Adam(net.parameters()) for n, net in networks.items()}
    for name, network in networks.items():
        sum(p.square().sum() for p in network.parameters()).backward()
        optimizers[name].step()
    before = {
        f"{n}.{k}": p.detach().clone()
        for n, net in networks.items()
        for k, p in net.named_parameters()
    }
    perturb = ShrinkAndPerturb(
        ShrinkPerturbConfig(100, alpha_min=alpha_min, alpha_max=alpha_max, scope=scope),
        weights=generator,
    )
    modules = body_of(networks, perturb, optimizers)
    modules.dormancy = torch.tensor(dormancy)
    perturb.before_update(0)  # learning begins in the first interval
    metrics = perturb.before_update(100)
    after = {f"{n}.{k}": p for n, net in networks.items() for k, p in net.named_parameters()}
    return metrics, before, after, optimizers


@pytest.mark.parametrize(
    ("dormancy", "alpha"), [(0.0, 0.9), (0.1, 0.8), (0.3, 0.4), (0.45, 0.2), (1.0, 0.2)]
)
def test_perturbation_keeps_more_weight_the_fewer_neurons_are_dormant(dormancy, alpha):
    metrics, before, after, optimizers = perturbed("linear", dormancy)
    assert float(metrics["event/perturbation_alpha"]) == pytest.approx(alpha)
    for name, parameter in after.items():
        is_linear = "encoder" not in name and ".trunk.1." not in name
        if not is_linear:
            assert torch.equal(parameter, before[name]), name
        elif name.endswith("bias"):
            torch.testing.assert_close(parameter, alpha * before[name])
        else:
            phi = (parameter - alpha * before[name]) / (1 - alpha)
            rows, columns = phi.shape
            product = phi @ phi.T if rows <= columns else phi.T @ phi
            torch.testing.assert_close(
                product, torch.eye(min(rows, columns)), rtol=1e-3, atol=2e-3, msg=name
            )
    assert not any(optimizer.state for optimizer in optimizers.values())


def test_target_critic_draws_its_own_fresh_weights():
    _, before, after, _ = perturbed("linear", 1.0)
    assert torch.equal(before["critic.q1.2.weight"], before["critic_target.q1.2.weight"])
    assert not torch.allclose(after["critic.q1.2.weight"], after["critic_target.q1.2.weight"])


def test_scope_all_touches_every_parameter():
    _, before, after, _ = perturbed("all", 1.0)
    for name, parameter in after.items():
        assert not torch.equal(parameter, before[name]), name


def test_perturbation_fires_once_an_interval_at_any_replay_ratio():
    generator = torch.Generator().manual_seed(0)
    for updates_per_step in (0.25, 0.5, 1, 2, 4):
        perturb = ShrinkAndPerturb(ShrinkPerturbConfig(100), weights=generator)
        modules = body_of({"actor": nn.Linear(2, 2)}, perturb, {})
        modules.dormancy = torch.tensor(0.3)
        fired, credit = [], 0.0
        for step in range(50, 350):
            credit += updates_per_step
            while credit >= 1:
                credit -= 1
                if perturb.before_update(step):
                    fired.append(step // 100)
        assert fired == [1, 2, 3]


def test_termination_reaches_the_critic_target(pixel_spec):
    """A discount of 0 leaves the reward alone (the official loader turns it into 1)."""
    for module in (drqv2, drm):
        agent = module.make(module.Config(**SMALL), pixel_spec, seeds=Seeds(0), device=CPU)
        batch = random_batch(pixel_spec, discount=0.0)
        metrics = agent.update(batch, step=5000)
        assert float(metrics["critic/target_q"]) == pytest.approx(float(batch.reward.mean()))


def test_the_target_carries_no_gradient_and_the_actor_none_into_the_critic(pixel_spec):
    agent = drm.make(drm.Config(**SMALL), pixel_spec, seeds=Seeds(0), device=CPU)
    untouched = {}
    for name in ("actor", "critic", "encoder", "value"):
        for key, p in agent.networks[name].named_parameters():
            p.register_hook(lambda g, k=(name, key): untouched.setdefault(k, []).append(g))
    agent.update(random_batch(pixel_spec), step=5000)
    calls = {key: len(grads) for key, grads in untouched.items()}
    assert calls and set(calls.values()) == {1}, "each weight is reached by exactly one loss"
    assert {name for name, _ in calls} == {"actor", "critic", "encoder", "value"}
    assert not any(p.grad is not None for p in agent.critic_target.parameters())


def test_critic_target_follows_by_tau(pixel_spec):
    agent = drqv2.make(drqv2.Config(**SMALL), pixel_spec, seeds=Seeds(0), device=CPU)
    old = {k: p.clone() for k, p in agent.critic_target.named_parameters()}
    agent.update(random_batch(pixel_spec), step=5000)
    new = dict(agent.critic.named_parameters())
    for key, p in agent.critic_target.named_parameters():
        torch.testing.assert_close(p, 0.99 * old[key] + 0.01 * new[key])


def test_schedule_is_in_agent_steps_and_linear():
    schedule = Linear(1.0, 0.1, 500_000)
    assert schedule(0) == 1.0 and schedule(250_000) == pytest.approx(0.55)
    assert schedule(10**7) == pytest.approx(0.1)
    steps = torch.tensor([0, 250_000, 10**7])
    np.testing.assert_allclose(schedule(steps), [1.0, 0.55, 0.1])
