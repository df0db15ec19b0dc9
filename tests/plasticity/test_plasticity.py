"""Plasticity metrics against numbers worked by hand."""

import math

import pytest
import torch

from rlearly.nn.networks import StateCritic
from rlearly.plasticity.measures import (
    active_fraction,
    dormant_ratio,
    effective_rank,
    gradient_norm,
    singular_values,
    stable_rank,
    threshold_rank,
    unit_scores,
    weight_distance,
    weight_norm,
)
from rlearly.plasticity.monitor import PlasticityMonitor


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
        assert float(rank(singular_values(features))) == pytest.approx(4.0, rel=1e-5)


def test_ranks_of_unequal_directions_by_hand():
    features = spread(8.0, 1.0, 1.0)
    entropy = -(0.8 * math.log(0.8) + 2 * 0.1 * math.log(0.1))
    assert float(effective_rank(singular_values(features))) == pytest.approx(
        math.exp(entropy), rel=1e-5
    )
    assert float(stable_rank(singular_values(features))) == pytest.approx(66 / 64, rel=1e-5)
    assert float(threshold_rank(singular_values(features))) == 3
    assert float(threshold_rank(singular_values(features), loss=0.15)) == 2
    assert float(threshold_rank(singular_values(features), loss=0.25)) == 1
    assert float(threshold_rank(singular_values(spread(99.5, 0.5)))) == 1, (
        "a direction under 1 % is not counted"
    )


def test_collapsed_features_have_rank_one_and_dead_ones_none():
    one_direction = torch.ones(5, 1) * torch.arange(1.0, 5.0)
    for rank in (effective_rank, threshold_rank, stable_rank):
        assert float(rank(singular_values(one_direction))) == pytest.approx(1.0, abs=1e-4)
        assert float(rank(singular_values(torch.zeros(5, 4)))) == 0.0


def test_features_that_are_not_finite_have_no_rank_and_raise_nothing():
    for bad in (math.nan, math.inf):
        features = torch.ones(4, 3)
        features[1, 1] = bad
        assert singular_values(features).isnan().all()
        assert math.isnan(float(effective_rank(singular_values(features))))


def test_norms_and_distances_are_of_one_long_vector():
    parameters = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    assert float(weight_norm(parameters)) == 5.0
    origin = [torch.tensor([3.0, 12.0]), torch.tensor([[-1.0]])]
    assert float(weight_distance(parameters, origin)) == 13.0


def test_gradient_norm_is_of_what_the_last_backward_left():
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    untouched = torch.tensor([5.0], requires_grad=True)
    assert float(gradient_norm([weight, untouched])) == 0.0
    (weight * torch.tensor([3.0, 4.0])).sum().backward()
    assert float(gradient_norm([weight, untouched])) == 5.0


def test_unit_of_a_convolution_is_a_channel_over_all_its_pixels():
    images = torch.zeros(2, 3, 1, 2)
    images[0, 0, 0, 0] = 4.0  # mean 1
    images[:, 2] = -5.0  # mean 5; the layer's mean is 2
    assert unit_scores(images).tolist() == [0.5, 0.0, 2.5]
    assert float(dormant_ratio([images], 0.025)) == pytest.approx(1 / 3)
    assert float(active_fraction([images])) == pytest.approx(1 / 12)


def heads_of_two():
    critic = StateCritic(2, 1, 3)
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.fill_(0.5)
        critic.q2[0].weight[1:] = 0.0
        critic.q2[0].bias[1:] = -1.0
    return critic


def test_monitor_measures_each_head_and_the_whole_network_by_hand():
    critic = heads_of_two()
    monitor = PlasticityMonitor(every_steps=10, threshold=0.025)
    monitor.start_from({"critic": critic})
    activations = []
    sum(q.sum() for q in critic(torch.ones(4, 2), torch.ones(4, 1), activations)).backward()
    with torch.no_grad():
        critic.q1[4].bias += 3.0
        critic.q2[4].bias -= 4.0
    assert monitor.is_due(0)
    got = {
        k: float(v)
        for k, v in monitor.read({"critic": critic}, {"critic": activations}, step=0).items()
    }
    # q1: all units positive. q2: two of three silent in its first layer, none in its second.
    expected = {"fau_critic_q1": 1.0, "fau_critic_q2": 4 / 6, "fau_critic": 10 / 12}
    expected |= {"dormant_ratio_critic_q1": 0.0, "dormant_ratio_critic_q2": 2 / 6}
    expected |= {"dormant_ratio_critic": 2 / 12, "distance_critic": 5.0}
    expected |= {"effective_rank_critic_q1": 1.0, "stable_rank_critic_q2": 1.0}
    for name, value in expected.items():
        assert got[f"plasticity/{name}"] == pytest.approx(value, abs=1e-6), name
    flat = torch.cat([p.detach().flatten() for p in critic.parameters()])
    assert got["plasticity/weight_norm_critic"] == pytest.approx(float(flat.norm()))
    grads = [p.grad for p in critic.parameters() if p.grad is not None]
    norm = float(torch.cat([g.flatten() for g in grads]).norm())
    assert got["plasticity/gradient_norm_critic"] == pytest.approx(norm) and norm > 0


def test_monitor_is_due_once_an_interval_and_keeps_its_place():
    monitor, critic = PlasticityMonitor(every_steps=10), heads_of_two()
    monitor.start_from({"critic": critic})
    activations = []
    critic(torch.ones(4, 2), torch.ones(4, 1), activations)
    due = []
    for step in (3, 3, 4, 9, 10, 11, 35, 36, 40):
        if monitor.is_due(step):
            monitor.read({"critic": critic}, {"critic": activations}, step=step)
            due.append(step)
    assert due == [3, 10, 35, 40]
    later = PlasticityMonitor(every_steps=10)
    later.load_state_dict(monitor.state_dict())
    assert not later.is_due(49) and later.is_due(50)
    assert not PlasticityMonitor(every_steps=0).is_due(10**9)
