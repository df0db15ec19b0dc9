"""`rlearly.nn.layers.forward_stack` on a CPU by faster kernels.

Three things make it fast; none changes a result beyond rounding. oneDNN multiplies large float32
matrices: on CPUs that are not Intel's, MKL, torch's usual choice, leaves half of the vector units
idle. A ReLU is fused with the layer before it. And a whole stack is one node of autograd's graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlearly.nn import layers as plain
from rlearly.nn.layers import LayerSpec, compute_dtype, same_padding

LARGE = 500_000
"""Multiplications from which oneDNN's product, with its start-up, is faster than MKL's."""


def forward_stack(
    x: Tensor,
    layers: tuple[LayerSpec, ...],
    parameters: Sequence[Tensor],
    hidden_dtype: torch.dtype | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """As `rlearly.nn.layers.forward_stack`; the outputs of ReLUs carry no gradients.

    The plain version is used on other devices and within torch.compile.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return plain.forward_stack(x, layers, parameters, hidden_dtype)
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in parameters)):
        output, *hidden = _StackFunction.apply(layers, hidden_dtype, x, *parameters)
        return output, hidden + [output.detach()] * layers[-1].relu
    done = _forward(x, layers, parameters, hidden_dtype)
    hidden = [y for y, layer in zip(done.outputs, layers, strict=True) if layer.relu]
    return done.outputs[-1], hidden


@dataclass
class _Forward:
    """Each layer's input and weight, in the format that it computed in, and its output.

    added: zeros that the input has on the left, right, top and bottom. paddings: zeros that the
    convolution itself adds, at top and bottom and on the left and right.
    """

    inputs: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    added: list[list[int]] = field(default_factory=list)
    paddings: list[list[int]] = field(default_factory=list)


def _forward(
    x: Tensor,
    layers: tuple[LayerSpec, ...],
    parameters: Sequence[Tensor],
    hidden_dtype: torch.dtype | None,
) -> _Forward:
    done = _Forward()
    for at, layer in enumerate(layers):
        weight, bias = parameters[2 * at : 2 * at + 2]
        dtype = compute_dtype(layer, weight, hidden_dtype)
        if weight.dtype != dtype:
            weight = weight.to(dtype)
        if x.dtype != dtype:
            x = x.to(dtype)
        padding = same_padding(x, weight, layer.stride) if layer.same else [0] * 4
        if padding[::2] != padding[1::2]:  # the convolution can only add as much on both sides
            x, added, padding = F.pad(x, padding), padding, [0] * 4
        else:
            added = [0] * 4
        done.inputs.append(x)
        done.weights.append(weight)
        done.added.append(added)
        done.paddings.append([padding[2], padding[0]])
        if layer.stride:
            x = _conv(x, weight, bias, layer, done.paddings[-1])
        else:
            x = _linear(x, weight, bias, layer)
        done.outputs.append(x)
    return done


