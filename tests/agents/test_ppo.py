"""PPO against literal formulas: advantages, one minibatch's loss and step, moments, annealing."""

import math

import numpy as np
import pytest
import torch
from conftest import random_rollout
from test_td3 import double

from rlearly.agents import ppo
from rlearly.core.errors import ConfigError
from rlearly.core.types import Rollout
from rlearly.nn.distributions import gaussian_log_prob
from rlearly.nn.running_stats import RunningMeanStd
from rlearly.plasticity.monitor import PlasticityMonitor
from rlearly.replay.rollout import RolloutBuffer, RolloutNotFull
from rlearly.system.seeding import Seeds


def make(spec, monitor=None, **settings):
    config = ppo.Config(**{"hidden_dim": 16, "rollout_steps": 8, "minibatches": 2} | settings)
    return ppo.PPO(config, spec, seeds=Seeds(3), device=torch.device("cpu"), monitor=monitor)


def literal_advantage(rollout, t, env_index, value, next_value, gamma, lam):
    """sum over l of (gamma lambda)^l delta[t + l], until the episode or the rollout is over."""
    total, weight = 0.0, 1.0
    for i in range(t, len(rollout.reward)):
        ended = rollout.terminated[i, env_index]
        after = 0.0 if ended else next_value[i, env_index]
        total += weight * (rollout.reward[i, env_index] + gamma * after - value[i, env_index])
        if ended or rollout.truncated[i, env_index]:
            break
        weight *= gamma * lam
    return total


@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
def test_advantages_equal_the_slow_formula(lam):
    generator = np.random.default_rng(0)
    ends = generator.random((2, 40, 3)) < 0.12
    assert (ends[0] & ends[1]).any() and ends[0, -1].any() and not ends[:, -1].all()
    reward, value, after = generator.normal(size=(3, 40, 3))
    rollout = Rollout(None, reward, ends[0], ends[1], None)
    found = ppo.advantages(
        reward,
        value,
        after,
        terminated=ends[0],
        truncated=ends[1],
        discount=0.95,
        gae_lambda=lam,
    )
    for t in range(40):
        for env_index in range(3):
            expected = literal_advantage(rollout, t, env_index, value, after, 0.95, lam)
            assert found[t, env_index] == pytest.approx(expected, abs=1e-12)


def test_advantages_by_hand():
    """Rewards 1, gamma = lambda = 1/2: a termination is worth 0, a truncation V(after) = 8."""
    ends = np.array([[False], [True], [False], [False]])
    cut = np.array([[False], [False], [True], [False]])
    found = ppo.advantages(
        np.ones((4, 1)),
        np.array([[2.0], [4.0], [6.0], [2.0]]),
        np.array([[4.0], [6.0], [8.0], [10.0]]),
        terminated=ends,
        truncated=cut,
        discount=0.5,
        gae_lambda=0.5,
    )
    last = 1 + 0.5 * 10 - 2
    assert found[:, 0].tolist() == [1 + 0.5 * 4 - 2 + 0.25 * (1 - 4), 1 - 4, 1 + 0.5 * 8 - 6, last]


def tanh_mlp(weights, prefix, x):
    for i in (0, 2, 4):
        x = x @ weights[f"{prefix}.{i}.weight"].T + weights[f"{prefix}.{i}.bias"]
        x = x if i == 4 else x.tanh()
    return x


def literal_log_prob(weights, obs, action):
    mean, std = tanh_mlp(weights, "policy", obs), weights["log_std"].exp()
    density = (-((action - mean) ** 2) / (2 * std**2)).exp() / (std * math.sqrt(2 * math.pi))
    return density.log().sum(-1)


def literal_entropy(weights):
    return sum(0.5 * math.log(2 * math.pi * math.e) + s for s in weights["log_std"])


