"""`keep_best`: which evaluation's checkpoint is kept, and that no crash loses or damages it."""

import numpy as np
import pytest
from conftest import TINY_STATE
from saved import equal, plain
from test_trainer import make_trainer

from rlearly.core.errors import ConfigError
from rlearly.training import checkpoint
from rlearly.training.checkpoint import Checkpoints, best_frames, delete_unneeded_best
from rlearly.training.evaluation import Evaluation

STATE = [word for word in TINY_STATE["td3"] if not word.startswith(("eval_", "checkpoint_"))]
WORDS = [
    "keep_best=true",
    "eval_every_frames=50",
    "eval_episodes=1",
    "train_frames=250",
    "checkpoint_every_frames=60",
]


def told(monkeypatch, returns):
    """Let evaluations report these mean returns, in order of frames."""

    def evaluated(agent, env, *, step, **_):
        return Evaluation([returns[step // 50 - 1]], [10], [step >= 150])

    monkeypatch.setattr("rlearly.training.trainer.evaluate", evaluated)


def kept(folder):
    return [int(path.name) for path in checkpoint.list_checkpoints(folder / "checkpoints/best")]


@pytest.mark.parametrize(
    ("returns", "best"), [([1, 3, 2, 3, 0], 100), ([1, 2, 3, 4, 5], 250), ([5, 4, 5, 1, 2], 50)]
)
def test_highest_evaluation_is_kept_and_of_equal_ones_the_earliest(
    tmp_path, monkeypatch, returns, best
):
    told(monkeypatch, returns)
    trainer = make_trainer(tmp_path, *WORDS, base=STATE)
    assert trainer.run()
    frames, state = checkpoint.load_at(tmp_path / "checkpoints", "best")
    assert frames == best == trainer.best["frames"] and trainer.best["value"] == max(returns)
    assert state["trainer"]["steps"] == best and "replay" not in state
    assert [int(p.name) for p in checkpoint.list_checkpoints(tmp_path / "checkpoints")] == [
        240,
        250,
    ], "it is not one of the newest"


def test_kept_agent_is_the_one_that_was_evaluated(tmp_path, monkeypatch):
    told(monkeypatch, [1, 3, 2, 2, 2])
    agents = {}
    trainer = make_trainer(tmp_path, *WORDS, base=STATE)
    trainer.display.on_progress = lambda at, *_: agents.setdefault(
        at.steps, plain(trainer.agent.state_dict())
    )
    trainer.run()
    assert plain(checkpoint.load_at(tmp_path / "checkpoints", "best")[1]["agent"]) == agents[100]
    assert agents[100] != agents[101]


def test_another_metric_may_decide(tmp_path, monkeypatch):
    told(monkeypatch, [9, 8, 7, 6, 5])
    trainer = make_trainer(tmp_path, *WORDS, "keep_best=eval/success_rate", base=STATE)
    trainer.run()
    assert best_frames(tmp_path / "checkpoints") == 150


def test_metric_that_evaluations_do_not_report_is_said_once(tmp_path):
    trainer = make_trainer(tmp_path, *WORDS, "keep_best=eval/success_rate", base=STATE)
    trainer.run()
    assert not kept(tmp_path)
    said = [text for text in trainer.display.messages if text.startswith("keep_best")]
    assert said == ["keep_best: evaluations of this env report no eval/success_rate"]


def test_keeping_the_best_changes_nothing_in_training(tmp_path):
    without = make_trainer(tmp_path / "without", *WORDS[1:], base=STATE)
    keeping = make_trainer(tmp_path / "with", *WORDS, base=STATE)
    assert without.run() and keeping.run() and kept(tmp_path / "with")
    one, two = plain(without.state_dict()), plain(keeping.state_dict())
    assert one.pop("best") is None and two.pop("best")["frames"] in kept(tmp_path / "with")
    assert one == two


def test_killed_run_finds_the_same_best_again(tmp_path, monkeypatch):
    """It is killed at 170 frames and returns to 120: its best one at 150 is then of a future."""
    told(monkeypatch, [1, 2, 5, 4, 3])
    straight = make_trainer(tmp_path / "straight", *WORDS, base=STATE)
    assert straight.run()
    first = make_trainer(tmp_path / "run", *WORDS, base=STATE)

    def die():
        if first.steps >= 170:
            raise SystemExit
        return False

    first.stop_requested = die
    with pytest.raises(SystemExit):
        first.run()
    first.close()
    assert kept(tmp_path / "run") == [50, 100, 150], "those of both checkpoints, and the newest"
    second = make_trainer(tmp_path / "run", *WORDS, base=STATE)
    assert second.resume() == 120 and second.best["frames"] == 100
    assert kept(tmp_path / "run") == [50, 100]
    assert second.run() and kept(tmp_path / "run") == kept(tmp_path / "straight") == [150]
    one, two = (
        checkpoint.load_at(tmp_path / run / "checkpoints", "best")[1] for run in ("run", "straight")
    )
    assert plain(one) == plain(two) and plain(second.state_dict()) == plain(straight.state_dict())


def test_checkpoint_of_each_kept_state_outlives_a_kill(tmp_path):
    """Best ones at 10, 30 and 50 frames; the run returns to 40, and then trains on."""
    folder = tmp_path / "checkpoints"
    best, newest = Checkpoints(folder / "best", 99), Checkpoints(folder, 2)
    state = {"weights": np.arange(3)}
    best.save(10, state)
    newest.save(20, state)
    best.save(30, state)
    newest.save(40, state)
    delete_unneeded_best(folder, 40)
    assert kept(tmp_path) == [10, 30], "the checkpoint at 20 may have to be returned to"
    best.save(50, state)
    delete_unneeded_best(folder, 40)
    assert kept(tmp_path) == [10, 30], "50 is of a future that was left"
    newest.save(60, state)
    delete_unneeded_best(folder, 60)
    assert kept(tmp_path) == [30]


def test_damaged_best_is_refused_and_forgotten_when_the_run_resumes(tmp_path, monkeypatch, caplog):
    told(monkeypatch, [1, 5, 2, 3, 4])
    trainer = make_trainer(tmp_path, *WORDS, "train_frames=150", base=STATE)
    trainer.run()
    trainer.close()
    file = next((tmp_path / "checkpoints/best").glob("*/state.pt"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"is damaged: state\.pt should have"):
        checkpoint.load_at(tmp_path / "checkpoints", "best")
    later = make_trainer(tmp_path, *WORDS, base=STATE)
    assert later.resume() == 150 and later.best is None
    assert "The next evaluation is taken for the best one" in caplog.text
    assert later.run() and later.best["value"] == 4


def test_full_disk_keeps_the_best_one_before(tmp_path, monkeypatch):
    told(monkeypatch, [1, 2, 3, 2, 1])
    trainer = make_trainer(tmp_path, *WORDS, base=STATE)
    save = trainer.best_checkpoints.save

    def full(frames, state):
        if frames == 150:
            raise OSError("No space left on device")
        return save(frames, state)

    monkeypatch.setattr(trainer.best_checkpoints, "save", full)
    assert trainer.run() and trainer.best["frames"] == 100 == best_frames(tmp_path / "checkpoints")
    assert any("No space left" in text for text in trainer.display.messages)


def test_run_without_a_best_says_how_to_keep_one(tmp_path):
    make_trainer(tmp_path, "train_frames=20", base=STATE).run()
    with pytest.raises(ConfigError, match="has kept no best one; a run does with keep_best=true"):
        checkpoint.load_at(tmp_path / "checkpoints", "best")
    with pytest.raises(ConfigError, match="expected a number of frames, best or null"):
        checkpoint.load_at(tmp_path / "checkpoints", "x")
    assert equal(*(checkpoint.load_at(tmp_path / "checkpoints", at)[1] for at in (20, "20")))


def test_evaluation_and_teacher_play_the_best(zygote, tmp_path, capsys):
    from rlearly import evaluate, teacher

    run = tmp_path / "run"
    words = [*STATE, *WORDS, "eval_episodes=3", "threads=1", f"run_dir={run}"]
    assert zygote.run(*words, log=tmp_path / "log")[0] == 0
    (frames,) = kept(run)
    words = [f"run={run}", "checkpoint=best", "episodes=1"]
    assert evaluate.main([*words, "video_size=0"]) == 0
    assert f"at {frames:,} frames" in capsys.readouterr().out
    assert teacher.main([*words, f"out={tmp_path / 'teacher.h5'}"]) == 0
    assert f"at {frames:,} frames" in capsys.readouterr().out
