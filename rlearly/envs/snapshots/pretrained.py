"""Read trained models of other libraries: CleanRL's plain weights, Stable-Baselines3's files."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rlearly.core.errors import ConfigError
from rlearly.envs.snapshots import sb3_models
from rlearly.envs.snapshots.trained_model import Model

MODEL_FILES = ("*.zip", "*.cleanrl_model")
Weights = Mapping[str, Tensor]
Layers = list[tuple[Tensor, Tensor]]


def read_model(
    path: Path,
    env: gymnasium.Env,
    *,
    trust: bool = False,
    normalize: str | Path | None = None,
    algo: str | None = None,
) -> Model:
    """Read a model file, to act in `env`.

    Stable-Baselines3's and sb3-contrib's .zip files are loaded by these libraries; see
    `sb3_models.load` for the arguments. CleanRL's files (TD3, DDPG, SAC and PPO, as its scripts
    save them with --save-model) are plain weights and run no code. They do not name the activation
    function: tanh is assumed for PPO, ReLU for the others, as in CleanRL's scripts. They value an
    observation as V(s) for PPO, otherwise as Q1(s, act(s)).

    Raises:
        ConfigError: there is no such file, it is another kind of file, it is not trusted, or it
            does not fit the env.
    """
    if not path.is_file():
        raise ConfigError(f"model: there is no file {path}.")
    if _is_stable_baselines3(path):
        return sb3_models.load(path, env, trust=trust, normalize=normalize, algo=algo)
    for name, given in (("normalize", normalize), ("algo", algo)):
        if given is not None:
            raise ConfigError(
                f"{name}: is for the .zip files of Stable-Baselines3, but {path} is not one; "
                "leave it out."
            )
    try:
        return _assemble(_weights(path), _Spaces(env))
    except (KeyError, OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds pickled objects, or is not a torch file"
        elif isinstance(error, KeyError):
            lacks_layer = isinstance(error.args[0], str)
            reason = f"it lacks {error}" if lacks_layer else "it is no model file"
        raise ConfigError(
            f"{path} does not load as a model of TD3, DDPG, SAC or PPO ({reason[:300]}): expected "
            "Stable-Baselines3's .zip or CleanRL's .cleanrl_model with dense layers."
        ) from None


def from_hub(repository: str, file: str | None) -> Path:
    """Path of a Hugging Face repository's model file, from the local cache or the network.

    `file` may be None if the repository holds only one. Statistics of VecNormalize are fetched
    too and lie beside the model. Nothing is loaded yet.

    Raises:
        ConfigError: huggingface_hub is not installed, or the file cannot be fetched.
    """
    try:
        import huggingface_hub as hub  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            "Models on the Hugging Face hub need a package: pip install 'rlearly[hub]'."
        ) from None
    wanted = MODEL_FILES if file is None else (file,)
    statistics = (f"*{name}" for name in sb3_models.STATISTICS)
    try:
        folder = Path(hub.snapshot_download(repository, allow_patterns=[*wanted, *statistics]))
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ConfigError(
            f"hub={repository}: the model cannot be fetched ({reason}); check the name, the "
            "network, or download it yourself and use model=FILE."
        ) from None
    if file is not None:
        if not (folder / file).is_file():
            raise ConfigError(
                f"hub={repository}: it holds no file {file}, or it cannot be fetched; check "
                "file=NAME and the network."
            )
        return folder / file
    found = sorted(path for pattern in MODEL_FILES for path in folder.rglob(pattern))
    # the Zoo's repositories also hold a zip of learning curves
    found = [path for path in found if path.suffix != ".zip" or _is_stable_baselines3(path)]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(str(path.relative_to(folder)) for path in found) or "none"
    raise ConfigError(f"hub={repository}: expected one model file, found {listed}; add file=NAME.")


def _is_stable_baselines3(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return "policy.pth" in archive.namelist()


def _weights(path: Path) -> Weights:
    """Weights by name; those of a tuple of networks begin with `actor.`, `q1.` and `q2.`."""
    loaded = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    if isinstance(loaded, tuple | list):
        if not 2 <= len(loaded) <= 3 or not all(isinstance(part, Mapping) for part in loaded):
            raise ValueError("expected the weights of an actor and one or two critics")
        loaded = {
            f"{part}.{key}": value
            for part, weights in zip(("actor", "q1", "q2"), loaded, strict=False)
            for key, value in weights.items()
        }
    if not isinstance(loaded, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in loaded.items()
    ):
        raise ValueError("it holds something other than weights")
    return loaded


class _Spaces:
    """Converts between an env's spaces and flat tensors."""

    def __init__(self, env: gymnasium.Env):
        action = env.action_space
        if not isinstance(action, gymnasium.spaces.Box):
            raise ConfigError(f"env: expected a Box action space, received {action}.")
        self.action = action
        self.observation = env.observation_space
        self.name = env.spec.id if env.spec else str(env)
        low, high = (np.asarray(bound, np.float32) for bound in (action.low, action.high))
        with np.errstate(invalid="ignore"):  # PPO's bounds may be infinite
            half, middle = (high - low) / 2, (high + low) / 2
        self.scale, self.middle = (torch.from_numpy(x.reshape(1, -1)) for x in (half, middle))

    def tensor(self, obs: Any) -> Tensor:
        """float32 [1, D]."""
        flat = np.asarray(gymnasium.spaces.flatten(self.observation, obs), np.float32)
        return torch.from_numpy(flat)[None]

    def check(self, policy: Layers, weights: Weights, squashed: bool) -> None:
        inputs, outputs = policy[0][0].shape[1], policy[-1][0].shape[0]
        width = gymnasium.spaces.flatdim(self.observation)
        actions = int(np.prod(self.action.shape))
        if (inputs, outputs) != (width, actions):
            raise ConfigError(
                f"The model has {inputs} inputs and {outputs} actions, but {self.name} has "
                f"observations of {width} numbers and {actions} actions: it was trained on another "
                "env."
            )
        for name, own in (("action_scale", self.scale), ("action_bias", self.middle)):
            if f"actor.{name}" not in weights:
                continue
            stored = weights[f"actor.{name}"].float().reshape(-1)
            if len(stored) != actions or not torch.allclose(stored, own[0], rtol=1e-5):
                raise ConfigError(
                    f"The model's {name} is {stored.tolist()}, but the actions of {self.name} "
                    f"have {own[0].tolist()}: it was trained on another env."
                )
        if squashed and not torch.isfinite(self.scale).all():
            raise ConfigError(f"env: expected bounded actions, received {self.action}.")


