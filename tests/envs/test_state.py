"""Exact save and restore: one contract for every family and wrapper, to the bit."""

import copy
import functools
import importlib
import itertools
import random
import struct
from collections import deque
from dataclasses import replace
from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.mujoco import MujocoEnv
from tiny_envs import PixelReach

from rlearly import envs
from rlearly.core.errors import ConfigError
from rlearly.envs import dm_control
from rlearly.envs.state.action_replay import ActionRecorder, InexactState, with_action_recorder
from rlearly.envs.state.env_state import save_unchecked, unproved
from rlearly.envs.state.resumable import ResumableEnv
from rlearly.envs.state.save_restore import EnvState, method_of, restore, save, self_test
from rlearly.envs.state.serialization import DamagedState, to_bytes
from rlearly.envs.wrappers import ActionRepeat, ScaledActions
from rlearly.training import checkpoint

PROBES = 100
"""Steps that must be the same again after restoring."""


def suite(name):
    return dm_control.DMControlEnv(envs.config_for(name), pixels=False, model_seed=0)


def ours(name, pixels=False, **changes):
    config = replace(envs.config_for(name), **changes)
    return envs.make(config, pixels=pixels, model_seed=0)


def registered(name, module=None, **kwargs):
    def make():
        if module:
            gymnasium.register_envs(importlib.import_module(module))
        return gymnasium.make(name, **kwargs)

    return make


def record(env, actions):
    """Everything the env says, and what its generators draw at the end."""
    seen = []
    for action in actions:
        obs, reward, terminated, truncated, info = env.step(action)
        if "episode" in info:
            info = info | {"episode": {k: v for k, v in info["episode"].items() if k != "t"}}
        seen.append(copy.deepcopy([obs, reward, terminated, truncated, info]))
        if terminated or truncated:
            seen.append(copy.deepcopy(env.reset()[0]))
    seen.append(env.unwrapped.np_random.random(3))
    task = getattr(getattr(env.unwrapped, "_control", None), "_task", None)
    if hasattr(task, "_random"):
        seen.append(task._random.random_sample(3))
    return seen


def sight(env):
    """What the env would observe now, without a step: it shows what lags behind the simulator."""
    base = env.unwrapped
    if method_of(env) == "control":
        inner = base._control if hasattr(base, "_control") else base._env
        return dict(inner.task.get_observation(inner.physics))
    return base._get_obs() if isinstance(base, MujocoEnv) else None


