"""Models of Stable-Baselines3 and sb3-contrib, loaded and played by these libraries themselves."""

from __future__ import annotations

import base64
import functools
import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlearly.core.errors import ConfigError
from rlearly.envs.snapshots.trained_model import Model
from rlearly.envs.state.action_replay import InnermostWrapper, id_of, innermost

STATISTICS = ("vecnormalize.pkl", "vec_normalize.pkl")
"""Names of a VecNormalize's file: the RL Zoo's on disk, and the hub's."""

NEEDED = ("policy_class", "policy_kwargs", "observation_space", "action_space")
"""Saved settings that playing needs. No other pickled setting is loaded: that would only run more
code, and often fails with other versions of Python or of the libraries."""

RECURRENT, MASKABLE = "RecurrentActorCriticPolicy", "MaskableActorCriticPolicy"
"""sb3-contrib's policies that need more than an observation."""

UNUSED = {
    "learning_rate": 0.0,
    "lr_schedule": 0.0,
    "clip_range": 0.0,
    "target_entropy": 0.0,
    "train_freq": 1,
}
"""Stand-ins for pickled settings of which the constructors want a value; the others become None."""

NOT_LEARNING = {
    "seed": None,
    "n_envs": 1,
    "n_steps": 1,
    "buffer_size": 1,
    "optimize_memory_usage": False,
    "replay_buffer_class": None,
    "replay_buffer_kwargs": {},
    "rollout_buffer_class": None,
    "rollout_buffer_kwargs": {},
    "tensorboard_log": None,
    "verbose": 0,
}
"""Settings without effect on playing, so that loading neither allocates replay memory, nor needs an
env, nor seeds the global generators."""


def load(
    path: Path,
    env: gymnasium.Env,
    *,
    trust: bool = False,
    normalize: str | Path | None = None,
    algo: str | None = None,
) -> Model:
    """The model in a .zip file, which plays `env` exactly as `model.predict(deterministic=True)`.

    All algorithms of both libraries are supported. The value of an observation comes from the
    critic and is

    - V(s) for A2C, PPO, TRPO, MaskablePPO and RecurrentPPO;
    - Q1(s, act(s)) for TD3, DDPG, SAC and CrossQ;
    - for TQC, the mean of those quantiles of all critics at (s, act(s)) that its target keeps: all
      but the `top_quantiles_to_drop_per_net` highest per critic, of the pooled and sorted ones;
    - max over a of Q(s, a) for DQN, and of the mean of the quantiles for QRDQN;
    - NaN for ARS, which learns no critic.

    SAC's, TQC's and CrossQ's critics also count future entropy bonuses.

    A model trained under VecNormalize sees observations normalised with its statistics, which stay
    as they are. If rewards were normalised too (norm_reward=True), the critic learnt returns of
    normalised rewards; values are multiplied by sqrt(ret_rms.var + epsilon), by which VecNormalize
    had divided the rewards, and so are in units of the env's rewards.

    RecurrentPPO's memory follows `env`: it is empty after a reset, and a step of `env` makes it
    include the last observation that was acted on. Calls of `act` and `value` between two steps
    all start from the same memory. For this a wrapper is inserted into `env`.

    MaskablePPO's actions obey `env.action_masks()` at the time of the call, if the env has it.

    Args:
        path: written by the libraries' `save`.
        env: the env to play, with the wrappers of its training but without VecNormalize.
        trust: whether to load the file, which runs code in it.
        normalize: file of VecNormalize's statistics. None: the one beside the model, unless the
            model says that it was trained without. "none": play without.
        algo: the algorithm's name, if it is not recognised by its saved settings.

    Raises:
        ConfigError: the file is not trusted or does not load, the libraries are not installed,
            statistics are missing or ambiguous, or the model's spaces are not those of `env`.
    """
    if not trust:
        raise ConfigError(
            f"{path} is a file of Stable-Baselines3: loading it, or a VecNormalize's .pkl, runs "
            "any Python code that its author put into it; if you trust them, add trust=true (in "
            "Python: trust=True)."
        )
    try:
        import sb3_contrib
        import stable_baselines3
        from stable_baselines3.common.vec_env import VecNormalize
    except ImportError:
        raise ConfigError(
            f"{path} is a file of Stable-Baselines3, which loads it and has to be installed: "
            "pip install 'rlearly[sb3]'."
        ) from None
    libraries = {"Stable-Baselines3": stable_baselines3, "sb3-contrib": sb3_contrib}
    settings = _settings(path)
    needed = {key: _stored(path, key, settings[key]) for key in NEEDED if key in settings}
    name = _algorithm(path, settings, needed.get("policy_class"), algo)
    library = next(title for title, module in libraries.items() if hasattr(module, name))
    unused = {
        key: UNUSED.get(key)
        for key, value in settings.items()
        if key not in NEEDED and isinstance(value, dict) and ":serialized:" in value
    }
    try:
        model = getattr(libraries[library], name).load(
            path, device="cpu", custom_objects=unused | needed, **NOT_LEARNING
        )
    except Exception as error:
        raise ConfigError(
            f"{path} does not load as a model of {name}: {_first_line(error)}. If it is one of "
            f"another algorithm, add algo=NAME, one of {', '.join(ALGORITHMS)}."
        ) from None
    file, notes = _statistics(path, settings, env, normalize)
    normalizer = None
    if file is not None:
        normalizer = _unpickled(file, "VecNormalize", file.read_bytes())
        if not isinstance(normalizer, VecNormalize):
            raise ConfigError(
                f"normalize: expected {file} to hold a VecNormalize, received "
                f"{type(normalizer).__name__}; normalize=none goes on without."
            )
        notes += _what_is_normalised(file, normalizer)
        normalizer.training = False
    _check_spaces(path, model, env, normalizer)
    player = _Player(model, name, env, normalizer)
    has_critic = player.critic is not None
    if not has_critic:
        notes.append(f"{name} learns no critic: the values are NaN (unknown).")
    if player.masked and player.masks is None:
        notes.append("The env has no action_masks(): invalid actions are not excluded.")
    return Model(library, name, player.act, player.value, has_critic, tuple(notes))


