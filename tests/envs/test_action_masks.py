"""Masks of discrete actions: from an env's info into observations, and honoured by the agents."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from test_ppo_discrete import literal_policy
from test_td3 import double
from test_trainer import make_trainer, plain, rows

from rlearly import envs, teacher, train
from rlearly.agents import drq_eps, ppo
from rlearly.core.errors import UserCodeFailed
from rlearly.core.spaces import split_mask
from rlearly.core.types import Batch, EnvSpec
from rlearly.envs.wrappers import FlatObservation, MaskedObservation
from rlearly.nn.running_stats import Normalizer
from rlearly.system.seeding import Seeds

RUN = [
    "env=tiny_envs:MaskedReach-v0",
    "agent.discount=0.9",
    "num_envs=4",
    "eval_every_frames=0",
    "checkpoint_every_frames=0",
    "video_size=0",
]
MASKED = {
    "ppo": ["agent=ppo", *RUN, "agent.lr=1e-2", "agent.rollout_steps=32"],
    "drq_eps": [
        *("agent=drq_eps", *RUN, "agent.hidden_dim=32", "agent.lr=3e-3", "agent.nstep=1"),
        *("agent.learning_starts_steps=200", "agent.epsilon_steps=1000", "replay.capacity=5000"),
    ],
}
SPEC = EnvSpec(Box(-np.inf, np.inf, (5,), np.float32), Discrete(3), 1, action_mask=True)
"""States of two numbers."""


class Tells(gymnasium.Env):
    """Gives the masks that it was made with, one after the other; None: no mask."""

    observation_space = Box(-1, 1, (2,))
    action_space = Discrete(3)

    def __init__(self, *masks, over=()):
        self.masks = list(masks)
        self.over = list(over)

    def _info(self):
        mask = self.masks.pop(0)
        return {} if mask is None else {"action_mask": mask}

    def reset(self, *, seed=None, options=None):
        return np.array([0.5, -1], np.float32), self._info()

    def step(self, action):
        terminated, truncated = self.over.pop(0) if self.over else (False, False)
        return np.array([0.25, 1], np.float32), 0.0, terminated, truncated, self._info()


def told(*masks, over=()):
    return MaskedObservation(FlatObservation(Tells(*masks, over=over)))


def make(seed=3, **settings):
    settings = {"hidden_dim": 16, "rollout_steps": 8, "minibatches": 2} | settings
    return ppo.PPO(ppo.Config(**settings), SPEC, seeds=Seeds(seed), device=torch.device("cpu"))


def masked_observations(count=64):
    """Random states, and masks that allow one, two or all three actions."""
    generator = np.random.default_rng(0)
    masks = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1]], np.float32)
    states = generator.normal(size=(count, 2)).astype(np.float32)
    return np.concatenate([states, masks[generator.integers(4, size=count)]], axis=1)


def test_mask_follows_the_state_in_the_observation():
    env = told(np.array([1, 0, 1], np.int8), np.array([False, True, False]))
    assert env.observation_space == Box(-np.inf, np.inf, (5,), np.float32)
    obs, _ = env.reset()
    assert obs.tolist() == [0.5, -1, 1, 0, 1] and obs.dtype == np.float32
    assert env.step(0)[0].tolist() == [0.25, 1, 0, 1, 0]
    states, mask = split_mask(obs[None], 3)
    assert states.tolist() == [[0.5, -1]] and mask.tolist() == [[True, False, True]]
    assert split_mask(obs, 0) == (obs, None)


@pytest.mark.parametrize("name", ["tiny_envs:MaskedReach-v0", "Taxi-v4"])
def test_env_that_reports_masks_has_them_in_its_spec(name):
    config = envs.config_for(name)
    env = envs.make(config, pixels=None, model_seed=0)
    spec = envs.env_spec(env, config)
    assert spec.action_mask and spec.mask_size == env.action_space.n
    obs, info = env.reset(seed=0)
    assert obs[-spec.mask_size :].tolist() == info["action_mask"].tolist()
    assert envs.notes(env) == [MaskedObservation.note]


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_other_envs_stay_as_they_are(name):
    config = envs.config_for(name)
    env = envs.make(config, pixels=None, model_seed=0)
    spec = envs.env_spec(env, config)
    assert not spec.action_mask and spec.mask_size == 0 and isinstance(env, FlatObservation)


@pytest.mark.parametrize(
    "mask, said",
    [
        (None, "step(action) returned no mask, though earlier calls did"),
        (np.ones(2, np.int8), "step(action) returned a mask with the shape [2]"),
        (np.array([0, 2, 1]), "step(action) returned a mask with numbers other than 0 and 1"),
        (np.zeros(3, np.int8), "step(action) returned a mask that forbids every action"),
    ],
)
def test_unusable_masks_are_one_sentence(mask, said):
    env = told(np.ones(3, np.int8), mask)
    env.reset()
    with pytest.raises(UserCodeFailed) as failed:
        env.step(0)
    assert said in str(failed.value) and "expected 3 numbers, 1 for each action" in str(
        failed.value
    )


@pytest.mark.parametrize("over", [(True, False), (False, True)])
@pytest.mark.parametrize("mask", [None, np.zeros(3, np.int8)])
def test_no_action_follows_the_last_step_so_its_mask_may_be_empty(mask, over):
    env = told(np.ones(3, np.int8), mask, over=[over])
    env.reset()
    assert env.step(0)[0].tolist() == [0.25, 1, 1, 1, 1]


def test_policy_is_the_softmax_over_the_allowed_actions():
    agent, obs = make(), torch.from_numpy(masked_observations())
    with torch.no_grad():
        agent.actor.policy[4].weight.mul_(100)
    states, mask = split_mask(obs, 3)
    free = literal_policy(double(agent.actor), states.double())
    allowed = free * mask / (free * mask).sum(1, keepdim=True)
    policy = agent.actor(obs)
    for action in range(3):
        log_prob = policy.log_prob(torch.full((64,), action))
        torch.testing.assert_close(
            log_prob.exp().double(), allowed[:, action], rtol=1e-4, atol=1e-7
        )
    entropy = -(allowed * allowed.where(mask, 1.0).log()).sum(1)
    torch.testing.assert_close(policy.entropy().double(), entropy, rtol=1e-4, atol=1e-6)
    assert (entropy[mask.sum(1) == 1] == 0).all() and (entropy[mask.sum(1) > 1] > 0).all()


def test_forbidden_actions_are_neither_sampled_nor_the_mode():
    agent, obs = make(), masked_observations()
    mask = split_mask(obs, 3)[1]
    with torch.no_grad():  # the forbidden ones would be
        agent.actor.policy[4].bias.copy_(torch.tensor([1e6, 0.0, 1e6]))
    for explore in (True, False):
        for _ in range(100):
            action = agent.act(obs, step=0, explore=explore)
            assert mask[np.arange(64), action].all()


@pytest.mark.parametrize("normalize", [True, False])
def test_neither_network_sees_the_mask_and_its_numbers_stay(normalize):
    agent, obs = make(normalize=normalize), masked_observations()
    for _ in range(3):
        agent.act(obs, step=0, explore=True)
    assert np.array_equal(agent.acted[-1][:, 2:], obs[:, 2:])
    assert np.array_equal(agent.acted[-1][:, :2], obs[:, :2]) is not normalize
    assert agent.critic.v[0].in_features == agent.actor.policy[0].in_features == 2
    open_to_all = obs.copy()
    open_to_all[:, 2:] = 1
    assert np.array_equal(agent.value(obs), agent.value(open_to_all))


def test_normalised_observations_keep_their_masks():
    normalizer, obs = Normalizer((5,), None, mask_size=3), masked_observations()
    for row in obs:
        normalizer.begin_episode(row * [10, 1, 1, 1, 1], env_index=0)
    normal = normalizer.normalized(obs * np.array([10, 1, 1, 1, 1], np.float32))
    assert normal.dtype == np.float32 and np.array_equal(normal[:, 2:], obs[:, 2:])
    assert normal[:, 0].std() == pytest.approx(1, abs=1e-3)
    tensors = normalizer.normalized_tensor(torch.from_numpy(obs) * torch.tensor([10, 1, 1, 1, 1]))
    torch.testing.assert_close(tensors, torch.from_numpy(normal))


@pytest.mark.parametrize("agent, frames", [("ppo", 6000), ("drq_eps", 2500)])
def test_trained_policy_takes_allowed_actions_only_and_learns(tmp_path, agent, frames):
    """MaskedReach raises if it is given another one."""
    words = [f"train_frames={frames}", f"eval_every_frames={frames}", "eval_episodes=50"]
    trainer = make_trainer(tmp_path, *words, base=MASKED[agent])
    assert trainer.run()
    (returned,) = [
        row["eval/episode_return"] for row in rows(tmp_path) if "eval/episode_return" in row
    ]
    assert returned > 9.5


def q_learner(target_every_updates=1):
    config = drq_eps.Config(hidden_dim=16, target_every_updates=target_every_updates)
    return drq_eps.DrQEps(config, SPEC, seeds=Seeds(0), device=torch.device("cpu"))


def test_random_actions_are_the_allowed_ones_with_equal_odds():
    agent = q_learner()
    rows = np.tile(np.array([[0.3, 0.1, 1, 0, 1]], np.float32), (20_000, 1))
    drawn = agent.act(rows, step=0, explore=True)
    np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 20_000, [0.5, 0, 0.5], atol=0.02)


@pytest.mark.parametrize("target_every_updates", [1, 5])
def test_best_action_and_target_are_over_the_allowed_actions(target_every_updates):
    agent, obs = q_learner(target_every_updates), masked_observations(16)
    states, mask = split_mask(torch.from_numpy(obs), 3)
    with torch.no_grad():
        every_q = agent.critic(states)
        if target_every_updates > 1:
            agent.networks["critic_target"].q[4].bias.add_(torch.arange(4.0))
            target_q = agent.networks["critic_target"](states)
        else:
            target_q = every_q
    best = [
        max((float(q), a) for a, q in enumerate(row) if mask[i, a])[1]
        for i, row in enumerate(every_q)
    ]
    assert agent.act(obs, step=0, explore=False).tolist() == best
    np.testing.assert_allclose(agent.value(obs), every_q[range(16), best], rtol=1e-5)
    reward, discount = torch.ones(16, 1), torch.full((16, 1), 0.5)
    batch = Batch(torch.from_numpy(obs), torch.zeros(16), reward, discount, torch.from_numpy(obs))
    found = agent._target_q(batch, batch.next_obs)
    torch.testing.assert_close(found[:, 0], 1 + 0.5 * target_q[range(16), best])


def test_resumed_run_equals_uninterrupted_run(tmp_path):
    words = ["train_frames=330", "eval_every_frames=75", "eval_episodes=1"]
    straight = make_trainer(tmp_path / "straight", *words, base=MASKED["ppo"])
    assert straight.run() and straight.updates == 2
    for stop_at in (5, 233):
        folder = tmp_path / f"at{stop_at}"
        stopped = make_trainer(folder, *words, base=MASKED["ppo"])
        stopped.stop_requested = lambda trainer=stopped, at=stop_at: trainer.steps >= at
        assert not stopped.run()
        stopped.close()
        resumed = make_trainer(folder, *words, base=MASKED["ppo"])
        resumed.resume()
        assert resumed.run()
        assert plain(straight.state_dict()) == plain(resumed.state_dict())
        assert rows(tmp_path / "straight") == rows(folder)


def test_episodes_from_snapshots_begin_with_the_masks_of_their_states(tmp_path, capsys):
    run = ["agent=ppo", "env=Taxi-v4", "train_frames=256", "eval_every_frames=0", "video_size=0"]
    recorded = tmp_path / "taxi.h5"
    assert train.main([*run, f"run_dir={tmp_path / 'teacher'}"]) == 0
    words = [f"run={tmp_path / 'teacher'}", "episodes=2", "every_steps=20", f"out={recorded}"]
    assert teacher.main(words) == 0
    capsys.readouterr()
    phase = ["snapshot_phase.selection=uniform", "snapshot_phase.truncate_steps=7"]
    trainer = make_trainer(tmp_path / "run", f"snapshot={recorded}", *phase, base=run)
    assert trainer.run() and trainer.updates == 2
    env = trainer.envs[0]
    for _ in range(5):
        obs, info = env.reset()
        assert "snapshot" in info
        own = env.unwrapped
        assert obs[-6:].tolist() == own.action_mask(own.s).tolist()
