"""Build a run from its config. Only this module knows both agents and envs.

`build` and `assemble` read top to bottom: envs, agent, snapshot starts, jump start, data pipeline,
trainer. The functions below them make these parts, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Discrete
from gymnasium.vector import VectorEnv

from rlearly import envs
from rlearly.agents import agent_spec, agents_for
from rlearly.agents.guarded import GuardedAgent
from rlearly.agents.normalized import NormalizedAgent
from rlearly.config import plugins, resolve
from rlearly.config.resolve import PIXEL_INTERVENTIONS, fixed_settings, seed_frames, sha256
from rlearly.config.schema import RunConfig, SnapshotConfig
from rlearly.core.errors import ConfigError, raised
from rlearly.core.spaces import (
    PIXELS,
    VECTOR,
    describe_space,
    has_images,
    is_fused,
    stack_observations,
)
from rlearly.core.types import Agent, EnvSpec, Memory, UpdateSchedule
from rlearly.envs.state.between_episodes import (
    EvaluationEnv,
    Kept,
    keeps_nothing,
    kept_by,
    normalises,
    own_parts,
)
from rlearly.envs.state.resumable import ResumableEnv
from rlearly.envs.state.serialization import from_bytes
from rlearly.envs.wrappers import ScaledActions, ZeroBasedActions, find_wrapper
from rlearly.nn.precision import ComputeOptions
from rlearly.nn.running_stats import Normalizer
from rlearly.nn.schedules import Linear
from rlearly.plasticity.interventions import registry
from rlearly.plasticity.interventions.base import Intervention
from rlearly.plasticity.monitor import PlasticityMonitor
from rlearly.replay.annealing import annealing_for
from rlearly.replay.buffer import ReplayBuffer, TransitionLayout, VectorReplayBuffer
from rlearly.replay.normalized import NormalizedReplay
from rlearly.replay.prefetch import PrefetchedReplay
from rlearly.replay.rollout import RolloutBuffer
from rlearly.replay.storage import ReplayStorage, transition_bytes
from rlearly.system import machine
from rlearly.system.command import is_out_of_memory
from rlearly.system.seeding import Seeds
from rlearly.training import checkpoint, run_directory
from rlearly.training.callbacks.callback import Callback
from rlearly.training.callbacks.calls import Named
from rlearly.training.callbacks.loading import load_callbacks
from rlearly.training.callbacks.training_envs import TrainingEnvs
from rlearly.training.continuing import stop_rules
from rlearly.training.continuing.start_from import Ancestor
from rlearly.training.continuing.stop_rules import StopRules
from rlearly.training.evaluation import close_env
from rlearly.training.executors import EnvExecutor, InlineExecutor, ThreadExecutor
from rlearly.training.sinks import Sinks
from rlearly.training.trainer import ProgressDisplay, Trainer, TrainerConfig
from rlearly.training.update_schedule import OncePerRollout, off_policy_schedule

Attributes = Callable[[], Mapping[str, Any]]
"""Returns attributes of an env that callbacks have set."""


@dataclass(frozen=True)
class Surroundings:
    """What a run is trained with and its config does not say: see `build`."""

    folder: Path
    make_sinks: Callable[[], Sinks]
    display: ProgressDisplay
    device: torch.device
    stop_requested: Callable[[], bool]
    callbacks: Sequence[Named]


def build(
    config: RunConfig,
    folder: Path,
    *,
    make_sinks: Callable[[], Sinks],
    display: ProgressDisplay,
    device: torch.device,
    stop_requested: Callable[[], bool] = lambda: False,
    vector_env: VectorEnv | None = None,
    make_eval_env: Callable[[], gymnasium.Env] | None = None,
    callbacks: Sequence[Callback] = (),
) -> Trainer:
    """The trainer of a run, with all its parts.

    Args:
        vector_env: train on its members instead of envs made from the config, whose `env` is
            `rlearly.envs.vector.family.config_of` it. It is the caller's, and stays open.
        make_eval_env: makes one env like the members of `vector_env`, for evaluations; None: the
            vector env tells how, or there are none.
        callbacks: objects of Python code, in addition to those that the config names.

    Raises:
        ConfigError: the env or a callback cannot be made or is not supported, or the replay does
            not fit into memory.
    """
    named = load_callbacks(config, callbacks)
    around = Surroundings(folder, make_sinks, display, device, stop_requested, named)
    if vector_env is not None:
        return build_on_vector_env(config, vector_env, make_eval_env, around)
    executors = env_executors(config)
    train_envs: list[gymnasium.Env] = []
    try:
        for executor in executors:
            train_envs.append(executor.run(make_env, config))
        return assemble(config, train_envs, executors, around)
    except BaseException:
        for env, executor in zip(train_envs, executors, strict=False):
            executor.run(close_env, env)
        for executor in executors:
            executor.close()
        raise


def assemble(
    config: RunConfig,
    train_envs: list[gymnasium.Env],
    executors: list[EnvExecutor],
    around: Surroundings,
) -> Trainer:
    """The trainer of a run in envs that were made, each by its executor."""
    display = around.display
    spec = envs.env_spec(train_envs[0], config.env)
    agent = make_agent(config, spec, around.device)
    for line in envs.notes(train_envs[0]):
        display.message(line)
    warn_of_no_time_limit(config, train_envs[0], display.message)
    train_envs = add_snapshot_starts(config, train_envs, agent, display.message, executors)
    train_envs = add_jump_start(config, train_envs, spec, display.message)
    if config.start_from.run and normalises(train_envs[0]):
        display.message(
            f"start_from: {config.env.name} scales observations or rewards by running statistics "
            "of its own wrappers, which begin anew; env.normalize keeps them in the run instead"
        )
    resumable: list[Any] = [
        ResumableEnv(env, generator, make_another=lambda: make_env(config))
        for env, generator in zip(train_envs, episode_generators(config), strict=True)
    ]
    return make_trainer(
        config,
        agent,
        spec,
        resumable,
        executors,
        around,
        make_eval_env=lambda attributes: make_evaluation_env(
            config,
            videos=bool(config.video_size),
            kept=lambda: executors[0].run(kept_by, train_envs[0]),
            attributes=attributes,
            message=display.message,
        ),
    )


def episode_generators(config: RunConfig) -> list[np.random.Generator]:
    """For each env, the stream that the seeds of its episodes are drawn from."""
    seeds = Seeds(config.seed)
    return [seeds.numpy("env", *([index] if index else [])) for index in range(config.num_envs)]


def build_on_vector_env(
    config: RunConfig,
    vector_env: VectorEnv,
    make_eval_env: Callable[[], gymnasium.Env] | None,
    around: Surroundings,
) -> Trainer:
    """The trainer of a run on the members of a vector env; see `build`.

    Raises:
        ConfigError: the vector env, or a setting with it, is not supported.
    """
    from rlearly.envs.vector.evaluation import evaluation_view, find_single_env
    from rlearly.envs.vector.members import MemberExecutor, VectorMembers

    refuse_for_vector_env(config, vector_env)
    display = around.display
    config = replace(config, num_envs=int(vector_env.num_envs))
    calls = ThreadExecutor() if config.overlap else InlineExecutor()
    vector = VectorMembers(vector_env, episode_generators(config), calls)
    make, lacking = make_eval_env, ""
    if make is None:
        make, lacking = find_single_env(vector_env)
    if make is None:
        if config.eval_every_frames:
            display.message(
                f"evaluations: there are none, since {lacking}: give make_eval_env, a function "
                "that makes one such env"
            )
        config = replace(config, eval_every_frames=0)

    def view() -> gymnasium.Env:
        assert make is not None
        return evaluation_view(make, config.env, vector.spec, vector.name)

    def make_evaluation(attributes: Attributes) -> gymnasium.Env:
        return make_evaluation_env(
            config,
            videos=False,
            kept=vector.kept_by_first,
            attributes=attributes,
            message=display.message,
            make=view,
        )

    try:
        for line in vector.notes:
            display.message(line)
        if config.eval_every_frames:
            env = view()
            warn_of_no_time_limit(config, env, display.message)
            if config.video_size and env.render_mode != "rgb_array":
                config = replace(config, video_size=0)
                display.message("videos: there are none: make envs with render_mode='rgb_array'")
            close_env(env)
        return make_trainer(
            config,
            make_agent(config, vector.spec, around.device),
            vector.spec,
            vector.members,
            [MemberExecutor() for _ in range(config.num_envs)],
            around,
            make_eval_env=make_evaluation,
            is_resetting=vector.is_resetting,
            vector_env=vector.name,
        )
    except BaseException:
        vector.close()
        raise


def refuse_for_vector_env(config: RunConfig, vector_env: Any) -> None:
    """Check that the settings go with a vector env.

    Raises:
        ConfigError: one does not.
    """
    name = config.env.name
    if not isinstance(vector_env, VectorEnv):
        raise ConfigError(
            "vector_env: expected a gymnasium.vector.VectorEnv, received a "
            f"{type(vector_env).__name__}."
        )
    if config.num_envs not in (1, vector_env.num_envs):
        raise ConfigError(
            f"num_envs: {name} has {vector_env.num_envs} envs, received {config.num_envs}: leave "
            "num_envs out."
        )
    if config.env.action_repeat != 1:
        raise ConfigError(
            f"env.action_repeat: expected 1 for the VectorEnv {name}, received "
            f"{config.env.action_repeat}: repeat actions in its envs, with a wrapper of your own."
        )
    if config.env.pixels:
        raise ConfigError(
            f"env.pixels: agents learn from states of the VectorEnv {name}: leave it out, or give "
            "the env's id and num_envs=N."
        )
    if config.snapshot is not None:
        raise ConfigError(
            f"snapshot: the episodes of the VectorEnv {name} begin where it begins them: wrap its "
            "envs in rlearly.SnapshotRL when you make it, or give the env's id and num_envs=N."
        )
    if config.jump_start.run is not None or config.jump_start.model is not None:
        raise ConfigError(
            f"jump_start: nobody can begin the episodes of the VectorEnv {name}: give the env's id "
            "and num_envs=N."
        )


def make_trainer(
    config: RunConfig,
    agent: Agent,
    spec: EnvSpec,
    train_envs: list[Any],
    executors: Sequence[EnvExecutor],
    around: Surroundings,
    *,
    make_eval_env: Callable[[Attributes], gymnasium.Env],
    is_resetting: Callable[[int], bool] = lambda env_index: False,
    vector_env: str | None = None,
) -> Trainer:
    """The trainer of an agent in envs that resume.

    Args:
        make_eval_env: makes the env for evaluations, given what returns the attributes that
            callbacks have set for them.
        vector_env: the name of the vector env whose members they are; its run continues on no other
            kind of envs.
    """
    members_of = {} if vector_env is None else {"vector_env": vector_env}
    display = around.display
    data = make_data_pipeline(config, spec, around.device, around.folder)
    memory = data.memory
    if isinstance(agent, NormalizedAgent):
        memory = NormalizedReplay(memory, agent.normalizer)
    on_policy = agent_spec(config.agent_name).on_policy
    phase = config.snapshot_phase
    keep_replay = config.snapshot is None or phase.keep_replay
    trainer_config = TrainerConfig(
        frames_per_step=spec.frames_per_step,
        train_frames=config.train_frames,
        seed_frames=seed_frames(config),
        batch_size=data.batch_size,
        update_last=on_policy,
        log_every_frames=config.log_every_frames,
        eval_every_frames=config.eval_every_frames,
        eval_episodes=config.eval_episodes,
        video_size=config.video_size,
        checkpoint_every_frames=config.checkpoint_every_frames,
        keep_checkpoints=config.keep_checkpoints,
        keep_best=config.keep_best,
        clear_replay_at_steps=None if keep_replay else phase.until_steps,
    )
    display.message(data.summary)
    for line in _notes(config, trainer_config, spec, around.device):
        display.message(line)
    training_envs = TrainingEnvs(train_envs, executors)
    return Trainer(
        config=trainer_config,
        agent=agent,
        envs=train_envs,
        executors=list(executors),
        make_eval_env=lambda: make_eval_env(training_envs.in_evaluations),
        is_resetting=is_resetting,
        frame_renderer=envs.frame_renderer,
        memory=memory,
        update_schedule=data.update_schedule,
        sinks=around.make_sinks(),
        display=display,
        seeds=Seeds(config.seed),
        folder=around.folder,
        fixed_config=fixed_settings(config) | members_of,
        stop_requested=around.stop_requested,
        training_envs=training_envs,
        named_callbacks=around.callbacks,
        ancestor=find_ancestor(config, spec, display.message),
        spaces=spaces_of(spec),
        stop_rules=StopRules([stop_rules.parse(text) for text in config.stop_when or ()]),
    )


# --- envs ---


def env_executors(config: RunConfig) -> list[EnvExecutor]:
    """One executor per env: a thread if env steps overlap with updates, as by default with pixels.

    Raises:
        ConfigError: overlap was asked for, but the env's steps depend on the agent or each other.
    """
    obstacle = _obstacle_to_overlap(config)
    if config.overlap and obstacle:
        raise ConfigError(f"overlap=true: {obstacle}; leave overlap out.")
    overlap = bool(config.env.pixels) if config.overlap is None else config.overlap
    executor = ThreadExecutor if overlap and not obstacle else InlineExecutor
    return [executor() for _ in range(config.num_envs)]


def _obstacle_to_overlap(config: RunConfig) -> str | None:
    """Why env steps cannot overlap with updates or with each other; None: they can."""
    rule = config.snapshot_phase.selection if config.snapshot is not None else None
    if rule is not None and rule_uses_scores(config.snapshot_phase):
        return (
            f"with snapshot_phase.selection={rule} the env's steps ask the learner for values, "
            "which they cannot do during an update"
        )
    if (rule == "reverse_forward" or plugins.is_plugin(rule)) and config.num_envs > 1:
        return (
            f"with snapshot_phase.selection={rule} the ends of episodes move starts, so several "
            "envs must take their steps in turn"
        )
    if config.jump_start.run is not None or config.jump_start.model is not None:
        return "with jump_start the env's resets ask the teacher for actions"
    return None


def warn_of_no_time_limit(
    config: RunConfig, env: gymnasium.Env, message: Callable[[str], None]
) -> None:
    """Say so if nothing limits an env's episodes."""
    if not envs.has_time_limit(env, config.env):
        message(
            f"env={config.env.name} has no time limit: if it does not end its episodes "
            "itself, evaluations never end; set one, as in env.max_episode_steps=1000"
        )


