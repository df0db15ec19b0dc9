"""Jump-start: who plays which steps, how the teacher's part shrinks, runs that resume."""

import shutil

import gymnasium
import numpy as np
import pytest
import torch
from conftest import TINY_STATE
from gymnasium.wrappers import TimeLimit
from saved import plain, rows
from test_snapshot import chi_square
from test_trainer import Silent, make_trainer

from rlearly import teacher as command
from rlearly.config import resolve
from rlearly.config.structured import as_yaml
from rlearly.core.errors import ConfigError
from rlearly.envs.snapshots import jump_start
from rlearly.envs.snapshots.jump_start import GuideCurriculum, JumpStart, RandomGuide
from rlearly.envs.state.resumable import ResumableEnv
from rlearly.envs.state.save_restore import restore, save
from rlearly.training import builder


class Walk(gymnasium.Env):
    """Each step earns its action; episode n ends after lengths[n] steps, the last one repeats."""

    observation_space = gymnasium.spaces.Box(0, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-9, 9, (1,), np.float32)

    def __init__(self, *lengths):
        self.lengths = lengths
        self.seeds = []
        self.actions = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.steps = 0
        return np.zeros(1, np.float32), {"at": 0}

    def step(self, action):
        self.actions.append(float(action[0]))
        self.steps += 1
        over = self.steps == self.lengths[min(len(self.seeds), len(self.lengths)) - 1]
        return np.full(1, self.steps, np.float32), action[0], over, False, {"at": self.steps}


class Teacher:
    """Acts with twice the step's number + 1, and remembers when it was reset."""

    def __init__(self):
        self.resets = 0

    def __call__(self, obs):
        return 2 * obs + 1

    def reset(self):
        self.resets += 1


class Fixed(GuideCurriculum):
    """The teacher always plays so many steps; keeps what is reported."""

    def __init__(self, steps):
        super().__init__(episode_steps=1, teacher_return=0.0)
        self.steps = steps
        self.reported = []

    def choose(self, random):
        return self.steps

    def report(self, episode_return):
        self.reported.append(episode_return)


HALF = np.full(1, 0.5, np.float32)


# --- who plays ---


def test_teacher_plays_the_first_steps_and_the_learner_the_rest():
    schedule = Fixed(3)
    env = JumpStart(Walk(5), Teacher(), schedule)
    obs, info = env.reset(seed=1)
    assert obs == 3 and env.unwrapped.actions == [1.0, 3.0, 5.0]
    guide = {"guide_steps": 3, "guide_return": 9.0, "guide_dropped_steps": 0}
    assert info == {"at": 3, **guide}, "the info belongs to the state that the learner is in"
    assert env.step(HALF) == (4.0, 0.5, False, False, {"at": 4})
    assert schedule.reported == []
    assert env.step(HALF) == (5.0, 0.5, True, False, {"at": 5, **guide})
    assert schedule.reported == [9.0 + 1.0]
    schedule.steps = 0
    obs, info = env.reset()
    assert obs == 0 and info["guide_steps"] == 0 and env.policy.resets == 1


@pytest.mark.parametrize(
    ("lengths", "played", "dropped", "tries"),
    [
        ((6, 3, 5), 1, 9, 3),  # 8 steps, then 6 // 2 = 3, then 3 // 2 = 1
        ((8, 9), 4, 8, 2),  # an episode that ends with the teacher's last step leaves nothing
        ((1, 1), 0, 1, 2),
        ((9,), 8, 0, 1),
    ],
)
def test_episode_that_ends_in_the_teachers_part_is_dropped(lengths, played, dropped, tries):
    env = JumpStart(Walk(*lengths), Teacher(), Fixed(8))
    obs, info = env.reset(seed=5)
    assert obs == info["guide_steps"] == played
    assert info["guide_return"] == played**2, "the sum of the first odd numbers"
    assert info["guide_dropped_steps"] == dropped
    assert env.unwrapped.seeds == [5] + [None] * (tries - 1)
    assert env.policy.resets == tries - (played == 0)


def test_teacher_is_measured_before_the_first_episode_only():
    schedule = GuideCurriculum(stages=2)
    env = JumpStart(Walk(4, 6, 2, 8, 5, 20), Teacher(), schedule)
    _, info = env.reset(seed=3)
    assert env.unwrapped.seeds == [3, None, None, None, None, 3]
    assert schedule.episode_steps == 5 and schedule.best == (16 + 36 + 4 + 64 + 25) / 5
    assert info["guide_dropped_steps"] == 25 and info["guide_steps"] == 2
    _, info = env.reset()
    assert info["guide_dropped_steps"] == 0 and len(env.unwrapped.seeds) == 7


