"""One contract for every family: a student continues from a teacher's snapshot as the teacher did.

The student has other settings, another seed and wrappers with state. What it must do from a
snapshot on is what an oracle does: an env with the teacher's settings, made from scratch, reset
with the episode's seed and stepped with the episode's actions. A referee, made like the student
(but reset like the teacher), gives the rewards and infos that the student's settings lead to.

Where steps draw random numbers, they come from the student's own generator. All three are then
given generators of one seed right after the snapshot. That is not possible inside the Atari
emulator: games with sticky actions are compared at the reset only (`draws_inside`).
"""

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, flatdim

import rlearly
from rlearly import envs
from rlearly.envs import atari, dm_control

W = gymnasium.wrappers
TEACHER_STEPS = 60
STUDENT_STEPS = 25
"""Time limits, of a `TimeLimit` wrapper."""
RESET_ONLY = ("reset_noise_scale",)
"""Settings that change which episodes begin, and nothing else."""
NOT_OF_THE_STATE = {"snapshot", "snapshot_value", "episode"}
NOT_OF_THE_STATE |= {"seeds"}  # with which this env's emulator was seeded


@dataclass(frozen=True)
class Family:
    """How an env is made (settings -> env), and what is special about it.

    Attributes:
        settings: the student's, that differ from the teacher's and leave the world as it is.
        every_steps: between two snapshots.
        actions: the only ones to be drawn; None: all.
        draws_inside: steps draw randomness where no generator can be set.
    """

    make: Callable[..., gymnasium.Env]
    settings: dict[str, Any] = field(default_factory=dict)
    every_steps: int = 7
    steps: int = TEACHER_STEPS
    actions: tuple[int, ...] | None = None
    draws_inside: bool = False


def registered(env_id, module=None, **kwargs):
    def make(steps, **settings):
        if module:
            gymnasium.register_envs(importlib.import_module(module))
        return gymnasium.make(env_id, max_episode_steps=steps, **(kwargs | settings))

    return make


def suite(name):
    def make(steps, **settings):
        config = replace(envs.config_for(name), **settings)
        return W.TimeLimit(dm_control.DMControlEnv(config, pixels=False, model_seed=0), steps)

    return make


def atari_game(name, **fixed):
    def make(steps, **settings):
        config = replace(envs.config_for(name), **fixed, **settings)
        return W.TimeLimit(atari.AtariGame(config, evaluation=True), steps)

    return make


