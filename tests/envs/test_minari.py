"""Snapshots from Minari datasets: recorded here, step by step, and read back."""

import functools
import warnings

import gymnasium
import gymnasium_robotics
import numpy as np
import pytest
from gymnasium.spaces import flatten

from rlearly import SnapshotRL
from rlearly.core.errors import ConfigError
from rlearly.envs.snapshots.minari import from_minari

minari = pytest.importorskip("minari")

slow = functools.partial(pytest.param, marks=pytest.mark.slow)
ADROIT = {"Door": "door_body_pos", "Hammer": "board_pos", "Pen": "desired_orien"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    gymnasium.register_envs(gymnasium_robotics)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))


def simulated(env):
    base = env.unwrapped
    return getattr(base, "point_env", getattr(base, "ant_env", base))


class Tasks(gymnasium.Env):
    """Counts what its inner env has achieved."""

    def __init__(self):
        self.hopper = gymnasium.make("Hopper-v5").unwrapped
        self.observation_space = self.hopper.observation_space
        self.action_space = self.hopper.action_space
        self.jumps = 0


def spaces_of(env_id):
    env = gymnasium.make(env_id)
    return {"observation_space": env.observation_space, "action_space": env.action_space}


def rows_of(steps):
    """Observations (or infos) of steps, as Minari stacks them."""
    if isinstance(steps[0], dict):
        return {key: rows_of([step[key] for step in steps]) for key in steps[0]}
    return np.array(steps)


