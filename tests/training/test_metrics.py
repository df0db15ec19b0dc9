"""Means of metrics between two rows of the log."""

import torch

from rlearly.training.metrics import MetricMeans


def test_means_are_over_the_updates_that_reported():
    means = MetricMeans()
    means.add({"a/x": torch.tensor(1.0), "a/y": 5.0})
    means.add({"a/x": torch.tensor(4.0)})
    assert means.take() == {"a/x": 2.5, "a/y": 5.0}
    assert means.take() == {}


def test_means_go_on_from_a_saved_state_and_add_in_double_precision():
    straight, before = MetricMeans(), MetricMeans()
    rows = [
        {"a/x": torch.tensor(1e8), "a/y": 2.0},
        {"a/x": torch.tensor(1.0), "a/z": torch.tensor(3)},
        {"a/y": 4.0, "a/x": torch.tensor(1.0)},
    ]
    for row in rows:
        straight.add(row)
    for row in rows[:2]:
        before.add(row)
    after = MetricMeans()
    after.load_state_dict(before.state_dict())
    after.add(rows[2])
    expected = {"a/x": (1e8 + 2) / 3, "a/y": 3.0, "a/z": 3.0}
    assert straight.take() == after.take() == expected
