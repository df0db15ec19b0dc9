"""Save and restore simulators: MuJoCo, bare or in dm_control's Physics, and ALE (Atari)."""

from __future__ import annotations

import functools
import importlib
import zlib
from typing import Any

import numpy as np

MUTABLE = ("body_pos", "body_quat", "geom_pos", "geom_size", "site_pos", "site_quat", "site_size")
MUTABLE += ("dof_damping", "wrap_prm", "light_pos", "mat_rgba", "hfield_data")
"""Model fields that tasks write when an episode begins (mat_rgba: at each step)."""

FIXED = ("body", "jnt", "dof", "geom", "site", "cam", "light", "mat", "tendon", "actuator", "eq")
FIXED += ("pair", "sensor", "hfield", "key", "qpos0", "qpos_spring", "exclude", "numeric")
DERIVED_ONLY = ("geom_fluid", "geom_aabb", "geom_rbound")
"""Model fields that MuJoCo computes from others, and that are therefore not compared."""

OPTIONS = ("timestep", "gravity", "wind", "magnetic", "density", "viscosity", "impratio")
OPTIONS += ("integrator", "cone", "solver", "iterations", "tolerance", "disableflags")
OPTIONS += ("enableflags", "ls_iterations", "noslip_iterations")

POSITIONS = ("xpos", "xquat", "xmat", "xipos", "ximat", "xanchor", "xaxis", "geom_xpos")
POSITIONS += ("geom_xmat", "site_xpos", "site_xmat", "cam_xpos", "cam_xmat", "light_xpos")
POSITIONS += ("light_xdir", "subtree_com", "cdof", "cinert", "ten_length", "actuator_length")
POSITIONS += ("cvel", "cdof_dot", "ten_velocity", "actuator_velocity", "qfrc_bias")
POSITIONS += ("qfrc_passive", "qfrc_spring", "qfrc_damper", "wrap_xpos")
"""Data fields derived from positions and velocities. After mj_step they lag one step behind, which
envs rely on when they read them; dm_control updates them after each step."""

FORCES = ("sensordata", "qacc", "qacc_smooth", "qfrc_actuator", "qfrc_smooth", "qfrc_constraint")
FORCES += ("qfrc_inverse", "actuator_force", "act_dot", "cacc", "cfrc_int", "cfrc_ext", "energy")
FORCES += ("subtree_linvel", "subtree_angmom")
"""Data fields left by a step that mj_forward computes differently or not at all."""


class DifferentModel(Exception):
    """The simulated world is not the one that was saved. The text names the parts that differ."""


def kind_of(value: Any) -> str | None:
    """ "physics" (dm_control's), "data" or "model" (MuJoCo's), "ale", or None."""
    kind = type(value)
    module = kind.__module__
    if module.startswith("mujoco"):
        return {"MjData": "data", "MjModel": "model"}.get(kind.__name__)
    if kind.__name__ == "ALEInterface" and module.startswith("ale_py"):
        return "ale"
    for base in kind.__mro__:
        if base.__name__ == "Physics" and base.__module__ == "dm_control.mujoco.engine":
            return "physics"
    return None


def save(kind: str, simulator: Any) -> dict[str, Any]:
    """A simulator's state as a tree of arrays."""
    if kind == "ale":
        raw = simulator.cloneState(include_rng=True).serialize()
        return {"ale": np.frombuffer(raw, np.uint8).copy()}
    if kind == "physics":
        up_to_date = bool(getattr(simulator, "legacy_step", False))
        fields = FORCES if up_to_date else FORCES + POSITIONS
        return _save_mujoco(simulator.model.ptr, simulator.data.ptr, fields)
    return _save_mujoco(simulator.model, simulator, FORCES + POSITIONS)


def _save_mujoco(model: Any, data: Any, fields: tuple[str, ...]) -> dict[str, Any]:
    mujoco: Any = importlib.import_module("mujoco")
    full = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(model, full))
    mujoco.mj_getState(model, data, state, full)
    return {
        "state": state,
        "model": {name: getattr(model, name).copy() for name in MUTABLE if _has(model, name)},
        "derived": {name: getattr(data, name).copy() for name in fields if _has(data, name)},
        "fixed": _checksums(model),
    }


