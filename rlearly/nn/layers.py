"""Stacks of layers that record their hidden activations, and layers that torch does not have."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AnyLayer = TypeVar("AnyLayer", bound=nn.Module)

FEW_ROWS = 8
"""Below this batch size, rounding the weights takes a CPU longer than bfloat16 matrix products
save."""


class CReLU(nn.Module):
    """[B, N, ...] -> [B, 2N, ...]: relu(x) and relu(-x), so that no unit can become inactive.

    arXiv 1603.05201, against the loss of plasticity in arXiv 2303.07507.
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.cat([x, -x], dim=1))


class Dropout(nn.Module):
    """Dropout that draws from the agent's generator, not from torch's global one.

    In training mode each element is set to 0 with `probability`, else divided by 1 - `probability`.
    Copies share the generator.
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
    """Make every Dropout of the networks draw from `generator`, which is on their device."""
    for network in networks:
        for part in network.modules():
            if isinstance(part, Dropout):
                part.generator = generator


@contextmanager
def without_dropout(parts: Sequence[Dropout]) -> Iterator[None]:
    """Inside, these are the identity."""
    for part in parts:
        part.training = False
    try:
        yield
    finally:
        for part in parts:
            part.training = True


class SameConv2d(nn.Conv2d):
    """A convolution with SAME padding: stride s gives ceil(side / s) outputs.

    Zeros are added on both sides; if their number is odd, one more at the end.
    """

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, same_padding(x, self.weight, self.stride[0]))
        return F.conv2d(padded, self.weight, self.bias, self.stride)


def same_padding(x: Tensor, weight: Tensor, stride: int) -> list[int]:
    """SAME padding of images x [B, C, H, W]: left, right, top, bottom."""
    padding: list[int] = []
    for side, kernel in zip(reversed(x.shape[2:]), reversed(weight.shape[2:]), strict=True):
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        padding += [total // 2, total - total // 2]
    return padding


ACTIVATIONS = (nn.ReLU, nn.Tanh, CReLU)


# --- stacks ---


@dataclass(frozen=True)
class LayerSpec:
    """A linear layer (stride 0) or a convolution, and whether a ReLU follows it.

    `same`: whether the convolution's padding is SAME; otherwise it has none.
    """

    stride: int
    relu: bool
    same: bool = False


def layer_specs(modules: Sequence[Any]) -> tuple[LayerSpec, ...] | None:
    """Describe linear layers or convolutions with ReLUs; None if there are any other modules."""
    found: list[LayerSpec] = []
    for module in modules:
        if type(module) is nn.Linear:
            found.append(LayerSpec(0, relu=False))
        elif type(module) in (nn.Conv2d, SameConv2d):
            same = isinstance(module, SameConv2d)
            found.append(LayerSpec(module.stride[0], relu=False, same=same))
        elif type(module) is nn.ReLU and found and not found[-1].relu:
            found[-1] = replace(found[-1], relu=True)
        else:
            return None
    return tuple(found)


StackForward = Callable[
    [Tensor, tuple[LayerSpec, ...], Sequence[Tensor], torch.dtype | None],
    tuple[Tensor, list[Tensor]],
]
"""See `forward_stack`."""


def forward_stack(
    x: Tensor,
    layers: tuple[LayerSpec, ...],
    parameters: Sequence[Tensor],
    hidden_dtype: torch.dtype | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """The output of a stack, and the outputs of its ReLUs.

    parameters: weight and bias of each layer, in order. `hidden_dtype`: the format in which layers
    with a ReLU compute (their weights are rounded on use); None: the format of their weights. A
    last layer without a ReLU is the output, and computes in the format of its weights.
    """
    hidden = []
    for at, layer in enumerate(layers):
        dtype = compute_dtype(layer, parameters[2 * at], hidden_dtype)
        x, weight, bias = (t.to(dtype) for t in (x, *parameters[2 * at : 2 * at + 2]))
        if layer.same:
            x = F.pad(x, same_padding(x, weight, layer.stride))
        x = F.conv2d(x, weight, bias, layer.stride) if layer.stride else F.linear(x, weight, bias)
        if layer.relu:
            x = torch.relu(x)
            hidden.append(x)
    return x, hidden


def compute_dtype(
    layer: LayerSpec, weight: Tensor, hidden_dtype: torch.dtype | None
) -> torch.dtype:
    """The format in which a layer of a stack computes."""
    return hidden_dtype if layer.relu and hidden_dtype is not None else weight.dtype


class Stack(nn.Sequential):
    """Layers that can compute in a shorter number format, except for the output layer.

    The weights keep their format and are rounded on use. On a CPU, fewer than FEW_ROWS rows (an
    agent acting) are computed in the format of the weights, which is faster.
    """

    def __init__(self, *parts: nn.Module):
        super().__init__(*parts)
        self.hidden_dtype: torch.dtype | None = None
        """None: the weights' own."""
        self.forward_layers: StackForward = forward_stack
        """Computes linear layers and convolutions with ReLUs, or a faster equivalent."""

    def hidden_dtype_for(self, x: Tensor) -> torch.dtype | None:
        """The format of the hidden layers for input `x` [B, ...]; None: the weights' own."""
        if self.hidden_dtype is None or (x.device.type == "cpu" and len(x) < FEW_ROWS):
            return None
        return self.hidden_dtype


