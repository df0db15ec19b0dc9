"""What the jobs of a sweep will take on this machine, from a timing of each kind of run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass

from rlearly.config.schema import RunConfig
from rlearly.system.machine import choose_device
from rlearly.training.forecast import Pace, forecast_replay_bytes, forecast_seconds, timed

TIMING_SECONDS = 60.0
"""After which no further kind of run is timed."""
QUIET_SECONDS = 4.0
START_SECONDS = 5.0
"""Of a process until its first step, with its imports and its trial of an evaluation: as measured
on one core of a busy machine."""


@dataclass(frozen=True)
class Forecast:
    """Seconds and bytes of replay by job, and how many jobs they were not timed for."""

    seconds: dict[str, float]
    replay_bytes: dict[str, int]
    estimated: list[str]
    """Jobs whose pace is that of the same agent on another env, or of another size."""
    unknown: list[str]
    """Jobs about which nothing is known."""


def forecast(
    configs: Mapping[str, RunConfig],
    say: Callable[[str], None],
    timing_seconds: float = TIMING_SECONDS,
) -> Forecast:
    """Time each agent on each env that it observes in one way, once, and count up.

    Args:
        configs: by the names of the jobs.
        say: is told how it goes, if it takes long.
        timing_seconds: what is not begun by then is not timed.
    """
    paces = _paces(configs.values(), say, timing_seconds)
    of_agents = {agent: pace for (agent, _), pace in reversed(list(paces.items()))}
    seconds, sizes, estimated, unknown = {}, {}, [], []
    for name, config in configs.items():
        kind = _kind(config)
        pace = paces.get(kind) or of_agents.get(kind[0])
        if pace is None:
            unknown.append(name)
            continue
        if kind not in paces:
            estimated.append(name)
        device = choose_device(config.device)
        seconds[name] = START_SECONDS + forecast_seconds(config, device, pace)
        sizes[name] = forecast_replay_bytes(config, pace)
    return Forecast(seconds, sizes, estimated, unknown)


def _kind(config: RunConfig) -> tuple[str, str]:
    """The agent as it observes, and what else the pace hangs on: the env and the agent's sizes, but
    no learning rate or other fraction."""
    observed = (config.env.pixels, config.env.image_size, config.env.frame_stack, config.num_envs)
    sizes = {k: v for k, v in asdict(config.agent).items() if not isinstance(v, float)}
    return f"{config.agent_name} {observed} {config.device}", f"{config.env} {sizes}"


def _paces(
    configs: Iterable[RunConfig], say: Callable[[str], None], timing_seconds: float
) -> dict[tuple[str, str], Pace]:
    """By kind; every agent is timed on one env before any is on a second one."""
    kinds = {_kind(config): config for config in reversed(list(configs))}
    turns: dict[str, int] = {}
    order = []
    for kind in reversed(kinds):
        turns[kind[0]] = turns.get(kind[0], 0) + 1
        order.append((turns[kind[0]], len(order), kind))
    began = time.monotonic()
    found = {}
    for _, _, kind in sorted(order):
        spent = time.monotonic() - began
        if spent >= timing_seconds:
            break
        config = kinds[kind]
        if spent >= QUIET_SECONDS:
            say(
                f"timing {config.agent_name} on {config.env.name}, {len(found) + 1} of {len(order)}"
                f" ({spent:.0f} s so far, {timing_seconds:.0f} s at most)"
            )
        found[kind] = timed(config, choose_device(config.device))
    return found