class Recording:
    """Random episodes of an env: what a dataset holds, and the env's whole state at each step."""

    def __init__(self, env_id, episodes=1, steps=12, seed=0, goal=None, **kwargs):
        env = gymnasium.make(env_id, **kwargs)
        env.action_space.seed(seed)
        self.env_id, self.spec, self.episodes, self.actions = env_id, env.spec, [], []
        for number in range(episodes):
            obs, _ = env.reset(seed=seed + number)
            if goal is not None:
                obs = goal(env)
            rows, self.actions = [self._row(env, obs, None, 0.0, False)], []
            while len(rows) <= steps and not rows[-1]["over"]:
                action = env.action_space.sample()
                obs, reward, over, _, _ = env.step(action)
                rows.append(self._row(env, obs, action, reward, over))
            self.episodes.append(rows)

    def _row(self, env, obs, action, reward, over):
        data = simulated(env).data
        state = {"qpos": data.qpos.copy(), "qvel": data.qvel.copy()}
        if hasattr(env.unwrapped, "get_env_state"):
            state = env.unwrapped.get_env_state()
        return {"obs": obs, "action": action, "reward": reward, "over": over, "infos": state}

    def dataset(
        self,
        name="tiny/mine-v0",
        infos=slice(None),
        nest=lambda infos: infos,
        change=lambda obs: obs,
        env="own",
        **spaces,
    ):
        """Write it. `infos`: the rows that have infos; `change`: of every observation."""
        from minari.data_collector.episode_buffer import EpisodeBuffer

        buffers = [
            EpisodeBuffer(
                id=number,
                observations=rows_of([change(row["obs"]) for row in rows]),
                actions=np.array([row["action"] for row in rows[1:]]),
                rewards=[row["reward"] for row in rows[1:]],
                terminations=[row["over"] for row in rows[1:]],
                truncations=[False] * (len(rows) - 1),
                infos=rows_of([nest(row["infos"]) for row in rows[infos]]),
            )
            for number, rows in enumerate(self.episodes)
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            env = self.spec if env == "own" else env
            return minari.create_dataset_from_buffers(name, buffers, env=env, **spaces)

    def check(self, snapshots, steps):
        """The snapshots are the recorded states, observations, rewards and returns of `steps`."""
        assert snapshots.steps.tolist() == steps * len(self.episodes)
        env = SnapshotRL(gymnasium.make(self.spec), snapshots, until_steps=0)
        for index, (number, step) in enumerate(
            zip(snapshots.episodes, snapshots.steps, strict=True)
        ):
            rows = self.episodes[number]
            rewards = [row["reward"] for row in rows]
            assert snapshots.rewards[index] == rewards[step]
            assert snapshots.returns_to_go[index] == pytest.approx(sum(rewards[step + 1 :]))
            obs, info = env.reset(seed=9, options={"snapshot": index})
            space = env.unwrapped.observation_space
            recorded = flatten(space, rows[step]["obs"])
            assert np.array_equal(flatten(space, obs), recorded)
            assert np.array_equal(snapshots.observations[index], recorded)
            data = simulated(env).data
            assert np.array_equal(data.qpos, rows[step]["infos"]["qpos"])
            assert np.array_equal(data.qvel, rows[step]["infos"]["qvel"])
            if "x_position" in info:
                assert info["x_position"] == pytest.approx(data.qpos[0], abs=1e-9)
        return env


@pytest.mark.parametrize("infos", ["all", "of steps", "before steps"])
@pytest.mark.parametrize("env_id", ["Hopper-v5", "Reacher-v5"])
def test_snapshot_is_the_state_at_its_step_wherever_infos_begin(env_id, infos):
    """Reacher observes positions that lag behind qpos."""
    recording = Recording(env_id, episodes=2)
    rows = {"all": slice(None), "of steps": slice(1, None), "before steps": slice(-1)}[infos]
    recording.dataset(infos=rows)
    snapshots = from_minari("tiny/mine-v0", every_steps=3)
    if infos != "of steps":
        recording.check(snapshots, [0, 3, 6, 9])
    elif env_id == "Hopper-v5":
        recording.check(snapshots, [3, 6, 9])
    else:
        assert snapshots.steps.tolist() == [3, 6, 9] * 2
        recorded = [recording.episodes[n][t]["obs"] for n in (0, 1) for t in (3, 6, 9)]
        assert np.allclose(snapshots.observations, recorded, rtol=0, atol=1e-12)


def test_rows_of_a_motionless_episode_may_belong_to_either_step():
    recording = Recording("PointMaze_UMaze-v3")
    row = recording.episodes[0][0] | {"action": np.zeros(2, np.float32)}
    recording.episodes = [[row] * 5]
    dataset = recording.dataset(infos=slice(1, None))
    assert from_minari(dataset, every_steps=2).steps.tolist() == [2]


@pytest.mark.parametrize("env_id", ["Ant-v5", slow("Humanoid-v5"), "Pusher-v5"])
def test_whole_state_is_the_recorded_one_not_only_its_positions(env_id):
    """Contact forces, inertias and lagging positions, and then the next steps, to the bit."""
    recording = Recording(env_id, steps=14)
    env = recording.check(from_minari(recording.dataset(), every_steps=4), [0, 4, 8, 12])
    for index in (1, 3):
        env.reset(options={"snapshot": index})
        for row in recording.episodes[0][4 * index + 1 :]:
            assert np.array_equal(env.step(row["action"])[0], row["obs"])


@pytest.mark.parametrize("task", [slow("Door"), slow("Hammer"), "Pen", slow("Relocate")])
def test_hand_tasks_start_with_their_objects_where_they_were(task):
    recording = Recording(f"AdroitHand{task}-v1", episodes=2)
    dataset = recording.dataset(nest=lambda infos: {"environment": {"state": infos}})
    env = recording.check(from_minari(dataset, every_steps=5), [0, 5, 10])
    if task in ADROIT:
        placed = recording.episodes[1][10]["infos"][ADROIT[task]]
        assert np.array_equal(env.unwrapped.get_env_state()[ADROIT[task]], placed)


def test_hand_task_without_its_objects_is_refused():
    recording = Recording("AdroitHandPen-v1")
    dataset = recording.dataset(nest=lambda infos: {k: infos[k] for k in ("qpos", "qvel")})
    with pytest.raises(ConfigError, match=r"expected infos with .*desired_orien, received qpos, q"):
        from_minari(dataset)


@pytest.mark.parametrize(
    "env_id", ["PointMaze_UMaze-v3", slow("PointMaze_Medium-v3"), slow("AntMaze_UMaze-v5")]
)
def test_maze_starts_with_the_goal_of_its_episode(env_id):
    recording = Recording(env_id, episodes=2)
    snapshots = from_minari(recording.dataset(), every_steps=5)
    env = recording.check(snapshots, [0, 5, 10])
    goals = [rows[5]["obs"]["desired_goal"] for rows in recording.episodes]
    assert not np.array_equal(*goals)
    for index, goal in ((1, goals[0]), (4, goals[1])):
        env.reset(seed=3, options={"snapshot": index})
        obs, *_ = env.step(env.action_space.sample())
        assert np.array_equal(obs["desired_goal"], goal)
        assert np.array_equal(env.unwrapped.goal, goal)
        site = env.unwrapped.target_site_id
        assert np.array_equal(env.unwrapped.model.site_pos[site][:2], goal)


def test_maze_solved_in_a_step_has_its_next_goal_from_then_on():
    def near(env):
        base = env.unwrapped
        base.goal = base.data.qpos[:2] + np.array([0.46, 0.0])
        return base._get_obs(np.concatenate([base.data.qpos, base.data.qvel]))

    kwargs = {
        "continuing_task": True,
        "reset_target": True,
        "maze_map": [[1] * 5, [1, 0, 0, 0, 1], [1] * 5],
    }
    recording = Recording("PointMaze_UMaze-v3", steps=20, goal=near, **kwargs)
    goals = np.array([row["obs"]["desired_goal"] for row in recording.episodes[0]])
    (step,) = np.flatnonzero((np.diff(goals, axis=0) != 0).any(1))  # it shows the goal reached
    snapshots = from_minari(recording.dataset(), every_steps=1)
    env = recording.check(snapshots, list(range(20)))
    env.reset(options={"snapshot": step})
    assert np.array_equal(env.unwrapped.goal, goals[step + 1])
    obs, *_ = env.step(recording.episodes[0][step + 1]["action"])
    assert np.array_equal(obs["desired_goal"], goals[step + 1])


def test_flattened_maze_observations_and_path_names_are_read():
    recording = Recording("PointMaze_UMaze-v3")
    space = gymnasium.make("PointMaze_UMaze-v3").observation_space
    dataset = recording.dataset(
        change=lambda obs: flatten(space, obs),
        nest=lambda infos: {
            "simulator": {"qpos": infos["qpos"]},
            "v": {"x": {"qvel": infos["qvel"]}},
        },
        observation_space=gymnasium.spaces.flatten_space(space),
    )
    recording.check(from_minari(dataset, every_steps=5), [0, 5, 10])


def test_env_with_a_task_state_of_its_own_is_refused():
    dataset = Recording("Hopper-v5").dataset(env=None, **spaces_of("Hopper-v5"))
    with pytest.raises(
        ConfigError, match="Tasks cannot be set to a dataset's states: its task has"
    ):
        from_minari(dataset, Tasks())


@pytest.mark.parametrize(
    ("infos", "received"), [(slice(2, None), 11), (slice(5), 5), (slice(1), 1)]
)
def test_infos_of_fewer_rows_than_steps_are_refused(infos, received):
    dataset = Recording("Hopper-v5").dataset(infos=infos)
    expected = "episode 0 is incomplete: expected 13 or 12 rows of infos qpos for its 12 rewards, "
    with pytest.raises(ConfigError, match=f"{expected}received {received}"):
        from_minari(dataset)


def test_observations_that_are_not_the_envs_own_are_refused():
    dataset = Recording("Hopper-v5").dataset(change=lambda obs: (obs - 0.5) / 2)
    with pytest.raises(ConfigError, match=r"at step 0, entry 0 of the recorded .* were normalised"):
        from_minari(dataset)


def test_observations_in_single_precision_are_read():
    recording = Recording("Hopper-v5")
    box = gymnasium.spaces.Box(-np.inf, np.inf, (11,), np.float32)
    for infos, first in ((slice(None), [0]), (slice(1, None), [])):
        dataset = recording.dataset(
            f"tiny/single{len(first)}-v0",
            infos=infos,
            change=lambda obs: obs.astype(np.float32),
            nest=lambda infos: {key: value.astype(np.float32) for key, value in infos.items()},
            observation_space=box,
        )
        snapshots = from_minari(dataset, every_steps=4)
        assert snapshots.steps.tolist() == [*first, 4, 8]
        recorded = [recording.episodes[0][step]["obs"] for step in snapshots.steps]
        assert np.allclose(snapshots.observations, recorded, atol=1e-5)


def test_dataset_of_another_env_is_refused():
    dataset = Recording("Hopper-v5").dataset()
    with pytest.raises(ConfigError, match="recorded in Hopper-v5, and the env is Hopper-v4"):
        from_minari(dataset, gymnasium.make("Hopper-v4"))
    with pytest.raises(ConfigError, match="of another env: expected actions of"):
        from_minari(dataset, gymnasium.make("Walker2d-v5"))


def test_dataset_of_an_unnamed_env_is_refused_by_its_sizes():
    env = gymnasium.make("Hopper-v5")
    dataset = Recording("Hopper-v5").dataset(env=None, **spaces_of("Hopper-v5"))
    with pytest.raises(ConfigError, match=r"names no env, which cannot be made .* pass it as env="):
        from_minari(dataset)
    other = gymnasium.make("Hopper-v5", exclude_current_positions_from_observation=False)
    with pytest.raises(ConfigError, match="expected observation of 12 numbers, received 11"):
        from_minari(dataset, other)
    assert len(from_minari(dataset, env, every_steps=4)) == 3


def test_env_with_other_dynamics_or_settings_is_said(caplog):
    recording = Recording("Walker2d-v5")
    from_minari(recording.dataset(), gymnasium.make("Walker2d-v5"))
    assert not caplog.records
    unnamed = recording.dataset("tiny/unnamed-v0", env=None, **spaces_of("Walker2d-v5"))
    from_minari(unnamed, gymnasium.make("Walker2d-v5", frame_skip=2))
    assert "its actions lead to other states than the recorded ones" in caplog.text
    caplog.clear()
    from_minari("tiny/mine-v0", gymnasium.make("Walker2d-v5", healthy_reward=3.0))
    assert "made with {'healthy_reward': 3.0}" in caplog.text


def test_env_that_is_not_registered_here_is_asked_for():
    recording = Recording("Hopper-v5")
    recording.spec = gymnasium.envs.registration.EnvSpec("Elsewhere-v0", "nowhere_at_all:Env")
    dataset = recording.dataset(env=None, **spaces_of("Hopper-v5"))
    dataset._env_spec = recording.spec
    with pytest.raises(ConfigError, match=r"names the env Elsewhere-v0, which cannot be made here"):
        from_minari(dataset)


def test_something_else_than_a_dataset_is_refused():
    with pytest.raises(ConfigError, match="Expected a Minari dataset or its id, received 3"):
        from_minari(3)
