"""Training on somebody's VectorEnv: the same transitions in each autoreset mode."""

import functools

import gymnasium
import numpy as np
import pytest
import test_trainer
from conftest import TINY_STATE
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorWrapper
from gymnasium.wrappers.vector import (
    NormalizeObservation,
    NormalizeReward,
    RecordEpisodeStatistics,
)
from saved import plain, rows
from test_learning import STANDING_STILL, returns
from tiny_envs import StateReach
from vector_envs import KINDS, MODES, Count, ends, length_of, reward_of, trainer_on

from rlearly.config import resolve
from rlearly.replay.buffer import LAST

NUM_ENVS = 3


def composed(agent, *words):
    own = [word for word in TINY_STATE[agent] if not word.startswith("env=")]
    return resolve.compose([*own, "env=vector/Count", *words])


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=MODES, ids=lambda mode: mode.name)
def mode(request):
    return request.param


@pytest.fixture
def vector(kind, mode):
    made = KINDS[kind](NUM_ENVS, mode)
    yield made
    made.close()


def scaled(action):
    """An agent's action as the env's: [-1, 1] onto [-2, 6]."""
    return np.clip(action.astype(np.float64), -1, 1) * 4 + 2


def check_transitions(index, found):
    """A member's transitions (obs or None, action, reward, next obs, terminated, truncated), in
    order, are those of its episodes, none missing and none besides."""
    episode, step = 0, 1
    for obs, action, reward, after, terminated, truncated in found:
        if obs is not None:
            assert obs.tolist() == [index, episode, step - 1]
        assert after.tolist() == [index, episode, step]
        assert reward == pytest.approx(reward_of(index, episode, step, scaled(action)), rel=1e-6)
        assert (bool(terminated), bool(truncated)) == ends(index, episode, step)
        episode, step = (episode + 1, 1) if terminated or truncated else (episode, step + 1)


def test_replay_holds_every_transition_and_no_other(vector, tmp_path):
    words = ["train_frames=120", "agent.learning_starts_steps=40", "replay_ratio=0.5"]
    trainer = trainer_on(vector, tmp_path, composed("td3", *words))
    assert trainer.run()
    assert 120 <= trainer.steps < 123 and trainer.updates == 40
    assert sum(buffer.steps for buffer in trainer.memory.buffers) == trainer.steps
    for index, buffer in enumerate(trainer.memory.buffers):
        ready = np.flatnonzero(buffer.ready)
        batch = buffer.gather(ready)
        assert len(ready) == buffer.steps > 30  # each step is ready: n is 1
        part = [getattr(batch, name).numpy() for name in ("obs", "action", "reward", "next_obs")]
        terminated = batch.discount.numpy()[:, 0] == 0
        steps = zip(*part[:2], part[2][:, 0], part[3], terminated, strict=True)
        over = [
            tuple(after[1:]) == (after[1], length_of(index, int(after[1]))) for after in part[3]
        ]
        check_transitions(index, [(*s, o and not s[-1]) for s, o in zip(steps, over, strict=True)])
    trainer.close()


def test_rollouts_hold_every_transition_and_no_other(vector, mode, tmp_path):
    words = ["train_frames=150", "agent.rollout_steps=12", "agent.minibatches=2"]
    trainer = trainer_on(vector, tmp_path, composed("ppo", *words, "agent.normalize=false"))
    found, acted, update = [[] for _ in range(NUM_ENVS)], [], trainer.agent.update

    def watch(rollout, *, step):
        acted.append(np.concatenate(trainer.agent.acted))
        valid = np.ones((12, NUM_ENVS), bool) if rollout.valid is None else rollout.valid
        obs = iter(acted[-1])
        for t, index in np.ndindex(12, NUM_ENVS):
            if valid[t, index]:
                names = ("action", "reward", "next_obs", "terminated", "truncated")
                action, *rest = (getattr(rollout, name)[t, index] for name in names)
                found[index].append((next(obs), action, *rest))
        assert len(acted[-1]) == valid.sum() and (mode.name == "NEXT_STEP" or valid.all())
        return update(rollout, step=step)

    trainer.agent.update = watch
    trainer.run()
    trainer.close()
    assert trainer.updates >= 4 and sum(map(len, found)) == sum(map(len, acted))
    assert trainer.agent.learnt_steps == sum(map(len, acted)) > 100
    for index in range(NUM_ENVS):
        check_transitions(index, found[index])


def test_episodes_have_their_own_rows(vector, tmp_path):
    trainer = trainer_on(vector, tmp_path, composed("td3", "train_frames=60"))
    trainer.run()
    trainer.close()
    found = [row for row in rows(tmp_path) if "train/episode_return" in row]
    assert [row["train/episodes"] for row in found] == [*range(1, trainer.episodes + 1)]
    names = ("train/episode_length_steps", "train/episode_success")
    expected = [
        (length_of(index, episode), float(episode % 2 == 0))
        for index, buffer in enumerate(trainer.memory.buffers)
        for episode in range((buffer.flags == LAST).sum())
    ]
    assert sorted(tuple(row[name] for name in names) for row in found) == sorted(expected)
    assert len(expected) > 12


def test_what_the_single_env_counts_is_what_the_tests_expect():
    env = Count(2)
    obs, _ = env.reset()
    after, reward, *flags, _ = env.step(np.array([2], np.float32))
    assert (obs.tolist(), after.tolist()) == ([2, 0, 0], [2, 0, 1])
    assert (reward, flags) == (201.5, [False, False])


# --- learning, seeds and resuming, on StateReach ---


