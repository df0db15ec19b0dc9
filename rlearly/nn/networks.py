"""The networks of all agents. They know no losses and draw no global randomness."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from rlearly.core.spaces import PIXELS, VECTOR, is_fused, is_image
from rlearly.nn.augmentation import centred
from rlearly.nn.custom import CustomNetwork, our_modules
from rlearly.nn.layers import (
    CReLU,
    Dropout,
    LayerSpec,
    RecordedStack,
    SameConv2d,
    Stack,
    skip_init,
)


def orthogonal_(module: nn.Module, generator: torch.Generator) -> None:
    """Initialise one layer as DrQ-v2 does: orthogonal weights, zero bias; identity LayerNorm.

    Gain sqrt(2) for convolutions and 1 for linear layers.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        gain = math.sqrt(2) if isinstance(module, nn.Conv2d) else 1.0
        weight = torch.empty(module.weight.shape, device=module.weight.device)
        nn.init.orthogonal_(weight, gain, generator=generator)
        with torch.no_grad():
            module.weight.copy_(weight)  # whatever its memory format
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    else:
        identity_(module)


def identity_(module: nn.Module) -> None:
    """Make a normalisation the identity; leave other layers alone."""
    if isinstance(module, nn.LayerNorm | nn.GroupNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def fan_in_(module: nn.Module, generator: torch.Generator) -> None:
    """Initialise one layer as torch and CleanRL do: uniform in +-1 / sqrt(inputs)."""
    if isinstance(module, nn.Linear):
        bound = 1 / math.sqrt(module.in_features)
        with torch.no_grad():
            module.weight.uniform_(-bound, bound, generator=generator)
            module.bias.uniform_(-bound, bound, generator=generator)
    else:
        identity_(module)


def xavier_(module: nn.Module, generator: torch.Generator) -> None:
    """Initialise one layer as Dopamine does: Xavier-uniform weights, zero bias."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight, generator=generator)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    else:
        identity_(module)


WITH_WEIGHTS = nn.Conv2d | nn.Linear | nn.LayerNorm | nn.GroupNorm


def layers(network: nn.Module) -> Iterator[nn.Module]:
    """All layers of a network that have weights."""
    return (m for m in network.modules() if isinstance(m, WITH_WEIGHTS))


Initialiser = Callable[[nn.Module, torch.Generator], None]
"""Draws the weights of one layer."""


def initialise_(
    network: nn.Module, generator: torch.Generator, one: Initialiser = orthogonal_
) -> None:
    """Draw the weights of every layer of a network; a CustomNetwork has drawn its own."""
    for layer in our_modules(network):
        if isinstance(layer, WITH_WEIGHTS):
            one(layer, generator)


inplace_relu = partial(nn.ReLU, inplace=True)
"""A ReLU without a second buffer, because writing to new memory takes longer than the ReLU."""


def mlp(
    inputs: int,
    hidden: int,
    outputs: int,
    activation: Callable[[], nn.Module] = inplace_relu,
    *,
    dropout: float = 0.0,
    norm: bool = False,
) -> RecordedStack:
    """Linear - ReLU - Linear - ReLU - Linear, or with another activation.

    Dropout, if its probability is not 0, and then LayerNorm, if `norm`, precede each activation.
    """

    def activated(size: int) -> list[nn.Module]:
        parts: list[nn.Module] = [Dropout(dropout)] if dropout else []
        return [*parts, *([nn.LayerNorm(size)] if norm else []), activation()]

    return RecordedStack(
        skip_init(nn.Linear, inputs, hidden),
        *activated(hidden),
        skip_init(nn.Linear, hidden, hidden),
        *activated(hidden),
        skip_init(nn.Linear, hidden, outputs),
    )


def small_mlp(inputs: int, hidden: int, outputs: int) -> RecordedStack:
    """Linear - ReLU - Linear."""
    return RecordedStack(
        skip_init(nn.Linear, inputs, hidden), inplace_relu(), skip_init(nn.Linear, hidden, outputs)
    )


class Trunk(Stack):
    """Linear - LayerNorm - Tanh: the encoder's features [B, F] -> [B, outputs]."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(skip_init(nn.Linear, inputs, outputs), nn.LayerNorm(outputs), nn.Tanh())

    def project(self, features: Tensor) -> Tensor:
        """The linear layer's output, in the format of the weights."""
        layer: Any = self[0]
        weight = layer.weight.to(self.hidden_dtype_for(features) or layer.weight.dtype)
        output, _ = self.forward_layers(
            features, (LayerSpec(0, relu=False),), [weight, layer.bias], None
        )
        return output.to(layer.weight.dtype)

    def squash(self, projected: Tensor) -> Tensor:
        """LayerNorm and Tanh."""
        return self[2](self[1](projected))

    def forward(self, features: Tensor) -> Tensor:
        return self.squash(self.project(features))


def outputs_of(convolutions: RecordedStack, units: int) -> int:
    """Size of the output of a stack with so many units: a CReLU unit gives two numbers."""
    doubled = any(isinstance(layer, CReLU) for layer in convolutions)
    return (1 + doubled) * units


class PixelEncoder(nn.Module):
    """uint8 [B, C, H, W] -> float [B, features]: four 3x3 convolutions, strides 2, 1, 1, 1.

    The features are hidden units, in the number format of the hidden layers. Deviation: they are
    ordered as in memory, by pixel and then channel; the official code orders them by channel and
    then pixel. To the trunks that read them this is only a permutation.
    """

    vector = 0
    """Size of the vector that is observed with the image; 0: there is none."""

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: int,
        convolutions: tuple[RecordedStack, int] | None = None,
    ):
        """`convolutions`: a stack in the place of the four convolutions, and how many numbers it
        makes of an image."""
        super().__init__()
        height, width = ((side - 3) // 2 + 1 - 6 for side in shape[1:])
        self.convolutions, self.units = convolutions or (
            RecordedStack(
                skip_init(nn.Conv2d, shape[0], channels, 3, stride=2),
                inplace_relu(),
                skip_init(nn.Conv2d, channels, channels, 3),
                inplace_relu(),
                skip_init(nn.Conv2d, channels, channels, 3),
                inplace_relu(),
                skip_init(nn.Conv2d, channels, channels, 3),
                inplace_relu(),
            ),
            channels * height * width,
        )
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @property
    def features(self) -> int:
        return outputs_of(self.convolutions, self.units)

    def forward(self, obs: Tensor, activations: list[Tensor] | None = None) -> Tensor:
        """Encode images. Dividing the first layer's weights by 255 is cheaper than the pixels."""
        stack, first = self.convolutions, cast(nn.Conv2d, self.convolutions[0])
        dtype = stack.hidden_dtype_for(obs) or first.weight.dtype
        images = centred(obs, dtype)
        if stack.layer_specs is None:
            maps = stack(images.div_(255.0), activations)
        else:
            weight, *rest = stack.layer_parameters()
            maps = stack.forward_with([(weight / 255.0).to(dtype), *rest], images, activations)
        return maps.permute(0, 2, 3, 1).flatten(1)


class AtariEncoder(nn.Module):
    """images [B, C, H, W] -> float [B, features]: Dopamine's encoder of Atari games.

    Three convolutions with SAME padding and ReLUs: 8x8 with stride 4, 4x4 with stride 2 and 3x3.
    uint8 pixels are divided by 255; floats are taken to be scaled already. The features are hidden
    units, ordered by pixel and then channel, as in Dopamine.
    """

    vector = 0

    def __init__(self, shape: tuple[int, ...], channels: int):
        """`channels`: of the first convolution; the others have twice as many."""
        super().__init__()
        self.convolutions = RecordedStack(
            skip_init(SameConv2d, shape[0], channels, 8, stride=4),
            inplace_relu(),
            skip_init(SameConv2d, channels, 2 * channels, 4, stride=2),
            inplace_relu(),
            skip_init(SameConv2d, 2 * channels, 2 * channels, 3),
            inplace_relu(),
        )
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        height, width = (math.ceil(math.ceil(side / 4) / 2) for side in shape[1:])
        self.units = 2 * channels * height * width

    @property
    def features(self) -> int:
        return outputs_of(self.convolutions, self.units)

    def forward(self, obs: Tensor, activations: list[Tensor] | None = None) -> Tensor:
        if obs.dtype == torch.uint8:
            obs = obs.to(torch.float32, memory_format=torch.channels_last).div_(255.0)
        return self.convolutions(obs, activations).permute(0, 2, 3, 1).flatten(1)


class VectorEncoder(nn.Module):
    """float [B, D] unchanged: a state needs no encoder."""

    vector = 0

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.features = math.prod(shape)

    def forward(self, obs: Tensor, activations: list[Tensor] | None = None) -> Tensor:
        return obs.flatten(1)


class FusedFeatures(NamedTuple):
    """Features of an image [B, F] and the vector observed with it [B, D]."""

    pixels: Tensor
    vector: Tensor

    def detach(self) -> FusedFeatures:
        return FusedFeatures(self.pixels.detach(), self.vector.detach())


Features = Tensor | FusedFeatures
"""An encoder's output, the input of all other networks."""


class FusedEncoder(PixelEncoder):
    """{"pixels": uint8 [B, C, H, W], "vector": float [B, D]} -> FusedFeatures.

    Only the image is encoded. The vector's few numbers would be lost among thousands of features,
    so each network adds them after its own trunk (see `Fusion`).
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: int,
        vector: int,
        convolutions: tuple[RecordedStack, int] | None = None,
    ):
        super().__init__(shape, channels, convolutions)
        self.vector = vector

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, obs: Mapping[str, Tensor], activations: list[Tensor] | None = None
    ) -> FusedFeatures:
        return FusedFeatures(super().forward(obs[PIXELS], activations), obs[VECTOR])


class CustomEncoder(nn.Module):
    """uint8 [B, C, H, W] -> float32 [B, features], by a network of the user's own.

    It is given float32 images in [-0.5, 0.5]. With a `vector`, as FusedEncoder.
    """

    def __init__(self, network: CustomNetwork, features: int, vector: int = 0):
        super().__init__()
        self.images = network
        self.features = features
        self.vector = vector

    def forward(self, obs: Any, activations: list[Tensor] | None = None) -> Features:
        pixels = obs[PIXELS] if self.vector else obs
        images = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        encoded = self.images(images.sub(127.5).div_(255.0), activations)
        return FusedFeatures(encoded, obs[VECTOR]) if self.vector else encoded


class Fusion(nn.Module):
    """A trunk's output [B, T] and a vector [B, D] -> [B, T], as in DrM's official Adroit agent.

    joint(trunk + mlp(vector)), where `mlp` and `joint` have one hidden layer each.
    """

    def __init__(self, vector: int, feature_dim: int, hidden_dim: int):
        super().__init__()
        self.vector = small_mlp(vector, hidden_dim, feature_dim)
        self.joint = small_mlp(feature_dim, hidden_dim, feature_dim)

    def forward(
        self,
        trunk: Tensor,
        vector: Tensor,
        activations: list[Tensor] | None = None,
        pre_activations: list[Tensor] | None = None,
    ) -> Tensor:
        """Append both stacks' outputs to `pre_activations`: DrM's code measures their dormancy."""
        added = self.vector(vector, activations)
        joint = self.joint(trunk + added, activations)
        if pre_activations is not None:
            pre_activations += [added, joint]
        return joint


class Head(nn.Module):
    """The first part of actor, critic and value network, each of which has its own: the trunk, and
    a fusion if a vector is observed with the image.

    `vector`: size of that vector; 0: there is none.
    """

    def __init__(self, features: int, feature_dim: int, hidden_dim: int, vector: int):
        super().__init__()
        self.trunk = Trunk(features, feature_dim)
        self.fusion = Fusion(vector, feature_dim, hidden_dim) if vector else None

    def read(
        self,
        features: Features,
        activations: list[Tensor] | None = None,
        pre_activations: list[Tensor] | None = None,
    ) -> Tensor:
        """The input [B, T] of the next layers. Append the trunk's linear output before LayerNorm,
        and the outputs of the fusion, to `pre_activations`."""
        image = features.pixels if isinstance(features, FusedFeatures) else features
        projected = self.trunk.project(image)
        if pre_activations is not None:
            pre_activations.append(projected)
        read = self.trunk.squash(projected)
        if self.fusion is None:
            return read
        assert isinstance(features, FusedFeatures)
        return self.fusion(read, features.vector, activations, pre_activations)


Encoder = PixelEncoder | VectorEncoder | CustomEncoder

ImageNetwork = Callable[[tuple[int, ...]], tuple[RecordedStack | CustomNetwork, int] | None]
"""The shape of an image [C, H, W] -> the network that encodes it, and how many numbers it makes of
an image; None: the default."""


def encoder_for(
    observation: Any, channels: int, image_network: ImageNetwork = lambda shape: None
) -> Encoder:
    """The encoder for an observation space."""
    if not (is_fused(observation) or is_image(observation)):
        return VectorEncoder(observation.shape)
    shape, vector = observation.shape, 0
    if is_fused(observation):
        shape, (vector,) = observation[PIXELS].shape, observation[VECTOR].shape
    own = image_network(shape)
    if own is not None and isinstance(own[0], CustomNetwork):
        return CustomEncoder(own[0], own[1], vector)
    stack: Any = own
    if vector:
        return FusedEncoder(shape, channels, vector, stack)
    return PixelEncoder(shape, channels, stack)


class Actor(Head):
    """features [B, F] -> mean action [B, A] in (-1, 1)."""

    def __init__(
        self,
        features: int,
        actions: int,
        feature_dim: int,
        hidden_dim: int,
        vector: int = 0,
        *,
        policy: nn.Module | None = None,
    ):
        """`policy`: [B, feature_dim] -> [B, A], unbounded; None: an `mlp`."""
        super().__init__(features, feature_dim, hidden_dim, vector)
        self.policy = policy or mlp(feature_dim, hidden_dim, actions)

    def forward(
        self,
        features: Features,
        activations: list[Tensor] | None = None,
        pre_activations: list[Tensor] | None = None,
    ) -> Tensor:
        """Append to `pre_activations` the trunk's linear output before LayerNorm, the outputs of
        a fusion, and the last layer's before tanh: DrM's code measures their dormancy too.
        """
        output = self.policy(self.read(features, activations, pre_activations), activations)
        if pre_activations is not None:
            pre_activations.append(output)
        return torch.tanh(output)


class Critic(Head):
    """features [B, F], action [B, A] -> two estimates of Q, each [B, 1].

    `dropout` and `norm`: see `mlp`. q1, q2: [B, feature_dim + A] -> [B, 1]; None: an `mlp`.
    """

    def __init__(
        self,
        features: int,
        actions: int,
        feature_dim: int,
        hidden_dim: int,
        vector: int = 0,
        *,
        dropout: float = 0.0,
        norm: bool = False,
        q1: nn.Module | None = None,
        q2: nn.Module | None = None,
    ):
        super().__init__(features, feature_dim, hidden_dim, vector)
        inputs = feature_dim + actions
        self.q1 = q1 or mlp(inputs, hidden_dim, 1, dropout=dropout, norm=norm)
        self.q2 = q2 or mlp(inputs, hidden_dim, 1, dropout=dropout, norm=norm)

    def forward(
        self, features: Features, action: Tensor, activations: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        joined = torch.cat([self.read(features, activations), action], dim=-1)
        return self.q1(joined, activations), self.q2(joined, activations)


class Value(Head):
    """features [B, F] -> V [B, 1]. v: [B, feature_dim] -> [B, 1]; None: an `mlp`."""

    def __init__(
        self,
        features: int,
        feature_dim: int,
        hidden_dim: int,
        vector: int = 0,
        *,
        v: nn.Module | None = None,
    ):
        super().__init__(features, feature_dim, hidden_dim, vector)
        self.v = v or mlp(feature_dim, hidden_dim, 1)

    def forward(self, features: Features, activations: list[Tensor] | None = None) -> Tensor:
        return self.v(self.read(features, activations), activations)


class DuelingQ(nn.Module):
    """features [B, F] -> Q [B, A] = V + advantage - mean advantage (arXiv 1511.06581, equation 9).

    The stack's first output is V, and the others are the advantages: two linear layers on the same
    hidden units. They are combined by one product with a constant matrix, which is faster on a CPU
    than the five operations of the equation.
    """

    def __init__(self, stack: RecordedStack, actions: int):
        super().__init__()
        self.q = stack
        self.combine: Tensor
        combine = torch.cat([torch.ones(1, actions), torch.eye(actions) - 1 / actions])
        self.register_buffer("combine", combine, persistent=False)

    def forward(self, features: Tensor, activations: list[Tensor] | None = None) -> Tensor:
        return self.q(features, activations) @ self.combine


class StateActor(nn.Module):
    """state [B, D] -> [B, outputs], unbounded, by `policy`; None: an `mlp`."""

    def __init__(
        self, features: int, outputs: int, hidden_dim: int, *, policy: nn.Module | None = None
    ):
        super().__init__()
        self.policy = policy or mlp(features, hidden_dim, outputs)

    def forward(self, features: Tensor, activations: list[Tensor] | None = None) -> Tensor:
        return self.policy(features, activations)


class StateCritic(nn.Module):
    """state [B, D], action [B, A] -> two estimates of Q, each [B, 1].

    q1, q2: [B, D + A] -> [B, 1]; None: an `mlp`.
    """

    def __init__(
        self,
        features: int,
        actions: int,
        hidden_dim: int,
        *,
        q1: nn.Module | None = None,
        q2: nn.Module | None = None,
    ):
        super().__init__()
        self.q1 = q1 or mlp(features + actions, hidden_dim, 1)
        self.q2 = q2 or mlp(features + actions, hidden_dim, 1)

    def forward(
        self, features: Tensor, action: Tensor, activations: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        joined = torch.cat([features, action], dim=-1)
        return self.q1(joined, activations), self.q2(joined, activations)


class StateValue(nn.Module):
    """state [B, D] -> V [B], with tanh layers. v: [B, D] -> [B, 1]; None: an `mlp`."""

    def __init__(self, features: int, hidden_dim: int, *, v: nn.Module | None = None):
        super().__init__()
        self.v = v or mlp(features, hidden_dim, 1, nn.Tanh)

    def forward(self, features: Tensor, activations: list[Tensor] | None = None) -> Tensor:
        return self.v(features, activations)[:, 0]
