"""Executors: nothing depends on which thread is faster, and each env stays in its own thread."""

import random
import threading
import time

import gymnasium
import numpy as np
import pytest
import tiny_envs
from conftest import TINY, TINY_STATE
from saved import plain, rows
from test_trainer import make_trainer

from rlearly import envs
from rlearly import evaluate as command
from rlearly.api import session
from rlearly.config import resolve
from rlearly.core.errors import ConfigError, RunFailed
from rlearly.core.exit_status import DONE
from rlearly.envs.dm_control import DMControlEnv
from rlearly.envs.snapshots.recording import record
from rlearly.training import builder
from rlearly.training.evaluation import evaluate
from rlearly.training.executors import InlineExecutor, ThreadExecutor
from rlearly.training.video import Video

RUNS = {
    "drm": [*TINY, "agent=drm", "seed_frames=60"],
    "td3": [*TINY_STATE["td3"], "num_envs=3"],
    "ppo": [*TINY_STATE["ppo"], "num_envs=3", "agent.rollout_steps=32"],
}
WORDS = ("train_frames=200", "log_every_frames=40", "eval_every_frames=75", "eval_episodes=1")


def now_and_then(monkeypatch, owner, name, seen=None):
    """Delay random calls of a method by a millisecond, and record whether the main thread calls."""
    method, draw = getattr(owner, name), random.Random(name)

    def late(*args, **kwargs):
        if seen is not None:
            seen.append((name, threading.current_thread() is threading.main_thread()))
        if draw.random() < 0.3:
            time.sleep(0.001)
        return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, late)


@pytest.mark.parametrize("agent", sorted(RUNS))
def test_overlapped_run_equals_the_one_in_turn_whoever_is_late(tmp_path, monkeypatch, agent):
    in_turn = make_trainer(tmp_path / "in_turn", *WORDS, "overlap=false", base=RUNS[agent])
    assert in_turn.run() and in_turn.updates >= 2
    seen = []
    env = tiny_envs.PixelReach if agent == "drm" else tiny_envs.StateReach
    now_and_then(monkeypatch, env, "step", seen)
    overlapped = make_trainer(tmp_path / "overlapped", *WORDS, "overlap=true", base=RUNS[agent])
    now_and_then(monkeypatch, overlapped.agent, "update", seen)
    assert overlapped.run()
    assert plain(in_turn.state_dict()) == plain(overlapped.state_dict())
    assert rows(tmp_path / "in_turn") == rows(tmp_path / "overlapped")
    assert ("update", False) not in seen and seen.count(("step", False)) == overlapped.steps
    overlapped.close()


def test_steps_go_on_while_the_agent_updates(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, "train_frames=70", "overlap=true", base=RUNS["drm"])
    entered, update = threading.Event(), trainer.agent.update
    step = tiny_envs.PixelReach.step

    def note(env, action):
        entered.set()
        return step(env, action)

    def wait(batch, step):
        assert entered.wait(10), "the step does not begin before the update is over"
        assert trainer.steps == step, "it is stored after the update"
        return update(batch, step=step)

    monkeypatch.setattr(tiny_envs.PixelReach, "step", note)
    now_and_then(monkeypatch, trainer.agent, "act")
    act = trainer.agent.act
    trainer.agent.act = lambda obs, **kwargs: entered.clear() or act(obs, **kwargs)
    trainer.agent.update = wait
    assert trainer.run() and trainer.updates > 0
    trainer.close()


@pytest.mark.parametrize("agent", sorted(RUNS))
def test_overlapped_run_resumes_to_the_bit_in_turn_or_not(tmp_path, agent):
    straight = make_trainer(tmp_path / "straight", *WORDS, "overlap=false", base=RUNS[agent])
    assert straight.run()
    for first, second in (("true", "true"), ("true", "false"), ("false", "true")):
        folder = tmp_path / f"{first}_{second}"
        stopped = make_trainer(folder, *WORDS, f"overlap={first}", base=RUNS[agent])
        stopped.stop_requested = lambda trainer=stopped: trainer.steps >= 107
        assert not stopped.run()
        stopped.close()
        resumed = make_trainer(folder, *WORDS, f"overlap={second}", base=RUNS[agent])
        resumed.resume()
        assert resumed.run()
        assert plain(straight.state_dict()) == plain(resumed.state_dict())
        assert rows(tmp_path / "straight") == rows(folder)
        resumed.close()