def literal_loss(log_prob, entropy, critic, obs, old_log_prob, old_value, gain):
    """CleanRL's loss, clip 0.2, entropy 0.01, value 0.5."""
    target = gain + old_value
    gain = (gain - gain.mean()) / (((gain - gain.mean()) ** 2).sum() / (len(gain) - 1)).sqrt()
    ratio = log_prob.exp() / old_log_prob.exp()
    near = torch.where(ratio > 1.2, 1.2, torch.where(ratio < 0.8, 0.8, ratio))
    policy_loss = torch.maximum(-gain * ratio, -gain * near).mean()
    value = tanh_mlp(critic, "v", obs)[:, 0]
    moved = torch.clamp(value - old_value, -0.2, 0.2)
    errors = torch.maximum((value - target) ** 2, (old_value + moved - target) ** 2)
    value_loss = 0.5 * errors.mean()
    return policy_loss, value_loss, policy_loss - 0.01 * entropy + 0.5 * value_loss, ratio


def check_loss(agent, total, parts, loss, expected, weights):
    """The loss, its parts and its gradients by the weights of actor and critic."""
    assert total.item() == pytest.approx(loss.item(), rel=1e-5)
    for name, value in expected.items():
        assert parts[name].item() == pytest.approx(value.item(), rel=1e-4), name
    total.backward()
    for network, literal in zip((agent.actor, agent.critic), weights, strict=True):
        gradients = torch.autograd.grad(loss, list(literal.values()), retain_graph=True)
        own = dict(network.named_parameters())
        for key, gradient in zip(literal, gradients, strict=True):
            assert torch.allclose(own[key].grad.double(), gradient, atol=1e-5), key


def test_loss_of_a_minibatch_equals_the_formula(state_spec):
    agent = make(state_spec, entropy_weight=0.01)
    generator = torch.Generator().manual_seed(0)
    obs, action = torch.randn(64, 7, generator=generator), torch.randn(64, 3, generator=generator)
    with torch.no_grad():
        agent.actor.log_std.copy_(torch.tensor([-0.5, 0.0, 0.3]))
        for p in agent.actor.policy[4].parameters():
            p.mul_(30)
        noise = torch.randn(3, 64, generator=generator)
        old_log_prob = gaussian_log_prob(*agent.actor(obs), action)
        old_log_prob += 0.3 * noise[0]
        old_value = agent.critic(obs) + 0.4 * noise[1]
    gain = noise[2]
    total, parts = agent._loss(obs, action, old_log_prob, old_value, gain)
    actor, critic = double(agent.actor), double(agent.critic)
    obs, action, *old = [t.double() for t in (obs, action, old_log_prob, old_value, gain)]
    entropy = literal_entropy(actor)
    policy_loss, value_loss, loss, ratio = literal_loss(
        literal_log_prob(actor, obs, action), entropy, critic, obs, *old
    )
    assert 0.2 < (ratio.sub(1).abs() > 0.2).double().mean() < 0.8, "both sides of the clip"
    expected = {
        "loss/actor": policy_loss,
        "loss/critic": value_loss,
        "policy/entropy": entropy,
        "policy/kl": (ratio - 1 - ratio.log()).mean(),
        "policy/clip_fraction": (ratio.sub(1).abs() > 0.2).double().mean(),
    }
    check_loss(agent, total, parts, loss, expected, (actor, critic))


