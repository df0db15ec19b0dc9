"""Stacks of linear layers or convolutions with ReLUs, computed by the quickest kernels.

Three things make them quick on a CPU, none of which changes a result beyond rounding. oneDNN
multiplies float32 matrices where they are large: on processors that are not Intel's, MKL, which
torch asks otherwise, leaves half of their vector units idle. A ReLU is computed with the layer
before it, in one pass over memory. And a whole stack is one node of autograd's graph.

Elsewhere, and while torch.compile looks on, the same is said in torch's own operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGE = 500_000
"""Multiplications from which on oneDNN's product takes less time than MKL's, its start included."""


FEW = 8
"""Rows under which rounding the weights costs a CPU more than shorter products save."""


@dataclass(frozen=True)
class Layer:
    """A linear layer (stride 0) or an unpadded convolution, and whether a ReLU follows it."""

    stride: int
    relu: bool


def layer_specs(modules: Sequence[nn.Module]) -> tuple[Layer, ...] | None:
    """What a sequence of modules is made of, or None if it is not just such layers."""
    found: list[Layer] = []
    for module in modules:
        if type(module) is nn.Linear:
            found.append(Layer(0, relu=False))
        elif type(module) is nn.Conv2d:
            found.append(Layer(module.stride[0], relu=False))
        elif type(module) is nn.ReLU and found and not found[-1].relu:
            found[-1] = Layer(found[-1].stride, relu=True)
        else:
            return None
    return tuple(found)


def forward_stack(
    x: Tensor,
    layers: tuple[Layer, ...],
    parameters: Sequence[Tensor],
    hidden_dtype: torch.dtype | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """The stack's output, and the outputs of its ReLUs, which are to be looked at only.

    parameters: weight and bias of each layer, in order. `hidden_dtype`: what layers with a ReLU
    compute in (their weights are rounded as they are used); None: in their weights'. A last layer
    without one is the output, and computes in its weights' format.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return _plain(x, layers, parameters, hidden_dtype)
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in parameters)):
        output, *hidden = _Stack.apply(layers, hidden_dtype, x, *parameters)
        return output, hidden + [output.detach()] * layers[-1].relu
    done = _computed(x, layers, parameters, hidden_dtype)
    hidden = [y for y, layer in zip(done.outputs, layers, strict=True) if layer.relu]
    return done.outputs[-1], hidden


def hidden_dtype_for(dtype: torch.dtype | None, x: Tensor) -> torch.dtype | None:
    """The format for the hidden layers that see `x` [B, ...]: `dtype`, or None for few rows."""
    return None if x.device.type == "cpu" and len(x) < FEW else dtype


def linear(x: Tensor, layer: nn.Linear, dtype: torch.dtype | None = None) -> Tensor:
    """A linear layer's output in its weight's format, computed in `dtype`; None: in that format."""
    weight = layer.weight if dtype is None else layer.weight.to(dtype)
    output, _ = forward_stack(x, (Layer(0, relu=False),), [weight, layer.bias])
    return output.to(layer.weight.dtype)


def _plain(
    x: Tensor,
    layers: tuple[Layer, ...],
    parameters: Sequence[Tensor],
    hidden_dtype: torch.dtype | None,
) -> tuple[Tensor, list[Tensor]]:
    hidden = []
    for at, layer in enumerate(layers):
        dtype = _format_of(layer, parameters[2 * at], hidden_dtype)
        x, weight, bias = (t.to(dtype) for t in (x, *parameters[2 * at : 2 * at + 2]))
        x = F.conv2d(x, weight, bias, layer.stride) if layer.stride else F.linear(x, weight, bias)
        if layer.relu:
            x = torch.relu(x)
            hidden.append(x)
    return x, hidden


def _format_of(layer: Layer, weight: Tensor, hidden_dtype: torch.dtype | None) -> torch.dtype:
    """What a layer computes in."""
    return hidden_dtype if layer.relu and hidden_dtype is not None else weight.dtype


# --- on a CPU ---


@dataclass
class _Done:
    """Each layer's input and weight, in the format that it computed in, and its output."""

    inputs: list[Tensor]
    weights: list[Tensor]
    outputs: list[Tensor]


def _computed(
    x: Tensor,
    layers: tuple[Layer, ...],
    parameters: Sequence[Tensor],
    hidden_dtype: torch.dtype | None,
) -> _Done:
    done = _Done([], [], [])
    for at, layer in enumerate(layers):
        weight, bias = parameters[2 * at : 2 * at + 2]
        dtype = _format_of(layer, weight, hidden_dtype)
        if weight.dtype != dtype:
            weight = weight.to(dtype)
        if x.dtype != dtype:
            x = x.to(dtype)
        done.inputs.append(x)
        done.weights.append(weight)
        x = _convolved(x, weight, bias, layer) if layer.stride else _times(x, weight, bias, layer)
        done.outputs.append(x)
    return done


