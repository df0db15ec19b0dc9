"""env.normalize: what an agent sees and learns from, compared with Stable-Baselines3."""

import json

import gymnasium
import numpy as np
import pytest
import torch
from conftest import TINY_STATE

from rlearly import evaluate, train
from rlearly.agents.normalized import NormalizedAgent
from rlearly.config import resolve
from rlearly.core.errors import ConfigError
from rlearly.core.types import Batch
from rlearly.nn.running_stats import Normalizer
from rlearly.replay.normalized import NormalizedReplay
from rlearly.training import checkpoint

GAMMA = 0.9


class Recorded:
    """A replay that gives back the last transitions that were added."""

    def __init__(self):
        self.added = []

    def begin_episode(self, obs, *, env_index):
        self.obs = obs

    def add(self, action, reward, next_obs, *, env_index, **ends):
        self.added.append((self.obs, reward, next_obs))
        self.obs = next_obs

    def sample(self, batch_size):
        obs, rewards, next_obs = zip(*self.added[-batch_size:], strict=True)
        column = torch.tensor(rewards, dtype=torch.float32)[:, None]
        obs, next_obs = (torch.from_numpy(np.stack(o)) for o in (obs, next_obs))
        return Batch(obs, torch.zeros(batch_size, 1), column, column * 0 + GAMMA, next_obs)


class Echo:
    """Acts as its observation says, and values it at 1."""

    def act(self, obs, *, step, explore):
        return obs

    def value(self, obs):
        return np.ones(len(obs), np.float32)


def played(steps=150):
    """A replay and an agent after some of Pendulum, with Stable-Baselines3's view of the same."""
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
    peer = vec_env.VecNormalize(
        vec_env.DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")]),
        gamma=GAMMA,
        clip_reward=np.inf,
    )
    normalizer = Normalizer((3,), GAMMA)
    replay, agent = NormalizedReplay(Recorded(), normalizer), NormalizedAgent(Echo(), normalizer)
    peer.seed(4)
    seen = [peer.reset()[0]]
    replay.begin_episode(peer.get_original_obs()[0], env_index=0)
    rewards = []
    for i in range(steps):
        action = np.array([np.sin(i / 7)], np.float32)
        obs, reward, _, _ = peer.step(action[None])
        seen.append(obs[0])
        rewards.append(reward[0])
        replay.add(
            action,
            float(peer.get_original_reward()[0]),
            peer.get_original_obs()[0],
            env_index=0,
            terminated=False,
            truncated=False,
        )
    return replay, agent, peer, seen, rewards


def test_newest_step_is_normalised_as_by_stable_baselines():
    replay, agent, peer, seen, rewards = played()
    batch = replay.sample(1)
    np.testing.assert_allclose(batch.next_obs[0].numpy(), seen[-1], rtol=1e-4, atol=1e-5)
    assert float(batch.reward) == pytest.approx(rewards[-1], rel=1e-5)
    raw = peer.get_original_obs()
    np.testing.assert_allclose(
        agent.act(raw, step=0, explore=False), peer.normalize_obs(raw), rtol=1e-4, atol=1e-5
    )


def test_old_transitions_are_scaled_by_the_newest_statistics():
    replay, agent, peer, _, _ = played()
    batch = replay.sample(150)
    raw = np.stack([obs for obs, _, _ in replay.memory.added])
    np.testing.assert_allclose(batch.obs.numpy(), peer.normalize_obs(raw), rtol=1e-4, atol=1e-5)
    rewards = np.array([reward for _, reward, _ in replay.memory.added])
    np.testing.assert_allclose(
        batch.reward[:, 0].numpy(), peer.normalize_reward(rewards), rtol=1e-5
    )
    scale = np.sqrt(peer.ret_rms.var + 1e-8)
    assert float(agent.value(raw[:1])[0]) == pytest.approx(scale, rel=1e-5)


def test_discounted_return_restarts_with_each_episode():
    normalizer = Normalizer(None, 0.5)
    for _ in range(2):
        normalizer.begin_episode(np.zeros(1), 0)
        for reward in (1.0, 2.0):
            normalizer.add(reward, np.zeros(1), 0)
    returns = np.array([1, 2.5, 1, 2.5])
    assert normalizer.reward_scale == pytest.approx(returns.std(), rel=1e-3)


def test_acting_and_evaluating_change_no_statistics():
    _, agent, _, _, _ = played(20)
    before = json.dumps(agent.normalizer.state_dict())
    agent.act(np.ones((4, 3), np.float32), step=3, explore=True)
    agent.act(np.ones((4, 3), np.float32), step=3, explore=False)
    agent.value(np.ones((4, 3), np.float32))
    assert json.dumps(agent.normalizer.state_dict()) == before


# --- commands ---


def words(agent, *more):
    return [
        *TINY_STATE[agent],
        "video_size=0",
        "threads=1",
        "agent.learning_starts_steps=60",
        *more,
    ]


def weights(folder):
    _, state = checkpoint.load_at(folder / "checkpoints", None)
    return state["agent"]


@pytest.mark.parametrize("agent", ["td3", "sac"])
def test_resumed_run_ends_with_the_same_weights_and_statistics(tmp_path, agent, capsys):
    run = words(agent, "env.normalize='obs,reward'", "num_envs=2", "eval_every_frames=0")
    assert train.main([*run, "train_frames=160", f"run_dir={tmp_path}/whole"]) == 0
    assert train.main([*run, "train_frames=90", f"run_dir={tmp_path}/parts"]) == 0
    assert train.main([f"resume={tmp_path}/parts", "train_frames=160"]) == 0
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole["normalizer"] == parts["normalizer"]
    assert whole["normalizer"]["obs"]["count"] > 160
    for name, network in whole["agent"]["modules"]["networks"].items():
        for key, value in network.items():
            torch.testing.assert_close(
                parts["agent"]["modules"]["networks"][name][key], value, rtol=0, atol=0
            )
    capsys.readouterr()
    assert evaluate.main([f"run={tmp_path}/parts", "episodes=2", "video_size=0"]) == 0
    returns = [line.split()[3] for line in capsys.readouterr().out.splitlines()[1:3]]
    assert all(0 < float(value) <= 10 for value in returns)  # the env's own rewards


@pytest.mark.parametrize(
    "wrong, words",
    [
        (["agent=td3", "env=Pendulum-v1", "env.normalize=all"], "expected obs, reward"),
        (["agent=ppo", "env=Pendulum-v1", "env.normalize=obs"], "agent=ppo already normalises"),
    ],
)
def test_what_it_cannot_do_is_refused(wrong, words):
    with pytest.raises(ConfigError, match=words):
        resolve.compose(wrong)


def test_images_are_refused(tmp_path, capsys):
    run = ["agent=drqv2", "env=tiny_envs:PixelReach-v0", "env.image_size=24", "video_size=0"]
    assert train.main([*run, "env.normalize=obs", f"run_dir={tmp_path}/run"]) == 2
    assert "env.normalize: the observations" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
