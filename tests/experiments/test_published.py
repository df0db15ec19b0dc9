"""Published results beside a sweep's own: runs with intervals, and means without them."""

import csv
from collections import Counter
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from sweeps import make_sweep
from test_human_scores import FINALS, atari_sweep, cells
from test_sweep_report import check

from rlearly import report
from rlearly.core.errors import ConfigError
from rlearly.experiments.report.curves import PUBLISHED, read_curves
from rlearly.experiments.report.sweep_report import load
from rlearly.experiments.study import Study

RUNS, MEANS = Path("atari100k_drq_eps"), Path("atari100k_adaptive_rr")
LEFT_OUT = ("Enduro", "SpaceInvaders")
SHARED = [
    curve.env.removeprefix("atari/")
    for curve in read_curves(PUBLISHED / f"{MEANS}.csv")
    if curve.arm == "adaptive" and not curve.env.endswith(LEFT_OUT)
]
"""The fifteen games of the paper that also have published runs."""


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Five made-up seeds on the fifteen games, with both published files."""
    folder = tmp_path_factory.mktemp("shared")
    finals = {f"atari/{game}": [1.0, 2.0, 3.0, 4.0, 5.0] for game in SHARED}
    return load(atari_sweep(folder, finals, arms=("ours",)), [RUNS, MEANS])


def test_shipped_files_hold_every_published_run_and_mean():
    runs = read_curves(PUBLISHED / f"{RUNS}.csv")
    means = read_curves(PUBLISHED / f"{MEANS}.csv")
    assert len(runs) == 26 * 100 and len({curve.env for curve in runs}) == 26
    assert {curve.seed for curve in runs if curve.env == "atari/Pong"} == set(range(100))
    assert len(means) == 17 * 5 and all(curve.seed is None for curve in means)
    assert {curve.frames[-1] for curve in [*runs, *means]} == {400_000}


def test_papers_ratio_1_is_the_mean_of_the_published_runs_rounded_up_or_down():
    """So it is not a separate measurement."""
    runs = {game: [] for game in SHARED}
    for curve in read_curves(PUBLISHED / f"{RUNS}.csv"):
        runs.setdefault(curve.env.removeprefix("atari/"), []).append(curve.returns[-1])
    means = read_curves(PUBLISHED / f"{MEANS}.csv")
    paper = {c.env.removeprefix("atari/"): c.returns[-1] for c in means if c.arm == "RR 1"}
    for game in SHARED:
        mean = np.mean(runs[game])
        assert paper[game] in (np.floor(mean), np.ceil(mean)), game


def test_atari_study_has_its_runs_control_and_the_papers_means():
    plan = Study.load(Path("adaptive_rr_atari_cpu")).plan()
    envs = [
        f"atari/{g}" for g in ["Assault", "BankHeist", "Boxing", "Breakout", "Pong", "RoadRunner"]
    ]
    counts = Counter((run.arm, run.env) for run in plan.runs)
    assert len(plan.runs) == 100 and set(counts.values()) == {5}
    assert {env for arm, env in counts if arm == "RR 1"} == {"atari/Boxing", "atari/Pong"}
    assert {arm: {env for a, env in counts if a == arm} for arm in ("RR 0.5", "RR 2")} == {
        "RR 0.5": set(envs),
        "RR 2": set(envs),
    }
    assert {"train_frames=400000", "eval_every_frames=400000", "eval_episodes=100"} <= set(
        plan.runs[0].overrides
    ), "100k steps of 4 frames, one evaluation, at the end"
    means = {(c.env, c.arm): c.returns[-1] for c in read_curves(PUBLISHED / f"{MEANS}.csv")}
    assert plan.published == {
        env: {arm: means[env, arm] for arm in ("RR 0.5", "RR 2", "adaptive")} for env in envs
    }


def test_interval_of_five_published_runs_is_that_of_five_seeds(compared):
    """0.387 to 0.507, as computed elsewhere from the same runs."""
    rows = {row["arm"]: row for row in cells(compared, "pooled")}
    five = rows["any 5 of DrQ(eps) (atari100k_drq_eps)"]
    low, high = map(float, five["mean [95 %]"].split("[")[1].rstrip("]").split(", "))
    assert (low, high) == pytest.approx((0.387, 0.507), abs=0.006)
    assert five["runs"] == "75" and rows["DrQ(eps) (atari100k_drq_eps)"]["runs"] == "1500"
    every = rows["DrQ(eps) (atari100k_drq_eps)"]["mean [95 %]"]
    assert every.split(" [")[0] == five["mean [95 %]"].split(" [")[0] == "0.441"
    assert "any 5 of ours" not in rows


def test_published_means_have_a_mean_and_a_median_and_no_interval(compared):
    rows = {row["arm"]: row for row in cells(compared, "pooled")}
    for arm, mean in (("adaptive", "0.602"), ("RR 0.5", "0.46"), ("RR 2", "0.376")):
        row = rows[f"{arm} (atari100k_adaptive_rr)"]
        assert (row["runs"], row["mean [95 %]"]) == ("means", mean)
        assert row["IQM [95 %]"] == row["gap [95 %]"] == "" and "[" not in row["median [95 %]"]


def test_games_have_raw_and_human_normalised_means_beside_the_published(compared):
    rows = cells(compared, "games")
    pong = {row["arm"]: row for row in rows if row["game"] == "atari/Pong"}
    paper = pong["adaptive (atari100k_adaptive_rr)"]
    assert (paper["mean score [95 %]"], paper["human-normalised [95 %]"]) == ("-9", "0.331")
    assert float(paper["human-normalised [95 %]"]) == pytest.approx((-9 + 20.7) / 35.3, abs=1e-3)
    ours = pong["ours"]
    assert ours["mean score [95 %]"].startswith("3 [") and ours["runs"] == "5"
    assert float(ours["human-normalised [95 %]"].split()[0]) == pytest.approx(23.7 / 35.3, abs=1e-3)
    low, high = (
        float(end)
        for end in pong["any 5 of DrQ(eps) (atari100k_drq_eps)"]["mean score [95 %]"]
        .split("[")[1]
        .rstrip("]")
        .split(", ")
    )
    assert low < -9.06 < high and high - low > 8, "as wide as five runs make it"


def test_report_draws_all_envs_together_with_published_numbers(tmp_path, capsys):
    numbers = {env: {"RR 1": float(np.mean(own))} for env, own in FINALS.items()}
    sweep = atari_sweep(tmp_path, published=numbers)
    assert report.main([f"sweep={sweep}", f"compare={RUNS},{MEANS}"]) == 0
    page = check(sweep / "report")
    assert "RR 1 (published)" in page.words and "ReDo (atari100k_adaptive_rr)" in page.words
    assert "the interval holds 95 % of those with N of its runs" in page.words
    assert "Published means (crosses in figures)" in page.words
    pixels = matplotlib.image.imread(sweep / "report" / "figures" / "pooled.png")
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 50
    with (sweep / "report" / "tables" / "pooled.csv").open(encoding="utf-8") as stream:
        rows = {row["arm"]: row for row in csv.DictReader(stream)}
    assert rows["RR 1"]["mean [95 %]"].split()[0] == rows["RR 1 (published)"]["mean [95 %]"]


def test_single_evaluations_are_no_learning_curves(tmp_path):
    sweep = make_sweep(tmp_path / "once", ["a"], ["dog_run"], 3, points=1)
    assert report.main([f"sweep={sweep}"]) == 0
    assert not (sweep / "report" / "figures" / "curves.png").exists()
    assert (sweep / "report" / "figures" / "final.png").exists()
    assert cells(load(sweep), "final")[0]["mean while learning [95 %]"] == ""


def test_missing_comparison_names_the_shipped_ones(tmp_path):
    with pytest.raises(ConfigError, match="that ship with rlearly: atari100k_adaptive_rr, atari10"):
        load(atari_sweep(tmp_path), [Path("atari100k")])
