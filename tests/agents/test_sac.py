"""SAC against a literal formula: a critic step, then one with the actor and alpha, twice each."""

import math

import numpy as np
import pytest
import torch
from conftest import random_batch
from test_td3 import adam_step, close, double, mlp

from rlearly.agents import sac
from rlearly.nn.distributions import squashed_gaussian
from rlearly.plasticity.monitor import PlasticityMonitor
from rlearly.system.seeding import Seeds


def make(spec, monitor=None, **settings):
    config = sac.Config(**{"hidden_dim": 16} | settings)
    return sac.SAC(config, spec, seeds=Seeds(3), device=torch.device("cpu"), monitor=monitor)


def policy(weights, obs):
    """Mean and std before squashing, written out."""
    mean, raw = mlp(weights, "policy", obs).split(3, -1)
    return mean, (-5 + 3.5 * (raw.tanh() + 1)).exp()


def sample(weights, obs, noises):
    """An action and the log of its density, written out."""
    mean, std = policy(weights, obs)
    noise = torch.empty(mean.shape).normal_(generator=noises).double()
    x = mean + std * noise
    density = (-((x - mean) ** 2) / (2 * std**2)).exp() / (std * math.sqrt(2 * math.pi))
    y = x.tanh()
    return y, (density.log() - (1 - y**2 + 1e-6).log()).sum(-1, keepdim=True)


def step(weights, loss, moments, count, lr):
    """Adam on every weight of one network; new leaves."""
    gradients = torch.autograd.grad(loss, list(weights.values()))
    for (key, value), gradient in zip(list(weights.items()), gradients, strict=True):
        new, moments[key] = adam_step(value.detach(), gradient, moments[key], count, lr)
        weights[key] = new.requires_grad_()


@pytest.mark.parametrize("fixed", [None, 0.3])
def test_two_updates_equal_the_formula(state_spec, fixed):
    agent = make(state_spec, policy_lr=2e-3, q_lr=1e-3, target_tau=0.1, alpha=fixed)
    for p in agent.critic_target.parameters():  # unlike its leader
        p.data.add_(0.05)
    noises = agent.generators["policy_noise"].clone_state()
    actor, critic, target = map(double, (agent.actor, agent.critic, agent.critic_target))
    critic_moments = dict.fromkeys(critic, (0.0, 0.0))
    actor_moments = dict.fromkeys(actor, (0.0, 0.0))
    alphas = {"log": torch.tensor(math.log(fixed or 1.0)).double().requires_grad_()}
    alpha_moments = {"log": (0.0, 0.0)}

    for count in (1, 2):
        batch = random_batch(state_spec, seed=count)
        batch.discount[:4] = 0.0
        metrics = agent.update(batch, step=count)

        obs, action, reward, discount, next_obs = (
            getattr(batch, name).double()
            for name in ("obs", "action", "reward", "discount", "next_obs")
        )
        next_action, log_prob = sample(actor, next_obs, noises)
        x = torch.cat([next_obs, next_action], -1)
        target_q = torch.minimum(mlp(target, "q1", x), mlp(target, "q2", x))
        target_q = (reward + discount * (target_q - alphas["log"].exp() * log_prob)).detach()
        x = torch.cat([obs, action], -1)
        loss = sum(((mlp(critic, q, x) - target_q) ** 2).mean() for q in ("q1", "q2"))
        assert metrics["loss/critic"].item() == pytest.approx(loss.item(), rel=1e-4)
        step(critic, loss, critic_moments, count, 1e-3)
        close(agent.critic, critic, 1e-3)
        if count == 1:
            close(agent.actor, actor, 1e-6)
            assert agent.log_alpha.item() == pytest.approx(math.log(fixed or 1.0))
            assert "loss/actor" not in metrics
        target = {k: (0.9 * target[k] + 0.1 * critic[k]).detach() for k in target}
        close(agent.critic_target, target, 1e-4)  # moves at every update

    for count in (1, 2):  # two steps of the actor make up for the delay of two
        drawn, log_prob = sample(actor, obs, noises)
        x = torch.cat([obs, drawn], -1)
        q = torch.minimum(mlp(critic, "q1", x), mlp(critic, "q2", x))
        alpha = alphas["log"].exp().detach()
        loss = (alpha * log_prob - q).mean()
        entropy = -log_prob.mean().item()
        step(actor, loss, actor_moments, count, 2e-3)
        if fixed is None:
            _, log_prob = sample(actor, obs, noises)
            alpha_loss = (-alphas["log"].exp() * (log_prob.detach() + (-3))).mean()
            step(alphas, alpha_loss, alpha_moments, count, 1e-3)
            rest = pytest.approx(alpha_loss.item(), rel=1e-4)
    assert metrics["loss/actor"].item() == pytest.approx(loss.item(), rel=1e-4)
    assert metrics["policy/entropy"].item() == pytest.approx(entropy, rel=1e-4)
    assert metrics["policy/alpha"].item() == pytest.approx(alpha.item(), rel=1e-5)
    close(agent.actor, actor, 2e-3)
    assert agent.log_alpha.item() == pytest.approx(alphas["log"].item(), abs=1e-6)
    if fixed is None:
        assert metrics["loss/alpha"].item() == rest
        assert abs(agent.log_alpha.item()) > 1e-3
    assert torch.equal(agent.generators["policy_noise"].get_state(), noises.get_state())


