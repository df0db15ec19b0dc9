"""Call the callbacks of a run, and turn what they raise into one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlearly.core.errors import OURS, ConfigError, UserCodeFailed, raised
from rlearly.training.callbacks.callback import Callback, RunHandle, Training
from rlearly.training.callbacks.plain import plain_copy

Named = tuple[str, Callback]
"""A callback and its name: MODULE:NAME."""


class Callbacks:
    """The callbacks of a run, called one after another.

    Raises:
        UserCodeFailed: in each method, if a callback raised.
    """

    def __init__(self, members: Sequence[Named], training: Training):
        self.members = list(members)
        self.handles = {name: RunHandle(training, name) for name, _ in self.members}
        self.started = False

    def __bool__(self) -> bool:
        return bool(self.members)

    def start(self) -> None:
        """Call `on_start`, once in the life of a run, and check that states can be saved."""
        if not self.started:
            self.started = True
            self.call("on_start")
            self.state_dict()

    def call(self, method: str, *args: Any) -> None:
        for name, callback in self.members:
            self._guarded(name, callback, method, self.handles[name], *args)

    def _guarded(self, name: str, callback: Callback, method: str, *args: Any) -> Any:
        try:
            return getattr(callback, method)(*args)
        except OURS:
            raise
        except BaseException as error:
            raise UserCodeFailed(f"callback={name}: {method} {raised(error)}") from error

    def state_dict(self) -> dict[str, Any]:
        states = []
        for name, callback in self.members:
            state = self._guarded(name, callback, "state_dict")
            try:
                states.append({"name": name, "state": plain_copy(state, "state_dict()")})
            except TypeError as error:
                raise UserCodeFailed(f"callback={name}: {error}") from None
        return {"started": self.started, "members": states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            ConfigError: the run had other callbacks.
        """
        then = [member["name"] for member in state["members"]]
        now = [name for name, _ in self.members]
        if then != now:
            raise ConfigError(
                f"callback: expected those that this run began with, {', '.join(then) or 'none'}, "
                f"received {', '.join(now) or 'none'}; objects that Python code gave it must be "
                "given again."
            )
        self.started = state["started"]
        for (name, callback), saved in zip(self.members, state["members"], strict=True):
            self._guarded(name, callback, "load_state_dict", saved["state"])
