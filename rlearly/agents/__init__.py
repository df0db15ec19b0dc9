"""The agents, one file each. A file ends with `SPEC`, all that a run must know about its agent.

An agent of your own is an `AgentSpec` in a module of yours, named `module:NAME`.
"""

from __future__ import annotations

import importlib

from rlearly.agents.spec import AgentSpec as AgentSpec
from rlearly.agents.spec import check_spec
from rlearly.config import plugins
from rlearly.config.structured import did_you_mean
from rlearly.core.errors import ConfigError

AGENTS = {
    "drm": "DrM: minimise the dormant ratio, from pixels (arXiv 2310.19668)",
    "drq_eps": "DrQ(eps): dueling double Q-learning, for discrete actions (arXiv 2108.13264)",
    "drqv2": "DrQ-v2: data-augmented actor-critic, from pixels (arXiv 2107.09645)",
    "ppo": "PPO: clipped policy gradients from rollouts, from states (arXiv 1707.06347)",
    "sac": "SAC: soft actor-critic with a learned entropy weight, from states (arXiv 1812.05905)",
    "td3": "TD3: twin delayed actor-critic, from states (arXiv 1802.09477)",
}
"""Name of the agent and of its module -> one line of help."""


def agent_spec(name: str) -> AgentSpec:
    """The SPEC of a registered agent, or of `module:NAME`; imported only when asked for.

    Raises:
        ConfigError: there is no such agent, or the plug-in's AgentSpec cannot be used.
    """
    if name in AGENTS:
        return importlib.import_module(f"rlearly.agents.{name}").SPEC
    if plugins.is_plugin(name):
        spec = plugins.load("agent", name, "an AgentSpec", lambda it: isinstance(it, AgentSpec))
        check_spec(name, spec)
        return spec
    raise ConfigError(
        f"There is no agent {name!r}; {did_you_mean(str(name), AGENTS)} Your own is "
        "agent=module:NAME, an AgentSpec in a module of yours."
    )


def agents_for(*, actions: str | None = None, images: bool = False) -> str:
    """The agents that fit, for an error message: "agent=drm or agent=drqv2". Imports all of them.

    Args:
        actions: the kind of action space that they support, as in `AgentSpec.actions`; None: any.
        images: they learn from images.
    """
    specs = {name: agent_spec(name) for name in AGENTS}
    return " or ".join(
        f"agent={name}"
        for name, spec in specs.items()
        if (actions is None or actions in spec.actions) and (spec.observes_pixels or not images)
    )
