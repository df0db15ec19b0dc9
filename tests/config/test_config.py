"""The command line's grammar, precedence and sentences."""

import os
import re
from pathlib import Path

import pytest

from rlearly.agents import drm, drqv2
from rlearly.config import presets
from rlearly.config.resolve import RESUMABLE, compose, load
from rlearly.config.structured import as_yaml
from rlearly.core.errors import ConfigError
from rlearly.envs import dm_control
from rlearly.training.run_directory import create


def test_defaults_are_the_papers():
    config = compose(["agent=drqv2", "env=cheetah_run"])
    assert (config.agent.lr, config.agent.batch_size, config.agent.nstep) == (1e-4, 256, 3)
    assert (config.agent.feature_dim, config.agent.hidden_dim, config.agent.std_clip) == (
        50,
        1024,
        0.3,
    )
    assert (config.seed_frames, config.agent.exploration_steps, config.replay_ratio) == (
        4000,
        2000,
        0.5,
    )
    assert (config.env.action_repeat, config.env.frame_stack, config.env.image_size) == (2, 3, 84)
    assert (config.eval_every_frames, config.eval_episodes) == (10_000, 10)
    assert config.replay.capacity == 1_000_000 and config.env.pixels is True


# papers.md, section 2: task -> frames, alpha_max, lr, feature_dim, noise steps
TABLE = {
    "cartpole_balance": (210_000, 1.0, 1e-4, 50, 40_000),
    "acrobot_swingup": (3_100_000, 1.0, 1e-4, 50, 500_000),
    "cartpole_swingup_sparse": (3_100_000, 1.0, 1e-4, 50, 500_000),
    "cheetah_run": (3_100_000, 1.0, 1e-4, 50, 500_000),
    "hopper_hop": (3_100_000, 1.0, 1e-4, 50, 500_000),
    "quadruped_walk": (3_100_000, 1.0, 1e-4, 50, 500_000),
    "quadruped_run": (3_100_000, 1.0, 1e-4, 50, 500_000),
    "reacher_easy": (3_100_000, 1.0, 1e-4, 50, 500_000),
    "reacher_hard": (3_100_000, 1.0, 1e-4, 50, 500_000),
    "walker_run": (3_100_000, 1.0, 1e-4, 50, 500_000),
    "dog_stand": (30_100_000, 0.6, 8e-5, 100, 2_000_000),
    "dog_walk": (30_100_000, 0.6, 8e-5, 100, 2_000_000),
    "dog_run": (30_100_000, 0.6, 8e-5, 100, 2_000_000),
    "dog_trot": (30_100_000, 0.9, 8e-5, 100, 2_000_000),
    "humanoid_run": (30_100_000, 0.6, 8e-5, 100, 2_000_000),
    "humanoid_stand": (30_100_000, 0.9, 8e-5, 100, 2_000_000),
    "humanoid_walk": (30_100_000, 0.9, 8e-5, 100, 2_000_000),
    "manipulator_bring_ball": (30_100_000, 0.9, 8e-5, 50, 2_000_000),
    "acrobot_swingup_sparse": (30_100_000, 0.9, 1e-4, 50, 2_000_000),
}


@pytest.mark.parametrize("env", TABLE)
def test_tuned_pairs_are_the_papers_table(env):
    config = compose(["agent=drm", f"env={env}"])
    agent = config.agent
    assert TABLE[env] == (
        config.train_frames,
        agent.alpha_max,
        agent.lr,
        agent.feature_dim,
        agent.std_duration_steps,
    )
    assert agent.lambda_max == 0.6 and agent.expectile == 0.9 and not agent.lambda_constant
    assert agent.batch_size == (512 if env == "walker_run" else 256)
    assert config.replay.capacity == (100_000 if env.startswith("quadruped") else 1_000_000)