ROBOTICS = "gymnasium_robotics"
SEEN = {"render_mode": "rgb_array"}
WALKS = {"ctrl_cost_weight": 0.7, "forward_reward_weight": 3.0, "reset_noise_scale": 0.02}
SURVIVES = {"healthy_reward": 2.5, "terminate_when_unhealthy": False}
MUJOCO = {
    "Ant-v5": WALKS | SURVIVES | {"contact_cost_weight": 0.1},
    "HalfCheetah-v5": WALKS | SEEN,
    "Hopper-v5": WALKS | SURVIVES,
    "Humanoid-v5": WALKS | SURVIVES | {"contact_cost_weight": 0.1},
    "HumanoidStandup-v5": {"uph_cost_weight": 2.0, "impact_cost_weight": 0.1},
    "InvertedDoublePendulum-v5": {"healthy_reward": 2.0, "reset_noise_scale": 0.2},
    "InvertedPendulum-v5": {"reset_noise_scale": 0.05},
    "Pusher-v5": {"reward_near_weight": 0.9, "reward_dist_weight": 3.0},
    "Reacher-v5": {"reward_dist_weight": 3.0, "reward_control_weight": 0.5},
    "Swimmer-v5": WALKS,
    "Walker2d-v5": WALKS | SURVIVES,
}
FAMILIES = {name: Family(registered(name), settings) for name, settings in MUJOCO.items()}
FAMILIES |= {
    "Acrobot-v1": Family(registered("Acrobot-v1"), SEEN),
    "CartPole-v1": Family(registered("CartPole-v1"), {"sutton_barto_reward": True}, 4),
    "MountainCar-v0": Family(registered("MountainCar-v0"), {"goal_velocity": 0.03}),
    "MountainCarContinuous-v0": Family(
        registered("MountainCarContinuous-v0"), {"goal_velocity": 0.03}
    ),
    "Pendulum-v1": Family(registered("Pendulum-v1"), SEEN),
    "BipedalWalker-v3": Family(registered("BipedalWalker-v3"), SEEN),
    "BipedalWalkerHardcore-v3": Family(registered("BipedalWalkerHardcore-v3"), SEEN),
    "CarRacing-v3": Family(registered("CarRacing-v3"), {"lap_complete_percent": 0.5}, steps=30),
    "CarRacing-v3 in random colours": Family(
        registered("CarRacing-v3", domain_randomize=True), {"lap_complete_percent": 0.5}, steps=30
    ),
    "LunarLander-v3": Family(registered("LunarLander-v3"), {"wind_power": 9.0}),
    "LunarLander-v3 in the wind": Family(registered("LunarLander-v3", enable_wind=True), SEEN),
    "LunarLanderContinuous-v3": Family(registered("LunarLanderContinuous-v3"), SEEN),
    "Blackjack-v1": Family(
        registered("Blackjack-v1"), {"natural": True, "sab": False}, every_steps=1
    ),
    "CliffWalking-v1": Family(registered("CliffWalking-v1"), {"render_mode": "ansi"}),
    "CliffWalkingSlippery-v1": Family(registered("CliffWalkingSlippery-v1")),
    "FrozenLake-v1": Family(
        registered("FrozenLake-v1"), {"reward_schedule": (5, -1, 0)}, every_steps=1
    ),
    "FrozenLake8x8-v1": Family(registered("FrozenLake8x8-v1"), {"render_mode": "ansi"}, 2),
    "Taxi-v4": Family(registered("Taxi-v4"), {"render_mode": "ansi"}),
    "Taxi-v4 with rain and fickle passengers": Family(
        registered("Taxi-v4", is_rainy=True, fickle_passenger=True)
    ),
}
GRIDS = {
    "MiniGrid-BlockedUnlockPickup-v0": {},
    "MiniGrid-DoorKey-5x5-v0": {},
    "MiniGrid-DoorKey-8x8-v0": {"max_steps": 500},
    "MiniGrid-Dynamic-Obstacles-6x6-v0": {},
    "MiniGrid-Empty-Random-6x6-v0": {"max_steps": 500},
    "MiniGrid-FourRooms-v0": {"max_steps": 500},
    "MiniGrid-GoToDoor-6x6-v0": {},
    "MiniGrid-KeyCorridorS3R2-v0": {"max_steps": 500},
    "MiniGrid-LavaGapS6-v0": {"max_steps": 500},
    "MiniGrid-MemoryS9-v0": {"max_steps": 500},
    "MiniGrid-MultiRoom-N2-S4-v0": {"max_steps": 500},
    "MiniGrid-ObstructedMaze-1Dlhb-v0": {},
    "MiniGrid-Unlock-v0": {"max_steps": 500},
    "BabyAI-GoToObj-v0": {},
    "BabyAI-Open-v0": {},
    "BabyAI-PutNextS4N1-v0": {},
}
TURN_MOVE_AND_HANDLE = (0, 1, 2, 2, 2, 3, 5)
FAMILIES |= {
    name: Family(
        registered(name, "minigrid"),
        {"highlight": False, **settings},
        every_steps=23,
        steps=200,
        actions=TURN_MOVE_AND_HANDLE if "Dynamic" not in name else None,
    )
    for name, settings in GRIDS.items()
}
for game in ("Breakout", "MsPacman", "Pong"):
    make = partial(registered, f"ALE/{game}-v5", "ale_py")
    FAMILIES[game] = Family(make(repeat_action_probability=0.0), SEEN)
    FAMILIES[f"{game} with sticky actions"] = Family(make(), SEEN, draws_inside=True)
LONGER = {"max_episode_steps": 200_000}
FAMILIES |= {
    "atari/Breakout": Family(atari_game("atari/Breakout"), LONGER),
    "atari/Assault": Family(atari_game("atari/Assault"), LONGER),
    "atari/Othello": Family(atari_game("atari/Othello"), LONGER),
    "atari/Pong with sticky actions": Family(atari_game("atari/Pong", rules="sticky"), LONGER),
}
FAMILIES |= {
    f"AdroitHand{task}-v1": Family(
        registered(f"AdroitHand{task}-v1", ROBOTICS), {"reward_type": "sparse"}
    )
    for task in ("Door", "Hammer", "Pen", "Relocate")
}
FAMILIES |= {
    name: Family(registered(name, ROBOTICS), {"reward_type": "dense"})
    for name in ("AntMaze_UMaze-v5", "PointMaze_Medium-v3", "PointMaze_UMaze-v3")
}
FAMILIES["PointMaze_Open-v3 with moving goals"] = Family(
    registered("PointMaze_Open-v3", ROBOTICS, reset_target=True), {"reward_type": "dense"}
)
SUITE = {name: Family(suite(name), {"camera": -1}) for name in sorted(dm_control.suite_tasks())}
MANIPULATION = {
    name: Family(suite(name), {"camera": -1}, steps=20)
    for name in ("lift_brick", "place_cradle", "reach_duplo", "stack_2_bricks")
}
FAST = ("Hopper-v5", "CartPole-v1", "FrozenLake-v1", "MiniGrid-DoorKey-5x5-v0", "finger_spin")
FAST += ("atari/Breakout",)


