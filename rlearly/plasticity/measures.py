"""Measures of plasticity: pure functions of activations, weights and gradients.

Activations are one tensor [B, units, ...] per layer; all results are detached, 0-dimensional unless
a shape is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def _sum_dtype(x: Tensor) -> torch.dtype:
    """The dtype for sums over `x`: at least float32."""
    return torch.promote_types(x.dtype, torch.float32)


def unit_scores(layer: Tensor) -> Tensor:
    """score_i = mean |h_i| over the batch, divided by its mean over the layer's units.

    [B, units, ...] -> [units] (arXiv 2302.12902, definition 3.1). A unit of a convolution is a
    channel, averaged over pixels as over the batch. All scores of a dead layer are 0.
    """
    others = [d for d in range(layer.ndim) if d != 1]
    score = layer.detach().abs().mean(others, dtype=_sum_dtype(layer))
    return score / score.mean().clamp(min=torch.finfo(score.dtype).tiny)


def dormant_ratio(activations: Sequence[Tensor], threshold: float) -> Tensor:
    """The share of units with a score of at most `threshold`, over all units of all layers.

    Deviation: DrM's code compares with `<`, so a dead layer (every score 0 / 0, or 0) counts as not
    dormant at all. Here it is wholly dormant, as the definition says.
    """
    dormant = activations[0].new_zeros((), dtype=_sum_dtype(activations[0]))
    units = 0
    for layer in activations:
        score = unit_scores(layer)
        dormant = dormant + (score <= threshold).sum()
        units += score.numel()
    return dormant / units


def active_fraction(activations: Sequence[Tensor]) -> Tensor:
    """FAU: the share of activations above 0 after ReLU, over batch, units and layers.

    arXiv 2310.07418, section 3.
    """
    active = activations[0].new_zeros((), dtype=torch.float64)
    count = 0
    for layer in activations:
        signs = layer.detach().relu().sign().flatten(1)  # six times as fast as comparing with 0
        per_row = signs.sum(1, dtype=_sum_dtype(layer))  # a float32 sum of ones is exact to 2^24
        active = active + per_row.double().sum()
        count += layer.numel()
    return active / count


def singular_values(features: Tensor) -> Tensor:
    """Singular values [min(B, D)] of features [B, ...] flattened to [B, D], largest first.

    In float64, from the smaller Gram matrix: values below 1e-8 of the largest are rounding errors.
    All NaN if any feature is not finite.
    """
    matrix = features.detach().flatten(1).double()
    rows, columns = matrix.shape
    gram = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
    finite = gram.isfinite().all()
    squared = torch.linalg.eigvalsh(torch.where(finite, gram, 0.0))  # raises on NaN
    return torch.where(finite, squared.clamp(min=0.0).sqrt().flip(0), torch.nan)


def effective_rank(singular: Tensor) -> Tensor:
    """exp(-sum p log p) with p = singular / sum(singular) (Roy and Vetterli, EUSIPCO 2007).

    Ranges from 1 (all rows point in one direction) to the number of values; 0 if all are 0.
    """
    total = singular.sum()
    share = singular / total.clamp(min=torch.finfo(singular.dtype).tiny)
    entropy = -torch.special.xlogy(share, share).sum()
    return torch.where(total > 0, entropy.exp(), total)


def threshold_rank(singular: Tensor, loss: float = 0.01) -> Tensor:
    """srank: the fewest values that sum to at least (1 - `loss`) of the total.

    arXiv 2010.14498, section 3, where `loss` is 0.01; 0 if all values are 0.
    """
    total = singular.sum()
    rank = (singular.cumsum(0) < (1 - loss) * total * (1 - 1e-12)).sum() + 1
    return torch.where(total > 0, rank.to(total.dtype), total)


def stable_rank(singular: Tensor) -> Tensor:
    """||F||_F^2 / ||F||_2^2: at most the rank, and insensitive to small values; 0 for zeros."""
    squared = singular.square()
    largest = squared.max()
    return torch.where(largest > 0, squared.sum() / largest.clamp(min=1e-300), largest)


def weight_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The L2 norm of all parameters as one vector."""
    return torch.linalg.vector_norm(torch.stack([p.detach().norm() for p in parameters]))


def weight_distance(parameters: Iterable[Tensor], origin: Iterable[Tensor]) -> Tensor:
    """The L2 distance of all parameters, as one vector, from their values in `origin`."""
    return weight_norm(p.detach() - o for p, o in zip(parameters, origin, strict=True))


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The L2 norm of the gradients that the optimizer last used; 0 if there are none.

    These are the gradients after clipping, including the terms that interventions add.
    """
    parameters = list(parameters)
    gradients = [p.grad for p in parameters if p.grad is not None]
    return weight_norm(gradients) if gradients else parameters[0].detach().new_zeros(())
