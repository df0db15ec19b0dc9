"""Restore a teacher's world into a student's env, whose settings and randomness stay its own."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from rlearly.core.errors import ConfigError
from rlearly.envs.guard import bare
from rlearly.envs.state import codec, simulators
from rlearly.envs.state.action_replay import (
    InexactState,
    holders,
    id_of,
    recorder_of,
    replay,
    set_randomness,
    with_action_recorder,
)
from rlearly.envs.state.compare import first_difference
from rlearly.envs.state.env_state import (
    EnvState,
    chain_of,
    check_fits,
    held_by,
    save_unchecked,
    set_generators,
)
from rlearly.envs.state.objects import (
    MISSING,
    Path,
    set_attribute,
    shared_values,
    step_into,
    text_of,
    trusted,
)
from rlearly.envs.state.save_restore import left_as_before, play, sample
from rlearly.envs.state.world import (
    WHOLE,
    Parts,
    World,
    differences,
    leaf_paths,
    named,
    overlay,
    parts_of,
    prune,
)

TIME_LIMITS = {
    "dm_control.rl.control:Environment": "_step_count",
    "dm_control.composer.environment:Environment": "_step_count",
    "rlearly.envs.dm_control:DMControlEnv": "_steps",
    "rlearly.envs.atari:AtariGame": "played",
    "metaworld.sawyer_xyz_env:SawyerXYZEnv": "curr_path_length",
}
"""Class -> the attribute in which it counts the steps of its own time limit. Like TimeLimit's, they
are not part of the world: an episode from a snapshot has the student's whole time ahead."""
RESETS = 8
"""How many resets are looked at, with as many seeds: what one draws another may draw too."""
POINTS = (0, 7, 20)
"""Steps of a trial episode at which its world is saved."""


@dataclass
class Transfer:
    """How snapshots' worlds go into the envs of one kind.

    Attributes:
        method: by which the env is saved, see `method_of`.
        reference: one whole state, for the parts that snapshots leave out; None: by replay.
        changed: the parts that resets and steps change.
        carried: those among them that go on from one episode to the next, and that the rest of an
            episode does not depend on, as an episode counter: they stay the student's.
    """

    method: str
    reference: Any = None
    changed: set[Path] = field(default_factory=set)
    carried: set[Path] = field(default_factory=set)

    def parts(self, keep: Iterable[str] = (), take: Iterable[str] = ()) -> Parts:
        """The parts that a restore replaces.

        Args:
            keep: names of attributes that stay the student's all the same.
            take: names of attributes that come from the snapshot all the same.

        Raises:
            ConfigError: a name fits no attribute.
        """
        kept = named(keep, self.changed, "keep") if keep else set()
        known = [path for path, _ in leaf_paths(self.reference)]
        taken = named(take, {*known, *self.changed}, "take") if take else set()
        return parts_of((self.changed - self.carried - kept) | taken)

    def whole(self, pruned: Any) -> Any:
        """A snapshot's state with the parts that it leaves out."""
        return pruned if self.reference is None else overlay(self.reference, pruned)

    def to_tree(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "reference": self.reference,
            "changed": [list(path) for path in sorted(self.changed)],
            "carried": [list(path) for path in sorted(self.carried)],
        }

    @staticmethod
    def from_tree(tree: Mapping[str, Any]) -> Transfer:
        changed, carried = ({tuple(path) for path in tree[key]} for key in ("changed", "carried"))
        return Transfer(tree["method"], tree["reference"], changed, carried)


def study(env: gymnasium.Env, method: str, steps: int = 20) -> Transfer:
    """Find out what the episodes of an env change, by playing it; then prove the transfer.

    A world is saved, other episodes are played, and the world is restored without settings and
    randomness: under the same actions everything must be as it was. Afterwards the env is as
    `left_as_before` leaves it.

    Args:
        env: its wrappers are neither played nor changed.

    Raises:
        InexactState: the env did not continue alike. The message says what differed first.
    """
    base: Any = env.unwrapped
    acting, space = _acting(env, method), _seeded_actions(env, 1)
    with left_as_before(base):
        world, carried = _look(acting, base, method, space, steps)
        found = Transfer(method, world.reference if method != "replay" else None, world.changed)
        limits = time_limits(base)
        found.changed |= limits
        found.carried = _not_needed(acting, base, found, carried, limits, space, steps)
    return found


