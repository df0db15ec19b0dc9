"""Studies: what is run, what is skipped, what the numbers are."""

from pathlib import Path

import numpy as np
import pytest

from rlearly.config import ConfigError
from rlearly.experiments import aggregate, study
from rlearly.experiments.aggregate import Curve, interval, iqm

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


def test_study_runs_what_is_missing_and_reads_it_together(tmp_path, capsys):
    file = tmp_path / "tiny.yaml"
    file.write_text(STUDY)
    out = tmp_path / "out"
    words = [str(file), f"out={out}", "workers=2"]
    assert study.main(words) == 0
    said = capsys.readouterr().out
    assert said.count("start rlearly.train") == 5 and said.count("start rlearly.teacher") == 1
    assert "Pendulum-v1  plain                      2" in said
    curves = aggregate.read_csv(out / "curves.csv")
    assert {(c.arm, c.seed) for c in curves} == {
        (arm, seed) for arm in ("plain", "started") for seed in (0, 1)
    }
    assert all(c.frames.tolist() == [30, 60] for c in curves)
    assert (out / "curves.png").stat().st_size > 10_000
    assert study.main(words) == 0
    assert "start" not in capsys.readouterr().out.replace("started", ""), "all of it is done"
    earlier = (out / "curves.csv").read_text().splitlines()
    kept = tmp_path / "kept.csv"
    kept.write_text("\n".join(line for line in earlier if "started" not in line) + "\n")
    rest = [str(file), f"out={tmp_path / 'new'}", f"results={kept}"]
    assert study.main([*rest, "dry_run=true"]) == 0
    planned = capsys.readouterr().out.splitlines()
    assert len(planned) == 2 and all("snapshot=" in line for line in planned)
    assert study.main([*rest, "only_read=true"]) == 0
    assert "2 of 4 runs are not done" in capsys.readouterr().out
    assert study.main([*rest, "dry_run=true", f"teachers={out / 'teachers'}"]) == 0
    assert f"snapshot={out / 'teachers' / 'Pendulum-v1'}.h5" in capsys.readouterr().out


def test_failing_run_does_not_stop_the_others(tmp_path, capsys):
    file = tmp_path / "tiny.yaml"
    file.write_text(STUDY.replace("[snapshot=TEACHER,", "[agent.lr=-1,"))
    assert study.main([str(file), f"out={tmp_path / 'out'}"]) == 1
    said = capsys.readouterr().out
    assert said.count("FAILED") == 2 and "agent.lr: expected a number above 0" in said
    assert "2 of 4 runs are not done" in said


def test_shipped_studies_compose_every_run(tmp_path):
    from rlearly.compose import compose

    for file in sorted(study.STUDIES.glob("*.yaml")):
        runs = study.Study.load(Path(file.stem)).runs(tmp_path)
        assert len({(r.arm, r.env, r.seed) for r in runs}) == len(runs)
        for run in {r.arm: r for r in runs}.values():
            compose(run.words)


def test_bad_studies_get_one_sentence(tmp_path, capsys):
    assert study.main(["nothing"]) == 2
    assert "There is no study nothing; shipped ones: s3rl, s3rl_cpu." in capsys.readouterr().err
    (tmp_path / "bad.yaml").write_text("title: [")
    assert study.main([str(tmp_path / "bad.yaml")]) == 2
    assert "does not load as a study" in capsys.readouterr().err
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="expected the columns arm, env"):
        aggregate.read_csv(tmp_path / "x.csv")
