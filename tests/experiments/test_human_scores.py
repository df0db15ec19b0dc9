"""Human-normalised scores of Atari games in the report of a sweep."""

import csv

import numpy as np
import pytest
from sweeps import record, write_run

from rlearly import report
from rlearly.core.errors import ConfigError
from rlearly.experiments.plan import Plan, Run
from rlearly.experiments.report.human_scores import game_of, human_scores, reference_scores
from rlearly.experiments.report.results import SweepResults
from rlearly.experiments.report.sweep_report import load
from rlearly.experiments.report.tables import tables

FINALS = {
    "atari/Pong": [-20.0, -15.0, -9.0, 3.0, -11.0],
    "atari/Boxing": [4.0, 16.0, 9.0, 0.0, 30.0],
    "atari/BankHeist": [91.0, 232.0, 451.0, 553.0, 14.2],
}
"""The returns of five seeds' last evaluation on each game."""


def atari_sweep(folder, finals=FINALS, arms=("RR 1",), **plan):
    """A finished sweep; the evaluation before the last one does not count."""
    runs = [Run(a, env, seed, []) for a in arms for env, v in finals.items() for seed in range(5)]
    Plan("Atari", runs, **plan).save(folder)
    for run in runs:
        last = finals[run.env][run.seed]
        write_run(folder / run.name, run.env, [last - 50, last], 200_000, family="atari")
        record(folder, run, "done", 60)
    return folder


def cells(results, name):
    """The rows of a table as dicts."""
    table = next(table for table in tables(results) if table.name == name)
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_random_play_scores_0_and_a_human_1():
    results = SweepResults("t", [], reference=reference_scores(FINALS, None)[0])
    for env, (random, human) in {"atari/Pong": (-20.7, 14.6), "atari/Boxing": (0.1, 12.1)}.items():
        between = (random + human) / 2
        scores = results.normalise(env, np.array([random, human, between]))
        np.testing.assert_allclose(scores, [0.0, 1.0, 0.5], atol=1e-12)
    assert results.normalise("atari/BankHeist", np.array(553.0)) == pytest.approx(
        (553.0 - 14.2) / (753.1 - 14.2)
    )


def test_reference_scores_cover_atari_100k_and_the_papers_other_two_games():
    assert len(human_scores()) == 28
    assert all(human > random for random, human in human_scores().values())
    assert human_scores()["Enduro"] == (0.0, 861.0)
    assert human_scores()["SpaceInvaders"] == (148.0, 1669.0)
    assert [game_of(env) for env in ("atari/Pong", "ALE/Pong-v5", "Pong", "dog_run")] == [
        "Pong",
        "Pong",
        None,
        None,
    ]


def test_pooled_scores_equal_rliables_of_each_runs_last_evaluation(tmp_path):
    rliable = pytest.importorskip("rliable.metrics")
    (row,) = cells(load(atari_sweep(tmp_path)), "pooled")
    by_hand = np.array(
        [
            [(score + 20.7) / (14.6 + 20.7) for score in FINALS["atari/Pong"]],
            [(score - 0.1) / (12.1 - 0.1) for score in FINALS["atari/Boxing"]],
            [(score - 14.2) / (753.1 - 14.2) for score in FINALS["atari/BankHeist"]],
        ]
    ).T  # [seeds, games]
    for column, theirs in (
        ("IQM", rliable.aggregate_iqm),
        ("mean", rliable.aggregate_mean),
        ("median", rliable.aggregate_median),
        ("gap", rliable.aggregate_optimality_gap),
    ):
        value, interval = row[f"{column} [95 %]"].split(" [")
        assert value == f"{theirs(by_hand):.3g}"
        low, high = map(float, interval.rstrip("]").split(", "))
        assert low < theirs(by_hand) < high
    assert row["runs"] == "15"


def test_page_says_how_atari_scores_are_normalised(tmp_path, capsys):
    assert report.main([f"sweep={atari_sweep(tmp_path)}"]) == 0
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "Human-normalised scores" in page and "(score - random) / (human - random)" in page
    assert "The final score is a run&#39;s last evaluation" in page
    assert "of the way from the score of random play" in page
    said = capsys.readouterr().out
    assert "IQM [95 %]" in said and "gap [95 %]" in said, "the terminal shows them too"
    with (tmp_path / "report" / "table.csv").open(newline="", encoding="utf-8") as stream:
        finals = {row["env"]: row["final_each_seed"] for row in csv.DictReader(stream)}
    assert finals["atari/Boxing"] == "4 16 9 0 30", "without the evaluation before the last"


def test_run_as_bad_as_random_play_is_broken_and_no_other(tmp_path):
    results = load(atari_sweep(tmp_path, {"atari/Pong": [-20.7, 10.0, 11.0, 12.0, -10.0]}))
    assert [curve.seed for curve in results.broken("atari/Pong", "RR 1")] == [0]


def test_normalise_chooses_between_human_scores_and_the_range(tmp_path):
    sweep = atari_sweep(tmp_path / "a")
    assert load(sweep, normalise="range").reference == {}
    assert load(sweep, normalise="range").final_scores("atari/Pong")["RR 1"][0] == -45.0
    ale = atari_sweep(tmp_path / "b", {"ALE/Pong-v5": FINALS["atari/Pong"]})
    assert load(ale).reference == {}, "only where all envs are atari/NAME"
    assert load(ale, normalise="atari").reference == {"ALE/Pong-v5": (-20.7, 14.6)}
    with pytest.raises(ConfigError, match=r"expected envs with human scores, received dog_run; le"):
        reference_scores(["dog_run"], "atari")
    assert report.main([f"sweep={sweep}", "normalise=human"]) == 2


def test_game_without_a_human_score_is_left_out_in_one_sentence(tmp_path, capsys):
    sweep = atari_sweep(tmp_path, {**FINALS, "atari/Tetris": [1.0, 2.0, 3.0, 4.0, 5.0]})
    assert report.main([f"sweep={sweep}"]) == 0
    sentence = "No human score is known for atari/Tetris: left out of the human-normalised scores."
    assert sentence in capsys.readouterr().out.splitlines()
    results = load(sweep)
    assert cells(results, "pooled")[0]["runs"] == "15"
    assert {row["env"] for row in cells(results, "final")} == {*FINALS, "atari/Tetris"}
    alone = atari_sweep(tmp_path / "alone", {"atari/Tetris": [1.0, 2.0, 3.0, 4.0, 5.0]})
    assert report.main([f"sweep={alone}"]) == 0
    said = "known for atari/Tetris: scores are normalised by the range of returns."
    assert said in capsys.readouterr().out
