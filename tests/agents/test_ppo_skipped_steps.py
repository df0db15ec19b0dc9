"""PPO learns from the steps of a rollout alone, where envs reset themselves instead of some."""

import numpy as np
import pytest
import torch
from conftest import random_actions
from saved import plain

from rlearly.agents import ppo
from rlearly.core.types import EnvSpec, Rollout
from rlearly.nn.precision import ComputeOptions
from rlearly.nn.running_stats import RunningMeanStd
from rlearly.replay.rollout import RolloutBuffer
from rlearly.system.seeding import Seeds
from rlearly.training.update_schedule import OncePerRollout

T, N = 12, 3
SKIPPED = {0: (5, 11), 1: (), 2: (3,)}
"""For each env, the rows of a rollout in which it reset itself; its episode ended in the row
before, by being truncated in rows 2 and 10, and terminated in row 4."""


def make(spec, normalize=True, kernels=True, steps=T, seed=0):
    config = ppo.Config(rollout_steps=steps, minibatches=3, epochs=2, normalize=normalize)
    return ppo.PPO(
        config,
        spec,
        seeds=Seeds(seed),
        device=torch.device("cpu"),
        compute=ComputeOptions(kernels=kernels),
    )


def play(agent, spec, skipped, buffer, seed=1):
    """Random transitions in the buffer, with the agent's actions; returns those of each env."""
    generator = np.random.default_rng(seed)
    num_envs = len(skipped)
    obs = {i: generator.normal(size=7).astype(np.float32) for i in range(num_envs)}
    lists = {i: [] for i in range(num_envs)}
    for i in range(num_envs):
        buffer.begin_episode(obs[i], env_index=i)
    for t in range(buffer.steps):
        acting = [i for i in range(num_envs) if t not in skipped[i]]
        if not acting:
            continue
        for i in acting:
            if t - 1 in skipped[i]:
                obs[i] = generator.normal(size=7).astype(np.float32)
                buffer.begin_episode(obs[i], env_index=i)
        actions = agent.act(np.stack([obs[i] for i in acting]), step=t, explore=True)
        for i in set(range(num_envs)) - set(acting):
            buffer.skip(env_index=i)
        for i, action in zip(acting, actions, strict=True):
            ends = t + 1 in skipped[i]
            step = {
                "reward": float(generator.normal()),
                "next_obs": generator.normal(size=7).astype(np.float32),
                "terminated": ends and t == 4,
                "truncated": ends and t != 4,
            }
            buffer.add(action, env_index=i, **step)
            lists[i].append({"t": t, "obs": obs[i], "action": action, **step})
            obs[i] = step["next_obs"]
    return lists


SPECS = pytest.mark.parametrize("kind", ["state_spec", "discrete_spec"])


@SPECS
@pytest.mark.parametrize("kernels", [True, False], ids=["by hand", "autograd"])
@pytest.mark.parametrize("normalize", [True, False])
def test_update_with_skipped_steps_equals_one_with_these_steps_alone(
    kind, kernels, normalize, request
):
    """With one env, the same steps are a rollout without gaps."""
    spec = request.getfixturevalue(kind)
    gaps, whole = make(spec, normalize, kernels), make(spec, normalize, kernels, steps=10)
    buffers = [RolloutBuffer(spec, steps=steps, num_envs=1) for steps in (T, 10)]
    for seed in (1, 2):  # the second rollout begins with what the first left behind
        play_gaps(gaps, spec, buffers[0], seed)
        play_whole(whole, spec, buffers[1], seed)
        with_gaps = buffers[0].sample(T)
        assert with_gaps.valid is not None and with_gaps.valid.sum() == 10
        gaps_metrics = gaps.update(squeezed_check(with_gaps), step=20)
        whole_metrics = whole.update(buffers[1].sample(10), step=20)
        assert plain(dict(gaps_metrics)) == plain(dict(whole_metrics))
    assert plain(gaps.state_dict()) == plain(whole.state_dict())


