"""The settings of a run: `RunConfig` and its groups.

Each field states its default, its bounds and its help text; `--help`, the checks and the errors
all come from there. Each agent defines its own group, next to its code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlearly.config.fields import group, setting
from rlearly.config.interventions import (
    AugmentationConfig,
    CReLUConfig,
    FreezeEncoderConfig,
    InjectionConfig,
    L2InitConfig,
    LayerNormConfig,
    ReDoConfig,
    ResetConfig,
    ShrinkPerturbConfig,
    SpectralNormConfig,
    WeightDecayConfig,
)


@dataclass(frozen=True)
class EnvConfig:
    """The env."""

    name: str = setting("", "name given with env=NAME")
    family: str = setting("dm_control", "module of rlearly/envs that makes the env")
    pixels: bool | None = setting(
        None, "observe images; null: yes, but gymnasium envs only if they do"
    )
    action_repeat: int = setting(2, "simulator frames per agent step", at_least=1)
    frame_stack: int = setting(3, "images stacked in one pixel observation", at_least=1)
    image_size: int = setting(84, "height and width of images, in pixels", at_least=15, at_most=480)
    render: str = setting(
        "exact",
        "fast: without shadows, reflections and multisampling, so images differ",
        choices=("exact", "fast"),
    )
    camera: int | None = setting(None, "camera number; null: the default of the env's family")
    rules: str = setting(
        "paper",
        "Adroit: paper (DrM) or package (gymnasium-robotics); Atari: paper (Atari-100k) or sticky",
        choices=("paper", "package", "sticky"),
    )
    max_episode_steps: int | None = setting(
        None,
        "env steps, counting each repeat of an action, after which an episode is truncated; "
        "null: the limit that the env is registered with",
        at_least=1,
    )
    kwargs: dict[str, Any] = setting(
        {}, "extra arguments of gymnasium.make; Atari: full_action_space, mode, difficulty"
    )
    normalize: str | None = setting(
        None,
        "obs, reward or both (obs,reward): scale them by running statistics, for an off-policy "
        "agent that learns from states; evaluations report unscaled returns",
    )


@dataclass(frozen=True)
class ReplayConfig:
    """The replay buffer of off-policy agents."""

    capacity: int = setting(1_000_000, "transitions kept, over all envs together", at_least=10)
    compression: str = setting(
        "none",
        "zstd: compress images, without loss, to about a third of the memory",
        choices=("none", "zstd"),
    )
    storage: str = setting(
        "memory",
        "disk: keep frames in a file, which is deleted when the run ends",
        choices=("memory", "disk"),
    )
    folder: str | None = setting(None, "folder of that file; null: the run directory")
    device: str = setting(
        "auto",
        "where frames are kept; auto: on the learner's GPU if they all fit",
        choices=("auto", "cpu", "cuda"),
    )
    prefetch: int = setting(
        0, "batches that a thread samples ahead (same results); 0: off", at_least=0, at_most=8
    )


@dataclass(frozen=True)
class WindowConfig:
    """Selection rules forward_window and reverse_window (robosuite)."""

    first_steps: int = setting(25, "width of the first window, in the teacher's steps", at_least=1)
    widen_steps: int = setting(25, "how much wider each later window is; 0: not at all", at_least=0)
    every_resets: int = setting(100, "starts drawn from a window before it widens", at_least=1)


@dataclass(frozen=True)
class ReverseConfig:
    """Selection rule reverse_forward (RFCL)."""

    back_steps: int = setting(8, "how far a start moves back, in the teacher's steps", at_least=1)
    episodes: int = setting(3, "newest episodes from a start that decide on it", at_least=1)
    success_rate: float = setting(
        1.0, "share of them that must succeed for the start to move", above=0, at_most=1
    )
    return_share: float | None = setting(
        None,
        "an episode with this share of the teacher's return succeeded; null: the env reports it",
        above=0,
    )
    seeds: int = setting(1000, "ordinary starts of the forward stage", at_least=1)


@dataclass(frozen=True)
class SnapshotConfig:
    """How training episodes start from the snapshots of `snapshot=FILE` (SnapshotRL, S3RL)."""

    selection: str = setting(
        "clusters",
        "how snapshots are chosen; clusters: as in S3RL",
        choices=(
            "uniform",
            "clusters",
            "return_to_go",
            "novelty",
            "learner_error",
            "forward_window",
            "reverse_window",
            "reverse_forward",
        ),
        or_plugin=True,
    )
    selection_kwargs: dict[str, Any] = setting({}, "arguments of a selection rule of your own")
    clusters: int | None = setting(
        None, "number of clusters; null: as in the paper, 4 for sac, else 6", at_least=1
    )
    truncate_steps: int | None = setting(
        100, "most agent steps in an episode that began at a snapshot; null: no limit", at_least=1
    )
    until_steps: int = setting(
        100_000,
        "length of the phase in agent steps; the default is the paper's, for runs of a million",
        at_least=0,
    )
    probability: float = setting(
        1.0, "probability that an episode starts at a snapshot", at_least=0, at_most=1
    )
    probability_end: float | None = setting(
        None,
        "probability at the end of the phase, reached linearly; null: constant",
        at_least=0,
        at_most=1,
    )
    keep_replay: bool = setting(True, "false: clear the replay buffer at the end of the phase")
    keep: tuple[str, ...] = setting(
        (),
        "names of attributes of the env that snapshots leave alone although episodes change them",
    )
    take: tuple[str, ...] = setting(
        (), "names of attributes that come from the snapshot although no episode changes them"
    )
    window: WindowConfig = group(WindowConfig, "selection=forward_window or reverse_window")
    reverse: ReverseConfig = group(ReverseConfig, "selection=reverse_forward")


@dataclass(frozen=True)
class JumpStartConfig:
    """A teacher plays the first steps of each training episode (JSRL)."""

    run: str | None = setting(None, "run directory of the teacher, an rlearly agent")
    checkpoint: Any = setting(
        None, "checkpoint of that run, by its number of frames, or best; null: the newest"
    )
    model: str | None = setting(
        None, "or the teacher's model file, of Stable-Baselines3 (.zip) or CleanRL (.cleanrl_model)"
    )
    trust: bool = setting(
        False, "load a .zip or .pkl, which runs code: only if you trust its author"
    )
    normalize: str | None = setting(
        None, "VecNormalize's .pkl of a .zip; null: the one beside it; none: play without"
    )
    algo: str | None = setting(None, "algorithm of a .zip, as in PPO; null: recognised")
    schedule: str = setting(
        "curriculum",
        "the teacher's part shrinks with the student's returns, or is drawn for each episode",
        choices=("curriculum", "random"),
    )
    stages: int = setting(10, "stages in which it shrinks to none", at_least=1)
    tolerance: float = setting(
        0.05, "share by which returns may be below the best for the next stage", at_least=0
    )
    episodes: int = setting(5, "newest training episodes whose mean return decides", at_least=1)
    episode_steps: int | None = setting(
        None, "length of the teacher's episodes in its own steps; null: measured", at_least=1
    )
    sha256: str | None = setting(None, "SHA-256 of the teacher, set automatically")


@dataclass(frozen=True)
class StartFromConfig:
    """A new run that begins with parts of another one: `start_from=RUN`."""

    run: str | None = setting(
        None,
        "run to start from, written start_from=RUN, RUN@FRAMES or RUN@best (see keep_best); "
        "without @: its newest checkpoint",
    )
    parts: tuple[str, ...] | None = setting(
        None,
        "what the run begins with: networks, optimizers, replay, normalizers; null: networks and "
        "normalizers",
    )
    checkpoint: str | None = setting(None, "the checkpoint of that run, set automatically")
    sha256: str | None = setting(None, "SHA-256 of that checkpoint, set automatically")


@dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases tracking, in addition to the local files."""

    mode: str = setting(
        "disabled",
        "offline needs neither network nor API key",
        choices=("disabled", "offline", "online"),
    )
    project: str = setting("rlearly", "project of the run")
    entity: str | None = setting(None, "user or team; null: the account's default")
    group: str | None = setting(None, "group of the run")


