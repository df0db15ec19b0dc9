"""rlearly.train and rlearly.load: runs and policies in somebody's own program."""

import json
import shutil
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import tiny_envs
import torch
from conftest import TINY, TINY_STATE
from gymnasium.spaces import Box

import rlearly
from rlearly.api.run import split_path
from rlearly.api.settings import overrides_of
from rlearly.core.errors import ConfigError, RunFailed
from rlearly.system.seeding import Seeds, episode_seed

SHORT = {"train_frames": 260, "eval_every_frames": 130, "eval_episodes": 3, "progress": False}
EVALUATED = ("eval_every_frames=", "train_frames=")


def settings(agent, folder):
    words = TINY_STATE.get(agent, [*TINY, f"agent={agent}"])
    words = [w for w in words if not w.startswith(EVALUATED)]
    return [*words, "threads=1", "video_size=0", f"run_dir={folder}"]


def played(policy, env, seeds):
    """Returns of episodes of an env itself, which a policy plays."""
    returns = []
    for seed in seeds:
        obs, info = env.reset(seed=seed)
        policy.reset()
        total, over = 0.0, False
        while not over:
            action = policy(obs, action_mask=info.get("action_mask"))
            obs, reward, terminated, truncated, info = env.step(action)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    return returns


def evaluation_seeds(seed, *position, episodes=3):
    generator = np.random.Generator(np.random.PCG64(Seeds(seed).sequence("evaluation", *position)))
    return [episode_seed(generator) for _ in range(episodes)]


class StackedBoard(tiny_envs.StateReach):
    """StateReach with integer actions of another range, and a nested observation."""

    observation_space = gymnasium.spaces.Dict(
        goal=Box(-1, 1, (1,), np.float64), point=Box(-1, 1, (1, 1), np.float32)
    )
    action_space = Box(-3, 5, (1, 1), np.float32)

    def reset(self, **kwargs):
        obs, info = super().reset(**kwargs)
        return {"goal": obs[:1].astype(np.float64), "point": obs[1:, None]}, info

    def step(self, action):
        obs, *rest = super().step((np.ravel(action) - 1) / 4)
        return {"goal": obs[:1].astype(np.float64), "point": obs[1:, None]}, *rest


ENVS = {
    "td3": tiny_envs.StateReach,
    "sac": tiny_envs.StateReach,
    "ppo": tiny_envs.StateReach,
    "drq_eps": tiny_envs.MaskedReach,
    "drqv2": tiny_envs.PixelReach,
    "drm": tiny_envs.PixelReach,
}


@pytest.mark.parametrize("agent", ENVS)
def test_policy_plays_the_env_itself_as_the_evaluations_did(agent, tmp_path):
    words = [w for w in settings(agent, tmp_path / "run") if not w.startswith("env=")]
    run = rlearly.train(*words, env=ENVS[agent], **SHORT)
    env = ENVS[agent]()
    assert played(run.policy, env, evaluation_seeds(5)) == run.evaluate(3, seed=5).returns
    in_training = run.metrics()["eval/episode_return"]
    last = in_training[~np.isnan(in_training)][-1]
    assert np.mean(played(run.policy, env, evaluation_seeds(0, 260))) == last
    again = rlearly.load(tmp_path / "run").policy
    assert played(again, env, evaluation_seeds(5)) == run.evaluate(3, seed=5).returns


def test_policy_takes_nested_observations_and_gives_actions_of_the_envs_own_shape(tmp_path):
    words = [w for w in settings("sac", tmp_path / "run") if not w.startswith("env=")]
    run = rlearly.train(*words, env=StackedBoard, **SHORT)
    env = StackedBoard()
    obs, _ = env.reset(seed=0)
    action = run.policy(obs)
    assert env.action_space.contains(action)
    many = {"goal": np.stack([obs["goal"]] * 4), "point": np.stack([obs["point"]] * 4)}
    actions = run.policy(many)
    assert actions.shape == (4, 1, 1)
    np.testing.assert_allclose(actions, np.stack([action] * 4), atol=1e-6)
    assert not np.array_equal(run.policy(obs, deterministic=False), action)
    with pytest.raises(ConfigError, match=r"expected one observation of the env.*received a dict"):
        run.policy({"goal": obs["goal"]})