def assert_same(one, two, path=""):
    assert type(one) is type(two), f"{path}: {one!r} and {two!r}"
    if isinstance(one, dict):
        assert list(one) == list(two), path
        for key in one:
            assert_same(one[key], two[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), path
        for i, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_same(a, b, f"{path}[{i}]")
    elif isinstance(one, np.ndarray | np.generic):
        assert one.dtype == two.dtype and one.shape == two.shape, path
        assert one.tobytes() == two.tobytes(), f"{path}: {one} and {two}"
    elif isinstance(one, float):
        assert struct.pack("<d", one) == struct.pack("<d", two), f"{path}: {one} and {two}"
    else:
        assert one == two, path


def check_contract(make, method, points=(0, 13), after=PROBES):
    """Saved at each of `points` (steps after the point before), in the same env and a fresh one."""
    env, disturbed, fresh = make(), make(), make()
    if unproved(env):
        self_test(make(), make_fresh=make)
    forced = method if method_of(env) == "attributes" and method == "replay" else None
    assert method_of(env) == method or forced
    if method == "replay":
        env, disturbed, fresh = (
            with_action_recorder(env),
            with_action_recorder(disturbed),
            with_action_recorder(fresh),
        )
    space = copy.deepcopy(env.action_space)
    space.seed(3)

    def sample():
        action = space.sample()
        return np.clip(action, -1, 1) if "lqr" in str(getattr(env, "task_name", "")) else action

    disturbed.reset(seed=77)
    env.reset(seed=2)
    env.reset()  # not the first episode: it may have left something behind
    for steps in points:
        for _ in range(steps):
            if any(env.step(sample())[2:4]):
                env.reset()
        data = save(env, forced).to_bytes()
        seen = copy.deepcopy(sight(env))
        actions = [sample() for _ in range(after)]
        expected = record(env, actions)
        for _ in range(3):
            if any(disturbed.step(sample())[2:4]):
                disturbed.reset()
        for place in (fresh, disturbed, env):
            restore(place, EnvState.from_bytes(data))
            assert save(place, forced).to_bytes() == data
            assert_same(sight(place), seen)
            assert_same(record(place, actions), expected)
    for one in (env, disturbed, fresh):
        one.close()


FAMILIES = {
    **{
        name: (registered(name), "mujoco")
        for name in ("HalfCheetah-v5", "Ant-v5", "Humanoid-v5", "Hopper-v5", "Pusher-v5")
    },
    **{
        name: (partial(suite, name), "control")
        for name in (
            "cheetah_run",
            "humanoid_run",
            "point_mass_hard",
            "finger_turn_hard",
            "fish_swim",
            "manipulator_bring_peg",
            "quadruped_walk",
            "swimmer_swimmer6",
            "lqr_lqr_2_1",
        )
    },
    **{
        name: (registered(name), "attributes")
        for name in (
            "CartPole-v1",
            "Pendulum-v1",
            "Acrobot-v1",
            "MountainCar-v0",
            "FrozenLake-v1",
            "Taxi-v4",
            "Blackjack-v1",
            "CliffWalking-v1",
        )
    },
    "PixelReach-v0": (registered("PixelReach-v0"), "replay"),
    "reach_duplo": (partial(suite, "reach_duplo"), "replay"),
    "BipedalWalker-v3": (registered("BipedalWalker-v3", "Box2D"), "replay"),
    "LunarLander-v3": (registered("LunarLander-v3", "Box2D"), "replay"),
    **{
        name: (registered(name, "minigrid"), "attributes")
        for name in (
            "MiniGrid-DoorKey-8x8-v0",
            "MiniGrid-Dynamic-Obstacles-6x6-v0",
            "BabyAI-GoToObj-v0",
        )
    },
    "Pong": (registered("ALE/Pong-v5", "ale_py", repeat_action_probability=0.0), "ale"),
    "Pong with sticky actions": (registered("ALE/Pong-v5", "ale_py"), "replay"),
    **{
        name: (registered(name, "gymnasium_robotics"), "mujoco")
        for name in (
            "AdroitHandDoor-v1",
            "AdroitHandHammer-v1",
            "AdroitHandPen-v1",
            "AdroitHandRelocate-v1",
            "PointMaze_UMaze-v3",
            "AntMaze_UMaze-v5",
        )
    },
}


@pytest.mark.parametrize("name", FAMILIES)
def test_restored_env_continues_to_the_bit(name):
    check_contract(*FAMILIES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(dm_control.suite_tasks()))
def test_every_suite_task_continues_to_the_bit_through_its_end(name):
    check_contract(partial(suite, name), "control", points=(300,), after=800)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        spec.id
        for spec in gymnasium.registry.values()
        if spec.id.endswith("-v5") and "envs.mujoco" in str(spec.entry_point)
    ],
)
def test_every_gymnasium_mujoco_task_continues_to_the_bit_through_its_end(name):
    check_contract(registered(name), "mujoco", points=(0, 7, 300), after=1100)


# --- wrappers ---


class Chatty(gymnasium.Wrapper):
    """Every kind of data, two names for one list, and a generator of its own."""

    def __init__(self, env):
        super().__init__(env)
        self.generator = np.random.Generator(np.random.PCG64(5))
        self.legacy = np.random.RandomState(5)
        self.python = random.Random(5)
        self.seen = self.also_seen = []
        self.window = deque([(1, 2.5, "x")], maxlen=3)
        self.table = {1: {"a": np.float32(0.1)}, (2, 3): {4, 5}}
        self.count = 0
        self.fortran = np.asfortranarray(np.arange(6.0).reshape(2, 3))

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.count += 1
        self.seen.append(self.count)
        self.window.append((self.count, float(reward), "y"))
        self.table[1]["a"] += np.float32(0.1)
        late = hasattr(self, "late")
        if self.count > 40:
            self.late = True  # an attribute that is not there before
        info = info | {
            "draws": [self.generator.normal(), self.legacy.normal(), self.python.gauss(0, 1)],
            "seen": len(self.also_seen),
            "late": late,
            "window": list(self.window),
            "a": self.table[1]["a"],
            "order": self.fortran.flags.f_contiguous,
        }
        return obs, reward, terminated, truncated, info


class Draws(gymnasium.ActionWrapper):
    """It draws from the env's own generator between the env's steps."""

    def action(self, action):
        return action if self.np_random.random() < 0.7 else self.action_space.low


