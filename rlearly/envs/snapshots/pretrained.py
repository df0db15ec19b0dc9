"""Models that Stable-Baselines3 or CleanRL trained, read as plain weights: nothing is unpickled."""

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

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Model:
    """A trained policy with its critic.

    act: observation -> mean action within the env's bounds; value: observation -> Q1(s, act(s)),
    or V(s) for PPO.
    """

    library: str
    algorithm: str
    act: Callable[[Any], np.ndarray]
    value: Callable[[Any], float]


def read_model(path: Path, env: gymnasium.Env) -> Model:
    """The model in a file, for playing in `env`.

    TD3, DDPG, SAC and PPO with vector observations: Stable-Baselines3's .zip, and what CleanRL's
    scripts save with --save-model. Statistics of observation normalisers are in neither kind of
    file (Stable-Baselines3 pickles them apart): a policy that was trained with one plays badly
    here.

    Raises:
        ConfigError: there is no such file, it is something else, or it does not fit the env.
    """
    if not path.is_file():
        raise ConfigError(f"model: there is no file {path}.")
    try:
        weights, library, relu = _weights(path)
        return _assemble(weights, library, relu, _Place(env))
    except (KeyError, OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds pickled objects, or is no file of torch"
        elif isinstance(error, KeyError):
            reason = (
                f"it lacks {error}" if isinstance(error.args[0], str) else "it is no model file"
            )
        raise ConfigError(
            f"{path} does not load as a model of TD3, DDPG, SAC or PPO ({reason[:200]}): expected "
            "Stable-Baselines3's .zip or CleanRL's .cleanrl_model with dense layers."
        ) from None


def from_hub(repository: str, file: str | None) -> Path:
    """A model file of a Hugging Face repository, from the local cache or the network.

    Raises:
        ConfigError: huggingface_hub is not installed, or the file cannot be had.
    """
    try:
        import huggingface_hub as hub  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            "Models on the Hugging Face hub need a package: pip install 'rlearly[hub]'."
        ) from None
    try:
        if file is None:
            kept = Path(hub.snapshot_download(repository, allow_patterns=list(MODEL_FILES)))
            found = sorted(p for pattern in MODEL_FILES for p in kept.rglob(pattern))
            if len(found) != 1:
                names = ", ".join(str(p.relative_to(kept)) for p in found) or "none"
                raise ConfigError(
                    f"hub={repository}: expected one model file, found {names}; add file=NAME."
                )
            return found[0]
        return Path(hub.hf_hub_download(repository, file))
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ConfigError(
            f"hub={repository}: the model cannot be fetched ({reason}); check the name, the "
            "network, or download it yourself and use model=FILE."
        ) from None


MODEL_FILES = ("*.zip", "*.cleanrl_model")


# --- files to weights ---


def _weights(path: Path) -> tuple[Weights, str, bool | None]:
    """(weights by name, library, whether hidden layers are ReLU if the file says)."""
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
        raise ValueError("it holds something else than weights")
    return loaded, "CleanRL", None


def _activation(archive: zipfile.ZipFile, names: set[str]) -> bool | None:
    """What the saved arguments say of the hidden layers; their pickled parts are not touched."""
    if "data" not in names:
        return None
    text = json.dumps(json.loads(archive.read("data")).get("policy_kwargs", ""))
    known = [kind for kind in ("ReLU", "Tanh") if f"activation.{kind}" in text]
    if "activation_fn" in text and len(known) != 1:
        raise ValueError("its activation function is neither ReLU nor Tanh")
    return known == ["ReLU"] if known else None


# --- weights to a policy ---


