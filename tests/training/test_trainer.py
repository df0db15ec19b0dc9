"""The trainer's laws: what is due when, nothing outside touches training, resuming is exact."""

import json

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_STATE, Silent
from saved import plain, rows

from rlearly.config import resolve
from rlearly.core.errors import ConfigError, RunFailed
from rlearly.system.seeding import Seeds
from rlearly.training import builder, checkpoint, evaluation
from rlearly.training import trainer as trainer_module
from rlearly.training.checkpoint import Checkpoints
from rlearly.training.run_directory import refuse_to_shrink
from rlearly.training.sinks import JsonLines, Sinks
from rlearly.training.update_schedule import OncePerRollout

STATE = TINY_STATE["td3"]


def make_trainer(folder, *overrides, stop=lambda: False, base=TINY):
    folder.mkdir(exist_ok=True)
    config = resolve.compose([*base, *overrides])
    return builder.build(
        config,
        folder,
        make_sinks=lambda: Sinks(JsonLines(folder / "metrics.jsonl"), []),
        display=Silent(),
        device=torch.device("cpu"),
        stop_requested=stop,
    )


def test_updates_start_after_the_seed_frames_at_the_given_ratio(tmp_path):
    trainer = make_trainer(tmp_path, "train_frames=180", "seed_frames=100", "replay_ratio=0.5")
    assert trainer.run()
    assert trainer.steps == 180 and trainer.updates == 40 and trainer.episodes == 18


def test_rows_and_evaluations_come_when_due_and_not_at_step_zero(tmp_path):
    trainer = make_trainer(
        tmp_path,
        "train_frames=200",
        "log_every_frames=50",
        "eval_every_frames=100",
        "eval_episodes=2",
        "video_size=24",
    )
    trainer.run()
    written = rows(tmp_path)
    assert [r["frames"] for r in written if "eval/episode_return" in r] == [100, 200]
    assert [r["frames"] for r in written if "train/updates" in r] == [50, 100, 150, 200]
    assert all(r["steps"] == r["frames"] for r in written)
    assert [p.name for p in sorted((tmp_path / "videos").iterdir())] == [
        "eval_000000000100.mp4",
        "eval_000000000200.mp4",
    ]


def test_success_is_written_for_tasks_that_have_a_goal(tmp_path, monkeypatch, capsys):
    overrides = [word for word in STATE if not word.startswith(("env=", "eval_every"))]
    overrides += ["env=tiny_envs:GoalReach-v0", "train_frames=300", "eval_every_frames=150"]
    trainer = make_trainer(tmp_path, "eval_episodes=40", base=overrides)
    played = []

    def count(*args, **kwargs):
        played.append(evaluation.evaluate(*args, **kwargs))
        return played[-1]

    monkeypatch.setattr("rlearly.training.trainer.evaluate", count)
    trainer.run()
    written = rows(tmp_path)
    rates = [r["eval/success_rate"] for r in written if "eval/success_rate" in r]
    assert rates == [sum(result.successes) / 40 for result in played] and len(rates) == 2
    assert 0 < rates[-1] < 1  # some goals are at hand, others are not reached yet
    episodes = [r["train/episode_success"] for r in written if "train/episode_return" in r]
    assert set(episodes) == {0.0, 1.0}
    assert any(f", success in {rates[0]:.0%}" in line for line in trainer.display.messages)
    assert not any("success" in name for row in rows_of_a_run_without(tmp_path) for name in row)


def rows_of_a_run_without(folder):
    overrides = ["train_frames=150", "eval_every_frames=150", "eval_episodes=1"]
    make_trainer(folder / "none", *overrides, base=STATE).run()
    return rows(folder / "none")


def test_updates_after_the_last_row_are_written_at_the_end(tmp_path):
    make_trainer(tmp_path, "train_frames=130", "log_every_frames=1000").run()
    (row,) = [r for r in rows(tmp_path) if "train/updates" in r]
    assert (row["frames"], row["train/updates"]) == (130, 15) and row["loss/critic"] > 0


