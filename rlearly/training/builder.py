"""TODO."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlearly import envs
from rlearly.agents import agent_spec
from rlearly.config.schema import RunConfig
from rlearly.core.errors import ConfigError
from rlearly.core.spaces import together

if TYPE_CHECKING:
    import gymnasium
    import torch

    from rlearly.core.types import Agent, EnvSpec, Memory, UpdateSchedule
    from rlearly.training.executors import EnvExecutor
    from rlearly.training.sinks import Sinks
    from rlearly.training.trainer import Callback, Trainer
from rlearly.config.resolve import PIXEL_INTERVENTIONS, fixed_settings, seed_frames, sha256

# --- config -> parts ---


def make_env(config: RunConfig, *, videos: bool = False) -> gymnasium.Env:
    """The env of a run. Every copy is built alike; episodes differ by their seeds alone."""
    from rlearly.system.seeding import Seeds

    seed = Seeds(config.seed).integer("env") % 2**32
    return envs.make(config.env, pixels=config.env.pixels, model_seed=seed, videos=videos)


def add_snapshot_starts(
    config: RunConfig,
    worlds: list[gymnasium.Env],
    agent: Agent,
    say: Callable[[str], None],
    executors: Sequence[EnvExecutor],
) -> list[gymnasium.Env]:
    """Training envs whose episodes start as `snapshot=` and `snapshot_phase.*` say.

    The copies count the phase's steps, and keep what the learner reports, together. Each is seen to
    return to its states in its own place: a reset may already make what it will draw with.

    Raises:
        ConfigError: the snapshots do not load, or do not fit the env.
    """
    if config.snapshot is None:
        return worlds
    from rlearly.envs.snapshots import selection
    from rlearly.envs.snapshots.dataset import Snapshots
    from rlearly.envs.snapshots.step_counter import LocalStepCounter
    from rlearly.envs.snapshots.wrapper import SnapshotRL
    from rlearly.nn.schedules import Linear

    path = Path(config.snapshot)
    if not path.is_file():
        raise ConfigError(
            f"snapshot: this run starts its episodes from {path}, which is not there: put it "
            "back, or say where it is now with snapshot=FILE."
        )
    if config.snapshot_sha256 not in (None, sha256(path)):
        raise ConfigError(
            f"snapshot: {path} is not the file that this run began with (its SHA-256 was "
            f"{config.snapshot_sha256}): put that one back, or begin a new run."
        )
    phase = config.snapshot_phase
    probability: Any = phase.probability
    if phase.probability_end is not None:
        probability = Linear(phase.probability, phase.probability_end, phase.until_steps)
    clusters = phase.clusters or selection.student_clusters(config.agent_name)
    rule = selection.make_selection(phase.selection, clusters)

    def critic(obs: Any) -> float:
        return float(agent.value(together([obs]))[0])

    snapshots, counter = Snapshots.load(path), LocalStepCounter()
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
        executor.run(
            SnapshotRL,
            world,
            snapshots,
            rule,
            truncate_steps=phase.truncate_steps,
            until_steps=phase.until_steps,
            probability=probability,
            counter=counter,
            critic=critic if phase.selection == "learner_error" else None,
            discount=config.agent.discount,
        )
        for world, executor in zip(worlds, executors, strict=True)
    ]


def make_agent(config: RunConfig, spec: EnvSpec, device: torch.device) -> Agent:
    from rlearly.core.spaces import has_images
    from rlearly.nn.precision import ComputeOptions
    from rlearly.plasticity.interventions import registry
    from rlearly.plasticity.monitor import PlasticityMonitor
    from rlearly.system import machine
    from rlearly.system.seeding import Seeds

    declared = agent_spec(config.agent_name)
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
    if has_images(spec.observation) and not declared.observes_pixels:
        raise ConfigError(
            f"agent={config.agent_name} learns from states only, and env={config.env.name} is "
            "observed by images: take agent=drqv2 or agent=drm."
        )
    _check_images(config, has_images(spec.observation))
    settings = config.agent
    if declared.on_policy and settings.anneal_steps is None:
        whole_run = -(-config.train_frames // spec.frames_per_step)
        settings = replace(settings, anneal_steps=whole_run)
    return declared.make(
        settings,
        spec,
        seeds=Seeds(config.seed),
        device=device,
        monitor=PlasticityMonitor(
            config.plasticity.every_steps,
            config.plasticity.dormant_threshold,
            critic_each_update=config.replay_ratio == "adaptive",
        ),
        interventions=registry.build_interventions(config, Seeds(config.seed)),
        compute=ComputeOptions(config.precision, config.compile),
    )


def _check_images(config: RunConfig, images: bool) -> None:
    """Whether every intervention has something to act on, once the env is known."""
    for name in config.intervention or () if not images else ():
        wanted = getattr(getattr(config, name), "networks", None) or ()
        if name in PIXEL_INTERVENTIONS or "encoder" in wanted:
            raise ConfigError(
                f"intervention={name}: env={config.env.name} gives states here, and there is no "
                "encoder to act on: add obs=pixels, or leave it out."
            )


def transition_layout(config: RunConfig, spec: EnvSpec) -> Any:
    """How replay stores this run's transitions."""
    from rlearly.core.spaces import PIXELS, VECTOR, has_images, is_fused
    from rlearly.replay.buffer import TransitionLayout

    space: Any = spec.observation
    frames = space[PIXELS] if is_fused(space) else space
    stack = config.env.frame_stack if has_images(space) else 1
    return TransitionLayout(
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


def known_replay_bytes(config: RunConfig) -> int | None:
    """What the replay will take, from the config alone: 0 on policy, frames for pixels.

    None where only the env knows the size of an observation.
    """
    from rlearly.replay.buffer import TransitionLayout
    from rlearly.replay.storage import transition_bytes

    if agent_spec(config.agent_name).on_policy:
        return 0
    if not config.env.pixels:
        return None
    size = config.env.image_size
    frame = TransitionLayout((3, size, size), "uint8", config.env.frame_stack, actions=0)
    return replay_bytes(config, transition_bytes(config.replay, frame))


def build(
    config: RunConfig,
    folder: Path,
    *,
    make_sinks: Callable[[], Sinks],
    callback: Callback,
    device: torch.device,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Trainer:
    """Every part of a run, put together.

    Raises:
        ConfigError: the env cannot be made, or the replay does not fit into memory.
    """
    from rlearly.envs.state.resumable import ResumableEnv
    from rlearly.system import machine
    from rlearly.system.seeding import Seeds
    from rlearly.training.trainer import Trainer, TrainerConfig

    seeds = Seeds(config.seed)
    executors = env_executors(config)
    worlds = [executor.run(make_env, config) for executor in executors]
    spec = envs.env_spec(worlds[0], config.env)
    agent = make_agent(config, spec, device)
    num_envs = [
        ResumableEnv(world, seeds.numpy("env", *([env_index] if env_index else [])))
        for env_index, world in enumerate(
            add_snapshot_starts(config, worlds, agent, callback.message, executors)
        )
    ]
    learning = make_data_pipeline(config, spec, device, folder)
    callback.message(learning.said)
    if config.precision == "bf16" and not machine.computes_bfloat16(device):
        callback.message(
            "precision=bf16: this processor has no bfloat16 arithmetic; fp32 is faster here"
        )
    for line in _learning_notes(config):
        callback.message(line)
    on_policy = agent_spec(config.agent_name).on_policy
    first_update = learning.batch_size * spec.frames_per_step if on_policy else seed_frames(config)
    if config.train_frames < first_update:
        callback.message(f"this run ends before its first update, at {first_update:,} frames")
    return Trainer(
        TrainerConfig(
            frames_per_step=spec.frames_per_step,
            train_frames=config.train_frames,
            seed_frames=seed_frames(config),
            batch_size=learning.batch_size,
            update_last=on_policy,
            log_every_frames=config.log_every_frames,
            eval_every_frames=config.eval_every_frames,
            eval_episodes=config.eval_episodes,
            video_size=config.video_size,
            checkpoint_every_frames=config.checkpoint_every_frames,
            keep_checkpoints=config.keep_checkpoints,
            clear_replay_at_steps=_clear_replay_at_steps(config),
        ),
        agent=agent,
        envs=num_envs,
        make_eval_env=lambda: make_env(config, videos=bool(config.video_size)),
        fixed_config=fixed_settings(config),
        executors=executors,
        frame_renderer=envs.frame_renderer,
        memory=learning.memory,
        update_schedule=learning.update_schedule,
        sinks=make_sinks(),
        callback=callback,
        seeds=seeds,
        folder=folder,
        stop_requested=stop_requested,
    )


def env_executors(config: RunConfig) -> list[EnvExecutor]:
    """Where the copies of a run's env live: in threads of their own if they overlap.

    Raises:
        ConfigError: its steps ask the learner, and can therefore not overlap with updates.
    """
    from rlearly.training.executors import InlineExecutor, ThreadExecutor

    asks = config.snapshot is not None and config.snapshot_phase.selection == "learner_error"
    if config.overlap and asks:
        raise ConfigError(
            "overlap=true: with snapshot_phase.selection=learner_error the env's steps ask the "
            "learner, which may then not be learning; leave it out."
        )
    apart = bool(config.env.pixels) if config.overlap is None else config.overlap
    return [
        ThreadExecutor() if apart and not asks else InlineExecutor() for _ in range(config.num_envs)
    ]


def _learning_notes(config: RunConfig) -> Iterator[str]:
    """How often this run updates and what is done to its networks, and what never will be."""
    if not agent_spec(config.agent_name).on_policy:
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


def _clear_replay_at_steps(config: RunConfig) -> int | None:
    """The end of the snapshot phase, if its transitions are not to be kept."""
    phase = config.snapshot_phase
    return None if config.snapshot is None or phase.keep_replay else phase.until_steps


@dataclass(frozen=True)
class DataPipeline:
    """What an agent learns from, how much at once, and when; and a line on it to read."""

    memory: Memory
    update_schedule: UpdateSchedule
    batch_size: int
    said: str


def make_data_pipeline(
    config: RunConfig, spec: EnvSpec, device: torch.device, folder: Path
) -> DataPipeline:
    """Rollouts for an agent on policy, a replay for any other.

    Raises:
        ConfigError: there is no room for the replay.
    """
    if agent_spec(config.agent_name).on_policy:
        return _learning_from_rollouts(config, spec)
    return _learning_from_replay(config, spec, device, folder)


def _learning_from_rollouts(config: RunConfig, spec: EnvSpec) -> DataPipeline:
    from rlearly.replay.rollout import RolloutBuffer
    from rlearly.training.update_schedule import OncePerRollout

    steps = config.agent.rollout_steps
    size = steps * config.num_envs
    return DataPipeline(
        RolloutBuffer(spec, steps=steps, num_envs=config.num_envs),
        OncePerRollout(size),
        size,
        f"rollouts: {config.num_envs} x {steps:,} steps, each learnt from once",
    )


def _learning_from_replay(
    config: RunConfig, spec: EnvSpec, device: torch.device, folder: Path
) -> DataPipeline:
    from rlearly.replay.annealing import annealing_for
    from rlearly.replay.buffer import ReplayBuffer, VectorReplayBuffer
    from rlearly.replay.prefetch import PrefetchedReplay
    from rlearly.replay.storage import ReplayStorage
    from rlearly.system.seeding import Seeds
    from rlearly.training.update_schedule import off_policy_schedule

    layout = transition_layout(config, spec)
    annealing = annealing_for(config.agent)
    storage = ReplayStorage(
        config.replay, layout, slots=replay_slots(config), device=device, folder=folder
    )
    capacity = config.replay.capacity // config.num_envs
    generator = Seeds(config.seed).numpy("replay")
    buffers = [
        ReplayBuffer(
            layout,
            capacity=capacity,
            nstep=annealing.most_steps if annealing else config.agent.nstep,
            discount=config.agent.discount,
            annealing=annealing,
            num_envs=config.num_envs,
            generator=generator,
            device=device,
            frames=storage.frames(capacity),
        )
        for _ in range(config.num_envs)
    ]
    update_schedule = off_policy_schedule(config.replay_ratio, config.adaptive_ratio)
    memory: Any = VectorReplayBuffer(buffers, generator)
    if config.replay.prefetch:
        memory = PrefetchedReplay(memory, config.replay.prefetch)
    return DataPipeline(memory, update_schedule, config.agent.batch_size, storage.said)
