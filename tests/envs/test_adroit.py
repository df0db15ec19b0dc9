"""Adroit: the paper's rewards, goals and endings, two observations, and exact return."""

import sys
from dataclasses import replace

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

from rlearly import envs
from rlearly.config import help, resolve
from rlearly.core.errors import ConfigError
from rlearly.envs import adroit
from rlearly.envs.snapshots.recording import record
from rlearly.envs.snapshots.wrapper import SnapshotRL
from rlearly.envs.state.resumable import ResumableEnv
from rlearly.envs.state.save_restore import EnvState, method_of, restore, save, self_test
from rlearly.envs.state.simulators import _saved_fields

TASKS = adroit.names()


def make(name, pixels=False, **changes):
    """Fast to draw, unless a test says otherwise."""
    changes = {"render": "fast" if pixels else "exact", **changes}
    return envs.make(replace(envs.config_for(name), **changes), pixels=pixels, model_seed=0)


# --- rewards, goals, endings ---


class Seen:
    """Positions by name, read by number from the simulator's arrays."""

    def __init__(self, base):
        self.model, self.data = base.model, base.data

    def site(self, name):
        number = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_SITE, name)
        assert number >= 0
        return self.data.site_xpos[number]

    def body(self, name):
        number = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_BODY, name)
        assert number >= 0
        return self.data.xpos[number]

    def apart(self, one, other):
        return np.sqrt(((one - other) ** 2).sum())


def door_says(seen):
    hinge = seen.data.qpos[28]
    palm_to_handle = seen.apart(seen.site("S_grasp"), seen.site("S_handle"))
    reward = -0.1 * palm_to_handle - 0.1 * (hinge - 1.57) ** 2 - 1e-5 * (seen.data.qvel**2).sum()
    bonuses = [2 if hinge > 0.2 else 0, 8 if hinge > 1 else 0, 10 if hinge > 1.35 else 0]
    return (reward + sum(bonuses)) / 20, hinge > 1.4, False, bonuses


def hammer_says(seen):
    handle, head, nail = seen.body("Object"), seen.site("tool"), seen.site("S_target")
    left = seen.apart(nail, seen.site("nail_goal"))
    reward = -0.1 * seen.apart(seen.site("S_grasp"), handle) - seen.apart(head, nail)
    reward += -10 * left - 1e-2 * np.sqrt((seen.data.qvel**2).sum())
    lifted = handle[2] > 0.04 and head[2] > 0.04
    bonuses = [2 if lifted else 0, 25 if left < 0.02 else 0, 75 if left < 0.01 else 0]
    return (reward + sum(bonuses)) / 100, left < 0.01, False, bonuses


def pen_says(seen):
    place = seen.body("Object")
    away = seen.apart(place, seen.site("eps_ball"))
    pens = [seen.site(f"{one}_top") - seen.site(f"{one}_bottom") for one in ("object", "target")]
    cosine = pens[0] @ pens[1] / np.sqrt((pens[0] ** 2).sum() * (pens[1] ** 2).sum())
    bonuses = [
        10 if away < 0.075 and cosine > 0.9 else 0,
        50 if away < 0.075 and cosine > 0.95 else 0,
        -5 if place[2] < 0.075 else 0,
    ]
    return (cosine - away + sum(bonuses)) / 50, cosine > 0.95, place[2] < 0.075, bonuses


def relocate_says(seen):
    ball, palm, target = seen.body("Object"), seen.site("S_grasp"), seen.site("target")
    left = seen.apart(ball, target)
    lifted = 1 - 0.5 * seen.apart(palm, target) - 0.5 * left if ball[2] > 0.04 else 0
    bonuses = [lifted, 10 if left < 0.1 else 0, 20 if left < 0.05 else 0]
    return (-0.1 * seen.apart(palm, ball) + sum(bonuses)) / 30, left < 0.1, False, bonuses


SAYS = {
    "adroit/door": door_says,
    "adroit/hammer": hammer_says,
    "adroit/pen": pen_says,
    "adroit/relocate": relocate_says,
}


