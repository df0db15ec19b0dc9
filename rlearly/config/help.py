"""What `--help` prints, generated from the config dataclasses."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

from rlearly.agents import AGENTS, agent_spec
from rlearly.config.interventions import INTERVENTIONS
from rlearly.config.schema import EnvConfig, RunConfig
from rlearly.config.structured import describe_fields
from rlearly.envs import FAMILIES

NOT_SET_BY_KEY = (
    "agent", "env", "agent_name", "env.name", "env.family", "snapshot_sha256", "jump_start.sha256",
    "start_from.checkpoint", "start_from.sha256",
)  # fmt: skip
KEYS = "Keys (type, default); a type with ? can be null"


def command_help(usage: str, config_class: Any) -> str:
    """The help of a command. `usage`: one command per line."""
    commands = usage.strip().replace("\n", "\n       ")
    return "\n".join([f"Usage: {commands}", "", KEYS, *key_lines(config_class)])


def train_help(overrides: list[str]) -> str:
    """The help of the train command; lists an agent's keys too if agent=NAME is an override."""
    agent = next((o.partition("=")[2] for o in overrides if o.startswith("agent=")), None)
    spec = None if agent is None else agent_spec(agent)
    lines = [
        "Usage: python -m rlearly.train agent=AGENT env=ENV [key=value ...]",
        "       python -m rlearly.train resume=RUN_DIR",
        "       --help agent=AGENT   also lists the keys of that agent",
        "       --cfg job            prints the resolved config and exits",
    ]
    tables = {
        "Agents": {**AGENTS, "module:NAME": "your own: an AgentSpec in a module of yours"},
        "Envs": {name: family.names for name, family in FAMILIES.items()},
        "Interventions": {
            **INTERVENTIONS,
            "module:NAME": "your own: an Intervention in a module of yours",
        },
    }
    for title, rows in tables.items():
        width = max(map(len, rows))
        lines += ["", title, *(f"  {name:{width}}  {text}" for name, text in rows.items())]
    lines += [
        "",
        KEYS,
        f"  {'agent':35} name of the agent (str, drm)",
        f"  {'env':35} name of the env (str, required)",
        *key_lines(RunConfig, hidden=NOT_SET_BY_KEY),
        *key_lines(EnvConfig, "env.", NOT_SET_BY_KEY),
    ]
    if spec is None:
        lines.append("  agent.*                             --help agent=NAME lists them")
    else:
        accepted = [name for name in INTERVENTIONS if name not in spec.refused_interventions]
        lines += ["", f"Keys of {agent}", *key_lines(spec.config_class, "agent."), ""]
        lines += [f"Networks of {agent}: {', '.join(spec.networks)}."]
        lines += [f"Interventions for {agent}: {', '.join(accepted)}."]
        if spec.run_defaults:
            lines.append(f"Run defaults of {agent}: {' '.join(spec.run_defaults)}")
    lines += [
        "",
        "Precedence: defaults < agent < env < tuned (agent, env) pair < preset < command line.",
        "Example: python -m rlearly.train agent=drm env=cartpole_balance preset=cpu seed=1",
    ]
    return "\n".join(lines)


def key_lines(config_class: Any, prefix: str = "", hidden: Container[str] = ()) -> Iterator[str]:
    """One line for each key of a config dataclass, including nested groups."""
    for name, type_name, text, default, is_group in describe_fields(config_class):
        key = prefix + name
        if is_group:
            yield from key_lines(type(default), f"{key}.", hidden)
        elif key not in hidden:
            choices = config_class.__dataclass_fields__[name].metadata.get("choices")
            kind = "|".join(choices or [type_name.replace(" | None", "?")])
            if config_class.__dataclass_fields__[name].metadata.get("or_plugin"):
                kind += "|module:NAME"
            shown = "null" if default is None else str(default).lower()
            if isinstance(default, str):
                shown = default or "''"
            yield f"  {key:35} {text} ({kind}, {shown})".replace("(Any, ", "(")
