"""What is refused, reported, evaluated and given back where agents train on a VectorEnv."""

import dataclasses
import functools
import logging
import os

import gymnasium
import numpy as np
import pytest
import tiny_envs
from conftest import TINY_STATE
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import (
    ClipReward,
    DictInfoToList,
    RecordEpisodeStatistics,
    RescaleAction,
    TransformObservation,
)
from saved import plain, rows
from vector_envs import KINDS, MODES, Count, CountVector, makers, trainer_on

from rlearly.config import resolve
from rlearly.core.errors import ConfigError, RunFailed
from rlearly.envs.vector.family import config_of
from rlearly.envs.vector.infos import final_info, final_observation, member_info
from rlearly.envs.vector.members import VectorMembers
from rlearly.envs.wrappers import ScaledActions
from rlearly.training.executors import InlineExecutor


def composed(vector, agent="td3", *words):
    own = [w for w in TINY_STATE[agent] if not w.startswith(("env=", "eval_every"))]
    return resolve.compose([*own, f"env={config_of(vector).name}", *words])


def trained(vector, folder, agent="td3", *words, frames=60, **kwargs):
    words = [f"train_frames={frames}", "eval_every_frames=0", *words]
    trainer = trainer_on(vector, folder, composed(vector, agent, *words), **kwargs)
    assert trainer.run()
    trainer.close()
    return trainer


def members_of(vector):
    generators = [np.random.default_rng(index) for index in range(vector.num_envs)]
    return VectorMembers(vector, generators, InlineExecutor())


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_observations_share_no_memory_with_the_vector_env(mode):
    vector = members_of(CountVector(2, mode))
    kept = [member.reset()[0] for member in vector.members]
    seen = [obs.copy() for obs in kept]
    for _ in range(8):
        acting = [m for m in vector.members if not vector.is_resetting(m.index)]
        for member in acting:
            if member.obs is None:
                kept.append(member.reset()[0])
                seen.append(kept[-1].copy())
        for member in acting:
            member.choose(np.zeros(1, np.float32))
        for member in acting:
            obs, _, *over, _ = member.step(None)
            kept.append(obs)
            seen.append(obs.copy())
            member.obs = None if any(over) else obs
    assert len(kept) > 10 and all(map(np.array_equal, kept, seen))


# --- infos ---


def test_infos_of_a_member_are_the_entries_that_it_has():
    infos = {
        "speed": np.array([1.0, 2.0]),
        "_speed": np.array([True, False]),
        "arm": {"angle": np.array([3, 4]), "_angle": np.array([False, True])},
        "_arm": np.array([False, True]),
        "both": np.array([5, 6]),
        "_odd": np.array([7, 8]),
    }
    assert member_info(infos, 0) == {"speed": 1.0, "both": 5, "_odd": 7}
    assert member_info(infos, 1) == {"arm": {"angle": 4}, "both": 6, "_odd": 8}
    assert member_info([{"speed": 1.0}, {}], 1) == {}


def test_final_observations_are_found_in_each_format():
    space = Box(-9, 9, (2, 3), np.float32)
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    objects = np.array([None, rows[1]], dtype=object)
    mask = np.array([False, True])
    for value in (rows, objects, [*rows]):
        infos = {"final_obs": value, "_final_obs": mask}
        assert final_observation(infos, 0, space) is None
        assert np.array_equal(final_observation(infos, 1, space), rows[1])
    both = Dict(a=space, b=MultiDiscrete([4, 4]))
    infos = {"final_obs": {"a": rows, "b": np.array([2, 3])}, "_final_obs": mask}
    found = final_observation(infos, 1, both)
    assert (found["a"].tolist(), found["b"]) == ([3, 4, 5], 3)
    assert final_observation({}, 1, space) is None
    listed = [{}, {"final_obs": rows[1]}]
    assert np.array_equal(final_observation(listed, 1, space), rows[1])
    assert final_info({"final_info": {"r": np.array([1, 2])}}, 1) == {"r": 2}
    assert final_info({"final_info": np.array([None, {"r": 2}], object)}, 1) == {"r": 2}
    assert final_info([{}, {"final_info": {"r": 2}}], 1) == {"r": 2}
    assert final_info({}, 1) == {}


# --- kinds of observations and actions ---


