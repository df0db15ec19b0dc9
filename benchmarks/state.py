"""The cost of saving and restoring envs: bytes and microseconds by family, compared with deepcopy.

`python benchmarks/state.py` prints a Markdown table; `--json FILE` also writes the numbers. One
thread, medians; each env is saved `STEPS` steps into an episode, and restored in the same env. The
last columns show the alternative to `rlearly.envs.state`: copy.deepcopy of the unwrapped env, and
whether the copy continues to the bit.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import os
import pickle
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium

from rlearly import envs
from rlearly.envs import dm_control
from rlearly.envs.gl_backend import choose_backend
from rlearly.envs.state.action_replay import with_action_recorder
from rlearly.envs.state.compare import same
from rlearly.envs.state.save_restore import EnvState, method_of, restore, save, self_test

choose_backend()
STEPS = 100
ROWS = {
    "Hopper-v5": None,
    "HalfCheetah-v5": None,
    "Ant-v5": None,
    "Humanoid-v5": None,
    "AdroitHandDoor-v1": "gymnasium_robotics",
    "PointMaze_UMaze-v3": "gymnasium_robotics",
    "cheetah_run": None,
    "humanoid_run": None,
    "dog_run": None,
    "quadruped_escape": None,
    "reach_duplo": None,
    "CartPole-v1": None,
    "Pendulum-v1": None,
    "FrozenLake-v1": None,
    "MiniGrid-DoorKey-8x8-v0": "minigrid",
    "ALE/Pong-v5 (no sticky actions)": "ale_py",
    "ALE/Pong-v5": "ale_py",
    "BipedalWalker-v3": "Box2D",
}
"""Env -> its optional package; envs of packages that are not installed are left out."""


def make(name: str) -> gymnasium.Env:
    if name in dm_control.suite_tasks() or name in dm_control.manipulation_tasks():
        return dm_control.DMControlEnv(envs.config_for(name), pixels=False, model_seed=0)
    name, _, no_sticky = name.partition(" ")
    kwargs: dict[str, Any] = {"repeat_action_probability": 0.0} if no_sticky else {}
    return gymnasium.make(name, **kwargs)


def microseconds(call: Callable[[], Any], budget_seconds: float = 0.5) -> float:
    """The median duration of `call`, over up to 200 calls."""
    call()
    times: list[float] = []
    end = time.perf_counter() + budget_seconds
    while len(times) < 3 or (len(times) < 200 and time.perf_counter() < end):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e6


def played(env: gymnasium.Env, actions: list[Any]) -> list[Any]:
    seen = []
    for action in actions:
        seen.append(copy.deepcopy(env.step(action)[:4]))
        if any(seen[-1][2:]):
            break
    return seen


def deepcopied(env: gymnasium.Env, actions: list[Any]) -> dict[str, Any]:
    """What copy.deepcopy of the unwrapped env costs, and how faithful it is."""
    base = env.unwrapped
    try:
        twin = copy.deepcopy(base)
    except Exception as error:  # any exception of a foreign class is a result
        return {"deepcopy": f"fails ({type(error).__name__})", "deepcopy_microseconds": None}
    cost = microseconds(lambda: copy.deepcopy(base))
    try:
        exact = same(played(base, actions), played(twin, actions))
    except Exception as error:
        return {"deepcopy": f"broken ({type(error).__name__})", "deepcopy_microseconds": cost}
    return {"deepcopy": "exact" if exact else "inexact", "deepcopy_microseconds": cost}


def pickled_bytes(env: gymnasium.Env) -> int | None:
    try:
        return len(pickle.dumps(env.unwrapped))
    except Exception:  # as above
        return None


def measure(name: str) -> dict[str, Any]:
    env = make(name)
    method = method_of(env)
    if method == "replay":
        env = with_action_recorder(env)
    proved = self_test(env)
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(STEPS):
        if any(env.step(env.action_space.sample())[2:4]):
            env.reset()
    state = save(env)
    data = state.to_bytes()
    row = {
        "env": name,
        "method": method if proved == method else f"{proved} ({method} is not exact)",
        "bytes": len(data),
        "save_microseconds": microseconds(lambda: save(env)),
        "to_bytes_microseconds": microseconds(state.to_bytes),
        "from_bytes_microseconds": microseconds(lambda: EnvState.from_bytes(data)),
        "restore_microseconds": microseconds(lambda: restore(env, state)),
        "pickle_bytes": pickled_bytes(env),
    }
    restore(env, state)
    row |= deepcopied(env, [env.action_space.sample() for _ in range(50)])
    env.close()
    return row


def number(value: float | None) -> str:
    return "fails" if value is None else f"{value:,.0f}"


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| env | method | bytes | save µs | restore µs | to / from bytes µs | deepcopy "
        "| deepcopy µs | pickle bytes |",
        "|---|---|---:|---:|---:|---:|---|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['env']} | {row['method']} | {row['bytes']:,} "
            f"| {number(row['save_microseconds'])} | {number(row['restore_microseconds'])} "
            f"| {number(row['to_bytes_microseconds'])} / {number(row['from_bytes_microseconds'])} "
            f"| {row['deepcopy']} | {number(row['deepcopy_microseconds'])} "
            f"| {number(row['pickle_bytes'])} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="JSON file to write the numbers to"
    )
    parser.add_argument("--only", metavar="NAME", help="measure only envs with NAME in their name")
    arguments = parser.parse_args()
    rows = []
    for name, package in ROWS.items():
        if arguments.only and arguments.only not in name:
            continue
        try:
            if package:
                gymnasium.register_envs(importlib.import_module(package))
        except ImportError:
            continue
        rows.append(measure(name))
    print(table(rows))
    if arguments.json:
        about = {"python": platform.python_version(), "steps": STEPS, "rows": rows}
        arguments.json.write_text(json.dumps(about, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
