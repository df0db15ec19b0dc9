"""Both families behind one interface: endings, seeds, pixels, and exact return to mid-episode."""

import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest
import tiny_envs  # noqa: F401  (registers PixelReach-v0)
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, flatdim, flatten

from rlearly import envs
from rlearly.core.errors import ConfigError, RunFailed
from rlearly.core.spaces import clip_actions
from rlearly.envs import dm_control, gymnasium_envs
from rlearly.envs.state.resumable import ResumableEnv
from rlearly.envs.wrappers import ActionRepeat, ScaledActions, SuccessTracker, flat
from rlearly.training.evaluation import checked_step


def make(name, pixels=None, videos=False, **changes):
    from dataclasses import replace

    config = replace(envs.config_for(name), **changes)
    return envs.make(config, pixels=pixels, model_seed=0, videos=videos)


class Scripted(gymnasium.Env):
    """Rewards 1, 2, 3, ...; ends as told."""

    observation_space = Box(-np.inf, np.inf, (1,), np.float32)

    def __init__(self, length, ending, action_space=None):
        self.length, self.ending = length, ending
        self.action_space = action_space or Box(-1, 1, (2,), np.float32)
        self.received = []

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        self.received.append(action)
        over = self.t == self.length
        flags = (over and self.ending == "terminated", over and self.ending == "truncated")
        return np.full(1, self.t, np.float32), float(self.t), *flags, {}


@pytest.mark.parametrize("ending", ["terminated", "truncated"])
def test_action_repeat_adds_rewards_and_stops_at_the_end(ending):
    env = ActionRepeat(Scripted(5, ending), 2)
    env.reset()
    steps = [env.step(np.zeros(2)) for _ in range(3)]
    assert [s[1] for s in steps] == [3.0, 7.0, 5.0]
    assert [s[2] for s in steps] == [False, False, ending == "terminated"]
    assert [s[3] for s in steps] == [False, False, ending == "truncated"]


def test_unit_actions_span_the_bounds_and_leave_unbounded_dimensions_alone():
    low, high = np.array([[-3.0, 0.0], [-1e10, -1.0]]), np.array([[1.0, 5.0], [1e10, 1.0]])
    space = Box(low, high, dtype=np.float64)
    inner = Scripted(100, "terminated", space)
    env = ScaledActions(inner)
    assert env.action_space.shape == (4,)
    env.reset()
    for unit in (-1.0, 0.0, 1.0, 7.0):
        env.step(np.full(4, unit, np.float32))
    expected = [
        [[-3, 0], [-1, -1]],
        [[-1, 2.5], [0, 0]],
        [[1, 5], [1, 1]],
        [[1, 5], [1, 1]],
    ]
    np.testing.assert_allclose(inner.received, expected)


def test_step_refuses_an_action_that_is_no_number_and_no_other():
    env = Scripted(100, "terminated")
    env.reset()
    for action in ([0.5, -np.inf], [np.inf, np.inf], [1e18, -1e18], [0.0, 0.0]):
        checked_step(env, np.array(action, np.float32), "a test")
        within = clip_actions(np.array(action, np.float32))
        assert within.dtype == np.float32 and within.tolist() == np.clip(action, -1, 1).tolist()
    for action in ([np.nan, 0.0], [np.inf, np.nan], [-np.inf, np.nan]):
        for given in (np.array(action, np.float32), clip_actions(np.array(action, np.float32))):
            with pytest.raises(RunFailed, match="the action is nan in a test"):
                checked_step(env, given, "a test")


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64])
def test_flat_state_is_gymnasiums_flattening_in_an_array_of_its_own(dtype):
    draw = np.random.default_rng(0)
    box = Box(-9, 9, (2, 3), dtype)
    nested = Dict({"b": box, "a": Dict({"c": Box(-1, 1, (1,)), "d": Discrete(3)})})
    for space in (box, nested, MultiBinary(4)):
        space.seed(int(draw.integers(9)))
        seen = space.sample()
        if isinstance(seen, dict):
            seen["a"]["c"] = np.array([1 / 3])  # an env may give other numbers than it declares
        expected = np.asarray(flatten(space, seen), dtype=np.float32)
        made = flat(space, seen)
        assert made.dtype == np.float32 and made.shape == (flatdim(space),)
        np.testing.assert_array_equal(made, expected)
        assert space is not box or not np.shares_memory(made, seen)


