"""MetaWorld: names and messages everywhere, and its worlds where it is installed."""

import importlib.util
import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import TINY_STATE
from test_commands import rlearly
from test_state import assert_same, check_contract, record
from test_trainer import make_trainer, plain

from rlearly import envs
from rlearly.config import resolve
from rlearly.core.errors import ConfigError
from rlearly.envs import metaworld
from rlearly.envs.snapshots.dataset import Snapshots
from rlearly.envs.snapshots.recording import from_actions
from rlearly.envs.snapshots.wrapper import SnapshotRL
from rlearly.envs.state.resumable import ResumableEnv
from rlearly.envs.state.save_restore import EnvState, restore, save, self_test

ROOT = Path(__file__).parents[2]
TASK = "metaworld/coffee-push"


ONE_GOAL = {"metaworld/bin-picking", "metaworld/hammer", "metaworld/sweep-into"}
"""Tasks that place only their objects anew in each episode."""


def ours(name=TASK, pixels=False, videos=False, **changes):
    config = replace(envs.config_for(name), **changes)
    return envs.make(config, pixels=pixels, model_seed=0, videos=videos)


# --- wherever rlearly is: names, settings, messages, versions ---


@pytest.mark.parametrize("name", ["metaworld/coffee-push", "metaworld/coffee-push-v3"])
def test_task_has_a_config_with_or_without_its_version(name):
    assert envs.config_for(name) == envs.EnvConfig(name=TASK, family="metaworld")
    assert len(set(metaworld.names())) == 50


@pytest.mark.parametrize("typo", ["metaworld/cofee-push", "metaworld/coffee_push", "coffee-push"])
def test_typo_gets_the_nearest_tasks(typo):
    with pytest.raises(ConfigError, match=f"no env '{typo}'; did you mean .*{TASK}"):
        envs.config_for(typo)


def test_visual_agents_observe_pixels_and_others_states_by_drms_settings():
    config = resolve.compose([f"env={TASK}", "agent=drm"])
    assert config.env.pixels is True
    shape = (config.env.action_repeat, config.env.frame_stack, config.env.image_size)
    assert shape == (2, 3, 84)
    assert resolve.compose([f"env={TASK}", "agent=drm", "obs=state"]).env.pixels is False
    assert resolve.compose([f"env={TASK}", "agent=td3"]).env.pixels is False
    with pytest.raises(ConfigError, match=r"env.kwargs: .* is a metaworld task, which takes none"):
        resolve.compose([f"env={TASK}", "env.kwargs.width=3"])
    with pytest.raises(ConfigError, match=r"env.render=fast: .* observed as states here"):
        ours(pixels=False, render="fast")


def test_missing_package_is_one_sentence_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "metaworld", None)
    monkeypatch.delitem(sys.modules, "metaworld.env_dict", raising=False)
    with pytest.raises(ConfigError) as caught:
        ours()
    assert str(caught.value) == (
        "env=metaworld/coffee-push: the package metaworld is not installed here: `make metaworld` "
        "builds a separate environment for it, and .venv-metaworld/bin/python runs this there "
        "(by hand, in a new environment: pip install 'rlearly[metaworld]' && pip install --no-deps "
        "metaworld==3.1.1)."
    )


def test_mujoco_that_metaworld_fails_with_is_one_sentence_with_the_command(monkeypatch):
    def fails(seed):
        raise ValueError("could not broadcast input array from shape (11,) into shape (12,)")

    package, tasks = ModuleType("metaworld"), ModuleType("metaworld.env_dict")
    tasks.ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE = {"coffee-push-v3-goal-observable": fails}
    monkeypatch.setitem(sys.modules, "metaworld", package)
    monkeypatch.setitem(sys.modules, "metaworld.env_dict", tasks)
    monkeypatch.setattr(metaworld, "installed", {"metaworld": "3.1.1", "mujoco": "3.17.0"}.get)
    with pytest.raises(ConfigError) as caught:
        ours()
    assert str(caught.value) == (
        "env=metaworld/coffee-push: metaworld 3.1.1 and mujoco 3.17.0 do not work together "
        "(ValueError: could not broadcast input array from shape (11,) into shape (12,)): `make "
        "metaworld` builds a separate environment for it, and .venv-metaworld/bin/python runs "
        "this there (by hand, in a new environment: pip install 'rlearly[metaworld]' && pip "
        "install --no-deps metaworld==3.1.1)."
    )


