"""Reading and drawing what runs have written."""

import json

from rlearly.experiments.report import learning_curves


def test_curve_is_read_from_a_running_run_and_drawn(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    rows = [
        {"frames": 10, "steps": 5, "plasticity/dormant_ratio": 0.5},
        {"frames": 10, "steps": 5, "eval/episode_return": 1.5},
        {"frames": 20, "steps": 10, "eval/episode_return": 2.5},
    ]
    text = "\n".join(map(json.dumps, rows)) + '\n{"frames": 30, "eval/epis'
    (run / "metrics.jsonl").write_text(text)
    out = tmp_path / "c.png"
    assert learning_curves.main([str(run), f"out={out}"]) == 0
    assert str(out) in capsys.readouterr().out
    assert out.read_bytes().startswith(b"\x89PNG")
    assert out.with_suffix(".csv").read_text().splitlines() == [
        "run,frames,eval_episode_return",
        f"{run},10,1.50",
        f"{run},20,2.50",
    ]


def test_output_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text("")
    for out in (tmp_path / "nowhere" / "x.png", tmp_path / "x.foo"):
        assert learning_curves.main([str(tmp_path), f"out={out}"]) == 2
        assert "cannot be written" in capsys.readouterr().err


def test_negative_returns_are_inside_the_picture(tmp_path, monkeypatch):
    from matplotlib import pyplot

    drawn = []
    monkeypatch.setattr(pyplot, "close", lambda figure: drawn.append(figure))
    learning_curves.plot(
        [learning_curves.Curve("a", [1, 2], [-36.8, -398.9], [1], [0.5])], tmp_path / "c.png", "t"
    )
    low, high = drawn[0].axes[0].get_ylim()
    assert low < -398.9 and high > -36.8


def test_no_run_is_one_sentence(tmp_path, capsys):
    assert learning_curves.main([str(tmp_path / "nowhere")]) == 2
    assert "is not a run directory" in capsys.readouterr().err


def test_unreadable_run_is_named_and_not_the_output(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe")
    assert learning_curves.main([str(tmp_path), f"out={tmp_path}/c.png"]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/metrics.jsonl cannot be read" in error and "out:" not in error


def test_run_without_evaluations_is_pointed_out(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"frames": 10, "plasticity/dormant_ratio": 0.5}')
    assert learning_curves.main([str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert f"{tmp_path} has no evaluations" in said.err
    assert f"{tmp_path / 'curve.png'} and {tmp_path / 'curve.csv'}" in said.out


def test_bad_words_are_one_sentence(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text("")
    for word, sentence in {
        "output=x.png": "There is no key 'output'; valid names: out, title.",
        "out=": "out: expected text, received nothing.",
        "--out": "Expected key=value, received '--out'",
    }.items():
        assert learning_curves.main([str(tmp_path), word]) == 2
        assert sentence in capsys.readouterr().err
    assert learning_curves.main(["title=x"]) == 2
    assert "Expected the run directories to draw" in capsys.readouterr().err