def squeezed_check(rollout):
    """The rollout, whose skipped entries hold what would be noticed if it were used."""
    gap = ~rollout.valid
    rollout.reward[gap] = 1e6
    rollout.next_obs[gap] = 1e6
    rollout.action[gap] = 1
    return rollout


def transitions(spec, agent, seed):
    """Ten transitions of one env; episodes end after the fourth and the seventh."""
    generator = np.random.default_rng(seed)
    obs = generator.normal(size=7).astype(np.float32)
    for t in range(10):
        action = agent.act(obs[None], step=t, explore=True)[0]
        after = generator.normal(size=7).astype(np.float32)
        ends = {"terminated": t == 6, "truncated": t == 3}
        yield t, obs, (action, float(generator.normal()), after), ends
        obs = generator.normal(size=7).astype(np.float32) if any(ends.values()) else after


def play_gaps(agent, spec, buffer, seed):
    for t, obs, step, ends in transitions(spec, agent, seed):
        if t in (0, 4, 7):
            buffer.begin_episode(obs, env_index=0)
        buffer.add(*step, env_index=0, **ends)
        if any(ends.values()):
            buffer.skip(env_index=0)
            agent.acted.append(agent.acted[0][:0])  # nobody acted then


def play_whole(agent, spec, buffer, seed):
    for t, obs, step, ends in transitions(spec, agent, seed):
        if t in (0, 4, 7):
            buffer.begin_episode(obs, env_index=0)
        buffer.add(*step, env_index=0, **ends)


@SPECS
@pytest.mark.parametrize("normalize", [True, False])
def test_what_ppo_learns_from_equals_the_formulas_for_each_step(kind, normalize, request):
    """Every number of an update's data, from plain loops over the transitions of each env."""
    spec: EnvSpec = request.getfixturevalue(kind)
    agent = make(spec, normalize)
    buffer = RolloutBuffer(spec, steps=T, num_envs=N)
    lists = play(agent, spec, SKIPPED, buffer)
    rollout = buffer.sample(T * N)
    assert rollout.valid.tolist() == [[t not in SKIPPED[i] for i in range(N)] for t in range(T)]
    normal = agent.obs_rms.normalized if normalize else lambda obs: obs
    acted = [step["normal"] for step in in_order(lists, agent)]
    learnt = {}
    agent._run_epochs = lambda data: learnt.update(data=data) or {}
    agent.update(squeezed_check(rollout), step=20)
    obs, action, log_prob, value, advantage = (part.numpy() for part in learnt["data"])
    assert np.array_equal(obs, np.stack(acted))
    assert np.array_equal(action, np.stack([step["action"] for step in in_order(lists, None)]))
    policy, values = agent._outputs(torch.from_numpy(np.stack(acted)))
    assert np.allclose(value, values.detach().numpy(), atol=1e-6)
    assert np.allclose(log_prob, policy.log_prob(torch.from_numpy(action)).detach(), atol=1e-6)
    scaled = scaled_rewards(lists) if normalize else None
    at = {(s["env"], s["t"]): v for s, v in zip(in_order(lists, None), value, strict=True)}
    expected = {}
    for i, steps in lists.items():
        running = 0.0
        for k in range(len(steps) - 1, -1, -1):
            step = steps[k]
            over = step["terminated"] or step["truncated"]
            if step["terminated"]:
                after = 0.0
            elif over or k == len(steps) - 1:
                final = normal(step["next_obs"][None]).astype(np.float32)
                after = float(agent._value(final)[0, 0])
            else:
                after = at[i, steps[k + 1]["t"]]
            reward = scaled[i, step["t"]] if normalize else step["reward"]
            error = reward + 0.99 * after - at[i, step["t"]]
            running = error + (0.0 if over else 0.99 * 0.95 * running)
            expected[i, step["t"]] = running
    wanted = [expected[s["env"], s["t"]] for s in in_order(lists, None)]
    assert np.allclose(advantage, wanted, atol=1e-4)
    assert agent.learnt_steps == T * N - 3