def test_drawing_actions_does_not_change_what_a_ppo_policy_takes_for_the_mean(tmp_path):
    run = rlearly.train(*settings("ppo", tmp_path / "run"), **SHORT)
    obs = np.array([0.3, -0.2], np.float32)
    before = run.policy(obs)
    drawn = [run.policy(obs, deterministic=False) for _ in range(50)]
    assert len({float(action[0]) for action in drawn}) > 20  # some are clipped
    np.testing.assert_array_equal(run.policy(obs), before)
    assert len(run.policy.agent.acted) == len(rlearly.load(run.path).policy.agent.acted)


def test_pixel_policy_begins_a_new_stack_of_frames_at_a_reset(tmp_path):
    run = rlearly.train(*settings("drqv2", tmp_path / "run"), **SHORT)
    frames = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)
    first = [run.policy(frame) for frame in frames]
    unlike = run.policy(frames[0])
    run.policy.reset()
    again = [run.policy(frame) for frame in frames]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(unlike, first[0])
    run.policy.reset()
    batch = [run.policy(np.stack([frame, frame])) for frame in frames[:2]]
    run.policy.reset(np.array([True, False]))
    batch.append(run.policy(np.stack([frames[0], frames[2]])))
    np.testing.assert_allclose(batch[2][0], first[0], atol=1e-6)
    np.testing.assert_allclose(batch[2][1], first[2], atol=1e-6)


def test_an_interrupted_run_is_returned_and_resumed_to_the_same_end(tmp_path, monkeypatch):
    from rlearly.api import session
    from rlearly.training.stop_requests import StopRequests

    class Soon(StopRequests):
        asked = 0

        def __call__(self):
            self.asked += 1
            return self.asked > 150

    whole = rlearly.train(*settings("td3", tmp_path / "whole"), **SHORT)
    with monkeypatch.context() as patch:
        patch.setattr(session, "StopRequests", Soon)
        run = rlearly.train(*settings("td3", tmp_path / "run"), **SHORT)
    assert not run.finished and run.checkpoints[-1] < 260
    done = rlearly.train(resume=run.path, progress=False)
    assert done.finished
    obs = np.array([0.3, -0.2], np.float32)
    np.testing.assert_array_equal(done.policy(obs), whole.policy(obs))


