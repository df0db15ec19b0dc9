"""Copy what an env keeps from one episode to the next into the env for evaluations.

Running statistics of normalising wrappers, curricula and counters change what an episode is like,
so evaluations take them over from the training env.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np

from rlearly.core.env_attributes import set_env_attribute
from rlearly.core.errors import RunFailed
from rlearly.envs.state import codec, simulators
from rlearly.envs.state.action_replay import id_of, rebuild_box2d_world
from rlearly.envs.state.compare import first_difference
from rlearly.envs.state.env_state import WALL_CLOCK, chain_of, held_by
from rlearly.envs.state.generators import global_generators_watched, with_state
from rlearly.envs.state.objects import (
    Path,
    class_name,
    is_function,
    module_of,
    shared_values,
    text_of,
    trusted,
)
from rlearly.envs.state.save_restore import play, sample
from rlearly.envs.state.world import differences, leaf_paths, parts_of, prune

log = logging.getLogger(__name__)
FROZEN = "update_running_mean"
"""Attribute of gymnasium's normalising wrappers: whether steps update their statistics."""
OWN_STATE = "~state_dict"
TRIAL_STEPS = 20

Kept = dict[str, Any]
"""The result of `kept_by`: a tree."""


def keeps_nothing(env: gymnasium.Env) -> bool:
    """Whether an env is known to begin each episode from its seed alone.

    True if it and its wrappers are of packages that our tests restore, and none of them normalises
    by running statistics or calls a function of the user's.
    """
    return all(trusted(type(one)) and not _may_keep(one) for one in _members(env))


def normalises(env: gymnasium.Env) -> bool:
    """Whether a wrapper scales by running statistics as gymnasium's do."""
    return any(hasattr(type(one), FROZEN) for one in _members(env))


def _may_keep(one: Any) -> bool:
    functions = (value for value in vars(one).values() if is_function(value))
    return hasattr(type(one), FROZEN) or not all(
        trusted(getattr(value, "__func__", value)) for value in functions
    )


def _members(env: gymnasium.Env) -> list[Any]:
    """The unwrapped env, then those of its wrappers that may keep something, outermost first.

    Others, such as a time limit, have settings, which an evaluation may choose for itself.
    """
    base, *wrappers = chain_of(env)
    users = [one for one in wrappers if not module_of(type(one)).startswith("rlearly.")]
    return [base, *(one for one in users if not trusted(type(one)) or _may_keep(one))]


def kept_by(env: gymnasium.Env) -> Kept:
    """The state of an env and its wrappers, as far as it is data. The env does not change."""
    return _captured(_members(env))[0]