def test_given_numbers_of_the_teacher_are_kept():
    schedule = GuideCurriculum(stages=2, teacher_return=7.0)
    JumpStart(Walk(4), Teacher(), schedule).reset(seed=0)
    assert (schedule.episode_steps, schedule.best) == (4, 7.0)
    known = JumpStart(Walk(4), Teacher(), GuideCurriculum(episode_steps=9, teacher_return=7.0))
    known.reset(seed=0)
    assert known.unwrapped.seeds[0] == 0 and known.schedule.episode_steps == 9


def test_time_limit_inside_counts_the_teachers_steps_and_outside_it_does_not():
    inside = JumpStart(TimeLimit(Walk(99), 10), Teacher(), Fixed(7))
    outside = TimeLimit(JumpStart(Walk(99), Teacher(), Fixed(7)), 10)
    for env, expected in ((inside, 3), (outside, 10)):
        for episodes in (1, 2):
            env.reset(seed=0)
            steps = 1
            while not any(env.step(HALF)[2:4]):
                steps += 1
            assert steps == expected
            told = env.get_wrapper_attr("schedule").reported
            # outside, the end is seen at the next reset
            assert told == [49.0 + steps / 2] * (episodes if env is inside else episodes - 1)


def test_schedule_can_follow_evaluations_instead():
    schedule = Fixed(1)
    env = JumpStart(Walk(2), Teacher(), schedule, follow_training=False)
    env.reset(seed=0)
    env.step(HALF)
    env.reset()
    assert schedule.reported == []
    env.report(4.5)
    assert schedule.reported == [4.5]


@pytest.mark.parametrize("schedule", [RandomGuide, lambda: GuideCurriculum(stages=3)])
def test_seeded_reset_leads_to_the_same_start(schedule):
    def starts():
        env = JumpStart(gymnasium.make("Pendulum-v1"), lambda obs: [obs[1]], schedule())
        return [env.reset(seed=seed)[0] for seed in (4, 9, 4)]

    first, second = starts(), starts()
    assert np.array_equal(first, second) and np.array_equal(first[0], first[2])
    assert not np.array_equal(first[0], first[1])


# --- how its part shrinks ---


def test_stages_divide_the_teachers_episode():
    curriculum = GuideCurriculum(stages=5, episodes=1, episode_steps=12, teacher_return=1.0)
    seen = []
    for _ in range(7):
        seen.append(curriculum.choose(np.random.default_rng(0)))
        curriculum.report(1.0)
    assert seen == [9, 7, 4, 2, 0, 0, 0]


def test_stage_ends_when_the_mean_return_comes_near_the_best():
    curriculum = GuideCurriculum(
        stages=4, tolerance=0.1, episodes=2, episode_steps=100, teacher_return=10.0
    )
    seen = []
    for episode_return in [8.0, 9.0, 9.5, 20.0, 14.0, 15.0, 15.4, 15.3, 100.0, 100.0]:
        curriculum.report(episode_return)
        seen.append((curriculum.stage, curriculum.best))
    assert seen == [
        (0, 10.0),
        (0, 10.0),  # 8.5 is below 9
        (1, 10.0),  # 9.25; the teacher's 10 remains the best
        (1, 10.0),  # returns of the earlier stage do not count
        (2, 17.0),
        (2, 17.0),
        (2, 17.0),  # 15.2 is below 15.3
        (3, 17.0),  # 15.35
        (3, 17.0),
        (3, 17.0),
    ]


@pytest.mark.parametrize(("episode_return", "stage"), [(-110.0, 1), (-110.1, 0)])
def test_tolerance_is_a_share_of_negative_returns_too(episode_return, stage):
    curriculum = GuideCurriculum(tolerance=0.1, episodes=1, episode_steps=9, teacher_return=-100.0)
    curriculum.report(episode_return)
    assert curriculum.stage == stage


def test_random_part_is_uniform_below_the_teachers_length():
    random = np.random.default_rng(0)
    counts = np.bincount([RandomGuide(4).choose(random) for _ in range(4000)], minlength=5)
    assert counts[4] == 0 and chi_square(counts[:4], [1 / 4] * 4) < 16.3  # 0.1 %, 3 degrees