@pytest.mark.parametrize("name", ["CartPole-v1", "Taxi-v4", "FrozenLake-v1", "Blackjack-v1"])
def test_envs_with_discrete_actions_take_numbers_from_0(name):
    env = make(name, pixels=False)
    obs, _ = env.reset(seed=1)
    assert env.observation_space.contains(obs) and obs.dtype == np.float32
    assert env.action_space.start == 0
    for action in range(env.action_space.n):
        env.reset(seed=1)
        env.step(np.int64(action))


@pytest.mark.parametrize("name", sorted(dm_control.suite_tasks()))
def test_every_suite_task_resets_and_steps_from_states(name):
    env = make(name, pixels=False)
    obs, _ = env.reset(seed=1)
    assert env.observation_space.contains(obs) and obs.dtype == np.float32
    obs, reward, terminated, truncated, _ = env.step(np.zeros(env.action_space.shape))
    assert env.observation_space.contains(obs) and np.isfinite(reward)
    assert not (terminated or truncated)
    env.close()


@pytest.mark.parametrize(
    "name",
    [
        "HalfCheetah-v5",
        "Ant-v5",
        "Humanoid-v5",
        "Reacher-v5",
        "Pendulum-v1",
        "MountainCarContinuous-v0",
    ],
)
def test_gymnasium_ids_work_from_states(name):
    env = make(name)
    obs, _ = env.reset(seed=1)
    assert env.observation_space.contains(obs) and obs.dtype == np.float32
    env.step(env.action_space.high)
    env.close()


def test_time_limit_truncates_after_exactly_1000_simulator_steps():
    env = make("cartpole_balance", pixels=False)
    env.reset(seed=0)
    endings = [env.step(np.zeros(1))[2:4] for _ in range(500)]
    assert endings[-1] == (False, True) and set(endings[:-1]) == {(False, False)}
    env = make("HalfCheetah-v5", action_repeat=2)
    env.reset(seed=0)
    endings = [env.step(np.zeros(6))[2:4] for _ in range(500)]
    assert endings[-1] == (False, True) and set(endings[:-1]) == {(False, False)}


def test_lqr_terminates_where_its_discount_is_zero():
    env = make("lqr_lqr_2_1", pixels=False)
    env.reset(seed=0)
    for _ in range(500):
        _, _, terminated, truncated, _ = env.step(np.zeros(1))
        if terminated or truncated:
            break
    assert terminated != truncated
    base = env.unwrapped
    state = np.zeros_like(base._control.physics.get_state())
    env.reset(seed=0)
    with base._control.physics.reset_context():
        base._control.physics.set_state(state)
    assert env.step(np.zeros(1))[2:4] == (True, False)


def test_seeded_resets_repeat_and_differ():
    for name in ("cheetah_run", "HalfCheetah-v5", "reach_duplo"):
        env, other = make(name, pixels=False), make(name, pixels=False)
        first = env.reset(seed=5)[0]
        for _ in range(3):
            env.step(env.action_space.low)
        env.reset(seed=6)
        np.testing.assert_array_equal(env.reset(seed=5)[0], first)
        np.testing.assert_array_equal(other.reset(seed=5)[0], first)
        assert not np.array_equal(env.reset(seed=7)[0], first)