def test_one_update_equals_the_formula(state_spec):
    """A whole update of one epoch in one minibatch: values, advantages, clipped Adam step."""
    agent = make(
        state_spec,
        minibatches=1,
        epochs=1,
        lr=1e-3,
        anneal_steps=160,
        entropy_weight=0.01,
        max_grad_norm=0.05,
        discount=0.9,
        gae_lambda=0.8,
    )
    for _ in range(2):  # moments, a learning rate and a discounted return to start from
        agent.update(random_rollout(agent, state_spec, steps=8, num_envs=5), step=0)
    for state in agent.optimizers["both"].state.values():  # as if Adam had not begun
        for value in state.values():
            value.zero_()
    rollout = random_rollout(agent, state_spec, seed=1, steps=8, num_envs=5)
    assert (rollout.truncated[:-1]).any() and (rollout.terminated[:-1]).any()
    actor, critic = double(agent.actor), double(agent.critic)
    seen, running = agent.obs_rms, agent.returns.copy()
    acted = torch.from_numpy(np.stack(agent.acted)).double()
    count, mean, squares = (
        agent.return_rms.count,
        float(agent.return_rms.mean),
        float(agent.return_rms.variance),
    )
    squares *= count
    metrics = agent.update(rollout, step=0)

    reward = np.empty((8, 5))
    for t in range(8):
        running = 0.9 * running + rollout.reward[t]
        for x in running:  # Welford, a number at a time
            count += 1
            away = x - mean
            mean += away / count
            squares += away * (x - mean)
        reward[t] = rollout.reward[t] / math.sqrt(squares / count + 1e-8)
        running[rollout.terminated[t] | rollout.truncated[t]] = 0.0
    final = (rollout.next_obs - seen.mean) / np.sqrt(seen.variance + 1e-8)
    final = torch.from_numpy(np.clip(final, -10, 10))
    value = tanh_mlp(critic, "v", acted)[..., 0].detach()
    own = tanh_mlp(critic, "v", final)[..., 0].detach().numpy()
    after = np.concatenate([value[1:].numpy(), own[-1:]])
    after = np.where(rollout.truncated, own, after)
    scaled = Rollout(None, reward, rollout.terminated, rollout.truncated, None)
    gain = [
        [literal_advantage(scaled, t, c, value.numpy(), after, 0.9, 0.8) for c in range(5)]
        for t in range(8)
    ]
    gain = torch.tensor(gain).double().flatten()
    obs, action = acted.flatten(0, 1), torch.from_numpy(rollout.action).double().flatten(0, 1)
    log_prob, entropy = literal_log_prob(actor, obs, action), literal_entropy(actor)
    policy_loss, value_loss, loss, _ = literal_loss(
        log_prob, entropy, critic, obs, log_prob.detach(), value.flatten(), gain
    )
    assert metrics["loss/critic"].item() == pytest.approx(value_loss.item(), rel=1e-4)
    assert metrics["loss/actor"].item() == pytest.approx(policy_loss.item(), abs=1e-6)
    assert metrics["policy/kl"].item() == pytest.approx(0, abs=1e-6), "the behaviour's own policy"
    target = gain + value.flatten()
    explained = 1 - gain.var(unbiased=False) / target.var(unbiased=False)
    assert metrics["critic/explained_variance"].item() == pytest.approx(explained.item(), abs=1e-4)
    assert metrics["policy/lr"] == pytest.approx(1e-3 * (1 - 80 / 160))
    weights = [*actor.values(), *critic.values()]
    gradients = torch.autograd.grad(loss, weights)
    length = math.sqrt(sum(float((g**2).sum()) for g in gradients))
    assert length > 0.05, "the clipped length is tested"
    new = [*agent.actor.state_dict().values(), *agent.critic.state_dict().values()]
    for p, weight, gradient in zip(new, weights, gradients, strict=True):
        gradient = gradient * 0.05 / length
        change = gradient / (gradient.abs() + 1e-5)  # Adam's first step
        assert torch.allclose(p.double(), weight - 5e-4 * change, atol=2e-5)


@pytest.mark.parametrize("by", ["hand", "autograd"])
def test_every_transition_is_learnt_from_once_in_each_epoch(state_spec, by):
    agent = make(state_spec, epochs=3, minibatches=4, rollout_steps=9)
    sizes, seen = [], []
    loss, differentiate = agent._loss, agent.fast_gradient.differentiate

    def noted(obs, action, *rest):
        sizes.append(len(obs))
        seen.extend(action[:, 0].tolist())
        return loss(obs, action, *rest)

    def noted_rows(rows, *rest):
        sizes.append(len(rows))
        seen.extend(rows.action[0].tolist())
        differentiate(rows, *rest)

    agent._loss, agent.fast_gradient.differentiate = noted, noted_rows
    if by == "autograd":
        agent.fast_gradient = None
    rollout = random_rollout(agent, state_spec, steps=9, num_envs=2)
    agent.update(rollout, step=0)
    assert sizes == [5, 5, 4, 4] * 3
    expected = sorted(rollout.action[..., 0].ravel().tolist())
    epochs = [seen[i : i + 18] for i in range(0, 54, 18)]
    assert all(sorted(epoch) == expected for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2], "shuffled anew"


