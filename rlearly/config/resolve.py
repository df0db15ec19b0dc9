"""Resolve command-line overrides, or a saved run, into one checked RunConfig."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlearly import envs
from rlearly.agents import agent_spec, agents_for
from rlearly.config import presets
from rlearly.config.interventions import INTERVENTIONS
from rlearly.config.metric_names import METRICS, check_metric
from rlearly.config.overrides import (
    format_override,
    parse_text,
    parse_value,
    python_command,
    split_overrides,
)
from rlearly.config.plugins import is_plugin
from rlearly.config.schema import JumpStartConfig, RunConfig
from rlearly.config.structured import (
    as_dataclass,
    as_dict,
    as_dictconfig,
    did_you_mean,
    read_yaml,
    set_keys,
)
from rlearly.core.errors import ConfigError
from rlearly.envs.gl_backend import chosen_on_import
from rlearly.envs.snapshots import own_rule

DEFAULT_AGENT = "drm"
RETURN = "eval/episode_return"

SET_BY_OTHER_KEYS = {
    "agent_name": "agent=NAME",
    "env.name": "env=NAME",
    "env.family": "env=NAME",
    "snapshot_sha256": "snapshot=FILE",
    "start_from.checkpoint": "start_from=RUN@FRAMES",
    "start_from.sha256": "start_from=RUN",
    "jump_start.sha256": "jump_start.run=RUN_DIR or jump_start.model=FILE",
}

OFF_POLICY_KEYS = ("replay_ratio", "adaptive_ratio", "replay.", "seed_frames")
"""Prefixes of keys that have no effect on an on-policy agent."""

PIXEL_INTERVENTIONS = ("augmentation", "freeze_encoder")

LINEAR_INTERVENTIONS = ("reset", "injection", "spectral_norm")
"""Interventions on stacks of linear layers: they cannot act on the encoder."""

RESUMABLE = (
    "train_frames", "eval_every_frames", "eval_episodes", "overlap", "video_size",
    "log_every_frames", "checkpoint_every_frames", "keep_checkpoints", "keep_best", "stop_when",
    "device", "threads", "snapshot", "wandb.mode", "wandb.group", "replay.compression",
    "replay.storage", "replay.folder", "replay.device", "replay.prefetch", "jump_start.run",
    "jump_start.model",
)  # fmt: skip
"""Keys that may change when a run is resumed."""


def compose(overrides: Sequence[str]) -> RunConfig:
    """The config of a new run.

    Precedence: defaults < agent < env < tuned (agent, env) pair < preset < overrides.

    Raises:
        ConfigError: an unknown name or key, a wrong type, a value out of bounds, or settings that
            contradict each other.
    """
    overrides = [_of_its_group(override) for override in overrides]
    pairs = split_overrides(overrides)
    keys = {key for key, _ in pairs}
    asked = dict(pairs)
    agent = _known_agent(parse_text(asked.get("agent", DEFAULT_AGENT)))
    env = parse_text(asked.get("env", ""))
    if not env:
        raise ConfigError("env: expected the name of an env, as in env=dog_run (see --help).")

    config = _defaults(agent, envs.config_for(env))
    asks_for_pixels = parse_text(asked.get("obs", "")) == "pixels" or (
        parse_value("env.pixels", asked.get("env.pixels", "null"), "bool | None") in (True,)
    )
    continuous = "continuous" in agent_spec(agent).actions
    if config.env.family == "gymnasium" and asks_for_pixels and continuous:
        config.env.action_repeat = 2  # DrQ-v2's value for pixels
    set_keys(config, agent_spec(agent).run_defaults)
    set_keys(config, presets.tuned(agent, env))
    if parse_text(asked.get("preset", "")) == "cpu":
        set_keys(config, presets.cpu(agent, env))
    _check_keys(keys, agent)
    set_keys(config, [word for word in overrides if not word.startswith(("agent=", "env="))])

    resolved = as_dataclass(config)
    resolved = _resolve_pixels(resolved)
    resolved = _resolve_start(resolved, keys)
    resolved = replace(resolved, seed_frames=seed_frames(resolved))
    resolved = _resolve_normalize(_resolve_interventions(resolved))
    resolved = _resolve_evaluated(resolved)
    for check in CHECKS:
        check(resolved, keys)
    return _resolve_jump_start(_resolve_snapshot(resolved))


def load(run: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The config of an existing run, with overrides of keys that may change on resuming.

    Raises:
        ConfigError: the path is not a run, its config does not load, or a key may not change.
    """
    file = run / "config.yaml"
    if not file.is_file():
        raise no_run(run, file.name)
    try:
        saved = read_yaml(file)
        env = as_dictconfig(envs.config_for(saved["env"]["name"]))
        merged_env: Any = OmegaConf.merge(env, saved["env"])
        config: Any = _defaults(_known_agent(saved["agent_name"]), as_dataclass(merged_env))
        others = OmegaConf.masked_copy(saved, [key for key in saved if key != "env"])
        config = OmegaConf.merge(config, others)
    except (OmegaConfBaseException, YAMLError, UnicodeError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{file} does not load as a run's config ({reason}).") from None
    for key, _ in split_overrides(overrides):
        if key not in RESUMABLE:
            raise ConfigError(
                f"{key}: cannot change when a run is resumed; keys that can: "
                f"{', '.join(RESUMABLE)}."
            )
    set_keys(config, overrides)
    loaded = _resolve_evaluated(as_dataclass(config))
    if loaded.snapshot is not None:
        loaded = replace(loaded, snapshot=_absolute(loaded.snapshot))
    return replace(loaded, jump_start=_with_absolute_paths(loaded.jump_start))


def no_run(run: Path, file: str) -> ConfigError:
    """The error for a path without this file of a run; it names the newest runs near the path."""
    problem, near = f"is not a run directory (it has no {file})", run
    if not run.exists():
        problem = "does not exist"
        near = next(parent for parent in (*run.parents, Path()) if parent.is_dir())
        near = near if near.parts else Path("runs")
    hint = "a run directory looks like runs/drm/dog_run/0-<time>"
    if inside := _newest_runs_inside(near):
        hint = f"runs inside {'it' if near is run else near}, newest first: {', '.join(inside)}"
    return ConfigError(f"{run} {problem}; {hint}.")


def with_time_limit(config: RunConfig, max_episode_steps: int | None) -> RunConfig:
    """The config of a run with this env.max_episode_steps; None: keep the run's own.

    Raises:
        ConfigError: its env takes none.
    """
    if max_episode_steps is None:
        return config
    kwargs = {k: v for k, v in config.env.kwargs.items() if k != "max_episode_steps"}
    env = replace(config.env, kwargs=kwargs, max_episode_steps=max_episode_steps)
    limited = replace(config, env=env)
    _check_env(limited, set())
    return limited


def fixed_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that identify a run, by dotted key: all that may not change on resuming."""
    return {
        key: value
        for key, value in _flatten(as_dict(config))
        if key not in ("run_dir", "resume", *RESUMABLE) and not key.startswith("wandb.")
    }


def seed_frames(config: RunConfig) -> int:
    """Frames before the first update: the agent's own number unless the config sets one."""
    if config.seed_frames is not None:
        return config.seed_frames
    return config.agent.seed_frames(config.env.action_repeat)


def sha256(path: Path) -> str:
    """The SHA-256 of a snapshot file, in hexadecimal.

    Raises:
        ConfigError: there is no such file.
    """
    if not path.is_file():
        command = python_command("rlearly.teacher", "run=RUN_DIR", format_override("out", path))
        raise ConfigError(f"snapshot: there is no file {path}; {command} makes one.")
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _known_agent(name: str) -> str:
    with _importing(name):
        agent_spec(name)  # raises if there is none
    return name


def _importing(*names: Any) -> contextlib.AbstractContextManager[None]:
    """A context in which a plug-in among these may be imported, which may import a simulator."""
    return chosen_on_import(warn=False) if any(map(is_plugin, names)) else contextlib.nullcontext()


def _defaults(agent: str, env: Any) -> DictConfig:
    return as_dictconfig(
        RunConfig(agent=agent_spec(agent).config_class(), env=env, agent_name=agent)
    )


def _newest_runs_inside(folder: Path, most: int = 3) -> list[str]:
    """The newest runs with checkpoints, up to three levels below a folder."""
    found = [
        checkpoints
        for depth in range(1, 4)
        for checkpoints in folder.glob("*/" * depth + "checkpoints")
        if (checkpoints.parent / "config.yaml").is_file()
    ]
    newest = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
    return [str(path.parent) for path in newest[:most]]


# --- values that depend on other values ---


def _resolve_pixels(config: RunConfig) -> RunConfig:
    """Set env.pixels from obs and the agent; None where only the env can tell."""
    takes_pixels = agent_spec(config.agent_name).observes_pixels
    pixels, obs = config.env.pixels, config.obs
    if not takes_pixels and (pixels or obs == "pixels"):
        raise ConfigError(
            f"agent={config.agent_name} learns only from states, but pixels were asked for; add "
            f"obs=state, or use {agents_for(images=True)}."
        )
    if obs != "auto":
        if pixels is not None and pixels != (obs == "pixels"):
            raise ConfigError(f"obs={obs} contradicts env.pixels={str(pixels).lower()}; keep one.")
        pixels = obs == "pixels"
    if pixels is None and config.env.family != "gymnasium":
        pixels = takes_pixels
    return replace(config, env=replace(config.env, pixels=pixels))


def _of_its_group(override: str) -> str:
    """`start_from=RUN` is written for `start_from.run=RUN`."""
    return re.sub("^start_from=", "start_from.run=", override)


def _resolve_start(config: RunConfig, keys: set[str]) -> RunConfig:
    """Pin the checkpoint that a run begins from, and set how it starts with it.

    With another run's networks none of the first steps are random, unless the user says so, and
    the first update stays where it was; with another run's replay too it comes at once.

    Raises:
        ConfigError: there is no such run or checkpoint, or it is of another agent.
    """
    if config.start_from.run is None:
        _refuse_without(keys, "start_from.", "start_from=RUN_DIR")
        return config
    from rlearly.training.continuing import start_from

    spec = agent_spec(config.agent_name)
    parts = start_from.checked_parts(config.start_from, on_policy=spec.on_policy)
    run, _ = start_from.split_run(config.start_from.run)
    _check_ancestor(config, load(run), run, parts)
    config = replace(config, start_from=start_from.pinned(config.start_from, parts))
    if config.seed_frames is None and "replay" in parts:
        config = replace(config, seed_frames=0)
    key = spec.random_start
    if key and "networks" in parts and f"agent.{key}" not in keys:
        config = replace(config, seed_frames=seed_frames(config))
        config = replace(config, agent=replace(config.agent, **{key: 0}))
    return config


def _check_ancestor(
    config: RunConfig, ancestor: RunConfig, run: Path, parts: tuple[str, ...]
) -> None:
    of_agent = [part for part in parts if part != "replay"]
    if of_agent and ancestor.agent_name != config.agent_name:
        raise ConfigError(
            f"start_from: {run} was trained with agent={ancestor.agent_name}, whose "
            f"{' and '.join(of_agent)} do not fit agent={config.agent_name}: use the same agent, "
            "or take over the replay alone with start_from.parts=[replay]."
        )
    if "replay" in parts and agent_spec(ancestor.agent_name).on_policy:
        raise ConfigError(
            f"start_from.parts: {run} was trained with agent={ancestor.agent_name}, which is on "
            "policy and has no replay; leave replay out."
        )
    if of_agent and _normalized(ancestor) != _normalized(config):
        raise ConfigError(
            f"start_from: {run} was trained with env.normalize={_normalized(ancestor)}, and this "
            f"run has env.normalize={_normalized(config)}: its networks know only what was scaled "
            "in the same way; set the same."
        )


def _normalized(config: RunConfig) -> str:
    names = (config.env.normalize or "none").strip("[]").split(",")
    return ",".join(sorted({name.strip() for name in names}))


def _resolve_interventions(config: RunConfig) -> RunConfig:
    """Make `intervention` a sorted list of known names."""
    asked = config.intervention
    names = asked if isinstance(asked, list) else [asked]
    names = [name for name in names if name not in (None, "none")]
    for name in names:
        if is_plugin(name):
            continue  # `_check_interventions` looks for it
        if not isinstance(name, str) or name not in INTERVENTIONS:
            raise ConfigError(
                f"There is no intervention {name!r}; {did_you_mean(str(name), INTERVENTIONS)}"
            )
    return replace(config, intervention=sorted(set(names)))


def _resolve_normalize(config: RunConfig) -> RunConfig:
    """Make env.normalize one of None, "obs", "reward" and "obs,reward"."""
    asked = config.env.normalize
    names = (
        [] if asked in (None, "none") else [name.strip() for name in asked.strip("[]").split(",")]
    )
    if set(names) - {"obs", "reward"}:
        raise ConfigError(
            f"env.normalize: expected obs, reward, obs,reward or none, received {asked!r}."
        )
    if names and agent_spec(config.agent_name).on_policy:
        raise ConfigError(
            f"env.normalize: agent={config.agent_name} already normalises observations and "
            "rewards by itself, as agent.normalize says; leave it out."
        )
    normalize = ",".join(sorted(set(names))) or None
    return replace(config, env=replace(config.env, normalize=normalize))


def _resolve_evaluated(config: RunConfig) -> RunConfig:
    """Make keep_best the name of a metric or None, and stop_when a tuple of rules or None.

    Raises:
        ConfigError: a metric does not exist, a rule does not parse, or the run has no evaluations.
    """
    from rlearly.training.continuing import stop_rules

    best = {"true": RETURN, "false": None, "none": None}.get(
        str(config.keep_best).lower(), config.keep_best
    )
    if best is not None:
        check_metric(best, "keep_best")
        if not best.startswith("eval/"):
            raise ConfigError(
                f"keep_best: expected true or a metric of evaluations, as in {RETURN}, received "
                f"{best!r}."
            )
    rules = [text for text in config.stop_when or () if text not in ("null", "none", "")]
    for rule in map(stop_rules.parse, rules):
        if not config.callback or rule.metric.partition("/")[0] in METRICS:  # else it may log it
            check_metric(rule.metric, "stop_when")
    if not config.eval_every_frames:
        for key, value in (("keep_best", best), ("stop_when", rules)):
            if value:
                raise ConfigError(
                    f"{key}: has no effect with eval_every_frames=0, as it is judged after each "
                    "evaluation; keep one of them."
                )
    return replace(config, keep_best=best, stop_when=tuple(rules) or None)


def _resolve_snapshot(config: RunConfig) -> RunConfig:
    """Make the snapshot path absolute and record the file's hash, for checking on resuming."""
    if config.snapshot is None:
        return config
    if not config.snapshot:
        raise ConfigError("snapshot: expected a file of snapshots, received ''.")
    path = _absolute(config.snapshot)
    return replace(config, snapshot=path, snapshot_sha256=sha256(Path(path)))


def _resolve_jump_start(config: RunConfig) -> RunConfig:
    """Make the teacher's path absolute, and record its hash and a run's checkpoint.

    Raises:
        ConfigError: it is no model file and not a run, or the run has no such checkpoint or was
            trained on another env.
    """
    paths = _with_absolute_paths(config.jump_start)
    if paths.model is not None:
        paths = replace(paths, sha256=model_sha256(Path(paths.model), paths.normalize))
    if paths.run is None:
        return replace(config, jump_start=paths)
    from rlearly.training import checkpoint

    run = Path(paths.run)
    teacher = load(run)
    not_observed = {"rules": None, "normalize": None, "max_episode_steps": None}
    ours, theirs = ({**vars(one.env), **not_observed} for one in (config, teacher))
    for name, value in ours.items():
        if theirs[name] != value:
            raise ConfigError(
                f"jump_start.run: the teacher {run} was trained with env.{name}={theirs[name]}, "
                f"and this run has env.{name}={value}: it can only play the env that it observes "
                "as in its own run."
            )
    checkpoints, frames = run / "checkpoints", config.jump_start.checkpoint
    if not checkpoint.list_checkpoints(checkpoints):
        raise ConfigError(f"jump_start.run: {run} has not saved a checkpoint yet.")
    if frames is None:
        frames, digest = checkpoint.newest_digest(checkpoints)
    else:
        digest = checkpoint.digest(checkpoints, frames)
    return replace(config, jump_start=replace(paths, checkpoint=frames, sha256=digest))


def model_sha256(path: Path, normalize: str | None) -> str:
    """The SHA-256 of a teacher's model file and of the statistics of VecNormalize around it.

    Raises:
        ConfigError: there is no such file.
    """
    if not path.is_file():
        raise ConfigError(f"jump_start.model: there is no file {path}.")
    around = [*path.parent.glob("*vec*normalize*.pkl"), *path.parent.glob("*/*vec*normalize*.pkl")]
    files = [path, *sorted(around)]
    if normalize not in (None, "none") and Path(str(normalize)).is_file():
        files.append(Path(str(normalize)))
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _with_absolute_paths(teacher: JumpStartConfig) -> JumpStartConfig:
    keys = ("run", "model", "normalize")
    given = {key: getattr(teacher, key) for key in keys if getattr(teacher, key) is not None}
    return replace(
        teacher, **{key: path if path == "none" else _absolute(path) for key, path in given.items()}
    )


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


# --- checks ---


def _check_keys(keys: set[str], agent: str) -> None:
    for key in sorted(keys):
        if key.startswith(OFF_POLICY_KEYS) and agent_spec(agent).on_policy:
            raise ConfigError(
                f"{key}: agent={agent} is on policy: it has no replay buffer and learns once from "
                "each rollout of agent.rollout_steps steps; leave it out."
            )
        if key in SET_BY_OTHER_KEYS:
            raise ConfigError(f"{key}: is set by {SET_BY_OTHER_KEYS[key]}; leave it out.")


def _check_env(config: RunConfig, keys: set[str]) -> None:
    env = config.env
    takes_both = env.family in ("gymnasium", "adroit", "atari")
    if env.kwargs and not takes_both:
        raise ConfigError(
            f"env.kwargs: is passed to gymnasium.make, but env={env.name} is a {env.family} task, "
            f"which takes none; received {env.kwargs}: leave it out."
        )
    if env.max_episode_steps is not None and not takes_both:
        raise ConfigError(
            f"env.max_episode_steps: is passed to gymnasium.make, but env={env.name} is a "
            f"{env.family} task, whose episodes have a fixed limit: leave it out."
        )
    if env.max_episode_steps is not None and "max_episode_steps" in env.kwargs:
        raise ConfigError(
            "env.kwargs.max_episode_steps: env.max_episode_steps is set too; keep only that one."
        )
    rules = {"adroit": ("paper", "package"), "atari": ("paper", "sticky")}
    if env.rules not in rules.get(env.family, ("paper",)):
        if env.family not in rules:
            raise ConfigError(
                "env.rules: applies only to Adroit's tasks and Atari games, and env="
                f"{env.name} is neither; leave it out."
            )
        raise ConfigError(
            f"env.rules: expected {' or '.join(rules[env.family])} for env={env.name}, received "
            f"{env.rules!r}."
        )


def _check_replay(config: RunConfig, keys: set[str]) -> None:
    if agent_spec(config.agent_name).on_policy:
        return
    from rlearly.replay import storage
    from rlearly.replay.annealing import annealing_for

    storage.check(config.replay)
    annealing = annealing_for(config.agent)
    nstep = annealing.max_nstep if annealing else config.agent.nstep
    source = f"the {nstep} of agent.nstep_schedule" if annealing else "agent.nstep"
    least = nstep + config.env.frame_stack + 1
    if config.replay.capacity // config.num_envs < least:
        per_env = f" for each of {config.num_envs} envs" if config.num_envs > 1 else ""
        raise ConfigError(
            f"replay.capacity: expected at least {source} + env.frame_stack + 1 = {least}"
            f"{per_env}, received {config.replay.capacity}."
        )


def _check_network(config: RunConfig, keys: set[str]) -> None:
    if not agent_spec(config.agent_name).takes_networks:
        return
    from rlearly.agents.network_factory import NetworkFactory

    with _importing(config.agent.network):
        NetworkFactory.of(config.agent)  # raises if it does not fit


def _check_snapshot_phase(config: RunConfig, keys: set[str]) -> None:
    phase = config.snapshot_phase
    if config.snapshot is None:
        _refuse_without(keys, "snapshot_phase.", "snapshot=FILE")
    if is_plugin(phase.selection):
        with _importing(phase.selection):
            own_rule.own_class(phase.selection, phase.selection_kwargs)
    elif phase.selection_kwargs:
        raise ConfigError(
            "snapshot_phase.selection_kwargs: has no effect without a rule of your own, "
            "snapshot_phase.selection=module:NAME; add it."
        )
    rule = "snapshot_phase.selection="
    if phase.selection not in ("forward_window", "reverse_window"):
        needed = f"{rule}forward_window or {rule}reverse_window"
        _refuse_without(keys, "snapshot_phase.window.", needed)
    if phase.selection != "reverse_forward":
        _refuse_without(keys, "snapshot_phase.reverse.", f"{rule}reverse_forward")
    if phase.clusters and phase.selection != "clusters":
        raise ConfigError(
            "snapshot_phase.clusters: has no effect with snapshot_phase.selection="
            f"{phase.selection}; keep one of them."
        )


def _check_jump_start(config: RunConfig, keys: set[str]) -> None:
    settings = config.jump_start
    if settings.run is None and settings.model is None:
        given = keys - {"jump_start.run", "jump_start.model"}
        _refuse_without(given, "jump_start.", "jump_start.run=RUN_DIR or jump_start.model=FILE")
        return
    if settings.run is not None and settings.model is not None:
        raise ConfigError("jump_start.model: cannot be combined with jump_start.run; keep one.")
    if settings.run is None:
        _refuse_without(keys, "jump_start.checkpoint", "jump_start.run=RUN_DIR")
    else:
        for name in ("trust", "normalize", "algo"):
            _refuse_without(keys, f"jump_start.{name}", "jump_start.model=FILE")
    if settings.model is not None and config.env.family != "gymnasium":
        raise ConfigError(
            f"jump_start.model: such models play gymnasium's envs, and env={config.env.name} is a "
            f"{config.env.family} task; use jump_start.run=RUN_DIR."
        )
    if config.snapshot is not None:
        raise ConfigError(
            "jump_start: cannot be combined with snapshot=FILE, which starts the same episodes at "
            "snapshots; keep one of them."
        )
    of_curriculum = {f"jump_start.{name}" for name in ("stages", "tolerance", "episodes")}
    if config.jump_start.schedule == "random" and keys & of_curriculum:
        raise ConfigError(
            f"{min(keys & of_curriculum)}: has no effect with jump_start.schedule=random; keep one "
            "of them."
        )


def _check_interventions(config: RunConfig, keys: set[str]) -> None:
    spec = agent_spec(config.agent_name)
    refused = dict(spec.refused_interventions)
    if config.env.pixels is False:
        reason = "it observes states here; obs=pixels changes that"
        refused |= dict.fromkeys(PIXEL_INTERVENTIONS, reason)
    with _importing(*config.intervention):
        settings = _settings_of_interventions(config)
    for name in config.intervention:
        if name in refused:
            accepted = ", ".join(other for other in INTERVENTIONS if other not in refused)
            raise ConfigError(
                f"intervention={name}: agent={config.agent_name} cannot use it ({refused[name]}); "
                f"it can use {accepted}."
            )
        networks = list(spec.networks)
        linear_only = name in LINEAR_INTERVENTIONS or (
            name == "shrink_perturb" and config.shrink_perturb.scope == "linear"
        )
        if "encoder" in networks and (linear_only or config.env.pixels is False):
            networks.remove("encoder")
        received = getattr(settings[name], "networks", None)
        if received is not None and (not received or set(received) - set(networks)):
            group = "intervention_kwargs" if is_plugin(name) else name
            raise ConfigError(
                f"{group}.networks: expected some of {', '.join(networks)}, the networks of agent="
                f"{config.agent_name} that {name} can change here, received "
                f"{', '.join(received) or 'none'}."
            )
    for name in INTERVENTIONS:
        if name not in config.intervention:
            _refuse_without(keys, f"{name}.", f"intervention={name}")
    if config.shrink_perturb.alpha is not None:
        ignored = sorted(keys & {"shrink_perturb.alpha_min", "shrink_perturb.alpha_max"})
        if ignored:
            raise ConfigError(f"{ignored[0]}: has no effect with shrink_perturb.alpha; keep one.")


def _settings_of_interventions(config: RunConfig) -> dict[str, Any]:
    """The settings of each intervention of a run, ours and the user's own, by name."""
    ours = {name: getattr(config, name) for name in config.intervention if not is_plugin(name)}
    if not config.intervention_kwargs and len(ours) == len(config.intervention):
        return ours
    from rlearly.plasticity.interventions.own import own_settings  # imports torch

    return ours | own_settings(config)


def _check_callback(config: RunConfig, keys: set[str]) -> None:
    if not config.callback:
        _refuse_without(keys, "callback_kwargs", "callback=MODULE:NAME")


def _check_replay_ratio(config: RunConfig, keys: set[str]) -> None:
    from rlearly.training.update_schedule import off_policy_schedule

    off_policy_schedule(config.replay_ratio, config.adaptive_ratio)
    if config.replay_ratio != "adaptive":
        _refuse_without(keys, "adaptive_ratio.", "replay_ratio=adaptive")
        return
    by_episodes = keys & {"adaptive_ratio.check_every_episodes", "adaptive_ratio.window"}
    if config.adaptive_ratio.check_every_steps and by_episodes:
        raise ConfigError(
            f"{min(by_episodes)}: has no effect with adaptive_ratio.check_every_steps, which "
            "checks the mean over the whole interval; keep one."
        )
    crelu_networks = config.crelu.networks
    if "crelu" in config.intervention and (crelu_networks is None or "critic" in crelu_networks):
        raise ConfigError(
            "replay_ratio=adaptive: decides by the fraction of active units in the critic, and "
            "half of CReLU's are active whatever it learns; leave one out, or add "
            "crelu.networks=[actor]."
        )


def _refuse_without(keys: set[str], prefix: str, needed: str) -> None:
    ignored = sorted(key for key in keys if key.startswith(prefix))
    if ignored:
        raise ConfigError(f"{ignored[0]}: has no effect without {needed}; add it.")


CHECKS = (
    _check_env,
    _check_replay,
    _check_network,
    _check_snapshot_phase,
    _check_jump_start,
    _check_interventions,
    _check_replay_ratio,
    _check_callback,
)
