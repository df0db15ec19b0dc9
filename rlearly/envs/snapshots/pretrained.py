"""Read models trained by Stable-Baselines3 or CleanRL as plain weights, without unpickling."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rlearly.core.errors import ConfigError

MODEL_FILES = ("*.zip", "*.cleanrl_model")
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Model:
    """A trained policy and its critic.

    act: observation -> mean action within the env's bounds. value: observation -> Q1(s, act(s)), or
    V(s) for PPO.
    """

    library: str
    algorithm: str
    act: Callable[[Any], np.ndarray]
    value: Callable[[Any], float]


def read_model(path: Path, env: gymnasium.Env) -> Model:
    """Read a model file, to act in `env`.

    Supported: TD3, DDPG, SAC and PPO with vector observations, as Stable-Baselines3's .zip or as
    saved by CleanRL's scripts with --save-model. Neither file holds the statistics of an
    observation normaliser (Stable-Baselines3 pickles them separately), so a policy trained with one
    acts badly here.

    Raises:
        ConfigError: there is no such file, it is another kind of file, or it does not fit the env.
    """
    if not path.is_file():
        raise ConfigError(f"model: there is no file {path}.")
    try:
        weights, library, relu = _weights(path)
        return _assemble(weights, library, relu, _Spaces(env))
    except (KeyError, OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds pickled objects, or is not a torch file"
        elif isinstance(error, KeyError):
            lacks_layer = isinstance(error.args[0], str)
            reason = f"it lacks {error}" if lacks_layer else "it is no model file"
        raise ConfigError(
            f"{path} does not load as a model of TD3, DDPG, SAC or PPO ({reason[:200]}): expected "
            "Stable-Baselines3's .zip or CleanRL's .cleanrl_model with dense layers."
        ) from None


def from_hub(repository: str, file: str | None) -> Path:
    """Path of a Hugging Face repository's model file, from the local cache or the network.

    `file` may be None if the repository holds only one.

    Raises:
        ConfigError: huggingface_hub is not installed, or the file cannot be fetched.
    """
    try:
        import huggingface_hub as hub  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            "Models on the Hugging Face hub need a package: pip install 'rlearly[hub]'."
        ) from None
    try:
        if file is not None:
            return Path(hub.hf_hub_download(repository, file))
        folder = Path(hub.snapshot_download(repository, allow_patterns=list(MODEL_FILES)))
        found = sorted(path for pattern in MODEL_FILES for path in folder.rglob(pattern))
        if len(found) == 1:
            return found[0]
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ConfigError(
            f"hub={repository}: the model cannot be fetched ({reason}); check the name, the "
            "network, or download it yourself and use model=FILE."
        ) from None
    listed = ", ".join(str(path.relative_to(folder)) for path in found) or "none"
    raise ConfigError(f"hub={repository}: expected one model file, found {listed}; add file=NAME.")


def _weights(path: Path) -> tuple[Weights, str, bool | None]:
    """(weights by name, library, whether hidden layers are ReLU; None if the file does not say)."""
    with path.open("rb") as stream:
        stored = stream.read()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            if "policy.pth" in names:
                policy = torch.load(
                    io.BytesIO(archive.read("policy.pth")), map_location="cpu", weights_only=True
                )
                return policy, "Stable-Baselines3", _activation(archive, names)
    loaded = torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
    if isinstance(loaded, tuple | list):
        parts = ("actor", "q1", "q2")
        loaded = {
            f"{part}.{key}": value
            for part, weights in zip(parts, loaded, strict=False)
            for key, value in weights.items()
        }
    if not isinstance(loaded, Mapping) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ValueError("it holds something other than weights")
    return loaded, "CleanRL", None


def _activation(archive: zipfile.ZipFile, names: set[str]) -> bool | None:
    """Whether the hidden layers are ReLU according to the saved arguments; None if they do not say.

    Pickled parts are not read.
    """
    if "data" not in names:
        return None
    text = json.dumps(json.loads(archive.read("data")).get("policy_kwargs", ""))
    known = [kind for kind in ("ReLU", "Tanh") if f"activation.{kind}" in text]
    if "activation_fn" in text and len(known) != 1:
        raise ValueError("its activation function is neither ReLU nor Tanh")
    return known == ["ReLU"] if known else None


class _Spaces:
    """Converts between an env's spaces and flat tensors."""

    def __init__(self, env: gymnasium.Env):
        action = env.action_space
        if not isinstance(action, gymnasium.spaces.Box):
            raise ConfigError(f"env: expected a Box action space, received {action}.")
        self.action = action
        self.observation = env.observation_space
        self.name = env.spec.id if env.spec else str(env)

    def tensor(self, obs: Any) -> Tensor:
        """float32 [1, D]."""
        flat = np.asarray(gymnasium.spaces.flatten(self.observation, obs), np.float32)
        return torch.from_numpy(flat)[None]

    def check(self, policy: list[tuple[Tensor, Tensor]]) -> None:
        inputs, outputs = policy[0][0].shape[1], policy[-1][0].shape[0]
        width = gymnasium.spaces.flatdim(self.observation)
        actions = int(np.prod(self.action.shape))
        if (inputs, outputs) != (width, actions):
            raise ConfigError(
                f"The model has {inputs} inputs and {outputs} actions, but {self.name} has "
                f"observations of {width} numbers and {actions} actions: it was trained on another "
                "env."
            )