def test_discounted_return_starts_anew_with_each_episode(state_spec):
    """gamma 1/2, rewards 4: episodes end by themselves, by time, or not, the last ones at the end
    of the rollout; the next rollout goes on from there."""
    agent = make(state_spec, discount=0.5, rollout_steps=4)
    terminated, truncated = np.zeros((2, 4, 3), bool)
    terminated[1, 0] = truncated[2, 1] = terminated[3, 0] = truncated[3, 1] = True
    agent._scaled_rewards(Rollout(None, np.full((4, 3), 4.0), terminated, truncated, None))
    assert agent.returns.tolist() == [0.0, 0.0, 4 + 2 + 1 + 0.5]
    seen = [4, 6, 4, 6, 4, 6, 7, 4, 4, 6, 7, 7.5]
    assert float(agent.return_rms.mean) == pytest.approx(np.mean(seen), rel=1e-4)
    assert float(agent.return_rms.variance) == pytest.approx(np.var(seen), rel=1e-3)


def test_rewards_are_cut(state_spec):
    agent = make(state_spec, rollout_steps=4)
    never = np.zeros((400, 1), bool)
    reward = np.zeros((400, 1))
    reward[[100, 300], 0] = 1.0, -1.0
    reward[:50] = 1e-4
    found = agent._scaled_rewards(Rollout(None, reward, never, never, None))
    assert found.max() == 10 and found.min() >= -10 and 0 < found[3, 0] < 10


def test_moments_are_those_of_everything_seen():
    generator = np.random.default_rng(0)
    batches = [generator.normal(50, 3, size=(n, 4)) for n in (1, 1, 5, 1, 300)]
    moments = RunningMeanStd((4,))
    for batch in batches:
        moments.update(batch)
    everything = np.concatenate(batches)
    assert moments.count == pytest.approx(308)
    np.testing.assert_allclose(moments.mean, everything.mean(0), rtol=1e-6)
    variance = everything.var(0) + 1e-4 / 308 * everything.mean(0) ** 2  # of the first 1e-4 zeros
    np.testing.assert_allclose(moments.variance, variance, rtol=1e-5)


@pytest.mark.parametrize("shape", [(4,), ()])
def test_moments_of_rows_are_those_of_a_batch_of_them(shape):
    """float32 rows with a large mean, one at a time, as a single copy of an env gives them."""
    rows = np.random.default_rng(0).normal(1e3, 2, size=(500, *shape)).astype(np.float32)
    one, two = RunningMeanStd(shape), RunningMeanStd(shape)
    for row in rows:
        one.update(row[None])
    two.update(rows)
    assert one.count == pytest.approx(two.count)
    np.testing.assert_allclose(one.mean, two.mean, rtol=1e-12)
    np.testing.assert_allclose(one.variance, two.variance, rtol=1e-9)


def test_moments_in_order_are_those_after_each_row():
    rows = np.random.default_rng(0).normal(100, 2, size=(30, 3))
    one, two = RunningMeanStd(()), RunningMeanStd(())
    one.update(np.full(10, 100.0)), two.update(np.full(10, 100.0))
    found = one.update_in_order(rows)
    for row, variance in zip(rows, found, strict=True):
        two.update(row)
        assert variance == pytest.approx(float(two.variance), rel=1e-9)
    assert float(one.mean) == pytest.approx(float(two.mean), rel=1e-12)
    assert float(one.variance) == found[-1] and one.count == two.count
    three = RunningMeanStd(())
    three.load_state_dict(one.state_dict())
    assert np.array_equal(three.update_in_order(rows), one.update_in_order(rows))