class _Stack(torch.autograd.Function):
    """`_computed` with its derivative."""

    @staticmethod
    def forward(ctx: Any, layers: Any, hidden_dtype: Any, x: Tensor, *parameters: Tensor) -> Any:
        done = _computed(x, layers, parameters, hidden_dtype)
        ctx.layers = layers
        ctx.formats = [x.dtype, *(p.dtype for p in parameters)]
        ctx.save_for_backward(*done.inputs, *done.weights, done.outputs[-1])
        hidden = [y for y, layer in zip(done.outputs[:-1], layers, strict=False) if layer.relu]
        ctx.mark_non_differentiable(*hidden)
        ctx.set_materialize_grads(False)
        return done.outputs[-1], *hidden

    @staticmethod
    def backward(ctx: Any, gradient: Any, *of_hidden: None) -> Any:  # pyright: ignore
        count = len(ctx.layers)
        inputs, weights = ctx.saved_tensors[:count], ctx.saved_tensors[count : 2 * count]
        outputs = [*inputs[1:], ctx.saved_tensors[-1]]
        needs = ctx.needs_input_grad[2:]
        found: list[Tensor | None] = [None] * len(needs)
        for at in range(count - 1, -1, -1):
            layer, x, weight = ctx.layers[at], inputs[at], weights[at]
            given = at == count - 1 and gradient.dtype == weight.dtype  # not ours to change
            gradient = gradient.to(weight.dtype)
            if layer.relu:
                gradient = _through_relu(gradient, outputs[at], in_place=not given)
            goes_on = any(needs[: 1 + 2 * at])
            wanted = (goes_on, needs[1 + 2 * at], needs[2 + 2 * at])
            back = _convolved_back if layer.stride else _times_back
            gradient, *found[1 + 2 * at : 3 + 2 * at] = back(gradient, x, weight, layer, wanted)
            if not goes_on:
                break
        found[0] = gradient if needs[0] else None
        return (
            None,
            None,
            *(g if g is None else g.to(f) for g, f in zip(found, ctx.formats, strict=True)),
        )


def _through_relu(gradient: Tensor, output: Tensor, *, in_place: bool) -> Tensor:
    if in_place:
        return torch.ops.aten.threshold_backward.grad_input(
            gradient, output, 0, grad_input=gradient
        )
    return torch.ops.aten.threshold_backward(gradient, output, 0)


Wanted = tuple[bool, bool, bool]
"""Whether the gradients of a layer's input, weight and bias are wanted."""

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def _times(x: Tensor, weight: Tensor, bias: Tensor, layer: Layer) -> Tensor:
    """[B, I], [O, I], [O] -> [B, O]. A longer format of the bias is used as it is."""
    if _quick(x, x.shape[0] * weight.numel()):
        return torch.ops.mkldnn._linear_pointwise(
            x, weight, bias, "relu" if layer.relu else "none", [], ""
        )
    y = torch.addmm(bias.to(x.dtype), x, weight.t())
    return y.relu_() if layer.relu else y


def _times_back(
    gradient: Tensor, x: Tensor, weight: Tensor, layer: Layer, wanted: Wanted
) -> Gradients:
    return (
        _product(gradient, weight.t()) if wanted[0] else None,
        _product(gradient.t(), x.t()) if wanted[1] else None,
        gradient.sum(0, dtype=torch.promote_types(gradient.dtype, torch.float32))
        if wanted[2]
        else None,
    )


def _product(one: Tensor, other: Tensor) -> Tensor:
    """one @ other.T."""
    if _quick(one, one.shape[0] * other.numel()):
        return torch.ops.mkldnn._linear_pointwise(one, other, None, "none", [], "")
    return one @ other.t()


def _quick(x: Tensor, multiplications: int) -> bool:
    """Whether oneDNN is to multiply."""
    if x.dtype == torch.float32:
        return HAS_ONEDNN and multiplications >= LARGE
    return x.dtype == torch.bfloat16 and HAS_ONEDNN_BF16


def _convolved(x: Tensor, weight: Tensor, bias: Tensor, layer: Layer) -> Tensor:
    if _quick(x, LARGE):
        return torch.ops.mkldnn._convolution_pointwise(
            x,
            weight,
            bias,
            [0, 0],
            [layer.stride] * 2,
            [1, 1],
            1,
            "relu" if layer.relu else "none",
            [],
            "",
        )
    y = F.conv2d(x, weight, bias.to(x.dtype), layer.stride)
    return y.relu_() if layer.relu else y


def _convolved_back(
    gradient: Tensor, x: Tensor, weight: Tensor, layer: Layer, wanted: Wanted
) -> Gradients:
    return torch.ops.aten.convolution_backward(
        gradient,
        x,
        weight,
        [weight.shape[0]],
        [layer.stride] * 2,
        [0, 0],
        [1, 1],
        False,
        [0, 0],
        1,
        list(wanted),
    )


HAS_ONEDNN = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_convolution_pointwise")
)
HAS_ONEDNN_BF16 = HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()
