"""The report of one run: a figure and a summary."""

import json
from pathlib import Path

import matplotlib
import pytest

from rlearly import report
from rlearly.experiments.report.metrics_file import metric_series, read_rows
from rlearly.experiments.report.plotting import AS_TYPED, single_point_marker
from rlearly.experiments.report.run_report import EventMarker, RunReport, draw_runs

ROWS = [
    {"frames": 20, "steps": 10, "train/episode_return": 1.0},
    {"frames": 20, "steps": 10, "plasticity/fau_critic": 0.5, "train/replay_ratio": 0.5},
    {"frames": 20, "steps": 10, "exploration/awaken_step": -1.0},
    {"frames": 40, "steps": 20, "exploration/awaken_step": 4.5, "eval/episode_return": 7.0},
    {"frames": 50, "steps": 25, "event/fau_critic": 0.4, "event/fau_critic_before": 0.5},
    {"frames": 60, "steps": 30, "event/replay_ratio": 2.0},
    {"frames": 60, "steps": 30, "exploration/awaken_step": 14.0, "eval/episode_return": 5.0},
    {"frames": 80, "steps": 40, "event/perturbation_alpha": 0.3, "plasticity/fau_critic": 0.25},
    {"frames": 85, "steps": 42, "event/fau_critic": 0.4, "event/fau_critic_before": 0.3},
    {"frames": 88, "steps": 44, "eval/success_rate": 0.75},
    {"frames": 89, "steps": 44, "eval/success_rate": 0.5},
    {"frames": 90, "steps": 45, "event/recycled_units": 3.0},
]


@pytest.fixture
def run(tmp_path):
    text = "\n".join(map(json.dumps, ROWS)) + '\n{"frames": 100, "ste'
    (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8")
    return tmp_path


def test_rows_of_a_running_run_are_read_but_for_the_last_half(run):
    rows = read_rows(run)
    assert rows == ROWS
    assert metric_series(rows, "eval/episode_return") == ([40, 60], [7.0, 5.0])


def test_event_markers_are_what_happened_and_where(run):
    found = [(marker.frames, marker.label) for marker in RunReport.load(run).event_markers()]
    assert found == [(28, "awakening"), (60, "replay ratio changes"), (80, "perturbation")]


def test_run_that_never_awoke_has_no_such_mark():
    rows = [{"frames": 20, "steps": 10, "exploration/awaken_step": -1.0}]
    assert RunReport("r", rows).event_markers() == []
    awake = [{"frames": 20, "steps": 10, "exploration/awaken_step": 6.0}]
    assert RunReport("r", awake).event_markers() == [EventMarker(12, "awakening", "C4", "-.")]


def test_report_draws_the_figure_and_says_what_happened(run, capsys):
    assert report.main([f"run={run}"]) == 0
    said = capsys.readouterr().out
    assert (run / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "5.0 at the last evaluation, best 7.0 at 40 frames" in said
    assert "success     50% at the last evaluation, best 75% at 88 frames" in said
    assert "2 checks of the critic's FAU, which moved by 0.1000" in said
    assert "3 units recycled in 1 ReDo steps" in said
    assert (
        "critic 0.500 -> 0.250" in said
        and single_point_marker([1])
        and not single_point_marker([1, 2])
        and "perturbation: at 80 frames" in said
    )
    assert report.main([f"run={run}", f"out={run / 'r.pdf'}"]) == 0
    assert (run / "r.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["out=x.png"], "Expected run= (a run directory"),
        (["run=nowhere"], "nowhere does not exist; "),
        (["ran=x"], "no key 'ran'; did you mean run"),
        (["run={run}", "out={run}/x.foo"], "cannot be written"),
        (
            ["run={run}", "out={run}/no/x.png"],
            "x.png cannot be written (No such file or directory);",
        ),
    ],
)
def test_bad_requests_get_one_sentence(run, capsys, arguments, sentence):
    assert report.main([text.format(run=run) for text in arguments]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("rlearly: ") and sentence in said.err and not said.out


def test_empty_run_is_told_to_wait(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text("", encoding="utf-8")
    assert report.main([f"run={tmp_path}"]) == 2
    assert "has no rows yet" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["a $b$ c", r"$\nothing$", "gr\udcc3\udcb6\udcc3\udc9fe"])
def test_titles_and_labels_are_drawn_as_they_are(text, tmp_path):
    with matplotlib.rc_context(AS_TYPED):
        figure = draw_runs({text: [{"frames": 10, "eval/episode_return": 1.0}]}, text)
        figure.savefig(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000


def test_names_of_runs_are_drawn_as_they_are(run, monkeypatch, capsys):
    """Neither as formulas, which may not parse, nor left out of the legend as hidden lines."""
    monkeypatch.chdir(run.parent)
    named = run.rename(run.parent / r"_$\foo$ a,b")
    assert report.main([named.name, named.name, r"title=$\bar$", "out=curve.svg"]) == 0
    drawn = (run.parent / "curve.svg").read_text(encoding="utf-8")
    assert r"_$\foo$ a,b" in drawn and r"$\bar$" in drawn
    assert report.main([f"run={named.name}"]) == 0 and (named / "report.png").exists()
    other = run.parent / "x,y.csv"
    other.touch()
    assert report.compared_paths("x,y.csv") == [Path("x,y.csv")]
    assert report.compared_paths("a, 'b,c'") == [Path("a"), Path("b,c")]