@pytest.mark.parametrize("name", ["dog_run", "cheetah_run", "quadruped_escape"])
def test_pictures_of_any_size_equal_those_from_the_default_buffer(name):
    from dm_control import suite

    env = make(name, pixels=True)
    domain, task = dm_control.suite_tasks()[name]
    theirs = suite.load(domain, task, task_kwargs={"random": 0})
    assert theirs.physics.model.vis.global_.offwidth >= 640
    theirs.task._random = np.random.RandomState(5)
    theirs.reset()
    obs, _ = env.reset(seed=5)
    camera = 2 if domain == "quadruped" else 0
    model = env.unwrapped._control.physics.model

    def buffer():
        return model.vis.global_.offwidth, model.vis.global_.offheight

    np.testing.assert_array_equal(
        obs[-3:], theirs.physics.render(84, 84, camera).transpose(2, 0, 1)
    )
    assert buffer() == (84, 84)
    for size, side in ((256, 256), (84, 256), (480, 480), (256, 480)):
        picture = envs.frame_renderer(env)(size)
        np.testing.assert_array_equal(picture, theirs.physics.render(size, size, camera))
        assert buffer() == (side, side), "as large as the largest so far"
    env.close()


def test_gymnasium_pictures_equal_those_from_the_default_buffer_which_stays_the_models():
    env = make("HalfCheetah-v5", pixels=True)
    obs, _ = env.reset(seed=0)
    base = env.unwrapped
    assert (base.model.vis.global_.offwidth, base.model.vis.quality.offsamples) == (640, 4)
    theirs = mujoco.Renderer(base.model, 84, 84)
    theirs.update_scene(base.data, camera=0)
    np.testing.assert_array_equal(obs[-3:], theirs.render().transpose(2, 0, 1))
    theirs.close()
    env.close()


@pytest.mark.parametrize("name", ["cheetah_run", "reach_duplo", "HalfCheetah-v5"])
def test_fast_drawing_is_without_shadows_reflections_and_smooth_edges_whatever_the_size(name):
    exact, fast = make(name, pixels=True), make(name, pixels=True, render="fast")
    seen, plain = (env.reset(seed=1)[0][-3:].astype(int) for env in (exact, fast))
    assert 0.1 < np.abs(seen - plain).mean() < 30, "another picture of the same world"
    for env, kind in ((exact, "exact"), (fast, "fast")):
        picture = envs.frame_renderer(env)
        small, _, again = picture(84).copy(), picture(128), picture(84)
        np.testing.assert_array_equal(small, again)
        assert np.array_equal(small.transpose(2, 0, 1), seen) == (kind == "exact")
        env.close()


def test_fast_drawing_asks_for_none_of_the_three():
    env = make("cheetah_run", pixels=True, render="fast")
    env.reset(seed=0)
    physics = env.unwrapped._control.physics
    context = physics.contexts.mujoco.ptr
    assert (context.offSamples, context.shadowSize) == (0, 0)
    scene = env.unwrapped._cached_camera.cameras[84].scene
    seen = []
    render = mujoco.mjr_render

    def note(rectangle, scene, context):
        flags = (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION)
        seen.append([bool(scene.flags[flag]) for flag in flags])
        return render(rectangle, scene, context)

    mujoco.mjr_render = note
    try:
        env.step(np.zeros(6, np.float32))
    finally:
        mujoco.mjr_render = render
    assert seen == [[False, False]] and scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW]
    env.close()


@pytest.mark.parametrize(
    ("name", "pixels", "what"),
    [
        ("cheetah_run", False, "observed as states here"),
        ("HalfCheetah-v5", None, "observed as states here"),
        ("PixelReach-v0", None, "rendered by itself"),
        ("Pendulum-v1", True, "rendered by itself"),
    ],
)
def test_fast_drawing_is_refused_where_mujoco_draws_no_observation(name, pixels, what):
    with pytest.raises(ConfigError, match=f"env.render=fast: .* env={name} is {what}; leave it"):
        make(name, pixels, render="fast", videos=True)


