"""How an agent computes: the precision of its hidden layers, and whether networks are compiled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

HIDDEN = {"fp32": None, "tf32": None, "bf16": torch.bfloat16}
"""Precision -> what hidden layers compute in, where that is not the weights' float32."""


@dataclass(frozen=True)
class ComputeOptions:
    """A run's choice; the default changes nothing.

    Weights, optimizers, losses and the outputs of networks are float32 whatever the precision: an
    output in bfloat16 would round a Q of 100 to halves. `bf16` is for the layers before the last
    one, where the time goes. `tf32` lets a GPU round the factors of float32 products to 10 bits.
    """

    precision: str = "fp32"
    compile: bool = False

    @property
    def hidden_dtype(self) -> torch.dtype | None:
        return HIDDEN[self.precision]

    def prepare(self, network: nn.Module) -> None:
        """Have the network's forward and backward pass compiled when first used, if asked for."""
        if self.compile:
            network.compile(dynamic=False)
