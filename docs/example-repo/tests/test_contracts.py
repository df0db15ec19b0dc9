"""Each part fulfils the contract that rlearly relies on."""

from typing import Any, ClassVar

from my_rl.agent import dqn
from my_rl.intervention import ClipWeights
from my_rl.selection import Backwards

from rlearly.testing import AgentContract, EnvContract, InterventionContract, SelectionContract


class TestCorridor(EnvContract):
    env = "my_rl.env:Corridor-v0"
    most_steps = 30


class TestDQN(AgentContract):
    agent = dqn
    settings: ClassVar[dict[str, Any]] = {
        "batch_size": 8,
        "hidden_dim": 16,
        "target_every_updates": 2,
    }


class TestResidual(AgentContract):
    """The network, in an agent that uses it."""

    agent = "ppo"
    settings: ClassVar[dict[str, Any]] = {
        "rollout_steps": 8,
        "minibatches": 2,
        "network": "my_rl.network:residual",
        "network_kwargs": {"width": 8},
    }


class TestClipWeights(InterventionContract):
    intervention = ClipWeights
    settings: ClassVar[dict[str, Any]] = {"bound": 0.05}


class TestBackwards(SelectionContract):
    rule = Backwards
