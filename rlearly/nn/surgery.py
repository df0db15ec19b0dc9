"""TODO."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from rlearly.nn.layers import (
    ACTIVATIONS,
    CReLU,
    InjectedHead,
    RecordedStack,
    SpectralLinear,
    skip_init,
)


def recorded_stacks(network: nn.Module, name: str = "") -> Iterator[tuple[str, RecordedStack]]:
    """Each stack of a network that notes its hidden units, in the order of computing, by name.

    Of an injected head it is the part that learns. Names of parts of a part are joined by `_`.
    """
    if isinstance(network, InjectedHead):
        yield name, network.learning
    elif isinstance(network, RecordedStack):
        yield name, network
    else:
        for child_name, child in network.named_children():
            yield from recorded_stacks(child, f"{name}_{child_name}" if name else child_name)


@dataclass(frozen=True)
class HiddenLayer:
    """One layer of hidden units: the weights that make them and those that read them.

    `reader` is None where the units are the network's output. `halves`: how many outputs each unit
    has (two by CReLU), the first ones of all units before the second ones.
    """

    maker: nn.Linear | nn.Conv2d
    norm: nn.LayerNorm | nn.GroupNorm | None
    reader: nn.Linear | nn.Conv2d | None
    halves: int

    @property
    def units(self) -> int:
        return self.maker.weight.shape[0]


def hidden_layers(network: nn.Module) -> list[HiddenLayer]:
    """The layers of hidden units of a network: one for each entry that it records, in order."""
    found = []
    for _, head in recorded_stacks(network):
        maker, norm = None, None
        parts = list(head)
        for at, layer in enumerate(parts):
            if isinstance(layer, nn.Linear | nn.Conv2d):
                maker, norm = layer, None
            elif isinstance(layer, nn.LayerNorm | nn.GroupNorm):
                norm = layer
            elif isinstance(layer, ACTIVATIONS) and maker is not None:
                after = (p for p in parts[at:] if isinstance(p, nn.Linear | nn.Conv2d))
                halves = 2 if isinstance(layer, CReLU) else 1
                found.append(HiddenLayer(maker, norm, next(after, None), halves))
    return found


# --- other layers in a network's place, before its weights are drawn ---


def add_layer_norm(network: nn.Module) -> None:
    """Put a LayerNorm before every activation that has none; over channels and pixels in
    convolutions.
    """
    for _, head in recorded_stacks(network):
        parts: list[nn.Module] = []
        for layer in head:
            normalised = bool(parts) and isinstance(parts[-1], nn.LayerNorm | nn.GroupNorm)
            if isinstance(layer, ACTIVATIONS) and not normalised:
                outputs = next(p for p in reversed(parts) if isinstance(p, nn.Linear | nn.Conv2d))
                size = outputs.weight.shape[0]
                conv = isinstance(outputs, nn.Conv2d)
                parts.append(nn.GroupNorm(1, size) if conv else nn.LayerNorm(size))
            parts.append(layer)
        head.replace_layers(parts)


def use_crelu(network: nn.Module) -> None:
    """Put CReLU in the place of every ReLU, and let what reads it take twice as many inputs."""
    for _, head in recorded_stacks(network):
        parts: list[nn.Module] = []
        doubled = False
        for layer in head:
            if doubled and isinstance(layer, nn.Linear):
                layer = skip_init(nn.Linear, 2 * layer.in_features, layer.out_features)
            elif doubled and isinstance(layer, nn.Conv2d):
                size, stride = layer.kernel_size, layer.stride
                inputs, outputs = 2 * layer.in_channels, layer.out_channels
                layer = skip_init(nn.Conv2d, inputs, outputs, size, stride=stride)
            elif isinstance(layer, nn.ReLU):
                layer, doubled = CReLU(), True
            parts.append(layer)
        head.replace_layers(parts)


def use_spectral_norm(network: nn.Module) -> None:
    """Divide the weights of the linear layers that make hidden units by their spectral norm."""
    for _, head in recorded_stacks(network):
        linear = [layer for layer in head if isinstance(layer, nn.Linear)]
        bounded: list[nn.Module] = []
        for layer in head:
            if isinstance(layer, nn.Linear) and layer is not linear[-1]:
                bounded.append(SpectralLinear(layer.in_features, layer.out_features))
            else:
                bounded.append(layer)
        head.replace_layers(bounded)


def make_injectable(network: nn.Module) -> None:
    """Let every head of linear layers take a plasticity injection."""
    for name, child in list(network.named_children()):
        if isinstance(child, RecordedStack):
            if not any(isinstance(layer, nn.Conv2d) for layer in child):
                setattr(network, name, InjectedHead(child))
        else:
            make_injectable(child)


def trained_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """By name, without the parts of injectable heads that do not learn (yet, or any more)."""
    idle = {
        id(p)
        for head in injected_heads(network)
        for part in (head.base, head.fresh, head.anchor)
        if part is not head.learning
        for p in part.parameters()
    }
    return {name: p for name, p in network.named_parameters() if id(p) not in idle}


def spectral_layers(network: nn.Module) -> list[SpectralLinear]:
    """The layers whose spectral norm is being followed."""
    return [m for m in network.modules() if isinstance(m, SpectralLinear)]


def injected_heads(network: nn.Module) -> list[InjectedHead]:
    """The heads that can take an injection, or have."""
    return [m for m in network.modules() if isinstance(m, InjectedHead)]
