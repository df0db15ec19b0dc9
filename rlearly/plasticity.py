"""How much of a network still responds: pure functions over recorded activations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def dormant_ratio(activations: Sequence[Tensor], threshold: float) -> Tensor:
    """The share of neurons whose normalised mean |activation| is at most `threshold`.

    activations: one [B, neurons] tensor a layer. A neuron's score is mean over the batch of |h|,
    divided by the layer's mean of that (arXiv 2302.12902, definition 3.1); the ratio is taken over
    all neurons of all layers. Returns a 0-dimensional tensor.

    Deviation: DrM's code compares with `<`, by which a wholly dead layer (every score 0 / 0, or 0)
    counts as not dormant at all. Here it is wholly dormant, as the definition says.
    """
    dormant = activations[0].new_zeros(())
    neurons = 0
    for layer in activations:
        score = layer.detach().abs().mean(0)
        dormant = dormant + (score <= threshold * score.mean()).sum()
        neurons += score.numel()
    return dormant / neurons


def active_fraction(activations: Sequence[Tensor]) -> Tensor:
    """FAU: the share of units above 0 after ReLU, over batch, units and layers.

    activations: one [B, ...] tensor a layer (arXiv 2310.07418, section 3).
    """
    active = activations[0].new_zeros((), dtype=torch.float64)
    units = 0
    for layer in activations:
        active = active + (layer.detach() > 0).sum()
        units += layer.numel()
    return active / units
