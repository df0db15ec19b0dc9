"""Gradient steps and slow copies, shared by the agents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def adam(network: nn.Module, lr: float, eps: float = 1e-8) -> torch.optim.Optimizer:
    """Adam over a whole network."""
    return torch.optim.Adam(network.parameters(), lr=lr, eps=eps, fused=True)


def descend(
    loss: Tensor, *optimizers: torch.optim.Optimizer, max_norm: float | None = None
) -> None:
    """Backpropagate into what these optimizers own, and into nothing else; then step them.

    Frozen parameters stay as they are. `max_norm` bounds the length of the whole gradient.
    """
    owned = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    for parameter in owned:
        parameter.grad = None  # of one frozen since, too
    owned = [p for p in owned if p.requires_grad]
    loss.backward(inputs=owned)
    if max_norm is not None:
        nn.utils.clip_grad_norm_(owned, max_norm)
    for optimizer in optimizers:
        optimizer.step()


@torch.no_grad()
def follow_(followers: Sequence[Tensor], leaders: Sequence[Tensor], tau: float) -> None:
    """Move the followers a share `tau` of the way to their leaders."""
    torch._foreach_lerp_(list(followers), list(leaders), tau)  # pyright: ignore