def check_rendering(config: RunConfig) -> None:
    """Check that the images and videos of a run can be rendered here, before anything is made.

    Raises:
        ConfigError: they cannot.
    """
    videos = bool(config.video_size and config.eval_every_frames)
    envs.check_rendering(config.env, pixels=config.env.pixels, videos=videos)


def make_env(config: RunConfig, *, videos: bool = False, evaluation: bool = False) -> gymnasium.Env:
    """An env of a run, for training or for evaluations.

    Envs of one kind are built alike; only the seeds of their episodes differ.
    """
    seed = Seeds(config.seed).integer("env") % 2**32
    return envs.make(
        config.env,
        pixels=config.env.pixels,
        model_seed=seed,
        videos=videos,
        evaluation=evaluation,
    )


def make_evaluation_env(
    config: RunConfig,
    *,
    videos: bool,
    kept: Callable[[], Kept] | None,
    message: Callable[[str], None],
    attributes: Attributes = dict,
    make: Callable[[], gymnasium.Env] | None = None,
) -> EvaluationEnv:
    """An env for evaluations, which begins each episode with what the training env keeps.

    Args:
        kept: returns what the training env keeps now; None: unknown, and a message
            says so if it matters.
        attributes: returns the attributes that evaluations have, of those that callbacks have set.
        make: makes the env, as agents see it; None: it is made from the config.
    """
    make = make or (lambda: make_env(config, videos=videos, evaluation=True))
    env = make()
    if keeps_nothing(env):
        return EvaluationEnv(env, None, attributes=attributes)
    if kept is None:
        message(
            f"{config.env.name} may keep something from one episode to the next, which is not at "
            "hand: it starts as a new env, which may differ from the one that the agent was "
            "trained in"
        )
        return EvaluationEnv(env, None, attributes=attributes)
    other = make()
    evaluation_env = EvaluationEnv(env, kept, own_parts(env, other), attributes)
    close_env(other)
    why = evaluation_env.why_not_repeatable()
    if why:
        message(f"evaluation: {why}")
    return evaluation_env