def test_a_failed_run_raises_and_keeps_its_details(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    words = [w for w in settings("td3", "../run") if not w.startswith("env=")]
    with pytest.raises(
        RunFailed, match=r"stopped at \d+ frames.*ZeroDivisionError.*resume=\.\./run$"
    ):
        rlearly.train(*words, env=tiny_envs.Faulty, **SHORT)
    assert (tmp_path / "run" / "failure.json").is_file()


def test_a_wrong_setting_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(ConfigError, match=r"agnt.*did you mean"):
        rlearly.train(*settings("td3", tmp_path / "run"), agnt="td3")
    with pytest.raises(ConfigError, match="of the class object"):
        rlearly.train(agent="td3", env="Pendulum-v1", seed=object())
    with pytest.raises(ConfigError, match="env: expected an env's name"):
        rlearly.train(agent="td3", env=3)
    assert not (tmp_path / "run").exists()


def test_nothing_is_printed_without_progress(tmp_path, capfd):
    rlearly.train(*settings("td3", tmp_path / "run"), **SHORT)
    assert capfd.readouterr() == ("", "")


def test_settings_of_python_are_those_of_the_command_line():
    given = {
        "agent": "td3",
        "agent__lr": 3e-4,
        "agent.hidden_dim": np.int64(32),
        "replay": {"capacity": 1000, "compression": "none"},
        "intervention": ["redo", "layer_norm"],
        "overlap": None,
        "compile": False,
        "env.kwargs": {"a": 1.5, "b": "x y"},
        "wandb__group": "it's $HOME",
    }
    assert overrides_of(given) == [
        "agent=td3",
        "agent.lr=0.0003",
        "agent.hidden_dim=32",
        "replay.capacity=1000",
        "replay.compression=none",
        "intervention=['redo','layer_norm']",
        "overlap=null",
        "compile=false",
        "env.kwargs={a:1.5,b:'x y'}",
        "wandb.group=it's $HOME",
    ]


def test_metrics_are_columns_of_equal_length(tmp_path):
    import pandas

    run = rlearly.train(*settings("td3", tmp_path / "run"), **SHORT)
    table = run.metrics()
    frame = pandas.DataFrame(table)
    assert table["frames"].dtype == np.int64 and len(frame) == len(table["frames"])
    evaluated = frame.dropna(subset="eval/episode_return")
    assert list(evaluated["frames"]) == [130, 260]


def test_path_with_a_checkpoint_is_split_at_the_last_at_sign(tmp_path):
    assert split_path("runs/a@3") == (split_path("runs/a")[0], 3)
    assert split_path("runs/a@best")[1] == "best" and split_path("runs/a@newest")[1] is None
    (tmp_path / "me@home").mkdir()
    assert split_path(tmp_path / "me@home") == (tmp_path / "me@home", None)
    with pytest.raises(ConfigError, match="RUN_DIR@FRAMES"):
        split_path("runs/a@later")


def test_load_refuses_what_is_no_run_and_checkpoints_that_are_not_kept(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        rlearly.load(tmp_path / "nothing")
    run = rlearly.train(*settings("td3", tmp_path / "run"), **SHORT)
    assert rlearly.load(f"{run.path}@260").frames == 260
    with pytest.raises(ConfigError, match=r"there is none at 7 frames.*kept: 260"):
        rlearly.load(f"{run.path}@7")


def test_loading_leaves_torch_as_it_was(tmp_path):
    run = rlearly.train(*settings("ppo", tmp_path / "run"), **SHORT)
    before = torch.get_num_threads(), torch.get_rng_state().tolist()
    run.policy(np.zeros(2, np.float32))
    run.evaluate(1)
    assert (torch.get_num_threads(), torch.get_rng_state().tolist()) == before


@pytest.mark.parametrize("name", ["rlearly.train", "rlearly.sweep", "rlearly.report"])
def test_commands_are_still_modules(name):
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}; print({name}.main, callable({name}))"],
        capture_output=True,
        encoding="utf-8",
    )
    assert done.stdout.startswith("<function main") and done.stdout.endswith("True\n"), done.stderr


def test_import_takes_less_than_a_third_of_torchs(tmp_path):
    script = "import sys, rlearly; assert not {'torch', 'numpy', 'gymnasium'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr


def test_a_run_of_an_older_format_is_refused_with_both_numbers(tmp_path):
    run = rlearly.train(*settings("td3", tmp_path / "run"), **SHORT)
    manifest = run.path / "checkpoints" / f"{260:012d}" / "manifest.json"
    older = json.loads(manifest.read_text(encoding="utf-8")) | {"format": 7}
    manifest.write_text(json.dumps(older), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"has format 7; this version reads format \d+"):
        rlearly.load(run.path).policy  # noqa: B018
    with pytest.raises(ConfigError, match="has format 7"):
        run.evaluate(1)


def test_a_checkpoint_that_is_being_written_is_not_loaded(tmp_path):
    run = rlearly.train(*settings("td3", tmp_path / "run"), **SHORT)
    whole = run.path / "checkpoints" / f"{260:012d}"
    shutil.copytree(whole, whole.with_name(f".{400:012d}.partial"))
    assert rlearly.load(run.path).frames == 260
    whole.rename(whole.with_name(f".{260:012d}.partial"))
    with pytest.raises(ConfigError, match=r"There is no checkpoint in .*has not saved one"):
        rlearly.load(run.path).policy  # noqa: B018


