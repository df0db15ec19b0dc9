"""What an agent declares about itself. Imports no torch, so that `--help` starts quickly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlearly.config.plugins import is_frozen_dataclass
from rlearly.config.structured import as_dict
from rlearly.core.errors import ConfigError, raised

if TYPE_CHECKING:
    from torch import nn

    from rlearly.core.types import Agent


@dataclass(frozen=True)
class AgentSpec:
    """One agent: how to configure and make it, and what a run must know about it.

    config_class: a frozen dataclass of settings (`rlearly.config.fields.setting`) with a method
        `seed_frames(frames_per_step)`.
    make: `make(config, env_spec, *, seeds, device, monitor, interventions, compute)` -> the agent.
    networks: names of the networks that interventions can act on.
    actions: the kinds of action spaces that it supports: "continuous" (Box), "discrete" (Discrete).
    observes_pixels: learns from images, and gets them where an env offers images and states.
    on_policy: learns once from each rollout of its own policy, rather than from a replay buffer.
        Its settings have `rollout_steps`, `anneal_steps` and `for_actions(space)`, which completes
        those that depend on the action space.
    random_start: the setting for the number of its first steps that are random; "": none are. A run
        that begins with another's networks (`start_from`) sets it to 0.
    max_threads: threads beyond which its updates get no faster; None: it can use every core.
    run_defaults: overrides of `RunConfig`'s defaults, as on the command line.
    refused_interventions: interventions that it does not support -> the reason.
    takes_networks: its settings have `network` and `network_kwargs`, which name a function that
        makes its networks (see `rlearly.agents.network_factory`).
    policy_module: agent -> its policy's mode as one network, for exports; None: it has none.
    """

    config_class: type[Any]
    make: Callable[..., Agent]
    networks: tuple[str, ...]
    actions: tuple[str, ...] = ("continuous",)
    observes_pixels: bool = False
    on_policy: bool = False
    random_start: str = ""
    max_threads: int | None = None
    run_defaults: tuple[str, ...] = ()
    refused_interventions: Mapping[str, str] = field(default_factory=dict)
    takes_networks: bool = False
    policy_module: Callable[[Any], nn.Module] | None = None


ACTIONS = ("continuous", "discrete")
OFF_POLICY_SETTINGS = ("batch_size", "nstep", "discount")
ON_POLICY_SETTINGS = ("rollout_steps", "anneal_steps", "discount")


def check_spec(name: str, spec: AgentSpec) -> None:
    """Check that a run can use the AgentSpec of the plug-in `name`.

    Raises:
        ConfigError: it cannot; the message lists every reason.
    """
    problems = list(_problems_of_config(spec)) + list(_problems_of_names(spec))
    if problems:
        raise ConfigError(f"agent={name}: {'; '.join(problems)}.")


def _problems_of_config(spec: AgentSpec) -> Iterator[str]:
    cls = spec.config_class
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        yield f"config_class: expected a frozen dataclass of settings, received {cls!r}"
        return
    if not is_frozen_dataclass(cls):
        name = cls.__name__
        yield f"config_class: expected a frozen dataclass; write @dataclass(frozen=True) {name}"
    required = [f.name for f in dataclasses.fields(cls) if _is_required(f)]
    if required:
        yield f"config_class: expected a default for every setting, {', '.join(required)} has none"
        return
    try:
        as_dict(cls())
    except Exception as error:  # a type that configs do not support, or __post_init__
        yield f"config_class: making its defaults {raised(error)}".splitlines()[0]
        return
    methods = ["seed_frames", *(["for_actions"] if spec.on_policy else [])]
    for method in methods:
        if not callable(getattr(cls, method, None)):
            argument = "frames_per_step" if method == "seed_frames" else "space"
            yield f"config_class: expected a method {method}({argument}), {cls.__name__} has none"
    known = {f.name for f in dataclasses.fields(cls)}
    needed = ON_POLICY_SETTINGS if spec.on_policy else OFF_POLICY_SETTINGS
    missing = [setting for setting in needed if setting not in known]
    if missing:
        yield (
            f"config_class: expected the settings {', '.join(needed)}, which size its memory; "
            f"{cls.__name__} has no {' and no '.join(missing)}"
        )


def _is_required(setting: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return setting.default is missing and setting.default_factory is missing


def _problems_of_names(spec: AgentSpec) -> Iterator[str]:
    if not callable(spec.make):
        yield f"make: expected a class or a function, received {spec.make!r}"
    for what in ("networks", "actions", "run_defaults"):
        names = getattr(spec, what)
        if not (isinstance(names, tuple) and all(isinstance(n, str) for n in names)):
            yield f"{what}: expected a tuple of texts, received {names!r}"
    if isinstance(spec.actions, tuple) and not (spec.actions and {*spec.actions} <= {*ACTIONS}):
        yield f"actions: expected some of {', '.join(ACTIONS)}, received {spec.actions!r}"