@pytest.mark.parametrize(("name", "camera"), [("cheetah_run", 0), ("quadruped_walk", 2)])
def test_suite_pixels_equal_dm_controls_own_wrapper(name, camera):
    from dm_control import suite
    from dm_control.suite.wrappers import action_scale, pixels

    env = make(name, pixels=True)
    domain, task = dm_control.suite_tasks()[name]
    raw = suite.load(domain, task, task_kwargs={"random": 3})
    theirs = pixels.Wrapper(
        action_scale.Wrapper(raw, minimum=-1.0, maximum=1.0),
        render_kwargs={"height": 84, "width": 84, "camera_id": camera},
    )
    raw.task._random = np.random.RandomState(11)
    first = theirs.reset().observation["pixels"].copy()
    obs, _ = env.reset(seed=11)
    assert obs.shape == (9, 84, 84) and obs.dtype == np.uint8
    for i in range(3):
        np.testing.assert_array_equal(obs[3 * i : 3 * i + 3], first.transpose(2, 0, 1))
    generator = np.random.default_rng(0)
    images = [first, first, first]
    for _ in range(4):
        action = generator.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        obs, reward, *_ = env.step(action)
        steps = [theirs.step(action.astype(np.float64)) for _ in range(2)]
        assert reward == pytest.approx(sum(s.reward for s in steps), abs=1e-12)
        images = [*images[1:], steps[-1].observation["pixels"].copy()]
        np.testing.assert_array_equal(obs, np.concatenate([i.transpose(2, 0, 1) for i in images]))
    env.close()


@pytest.mark.parametrize("name", ["reach_duplo", "stack_2_bricks"])
def test_manipulation_pixels_are_the_vision_variants_and_all_that_is_observed(name):
    from dm_control import manipulation
    from dm_control.suite.wrappers import action_scale

    raw = manipulation.load(f"{name}_vision", seed=0)
    theirs = action_scale.Wrapper(raw, minimum=-1.0, maximum=1.0)
    raw._random_state = np.random.RandomState(4)
    env = make(name, pixels=True)
    assert env.observation_space == Box(0, 255, (9, 84, 84), np.uint8)
    assert "jaco_arm/joints_pos" in raw.observation_spec(), "theirs has more than the image"
    obs, _ = env.reset(seed=4)
    images = [theirs.reset().observation["front_close"][0].copy()] * 3
    np.testing.assert_array_equal(obs, np.concatenate([i.transpose(2, 0, 1) for i in images]))
    action = np.random.default_rng(0).uniform(-1, 1, env.action_space.shape).astype(np.float32)
    obs, reward, *_ = env.step(action)
    steps = [theirs.step(action.astype(np.float64)) for _ in range(2)]
    assert reward == pytest.approx(sum(s.reward for s in steps), abs=1e-12)
    images = [*images[1:], steps[-1].observation["front_close"][0].copy()]
    np.testing.assert_array_equal(obs, np.concatenate([i.transpose(2, 0, 1) for i in images]))
    env.close()


def test_seed_alone_decides_what_a_manipulation_task_shows():
    env, other = (make("reach_duplo", pixels=True, render="fast") for _ in range(2))
    beyond = other.reset(seed=5)[0]
    other.step(other.action_space.high)
    first = other.reset(seed=4)[0]
    np.testing.assert_array_equal(first, env.reset(seed=4)[0])
    assert (first != beyond).any()
    env.close()
    other.close()


def reach(task, physics):
    site = physics.bind(task._hand.tool_center_point)
    task._prop.set_pose(physics, position=site.xpos)


def lift(task, physics):
    task._prop.set_pose(physics, position=[0.0, 0.0, 1.0])


def place(task, physics):
    offset = task._prop.get_pose(physics)[0] - physics.bind(task._prop_frame).xpos
    task._prop.set_pose(physics, position=physics.bind(task._pedestal.target_site).xpos + offset)
    away = [0.3, 0.3, 0.5]
    hand = task._hand.tool_center_point
    task._arm.set_site_to_xpos(physics, np.random.RandomState(0), hand, away)


def stack(task, physics):
    bottom, top = (task._bricks[i] for i in task._desired_order)
    top.set_pose(physics, quaternion=bottom.get_pose(physics)[1])
    lift = physics.bind(bottom.studs[0, 0]).xpos - physics.bind(top.holes[0, 0]).xpos
    top.set_pose(physics, position=top.get_pose(physics)[0] + lift)