class _StackFunction(torch.autograd.Function):
    """`_forward` and its derivative."""

    @staticmethod
    def forward(ctx: Any, layers: Any, hidden_dtype: Any, x: Tensor, *parameters: Tensor) -> Any:
        done = _forward(x, layers, parameters, hidden_dtype)
        ctx.layers, ctx.added, ctx.paddings = layers, done.added, done.paddings
        ctx.dtypes = [x.dtype, *(p.dtype for p in parameters)]
        ctx.save_for_backward(*done.inputs, *done.weights, done.outputs[-1])
        hidden = [y for y, layer in zip(done.outputs[:-1], layers, strict=False) if layer.relu]
        ctx.mark_non_differentiable(*hidden)
        ctx.set_materialize_grads(False)
        return done.outputs[-1], *hidden

    @staticmethod
    def backward(ctx: Any, gradient: Any, *of_hidden: None) -> Any:  # pyright: ignore
        count = len(ctx.layers)
        inputs, weights = ctx.saved_tensors[:count], ctx.saved_tensors[count : 2 * count]
        outputs = [*map(_without, inputs[1:], ctx.added[1:]), ctx.saved_tensors[-1]]
        needs = ctx.needs_input_grad[2:]
        found: list[Tensor | None] = [None] * len(needs)
        for at in range(count - 1, -1, -1):
            layer, x, weight = ctx.layers[at], inputs[at], weights[at]
            is_callers = at == count - 1 and gradient.dtype == weight.dtype  # not to be overwritten
            gradient = gradient.to(weight.dtype)
            if layer.relu:
                relu_backward = torch.ops.aten.threshold_backward
                if is_callers:
                    gradient = relu_backward(gradient, outputs[at], 0)
                else:
                    relu_backward.grad_input(gradient, outputs[at], 0, grad_input=gradient)
            input_needed = any(needs[: 1 + 2 * at])
            needed = (input_needed, needs[1 + 2 * at], needs[2 + 2 * at])
            if layer.stride:
                by_all = _conv_backward(gradient, x, weight, layer, needed, ctx.paddings[at])
            else:
                by_all = _linear_backward(gradient, x, weight, layer, needed)
            gradient, *found[1 + 2 * at : 3 + 2 * at] = by_all
            if not input_needed:
                break
            gradient = _without(gradient, ctx.added[at])
        found[0] = gradient if needs[0] else None
        cast = (g if g is None else g.to(d) for g, d in zip(found, ctx.dtypes, strict=True))
        return None, None, *cast


def _without(x: Any, added: Sequence[int]) -> Any:
    """A view of images [B, C, H, W] without what was added on the left, right, top and bottom."""
    if not any(added):
        return x
    left, right, top, bottom = added
    return x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right]


Needed = tuple[bool, bool, bool]
"""Whether the gradients of a layer's input, weight and bias are needed."""

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def _linear(x: Tensor, weight: Tensor, bias: Tensor, layer: LayerSpec) -> Tensor:
    """[B, I], [O, I], [O] -> [B, O]. The bias may be more precise than the rest."""
    if _use_onednn(x, x.shape[0] * weight.numel()):
        relu = "relu" if layer.relu else "none"
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, relu, [], "")
    y = torch.addmm(bias.to(x.dtype), x, weight.t())
    return y.relu_() if layer.relu else y


def _linear_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, layer: LayerSpec, needed: Needed
) -> Gradients:
    bias_dtype = torch.promote_types(gradient.dtype, torch.float32)
    return (
        _product(gradient, weight.t()) if needed[0] else None,
        _product(gradient.t(), x.t()) if needed[1] else None,
        gradient.sum(0, dtype=bias_dtype) if needed[2] else None,
    )


def _product(one: Tensor, other: Tensor) -> Tensor:
    """one @ other.T."""
    if _use_onednn(one, one.shape[0] * other.numel()):
        return torch.ops.mkldnn._linear_pointwise(one, other, None, "none", [], "")
    return one @ other.t()


def _use_onednn(x: Tensor, multiplications: int) -> bool:
    if x.dtype == torch.float32:
        return HAS_ONEDNN and multiplications >= LARGE
    return x.dtype == torch.bfloat16 and HAS_ONEDNN_BF16


def _conv(x: Tensor, weight: Tensor, bias: Tensor, layer: LayerSpec, padding: list[int]) -> Tensor:
    if _use_onednn(x, LARGE):
        relu, stride = "relu" if layer.relu else "none", [layer.stride] * 2
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, bias, padding, stride, [1, 1], 1, relu, [], ""
        )
    y = F.conv2d(x, weight, bias.to(x.dtype), layer.stride, padding)
    return y.relu_() if layer.relu else y


def _conv_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    layer: LayerSpec,
    needed: Needed,
    padding: list[int],
) -> Gradients:
    biases, stride = [weight.shape[0]], [layer.stride] * 2
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, biases, stride, padding, [1, 1], False, [0, 0], 1, list(needed)
    )


HAS_ONEDNN = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_convolution_pointwise")
)
HAS_ONEDNN_BF16 = HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()