def test_tuned_rows_of_metaworld_and_adroit():
    both = [
        "train_frames=2100000",
        "agent.nstep=3",
        "agent.nstep_schedule='decay(3,7,1000000)'",
        "agent.discount=0.997",
        "agent.discount_schedule='decay(0.997,-0.02,500000,-0.007,1600000)'",
        "agent.q_dropout=0.01",
        "agent.q_layer_norm=true",
    ]
    drms = ["agent.alpha_max=0.95", "agent.lambda_max=0.5", "agent.lambda_constant=true"]
    assert presets.tuned("drqv2", "metaworld/coffee-push") == both
    assert presets.tuned("drm", "metaworld/coffee-push") == both + drms
    assert "agent.expectile=0.6" in presets.tuned("drm", "adroit/door")
    for task in ("hammer", "pen", "relocate"):
        assert "agent.expectile=0.7" in presets.tuned("drm", f"adroit/{task}")
    assert "env.frame_stack=1" in presets.tuned("drqv2", "adroit/pen")


def test_every_control_task_composes_for_every_agent_and_preset():
    for name in dm_control.names():
        for preset in ("paper", "cpu"):
            config = compose(["agent=drm", f"env={name}", f"preset={preset}"])
            assert isinstance(config.agent, drm.Config)


def test_precedence_is_agent_then_pair_then_preset_then_words():
    pair = compose(["agent=drm", "env=dog_run"])
    preset = compose(["agent=drm", "env=dog_run", "preset=cpu"])
    words = compose(["agent.lr=5e-4", "agent=drm", "env=dog_run", "preset=cpu"])
    assert pair.agent.lr == 8e-5 and preset.agent.lr != 8e-5 and words.agent.lr == 5e-4


def test_gymnasium_is_state_by_default_and_pixels_when_asked():
    state = compose(["agent=drqv2", "env=HalfCheetah-v5"])
    assert state.env.pixels is None and state.env.action_repeat == 1
    for word in ("env.pixels=true", "obs=pixels"):
        config = compose(["agent=drqv2", "env=HalfCheetah-v5", word])
        assert config.env.pixels is True and config.env.action_repeat == 2
    preset = compose(["env=HalfCheetah-v5", "env.pixels=true", "preset=cpu"])
    assert preset.env.action_repeat == 4, "the preset wins over the env's default"
    assert compose(["env=dog_run", "obs=state"]).env.pixels is False
    with pytest.raises(ConfigError, match=r"obs=state contradicts env.pixels=true"):
        compose(["env=dog_run", "obs=state", "env.pixels=true"])


SENTENCES = {
    "agent=drmm env=dog_run": r"There is no agent 'drmm'; did you mean drm\?",
    "env=dog_runn": r"There is no env 'dog_runn'; did you mean dog_run",
    "agent=drm env=": r"env: expected the name of an env",
    "agent=drm": r"env: expected the name of an env",
    "env=dog_run sed=1": r"There is no key 'sed'; did you mean seed",
    "env=dog_run lr=1": r"There is no key 'lr'; did you mean .*agent\.lr",
    "env=dog_run agent.lrr=1": r"There is no key 'agent\.lrr'; did you mean agent\.lr",
    "env=dog_run agent.batch_size=many": r"agent\.batch_size: expected int, received 'many'",
    "env=dog_run seed=1.5": r"seed: expected int, received 1\.5",
    "env=dog_run train_frames=-5": r"train_frames: expected a number at least 1, received -5",
    "env=dog_run agent.lr=0": r"agent\.lr: expected a number above 0, received 0\.0",
    "env=dog_run wandb.mode=on": r"wandb\.mode: expected one of disabled, offline, online",
    "env=dog_run preset=gpu": r"preset: expected one of paper, cpu, received 'gpu'",
    "env=dog_run preset=[cpu]": r"preset: expected one of paper, cpu, received '\[cpu\]'",
    "env=dog_run run_dir=???": r"run_dir: expected a value other than \?\?\?",
    "env=dog_run agent = td3": r"no spaces around =, received 'agent = td3'; write agent=td3\.",
    "env=dog_run agent= td3": r"no spaces around =, received 'agent= td3'; write agent=td3\.",
    "env=dog_run agent =td3": r"no spaces around =, received 'agent =td3'; write agent=td3\.",
    "env=dog_run seed=1,2": r"seed: expected one value, received the list",
    "env=dog_run +x=1": r"keys cannot be added or deleted",
    "env=dog_run seed": r"Expected key=value, received 'seed'",
    "env=dog_run env.name=cat_run": r"env\.name: is set by env=NAME",
    "env=dog_run agent=[drm]": r"There is no agent '\[drm\]'",
    "env=dog_run video_size=512": r"video_size: expected a number at most 480",
    "env=dog_run video_size=25": r"video_size: expected a number multiple of 8",
    "env=dog_run env.image_size=14": r"env\.image_size: expected a number at least 15",
    "env=dog_run replay_ratio=inf": r"replay_ratio: expected a number above 0 and at most 100",
    "env=dog_run replay=5": r"replay: expected one of its keys, replay\.capacity",
    "env=dog_run env.kwargs={frame_skip:4}": r"env\.kwargs: .*dm_control task, which takes none",
    "env=dog_run replay.capacity=5": r"replay\.capacity: expected a number at least 10",
}