class _Place:
    """Between an env's spaces and flat numbers."""

    def __init__(self, env: gymnasium.Env):
        action = env.action_space
        if not isinstance(action, gymnasium.spaces.Box):
            raise ConfigError(f"env: expected a Box action space, received {action}.")
        self.low, self.high = (np.asarray(b, np.float32) for b in (action.low, action.high))
        self.space = env.observation_space
        self.width = gymnasium.spaces.flatdim(env.observation_space)
        self.actions = int(np.prod(action.shape))
        self.shape = action.shape
        self.name = env.spec.id if env.spec else str(env)

    def tensor(self, obs: Any) -> Tensor:
        flat = np.asarray(gymnasium.spaces.flatten(self.space, obs), np.float32)
        return torch.from_numpy(flat)[None]

    def check(self, inputs: int, outputs: int) -> None:
        if (inputs, outputs) != (self.width, self.actions):
            raise ConfigError(
                f"The model takes {inputs} numbers and gives {outputs} actions, and {self.name} "
                f"gives {self.width} and takes {self.actions}: it was trained on another env."
            )


def _layers(weights: Weights, names: list[str]) -> list[tuple[Tensor, Tensor]]:
    return [(weights[f"{n}.weight"].float(), weights[f"{n}.bias"].float()) for n in names]


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


def _assemble(weights: Weights, library: str, relu: bool | None, place: _Place) -> Model:
    """Recognise the algorithm by its layers' names."""
    cleanrl = library == "CleanRL"
    if any(k.startswith(("actor_mean.", "mlp_extractor.")) for k in weights):
        return _ppo(weights, library, bool(relu), place)
    relu = relu is not False
    if cleanrl:
        head = "fc_mean" if "actor.fc_mean.weight" in weights else "fc_mu"
        policy = ["actor.fc1", "actor.fc2", f"actor.{head}"]
        critic = [f"q1.fc{i}" for i in (1, 2, 3)]
        sac = head == "fc_mean"
        twin = any(k.startswith("q2.") for k in weights)
    else:
        sac = "actor.mu.weight" in weights
        policy = (
            [*_numbered(weights, "actor.latent_pi"), "actor.mu"]
            if sac
            else _numbered(weights, "actor.mu")
        )
        critic = _numbered(weights, "critic.qf0")
        twin = any(k.startswith("critic.qf1.") for k in weights)
    layers, judge = _layers(weights, policy), _layers(weights, critic)
    place.check(layers[0][0].shape[1], layers[-1][0].shape[0])
    mean, q = _mlp(layers, relu), _mlp(judge, relu)
    scale = torch.from_numpy((place.high - place.low).reshape(1, -1) / 2)
    middle = torch.from_numpy((place.high + place.low).reshape(1, -1) / 2)

    @torch.no_grad()
    def act(obs: Any) -> np.ndarray:
        return (torch.tanh(mean(place.tensor(obs))) * scale + middle).numpy().reshape(place.shape)

    @torch.no_grad()
    def value(obs: Any) -> float:
        state = place.tensor(obs)
        action = torch.tanh(mean(state))
        seen = action * scale + middle if cleanrl else action  # what its critic was trained on
        return float(q(torch.cat([state, seen], -1)))

    return Model(library, "SAC" if sac else "TD3" if twin else "DDPG", act, value)


def _ppo(weights: Weights, library: str, relu: bool, place: _Place) -> Model:
    if library == "CleanRL":
        policy, critic = _numbered(weights, "actor_mean"), _numbered(weights, "critic")
    else:
        policy = [*_numbered(weights, "mlp_extractor.policy_net"), "action_net"]
        critic = [*_numbered(weights, "mlp_extractor.value_net"), "value_net"]
    layers, judge = _layers(weights, policy), _layers(weights, critic)
    place.check(layers[0][0].shape[1], layers[-1][0].shape[0])
    mean, v = _mlp(layers, relu), _mlp(judge, relu)

    @torch.no_grad()
    def act(obs: Any) -> np.ndarray:
        raw = mean(place.tensor(obs)).numpy().reshape(place.shape)
        return np.clip(raw, place.low, place.high)

    @torch.no_grad()
    def value(obs: Any) -> float:
        return float(v(place.tensor(obs)))

    return Model(library, "PPO", act, value)