def _acting(env: gymnasium.Env, method: str) -> Any:
    """The env to be played in trials: without its wrappers, recording if that is the method."""
    if method == "replay":
        return recorder_of(env) or recorder_of(with_action_recorder(bare(env)))
    return bare(env)


def _seeded_actions(env: gymnasium.Env, seed: int) -> gymnasium.Space:
    """A copy of the unwrapped env's action space, to sample from."""
    space = copy.deepcopy(env.unwrapped.action_space)
    space.seed(seed)
    return space


def _state_tree(base: gymnasium.Env, method: str) -> Any:
    """An env's attributes as a tree; by replay only as far as they are plain data."""
    if method != "replay":
        return save_unchecked(base, method).simulator
    if trusted(type(base)):
        return {}
    try:
        return codec.Encoder(shared=shared_values([type(base)]), opaque=True).encode(base)
    except RecursionError:
        return {}


def _look(
    acting: Any, base: Any, method: str, space: gymnasium.Space, steps: int
) -> tuple[World, set[Path]]:
    """(what changed, the parts in which two resets with one seed differ)."""
    acting.reset(seed=1)  # an env that was never reset may lack attributes
    _walk(acting, space, 3)
    acting.reset(seed=2)
    first = _state_tree(base, method)
    world = World(first)
    for walked in (1, 1, 1, 1, 1, 2, 3, 5, max(steps - 15, 1)):
        _walk(acting, space, walked)
        world.look(_state_tree(base, method))
    for seed in range(3, 3 + RESETS):
        acting.reset(seed=seed)
        world.look(_state_tree(base, method))
    acting.reset(seed=2)
    again = _state_tree(base, method)
    world.look(again)
    return world, world.siblings(differences(first, again))


def _walk(env: gymnasium.Env, space: gymnasium.Space, steps: int) -> None:
    for _ in range(steps):
        _, _, terminated, truncated, _ = env.step(sample(space))
        if terminated or truncated:
            env.reset()


def _not_needed(
    acting: Any,
    base: Any,
    found: Transfer,
    carried: set[Path],
    limits: set[Path],
    space: gymnasium.Space,
    steps: int,
) -> set[Path]:
    """The time limits, and those of the carried parts without which the transfer is exact.

    Raises:
        InexactState: it is not exact with all of them either.
    """
    carried = carried | limits
    if found.method == "replay":  # a replay moves them, so they are put back after it
        found.carried = set(carried)
        _require_exact(_trial(acting, base, found, space, steps), base)
        return carried
    found.carried = set(carried)
    if _trial(acting, base, found, space, steps) is None:
        return set(carried)
    found.carried = set(limits)
    _require_exact(_trial(acting, base, found, space, steps), base)
    free = set(limits)
    for path in sorted(carried - limits):
        found.carried = limits | {path}
        if _trial(acting, base, found, space, steps) is None:
            free.add(path)
    found.carried = set(free)
    return free if _trial(acting, base, found, space, steps) is None else set(limits)


def _require_exact(difference: str | None, base: Any) -> None:
    if difference:
        raise InexactState(
            f"{id_of(base)} did not continue alike from a world that was restored into another of "
            f"its episodes: {difference}"
        )


def _trial(
    acting: Any, base: Any, found: Transfer, space: gymnasium.Space, steps: int
) -> str | None:
    """The first difference after a transfer between two episodes of one env; None: it is exact."""
    parts = found.parts()
    for played in POINTS:
        acting.reset(seed=5)
        _walk(acting, space, played)
        saved = save_unchecked(acting, found.method)
        actions = [sample(space) for _ in range(steps)]
        expected = play(acting, actions, one_episode=True)
        acting.reset(seed=6)
        _walk(acting, space, 4)
        _move_on(acting, base, found, saved.simulator)
        try:
            restore_world(acting, saved, found, parts)
        except ConfigError as error:
            return str(error).rstrip(".")
        _set_generators(base, saved)
        difference = first_difference(expected, play(acting, actions, one_episode=True))
        if difference:
            return difference
    return None


def _set_generators(base: Any, saved: EnvState) -> None:
    if saved.method == "replay":
        set_randomness(base, saved.random)
    else:
        set_generators(base, saved.random)


def _move_on(acting: Any, base: Any, found: Transfer, saved: Any) -> None:
    """Reset an env until the parts that go on between episodes differ from the saved ones."""
    for seed in range(7, 7 + RESETS):
        acting.reset(seed=seed)
        if found.method == "replay" or not found.carried:
            return
        moved = parts_of(differences(saved, _state_tree(base, found.method)))
        if all(_within(path, moved) or _reaches(path, moved) for path in found.carried):
            return


