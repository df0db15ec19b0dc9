"""Tuned settings for (agent, env) pairs and presets, as command-line overrides.

The numbers are DrM's (arXiv 2310.19668, appendix; official configs) and, for easy tasks,
DrQ-v2's (arXiv 2107.09645, appendix). A task that is in neither paper gets the medium row.
"""

from __future__ import annotations

EASY = {
    "ball_in_cup_catch", "cartpole_balance", "cartpole_balance_sparse", "cartpole_swingup",
    "cup_catch", "finger_spin", "hopper_stand", "pendulum_swingup", "walker_stand", "walker_walk",
}  # fmt: skip
HARD = {
    **dict.fromkeys(("dog_stand", "dog_walk", "dog_run", "humanoid_run"), 0.6),
    **dict.fromkeys(("dog_trot", "humanoid_stand", "humanoid_walk"), 0.9),
    **dict.fromkeys(("manipulator_bring_ball", "acrobot_swingup_sparse"), 0.9),
}
"""Hard task -> DrM's alpha_max. Other tasks with a body in HARD_BODIES are hard too, with 0.9."""

HARD_BODIES = ("dog", "humanoid", "manipulator")
WIDE_BODIES = ("dog", "humanoid")
FRAMES = {"easy": 210_000, "medium": 3_100_000, "hard": 30_100_000}
NOISE_STEPS = {"easy": 40_000, "medium": 500_000, "hard": 2_000_000}


def difficulty(env: str) -> str:
    """The difficulty of a dm_control task: easy, medium or hard."""
    if env in EASY:
        return "easy"
    return "hard" if env in HARD or env.split("_")[0] in HARD_BODIES else "medium"


def tuned(agent: str, env: str) -> list[str]:
    """The overrides for an agent on an env.

    `drqv2` and `drm` share them, except for the settings that only DrM has.
    """
    family, _, task = env.partition("/")
    if agent == "drq_eps":
        return [*(ATARI_100K if family == "atari" else Q_LEARNING)]
    if agent not in ("drqv2", "drm"):
        return []
    if family == "metaworld":
        return _metaworld(agent)
    if family == "adroit":
        return _adroit(agent, task)
    if env[:1].isupper() or ":" in env or "/" in env:  # a gymnasium id: in neither paper
        return []
    level = difficulty(env)
    body = env.split("_")[0]
    overrides = [
        f"train_frames={FRAMES[level]}",
        f"agent.std_duration_steps={NOISE_STEPS[level]}",
    ]
    if body in HARD_BODIES:
        overrides.append("agent.lr=8e-5")
    if body in WIDE_BODIES:
        overrides.append("agent.feature_dim=100")
    if env == "walker_run":
        overrides.append("agent.batch_size=512")
    if env in ("quadruped_walk", "quadruped_run"):
        overrides.append("replay.capacity=100000")
    if agent == "drm":
        alpha_max = HARD.get(env, 0.9) if level == "hard" else 1.0
        overrides += [f"agent.alpha_max={alpha_max}", "agent.lambda_max=0.6"]
    return overrides


ATARI_100K = (
    "train_frames=400000",
    "replay.capacity=100000",
    "eval_every_frames=400000",
    "eval_episodes=100",
    "adaptive_ratio.check_every_steps=2000",
)
"""The protocol of Atari-100k (arXiv 1903.00374) and the adaptive ratio's checks on it (arXiv
2310.07418); the agent's own defaults are for it too. The replay never overflows, as in
Dopamine (capacity 1,000,000)."""

Q_LEARNING = (
    "train_frames=100000",
    "replay.capacity=100000",
    "agent.lr=5e-4",
    "agent.adam_eps=1e-8",
    "agent.batch_size=64",
    "agent.nstep=3",
    "agent.hidden_dim=128",
    "agent.target_every_updates=200",
    "agent.learning_starts_steps=1000",
    "agent.epsilon_end=0.02",
    "agent.epsilon_steps=10000",
)
"""Settings of ours for Q-learning in other envs; they solve CartPole."""


def _metaworld(agent: str) -> list[str]:
    """From cfgs/task/metaworld.yaml and agents/drm_mw.py of DrM's official code."""
    overrides = [
        "train_frames=2100000",
        "agent.nstep=3",
        "agent.nstep_schedule='decay(3,7,1000000)'",
        "agent.discount=0.997",
        "agent.discount_schedule='decay(0.997,-0.02,500000,-0.007,1600000)'",
        "agent.q_dropout=0.01",
        "agent.q_layer_norm=true",
    ]
    if agent == "drm":
        overrides += [
            "agent.alpha_max=0.95",
            "agent.lambda_max=0.5",
            "agent.lambda_constant=true",
        ]
    return overrides


def _adroit(agent: str, task: str) -> list[str]:
    """From cfgs/agent/drm_adroit.yaml, cfgs/task/adroit_medium.yaml and door.yaml (official)."""
    overrides = ["train_frames=6100000", "env.frame_stack=1"]
    if agent == "drm":
        overrides += ["agent.alpha_max=0.9", "agent.lambda_max=0.6"]
        overrides.append(f"agent.expectile={0.6 if task == 'door' else 0.7}")
    return overrides


CPU_PIXELS = (
    "env.image_size=48 env.action_repeat=4 replay_ratio=1 train_frames=60000 seed_frames=4000 "
    "eval_every_frames=5000 eval_episodes=3 checkpoint_every_frames=10000 replay.capacity=100000 "
    "video_size=128 agent.lr=3e-4 agent.batch_size=64 agent.hidden_dim=256 "
    "agent.encoder_channels=16 agent.shift_pixels=2 agent.exploration_steps=500 "
    "agent.std_duration_steps=4000"
)


CPU_ATARI = (
    "env.image_size=42",
    "replay_ratio=0.5",
    "train_frames=100000",
    "eval_every_frames=25000",
    "eval_episodes=5",
    "checkpoint_every_frames=50000",
    "video_size=160",
    "agent.encoder_channels=16",
    "agent.hidden_dim=256",
    "agent.shift_pixels=2",
)


def cpu(agent: str, env: str) -> list[str]:
    """The overrides of `preset=cpu`, which learns on a laptop's CPU.

    The settings are ours, not from a paper: smaller images, networks and batches, an action repeat
    of 4, one update every agent step, faster decay of the exploration noise, and for DrM a
    perturbation every 5000 steps. Atari: images of 42x42, half of the channels and units. Use it to
    try things out; its learning curves are not comparable with published ones.
    """
    if agent == "drq_eps" and env.startswith("atari/"):
        return [*CPU_ATARI]
    if agent not in ("drqv2", "drm"):
        return ["train_frames=200000", "eval_every_frames=5000", "checkpoint_every_frames=50000"]
    return CPU_PIXELS.split() + (["agent.perturb_every_steps=5000"] if agent == "drm" else [])
