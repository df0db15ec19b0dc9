"""The names of what runs write down, as far as they are known without running."""

from __future__ import annotations

from rlearly.config.structured import did_you_mean
from rlearly.core.errors import ConfigError

PARTS = ("encoder", "actor", "critic", "critic_q1", "critic_q2", "value")
MEASURES = (
    "dormant_ratio",
    "fau",
    "effective_rank",
    "stable_rank",
    "threshold_rank",
    "weight_norm",
    "gradient_norm",
    "distance",
)
METRICS = {
    "plasticity": ["dormant_ratio", *(f"{what}_{of}" for what in MEASURES for of in PARTS)],
    "train": [
        "episode_return",
        "episode_length_steps",
        "episode_success",
        "snapshot_episode_return",
        "snapshot_episode_length_steps",
        "snapshot_episode_success",
        "episodes",
        "updates",
        "replay_ratio",
    ],
    "eval": [
        "episode_return",
        "episode_return_std",
        "episode_length_steps",
        "success_rate",
        "episodes",
        "seconds",
    ],
    "loss": ["critic", "actor", "alpha", "value"],
    "critic": ["q1", "q2", "target_q", "explained_variance", "value"],
    "policy": ["entropy", "alpha", "lr", "std", "kl", "clip_fraction"],
    "exploration": ["std", "awaken_step"],
    "replay": ["transitions", "batch_reward", "nstep", "discount"],
    "speed": ["frames_per_second", "updates_per_second", "elapsed_seconds", "checkpoint_seconds"],
    "event": [
        "replay_ratio",
        "fau_critic",
        "fau_critic_before",
        "injection",
        "freeze_encoder",
        "augmentation",
        "perturbation_alpha",
        "reset",
        "recycled_units",
    ],
}
"""By group; a test holds them against the code."""


def check_metric(name: str) -> None:
    """Raises:
    ConfigError: no run writes anything of this name.
    """
    every = [f"{group}/{one}" for group, names in METRICS.items() for one in names]
    if name in every:
        return
    group = name.partition("/")[0]
    own = [one for one in every if one.startswith(f"{group}/")]
    hint = did_you_mean(name, every)
    if own and not hint.startswith("did you"):
        hint = f"of this group there are {', '.join(own)}."
    if not own and not hint.startswith("did you"):
        hint = f"groups: {', '.join(METRICS)}."
    raise ConfigError(f"metrics: no run writes {name!r}; {hint}")