def reach(mode, num_envs=4, **kwargs):
    make = functools.partial(gymnasium.make, "StateReach-v0", disable_env_checker=True)
    return SyncVectorEnv([make] * num_envs, autoreset_mode=mode, **kwargs)


def reach_config(agent, *words):
    name = "StepReach" if agent == "drq_eps" else "StateReach"
    own = [word for word in TINY_STATE[agent] if not word.startswith("env=")]
    return resolve.compose([*own, f"env=vector/{name}-v0", *words])


LEARNING = {"td3": 900, "sac": 900, "ppo": 6000, "drq_eps": 1600}


@pytest.mark.parametrize("agent", LEARNING)
def test_agent_learns_to_reach_from_each_mode(tmp_path, agent, mode):
    words = [f"train_frames={LEARNING[agent]}"]
    words += ["agent.rollout_steps=32"] if agent == "ppo" else []
    config = reach_config(agent, *words)
    name = "StepReach-v0" if agent == "drq_eps" else "StateReach-v0"
    make = functools.partial(gymnasium.make, name, disable_env_checker=True)
    vector = SyncVectorEnv([make] * 4, autoreset_mode=mode)
    trainer = trainer_on(vector, tmp_path, config)
    env = trainer.make_eval_env()
    assert np.mean(returns(trainer, env)) <= STANDING_STILL, "an untrained agent must not pass"
    trainer.run()
    assert np.mean(returns(trainer, env)) >= 8.5
    trainer.close()


@pytest.mark.parametrize(
    ("make", "mode"),
    [
        (SyncVectorEnv, AutoresetMode.SAME_STEP),
        (SyncVectorEnv, AutoresetMode.DISABLED),
        (AsyncVectorEnv, AutoresetMode.DISABLED),
    ],
)
@pytest.mark.parametrize("agent", ["td3", "ppo", "drm"])
def test_run_on_a_vector_env_equals_one_with_as_many_envs(tmp_path, agent, make, mode):
    words = ["train_frames=300", "seed=5"]
    words += ["agent.rollout_steps=32"] if agent == "ppo" else ["env.normalize=obs,reward"]
    base = TINY_STATE[agent] if agent != "drm" else DRM
    ours = test_trainer.make_trainer(tmp_path / "ours", "num_envs=4", *words, base=base)
    ours.run()
    base = [word for word in base if not word.startswith(("env=", "obs="))]
    config = resolve.compose([*base, "env=vector/StateReach-v0", *words])
    vector = make([StateReach] * 4, autoreset_mode=mode)
    theirs = trainer_on(vector, tmp_path / "theirs", config)
    theirs.run()
    vector.close()
    one, two = plain(ours.state_dict()), plain(theirs.state_dict())
    for part in ("agent", "replay", "update_schedule", "means"):
        assert one[part] == two[part], part
    assert ours.steps == theirs.steps and ours.updates == theirs.updates >= 2
    ours.close()
    theirs.close()


DRM = ["agent=drm", "env=tiny_envs:StateReach-v0", "obs=state", "seed_frames=100"]
DRM += ["agent.hidden_dim=32", "agent.batch_size=32", "agent.exploration_steps=100"]
DRM += ["eval_every_frames=0", "replay.capacity=5000", "video_size=0"]


class Forgetful(VectorWrapper):
    """Rewards that shrink with the steps taken, which nothing saves."""

    def __init__(self, env):
        super().__init__(env)
        self.steps = 0

    def step(self, actions):
        obs, rewards, *rest = self.env.step(actions)
        self.steps += 1
        return obs, rewards * 0.999**self.steps, *rest


class Fading(Forgetful):
    """The same, with a state."""

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


def wrapped(mode):
    """With wrappers that have states of their own."""
    made = Fading(RecordEpisodeStatistics(NormalizeReward(reach(mode))))
    return NormalizeObservation(made) if mode is AutoresetMode.NEXT_STEP else made


def test_vector_wrapper_of_the_users_without_a_state_is_said_to_prevent_resuming(tmp_path):
    vector = Forgetful(reach(AutoresetMode.NEXT_STEP))
    trainer = trainer_on(vector, tmp_path, reach_config("td3", "train_frames=40"))
    (line,) = [line for line in trainer.display.messages if "begins new episodes" in line]
    assert "its wrapper Forgetful cannot be saved; give it state_dict()" in line
    trainer.run()
    trainer.close()


def stops(trainer, first_step, least_between):
    """Whether so many envs are between episodes, but not all."""
    between = sum(obs is None for obs in trainer.obs)
    return trainer.steps >= first_step and least_between <= between < 4


@pytest.mark.parametrize("agent", ["td3", "ppo"])
def test_resumed_run_on_a_sync_vector_env_equals_uninterrupted_run(tmp_path, agent, mode):
    words = ["train_frames=240", "log_every_frames=40"]
    words += ["replay.capacity=160"] if agent != "ppo" else ["agent.rollout_steps=16"]
    config = reach_config(agent, *words)
    straight = trainer_on(wrapped(mode), tmp_path / "straight", config)
    assert straight.run() and straight.updates >= 3
    for name, first_step, between in (("mid-episode", 44, 0), ("some between", 60, 1)):
        stopped = trainer_on(wrapped(mode), tmp_path / name, config)
        stopped.stop_requested = lambda at=(stopped, first_step, between): stops(*at)
        assert not stopped.run()
        stopped.close()
        resumed = trainer_on(wrapped(mode), tmp_path / name, config)
        resumed.resume()
        assert resumed.run()
        assert plain(resumed.state_dict()) == plain(straight.state_dict())
        assert rows(tmp_path / name) == rows(tmp_path / "straight")
        resumed.close()
    straight.close()
