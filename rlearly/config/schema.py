"""What a run is made of: RunConfig and its groups, validated, and the override grammar on them.

Each field says in one place what it is, its default and its bounds; `--help`, the checks and the
error sentences are all read off that. Agents keep their own group beside their code.
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
    """The world."""

    name: str = setting("", "what `env=` named")
    family: str = setting("dm_control", "the file of rlearly/envs that makes it")
    pixels: bool | None = setting(None, "observe rendered images; null: gymnasium no, others yes")
    action_repeat: int = setting(2, "simulator frames in one agent step", at_least=1)
    frame_stack: int = setting(3, "images in one pixel observation", at_least=1)
    image_size: int = setting(84, "side of an image in pixels", at_least=15, at_most=480)
    render: str = setting(
        "exact",
        "fast: no shadows, reflections and multisampling, which is another observation",
        choices=("exact", "fast"),
    )
    camera: int | None = setting(None, "camera number; null: the family's usual one")
    rules: str = setting(
        "paper",
        "Adroit's rewards, goals and horizons: DrM's, or package: gymnasium-robotics'",
        choices=("paper", "package"),
    )
    kwargs: dict[str, Any] = setting({}, "further arguments for gymnasium.make; dm_control: none")


@dataclass(frozen=True)
class ReplayConfig:
    """The memory that off-policy agents learn from."""

    capacity: int = setting(1_000_000, "transitions kept, of all copies", at_least=10)
    compression: str = setting(
        "none", "of images, without loss; zstd: a third of the memory", choices=("none", "zstd")
    )
    storage: str = setting(
        "memory",
        "of frames; disk: in a file that is gone when the run ends",
        choices=("memory", "disk"),
    )
    folder: str | None = setting(None, "of that file; null: the run's directory")
    device: str = setting(
        "auto",
        "where frames lie; auto: on the learner's GPU if all of them fit there",
        choices=("auto", "cpu", "cuda"),
    )
    prefetch: int = setting(
        0, "batches gathered ahead by a thread, at most; they are the same", at_least=0, at_most=8
    )


@dataclass(frozen=True)
class SnapshotConfig:
    """How training episodes start from the snapshots of `snapshot=FILE` (SnapshotRL, S3RL)."""

    selection: str = setting(
        "clusters",
        "clusters (S3RL), uniform, return_to_go, novelty or learner_error",
        choices=("uniform", "clusters", "return_to_go", "novelty", "learner_error"),
    )
    clusters: int | None = setting(None, "null: the paper's, 4 for sac, else 6", at_least=1)
    truncate_steps: int | None = setting(
        100, "agent steps of an episode that began at a snapshot; null: no cut", at_least=1
    )
    until_steps: int = setting(
        100_000, "agent steps of the phase (paper: of a million)", at_least=0
    )
    probability: float = setting(
        1.0, "of starting at a snapshot, in the phase", at_least=0, at_most=1
    )
    probability_end: float | None = setting(
        None, "to which it falls in a line over the phase; null: constant", at_least=0, at_most=1
    )
    keep_replay: bool = setting(True, "false: forget the phase's transitions when it ends")


@dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases; the local files are written whatever this says."""

    mode: str = setting(
        "disabled",
        "offline needs neither network nor key",
        choices=("disabled", "offline", "online"),
    )
    project: str = setting("rlearly", "project that runs are filed under")
    entity: str | None = setting(None, "user or team; null: the account's own")
    group: str | None = setting(None, "label that groups runs")


@dataclass(frozen=True)
class PlasticityConfig:
    """What is measured of every network while it learns; it changes nothing in training."""

    every_steps: int = setting(1000, "agent steps between two measurements; 0: never", at_least=0)
    dormant_threshold: float = setting(
        0.025, "a unit of at most this score is dormant", at_least=0, at_most=1
    )


@dataclass(frozen=True)
class AdaptiveRatioConfig:
    """`replay_ratio=adaptive`: raise the ratio once the critic's plasticity has recovered."""

    low: float = setting(0.5, "updates a step until then", above=0, at_most=100)
    high: float = setting(2.0, "updates a step from then on", above=0, at_most=100)
    threshold: float = setting(
        0.001, "change of the critic's FAU that counts as none", above=0, at_most=1
    )
    check_every_episodes: int = setting(50, "episodes from one check to the next", at_least=1)
    check_every_steps: int | None = setting(
        None, "agent steps instead of episodes (paper, Atari: 2000)", at_least=1
    )
    window: str = setting(
        "episode",
        "whose mean FAU is compared: the last episode's (official), or the whole interval's",
        choices=("episode", "interval"),
    )


