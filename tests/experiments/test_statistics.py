"""Interval estimates: by hand, against scipy and rliable, and by their coverage."""

import numpy as np
import pytest

from rlearly.experiments.report import statistics
from rlearly.experiments.report.statistics import (
    Estimate,
    broken,
    estimate,
    first_reaching,
    improvement,
    interval,
    iqm,
    mean,
    median,
    median_reaching,
    on_common_frames,
    optimality_gap,
    pooled_iqm,
    profile,
    resample,
    rounded,
)

THRESHOLDS = np.linspace(0.0, 1.0, 11)


def tasks(matrix):
    """A matrix [runs, tasks, ...] as one array [runs, ...] per task."""
    return list(np.moveaxis(matrix, 1, 0))


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def scores():
    """[7 runs, 4 tasks] for each of two arms; rounded, so that there are ties."""
    random = generator(1)
    hardness = np.array([1.0, 0.3, 0.7, 0.1])
    return [np.round(random.random((7, 4)) * hardness, 1) for _ in range(2)]


def test_iqm_is_the_mean_of_the_middle_half():
    assert iqm(np.array([9.0, 1.0, 2.0, 3.0])) == 2.5
    assert iqm(np.array([0.0, 1.0, 2.0, 3.0, 100.0])) == 2.0
    assert iqm(np.array([4.0, 6.0])) == 5.0
    assert iqm(np.array([0.0, 1.0, 5.0])) == 2.0, "of three, none is dropped"
    columns = np.array([[9.0, 1.0], [1.0, 1.0], [2.0, 1.0], [3.0, 1.0]])
    assert iqm(columns).tolist() == [2.5, 1.0]


def test_iqm_equals_scipys_trimmed_mean():
    stats = pytest.importorskip("scipy.stats")
    for count in range(1, 14):
        values = generator(count).normal(size=(count, 3))
        assert np.allclose(iqm(values), stats.trim_mean(values, 0.25, axis=0))


def test_aggregates_of_unequal_tasks_by_hand():
    two = [np.array([0.0, 1.0, 2.0]), np.array([10.0])]
    assert pooled_iqm(two) == 1.5  # the middle two of 0 1 2 10, whatever their task
    assert mean(two) == 5.5
    assert median([*two, np.array([3.0, 5.0])]) == 4.0
    assert optimality_gap([np.array([0.5, 3.0])]) == 0.25  # 3 counts as 1


def test_profile_is_the_share_of_runs_strictly_above():
    two = [np.array([0.0, 0.5]), np.array([0.5, 1.0])]
    assert profile(two, np.array([-1.0, 0.0, 0.5, 1.0])).tolist() == [1.0, 0.75, 0.25, 0.0]


def test_improvement_counts_pairs_and_half_of_ties():
    ours, theirs = [np.array([1.0, 3.0])], [np.array([1.0, 2.0, 2.0])]
    assert improvement(ours, theirs) == (0.5 + 3) / 6
    assert improvement(ours, theirs) + improvement(theirs, ours) == 1.0
    # the mean over tasks, not over all pairs
    assert improvement([*ours, np.array([9.0])], [*theirs, np.array([1.0])]) == (3.5 / 6 + 1) / 2


def test_point_estimates_equal_rliables(scores):
    pytest.importorskip("rliable")
    from rliable import library, metrics

    x, y = scores
    for mine, theirs in (
        (pooled_iqm, metrics.aggregate_iqm),
        (mean, metrics.aggregate_mean),
        (median, metrics.aggregate_median),
        (optimality_gap, metrics.aggregate_optimality_gap),
    ):
        assert mine(tasks(x)) == pytest.approx(theirs(x), abs=1e-12)
    assert improvement(tasks(x), tasks(y)) == pytest.approx(
        metrics.probability_of_improvement(x, y), abs=1e-12
    )
    found, _ = library.create_performance_profile({"x": x}, THRESHOLDS, reps=2)
    np.testing.assert_allclose(profile(tasks(x), THRESHOLDS), found["x"], atol=1e-12)


@pytest.mark.filterwarnings("ignore:random_state is deprecated")
def test_intervals_equal_rliables_within_bootstrap_noise(scores):
    pytest.importorskip("rliable")
    from rliable import library, metrics

    x, y = scores
    for mine, theirs in ((pooled_iqm, metrics.aggregate_iqm), (median, metrics.aggregate_median)):
        _, found = library.get_interval_estimates(
            {"x": x}, theirs, reps=1000, random_state=np.random.RandomState(0)
        )
        ends = interval(mine, tasks(x), random=generator())
        assert np.ravel(ends) == pytest.approx(found["x"].ravel(), abs=0.02)
    _, found = library.get_interval_estimates(
        {"x": (x, y)},
        metrics.probability_of_improvement,
        reps=300,
        random_state=np.random.RandomState(0),
    )
    ends = interval(improvement, tasks(x), tasks(y), random=generator())
    assert np.ravel(ends) == pytest.approx(found["x"].ravel(), abs=0.04)


def test_intervals_of_curves_equal_those_of_each_point(scores):
    curve = np.stack(scores, axis=-1)  # [runs, tasks, T=2]
    ends = interval(pooled_iqm, tasks(curve), random=generator())
    assert ends[0].shape == (2,)
    for at, points in enumerate(scores):
        one = interval(pooled_iqm, tasks(points), random=generator())
        assert [ends[0][at], ends[1][at]] == pytest.approx(list(one))


