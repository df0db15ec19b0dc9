"""PPO with discrete actions against literal formulas."""

import math

import numpy as np
import pytest
import torch
from conftest import random_rollout
from saved import rows
from test_ppo import check_loss, literal_advantage, literal_loss, make, tanh_mlp
from test_td3 import double

from rlearly import teacher, train
from rlearly.agents import ppo


def literal_policy(weights, obs):
    """Probabilities [B, n]: exp(logit) / sum of exp(logits)."""
    odds = tanh_mlp(weights, "policy", obs).exp()
    return odds / odds.sum(-1, keepdim=True)


def literal_log_prob(probability, action):
    return torch.stack([row[a] for row, a in zip(probability, action, strict=True)]).log()


def literal_entropy(probability):
    return -(probability * probability.log()).sum(-1).mean()


def sharpen(agent, by=100):
    """Let the probabilities be far from uniform."""
    with torch.no_grad():
        agent.actor.policy[4].weight.mul_(by)
        agent.actor.policy[4].bias.copy_(torch.tensor([0.5, -0.5, 0.0]))


def test_settings_left_open_are_cleanrls_for_the_action_space(state_spec, discrete_spec):
    continuous = ppo.Config().for_actions(state_spec.action)
    discrete = ppo.Config().for_actions(discrete_spec.action)
    names = ("lr", "rollout_steps", "minibatches", "epochs", "entropy_weight", "normalize")
    assert [getattr(continuous, name) for name in names] == [3e-4, 2048, 32, 10, 0.0, True]
    assert [getattr(discrete, name) for name in names] == [2.5e-4, 128, 4, 4, 0.01, False]
    chosen = ppo.Config(lr=1e-2, normalize=True, epochs=7, entropy_weight=0.0)
    chosen = chosen.for_actions(discrete_spec.action)
    assert [getattr(chosen, name) for name in names] == [1e-2, 128, 4, 7, 0.0, True]


def test_loss_of_a_minibatch_equals_the_formula(discrete_spec):
    agent = make(discrete_spec)
    sharpen(agent)
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(64, 7, generator=generator)
    action = torch.randint(3, (64,), generator=generator)
    noise = torch.randn(3, 64, generator=generator)
    with torch.no_grad():
        old_log_prob = agent.actor(obs).log_prob(action) + 0.3 * noise[0]
        old_value = agent.critic(obs) + 0.4 * noise[1]
    total, parts = agent._loss(obs, action, old_log_prob, old_value, noise[2])
    actor, critic = double(agent.actor), double(agent.critic)
    obs, *old = [t.double() for t in (obs, old_log_prob, old_value, noise[2])]
    probability = literal_policy(actor, obs)
    entropy = literal_entropy(probability)
    policy_loss, value_loss, loss, ratio = literal_loss(
        literal_log_prob(probability, action), entropy, critic, obs, *old
    )
    assert 0.2 < (ratio.sub(1).abs() > 0.2).double().mean() < 0.8, "both sides of the clip"
    assert 0.3 < entropy < 0.9 * math.log(3), "not nearly uniform"
    expected = {"loss/actor": policy_loss, "loss/critic": value_loss, "policy/entropy": entropy}
    check_loss(agent, total, parts, loss, expected, (actor, critic))