def test_both_locks_the_extra_and_the_command_name_the_same_versions():
    locks = [
        dict(line.split("==") for line in (ROOT / name).read_text(encoding="utf-8").split())
        for name in ("requirements.lock", "requirements-metaworld.lock")
    ]
    differ = {name: locks[1].get(name) for name in locks[0] | locks[1]}
    differ = {name: is_ for name, is_ in differ.items() if is_ != locks[0].get(name)}
    assert set(differ) == {"mujoco", "dm_control", "metaworld"}
    assert f"metaworld=={differ['metaworld']}" in metaworld.INSTALL
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = project["optional-dependencies"]["metaworld"]
    assert {f"mujoco=={differ['mujoco']}", f"dm-control=={differ['dm_control']}"} <= set(extra)
    assert not any(wanted.startswith("metaworld") for wanted in extra), "it pins another MuJoCo"


# --- in MetaWorld's own virtual environment ---


def there(test):
    """A test of MetaWorld's worlds."""
    missing = importlib.util.find_spec("metaworld") is None
    skipped = pytest.mark.skipif(missing, reason="MetaWorld is not here: make test-metaworld")
    return pytest.mark.metaworld(skipped(test))


def bare(name=TASK, seed=3):
    """MetaWorld's own env whose next reset begins the episode of a seed."""
    from gymnasium.utils import seeding
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE as KINDS

    env = KINDS[f"{name.removeprefix('metaworld/')}-v3-goal-observable"](seed=9)
    env._freeze_rand_vec, env.seeded_rand_vec = False, True
    env._np_random = seeding.np_random(seed)[0]
    return env


def actions_of(env, count, seed=0):
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(count)]


@there
def test_every_task_of_metaworld_is_known():
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    assert sorted(f"{task}-v3" for task in metaworld.TASKS) == sorted(ALL_V3_ENVIRONMENTS)


@there
@pytest.mark.parametrize("name", metaworld.names())
def test_seed_alone_decides_the_episode_which_is_metaworlds_own(name):
    untouched = np.random.get_state()[1].copy()  # noqa: NPY002
    env, plain = ours(name), bare(name, seed=3)
    first, _ = env.reset(seed=4)
    for action in actions_of(env, 20):
        env.step(action)
    expected, _ = plain.reset()
    obs, _ = env.reset(seed=3)
    assert obs.shape == (39,) and obs.dtype == np.float32
    np.testing.assert_array_equal(obs, expected.astype(np.float32))
    began = obs
    assert (obs[-3:] != 0).any() and not np.array_equal(obs, first)
    assert np.array_equal(obs[-3:], first[-3:]) == (name in ONE_GOAL)
    for action in actions_of(env, 30, seed=1):
        obs, reward, *_ = env.step(action)
        frames = [plain.step(action) for _ in range(2)]
        np.testing.assert_array_equal(obs, frames[1][0].astype(np.float32))
        assert reward == sum(frame[1] for frame in frames)
    assert not np.array_equal(env.reset()[0], began), "the next episode is another"
    assert not np.array_equal(ours(name).reset()[0], ours(name).reset()[0]), "both unseeded"
    assert np.array_equal(np.random.get_state()[1], untouched)  # noqa: NPY002