def test_an_env_is_given_again_only_to_a_run_that_was_given_one(tmp_path):
    words = [w for w in settings("td3", tmp_path / "named") if not w.startswith("env=")]
    named = rlearly.train(*words, env=tiny_envs.StateReach, **SHORT)
    with pytest.raises(ConfigError, match="which is made from its name; leave env out"):
        rlearly.load(named.path, env=StackedBoard)
    words = [w for w in words if not w.startswith("run_dir=")]
    given = {"env": lambda: tiny_envs.StateReach(), "run_dir": tmp_path / "given"}
    run = rlearly.train(*words, **given, **SHORT)
    with pytest.raises(
        ConfigError, match=r"expected observations of .*2.*received .*4.*use the env"
    ):
        rlearly.load(run.path, env=lambda: FourNumbers()).policy  # noqa: B018


class FourNumbers(StackedBoard):
    """An env with other spaces."""

    observation_space = gymnasium.spaces.Dict(
        goal=Box(-1, 1, (1,), np.float64), point=Box(-1, 1, (1, 3), np.float32)
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda env: setattr(env.unwrapped, "g", 3.0) or env,
        gymnasium.wrappers.TimeAwareObservation,
        lambda env: env,
    ],
    ids=["changed", "wrapped", "as it was made"],
)
def test_a_run_on_an_env_object_is_loaded_and_resumed_with_it(change, tmp_path):
    env = change(gymnasium.make("Pendulum-v1"))
    short = {"agent__learning_starts_steps": 50, "eval_every_frames": 0, "progress": False}
    run = rlearly.train(agent="td3", env=env, train_frames=60, run_dir=tmp_path / "r", **short)
    again = {"env": env} if run.config.env.name.startswith("given/") else {}
    assert len(rlearly.load(run.path, **again).evaluate(1).returns) == 1
    assert rlearly.train(resume=run, train_frames=80, progress=False, **again).finished


def test_a_function_that_returns_the_same_env_again_is_refused(tmp_path):
    env = gymnasium.make("Pendulum-v1")
    short = {"train_frames": 60, "eval_every_frames": 30, "progress": False}
    with pytest.raises(ConfigError, match="the function returned the same env twice"):
        rlearly.train(agent="td3", env=lambda: env, run_dir=tmp_path / "r", **short)


def test_an_export_uses_one_checkpoint_though_the_run_trains_on(tmp_path, monkeypatch):
    from rlearly.api import export

    words = [w for w in settings("td3", tmp_path / "r") if not w.startswith("checkpoint_every")]
    short = {**SHORT, "eval_every_frames": 0}
    run = rlearly.train(*words, "checkpoint_every_frames=130", **short)
    recorded = export._recorded

    def trains_on(*arguments):
        rlearly.train(resume=run, train_frames=360, progress=False)
        return recorded(*arguments)

    monkeypatch.setattr(export, "_recorded", trains_on)
    assert run.export(tmp_path / "p.pt").manifest["frames"] == 260


def test_wrong_arguments_are_refused_in_a_sentence(tmp_path):
    run = rlearly.train(*settings("td3", tmp_path / "run"), **SHORT)
    obs = np.zeros(2, np.float32)
    for given in ((obs, {}), np.zeros((0, 2))):
        with pytest.raises(ConfigError, match="observation: expected one observation of the env"):
            run.policy(given)
    with pytest.raises(ConfigError, match="episodes: expected a number of at least 1"):
        run.evaluate(0)
    with pytest.raises(ConfigError, match="video: expected the path"):
        run.evaluate(1, video=True)
    with pytest.raises(ConfigError, match=r'put it into a module.*env="my_module:NAME"'):
        rlearly.sweep(agent="td3", env=lambda: None, seeds=1)
    assert "returns" not in str(rlearly.report([run, run], out=tmp_path / "c.png").path)
