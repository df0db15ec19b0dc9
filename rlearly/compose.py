"""The only place where agents meet envs: overrides -> config -> parts -> a run."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlearly import envs
from rlearly.agents import AGENTS, agent_module
from rlearly.config import (
    INTERVENTIONS,
    ConfigError,
    RunConfig,
    assign,
    did_you_mean,
    editable,
    frozen,
    parse_overrides,
)
from rlearly.envs import presets

if TYPE_CHECKING:
    import gymnasium
    import torch

    from rlearly.loop import Loop, Watcher
    from rlearly.places import Place
    from rlearly.sinks import Sinks
    from rlearly.types import Agent, Cadence, EnvSpec, Memory

DEFAULT_AGENT = "drm"
NAMED_ELSEWHERE = {
    "agent_name": "agent=NAME",
    "env.name": "env=NAME",
    "snapshot_sha256": "snapshot=FILE",
    "env.family": "env=NAME",
}
USUAL_EPISODE_FRAMES = 1000
"""What an episode is taken to last in forecasts, where the env's spec does not tell."""
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
    if view.env.family == "gym" and {("obs", "pixels"), ("env.pixels", True)} & _hashable(pairs):
        assign(view, "env.action_repeat", 2)  # DrQ-v2's, for pixels
    base = [*agent_module(agent).RUN_DEFAULTS, *presets.tuned(agent, env)]
    if chosen.get("preset") == "cpu":
        base += presets.cpu(agent)
    for key, value in parse_overrides(base):
        assign(view, key, value)
    for key, value in pairs:
        if key.startswith(OFF_POLICY_ONLY) and agent_module(agent).ON_POLICY:
            raise ConfigError(
                f"{key}: agent={agent} is on policy: it keeps no replay and learns once from every "
                "agent.rollout_steps steps; leave it out."
            )
        if key in NAMED_ELSEWHERE:
            raise ConfigError(f"{key}: is set by {NAMED_ELSEWHERE[key]}, not by itself.")
        if key not in ("agent", "env"):
            assign(view, key, value)
    config = _resolve_pixels(frozen(view))
    config = replace(config, seed_frames=_seed_frames(config))
    _check_sizes(config)
    keys = {key for key, _ in pairs}
    config = _settle_snapshot(config, keys)
    config = _settle_interventions(config, keys)
    _check_ratio(config, keys)
    if config.env.kwargs and config.env.family not in ("gym", "adroit"):
        maker = {"control": "dm_control"}.get(config.env.family, config.env.family)
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
    return editable(RunConfig(agent=agent_module(agent).Config(), env=env, agent_name=agent))


def _hashable(pairs: Sequence[tuple[str, Any]]) -> set[tuple[str, Any]]:
    return {(key, value) for key, value in pairs if isinstance(value, str | int | float | bool)}


def _resolve_pixels(config: RunConfig) -> RunConfig:
    """Settle obs and env.pixels."""
    pixels, obs = config.env.pixels, config.obs
    if not agent_module(config.agent_name).PIXELS and (pixels or obs == "pixels"):
        raise ConfigError(
            f"agent={config.agent_name} learns from states only, and pixels were asked for: "
            "add obs=state, or take agent=drqv2 or agent=drm."
        )
    if obs != "auto":
        if pixels is not None and pixels != (obs == "pixels"):
            raise ConfigError(f"obs={obs} contradicts env.pixels={str(pixels).lower()}; keep one.")
        pixels = obs == "pixels"
    if pixels is None and config.env.family != "gym":
        pixels = agent_module(config.agent_name).PIXELS
    return replace(config, env=replace(config.env, pixels=pixels))


def _settle_snapshot(config: RunConfig, keys: set[str]) -> RunConfig:
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


