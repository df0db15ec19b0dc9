"""Studies: what is run, what is skipped, what the numbers are."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rlearly.config import ConfigError
from rlearly.experiments import aggregate, study
from rlearly.experiments.aggregate import Curve, interval, iqm

ROOT = Path(__file__).parents[1]
STUDY = """
title: tiny
envs: [Pendulum-v1]
seeds: 2
common: [agent=td3, threads=1, train_frames=60, eval_every_frames=30, eval_episodes=1,
         agent.hidden_dim=8, agent.learning_starts_steps=20]
teacher: [agent=td3, threads=1, seed=9, train_frames=30, agent.hidden_dim=8]
teacher_snapshots: [episodes=1, every_steps=20]
arms:
  plain: []
  started: [snapshot=TEACHER, snapshot_phase.clusters=2, snapshot_phase.until_steps=30]
metrics: [loss/critic]
"""


def test_iqm_is_the_mean_of_the_middle_half():
    assert iqm(np.array([9.0, 1.0, 2.0, 3.0])) == 2.5
    assert iqm(np.array([0.0, 1.0, 2.0, 3.0, 100.0])) == 2.0
    assert iqm(np.array([4.0, 6.0])) == 5.0
    columns = np.array([[9.0, 1.0], [1.0, 1.0], [2.0, 1.0], [3.0, 1.0]])
    assert iqm(columns).tolist() == [2.5, 1.0]


def test_iqm_equals_scipys_trimmed_mean():
    stats = pytest.importorskip("scipy.stats")
    for count in range(1, 14):
        scores = np.random.default_rng(count).normal(size=(count, 3))
        assert np.allclose(iqm(scores), stats.trim_mean(scores, 0.25, axis=0))


def test_interval_holds_the_truth_about_as_often_as_it_says():
    """400 samples of 20 seeds from a known distribution, whose IQM is its centre."""
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        low, high = interval(random.normal(5.0, 1.0, size=20))
        inside += low <= 5.0 <= high
    assert 0.88 <= inside / 400 <= 0.98


def test_interval_of_equal_seeds_is_a_point_and_is_reproducible():
    assert interval(np.full(5, 3.0)) == (3.0, 3.0)
    scores = np.random.default_rng(0).normal(size=9)
    assert interval(scores) == interval(scores) != interval(scores, seed=1)


def test_final_and_area_are_what_they_say():
    curve = Curve("a", "e", 0, np.array([0, 10, 30]), np.array([0.0, 2.0, 4.0]))
    assert curve.final == 2.0
    assert curve.area == pytest.approx((10 * 1.0 + 20 * 3.0) / 30)


def test_metrics_are_kept_beside_the_returns_and_read_back(tmp_path, monkeypatch):
    from matplotlib import pyplot

    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)

    def curve(arm, seed, last):
        frames, fau = np.array([10, 20]), np.array([0.5, last])
        metrics = {"plasticity/fau_critic": (frames + 5, fau)} if arm == "b" else {}
        return Curve(arm, "e", seed, frames, np.array([1.0, 2.0]), metrics)

    curves = [curve("a", 0, 0.0), *(curve("b", seed, 0.1 * seed) for seed in range(4))]
    aggregate.write(curves, tmp_path, "t")
    assert (tmp_path / "metrics.png").stat().st_size > 5000
    assert [figure.axes[0].get_title() for figure in drawn] == ["e", "e"]
    for figure, arms in zip(drawn, (["b (4 seeds)"], ["a (1 seeds)", "b (4 seeds)"]), strict=True):
        legend = figure.axes[0].get_legend()
        assert sorted(text.get_text() for text in legend.get_texts()) == arms
        assert figure.axes[0].get_xlabel() == "simulator frames"
    again = aggregate.read_csv(tmp_path / "curves.csv")
    for one, two in zip(curves, again, strict=True):
        assert (one.arm, one.seed) == (two.arm, two.seed)
        assert one.metrics.keys() == two.metrics.keys()
        for name, columns in one.metrics.items():
            for mine, theirs in zip(columns, two.metrics[name], strict=True):
                np.testing.assert_allclose(mine, theirs)
    a, b = aggregate.summary(again)
    assert "plasticity/fau_critic_iqm" not in a
    # each seed's mean of its (at most three) last points: 0.25, 0.3, 0.35, 0.4; their middle half
    assert b["plasticity/fau_critic_iqm"] == pytest.approx(0.325)
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="expected the columns arm, env, seed, metric"):
        aggregate.read_csv(tmp_path / "curves.csv")


def test_study_runs_what_is_missing_and_reads_it_together(tmp_path, capsys):
    file = tmp_path / "tiny.yaml"
    file.write_text(STUDY)
    out = tmp_path / "out"
    words = [str(file), f"out={out}", "workers=2"]
    assert study.main(words) == 0
    said = capsys.readouterr().out
    assert said.count("start ") == 6 and said.count("done ") == 6
    assert "start teacher on Pendulum-v1" in said and "start plain on Pendulum-v1, seed 1" in said
    assert "Pendulum-v1  plain                      2" in said
    curves = aggregate.read_csv(out / "curves.csv")
    assert {(c.arm, c.seed) for c in curves} == {
        (arm, seed) for arm in ("plain", "started") for seed in (0, 1)
    }
    assert all(c.frames.tolist() == [30, 60] for c in curves)
    assert (out / "curves.png").stat().st_size > 10_000
    assert all(c.metrics["loss/critic"][0][-1] == 60 for c in curves)
    assert study.main(words) == 0
    assert "start " not in capsys.readouterr().out, "all of it is done"
    earlier = (out / "curves.csv").read_text().splitlines()
    kept = tmp_path / "kept.csv"
    kept.write_text("\n".join(line for line in earlier if "started" not in line) + "\n")
    rest = [str(file), f"out={tmp_path / 'new'}", f"results={kept}"]
    assert study.main([*rest, "dry_run=true"]) == 0
    planned = capsys.readouterr().out.splitlines()
    new = tmp_path / "new"
    train, record, *rest_of_them = planned
    assert train.startswith("python -m rlearly.train agent=td3 ")
    assert train.endswith(f"env=Pendulum-v1 run_dir={new}/teachers/Pendulum-v1")
    assert record.startswith(
        f"python -m rlearly.teacher run={new}/teachers/Pendulum-v1 out={new}/teachers/"
    )
    assert [line.split()[-1] for line in rest_of_them] == [
        f"run_dir={new}/runs/started/Pendulum-v1/{seed}" for seed in (0, 1)
    ]
    assert all(f"snapshot={new}/teachers/Pendulum-v1.h5" in line for line in rest_of_them)
    assert study.main([*rest, "only_read=true"]) == 0
    assert "2 of 4 runs are not done" in capsys.readouterr().out
    assert study.main([*rest, "dry_run=true", f"teachers={out / 'teachers'}"]) == 0
    assert f"snapshot={out / 'teachers' / 'Pendulum-v1'}.h5" in capsys.readouterr().out


def test_failing_run_does_not_stop_the_others(tmp_path, capsys):
    file = tmp_path / "tiny.yaml"
    file.write_text(STUDY)
    teachers = tmp_path / "teachers"
    teachers.mkdir()
    (teachers / "Pendulum-v1.h5").write_text("no snapshots")
    assert study.main([str(file), f"out={tmp_path / 'out'}", f"teachers={teachers}"]) == 1
    said = capsys.readouterr().out
    assert said.count("FAILED started on Pendulum-v1") == 2
    assert "does not load as snapshots" in said and "2 of 4 runs are not done" in said


def test_typos_are_found_before_anything_is_trained(tmp_path, capsys):
    file = tmp_path / "tiny.yaml"
    for old, new, sentence in (
        ("clusters=2", "clusterz=2", "started on Pendulum-v1: There is no key"),
        ("seed=9", "sed=9", "teacher on Pendulum-v1: There is no key"),
        ("teacher: [agent", "teacher: []\ncommon2: [agent", "does not load as a study"),
        ("seeds: 2", "seeds: two", "seeds: expected a number of at least 1, received 'two'"),
        ("envs: [Pendulum-v1]", "envs: Pendulum-v1", "envs: expected a list of words"),
    ):
        assert old in STUDY
        file.write_text(STUDY.replace(old, new))
        assert study.main([str(file), f"out={tmp_path / 'out'}"]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_runs_of_other_words_are_not_taken_for_these(tmp_path):
    runner = study.Runner(tmp_path, tmp_path, 1)
    runner.claim(["a=1", "b=2"], tmp_path / "run")
    runner.claim(["a=1", "b=2"], tmp_path / "run")
    with pytest.raises(
        ConfigError, match=r"was made by other words \(b=2 b=3\): name another out="
    ):
        runner.claim(["a=1", "b=3"], tmp_path / "run")


def test_stopped_study_saves_its_run_and_goes_on(tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(
        STUDY.replace("train_frames=60", "train_frames=100000").replace("seeds: 2", "seeds: 1")
    )
    command = [sys.executable, "-m", "rlearly.experiments.study", str(file), f"out={tmp_path}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    log = tmp_path / "runs" / "plain" / "Pendulum-v1" / "0.log"
    deadline = time.monotonic() + 120
    while "frames/s" not in (log.read_text() if log.exists() else ""):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "stopped plain on Pendulum-v1, seed 0: saved at" in said
    assert said.splitlines()[-1] == "stopped; the same command goes on."
    assert any((log.parent / "0" / "checkpoints").iterdir())


def test_shipped_studies_compose_every_run(tmp_path):
    from rlearly.compose import compose

    for file in sorted(study.STUDIES.glob("*.yaml")):
        plan = study.Study.load(Path(file.stem))
        for env in plan.envs:
            (tmp_path / f"{env}.h5").touch()
        runs = plan.runs(tmp_path)
        assert len({(r.arm, r.env, r.seed) for r in runs}) == len(runs)
        for run in {r.arm: r for r in runs}.values():
            compose(run.words)


def test_bad_studies_get_one_sentence(tmp_path, capsys):
    assert study.main(["nothing"]) == 2
    assert (
        "There is no study nothing; shipped ones: plasticity_probe_cpu, replay_ratio, "
        "replay_ratio_cpu, s3rl, s3rl_cpu."
        in capsys.readouterr().err
    )
    (tmp_path / "bad.yaml").write_text("title: [")
    assert study.main([str(tmp_path / "bad.yaml")]) == 2
    assert "does not load as a study" in capsys.readouterr().err
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="expected the columns arm, env"):
        aggregate.read_csv(tmp_path / "x.csv")