class Keeper(gymnasium.Wrapper):
    """State that only its own methods can save: a plain counter behind an iterator."""

    def __init__(self, env):
        super().__init__(env)
        self.counter = itertools.count()
        self.calls = 0

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.calls += 1
        return obs, reward, terminated, truncated, info | {"count": next(self.counter)}

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]
        self.counter = itertools.count(self.calls)


class Noisy(PixelReach):
    """Draws from its generator at every step."""

    def step(self, action):
        return super().step(action + self.np_random.normal(0, 0.1, 1))


gymnasium.register("Noisy-v0", Noisy)
W = gymnasium.wrappers
CHAINS = {
    "frame stack": lambda env: W.FrameStackObservation(env, 3),
    "statistics": W.RecordEpisodeStatistics,
    "normalised": lambda env: W.NormalizeReward(W.NormalizeObservation(env)),
    "time": lambda env: W.TimeAwareObservation(env),
    "delay": lambda env: W.DelayObservation(env, 2),
    "every kind of data": Chatty,
    "own methods": Keeper,
    "draws from the env's generator": Draws,
    "repeat and unit actions": lambda env: ActionRepeat(ScaledActions(env), 2),
    "all at once": lambda env: Chatty(W.RecordEpisodeStatistics(Draws(ActionRepeat(env, 2)))),
}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize(
    ("name", "method"), [("Pendulum-v1", "attributes"), ("Noisy-v0", "replay")]
)
def test_wrappers_continue_to_the_bit(chain, name, method):
    make = registered(name, max_episode_steps=30)
    check_contract(lambda: CHAINS[chain](make()), method)


@pytest.mark.parametrize(
    "name",
    [
        "cheetah_run",
        "quadruped_escape",
        "Hopper-v5",
        "reach_duplo",
        pytest.param("stack_2_bricks", marks=pytest.mark.slow),
    ],
)
def test_pixels_continue_to_the_bit(name):
    env, fresh = (
        with_action_recorder(ours(name, pixels=True)),
        with_action_recorder(ours(name, pixels=True)),
    )
    fresh.reset(seed=9)  # its renderer holds another terrain
    actions = [np.full(env.action_space.shape, a, np.float32) for a in (0.1, -0.4, 0.3, 0.2)]
    env.reset(seed=1)
    record(env, actions[:2])
    saved = EnvState.from_bytes(save(env).to_bytes())
    expected, after = record(env, actions), envs.frame_renderer(env)(64)
    restore(fresh, saved)
    assert_same(record(fresh, actions), expected)
    np.testing.assert_array_equal(envs.frame_renderer(fresh)(64), after)
    if name == "quadruped_escape":  # the ground that is drawn is the saved one
        fresh.reset(seed=9)
        assert not np.array_equal(envs.frame_renderer(fresh)(64), after)
    env.close()
    fresh.close()


def test_what_the_caller_holds_does_not_change():
    env = CHAINS["frame stack"](gymnasium.make("Pendulum-v1"))
    obs, _ = env.reset(seed=0)
    saved = save(env)
    before = copy.deepcopy([saved.to_tree(), obs])
    record(env, [np.ones(1, np.float32)] * 5)
    restore(env, saved)
    record(env, [np.ones(1, np.float32)] * 5)
    assert_same([saved.to_tree(), obs], before)


def test_bare_env_takes_a_wrapped_envs_state():
    env = gymnasium.make("Hopper-v5")
    env.reset(seed=0)
    saved = save(env)
    expected = env.step(np.ones(3, np.float32))
    restore(env.unwrapped, saved)
    assert_same(env.unwrapped.step(np.ones(3, np.float32)), expected)


# --- only the simulator ---


# --- bytes ---


def a_state():
    env = Chatty(gymnasium.make("Hopper-v5"))
    env.reset(seed=0)
    env.step(np.zeros(3, np.float32))
    return save(env)


def test_bytes_and_trees_give_the_same_state():
    saved = a_state()
    tree = saved.to_tree()
    assert_same(EnvState.from_bytes(saved.to_bytes()).to_tree(), tree)
    assert_same(EnvState.from_tree(tree).to_tree(), tree)