# --- what a file holds ---


class _Unpickler(pickle.Unpickler):
    """Reads spaces of gym, which older files hold, as gymnasium's, which have the same state."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "gym":
            module = "gymnasium" + module.removeprefix("gym")
        return super().find_class(module, name)


def _unpickled(path: Path, what: str, stored: bytes) -> Any:
    try:
        return _Unpickler(io.BytesIO(stored)).load()
    except Exception as error:
        raise ConfigError(
            f"{path}: its {what} does not load here: {_first_line(error)}; it needs the code and "
            "the versions that it was saved with."
        ) from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.:')}" if lines else type(error).__name__


def _settings(path: Path) -> dict[str, Any]:
    """The saved settings, with pickled ones as {":serialized:": base64, ...}; runs no code."""
    try:
        with zipfile.ZipFile(path) as archive:
            settings = json.loads(archive.read("data"))
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"{path} is no complete file of Stable-Baselines3: {_first_line(error)}."
        ) from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} is no complete file of Stable-Baselines3: it has no settings.")
    return settings


def _stored(path: Path, key: str, value: Any) -> Any:
    if isinstance(value, dict) and ":serialized:" in value:
        return _unpickled(path, key, base64.b64decode(value[":serialized:"]))
    return value


def _algorithm(path: Path, settings: Mapping[str, Any], policy: Any, algo: str | None) -> str:
    """The algorithm that wrote `settings`, recognised by those that only it has."""
    if algo is not None:
        found = next((name for name in ALGORITHMS if name.lower() == algo.lower()), None)
        if found is None:
            raise ConfigError(f"algo: expected one of {', '.join(ALGORITHMS)}, received {algo}.")
        return found
    if "n_delta" in settings:
        return "ARS"
    if "top_quantiles_to_drop_per_net" in settings:
        return "TQC"
    if "exploration_fraction" in settings:
        return "QRDQN" if "n_quantiles" in settings else "DQN"
    if "target_policy_noise" in settings:
        one_critic = settings.get("policy_kwargs", {}).get("n_critics") == 1
        return "DDPG" if one_critic and settings.get("policy_delay") == 1 else "TD3"
    if "target_entropy" in settings:
        return "CrossQ" if "policy_delay" in settings else "SAC"
    if "cg_max_steps" in settings:
        return "TRPO"
    if "clip_range" in settings:
        if _has_parent(policy, RECURRENT):
            return "RecurrentPPO"
        return "MaskablePPO" if _has_parent(policy, MASKABLE) else "PPO"
    if "gae_lambda" in settings:
        return "A2C"
    raise ConfigError(
        f"{path} does not say which algorithm it holds: add algo=NAME, one of "
        f"{', '.join(ALGORITHMS)}."
    )


def _has_parent(kind: Any, name: str) -> bool:
    return name in (parent.__name__ for parent in getattr(kind, "__mro__", ()))


# --- VecNormalize ---


def _statistics(
    path: Path, settings: Mapping[str, Any], env: gymnasium.Env, normalize: str | Path | None
) -> tuple[Path | None, list[str]]:
    """(file of the statistics to use, notes)."""
    if normalize is not None and str(normalize) != "none":
        file = Path(normalize)
        if not file.is_file():
            raise ConfigError(f"normalize: there is no file {file}.")
        return file, []
    trained = _trained_under_vecnormalize(path, settings)
    if normalize is not None:
        told = " although the model was trained under VecNormalize" if trained else ""
        return None, [f"Observations are not normalised{told}, as normalize=none says."]
    found = _beside(path, env)
    listed = " and ".join(str(file) for file in found)
    if trained is False:
        return None, [f"{listed} is not used: the model was trained without."] if found else []
    if len(found) > 1:
        raise ConfigError(f"normalize: found {listed}; choose one with normalize=FILE.")
    if found:
        return found[0], []
    if trained:
        raise ConfigError(
            f"{path} was trained under VecNormalize, and none of its usual files "
            f"({', '.join(STATISTICS)}) lies beside it: name its statistics with normalize=FILE, "
            "or add normalize=none to play without, which is another policy."
        )
    if trained is None and "buffer_size" in settings:
        return None, ["Observations are not normalised; the file does not say if they have to be."]
    return None, []


def _trained_under_vecnormalize(path: Path, settings: Mapping[str, Any]) -> bool | None:
    """Whether a model was trained under VecNormalize; None: its file does not say.

    On-policy algorithms save `_last_original_obs` only under VecNormalize: what `_last_obs` was
    before. Off-policy ones always do; without VecNormalize it is the observation before that.
    There, normalised ones are told by their type (always float32) and by values out of the env's
    bounds.
    """
    if "_last_original_obs" not in settings or not settings.get("num_timesteps"):
        return None
    if "buffer_size" not in settings:
        return settings["_last_original_obs"] is not None
    keys = ("_last_obs", "_last_original_obs", "observation_space")
    try:
        last, original, space = (_stored(path, key, settings.get(key)) for key in keys)
    except ConfigError:
        return None
    if last is None or original is None:
        return None
    parts = [(last, original, space)]
    if isinstance(space, spaces.Dict):
        parts = [(last[key], original[key], space[key]) for key in space]
    answer = None
    for seen, before, part in parts:
        if seen.dtype != before.dtype:
            return True
        if isinstance(part, spaces.Box) and np.shape(seen)[1:] == part.shape:
            inside = [bool(np.all((x >= part.low) & (x <= part.high))) for x in (seen, before)]
            if inside == [False, True]:
                return True
        if seen.dtype != np.float32 and not np.array_equal(seen, before):
            answer = False
    return answer


def _beside(path: Path, env: gymnasium.Env) -> list[Path]:
    """Files of statistics that belong to a model by their names.

    `NAME_vecnormalize_N_steps.pkl` for a checkpoint `NAME_N_steps.zip`; otherwise `STATISTICS` in
    the model's folder, and in its folder that has the name of the env or of the model. (The Zoo
    keeps ENV_1/ENV.zip, ENV_1/best_model.zip and ENV_1/ENV/vecnormalize.pkl.)
    """
    folder = path.parent
    if checkpoint := re.fullmatch(r"(.+)_(\d+)_steps", path.stem):
        own = folder / "{}_vecnormalize_{}_steps.pkl".format(*checkpoint.groups())
        if own.is_file():
            return [own]
    env_name = id_of(env.unwrapped).replace("/", "-")
    names = ["", path.stem, env_name, re.sub(r"_\d+$", "", folder.absolute().name)]
    files = [folder / name / file for name in dict.fromkeys(names) for file in STATISTICS]
    return [file for file in files if file.is_file()]


def _what_is_normalised(file: Path, normalizer: Any) -> list[str]:
    notes = [
        f"Observations are {'normalised by' if normalizer.norm_obs else 'left as they are by'} "
        f"{file}."
    ]
    if normalizer.norm_reward:
        scale = float(np.sqrt(normalizer.ret_rms.var + normalizer.epsilon))
        notes.append(
            f"The critic learnt normalised rewards: values are multiplied by {scale:.4g}, the "
            "standard deviation of returns in that file."
        )
    elif not normalizer.training:
        notes.append(
            "That file was saved for evaluation and does not say whether rewards were normalised: "
            "if they were, values are in units of normalised rewards."
        )
    return notes


# --- spaces ---


def _check_spaces(path: Path, model: Any, env: gymnasium.Env, normalizer: Any) -> None:
    parts = _parts(env.observation_space)
    if normalizer is not None and normalizer.norm_obs:
        _check_statistics(normalizer, env)
        for key in _statistics_by_key(normalizer):
            parts[key] = _normalised(parts[key], normalizer)
    learnt = _parts(model.observation_space)
    fits = set(learnt) == set(parts) and all(
        _same_space(learnt[key], part) or _same_space(learnt[key], _channels_first(part))
        for key, part in parts.items()
    )
    if not fits or not _same_space(model.action_space, env.action_space):
        raise ConfigError(
            f"{path} was trained with observations of {_line(model.observation_space)} and actions "
            f"of {_line(model.action_space)}, but {id_of(env.unwrapped)} has "
            f"{_line(env.observation_space)} and {_line(env.action_space)}: name the env and the "
            "kwargs that it was trained with, or wrap the env in Python and use rlearly.record."
        )


def _line(space: spaces.Space) -> str:
    return " ".join(str(space).split())


def _parts(space: spaces.Space) -> dict[str | None, spaces.Space]:
    return {**space.spaces} if isinstance(space, spaces.Dict) else {None: space}


def _statistics_by_key(normalizer: Any) -> dict[str | None, Any]:
    statistics = normalizer.obs_rms
    return statistics if isinstance(statistics, dict) else {None: statistics}


def _check_statistics(normalizer: Any, env: gymnasium.Env) -> None:
    parts = _parts(env.observation_space)
    for key, rms in _statistics_by_key(normalizer).items():
        if key not in parts or parts[key].shape != np.shape(rms.mean):
            of = "" if key is None else f" of {key!r}"
            raise ConfigError(
                f"normalize: the statistics{of} have the shape {np.shape(rms.mean)}, but "
                f"{id_of(env.unwrapped)} has observations of {_line(env.observation_space)}: "
                "expected those of this model, or normalize=none."
            )


def _normalised(space: Any, normalizer: Any) -> spaces.Space:
    """The space that VecNormalize announces; only an image's changes."""
    from stable_baselines3.common.preprocessing import is_image_space

    if not is_image_space(space):
        return space
    return spaces.Box(-normalizer.clip_obs, normalizer.clip_obs, space.shape, np.float32)