@there
def test_camera_is_the_moved_corner2_with_its_rows_bottom_up():
    import mujoco

    env, plain = ours(pixels=True), bare(seed=3)
    assert plain.model.camera(2).name == "corner2"
    obs, _ = env.reset(seed=3)
    plain.reset()
    plain.model.cam_pos[2] = [0.75, 0.075, 0.7]
    mujoco.mj_forward(plain.model, plain.data)
    renderer = mujoco.Renderer(plain.model, 84, 84)
    for action in [None, *actions_of(env, 3)]:
        if action is not None:
            obs, *_ = env.step(action)
            for _ in range(2):
                plain.step(action)
        renderer.update_scene(plain.data, camera=2)
        upside_down = obs[-3:].transpose(1, 2, 0)[::-1]
        np.testing.assert_array_equal(upside_down, renderer.render())
    renderer.close()
    env.close()


@there
def test_images_are_upright_and_mirrored():
    def hand(image):
        """Row and column of the cyan finger."""
        red, green, blue = image.transpose(2, 0, 1).astype(int)
        return np.argwhere((green > 150) & (blue > 150) & (red < 90)).mean(0)

    for action, place in (((0, 0, 1, 0), 0), ((0, 1, 0, 0), 1)):
        env = ours("metaworld/reach", videos=True)
        env.reset(seed=0)
        before = hand(envs.frame_renderer(env)(128))
        for _ in range(10):
            env.step(np.array(action, np.float32))
        after = hand(envs.frame_renderer(env)(128))
        assert after[place] < before[place] - 5, "up is up; away from the robot's foot is left"
        env.close()


@there
def test_first_image_shows_the_new_episode_three_times():
    env, fresh = ours(pixels=True), ours(pixels=True)
    env.reset(seed=0)
    env.step(np.ones(4, np.float32))
    obs, _ = env.reset(seed=1)
    np.testing.assert_array_equal(obs, fresh.reset(seed=1)[0])
    assert np.array_equal(obs[:3], obs[3:6]) and np.array_equal(obs[:3], obs[6:])
    still = env.step(np.zeros(4, np.float32))[0]
    moved = np.abs(still[-3:].astype(int) - obs[-3:]).max(0) > 60
    assert moved.mean() < 0.005, "neither the machine nor the goal has jumped"
    env.close()
    fresh.close()


@there
@pytest.mark.parametrize("task", ["coffee-push", "dial-turn"])
def test_what_is_drawn_after_a_reset_is_where_the_reset_put_it(task):
    import mujoco

    env = ours(f"metaworld/{task}")
    env.reset(seed=0)
    data = env.unwrapped.data
    fields = ("xpos", "geom_xpos", "geom_xmat", "site_xpos", "cam_xpos", "cam_xmat", "light_xpos")
    drawn = {name: getattr(data, name).copy() for name in fields}
    mujoco.mj_forward(env.unwrapped.model, data)
    for name in fields:
        np.testing.assert_array_equal(getattr(data, name), drawn[name])


@there
def test_settings_of_the_image_are_heeded():
    env = ours(pixels=True, image_size=48, frame_stack=2, action_repeat=3, camera=0)
    obs, _ = env.reset(seed=0)
    assert obs.shape == env.observation_space.shape == (6, 48, 48)
    usual, fast = (ours(pixels=True, image_size=48, render=how) for how in ("exact", "fast"))
    exact = usual.reset(seed=0)[0]
    assert not np.array_equal(obs[:3], exact[:3])
    difference = np.abs(exact.astype(int) - fast.reset(seed=0)[0])
    assert 0 < difference.mean() < 30
    with pytest.raises(ConfigError, match=r"env.camera: expected a number from -1 .* to 6, rec"):
        ours(pixels=True, camera=7).reset()
    for one in (env, usual, fast):
        one.close()


@there
@pytest.mark.parametrize(("repeat", "steps"), [(2, 250), (3, 167)])
def test_episode_is_500_frames_and_is_truncated(repeat, steps):
    env = ours("metaworld/reach", action_repeat=repeat)
    for _ in range(2):
        env.reset(seed=0)
        endings = [env.step(np.zeros(4, np.float32))[2:4] for _ in range(steps)]
        assert endings[-1] == (False, True) and set(endings[:-1]) == {(False, False)}