def test_trees_survive_checkpoints(tmp_path):
    saved = a_state()
    generator = saved.random["_np_random"]["state"]["state"]["state"]
    assert generator > 2**64
    checkpoint.Checkpoints(tmp_path, keep=1).save(0, {"env": saved.to_tree()})
    _, loaded = checkpoint.load_newest(tmp_path)
    again = EnvState.from_tree(loaded["env"])
    assert again.random["_np_random"]["state"]["state"]["state"] == generator
    assert again.to_bytes() == saved.to_bytes()
    fresh = Chatty(gymnasium.make("Hopper-v5"))
    restore(fresh, again)
    assert save(fresh).to_bytes() == saved.to_bytes()


def test_every_truncation_and_bit_flip_is_noticed():
    data = a_state().to_bytes()
    generator = np.random.default_rng(0)
    for length in [*range(0, 80), *generator.integers(80, len(data), 60), len(data) - 1]:
        with pytest.raises(DamagedState):
            EnvState.from_bytes(data[:length])
    for bit in [*range(0, 400, 7), *generator.integers(0, 8 * len(data), 300)]:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(DamagedState):
            EnvState.from_bytes(bytes(flipped))
    with pytest.raises(DamagedState):
        EnvState.from_bytes(data + b"x")


def test_whole_bytes_of_something_else_are_damaged_too():
    with pytest.raises(DamagedState, match="malformed"):
        EnvState.from_bytes(to_bytes({"method": "mujoco"}))


def test_reading_a_state_runs_and_imports_nothing():
    env = gymnasium.make("CartPole-v1")
    env.reset(seed=0)
    saved = save(env)
    for name in ("subprocess:Popen", "gymnasium.envs.box2d.nowhere:Thing", "builtins:eval"):
        planted = {"~": "object", "class": name, "attributes": {}}
        attributes = saved.simulator["attributes"] | {"planted": planted}
        bad = replace(saved, simulator=saved.simulator | {"attributes": attributes})
        with pytest.raises(ConfigError, match=f"not built like .*planted is not a {name}"):
            restore(env, bad)


# --- refusals ---


def test_states_of_other_envs_versions_and_wrappers_are_refused():
    env = gymnasium.make("Hopper-v5")
    env.reset(seed=0)
    saved = save(env)
    with pytest.raises(ConfigError, match=r"is of Hopper-v5, and this env is Walker2d-v5: restore"):
        restore(gymnasium.make("Walker2d-v5"), saved)
    old = replace(saved, versions={"mujoco": "3.3.0"})
    with pytest.raises(ConfigError, match=r"with mujoco 3\.3\.0, and this is mujoco .*pip install"):
        restore(env, old)
    with pytest.raises(ConfigError, match=r"expects the wrappers TimeLimit.* this env has Chatty"):
        restore(Chatty(env), saved)
    with pytest.raises(ConfigError, match=r"by the method 'control', and this env is restored by"):
        restore(env, replace(saved, method="control"))
    with pytest.raises(ConfigError, match=r"method: expected one of mujoco, .*received 'magic'"):
        save(env, method="magic")


def test_another_model_of_the_same_parts_becomes_the_saved_one():
    env = suite("lqr_lqr_6_2")
    env.reset(seed=0)
    other = dm_control.DMControlEnv(envs.config_for("lqr_lqr_6_2"), pixels=False, model_seed=1)
    heavy, light = gymnasium.make("Hopper-v5"), gymnasium.make("Hopper-v5")
    heavy.reset(seed=0)
    heavy.unwrapped.model.opt.gravity[2] = -5.0
    heavy.unwrapped.model.body_mass[1] *= 3.0
    for saved, place in ((env, other), (heavy, light)):
        restore(place, save(saved))
        actions = [np.full(saved.action_space.shape, 0.1, np.float32)] * 10
        assert_same(record(place, actions), record(saved, actions))


def test_a_model_of_other_parts_is_refused():
    hopper = gymnasium.make("Hopper-v5")
    hopper.reset(seed=0)
    other = gymnasium.make("Hopper-v5", xml_file="walker2d_v5.xml")
    with pytest.raises(ConfigError, match=r"not built like the saved one \(different: its numbers"):
        restore(other, save(hopper))


def test_wrapper_with_hidden_state_is_named():
    class Hidden(gymnasium.Wrapper):
        def __init__(self, env):
            super().__init__(env)
            self.secret = itertools.count()

    env = Hidden(gymnasium.make("Pendulum-v1"))
    env.reset(seed=0)
    with pytest.raises(
        InexactState, match=r"wrapper Hidden cannot be saved: secret is a itertools"
    ):
        save(env)