def _channels_first(space: Any) -> spaces.Space:
    """The space of an image as models see it; others stay."""
    from stable_baselines3.common.preprocessing import (
        is_image_space,
        is_image_space_channels_first,
    )
    from stable_baselines3.common.vec_env import VecTransposeImage

    if not is_image_space(space) or is_image_space_channels_first(space):
        return space
    return VecTransposeImage.transpose_space(space)


def _same_space(one: Any, two: Any) -> bool:
    """Equal, where bounds above 1e38 count as infinite: gymnasium has changed some of them."""
    if not isinstance(one, spaces.Box) or not isinstance(two, spaces.Box):
        return one == two
    if (one.shape, one.dtype) != (two.shape, two.dtype):
        return False
    low, other_low, high, other_high = (
        np.clip(bound.astype(np.float64), -1e38, 1e38)
        for bound in (one.low, two.low, one.high, two.high)
    )
    return np.allclose(low, other_low, rtol=1e-6) and np.allclose(high, other_high, rtol=1e-6)


# --- playing ---


class _Player:
    """Plays a loaded model in an env as the libraries' `evaluate_policy` does."""

    def __init__(self, model: Any, algorithm: str, env: gymnasium.Env, normalizer: Any):
        self.model, self.env, self.normalizer = model, env, normalizer
        self.critic = ALGORITHMS[algorithm]
        self.masked = _has_parent(type(model.policy), MASKABLE)
        self.masks = _masks(env) if self.masked else None
        recurrent = _has_parent(type(model.policy), RECURRENT)
        self.memory = _Memory(model.policy, env) if recurrent else None
        model.policy.set_training_mode(False)

    def act(self, obs: Any) -> Any:
        more = {} if self.masks is None else {"action_masks": self.masks()}
        if self.memory is not None:
            more["state"] = self.memory.for_actor()
            self.memory.include(self._tensor(obs))
        action, _ = self.model.predict(self._seen(obs), deterministic=True, **more)
        return action[()]  # an array without dimensions becomes a number, as in a vector env

    @torch.no_grad()
    def value(self, obs: Any) -> float:
        if self.critic is None:
            return np.nan
        more = {} if self.memory is None else self.memory.for_critic()
        value = self.critic(self.model, self._tensor(obs), **more).item()
        if self.normalizer is None:
            return value
        return float(self.normalizer.unnormalize_reward(np.float64(value)))

    def _seen(self, obs: Any) -> Any:
        """The observation as a vector env hands it to the model."""
        space = self.env.observation_space
        if isinstance(space, spaces.Dict):
            obs = {key: np.asarray(obs[key], part.dtype) for key, part in space.items()}
        else:
            obs = np.asarray(obs, space.dtype)
        return obs if self.normalizer is None else self.normalizer.normalize_obs(obs)

    def _tensor(self, obs: Any) -> Any:
        return self.model.policy.obs_to_tensor(self._seen(obs))[0]


