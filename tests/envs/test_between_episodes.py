"""What an env keeps from one episode to the next goes with its agent into every evaluation."""

import itertools
import json

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from gymnasium.wrappers import NormalizeObservation, NormalizeReward, TransformReward

from rlearly import envs, evaluate, teacher, train
from rlearly.config import resolve
from rlearly.envs.state.between_episodes import (
    EvaluationEnv,
    keeps_nothing,
    kept_by,
    own_parts,
    take_over,
)
from rlearly.envs.wrappers import agent_view
from rlearly.system.seeding import Seeds
from rlearly.training import builder, checkpoint, evaluation

ONE = np.ones(1, np.float32)
OUTSIDE = {"episodes": 0}


class Point(gymnasium.Env):
    """A point on a line. What it keeps is up to the subclasses."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float64)
    action_space = Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.steps = float(self.np_random.random()), 0
        return self._look(), {}

    def _look(self):
        return np.array([self.x, self.steps])

    def step(self, action):
        self.x += float(action[0])
        self.steps += 1
        return self._look(), self.x, False, self.steps >= 10, {}


class Curriculum(gymnasium.Wrapper):
    """Each episode pays more than the one before; the levels and their order are kept."""

    def __init__(self, env):
        super().__init__(env)
        self.level = 0
        self.history = []

    def reset(self, **kwargs):
        self.level += 1
        self.history.append(self.level)
        return self.env.reset(**kwargs)

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward * sum(self.history), terminated, truncated, info


class Mirrored(Point):
    """Its own running mean, as users write it, is subtracted."""

    def __init__(self):
        self.count, self.mean = 0, np.zeros(2)

    def _look(self):
        obs = super()._look()
        self.count += 1
        self.mean += (obs - self.mean) / self.count
        return obs - self.mean

    def step(self, action):
        obs, _, terminated, truncated, info = super().step(action)
        return obs, float(obs[0]), terminated, truncated, info


class Server(Point):
    """Its simulator is elsewhere, and known by a number."""

    handles = itertools.count()
    worlds: dict = {}  # noqa: RUF012

    def __init__(self):
        self.handle = next(Server.handles)
        self.address = f"127.0.0.1:{5000 + self.handle}"
        self.difficulty = 0
        Server.worlds[self.handle] = 0

    def reset(self, *, seed=None, options=None):
        self.difficulty += 1
        Server.worlds[self.handle] = self.difficulty
        return super().reset(seed=seed)

    def step(self, action):
        obs, _, terminated, truncated, info = super().step(action)
        return obs, float(Server.worlds[self.handle]), terminated, truncated, info


class Careless(Point):
    """Draws from numpy's global generator."""

    def _look(self):
        return np.array([self.x, np.random.random()])  # noqa: NPY002


class Forgotten(Point):
    """Counts its episodes where no state is looked for."""

    def reset(self, *, seed=None, options=None):
        OUTSIDE["episodes"] += 1
        return super().reset(seed=seed)

    def step(self, action):
        obs, _, terminated, truncated, info = super().step(action)
        return obs, float(OUTSIDE["episodes"]), terminated, truncated, info


class OwnState(Point):
    """Keeps its level in something that is no data, and says how to save it."""

    def __init__(self):
        self.level = iter(range(100))
        self.now = next(self.level)

    def state_dict(self):
        return {"now": self.now}

    def load_state_dict(self, state):
        self.level = iter(range(state["now"] + 1, 100))
        self.now = state["now"]

    def reset(self, *, seed=None, options=None):
        self.now = next(self.level)
        return super().reset(seed=seed)

    def step(self, action):
        obs, _, terminated, truncated, info = super().step(action)
        return obs, float(self.now), terminated, truncated, info


class LevelBelow(gymnasium.Wrapper):
    """A curriculum that changes a library's own env: each episode it is heavier."""

    def reset(self, **kwargs):
        self.unwrapped.masspole += 0.1
        return self.env.reset(**kwargs)


