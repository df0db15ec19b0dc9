"""Peak rates of this machine, measured: matrix products, convolutions, copies.

`hotspots.py` compares with these. Each number is the best of several calls and sizes: an upper
bound for code that calls the same libraries, not the figure in the processor's data sheet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from rlearly.kernels.onednn import HAS_ONEDNN, HAS_ONEDNN_BF16

PRODUCTS = ((256, 256, 256), (256, 1024, 1024), (256, 39200, 100), (1024, 1024, 1024))
"""(rows, inner, columns): hidden layers of state and image agents, a trunk, a cube."""

ENCODER = ((9, 84, 2), (32, 41, 1), (32, 39, 1), (32, 37, 1))
"""(input channels, side, stride) of the layers of the paper's encoder, each with 32 filters."""

FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Peak:
    """The best rate of one operation in one implementation."""

    what: str
    precision: str
    rate: float
    unit: str
    where: str


def best_seconds(work: Callable[[], Any], seconds: float) -> float:
    """The shortest duration of as many calls as fit into `seconds`, at least three."""
    shortest, count, end = float("inf"), 0, time.perf_counter() + seconds
    work()
    while count < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        work()
        shortest = min(shortest, time.perf_counter() - began)
        count += 1
    return shortest


def products(seconds: float) -> Iterator[Peak]:
    """torch's own matrix product, which is MKL's in fp32, and oneDNN's."""
    for name, dtype in FORMATS.items():
        ways: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
            "product, torch.mm": lambda x, w: torch.mm(x, w.t())
        }
        if HAS_ONEDNN if name == "fp32" else HAS_ONEDNN_BF16:
            ways["product, oneDNN"] = lambda x, w: torch.ops.mkldnn._linear_pointwise(
                x, w, None, "none", [], ""
            )
        for what, product in ways.items():
            rates = {}
            for rows, inner, columns in PRODUCTS:
                x = torch.randn(rows, inner).to(dtype)
                w = torch.randn(columns, inner).to(dtype)
                taken = best_seconds(lambda x=x, w=w, product=product: product(x, w), seconds)
                rates[f"{rows}x{inner}x{columns}"] = 2 * rows * inner * columns / taken
            size = max(rates, key=lambda size: rates[size])
            yield Peak(what, name, rates[size] / 1e9, "GFLOP/s", size)


def convolutions(seconds: float, batch: int) -> Iterator[Peak]:
    """The encoder's convolutions in channels-last format, and their gradients."""
    for name, dtype in FORMATS.items():
        rates, backward = {}, {}
        for channels, side, stride in ENCODER:
            last = torch.channels_last
            x = torch.randn(batch, channels, side, side).to(dtype).to(memory_format=last)
            w = torch.randn(32, channels, 3, 3).to(dtype).to(memory_format=last)
            flop = 2 * 9 * channels * 32 * batch * ((side - 3) // stride + 1) ** 2
            size = f"{batch}x{channels}x{side}x{side}, stride {stride}"
            with torch.no_grad():
                taken = best_seconds(lambda x=x, w=w, s=stride: F.conv2d(x, w, stride=s), seconds)
            rates[size] = flop / taken
            for tensor in (x, w):
                tensor.requires_grad_()
            out = F.conv2d(x, w, stride=stride)
            up = torch.ones_like(out)
            taken = best_seconds(
                lambda out=out, x=x, w=w, up=up: torch.autograd.grad(
                    out, [x, w], up, retain_graph=True
                ),
                seconds,
            )
            backward[size] = 2 * flop / taken
        for what, found in (("convolution", rates), ("its gradients", backward)):
            size = max(found, key=lambda size: found[size])
            yield Peak(what, name, found[size] / 1e9, "GFLOP/s", size)


def copying(seconds: float, megabytes: int) -> Peak:
    """Bytes read and written per second by a copy larger than the caches."""
    source = torch.ones(megabytes << 20, dtype=torch.uint8)
    target = torch.empty_like(source)
    taken = best_seconds(lambda: target.copy_(source), seconds)
    return Peak(
        "copy, read and written", "", 2 * source.numel() / taken / 1e9, "GB/s", f"{megabytes} MiB"
    )


def measure(*, quick: bool) -> list[Peak]:
    """All peaks. `quick`: few calls of small sizes, for meaningless numbers."""
    seconds, batch = (0.0, 4) if quick else (0.5, 256)
    peaks = [*products(seconds), *convolutions(seconds, batch)]
    return [*peaks, copying(seconds, 16 if quick else 512)]


def table(peaks: list[Peak]) -> str:
    lines = ["| peak of this machine | format | rate | at |", "|---|---|---:|---|"]
    for peak in peaks:
        row = f"| {peak.what} | {peak.precision} | {peak.rate:,.1f} {peak.unit} | {peak.where} |"
        lines.append(row)
    return "\n".join(lines)