def _settle_interventions(config: RunConfig, keys: set[str]) -> RunConfig:
    """Make `intervention` a list of known names, each of which the agent can take."""
    asked = config.intervention
    names = [name for name in asked if name != "none"] if isinstance(asked, list) else [asked]
    if asked in (None, "none"):
        names = []
    module = agent_module(config.agent_name)
    refuses = dict(module.REFUSES)
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
        networks = list(module.NETWORKS)
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
    from rlearly.cadence import off_policy_cadence

    off_policy_cadence(config.replay_ratio, config.adaptive_ratio)
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
    from rlearly import storage

    if agent_module(config.agent_name).ON_POLICY:
        return
    from rlearly.annealing import annealing_of

    storage.check(config.replay)
    annealing = annealing_of(config.agent)
    nstep = annealing.most_steps if annealing else config.agent.nstep
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
        env = editable(envs.config_for(saved["env"]["name"]))
        merged_env: Any = OmegaConf.merge(env, saved["env"])
        view: Any = _editable(_agent_name(agent), frozen(merged_env))
        view = OmegaConf.merge(view, {k: v for k, v in saved.items() if k != "env"})
    except (OmegaConfBaseException, YAMLError, UnicodeError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{file} does not load as a run's config ({reason}).") from None
    for key, value in parse_overrides(arguments):
        if key not in RESUMABLE:
            raise ConfigError(
                f"{key}: cannot change when a run is resumed; these can: {', '.join(RESUMABLE)}."
            )
        assign(view, key, value)
    config = frozen(view)
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


def settled(config: RunConfig) -> dict[str, Any]:
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


# --- config -> parts ---


def make_env(config: RunConfig, *, pictures: bool = False) -> gymnasium.Env:
    """The env of a run. Every copy is built alike; episodes differ by their seeds alone."""
    from rlearly.seeding import Seeds

    seed = Seeds(config.seed).integer("env") % 2**32
    return envs.make(config.env, pixels=config.env.pixels, model_seed=seed, pictures=pictures)


def start_at_snapshots(
    config: RunConfig,
    worlds: list[gymnasium.Env],
    agent: Agent,
    say: Callable[[str], None],
    places: Sequence[Place],
) -> list[gymnasium.Env]:
    """Training envs whose episodes start as `snapshot=` and `snapshot_phase.*` say.

    The copies count the phase's steps, and keep what the learner reports, together. Each is seen to
    return to its states in its own place: a reset may already make what it will draw with.

    Raises:
        ConfigError: the snapshots do not load, or do not fit the env.
    """
    if config.snapshot is None:
        return worlds
    from rlearly.envs import selection
    from rlearly.envs.snapshot import Count, SnapshotRL, Snapshots, numpy_critic, student_clusters
    from rlearly.schedules import Linear

    path = Path(config.snapshot)
    if not path.is_file():
        raise ConfigError(
            f"snapshot: this run starts its episodes from {path}, which is not there: put it "
            "back, or say where it is now with snapshot=FILE."
        )
    if config.snapshot_sha256 not in (None, _sha256(path)):
        raise ConfigError(
            f"snapshot: {path} is not the file that this run began with (its SHA-256 was "
            f"{config.snapshot_sha256}): put that one back, or begin a new run."
        )
    phase = config.snapshot_phase
    probability: Any = phase.probability
    if phase.probability_end is not None:
        probability = Linear(phase.probability, phase.probability_end, phase.until_steps)
    clusters = phase.clusters or student_clusters(config.agent_name)
    rule = selection.named(phase.selection, clusters)
    snapshots, counter = Snapshots.load(path), Count()
    rules = f"{clusters} clusters" if phase.selection == "clusters" else phase.selection
    cut = f"cut after {phase.truncate_steps}" if phase.truncate_steps else "not cut"
    say(
        f"snapshots: {len(snapshots)} of {snapshots.env_id} from {path}, {rules}, for the first "
        f"{phase.until_steps:,} agent steps, {cut}"
    )
    theirs = snapshots.provenance.get("env_rules", config.env.rules)
    if theirs != config.env.rules:
        say(
            f"snapshots: their values are of the rewards of env.rules={theirs}, and this run's are "
            f"of env.rules={config.env.rules}"
        )
    if phase.until_steps * config.env.action_repeat >= config.train_frames:
        say(
            f"snapshots: the phase lasts as long as the run; "
            f"snapshot_phase.until_steps={phase.until_steps} is the paper's for a million steps"
            if phase.until_steps == 100_000
            else "snapshots: the phase lasts as long as the run"
        )
    return [
        place.do(
            SnapshotRL,
            world,
            snapshots,
            rule,
            truncate_steps=phase.truncate_steps,
            until_steps=phase.until_steps,
            probability=probability,
            counter=counter,
            critic=numpy_critic(agent.value) if phase.selection == "learner_error" else None,
            discount=config.agent.discount,
        )
        for world, place in zip(worlds, places, strict=True)
    ]


def make_agent(config: RunConfig, spec: EnvSpec, device: torch.device) -> Agent:
    from rlearly import interventions, machine
    from rlearly.compute import Compute
    from rlearly.observations import has_images
    from rlearly.plasticity import Gauge
    from rlearly.seeding import Seeds

    module = agent_module(config.agent_name)
    if config.precision == "tf32" and device.type != "cuda":
        raise ConfigError(
            "precision: tf32 is a number format of GPUs, and this run is on a CPU: take fp32 or "
            "bf16."
        )
    if config.compile and device.type == "cpu" and not machine.has_compiler():
        raise ConfigError(
            "compile=true: no C++ compiler was found here, which torch compiles with: install one "
            "(sudo apt-get install g++) or leave it out; on a CPU it is no faster."
        )
    if has_images(spec.observation) and not module.PIXELS:
        raise ConfigError(
            f"agent={config.agent_name} learns from states only, and env={config.env.name} is "
            "observed by images: take agent=drqv2 or agent=drm."
        )
    _check_images(config, has_images(spec.observation))
    settings = config.agent
    if module.ON_POLICY and settings.anneal_steps is None:
        whole_run = -(-config.train_frames // spec.frames_per_step)
        settings = replace(settings, anneal_steps=whole_run)
    return module.make(
        settings,
        spec,
        seeds=Seeds(config.seed),
        device=device,
        gauge=Gauge(
            config.plasticity.every_steps,
            config.plasticity.dormant_threshold,
            critic_each_update=config.replay_ratio == "adaptive",
        ),
        interventions=interventions.chosen(config, Seeds(config.seed)),
        compute=Compute(config.precision, config.compile),
    )


def _check_images(config: RunConfig, images: bool) -> None:
    """Whether every intervention has something to act on, once the env is known."""
    for name in config.intervention or () if not images else ():
        wanted = getattr(getattr(config, name), "networks", None) or ()
        if name in OF_IMAGES or "encoder" in wanted:
            raise ConfigError(
                f"intervention={name}: env={config.env.name} gives states here, and there is no "
                "encoder to act on: add obs=pixels, or leave it out."
            )


def layout_of(config: RunConfig, spec: EnvSpec) -> Any:
    """How replay stores this run's transitions."""
    from rlearly.observations import PIXELS, VECTOR, has_images, is_fused
    from rlearly.replay import Layout

    space: Any = spec.observation
    frames = space[PIXELS] if is_fused(space) else space
    stack = config.env.frame_stack if has_images(space) else 1
    return Layout(
        frame_shape=(frames.shape[0] // stack, *frames.shape[1:]),
        frame_dtype=str(frames.dtype),
        frame_stack=stack,
        actions=spec.action.shape[0],
        vector=space[VECTOR].shape[0] if is_fused(space) else 0,
    )


def replay_bytes(config: RunConfig, transition_bytes: int) -> int:
    """What the replay will have taken by the run's end: its capacity, or less for a short run."""
    return replay_slots(config) * transition_bytes


def replay_slots(config: RunConfig) -> int:
    """Slots of the replay that the run will have filled by its end.

    An episode adds one final observation; episodes of 25 steps or more are assumed.
    """
    steps = config.train_frames // config.env.action_repeat
    return min(config.replay.capacity, int(steps * 1.04) + 100)


def build(
    config: RunConfig,
    folder: Path,
    *,
    make_sinks: Callable[[], Sinks],
    watcher: Watcher,
    device: torch.device,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Loop:
    """Every part of a run, put together.

    Raises:
        ConfigError: the env cannot be made, or the replay does not fit into memory.
    """
    from rlearly import machine
    from rlearly.envs.state import Episodes
    from rlearly.loop import Loop, Plan
    from rlearly.seeding import Seeds

    seeds = Seeds(config.seed)
    places = env_places(config)
    worlds = [place.do(make_env, config) for place in places]
    spec = envs.spec_of(worlds[0], config.env)
    agent = make_agent(config, spec, device)
    copies = [
        Episodes(world, seeds.numpy("env", *([copy] if copy else [])))
        for copy, world in enumerate(start_at_snapshots(config, worlds, agent, watcher.say, places))
    ]
    learning = make_learning(config, spec, device, folder)
    watcher.say(learning.said)
    if config.precision == "bf16" and not machine.computes_bfloat16(device):
        watcher.say(
            "precision=bf16: this processor has no bfloat16 arithmetic; fp32 is faster here"
        )
    for line in _said_of_learning(config):
        watcher.say(line)
    on_policy = agent_module(config.agent_name).ON_POLICY
    first_update = learning.batch_size * spec.frames_per_step if on_policy else _seed_frames(config)
    if config.train_frames < first_update:
        watcher.say(f"this run ends before its first update, at {first_update:,} frames")
    return Loop(
        Plan(
            frames_per_step=spec.frames_per_step,
            train_frames=config.train_frames,
            seed_frames=_seed_frames(config),
            batch_size=learning.batch_size,
            update_last=on_policy,
            log_every_frames=config.log_every_frames,
            eval_every_frames=config.eval_every_frames,
            eval_episodes=config.eval_episodes,
            video_size=config.video_size,
            checkpoint_every_frames=config.checkpoint_every_frames,
            keep_checkpoints=config.keep_checkpoints,
            forget_at_steps=_forget_at_steps(config),
            eval_workers=config.eval_workers,
        ),
        agent=agent,
        envs=copies,
        make_eval_env=lambda: make_env(config, pictures=bool(config.video_size)),
        settings=settled(config),
        places=places,
        picture_of=envs.picture_of,
        memory=learning.memory,
        cadence=learning.cadence,
        sinks=make_sinks(),
        watcher=watcher,
        seeds=seeds,
        folder=folder,
        stop_requested=stop_requested,
    )


def env_places(config: RunConfig) -> list[Place]:
    """Where the copies of a run's env live: in threads of their own if they overlap.

    Raises:
        ConfigError: its steps ask the learner, and can therefore not overlap with updates.
    """
    from rlearly.places import Apart, Here

    asks = config.snapshot is not None and config.snapshot_phase.selection == "learner_error"
    if config.overlap and asks:
        raise ConfigError(
            "overlap=true: with snapshot_phase.selection=learner_error the env's steps ask the "
            "learner, which may then not be learning; leave it out."
        )
    apart = bool(config.env.pixels) if config.overlap is None else config.overlap
    return [Apart() if apart and not asks else Here() for _ in range(config.num_envs)]


def _said_of_learning(config: RunConfig) -> Iterator[str]:
    """How often this run updates and what is done to its networks, and what never will be."""
    if not agent_module(config.agent_name).ON_POLICY:
        yield f"replay ratio: {config.replay_ratio}"
    elif config.precision == "bf16":
        yield "precision=bf16: products of a minibatch are too small to gain by it; fp32 is faster"
    if config.intervention:
        yield f"interventions: {', '.join(config.intervention)}"
    steps = config.train_frames / config.env.action_repeat
    for name in config.intervention or ():
        settings = getattr(config, name)
        for key in ("at_step", "every_steps"):
            first = getattr(settings, key, 0)
            if first >= steps:
                yield f"{name}: not in this run of {steps:,.0f} agent steps: {name}.{key}={first}"


def _forget_at_steps(config: RunConfig) -> int | None:
    """The end of the snapshot phase, if its transitions are not to be kept."""
    phase = config.snapshot_phase
    return None if config.snapshot is None or phase.keep_replay else phase.until_steps


@dataclass(frozen=True)
class Learning:
    """What an agent learns from, how much at once, and when; and a line on it to read."""

    memory: Memory
    cadence: Cadence
    batch_size: int
    said: str


def make_learning(config: RunConfig, spec: EnvSpec, device: torch.device, folder: Path) -> Learning:
    """Rollouts for an agent on policy, a replay for any other.

    Raises:
        ConfigError: there is no room for the replay.
    """
    if agent_module(config.agent_name).ON_POLICY:
        return _learning_from_rollouts(config, spec)
    return _learning_from_replay(config, spec, device, folder)


def _learning_from_rollouts(config: RunConfig, spec: EnvSpec) -> Learning:
    from rlearly.cadence import EveryRollout
    from rlearly.rollout import Rollouts

    steps = config.agent.rollout_steps
    size = steps * config.num_envs
    return Learning(
        Rollouts(spec, steps=steps, copies=config.num_envs),
        EveryRollout(size),
        size,
        f"rollouts: {config.num_envs} x {steps:,} steps, each learnt from once",
    )


def _learning_from_replay(
    config: RunConfig, spec: EnvSpec, device: torch.device, folder: Path
) -> Learning:
    from rlearly.annealing import annealing_of
    from rlearly.cadence import off_policy_cadence
    from rlearly.prefetch import Prefetched
    from rlearly.replay import Replay, Replays
    from rlearly.seeding import Seeds
    from rlearly.storage import Storage

    layout = layout_of(config, spec)
    annealing = annealing_of(config.agent)
    storage = Storage(
        config.replay, layout, slots=replay_slots(config), device=device, folder=folder
    )
    capacity = config.replay.capacity // config.num_envs
    generator = Seeds(config.seed).numpy("replay")
    rings = [
        Replay(
            layout,
            capacity=capacity,
            nstep=annealing.most_steps if annealing else config.agent.nstep,
            discount=config.agent.discount,
            annealing=annealing,
            copies=config.num_envs,
            generator=generator,
            device=device,
            frames=storage.frames(capacity),
        )
        for _ in range(config.num_envs)
    ]
    cadence = off_policy_cadence(config.replay_ratio, config.adaptive_ratio)
    memory: Any = Replays(rings, generator)
    if config.replay.prefetch:
        memory = Prefetched(memory, config.replay.prefetch)
    return Learning(memory, cadence, config.agent.batch_size, storage.said)


@dataclass(frozen=True)
class Pace:
    """How fast an env and an agent are here, and how much they store, as timed once."""

    step_seconds: float
    learn_seconds: float
    """Of an update; on policy, what an agent step takes of acting and learning."""
    frames_per_step: int
    episode_frames: int
    transition_bytes: int


def timed(config: RunConfig, device: torch.device) -> Pace:
    """The pace of a run, from a few steps and updates.

    It is measured on an env and an agent of its own, which are then thrown away.
    """
    from rlearly.storage import transition_bytes

    env = make_env(config)
    spec = envs.spec_of(env, config.env)
    obs, _ = env.reset(seed=0)
    action = np.zeros(spec.action.shape, dtype=np.float32)
    env.step(action)
    began = time.monotonic()
    for _ in range(3):
        env.step(action)
    step_seconds = (time.monotonic() - began) / 3
    episode_frames = (env.spec and env.spec.max_episode_steps) or USUAL_EPISODE_FRAMES
    env.close()
    agent = make_agent(config, spec, device)
    if agent_module(config.agent_name).ON_POLICY:
        learn_seconds = _rollout_seconds(config, agent, obs)
    else:
        learn_seconds = _update_seconds(config, spec, agent, obs, device)
    size = transition_bytes(config.replay, layout_of(config, spec))
    return Pace(step_seconds, learn_seconds, spec.frames_per_step, episode_frames, size)


def forecast_seconds(config: RunConfig, device: torch.device, pace: Pace | None = None) -> float:
    """How long the run with its evaluations would take here, at a pace that is timed or given."""
    from rlearly.cadence import mean_ratio

    pace = pace or timed(config, device)
    steps = config.train_frames / pace.frames_per_step
    seconds = steps * pace.step_seconds
    if config.eval_every_frames:
        evaluations = config.train_frames // config.eval_every_frames
        frames = evaluations * config.eval_episodes * pace.episode_frames
        seconds += frames / pace.frames_per_step * pace.step_seconds
    if agent_module(config.agent_name).ON_POLICY:
        return seconds + steps * pace.learn_seconds
    learning = max(0, config.train_frames - _seed_frames(config)) / pace.frames_per_step
    updates = learning * mean_ratio(config.replay_ratio, config.adaptive_ratio, round(steps))
    return seconds + updates * pace.learn_seconds


def forecast_replay_bytes(config: RunConfig, pace: Pace) -> int:
    """What the run's replay will have taken by its end; PPO has none."""
    if agent_module(config.agent_name).ON_POLICY:
        return 0
    return replay_bytes(config, pace.transition_bytes)


def _update_seconds(
    config: RunConfig, spec: EnvSpec, agent: Agent, obs: np.ndarray, device: torch.device
) -> float:
    """The shortest of three updates from one observation."""
    import torch

    from rlearly.observations import on_device, together
    from rlearly.types import Batch

    size = config.agent.batch_size
    many = on_device(together([obs] * size), device)
    ones = torch.ones(size, 1, device=device)
    zeros = torch.zeros(size, *spec.action.shape, device=device)
    batch = Batch(many, zeros, ones, ones, many)
    seconds = float("inf")
    for _ in range(3):  # the first ones also fetch memory from the system
        began = time.monotonic()
        agent.update(batch, step=0)
        seconds = min(seconds, time.monotonic() - began)
    return seconds


def _rollout_seconds(config: RunConfig, agent: Agent, obs: np.ndarray) -> float:
    """Seconds that an agent step takes of acting and learning, from one rollout."""
    from rlearly.types import Rollout

    steps, copies = config.agent.rollout_steps, config.num_envs
    many = np.broadcast_to(obs, (copies, *obs.shape))
    began = time.monotonic()
    actions = np.stack([agent.act(many, step=0, explore=True) for _ in range(steps)])
    never = np.zeros((steps, copies), bool)
    next_obs = np.broadcast_to(obs, (steps, copies, *obs.shape))
    agent.update(Rollout(actions, np.ones((steps, copies)), never, never, next_obs), step=0)
    return (time.monotonic() - began) / (steps * copies)