def test_observations_are_normalised_as_they_were_when_acted_on(state_spec):
    agent = make(state_spec)
    generator = np.random.default_rng(0)
    history = []
    for t in range(6):
        obs = generator.normal(3, 2, size=(4, 7)).astype(np.float32)
        history.append(obs)
        agent.act(obs, step=t, explore=True)
        agent.act(1e6 * obs, step=t, explore=False)  # an evaluation leaves no trace
        agent.value(1e6 * obs)
        everything = np.concatenate(history).astype(np.float64)
        expected = (obs - everything.mean(0)) / everything.std(0)
        np.testing.assert_allclose(agent.acted[-1], expected, atol=2e-3)
    assert len(agent.acted) == 6
    far = np.full((1, 7), 1e9, np.float32)
    assert (agent._normalize(far) == 10).all() and (agent._normalize(-far) == -10).all()


def test_acting_samples_the_gaussian_and_evaluation_takes_its_mean(state_spec):
    agent = make(state_spec)
    with torch.no_grad():
        agent.actor.log_std.copy_(torch.tensor([-1.0, 0.0, 0.5]))
        agent.actor.policy[4].bias.copy_(torch.tensor([0.0, 0.5, -3.0]))
        agent.actor.policy[4].weight.zero_()
    obs = np.zeros((50_000, 7), np.float32)
    drawn = agent.act(obs, step=0, explore=True)
    np.testing.assert_allclose(drawn.mean(0), [0.0, 0.5, -3.0], atol=0.03)
    np.testing.assert_allclose(drawn.std(0), np.exp([-1.0, 0.0, 0.5]), rtol=0.02)
    assert agent.act(obs[:1], step=0, explore=False)[0].tolist() == [0.0, 0.5, -1.0]


def test_learning_rate_falls_linearly_to_nothing(state_spec):
    agent = make(state_spec, lr=0.1, anneal_steps=64, epochs=1)
    rates = [
        agent.update(random_rollout(agent, state_spec, num_envs=2), step=0)["policy/lr"]
        for _ in range(6)
    ]
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025, 0.0, 0.0])
    assert agent.optimizers["both"].param_groups[0]["eps"] == 1e-5


def test_layers_start_orthogonal_with_their_gains(state_spec):
    agent = make(state_spec, hidden_dim=64)
    for network, last in ((agent.actor.policy, 0.01), (agent.critic.v, 1.0)):
        for layer, gain in ((network[0], 2**0.5), (network[2], 2**0.5), (network[4], last)):
            singular = torch.linalg.svdvals(layer.weight)
            assert torch.allclose(singular, torch.full_like(singular, gain), rtol=1e-4)
            assert not layer.bias.any()
    assert not agent.actor.log_std.any()


def test_only_its_own_actions_can_be_learnt_from(state_spec):
    agent = make(state_spec)
    rollout = random_rollout(agent, state_spec, steps=8)
    agent.act(rollout.next_obs[0], step=0, explore=True)
    with pytest.raises(ValueError, match="expected a rollout of 9 steps, received 8"):
        agent.update(rollout, step=0)
    with pytest.raises(ConfigError, match=r"agent.minibatches: expected at most half of .* = 8"):
        make(state_spec, minibatches=5)


def test_plasticity_is_measured_at_its_interval(state_spec):
    agent = make(state_spec, monitor=PlasticityMonitor(every_steps=2, threshold=0.5))
    with torch.no_grad():
        agent.critic.v[0].weight.zero_()  # every first-layer unit is then dead
    measured = [agent.update(random_rollout(agent, state_spec, seed=i), step=i) for i in range(4)]
    for key in ("now/plasticity/dormant_ratio", "now/plasticity/dormant_ratio_critic"):
        assert [key in m for m in measured] == [True, False, True, False]
    assert float(measured[0]["now/plasticity/dormant_ratio_critic"]) == 1.0
    assert float(measured[0]["now/plasticity/dormant_ratio"]) < 0.5
    assert not any("fau" in key for key in measured[0]), "tanh units are never silent"
    never = make(state_spec)
    assert not any(
        "plasticity" in k for k in never.update(random_rollout(never, state_spec), step=0)
    )