class Tap(gymnasium.Wrapper):
    """Keeps what the env below it returned last."""

    def reset(self, **kwargs):
        self.obs, self.info = copy.deepcopy(self.env.reset(**kwargs))
        return self.obs, self.info

    def step(self, action):
        out = self.env.step(action)
        self.obs, self.reward, self.terminated, self.truncated, self.info = copy.deepcopy(out)
        return out


class Actions:
    """Random actions of a space, all of them within [-1, 1] if it has no bounds; keeps them."""

    def __init__(self, family, space, seed):
        self.space, self.allowed, self.played = copy.deepcopy(space), family.actions, []
        self.space.seed(seed)
        self.random = np.random.default_rng(seed)

    def __call__(self, obs=None):
        action = self.space.sample()
        if self.allowed:
            action = type(action)(self.random.choice(self.allowed))
        elif isinstance(self.space, Box) and not np.isfinite(self.space.high).all():
            action = np.clip(action, -1, 1)
        self.played.append(action)
        return action


def assert_same(one, two, path=""):
    """Equal to the bit, with types."""
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
    else:
        assert one == two or one != one, f"{path}: {one} and {two}"


def is_same(one, two):
    try:
        assert_same(one, two)
    except AssertionError:
        return False
    return True


def plain_attributes(base):
    """The attributes that are numbers, text, arrays and containers of them."""

    def plain(value):
        if isinstance(value, dict):
            return all(map(plain, [*value, *value.values()]))
        if isinstance(value, list | tuple):
            return all(map(plain, value))
        if isinstance(value, np.ndarray | np.generic):
            return not value.dtype.hasobject
        return value is None or isinstance(value, bool | int | float | str)

    return {k: copy.deepcopy(v) for k, v in vars(base).items() if plain(v)}


def settings_that_differ(student, teacher):
    """{attribute: the student's value} of what no episode changes and the teacher has otherwise."""
    constant = []
    for env in (student, teacher):
        seen = []
        for seed in (3, 4):
            env.reset(seed=seed)
            seen.append(plain_attributes(env.unwrapped))
        constant.append(
            {k: v for k, v in seen[0].items() if k in seen[1] and is_same(v, seen[1][k])}
        )
    ours, theirs = constant
    return {k: v for k, v in ours.items() if k in theirs and not is_same(v, theirs[k])}


def generators_of(holder, path="", depth=3):
    """{path: state} of the numpy generators in an env's attributes, and in theirs."""
    found = {}
    for key, value in getattr(holder, "__dict__", {}).items():
        where = f"{path}.{key}"
        if isinstance(value, np.random.Generator):
            found[where] = copy.deepcopy(value.bit_generator.state)
        elif isinstance(value, np.random.RandomState):
            found[where] = value.get_state(legacy=False)
        elif depth and not isinstance(value, gymnasium.Space):
            found |= generators_of(value, where, depth - 1)
    return found


def wrappers_of(env):
    while isinstance(env, gymnasium.Wrapper):
        yield env
        env = env.env


def wrapped(env):
    """With statistics, a stack and normalisers, where the space allows."""
    env = W.RecordEpisodeStatistics(env)
    space = env.observation_space
    if isinstance(space, Discrete) or (isinstance(space, Box) and flatdim(space) < 10_000):
        env = W.FrameStackObservation(env, 3)
        if isinstance(space, Box):
            env = W.NormalizeObservation(env)
    return W.NormalizeReward(env)


def check_wrappers(env, tap, before):
    """Every wrapper is as after an ordinary reset that observed `tap.obs`."""
    for wrapper in wrappers_of(env):
        kind = type(wrapper).__name__
        if kind == "TimeLimit":
            assert wrapper._elapsed_steps == 0
        elif kind == "RecordEpisodeStatistics":
            assert wrapper.episode_returns == 0 and wrapper.episode_lengths == 0
            assert wrapper.episode_count == before["episodes"]
        elif kind == "FrameStackObservation":
            for frame in wrapper.obs_queue:
                assert_same(frame, tap.obs, "stack")
        elif kind == "NormalizeObservation":
            expected = before["observations"]
            expected.update(np.stack([tap.obs] * 3)[None])
            assert_same(wrapper.obs_rms.mean, expected.mean, "mean")
            assert_same(wrapper.obs_rms.var, expected.var, "var")
        elif kind == "NormalizeReward":
            assert_same(vars(wrapper.return_rms), vars(before["rewards"]), "rewards")