def _numbered(weights: Weights, prefix: str) -> list[str]:
    """The linear layers of a Sequential, in order."""
    tails = (k[len(prefix) + 1 : -7] for k in weights if k.startswith(prefix + "."))
    return [f"{prefix}.{i}" for i in sorted(int(t) for t in tails if t.isdigit())]


def _mlp(layers: list[tuple[Tensor, Tensor]], relu: bool) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        for i, (weight, bias) in enumerate(layers):
            x = torch.nn.functional.linear(x, weight, bias)
            if i < len(layers) - 1:
                x = torch.relu(x) if relu else torch.tanh(x)
        return x

    return forward


def _layer_names(weights: Weights, cleanrl: bool) -> tuple[str, list[str], list[str]]:
    """(algorithm, policy layers, critic layers), recognised by the names of the layers."""
    if any(k.startswith(("actor_mean.", "mlp_extractor.")) for k in weights):
        if cleanrl:
            return "PPO", _numbered(weights, "actor_mean"), _numbered(weights, "critic")
        policy = [*_numbered(weights, "mlp_extractor.policy_net"), "action_net"]
        return "PPO", policy, [*_numbered(weights, "mlp_extractor.value_net"), "value_net"]
    if cleanrl:
        sac = "actor.fc_mean.weight" in weights
        policy = ["actor.fc1", "actor.fc2", "actor.fc_mean" if sac else "actor.fc_mu"]
        critic = [f"q1.fc{i}" for i in (1, 2, 3)]
    else:
        sac = "actor.mu.weight" in weights
        hidden = _numbered(weights, "actor.latent_pi" if sac else "actor.mu")
        policy = [*hidden, "actor.mu"] if sac else hidden
        critic = _numbered(weights, "critic.qf0")
    twin = any(k.startswith(("q2.", "critic.qf1.")) for k in weights)
    return "SAC" if sac else "TD3" if twin else "DDPG", policy, critic


def _assemble(weights: Weights, library: str, relu: bool | None, spaces: _Spaces) -> Model:
    cleanrl = library == "CleanRL"
    algorithm, *layers = _layer_names(weights, cleanrl)
    policy, critic = (
        [(weights[f"{n}.weight"].float(), weights[f"{n}.bias"].float()) for n in names]
        for names in layers
    )
    spaces.check(policy)
    ppo = algorithm == "PPO"
    relu = bool(relu) if ppo else relu is not False  # the libraries' defaults: PPO's is tanh
    mean, value_net = _mlp(policy, relu), _mlp(critic, relu)
    low, high = (np.asarray(b, np.float32) for b in (spaces.action.low, spaces.action.high))
    with np.errstate(invalid="ignore"):  # PPO's bounds may be infinite
        scale, middle = (torch.from_numpy(b.reshape(1, -1) / 2) for b in (high - low, high + low))

    @torch.no_grad()
    def act(obs: Any) -> np.ndarray:
        raw = mean(spaces.tensor(obs))
        if ppo:
            return np.clip(raw.numpy().reshape(low.shape), low, high)
        return (torch.tanh(raw) * scale + middle).numpy().reshape(low.shape)

    @torch.no_grad()
    def value(obs: Any) -> float:
        state = spaces.tensor(obs)
        if ppo:
            return float(value_net(state))
        action = torch.tanh(mean(state))
        if cleanrl:  # its critics are trained on the env's own action range
            action = action * scale + middle
        return float(value_net(torch.cat([state, action], -1)))

    return Model(library, algorithm, act, value)