def test_rollout_is_full_once_every_copy_took_its_steps_and_then_empty(state_spec):
    memory = RolloutBuffer(state_spec, steps=3, num_envs=2)
    with pytest.raises(ValueError, match=r"expected steps \* num_envs = 6, received 4"):
        memory.sample(4)
    for t in range(3):
        for env_index in range(2):
            with pytest.raises(RolloutNotFull):
                memory.sample(6)
            memory.add(
                np.full(3, 10 * t + env_index, np.float32),
                t + env_index / 10,
                np.full(7, t, np.float32),
                terminated=(t, env_index) == (1, 0),
                truncated=(t, env_index) == (0, 1),
                env_index=env_index,
            )
    assert len(memory) == 6
    rollout = memory.sample(6)
    assert rollout.action[:, :, 0].tolist() == [[0, 1], [10, 11], [20, 21]]
    assert rollout.reward.tolist() == [[0, 0.1], [1, 1.1], [2, 2.1]]
    assert rollout.terminated.tolist() == [[False, False], [True, False], [False, False]]
    assert rollout.truncated.tolist() == [[False, True], [False, False], [False, False]]
    assert rollout.next_obs[:, 1, 0].tolist() == [0, 1, 2]
    assert len(memory) == 0
    memory.arrays["reward"][:] = 7.0
    assert rollout.reward[0, 0] == 0, "what was sampled stays as it was"


def test_episode_left_off_without_an_end_is_cut(state_spec):
    memory = RolloutBuffer(state_spec, steps=2, num_envs=1)
    obs = np.zeros(7, np.float32)
    memory.begin_episode(obs, env_index=0)
    memory.add(np.zeros(3), 0.0, obs, terminated=False, truncated=False, env_index=0)
    memory.begin_episode(obs, env_index=0)  # a resumed run whose env did not return to its state
    memory.add(np.zeros(3), 0.0, obs, terminated=True, truncated=False, env_index=0)
    memory.begin_episode(obs, env_index=0)
    rollout = memory.sample(2)
    assert rollout.truncated[:, 0].tolist() == [True, False]
    assert rollout.terminated[:, 0].tolist() == [False, True]


def test_noise_drawn_ahead_goes_on_after_loading_and_is_used_once(state_spec):
    def noise(agent, steps):
        obs = np.zeros((3, 7), np.float32)  # three rows a step do not divide what is drawn
        mean = agent.act(obs, step=0, explore=False)
        acted = [agent.act(obs, step=0, explore=True) - mean for _ in range(steps)]
        return np.concatenate(acted)

    one, two = make(state_spec), make(state_spec)
    before = noise(one, 100)
    two.load_state_dict(one.state_dict())
    after = noise(one, 300)
    assert np.array_equal(after, noise(two, 300))
    drawn = np.concatenate([before, after])
    assert len(np.unique(drawn[:, 0].round(6))) > 0.99 * len(drawn)
    old = {name: part for name, part in one.state_dict().items() if name != "noise"}
    two.load_state_dict(old)  # of a checkpoint from when no noise was drawn ahead
    assert not len(two.noise)


def test_noise_is_of_the_policy_that_acts(state_spec):
    agent = make(state_spec)
    obs = np.zeros((5, 7), np.float32)
    for at, log_std in enumerate((0.0, -9.0)):
        with torch.no_grad():
            agent.actor.log_std.fill_(log_std)
        rollout = random_rollout(agent, state_spec, seed=at)
        mean = agent.act(obs, step=0, explore=False)
        far = np.abs(rollout.action[-1] - mean).mean()
        assert (far > 0.3) == (log_std == 0.0)
        agent.update(rollout, step=at)