def stir(name, base, draw):
    """Put an Adroit world into a random state, which is now and then near its goal."""
    model, data = base.model, base.data
    data.qpos[:24] += draw.normal(0, 0.1, 24)
    data.qvel[:] = draw.normal(0, 0.5, model.nv)
    if name == "adroit/hammer":
        data.joint("nail_dir").qpos[:] = draw.uniform(0, 0.11)
        data.joint("OBJTz").qpos[:] = draw.uniform(-0.05, 0.3)
    elif name == "adroit/relocate":
        mujoco.mj_forward(model, data)
        far = draw.choice([0.02, 0.08, 0.3]) * draw.normal(size=3) / 2
        data.qpos[30:33] += data.site("target").xpos + far - data.body("Object").xpos
    elif name == "adroit/pen":
        data.qpos[24:27] = draw.normal(0, draw.choice([0.02, 0.3]), 3)
        mujoco.mj_forward(model, data)
        near = data.body("Object").xquat + draw.normal(0, draw.choice([0.02, 0.1, 1]), 4)
        model.body("target").quat[:] = near / np.linalg.norm(near)
    else:
        data.joint("door_hinge").qpos[:] = draw.uniform(0, 1.57)
    mujoco.mj_forward(model, data)


@pytest.mark.parametrize("name", TASKS)
def test_paper_rewards_are_the_official_codes(name):
    env = make(name, action_repeat=1)
    base = env.unwrapped
    draw = np.random.default_rng(0)
    seen_bonuses, endings = [], set()
    for episode in range(60):
        env.reset(seed=episode)
        stir(name, base, draw)
        _, reward, terminated, truncated, _ = env.step(draw.uniform(-1, 1, base.model.nu))
        expected, reached, lost, bonuses = SAYS[name](Seen(base))
        assert reward == pytest.approx(expected, abs=1e-9) and type(reward) is float
        assert (terminated, truncated) == (lost, False)
        assert env.get_wrapper_attr("reached_frames") == reached
        seen_bonuses.append(bonuses)
        endings.add((bool(reached), bool(lost)))
    per_bonus = np.array(seen_bonuses) != 0
    assert per_bonus.any(0).all() and not per_bonus.all(0).any(), "each bonus is seen on and off"
    assert {reached for reached, _ in endings} == {False, True}
    assert {lost for _, lost in endings} == ({False, True} if name == "adroit/pen" else {False})
    env.close()


REACHED_FOR = {
    "adroit/door": lambda seen: seen.site("S_handle"),
    "adroit/hammer": lambda seen: seen.body("Object"),
    "adroit/relocate": lambda seen: seen.body("Object"),
}


@pytest.mark.parametrize("name", TASKS)
def test_packages_rewards_differ_by_the_scale_and_the_sign_of_reaching(name):
    """As of gymnasium-robotics 1.4.2; all other terms are the same."""
    paper, package = make(name, action_repeat=1), make(name, action_repeat=1, rules="package")
    scale = {"adroit/door": 20, "adroit/hammer": 100, "adroit/pen": 50, "adroit/relocate": 30}[name]
    for env in (paper, package):
        env.reset(seed=3)
    draw = np.random.default_rng(1)
    seen = Seen(paper.unwrapped)
    for _ in range(10):
        action = draw.uniform(-0.3, 0.3, paper.action_space.shape).astype(np.float32)
        ours, theirs = paper.step(action), package.step(action)
        np.testing.assert_array_equal(ours[0], theirs[0])
        reach = 0.0
        if name in REACHED_FOR:
            reach = 0.1 * seen.apart(seen.site("S_grasp"), REACHED_FOR[name](seen))
            assert reach > 0.005
        assert ours[1] * scale == pytest.approx(theirs[1] - 2 * reach, abs=1e-6)


def test_dropped_pen_terminates_its_episode_with_the_penalty_and_the_package_goes_on():
    paper, package = make("adroit/pen", action_repeat=1), make("adroit/pen", rules="package")
    for env in (paper, package):
        env.reset(seed=0)
        env.unwrapped.data.qpos[24:27] = 0.4, 0.0, -0.1  # below the table
    _, reward, terminated, truncated, _ = paper.step(np.zeros(24))
    assert (terminated, truncated) == (True, False) and reward < -5 / 50
    assert package.step(np.zeros(24))[2:4] == (False, False)