def _masks(env: gymnasium.Env) -> Callable[[], Any] | None:
    """The env's masks of valid actions, if it has them."""
    from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported

    return functools.partial(get_action_masks, env) if is_masking_supported(env) else None


class _EpisodeClock(InnermostWrapper):
    """Counts an env's resets, and the steps since the last one."""

    now = (0, 0)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.now = (self.now[0] + 1, 0)
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> Any:
        self.now = (self.now[0], self.now[1] + 1)
        return self.env.step(action)


class _Memory:
    """The LSTM states of a recurrent policy, which follow the resets and steps of an env."""

    def __init__(self, policy: Any, env: gymnasium.Env):
        if not isinstance(env, gymnasium.Wrapper):
            raise ConfigError(
                "RecurrentPPO has a memory, which follows the env's resets and steps: expected an "
                f"env with a wrapper, as gymnasium.make returns, received {env}."
            )
        self.policy = policy
        self.clock = innermost(env, _EpisodeClock)[1]
        self.time = self.clock.now
        self.states = self.after = self._empty()

    def for_actor(self) -> tuple[np.ndarray, ...]:
        return tuple(part.numpy() for part in self._now().pi)

    def for_critic(self) -> dict[str, Any]:
        return {"lstm_states": self._now().vf, "episode_starts": torch.zeros(1)}

    @torch.no_grad()
    def include(self, obs: Any) -> None:
        """Make the memory include this observation after the env's next step."""
        outputs = self.policy.forward(obs, self._now(), torch.zeros(1), deterministic=True)
        self.after = outputs[-1]

    def _now(self) -> Any:
        if self.clock.now != self.time:
            goes_on = self.clock.now[0] == self.time[0]
            self.states = self.after if goes_on else self._empty()
            self.time = self.clock.now
        return self.states

    def _empty(self) -> Any:
        from sb3_contrib.common.recurrent.type_aliases import RNNStates

        zeros = torch.zeros(self.policy.lstm_hidden_state_shape)
        return RNNStates(pi=(zeros, zeros), vf=(zeros, zeros))