@pytest.mark.parametrize(
    ("name", "bring_about"),
    [
        ("reach_duplo", reach),
        ("lift_brick", lift),
        ("place_brick", place),
        ("stack_2_bricks", stack),
    ],
)
def test_manipulation_succeeds_where_its_reward_is_1_which_is_at_the_goal_alone(name, bring_about):
    env = make(name, pixels=False, action_repeat=1)
    env.reset(seed=0)
    control = env.unwrapped._control
    still = np.zeros(env.action_space.shape)
    assert env.step(still)[4]["success"] is False
    assert control.task.get_reward(control.physics) < 1
    bring_about(control.task, control.physics)
    control.physics.forward()
    assert control.task.get_reward(control.physics) == 1.0
    told = []
    for reward in (np.nextafter(1, 0), 1.0, 0.2):
        control.task.get_reward = lambda physics, reward=reward: reward
        told.append(env.step(still)[4]["success"])
    assert told == [False, True, True]
    env.reset(seed=0)
    assert env.step(still)[4]["success"] is False


def test_manipulation_episode_has_dm_controls_250_frames():
    from dm_control import manipulation

    theirs = manipulation.load("reach_site_features", seed=0)
    theirs.reset()
    env = make("reach_site", pixels=False, action_repeat=1)
    for _ in range(2):
        env.reset(seed=0)
        still = np.zeros(env.action_space.shape)
        endings = [env.step(still)[2:4] for _ in range(250)]
        assert endings[-1] == (False, True) and set(endings[:-1]) == {(False, False)}
    assert [theirs.step(still).last() for _ in range(250)] == [False] * 249 + [True]


@pytest.mark.parametrize("name", ["HalfCheetah-v5", "InvertedPendulum-v5", "Pendulum-v1"])
def test_gymnasium_pixels_show_the_state(name):
    env = make(name, pixels=True)
    obs, _ = env.reset(seed=0)
    assert obs.shape == (9, 84, 84) and obs.dtype == np.uint8 and obs.std() > 1
    for _ in range(3):
        after, *_ = env.step(env.action_space.high)
    assert (after[-3:] != obs[-3:]).any()
    assert envs.frame_renderer(env)(128).shape == (128, 128, 3)
    env.close()


def test_image_observations_are_the_pixels():
    env = make("PixelReach-v0", image_size=24)
    obs, info = env.reset(seed=1)
    assert obs.shape == (9, 24, 24)
    goal_column = int(obs[-3].any(0).argmax())
    assert goal_column == (18 if info["goal"] > 0 else 3)


@pytest.mark.parametrize(
    ("name", "pixels"),
    [("cheetah_run", True), ("reach_duplo", False), ("lqr_lqr_2_1", False), ("Hopper-v5", False)],
)
def test_loaded_episode_continues_to_the_bit(name, pixels):
    generator = np.random.default_rng(1)
    env = ResumableEnv(make(name, pixels=pixels), np.random.default_rng(0))
    fresh = ResumableEnv(make(name, pixels=pixels), np.random.default_rng(99))
    env.reset()
    shape = env.action_space.shape
    for _ in range(7):
        env.step(generator.uniform(-0.3, 0.3, shape).astype(np.float32))
    fresh.load_state_dict(env.state_dict())
    np.testing.assert_array_equal(fresh.obs, env.obs)
    for _ in range(7):
        action = generator.uniform(-0.3, 0.3, shape).astype(np.float32)
        one, two = env.step(action), fresh.step(action)
        np.testing.assert_array_equal(one[0], two[0])
        assert one[1:4] == two[1:4]
    np.testing.assert_array_equal(env.reset()[0], fresh.reset()[0])
    env.close()
    fresh.close()