def test_attribute_that_is_no_data_asks_for_a_recording():
    class Odd(type(gymnasium.make("CartPole-v1").unwrapped)):
        def reset(self, *, seed=None, options=None):
            self.odd = itertools.count()
            return super().reset(seed=seed, options=options)

    env = Odd()
    env.reset(seed=0)
    with pytest.raises(
        InexactState, match=r"by its attributes: odd is a itertools.*with_action_recorder\(env"
    ):
        save_unchecked(env)
    with pytest.raises(InexactState, match=r"was never shown to return .*self_test\(env\) once"):
        save(env)
    check_contract(lambda: with_action_recorder(Odd()), "replay")
    assert save_after_reset(with_action_recorder(Odd())).method == "replay"


def save_after_reset(env):
    env.reset(seed=0)
    return save(env)


def test_replay_needs_a_recording_from_the_reset_on():
    env = gymnasium.make("PixelReach-v0")
    env.reset(seed=0)
    with pytest.raises(
        InexactState, match=r"its actions were not recorded: call with_action_recorder"
    ):
        save(env, "replay")
    outer = with_action_recorder(env)
    assert outer is env and with_action_recorder(env) is env
    chain = env
    while chain.env is not env.unwrapped:
        chain = chain.env
    assert isinstance(chain, ActionRecorder)
    with pytest.raises(InexactState, match=r"it was not reset"):
        save(env, "replay")
    env.reset()
    assert save(env, "replay").simulator["seed"] is not None
    bare = PixelReach()
    assert isinstance(with_action_recorder(bare), ActionRecorder)


def test_any_method_can_be_forced_by_a_recording():
    env, fresh = with_action_recorder(gymnasium.make("Hopper-v5")), gymnasium.make("Hopper-v5")
    env.reset(seed=3)
    actions = [np.full(3, 0.3, np.float32)] * 20
    record(env, actions[:5])
    saved = save(env, method="replay")
    assert saved.method == "replay"
    expected = record(env, actions)
    restore(fresh, saved)
    assert_same(record(fresh, actions), expected)


class Forgetful(PixelReach):
    """What it shows depends on all it ever did."""

    total = 0

    def step(self, action):
        type(self).total += 1
        obs, _, *rest = super().step(action)
        return obs, self.total, *rest


def test_env_that_does_not_return_is_refused():
    env = with_action_recorder(Forgetful())
    for _ in range(2):
        env.reset(seed=0)
        env.step(np.zeros(1))
    saved = save(env, "replay")
    with pytest.raises(InexactState, match=r"did not return to its saved state when its 1 actions"):
        restore(with_action_recorder(Forgetful()), saved)
    with pytest.raises(
        InexactState, match=r"cannot return .*continued differently: .*reward at st"
    ) as refused:
        self_test(Forgetful())
    assert ".)" not in str(refused.value), "one sentence"


CALLS = []


class ClassCounter(PixelReach):
    calls = 0

    def step(self, action):
        type(self).calls += 1
        return super().step(action)


class GlobalList(PixelReach):
    def step(self, action):
        CALLS.append(action)
        return super().step(action)


class GlobalDraws(PixelReach):
    def reset(self, *, seed=None, options=None):
        random.random()
        return super().reset(seed=seed, options=options)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (ClassCounter, r"changes test_state\.ClassCounter\.calls, which is outside its attr"),
        (GlobalList, r"changes test_state\.CALLS, which is outside its attributes"),
        (GlobalDraws, r"draws from the global generator random, which is not its own"),
    ],
)
def test_state_outside_the_env_is_found_although_no_output_shows_it(kind, reason):
    before = random.getstate()
    with pytest.raises(InexactState, match=reason):
        self_test(kind())
    assert random.getstate() == before


@pytest.mark.parametrize("name", ["Hopper-v5", "CartPole-v1", "PixelReach-v0", "cheetah_run"])
def test_self_test_finds_the_method_and_leaves_the_env_as_it_was(name):
    make, method = FAMILIES[name]
    method = "attributes" if name == "PixelReach-v0" else method
    env, twin = (Chatty(W.RecordEpisodeStatistics(make())) for _ in range(2))
    for one in (env, twin):
        one.reset(seed=4)
    assert self_test(env, make_fresh=lambda: Chatty(W.RecordEpisodeStatistics(make()))) == method
    assert_same(
        env.reset()[0],
        with_action_recorder(twin).reset()[0] if method == "replay" else twin.reset()[0],
    )
    env.close()
    twin.close()


