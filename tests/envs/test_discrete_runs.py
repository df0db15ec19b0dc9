"""Whole runs on Atari and MiniGrid: resumed, recorded as teachers, taught by snapshots, filmed."""

import importlib.util

import pytest
from saved import plain, rows
from test_trainer import make_trainer

from rlearly import envs, evaluate, teacher, train
from rlearly.config import resolve
from rlearly.training.builder import make_env

TINY = (
    "agent=drq_eps",
    "agent.hidden_dim=16",
    "agent.learning_starts_steps=60",
    "agent.epsilon_steps=200",
    "agent.batch_size=16",
    "replay_ratio=0.5",
    "replay.capacity=150",
    "log_every_frames=100",
    "eval_episodes=1",
    "video_size=0",
    "threads=1",
)
BREAKOUT = (
    *TINY,
    "env=atari/Breakout",
    "env.image_size=24",
    "env.max_episode_steps=600",
    "agent.encoder_channels=4",
    "agent.shift_pixels=1",
    "train_frames=1000",
    "eval_every_frames=700",
)
"""Games of at most 150 agent steps, lives of about 30, from images."""
GRID = (*TINY, "env=minigrid:MiniGrid-Empty-5x5-v0", "train_frames=260", "eval_every_frames=200")
"""Episodes of at most 100 steps, from states."""


def there(name):
    missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(missing, reason=f"{name} is not installed")


BASES = [
    pytest.param(BREAKOUT, id="atari", marks=there("ale_py")),
    pytest.param(GRID, id="minigrid", marks=there("minigrid")),
]


def check_resuming(folder, base, stops):
    """Runs that are stopped equal one that is not; returns its rows."""
    straight = make_trainer(folder / "straight", base=base)
    assert straight.run() and straight.updates > 50
    written = rows(folder / "straight")
    for stop_at in stops(written):
        stopped = make_trainer(folder / f"resumed{stop_at}", base=base)
        stopped.stop_requested = lambda trainer=stopped, at=stop_at: trainer.steps >= at
        assert not stopped.run() and stopped.steps == stop_at
        stopped.close()
        resumed = make_trainer(folder / f"resumed{stop_at}", base=base)
        resumed.resume()
        assert resumed.run()
        assert plain(straight.state_dict()) == plain(resumed.state_dict())
        assert rows(folder / f"resumed{stop_at}") == written
        resumed.close()
    straight.close()
    return written


@there("ale_py")
def test_atari_run_resumed_between_lives_equals_an_uninterrupted_one(tmp_path):
    def stops(written):
        lives = [row["steps"] for row in written if "train/episodes" in row]
        games = [row["steps"] for row in written if "train/game_return" in row]
        assert len(lives) > len(games) >= 1 and set(games) <= set(lives)
        between = next(step for step in lives if step not in games)
        return between, 171  # between two lives; in a life, after updates

    check_resuming(tmp_path, BREAKOUT, stops)


@there("minigrid")
def test_grid_worlds_own_limit_counts_as_one():
    grid = resolve.compose(GRID)
    assert envs.has_time_limit(make_env(grid), grid.env)
    lake = resolve.compose([*TINY, "env=FrozenLake-v1"])
    assert not envs.has_time_limit(make_env(lake).unwrapped, lake.env)


@pytest.mark.parametrize("base", BASES)
def test_run_teaches_a_student_by_snapshots_and_is_evaluated_with_a_video(tmp_path, base):
    run, file = tmp_path / "teacher", tmp_path / "teacher.h5"
    assert train.main([*base, f"run_dir={run}"]) == 0
    assert teacher.main([f"run={run}", f"out={file}", "episodes=1", "every_steps=20"]) == 0
    assert evaluate.main([f"run={run}", "episodes=1", "video_size=32", "threads=1"]) == 0
    assert list(run.rglob("*.mp4"))
    student = (*base, f"snapshot={file}", "snapshot_phase.selection=uniform")
    student += ("snapshot_phase.truncate_steps=30", "seed=1")
    written = check_resuming(tmp_path, student, lambda written: (137,))
    lengths = [row.get("train/snapshot_episode_length_steps", 0) for row in written]
    assert sum(length > 0 for length in lengths) > 5 and max(lengths) == 30
