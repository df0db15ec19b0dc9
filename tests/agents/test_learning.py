"""Agents learn what nobody can do without looking, from pixels and from states."""

import gymnasium
import numpy as np
import pytest
import torch
from conftest import TINY, TINY_STATE, Silent

from rlearly import envs
from rlearly.config import resolve
from rlearly.envs.wrappers import PixelVectorObservation
from rlearly.system.seeding import Seeds
from rlearly.training import builder
from rlearly.training.evaluation import evaluate
from rlearly.training.sinks import JsonLines, Sinks

BLIND_BOUND = 5.0
"""Who does not look gets this at most for the worse of the two goals (see tiny_envs)."""

THRESHOLD = 8.0


STANDING_STILL = 7.0
"""What the best blind policy of StateReach gets in these episodes (see tiny_envs)."""


def returns(trainer, env):
    return evaluate(
        trainer.agent, env, episodes=20, seeds=Seeds(7).sequence("evaluation"), step=10**6
    ).returns


def make_trainer(folder, config):
    return builder.build(
        config,
        folder,
        make_sinks=lambda: Sinks(JsonLines(folder / "metrics.jsonl"), []),
        display=Silent(),
        device=torch.device("cpu"),
    )


TINY_Q = [
    word
    for word in TINY
    if not word.startswith(("agent.feature_dim", "agent.std_", "agent.exploration", "env="))
]
TINY_Q += ["env=tiny_envs:StepPixelReach-v0", "agent.epsilon_steps=300"]
"""For drq_eps, with its own n = 10 and the target network synced at every update."""


@pytest.mark.parametrize("agent", ["drqv2", "drm", "drq_eps"])
def test_agent_learns_to_look(tmp_path, agent):
    own = TINY
    if agent == "drq_eps":
        own = [*TINY_Q, "agent.nstep=10", "agent.target_every_updates=1", "agent.discount=0.9"]
    config = resolve.compose([*own, f"agent={agent}", "train_frames=1500", "replay_ratio=1"])
    trainer = make_trainer(tmp_path, config)
    env = builder.make_env(config)
    assert min(returns(trainer, env)) <= BLIND_BOUND + 0.5, "an untrained agent must not pass"
    trainer.run()
    assert min(returns(trainer, env)) >= THRESHOLD


class Blank(gymnasium.ObservationWrapper):
    """Images that show nothing."""

    def observation(self, observation):
        return np.zeros_like(observation)


@pytest.mark.parametrize(
    ("shown", "frames"), [("vector", 800), pytest.param("image", 2500, marks=pytest.mark.slow)]
)
def test_agent_learns_from_either_part_of_a_fused_observation(tmp_path, monkeypatch, shown, frames):
    """Where the goal is stands in the vector alone, or in the image alone."""
    usual = envs.make

    def make(config, **words):
        env = usual(config, **words)
        if shown == "image":
            return PixelVectorObservation(env, lambda: np.array([0.5]), 1)
        return PixelVectorObservation(Blank(env), lambda: np.sign([env.unwrapped.goal]), 1)

    monkeypatch.setattr(envs, "make", make)
    words = ["agent=drqv2", f"train_frames={frames}", "replay_ratio=1"]
    config = resolve.compose([*TINY, *words])
    trainer = make_trainer(tmp_path, config)
    env = builder.make_env(config)
    assert min(returns(trainer, env)) <= BLIND_BOUND + 0.5, "an untrained agent must not pass"
    trainer.run()
    assert min(returns(trainer, env)) >= THRESHOLD


SWITCHES = {
    "td3": "precision=bf16 replay.storage=disk replay.prefetch=2 overlap=true",
    "drqv2": "precision=bf16 replay.compression=zstd replay.prefetch=2 overlap=true",
}


@pytest.mark.parametrize("agent", SWITCHES)
def test_agent_learns_with_every_switch_on(tmp_path, agent):
    own = [*TINY, "train_frames=1500"] if agent == "drqv2" else [*TINY_STATE[agent]]
    words = [*own, f"agent={agent}", *SWITCHES[agent].split(), "replay_ratio=1"]
    if agent == "td3":
        words.append("train_frames=900")
    trainer = make_trainer(tmp_path, resolve.compose(words))
    trainer.run()
    env = builder.make_env(resolve.compose(words))
    result = returns(trainer, env)
    trainer.close()
    assert min(result) >= THRESHOLD if agent == "drqv2" else np.mean(result) >= 8.5


@pytest.mark.parametrize("num_envs", [1, 4])
@pytest.mark.parametrize(
    "agent, frames", [("td3", 900), ("sac", 900), ("ppo", 5000), ("drq_eps", 1600)]
)
def test_agent_learns_to_reach(tmp_path, agent, frames, num_envs):
    words = [f"train_frames={frames}", f"num_envs={num_envs}"]
    if agent == "ppo":
        words.append(f"agent.rollout_steps={128 // num_envs}")
    config = resolve.compose([*TINY_STATE[agent], *words])
    trainer = make_trainer(tmp_path, config)
    env = builder.make_env(config)
    assert np.mean(returns(trainer, env)) <= STANDING_STILL, "an untrained agent must not pass"
    trainer.run()
    assert np.mean(returns(trainer, env)) >= 8.5
