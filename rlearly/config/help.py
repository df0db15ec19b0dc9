"""What `--help` prints: everything that can be set, read off the config itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlearly.agents import AGENTS, agent_module
from rlearly.config.interventions import INTERVENTIONS
from rlearly.config.schema import EnvConfig, RunConfig
from rlearly.config.structured import describe, did_you_mean
from rlearly.core.errors import ConfigError
from rlearly.envs import FAMILIES

NOT_SET_BY_KEY = ("agent", "env", "agent_name", "env.name", "env.family", "snapshot_sha256")


def train_help(words: list[str]) -> str:
    """The help of the train command; with `agent=NAME` among the words, that agent's keys too."""
    agent = next((w.partition("=")[2] for w in words if w.startswith("agent=")), None)
    if agent is not None and agent not in AGENTS:
        raise ConfigError(f"There is no agent {agent!r}; {did_you_mean(agent, AGENTS)}")
    lines = [
        "Usage: python -m rlearly.train agent=AGENT env=ENV [key=value ...]",
        "       python -m rlearly.train resume=RUN_DIR",
        "       --help agent=AGENT   also lists the keys of that agent",
        "       --cfg job            prints the config of this command and exits",
        "",
        "Agents",
        *_table(AGENTS.items()),
        "",
        "Envs",
        *_table((name, family.names) for name, family in FAMILIES.items()),
        "",
        "Interventions",
        *_table(INTERVENTIONS.items()),
        "",
        "Keys (type, default)",
        *key_lines(RunConfig, ""),
        *key_lines(EnvConfig, "env."),
    ]
    if agent is not None:
        module = agent_module(agent)
        takes = ", ".join(name for name in INTERVENTIONS if name not in module.REFUSES)
        lines += ["", f"Keys of {agent}", *key_lines(module.Config, "agent.")]
        lines += ["", f"Networks of {agent}: {', '.join(module.NETWORKS)}. It can take {takes}."]
        if module.RUN_DEFAULTS:
            lines.append(f"A run with {agent} begins with {' '.join(module.RUN_DEFAULTS)}.")
    else:
        lines.append("  agent.*  --help agent=NAME lists them")
    lines += [
        "",
        "Precedence: defaults < agent < env < tuned (agent, env) pair < preset < command line.",
        "Example: python -m rlearly.train agent=drm env=cartpole_balance preset=cpu seed=1",
    ]
    return "\n".join(lines)


def _table(rows: Any) -> Iterator[str]:
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        yield f"  {name:{width}}  {text}"


def key_lines(cls: Any, prefix: str) -> Iterator[str]:
    """A line for each key of a config dataclass, groups and all."""
    for name, type_name, text, default, is_group in describe(cls):
        if is_group:
            yield from key_lines(type(default), f"{prefix}{name}.")
        elif prefix + name not in NOT_SET_BY_KEY:
            shown = "null" if default is None else str(default).lower()
            if isinstance(default, str):
                shown = default or "''"
            kind = "" if type_name == "Any" else type_name.replace(" | None", "?") + ", "
            yield f"  {prefix + name:30} {kind}{shown}: {text}"
