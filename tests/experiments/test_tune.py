"""Searches: their space, what a trial is worth, which are ended early, and what survives a kill."""

import math
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import simulated
from simulated import Killed, SimulatedPool, reached, request, search, settings_of

import rlearly
from rlearly import tune as command
from rlearly.config.resolve import compose
from rlearly.core.errors import ConfigError, RunFailed
from rlearly.core.exit_status import BAD_REQUEST, DONE, SAVED
from rlearly.experiments.job import Record
from rlearly.experiments.launchers.lock import only_launcher
from rlearly.experiments.plan import Plan
from rlearly.experiments.report.statistics import estimate, pooled_iqm
from rlearly.experiments.tuning import tuner
from rlearly.experiments.tuning.held_out import HeldOut, Sample, held_out_results
from rlearly.experiments.tuning.objective import WORST, is_lost, objective_of, value_at
from rlearly.experiments.tuning.page import conclusion, write_page
from rlearly.experiments.tuning.pruning import PruneConfig, goes_on, rungs_of
from rlearly.experiments.tuning.request import request_of, saved_request, split
from rlearly.experiments.tuning.sampling import as_study, importances, propose
from rlearly.experiments.tuning.space import Choices, Numbers, override, space_of
from rlearly.experiments.tuning.trials import COMPLETE, PRUNED, Trial, load_trials
from rlearly.experiments.tuning.tuner import best_command, result_of, tune

pytest.importorskip("optuna")
ROOT = Path(__file__).parents[2]
FIXED = ["agent=td3", "env=tiny_envs:StateReach-v0"]
TINY = [
    *FIXED,
    "env.action_repeat=1",
    "train_frames=300",
    "eval_every_frames=50",
    "eval_episodes=1",
    "checkpoint_every_frames=0",
    "agent.hidden_dim=8",
    "agent.learning_starts_steps=20",
    "video_size=0",
    "space.agent.batch_size=choice(16,32)",
]


