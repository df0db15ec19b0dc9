"""Interventions of the user's own: `intervention=module:NAME`, a subclass of Intervention."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from rlearly.config import plugins
from rlearly.config.schema import RunConfig
from rlearly.config.structured import did_you_mean
from rlearly.core.errors import ConfigError, raised
from rlearly.plasticity.interventions.base import Intervention
from rlearly.system.seeding import Seeds

HOOKS = (
    "modify", "initialised", "attach", "weights_changed", "before_update", "needs_activations",
    "after_update", "state_dict", "load_state_dict", "took_over",
)  # fmt: skip


def own_class(name: str) -> type[Intervention]:
    """The class that `module:NAME` names.

    Raises:
        ConfigError: there is none, or its settings are no frozen dataclass with defaults.
    """
    cls = plugins.load(
        "intervention",
        name,
        "a subclass of Intervention",
        lambda it: isinstance(it, type) and issubclass(it, Intervention) and it is not Intervention,
    )
    settings: Any = cls.config_class
    if not plugins.is_frozen_dataclass(settings):
        raise ConfigError(
            f"intervention={name}: config_class: expected a frozen dataclass of settings, received "
            f"{settings!r}."
        )
    try:
        settings()
    except TypeError as error:
        raise ConfigError(
            f"intervention={name}: config_class: expected a default for every setting ({error})."
        ) from None
    return cls


def own_settings(config: RunConfig) -> dict[str, Any]:
    """The settings of each intervention of the user's own that a run has, by `module:NAME`.

    `intervention_kwargs` are shared: each takes those that its settings have.

    Raises:
        ConfigError: a key belongs to none of them, or a value does not fit.
    """
    names = [name for name in config.intervention or () if plugins.is_plugin(name)]
    given: Mapping[str, Any] = config.intervention_kwargs
    classes = {name: own_class(name).config_class for name in names}
    known = {name: {f.name for f in dataclasses.fields(cls)} for name, cls in classes.items()}
    for key in given:
        every = set().union(*known.values())
        if key not in every:
            owners = " and ".join(names) or "an intervention of your own"
            hint = did_you_mean(key, every) if every else "leave it out."
            raise ConfigError(f"intervention_kwargs.{key}: is no setting of {owners}; {hint}")
    return {
        name: plugins.settings_from(
            classes[name](),
            {key: value for key, value in given.items() if key in known[name]},
            "intervention_kwargs",
        )
        for name in names
    }


def build_own(config: RunConfig, seeds: Seeds) -> Sequence[Intervention]:
    """The interventions of the user's own, in order, each with a random stream of its own."""
    return [_made(name, settings, seeds) for name, settings in own_settings(config).items()]


def _made(name: str, settings: Any, seeds: Seeds) -> Intervention:
    # ours have the children 0, 1, ... of this stream: a second number keeps these apart
    weights = seeds.torch("interventions", "cpu", zlib.crc32(name.encode()), 1)
    try:
        made = own_class(name)(settings, weights=weights)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"intervention={name}: making it {raised(error)}.") from error
    made.name = name
    made.stream = weights
    return plugins.guarded(made, f"intervention={name}", HOOKS)