@pytest.mark.parametrize("words", SENTENCES)
def test_bad_input_gets_one_sentence(words):
    with pytest.raises(ConfigError, match=SENTENCES[words]):
        compose(words.split())


def test_all_values_out_of_bounds_are_reported_together():
    with pytest.raises(ConfigError) as error:
        compose(["env=dog_run", "train_frames=0", "agent.discount=2"])
    assert "train_frames" in str(error.value) and "agent.discount" in str(error.value)


def test_whole_floats_are_taken_as_ints():
    assert compose(["env=dog_run", "train_frames=3.1e6"]).train_frames == 3_100_000


def test_quoted_text_inside_a_group_is_text():
    config = compose(["env=Ant-v5", "env.kwargs={xml_file: 'ant.xml', frame_skip: 4}"])
    assert config.env.kwargs == {"xml_file": "ant.xml", "frame_skip": 4}


def test_directories_of_one_second_do_not_collide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = compose(["env=dog_run"])
    assert len({create(config) for _ in range(5)}) == 5


def test_saved_config_loads_equal_and_only_some_keys_may_change(tmp_path):
    config = compose(
        ["agent=drm", "env=HalfCheetah-v5", "env.kwargs={frame_skip: 4}", f"run_dir={tmp_path}/r"]
    )
    folder = create(config)
    assert load(folder) == config
    assert load(folder, ["train_frames=9"]).train_frames == 9
    with pytest.raises(ConfigError, match=re.escape("seed: cannot change when a run is resumed")):
        load(folder, ["seed=3"])
    with pytest.raises(ConfigError, match="holds a run already"):
        create(config)
    with pytest.raises(ConfigError, match="is not a run directory"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        load(tmp_path / "nowhere")
    (folder / "config.yaml").write_text("agent_name: [", encoding="utf-8")
    with pytest.raises(ConfigError, match="does not load as a run's config"):
        load(folder)
    assert all(key.split(".")[0] in as_yaml(config) for key in RESUMABLE)


def test_folder_of_runs_names_the_newest_of_them(tmp_path, monkeypatch):
    for age, name in enumerate(("a/0", "a/1", "b/c/2", "d", "e/no_checkpoints")):
        run = tmp_path / name
        run.mkdir(parents=True)
        (run / "config.yaml").touch()
        if "no" not in name:
            (run / "checkpoints").mkdir()
            os.utime(run / "checkpoints", (1000 - age, 1000 - age))
    newest = ", ".join(f"{tmp_path}/{name}" for name in ("a/0", "a/1", "b/c/2"))
    with pytest.raises(ConfigError, match=re.escape(f"inside it, newest first: {newest}.")):
        load(tmp_path)
    there = re.escape(f"a/2 does not exist; runs inside {tmp_path}/a, newest first: {tmp_path}/a/0")
    with pytest.raises(ConfigError, match=there):
        load(tmp_path / "a" / "2")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b").rename("runs")
    with pytest.raises(ConfigError, match="x does not exist; runs inside runs, newest first: runs"):
        load(Path("x"))


def test_drm_has_every_key_of_drqv2():
    assert set(drqv2.Config.__dataclass_fields__) < set(drm.Config.__dataclass_fields__)