def _reaches(path: Path, parts: Parts) -> bool:
    """Whether some of the parts lie below a path."""
    for step in path:
        if parts is WHOLE or step not in parts:
            return False
        parts = parts[step]
    return True


def time_limits(base: Any) -> set[Path]:
    """The paths of the counters that are named in `TIME_LIMITS`."""
    found: set[Path] = set()
    for where, owner in holders(base):
        path = tuple(f".{name}" for name in where.split(".") if name)
        for kind in type(owner).__mro__:
            name = TIME_LIMITS.get(f"{kind.__module__}:{kind.__qualname__}")
            if name is not None and name in vars(owner):
                found.add((*path, f".{name}"))
    return found


def restore_world(env: gymnasium.Env, state: EnvState, transfer: Transfer, parts: Parts) -> None:
    """Bring a saved world into an env that has been reset.

    The env's settings, its randomness and its wrappers stay as they are.

    Args:
        state: with a whole tree, see `Transfer.whole`.
        parts: from `Transfer.parts`.

    Raises:
        ConfigError: the state does not fit this env.
        InexactState: by replay, the env did not show the same observations. Reset it after any
            error.
    """
    base = env.unwrapped
    check_fits(base, state)
    recorder = recorder_of(env)
    if state.method == "replay":
        own = _values(base, transfer.carried)
        replay(base, recorder, state.simulator, None, only_observations=True)
        _put_back(base, own)
        return
    if recorder is not None:
        recorder.clear()
    wrappers = chain_of(env)[1:]
    decoder = codec.Decoder(
        chain_of(env), state.random, keep_random=True, in_place=held_by(wrappers)
    )
    try:
        decoder.decode(prune(state.simulator, parts), base)
    except (codec.Incomplete, simulators.DifferentModel) as error:
        raise ConfigError(
            f"This {id_of(base)} cannot take over the saved world ({error}): it was never reset, "
            "or is built too differently; build it with the same arguments (and model seed)."
        ) from None


def _values(base: Any, paths: Collection[Path]) -> dict[Path, Any]:
    """Copies of the values at some paths, as trees."""
    values = {}
    for path in paths:
        value: Any = base
        for step in path:
            value = step_into(value, step)
        if value is not MISSING:
            values[path] = codec.Encoder([base], opaque=True).encode(value)
    return values


def _put_back(base: Any, values: dict[Path, Any]) -> None:
    for path, tree in values.items():
        owner: Any = base
        for step in path[:-1]:
            owner = step_into(owner, step)
        now = step_into(owner, path[-1])
        if now is MISSING or (isinstance(tree, dict) and tree.get(codec.KIND) == "opaque"):
            continue
        decoded = codec.Decoder([base], {}, keep_random=True).decode(tree, now)
        if path[-1].startswith(".") and decoded is not now:
            set_attribute(owner, path[-1][1:], decoded)


def combined(env: gymnasium.Env, theirs: Transfer, own: Transfer, steps: int = 20) -> Transfer:
    """The transfer of snapshots (`theirs`) into an env (`own`: from `study`), proved once more.

    What either found to change is taken from the snapshot, if the snapshot has it; what either
    found to be needed is not left to the student.

    Raises:
        InexactState: it is not exact in this env.
    """
    base = env.unwrapped
    known = {path for path, _ in leaf_paths(theirs.reference)} | theirs.changed
    result = copy.copy(theirs)
    if theirs.reference is not None:
        result.changed = theirs.changed | (own.changed & known)
    needed = (theirs.changed - theirs.carried) | (own.changed - own.carried)
    result.carried = (theirs.carried | own.carried) - needed
    if result.changed != own.changed or result.carried != own.carried:
        acting, space = _acting(env, own.method), _seeded_actions(env, 2)
        with left_as_before(base):
            _require_exact(_trial(acting, base, result, space, steps), base)
    return result


def make_probe(env: gymnasium.Env, method: str, steps: int = 20) -> dict[str, Any]:
    """A short continuation of a saved world, as a tree, for `follow_probe`."""
    acting, space = _acting(env, method), _seeded_actions(env, 3)
    with left_as_before(env.unwrapped):
        acting.reset(seed=8)
        _walk(acting, space, 5)
        saved = save_unchecked(acting, method)
        actions = [sample(space) for _ in range(steps)]
        seen = _observations(play(acting, actions, one_episode=True))
        return {
            "state": saved.to_tree(),
            "actions": codec.encoded(actions),
            "observations": codec.encoded(seen),
        }