def configure_stacks(
    network: nn.Module, hidden_dtype: torch.dtype | None, forward: StackForward = forward_stack
) -> None:
    """Make all stacks of a network compute by `forward`, and hidden layers in `hidden_dtype`."""
    for part in network.modules():
        if isinstance(part, Stack):
            part.hidden_dtype, part.forward_layers = hidden_dtype, forward


class RecordedStack(Stack):
    """A stack that can record the activations of its hidden units in its forward pass.

    A CReLU unit is recorded as |x|, the sum of its two halves. A last linear layer is the output;
    if the last layer is an activation, all units are hidden.
    """

    def __init__(self, *parts: nn.Module):
        super().__init__(*parts)
        self.layer_specs = layer_specs(parts)
        """None if there is a layer that `layer_specs` does not support."""

    def forward(self, x: Tensor, activations: list[Tensor] | None = None) -> Tensor:
        if self.layer_specs is not None:
            return self.forward_with(self.layer_parameters(), x, activations)
        *hidden, last = self
        if not isinstance(last, nn.Linear):
            hidden, last = [*hidden, last], None
        with _autocast(self.hidden_dtype_for(x), x.device):
            for layer in hidden:
                x = layer(x)
                if activations is not None and isinstance(layer, ACTIVATIONS):
                    activations.append(_crelu_units(x) if isinstance(layer, CReLU) else x)
        return x if last is None else last(x.to(last.weight.dtype))

    def layer_parameters(self) -> list[Tensor]:
        """Weight and bias of each layer, in order."""
        layers: Any = self._modules.values()
        return [p for layer in layers for p in layer._parameters.values()]

    def forward_with(
        self, parameters: Sequence[Tensor], x: Tensor, activations: list[Tensor] | None
    ) -> Tensor:
        """The output with these parameters instead of the stack's own; needs `layer_specs`."""
        assert self.layer_specs is not None
        output, hidden = self.forward_layers(
            x, self.layer_specs, parameters, self.hidden_dtype_for(x)
        )
        if activations is not None:
            activations += hidden
        return output

    def replace_layers(self, parts: list[nn.Module]) -> None:
        """Replace all layers by these."""
        self._modules.clear()
        self.extend(parts)
        self.layer_specs = layer_specs(parts)


def _autocast(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def _crelu_units(halves: Tensor) -> Tensor:
    """CReLU's [B, 2N, ...] as |x| [B, N, ...]."""
    one, two = halves.chunk(2, dim=1)
    return one + two


# --- other layers ---


class SpectralLinear(nn.Linear):
    """A linear layer with its weight divided by its largest singular value.

    The value is estimated by power iteration (arXiv 1802.05957, algorithm 1). Only `iterate`
    refines it, once per gradient step, so acting and evaluating change nothing. Gradients pass
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
        """Do nothing: torch's own would draw from its global random stream."""

    @torch.no_grad()
    def iterate(self, times: int = 1) -> None:
        """Refine the estimate of the largest singular value."""
        for _ in range(times):
            self.right.copy_(nn.functional.normalize(self.weight.T @ self.left, dim=0, eps=1e-12))
            self.left.copy_(nn.functional.normalize(self.weight @ self.right, dim=0, eps=1e-12))

    @torch.no_grad()
    def restart_estimate(self) -> None:
        """Start the estimate again, for new weights."""
        self.left.copy_(torch.linspace(1.0, 2.0, len(self.left)))  # orthogonal to few vectors
        self.iterate(self.FIRST_ITERATIONS)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # a norm needs full precision
            largest = self.left @ (self.weight @ self.right)
        return nn.functional.linear(x, self.weight / largest.clamp(min=1e-12), self.bias)


class InjectedHead(nn.Module):
    """A head that can take a plasticity injection in mid-training (arXiv 2305.15555, section 3).

    Until `inject` it is `base`. From then on its output is base(x) + fresh(x) - anchor(x), where
    only `fresh` is trained and `anchor` is a frozen copy of what `fresh` was at that moment. So an
    injection changes neither the output nor the number of trained weights. All three parts exist
    from the start, so that checkpoints always have the same shape.
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
        """The part that is trained."""
        return self.fresh if self.active else self.base

    def _set_learning(self) -> None:
        for part in (self.base, self.fresh, self.anchor):
            part.requires_grad_(part is self.learning)

    def inject(self, fresh: RecordedStack) -> None:
        """Start training these weights; a target network must get the same ones."""
        self.fresh.load_state_dict(fresh.state_dict())
        self.anchor.load_state_dict(fresh.state_dict())
        self.active = True
        self._set_learning()

    def retire(self) -> None:
        """Become a plain head again, with the weights of the part that was being trained."""
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


_initialises: ContextVar[bool] = ContextVar("initialises", default=False)


@contextmanager
def default_initialisation() -> Iterator[None]:
    """Inside, `skip_init` skips nothing: layers get torch's own initial weights."""
    token = _initialises.set(True)
    try:
        yield
    finally:
        _initialises.reset(token)


def skip_init(kind: Callable[..., AnyLayer], *args: Any, **kwargs: Any) -> AnyLayer:
    """A layer with uninitialised weights.

    Like torch.nn.utils.skip_init, which imports sympy and so delays the start of a run by 0.5 s.
    """
    if _initialises.get():
        return kind(*args, **kwargs)
    layer = kind(*args, device="meta", **kwargs)
    for name, parameter in list(layer.named_parameters(recurse=False)):
        setattr(layer, name, nn.Parameter(torch.empty(parameter.shape)))
    return layer