def _captured(members: list[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(`kept_by` of these envs and wrappers, their random generators by path)."""
    shared = shared_values([type(one) for one in members])
    encoder = codec.Encoder(members, shared=shared, opaque=True)
    trees = []
    for i, one in enumerate(members):
        if hasattr(one, "state_dict") and hasattr(one, "load_state_dict"):
            tree: Any = {OWN_STATE: encoder.encode(dict(one.state_dict()), (*_root(i), "~"))}
        else:
            skip = {"env", *WALL_CLOCK.get(type(one).__name__, ())}
            tree = {
                codec.KIND: "object",
                "class": class_name(type(one)),
                "attributes": encoder.attributes(one, _root(i), skip),
            }
        trees.append([class_name(type(one)), tree])
    return {"members": trees, "random": encoder.random}, encoder.generators


def _root(index: int) -> Path:
    return (f"#{index}",) if index else ()


def take_over(
    env: gymnasium.Env,
    kept: Kept,
    own: frozenset[Path] = frozenset(),
    *,
    frozen: bool = True,
) -> list[str]:
    """Give an env what another one, built alike, keeps; then reset it, to begin an episode.

    Args:
        own: parts that stay this env's, from `own_parts`.
        frozen: this env's steps do not update running statistics.

    Returns:
        The names of the parts that cannot be copied.
    """
    members = _members(env)
    now, generators = _captured(members)
    names = [name for name, _ in kept["members"]]
    if names != [name for name, _ in now["members"]]:
        return names
    changed: set[Path] = set()
    for i, ((_, have), (_, then)) in enumerate(zip(now["members"], kept["members"], strict=True)):
        changed |= {_root(i) + path for path in differences(have, then)}
    parts = parts_of(changed - own)
    decoder = codec.Decoder(members, kept["random"], in_place=held_by(members))
    failed: list[str] = []
    for i, (one, (_, tree)) in enumerate(zip(members, kept["members"], strict=True)):
        node = parts.get(f"#{i}", {}) if i else parts
        if OWN_STATE in tree:
            with _noting(failed, type(one).__name__):
                path = (*_root(i), "~")
                one.load_state_dict(decoder.decode(tree[OWN_STATE], codec.MISSING, path))
            continue
        pruned = prune(tree, node, parts)
        for key, part in pruned.get("attributes", {}).items():
            with _noting(failed, text_of((f".{key}",))):
                decoder.attributes({key: part}, one, _root(i), partial=True)
    for where, state in kept["random"].items():
        if where in generators:
            with_state(generators[where], state)
    if frozen:
        freeze(env)
    return failed


@contextlib.contextmanager
def _noting(failed: list[str], name: str) -> Any:
    try:
        yield
    except (codec.Incomplete, simulators.DifferentModel):
        failed.append(name)


def freeze(env: gymnasium.Env) -> None:
    """Keep the running statistics of gymnasium's normalising wrappers as they are."""
    for one in _members(env):
        if hasattr(type(one), FROZEN):
            setattr(one, FROZEN, False)


def own_parts(one: gymnasium.Env, two: gymnasium.Env) -> frozenset[Path]:
    """The parts, other than floats and arrays, in which two new envs differ: handles, ports, names.

    Each env must keep its own, or it would step the other's simulator.
    """
    ones, twos = (kept_by(env)["members"] for env in (one, two))
    found: set[Path] = set()
    for i, ((_, here), (_, there)) in enumerate(zip(ones, twos, strict=True)):
        leaves = dict(leaf_paths(here))
        for path in differences(here, there):
            if not isinstance(leaves.get(path), float | np.ndarray):
                found.add(_root(i) + path)
    return frozenset(found)


class EvaluationEnv(gymnasium.Wrapper):
    """An env for evaluations. Each episode begins with what the training env keeps.

    Evaluating does not change it: the next episode begins with the same again, so that episodes
    depend on nothing but the training env and their seeds.

    Args:
        kept: returns what the training env keeps now; None: nothing is kept.
        own: see `own_parts`.
        attributes: returns values of attributes that evaluations have whatever the training env
            has, by name (`rlearly.training.callbacks.TrainingEnvs`).
    """

    def __init__(
        self,
        env: gymnasium.Env,
        kept: Callable[[], Kept] | None,
        own: frozenset[Path] = frozenset(),
        attributes: Callable[[], Mapping[str, Any]] = dict,
    ):
        super().__init__(env)
        self.kept = kept
        self.own = own
        self.attributes = attributes
        self._said = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self._take_over()
        rebuild_box2d_world(self.unwrapped)
        return self.env.reset(seed=seed, options=options)

    def once(self) -> gymnasium.Env:
        """The wrapped env, after it has taken over once what the training env keeps."""
        self._take_over()
        return self.env

    def _take_over(self) -> None:
        failed = [] if self.kept is None else take_over(self.env, self.kept(), self.own)
        for name, value in self.attributes().items():
            set_env_attribute(self.env, name, copy.deepcopy(value))
        if failed and not self._said:
            self._said = True
            log.warning(
                "evaluation: %s of %s cannot be copied from the training env, so evaluations may "
                "run in a different env: keep plain data there, or give the env state_dict() and "
                "load_state_dict().",
                ", ".join(failed),
                id_of(self.unwrapped),
            )

    def why_not_repeatable(self) -> str | None:
        """Play an episode twice from one seed, with others between; one line if the two differ.

        The env is reset and stepped.
        """
        if self.kept is None:
            return None
        before = kept_by(self.env)
        space = self.env.action_space
        space.seed(0)
        actions = [sample(space) for _ in range(TRIAL_STEPS)]

        def episode() -> dict[str, Any]:
            take_over(self.env, before, self.own)
            rebuild_box2d_world(self.unwrapped)
            seen = {"the first observation": self.env.reset(seed=1)[0]}
            return seen | play(self.env, actions, one_episode=True)

        try:
            with global_generators_watched() as drawn:
                first = episode()
                for seed in (2, 3):
                    self.env.reset(seed=seed)
                    play(self.env, actions, one_episode=True)
                again = episode()
        except RunFailed:  # the run will meet and report it
            return None
        ours = ("the first", "observation", "reward", "terminated", "truncated")
        first, again = ({k: v for k, v in e.items() if k.startswith(ours)} for e in (first, again))
        difference = first_difference(first, again)
        if difference is None:
            return None
        why = "it keeps something between episodes that cannot be copied into another env"
        remedy = (
            "keep it in plain attributes of the env or of a wrapper, or give it state_dict() and "
            "load_state_dict()"
        )
        if drawn:
            why = f"it draws from the global generator {' and '.join(drawn)}"
            remedy = "let it draw from self.np_random"
        return (
            f"{id_of(self.unwrapped)} does not behave the same twice from one seed "
            f"({difference.lstrip(': ')}): {why}, so evaluations may run in a different env "
            f"from training, and cannot be repeated; {remedy}"
        )
