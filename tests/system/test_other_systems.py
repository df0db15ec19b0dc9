"""What runs on macOS and Windows, simulated: what they lack is hidden from rlearly.

See other_systems/sitecustomize.py. Nothing here ran on these systems themselves.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlearly.training.run_directory import _new_directory

TESTS = Path(__file__).parents[1]
TINY = {
    "agent": "td3",
    "env": "Pendulum-v1",
    "train_frames": 300,
    "seed_frames": 100,
    "eval_every_frames": 150,
    "eval_episodes": 1,
    "video_size": 0,
    "agent.batch_size": 16,
    "checkpoint_every_frames": 150,
}


def python(system, *arguments, cwd):
    paths = (TESTS / "other_systems", TESTS.parent, TESTS)
    environment = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "DISPLAY")}
    return subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, arguments)],
        cwd=cwd,
        env={
            **environment,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "RLEARLY_TEST_SYSTEM": system,
        },
        capture_output=True,
        encoding="utf-8",
        timeout=500,
    )


IMPORTS = """
import importlib, os, pkgutil, signal, sys
import rlearly

assert sys.platform == sys.argv[1] and not hasattr(os, "sched_getaffinity")
for module in pkgutil.walk_packages(rlearly.__path__, "rlearly."):
    importlib.import_module(module.name)
from rlearly import StepCounter, doctor
from rlearly.replay.frame_store import DiskArray, reserve
from rlearly.system import machine
import numpy as np

assert machine.usable_cores() == os.cpu_count() and machine.available_bytes() > 0
assert machine.set_threads(None) and isinstance(machine.processor(), str)
counter = StepCounter()
counter.add()
assert counter.steps == 1
assert reserve((3, 2), "float32").sum() == 0
array = DiskArray((4, 2), "uint8", ".")
array.write(1, np.ones((2, 2), np.uint8))
assert array.array.sum() == 4
sys.exit(doctor.main("packages learner memory disk video".split()))
"""


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_every_module_imports_and_the_doctor_runs(system, tmp_path):
    done = python(system, "-c", IMPORTS, system, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All checks passed" in done.stdout


@pytest.mark.parametrize("system", ["win32", pytest.param("darwin", marks=pytest.mark.slow)])
def test_a_state_agent_trains_with_the_local_launcher(system, tmp_path):
    tiny = [f"{key}={value}" for key, value in TINY.items()]
    done = python(system, "-m", "rlearly.sweep", *tiny, "seeds=1", "workers=1", cwd=tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
    said = "This system has no signal that asks runs to save"
    assert (said in done.stdout) == (system == "win32")
    (run,) = tmp_path.glob("sweeps/*/runs/*/*/*")
    assert json.loads((run / "done.json").read_text(encoding="utf-8"))["frames"] == 300
    for path in tmp_path.rglob("*"):
        assert not set(path.name) & set('<>:"/\\|?*'), "Windows forbids it in the names of files"


@pytest.mark.parametrize("env", ["my_module:Reach-v0", "ale_py:ALE/Pong-v5", "dog_run"])
def test_the_directory_of_a_run_has_a_name_that_every_system_allows(env, tmp_path, monkeypatch):
    from types import SimpleNamespace

    monkeypatch.chdir(tmp_path)
    config = SimpleNamespace(agent_name="td3", seed=0, env=SimpleNamespace(name=env))
    parts = _new_directory(config).parts  # pyright: ignore
    assert len(parts) == 4 and all(re.fullmatch(r"[\w.-]+", part) for part in parts)