def kept_in(state: Mapping[str, Any]) -> Callable[[], Kept] | None:
    """What the first training env of a run kept at a checkpoint, for `make_evaluation_env`."""
    saved = state["env"][0].get("kept")
    if saved is None:
        return None
    kept = from_bytes(saved.tobytes())
    return lambda: kept


def attributes_in(state: Mapping[str, Any]) -> Callable[[], Mapping[str, Any]]:
    """The attributes that evaluations had at a checkpoint, for `make_evaluation_env`."""
    return lambda: state.get("env_attributes", {}).get("in_evaluations", {})


# --- agent ---


def make_agent(
    config: RunConfig, spec: EnvSpec, device: torch.device, *, kernels: bool = True
) -> Agent:
    """A new agent.

    Args:
        kernels: use the faster CPU code, as training does.

    Raises:
        ConfigError: the agent does not support this device or this env's observations or actions,
            or does not fit into memory.
    """
    declared = agent_spec(config.agent_name)
    if config.precision == "tf32" and device.type != "cuda":
        raise ConfigError(
            "precision: tf32 is a number format of GPUs, and this run is on a CPU: use fp32 or "
            "bf16."
        )
    if config.compile and device.type == "cpu" and not machine.has_compiler():
        raise ConfigError(
            "compile=true: no C++ compiler was found here, and torch needs one to compile for a "
            "CPU: install one (sudo apt-get install g++) or leave it out; on a CPU it is no faster."
        )
    kind = "discrete" if isinstance(spec.action, Discrete) else "continuous"
    if kind not in declared.actions:
        raise ConfigError(
            f"agent={config.agent_name} takes {' or '.join(declared.actions)} actions, but those "
            f"of env={config.env.name} are {kind}: use {agents_for(actions=kind)}."
        )
    pixels = has_images(spec.observation)
    if pixels and not declared.observes_pixels:
        raise ConfigError(
            f"agent={config.agent_name} learns from states only, but the observations of "
            f"env={config.env.name} are images: use {agents_for(actions=kind, images=True)}, or "
            "add obs=state to learn from all the numbers."
        )
    for name in config.intervention or () if not pixels else ():
        networks = getattr(registry.settings_of(config, name), "networks", None) or ()
        if name in PIXEL_INTERVENTIONS or "encoder" in networks:
            raise ConfigError(
                f"intervention={name}: the observations of env={config.env.name} are states here, "
                "so there is no encoder to act on: add obs=pixels, or leave it out."
            )
    if config.env.normalize and pixels:
        raise ConfigError(
            f"env.normalize: the observations of env={config.env.name} are images, which the "
            "networks scale by themselves; leave it out, or add obs=state."
        )
    agent_config = on_policy_settings(config, spec) if declared.on_policy else config.agent
    agent: Agent
    interventions = registry.build_interventions(config, Seeds(config.seed))
    try:
        agent = declared.make(
            agent_config,
            spec,
            seeds=Seeds(config.seed),
            device=device,
            monitor=PlasticityMonitor(
                config.plasticity.every_steps,
                config.plasticity.dormant_threshold,
                critic_each_update=config.replay_ratio == "adaptive",
            ),
            interventions=interventions,
            compute=ComputeOptions(config.precision, config.compile, kernels),
        )
        if plugins.is_plugin(config.agent_name):
            agent = GuardedAgent(agent, config.agent_name)
            _refuse_ignored(interventions, config.agent_name)
    except (ConfigError, KeyboardInterrupt):
        raise
    except Exception as error:
        if is_out_of_memory(error) or (isinstance(error, RuntimeError) and "memory" in str(error)):
            raise ConfigError(
                f"agent={config.agent_name}: its networks do not fit into memory: choose smaller "
                "ones, as with a smaller agent.hidden_dim."
            ) from error
        if plugins.is_plugin(config.agent_name):
            raise ConfigError(
                f"agent={config.agent_name}: make(...) {raised(error)}; expected make(config, "
                "env_spec, *, seeds, device, monitor, interventions, compute) -> the agent."
            ) from error
        raise
    if not config.env.normalize:
        return agent
    what = config.env.normalize.split(",")
    shape = spec.observation.shape if "obs" in what else None
    discount = agent_config.discount if "reward" in what else None
    return NormalizedAgent(agent, Normalizer(shape, discount, spec.mask_size))