gymnasium.register("Curriculum-v0", lambda: Curriculum(Point()))
gymnasium.register("Forgotten-v0", Forgotten)
gymnasium.register(
    "Normed-v0", lambda **kwargs: NormalizeObservation(gymnasium.make("Pendulum-v1", **kwargs))
)


def play(env, seed=None, episodes=1):
    """The rewards of some episodes."""
    rewards = []
    for _ in range(episodes):
        env.reset(seed=seed)
        done = False
        while not done:
            _, reward, terminated, truncated, _ = env.step(ONE)
            rewards.append(reward)
            done = terminated or truncated
    return rewards


def evaluation_env(make, training):
    return EvaluationEnv(make(), lambda: kept_by(training), own_parts(make(), make()))


def test_normalised_observations_use_the_statistics_of_training_which_stay():
    def make():
        return NormalizeObservation(gymnasium.make("Pendulum-v1"))

    training, raw = make(), gymnasium.make("Pendulum-v1")
    play(training, seed=3, episodes=2)
    env = evaluation_env(make, training)
    mean, variance = training.obs_rms.mean.copy(), training.obs_rms.var.copy()
    for seed in (7, 8):
        expected = (raw.reset(seed=seed)[0] - mean) / np.sqrt(variance + 1e-8)
        np.testing.assert_allclose(env.reset(seed=seed)[0], expected, rtol=1e-6)
        for _ in range(5):
            expected = (raw.step(ONE)[0] - mean) / np.sqrt(variance + 1e-8)
            np.testing.assert_allclose(env.step(ONE)[0], expected, rtol=1e-6)
    np.testing.assert_array_equal(training.obs_rms.mean, mean)
    count = training.obs_rms.count
    play(training)
    assert training.obs_rms.count > count  # it is the evaluation that is frozen


def test_normalised_rewards_use_the_variance_of_training():
    def make():
        return NormalizeReward(gymnasium.make("Pendulum-v1"))

    training, raw = make(), gymnasium.make("Pendulum-v1")
    play(training, seed=3, episodes=2)
    variance = float(training.return_rms.var)
    scaled = play(evaluation_env(make, training), seed=5)
    assert scaled == pytest.approx([r / np.sqrt(variance + 1e-8) for r in play(raw, seed=5)])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Curriculum(Point()),
        lambda: LevelBelow(gymnasium.make("CartPole-v1").unwrapped),
        Mirrored,
        OwnState,
    ],
    ids=["counter", "library's env", "statistics", "state_dict"],
)
def test_each_evaluation_episode_is_the_one_that_training_would_play_next(make):
    training, twin = make(), make()
    if isinstance(training.action_space, gymnasium.spaces.Discrete):

        def steps(env, seed):
            env.reset(seed=seed)
            return [env.step(1)[0].tolist() for _ in range(8)]
    else:
        steps = play
    for env in (training, twin):
        for seed in range(4):
            steps(env, seed)
    env = evaluation_env(make, training)
    expected = steps(twin, 9)
    assert steps(env, 9) == expected
    assert steps(env, 9) == expected  # evaluating moved nothing
    assert steps(training, 9) == expected
    assert steps(make(), 9) != expected  # it matters


def test_handles_and_addresses_stay_each_envs_own():
    training = Server()
    play(training, episodes=5)
    env = evaluation_env(Server, training)
    assert play(env) == [6.0] * 10
    assert env.unwrapped.handle != training.handle
    assert env.unwrapped.address != training.address
    assert play(training) == [6.0] * 10


def test_generators_that_no_reset_seeds_continue_as_in_training():
    class Noisy(gymnasium.Wrapper):
        def __init__(self, env):
            super().__init__(env)
            self.generator = np.random.default_rng()

        def step(self, action):
            obs, _, terminated, truncated, info = self.env.step(action)
            return obs, float(self.generator.normal()), terminated, truncated, info

    training = Noisy(Point())
    env = evaluation_env(lambda: Noisy(Point()), training)
    first = play(env, seed=1)
    assert play(env, seed=1) == first
    assert play(training, seed=1) == first


