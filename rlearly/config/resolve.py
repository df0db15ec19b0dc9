"""The only place where agents meet envs: overrides -> config -> parts -> a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlearly import envs
from rlearly.agents import AGENTS, agent_spec
from rlearly.config import presets
from rlearly.config.interventions import INTERVENTIONS
from rlearly.config.overrides import parse_overrides
from rlearly.config.schema import RunConfig
from rlearly.config.structured import as_dataclass, as_dictconfig, did_you_mean, set_key
from rlearly.core.errors import ConfigError

if TYPE_CHECKING:
    pass

DEFAULT_AGENT = "drm"
NAMED_ELSEWHERE = {
    "agent_name": "agent=NAME",
    "env.name": "env=NAME",
    "snapshot_sha256": "snapshot=FILE",
    "env.family": "env=NAME",
}
OFF_POLICY_ONLY = ("replay_ratio", "adaptive_ratio", "replay.", "seed_frames")
"""What says nothing to an agent that learns from each rollout once."""

OF_IMAGES = ("augmentation", "freeze_encoder")
"""Interventions that say nothing where states are observed."""

ON_HEADS = ("reset", "injection", "spectral_norm")
"""Interventions on stacks of linear layers, which an encoder has none of."""

RESUMABLE = (
    "train_frames",
    "eval_every_frames",
    "eval_episodes",
    "eval_workers",
    "overlap",
    "video_size",
    "log_every_frames",
    "checkpoint_every_frames",
    "keep_checkpoints",
    "device",
    "threads",
    "snapshot",
    "wandb.mode",
    "replay.compression",
    "replay.storage",
    "replay.folder",
    "replay.device",
    "replay.prefetch",
)
"""What may change when a run is resumed; everything else would make it another run."""


# --- overrides -> config ---


def compose(arguments: Sequence[str]) -> RunConfig:
    """The config that command-line words describe.

    Precedence: defaults < agent < env < tuned (agent, env) pair < preset < the words themselves.

    Raises:
        ConfigError: an unknown name or key, a wrong type, or a value out of bounds.
    """
    pairs = parse_overrides(arguments)
    chosen = {key: value for key, value in pairs if key in ("agent", "env", "preset")}
    agent = _agent_name(chosen.get("agent", DEFAULT_AGENT))
    env = chosen.get("env")
    if not isinstance(env, str) or not env:
        raise ConfigError("env: expected the name of an env, as in env=dog_run (see --help).")
    view = _editable(agent, envs.config_for(env))
    if view.env.family == "gymnasium" and {("obs", "pixels"), ("env.pixels", True)} & _hashable(
        pairs
    ):
        set_key(view, "env.action_repeat", 2)  # DrQ-v2's, for pixels
    base = [*agent_spec(agent).run_defaults, *presets.tuned(agent, env)]
    if chosen.get("preset") == "cpu":
        base += presets.cpu(agent)
    for key, value in parse_overrides(base):
        set_key(view, key, value)
    for key, value in pairs:
        if key.startswith(OFF_POLICY_ONLY) and agent_spec(agent).on_policy:
            raise ConfigError(
                f"{key}: agent={agent} is on policy: it keeps no replay and learns once from every "
                "agent.rollout_steps steps; leave it out."
            )
        if key in NAMED_ELSEWHERE:
            raise ConfigError(f"{key}: is set by {NAMED_ELSEWHERE[key]}, not by itself.")
        if key not in ("agent", "env"):
            set_key(view, key, value)
    config = _resolve_pixels(as_dataclass(view))
    config = replace(config, seed_frames=_seed_frames(config))
    _check_sizes(config)
    keys = {key for key, _ in pairs}
    config = _resolve_snapshot(config, keys)
    config = _resolve_interventions(config, keys)
    _check_ratio(config, keys)
    if config.env.kwargs and config.env.family not in ("gymnasium", "adroit"):
        maker = config.env.family
        raise ConfigError(
            f"env.kwargs: goes to gymnasium.make, and env={env} is a {maker} task, which takes "
            f"none; received {config.env.kwargs}: leave it out."
        )
    if config.env.rules != "paper" and config.env.family != "adroit":
        raise ConfigError(
            f"env.rules: is about Adroit's tasks, and env={env} is none of them; leave it out."
        )
    return config


def _agent_name(name: Any) -> str:
    if not isinstance(name, str) or name not in AGENTS:
        raise ConfigError(f"There is no agent {name!r}; {did_you_mean(str(name), AGENTS)}")
    return name


def _editable(agent: str, env: Any) -> DictConfig:
    return as_dictconfig(
        RunConfig(agent=agent_spec(agent).config_class(), env=env, agent_name=agent)
    )


def _hashable(pairs: Sequence[tuple[str, Any]]) -> set[tuple[str, Any]]:
    return {(key, value) for key, value in pairs if isinstance(value, str | int | float | bool)}


def _resolve_pixels(config: RunConfig) -> RunConfig:
    """Settle obs and env.pixels."""
    pixels, obs = config.env.pixels, config.obs
    if not agent_spec(config.agent_name).observes_pixels and (pixels or obs == "pixels"):
        raise ConfigError(
            f"agent={config.agent_name} learns from states only, and pixels were asked for: "
            "add obs=state, or take agent=drqv2 or agent=drm."
        )
    if obs != "auto":
        if pixels is not None and pixels != (obs == "pixels"):
            raise ConfigError(f"obs={obs} contradicts env.pixels={str(pixels).lower()}; keep one.")
        pixels = obs == "pixels"
    if pixels is None and config.env.family != "gymnasium":
        pixels = agent_spec(config.agent_name).observes_pixels
    return replace(config, env=replace(config.env, pixels=pixels))


def _resolve_snapshot(config: RunConfig, keys: set[str]) -> RunConfig:
    """Name the snapshots' file absolutely and by its contents, so that resuming finds the same."""
    if config.snapshot is None:
        lost = sorted(key for key in keys if key.startswith("snapshot_phase."))
        if lost:
            raise ConfigError(f"{lost[0]}: says nothing without snapshot=FILE; add it.")
        return config
    if config.snapshot_phase.clusters and config.snapshot_phase.selection != "clusters":
        raise ConfigError(
            "snapshot_phase.clusters: says nothing with snapshot_phase.selection="
            f"{config.snapshot_phase.selection}; keep one of them."
        )
    if not config.snapshot:
        raise ConfigError("snapshot: expected a file of snapshots, received ''.")
    path = Path(config.snapshot).expanduser().absolute()
    return replace(config, snapshot=str(path), snapshot_sha256=_sha256(path))