def _state_value(model: Any, obs: Any, **memory: Any) -> Tensor:
    return model.policy.predict_values(obs, **memory)


def _first_q(model: Any, obs: Any) -> Tensor:
    return model.policy.critic(obs, model.policy(obs, deterministic=True))[0]


def _kept_quantiles(model: Any, obs: Any) -> Tensor:
    quantiles = model.policy.critic(obs, model.policy(obs, deterministic=True))  # [1, critics, n]
    dropped = model.top_quantiles_to_drop_per_net * quantiles.shape[1]
    return quantiles.flatten().sort().values[: quantiles.numel() - dropped].mean()


def _greedy_q(model: Any, obs: Any) -> Tensor:
    return model.policy.q_net(obs).max()


def _greedy_quantiles(model: Any, obs: Any) -> Tensor:
    return model.policy.quantile_net(obs).mean(dim=1).max()  # of [1, quantiles, actions]


ALGORITHMS: dict[str, Callable[..., Tensor] | None] = {
    "A2C": _state_value,
    "ARS": None,
    "CrossQ": _first_q,
    "DDPG": _first_q,
    "DQN": _greedy_q,
    "MaskablePPO": _state_value,
    "PPO": _state_value,
    "QRDQN": _greedy_quantiles,
    "RecurrentPPO": _state_value,
    "SAC": _first_q,
    "TD3": _first_q,
    "TQC": _kept_quantiles,
    "TRPO": _state_value,
}
"""Algorithm -> its value of one observation; None: it has no critic."""
