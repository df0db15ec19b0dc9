"""Whole runs of drq_eps on Atari games: what they can be combined with, resumed."""

import pytest
from saved import plain, rows
from test_trainer import make_trainer

pytest.importorskip("ale_py", reason="ale-py is not installed")

RUN = [
    "agent=drq_eps",
    "env=atari/Breakout",
    "env.image_size=24",
    "agent.encoder_channels=4",
    "agent.hidden_dim=16",
    "agent.batch_size=8",
    "agent.learning_starts_steps=60",
    "agent.epsilon_steps=100",
    "train_frames=800",
    "log_every_frames=100",
    "replay.capacity=150",
    "eval_every_frames=0",
    "checkpoint_every_frames=0",
    "video_size=0",
]
CASES = {
    "adaptive ratio by steps": [
        "replay_ratio=adaptive",
        "adaptive_ratio.check_every_steps=40",
        "adaptive_ratio.threshold=1",
    ],
    "two envs, zstd": ["num_envs=2", "replay.compression=zstd"],
    "on disk, prefetched": ["replay.storage=disk", "replay.prefetch=2", "replay_ratio=2"],
    "redo and resets, target": [
        "intervention=[redo,reset,shrink_perturb]",
        "redo.every_steps=50",
        "reset.every_steps=70",
        "shrink_perturb.every_steps=90",
        "agent.target_every_updates=7",
    ],
    "sticky": ["env.rules=sticky"],
    "ram": ["obs=state", "agent.hidden_dim=32"],
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_run_equals_the_uninterrupted_one(tmp_path, case):
    words = CASES[case]
    straight = make_trainer(tmp_path / "straight", *words, base=RUN)
    assert straight.run() and straight.updates > 50
    folder = tmp_path / "resumed"
    stopped = make_trainer(folder, *words, base=RUN)
    stopped.stop_requested = lambda: stopped.steps >= 131
    assert not stopped.run()
    stopped.close()
    resumed = make_trainer(folder, *words, base=RUN)
    resumed.resume()
    assert resumed.run()
    assert plain(straight.state_dict()) == plain(resumed.state_dict())
    assert rows(tmp_path / "straight") == rows(folder)
    resumed.close()
    if "adaptive" in case:
        assert straight.update_schedule.switched
    straight.close()