def _resolve_interventions(config: RunConfig, keys: set[str]) -> RunConfig:
    """Make `intervention` a list of known names, each of which the agent can take."""
    asked = config.intervention
    names = [name for name in asked if name != "none"] if isinstance(asked, list) else [asked]
    if asked in (None, "none"):
        names = []
    declared = agent_spec(config.agent_name)
    refuses = dict(declared.refused_interventions)
    if config.env.pixels is False:
        refuses |= dict.fromkeys(OF_IMAGES, "it observes states here; obs=pixels changes that")
    for name in names:
        if not isinstance(name, str) or name not in INTERVENTIONS:
            raise ConfigError(
                f"There is no intervention {name!r}; {did_you_mean(str(name), INTERVENTIONS)}"
            )
        if name in refuses:
            takes = ", ".join(other for other in INTERVENTIONS if other not in refuses)
            raise ConfigError(
                f"intervention={name}: agent={config.agent_name} cannot take it ({refuses[name]}); "
                f"it can take {takes}."
            )
        networks = list(declared.networks)
        heads_only = name in ON_HEADS or (
            name == "shrink_perturb" and config.shrink_perturb.scope == "linear"
        )
        if "encoder" in networks and (heads_only or config.env.pixels is False):
            networks.remove("encoder")
        wanted = getattr(getattr(config, name), "networks", None)
        if wanted is not None and (not wanted or set(wanted) - set(networks)):
            raise ConfigError(
                f"{name}.networks: expected some of {', '.join(networks)}, which is what it can "
                f"change of agent={config.agent_name} here, received {', '.join(wanted) or 'none'}."
            )
    for key in sorted(keys):
        name = key.partition(".")[0]
        if name in INTERVENTIONS and name not in names:
            raise ConfigError(f"{key}: says nothing without intervention={name}; add it.")
    if config.shrink_perturb.alpha is not None:
        lost = sorted(keys & {"shrink_perturb.alpha_min", "shrink_perturb.alpha_max"})
        if lost:
            raise ConfigError(f"{lost[0]}: says nothing beside shrink_perturb.alpha; keep one.")
    return replace(config, intervention=sorted(set(names)))