def test_what_a_closure_keeps_is_saved_with_it():
    class Pushing(type(gymnasium.make("CartPole-v1").unwrapped)):
        def __init__(self):
            super().__init__()
            pushes = []

            def push(action):
                pushes.append(action)
                return len(pushes)

            self.push, self.clear = push, pushes.clear

        def reset(self, *, seed=None, options=None):
            self.clear()
            return super().reset(seed=seed, options=options)

        def step(self, action):
            obs, _, *rest = super().step(action)
            return obs, float(self.push(action)), *rest

    check_contract(Pushing, "attributes", after=20)


def test_self_test_falls_back_to_replay():
    class Counting(type(gymnasium.make("CartPole-v1").unwrapped)):
        def reset(self, *, seed=None, options=None):
            self.count = itertools.count()
            return super().reset(seed=seed, options=options)

        def step(self, action):
            obs, _, *rest = super().step(action)
            return obs, float(next(self.count)), *rest

    assert self_test(Counting(), make_fresh=Counting) == "replay"


def test_options_of_the_reset_are_repeated():
    env, other = (
        ResumableEnv(W.OrderEnforcing(Start()), np.random.default_rng(0)) for _ in range(2)
    )
    env.reset(options={"start": 0.5})
    env.step(np.full(1, 0.1))
    other.load_state_dict(env.state_dict())
    assert other.unwrapped.bar == env.unwrapped.bar > 0.5


class Start(PixelReach):
    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed, options=options)
        self.bar = options["start"]
        return obs, info


def test_episode_that_cannot_be_saved_does_not_stop_a_run(caplog):
    class Hidden(gymnasium.Wrapper):
        def __init__(self, env):
            super().__init__(env)
            self.secret = itertools.count()

    env = ResumableEnv(Hidden(gymnasium.make("Pendulum-v1")), np.random.default_rng(0))
    env.reset()
    state = env.state_dict()
    assert "would begin a new episode" in caplog.text and state["episode"] is None
    env.load_state_dict(state)
    assert env.obs is None and "did not return to its saved state" in caplog.text


def test_attribute_that_shows_a_part_of_the_simulator_still_shows_it_when_restored():
    """Some of MetaWorld's tasks keep such arrays, and compute rewards of them."""
    from gymnasium.envs.mujoco.hopper_v5 import HopperEnv

    class Shown(HopperEnv):
        def reset_model(self):
            obs = super().reset_model()
            self.first_foot = self.data.xpos[-1, ::2]
            self.copied = self.data.xpos[-1].copy()
            return obs

        def step(self, action):
            obs, _, terminated, truncated, info = super().step(action)
            return (
                obs,
                float(self.first_foot.sum() + self.copied.sum()),
                terminated,
                truncated,
                info,
            )

    check_contract(Shown, "mujoco", after=20)
    env, fresh = Shown(), Shown()
    env.reset(seed=0)
    restore(fresh, save(env))
    fresh.data.xpos[-1] = [1.0, 2.0, 3.0]
    assert fresh.first_foot.tolist() == [1.0, 3.0] and fresh.copied.tolist() != [1.0, 2.0, 3.0]


def test_what_a_cached_property_computes_need_not_be_there_yet():
    """MetaWorld makes its space of observations when a first step asks for it."""
    from gymnasium.envs.mujoco.hopper_v5 import HopperEnv

    class Late(HopperEnv):
        @functools.cached_property
        def seen_space(self):
            return gymnasium.spaces.Box(-5, 5, (11,))

        @functools.cached_property
        def steps(self):
            return [0]

        def step(self, action):
            obs, *rest = super().step(action)
            self.steps[0] += 1
            return np.clip(obs, self.seen_space.low, self.seen_space.high) + self.steps[0], *rest

    check_contract(Late, "mujoco", points=(3,), after=20)


def test_state_is_of_the_package_that_the_task_comes_from():
    from gymnasium.envs.mujoco.hopper_v5 import HopperEnv

    class Theirs(HopperEnv):
        __module__ = "numpy.tasks"

    plain, env = HopperEnv(), Theirs()
    plain.reset(seed=0)
    env.reset(seed=0)
    state = save(env)
    assert set(save(plain).versions) == {"mujoco"} and set(state.versions) == {"mujoco", "numpy"}
    with pytest.raises(ConfigError, match=r"saved with numpy 0\.1, .* pip install numpy==0\.1"):
        restore(env, replace(state, versions=state.versions | {"numpy": "0.1"}))