def test_one_update_equals_the_formula(discrete_spec):
    """One epoch in one minibatch, from observations and rewards that are not normalised."""
    agent = make(
        discrete_spec,
        **{"minibatches": 1, "epochs": 1, "lr": 1e-3, "max_grad_norm": 0.05},
        **{"discount": 0.9, "gae_lambda": 0.8},
    )
    sharpen(agent)
    rollout = random_rollout(agent, discrete_spec, seed=1, steps=8, num_envs=5)
    assert rollout.action.dtype == np.int64 and rollout.action.shape == (8, 5)
    assert set(rollout.action.ravel()) == {0, 1, 2}
    seen = np.random.default_rng(1).normal(size=(8, 5, 7)).astype(np.float32)
    acted = torch.from_numpy(np.stack(agent.acted)).double()
    assert np.array_equal(acted.numpy(), seen), "the observations as they came"
    actor, critic = double(agent.actor), double(agent.critic)
    metrics = agent.update(rollout, step=0)

    value = tanh_mlp(critic, "v", acted)[..., 0].detach().numpy()
    final = torch.from_numpy(rollout.next_obs).double()
    own = tanh_mlp(critic, "v", final)[..., 0].detach().numpy()
    after = np.where(rollout.truncated, own, np.concatenate([value[1:], own[-1:]]))
    gain = [
        [literal_advantage(rollout, t, env_index, value, after, 0.9, 0.8) for env_index in range(5)]
        for t in range(8)
    ]
    obs, action = acted.flatten(0, 1), torch.from_numpy(rollout.action).flatten()
    probability = literal_policy(actor, obs)
    log_prob, old_value = literal_log_prob(probability, action), torch.from_numpy(value).flatten()
    policy_loss, value_loss, loss, _ = literal_loss(
        log_prob,
        literal_entropy(probability),
        critic,
        obs,
        log_prob.detach(),
        old_value,
        torch.tensor(gain).double().flatten(),
    )
    assert metrics["loss/critic"].item() == pytest.approx(value_loss.item(), rel=1e-4)
    assert metrics["loss/actor"].item() == pytest.approx(policy_loss.item(), abs=1e-6)
    assert metrics["policy/kl"].item() == pytest.approx(0, abs=1e-6), "the behaviour's own policy"
    assert "policy/std" not in metrics
    weights = [*actor.values(), *critic.values()]
    gradients = torch.autograd.grad(loss, weights)
    length = math.sqrt(sum(float((g**2).sum()) for g in gradients))
    assert length > 0.05, "the clipped length is tested"
    new = [*agent.actor.state_dict().values(), *agent.critic.state_dict().values()]
    for p, weight, gradient in zip(new, weights, gradients, strict=True):
        gradient = gradient * 0.05 / length
        change = gradient / (gradient.abs() + 1e-5)  # Adam's first step
        assert torch.allclose(p.double(), weight - 1e-3 * change, atol=2e-5)


def test_acting_samples_the_softmax_and_evaluation_takes_the_mode(discrete_spec):
    agent = make(discrete_spec)
    with torch.no_grad():
        agent.actor.policy[4].weight.zero_()
        agent.actor.policy[4].bias.copy_(torch.tensor([0.2, 0.5, 0.3]).log())
    obs = np.zeros((50_000, 7), np.float32)
    drawn = agent.act(obs, step=0, explore=True)
    np.testing.assert_allclose(np.bincount(drawn) / 50_000, [0.2, 0.5, 0.3], atol=0.01)
    assert agent.act(obs[:4], step=0, explore=False).tolist() == [1, 1, 1, 1]


def test_observations_are_normalised_on_request(discrete_spec):
    agent = make(discrete_spec, normalize=True)
    generator = np.random.default_rng(0)
    history = []
    for t in range(8):
        history.append(generator.normal(3, 2, size=(4, 7)).astype(np.float32))
        agent.act(history[-1], step=t, explore=True)
    everything = np.concatenate(history)
    expected = (history[-1] - everything.mean(0)) / everything.std(0)
    np.testing.assert_allclose(agent.acted[-1], expected, atol=2e-3)


def final_return(folder):
    return [row["eval/episode_return"] for row in rows(folder) if "eval/episode_return" in row][-1]


@pytest.mark.slow
def test_cartpole_is_solved(tmp_path):
    words = ["agent=ppo", "env=CartPole-v1", "num_envs=4", "train_frames=500000", "video_size=0"]
    words += ["eval_every_frames=500000", "eval_episodes=100", f"run_dir={tmp_path}"]
    assert train.main(words) == 0
    assert final_return(tmp_path) >= 475


@pytest.mark.slow
def test_minigrid_is_solved_and_from_snapshots_too(tmp_path):
    """The return is 1 - 0.9 * steps / 100, and 5 steps suffice."""
    words = ["agent=ppo", "env=minigrid:MiniGrid-Empty-5x5-v0", "num_envs=4", "video_size=0"]
    words += ["train_frames=20000", "eval_every_frames=20000"]
    run, student, recorded = tmp_path / "run", tmp_path / "student", tmp_path / "empty.h5"
    assert train.main([*words, f"run_dir={run}"]) == 0
    assert final_return(run) > 0.9
    steps = ["episodes=20", "every_steps=1"]
    assert teacher.main([f"run={run}", *steps, f"out={recorded}"]) == 0
    phase = ["until_steps=10000", "truncate_steps=20", "clusters=4"]
    words += [f"snapshot={recorded}", *(f"snapshot_phase.{word}" for word in phase)]
    assert train.main([*words, f"run_dir={student}"]) == 0
    assert final_return(student) > 0.9