def memory_of(env):
    """What statistics and normalisers know."""
    found = {}
    for wrapper in wrappers_of(env):
        kind = type(wrapper).__name__
        if kind == "RecordEpisodeStatistics":
            found["episodes"] = wrapper.episode_count
        elif kind == "NormalizeObservation":
            found["observations"] = copy.deepcopy(wrapper.obs_rms)
        elif kind == "NormalizeReward":
            found["rewards"] = copy.deepcopy(wrapper.return_rms)
    return found


def replayed(make, seed, actions):
    """An env from scratch that has repeated an episode up to here."""
    tap = Tap(make())
    tap.reset(seed=seed)
    for action in actions:
        tap.step(action)
    return tap


def check_snapshot(family, student, tap, snapshots, index, episodes):
    episode, step = int(snapshots.episodes[index]), int(snapshots.steps[index])
    seed, actions = episodes[episode]
    like_teacher = {k: v for k, v in family.settings.items() if k not in RESET_ONLY}
    past = actions[:step]
    oracle = replayed(lambda: family.make(family.steps + 1000), seed, past)
    referee = replayed(lambda: family.make(family.steps + 1000, **like_teacher), seed, past)
    base = student.unwrapped

    student.reset(seed=99)
    generators = generators_of(base)
    play = Actions(family, student.action_space, 5)
    for _ in range(3):
        student.step(play())
    settings = settings_that_differ(tap.env, family.make(family.steps))
    wanted = {key for key in family.settings if key != "render_mode"}
    assert settings or not wanted, "no setting differs"
    student.reset(seed=98)
    memory = memory_of(student)

    _, info = student.reset(seed=99, options={"snapshot": index})
    where = f"snapshot {index} at step {step}"
    assert_same(tap.obs, oracle.obs, f"{where}, observation")
    check_wrappers(student, tap, memory)
    now = vars(base)
    for key, value in settings.items():
        assert_same(now[key], value, f"{where}, the student's {key}")
    assert info["snapshot"] == index
    for key in set(info) - NOT_OF_THE_STATE:
        assert key in oracle.info, f"{where}, info {key} is not the state's"
        assert_same(info[key], oracle.info[key], f"{where}, info {key}")
    if family.draws_inside:
        return
    assert "._np_random" in generators
    assert_same(generators_of(base), generators, f"{where}, generators")

    for env in (base, oracle.unwrapped, referee.unwrapped):
        env.np_random = np.random.default_rng(5)
    for number in range(1, STUDENT_STEPS + 1):
        action = play()
        for env in (oracle, referee):
            env.step(action)
        student.step(action)
        at = f"{where}, {number} steps later"
        assert_same(tap.obs, oracle.obs, f"{at}, observation")
        assert_same(tap.terminated, referee.terminated, f"{at}, terminated")
        assert_same(tap.reward, referee.reward, f"{at}, reward")
        infos = [dict(env.info) for env in (tap, referee)]
        for info in infos:
            info.pop("TimeLimit.truncated", None)
        assert_same(*infos, f"{at}, info")
        assert tap.truncated == (referee.truncated or number == STUDENT_STEPS), at
        if referee.terminated or referee.truncated:
            break


def check_family(family, snapshots_tried=3, outermost=False):
    teacher = family.make(family.steps)
    policy = Actions(family, teacher.action_space, 1)
    ends = []
    snapshots = rlearly.record(
        teacher,
        policy,
        episodes=2,
        every_steps=family.every_steps,
        on_episode=lambda episode, total, steps: ends.append(steps),
    )
    seeds = np.random.SeedSequence(0).generate_state(2).tolist()
    episodes = [(seeds[0], policy.played[: ends[0]]), (seeds[1], policy.played[ends[0] :])]
    tap = Tap(family.make(STUDENT_STEPS, **family.settings))
    start = partial(rlearly.SnapshotRL, snapshots=snapshots, truncate_steps=None, until_steps=0)
    student = start(wrapped(tap)) if outermost else wrapped(start(tap))
    last, tried = len(snapshots) - 1, np.linspace(1, 0, snapshots_tried, endpoint=False)
    for index in sorted({round(last * share) for share in tried}):
        check_snapshot(family, student, tap, snapshots, index, episodes)


@pytest.mark.parametrize("name", FAST)
def test_student_continues_as_the_teacher_did(name):
    check_family((FAMILIES | SUITE)[name], snapshots_tried=2, outermost=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_student_of_every_family_continues_as_the_teacher_did(name):
    check_family(FAMILIES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SUITE, *MANIPULATION])
def test_student_of_every_suite_task_continues_as_the_teacher_did(name):
    check_family((SUITE | MANIPULATION)[name])