@pytest.mark.parametrize(
    ("name", "rules", "frames"),
    [
        ("adroit/pen", "paper", 100),
        ("adroit/pen", "package", 200),
        ("adroit/door", "paper", 200),
        ("adroit/hammer", "package", 200),
    ],
)
def test_episodes_are_truncated_at_their_horizon(name, rules, frames):
    env = make(name, rules=rules)
    env.reset(seed=0)
    steps, truncated = 0, False
    while not truncated:
        steps += 1
        if name == "adroit/pen":
            env.unwrapped.data.qpos[24:] = 0.0  # back into the hand
            env.unwrapped.data.qvel[24:] = 0.0
        _, _, terminated, truncated, _ = env.step(np.zeros(env.action_space.shape))
        assert not terminated
    assert steps * 2 == frames


@pytest.mark.parametrize(
    ("name", "rules", "goal", "frames"),
    [
        ("adroit/door", "paper", 1.42, 25),
        ("adroit/door", "paper", 1.38, None),
        ("adroit/door", "package", 1.38, 25),
        ("adroit/pen", "paper", None, 20),
    ],
)
def test_success_is_the_goal_in_more_than_so_many_frames(name, rules, goal, frames):
    env = make(name, rules=rules, action_repeat=1)
    env.reset(seed=0)
    base, told = env.unwrapped, []
    for _ in range(30):
        if goal is None:
            base.model.body("target").quat[:] = base.data.body("Object").xquat
            base.data.qpos[24:] = 0.0
        else:
            base.data.joint("door_hinge").qpos[:] = goal
        base.data.qvel[:] = 0.0
        told.append(env.step(np.zeros(env.action_space.shape))[4]["success"])
    assert told == [frames is not None and i >= frames for i in range(30)]
    env.reset(seed=0)
    assert env.step(np.zeros(env.action_space.shape))[4]["success"] is False


# --- observations ---


def test_vector_is_the_same_24_joints_of_the_hand_in_all_tasks():
    angles = []
    for name in TASKS:
        env = make(name, pixels=True)
        model = env.unwrapped.model
        hand = adroit.TASKS[name].hand
        first, after = hand.start, hand.stop
        assert (model.jnt_qposadr == np.arange(model.njnt)).all(), "every joint is one number"
        angles.append([model.joint(i).name for i in range(model.njnt)][first:after])
        env.close()
    assert all(names == angles[0] for names in angles)
    assert len(angles[0]) == 24 and angles[0][:3] == ["WRJ1", "WRJ0", "FFJ3"]
    assert angles[0][-1] == "THJ0"


@pytest.mark.parametrize("stack", [1, 3])
def test_observed_are_images_and_the_newest_joint_angles(stack):
    changes = {} if stack == 1 else {"frame_stack": stack}
    env = make("adroit/door", pixels=True, **changes)
    space = env.observation_space
    assert space == Dict(
        [
            ("pixels", Box(0, 255, (3 * stack, 84, 84), np.uint8)),
            ("vector", Box(-np.inf, np.inf, (24,), np.float32)),
        ]
    )
    assert list(space.spaces) == ["pixels", "vector"]
    first, _ = env.reset(seed=0)
    assert space.contains(first) and list(first) == ["pixels", "vector"]
    kept = {key: value.copy() for key, value in first.items()}
    for _ in range(5):
        obs = env.step(env.action_space.high)[0]
    assert space.contains(obs)
    np.testing.assert_array_equal(obs["vector"], env.unwrapped.data.qpos[4:28].astype(np.float32))
    picture = envs.frame_renderer(env)(84).transpose(2, 0, 1)
    np.testing.assert_array_equal(obs["pixels"][-3:], picture)
    assert (obs["pixels"] != first["pixels"]).any() and (obs["vector"] != first["vector"]).any()
    for key in kept:
        np.testing.assert_array_equal(first[key], kept[key]), "an observation is its holder's"
    env.close()


@pytest.mark.parametrize("name", TASKS)
def test_states_are_the_packages(name):
    env = make(name)
    theirs = gymnasium.make(adroit.TASKS[name].env_id)
    obs, _ = env.reset(seed=4)
    np.testing.assert_array_equal(obs, theirs.reset(seed=4)[0].astype(np.float32))
    assert env.observation_space.contains(obs) and obs.dtype == np.float32
    action = np.full(env.action_space.shape, 0.3, np.float32)
    for _ in range(2):
        expected = theirs.step(action)[0]
    np.testing.assert_array_equal(env.step(action)[0], expected.astype(np.float32))