def _check_ratio(config: RunConfig, keys: set[str]) -> None:
    """Whether the replay ratio can be had, and nothing is said of one that is not asked for."""
    from rlearly.training.update_schedule import off_policy_schedule

    off_policy_schedule(config.replay_ratio, config.adaptive_ratio)
    lost = sorted(key for key in keys if key.startswith("adaptive_ratio."))
    if config.replay_ratio != "adaptive":
        if lost:
            raise ConfigError(f"{lost[0]}: says nothing without replay_ratio=adaptive; add it.")
        return
    by_episodes = keys & {"adaptive_ratio.check_every_episodes", "adaptive_ratio.window"}
    if config.adaptive_ratio.check_every_steps and by_episodes:
        raise ConfigError(
            f"{min(by_episodes)}: says nothing beside adaptive_ratio.check_every_steps, whose "
            "checks read the whole interval; keep one."
        )
    of_crelu = config.crelu.networks
    if "crelu" in config.intervention and (of_crelu is None or "critic" in of_crelu):
        raise ConfigError(
            "replay_ratio=adaptive: decides by the critic's active units, and half of CReLU's are "
            "active whatever it learns; leave one out, or add crelu.networks=[actor]."
        )


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(
            f"snapshot: there is no file {path}; python -m rlearly.teacher run=RUN_DIR "
            f"out={path} makes one."
        )
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _seed_frames(config: RunConfig) -> int:
    """Frames before the first update: the agent's own number where none was asked for."""
    if config.seed_frames is not None:
        return config.seed_frames
    return config.agent.seed_frames(config.env.action_repeat)


def _check_sizes(config: RunConfig) -> None:
    from rlearly.replay import storage

    if agent_spec(config.agent_name).on_policy:
        return
    from rlearly.replay.annealing import annealing_for

    storage.check(config.replay)
    annealing = annealing_for(config.agent)
    nstep = annealing.max_nstep if annealing else config.agent.nstep
    of = f"the {nstep} of agent.nstep_schedule" if annealing else "agent.nstep"
    least = nstep + config.env.frame_stack + 1
    if config.replay.capacity // config.num_envs < least:
        copies = f" for each of {config.num_envs} copies" if config.num_envs > 1 else ""
        raise ConfigError(
            f"replay.capacity: expected at least {of} + env.frame_stack + 1 = {least}"
            f"{copies}, received {config.replay.capacity}."
        )


def load(run: Path, arguments: Sequence[str] = ()) -> RunConfig:
    """The config of an existing run, with what may change on resuming changed.

    Raises:
        ConfigError: the path is no run, its config does not load, or a word may not change.
    """
    file = run / "config.yaml"
    if not file.is_file():
        what = (
            "is not a run directory (it has no config.yaml)" if run.exists() else "does not exist"
        )
        inside = _runs_inside(run)
        if inside:
            raise ConfigError(f"{run} {what}; runs inside it, newest first: {', '.join(inside)}.")
        raise ConfigError(f"{run} {what}; a run directory looks like runs/drm/dog_run/0-<time>.")
    try:
        saved: Any = OmegaConf.load(file)
        agent = saved["agent_name"]
        env = as_dictconfig(envs.config_for(saved["env"]["name"]))
        merged_env: Any = OmegaConf.merge(env, saved["env"])
        view: Any = _editable(_agent_name(agent), as_dataclass(merged_env))
        view = OmegaConf.merge(view, {k: v for k, v in saved.items() if k != "env"})
    except (OmegaConfBaseException, YAMLError, UnicodeError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{file} does not load as a run's config ({reason}).") from None
    for key, value in parse_overrides(arguments):
        if key not in RESUMABLE:
            raise ConfigError(
                f"{key}: cannot change when a run is resumed; these can: {', '.join(RESUMABLE)}."
            )
        set_key(view, key, value)
    config = as_dataclass(view)
    if config.snapshot is None:
        return config
    return replace(config, snapshot=str(Path(config.snapshot).expanduser().absolute()))


def _runs_inside(folder: Path, most: int = 3) -> list[str]:
    """The newest runs with checkpoints up to three levels below a folder."""
    found = [
        kept
        for depth in range(1, 4)
        for kept in folder.glob("*/" * depth + "checkpoints")
        if (kept.parent / "config.yaml").is_file()
    ]
    newest = sorted(found, key=lambda kept: kept.stat().st_mtime, reverse=True)
    return [str(kept.parent) for kept in newest[:most]]


def fixed_settings(config: RunConfig) -> dict[str, Any]:
    """What makes a run this run and no other, by dotted key: all that may not change later."""
    tree: Any = OmegaConf.to_container(OmegaConf.structured(config))
    own = ("run_dir", "resume")
    return dict(_flat({key: value for key, value in tree.items() if key not in own}, ""))


def _flat(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        elif name not in RESUMABLE and not name.startswith("wandb."):
            yield name, value
