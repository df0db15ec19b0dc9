"""Stacks of layers with hidden units: noting the units, and other layers in their place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rlearly.kernels.onednn import forward_stack, hidden_dtype_for, layer_specs

Layer = TypeVar("Layer", bound=nn.Module)


class CReLU(nn.Module):
    """[B, N, ...] -> [B, 2N, ...]: relu(x) beside relu(-x), so no unit is silent for long.

    arXiv 1603.05201, against the loss of plasticity in arXiv 2303.07507.
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.cat([x, -x], dim=1))


class Dropout(nn.Module):
    """Each number is 0 with a probability, or else divided by its complement, while learning.

    It draws from a generator that its owner gives to it and saves, where torch's would draw from
    the global one. Copies share the generator.
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability
        self.generator: torch.Generator | None = None

    def __deepcopy__(self, memo: Any) -> Dropout:
        other = Dropout(self.probability)
        other.generator, other.training = self.generator, self.training
        return other

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if self.generator is None:
            raise ValueError("expected a generator to draw from: see `draw_dropout_from`")
        kept = 1.0 - self.probability
        return x * torch.empty_like(x).bernoulli_(kept, generator=self.generator).div_(kept)


def draw_dropout_from(generator: torch.Generator, *networks: nn.Module) -> None:
    """Let every Dropout of the networks draw from one generator, on their device."""
    for network in networks:
        for part in network.modules():
            if isinstance(part, Dropout):
                part.generator = generator


ACTIVATIONS = (nn.ReLU, nn.Tanh, CReLU)


class Stack(nn.Sequential):
    """Layers of which those before the output can compute in a shorter number format.

    The weights keep theirs: they are rounded as they are used. A CPU computes few rows, as an
    agent acts on, in the weights' format, which is quicker.
    """

    hidden_dtype: torch.dtype | None = None
    """None: the weights' own."""


class RecordedStack(Stack):
    """A stack that can note the outputs of its hidden units while it computes.

    A CReLU unit is noted as what its two halves are together, |x|. A last linear layer is the
    output; where the last layer is an activation, all are hidden.
    """

    def __init__(self, *parts: nn.Module):
        super().__init__(*parts)
        self.layer_specs = layer_specs(parts)
        """Linear layers or convolutions with ReLUs alone; None: of other layers too."""

    def forward(self, x: Tensor, activations: list[Tensor] | None = None) -> Tensor:
        if self.layer_specs is not None:
            return self.computed(x, self.own_parameters(), activations)
        *hidden, last = self
        if not isinstance(last, nn.Linear):
            hidden, last = [*hidden, last], None
        with autocast_to(hidden_dtype_for(self.hidden_dtype, x), x.device):
            for layer in hidden:
                x = layer(x)
                if activations is not None and isinstance(layer, ACTIVATIONS):
                    activations.append(_joined(x) if isinstance(layer, CReLU) else x)
        return x if last is None else last(x.to(last.weight.dtype))

    def own_parameters(self) -> list[Tensor]:
        """Weight and bias of each layer, in order."""
        layers: Any = self._modules.values()
        return [p for layer in layers for p in layer._parameters.values()]

    def computed(
        self, x: Tensor, parameters: Sequence[Tensor], activations: list[Tensor] | None
    ) -> Tensor:
        """The output of a stack of usual layers, with these parameters in its own ones' place."""
        assert self.layer_specs is not None
        output, hidden = forward_stack(
            x, self.layer_specs, parameters, hidden_dtype_for(self.hidden_dtype, x)
        )
        if activations is not None:
            activations += hidden
        return output

    def replace_layers(self, parts: list[nn.Module]) -> None:
        """Hold these layers instead."""
        self._modules.clear()
        self.extend(parts)
        self.layer_specs = layer_specs(parts)


