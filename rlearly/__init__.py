"""rlearly: reinforcement learning's first hours, in one small framework."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlearly.envs.snapshots.dataset import Snapshots
    from rlearly.envs.snapshots.minari import from_minari
    from rlearly.envs.snapshots.recording import from_actions, record
    from rlearly.envs.snapshots.selection import (
        LearnerError,
        Novelty,
        ReturnToGo,
        Uniform,
        ValueClusters,
    )
    from rlearly.envs.snapshots.step_counter import StepCounter
    from rlearly.envs.snapshots.wrapper import SnapshotRL
    from rlearly.envs.state.save_restore import EnvState, restore, save, self_test

__version__ = "0.1.0"

MODULES = {
    "EnvState": "envs.state.save_restore",
    "LearnerError": "envs.snapshots.selection",
    "Novelty": "envs.snapshots.selection",
    "ReturnToGo": "envs.snapshots.selection",
    "SnapshotRL": "envs.snapshots.wrapper",
    "Snapshots": "envs.snapshots.dataset",
    "StepCounter": "envs.snapshots.step_counter",
    "Uniform": "envs.snapshots.selection",
    "ValueClusters": "envs.snapshots.selection",
    "from_actions": "envs.snapshots.recording",
    "from_minari": "envs.snapshots.minari",
    "record": "envs.snapshots.recording",
    "restore": "envs.state.save_restore",
    "save": "envs.state.save_restore",
    "self_test": "envs.state.save_restore",
}
"""Public name -> the module that defines it, imported when the name is first used."""

__all__ = [
    "EnvState",
    "LearnerError",
    "Novelty",
    "ReturnToGo",
    "SnapshotRL",
    "Snapshots",
    "StepCounter",
    "Uniform",
    "ValueClusters",
    "from_actions",
    "from_minari",
    "record",
    "restore",
    "save",
    "self_test",
]


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module 'rlearly' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rlearly.{MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *MODULES])