# --- state ---


def test_restored_env_continues_in_mid_episode_and_mid_stage():
    def make():
        schedule = GuideCurriculum(stages=4, tolerance=9, episodes=2)
        return JumpStart(gymnasium.make("Pendulum-v1"), lambda obs: [obs[1]], schedule)

    env, other = make(), make()
    torque = np.zeros(1, np.float32)

    def play(one, steps):
        for _ in range(steps):
            if any(one.step(torque)[2:4]):
                one.reset()
        return one.step(torque)[0].tolist(), one.state_dict()

    env.reset(seed=0)
    play(env, 120)  # two episodes of 50 steps and a part of the third, of 100
    assert env.schedule.stage == 1
    state = save(env)
    restore(other, state)
    assert other.state_dict() == env.state_dict()
    assert play(env, 200) == play(other, 200)
    assert env.schedule.stage == 2


class Forgetful(Walk):
    """Cannot be restored: it goes on from where the previous episode was."""

    total = 0.0

    def step(self, action):
        Forgetful.total += 1
        obs, *result = super().step(action)
        return (obs * 0 + Forgetful.total, *result)


class Unsaveable(gymnasium.Wrapper):
    """A wrapper whose state is not plain data."""

    def __init__(self, env):
        super().__init__(env)
        self.stream = iter(())


@pytest.mark.parametrize("outer", [lambda env: env, Unsaveable], ids=["restore", "save"])
def test_schedule_survives_an_env_that_does_not(outer, caplog):
    def make():
        schedule = GuideCurriculum(stages=4, episodes=2, episode_steps=4, teacher_return=0.0)
        env = outer(JumpStart(Forgetful(6), lambda obs: HALF, schedule))
        return schedule, ResumableEnv(env, np.random.default_rng(0))

    schedule, env = make()
    env.reset()
    schedule.report(1.0)
    schedule.report(1.0)
    schedule.report(1.0)
    env.step(HALF)
    state = env.state_dict()
    restored, resumed = make()
    resumed.load_state_dict(state)
    assert resumed.obs is None and "did not return to its saved state" in caplog.text
    assert restored.state_dict() == schedule.state_dict() and restored.stage == 1
    _, info = resumed.reset()
    assert restored.recent == [1.0], "the lost episode is not reported"
    assert info["guide_steps"] == 2


# --- refusals ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stages": 0}, "stages: expected a number of at least 1, received 0"),
        ({"tolerance": -1}, "tolerance: expected a number of at least 0, received -1"),
        ({"episodes": 0}, "episodes: expected a number of at least 1, received 0"),
        ({"episode_steps": 0}, "episode_steps: expected a number of at least 1, received 0"),
    ],
)
def test_curriculum_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        GuideCurriculum(**settings)


def test_what_cannot_be_jump_started_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match=r"policy: expected a function .* received 'teacher.zip'"):
        JumpStart(Walk(3), "teacher.zip")
    with pytest.raises(ConfigError, match="Expected one env, received a vector"):
        JumpStart(gymnasium.make_vec("Pendulum-v1", 2), Teacher())
    with pytest.raises(ConfigError, match="expected a finite number, received nan"):
        JumpStart(Walk(3), Teacher()).report(float("nan"))
    monkeypatch.setattr(jump_start, "MOST_TRIAL_STEPS", 50)
    with pytest.raises(ConfigError, match="did not end within 50 steps: put a TimeLimit"):
        JumpStart(Walk(51), Teacher()).reset(seed=0)


# --- in the trainer ---

STATE = [*TINY_STATE["td3"], "agent.learning_starts_steps=1000"]


def train_teacher(folder, *words):
    """Make or continue the run of an agent that has learned nothing yet."""
    words = ["train_frames=50", *words]
    (folder / "config.yaml").write_text(
        as_yaml(resolve.compose([*STATE, *words])), encoding="utf-8"
    )
    trainer = make_trainer(folder, *words, base=STATE)
    trainer.resume()
    assert trainer.run()
    trainer.close()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    train_teacher(folder)
    return folder


def student(folder, teacher, *words):
    more = ("train_frames=240", "log_every_frames=50")
    return make_trainer(folder, f"jump_start.run={teacher}", *more, *words, base=STATE)