@pytest.mark.parametrize("fault", ["raise", "reset", "observation", "shape", "reward"])
def test_failing_env_fails_alike_in_a_thread_of_its_own(tmp_path, fault):
    base = [*TINY_STATE["td3"], "env=tiny_envs:Faulty-v0", "num_envs=2", "log_every_frames=20"]
    base += [f"env.kwargs={{fault: {fault}, at_step: 75}}", "train_frames=300"]
    ends = {}
    for overlap in ("false", "true"):
        trainer = make_trainer(tmp_path / overlap, f"overlap={overlap}", base=base)
        with pytest.raises(RunFailed) as failed:
            trainer.run()
        part = {name: plain(trainer.state_dict()[name]) for name in ("trainer", "agent", "replay")}
        ends[overlap] = (str(failed.value), repr(failed.value.__cause__), part)
        assert trainer.updates > 0
        trainer.close()
    assert ends["false"] == ends["true"]
    assert rows(tmp_path / "false") == rows(tmp_path / "true")


def test_env_is_closed_after_its_last_step_when_an_update_fails(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, "train_frames=200", "overlap=true", base=RUNS["drm"])
    events = []
    step = tiny_envs.PixelReach.step

    def slow(env, action):
        time.sleep(0.05)
        events.append("stepped")
        return step(env, action)

    def fail(batch, step):
        monkeypatch.setattr(tiny_envs.PixelReach, "step", slow, raising=True)
        raise KeyboardInterrupt

    trainer.agent.update = fail
    monkeypatch.setattr(tiny_envs.PixelReach, "close", lambda env: events.append("closed"))
    act = trainer.agent.act

    def slow_from_the_first_update_on(obs, **kwargs):
        if trainer.steps == 60:
            monkeypatch.setattr(tiny_envs.PixelReach, "step", slow)
        return act(obs, **kwargs)

    trainer.agent.act = slow_from_the_first_update_on
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    trainer.close()
    assert events == ["stepped", "closed"] and trainer.steps == 60, "the step is not stored"


class Homely(tiny_envs.PixelReach):
    """Records the threads that call each of its instances."""

    asked: list = []  # noqa: RUF012

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.note()

    def note(self):
        Homely.asked.append((id(self), threading.current_thread()))

    def reset(self, **kwargs):
        self.note()
        return super().reset(**kwargs)

    def step(self, action):
        self.note()
        return super().step(action)

    def close(self):
        self.note()
        super().close()


gymnasium.register("Homely-v0", Homely)


def test_all_of_an_env_happens_in_one_thread_and_each_has_its_own(tmp_path):
    overrides = ["env=Homely-v0", "overlap=true", "num_envs=2", "train_frames=60", "video_size=24"]
    overrides += ["eval_every_frames=30", "eval_episodes=3", "seed_frames=1000"]
    trainer = make_trainer(tmp_path, *overrides)
    Homely.asked.clear()
    trainer.run()  # the training envs were made before
    kept = [env.unwrapped for env in trainer.envs]
    trainer.close()
    threads = {}
    for env, thread in Homely.asked:
        threads.setdefault(env, set()).add(thread)
    assert all(len(found) == 1 for found in threads.values())
    trained = set.union(*(threads.pop(id(env)) for env in kept))
    assert len(trained) == 2 and threading.main_thread() not in trained
    inline = {threading.main_thread()}
    assert list(threads.values()) == [inline] * 2, "the evaluation env, and one to compare it with"


def test_closed_env_has_freed_what_it_drew_with_in_its_thread():
    config = envs.config_for("cheetah_run")
    one, two = (envs.make(config, pixels=True, model_seed=0) for _ in range(2))
    one.reset(seed=1)
    action = np.ones(one.action_space.shape, np.float32)
    expected = one.step(action)[0]
    executor = ThreadExecutor()
    executor.run(two.reset, seed=1)
    np.testing.assert_array_equal(executor.run(two.step, action)[0], expected)
    contexts = [env.unwrapped._control.physics.contexts.gl for env in (one, two)]
    executor.run(two.close)
    one.close()
    executor.close()
    assert all(context.terminated for context in contexts), "none is left to the end"


def test_student_on_terrain_that_each_reset_uploads_overlaps_from_a_snapshot_on(tmp_path):
    """quadruped_escape makes its GL context when it is first reset."""
    env = DMControlEnv(envs.config_for("quadruped_escape"), pixels=False, model_seed=0)
    actions = np.random.default_rng(0)
    noise = lambda obs: actions.uniform(-1, 1, env.action_space.shape)  # noqa: E731
    record(env, noise, episodes=1, every_steps=400, value=lambda obs: obs["imu"][0]).save(
        tmp_path / "teacher.h5"
    )
    env.close()
    overrides = ["agent=drm", "env=quadruped_escape", "replay.capacity=200", "train_frames=8"]
    overrides += [f"snapshot={tmp_path / 'teacher.h5'}", "snapshot_phase.selection=uniform"]
    overrides += ["eval_every_frames=0", "video_size=0"]
    ends = {}
    for overlap in ("false", "true"):
        trainer = make_trainer(tmp_path / overlap, f"overlap={overlap}", base=overrides)
        assert trainer.run()
        ends[overlap] = plain(trainer.state_dict())
        trainer.close()
    assert ends["false"] == ends["true"]