def _sequential(weights: Weights, prefix: str) -> list[str]:
    """The linear layers of a Sequential that has an activation function after each but the last."""
    names = [f"{prefix}.0"]
    while f"{prefix}.{2 * len(names)}.weight" in weights:
        names.append(f"{prefix}.{2 * len(names)}")
    return names


def _networks(weights: Weights) -> tuple[str, list[str], list[str]]:
    """(algorithm, policy layers, critic layers), recognised by the names of the layers.

    Raises:
        ValueError: a weight belongs to no network that CleanRL's scripts save.
    """
    if any(key.startswith("actor_mean.") for key in weights):
        algorithm, unused = "PPO", {"actor_logstd"}
        policy, critic = _sequential(weights, "actor_mean"), _sequential(weights, "critic")
    else:
        sac = "actor.fc_mean.weight" in weights
        twin = any(key.startswith("q2.") for key in weights)
        algorithm = "SAC" if sac else "TD3" if twin else "DDPG"
        policy = ["actor.fc1", "actor.fc2", "actor.fc_mean" if sac else "actor.fc_mu"]
        critic = [f"q1.fc{i}" for i in (1, 2, 3)]
        unused = {"actor.action_scale", "actor.action_bias"}  # compared with the env's bounds
        other = [f"q2.fc{i}" for i in (1, 2, 3)] if twin else []
        other += ["actor.fc_logstd"] if sac else []
        unused |= {f"{name}.{part}" for name in other for part in ("weight", "bias")}
    known = {f"{name}.{part}" for name in policy + critic for part in ("weight", "bias")} | unused
    if unknown := sorted(set(weights) - known):
        raise ValueError(
            f"it holds {', '.join(unknown[:4])}{' and more' if len(unknown) > 4 else ''}, which "
            f"the {algorithm} network of CleanRL's scripts does not have"
        )
    return algorithm, policy, critic


def _mlp(layers: Layers, relu: bool) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        for i, (weight, bias) in enumerate(layers):
            x = torch.nn.functional.linear(x, weight, bias)
            if i < len(layers) - 1:
                x = torch.relu(x) if relu else torch.tanh(x)
        return x

    return forward


def _assemble(weights: Weights, spaces: _Spaces) -> Model:
    algorithm, *names = _networks(weights)
    policy, critic = (
        [(weights[f"{n}.weight"].float(), weights[f"{n}.bias"].float()) for n in layers]
        for layers in names
    )
    if any(weight.ndim != 2 for weight, _ in policy + critic):
        raise ValueError("a layer is not dense")
    ppo = algorithm == "PPO"
    spaces.check(policy, weights, squashed=not ppo)
    mean, value_net = _mlp(policy, relu=not ppo), _mlp(critic, relu=not ppo)
    low, high = spaces.action.low, spaces.action.high

    @torch.no_grad()
    def act(obs: Any) -> np.ndarray:
        raw = mean(spaces.tensor(obs))
        if ppo:
            return np.clip(raw.numpy().reshape(low.shape), low, high)
        return (torch.tanh(raw) * spaces.scale + spaces.middle).numpy().reshape(low.shape)

    @torch.no_grad()
    def value(obs: Any) -> float:
        state = spaces.tensor(obs)
        if ppo:
            return value_net(state).item()
        action = torch.tanh(mean(state)) * spaces.scale + spaces.middle  # critics see env actions
        return value_net(torch.cat([state, action], -1)).item()

    zeros = torch.zeros(1, policy[0][0].shape[1])
    if mean(zeros).shape != spaces.scale.shape or value_net(
        zeros if ppo else torch.cat([zeros, spaces.scale], -1)
    ).shape != (1, 1):
        raise ValueError("its critic does not return one number")
    notes = ()
    if ppo:
        notes = (
            "CleanRL's PPO script normalises observations, and its files lack the statistics: a "
            "model trained that way plays worse here than there.",
        )
    return Model("CleanRL", algorithm, act, value, notes=notes)