def test_env_that_cannot_return_is_reported_and_begins_anew(caplog):
    class Forgetful(Scripted):
        """Its observations go on counting over episodes."""

        def __init__(self):
            super().__init__(100, "truncated")
            self.total = 0

        def step(self, action):
            self.total += 1
            _, *rest = super().step(action)
            return np.full(1, self.total, np.float32), *rest

    env, fresh = (ResumableEnv(Forgetful(), np.random.default_rng(0)) for _ in range(2))
    for _ in range(2):
        env.reset()
        env.step(np.zeros(2))
    fresh.load_state_dict(env.state_dict())
    assert fresh.obs is None and "did not return to its saved state" in caplog.text


def test_constructor_without_render_mode_is_fine():
    class Mute(Scripted):
        def __init__(self):
            super().__init__(5, "truncated")

    gymnasium.register("Mute-v0", Mute)
    assert make("Mute-v0", pixels=False).reset()[0].shape == (1,)


@pytest.mark.parametrize(
    ("name", "near"),
    [("dog_rnu", "dog_run"), ("HalfCheeta-v5", "HalfCheetah-v5"), ("walkerwalk", "walker_walk")],
)
def test_unknown_env_names_the_nearest(name, near):
    with pytest.raises(ConfigError, match=f"There is no env '{name}'; did you mean .*{near}"):
        envs.config_for(name)


@pytest.mark.parametrize("name", ["MyOwn-v3", "__main__:MyOwn-v3"])
def test_id_that_another_process_registered_is_asked_for_with_its_module(name):
    with pytest.raises(ConfigError, match=r"name it too: env=MODULE:MyOwn-v3 \(an id"):
        envs.config_for(name)


SCRIPT = """
import gymnasium, numpy as np, rlearly
from rlearly import evaluate, teacher, train
from tiny_envs import StateReach

class Mine(StateReach):
    pass

gymnasium.register("Mine-v0", ENTRY)
policy = lambda obs: np.ones(1, np.float32)
snapshots = rlearly.record(gymnasium.make("Mine-v0"), policy, episodes=3, every_steps=2)
snapshots.save("mine.h5")
env = rlearly.SnapshotRL(gymnasium.make("Mine-v0"), rlearly.Snapshots.load("mine.h5"))
assert env.reset(options={"snapshot": 2})[1]["snapshot"] == 2
wrap = lambda env: rlearly.SnapshotRL(env, "mine.h5")
several = gymnasium.make_vec("Mine-v0", 2, vectorization_mode="async", wrappers=[wrap])
assert "snapshot" in several.reset(seed=0)[1]
several.close()
words = ["agent=td3", "train_frames=60", "agent.learning_starts_steps=40", "eval_every_frames=30"]
words += ["agent.hidden_dim=8", "eval_episodes=1", "video_size=0", "run_dir=run", "device=cpu"]
words += ["snapshot=mine.h5", "snapshot_phase.selection=uniform"]
assert train.main(["env=Mine-v0", *words]) == 0
assert train.main(["resume=run", "train_frames=90"]) == 0
assert evaluate.main(["run=run", "episodes=1", "video_size=0"]) == 0
assert teacher.main(["run=run", "out=learnt.h5", "episodes=1"]) == 0
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "entry"),
    [("script", "'__main__:Mine'"), ("script", "lambda: Mine()"), ("typed in", "Mine")],
)
def test_id_registered_in_main_works_in_its_process(tmp_path, how, entry):
    code = SCRIPT.replace("ENTRY", entry)
    (tmp_path / "script.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "script.py" if how == "script" else "-"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        input=code,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr


def test_an_unknown_env_offers_all_ids_that_can_be_made():
    offered = gymnasium_envs.names()
    assert {"Pendulum-v1", "LunarLanderContinuous-v3", "CartPole-v1", "Taxi-v4"} <= set(offered)
    assert not any(word in name for name in offered for word in ("GymV2", "tabular/"))


def test_known_noise_is_silent_and_other_warnings_are_not(tmp_path, caplog):
    script = (
        "import mujoco, gymnasium\n"
        "from rlearly import envs\n"
        "from rlearly.envs import gymnasium_envs\n"
        "from importlib.util import find_spec\n"
        "names = [('HalfCheetah-v5', False), ('Pendulum-v1', True)]\n"
        "names += [('adroit/pen', True)] if find_spec('gymnasium_robotics') else []\n"
        "for name, videos in names:\n"
        "    env = envs.make(envs.config_for(name), pixels=None, model_seed=0, videos=videos)\n"
        "    env.reset(seed=0)\n"
        "    if videos: envs.frame_renderer(env)(32)\n"
        "    env.close()\n"
        "assert mujoco.get_mju_user_warning() is None\n"
        "print('heard')\n"
    )
    changes = {"PYTHONPATH": str(Path(__file__).parents[2])}
    environment = {
        k: v for k, v in os.environ.items() if k not in ("XDG_RUNTIME_DIR", "DISPLAY")
    } | changes
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.stdout == "heard\n" and done.stderr == ""
    assert not list(tmp_path.iterdir()), "MuJoCo left its log"
    with gymnasium_envs.without_known_noise():
        heed = mujoco.get_mju_user_warning()
        heed("compiler attribute 'settotalmass' is deprecated")
        heed("Nan, Inf or huge value in QACC")
    assert caplog.messages == ["MuJoCo: Nan, Inf or huge value in QACC"]


def test_family_of_another_package_names_it(monkeypatch):
    monkeypatch.delitem(gymnasium.registry, "ALE/Pong-v5", raising=False)
    for name, package in (("ALE/Pong-v5", "ale_py"), ("MiniGrid-Nothing-v0", "minigrid")):
        with pytest.raises(ConfigError, match=rf"a package, so name that too: env={package}:"):
            envs.config_for(name)


def test_missing_module_and_missing_variant_are_one_sentence():
    with pytest.raises(ConfigError, match=r"env=nowhere:X-v0: the module nowhere cannot be"):
        make("nowhere:X-v0")
    with pytest.raises(ConfigError, match=r"no vision variant of this task; add env.pixels=false"):
        make("stack_3_bricks_random_order", pixels=True)
    with pytest.raises(ConfigError, match=r"env.camera: expected a number from -1"):
        make("cheetah_run", pixels=True, camera=17)


class Reaching(gymnasium.Env):
    """Each action says whether its frame reaches the goal."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, False, False, {"success": float(action[0] > 0)}