def test_only_envs_that_may_keep_something_are_looked_at():
    assert keeps_nothing(gymnasium.make("Pendulum-v1"))
    assert not keeps_nothing(NormalizeObservation(gymnasium.make("Pendulum-v1")))
    assert not keeps_nothing(Point())
    scaled = TransformReward(gymnasium.make("Pendulum-v1"), lambda reward: 2 * reward)
    assert not keeps_nothing(scaled)


def test_envs_that_do_not_fit_share_nothing():
    wrapped = Curriculum(Point())
    play(wrapped, episodes=3)
    plain = Point()
    assert take_over(plain, kept_by(wrapped))
    assert not hasattr(plain, "level")


@pytest.mark.parametrize(
    "make, words",
    [
        (Careless, ["global generator numpy.random", "self.np_random"]),
        (Forgotten, ["keeps something between episodes", "state_dict"]),
    ],
)
def test_what_cannot_be_repeated_is_said_with_a_remedy(make, words):
    said = evaluation_env(make, make()).why_not_repeatable()
    assert said is not None
    assert make.__name__ in said
    assert all(word in said for word in words)
    assert evaluation_env(Mirrored, Mirrored()).why_not_repeatable() is None


def test_what_cannot_be_copied_is_said_once(caplog):
    class Connected(Point):
        """Connects at its first reset, as a lazy client does."""

        def reset(self, *, seed=None, options=None):
            self.__dict__.setdefault("clients", []).append({"connection": memoryview(b"")})
            return super().reset(seed=seed)

    training = Connected()
    play(training)
    env = EvaluationEnv(Connected(), lambda: kept_by(training))
    play(env, episodes=2)
    assert len(caplog.messages) == 1
    assert "clients" in caplog.messages[0]
    assert "state_dict" in caplog.messages[0]


@pytest.mark.parametrize("name", ["BipedalWalker-v3", "LunarLanderContinuous-v3"])
def test_box2d_episodes_do_not_depend_on_those_before(name):
    pytest.importorskip("Box2D")
    env = EvaluationEnv(gymnasium.make(name), None)

    def observations(seed):
        seen = [env.reset(seed=seed)[0]]
        env.action_space.seed(0)
        return np.stack(seen + [env.step(env.action_space.sample())[0] for _ in range(60)])

    first = observations(4)
    observations(5)
    np.testing.assert_array_equal(observations(4), first)


# --- commands ---

WORDS = [
    "agent=td3",
    "seed_frames=100",
    "eval_episodes=2",
    "video_size=0",
    "agent.batch_size=16",
    "agent.hidden_dim=16",
    "threads=1",
    "log_every_frames=100000",
]


def evaluations(folder):
    rows = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["frames"]: row["eval/episode_return"] for row in rows if "eval/seconds" in row}