@pytest.mark.parametrize(("name", "height_m"), [("adroit/door", 1.5), ("adroit/hammer", 1.1)])
def test_picture_from_above_equals_a_camera_in_the_model_which_stays_as_it_is(name, height_m):
    env = make(name, pixels=True, render="exact")
    obs, _ = env.reset(seed=2)
    base = env.unwrapped
    plain = gymnasium.make(adroit.TASKS[name].env_id).unwrapped
    differing = {
        field
        for field in _saved_fields(plain.model)
        if not np.array_equal(getattr(base.model, field), getattr(plain.model, field))
    }
    assert differing <= {"body_pos"}  # where the reset puts the door or the nail
    described = mujoco.MjSpec.from_file(plain.fullpath)
    turned = [np.cos(3.14 / 2), 0, 0, np.sin(3.14 / 2)]
    described.worldbody.add_camera(name="top", pos=[0, 0, height_m], quat=turned)
    model = described.compile()
    model.body_pos[:] = base.model.body_pos
    data = mujoco.MjData(model)
    data.qpos[:] = base.data.qpos
    mujoco.mj_forward(model, data)
    renderer = mujoco.Renderer(model, 84, 84)
    renderer.update_scene(data, camera="top")
    apart = np.abs(renderer.render().transpose(2, 0, 1).astype(int) - obs["pixels"])
    renderer.close()
    env.close()
    assert (apart > 0).mean() < 0.01, "but for a few pixels on edges"
    assert apart.mean() < 0.05


def test_other_cameras_are_numbered():
    usual, fixed = make("adroit/pen", pixels=True), make("adroit/pen", pixels=True, camera=0)
    named = make("adroit/pen", pixels=True, camera=1)
    one, two, three = (env.reset(seed=0)[0]["pixels"] for env in (usual, fixed, named))
    assert usual.unwrapped.model.camera(1).name == "vil_camera"
    np.testing.assert_array_equal(one, three)
    assert (one != two).any()
    with pytest.raises(ConfigError, match=r"env.camera: expected a number from -1 .* to 1, rec"):
        make("adroit/door", pixels=True, camera=2).reset(seed=0)
    for env in (usual, fixed, named):
        env.close()


# --- seeds and return ---


@pytest.mark.parametrize("name", TASKS)
def test_seed_alone_decides_the_episode(name):
    env, other = make(name), make(name)
    other.reset(seed=8)
    draw = np.random.default_rng(0)
    actions = draw.uniform(-1, 1, (12, *env.action_space.shape)).astype(np.float32)
    for action in actions:
        other.step(action)

    def play(one):
        seen = [one.reset(seed=5)[0]]
        for action in actions:
            obs, reward, *_ = one.step(action)
            seen += [obs, np.array(reward)]
        return [part.tobytes() for part in seen]

    assert play(env) == play(other) == play(env)
    assert not np.array_equal(env.reset(seed=6)[0], env.reset(seed=7)[0])


@pytest.mark.parametrize(
    ("name", "pixels"),
    [*((name, False) for name in TASKS), ("adroit/door", True), ("adroit/relocate", True)],
)
def test_restored_episode_continues_to_the_bit(name, pixels):
    env, fresh = make(name, pixels), make(name, pixels)
    assert method_of(env) == "mujoco"
    draw = np.random.default_rng(2)
    actions = draw.uniform(-1, 1, (8, *env.action_space.shape)).astype(np.float32)
    fresh.reset(seed=99)  # with another goal
    env.reset(seed=1)
    env.reset(seed=2)

    def play(one):
        seen = []
        for action in actions:
            obs, *rest = one.step(action)
            seen.append([*(obs.values() if pixels else [obs]), *map(np.array, rest[:3])])
            seen[-1].append(np.array(rest[3]["success"]))
            if rest[1]:  # a pen has fallen
                one.reset()
        return [[part.tobytes() for part in step] for step in seen]

    play(env)
    saved = save(env)
    assert saved.method == "mujoco"
    expected = play(env)
    restore(fresh, EnvState.from_bytes(saved.to_bytes()))
    if pixels:
        pixels_now = envs.frame_renderer(fresh)(84)
        restore(env, saved)
        np.testing.assert_array_equal(pixels_now, envs.frame_renderer(env)(84))
    assert play(fresh) == expected
    env.close()
    fresh.close()


