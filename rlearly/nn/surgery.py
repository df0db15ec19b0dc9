"""Module surgery: finding the hidden layers of a network, and replacing its layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from rlearly.nn.custom import CustomNetwork
from rlearly.nn.layers import (
    ACTIVATIONS,
    CReLU,
    InjectedHead,
    RecordedStack,
    SpectralLinear,
    skip_init,
)


def recorded_stacks(network: nn.Module, name: str = "") -> Iterator[tuple[str, RecordedStack]]:
    """The recorded stacks of a network in forward order, with names joined by `_`.

    For an injected head, that is the stack that is trained. Those inside a network of the user's
    own are left out.
    """
    for part_name, part in recorded_parts(network, name):
        if isinstance(part, RecordedStack):
            yield part_name, part


def recorded_parts(
    network: nn.Module, name: str = ""
) -> Iterator[tuple[str, RecordedStack | CustomNetwork]]:
    """As `recorded_stacks`, with the networks of the user's own."""
    if isinstance(network, InjectedHead):
        yield name, network.learning
    elif isinstance(network, RecordedStack | CustomNetwork):
        yield name, network
    else:
        for child_name, child in network.named_children():
            yield from recorded_parts(child, f"{name}_{child_name}" if name else child_name)


@dataclass(frozen=True)
class HiddenLayer:
    """One layer of hidden units: its incoming and outgoing weights.

    incoming: the layer that computes the units; norm: its normalisation. outgoing: the next layer;
    None if the units are the network's output. outputs_per_unit: two with CReLU, the first outputs
    of all units before the second ones.
    """

    incoming: nn.Linear | nn.Conv2d
    norm: nn.LayerNorm | nn.GroupNorm | None
    outgoing: nn.Linear | nn.Conv2d | None
    outputs_per_unit: int

    @property
    def units(self) -> int:
        return self.incoming.weight.shape[0]


def hidden_layers(network: nn.Module) -> list[HiddenLayer]:
    """The hidden layers of a network, one for each tensor that it records, in order."""
    found = []
    for _, head in recorded_stacks(network):
        incoming, norm = None, None
        parts = list(head)
        for at, layer in enumerate(parts):
            if isinstance(layer, nn.Linear | nn.Conv2d):
                incoming, norm = layer, None
            elif isinstance(layer, nn.LayerNorm | nn.GroupNorm):
                norm = layer
            elif isinstance(layer, ACTIVATIONS) and incoming is not None:
                after = (p for p in parts[at:] if isinstance(p, nn.Linear | nn.Conv2d))
                outputs_per_unit = 2 if isinstance(layer, CReLU) else 1
                found.append(HiddenLayer(incoming, norm, next(after, None), outputs_per_unit))
    return found


# --- replacing layers, before the weights are drawn ---


def add_layer_norm(network: nn.Module) -> None:
    """Insert a LayerNorm before every activation that has none (for convolutions, over channels and
    pixels)."""
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
    """Replace every ReLU by CReLU, and double the inputs of the next layer."""
    for _, head in recorded_stacks(network):
        parts: list[nn.Module] = []
        doubled = False
        for layer in head:
            if doubled and isinstance(layer, nn.Linear):
                layer = skip_init(nn.Linear, 2 * layer.in_features, layer.out_features)
            elif doubled and isinstance(layer, nn.Conv2d):
                size, stride = layer.kernel_size, layer.stride
                inputs, outputs = 2 * layer.in_channels, layer.out_channels
                layer = skip_init(type(layer), inputs, outputs, size, stride=stride)
            elif isinstance(layer, nn.ReLU):
                layer, doubled = CReLU(), True
            parts.append(layer)
        head.replace_layers(parts)


def use_spectral_norm(network: nn.Module) -> None:
    """Divide the weights of linear layers before hidden units by their spectral norm."""
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
    """Wrap every head of linear layers in an InjectedHead."""
    for name, child in list(network.named_children()):
        if isinstance(child, RecordedStack):
            if not any(isinstance(layer, nn.Conv2d) for layer in child):
                setattr(network, name, InjectedHead(child))
        else:
            make_injectable(child)


def trained_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by name, without the untrained parts of injectable heads."""
    idle = {
        id(p)
        for head in injected_heads(network)
        for part in (head.base, head.fresh, head.anchor)
        if part is not head.learning
        for p in part.parameters()
    }
    return {name: p for name, p in network.named_parameters() if id(p) not in idle}


def spectral_layers(network: nn.Module) -> list[SpectralLinear]:
    """All SpectralLinear layers of a network."""
    return [m for m in network.modules() if isinstance(m, SpectralLinear)]


def injected_heads(network: nn.Module) -> list[InjectedHead]:
    """All InjectedHeads of a network."""
    return [m for m in network.modules() if isinstance(m, InjectedHead)]
