"""How much of a network still responds: pure functions over recorded activations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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


def effective_rank(features: Tensor) -> Tensor:
    """exp(entropy of the singular values' shares): how many directions features [B, D] spread over.

    From 1, all rows in one direction, to min(B, D) (Roy and Vetterli, EUSIPCO 2007); 0 for zeros.
    """
    singular = _singular_values(features)
    total = singular.sum()
    share = singular / total.clamp(min=torch.finfo(singular.dtype).tiny)
    entropy = -torch.special.xlogy(share, share).sum()
    return torch.where(total > 0, entropy.exp(), torch.zeros_like(total))


def threshold_rank(features: Tensor, loss: float = 0.01) -> Tensor:
    """The fewest directions of features [B, D] that hold 1 - `loss` of the singular values' sum.

    srank of arXiv 2010.14498, section 3, which uses 0.01; 0 for zeros.
    """
    singular = _singular_values(features)
    total = singular.sum()
    held = (singular.cumsum(0) < (1 - loss) * total * (1 - 1e-12)).sum() + 1
    return torch.where(total > 0, held, torch.zeros_like(held)).to(singular.dtype)


def stable_rank(features: Tensor) -> Tensor:
    """||F||_F^2 / ||F||_2^2 of features [B, D]: at most the rank, and moved little by small values.

    0 for zeros.
    """
    squared = _singular_values(features).square()
    most = squared.max()
    return torch.where(most > 0, squared.sum() / most.clamp(min=1e-300), torch.zeros_like(most))


def _singular_values(features: Tensor) -> Tensor:
    """[min(B, D)], the largest first, in double precision, from the smaller Gram matrix."""
    matrix = features.detach().flatten(1).double()
    rows, columns = matrix.shape
    gram = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
    return torch.linalg.eigvalsh(gram).clamp(min=0.0).sqrt().flip(0)


def weight_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The Euclidean norm of all parameters as one vector."""
    return torch.linalg.vector_norm(torch.stack([p.detach().norm() for p in parameters]))


def distance(parameters: Iterable[Tensor], origin: Iterable[Tensor]) -> Tensor:
    """The Euclidean distance of all parameters from where they were, as one vector."""
    moved = [(p.detach() - o).norm() for p, o in zip(parameters, origin, strict=True)]
    return torch.linalg.vector_norm(torch.stack(moved))


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The Euclidean norm of the gradients that the last backward pass left; 0 if there are none."""
    parameters = list(parameters)
    norms = [p.grad.norm() for p in parameters if p.grad is not None]
    if not norms:
        return parameters[0].detach().new_zeros(())
    return torch.linalg.vector_norm(torch.stack(norms))