def test_log_probability_is_that_of_torchs_tanh_gaussian():
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    log_std = torch.randn(50, 3, generator=generator, dtype=torch.float64).clamp(-3, 0.5) - 1
    noise = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    action, log_prob = squashed_gaussian(mean, log_std, noise)
    squashed = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(mean, log_std.exp()),
        [torch.distributions.TanhTransform(cache_size=1)],
    )
    inside = (action.abs() < 0.99).all(-1)  # 1e-6 in the logarithm shows beside a small slope
    assert inside.sum() > 20
    expected = squashed.log_prob(action).sum(-1, keepdim=True)
    torch.testing.assert_close(log_prob[inside], expected[inside], atol=1e-3, rtol=0)
    assert log_prob.shape == (50, 1)


def test_density_sums_to_one_over_the_actions():
    """In one dimension: integral of exp(log_prob) dy = 1, with dy = slope * std * d(noise)."""
    noise = torch.linspace(-8, 8, 20_001, dtype=torch.float64)[:, None]
    mean, log_std = torch.full_like(noise, 0.4), torch.full_like(noise, -0.7)
    action, log_prob = squashed_gaussian(mean, log_std, noise)
    assert torch.trapezoid(log_prob.exp()[:, 0], action[:, 0]).item() == pytest.approx(1, abs=1e-4)


def test_log_probability_stays_finite_at_the_edge_and_log_std_in_its_bounds(state_spec):
    far = torch.full((1, 1), 40.0)
    action, log_prob = squashed_gaussian(far, torch.zeros(1, 1), torch.zeros(1, 1))
    assert action.item() == 1.0 and log_prob.isfinite().all()
    agent = make(state_spec)
    _, usual = agent._policy(torch.zeros(1, 7))
    assert ((usual > -5) & (usual < 2)).all()
    for sign, bound in ((-1, -5.0), (1, 2.0)):
        with torch.no_grad():
            agent.actor.policy[-1].bias.fill_(sign * 1e3)
        _, log_std = agent._policy(torch.zeros(1, 7))
        assert torch.equal(log_std, torch.full((1, 3), bound))


def test_acting_samples_the_policy_and_evaluation_takes_its_mean(state_spec):
    agent = make(state_spec, learning_starts_steps=0)
    obs = np.tile(random_batch(state_spec, size=1).obs.numpy(), (20_000, 1))
    mean, std = policy(double(agent.actor), torch.from_numpy(obs[:1]).double())
    assert np.allclose(agent.act(obs[:1], step=0, explore=False), mean.tanh().detach(), atol=1e-6)
    drawn = np.arctanh(agent.act(obs, step=0, explore=True).astype(np.float64) * (1 - 1e-7))
    assert np.allclose(drawn.mean(0), mean.detach()[0], atol=0.01)
    assert np.allclose(drawn.std(0), std.detach()[0], rtol=0.03)


def test_value_is_the_smaller_q_at_the_mean_action(state_spec):
    agent = make(state_spec)
    obs = random_batch(state_spec, size=5).obs
    weights = double(agent.critic)
    action = policy(double(agent.actor), obs.double())[0].tanh()
    x = torch.cat([obs.double(), action], -1)
    expected = torch.minimum(mlp(weights, "q1", x), mlp(weights, "q2", x))[:, 0]
    assert np.allclose(agent.value(obs.numpy()), expected.detach().numpy(), atol=1e-5)


def test_alpha_rises_while_the_entropy_is_under_its_target_and_falls_above(state_spec):
    for bias, rises in ((-1e3, True), (0.0, False)):  # std 0.007: entropy under -3; 0.22: above
        agent = make(state_spec, policy_lr=1e-9)
        with torch.no_grad():
            agent.actor.policy[-1].weight.zero_()
            agent.actor.policy[-1].bias[:3] = 0.0
            agent.actor.policy[-1].bias[3:] = bias
        for i in range(4):
            agent.update(random_batch(state_spec, seed=i), step=i)
        assert (agent.log_alpha.item() > 0) == rises, bias


def test_plasticity_is_measured_at_policy_updates_only(state_spec):
    agent = make(state_spec, monitor=PlasticityMonitor(every_steps=3))
    steps = [5, 5, 6, 7, 8, 8, 9, 9]
    measured = [agent.update(random_batch(state_spec), step=step) for step in steps]
    for key in ("fau_critic", "fau_critic_q1", "fau_actor", "dormant_ratio"):
        found = [i for i, m in enumerate(measured) if f"now/plasticity/{key}" in m]
        assert found == [1, 3, 7], key  # due at steps 5 and 6 and 9, done where the actor computes
    never = make(state_spec)
    for i in range(4):
        assert not any("plasticity" in k for k in never.update(random_batch(state_spec), step=i))