@there
def test_success_is_of_the_episode_and_stays():
    from metaworld.policies import SawyerReachV3Policy

    env, policy = ours("metaworld/reach"), SawyerReachV3Policy()
    obs, over, told, reached = env.reset(seed=0)[0], False, [], []
    while not over:
        action = policy.get_action(obs.astype(np.float64))
        if len(told) > 150:
            action = np.array([0.0, -1.0, 1.0, 0.0])  # away again
        obs, _, _, over, info = env.step(np.asarray(action, np.float32))
        told.append(info["success"])
        reached.append(np.linalg.norm(obs[:3] - obs[-3:]) < 0.05)
    assert not told[0] and told[-1] is True and told == sorted(told)
    assert told.index(True) < 150 and not reached[-1]
    env.reset(seed=0)
    assert env.step(np.zeros(4, np.float32))[4]["success"] is False


@there
def test_another_process_gives_the_same_episode(tmp_path):
    script = tmp_path / "episode.py"
    script.write_text(
        "import hashlib, sys, numpy as np\n"
        "sys.path[:0] = [sys.argv[1], sys.argv[1] + '/tests']\n"
        "from test_metaworld import ours, actions_of\n"
        "np.random.seed(int(sys.argv[2]))\n"
        "env = ours('metaworld/hammer', pixels=True)\n"
        "obs = [env.reset(seed=7)[0]] + [env.step(a)[0] for a in actions_of(env, 3)]\n"
        "print(hashlib.sha256(np.concatenate(obs)).hexdigest())\n"
        "env.close()\n",
        encoding="utf-8",
    )
    said = [
        subprocess.run(
            [sys.executable, "-W", "ignore", str(script), str(ROOT), seed],
            cwd=tmp_path,
            capture_output=True,
            encoding="utf-8",
        )
        for seed in ("1", "2")
    ]
    assert said[0].stdout == said[1].stdout and len(said[0].stdout) == 65, said[0].stderr
    assert [one.stderr for one in said] == ["", ""]
    assert [path.name for path in tmp_path.iterdir()] == ["episode.py"], "MuJoCo left its log"


# --- save and restore ---


@there
@pytest.mark.parametrize("name", metaworld.names())
def test_every_task_returns_to_the_bit_by_mujocos_state(name):
    env = ours(name)
    assert self_test(env, make_fresh=partial(ours, name)) == "mujoco"
    assert self_test(env.unwrapped) == "mujoco"
    env.reset(seed=0)
    assert set(save(env).versions) == {"mujoco", "metaworld"}


@there
@pytest.mark.parametrize("task", ["coffee-push", "lever-pull", "soccer", "sweep-into", "hammer"])
def test_restored_env_continues_to_the_bit_through_its_end(task):
    check_contract(partial(ours, f"metaworld/{task}"), "mujoco", points=(0, 13, 200), after=60)


@there
def test_pixels_continue_to_the_bit():
    env, fresh = ours(pixels=True), ours(pixels=True)
    fresh.reset(seed=9)
    env.reset(seed=1)
    actions = actions_of(env, 4)
    data = save(env).to_bytes()
    expected, after = record(env, actions), envs.frame_renderer(env)(64)
    restore(fresh, EnvState.from_bytes(data))
    assert_same(record(fresh, actions), expected)
    np.testing.assert_array_equal(envs.frame_renderer(fresh)(64), after)
    env.close()
    fresh.close()


@there
def test_loaded_episode_continues_to_the_bit():
    env, other = (ResumableEnv(ours(), np.random.default_rng(seed)) for seed in (0, 1))
    env.reset()
    actions = actions_of(env, 40)
    record(env, actions[:7])
    other.load_state_dict(env.state_dict())
    np.testing.assert_array_equal(other.obs, env.obs)
    assert_same(record(other, actions), record(env, actions))
    assert_same(other.reset()[0], env.reset()[0])


# --- SnapshotRL and the commands ---


