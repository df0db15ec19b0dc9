"""How an agent computes: number format of hidden layers, compilation, and fast CPU kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

HIDDEN = {"fp32": None, "tf32": None, "bf16": torch.bfloat16}
"""Precision -> the format that hidden layers compute in, if it is not float32."""


@dataclass(frozen=True)
class ComputeOptions:
    """How a run computes; the defaults change no result beyond rounding.

    Weights, optimizers, losses and the outputs of networks are float32 at any precision: bfloat16
    would round a Q of 100 to a multiple of 0.5. `bf16` is for the layers before the last one, where
    the time goes. `tf32` lets a GPU round the factors of float32 products to 10 bits. `kernels`:
    use the faster CPU code of `rlearly.kernels`, which equals the plain code within rounding.
    """

    precision: str = "fp32"
    compile: bool = False
    kernels: bool = True

    @property
    def hidden_dtype(self) -> torch.dtype | None:
        return HIDDEN[self.precision]

    def prepare(self, network: nn.Module) -> None:
        """If `compile`, have the network compiled when it is first used."""
        if self.compile:
            network.compile(dynamic=False)
