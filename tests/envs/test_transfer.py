"""A teacher's world in a student's env: what is taken, what stays, and what is refused."""

import copy
import pickle

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.mujoco.reacher_v5 import ReacherEnv
from gymnasium.spaces import Box, Text

from rlearly.core.errors import ConfigError
from rlearly.envs.snapshots.dataset import Snapshots
from rlearly.envs.snapshots.recording import from_actions, record
from rlearly.envs.snapshots.wrapper import SnapshotRL
from rlearly.envs.state.action_replay import InexactState

ONE = np.ones(1, np.float32)
PRICES = np.arange(100.0)


class Market(gymnasium.Env):
    """A table that steps go through, settings, counters that go on, and a curriculum."""

    observation_space = Box(-1e6, 1e6, (3,), np.float64)
    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, weight=1.0, fees=(0.1, 0.2)):
        self.weight = weight
        self.settings = {"fees": list(fees), "names": ("a", "b")}
        self.table = PRICES * 2
        self.episodes = self.all_steps = self.level = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episodes += 1
        self.level = self.episodes // 3
        self.row, self.held = 0, 0.0
        self.start = self.np_random.integers(5)
        self.trades = []
        return self._look(), {"row": self.row, "mask": np.arange(3) == 0}

    def _look(self):
        return np.array([self.table[self.row], self.held, self.start])

    def step(self, action):
        self.row += 1
        self.all_steps += 1
        self.held += float(action[0])
        self.trades.append(float(action[0]))
        info = {"row": self.row, "mask": np.arange(3) == self.row % 3}
        return self._look(), self.weight * self.held, self.row >= 99, False, info


def market(policy=lambda obs: ONE, **kwargs):
    return record(Market(**kwargs), policy, episodes=2)


def test_rows_go_on_where_the_teacher_was_and_settings_stay():
    snapshots = market()
    env = SnapshotRL(Market(weight=3.0, fees=(0.5, 0.6)), snapshots)
    base = env.unwrapped
    obs, info = env.reset(seed=0, options={"snapshot": 5})
    assert obs[0] == 100 and (base.row, base.held) == (50, 50.0) and base.trades == [1.0] * 50
    assert info["row"] == 50 and info["mask"].tolist() == [False, False, True]
    assert (base.weight, base.settings) == (3.0, {"fees": [0.5, 0.6], "names": ("a", "b")})
    obs, reward, *_ = env.step(ONE)
    assert obs[:2].tolist() == [102, 51] and reward == 3.0 * 51
    text = env.describe()
    for name in ("row", "held", "trades", "start"):
        assert name in text.splitlines()[1]
    assert "weight (3.0, not 1.0)" in text and "episodes" in text.splitlines()[2]


def test_counters_that_go_on_stay_the_students():
    env = SnapshotRL(Market(), market())
    base = env.unwrapped
    base.episodes, base.all_steps = 40, 1234
    env.reset(seed=0, options={"snapshot": 3})
    assert (base.episodes, base.all_steps, base.level) == (41, 1234, 13)


def test_a_counter_that_the_episode_depends_on_is_taken():
    class Levels(Market):
        def step(self, action):
            obs, reward, *rest = super().step(action)
            return obs, reward + self.level, *rest

    snapshots = record(Levels(), lambda obs: ONE, episodes=2)
    env = SnapshotRL(Levels(), snapshots)
    env.unwrapped.episodes = 400
    env.reset(seed=0, options={"snapshot": 3})
    taken = env.unwrapped.level
    assert taken < 100
    env = SnapshotRL(Levels(), snapshots, keep=("level",))
    env.unwrapped.episodes = 400
    env.reset(seed=0, options={"snapshot": 3})
    assert env.unwrapped.level == 401 // 3


def test_names_to_keep_and_to_take():
    snapshots = market(weight=2.0)
    env = SnapshotRL(Market(weight=3.0), snapshots, keep=("held",), take=("weight", "settings"))
    env.reset(seed=0, options={"snapshot": 3})
    assert (env.unwrapped.held, env.unwrapped.weight) == (0.0, 2.0)
    with pytest.raises(ConfigError, match=r"keep: expected names among .*held.*; received 'nope'"):
        SnapshotRL(Market(), snapshots, keep=("nope",))
    with pytest.raises(ConfigError, match=r"take: expected names among .*weight.*; received 'wei'"):
        SnapshotRL(Market(), snapshots, take=("wei",))


def test_randomness_stays_the_students_whatever_kind_it_is():
    class Old(Market):
        def __init__(self):
            super().__init__()
            self.np_random = np.random.RandomState(3)

        def reset(self, *, seed=None, options=None):
            if seed is not None:
                self.np_random = np.random.RandomState(seed)
            self.row, self.held, self.start, self.trades = 0, 0.0, self.np_random.randint(5), []
            return self._look(), {}

    env, twin = SnapshotRL(Old(), record(Old(), lambda obs: ONE, episodes=1)), Old()
    env.reset(seed=4, options={"snapshot": 2})
    twin.reset(seed=4)
    assert env.unwrapped.np_random.randint(1000) == twin.np_random.randint(1000)