def test_interval_does_not_depend_on_the_chunk_size(scores, monkeypatch):
    def ends(numbers):
        monkeypatch.setattr(statistics, "_NUMBERS_AT_ONCE", numbers)
        return np.ravel(interval(mean, tasks(scores[0]), random=generator(), resamples=4000))

    assert ends(10**6) == pytest.approx(ends(5000), abs=0.01)


def test_runs_are_drawn_within_their_task_and_independently():
    """Two tasks with equal runs: drawn together, their difference would always be 0."""
    runs = np.arange(5.0)
    a, b = resample([runs, runs], 50, generator())
    assert a.shape == (5, 50) and not np.array_equal(a, b)
    far = resample([runs, runs[:3] + 100], 50, generator())
    assert far[0].max() <= 4 and far[1].min() >= 100 and far[1].shape == (3, 50)
    apart = interval(lambda x, y: mean(x) - mean(y), [runs], [runs], random=generator())
    assert apart[0] < 0 < apart[1]


def test_interval_covers_the_truth_about_as_often_as_its_level():
    """300 samples of 10 seeds on 2 tasks from a known distribution, whose IQM is its centre."""
    random = generator()
    inside = 0
    for _ in range(300):
        drawn = tasks(random.normal(5.0, 1.0, size=(10, 2)))
        low, high = interval(pooled_iqm, drawn, random=random, resamples=1000)
        inside += low <= 5.0 <= high
    assert 0.88 <= inside / 300 <= 0.98


def test_interval_of_equal_seeds_is_a_point_and_follows_its_generator():
    assert interval(pooled_iqm, [np.full(5, 3.0)], random=generator()) == (3.0, 3.0)
    runs = [generator().normal(size=9)]
    np.random.seed(0)  # noqa: NPY002
    first = interval(pooled_iqm, runs, random=generator())
    assert first == interval(pooled_iqm, runs, random=generator())
    assert first != interval(pooled_iqm, runs, random=generator(1))


def test_estimate_has_an_interval_from_three_runs_of_every_task():
    three, two = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0])
    found = estimate(mean, [three, three], seed=0)
    assert found == (2.0, *interval(mean, [three, three], random=generator()))
    assert found.text(3).startswith("2 [1")
    few = estimate(mean, [three, two], seed=0)
    assert few == (1.75, None, None) and few.text() == "1.75"


def test_large_numbers_have_no_exponent_and_small_ones_keep_it():
    assert [rounded(v) for v in (11211.43, -12345.6, 99999.5, 9999.6)] == [
        "11211",
        "-12346",
        "100000",
        "10000",
    ]
    assert [rounded(v) for v in (473.04, 0.00001234, -9.06)] == ["473", "1.234e-05", "-9.06"]
    assert Estimate(11211.43, 10010.4, 12160.7).text() == "11211 [10010, 12161]"


def test_interval_of_fewer_runs_is_that_of_their_sampling_distribution():
    """Means of 5 of 100 runs: drawn here run by run, and by the square root of n."""
    runs = generator(2).exponential(size=100)
    low, high = interval(mean, [runs], random=generator(), runs=5)
    random = generator(3)
    means = [sum(random.choice(runs) for _ in range(5)) / 5 for _ in range(4000)]
    assert [low, high] == pytest.approx(np.quantile(means, [0.025, 0.975]).tolist(), abs=0.06)
    all_low, all_high = interval(mean, [runs], random=generator())
    assert (high - low) / (all_high - all_low) == pytest.approx(np.sqrt(100 / 5), rel=0.1)
    found = estimate(mean, [runs], seed=0, runs=5)
    assert found == (runs.mean(), *interval(mean, [runs], random=generator(), runs=5))


def test_threshold_that_is_not_reached_has_no_number():
    frames = np.array([10, 20, 30])
    assert first_reaching(frames, np.array([1.0, 5.0, 4.0]), 5.0) == 20
    assert first_reaching(frames, np.array([1.0, 2.0, 3.0]), 5.0) is None
    assert median_reaching([10, 30, None]) == 30
    assert median_reaching([10, 30]) == 20
    assert median_reaching([10, None]) is None
    assert median_reaching([10, None, None]) is None
    assert median_reaching([]) is None


def test_broken_is_measured_from_the_worst_seen():
    assert broken(np.array([99.0, 100.0]), best=1000.0, worst=0.0).tolist() == [True, False]
    # returns of Pendulum: a tenth of -150 would call everything broken
    assert broken(np.array([-1500.0, -200.0, -150.0]), best=-150.0, worst=-1700.0).tolist() == [
        False,
        False,
        False,
    ]
    assert broken(np.array([-1600.0]), best=-150.0, worst=-1700.0).all()
    assert broken(np.array([-1500.0]), best=-150.0, worst=-1700.0, share=0.2).all()
    assert not broken(np.array([5.0, 5.0]), best=5.0, worst=5.0).any()


def test_curves_of_different_frames_meet_where_all_of_them_are():
    frames, values = on_common_frames(
        [
            (np.array([0, 10, 20]), np.array([0.0, 1.0, 2.0])),
            (np.array([10, 15, 30]), np.array([5.0, 6.0, 7.0])),
        ]
    )
    assert frames.tolist() == [10, 15, 20]
    assert values[0].tolist() == [1.0, 1.5, 2.0]
    assert values[1].tolist() == pytest.approx([5.0, 6.0, 6 + 1 / 3])
    frames, values = on_common_frames([(np.array([1]), np.ones(1)), (np.array([2]), np.ones(1))])
    assert frames.shape == (0,) and values.shape == (2, 0)