def _refuse_ignored(interventions: Sequence[Intervention], agent: str) -> None:
    """Check that an agent has handed its networks to the interventions.

    Raises:
        ConfigError: it has not, so that they would have no effect.
    """
    ignored = [part.name for part in interventions if "modules" not in vars(part)]
    if ignored:
        raise ConfigError(
            f"intervention={ignored[0]}: agent={agent} does nothing with it, as its networks are "
            "not in an AgentModules; leave it out."
        )


def trained_agent(
    config: RunConfig,
    spec: EnvSpec,
    device: torch.device,
    state: Mapping[str, Any],
    *,
    kernels: bool = True,
) -> Agent:
    """The agent of a checkpoint, for an env with this spec.

    Args:
        state: of the checkpoint.
        kernels: see `make_agent`.

    Raises:
        ConfigError: the env has other observations or actions than the run was trained with; or as
            `make_agent`.
    """
    checkpoint.refuse_other_spaces(state, spaces_of(spec), config.env.name)
    agent = make_agent(config, spec, device, kernels=kernels)
    agent.load_state_dict(state["agent"])
    return agent


def on_policy_settings(config: RunConfig, spec: EnvSpec) -> Any:
    """The agent's settings, completed from the action space and the run's length."""
    settings = config.agent.for_actions(spec.action)
    if settings.anneal_steps is None:
        whole_run = -(-config.train_frames // spec.frames_per_step)
        settings = replace(settings, anneal_steps=whole_run)
    return settings


# --- snapshot starts ---


def add_snapshot_starts(
    config: RunConfig,
    train_envs: list[gymnasium.Env],
    agent: Agent,
    message: Callable[[str], None],
    executors: Sequence[EnvExecutor],
) -> list[gymnasium.Env]:
    """The training envs, starting episodes at snapshots if `snapshot=` is set.

    The envs share one step counter and one selection rule. Each is wrapped by its own executor,
    because the wrapper's check of exact restoring may already create a GL context.

    Raises:
        ConfigError: the snapshots do not load, or do not fit the env.
    """
    if config.snapshot is None:
        return train_envs
    from rlearly.envs.snapshots.dataset import Snapshots  # imports h5py
    from rlearly.envs.snapshots.selection import student_clusters
    from rlearly.envs.snapshots.step_counter import LocalStepCounter
    from rlearly.envs.snapshots.wrapper import SnapshotRL

    path = Path(config.snapshot)
    if not path.is_file():
        raise ConfigError(
            f"snapshot: this run starts its episodes from {path}, which is not there: put it "
            "back, or say where it is now with snapshot=FILE."
        )
    if config.snapshot_sha256 not in (None, sha256(path)):
        raise ConfigError(
            f"snapshot: {path} is not the file that this run began with (its SHA-256 was "
            f"{config.snapshot_sha256}): put that file back, or start a new run."
        )
    phase = config.snapshot_phase
    snapshots, counter = Snapshots.load(path), LocalStepCounter()
    clusters = phase.clusters or student_clusters(config.agent_name)
    rule = make_selection(phase, clusters)
    probability: Any = phase.probability
    if phase.probability_end is not None:
        probability = Linear(phase.probability, phase.probability_end, phase.until_steps)

    def critic(obs: Any) -> float:
        return float(agent.value(stack_observations([obs]))[0])

    rule_name = f"{clusters} clusters" if phase.selection == "clusters" else phase.selection
    truncate = phase.truncate_steps
    limit = f"truncated after {truncate} steps" if truncate else "not truncated"
    message(
        f"snapshots: {len(snapshots)} of {snapshots.env_id} from {path}, {rule_name}, for the "
        f"first {phase.until_steps:,} agent steps, {limit}"
    )
    rules = snapshots.provenance.get("env_rules", config.env.rules)
    if rules != config.env.rules:
        message(
            f"snapshots: their values were learned from the rewards of env.rules={rules}, but this "
            f"run uses env.rules={config.env.rules}"
        )
    if phase.selection == "reverse_forward" and truncate:
        _check_time_to_succeed(phase, int(snapshots.steps.max()), message)
    if phase.until_steps * config.env.action_repeat >= config.train_frames:
        paper = f"; the paper's until_steps={phase.until_steps} is for a run of a million steps"
        is_paper = phase.until_steps == 100_000
        message(f"snapshots: the phase lasts as long as the run{paper if is_paper else ''}")
    wrapped: list[gymnasium.Env] = [
        executor.run(
            SnapshotRL,
            env,
            snapshots,
            rule,
            truncate_steps=phase.truncate_steps,
            until_steps=phase.until_steps,
            probability=probability,
            counter=counter,
            critic=critic if rule_uses_scores(phase) else None,
            discount=config.agent.discount,
            keep=phase.keep,
            take=phase.take,
        )
        for env, executor in zip(train_envs, executors, strict=True)
    ]
    for line in wrapped[0].get_wrapper_attr("differences"):
        message(f"snapshots: {line[0].lower()}{line[1:].rstrip('.')}")
    return wrapped


def rule_uses_scores(phase: SnapshotConfig) -> bool:
    """Whether the selection rule needs the learner's error in the episodes that it started."""
    from rlearly.envs.snapshots.own_rule import uses_scores

    if plugins.is_plugin(phase.selection):
        return uses_scores(phase.selection, phase.selection_kwargs)
    return phase.selection == "learner_error"


def make_selection(phase: SnapshotConfig, clusters: int) -> Any:
    """The selection rule that a config names; `clusters` is for "clusters" only."""
    from rlearly.envs.snapshots import curricula, own_rule, selection

    if plugins.is_plugin(phase.selection):
        return own_rule.own_rule(phase.selection, phase.selection_kwargs)
    window, reverse = phase.window, phase.reverse
    rules: dict[str, Callable[[], Any]] = {
        "uniform": selection.Uniform,
        "clusters": lambda: selection.ValueClusters(clusters),
        "return_to_go": selection.ReturnToGo,
        "novelty": selection.Novelty,
        "learner_error": selection.LearnerError,
        "forward_window": lambda: curricula.DemonstrationWindow("forward", **vars(window)),
        "reverse_window": lambda: curricula.DemonstrationWindow("reverse", **vars(window)),
        "reverse_forward": lambda: curricula.ReverseForward(**vars(reverse)),
    }
    return rules[phase.selection]()


def _check_time_to_succeed(
    phase: SnapshotConfig, most_steps: int, message: Callable[[str], None]
) -> None:
    """Check that truncated episodes can succeed from a demonstration's first snapshot.

    Raises:
        ConfigError: success is a share of the demonstrations' return, which takes as many steps.
    """
    truncate = phase.truncate_steps
    if truncate is None or truncate >= most_steps:
        return
    if phase.reverse.return_share is not None:
        raise ConfigError(
            f"snapshot_phase.truncate_steps: expected at least the demonstrations' {most_steps} "
            f"steps or null, received {truncate}: a shorter episode cannot reach their return, "
            "which snapshot_phase.reverse.return_share asks for."
        )
    message(
        f"snapshots: an episode has {truncate} steps to succeed, and the demonstrations take up to "
        f"{most_steps}; snapshot_phase.truncate_steps=null lifts the limit"
    )


# --- jump start ---


def add_jump_start(
    config: RunConfig,
    train_envs: list[gymnasium.Env],
    spec: EnvSpec,
    message: Callable[[str], None],
) -> list[gymnasium.Env]:
    """The training envs, whose episodes a teacher begins if a jump start is set.

    The envs share one schedule. A run's agent observes and acts as the student does; a model of
    another library does so as the env itself, below the agent's view of it.

    Raises:
        ConfigError: the teacher is not there, or is another one than the run began with.
    """
    if config.jump_start.run is None and config.jump_start.model is None:
        return train_envs
    from rlearly.envs.snapshots.jump_start import GuideCurriculum, JumpStart, RandomGuide

    settings = config.jump_start
    schedule: Any = RandomGuide(settings.episode_steps)
    if settings.schedule == "curriculum":
        schedule = GuideCurriculum(
            settings.stages, settings.tolerance, settings.episodes, settings.episode_steps
        )
    if settings.model is not None:
        message(
            f"jump start: {settings.model} begins each training episode, {settings.schedule}; its "
            "steps are not counted as this run's"
        )
        for env in train_envs:
            view = find_wrapper(env, ScaledActions | ZeroBasedActions)
            view.env = JumpStart(view.env, model_policy(config, view.env, message), schedule)
        return train_envs
    policy = teacher_policy(config, spec)
    if normalises(train_envs[0]):
        message(
            f"jump start: {config.env.name} scales observations or rewards by running statistics: "
            "the teacher sees this run's statistics, but was trained with those of its own run"
        )
    message(
        f"jump start: {settings.run} at {_named(settings.checkpoint)} begins each training "
        f"episode, {settings.schedule}; its steps are not counted as this run's"
    )
    if not run_directory.is_done(Path(str(settings.run))):
        message(
            f"jump start: {settings.run} has not finished; if it trains on, it deletes old "
            "checkpoints, and this run cannot be resumed without the one above: to be safe, copy "
            "that folder and start with jump_start.run=COPY"
        )
    return [JumpStart(env, policy, schedule) for env in train_envs]


def teacher_policy(config: RunConfig, spec: EnvSpec) -> Callable[[Any], Any]:
    """The mean action of the agent of `jump_start.run`, for one observation; on a CPU."""
    run, frames = Path(str(config.jump_start.run)), config.jump_start.checkpoint
    if not run.is_dir():
        raise ConfigError(
            f"jump_start.run: this run's episodes are begun by the teacher {run}, which is not "
            "there: put it back, or say where it is now with jump_start.run=RUN_DIR."
        )
    if not checkpoint.is_kept(run / "checkpoints", frames):
        raise ConfigError(
            f"jump_start.run: {run} has deleted its checkpoint at {_named(frames)}, which this "
            "run's teacher is loaded from: put it back, or start a new run with a teacher that has "
            "finished."
        )
    if checkpoint.digest(run / "checkpoints", frames) != config.jump_start.sha256:
        raise ConfigError(
            f"jump_start.run: the checkpoint at {_named(frames)} in {run} is not the one that this "
            f"run began with (the SHA-256 of its manifest was {config.jump_start.sha256}): put "
            "that one back, or start a new run."
        )
    teacher = resolve.load(run)
    precision = "fp32" if teacher.precision == "tf32" else teacher.precision
    teacher = replace(teacher, device="cpu", compile=False, precision=precision)
    _, state = checkpoint.load_at(run / "checkpoints", frames)
    agent = trained_agent(teacher, spec, torch.device("cpu"), state)
    step = state["trainer"]["steps"]
    return lambda obs: agent.act(stack_observations([obs]), step=step, explore=False)[0]


def _named(chosen: checkpoint.Chosen) -> str:
    """A chosen checkpoint, for a message."""
    return f"{chosen:,} frames" if isinstance(chosen, int) else "its best evaluation"


def model_policy(
    config: RunConfig, env: gymnasium.Env, message: Callable[[str], None]
) -> Callable[[Any], Any]:
    """The policy of `jump_start.model`, for the env's own observations and actions."""
    from rlearly.envs.snapshots.pretrained import read_model

    settings = config.jump_start
    path = Path(str(settings.model))
    if resolve.model_sha256(path, settings.normalize) != settings.sha256:
        raise ConfigError(
            f"jump_start.model: {path} or its statistics are not those that this run began with "
            f"(their SHA-256 was {settings.sha256}): put them back, or start a new run."
        )
    try:
        model = read_model(
            path,
            env,
            trust=settings.trust,
            normalize=settings.normalize,
            algo=settings.algo,
        )
    except ConfigError as error:
        raise ConfigError(f"jump_start.model: {error}") from None
    for note in model.notes:
        message(f"jump start: {note}")
    return model.act


# --- beginning from another run ---


def find_ancestor(
    config: RunConfig, spec: EnvSpec, message: Callable[[str], None]
) -> Ancestor | None:
    """The run that this one begins from; None: it begins from nothing.

    It is read only when the run begins: a resumed run does not need it.
    """
    settings = config.start_from
    if settings.run is None:
        return None
    nstep, frame_stack = 1, 1
    if "replay" in (settings.parts or ()) and Path(settings.run).is_dir():
        there = resolve.load(Path(settings.run))
        annealing = annealing_for(there.agent)
        nstep = annealing.max_nstep if annealing else there.agent.nstep
        frame_stack = there.env.frame_stack
    return Ancestor(settings, nstep, frame_stack, spaces_of(spec), message)


def spaces_of(spec: EnvSpec) -> dict[str, str]:
    """An env's observations and actions in words: their kinds and shapes, without bounds."""
    mask = f" with a mask of {spec.mask_size} actions" if spec.action_mask else ""
    return {
        "observations": describe_space(spec.observation) + mask,
        "actions": describe_space(spec.action),
    }


# --- data pipeline ---


@dataclass(frozen=True)
class DataPipeline:
    """What an agent learns from, in batches of which size, and when. `summary`: one line on it."""

    memory: Memory
    update_schedule: UpdateSchedule
    batch_size: int
    summary: str


def make_data_pipeline(
    config: RunConfig, spec: EnvSpec, device: torch.device, folder: Path
) -> DataPipeline:
    """Rollouts for an on-policy agent, replay for the others.

    Raises:
        ConfigError: the replay does not fit.
    """
    if agent_spec(config.agent_name).on_policy:
        steps, num_envs = on_policy_settings(config, spec).rollout_steps, config.num_envs
        return DataPipeline(
            RolloutBuffer(spec, steps=steps, num_envs=num_envs),
            OncePerRollout(steps * num_envs),
            steps * num_envs,
            f"rollouts: {num_envs} x {steps:,} steps, each learned from once",
        )
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
            nstep=annealing.max_nstep if annealing else config.agent.nstep,
            discount=config.agent.discount,
            annealing=annealing,
            num_envs=config.num_envs,
            generator=generator,
            device=device,
            frames=storage.make_store(capacity),
        )
        for _ in range(config.num_envs)
    ]
    memory: Any = VectorReplayBuffer(buffers, generator)
    if config.replay.prefetch:
        memory = PrefetchedReplay(memory, config.replay.prefetch)
    schedule = off_policy_schedule(config.replay_ratio, config.adaptive_ratio)
    return DataPipeline(memory, schedule, config.agent.batch_size, storage.summary)


