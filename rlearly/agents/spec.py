"""What an agent declares about itself. Imports no torch, so that `--help` starts quickly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
    policy_module: Callable[[Any], nn.Module] | None = None
