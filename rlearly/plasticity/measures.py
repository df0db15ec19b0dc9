"""How much a network can still learn: pure functions over activations, and a gauge of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def _wide(x: Tensor) -> torch.dtype:
    """What sums over `x` are taken in: float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)


def unit_scores(layer: Tensor) -> Tensor:
    """Each unit's mean |activation| over the batch, as a multiple of its layer's mean of that.

    [B, units, ...] -> [units]; a unit of a convolution is a channel, and its pixels count like the
    batch (arXiv 2302.12902, definition 3.1). A wholly dead layer scores 0 throughout.
    """
    others = [d for d in range(layer.ndim) if d != 1]
    score = layer.detach().abs().mean(others, dtype=_wide(layer))
    return score / score.mean().clamp(min=torch.finfo(score.dtype).tiny)


def dormant_ratio(activations: Sequence[Tensor], threshold: float) -> Tensor:
    """The share of units whose score is at most `threshold`, over all units of all layers.

    activations: one [B, units, ...] tensor a layer. Returns a 0-dimensional tensor.

    Deviation: DrM's code compares with `<`, by which a wholly dead layer (every score 0 / 0, or 0)
    counts as not dormant at all. Here it is wholly dormant, as the definition says.
    """
    dormant = activations[0].new_zeros((), dtype=_wide(activations[0]))
    units = 0
    for layer in activations:
        score = unit_scores(layer)
        dormant = dormant + (score <= threshold).sum()
        units += score.numel()
    return dormant / units


def active_fraction(activations: Sequence[Tensor]) -> Tensor:
    """FAU: the share of units above 0 after ReLU, over batch, units and layers.

    activations: one [B, ...] tensor a layer (arXiv 2310.07418, section 3).
    """
    active = activations[0].new_zeros((), dtype=torch.float64)
    units = 0
    for layer in activations:
        signs = layer.detach().relu().sign().flatten(1)  # six times as fast as comparing with 0
        active = (
            active + signs.sum(1, dtype=_wide(layer)).double().sum()
        )  # a float32 sum is exact up to 2^24 ones
        units += layer.numel()
    return active / units


def singular_values(features: Tensor) -> Tensor:
    """Of features [B, ...], flattened: [min(B, D)], the largest first, in double precision.

    From the smaller Gram matrix: values under 1e-8 of the largest are rounding. All NaN if a
    feature is not finite.
    """
    matrix = features.detach().flatten(1).double()
    rows, columns = matrix.shape
    gram = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
    finite = gram.isfinite().all()
    squared = torch.linalg.eigvalsh(torch.where(finite, gram, 0.0))  # it raises on NaN
    return torch.where(finite, squared.clamp(min=0.0).sqrt().flip(0), torch.nan)


def effective_rank(singular: Tensor) -> Tensor:
    """exp(entropy of the singular values' shares): how many directions features spread over.

    From 1, all rows in one direction, to the number of values (Roy and Vetterli, EUSIPCO 2007);
    0 for zeros.
    """
    total = singular.sum()
    share = singular / total.clamp(min=torch.finfo(singular.dtype).tiny)
    entropy = -torch.special.xlogy(share, share).sum()
    return torch.where(total > 0, entropy.exp(), total)


def threshold_rank(singular: Tensor, loss: float = 0.01) -> Tensor:
    """The fewest directions that hold 1 - `loss` of the singular values' sum.

    srank of arXiv 2010.14498, section 3, which uses 0.01; 0 for zeros.
    """
    total = singular.sum()
    held = (singular.cumsum(0) < (1 - loss) * total * (1 - 1e-12)).sum() + 1
    return torch.where(total > 0, held.to(total.dtype), total)


def stable_rank(singular: Tensor) -> Tensor:
    """||F||_F^2 / ||F||_2^2: at most the rank, and moved little by small values; 0 for zeros."""
    squared = singular.square()
    most = squared.max()
    return torch.where(most > 0, squared.sum() / most.clamp(min=1e-300), most)


def weight_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The Euclidean norm of all parameters as one vector."""
    return torch.linalg.vector_norm(torch.stack([p.detach().norm() for p in parameters]))


def weight_distance(parameters: Iterable[Tensor], origin: Iterable[Tensor]) -> Tensor:
    """The Euclidean distance of all parameters from where they were, as one vector."""
    moved = [(p.detach() - o).norm() for p, o in zip(parameters, origin, strict=True)]
    return torch.linalg.vector_norm(torch.stack(moved))


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The Euclidean norm of the gradients as the optimizer last used them; 0 if there are none.

    That is after clipping, and with what an intervention added.
    """
    parameters = list(parameters)
    norms = [p.grad.norm() for p in parameters if p.grad is not None]
    if not norms:
        return parameters[0].detach().new_zeros(())
    return torch.linalg.vector_norm(torch.stack(norms))
