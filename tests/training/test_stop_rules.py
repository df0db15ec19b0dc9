"""`stop_when`: when a rule is met, and what a run that ended early leaves behind."""

import io
import json

import pytest
from conftest import TINY_STATE
from rich.console import Console
from saved import plain, rows
from test_trainer import make_trainer

from rlearly.config import resolve
from rlearly.core.errors import ConfigError
from rlearly.experiments.job import Job
from rlearly.experiments.plan import finished
from rlearly.experiments.report.run_report import RunReport
from rlearly.experiments.status import overview, status_of
from rlearly.training import checkpoint
from rlearly.training.continuing.stop_rules import StopRules, parse

RETURN = "eval/episode_return"
STATE = [word for word in TINY_STATE["td3"] if not word.startswith("eval_every")]
EVALUATED = ["eval_every_frames=50", "eval_episodes=2", "train_frames=400", "log_every_frames=20"]


def met_at(text, values):
    """The index of the value at which the rule ends the run, and why."""
    rules = StopRules([parse(text)])
    for index, value in enumerate(values):
        rules.observe({RETURN: value, "loss/critic": 1e9})
        if reason := rules.judge():
            return index, reason
    return None


@pytest.mark.parametrize(
    ("text", "values", "index"),
    [
        (f"{RETURN}>=10", [9, 9.99, 10], 2),
        (f"{RETURN} > 10", [9, 10, 11], 2),
        (f"{RETURN}<=-1e2", [0, -99, -100], 2),
        (f"{RETURN}<0.5", [1, 0.5, 0.25], 2),
        (f"reached({RETURN}>=10, evaluations=3)", [10, 10, 9, 10, 11, 12], 5),
        (f"no_progress({RETURN},evaluations=2)", [5, 6, 6, 7, 7, 6.5], 5),
        (f"no_progress({RETURN},evaluations=2,min_delta=1)", [1, 2, 2.5, 2.9, 3.5], 4),
        (f"no_progress({RETURN},evaluations=3)", [1, 2, 3, 4, 5, 6], None),
    ],
)
def test_rule_is_met_at_the_evaluation_that_it_describes(text, values, index):
    found = met_at(text, values)
    assert (found and found[0]) == index


def test_reason_says_what_was_reached():
    assert met_at(f"{RETURN}>=475", [480])[1] == "eval/episode_return was >= 475, 480 now"
    assert met_at(f"no_progress({RETURN},evaluations=1,min_delta=2)", [7, 8])[1] == (
        "eval/episode_return has not exceeded 7 by more than 2 in 1 evaluations in a row, 8 now"
    )


def test_rule_is_judged_by_the_newest_value_and_not_before_there_is_one():
    rules = StopRules([parse("train/episode_return>=5")])
    rules.observe({RETURN: 100.0})
    assert rules.judge() is None
    rules.observe({"train/episode_return": 4.0})
    rules.observe({"train/episode_return": 6.0})
    assert rules.judge() == "train/episode_return was >= 5, 6 now"


@pytest.mark.parametrize(
    ("words", "sentence"),
    {
        ("stop_when=eval/episode_retur>=1",): "no run writes 'eval/episode_retur'; did you mean",
        ("stop_when=eval/episode_return==1",): "stop_when: expected METRIC>=NUMBER",
        ("stop_when=eval/episode_return>=high",): "received 'eval/episode_return>=high'",
        ("stop_when=no_progress(eval/episode_return)",): "stop_when: expected METRIC>=NUMBER",
        (
            "stop_when=no_progress(eval/episode_return,evaluations=0)",
        ): "expected evaluations of at least 1",
        ("stop_when=linear(1,2,3)",): "stop_when: expected METRIC>=NUMBER",
        (
            "stop_when=eval/episode_return>=1",
            "eval_every_frames=0",
        ): "stop_when: has no effect with eval_every_frames=0",
        ("keep_best=train/episode_return",): "keep_best: expected true or a metric of evaluations",
        ("keep_best=maybe",): "keep_best: no run writes 'maybe'",
        ("keep_best=true", "eval_every_frames=0"): "keep_best: has no effect with eval_every",
    }.items(),
)
def test_rule_that_cannot_be_judged_is_refused(words, sentence):
    with pytest.raises(ConfigError) as caught:
        resolve.compose([*STATE, *words])
    assert sentence in str(caught.value)


def test_run_that_ends_early_is_done_and_says_why(zygote, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    words = [*STATE, *EVALUATED, "threads=1", f"run_dir={run}"]
    rule = f"reached({RETURN}>=-1000,evaluations=2)"
    status, said = zygote.run(*words, f"stop_when={rule}", log=log)
    reason = json.loads((run / "done.json").read_text(encoding="utf-8"))["stopped"]
    assert status == 0 and f"ends early at 100 frames: {reason}" in said
    assert reason.startswith("stop_when: eval/episode_return was >= -1000 in 2 evaluations in a")
    assert finished(run, 400), "a sweep does not start it again"
    state = status_of(tmp_path, Job("run", "td3", train_frames=400), {})
    assert (state.state, state.early_end) == ("done", reason)
    console = Console(file=io.StringIO(), width=120)
    console.print(overview([state], console))
    assert "done early" in console.file.getvalue()
    assert f"  ended early {reason}" in RunReport.load(run).summary()
    status, said = zygote.run(f"resume={run}", "train_frames=500", log=log)
    assert status == 0 and f"ended early ({reason}); add stop_when=null to train on" in said
    assert zygote.run(f"resume={run}", "stop_when=null", log=log)[0] == 0
    straight = tmp_path / "straight"
    assert zygote.run(*words[:-1], f"run_dir={straight}", log=log)[0] == 0
    one, two = (checkpoint.load_newest(r / "checkpoints")[1] for r in (run, straight))
    for state in (one, two):
        del state["stop"], state["stop_rules"]
    assert plain(one) == plain(two) and rows(run) == rows(straight)


def test_resumed_run_counts_on(tmp_path):
    """Stopped between the two evaluations that the rule needs."""
    rule = f"stop_when=reached({RETURN}>=-1000,evaluations=3)"
    straight = make_trainer(tmp_path / "straight", *EVALUATED, rule, base=STATE)
    assert straight.run() and straight.at.frames == 150
    first = make_trainer(tmp_path / "run", *EVALUATED, rule, base=STATE)
    first.stop_requested = lambda: first.steps >= 120
    assert not first.run() and first.stop_reason is None
    first.close()
    second = make_trainer(tmp_path / "run", *EVALUATED, rule, base=STATE)
    assert second.resume() == 120 and second.run()
    assert second.at.frames == 150 and second.stop_reason == straight.stop_reason
    third = make_trainer(tmp_path / "run", *EVALUATED, rule, base=STATE)
    assert third.resume() == 150 and third.run() and third.at.frames == 150, "it is not forgotten"
    assert plain(third.state_dict()) == plain(straight.state_dict())
