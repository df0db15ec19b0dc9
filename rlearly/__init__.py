"""Methods that speed up the first hours of reinforcement learning, in one small framework.

Public names are imported on first use, so `import rlearly` loads neither torch nor gymnasium.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlearly.api.export import Exported as Exported
    from rlearly.api.policy import Policy as Policy
    from rlearly.api.report import Report as Report
    from rlearly.api.report import report as report
    from rlearly.api.run import Run as Run
    from rlearly.api.run import export as export
    from rlearly.api.run import load as load
    from rlearly.api.sweep import Sweep as Sweep
    from rlearly.api.sweep import sweep as sweep
    from rlearly.api.training import train as train
    from rlearly.api.tuning import tune as tune
    from rlearly.core.errors import ConfigError as ConfigError
    from rlearly.core.errors import RunFailed as RunFailed
    from rlearly.envs.snapshots.curricula import DemonstrationWindow as DemonstrationWindow
    from rlearly.envs.snapshots.curricula import ReverseForward as ReverseForward
    from rlearly.envs.snapshots.dataset import Snapshots as Snapshots
    from rlearly.envs.snapshots.jump_start import GuideCurriculum as GuideCurriculum
    from rlearly.envs.snapshots.jump_start import JumpStart as JumpStart
    from rlearly.envs.snapshots.jump_start import RandomGuide as RandomGuide
    from rlearly.envs.snapshots.minari import from_minari as from_minari
    from rlearly.envs.snapshots.recording import from_actions as from_actions
    from rlearly.envs.snapshots.recording import record as record
    from rlearly.envs.snapshots.selection import LearnerError as LearnerError
    from rlearly.envs.snapshots.selection import Novelty as Novelty
    from rlearly.envs.snapshots.selection import OrdinaryStart as OrdinaryStart
    from rlearly.envs.snapshots.selection import ReturnToGo as ReturnToGo
    from rlearly.envs.snapshots.selection import Uniform as Uniform
    from rlearly.envs.snapshots.selection import ValueClusters as ValueClusters
    from rlearly.envs.snapshots.step_counter import StepCounter as StepCounter
    from rlearly.envs.snapshots.wrapper import SnapshotRL as SnapshotRL
    from rlearly.envs.state.save_restore import EnvState as EnvState
    from rlearly.envs.state.save_restore import restore as restore
    from rlearly.envs.state.save_restore import save as save
    from rlearly.envs.state.save_restore import self_test as self_test
    from rlearly.training.callbacks.callback import Callback as Callback

__version__ = "0.1.0"

_MODULES = {
    "api.export": "Exported",
    "api.policy": "Policy",
    "api.report": "Report",
    "api.run": "Run load",
    "api.sweep": "Sweep",
    "core.errors": "ConfigError RunFailed",
    "envs.snapshots.curricula": "DemonstrationWindow ReverseForward",
    "envs.snapshots.dataset": "Snapshots",
    "envs.snapshots.jump_start": "GuideCurriculum JumpStart RandomGuide",
    "envs.snapshots.minari": "from_minari",
    "envs.snapshots.recording": "from_actions record",
    "envs.snapshots.selection": "LearnerError Novelty OrdinaryStart ReturnToGo Uniform "
    "ValueClusters",
    "envs.snapshots.step_counter": "StepCounter",
    "envs.snapshots.wrapper": "SnapshotRL",
    "envs.state.save_restore": "EnvState restore save self_test",
    "training.callbacks.callback": "Callback",
}
"""Module -> its public names. The imports above say the same to type checkers and docs."""
_COMMANDS = ("export", "report", "sweep", "train", "tune")
"""Public functions that are the modules of commands: calling the module calls the function."""
_PUBLIC = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name in _COMMANDS:
        return importlib.import_module(f"rlearly.{name}")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'rlearly' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rlearly.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_COMMANDS, *_PUBLIC])