@pytest.mark.parametrize("name", TASKS)
def test_self_test_proves_the_method(name):
    assert self_test(make(name), steps=5, make_fresh=lambda: make(name)) == "mujoco"


@pytest.mark.parametrize("pixels", [False, True])
def test_loaded_episode_continues_to_the_bit(pixels):
    env = ResumableEnv(make("adroit/relocate", pixels), np.random.default_rng(0))
    fresh = ResumableEnv(make("adroit/relocate", pixels), np.random.default_rng(9))
    env.reset()
    for _ in range(3):
        env.step(env.action_space.high)
    fresh.load_state_dict(env.state_dict())
    for key in ("pixels", "vector") if pixels else (slice(None),):
        np.testing.assert_array_equal(env.obs[key], fresh.obs[key])
    for _ in range(3):
        one, two = env.step(env.action_space.low), fresh.step(env.action_space.low)
        for key in ("pixels", "vector") if pixels else (slice(None),):
            np.testing.assert_array_equal(one[0][key], two[0][key])
        assert one[1:4] == two[1:4]
    env.close()
    fresh.close()


@pytest.mark.parametrize("name", ["adroit/pen", "adroit/relocate"])
def test_episodes_start_at_snapshots_with_the_goal_and_the_full_horizon(name):
    teacher = make(name)
    teacher.action_space.seed(0)
    little = [0.1 * teacher.action_space.sample() for _ in range(12)]
    snapshots = record(teacher, lambda obs: little[len(obs) % 12], episodes=1, every_steps=8)
    student = SnapshotRL(make(name, pixels=True), snapshots, truncate_steps=None)
    one, _ = student.reset(seed=5, options={"snapshot": 1})
    two, _ = student.reset(seed=6, options={"snapshot": 1})
    other, _ = student.reset(seed=6, options={"snapshot": 0})
    for key in ("pixels", "vector"):
        np.testing.assert_array_equal(one[key], two[key])
        assert (one[key] != other[key]).any()
    student.close()


# --- names and refusals ---


def test_command_line_chooses_observations_and_rules():
    drm = resolve.compose(["agent=drm", "env=adroit/pen"])
    assert (drm.env.pixels, drm.env.frame_stack, drm.env.action_repeat) == (True, 1, 2)
    assert (drm.env.rules, drm.train_frames, drm.agent.expectile) == ("paper", 6_100_000, 0.7)
    td3 = resolve.compose(["agent=td3", "env=adroit/pen", "env.rules=package"])
    assert (td3.env.pixels, td3.env.rules) == (False, "package")
    assert "env.rules" in help.train_help([]) and "adroit/door" in help.train_help([])
    with pytest.raises(
        ConfigError, match=r"^env.rules: expected one of paper, package, sticky, rec"
    ):
        resolve.compose(["env=adroit/pen", "env.rules=papers"])
    with pytest.raises(ConfigError, match=r"^env.rules: applies only to Adroit's tasks and Atari"):
        resolve.compose(["env=dog_run", "env.rules=package"])
    with pytest.raises(
        ConfigError, match=r"^env.kwargs.reward_type: .*add env.rules=package, or le"
    ):
        make("adroit/door", kwargs={"reward_type": "sparse"})
    sparse = make("adroit/door", rules="package", kwargs={"reward_type": "sparse"})
    sparse.reset(seed=0)
    assert sparse.step(np.zeros(28))[1] == pytest.approx(-0.2)
    with pytest.raises(ConfigError, match=r"render=fast: .* env=adroit/door is observed as states"):
        make("adroit/door", render="fast")


def test_missing_package_and_misspelt_task_are_one_sentence(monkeypatch):
    with pytest.raises(ConfigError, match=r"^There is no env 'adroit/dor'; did you mean adroit/do"):
        envs.config_for("adroit/dor")
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    sentence = r"^env=adroit/door: [^.]* is not installed: pip install 'rlearly\[adroit\]'\.$"
    with pytest.raises(ConfigError, match=sentence):
        make("adroit/door")