@dataclass(frozen=True)
class PlasticityConfig:
    """Plasticity measurements of every network; they do not affect training."""

    every_steps: int = setting(1000, "agent steps between measurements; 0: never", at_least=0)
    dormant_threshold: float = setting(
        0.025, "a unit is dormant if its score is at most this", at_least=0, at_most=1
    )


@dataclass(frozen=True)
class AdaptiveRatioConfig:
    """`replay_ratio=adaptive`: raise the ratio once the critic's plasticity has recovered."""

    low: float = setting(0.5, "updates per agent step before the switch", above=0, at_most=100)
    high: float = setting(2.0, "updates per agent step after the switch", above=0, at_most=100)
    threshold: float = setting(
        0.001,
        "switch if the critic's active fraction (FAU) changes by at most this",
        above=0,
        at_most=1,
    )
    check_every_episodes: int = setting(50, "episodes between checks", at_least=1)
    check_every_steps: int | None = setting(
        None, "agent steps between checks, instead of episodes (paper, Atari: 2000)", at_least=1
    )
    window: str = setting(
        "episode",
        "the FAU is averaged over the last episode (official) or since the last check",
        choices=("episode", "interval"),
    )


@dataclass(frozen=True)
class RunConfig:
    """All settings of one run: the same config gives the same run."""

    agent: Any = setting(None, "settings of the agent, named by agent=NAME")
    env: Any = setting(None, "settings of the env, named by env=NAME")
    agent_name: str = setting("drm", "name given with agent=NAME")
    preset: str = setting(
        "paper",
        "cpu: smaller images, networks and runs, to try things out",
        choices=("paper", "cpu"),
    )
    obs: str = setting("auto", "sets env.pixels", choices=("auto", "pixels", "state"))
    seed: int = setting(0, "seed of everything random in the run", at_least=0)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N; auto: a GPU if there is one")
    threads: int | None = setting(
        None, "CPU threads; null: OMP_NUM_THREADS, or as many as help the agent", at_least=1
    )
    precision: str = setting(
        "fp32",
        "format of hidden layers; tf32: GPUs only; weights, losses and outputs stay fp32",
        choices=("fp32", "tf32", "bf16"),
    )
    compile: bool = setting(False, "compile the networks (for GPUs): slower start, faster updates")
    num_envs: int = setting(1, "envs stepped together", at_least=1)
    overlap: bool | None = setting(None, "step envs in threads; null: if they render images")
    train_frames: int = setting(1_000_000, "simulator frames to train for", at_least=1)
    seed_frames: int | None = setting(
        None, "simulator frames before the first update; null: the agent's default", at_least=0
    )
    replay_ratio: Any = setting(
        0.5,
        "updates per agent step: a number, adaptive, 'linear(START,END,STEPS)' or "
        "'step(FIRST,THEN,AT_STEP)'",
    )
    adaptive_ratio: AdaptiveRatioConfig = group(AdaptiveRatioConfig, "replay_ratio=adaptive")
    eval_every_frames: int = setting(
        10_000, "frames between evaluations, plus one at the end; 0: none", at_least=0
    )
    eval_episodes: int = setting(10, "episodes per evaluation, with the mean action", at_least=1)
    video_size: int = setting(
        256, "height and width of videos in pixels; 0: none", at_least=0, at_most=480, multiple_of=8
    )
    log_every_frames: int = setting(1000, "frames between rows of metrics", at_least=1)
    checkpoint_every_frames: int = setting(
        100_000, "frames between checkpoints; 0: only at the end", at_least=0
    )
    keep_checkpoints: int = setting(2, "newest checkpoints to keep", at_least=1)
    keep_best: str | None = setting(
        None,
        "also keep the checkpoint of the best evaluation: true (by eval/episode_return), or the "
        "eval/ metric that decides; null: no",
    )
    stop_when: tuple[str, ...] | None = setting(
        None,
        "end the run early, judged after each evaluation: 'METRIC>=NUMBER' (or <=, >, <), "
        "'reached(METRIC>=NUMBER,evaluations=N)', "
        "'no_progress(METRIC,evaluations=N,min_delta=NUMBER)', or a list of them",
    )
    callback: tuple[str, ...] | None = setting(
        None, "your own code, called during training: MODULE:NAME, or [MODULE:NAME,...]"
    )
    callback_kwargs: dict[str, Any] = setting(
        {}, "arguments of the callback; with several callbacks: {NAME: {key: value}}"
    )
    replay: ReplayConfig = group(ReplayConfig, "the replay buffer")
    snapshot: str | None = setting(None, "file of a teacher's snapshots to start episodes from")
    snapshot_sha256: str | None = setting(None, "SHA-256 of that file, set automatically")
    snapshot_phase: SnapshotConfig = group(SnapshotConfig, "how snapshots are used")
    jump_start: JumpStartConfig = group(JumpStartConfig, "a teacher that begins each episode")
    start_from: StartFromConfig = group(StartFromConfig, "begin with parts of another run")
    plasticity: PlasticityConfig = group(PlasticityConfig, "plasticity measurements")
    intervention: Any = setting(None, "interventions on the networks: NAME, or [NAME,NAME,...]")
    intervention_kwargs: dict[str, Any] = setting({}, "settings of interventions of your own")
    augmentation: AugmentationConfig = group(AugmentationConfig, "settings of the intervention")
    crelu: CReLUConfig = group(CReLUConfig, "settings of the intervention")
    freeze_encoder: FreezeEncoderConfig = group(FreezeEncoderConfig, "settings of the intervention")
    injection: InjectionConfig = group(InjectionConfig, "settings of the intervention")
    l2_init: L2InitConfig = group(L2InitConfig, "settings of the intervention")
    layer_norm: LayerNormConfig = group(LayerNormConfig, "settings of the intervention")
    redo: ReDoConfig = group(ReDoConfig, "settings of the intervention")
    reset: ResetConfig = group(ResetConfig, "settings of the intervention")
    shrink_perturb: ShrinkPerturbConfig = group(ShrinkPerturbConfig, "settings of the intervention")
    spectral_norm: SpectralNormConfig = group(SpectralNormConfig, "settings of the intervention")
    weight_decay: WeightDecayConfig = group(WeightDecayConfig, "settings of the intervention")
    wandb: WandbConfig = group(WandbConfig, "Weights & Biases tracking")
    run_dir: str | None = setting(
        None, "directory of the run; null: runs/<agent>/<env>/<seed>-<time>"
    )
    resume: str | None = setting(None, "run directory to continue, with the settings saved in it")