def printed_returns(capsys, *words):
    capsys.readouterr()
    assert evaluate.main([*words, "seed=3", "video_size=0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    return [float(line.split()[3]) for line in lines if line.startswith("episode")]


def test_resumed_run_evaluates_as_one_that_was_not_interrupted(tmp_path, capsys):
    words = [*WORDS, "env=test_between_episodes:Curriculum-v0", "eval_every_frames=60"]
    assert train.main([*words, "train_frames=120", f"run_dir={tmp_path}/whole"]) == 0
    assert train.main([*words, "train_frames=60", f"run_dir={tmp_path}/parts"]) == 0
    assert train.main([f"resume={tmp_path}/parts", "train_frames=120"]) == 0
    whole, parts = evaluations(tmp_path / "whole"), evaluations(tmp_path / "parts")
    assert list(whole) == [60, 120]
    assert whole == parts

    returns = printed_returns(capsys, f"run={tmp_path}/parts", "episodes=2")
    assert returns == printed_returns(capsys, f"run={tmp_path}/whole", "episodes=3")[:2]
    config = resolve.load(tmp_path / "parts")
    _, state = checkpoint.load_at(tmp_path / "parts" / "checkpoints", None)
    env = agent_view(Point(), config.env, None)
    agent = builder.make_agent(config, envs.env_spec(env, config.env), torch.device("cpu"))
    agent.load_state_dict(state["agent"])
    seeds = Seeds(3).sequence("evaluation")
    plain = evaluation.evaluate(agent, env, episodes=2, seeds=seeds, step=120).returns
    levels = sum(range(1, 14))  # twelve episodes of training, and the one that is evaluated
    assert returns == pytest.approx([levels * total for total in plain], abs=0.01)


class Counting(Point):
    """Restored by repeating actions, as it was never proved; after 40 steps it pays double."""

    all_steps = 0

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        self.all_steps += 1
        return obs, reward * (1 + (self.all_steps > 40)), terminated, truncated, info


gymnasium.register("Counting-v0", Counting)


def test_counter_of_an_env_that_repeats_its_actions_goes_on_in_a_resumed_run(tmp_path):
    words = [*WORDS, "env=test_between_episodes:Counting-v0", "eval_every_frames=0"]
    assert train.main([*words, "train_frames=65", f"run_dir={tmp_path}/whole"]) == 0
    assert train.main([*words, "train_frames=35", f"run_dir={tmp_path}/parts"]) == 0
    assert train.main([f"resume={tmp_path}/parts", "train_frames=65"]) == 0

    def returns(name):
        rows = map(
            json.loads, (tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        )
        return [row["train/episode_return"] for row in rows if "train/episode_return" in row]

    assert len(returns("whole")) == 6
    assert returns("parts") == returns("whole")


def test_teacher_plays_with_the_statistics_of_training(tmp_path):
    words = [*WORDS, "env=test_between_episodes:Normed-v0", "eval_every_frames=0"]
    assert train.main([*words, "train_frames=400", f"run_dir={tmp_path}/run"]) == 0
    env = teacher.from_run(teacher.TeacherConfig(run=str(tmp_path / "run"))).env
    _, state = checkpoint.load_at(tmp_path / "run" / "checkpoints", None)
    made = gymnasium.make("Normed-v0", disable_env_checker=True)
    assert take_over(made, builder.kept_in(state)()) == []
    statistics = made.get_wrapper_attr("obs_rms")
    mean, variance = statistics.mean, statistics.var
    assert statistics.count == pytest.approx(403, abs=1)  # with the first of 3 episodes
    raw = gymnasium.make("Pendulum-v1")
    for seed in (7, 8):
        expected = (raw.reset(seed=seed)[0] - mean) / np.sqrt(variance + 1e-8)
        np.testing.assert_allclose(env.reset(seed=seed)[0], expected, rtol=1e-5)


def test_env_that_cannot_be_repeated_is_said_at_the_start(tmp_path, capsys):
    words = [*WORDS, "env=test_between_episodes:Forgotten-v0", "eval_every_frames=20"]
    assert train.main([*words, "train_frames=20", f"run_dir={tmp_path}/run"]) == 0
    said = capsys.readouterr().out
    assert "does not behave the same twice" in said
    assert said.index("does not behave the same twice") < said.index("evaluation at 20 frames")


def test_jump_start_says_that_the_teacher_meets_other_statistics(tmp_path, capsys):
    words = [*WORDS, "env=test_between_episodes:Normed-v0", "eval_every_frames=0"]
    assert train.main([*words, "train_frames=20", f"run_dir={tmp_path}/teacher"]) == 0
    start = [f"jump_start.run={tmp_path}/teacher", "jump_start.episode_steps=5"]
    assert train.main([*words, *start, "train_frames=20", f"run_dir={tmp_path}/run"]) == 0
    assert "the teacher sees this run's" in capsys.readouterr().out
