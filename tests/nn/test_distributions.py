"""Action distributions."""

import math

import numpy as np
import pytest
import torch

from rlearly.nn.distributions import FORBIDDEN, Categorical, gumbel_noise, truncated_normal


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


def test_log_probability_and_entropy_of_a_categorical_by_hand():
    """Probabilities 1/8, 2/8, 5/8, and 1/2, 1/2, 0."""
    logits = torch.tensor([[1.0, 2.0, 5.0], [3.0, 3.0, 1.0]]).log()
    logits[1, 2] = FORBIDDEN
    found = Categorical(logits)
    log_prob = found.log_prob(torch.tensor([2, 0]))
    assert log_prob.tolist() == pytest.approx([math.log(5 / 8), math.log(1 / 2)])
    first = -(1 / 8 * math.log(1 / 8) + 2 / 8 * math.log(2 / 8) + 5 / 8 * math.log(5 / 8))
    assert found.entropy().tolist() == pytest.approx([first, math.log(2)])


def test_categorical_and_its_gradients_are_torchs():
    logits = torch.randn((50, 4), generator=generator(), requires_grad=True)
    action = torch.arange(50) % 4
    peer = torch.distributions.Categorical(logits=logits)
    own = Categorical(logits)
    for one, other in (
        (own.log_prob(action), peer.log_prob(action)),
        (own.entropy(), peer.entropy()),
    ):
        torch.testing.assert_close(one, other)
        gradients = [
            torch.autograd.grad(x.square().sum(), logits, retain_graph=True)[0]
            for x in (one, other)
        ]
        torch.testing.assert_close(*gradients)


def test_forbidden_actions_have_no_gradient_and_leave_no_nan():
    logits = torch.tensor([[0.5, FORBIDDEN, -0.5, FORBIDDEN]], requires_grad=True)
    found = Categorical(logits)
    (found.log_prob(torch.tensor([2])) + found.entropy()).sum().backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    assert logits.grad[0, [1, 3]].tolist() == [0.0, 0.0]


def test_largest_of_logits_and_gumbel_noise_is_a_sample_of_the_softmax():
    logits = np.log(np.array([1, 2, 5, 1e-3], np.float32))
    drawn = (logits + gumbel_noise((200_000, 4), generator())).argmax(1)
    shares = np.bincount(drawn, minlength=4) / 200_000
    np.testing.assert_allclose(shares, np.exp(logits) / np.exp(logits).sum(), atol=0.004)
    assert shares[3] > 0
    noise = gumbel_noise((10**6,), generator())
    assert noise.dtype == np.float32 and np.isfinite(noise).all()
    assert noise.mean() == pytest.approx(0.5772, abs=0.005), "Euler's constant"
    assert noise.std() == pytest.approx(math.pi / math.sqrt(6), abs=0.005)