def test_evaluation_logging_and_videos_change_nothing_in_training(tmp_path):
    quiet = make_trainer(tmp_path / "quiet", "train_frames=200")
    busy = make_trainer(
        tmp_path / "busy",
        "train_frames=200",
        "eval_every_frames=30",
        "eval_episodes=1",
        "video_size=24",
        "log_every_frames=7",
        "checkpoint_every_frames=40",
    )
    quiet.run()
    busy.run()
    one, two = plain(quiet.state_dict()), plain(busy.state_dict())
    for part in ("agent", "replay", "env", "update_schedule"):
        assert one[part] == two[part], part


@pytest.mark.parametrize("agent", ["drqv2", "drm"])
@pytest.mark.parametrize("stop_at", [3, 77, 130, 151])
def test_resumed_run_equals_uninterrupted_run(tmp_path, agent, stop_at):
    overrides = (
        f"agent={agent}",
        "train_frames=220",
        "log_every_frames=40",
        "eval_every_frames=75",
        "eval_episodes=1",
        "replay.capacity=120",
        *(["agent.perturb_every_steps=50"] if agent == "drm" else []),
    )
    straight = make_trainer(tmp_path / "straight", *overrides)
    assert straight.run()
    stopped = make_trainer(tmp_path / "resumed", *overrides)
    stopped.stop_requested = lambda: stopped.steps >= stop_at
    assert not stopped.run() and stopped.steps == stop_at
    stopped.close()
    with (tmp_path / "resumed" / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write("a row that was written after the checkpoint\n")
    resumed = make_trainer(tmp_path / "resumed", *overrides)
    resumed.resume()
    assert resumed.run()
    assert plain(straight.state_dict()) == plain(resumed.state_dict())
    assert rows(tmp_path / "straight") == rows(tmp_path / "resumed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "overrides"),
    [
        (TINY, ["agent=drqv2", "env=reach_duplo", "env.render=fast", "env.action_repeat=4"]),
        (TINY, ["agent=drm", "env=adroit/pen", "env.render=fast", "env.action_repeat=2"]),
        (STATE, ["env=adroit/relocate", "env.action_repeat=2"]),
    ],
    ids=["reach_duplo", "adroit/pen", "adroit/relocate"],
)
def test_run_resumed_in_mid_episode_of_a_manipulation_task_equals_an_uninterrupted_one(
    tmp_path, base, overrides
):
    overrides = [*overrides, "train_frames=600", "eval_every_frames=400", "eval_episodes=1"]
    overrides += ["seed_frames=40", "video_size=24"] if base is TINY else ["video_size=0"]
    straight = make_trainer(tmp_path / "straight", *overrides, base=base)
    assert straight.run()
    stopped = make_trainer(tmp_path / "resumed", *overrides, base=base)
    stopped.stop_requested = lambda: stopped.steps >= 37
    assert not stopped.run() and stopped.steps == 37
    stopped.close()
    resumed = make_trainer(tmp_path / "resumed", *overrides, base=base)
    resumed.resume()
    assert resumed.run()
    assert plain(straight.state_dict()) == plain(resumed.state_dict())
    assert rows(tmp_path / "straight") == rows(tmp_path / "resumed")
    straight.close()
    resumed.close()


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("agent", sorted(TINY_STATE))
def test_resumed_run_of_several_envs_equals_uninterrupted_run(tmp_path, agent, num_envs):
    overrides = (
        f"num_envs={num_envs}",
        "train_frames=330",
        "log_every_frames=40",
        "eval_every_frames=75",
        "eval_episodes=1",
        *(["replay.capacity=150"] if agent != "ppo" else ["agent.rollout_steps=32"]),
    )

    def make(name):
        return make_trainer(tmp_path / name, *overrides, base=TINY_STATE[agent])

    straight = make("straight")
    assert straight.run() and straight.updates >= 3
    for stop_at in (5, 192, 233):  # early; where every rollout is full; in the middle of everything
        stopped = make(f"resumed{stop_at}")
        stopped.stop_requested = lambda trainer=stopped, at=stop_at: trainer.steps >= at
        assert not stopped.run() and 0 <= stopped.steps - stop_at < num_envs
        stopped.close()
        resumed = make(f"resumed{stop_at}")
        folder = tmp_path / f"resumed{stop_at}"
        resumed.resume()
        assert resumed.run()
        assert plain(straight.state_dict()) == plain(resumed.state_dict())
        assert rows(tmp_path / "straight") == rows(folder)


ADAPTIVE = (
    "replay_ratio=adaptive",
    "adaptive_ratio.check_every_episodes=3",
    "adaptive_ratio.threshold=1",
)
"""The first check, at the end of the third episode, finds a difference of at most 1."""


@pytest.mark.parametrize("agent", ["drm", "drqv2", "td3", "sac"])
def test_resumed_adaptive_run_with_interventions_equals_uninterrupted_run(tmp_path, agent):
    state = agent in TINY_STATE
    overrides = (
        f"agent={agent}",
        "train_frames=200",
        "log_every_frames=25",
        "seed_frames=100",
        "adaptive_ratio.check_every_episodes=14",
        "plasticity.every_steps=11",
        "intervention=[redo,injection,reset,l2_init,layer_norm]",
        "redo.every_steps=20",
        "injection.at_step=140",
        "reset.every_steps=60",
        *(["agent.learning_starts_steps=100"] if state else []),
    )

    def make(name):
        base = [*(TINY_STATE[agent] if state else TINY), *ADAPTIVE]
        return make_trainer(tmp_path / name, *overrides, base=base)

    straight = make("straight")
    assert straight.run()
    events = [r for r in rows(tmp_path / "straight") if any(k.startswith("event/") for k in r)]
    (switch,) = [r for r in events if "event/replay_ratio" in r]
    at = switch["steps"]  # the end of the fourteenth episode, of at most ten steps each
    assert switch["event/replay_ratio"] == 2.0 and 120 < at <= 140
    assert [r["steps"] for r in events if "event/injection" in r] == [140]
    read = [r["steps"] for r in rows(tmp_path / "straight") if "plasticity/distance_actor" in r]
    assert [step // 11 for step in read] == list(range(9, 19)), "each has a row, at its own step"
    assert all(step % 11 <= 3 for step in read[1:])
    assert straight.updates == (at - 100 + 1) // 2 + 2 * (200 - at)
    for stop_at in (139, 183):
        stopped = make(f"resumed{stop_at}")
        stopped.stop_requested = lambda trainer=stopped, at=stop_at: trainer.steps >= at
        assert not stopped.run()
        stopped.close()
        resumed = make(f"resumed{stop_at}")
        folder = tmp_path / f"resumed{stop_at}"
        resumed.resume()
        assert resumed.run()
        assert plain(straight.state_dict()) == plain(resumed.state_dict())
        assert rows(tmp_path / "straight") == rows(folder)


def test_drm_perturbs_once_an_interval_after_the_switch_to_more_updates(tmp_path):
    overrides = ("agent=drm", "train_frames=260", "agent.perturb_every_steps=30", "seed_frames=50")
    trainer = make_trainer(tmp_path, *overrides, *ADAPTIVE, "adaptive_ratio.check_every_episodes=8")
    assert trainer.run()
    found = rows(tmp_path)
    (switch,) = [r["steps"] for r in found if "event/replay_ratio" in r]
    assert switch == 80
    perturbed = [r["steps"] for r in found if "event/perturbation_alpha" in r]
    assert perturbed == [60, 90, 120, 150, 180, 210, 240], "not in the one that learning began in"
    ratios = [r["train/replay_ratio"] for r in found if "train/replay_ratio" in r]
    assert trainer.updates == 15 + 360 and ratios[-1] == pytest.approx(trainer.updates / 260)


def test_drm_on_dog_run_perturbs_once_an_interval_at_two_updates_a_step(tmp_path):
    overrides = (
        "agent=drm env=dog_run obs=state seed_frames=400 train_frames=1600 replay_ratio=adaptive "
        "adaptive_ratio.check_every_episodes=1 adaptive_ratio.threshold=1 "
        "agent.perturb_every_steps=100 agent.exploration_steps=100 agent.hidden_dim=16 "
        "agent.feature_dim=8 agent.batch_size=8 replay.capacity=2000 eval_every_frames=0 "
        "checkpoint_every_frames=0 video_size=0"
    )
    trainer = make_trainer(tmp_path, base=overrides.split())
    assert trainer.run() and trainer.updates == 150 + 600
    found = rows(tmp_path)
    (switch,) = [r["steps"] for r in found if "event/replay_ratio" in r]
    assert switch == 500, "an episode is 1000 frames"
    perturbed = [r["steps"] for r in found if "event/perturbation_alpha" in r]
    assert perturbed == [300, 400, 500, 600, 700]


def test_envs_step_together_each_through_its_own_episodes(tmp_path):
    trainer = make_trainer(tmp_path, "agent=td3", "num_envs=3", "train_frames=95", base=STATE)
    seen = []
    act = trainer.agent.act
    trainer.agent.act = lambda obs, **kwargs: seen.append(obs) or act(obs, **kwargs)
    assert trainer.run()
    assert trainer.steps == 96, "the last round is whole"
    assert all(obs.shape == (3, 2) for obs in seen) and len(seen) == 32
    first_goals = seen[0][:, 0]
    assert len(set(first_goals.tolist())) == 3, "envs draw their episodes independently"
    episodes = [r for r in rows(tmp_path) if "train/episode_return" in r]
    assert [r["train/episodes"] for r in episodes] == list(range(1, trainer.episodes + 1))
    assert all(r["train/episode_length_steps"] <= 10 for r in episodes)
    done = sum(r["train/episode_length_steps"] for r in episodes)
    assert done + sum(trainer.episode_steps) == trainer.steps, "no step is lost between episodes"
    overrides = (*STATE, "agent=td3", "num_envs=3")
    refuse_to_shrink(tmp_path, resolve.compose([*overrides, "train_frames=94"]))
    with pytest.raises(ConfigError, match="expected at least the 96 frames"):
        refuse_to_shrink(tmp_path, resolve.compose([*overrides, "train_frames=93"]))
    alone = make_trainer(tmp_path / "alone", "agent=td3", "train_frames=1", base=STATE)
    alone.run()
    assert alone.obs[0][0] == first_goals[0], "the first env is that of a run with one env"


def test_replay_ratio_counts_the_steps_of_all_envs(tmp_path):
    overrides = ("agent=td3", "train_frames=180", "seed_frames=61", "replay_ratio=0.5")
    trainer = make_trainer(tmp_path, "num_envs=4", *overrides, base=STATE)
    asked = []
    due = trainer.update_schedule.updates_due
    trainer.update_schedule.updates_due = lambda step: asked.append(step) or due(step)
    trainer.run()
    assert trainer.updates == 60 and asked == list(range(61, 180))


def test_rollout_is_learnt_from_before_the_next_action(tmp_path):
    overrides = ("num_envs=3", "train_frames=192", "agent.rollout_steps=32")
    trainer = make_trainer(tmp_path, *overrides, base=TINY_STATE["ppo"])
    events = []
    act, update = trainer.agent.act, trainer.agent.update
    trainer.agent.act = lambda obs, **kwargs: events.append("act") or act(obs, **kwargs)
    trainer.agent.update = lambda batch, step: events.append(step) or update(batch, step=step)
    trainer.run()
    assert events == ["act"] * 32 + [95] + ["act"] * 32 + [191], "at the last step's number"
    assert "rollouts: 3 x 32 steps, each learned from once" in trainer.display.messages


def test_env_gets_clipped_actions_and_the_rollout_the_sampled_ones(tmp_path):
    overrides = ("train_frames=60", "agent.rollout_steps=128")
    trainer = make_trainer(tmp_path, *overrides, base=TINY_STATE["ppo"])
    given = []
    step = trainer.envs[0].step
    trainer.envs[0].step = lambda action: given.append(action) or step(action)
    trainer.run()
    drawn = trainer.memory.arrays["action"][:60, 0]
    assert np.abs(drawn).max() > 1
    assert np.array_equal(np.stack(given), np.clip(drawn, -1, 1))


def test_first_env_draws_its_episodes_as_a_single_env_does(tmp_path):
    trainer = make_trainer(tmp_path, "agent=td3", "num_envs=3", base=STATE)
    sequences = [Seeds(0).sequence("env"), *(Seeds(0).sequence("env", i) for i in (1, 2))]
    for env, sequence in zip(trainer.envs, sequences, strict=True):
        assert env.generator.bit_generator.state == np.random.PCG64(sequence).state
    assert [buffer.capacity for buffer in trainer.memory.buffers] == [5000 // 3] * 3, (
        "shared evenly"
    )


def test_learning_rate_falls_over_the_whole_run_if_nothing_else_is_asked_for(tmp_path):
    def agent(*overrides):
        return make_trainer(tmp_path, *overrides, base=TINY_STATE["ppo"]).agent

    assert agent("train_frames=601", "env.action_repeat=2").config.anneal_steps == 301
    assert agent("train_frames=601", "agent.anneal_steps=50").config.anneal_steps == 50


def test_every_rollout_is_due_once_and_keeps_its_count():
    one, two = OncePerRollout(6), OncePerRollout(6)
    assert [one.updates_due(s) for s in range(14)] == [0, 0, 0, 0, 0, 1] * 2 + [0, 0]
    two.load_state_dict(one.state_dict())
    assert [two.updates_due(s) for s in range(4)] == [0, 0, 0, 1]


def test_what_only_a_replay_has_is_refused_on_policy():
    for word in ("replay_ratio=1", "replay.capacity=1000", "seed_frames=100"):
        with pytest.raises(ConfigError, match=f"{word.split('=')[0]}: agent=ppo is on policy"):
            resolve.compose([*TINY_STATE["ppo"], word])
    with pytest.raises(ConfigError, match="= 5 for each of 40 envs, received 100"):
        resolve.compose([*STATE, "agent=td3", "replay.capacity=100", "num_envs=40"])


def test_changed_intervals_take_effect_on_resuming(tmp_path):
    first = make_trainer(tmp_path, "train_frames=200", "eval_every_frames=20", "eval_episodes=1")
    first.run()
    later = make_trainer(tmp_path, "train_frames=320", "eval_every_frames=50", "eval_episodes=1")
    later.resume()
    later.run()
    frames = [r["frames"] for r in rows(tmp_path) if "eval/episode_return" in r]
    assert frames == [*range(20, 201, 20), 250, 300, 320]


def test_failing_checkpoint_in_mid_run_does_not_end_it(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, "train_frames=130", "checkpoint_every_frames=50")
    save, calls = Checkpoints.save, []

    def full_disk_once(checkpoints, frames, state, **options):
        calls.append(frames)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        return save(checkpoints, frames, state, **options)

    monkeypatch.setattr(Checkpoints, "save", full_disk_once)
    assert trainer.run() and calls == [50, 100, 130]
    assert any("No space left" in text for text in trainer.display.messages)


def test_stop_during_an_evaluation_repeats_it_after_resuming(tmp_path):
    overrides = ("train_frames=130", "eval_every_frames=60", "eval_episodes=2", "video_size=24")
    straight = make_trainer(tmp_path / "straight", *overrides)
    straight.run()
    stopped = make_trainer(tmp_path / "stopped", *overrides)
    asked = []
    stopped.stop_requested = lambda: asked.append(0) or len(asked) > 65  # the fifth step of it
    assert not stopped.run() and stopped.steps == 60
    assert not list((tmp_path / "stopped" / "videos").iterdir()), "no half-written video is left"
    resumed = make_trainer(tmp_path / "stopped", *overrides)
    resumed.resume()
    resumed.run()
    assert rows(tmp_path / "straight") == rows(tmp_path / "stopped")


# --- the evaluation at the end ---


def evaluated(folder):
    return [row["frames"] for row in rows(folder) if "eval/episode_return" in row]


def test_policy_at_the_end_is_evaluated_whatever_the_interval(tmp_path):
    quick = ("train_frames=130", "eval_episodes=1", "video_size=0")
    ends = {"50": [50, 100, 130], "65": [65, 130], "1000": [130], "0": []}
    for every, expected in ends.items():
        own = make_trainer(tmp_path / every, *quick, f"eval_every_frames={every}", base=STATE)
        assert own.run()
        assert evaluated(tmp_path / every) == expected
    without = [row for row in rows(tmp_path / "1000") if "eval/episode_return" not in row]
    assert without == rows(tmp_path / "0"), "the rows of training are the same"


def test_last_round_of_several_envs_is_evaluated_once(tmp_path):
    words = ("train_frames=130", "num_envs=4", "eval_every_frames=65", "eval_episodes=1")
    words += ("video_size=0",)
    assert make_trainer(tmp_path, *words, base=STATE).run()
    assert evaluated(tmp_path) == [68, 132]


def test_run_that_is_trained_on_is_evaluated_at_both_ends(tmp_path):
    words = ("eval_every_frames=60", "eval_episodes=1", "video_size=0")
    assert make_trainer(tmp_path, "train_frames=130", *words, base=STATE).run()
    again = make_trainer(tmp_path, "train_frames=200", *words, base=STATE)
    assert again.resume() == 130 and again.run()
    assert evaluated(tmp_path) == [60, 120, 130, 180, 200]


@pytest.mark.parametrize("every", [0, 65])
@pytest.mark.parametrize("train_frames", [130, 200])
def test_stop_during_the_last_evaluation_repeats_it_after_resuming(tmp_path, every, train_frames):
    words = ("log_every_frames=40", "eval_every_frames=1000", "eval_episodes=2", "video_size=0")
    words += (f"checkpoint_every_frames={every}",)
    straight = make_trainer(
        tmp_path / "straight", *words, f"train_frames={train_frames}", base=STATE
    )
    assert straight.run()
    stopped = make_trainer(tmp_path / "stopped", *words, "train_frames=130", base=STATE)
    asked = []
    stopped.stop_requested = lambda: asked.append(0) or len(asked) > 135
    assert not stopped.run() and stopped.steps == 130 and not evaluated(tmp_path / "stopped")
    resumed = make_trainer(tmp_path / "stopped", *words, f"train_frames={train_frames}", base=STATE)
    assert resumed.resume() == 130 and resumed.run()
    assert rows(tmp_path / "straight") == rows(tmp_path / "stopped")
    states = [
        checkpoint.load_newest(tmp_path / name / "checkpoints") for name in ("straight", "stopped")
    ]
    assert plain(states[0]) == plain(states[1])
    assert not list((tmp_path / "stopped" / "checkpoints").glob(".*"))


def test_env_that_fails_in_the_last_evaluation_costs_no_training(tmp_path, monkeypatch):
    words = ("train_frames=130", "eval_every_frames=1000", "eval_episodes=1", "video_size=0")
    failing = make_trainer(tmp_path, *words, base=STATE)

    def fail(*_, **__):
        raise RunFailed("the simulator is gone")

    with monkeypatch.context() as patch, pytest.raises(RunFailed, match="simulator is gone"):
        patch.setattr(trainer_module, "evaluate", fail)
        failing.run()
    mended = make_trainer(tmp_path, *words, base=STATE)
    assert mended.resume() == 130 and mended.run() and evaluated(tmp_path) == [130]


def test_run_says_what_the_replay_takes_and_refuses_what_cannot_fit(tmp_path, monkeypatch):
    from rlearly.system import machine

    trainer = make_trainer(tmp_path / "a", "train_frames=200")
    assert "replay: 5,000 transitions of 1,742 bytes" in "\n".join(trainer.display.messages)
    monkeypatch.setattr(machine, "available_bytes", lambda: 4_000_000_000)
    folder = tmp_path / "b"
    with pytest.raises(ConfigError) as error:
        make_trainer(folder, "replay.capacity=3000000", "train_frames=5000000")
    sentence = str(error.value)
    assert "5.23 GB" in sentence and "4.00 GB" in sentence
    capacity = int(sentence.split("replay.capacity=")[1].split()[0])
    room = 4_000_000_000 - machine.WORKING_BYTES
    assert 0.9 * room < capacity * 1742 < room
    make_trainer(folder, f"replay.capacity={capacity}", "train_frames=5000000")


@pytest.mark.parametrize(
    ("overrides", "noticed"),
    [
        (["train_frames=50000"], True),
        (["train_frames=5000"], False),
        (["train_frames=50000", "seed_frames=50000"], False),
        (["train_frames=50000", "preset=cpu"], False),
        (["train_frames=50000", "agent=td3", "obs=state"], False),
    ],
)
def test_long_run_from_pixels_on_a_cpu_is_noticed_without_running_anything(
    tmp_path, monkeypatch, overrides, noticed
):
    def fail(*args, **kwargs):
        raise AssertionError("nothing may run")

    monkeypatch.setattr("rlearly.training.trainer.checked_step", fail)
    base = ["env=cartpole_balance", "replay.capacity=1000", "overlap=false", "video_size=0"]
    trainer = make_trainer(tmp_path, *overrides, base=base)
    assert any("very long on a CPU" in text for text in trainer.display.messages) == noticed
    trainer.close()


def test_failing_tracker_costs_itself_only(tmp_path, caplog):
    class Broken(JsonLines):
        def write(self, at, metrics):
            raise OSError("no network")

    sinks = Sinks(JsonLines(tmp_path / "m.jsonl"), [Broken(tmp_path / "x.jsonl")])
    from rlearly.core.types import Progress

    for i in range(3):
        sinks.write(Progress(2 * i, i), {"a/b": 1.0})
    assert len((tmp_path / "m.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    assert caplog.text.count("Broken failed and is switched off: no network") == 1


def test_time_that_checkpoints_take_stands_in_the_next_row(tmp_path):
    overrides = ("train_frames=160", "checkpoint_every_frames=50", "log_every_frames=40")
    assert make_trainer(tmp_path, *overrides).run()
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    told = [row["frames"] for row in map(json.loads, lines) if "speed/checkpoint_seconds" in row]
    assert told == [80, 120, 160]


def test_annealed_nstep_and_discount_are_logged_as_they_are(tmp_path):
    schedules = ["agent.nstep_schedule=linear(5,1,100)", "agent.discount_schedule=step(0.5,0.9,60)"]
    overrides = ["agent=drm", "train_frames=120", "log_every_frames=40", *schedules]
    make_trainer(tmp_path, *overrides).run()
    found = [(r["steps"], r["replay/nstep"], r["replay/discount"]) for r in updates(tmp_path)]
    assert found == [(40, 3, 0.5), (80, 1, 0.9), (120, 1, 0.9)]
    make_trainer(tmp_path / "none", *overrides[:3]).run()
    assert not any("replay/nstep" in row for row in updates(tmp_path / "none"))


def updates(folder):
    return [row for row in rows(folder) if "train/updates" in row]


# --- pixels and a vector ---


FUSED = [*TINY, "env=tiny_envs:FusedReach-v0"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["agent=drqv2"],
        ["agent=drm", "num_envs=2", "replay.prefetch=2", "replay_ratio=2"],
        ["agent=drm", "replay.compression=zstd", "overlap=true"],
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_pixels_with_a_vector_resume_to_the_bit(tmp_path, overrides):
    overrides = [
        *overrides,
        "train_frames=180",
        "log_every_frames=40",
        "eval_every_frames=75",
        "eval_episodes=2",
        "replay.capacity=120",
    ]
    straight = make_trainer(tmp_path / "straight", *overrides, base=FUSED)
    assert straight.run()
    stopped = make_trainer(tmp_path / "resumed", *overrides, base=FUSED)
    stopped.stop_requested = lambda: stopped.steps >= 133
    assert not stopped.run()
    resumed = make_trainer(tmp_path / "resumed", *overrides, base=FUSED)
    assert resumed.resume() > 0
    assert resumed.obs[0]["vector"].tolist()[1] in range(10)
    assert resumed.run()
    one, two = plain(straight.state_dict()), plain(resumed.state_dict())
    for part in ("agent", "replay", "env", "update_schedule"):
        assert one[part] == two[part], part
    for trainer in (straight, stopped, resumed):
        trainer.close()


def test_an_agent_of_states_refuses_pixels_with_a_vector(tmp_path):
    overrides = [w for w in STATE if not w.startswith("env=")]
    with pytest.raises(ConfigError, match=r"td3 learns from states only, but .* env=.* are images"):
        make_trainer(tmp_path, "env=tiny_envs:FusedReach-v0", base=overrides)


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (lambda obs: obs["pixels"], "of ndarray in .*, expected a dict of pixels, vector"),
        (
            lambda obs: {"pixels": obs["pixels"]},
            "a dict of pixels in .*, expected a dict of pixels, ",
        ),
        (
            lambda obs: obs | {"vector": np.zeros(3, np.float32)},
            r"float32 \[3\] in .*, expected float32",
        ),
        (lambda obs: obs | {"vector": np.array([np.nan, 0], np.float32)}, "not finite"),
    ],
)
def test_a_wrong_part_of_an_observation_is_said(tmp_path, broken, sentence):
    trainer = make_trainer(tmp_path, "agent=drm", "train_frames=50", base=FUSED)
    env = trainer.envs[0]
    step = env.step

    def stepped(action):
        obs, *rest = step(action)
        return broken(obs), *rest

    env.step = stepped
    with pytest.raises(RunFailed, match=sentence):
        trainer.run()
    trainer.close()