class Mixed(Count):
    """Count with a dict of observations, and three actions whose numbers begin at -1."""

    observation_space = Dict(place=Discrete(9), time=Box(-1, 99, (1, 2), np.float64))
    action_space = Discrete(3, start=-1)

    def _obs(self):
        return {"place": self.index + 1, "time": np.array([[self.episode, self.steps]], float)}


@pytest.mark.parametrize("make", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_dict_observations_become_one_vector(tmp_path, make, mode):
    vector = make(makers(2, Mixed), autoreset_mode=mode)
    trainer = trained(vector, tmp_path, "drq_eps", "agent.nstep=1")
    vector.close()
    for index, buffer in enumerate(trainer.memory.buffers):
        batch = buffer.gather(np.flatnonzero(buffer.ready))
        obs, after = batch.obs.numpy(), batch.next_obs.numpy()
        assert obs.shape[1] == 9 + 2 and (obs[:, index + 1] == 1).all() and obs[:, :9].sum(1).all()
        assert (obs[:, 9] == after[:, 9]).all() and (obs[:, 10] < after[:, 10]).all()
        action = batch.action.numpy()
        step, episode = after[:, 10], after[:, 9]
        acted = batch.reward.numpy()[:, 0] - (100 * index + 10 * episode + step)
        assert np.allclose(acted, (action - 1) / 4, atol=1e-4)
    assert set(np.concatenate([b.actions[: b.added] for b in trainer.memory.buffers])) == {0, 1, 2}


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("agent", ["ppo", "drq_eps"])
def test_masks_of_actions_are_obeyed(tmp_path, agent, mode):
    """MaskedReach raises if an action is forbidden."""
    vector = SyncVectorEnv([tiny_envs.MaskedReach] * 3, autoreset_mode=mode)
    words = ["agent.rollout_steps=16"] if agent == "ppo" else []
    trainer = trained(vector, tmp_path, agent, *words, frames=200)
    assert trainer.agent.mask_size == 3
    assert any("action_mask" in line for line in trainer.display.messages)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_gymnasiums_vector_wrappers_go_around_the_vector_env(tmp_path, mode):
    vector = SyncVectorEnv(makers(3), autoreset_mode=mode)
    vector = RescaleAction(ClipReward(vector, max_reward=50.0), np.float32(-3), np.float32(5))
    vector = DictInfoToList(RecordEpisodeStatistics(vector))
    trainer = trained(vector, tmp_path)
    written = [row for row in rows(tmp_path) if "train/episode_success" in row]
    assert len(written) == trainer.episodes > 5
    rewards = np.concatenate([b.rewards[: b.added] for b in trainer.memory.buffers])
    assert rewards.max() == 50 and rewards.min() >= 0


def test_own_vector_env_of_gymnasium_trains_and_is_evaluated(tmp_path):
    vector = gymnasium.make_vec("CartPole-v1", 4, vectorization_mode="vector_entry_point")
    words = ["train_frames=300", "agent.rollout_steps=32", "eval_every_frames=150"]
    words += ["eval_episodes=2"]
    trainer = trainer_on(vector, tmp_path, composed(vector, "ppo", *words))
    trainer.try_evaluation()
    assert trainer.run() and trainer.updates >= 2
    assert len([row for row in rows(tmp_path) if "eval/episode_return" in row]) == 2
    trainer.close()


# --- evaluation ---


@pytest.mark.parametrize("make", [SyncVectorEnv, AsyncVectorEnv])
def test_evaluations_are_played_in_an_env_like_the_first_member(tmp_path, make):
    vector = make(makers(2))
    words = ["train_frames=60", "eval_every_frames=60", "eval_episodes=2"]
    trainer = trainer_on(vector, tmp_path, composed(vector, "td3", *words))
    trainer.try_evaluation()
    trainer.run()
    (row,) = [row for row in rows(tmp_path) if "eval/episode_return" in row]
    assert row["eval/episode_length_steps"] >= 2
    trainer.close()
    vector.close()


@pytest.mark.parametrize("kind", ["custom", "wrapped"])
def test_without_a_single_env_there_are_no_evaluations_and_the_run_says_so(tmp_path, kind):
    vector = KINDS["custom"](2, AutoresetMode.NEXT_STEP)
    if kind == "wrapped":
        vector = TransformObservation(SyncVectorEnv(makers(2)), lambda obs: obs * 2)
    words = ["train_frames=60", "eval_every_frames=30"]
    trainer = trainer_on(vector, tmp_path / "none", composed(vector, "td3", *words))
    trainer.try_evaluation()
    trainer.run()
    assert not any("eval/episode_return" in row for row in rows(tmp_path / "none"))
    (line,) = [m for m in trainer.display.messages if m.startswith("evaluations: there are none")]
    assert "make_eval_env" in line
    given = trainer_on(
        vector, tmp_path / "given", composed(vector, "td3", *words), make_eval_env=Count
    )
    given.try_evaluation()
    given.run()
    assert any("eval/episode_return" in row for row in rows(tmp_path / "given"))


def test_env_for_evaluations_must_be_like_the_members(tmp_path):
    vector = CountVector(2, AutoresetMode.NEXT_STEP)
    config = composed(vector, "td3", "eval_every_frames=30")
    other = functools.partial(gymnasium.make, "Pendulum-v1")
    with pytest.raises(ConfigError, match=r"make_eval_env: .*of shape \(3,\) and .*received"):
        trainer_on(vector, tmp_path, config, make_eval_env=tiny_envs.StateReach)
    with pytest.raises(ConfigError, match="expected it to return one"):
        trainer_on(vector, tmp_path, config, make_eval_env=lambda: vector)
    with pytest.raises(RunFailed, match="make_eval_env: it raised ZeroDivisionError"):
        trainer_on(vector, tmp_path, config, make_eval_env=lambda: 1 / 0)
    assert other().observation_space.shape == (3,)  # as many numbers, and the same actions
    trainer_on(vector, tmp_path, config, make_eval_env=other).close()


def normalised():
    return gymnasium.wrappers.NormalizeObservation(Count())


def test_evaluations_take_over_what_the_first_member_keeps(tmp_path):
    """Here the statistics that its observations are normalised by."""
    vector = SyncVectorEnv([normalised] * 2)
    words = ["train_frames=40", "eval_every_frames=20", "eval_episodes=1", "video_size=32"]
    trainer = trainer_on(vector, tmp_path, composed(vector, "td3", *words))
    trainer.try_evaluation()
    trainer.run()
    assert any(line.startswith("videos: there are none") for line in trainer.display.messages)
    env = trainer.make_eval_env()
    env.reset(seed=0)
    kept = [one.get_wrapper_attr("obs_rms") for one in (env, vector.envs[0])]
    assert kept[0].count == kept[1].count > 15
    assert np.array_equal(kept[0].mean, kept[1].mean)
    trainer.close()


def test_where_members_are_in_other_processes_it_is_said_that_evaluations_lack_what_they_keep(
    tmp_path,
):
    vector = AsyncVectorEnv([normalised] * 2)
    trainer = trainer_on(vector, tmp_path, composed(vector, "td3", "eval_every_frames=20"))
    trainer.try_evaluation()
    assert any("which is not at hand" in line for line in trainer.display.messages)
    trainer.close()
    vector.close()


# --- refusals ---


class Pictures(Count):
    observation_space = Box(0, 255, (24, 24, 3), np.uint8)

    def _obs(self):
        return np.zeros((24, 24, 3), np.uint8)


class OneBound(Count):
    action_space = Box(0, np.inf, (1,), np.float32)


class Combined(Count):
    action_space = MultiDiscrete([2, 3])


@pytest.mark.parametrize(
    ("make", "words", "expected"),
    [
        (Pictures, [], r"observations of this vector env are images; .* states only"),
        (OneBound, [], "expected actions with two bounds or none"),
        (Combined, [], "expected a Box or Discrete action space"),
        (Count, ["num_envs=5"], "num_envs: .* has 2 envs, received 5"),
        (Count, ["env.action_repeat=2"], "env.action_repeat: expected 1"),
        (Count, ["agent=drq_eps"], "agent=drq_eps takes discrete actions"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_in_a_sentence(tmp_path, make, words, expected):
    vector = SyncVectorEnv(makers(2, make))
    before = list(vector.envs)
    agent = "drq_eps" if "agent=drq_eps" in words else "td3"
    config = composed(vector, agent, *words)
    with pytest.raises(ConfigError, match=expected):
        trainer_on(vector, tmp_path, config)
    assert vector.envs == before


def test_episodes_that_others_would_begin_are_refused(tmp_path):
    vector = CountVector(2, AutoresetMode.NEXT_STEP)
    config = composed(vector)
    guide = dataclasses.replace(config.jump_start, model="teacher.zip")
    for name, change in {
        "snapshot": {"snapshot": "teacher.h5"},
        "jump_start": {"jump_start": guide},
    }.items():
        with pytest.raises(ConfigError, match=f"^{name}: .*num_envs=N"):
            trainer_on(vector, tmp_path, dataclasses.replace(config, **change))
    with pytest.raises(ConfigError, match=r"expected a gymnasium\.vector\.VectorEnv, received"):
        trainer_on(Count(), tmp_path, config)


def test_unknown_mode_is_refused_and_a_missing_one_is_said(tmp_path):
    vector = CountVector(2, AutoresetMode.NEXT_STEP)
    vector.metadata = {"autoreset_mode": "sometimes"}
    with pytest.raises(ConfigError, match=r"one of AutoresetMode\.NEXT_STEP, .*'sometimes'"):
        trainer_on(vector, tmp_path, resolve.compose([*TINY_STATE["td3"], "env=vector/Count"]))
    vector.metadata = {}
    trainer = trained(vector, tmp_path)
    assert any("NEXT_STEP is assumed" in line for line in trainer.display.messages)


def test_name_of_a_vector_env_cannot_be_made_into_an_env():
    config = resolve.compose([*TINY_STATE["td3"], "env=vector/Count"])
    from rlearly.training import builder

    with pytest.raises(ConfigError, match="a VectorEnv object"):
        builder.make_env(config)


# --- failures ---


class Failing(Count):
    """Its second member fails at its third step."""

    def __init__(self, index, fault):
        super().__init__(index)
        self.fault = fault
        self.taken = 0

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        self.taken += 1
        if self.index == 1 and self.taken == 3:
            if self.fault == "raise":
                raise ZeroDivisionError("no more")
            if self.fault == "reward":
                reward = float("nan")
            if self.fault == "obs":
                obs = np.array([np.nan, 0, 0], np.float32)
        return obs, reward, terminated, truncated, info


@pytest.mark.parametrize("make", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("raise", "raised ZeroDivisionError: no more"),
        ("reward", "returned a reward of nan in a training step"),
        ("obs", "returned an observation that is not finite in a training step"),
    ],
)
def test_failures_name_the_member(tmp_path, make, fault, expected):
    functions = [functools.partial(Failing, index, fault) for index in range(3)]
    vector = make(functions, autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(RunFailed, match=f"member 1: step.*{expected}"):
        trained(vector, tmp_path)
    vector.close()


class Wrong(CountVector):
    """A vector env that returns something wrong."""

    def __init__(self, wrong, mode=AutoresetMode.NEXT_STEP):
        super().__init__(2, mode)
        self.wrong = wrong

    def step(self, actions):
        obs, rewards, terminated, truncated, infos = super().step(actions)
        if self.wrong == "four":
            return obs, rewards, terminated, infos
        if self.wrong == "obs":
            obs = obs[:1]
        if self.wrong == "rewards":
            rewards = rewards[:1]
        if self.wrong == "flags":
            terminated = None
        if self.wrong == "infos":
            infos = None
        if self.wrong == "mode":
            terminated = np.ones(2, bool)
        if self.wrong == "final":
            infos = {}
        if self.wrong == "final shape" and "final_obs" in infos:
            infos["final_obs"] = np.array([np.zeros(2)] * 2 + [None], object)[:2]
        return obs, rewards, terminated, truncated, infos


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ("four", "did not return five values"),
        ("obs", r"returned observations of float32 \[1, 3\].*expected float32 \[2, 3\]"),
        ("rewards", r"returned rewards of float64 \[1\]; expected 2 of them|\[1\] in a"),
        ("flags", "returned terminations of object"),
        ("infos", "returned infos of the type NoneType"),
        ("mode", r"member \d: .*ended an episode in the step after an episode's end"),
        ("final", r"member \d: .*without its last observation"),
        ("final shape", r"member \d: .*returned float64 \[2\] in infos\['final_obs'\]"),
    ],
)
def test_what_a_vector_env_returns_wrongly_is_said(tmp_path, wrong, expected):
    mode = AutoresetMode.SAME_STEP if wrong.startswith("final") else AutoresetMode.NEXT_STEP
    vector = Wrong(wrong, mode)
    with pytest.raises(RunFailed, match=expected):
        trained(vector, tmp_path)


# --- resuming, seeds, and what is the caller's ---


def test_envs_are_given_back_and_can_be_trained_on_again(tmp_path):
    vector = SyncVectorEnv(makers(2))
    before = list(vector.envs)
    trained(vector, tmp_path / "one")
    assert vector.envs == before and not vector.closed
    trained(vector, tmp_path / "two")
    vector.close()


def test_run_depends_on_its_seed_alone(tmp_path):
    def run(name, make, seed):
        vector = make([tiny_envs.StateReach] * 2)
        trainer = trained(vector, tmp_path / name, "td3", f"seed={seed}")
        vector.close()
        return plain(trainer.memory.state_dict())

    for make in (SyncVectorEnv, AsyncVectorEnv):
        name = make.__name__
        one = run(f"{name}1", make, 1)
        assert one == run(f"{name}2", make, 1) != run(f"{name}3", make, 2)


@pytest.mark.parametrize("make", [SyncVectorEnv, AsyncVectorEnv])
def test_overlap_changes_nothing(tmp_path, make):
    def run(name, *words):
        vector = make(makers(2))
        trainer = trained(vector, tmp_path / name, "td3", "agent.learning_starts_steps=10", *words)
        vector.close()
        return plain(trainer.agent.state_dict()), plain(trainer.memory.state_dict())

    assert run("with", "overlap=true") == run("without")


@pytest.mark.parametrize("kind", ["async", "custom"])
@pytest.mark.parametrize("agent", ["td3", "ppo"])
def test_where_envs_cannot_be_saved_a_resumed_run_begins_new_episodes(
    tmp_path, kind, agent, caplog
):
    vector = KINDS[kind](3, AutoresetMode.NEXT_STEP)
    words = ["agent.rollout_steps=8", "agent.minibatches=2"] if agent == "ppo" else []
    config = composed(vector, agent, "train_frames=80", "eval_every_frames=0", *words)
    stopped = trainer_on(vector, tmp_path, config)
    assert any("it begins new episodes: only" in line for line in stopped.display.messages)
    stopped.stop_requested = lambda: stopped.steps >= 31
    assert not stopped.run()
    stopped.close()
    vector.close()
    vector = KINDS[kind](3, AutoresetMode.NEXT_STEP)
    resumed = trainer_on(vector, tmp_path, config)
    with caplog.at_level(logging.WARNING):
        assert resumed.resume() == stopped.steps
    assert "The run continues with new episodes" in caplog.text
    assert resumed.obs == [None] * 3 and resumed.episode_steps == [0] * 3
    assert resumed.run() and resumed.steps >= 80
    resumed.close()
    vector.close()


@pytest.mark.skipif(not hasattr(os, "setpgid"), reason="there are no process groups")
def test_ctrl_c_in_a_terminal_does_not_reach_forked_workers():
    vector = AsyncVectorEnv(makers(2), context="fork")
    assert {os.getpgid(process.pid) for process in vector.processes} == {os.getpgid(0)}
    members_of(vector)
    assert os.getpgid(0) not in {os.getpgid(process.pid) for process in vector.processes}
    vector.close()


def test_another_vector_env_does_not_continue_a_run(tmp_path):
    vector = SyncVectorEnv(makers(3))
    config = composed(vector, "td3", "train_frames=80", "eval_every_frames=0")
    stopped = trainer_on(vector, tmp_path, config)
    stopped.stop_requested = lambda: stopped.steps >= 31
    stopped.run()
    with pytest.raises(ConfigError, match="num_envs 3, now 2"):
        trainer_on(SyncVectorEnv(makers(2)), tmp_path, config).resume()


def test_middle_of_the_space_is_what_nobody_chose():
    vector = members_of(CountVector(2, AutoresetMode.NEXT_STEP))
    wrapper = vector._actions
    assert isinstance(wrapper, ScaledActions)
    assert vector._batch([None, np.ones(1, np.float32)]).tolist() == [[2], [6]]
