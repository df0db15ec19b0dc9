"""An agent in a module of the user's own, in every command."""

import json
import os
import sys

import numpy as np
import pytest
from saved import plain, rows
from test_trainer import make_trainer

import rlearly
from rlearly import evaluate, report, sweep, teacher, train
from rlearly.config import resolve
from rlearly.core.errors import ConfigError
from rlearly.training.run_directory import create

RUN = (
    "agent=plugin_parts:linear_q",
    "env=tiny_envs:StepReach-v0",
    "eval_every_frames=100",
    "eval_episodes=1",
    "train_frames=200",
    "threads=1",
)
STUDENT = ("env=tiny_envs:StepReach-v0", "agent.discount=0.9", "threads=1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "run"
    assert train.main([*RUN, f"run_dir={folder}"]) == 0
    return folder


def test_its_settings_are_keys_and_help_lists_them(trained, capsys):
    config = resolve.load(trained)
    assert (config.agent.target_every_updates, config.replay_ratio) == (3, 1)
    with pytest.raises(ConfigError, match=r"agent\.explor'; did you mean agent\.explore"):
        resolve.compose([*RUN, "agent.explor=0.5"])
    with pytest.raises(ConfigError, match=r"agent\.lr: expected a number above 0"):
        resolve.compose([*RUN, "agent.lr=0"])
    assert train.main(["agent=plugin_parts:linear_q", "--help"]) == 0
    text = capsys.readouterr().out
    assert "agent.explore" in text and "probability of a random action (float, 0.2)" in text
    assert "Networks of plugin_parts:linear_q: critic." in text


def test_resumed_run_equals_uninterrupted_run(tmp_path):
    base = [*RUN, "checkpoint_every_frames=0"]
    straight, stopped, again = (
        make_trainer(tmp_path / name, base=base) for name in ("one", "two", "two")
    )
    assert straight.run()
    stopped.stop_requested = lambda: stopped.steps >= 117
    assert not stopped.run()
    again.resume()
    assert again.run()
    assert plain(straight.state_dict()) == plain(again.state_dict())
    assert rows(tmp_path / "one") == rows(tmp_path / "two")


def test_run_directory_has_a_name_that_every_system_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = create(resolve.compose(RUN))
    assert folder.parts[:3] == ("runs", "plugin_parts-linear_q", "tiny_envs-StepReach-v0")


def test_provenance_has_the_file_with_its_sha256(trained):
    (start,) = json.loads((trained / "provenance.json").read_text(encoding="utf-8"))
    (code,) = start["plugins"]
    assert code["module"] == "plugin_parts" and code["file"].endswith("tests/plugin_parts.py")
    assert len(code["sha256"]) == 64


def test_resuming_with_other_code_says_so(tmp_path, capsys):
    folder = tmp_path / "run"
    assert train.main([*RUN, "train_frames=40", f"run_dir={folder}"]) == 0
    file = folder / "provenance.json"
    starts = json.loads(file.read_text(encoding="utf-8"))
    starts[-1]["plugins"][0]["sha256"] = "0" * 64
    file.write_text(json.dumps(starts), encoding="utf-8")
    assert train.main([f"resume={folder}", "train_frames=60"]) == 0
    assert "changed since the last start: the code of plugin_parts" in capsys.readouterr().out
    assert train.main([f"resume={folder}", "train_frames=80"]) == 0
    assert "changed since" not in capsys.readouterr().out


def test_it_is_evaluated_and_recorded_as_a_teacher(trained, tmp_path, capsys):
    assert evaluate.main([f"run={trained}", "episodes=2", "video_size=0"]) == 0
    assert (
        "plugin_parts:linear_q on tiny_envs:StepReach-v0 at 200 frames" in capsys.readouterr().out
    )
    out = tmp_path / "teacher.h5"
    assert teacher.main([f"run={trained}", f"out={out}", "episodes=2", "every_steps=2"]) == 0
    words = [*RUN, f"snapshot={out}", "snapshot_phase.selection=uniform", "eval_every_frames=0"]
    assert train.main([*words, "train_frames=60", f"run_dir={tmp_path / 'student'}"]) == 0


def test_python_programs_load_and_train_it(trained, tmp_path):
    policy = rlearly.load(trained).policy
    run = rlearly.train(*RUN, progress=False, run_dir=str(tmp_path / "run"), agent__explore=0.5)
    obs = np.array([[0.5, 0.1], [-0.5, 0.1]], np.float32)
    for own in (policy, run.policy):
        assert own(obs).shape == (2,) and set(own(obs).tolist()) <= {0, 1, 2}
        assert own(obs[0]) == own(obs)[0]
    assert run.config.agent.explore == 0.5


def test_it_begins_the_episodes_of_a_student(trained, tmp_path):
    words = ["agent=ppo", *STUDENT, "agent.rollout_steps=32", "agent.minibatches=4"]
    words += [f"jump_start.run={trained}", "jump_start.episode_steps=10", "eval_every_frames=0"]
    assert train.main([*words, "train_frames=64", f"run_dir={tmp_path / 'run'}"]) == 0


def test_a_sweep_and_a_report_have_it_as_an_arm(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    words = ["agent=plugin_parts:linear_q,drq_eps", *RUN[1:], "seeds=1", "sweep_dir=s"]
    assert sweep.main([*words, "dry_run=true"]) == 0
    assert "agent=plugin_parts:linear_q" in capsys.readouterr().out
    words[0] = "agent=plugin_parts:linear_q"
    assert sweep.main(words) == 0, capsys.readouterr()
    (run,) = (tmp_path / "s" / "runs").glob("*/*/*")
    assert run.relative_to(tmp_path / "s" / "runs").parts[0].startswith("plugin_parts-linear_q")
    assert report.main([str(run)]) == 0


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("no_module:agent", "there is no module no_module: run the command in the folder"),
        ("plugin_parts:linear", "has no linear; did you mean linear_q"),
        ("conftest:agent", "conftest has no agent; nothing in it is an AgentSpec"),
        ("plugin_parts:LinearQ", "expected an AgentSpec, received the class LinearQ"),
        ("plugin_parts:", "expected module:NAME"),
        ("plugin_parts:thawed", r"write @dataclass\(frozen=True\) Thawed"),
        ("plugin_parts:without_seed_frames", r"expected a method seed_frames\(frames_per_step\)"),
        ("plugin_parts:without_default", "a default for every setting, width has none"),
        ("plugin_parts:without_batch", "has no batch_size and no nstep and no discount"),
        ("plugin_parts:odd_type", "making its defaults raised"),
        ("plugin_parts:no_class", "expected a frozen dataclass of settings, received"),
        ("plugin_parts:not_called", "make: expected a class or a function, received 3"),
        ("plugin_parts:odd_actions", "actions: expected some of continuous, discrete"),
        ("plugin_parts:one_text", "networks: expected a tuple of texts, received 'critic'"),
    ],
)
def test_what_cannot_be_an_agent_is_refused(name, sentence):
    with pytest.raises(ConfigError, match=sentence):
        resolve.compose([f"agent={name}", *RUN[1:]])


