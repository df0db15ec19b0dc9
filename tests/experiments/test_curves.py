"""The returns of several runs in one figure."""

import json

import pytest

from rlearly import report
from rlearly.experiments.report.run_report import draw_runs


def test_curve_is_read_from_a_running_run_and_drawn(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    rows = [
        {"frames": 10, "steps": 5, "plasticity/dormant_ratio": 0.5},
        {"frames": 10, "steps": 5, "eval/episode_return": 1.5},
        {"frames": 20, "steps": 10, "eval/episode_return": 2.5},
    ]
    text = "\n".join(map(json.dumps, rows)) + '\n{"frames": 30, "eval/epis'
    (run / "metrics.jsonl").write_text(text, encoding="utf-8")
    out = tmp_path / "c.png"
    assert report.main([str(run), f"out={out}"]) == 0
    assert str(out) in capsys.readouterr().out
    assert out.read_bytes().startswith(b"\x89PNG")
    assert out.with_suffix(".csv").read_text(encoding="utf-8").splitlines() == [
        "run,frames,eval_episode_return",
        f"{run},10,1.50",
        f"{run},20,2.50",
    ]


def test_output_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text("", encoding="utf-8")
    for out in (tmp_path / "nowhere" / "x.png", tmp_path / "x.foo"):
        assert report.main([str(tmp_path), f"out={out}"]) == 2
        assert "cannot be written" in capsys.readouterr().err


def test_negative_returns_are_inside_the_picture():
    rows = [
        {"frames": 1, "eval/episode_return": -36.8, "plasticity/dormant_ratio": 0.5},
        {"frames": 2, "eval/episode_return": -398.9},
    ]
    low, high = draw_runs({"a": rows}, "t").axes[0].get_ylim()
    assert low < -398.9 and high > -36.8


def test_no_run_is_one_sentence(tmp_path, capsys):
    assert report.main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere does not exist; a run directory looks like" in capsys.readouterr().err
    assert report.main([str(tmp_path)]) == 2
    assert "is not a run directory (it has no metrics.jsonl); a run" in capsys.readouterr().err


def test_unreadable_run_is_named_and_not_the_output(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe")
    assert report.main([str(tmp_path), f"out={tmp_path}/c.png"]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/metrics.jsonl cannot be read" in error and "out:" not in error


def test_run_without_evaluations_is_pointed_out(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(
        '{"frames": 10, "plasticity/dormant_ratio": 0.5}', encoding="utf-8"
    )
    assert report.main([str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert f"{tmp_path} has no evaluations" in said.err
    assert f"{tmp_path / 'curve.png'} and {tmp_path / 'curve.csv'}" in said.out


def test_bad_arguments_are_one_sentence(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text("", encoding="utf-8")
    for word, sentence in {
        "output=x.png": "There is no key 'output'; did you mean out",
        "out=": "out: expected text, received nothing.",
        "title=": "title: expected text, received nothing.",
        "--out": "Expected key=value, received '--out'",
        "threshold=3": "threshold: only sweep= takes it",
    }.items():
        assert report.main([str(tmp_path), word]) == 2
        assert sentence in capsys.readouterr().err
    assert report.main(["title=x"]) == 2
    assert "several run directories" in capsys.readouterr().err
    assert report.main([f"run={tmp_path}", "title=x"]) == 2
    assert "title: only runs= takes it" in capsys.readouterr().err


@pytest.mark.parametrize("as_key", [True, False])
def test_run_directories_are_a_list_or_bare_paths_with_any_name(tmp_path, as_key):
    runs = [tmp_path / "replay_ratio=2", tmp_path / "b"]
    for run in runs:
        run.mkdir()
        (run / "metrics.jsonl").write_text(
            '{"frames": 10, "eval/episode_return": 1}', encoding="utf-8"
        )
    paths = [f"runs=['{runs[0]}',{runs[1]}]"] if as_key else [str(run) for run in runs]
    assert report.main([*paths, f"out={tmp_path}/c.png"]) == 0
    table = (tmp_path / "c.csv").read_text(encoding="utf-8").splitlines()
    assert table[1:] == [f"{run},10,1.00" for run in runs]