def in_order(lists, agent):
    """All steps, in the order in which they were taken; `normal`: as the agent saw them then."""
    steps = [{"env": i, **step} for i, found in lists.items() for step in found]
    steps.sort(key=lambda step: (step["t"], step["env"]))
    if agent is not None:
        for step, row in zip(steps, np.concatenate(agent.acted), strict=True):
            step["normal"] = row
    return steps


def scaled_rewards(lists):
    """r / std of the discounted return; the statistics see all steps of a row at once."""
    statistics, returns, scaled = RunningMeanStd(()), dict.fromkeys(range(N), 0.0), {}
    steps = in_order(lists, None)
    for t in range(T):
        now = [step for step in steps if step["t"] == t]
        for step in now:
            returns[step["env"]] = 0.99 * returns[step["env"]] + step["reward"]
        statistics.update(np.array([returns[step["env"]] for step in now]))
        for step in now:
            std = np.sqrt(statistics.variance + 1e-8)
            scaled[step["env"], t] = np.clip(step["reward"] / std, -10, 10)
            if step["terminated"] or step["truncated"]:
                returns[step["env"]] = 0.0
    return scaled


def test_observation_statistics_are_of_the_acting_envs_alone(state_spec):
    agent = make(state_spec)
    lists = play(agent, state_spec, SKIPPED, RolloutBuffer(state_spec, steps=T, num_envs=N))
    seen = np.stack([step["obs"] for step in in_order(lists, None)])
    assert np.allclose(agent.obs_rms.mean, seen.mean(0), atol=1e-4)
    assert agent.obs_rms.count == pytest.approx(T * N - 3, abs=1e-3)


def test_half_a_rollout_with_skipped_steps_is_saved_and_restored(state_spec):
    buffer = RolloutBuffer(state_spec, steps=T, num_envs=N)
    agent = make(state_spec)
    play(agent, state_spec, SKIPPED, buffer)
    other, other_agent = RolloutBuffer(state_spec, steps=T, num_envs=N), make(state_spec, seed=5)
    other.load_state_dict(buffer.state_dict())
    other_agent.load_state_dict(agent.state_dict())
    assert len(other) == len(buffer) == T * N - 3
    rollouts = [buffer.sample(T * N), other.sample(T * N)]
    assert plain(vars(rollouts[0])) == plain(vars(rollouts[1]))
    metrics = [
        one.update(r, step=20) for one, r in zip((agent, other_agent), rollouts, strict=True)
    ]
    assert plain(dict(metrics[0])) == plain(dict(metrics[1]))
    assert buffer.state_dict().keys() == {"taken", "arrays"}  # the next rollout begins without


def test_a_rollout_is_due_after_as_many_steps_with_the_skipped_ones():
    schedule = OncePerRollout(6)  # two rows of three envs
    assert [schedule.updates_due(step) for step in range(3)] == [0, 0, 0]
    schedule.skip()
    assert [schedule.updates_due(step) for step in range(3, 5)] == [0, 1]


def test_minibatches_keep_two_rows_where_most_steps_were_skipped(discrete_spec):
    """A rollout of ten rows that holds five steps: two minibatches instead of three."""
    agent = make(discrete_spec, steps=10)
    generator = np.random.default_rng(0)
    actions = []
    for t in range(10):
        obs = generator.normal(size=(1 - t % 2, 7)).astype(np.float32)
        actions.append(agent.act(obs, step=t, explore=True) if t % 2 == 0 else np.zeros(1, int))
        if t % 2:
            agent.acted.append(obs)
    shape = (10, 1)
    rollout = Rollout(
        action=np.stack(actions),
        reward=random_actions(discrete_spec.action, generator, 10).reshape(shape).astype(float),
        terminated=np.zeros(shape, bool),
        truncated=np.arange(10).reshape(shape) % 2 == 0,
        next_obs=np.zeros((*shape, 7), np.float32),
        valid=np.arange(10).reshape(shape) % 2 == 0,
    )
    assert all(np.isfinite(float(value)) for value in agent.update(rollout, step=1).values())