def transition_layout(config: RunConfig, spec: EnvSpec) -> TransitionLayout:
    """How replay stores this run's transitions."""
    space: Any = spec.observation
    frames = space[PIXELS] if is_fused(space) else space
    stack = config.env.frame_stack if has_images(space) else 1
    return TransitionLayout(
        frame_shape=(frames.shape[0] // stack, *frames.shape[1:]),
        frame_dtype=str(frames.dtype),
        frame_stack=stack,
        actions=0 if isinstance(spec.action, Discrete) else spec.action.shape[0],
        vector=space[VECTOR].shape[0] if is_fused(space) else 0,
    )


def replay_slots(config: RunConfig) -> int:
    """Slots of the replay that the run will have filled by its end, at most its capacity.

    An episode adds one final observation; episodes of 25 steps or more are assumed.
    """
    if "replay" in (config.start_from.parts or ()):
        return config.replay.capacity
    steps = config.train_frames // config.env.action_repeat
    return min(config.replay.capacity, int(steps * 1.04) + 100)


def known_replay_bytes(config: RunConfig) -> int | None:
    """Bytes of the replay, as far as the config tells: 0 on policy, from pixels the frames' bytes.

    Frames are taken to be in colour, Atari's to be grey; those that a gymnasium env observes may
    have other planes.
    None if only the env knows the size of an observation.
    """
    if agent_spec(config.agent_name).on_policy:
        return 0
    if not config.env.pixels:
        return None
    size = config.env.image_size
    planes = 1 if config.env.family == "atari" else 3
    frame = TransitionLayout((planes, size, size), "uint8", config.env.frame_stack, actions=0)
    return replay_slots(config) * transition_bytes(config.replay, frame)


# --- notes ---

SLOW_FRAMES = 20_000
"""Frames of learning from pixels that take many minutes on a CPU."""


def _notes(
    config: RunConfig, trainer_config: TrainerConfig, spec: EnvSpec, device: torch.device
) -> Iterator[str]:
    """Notes for the user: replay ratio, interventions, settings without effect, slow settings."""
    on_policy = agent_spec(config.agent_name).on_policy
    if config.precision == "bf16" and not machine.has_native_bfloat16(device):
        yield "precision=bf16: this processor has no bfloat16 arithmetic; fp32 is faster here"
    if config.precision == "bf16" and on_policy:
        yield "precision=bf16: the minibatches are too small to gain from it; fp32 is faster"
    if not on_policy:
        yield f"replay ratio: {config.replay_ratio}"
    if config.intervention:
        yield f"interventions: {', '.join(config.intervention)}"
    if not on_policy and "networks" in (config.start_from.parts or ()):
        yield (
            "start_from: actions are the policy's from the first step, with the exploration of a "
            f"new run; updates begin at {trainer_config.seed_frames:,} frames"
        )
    steps = config.train_frames / config.env.action_repeat
    for name in config.intervention or ():
        for key in ("at_step", "every_steps"):
            first = getattr(registry.settings_of(config, name), key, 0)
            group = "intervention_kwargs" if plugins.is_plugin(name) else name
            if first >= steps:
                yield (
                    f"{name}: has no effect in this run of {steps:,.0f} agent steps, as "
                    f"{group}.{key}={first}"
                )
    first_update = trainer_config.seed_frames
    if on_policy:
        first_update = trainer_config.batch_size * trainer_config.frames_per_step
    if config.train_frames < first_update:
        yield f"this run ends before its first update, at {first_update:,} frames"
    slow = device.type == "cpu" and config.preset == "paper" and has_images(spec.observation)
    if slow and config.train_frames - trainer_config.seed_frames >= SLOW_FRAMES:
        yield (
            f"no GPU: {config.train_frames:,} frames from pixels at the paper's size take very "
            "long on a CPU (a million take days); preset=cpu is a small setting, train_frames= a "
            "shorter run"
        )
