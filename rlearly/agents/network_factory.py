"""Networks of the user's own: `agent.network=module:NAME`, a function that makes them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rlearly.config import plugins
from rlearly.core.errors import ConfigError, UserCodeFailed, raised
from rlearly.nn.custom import CustomNetwork, drawn_from
from rlearly.nn.layers import ACTIVATIONS, Dropout, RecordedStack, SameConv2d

NETWORK = "function that makes networks of your own, module:NAME; null: those of the paper"
NETWORK_KWARGS = "extra arguments of that function"
ROWS = 2
"""Batch size of the zeros with which a new network is tried."""

STACK_LAYERS = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm, Dropout, *ACTIVATIONS)


@dataclass(frozen=True)
class NetworkFactory:
    """Makes the networks of an agent by the function that `agent.network` names.

    The function is called as `function(name, inputs, outputs, **agent.network_kwargs)`, once for
    each network, and returns a module or None, for the default. Its layers may draw their weights
    by torch's own rules: the global generator is seeded from the run's stream for as long as it
    runs. A RecordedStack becomes one of the agent's own stacks, with weights that the agent draws;
    any other module is wrapped in a CustomNetwork and keeps the weights that it was made with.
    """

    function: Any
    source: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    made: list[nn.Module] = field(default_factory=list)
    """What it has returned, to find modules that are returned twice."""

    @classmethod
    def of(cls, config: Any) -> NetworkFactory | None:
        """The factory of an agent's settings; None if they name none.

        Raises:
            ConfigError: there is no such function, or it does not take these arguments.
        """
        if config.network is None:
            if config.network_kwargs:
                raise ConfigError(
                    "agent.network_kwargs: has no effect without agent.network; add it."
                )
            return None
        function = plugins.load("agent.network", config.network, "a function", callable)
        factory = cls(function, config.network, dict(config.network_kwargs))
        try:
            inspect.signature(function).bind("actor", (1,), 1, **factory.kwargs)
        except TypeError as error:
            extra = "".join(f", {key}=..." for key in factory.kwargs)
            raise ConfigError(
                f"{factory.title}: expected a function that can be called as "
                f"function(name, inputs, outputs{extra}): {error}."
            ) from None
        except ValueError:  # a builtin without a signature
            pass
        return factory

    @property
    def title(self) -> str:
        return f"agent.network={self.source}"

    def make(
        self, name: str, inputs: tuple[int, ...], outputs: int | None, weights: torch.Generator
    ) -> tuple[RecordedStack | CustomNetwork, int] | None:
        """A new network and the size of its output; None: the function leaves it to the agent.

        Args:
            name: encoder, actor, critic or value; each of two critics has a call of its own.
            inputs: shape of one input: (D,) or, of the encoder, an image's (C, H, W).
            outputs: size of its output; None: any size (the encoder).
            weights: the stream that initial weights are drawn from.

        Raises:
            ConfigError: the function raised or returned something else, or the network fails on an
                input or returns another shape.
        """
        with drawn_from(weights):
            network = self._call(name, inputs, outputs)
            if network is None:
                return None
            self._refuse_shared(name, network)
            if isinstance(network, RecordedStack):
                self._check_stack(name, network)
                custom: RecordedStack | CustomNetwork = network
            else:
                self._check_module(name, network)
                custom = CustomNetwork(network, partial(self._again, name, inputs, outputs))
            output = self._try(name, custom, inputs)
        return custom, self._checked_size(name, custom, output, outputs)

    def _again(
        self, name: str, inputs: tuple[int, ...], outputs: int | None, weights: torch.Generator
    ) -> nn.Module:
        with drawn_from(weights):
            network = self._call(name, inputs, outputs)
            assert network is not None, "the function decides by its arguments alone"
            self._try(name, CustomNetwork(network, lambda stream: network), inputs)  # lazy layers
        return network

    def _call(self, name: str, inputs: tuple[int, ...], outputs: int | None) -> nn.Module | None:
        try:
            network = self.function(name, inputs, outputs, **self.kwargs)
        except (ConfigError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise ConfigError(f"{self.title}: for the {name} it {raised(error)}.") from error
        if network is not None and not isinstance(network, nn.Module):
            raise ConfigError(
                f"{self.title}: for the {name} expected an nn.Module or None, received an object "
                f"of the class {type(network).__name__}."
            )
        return network

    def _refuse_shared(self, name: str, network: nn.Module) -> None:
        before = {id(p) for other in self.made for p in other.parameters()}
        if network in self.made or any(id(p) in before for p in network.parameters()):
            raise ConfigError(
                f"{self.title}: the {name} shares weights with a network of an earlier call; "
                "expected a new one from each call (a critic is made twice)."
            )
        self.made.append(network)

    def _check_stack(self, name: str, stack: RecordedStack) -> None:
        """Check that everything that works on our own stacks can work on this one."""
        for layer in stack:
            if not isinstance(layer, STACK_LAYERS):
                problem = f"a {type(layer).__name__} in it"
            elif isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is None:
                problem = f"a {type(layer).__name__} without bias in it"
            elif isinstance(layer, nn.Conv2d) and not _is_plain(layer):
                problem = "a Conv2d with padding, dilation, groups or two strides in it"
            else:
                continue
            kinds = ", ".join(kind.__name__ for kind in STACK_LAYERS)
            raise ConfigError(
                f"{self.title}: the {name} is a RecordedStack with {problem}; expected {kinds} "
                "(a convolution with SAME padding is a SameConv2d), or any other nn.Module, such "
                "as an nn.Sequential."
            )
        ends = ACTIVATIONS if name == "encoder" else nn.Linear
        if not (len(stack) and isinstance(stack[-1], ends)) or not _has_units(stack):
            last = "an activation" if name == "encoder" else "a Linear"
            raise ConfigError(
                f"{self.title}: the {name} is a RecordedStack; expected one with activations that "
                f"ends with {last}."
            )

    def _check_module(self, name: str, network: nn.Module) -> None:
        for part in network.modules():
            probability = getattr(part, "dropout", 0.0)  # of an RNN, an attention
            if isinstance(part, nn.modules.dropout._DropoutNd):
                probability = part.p
            if isinstance(probability, float) and probability > 0:
                raise ConfigError(
                    f"{self.title}: the {name} has a {type(part).__name__} with dropout, which "
                    "draws from torch's global generator: use rlearly.nn.layers.Dropout."
                )
        learns = [p for p in network.parameters() if p.requires_grad]
        if not learns and name != "encoder":
            raise ConfigError(f"{self.title}: the {name} has no weights to learn.")

    def _try(
        self, name: str, network: RecordedStack | CustomNetwork, inputs: tuple[int, ...]
    ) -> Any:
        zeros = torch.zeros(ROWS, *inputs)
        try:
            with torch.no_grad():
                network.eval()
                if isinstance(network, CustomNetwork):
                    return network.count_recorded(zeros)
                return network(zeros)
        except (KeyboardInterrupt, UserCodeFailed):
            raise
        except Exception as error:
            raise ConfigError(
                f"{self.title}: the {name} {raised(error)}, for an input of {[ROWS, *inputs]}."
            ) from error
        finally:
            network.train()

    def _checked_size(
        self,
        name: str,
        network: RecordedStack | CustomNetwork,
        output: Any,
        outputs: int | None,
    ) -> int:
        """The size of the output for one input."""
        received = _described(output)
        if outputs is not None:
            expected, fits = f"[B, {outputs}]", _has_shape(output, ROWS, outputs)
        elif isinstance(network, RecordedStack):
            expected, fits = "maps [B, C, H, W]", _has_shape(output, ROWS, None, None, None)
        else:
            expected, fits = "features [B, F]", _has_shape(output, ROWS, None)
        if not fits:
            raise ConfigError(
                f"{self.title}: expected the {name} to return float32 {expected}, received "
                f"{received} for B = {ROWS}."
            )
        return math.prod(output.shape[1:])


def _has_shape(output: Any, *shape: int | None) -> bool:
    """Whether it is float32 of this shape; None stands for any size of at least 1."""
    if not (isinstance(output, Tensor) and output.dtype == torch.float32):
        return False
    same_rank = output.ndim == len(shape)
    return same_rank and all(
        0 < own == (size or own) for own, size in zip(output.shape, shape, strict=True)
    )


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"{str(output.dtype).removeprefix('torch.')} {list(output.shape)}"
    return f"an object of the class {type(output).__name__}"


def _is_plain(layer: nn.Conv2d) -> bool:
    """Whether our kernels compute this convolution as it is."""
    padded = not isinstance(layer, SameConv2d) and layer.padding != (0, 0)
    plain = layer.dilation == (1, 1) and layer.groups == 1 and len({*layer.stride}) == 1
    return plain and not padded


def _has_units(stack: RecordedStack) -> bool:
    return any(isinstance(layer, ACTIVATIONS) for layer in stack)