@there
@pytest.mark.parametrize("task", ["coffee-push", "window-close"])
def test_episode_from_a_snapshot_continues_as_the_teachers_did(task):
    name = f"metaworld/{task}"
    teacher = ours(name)
    actions = actions_of(teacher, 40)
    seen = [(teacher.reset(seed=11)[0], 0.0, {})]
    seen += [(obs, reward, info) for obs, reward, *_, info in map(teacher.step, actions)]
    snapshots = from_actions(ours(name), [(11, actions)], every_steps=10)
    student = SnapshotRL(ours(name), snapshots, truncate_steps=None)
    for index in (3, 1, 0):
        obs, info = student.reset(seed=99, options={"snapshot": index})
        step = int(snapshots.steps[index])
        assert info["snapshot"] == index and step == 10 * index
        np.testing.assert_array_equal(obs, seen[step][0])
        for action, (obs, reward, info) in zip(actions[step:], seen[step + 1 :], strict=True):
            received = student.step(action)
            np.testing.assert_array_equal(received[0], obs)
            assert received[1] == reward and received[4]["obj_to_target"] == info["obj_to_target"]
    steps, over = 0, False
    student.reset(seed=0, options={"snapshot": 3})
    while not over:
        steps, over = steps + 1, student.step(np.zeros(4, np.float32))[3]
    assert steps == 250, "the teacher's 30 steps are not on the student's clock"


@there
def test_pixels_show_the_restored_world_three_times():
    teacher = ours()
    actions = actions_of(teacher, 21)
    snapshots = from_actions(ours(), [(11, actions)], every_steps=10)
    student, teacher = SnapshotRL(ours(pixels=True), snapshots), ours(pixels=True)
    teacher.reset(seed=11)
    for action in actions[:20]:
        expected, *_ = teacher.step(action)
    for seed in (0, 1):
        obs, _ = student.reset(seed=seed, options={"snapshot": 2})
        np.testing.assert_array_equal(obs, np.tile(expected[-3:], (3, 1, 1)))
    student.close()
    teacher.close()


@there
def test_resumed_run_equals_uninterrupted_run(tmp_path):
    words = ("env=metaworld/reach", "env.action_repeat=2", "train_frames=700")

    def trainer(folder):
        return make_trainer(tmp_path / folder, *words, base=TINY_STATE["td3"])

    straight, stopped = trainer("straight"), trainer("resumed")
    assert straight.run()
    stopped.stop_requested = lambda: stopped.steps >= 270
    assert not stopped.run()
    stopped.close()
    resumed = trainer("resumed")
    resumed.resume()
    assert resumed.run()
    assert plain(straight.state_dict()) == plain(resumed.state_dict())


@there
def test_teacher_teaches_a_visual_student(tmp_path):
    def command(name, *words):
        done = rlearly(name, *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr

    words = [f"env={TASK}", "eval_every_frames=0", "device=cpu", "threads=1"]
    states = ["agent=td3", "train_frames=1200", "agent.learning_starts_steps=500"]
    command("train", *words, *states, "run_dir=teacher")
    command("teacher", "run=teacher", "out=t.h5", "episodes=2", "every_steps=50")
    assert Snapshots.load(tmp_path / "t.h5").env_id == TASK
    small = ["agent.batch_size=8", "agent.hidden_dim=16", "env.render=fast", "seed_frames=300"]
    command(
        *("train", *words, *small, "agent=drm", "train_frames=700", "snapshot=t.h5"),
        *("run_dir=student", "snapshot_phase.truncate_steps=50", "snapshot_phase.until_steps=100"),
        *("video_size=64", "eval_every_frames=700", "eval_episodes=1"),
    )
    assert list((tmp_path / "student").glob("**/*.mp4"))
    rows = [
        json.loads(line) for line in (tmp_path / "student" / "metrics.jsonl").open(encoding="utf-8")
    ]
    assert any("train/snapshot_episode_return" in row for row in rows)