class Gusts(ReacherEnv):
    """Names for parts of MuJoCo's model and data, and of an array of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.marker = self.model.body("target").pos
        self.gust = self.data.body("fingertip").xfrc_applied
        self.buffer = np.zeros(6)
        self.tail = self.buffer[:2:-1]

    def reset_model(self):
        obs = super().reset_model()
        self.marker[2] = self.np_random.uniform(0.01, 0.3)
        self.gust[0] = self.np_random.uniform(-1, 1)
        self.buffer[:] = self.np_random.normal(size=6)
        return obs


def test_parts_of_the_simulator_and_of_arrays_are_still_parts_of_them():
    still = np.zeros(2, np.float32)
    snapshots = from_actions(Gusts(), [(0, np.zeros((50, 2), np.float32))])
    env = SnapshotRL(Gusts(), snapshots, until_steps=1)
    base = env.unwrapped
    assert isinstance(base, Gusts)
    body, tip = base.model.body("target").id, base.data.body("fingertip").id
    seen = []
    for seed in (1, 2):  # at a snapshot, then in an ordinary episode
        env.reset(seed=seed)
        assert base.model.body_pos[body][2] == base.marker[2]
        assert base.data.xfrc_applied[tip][0] == base.gust[0]
        assert np.array_equal(base.tail, base.buffer[:2:-1])
        base.buffer[5] = 7.0
        assert base.tail[0] == 7.0
        seen.append(base.marker[2])
        env.step(still)
    assert seen[0] != seen[1]


def test_what_never_changes_is_stored_once():
    class Imitate(Market):
        def __init__(self):
            super().__init__()
            self.reference = np.random.default_rng(0).normal(size=100_000)

    snapshots = record(Imitate(), lambda obs: ONE, episodes=2)
    assert sum(map(len, snapshots.records)) < 100_000
    assert 800_000 < len(snapshots.common) < 2_500_000


def test_arguments_and_infos_of_any_type_survive_the_file(tmp_path):
    gymnasium.register("Market-v0", Market)
    kwargs = {"fees": (0.5, np.arange(3.0)), "weight": np.float32(2.0)}
    snapshots = record(gymnasium.make("Market-v0", **kwargs), lambda obs: ONE, episodes=1)
    snapshots.save(tmp_path / "s.h5")
    loaded = Snapshots.load(tmp_path / "s.h5")
    assert type(loaded.kwargs["fees"]) is tuple and loaded.kwargs["fees"][1].tolist() == [0, 1, 2]
    env = SnapshotRL(gymnasium.make("Market-v0", **kwargs), tmp_path / "s.h5")
    assert "Differs" not in env.describe()
    _, info = env.reset(seed=0, options={"snapshot": 2})
    assert info["mask"].dtype == bool and info["snapshot"] == 2
    other = SnapshotRL(gymnasium.make("Market-v0", weight=5.0), loaded)
    assert "argument weight (5.0, not" in other.describe()


def test_observations_that_cannot_be_flattened_and_rewards_that_are_arrays():
    class Speaking(Market):
        observation_space = gymnasium.spaces.Dict(
            x=Box(-1e6, 1e6, (3,), np.float64), words=gymnasium.spaces.Sequence(Text(5))
        )

        def _look(self):
            return {"x": super()._look(), "words": ("a",) * self.row}

        def step(self, action):
            obs, reward, *rest = super().step(action)
            return obs, np.array([reward]), *rest

    snapshots = record(Speaking(), lambda obs: ONE, episodes=1)
    assert snapshots.observations.shape == (len(snapshots), 0)
    env = SnapshotRL(Speaking(), snapshots)
    assert "Differs" not in env.describe()
    obs, _ = env.reset(seed=0, options={"snapshot": 1})
    assert obs["words"] == ("a",) * 10
    assert env.step(ONE)[1].tolist() == [11.0]


def test_an_episode_without_an_end_is_cut_and_said(caplog):
    class Endless(Market):
        def step(self, action):
            obs, reward, _, *rest = super().step(action)
            self.row %= 50
            return obs, reward, False, *rest

    snapshots = record(Endless(), lambda obs: ONE, episodes=1, max_episode_steps=120)
    assert snapshots.steps.max() == 110
    assert "Episode 0 of" in caplog.text and "had not ended after 120 steps" in caplog.text


def test_another_world_under_the_same_settings_is_refused():
    class Drifts(Market):
        speed = 1.0

        def _look(self):
            return super()._look() * self.speed

    snapshots = record(Drifts(), lambda obs: ONE, episodes=1)
    Drifts.speed = 1.5
    with pytest.raises(InexactState, match=r"although no setting differs: .*observation"):
        SnapshotRL(Drifts(), snapshots)


def test_copies_and_pickles_start_where_the_original_would():
    snapshots = record(gymnasium.make("CartPole-v1"), lambda obs: 0, episodes=2)
    env = SnapshotRL(gymnasium.make("CartPole-v1"), snapshots)
    env.reset(seed=0)
    copies = [copy.deepcopy(env), pickle.loads(pickle.dumps(env))]
    expected = env.reset(seed=3)[0]
    for other in copies:
        assert np.array_equal(other.reset(seed=3)[0], expected)
        assert np.array_equal(np.float32(other.unwrapped.state), expected)
        other.step(1)
        assert np.array_equal(np.float32(env.unwrapped.state), expected)
