"""PPO's gradient by hand, for two plain stacks of tanh layers on a CPU.

The loss itself is stated in `rlearly.agents.ppo`. A minibatch of 64 rows is so small that autograd
takes ten times as long as the arithmetic; written out, the gradient is some seventy calls of numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlearly.core.spaces import split_mask
from rlearly.kernels.numpy_forward import DenseLayer, dense_layers
from rlearly.nn.distributions import (
    FORBIDDEN,
    HALF_LOG_TAU,
    Categorical,
    Distribution,
    Gaussian,
    gaussian_entropy,
)
from rlearly.nn.networks import StateValue
from rlearly.nn.optim import Adam, FlatParameters
from rlearly.nn.policies import CategoricalActor, GaussianActor
from rlearly.nn.running_stats import standardized

MOST_WORKSPACES = 8
"""Minibatch sizes whose buffers are kept; rollouts with skipped steps differ in size."""


@dataclass(frozen=True)
class RolloutRows:
    """Rows of a rollout in numpy: obs [n, D], action [A, n], or [n] if discrete, all others [n].

    mask: bool [A, n] of the actions that are allowed; None: all.
    """

    obs: np.ndarray
    mask: np.ndarray | None
    action: np.ndarray
    old_log_prob: np.ndarray
    old_value: np.ndarray
    advantage: np.ndarray
    target: np.ndarray

    @classmethod
    def of(
        cls,
        obs: Tensor,
        action: Tensor,
        old_log_prob: Tensor,
        old_value: Tensor,
        advantage: Tensor,
        *,
        mask_size: int = 0,
    ) -> RolloutRows:
        """From tensors [n, ...] on the CPU; the advantages are not normalised.

        mask_size: how many numbers at the end of `obs` are a mask of actions.
        """
        target = advantage + old_value
        action = action.T if action.ndim == 2 else action
        states, mask = split_mask(obs.numpy(), mask_size)
        rows = (action, old_log_prob, old_value, advantage, target)
        return cls(states, None if mask is None else mask.T, *(tensor.numpy() for tensor in rows))

    def __len__(self) -> int:
        return len(self.obs)

    def shuffled(self, order: Tensor, parts: int) -> RolloutRows:
        """A copy in another order, with the advantages normalised in each minibatch."""
        rows = order.numpy()
        advantage = torch.from_numpy(self.advantage)[order]
        size, larger = divmod(len(self), parts)
        split = larger * (size + 1)
        if split:
            advantage[:split] = standardized(advantage[:split].view(-1, size + 1)).view(-1)
        advantage[split:] = standardized(advantage[split:].view(-1, size)).view(-1)
        return RolloutRows(
            self.obs.take(rows, axis=0),
            None if self.mask is None else self.mask.take(rows, axis=1),
            self.action.take(rows, axis=-1),
            self.old_log_prob.take(rows),
            self.old_value.take(rows),
            advantage.numpy(),
            self.target.take(rows),
        )

    def minibatch(self, start: int, end: int) -> RolloutRows:
        """A view of some rows."""
        return RolloutRows(
            self.obs[start:end],
            None if self.mask is None else self.mask[:, start:end],
            self.action[..., start:end],
            self.old_log_prob[start:end],
            self.old_value[start:end],
            self.advantage[start:end],
            self.target[start:end],
        )

    def loss_inputs(self) -> dict[str, Tensor]:
        names = ("old_log_prob", "old_value", "advantage", "target")
        return {name: torch.from_numpy(getattr(self, name)) for name in names}


class PPOGradient:
    """The gradient of the loss of a minibatch with respect to every parameter of both networks.

    For B rows with normalised advantages A, targets t, ratios r = exp(l), l = log pi(a|s) - old:

        loss = mean(-min(A r, A clip(r))) - w_e H + w_v mean(max(e, e') / 2),
        e = (v - t)^2, e' = (old v + clip(v - old v) - t)^2

    - d loss / d l = -A r / B where A r <= A clip(r); else 0, as the clipped ratio is constant. From
      there to the policy's outputs, and the entropy H: see `_GaussianHead` and `_CategoricalHead`.
    - d loss / d v = w_v (v - t) / B where e >= e' or v - old v is not clipped; else 0.
    - Where h = tanh(z), z = W x + b: dz = dh (1 - h^2), dW = dz x^T, db = dz 1, dx = W^T dz.

    If the two sides of a min or max are equal, autograd would take the mean of their gradients;
    here the gradient of one side is used.

    Parameters, units and gradients of both networks are kept in one array, the actor's before the
    critic's, so that many operations are done once for both. `flat` holds parameters and gradients.
    """

    def __init__(
        self,
        stacks: tuple[list[DenseLayer], list[DenseLayer]],
        head: _GaussianHead | _CategoricalHead,
        *,
        clip: float,
        clip_value: bool,
        value_weight: float,
    ):
        """`stacks`: the layers of the policy and of the value function; see `of`."""
        self.head = head
        self.clip_value = clip_value
        self.value_weight = value_weight
        pairs = [[layer.linear for layer in both] for both in zip(*stacks, strict=True)]
        each = (p for both in pairs for p in (*(o.weight for o in both), *(o.bias for o in both)))
        self.flat = FlatParameters([*each, *head.parameters])
        self.parameters = self.flat.parameters
        self.gradients = self.flat.gradients.numpy()
        values, start = self.flat.values.numpy(), 0
        self._layers: list[_LayerPair] = []
        for one, other in pairs:
            layer = _LayerPair(one, other, values[start:], self.gradients[start:])
            self._layers.append(layer)
            start += layer.size
        head.bind(values[start:], self.gradients[start:])
        self._workspaces: dict[int, _Workspace] = {}
        self._ratio_bounds = _float32(1 - clip), _float32(1 + clip)
        self._value_bounds = _float32(-clip), _float32(clip)

    @classmethod
    def of(
        cls,
        actor: GaussianActor | CategoricalActor,
        critic: StateValue,
        *,
        entropy_weight: float,
        **weights: Any,
    ) -> PPOGradient | None:
        """For these networks, with the keyword arguments of the constructor.

        None unless they are plain stacks of tanh layers of the same widths, on the CPU.
        """
        stacks = _tanh_stacks(actor, critic)
        if stacks is None:
            return None
        if isinstance(actor, GaussianActor):
            return cls(stacks, _GaussianHead(actor.log_std, entropy_weight), **weights)
        return cls(stacks, _CategoricalHead(actor.mask_size, entropy_weight), **weights)

    def begin(self) -> None:
        """Point the parameters at `flat` again if something has moved them in memory."""
        self.flat.gather()
        if len(self._workspaces) > MOST_WORKSPACES:
            self._workspaces.clear()

    def clip_gradients(self, max_norm: float) -> None:
        """Limit the norm of the whole gradient, as torch's `clip_grad_norm_` does."""
        share = max_norm / (math.sqrt(self.gradients.dot(self.gradients)) + 1e-6)
        if not share >= 1:  # or it is NaN
            np.multiply(self.gradients, np.float32(share), out=self.gradients)

    def outputs(self, obs: np.ndarray, parts: int) -> tuple[Distribution, Tensor]:
        """The policy and values [n] of observations [n, D], computed in `parts` minibatches."""
        states, mask = split_mask(obs, self.head.mask_size)
        output = np.empty((self._layers[-1].split, len(states)), np.float32)
        value = np.empty(len(states), np.float32)
        with np.errstate(all="ignore"):
            for start, end in minibatches(len(states), parts):
                workspace = self._workspace(end - start)
                self._forward(states[start:end].T, workspace)
                output[:, start:end], value[start:end] = workspace.nets[-1]
        return self.head.distribution(output.T, mask), torch.from_numpy(value)

    def run_epoch(
        self,
        rows: RolloutRows,
        parts: int,
        optimizer: Adam,
        max_norm: float,
        loss_terms: Callable[..., dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """A gradient step per minibatch; returns the sums of their metrics.

        loss_terms: gives each row's metrics; called once, for all rows together.
        """
        log_prob, value, share = np.empty((3, len(rows)), np.float32)
        self.head.entropies.clear()
        with np.errstate(all="ignore"):  # the trainer reports numbers that are not finite
            for start, end in minibatches(len(rows), parts):
                share[start:end] = 1 / (end - start)
                self.differentiate(
                    rows.minibatch(start, end), log_prob[start:end], value[start:end]
                )
                self.clip_gradients(max_norm)
                optimizer.step(self.flat)
        found = map(torch.from_numpy, (log_prob, value))
        terms = loss_terms(*found, **rows.loss_inputs())
        sums = {name: term @ torch.from_numpy(share) for name, term in terms.items()}
        return sums | {"policy/entropy": self.head.entropy_sum()}

    def differentiate(self, rows: RolloutRows, log_prob: np.ndarray, value: np.ndarray) -> None:
        """Fill `gradients`, and the rows' current log pi(a|s) [B] and v [B]."""
        workspace = self._workspace(len(rows))
        self._forward(rows.obs.T, workspace)
        self.head.evaluate(rows, workspace, log_prob)
        by_log_prob = self._by_log_prob(rows, workspace, log_prob)
        self.head.differentiate(rows, workspace, by_log_prob)
        self._differentiate_value(rows, workspace, value)
        self._backward(rows.obs, workspace)

    def _workspace(self, size: int) -> _Workspace:
        workspace = self._workspaces.get(size)
        if workspace is None:
            workspace = self._workspaces[size] = _Workspace(self._layers, size, self.value_weight)
        return workspace

    def _forward(self, states: np.ndarray, workspace: _Workspace) -> None:
        for at, (layer, units) in enumerate(zip(self._layers, workspace.units, strict=True)):
            if at == 0:
                layer.weight.dot(states, units)
            else:
                for net, weight in enumerate(layer.weights):
                    weight.dot(workspace.nets[at - 1][net], workspace.nets[at][net])
            np.add(units, layer.bias, units)
            if layer is not self._layers[-1]:
                np.tanh(units, units)

    def _by_log_prob(
        self, rows: RolloutRows, workspace: _Workspace, log_prob: np.ndarray
    ) -> np.ndarray:
        """d loss / d l [B]."""
        ratio = np.subtract(log_prob, rows.old_log_prob, workspace.one)
        np.exp(ratio, ratio)
        unclipped = np.multiply(rows.advantage, ratio, workspace.two)
        clipped = _clip(ratio, self._ratio_bounds, workspace.three)
        np.multiply(rows.advantage, clipped, clipped)
        np.less_equal(unclipped, clipped, workspace.moves)
        by_log_prob = np.multiply(unclipped, workspace.moves, unclipped)
        return np.multiply(by_log_prob, workspace.policy_share, by_log_prob)

    def _differentiate_value(
        self, rows: RolloutRows, workspace: _Workspace, value: np.ndarray
    ) -> None:
        """From the value to the derivative by it."""
        value[:] = workspace.nets[-1][1][0]
        by_value = workspace.by_nets[-1][1][0]
        error = np.subtract(value, rows.target, workspace.one)
        np.multiply(error, workspace.value_share, by_value)
        if self.clip_value:
            moved = np.subtract(value, rows.old_value, workspace.two)
            near = _clip(moved, self._value_bounds, workspace.three)
            np.equal(moved, near, workspace.inside)
            np.add(near, rows.old_value, near)
            np.subtract(near, rows.target, near)
            np.square(near, near)
            np.square(error, error)
            np.greater_equal(error, near, workspace.moves)
            np.logical_or(workspace.moves, workspace.inside, workspace.moves)
            np.multiply(by_value, workspace.moves, by_value)

    def _backward(self, states: np.ndarray, workspace: _Workspace) -> None:
        """From the derivatives by both outputs to those by every weight and bias."""
        for at in range(len(self._layers) - 1, -1, -1):
            layer, by_units = self._layers[at], workspace.by_units[at]
            if layer is not self._layers[-1]:  # through tanh
                slope = workspace.units[at]
                np.square(slope, slope)
                np.subtract(ONE, slope, slope)
                np.multiply(by_units, slope, by_units)
            by_units.dot(workspace.ones, layer.bias_gradient)
            if at == 0:
                by_units.dot(states, layer.weight_gradient)
                return
            for net, dz in enumerate(workspace.by_nets[at]):
                dz.dot(workspace.nets[at - 1][net].T, layer.weight_gradients[net])
                layer.weights[net].T.dot(dz, workspace.by_nets[at - 1][net])


class _GaussianHead:
    """From the mean action and log std to the log-probability and the entropy, and back.

    l = sum over actions of -n^2 / 2 - log std + constants, with n = (a - mean) / std, so
    d l / d mean = n / std and d l / d log std = n^2 - 1. The entropy H = sum of log std + ...

    entropies: for each minibatch of an epoch, its log std.
    """

    mask_size = 0

    def __init__(self, log_std: nn.Parameter, entropy_weight: float):
        self.parameters = [log_std]
        self.entropies: list[np.ndarray] = []
        self._entropy_weight = np.float32(entropy_weight)

    def bind(self, values: np.ndarray, gradients: np.ndarray) -> None:
        """Where the parameters and their gradients are."""
        self._log_std, self._log_std_gradient = values, gradients

    def distribution(self, output: np.ndarray, mask: None) -> Gaussian:
        return Gaussian(torch.from_numpy(output), torch.from_numpy(self._log_std))

    def entropy_sum(self) -> Tensor:
        """The sum of the epoch's minibatches' entropies."""
        return gaussian_entropy(torch.from_numpy(np.stack(self.entropies))).sum()

    def evaluate(self, rows: RolloutRows, workspace: _Workspace, log_prob: np.ndarray) -> None:
        """Fill log pi(a|s) [B]."""
        log_std, mean = self._log_std, workspace.nets[-1][0]
        noise, squares = workspace.noise, workspace.squares
        self.entropies.append(log_std.copy())
        np.subtract(rows.action, mean, noise)
        self._precision = np.exp(-log_std)[:, None]
        np.multiply(noise, self._precision, noise)
        np.square(noise, squares)
        np.dot(workspace.minus_halves, squares, log_prob)
        log_prob -= np.add.reduce(log_std) + np.float32(HALF_LOG_TAU * len(log_std))

    def differentiate(
        self, rows: RolloutRows, workspace: _Workspace, by_log_prob: np.ndarray
    ) -> None:
        """From the derivative by l to those by the mean action and log std."""
        by_mean = workspace.by_nets[-1][0]
        np.multiply(workspace.noise, by_log_prob, by_mean)
        np.multiply(by_mean, self._precision, by_mean)
        by_log_std = np.dot(workspace.squares, by_log_prob, self._log_std_gradient)
        by_log_std -= by_log_prob.dot(workspace.ones) + self._entropy_weight


class _CategoricalHead:
    """From the logits z to the log-probability and the entropy, and back.

    With p = softmax(z) and H = -sum of p log p, d l / d z = [action = a] - p and
    d H / d z = -p (log p + H). A forbidden action has p = 0 and no gradient.

    entropies: for each minibatch of an epoch, its mean H.
    """

    def __init__(self, mask_size: int, entropy_weight: float):
        self.mask_size = mask_size
        self.parameters: list[nn.Parameter] = []
        self.entropies: list[np.ndarray] = []
        self._entropy_weight = np.float32(entropy_weight)

    def bind(self, values: np.ndarray, gradients: np.ndarray) -> None:
        """There are no parameters."""

    def distribution(self, output: np.ndarray, mask: np.ndarray | None) -> Categorical:
        logits = output if mask is None else np.where(mask, output, np.float32(FORBIDDEN))
        return Categorical(torch.from_numpy(logits))

    def entropy_sum(self) -> Tensor:
        """The sum of the epoch's minibatches' entropies."""
        return torch.from_numpy(np.stack(self.entropies)).sum()

    def evaluate(self, rows: RolloutRows, workspace: _Workspace, log_prob: np.ndarray) -> None:
        """Fill log pi(a|s) [B]."""
        logits, log_p, p = workspace.nets[-1][0], workspace.noise, workspace.squares
        if rows.mask is not None:
            np.copyto(logits, np.float32(FORBIDDEN), where=~rows.mask)
        np.subtract(logits, np.maximum.reduce(logits), log_p)
        np.exp(log_p, p)
        total = np.add.reduce(p, out=workspace.one)
        np.divide(p, total, p)
        np.subtract(log_p, np.log(total, total), log_p)
        log_prob[:] = log_p[rows.action, workspace.numbers]
        entropy = np.einsum("ab,ab->b", p, log_p, out=workspace.entropy)
        np.negative(entropy, entropy)
        self.entropies.append(entropy.mean())

    def differentiate(
        self, rows: RolloutRows, workspace: _Workspace, by_log_prob: np.ndarray
    ) -> None:
        """From the derivative by l to that by the logits."""
        log_p, p, by_logits = workspace.noise, workspace.squares, workspace.by_nets[-1][0]
        np.add(log_p, workspace.entropy, by_logits)
        np.multiply(by_logits, self._entropy_weight / np.float32(len(by_log_prob)), by_logits)
        np.subtract(by_logits, by_log_prob, by_logits)
        np.multiply(by_logits, p, by_logits)
        by_logits[rows.action, workspace.numbers] += by_log_prob


def minibatches(rows: int, parts: int) -> Iterator[tuple[int, int]]:
    """Start and end of each part of `torch.tensor_split`."""
    size, larger = divmod(rows, parts)
    start = 0
    for at in range(parts):
        end = start + size + (at < larger)
        yield start, end
        start = end


def _tanh_stacks(
    actor: GaussianActor | CategoricalActor, critic: StateValue
) -> tuple[list[DenseLayer], list[DenseLayer]] | None:
    policy, value = dense_layers(actor.policy), dense_layers(critic.v)
    if policy is None or value is None:
        return None
    parameters = [*actor.parameters(), *critic.parameters()]
    if any(p.device.type != "cpu" or not p.requires_grad for p in parameters):
        return None
    activations = [nn.Tanh] * (len(policy) - 1) + [None]
    for stack in (policy, value):
        if [layer.activation for layer in stack] != activations:
            return None
    inputs = [[layer.linear.in_features for layer in stack] for stack in (policy, value)]
    return (policy, value) if inputs[0] == inputs[1] else None


class _LayerPair:
    """The same layer of both networks in flat arrays, the actor's outputs before the critic's.

    weight, weight_gradient [outputs, inputs]: of both, which have the same inputs; weights,
    weight_gradients: of each. bias [outputs, 1], bias_gradient [outputs]: of both.
    """

    def __init__(
        self, actor: nn.Linear, critic: nn.Linear, values: np.ndarray, gradients: np.ndarray
    ):
        self.split, inputs = actor.out_features, actor.in_features
        self.outputs = self.split + critic.out_features
        weights, self.size = self.outputs * inputs, self.outputs * (inputs + 1)
        self.weight, self.weight_gradient = (
            flat[:weights].reshape(-1, inputs) for flat in (values, gradients)
        )
        self.weights = self.of_each(self.weight)
        self.weight_gradients = self.of_each(self.weight_gradient)
        self.bias = values[weights : self.size, None]
        self.bias_gradient = gradients[weights : self.size]

    def of_each(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The actor's and the critic's rows, one per output."""
        return rows[: self.split], rows[self.split :]


class _Workspace:
    """Preallocated buffers for one minibatch size."""

    def __init__(self, layers: list[_LayerPair], size: int, value_weight: float):
        def empty(*shape: int) -> np.ndarray:
            return np.empty((*shape, size), np.float32)

        self.units = [empty(layer.outputs) for layer in layers]
        self.by_units = [empty(layer.outputs) for layer in layers]
        self.nets, self.by_nets = (
            [layer.of_each(rows) for layer, rows in zip(layers, both, strict=True)]
            for both in (self.units, self.by_units)
        )
        actions = layers[-1].split
        self.noise, self.squares = empty(actions), empty(actions)
        self.one, self.two, self.three, self.entropy = empty(), empty(), empty(), empty()
        self.numbers = np.arange(size)
        self.moves, self.inside = np.empty((2, size), bool)
        self.ones = np.ones(size, np.float32)
        self.minus_halves = np.full(actions, -0.5, np.float32)
        self.policy_share = _float32(-1 / size)
        self.value_share = _float32(value_weight / size)


def _float32(value: float) -> np.ndarray:
    """As an array: numpy takes longer with a Python float."""
    return np.array(value, np.float32)


ONE = _float32(1)


def _clip(x: np.ndarray, bounds: tuple[np.ndarray, np.ndarray], out: np.ndarray) -> np.ndarray:
    """`np.clip` without its overhead."""
    np.maximum(x, bounds[0], out=out)
    return np.minimum(out, bounds[1], out=out)