def test_module_that_fails_to_import_is_refused_with_its_error(tmp_path, monkeypatch):
    (tmp_path / "broken_agent.py").write_text("import json\njson.nothing\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ConfigError, match=r"importing broken_agent raised AttributeError: .*\.py:2"
    ):
        resolve.compose(["agent=broken_agent:x", *RUN[1:]])


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("make_fails", "raised KeyError: 'width' at "),
        ("makes_nothing", "class object without act and value and update"),
    ],
)
def test_agent_that_cannot_be_made_is_refused(name, sentence, tmp_path, capsys):
    folder = tmp_path / "run"
    words = [f"agent=plugin_parts:{name}", *RUN[1:], f"run_dir={folder}"]
    assert train.main(words) == 2
    assert sentence in capsys.readouterr().err and not folder.exists()


def test_intervention_that_it_would_ignore_is_refused(tmp_path, capsys):
    words = ["agent=plugin_parts:accepts_all", *RUN[1:], "intervention=redo"]
    assert train.main([*words, f"run_dir={tmp_path / 'run'}"]) == 2
    assert "agent=plugin_parts:accepts_all does nothing with it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("fails_late", "update(batch) raised IndexError: no such layer at "),
        ("returns_nothing", "update(batch) returned an object of the class NoneType; expected a"),
        ("one_action", "act(obs) returned an object of the class int64; expected a numpy array"),
    ],
)
def test_agent_that_fails_in_training_is_named(name, sentence, tmp_path, capsys):
    folder = tmp_path / "run"
    words = [f"agent=plugin_parts:{name}", *RUN[1:], f"run_dir={folder}"]
    assert train.main(words) == 1
    said = capsys.readouterr().err
    assert f"agent=plugin_parts:{name}: {sentence}" in said and "bug in rlearly" not in said
    assert (folder / "failure.json").is_file()