def test_resumed_student_equals_uninterrupted_student_and_evaluation_changes_nothing(
    tmp_path, teacher
):
    words = ("num_envs=2", "jump_start.stages=3", "jump_start.episodes=3")
    words += ("jump_start.tolerance=0.1",)
    straight = student(tmp_path / "straight", teacher, *words)
    assert straight.run()
    schedule = straight.envs[0].get_wrapper_attr("schedule")
    assert schedule is straight.envs[1].get_wrapper_attr("schedule") and schedule.stage == 2
    length = schedule.episode_steps
    for stop_at in (41,):
        folder = tmp_path / f"at{stop_at}"
        stopped = student(folder, teacher, *words)
        stopped.stop_requested = lambda trainer=stopped, at=stop_at: trainer.steps >= at
        assert not stopped.run()
        assert stopped.envs[0].get_wrapper_attr("schedule").stage < 2
        resumed = student(folder, teacher, *words)
        resumed.resume()
        assert resumed.run()
        assert plain(straight.state_dict()) == plain(resumed.state_dict())
        assert rows(tmp_path / "straight") == rows(folder)
    busy = student(tmp_path / "busy", teacher, *words, "eval_every_frames=70", "eval_episodes=1")
    assert busy.run()
    one, two = plain(straight.state_dict()), plain(busy.state_dict())
    for part in ("agent", "replay", "env"):
        assert one[part] == two[part], part
    written = rows(tmp_path / "straight")
    begun = [row for row in written if "train/guided_episode_return" in row]
    assert max(row["train/guided_episode_length_steps"] for row in begun) < 10
    assert begun[0]["train/guide_steps"] > 4 * length, "it was measured over five whole episodes"
    whole = [row for row in written if "train/episode_return" in row]
    assert whole and all(row["train/guide_steps"] == 0 for row in whole)


def test_teacher_of_a_run_acts_as_it_does_in_its_own_snapshots(tmp_path, teacher):
    words = ("jump_start.schedule=random", "jump_start.episode_steps=6")
    trainer = student(tmp_path, teacher, *words)
    assert trainer.envs[0].get_wrapper_attr("schedule").episode_steps == 6
    policy = trainer.envs[0].get_wrapper_attr("policy")
    expected = command.from_run(command.TeacherConfig(run=str(teacher))).policy
    for obs in np.random.default_rng(0).uniform(-1, 1, (5, 2)).astype(np.float32):
        assert np.array_equal(policy(obs), expected(obs))
    said, note = [text for text in trainer.display.messages if text.startswith("jump start: ")]
    assert f"{teacher} at 50 frames begins each training episode, random" in said
    assert f"{teacher} has not finished; if it trains on, it deletes old checkpoints" in note