def viewed_part(data: Any, value: np.ndarray) -> dict[str, Any] | None:
    """The part of MuJoCo's data (field, strides) that an array is a view of; None if of none."""
    low, high = np.lib.array_utils.byte_bounds(value)
    for name in ("qpos", "qvel", "qacc", "act", "ctrl", "mocap_pos", *POSITIONS, *FORCES):
        field = getattr(data, name, None)
        if not isinstance(field, np.ndarray) or not field.size or field.dtype != value.dtype:
            continue
        first, last = np.lib.array_utils.byte_bounds(field)
        if first <= low and high <= last:
            start = (value.__array_interface__["data"][0] - first) // field.itemsize
            strides = [step // field.itemsize for step in value.strides]
            return {"field": name, "start": start, "shape": list(value.shape), "strides": strides}
    return None


def make_view(data: Any, part: dict[str, Any]) -> np.ndarray | None:
    """The view that `viewed_part` described, or None if it does not lie within its field."""
    flat = getattr(data, part["field"]).reshape(-1)
    steps = [(size - 1) * step for size, step in zip(part["shape"], part["strides"], strict=True)]
    low = part["start"] + sum(step for step in steps if step < 0)
    high = part["start"] + sum(step for step in steps if step > 0)
    if low < 0 or high >= flat.size or 0 in part["shape"]:
        return None
    strides = [step * flat.itemsize for step in part["strides"]]
    return np.lib.stride_tricks.as_strided(flat[part["start"] :], part["shape"], strides)


def restore(simulator: Any, tree: dict[str, Any]) -> None:
    """Restore a simulator to the bit, including its renderers' copy of the terrain.

    Raises:
        DifferentModel: the state is from a different simulated world.
    """
    kind = kind_of(simulator)
    if kind == "ale":
        ale: Any = importlib.import_module("ale_py")
        simulator.restoreState(ale.ALEState(np.asarray(tree["ale"]).tobytes()))
    elif kind == "physics":
        if _restore_mujoco(simulator.model.ptr, simulator.data.ptr, tree):
            _upload_height_fields(simulator)
    else:
        _restore_mujoco(simulator.model, simulator, tree)


def _restore_mujoco(model: Any, data: Any, tree: dict[str, Any]) -> bool:
    """Restore MuJoCo's model and data; returns whether height fields changed."""
    mujoco: Any = importlib.import_module("mujoco")
    full = mujoco.mjtState.mjSTATE_INTEGRATION
    actual, expected = _checksums(model), tree["fixed"]
    different = sorted(n for n in actual | expected if actual.get(n) != expected.get(n))
    sizes = [n for n, a in tree["model"].items() if getattr(model, n, np.empty(0)).shape != a.shape]
    if different or sizes or len(tree["state"]) != mujoco.mj_stateSize(model, full):
        raise DifferentModel(", ".join([*different, *sizes]) or "size")
    terrain = tree["model"].get("hfield_data")
    terrain_changes = terrain is not None and not np.array_equal(model.hfield_data, terrain)
    for name, values in tree["model"].items():
        getattr(model, name)[:] = values
    state = np.ascontiguousarray(tree["state"])
    mujoco.mj_setState(model, data, state, full)
    mujoco.mj_forward(model, data)
    mujoco.mj_setState(model, data, state, full)  # mj_forward moves the solver's warm start
    for name, values in tree["derived"].items():
        getattr(data, name)[:] = values
    return terrain_changes


def _has(owner: Any, name: str) -> bool:
    return getattr(owner, name, np.empty(0)).size > 0


def _checksums(model: Any) -> dict[str, int]:
    """CRC-32 of everything in a model that tasks do not write, by group: joints, options, ..."""
    sums: dict[str, int] = {}
    for name, group in _fixed_fields(type(model)):
        values = getattr(model, name)
        if values.size:
            sums[group] = zlib.crc32(np.ascontiguousarray(values).data, sums.get(group, 0))
    for name in OPTIONS:
        value = np.asarray(getattr(model.opt, name, 0), dtype=np.float64)
        sums["options"] = zlib.crc32(value.tobytes(), sums.get("options", 0))
    return sums


@functools.cache
def _fixed_fields(kind: type) -> list[tuple[str, str]]:
    """(field, group) of every array of a model that stays as it was built."""
    skip = {*MUTABLE, *DERIVED_ONLY}
    fields = ((name, name.split("_")[0]) for name in dir(kind) if name not in skip)
    return [
        (name, group)
        for name, group in fields
        if (group in FIXED or name in FIXED) and isinstance(getattr(kind, name), property)
    ]


def _upload_height_fields(physics: Any) -> None:
    """Update the renderer's own copy of the terrain (dm_control's quadruped)."""
    contexts = physics._contexts  # `contexts` would create them, in the current thread
    if not contexts:
        return
    mujoco: Any = importlib.import_module("mujoco")
    with contexts.gl.make_current() as gl:
        for number in range(physics.model.nhfield):
            gl.call(mujoco.mjr_uploadHField, physics.model.ptr, contexts.mujoco.ptr, number)
