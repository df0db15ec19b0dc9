"""TD3 against a literal formula: one critic step, then one with the actor and the targets."""

import numpy as np
import pytest
import torch
from conftest import random_batch

from rlearly.agents import td3
from rlearly.system.seeding import Seeds


def mlp(weights, prefix, x):
    """The three layers written out, in float64."""
    for i, last in ((0, False), (2, False), (4, True)):
        x = x @ weights[f"{prefix}.{i}.weight"].T + weights[f"{prefix}.{i}.bias"]
        x = x if last else torch.clamp(x, min=0)
    return x


def double(network):
    return {k: v.detach().double().requires_grad_() for k, v in network.state_dict().items()}


def adam_step(parameter, gradient, moments, count, lr):
    """Adam as its paper writes it (arXiv 1412.6980, algorithm 1)."""
    first, second = moments
    first = 0.9 * first + 0.1 * gradient
    second = 0.999 * second + 0.001 * gradient**2
    change = (first / (1 - 0.9**count)) / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
    return parameter - lr * change, (first, second)


def close(network, expected, lr):
    """Equal within rounding; Adam's first steps may turn where a gradient is nearly 0."""
    for key, value in network.state_dict().items():
        assert torch.allclose(value.double(), expected[key], atol=lr / 20), key


def test_two_updates_equal_the_formula(state_spec):
    config = td3.Config(hidden_dim=16, noise_clip=0.3, lr=1e-3, target_tau=0.1)
    agent = td3.TD3(config, state_spec, seeds=Seeds(3), device=torch.device("cpu"))
    for network in (agent.actor_target, agent.critic_target):  # unlike their leaders
        for p in network.parameters():
            p.data.add_(0.05)
    noises = agent.generators["policy_noise"].clone_state()
    actor, critic = double(agent.actor), double(agent.critic)
    actor_target, critic_target = double(agent.actor_target), double(agent.critic_target)
    moments = dict.fromkeys(critic, (0.0, 0.0))

    for count in (1, 2):
        batch = random_batch(state_spec, seed=count)
        batch.discount[:4] = 0.0
        metrics = agent.update(batch, step=count)

        obs, action, reward, discount, next_obs = (
            getattr(batch, name).double()
            for name in ("obs", "action", "reward", "discount", "next_obs")
        )
        noise = torch.empty(action.shape).normal_(generator=noises).double() * 0.2
        next_action = torch.tanh(mlp(actor_target, "policy", next_obs))
        next_action = (next_action + noise.clamp(-0.3, 0.3)).clamp(-1, 1)
        x = torch.cat([next_obs, next_action], -1)
        target_q = torch.minimum(mlp(critic_target, "q1", x), mlp(critic_target, "q2", x))
        target_q = (reward + discount * target_q).detach()
        x = torch.cat([obs, action], -1)
        loss = sum(((mlp(critic, q, x) - target_q) ** 2).mean() for q in ("q1", "q2"))
        assert metrics["loss/critic"].item() == pytest.approx(loss.item(), rel=1e-4)
        gradients = torch.autograd.grad(loss, list(critic.values()))
        for (key, value), gradient in zip(list(critic.items()), gradients, strict=True):
            new, moments[key] = adam_step(value.detach(), gradient, moments[key], count, 1e-3)
            critic[key] = new.requires_grad_()
        close(agent.critic, critic, 1e-3)
        if count == 1:
            close(agent.actor, actor, 1e-6)
            close(agent.critic_target, critic_target, 1e-6)
            assert "loss/actor" not in metrics

    policy = torch.tanh(mlp(actor, "policy", obs))
    loss = -mlp(critic, "q1", torch.cat([obs, policy], -1)).mean()
    assert metrics["loss/actor"].item() == pytest.approx(loss.item(), rel=1e-4)
    gradients = torch.autograd.grad(loss, list(actor.values()))
    for (key, value), gradient in zip(list(actor.items()), gradients, strict=True):
        actor[key] = adam_step(value.detach(), gradient, (0.0, 0.0), 1, 1e-3)[0]
    close(agent.actor, actor, 1e-3)
    for target, leader, network in (
        (actor_target, actor, agent.actor_target),
        (critic_target, critic, agent.critic_target),
    ):
        expected = {k: 0.9 * target[k] + 0.1 * leader[k] for k in target}
        close(network, expected, 1e-4)


def test_weights_start_as_torch_starts_linear_layers(state_spec):
    agent = td3.TD3(td3.Config(), state_spec, seeds=Seeds(0), device=torch.device("cpu"))
    for layer in (agent.actor.policy[0], agent.actor.policy[2], agent.critic.q2[4]):
        bound = layer.in_features**-0.5
        for tensor in (layer.weight, layer.bias):
            assert tensor.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    same = [
        torch.equal(p, q)
        for p, q in zip(agent.critic.q1.parameters(), agent.critic.q2.parameters(), strict=True)
    ]
    assert not any(same), "the two critics start apart"
    assert all(
        torch.equal(p, q)
        for p, q in zip(agent.critic.parameters(), agent.critic_target.parameters(), strict=True)
    )


def test_acting_noise_has_the_given_width_and_stays_in_bounds(state_spec):
    config = td3.Config(hidden_dim=16, learning_starts_steps=0, exploration_noise=0.1)
    agent = td3.TD3(config, state_spec, seeds=Seeds(0), device=torch.device("cpu"))
    obs = np.zeros((4000, 7), np.float32)
    mean = agent.act(obs, step=0, explore=False)
    noisy = agent.act(obs, step=0, explore=True)
    assert (noisy - mean).std() == pytest.approx(0.1, rel=0.03)
    config = td3.Config(hidden_dim=16, learning_starts_steps=0, exploration_noise=5.0)
    loud = td3.TD3(config, state_spec, seeds=Seeds(0), device=torch.device("cpu"))
    assert np.abs(loud.act(obs, step=0, explore=True)).max() == 1.0


def test_value_is_q1_of_the_policy(state_spec):
    agent = td3.TD3(
        td3.Config(hidden_dim=16), state_spec, seeds=Seeds(0), device=torch.device("cpu")
    )
    obs = random_batch(state_spec, size=5).obs
    weights = double(agent.critic)
    action = torch.tanh(mlp(double(agent.actor), "policy", obs.double()))
    expected = mlp(weights, "q1", torch.cat([obs.double(), action], -1))[:, 0]
    assert np.allclose(agent.value(obs.numpy()), expected.detach().numpy(), atol=1e-5)
