"""The metrics that runs write, by group. A test compares them with the code."""

from __future__ import annotations

from rlearly.config.structured import did_you_mean
from rlearly.core.errors import ConfigError

PARTS = ("encoder", "actor", "critic", "critic_q1", "critic_q2", "value")
_NAMES = {
    "plasticity": "dormant_ratio fau effective_rank stable_rank threshold_rank weight_norm "
    "gradient_norm distance",
    "train": "episode_return episode_length_steps episode_success snapshot_episode_return "
    "snapshot_episode_length_steps snapshot_episode_success guided_episode_return "
    "guided_episode_length_steps guided_episode_success guide_steps game_return episodes updates "
    "replay_ratio",
    "eval": "episode_return episode_return_std episode_length_steps success_rate episodes seconds",
    "loss": "critic actor alpha value",
    "critic": "q q1 q2 target_q explained_variance value",
    "policy": "entropy alpha lr std kl clip_fraction",
    "exploration": "std epsilon awaken_step",
    "replay": "transitions batch_reward nstep discount",
    "speed": "frames_per_second updates_per_second elapsed_seconds checkpoint_seconds",
    "event": "replay_ratio fau_critic fau_critic_before injection freeze_encoder augmentation "
    "perturbation_alpha reset recycled_units",
}
METRICS = {group: names.split() for group, names in _NAMES.items()}
METRICS["plasticity"] = [
    "dormant_ratio",
    *(f"{measure}_{part}" for measure in METRICS["plasticity"] for part in PARTS),
]


KNOWN = frozenset(f"{group}/{metric}" for group, metrics in METRICS.items() for metric in metrics)


def check_metric(name: str, key: str = "metrics") -> None:
    """Check that runs write a metric of this name; `key`: the setting that names it.

    Raises:
        ConfigError: none does; the message lists similar names, or those of its group.
    """
    if name in KNOWN:
        return
    hint = did_you_mean(name, KNOWN)
    if not hint.startswith("did you"):
        group = sorted(known for known in KNOWN if known.startswith(name.partition("/")[0] + "/"))
        hint = f"groups: {', '.join(METRICS)}."
        hint = f"metrics of this group: {', '.join(group)}." if group else hint
    raise ConfigError(f"{key}: no run writes {name!r}; {hint}")