@pytest.mark.parametrize(("overrides", "apart"), [("", True), ("overlap=false", False)])
def test_envs_with_pixels_have_threads_of_their_own_by_default(overrides, apart):
    config = resolve.compose(["agent=drm", "env=cheetah_run", "num_envs=2", *overrides.split()])
    kinds = {type(executor) for executor in builder.env_executors(config)}
    assert kinds == {ThreadExecutor if apart else InlineExecutor}
    states = resolve.compose(["agent=ppo", "env=cheetah_run"])
    assert [type(executor) for executor in builder.env_executors(states)] == [InlineExecutor]


def test_env_that_asks_the_learner_does_not_overlap_with_it(tmp_path):
    file = tmp_path / "x.h5"
    file.touch()
    overrides = ["agent=drm", "env=cheetah_run", f"snapshot={file}"]
    overrides += ["snapshot_phase.selection=learner_error"]
    assert isinstance(builder.env_executors(resolve.compose(overrides))[0], InlineExecutor)
    with pytest.raises(ConfigError, match=r"overlap=true: .* ask the learner"):
        builder.env_executors(resolve.compose([*overrides, "overlap=true"]))


# --- evaluation ---


class Deciding:
    """Acts on the observation alone, and records the shapes that it gets."""

    def __init__(self):
        self.shapes = set()

    def act(self, obs, *, step, explore):
        assert not explore
        self.shapes.add(obs.shape)
        return np.tanh(3 * (obs[:, :1] - 0.4))


def played(episodes=7, **kwargs):
    agent, env = Deciding(), gymnasium.make("StateReach-v0")
    seeds = np.random.SeedSequence(3)
    result = evaluate(agent, env, episodes=episodes, seeds=seeds, step=0, **kwargs)
    assert agent.shapes == {(1, 2)}
    return result


def test_episodes_follow_from_the_seeds_alone():
    first = played()
    assert len(set(first.lengths_steps)) > 1, "they end at different times"
    assert played() == first
    assert played(3).returns == first.returns[:3]


def test_first_episode_alone_is_filmed():
    frames, steps = [], []
    result = played(
        record_frame=lambda: frames.append(len(steps)),
        on_step=lambda episode, step: steps.append((episode, step)),
    )
    assert frames == list(range(result.lengths_steps[0])), "before each of its steps"
    assert steps == [(e, s + 1) for e, n in enumerate(result.lengths_steps) for s in range(n)]


def test_env_that_raises_ends_the_evaluation(monkeypatch):
    step = tiny_envs.StateReach.step

    def fail(env, action):
        if env.steps == 2 and env.goal < 0:
            raise ZeroDivisionError("division by zero")
        return step(env, action)

    monkeypatch.setattr(tiny_envs.StateReach, "step", fail)
    with pytest.raises(RunFailed, match=r"raised ZeroDivisionError: .* in an evaluation"):
        played()


EVALUATED = ("train_frames=130", "eval_every_frames=60", "eval_episodes=4", "video_size=24")


@pytest.fixture
def filmed(monkeypatch):
    """The frames of all videos."""
    images, add = [], Video.add
    monkeypatch.setattr(Video, "add", lambda film, image: images.append(image) or add(film, image))
    return images


def test_evaluating_and_filming_change_nothing_in_training(tmp_path, filmed):
    quiet = make_trainer(tmp_path / "quiet", "train_frames=130")
    quiet.run()
    trainer = make_trainer(tmp_path / "evaluated", *EVALUATED)
    trainer.try_evaluation()
    assert trainer.run()
    for part in ("agent", "replay", "env", "update_schedule"):
        assert plain(quiet.state_dict()[part]) == plain(trainer.state_dict()[part])
    trainer.close()
    assert len(filmed) == 30, "at 60, at 120 and at the end"


def test_evaluate_command_repeats_and_says_where_it_is(tmp_path, monkeypatch, capsys, filmed):
    overrides = [*TINY, "train_frames=110", "threads=1", f"run_dir={tmp_path / 'run'}"]
    assert session.train([*overrides, "wandb.mode=disabled"]).status == DONE
    printed = []
    for _ in range(2):
        filmed.clear()
        overrides = [f"run={tmp_path / 'run'}", "episodes=3", "threads=1"]
        capsys.readouterr()
        assert command.main([*overrides, "video_size=24"]) == 0
        printed.append((capsys.readouterr().out, plain(np.stack(filmed))))
    assert printed[0] == printed[1] and "episode 2: return" in printed[0][0]
    monkeypatch.setattr(command, "PROGRESS_SECONDS", -1.0)
    assert command.main([*overrides, "video_size=0"]) == 0
    assert "playing episode 3 of 3, step 10" in capsys.readouterr().err
