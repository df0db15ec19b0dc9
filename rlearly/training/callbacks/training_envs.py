"""The training envs of a run, whose attributes a callback can get and set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium

from rlearly.core.env_attributes import get_env_attribute, set_env_attribute
from rlearly.core.errors import UserCodeFailed, raised
from rlearly.training.callbacks.plain import plain_copy
from rlearly.training.executors import EnvExecutor


class TrainingEnvs:
    """Reads and sets attributes of all training envs, each by its own executor.

    A new value takes effect in each env when its next episode begins, so that no episode mixes two
    values. Evaluations keep the original value unless `evaluation=True`, because a curriculum
    trains on easier envs than its target task. All values are saved in checkpoints.
    """

    def __init__(self, envs: Sequence[gymnasium.Env], executors: Sequence[EnvExecutor]):
        self._envs = list(envs)
        self._executors = list(executors)
        self._wanted: dict[str, Any] = {}
        self._pending: list[list[str]] = [[] for _ in self._envs]  # names, until the next episode
        self._applied: list[dict[str, Any]] = [{} for _ in self._envs]
        self._original: dict[str, Any] = {}
        self._in_evaluations: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self._envs)

    def get_attr(self, name: str) -> list[Any]:
        """The current value of an attribute in each env.

        Raises:
            AttributeError: the env has none of this name.
        """
        return [
            executor.run(get_env_attribute, env, name)
            for env, executor in zip(self._envs, self._executors, strict=True)
        ]

    def set_attr(self, name: str, value: Any, *, evaluation: bool = False) -> None:
        """Set an attribute in each env from its next episode on.

        Args:
            value: numbers, text, None, numpy arrays, and lists, tuples and dicts of them.
            evaluation: set it in evaluations too, from the next one on.

        Raises:
            AttributeError: the env has none of this name.
            TypeError: a checkpoint cannot hold this value, or the one from before.
        """
        value = plain_copy(value, name)
        if name not in self._original:
            self._original[name] = plain_copy(self.get_attr(name)[0], name)
        self._wanted[name] = value
        self._in_evaluations[name] = value if evaluation else self._original[name]
        for names in self._pending:
            if name not in names:
                names.append(name)

    def begin_episode(self, env_index: int) -> None:
        """Set what is to change in an env, which is about to be reset.

        Raises:
            UserCodeFailed: the env raised.
        """
        names, self._pending[env_index] = self._pending[env_index], []
        for name in names:
            self._apply(env_index, name, self._wanted[name])

    def _apply(self, env_index: int, name: str, value: Any) -> None:
        copied = plain_copy(value, name)
        try:
            self._executors[env_index].run(set_env_attribute, self._envs[env_index], name, copied)
        except Exception as error:  # a setter of the user's may raise anything
            raise UserCodeFailed(f"setting the env's attribute {name} {raised(error)}") from error
        self._applied[env_index][name] = value

    def in_evaluations(self) -> Mapping[str, Any]:
        """The values of all attributes that were ever set, as evaluations have them."""
        return self._in_evaluations

    def state_dict(self) -> dict[str, Any]:
        return {
            "wanted": dict(self._wanted),
            "pending": [list(names) for names in self._pending],
            "applied": [dict(values) for values in self._applied],
            "original": dict(self._original),
            "in_evaluations": dict(self._in_evaluations),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set in new envs what was set in the saved ones. Call it before the envs are restored:
        some replay the actions of their episode, which needs its values."""
        self._wanted = dict(state["wanted"])
        self._pending = [list(names) for names in state["pending"]]
        self._original = dict(state["original"])
        self._in_evaluations = dict(state["in_evaluations"])
        for env_index, values in enumerate(state["applied"]):
            for name, value in values.items():
                self._apply(env_index, name, value)