@pytest.fixture(autouse=True)
def tiny_machine(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")


# --- the space ---


def range_of(key, text):
    return space_of(FIXED, {key: text})[key]


def test_ranges_are_read_as_they_are_written():
    assert range_of("agent.lr", "log(1e-5,1e-2)") == Numbers(1e-5, 1e-2, log=True)
    assert range_of("agent.discount", "uniform(0.9, 1)") == Numbers(0.9, 1)
    assert range_of("agent.nstep", "int(1,5)") == Numbers(1, 5, whole=True)
    assert range_of("agent.batch_size", "log(16,512)") == Numbers(16, 512, log=True, whole=True)
    assert range_of("agent.batch_size", "choice(64,128)") == Choices(("64", "128"), (64, 128))
    found = range_of("intervention", "choice(null,redo,[redo,layer_norm])")
    assert found.texts == ("null", "redo", "[redo,layer_norm]")


@pytest.mark.parametrize(
    "text", ["log(1e-05,0.01)", "uniform(0.9,1)", "choice(0.1,0.2)", "log(0.0002,0.5)"]
)
def test_a_range_is_written_as_it_was_read(text):
    assert str(range_of("agent.lr", text)) == text


def test_auto_is_the_settings_own_bounds_or_choices():
    assert range_of("agent.discount", "auto") == Numbers(0, 1)
    assert range_of("env.image_size", "auto") == Numbers(15, 480, whole=True)
    assert range_of("compile", "auto") == Choices(("false", "true"), (False, True))
    assert range_of("env.render", "auto") == Choices(("exact", "fast"), ("exact", "fast"))


BAD_SPACES = {
    ("agent.lr", "auto"): "space.agent.lr: the setting has no upper bound",
    ("agent.lrr", "log(1,2)"): "space.agent.lrr: there is no such key; did you mean agent.l",
    ("agent.lr", "log(0,1)"): "space.agent.lr: log needs numbers above 0",
    ("agent.lr", "log(1,1)"): "expected two numbers, the lower one first, received 'log(1,1)'",
    ("agent.lr", "log(1e-3)"): "expected log(LOW,HIGH), received 'log(1e-3)'",
    ("agent.lr", "normal(0,1)"): "expected log(LOW,HIGH), uniform(LOW,HIGH), int",
    ("agent.lr", "1e-3"): "received '1e-3'",
    ("agent.nstep", "int(1,2.5)"): "expected whole numbers, received",
    ("agent.nstep", "int(0,5)"): "nstep=int(0,5): agent.nstep: expected a number at least 1",
    ("agent.discount", "uniform(0.9,1.1)"): "agent.discount: expected a number at most 1, received",
    ("agent.target_tau", "uniform(0,1)"): "target_tau: expected a number above 0, received 0",
    ("agent.batch_size", "choice(64)"): "expected at least two different values",
    ("agent.batch_size", "choice(64,64)"): "expected at least two different values",
    ("agent.batch_size", "choice(64,many)"): "agent.batch_size: expected int, received 'many'",
    ("env.render", "uniform(0,1)"): "expected choice(A,B,...), as this setting is a st",
    ("env.render", "choice(exact,ugly)"): "env.render: expected one of exact, fast",
    ("agent.hidden_dim", "null"): "is not tuned by default, so null has no effect",
    ("train_frames", "int(1,2)"): "cannot be tuned",
    ("env.max_episode_steps", "int(1,2)"): "cannot be tuned",
    ("seed", "int(0,9)"): "cannot be tuned",
}


@pytest.mark.parametrize(("key", "text"), BAD_SPACES)
def test_a_wrong_range_is_refused_in_one_sentence(key, text):
    with pytest.raises(ConfigError) as refused:
        space_of(FIXED, {key: text})
    sentence = str(refused.value)
    assert BAD_SPACES[key, text] in sentence
    assert sentence.startswith(f"space.{key}") and "\n" not in sentence


def test_a_fixed_setting_is_not_tuned_and_cannot_have_a_range():
    assert "agent.lr" in space_of(FIXED, {})
    assert "agent.lr" not in space_of([*FIXED, "agent.lr=1e-3"], {})
    assert "agent.lr" not in space_of(FIXED, {"agent.lr": "null"})
    with pytest.raises(ConfigError, match=r"space.agent.lr: agent.lr is also given a fixed value"):
        space_of([*FIXED, "agent.lr=1e-3"], {"agent.lr": "log(1e-4,1e-2)"})


def test_a_space_with_nothing_in_it_is_refused():
    with pytest.raises(ConfigError, match="agent=td3 has no setting left to tune"):
        space_of(FIXED, dict.fromkeys(space_of(FIXED, {}), "null"))


@pytest.mark.parametrize(
    ("agent", "env"),
    [
        ("td3", "Hopper-v5"),
        ("sac", "Hopper-v5"),
        ("ppo", "Hopper-v5"),
        ("drqv2", "cartpole_balance"),
        ("drm", "cartpole_balance"),
        ("drq_eps", "tiny_envs:StepPixelReach-v0"),
    ],
)
def test_every_agent_has_a_short_space_of_its_own_that_composes(agent, env):
    space = space_of([f"agent={agent}", f"env={env}"], {})
    assert 4 <= len(space) <= 7
    assert any(key.endswith("lr") for key in space)


def test_the_space_holds_the_defaults_and_trial_0_has_them():
    asked = request()
    first = propose(asked.space, [], 0, asked.defaults)
    assert first.defaults and first.params["agent.lr"] == 3e-4
    assert first.params["agent.batch_size"] == "256"
    elsewhere = request("space.agent.lr=log(1e-3,1e-2)")
    assert not propose(elsewhere.space, [], 0, elsewhere.defaults).defaults


def test_numbers_have_four_digits_and_stay_inside():
    found = Numbers(1e-5, 1 / 3, log=True)
    assert found.rounded(0.000123456) == 0.0001235
    assert found.rounded(1 / 3 - 1e-9) == 0.3333
    assert Numbers(0, 0.12345678).rounded(0.12345677) == 0.12345678
    assert Numbers(1, 5, whole=True).rounded(3) == 3
    assert override("agent.lr", 1e-05) == "agent.lr=1e-05" and override("a", 64.0) == "a=64"


# --- what a trial is worth ---


def test_objectives_of_literal_scores():
    scores = [1.0, 2.0, 3.0, 4.0, 100.0]
    assert objective_of(scores, "mean") == 22
    assert objective_of(scores, "iqm") == 3
    assert objective_of([5.0], "iqm") == 5
    low = objective_of(scores, "lower_bound")
    assert 1 <= low < 3 and low == float(estimate(pooled_iqm, [np.array(scores)], seed=0).low)


def test_a_failed_run_counts_as_the_worst_and_not_as_missing():
    assert objective_of([WORST, 2.0, 3.0, 4.0, 5.0], "iqm") == 3  # 2 and 3 and 4: -inf is dropped
    assert objective_of([2.0, 3.0, 4.0, 5.0], "iqm") == 3.5  # as if it were missing
    assert objective_of([WORST, 2.0, 3.0], "iqm") == WORST
    assert objective_of([WORST, 9.0], "mean") == WORST
    assert objective_of([WORST, 1.0, 1.0, 1.0, 1.0], "lower_bound") == WORST


def test_a_trial_is_lost_once_nothing_can_save_it():
    assert is_lost([True, False, False], "iqm")
    assert not is_lost([True, False, False, False], "iqm")
    assert is_lost([True, True, False, False], "iqm")
    assert is_lost([True, False, False, False], "mean")
    assert not is_lost([False, False, False], "lower_bound")


def test_the_value_at_a_rung_uses_evaluations_up_to_the_first_one_there():
    frames, returns = np.array([100, 200, 300, 400]), np.array([1.0, 2.0, 6.0, 50.0])
    assert value_at(frames, returns, 250, 1) == 6
    assert value_at(frames, returns, 300, 2) == 4
    assert value_at(frames, returns, 300, 9) == 3
    assert value_at(frames, returns, 401, 1) is None


# --- pruning ---


def test_rungs_lie_after_learning_began_and_before_the_end():
    config = PruneConfig()
    assert rungs_of(config, 1_000_000, 10_000, 25_000) == [111_111, 333_333]
    assert rungs_of(config, 900, 100, 0) == [100, 300]
    assert rungs_of(config, 900, 100, 150) == [300]
    assert rungs_of(PruneConfig(factor=2, first_frames=100), 900, 100, 0) == [100, 200, 400, 800]
    assert rungs_of(config, 900, 500, 0) == []
    assert rungs_of(PruneConfig(enabled=False), 900, 100, 0) == []


def test_one_in_three_goes_on():
    config = PruneConfig(factor=3, after_trials=2)
    assert goes_on(0.0, [9.0], config), "too few to compare with"
    assert not goes_on(1.0, [2.0, 3.0], config)
    assert goes_on(4.0, [2.0, 3.0], config)
    assert goes_on(3.0, [2.0, 3.0], config), "as good as the best"
    five = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert goes_on(4.5, five, config) and not goes_on(3.5, five, config)
    assert not goes_on(WORST, five, config)


def test_curves_that_are_low_at_a_rung_are_ended_there(tmp_path):
    heights = {0: 50.0, 1: 40.0, 2: 60.0, 3: 55.0, 4: 30.0, 5: 70.0}

    def curve(run, frames):
        return heights[int(run.arm.split()[1])] * frames / 900

    words = ("trials=6", "seeds=1", "held_out_seeds=0", "prune.after_trials=3")
    trials, _ = search(tmp_path, *words, curve=curve)
    assert [trial.state for trial in trials] == [COMPLETE] * 3 + [PRUNED] * 2 + [COMPLETE]
    assert [trial.value for trial in trials] == [50, 40, 60, None, None, 70]
    assert {trial.number: [*trial.rungs] for trial in trials if trial.state == PRUNED} == {
        3: [100],
        4: [100],
    }
    assert trials.trials[3].rungs[100] == pytest.approx(55 / 9)
    rows = (tmp_path / "runs/trial 4/tiny_envs-StateReach-v0/0/metrics.jsonl").read_text(
        encoding="utf-8"
    )
    assert len(rows.splitlines()) <= 2, "it was asked to save and stop"
    assert trials.best().number == 5


def test_all_seeds_reach_a_rung_before_one_goes_far_beyond_it(tmp_path):
    words = ("trials=1", "seeds=3", "held_out_seeds=0", "prune.after_trials=1")
    _, pool = search(tmp_path, *words)
    seeds = [int(name.rsplit("/", 1)[1]) for name in pool.started]
    assert seeds[:3] == [0, 1, 2], "each is saved at the first rung for the next one"
    assert len(seeds) > 6


def test_without_pruning_no_run_is_interrupted(tmp_path):
    words = ("trials=2", "seeds=2", "held_out_seeds=0", "prune.enabled=false")
    trials, pool = search(tmp_path, *words)
    assert len(pool.started) == 4 and all(trial.state == COMPLETE for trial in trials)


# --- proposals ---


def scored(asked, count):
    trials = []
    for number in range(count):
        trial = propose(asked.space, trials, 0, asked.defaults)
        trial.state, trial.value = COMPLETE, -abs(math.log10(trial.params["agent.lr"]) + 3)
        if number % 5 == 4:
            trial.state, trial.value, trial.rungs = PRUNED, None, {100: -5.0}
        if number % 7 == 6:
            trial.value = WORST if trial.state == COMPLETE else None
        trials.append(trial)
    return trials


def test_a_proposal_follows_from_the_seed_and_the_trials_alone():
    asked = request()
    trials = scored(asked, 14)
    again = [propose(asked.space, trials[:at], 0, asked.defaults) for at in range(15)]
    assert [trial.params for trial in again[:14]] == [trial.params for trial in trials]
    other = [propose(asked.space, trials[:at], 1, asked.defaults) for at in (3, 14)]
    assert [t.params for t in other] != [again[3].params, again[14].params]
    values = [float(number % 5) for number in range(14)]
    changed = [Trial(t.number, t.params, COMPLETE, v) for t, v in zip(trials, values, strict=True)]
    assert propose(asked.space, changed, 0, asked.defaults).params != again[14].params


def test_later_proposals_are_better_than_random_ones():
    asked = request("trials=30")
    values = [t.value for t in scored(asked, 30)]
    early, late = ([v for v in part if v is not None] for part in (values[1:10], values[20:]))
    assert np.median(late) > np.median(early)


def test_importance_finds_the_only_setting_that_matters():
    asked = request("space.agent.batch_size=null", "space.agent.discount=null")
    random = np.random.default_rng(0)
    trials = []
    for number in range(40):
        lr = float(10 ** random.uniform(-4.5, -2.6))
        params = {"agent.lr": lr, "agent.nstep": int(random.integers(1, 6))}
        params |= {"agent.target_tau": 10 ** random.uniform(-3, -1.4)}
        params |= {"agent.exploration_noise": random.uniform(0.05, 0.4)}
        trials.append(Trial(number, params, COMPLETE, -abs(math.log10(lr) + 3)))
    found = importances(asked.space, trials, 0)
    assert next(iter(found)) == "agent.lr" and found["agent.lr"] > 0.8
    assert math.isclose(sum(found.values()), 1)
    lost = Trial(40, trials[0].params, COMPLETE, WORST)
    assert next(iter(importances(asked.space, [*trials, lost], 0))) == "agent.lr"
    assert importances(asked.space, trials[:7], 0) == {}


def test_trials_are_a_study_of_optunas():
    asked = request()
    study = as_study(asked.space, scored(asked, 8))
    assert [trial.state.name for trial in study.trials] == [
        *["COMPLETE"] * 4, "PRUNED", *["COMPLETE"] * 3
    ]  # fmt: skip
    assert study.best_trial.value == max(t.value for t in study.trials if t.value is not None)


# --- a search ---


def known(trials):
    return [(t.number, t.params, t.state, t.value, t.rungs, t.scores) for t in trials]


WORDS = ("trials=14", "seeds=2", "prune.after_trials=2", "held_out_seeds=2")


def test_the_same_command_gives_the_same_trials(tmp_path):
    first, _ = search(tmp_path / "a", *WORDS)
    again, _ = search(tmp_path / "b", *WORDS)
    assert known(first) == known(again)
    assert {trial.state for trial in first} == {COMPLETE, PRUNED}
    assert len(first) == 14


@pytest.mark.parametrize("workers", [1, 2])
def test_a_search_that_was_killed_again_and_again_equals_an_uninterrupted_one(tmp_path, workers):
    words = (*WORDS, "trials_at_once=1")
    whole, _ = search(tmp_path / "whole", *words, workers=workers)
    kills = 0
    for after in (1, 2, 3, 5, 8, 13, 21, 34, 500):
        try:
            search(tmp_path / "killed", *words, workers=workers, dies_after=after)
        except Killed:
            kills += 1
    assert kills >= 5
    assert known(load_trials(tmp_path / "killed")) == known(whole)


def test_a_kill_between_a_proposal_and_its_plan_loses_nothing(tmp_path):
    whole, _ = search(tmp_path / "whole", *WORDS)
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        search(folder, *WORDS, dies_after=6)
    (folder / "plan.json").unlink()
    search(folder, *WORDS)
    assert known(load_trials(folder)) == known(whole)


def test_more_trials_go_on_from_those_that_there_are(tmp_path):
    whole, _ = search(tmp_path / "whole", *WORDS)
    search(tmp_path / "more", *WORDS[1:], "trials=6")
    more, pool = search(tmp_path / "more", *WORDS)
    assert known(more) == known(whole)
    assert not any("trial 3/" in name for name in pool.started if not name.endswith(("2", "3")))


def test_a_directory_holds_one_search(tmp_path):
    search(tmp_path, *WORDS[1:], "trials=2")
    with pytest.raises(ConfigError, match="holds a search with seeds 0 1, not 0 1 2; repeat its"):
        search(tmp_path, *WORDS[2:], "seeds=3")
    with pytest.raises(ConfigError, match=r"search with prune\.after_trials 2, not 1; repeat"):
        search(tmp_path, "seeds=2", "prune.after_trials=1")
    (tmp_path / "trials.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"trials.json cannot be read .*; put it back"):
        search(tmp_path, *WORDS)
    (tmp_path / "trials.json").unlink()
    with pytest.raises(ConfigError, match="holds a sweep; give another"):
        search(tmp_path, *WORDS)


def test_the_default_directory_belongs_to_one_search():
    assert request("trials=5").folder == request("trials=9", "workers=3").folder
    for other in ("seeds=5", "seed=1", "objective=mean", "space.agent.lr=null", "agent.nstep=2"):
        assert request().folder != request(other).folder


# --- runs that fail ---


def test_a_trial_with_a_failed_run_is_the_worst_and_the_search_goes_on(tmp_path):
    def fails(run, frames):
        return run.arm == "trial 1" and run.seed == 1 and frames > 500

    trials, _ = search(tmp_path, "trials=3", "seeds=2", "held_out_seeds=0", fails=fails)
    assert trials.trials[1].failed and trials.trials[1].value == WORST
    assert [t.state for t in trials] == [COMPLETE] * 3
    assert trials.best().number != 1
    assert [*trials.failures] == ["runs/trial 1/tiny_envs-StateReach-v0/1"]
    again = load_trials(tmp_path)
    assert again.trials[1].value == WORST and known(again) == known(trials)


def test_with_four_seeds_one_failed_run_is_dropped_as_the_worst(tmp_path):
    def fails(run, frames):
        return run.arm == "trial 1" and run.seed == 3

    trials, _ = search(tmp_path, "trials=2", "seeds=4", "held_out_seeds=0", fails=fails)
    assert trials.trials[1].scores[3] == WORST
    assert [*trials.trials[1].rungs] == [100, 300], "it is judged there all the same"
    others = sorted(trials.trials[1].scores[:3])
    assert trials.trials[1].value == pytest.approx(np.mean(others[:2]))


def test_a_run_that_was_killed_is_started_again(tmp_path):
    left = [-signal.SIGKILL, -signal.SIGKILL]

    def fails(run, frames):
        return left.pop() if run.arm == "trial 1" and frames == 300 and left else False

    trials, pool = search(tmp_path, "trials=2", "seeds=1", "held_out_seeds=0", fails=fails)
    assert not left and not trials.failures
    assert trials.trials[1].state == COMPLETE
    assert sum("trial 1/" in name for name in pool.started) == 3


def test_a_run_that_is_killed_without_end_has_failed(tmp_path):
    def fails(run, frames):
        return -signal.SIGSEGV if run.arm == "trial 1" and frames == 300 else False

    trials, _ = search(tmp_path, "trials=2", "seeds=1", "held_out_seeds=0", fails=fails)
    assert trials.trials[1].failed


def test_settings_that_contradict_each_other_are_a_failed_trial(tmp_path):
    words = ("trials=16", "seeds=1", "held_out_seeds=0", "prune.enabled=false")
    ranges = ("space.intervention=choice(null,crelu)", "space.replay_ratio=choice(1,adaptive)")
    trials, pool = search(tmp_path, *words, *ranges)
    refused = {"intervention": "crelu", "replay_ratio": "adaptive"}
    assert any(refused.items() <= trial.params.items() for trial in trials)
    for trial in trials:
        assert trial.failed == (refused.items() <= trial.params.items())
        started = any(name.startswith(f"runs/{trial.name}/") for name in pool.started)
        assert started != trial.failed


def runs_started(folder, pool):
    runs = {run.name: run for run in Plan.load(folder).runs}
    return [runs[name] for name in pool.started]


def test_a_search_gives_up_if_nothing_works_and_tries_again_when_asked(tmp_path):
    with pytest.raises(RunFailed, match="none of the first 3 trials has a score"):
        search(tmp_path, "trials=20", "seeds=1", fails=lambda run, frames: True)
    assert len(load_trials(tmp_path)) == 3
    trials, _ = search(tmp_path, "trials=4", "seeds=1", "held_out_seeds=0")
    assert not trials.failures and all(t.state in (COMPLETE, PRUNED) for t in trials)


# --- held-out seeds ---


def test_held_out_seeds_are_none_of_the_trials():
    assert request("seeds=3").held_out_seeds == [3, 4, 5, 6, 7]
    assert request("seeds=4,8", "held_out_seeds=2").held_out_seeds == [9, 10]
    assert request("held_out_seeds=100,101").held_out_seeds == [100, 101]
    assert request("held_out_seeds=0").held_out_seeds == []
    with pytest.raises(ConfigError, match="received 2, which seeds= names too"):
        request("seeds=3", "held_out_seeds=2,100")


def test_the_best_trial_and_the_defaults_run_on_held_out_seeds(tmp_path):
    trials, pool = search(tmp_path, "trials=4", "seeds=2", "held_out_seeds=3")
    best = trials.best()
    assert not best.defaults
    runs = runs_started(tmp_path, pool)
    assert {run.seed for run in runs if run.arm == "defaults"} == {2, 3, 4}
    assert {run.seed for run in runs if run.arm == best.name} == {0, 1, 2, 3, 4}
    assert {run.seed for run in runs if run.arm not in ("defaults", best.name)} == {0, 1}
    assert not any("agent.lr" in settings_of(run) for run in runs if run.arm == "defaults")
    held_out = held_out_results(
        request("trials=4", "seeds=2", "held_out_seeds=3"), tmp_path, trials
    )
    expected = [reached(run, 900) for run in runs if run.arm == best.name and run.seed > 1]
    assert sorted(held_out.best.scores) == pytest.approx(sorted(expected))
    assert held_out.difference.low > 0
    assert f"{best.name} scores higher than the defaults" in held_out.conclusion()


def sample(name, *scores, failed=0):
    return Sample(name, np.array(scores, dtype=float), [], failed)


def test_a_conclusion_claims_no_more_than_the_interval():
    defaults = sample("defaults", 10, 11, 12, 13, 14)
    better = HeldOut(sample("trial 3", 20, 21, 22, 23, 24), defaults)
    assert "trial 3 scores higher than the defaults on 5 held-out seeds" in better.conclusion()
    assert better.difference.value == 10
    worse = HeldOut(sample("trial 3", 1, 2, 3, 4, 5), defaults)
    assert "trial 3 scores lower than the defaults" in worse.conclusion()
    level = HeldOut(sample("trial 3", 8, 11, 13, 14, 17), defaults)
    assert level.conclusion().startswith("No clear difference between trial 3 and the defaults")
    assert "contains 0" in level.conclusion()
    two = HeldOut(sample("trial 3", 20, 21), sample("defaults", 1, 2))
    assert two.conclusion().startswith("Not enough held-out seeds to conclude anything")
    assert "No trial scored higher" in HeldOut(None, defaults).conclusion()
    assert "too narrow" in HeldOut(sample("a", 1, 1, 1), sample("defaults", 0, 0, 0)).conclusion()


def test_a_failed_held_out_run_counts_as_the_lowest_return(tmp_path):
    def fails(run, frames):
        return run.arm == "defaults" and run.seed == 2 and frames > 300

    words = ("trials=2", "seeds=1", "held_out_seeds=2")
    trials, _ = search(tmp_path, *words, fails=fails)
    held_out = held_out_results(request(*words), tmp_path, trials)
    lowest = min(c.returns.min() for s in held_out.samples for c in s.curves)
    assert held_out.defaults.failed == 1
    assert held_out.defaults.scores[1] == lowest


# --- the command ---


def test_the_best_command_can_be_pasted_and_composes(tmp_path):
    odd = "wandb.project=it's my $project"
    trials, _ = search(tmp_path, "trials=3", "seeds=1", odd, "held_out_seeds=0")
    words = shlex.split(best_command(request(odd), trials.best()))
    assert words[1:3] == ["-m", "rlearly.train"]
    config = compose(words[3:])
    best = trials.best().params
    assert config.agent.lr == best["agent.lr"]
    assert config.agent.batch_size == int(best["agent.batch_size"])
    assert config.wandb.project == "it's my $project"


BAD = {
    "": "Usage:",
    "agent=td3": "env: expected the name of an env",
    "env=Hopper-v5 agent=tdd3": "There is no agent 'tdd3'; did you mean td3?",
    "env=Hopper-v5 trails=3": "There is no key 'trails'; did you mean trials",
    "env=Hopper-v5 agent=td3 agent.lrr=3": "There is no key 'agent.lrr'",
    "env=Hopper-v5 agent=td3 trials=0": "trials: expected a number at least 1, received 0",
    "env=Hopper-v5 agent=td3 seeds=x": "seeds: expected a number or a list",
    "env=Hopper-v5 agent=td3 run_dir=x": "run_dir: every run of a search has its own; use tune_dir",
    "env=Hopper-v5 agent=td3 eval_every_frames=0": "eval_every_frames: trials are compared by",
    "env=Hopper-v5 agent=td3 objective=lower_bound seeds=2": "needs at least 3 seeds",
    "env=Hopper-v5 agent=td3 space.agent.lr=auto": "space.agent.lr: the setting has no upper bound",
    "env=Hopper-v5 agent=td3 space.agent.lr=null space.agent.lr=null": "is given twice",
    "env=Hopper-v5 agent=td3 launcher=slurm": "launcher=slurm: a search starts trials one by one",
    "env=Hopper-v5 agent=td3,sac": "There is no agent 'td3,sac'",
    "env=Hopper-v5 agent=td3 agent.lr=1,2": "agent.lr: expected one value",
    "status=": "status: expected the directory of a search, as in status=tunes/NAME",
    "status=nowhere": "nowhere is not the directory of a search",
    "status=nowhere agent=td3": "status: cannot be combined with 'agent=td3'",
    "tune": "Expected key=value, received 'tune'",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_is_one_sentence_and_status_2(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.main(words.split()) == BAD_REQUEST
    printed = capsys.readouterr()
    assert BAD[words] in (printed.err if words else printed.out)
    assert not [*tmp_path.iterdir()]


def test_a_missing_package_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert command.main(TINY) == BAD_REQUEST
    assert "needs the package optuna: pip install 'rlearly[tune]'" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_two_processes_cannot_lead_one_search(tmp_path):
    asked = request_of(*split([*TINY, f"tune_dir={tmp_path}"]))
    with (
        only_launcher(tmp_path, "local"),
        pytest.raises(ConfigError, match="is being launched by another process"),
    ):
        tune(asked, lambda line: None)


def test_the_page_of_a_search_holds_all_and_needs_no_network(tmp_path, capsys):
    words = ("trials=16", "seeds=3", "held_out_seeds=3")
    trials, _ = search(
        tmp_path,
        *words,
        fails=lambda run, frames: float(settings_of(run).get("agent.lr", 0)) > 1.5e-3,
    )
    assert command.main([f"report={tmp_path}"]) == DONE
    printed = capsys.readouterr().out
    assert best_command(saved_request(trials), trials.best()) in printed
    page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=.?(https?:)?//", page)
    names = ("history", "importance", "parallel", "slices", "held_out", "held_out_curves")
    for name in names:
        assert f'id="{name}-title"' in page
        assert (tmp_path / f"report/figures/{name}.png").stat().st_size > 3000
    for name in ("space", "trials", "held_out"):
        assert (tmp_path / f"report/tables/{name}.csv").is_file()
    assert "failed" in (tmp_path / "report/tables/trials.csv").read_text(encoding="utf-8")
    assert held_out_results(request(*words), tmp_path, trials).conclusion() in page
    assert command.main([f"status={tmp_path}"]) == DONE
    shown = capsys.readouterr().out
    assert "16 of 16 trials have ended" in shown and "no process is running this search" in shown


def test_a_page_can_be_written_at_any_time(tmp_path):
    for after in (1, 20):
        with pytest.raises(Killed):
            search(tmp_path, "trials=6", "seeds=2", dies_after=after)
        trials = load_trials(tmp_path)
        asked = saved_request(trials)
        assert asked.search == trials.search
        write_page(asked, tmp_path, "x")
        assert conclusion(asked, result_of(asked, tmp_path, trials, finished=False))


def test_a_dry_run_shows_the_space_and_starts_nothing(tmp_path, capsys):
    assert command.main([*TINY, "dry_run=true", f"tune_dir={tmp_path / 'new'}"]) == DONE
    shown = capsys.readouterr().out
    assert re.search(r"agent.batch_size +choice\(16,32\)", shown)
    assert shown.count("rlearly.train agent=td3") == 3
    assert not (tmp_path / "new").exists()


def test_a_search_from_python_is_that_of_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tuner, "LocalPool", lambda folder, workers, gpus: SimulatedPool(folder))
    words = ["trials=3", "seeds=2", "held_out_seeds=0", "space.agent.nstep=null"]
    assert command.main([*simulated.WORDS, *words, f"tune_dir={tmp_path / 'a'}"]) == DONE
    printed = capsys.readouterr().out
    found = rlearly.tune(
        *simulated.WORDS,
        trials=3,
        seeds=2,
        held_out_seeds=0,
        space={"agent.nstep": None},
        tune_dir=tmp_path / "b",
        progress=False,
    )
    assert capsys.readouterr().out == ""
    assert found.finished and found.command in printed
    assert known(load_trials(tmp_path / "a")) == known(found.trials)
    assert (tmp_path / "b/report/index.html").is_file()
    assert list(request_of(*split([*TINY, "seeds=[5,6]"])).seeds) == [5, 6]
    with pytest.raises(ConfigError, match="dry_run: is for the command"):
        rlearly.tune(agent="td3", env="Hopper-v5", dry_run=True)


# --- real runs ---


def start(folder, *words):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "rlearly.tune", *TINY, f"tune_dir={folder}", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )


def test_a_search_trains_prints_its_best_command_and_is_done(tmp_path):
    words = ("trials=3", "seeds=2", "workers=2", "held_out_seeds=0")
    process = start(tmp_path, *words)
    output, _ = process.communicate()
    assert process.returncode == DONE, output
    trials = load_trials(tmp_path)
    assert [trial.state for trial in trials] == [COMPLETE] * 3
    assert all(math.isfinite(t.value) and len(t.scores) == 2 for t in trials)
    assert Record.load(tmp_path, "runs/trial 2/tiny_envs-StateReach-v0/1").state == "done"
    best = trials.best()
    printed = shlex.split(next(line for line in output.splitlines() if "rlearly.train" in line))
    assert compose(printed[3:]).agent.lr == best.params["agent.lr"]
    assert (tmp_path / "report/index.html").is_file()
    done = start(tmp_path, *words)
    assert "begins" not in done.communicate()[0] and done.returncode == DONE


def test_ctrl_c_saves_and_a_killed_search_resumes_its_runs(tmp_path):
    words = ("trials=1", "seeds=1", "workers=1", "held_out_seeds=0", "train_frames=2000")
    words = (*words, "eval_every_frames=500", "prune.enabled=false", "space.agent.nstep=null")
    whole = start(tmp_path / "whole", *words)
    assert whole.wait() == DONE, whole.stdout.read()
    folder = tmp_path / "broken"
    rows = folder / "runs/trial 0/tiny_envs-StateReach-v0/0/metrics.jsonl"
    for number, status in ((signal.SIGINT, SAVED), (signal.SIGKILL, -signal.SIGKILL)):
        before = rows.stat().st_mtime if rows.exists() else 0
        process = start(folder, *words)
        deadline = time.monotonic() + 100
        while not (rows.exists() and rows.stat().st_mtime > before):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait() == status, process.stdout.read()
    last = start(folder, *words)
    assert last.wait() == DONE, last.stdout.read()
    assert known(load_trials(folder)) == known(load_trials(tmp_path / "whole"))
    log = (folder / "jobs/runs/trial 0/tiny_envs-StateReach-v0/0.log").read_text(encoding="utf-8")
    assert "resumed at" in log


@pytest.mark.cluster
def test_a_search_on_ray_equals_one_on_this_machine(tmp_path):
    pytest.importorskip("ray")
    words = ("trials=3", "seeds=2", "workers=1", "held_out_seeds=0", "train_frames=1800")
    words = (*words, "eval_every_frames=100", "prune.after_trials=1")
    here = start(tmp_path / "here", *words)
    assert here.wait() == DONE, here.stdout.read()
    folder = tmp_path / "ray"
    process = start(folder, *words, "launcher=ray")
    while not (folder / "runs/trial 1").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait() == SAVED, process.stdout.read()
    process = start(folder, *words, "launcher=ray")
    assert process.wait() == DONE, process.stdout.read()
    assert known(load_trials(folder)) == known(load_trials(tmp_path / "here"))


@pytest.mark.slow
def test_three_trials_on_pendulum_learn(tmp_path):
    words = [
        "agent=td3",
        "env=Pendulum-v1",
        "trials=3",
        "seeds=1",
        "train_frames=6000",
        "eval_every_frames=500",
        "agent.learning_starts_steps=500",
        "agent.hidden_dim=64",
        "held_out_seeds=3",
        "video_size=0",
        "plasticity.every_steps=0",
        f"tune_dir={tmp_path}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "rlearly.tune", *words], capture_output=True, encoding="utf-8"
    )
    assert done.returncode == DONE, done.stderr
    trials = load_trials(tmp_path)
    assert len(trials) == 3 and trials.best().value > -1000
    assert held_out_results(saved_request(trials), tmp_path, trials)
