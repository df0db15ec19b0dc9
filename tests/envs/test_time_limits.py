"""Envs whose episodes never end: what is said, and env.max_episode_steps."""

import gymnasium
import numpy as np
import pytest
from conftest import TINY_STATE
from gymnasium.spaces import Box
from saved import rows

from rlearly import envs, evaluate, teacher
from rlearly.config import resolve
from rlearly.core.errors import ConfigError
from rlearly.envs.snapshots.dataset import Snapshots
from rlearly.train import main as train
from rlearly.training import builder, evaluation
from rlearly.training import trainer as trainer_module


class Endless(gymnasium.Env):
    observation_space = Box(-1, 1, (2,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0.0
        return self._obs(), {}

    def step(self, action):
        self.at = float(np.clip(self.at + 0.1 * float(action[0]), -1, 1))
        return self._obs(), -abs(self.at), False, False, {}

    def _obs(self):
        return np.array([self.at, 0.5], np.float32)


gymnasium.register("Endless-v0", Endless)
gymnasium.register("TwentySteps-v0", Endless, max_episode_steps=20)

WORDS = [*TINY_STATE["td3"], "env=Endless-v0", "threads=1", "train_frames=120", "video_size=0"]
LIMIT = "env.max_episode_steps=15"
NO_LIMIT = "env=Endless-v0 has no time limit: if it does not end its episodes itself"


def test_limit_ends_the_episodes_of_training_evaluation_and_teacher(tmp_path, capsys):
    run = tmp_path / "run"
    words = [*WORDS, LIMIT, "env.action_repeat=2", f"run_dir={run}"]
    assert train([*words, "eval_every_frames=1000", "eval_episodes=2"]) == 0
    said = capsys.readouterr().out
    assert "time limit" not in said
    found = rows(run)
    lengths = {row["train/episode_length_steps"] for row in found if "train/episodes" in row}
    assert lengths == {8}, "15 steps of the env, two at a time"
    assert [row["eval/episode_length_steps"] for row in found if "eval/episodes" in row] == [8]
    base = [f"run={run}", "episodes=2"]
    assert evaluate.main([*base, "video_size=0", "threads=1"]) == 0
    assert "episode 1: return" in (said := capsys.readouterr().out) and "in 8 steps" in said
    assert evaluate.main([*base, "video_size=0", "threads=1", "max_episode_steps=40"]) == 0
    assert "in 20 steps" in capsys.readouterr().out
    out = tmp_path / "t.h5"
    assert teacher.main([*base, f"out={out}", "every_steps=4", "max_episode_steps=20"]) == 0
    assert "in 10 steps" in capsys.readouterr().out
    assert Snapshots.load(out).steps.tolist() == [0, 4, 8, 0, 4, 8]


def test_env_without_a_limit_is_said_at_the_start_and_one_with_a_limit_is_not(tmp_path, capsys):
    assert train([*WORDS, f"run_dir={tmp_path / 'endless'}"]) == 0
    said = capsys.readouterr().out
    assert said.count(NO_LIMIT) == 1 and "env.max_episode_steps=1000" in said
    assert train([*WORDS, "env=TwentySteps-v0", f"run_dir={tmp_path / 'limited'}"]) == 0
    assert "time limit" not in capsys.readouterr().out
    task = resolve.compose(["agent=td3", "env=cartpole_balance"])
    env = builder.make_env(task)
    assert envs.has_time_limit(env, task.env)
    env.close()


def test_evaluation_that_never_ends_is_said_and_can_be_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trainer_module, "LONG_EPISODE_STEPS", 50)
    asked = []

    def received(self):
        asked.append(0)
        return len(asked) > 500

    monkeypatch.setattr("rlearly.training.stop_requests.StopRequests.__call__", received)
    run = tmp_path / "run"
    assert train([*WORDS, "eval_every_frames=1000", f"run_dir={run}"]) == 75
    said = capsys.readouterr().out
    assert said.count("an episode of this evaluation has taken 50 steps and is still running") == 1
    assert "resume it with eval_every_frames=0" in said and "saved at 120 frames" in said
    asked.clear()
    assert train([f"resume={run}", "eval_every_frames=0"]) == 0


def test_long_episode_of_the_command_is_said_with_its_own_key(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    assert train([*WORDS, f"run_dir={run}"]) == 0
    monkeypatch.setattr(evaluation, "LONG_EPISODE_STEPS", 50)
    words = [f"run={run}", "episodes=2", "video_size=0", "threads=1", "max_episode_steps=60"]
    capsys.readouterr()
    assert evaluate.main(words) == 0
    assert "episode 1 has taken 50 steps and is still running" in (said := capsys.readouterr().err)
    assert "add max_episode_steps=N" in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["env=cartpole_balance", LIMIT], r"cartpole_balance is a dm_control task, whose episodes"),
        (
            ["env=metaworld/reach", LIMIT],
            r"reach is a metaworld task, whose episodes have a fixed limit",
        ),
        (
            ["env=Pendulum-v1", LIMIT, "env.kwargs={max_episode_steps: 3}"],
            r"env\.kwargs\.max_episode_steps: env\.max_episode_steps is set",
        ),
        (["env=Pendulum-v1", "env.max_episode_steps=0"], r"env\.max_episode_steps: .* at least 1"),
    ],
)
def test_limit_is_refused_where_it_would_have_no_effect(words, sentence):
    with pytest.raises(ConfigError, match=sentence):
        resolve.compose(["agent=td3", *words])


def test_limit_of_a_teacher_may_differ_from_its_students(tmp_path):
    run = tmp_path / "run"
    assert train([*WORDS, LIMIT, f"run_dir={run}"]) == 0
    config = resolve.compose([*WORDS, "env.max_episode_steps=30", f"jump_start.run={run}"])
    assert config.env.max_episode_steps == 30
