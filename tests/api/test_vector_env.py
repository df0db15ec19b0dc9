"""`rlearly.train(env=VECTOR_ENV)`."""

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from vector_envs import Count, CountVector, makers

import rlearly
from rlearly.core.errors import ConfigError

SETTINGS = {"agent": "td3", "progress": False, "agent__learning_starts_steps": 20, "device": "cpu"}
SETTINGS |= {"agent__hidden_dim": 16, "agent__batch_size": 16, "replay": {"capacity": 500}}


def test_run_on_a_vector_env_is_evaluated_and_gives_a_policy(tmp_path):
    envs = SyncVectorEnv(makers(3))
    run = rlearly.train(
        env=envs,
        train_frames=80,
        eval_every_frames=40,
        eval_episodes=2,
        run_dir=tmp_path / "run",
        **SETTINGS,
    )
    assert run.finished and run.config.num_envs == 3
    assert not envs.closed and type(envs.envs[0]) is Count
    action = run.policy(np.array([0, 1, 2], np.float32))
    assert Count.action_space.contains(action)
    assert len(run.evaluate(episodes=2).returns) == 2
    assert len([value for value in run.metrics()["eval/episode_return"] if value == value]) == 2


def test_stopped_run_continues_on_the_same_kind_of_vector_env_alone(tmp_path):
    folder = tmp_path / "run"
    words = {"eval_every_frames": 0, **SETTINGS}
    rlearly.train(env=SyncVectorEnv(makers(3)), train_frames=60, run_dir=folder, **words)
    with pytest.raises(ConfigError, match="vector_env SyncVectorEnv, now None"):
        rlearly.train(env=Count, resume=folder, train_frames=90, progress=False)
    longer = rlearly.train(
        env=SyncVectorEnv(makers(3)), resume=folder, train_frames=90, progress=False
    )
    assert longer.finished and longer.checkpoints[-1] >= 90


def test_vector_env_that_tells_of_no_single_env_trains_without_evaluations(tmp_path):
    mode = gymnasium.vector.AutoresetMode.SAME_STEP
    run = rlearly.train(
        env=CountVector(2, mode), train_frames=60, run_dir=tmp_path / "run", **SETTINGS
    )
    assert run.finished and run.config.env.name == "vector/CountVector"
    with pytest.raises(ConfigError, match="a VectorEnv object"):
        run.policy(np.zeros(3, np.float32))
    again = rlearly.train(
        env=CountVector(2, mode), resume=run.path, train_frames=80, progress=False
    )
    assert again.checkpoints[-1] >= 80


def test_make_eval_env_is_for_vector_envs(tmp_path):
    with pytest.raises(ConfigError, match="make_eval_env: has no effect without"):
        rlearly.train(env="Pendulum-v1", make_eval_env=Count, **SETTINGS)
