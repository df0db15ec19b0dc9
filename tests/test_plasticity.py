"""Plasticity metrics against numbers worked by hand."""

import math

import pytest
import torch

from rlearly.plasticity import (
    distance,
    effective_rank,
    gradient_norm,
    stable_rank,
    threshold_rank,
    weight_norm,
)


def spread(*singular, rows=6):
    """Features [rows, D] with the given singular values."""
    random = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(rows, len(singular), generator=random))[0]
    right = torch.linalg.qr(torch.randn(len(singular), len(singular), generator=random))[0]
    return left @ torch.diag(torch.tensor(singular)) @ right


@pytest.mark.parametrize("rows", [4, 9])
def test_equal_directions_count_fully(rows):
    features = spread(2.0, 2.0, 2.0, 2.0, rows=rows)
    for rank in (effective_rank, threshold_rank, stable_rank):
        assert float(rank(features)) == pytest.approx(4.0, rel=1e-5)


def test_ranks_of_unequal_directions_by_hand():
    features = spread(8.0, 1.0, 1.0)
    entropy = -(0.8 * math.log(0.8) + 2 * 0.1 * math.log(0.1))
    assert float(effective_rank(features)) == pytest.approx(math.exp(entropy), rel=1e-5)
    assert float(stable_rank(features)) == pytest.approx(66 / 64, rel=1e-5)
    assert float(threshold_rank(features)) == 3
    assert float(threshold_rank(features, loss=0.15)) == 2
    assert float(threshold_rank(features, loss=0.25)) == 1
    assert float(threshold_rank(spread(99.5, 0.5))) == 1, "a direction under 1 % is not counted"


def test_collapsed_features_have_rank_one_and_dead_ones_none():
    one_direction = torch.ones(5, 1) * torch.arange(1.0, 5.0)
    for rank in (effective_rank, threshold_rank, stable_rank):
        assert float(rank(one_direction)) == pytest.approx(1.0, abs=1e-4)
        assert float(rank(torch.zeros(5, 4))) == 0.0


def test_norms_and_distances_are_of_one_long_vector():
    parameters = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    assert float(weight_norm(parameters)) == 5.0
    origin = [torch.tensor([3.0, 12.0]), torch.tensor([[-1.0]])]
    assert float(distance(parameters, origin)) == 13.0


def test_gradient_norm_is_of_what_the_last_backward_left():
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    untouched = torch.tensor([5.0], requires_grad=True)
    assert float(gradient_norm([weight, untouched])) == 0.0
    (weight * torch.tensor([3.0, 4.0])).sum().backward()
    assert float(gradient_norm([weight, untouched])) == 5.0
