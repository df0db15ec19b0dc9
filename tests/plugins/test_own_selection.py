"""Selection rules of the user's own."""

import json

import gymnasium
import pytest
from conftest import TINY_STATE
from saved import plain
from test_trainer import make_trainer

from rlearly import SnapshotRL, record, train
from rlearly.config.resolve import compose
from rlearly.core.errors import ConfigError, UserCodeFailed
from rlearly.training import builder

RULE = "snapshot_phase.selection=plugin_rules:"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    file = tmp_path_factory.mktemp("teacher") / "teacher.h5"
    env = gymnasium.make("tiny_envs:StateReach-v0")
    record(env, lambda obs: [0.3], value=lambda obs: 0.0, episodes=3, every_steps=2).save(file)
    return file


@pytest.fixture
def words(teacher):
    return [*TINY_STATE["td3"], "train_frames=200", f"snapshot={teacher}", "threads=1"]


@pytest.mark.parametrize("rule", ["Last", "Scored"])
def test_resumed_run_equals_uninterrupted_run(rule, words, tmp_path):
    base = [*words, RULE + rule]
    straight, stopped, again = (
        make_trainer(tmp_path / name, base=base) for name in ("one", "two", "two")
    )
    assert straight.run()
    stopped.stop_requested = lambda: stopped.steps >= 137
    assert not stopped.run()
    again.resume()
    assert again.run()
    assert plain(straight.state_dict()) == plain(again.state_dict())
    rule = straight.envs[0].get_wrapper_attr("selection")
    assert rule.started > 10 and rule.over > 10
    assert len(getattr(rule, "scores", [0])) > 0


def test_arguments_reach_it(words):
    config = compose([*words, f"{RULE}Last", "snapshot_phase.selection_kwargs.growth=3"])
    assert builder.make_selection(config.snapshot_phase, 1).growth == 3


def test_its_code_is_recorded(words, tmp_path):
    folder = tmp_path / "run"
    assert train.main([*words, f"{RULE}Last", "train_frames=40", f"run_dir={folder}"]) == 0
    (start,) = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    assert [part["module"] for part in start["plugins"]] == ["plugin_rules"]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ([f"{RULE}Lst"], "has no Lst; did you mean Last"),
        ([f"{RULE}NoChoice"], "expected the class of a selection rule, received the class NoCh"),
        ([f"{RULE}Last", "snapshot_phase.selection_kwargs.grwth=1"], "unexpected keyword argument"),
        (["snapshot_phase.selection_kwargs.growth=1"], "has no effect without a rule of your own"),
        (["snapshot_phase.selection=last"], "expected one of uniform, .*, module:NAME, received"),
    ],
)
def test_what_cannot_be_a_rule_is_refused(more, sentence, words):
    with pytest.raises(ConfigError, match=sentence):
        compose([*words, *more])


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ([f"{RULE}Scored"], "the env's steps ask the learner for values"),
        ([f"{RULE}Last", "num_envs=2"], "several envs must take their steps in turn"),
    ],
)
def test_overlap_is_refused_where_it_would_change_results(more, sentence, words):
    with pytest.raises(ConfigError, match=sentence):
        builder.env_executors(compose([*words, "overlap=true", *more]))


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("Raises", "snapshot_phase.selection=plugin_rules:Raises: choose() raised LookupError"),
        ("Outside", "the selection rule Outside: choose(random) returned "),
    ],
)
def test_rule_that_fails_is_named(rule, sentence, words, tmp_path, capsys):
    assert train.main([*words, RULE + rule, f"run_dir={tmp_path / 'run'}"]) == 1
    said = capsys.readouterr().err
    assert sentence in said and "bug in" not in said


def test_index_outside_the_snapshots_is_refused_in_python_too(teacher):
    from plugin_rules import Outside

    env = SnapshotRL(gymnasium.make("tiny_envs:StateReach-v0"), teacher, Outside())
    with pytest.raises(
        UserCodeFailed, match=r"choose\(random\) returned .*; expected a snapshot's"
    ):
        env.reset(seed=0)
