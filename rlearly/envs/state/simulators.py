"""Save and restore simulators: MuJoCo, bare or in dm_control's Physics, and ALE (Atari)."""

from __future__ import annotations

import functools
import importlib
import json
import math
import weakref
import zlib
from typing import Any

import numpy as np

HEAVY = ("mesh_", "tex_", "skin_", "bvh_", "oct_", "name", "text_", "hfield_path")
"""Beginnings of model fields that are large and that no env changes: not saved, but compared."""

OPTIONS = ("timestep", "gravity", "wind", "magnetic", "density", "viscosity", "impratio")
OPTIONS += ("integrator", "cone", "solver", "iterations", "tolerance", "disableflags")
OPTIONS += ("enableflags", "ls_iterations", "noslip_iterations", "jacobian", "disableactuator")
OPTIONS += ("o_friction", "o_margin", "o_solimp", "o_solref", "ls_tolerance", "noslip_tolerance")

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
    return _kind_of_class(type(value))


@functools.cache
def _kind_of_class(kind: type) -> str | None:
    module = str(getattr(kind, "__module__", ""))
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
        "derived": {name: getattr(data, name).copy() for name in fields if _has(data, name)},
        "model": _packed_model(model),
        "options": {name: _plain(getattr(model.opt, name)) for name in _options(model.opt)},
        "build": _build(model),
    }