def test_resuming_wants_the_same_teacher(tmp_path, teacher):
    mine, moved = tmp_path / "mine", tmp_path / "moved"
    shutil.copytree(teacher, mine)
    config = resolve.compose([*STATE, f"jump_start.run={mine}"])
    assert config.jump_start.checkpoint == 50
    (tmp_path / "config.yaml").write_text(as_yaml(config), encoding="utf-8")

    def resumed(*words):
        return builder.build(
            resolve.load(tmp_path, words),
            tmp_path,
            make_sinks=lambda: None,
            display=Silent(),
            device=torch.device("cpu"),
        )

    train_teacher(mine, "train_frames=60")
    resumed()  # with the checkpoint that it began with, though there is a newer one
    mine.rename(moved)
    with pytest.raises(ConfigError, match=r"say where it is now with jump_start\.run"):
        resumed()
    resumed(f"jump_start.run={moved}")
    mine.mkdir()
    train_teacher(mine, "seed=1")
    with pytest.raises(ConfigError, match=r"at 50 frames in .*mine is not the one that this run"):
        resumed()
    shutil.rmtree(mine / "checkpoints" / f"{50:012d}")
    with pytest.raises(ConfigError, match=r"mine has deleted its checkpoint at 50 frames"):
        resumed()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained TD3 of Stable-Baselines3, which acts in Pusher's bounds of [-2, 2]."""
    sb3 = pytest.importorskip("stable_baselines3")
    env = gymnasium.make("Pusher-v5")
    path = tmp_path_factory.mktemp("model") / "td3.zip"
    model = sb3.TD3("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, seed=1)
    model.save(path)
    return model, path


def model_student(folder, path, *words):
    of_env = ("env=Pusher-v5", f"jump_start.model={path}", "jump_start.schedule=random")
    base = [word for word in STATE if not word.startswith("env=")]
    more = ("jump_start.trust=true", "jump_start.episode_steps=7", "train_frames=120")
    return make_trainer(folder, *of_env, *more, *words, base=base)


def test_model_plays_the_env_itself_as_its_library_does(tmp_path, model):
    """Below the repeated, scaled actions and flat observations of the student."""
    theirs, path = model
    trainer = model_student(tmp_path, path, "env.action_repeat=2")
    env = trainer.envs[0].env
    plain_env = gymnasium.make("Pusher-v5")
    played = set()
    for seed in range(8):
        obs, info = env.reset(seed=seed)
        expected, _ = plain_env.reset(seed=seed)
        for _ in range(info["guide_steps"]):
            expected = plain_env.step(theirs.predict(expected, deterministic=True)[0])[0]
        assert np.array_equal(obs, expected.astype(np.float32))
        played.add(info["guide_steps"])
    assert len(played) > 2 and max(played) < 7


def test_student_of_a_model_resumes_with_the_same_model_only(tmp_path, model):
    path = tmp_path / "mine.zip"
    shutil.copy(model[1], path)
    straight = model_student(tmp_path / "straight", path)
    assert straight.run()
    folder = tmp_path / "stopped"
    stopped = model_student(folder, path)
    stopped.stop_requested = lambda: stopped.steps >= 50
    assert not stopped.run()
    resumed = model_student(folder, path)
    resumed.resume()
    assert resumed.run()
    assert plain(straight.state_dict()) == plain(resumed.state_dict())
    config = resolve.compose(
        [*STATE, "env=Pusher-v5", f"jump_start.model={path}", "jump_start.trust=true"]
    )
    builder.model_policy(config, gymnasium.make("Pusher-v5"), print)
    (tmp_path / "vecnormalize.pkl").touch()
    with pytest.raises(ConfigError, match="or its statistics are not those that this run began"):
        builder.model_policy(config, gymnasium.make("Pusher-v5"), print)
    untrusted = resolve.compose([*STATE, "env=Pusher-v5", f"jump_start.model={path}"])
    with pytest.raises(ConfigError, match=r"jump_start\.model: .* trust=true"):
        builder.model_policy(untrusted, gymnasium.make("Pusher-v5"), print)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["jump_start.run=TEACHER", "env.action_repeat=2"],
            "env.action_repeat=1, and this",
        ),
        (["jump_start.run=TEACHER", "jump_start.checkpoint=9"], "none at 9 frames .* kept: 50"),
        (["jump_start.run=nowhere"], "nowhere does not exist"),
        (["jump_start.stages=3"], "stages: has no effect without jump_start.run=RUN_DIR or"),
        (["jump_start.run=TEACHER", "snapshot=x.h5"], "cannot be combined with snapshot=FILE"),
        (
            ["jump_start.run=TEACHER", "jump_start.schedule=random", "jump_start.stages=3"],
            "jump_start.stages: has no effect with jump_start.schedule=random",
        ),
        (
            ["jump_start.run=TEACHER", "jump_start.schedule=fast"],
            "jump_start.schedule: expected one of curriculum, random, received 'fast'",
        ),
        (["jump_start.run=TEACHER", "jump_start.model=x.zip"], "cannot be combined with"),
        (["jump_start.run=TEACHER", "jump_start.trust=true"], "without jump_start.model=FILE"),
        (["jump_start.model=x.zip", "jump_start.checkpoint=1"], "without jump_start.run=RUN_DIR"),
        (["jump_start.model=x.zip"], "there is no file .*x.zip"),
        (["jump_start.model=x.zip", "env=cheetah_run"], "env=cheetah_run is a dm_control task"),
        (["jump_start.sha256=1"], "jump_start.sha256: is set by jump_start.run=RUN_DIR"),
    ],
)
def test_settings_that_do_not_fit_are_refused(teacher, words, message):
    with pytest.raises(ConfigError, match=message):
        resolve.compose([*STATE, *(word.replace("TEACHER", str(teacher)) for word in words)])


def test_updates_wait_while_the_teacher_acts(teacher):
    config = resolve.compose([*STATE, f"jump_start.run={teacher}", "overlap=true"])
    with pytest.raises(ConfigError, match=r"overlap=true: with jump_start the env's resets"):
        builder.env_executors(config)