@pytest.mark.parametrize(
    ("over_frames", "expected"),
    [(0, [False, True, True, True]), (1, [False, False, False, True]), (2, [False] * 4)],
)
def test_an_episode_has_succeeded_once_enough_frames_reached_the_goal(over_frames, expected):
    env = SuccessTracker(Reaching(), over_frames)
    for _ in range(2):  # a reset begins to count anew
        env.reset()
        told = [env.step(np.array([a]))[4]["success"] for a in (-1.0, 1.0, -1.0, 1.0)]
        assert told == expected


class Undrawn(gymnasium.Env):
    """Observes pixels and a vector, and takes no render_mode."""

    metadata = {"render_modes": []}  # noqa: RUF012
    action_space = Box(-1, 1, (1,), np.float32)
    observation_space = Dict(pixels=Box(0, 255, (8, 8, 3), np.uint8), vector=Box(-1, 1, (2,)))

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


def test_an_env_that_draws_nothing_but_its_observation_needs_no_render_mode():
    gymnasium.register("Undrawn-v0", Undrawn)
    try:
        env = make("Undrawn-v0", videos=True)
        obs, _ = env.reset(seed=0)
        assert obs["pixels"].shape == (9, 84, 84) and obs["vector"].dtype == np.float32
        assert envs.frame_renderer(env)(32).shape == (32, 32, 3)
    finally:
        del gymnasium.registry["Undrawn-v0"]


@pytest.mark.parametrize("videos", [False, True])
def test_a_camera_that_is_none_is_refused_before_anything_is_learnt(videos):
    with pytest.raises(ConfigError, match=r"env.camera: expected a number from -1 .* received 99"):
        make("HalfCheetah-v5", pixels=False, videos=videos, camera=99)