def autocast_to(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[Any]:
    """Where layers compute in `dtype` on that device; None: in their weights' own."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def _joined(halves: Tensor) -> Tensor:
    """CReLU's [B, 2N, ...] as |x| [B, N, ...]."""
    one, two = halves.chunk(2, dim=1)
    return one + two


class SpectralLinear(nn.Linear):
    """A linear layer whose weight is divided by its largest singular value.

    That value is estimated by power iteration (arXiv 1802.05957, algorithm 1), which moves on by
    `iterate` alone, once a gradient step, so acting and evaluating change nothing. Gradients pass
    through the division.
    """

    FIRST_ITERATIONS = 20

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        self.left: Tensor
        self.right: Tensor
        self.register_buffer("left", torch.ones(outputs))
        self.register_buffer("right", torch.ones(inputs))

    def reset_parameters(self) -> None:
        """Nothing, which is all that must happen here: torch would draw from its global stream."""

    @torch.no_grad()
    def iterate(self, times: int = 1) -> None:
        """Come nearer to the largest singular value."""
        for _ in range(times):
            self.right.copy_(nn.functional.normalize(self.weight.T @ self.left, dim=0, eps=1e-12))
            self.left.copy_(nn.functional.normalize(self.weight @ self.right, dim=0, eps=1e-12))

    @torch.no_grad()
    def begin_anew(self) -> None:
        """Estimate afresh: the weights are not those that the estimate was of."""
        self.left.copy_(torch.linspace(1.0, 2.0, len(self.left)))  # orthogonal to few things
        self.iterate(self.FIRST_ITERATIONS)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # a norm wants all its digits
            largest = self.left @ (self.weight @ self.right)
        return nn.functional.linear(x, self.weight / largest.clamp(min=1e-12), self.bias)


class InjectedHead(nn.Module):
    """A head that can be given a second, unworn one in mid-training (arXiv 2305.15555, section 3).

    Until `inject` it is `base`. From then on its output is base(x) + fresh(x) - anchor(x), where
    only `fresh` learns and `anchor` is what `fresh` was at that moment: the output does not change
    by injecting, nor does the number of weights that learn. Room for all three is there from the
    beginning, so a checkpoint has one shape.
    """

    def __init__(self, base: RecordedStack):
        super().__init__()
        self.base = base
        self.fresh = copy.deepcopy(base)
        self.anchor = copy.deepcopy(base)
        self.active = False
        self._set_learning()

    @property
    def learning(self) -> RecordedStack:
        """The part that gradients change."""
        return self.fresh if self.active else self.base

    def _set_learning(self) -> None:
        for part in (self.base, self.fresh, self.anchor):
            part.requires_grad_(part is self.learning)

    def inject(self, fresh: RecordedStack) -> None:
        """Go on with these weights; a target with the same ones as its leader."""
        self.fresh.load_state_dict(fresh.state_dict())
        self.anchor.load_state_dict(fresh.state_dict())
        self.active = True
        self._set_learning()

    def retire(self) -> None:
        """Be a plain head again: the part that has been learning."""
        self.base.load_state_dict(self.learning.state_dict())
        self.active = False
        self._set_learning()

    def forward(self, x: Tensor, activations: list[Tensor] | None = None) -> Tensor:
        if not self.active:
            return self.base(x, activations)
        return self.base(x) + self.fresh(x, activations) - self.anchor(x)

    def get_extra_state(self) -> dict[str, bool]:
        return {"active": self.active}

    def set_extra_state(self, state: dict[str, bool]) -> None:
        self.active = state["active"]
        self._set_learning()


def skip_init(kind: Callable[..., Layer], *arguments: Any, **words: Any) -> Layer:
    """A layer whose weights nothing has drawn yet: they are whatever lay in their memory.

    As torch.nn.utils.skip_init, which imports a computer algebra system on its way, and so
    makes the first step of every run half a second later.
    """
    layer = kind(*arguments, device="meta", **words)
    for name, parameter in list(layer.named_parameters(recurse=False)):
        setattr(layer, name, nn.Parameter(torch.empty(parameter.shape)))
    return layer
