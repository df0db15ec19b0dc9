"""Agents learn from pixels what nobody can do without looking."""

import pytest
import torch
from conftest import TINY
from test_loop import Silent

from rlearly import compose
from rlearly.loop import evaluate
from rlearly.seeding import Seeds
from rlearly.sinks import JsonLines, Sinks

BLIND_BOUND = 5.0
"""Who does not look gets this at most for the worse of the two goals (see tiny_envs)."""

THRESHOLD = 8.0


def worst_return(loop, env):
    result = evaluate(
        loop.agent, env, episodes=20, seeds=Seeds(7).sequence("evaluation"), step=10**6
    )
    return min(result.returns)


@pytest.mark.parametrize("agent", ["drqv2", "drm"])
def test_agent_learns_to_look(tmp_path, agent):
    config = compose.compose([*TINY, f"agent={agent}", "train_frames=900", "replay_ratio=1"])
    loop = compose.build(
        config,
        tmp_path,
        make_sinks=lambda: Sinks(JsonLines(tmp_path / "metrics.jsonl"), []),
        watcher=Silent(),
        device=torch.device("cpu"),
    )
    env = compose.make_env(config)
    assert worst_return(loop, env) <= BLIND_BOUND + 0.5, "an untrained agent must not pass"
    loop.run()
    assert worst_return(loop, env) >= THRESHOLD
