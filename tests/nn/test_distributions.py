"""Action distributions."""

import pytest
import torch

from rlearly.nn.distributions import truncated_normal


def generator():
    return torch.Generator().manual_seed(0)


def test_policy_noise_is_clipped_in_updates_and_only_there():
    mean = torch.zeros(20_000, 1)
    clipped = truncated_normal(mean, 0.5, generator(), clip=0.3)
    free = truncated_normal(mean, 0.5, generator())
    assert float(clipped.abs().max()) == pytest.approx(0.3)
    assert float(free.abs().max()) > 0.9
    inside = free.abs() < 0.3
    torch.testing.assert_close(free[inside], clipped[inside])
    assert float(free.clamp(-0.9, 0.9).std()) == pytest.approx(0.48, abs=0.02)


def test_action_stays_inside_and_the_gradient_passes_straight_through():
    mean = torch.tensor([[0.99], [-2.0], [0.1]], requires_grad=True)
    action = truncated_normal(mean, 1e-9, generator())
    assert (action.abs() < 1).all()
    action.sum().backward()
    assert mean.grad is not None and mean.grad.flatten().tolist() == [1.0, 1.0, 1.0]