def follow_probe(
    env: gymnasium.Env, probe: Mapping[str, Any], transfer: Transfer, parts: Parts
) -> str | None:
    """The first difference between a probe and how its world continues in this env, or None.

    Numbers may differ by rounding, as between processors.
    """
    base: Any = env.unwrapped
    acting = _acting(env, transfer.method)
    decoder = codec.Decoder([base], {})
    saved = EnvState.from_tree(probe["state"])
    with left_as_before(base):
        acting.reset(seed=9)
        try:
            restore_world(acting, saved, transfer, parts)
        except ConfigError as error:
            return str(error).rstrip(".")
        _set_generators(base, saved)
        actions = decoder.decode(probe["actions"], MISSING)
        seen = _observations(play(acting, actions, one_episode=True))
    expected: Any = decoder.decode(probe["observations"], MISSING)
    for name in expected:
        difference = first_difference(expected[name], seen[name], name) if name in seen else None
        if difference and not _close(expected[name], seen[name]):
            return difference
    return None


def _observations(outputs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in outputs.items() if key.startswith("observation")}


def _close(one: Any, two: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return list(one) == list(two) and all(_close(one[key], two[key]) for key in one)
    try:
        one, two = np.asarray(one), np.asarray(two)
        return bool(np.allclose(one, two, rtol=1e-5, atol=1e-7, equal_nan=True))
    except (TypeError, ValueError):
        return first_difference(one, two) is None


def settings_that_differ(base: gymnasium.Env, transfer: Transfer) -> dict[str, tuple[Any, Any]]:
    """Name -> (this env's value, the snapshots'), of what no episode changes, as trees."""
    if transfer.reference is None:
        return {}
    with left_as_before(base):
        base.reset(seed=1)
        own = dict(leaf_paths(save_unchecked(base, transfer.method).simulator))
    theirs = dict(leaf_paths(transfer.reference))
    changed = parts_of(transfer.changed)
    differing = {}
    for path in [*theirs, *(path for path in own if path not in theirs)]:
        one, two = own.get(path, MISSING), theirs.get(path, MISSING)
        if any(isinstance(v, dict) and v.get(codec.KIND) == "random" for v in (one, two)):
            continue
        if not _within(path, changed) and first_difference(one, two) is not None:
            differing[text_of(path)] = (one, two)
    return differing


def describe(base: gymnasium.Env, transfer: Transfer, parts: Parts) -> list[str]:
    """What a transfer takes and what it leaves, in sentences."""
    if transfer.reference is None:
        lines = [f"{id_of(base)}: restored by repeating the episode's actions from its seed."]
    else:
        taken = sorted({text_of(path) for path in _paths(parts)})
        lines = [f"{id_of(base)}: restored by the method {transfer.method!r}."]
        lines.append(f"Taken from the snapshot: {', '.join(taken) or 'nothing'}.")
    left = sorted(text_of(path) for path in transfer.carried)
    if left:
        lines.append(f"Stays this env's, though episodes change it: {', '.join(left)}.")
    lines.append("Stays this env's: its random generators, and all that no episode changes.")
    return lines


def describe_differences(
    differing: Mapping[str, tuple[Any, Any]], continuation: str | None
) -> list[str]:
    """The settings that differ from the teacher's and what follows from them, in sentences.

    Args:
        differing: from `settings_that_differ`.
        continuation: from `follow_probe`.
    """
    lines = [
        f"Differs from the teacher's: {name} ({_short(own)}, not {_short(theirs)})."
        for name, (own, theirs) in sorted(differing.items())
    ]
    if continuation:
        lines.append(f"Under its own settings this env continues differently: {continuation}.")
    return lines


def _paths(parts: Parts, path: Path = ()) -> Iterable[Path]:
    if parts is WHOLE:
        yield path
        return
    for step, node in parts.items():
        yield from _paths(node, (*path, step))


def _short(tree: Any) -> str:
    if tree is MISSING:
        return "absent"
    if isinstance(tree, np.ndarray):
        return f"{tree.dtype} {list(tree.shape)}" if tree.size > 4 else str(tree.tolist())
    if isinstance(tree, dict) and codec.KIND in tree:
        return str(tree.get("class") or tree[codec.KIND])
    text = repr(tree)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _within(path: Path, parts: Parts) -> bool:
    for step in path:
        if parts is WHOLE:
            return True
        if step not in parts:
            return False
        parts = parts[step]
    return True