@dataclass(frozen=True)
class RunConfig:
    """One run, completely: the same config gives the same run."""

    agent: Any = setting(None, "who learns (a name)")
    env: Any = setting(None, "where (a name)")
    agent_name: str = setting("drm", "what `agent=` named")
    preset: str = setting("paper", "size of the whole setting", choices=("paper", "cpu"))
    obs: str = setting(
        "auto", "auto, pixels or state: sets env.pixels", choices=("auto", "pixels", "state")
    )
    seed: int = setting(0, "everything random in the run follows from it", at_least=0)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    threads: int | None = setting(
        None,
        "CPU threads; null: OMP_NUM_THREADS, or as many as help the agent and are free",
        at_least=1,
    )
    precision: str = setting(
        "fp32",
        "of hidden layers: fp32, tf32 (GPUs only) or bf16; weights, losses and outputs are fp32",
        choices=("fp32", "tf32", "bf16"),
    )
    compile: bool = setting(False, "compile networks (for GPUs): a slow start, faster updates")
    num_envs: int = setting(1, "copies of the env stepped together", at_least=1)
    overlap: bool | None = setting(
        None, "step each copy in a thread of its own, beside the update; null: if it draws images"
    )
    train_frames: int = setting(1_000_000, "simulator frames to train for", at_least=1)
    seed_frames: int | None = setting(
        None, "frames before the first update; null: the agent's own", at_least=0
    )
    replay_ratio: Any = setting(
        0.5,
        "updates in one agent step: a number, adaptive, 'linear(START,END,STEPS)' or "
        "'step(FIRST,THEN,AT_STEP)'",
    )
    adaptive_ratio: AdaptiveRatioConfig = group(AdaptiveRatioConfig, "replay_ratio=adaptive")
    eval_every_frames: int = setting(10_000, "0: never", at_least=0)
    eval_episodes: int = setting(10, "episodes in one evaluation, mean action", at_least=1)
    eval_workers: int = setting(1, "of them played side by side, in threads", at_least=1)
    video_size: int = setting(
        256, "side of evaluation videos; 0: none", at_least=0, at_most=480, multiple_of=8
    )
    log_every_frames: int = setting(1000, "how often update metrics are written", at_least=1)
    checkpoint_every_frames: int = setting(100_000, "0: at the end only", at_least=0)
    keep_checkpoints: int = setting(2, "newest ones kept", at_least=1)
    replay: ReplayConfig = group(ReplayConfig, "the memory")
    snapshot: str | None = setting(None, "file of a teacher's snapshots to start episodes from")
    snapshot_sha256: str | None = setting(None, "of that file; filled in, and checked on resuming")
    snapshot_phase: SnapshotConfig = group(SnapshotConfig, "how they are used")
    plasticity: PlasticityConfig = group(PlasticityConfig, "what is measured of the networks")
    intervention: Any = setting(None, "what is done to the networks: a name, or [NAME,NAME,...]")
    augmentation: AugmentationConfig = group(AugmentationConfig, "an intervention")
    crelu: CReLUConfig = group(CReLUConfig, "an intervention")
    freeze_encoder: FreezeEncoderConfig = group(FreezeEncoderConfig, "an intervention")
    injection: InjectionConfig = group(InjectionConfig, "an intervention")
    l2_init: L2InitConfig = group(L2InitConfig, "an intervention")
    layer_norm: LayerNormConfig = group(LayerNormConfig, "an intervention")
    redo: ReDoConfig = group(ReDoConfig, "an intervention")
    reset: ResetConfig = group(ResetConfig, "an intervention")
    shrink_perturb: ShrinkPerturbConfig = group(ShrinkPerturbConfig, "an intervention")
    spectral_norm: SpectralNormConfig = group(SpectralNormConfig, "an intervention")
    weight_decay: WeightDecayConfig = group(WeightDecayConfig, "an intervention")
    wandb: WandbConfig = group(WandbConfig, "tracking beside the local files")
    run_dir: str | None = setting(None, "null: runs/<agent>/<env>/<seed>-<time>")
    resume: str | None = setting(None, "a run directory to continue; everything else is read there")