def pack(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Named arrays as one array of bytes, which is written and read much faster than many."""
    fields = tuple((name, array.dtype.str, array.shape) for name, array in arrays.items())
    flat = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays.values()]
    return {
        "fields": _fields_text(fields),
        "values": np.concatenate(flat) if flat else np.empty(0, np.uint8),
    }


def unpack(tree: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays that `pack` joined, as views of its bytes."""
    values = tree["values"]
    return {
        name: values[start:end].view(dtype).reshape(shape)
        for name, dtype, shape, start, end in _places(tree["fields"])
    }


@functools.lru_cache(1000)
def _fields_text(fields: tuple[Any, ...]) -> str:
    return json.dumps(fields)


@functools.lru_cache(1000)
def _places(fields: str) -> list[tuple[str, np.dtype, list[int], int, int]]:
    """(name, dtype, shape, first byte, last byte + 1) of each array of `pack`."""
    places, start = [], 0
    for name, text, shape in json.loads(fields):
        dtype = np.dtype(text)
        end = start + math.prod(shape) * dtype.itemsize
        places.append((name, dtype, shape, start, end))
        start = end
    return places


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def data_of(simulator: Any) -> Any:
    """MuJoCo's data or model, also of dm_control's Physics."""
    return simulator.data.ptr if kind_of(simulator) == "physics" else simulator


def viewed_field(simulator: Any, value: np.ndarray) -> str | None:
    """The name of the field of MuJoCo's data or model whose memory an array shows, if of one."""
    low, high = np.lib.array_utils.byte_bounds(value)
    holder = data_of(simulator)
    for name in _array_fields(type(holder)):
        field = getattr(holder, name, None)
        if isinstance(field, np.ndarray) and field.size:
            first, last = np.lib.array_utils.byte_bounds(field)
            if first <= low and high <= last and field.flags.c_contiguous:
                return name
    return None


def restore(simulator: Any, tree: dict[str, Any]) -> None:
    """Restore a simulator to the bit, including its renderers' copy of the terrain.

    Raises:
        DifferentModel: the state is from a different simulated world.
    """
    kind = kind_of(simulator)
    if kind == "ale":
        _restore_ale(simulator, np.asarray(tree["ale"]).tobytes())
    elif kind == "physics":
        if _restore_mujoco(simulator.model.ptr, simulator.data.ptr, tree):
            _upload_height_fields(simulator)
    else:
        _restore_mujoco(simulator.model, simulator, tree)


def _restore_ale(ale: Any, data: bytes) -> None:
    """Restore ALE's emulator; its screen changes with the next frame.

    ALE's states leave out whether the console has run since it was switched on. Qbert and Tetris
    continue differently without that, and a just switched-on Tetris may even crash.
    """
    ale_py: Any = importlib.import_module("ale_py")
    state = ale_py.ALEState(data)
    if state.getEpisodeFrameNumber() == 0:
        ale.reset_game()
    elif ale.getEpisodeFrameNumber() == 0:
        ale.act(0)
    ale.restoreState(state)


def _restore_mujoco(model: Any, data: Any, tree: dict[str, Any]) -> bool:
    """Restore MuJoCo's model and data; returns whether height fields changed."""
    mujoco: Any = importlib.import_module("mujoco")
    full = mujoco.mjtState.mjSTATE_INTEGRATION
    if _build(model) != tree["build"]:
        raise DifferentModel("its numbers of bodies, joints, meshes, ... or its meshes differ")
    fields = unpack(tree["model"])
    terrain = fields.get("hfield_data")
    terrain_changes = terrain is not None and not np.array_equal(model.hfield_data, terrain)
    for name, values in fields.items():
        getattr(model, name)[...] = values
    for name, value in tree["options"].items():
        now = getattr(model.opt, name)
        if isinstance(now, np.ndarray):
            now[...] = value
        elif now != value:
            setattr(model.opt, name, type(now)(value))
    if "state" not in tree:
        return terrain_changes
    state = np.ascontiguousarray(tree["state"])
    mujoco.mj_setState(model, data, state, full)
    mujoco.mj_forward(model, data)
    mujoco.mj_setState(model, data, state, full)  # mj_forward moves the solver's warm start
    for name, values in tree["derived"].items():
        getattr(data, name)[:] = values
    return terrain_changes


def _has(owner: Any, name: str) -> bool:
    return getattr(owner, name, np.empty(0)).size > 0


@functools.cache
def _array_fields(kind: type) -> list[str]:
    """The names of a class's properties, among which are its arrays."""
    return [name for name in dir(kind) if isinstance(getattr(kind, name), property)]


def _options(options: Any) -> list[str]:
    return [name for name in OPTIONS if hasattr(options, name)]


_FIELDS: weakref.WeakKeyDictionary[Any, tuple[list[str], str]] = weakref.WeakKeyDictionary()
_BUILDS: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


def _saved_fields(model: Any) -> list[str]:
    """The model's arrays that are not empty and not `HEAVY`."""
    return [
        name
        for name in _array_fields(type(model))
        if not name.startswith(HEAVY)
        and name != "_sizes"
        and isinstance(getattr(model, name), np.ndarray)
        and getattr(model, name).size
    ]


def _packed_model(model: Any) -> dict[str, Any]:
    """All `_saved_fields`, as `pack` joins them; their names and shapes are found once a model."""
    if model not in _FIELDS:
        names = _saved_fields(model)
        _FIELDS[model] = names, pack({name: getattr(model, name) for name in names})["fields"]
    names, text = _FIELDS[model]
    joined = b"".join([getattr(model, name).tobytes() for name in names])
    return {"fields": text, "values": np.frombuffer(joined, np.uint8)}


def _build(model: Any) -> int:
    """CRC-32 of a model's sizes and meshes, which decide whether states fit it."""
    if model not in _BUILDS:
        checksum = zlib.crc32(np.ascontiguousarray(model._sizes).data)
        for name in ("mesh_vert", "mesh_face", "mesh_graph"):
            checksum = zlib.crc32(np.ascontiguousarray(getattr(model, name)).data, checksum)
        _BUILDS[model] = checksum
    return _BUILDS[model]


def _upload_height_fields(physics: Any) -> None:
    """Update the renderer's own copy of the terrain (dm_control's quadruped)."""
    contexts = physics._contexts  # `contexts` would create them, in the current thread
    if not contexts:
        return
    mujoco: Any = importlib.import_module("mujoco")
    with contexts.gl.make_current() as gl:
        for number in range(physics.model.nhfield):
            gl.call(mujoco.mjr_uploadHField, physics.model.ptr, contexts.mujoco.ptr, number)
