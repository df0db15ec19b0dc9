"""`python -m rlearly.doctor`: check and time what a run needs on this machine."""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, so that Ctrl-C is handled during them too
    from rlearly.system.command import exit_with

    exit_with("rlearly.doctor")

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlearly.config.structured import did_you_mean
from rlearly.core.errors import ConfigError, raised
from rlearly.core.exit_status import DONE, FAILED
from rlearly.envs import gl_backend
from rlearly.system.command import as_command

NEEDED = ("torch", "gymnasium", "dm_control", "mujoco", "hydra-core", "av", "tensorboardX", "wandb")


DRAWING_SECONDS = 300


class Problem(Exception):
    """A check failed; the message says what to do."""


def packages() -> str:
    versions = {}
    for name in NEEDED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise Problem(f"{name} is not installed: pip install -r requirements.lock") from None
    if int(versions["mujoco"].split(".")[0]) >= 4:
        raise Problem(
            f"mujoco {versions['mujoco']} breaks dm_control; make a new environment "
            "with pip install -r requirements.lock"
        )
    python = ".".join(map(str, sys.version_info[:3]))
    return f"Python {python}, " + ", ".join(f"{n} {v}" for n, v in versions.items())


def learner() -> str:
    import torch

    from rlearly.system import machine

    threads = machine.thread_count(None)
    device = machine.choose_device("auto")
    size = 4096 if device.type == "cuda" else 1024
    with machine.computing(threads, device):
        a = torch.rand(size, size, device=device)
        torch.matmul(a, a)
        began = time.monotonic()
        for _ in range(5):
            a = (a @ a).mul_(1e-3)
        float(a.sum())
        rate = 5 * 2 * size**3 / (time.monotonic() - began) / 1e9
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {rate:,.0f} GFLOP/s in matrix products"
    return f"no GPU; {machine.describe_threads(threads)}, {rate:,.0f} GFLOP/s in matrix products"


def memory() -> str:
    from rlearly.system import machine

    available = machine.available_bytes()
    transition_bytes = 84 * 84 * 3 + 38 * 4 + 10  # frame, action, and scalars of dog_run
    fits = int(max(0, available - machine.WORKING_BYTES) / transition_bytes)
    return (
        f"{machine.gigabytes(available)} available: room for {fits:,} transitions of dog_run (the "
        f"paper's replay of 1,000,000 takes {machine.gigabytes(1_000_000 * transition_bytes)})"
    )


def disk() -> str:
    folder = (Path("runs") if Path("runs").is_dir() else Path()).resolve()
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise Problem(
            f"{folder} cannot be written ({error.strerror}): name another with run_dir="
        ) from None
    return f"{shutil.disk_usage(folder).free / 1e9:,.0f} GB free in {folder}"


def opengl() -> str:
    named = os.environ.get("MUJOCO_GL")
    backend = gl_backend.choose_backend()
    if backend is None:
        raise Problem(f"nothing can be drawn here: {gl_backend.why_no_backend()}")
    states = [f"{n}: {gl_backend.backend_error(n) or 'works'}" for n in gl_backend.BACKENDS]
    setting = f"MUJOCO_GL={named} is set; " if named else ""
    return f"{setting}using {backend} ({'; '.join(states)})"


def drawing() -> str:
    """Step and draw in a process of its own, because a broken driver can crash it."""
    script = (
        "import time\n"
        "from rlearly import envs\n"
        "times = []\n"
        "for name in ('cartpole_balance', 'dog_run'):\n"
        "    env = envs.make(envs.config_for(name), pixels=True, model_seed=0)\n"
        "    obs, _ = env.reset(seed=0)\n"
        "    assert obs.std() > 1, f'{name} is drawn blank'\n"
        "    began = time.monotonic()\n"
        "    for _ in range(10): env.step(env.action_space.low)\n"
        "    times.append(f'{name} {(time.monotonic() - began) * 100:.1f} ms')\n"
        "    env.close()\n"
        "print('an agent step with its 84x84 image: ' + ', '.join(times))\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", script]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=DRAWING_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise Problem(f"no image within {DRAWING_SECONDS} s; {gl_backend.INSTALL}") from None
    if done.returncode:
        last = _last_line(done.stderr)
        _, refused, sentence = last.partition("ConfigError: ")
        raise Problem(sentence if refused else f"drawing fails ({last}); {gl_backend.INSTALL}")
    return done.stdout.strip().splitlines()[-1]


def update() -> str:
    import numpy as np
    import torch
    from gymnasium.spaces import Box

    from rlearly.config import resolve
    from rlearly.core.types import Batch, EnvSpec
    from rlearly.system import machine
    from rlearly.training import builder

    config = resolve.compose(["agent=drm", "env=dog_run"])
    device = machine.choose_device("auto")
    spec = EnvSpec(Box(0, 255, (9, 84, 84), np.uint8), Box(-1, 1, (38,), np.float32), 2)
    agent = builder.make_agent(config, spec, device)
    size = config.agent.batch_size
    obs = torch.randint(0, 256, (size, 9, 84, 84), dtype=torch.uint8, device=device)
    ones = torch.ones(size, 1, device=device)
    batch = Batch(obs, torch.zeros(size, *spec.action.shape, device=device), ones, ones, obs)
    seconds = []
    for _ in range(3):  # the first ones also allocate memory
        began = time.monotonic()
        float(agent.update(batch, step=0)["loss/critic"])
        seconds.append(time.monotonic() - began)
    return f"a DrM update at the paper's size: {min(seconds):.2f} s"


def video() -> str:
    import numpy as np

    from rlearly.training.video import Video

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "test.mp4"
        with Video(path) as film:
            for i in range(5):
                film.add(np.full((64, 64, 3), 40 * i, dtype=np.uint8))
        return f"H.264 mp4 encoded ({path.stat().st_size} bytes)"


HALF_FRAMES, WHOLE_FRAMES = 100, 160
REPEATED = {
    "td3": "env=Pendulum-v1 agent.learning_starts_steps=60 eval_every_frames=100 eval_episodes=1",
    "drm": "env=cartpole_balance preset=cpu seed_frames=60 eval_every_frames=0 "
    "agent.exploration_steps=20 agent.perturb_every_steps=10",
}
"""Agent -> overrides of a run that learns before and after HALF_FRAMES, which is in mid-episode.

The networks are big enough for several threads to share a sum."""

PIXEL_AGENTS = ("drm",)


def determinism() -> str:
    """Whether runs repeat to the bit here: when run again, and when stopped and resumed."""
    try:
        renders = gl_backend.choose_backend()
    except ConfigError:  # the check of opengl says it
        renders = None
    agents = [name for name in REPEATED if renders or name not in PIXEL_AGENTS]
    hardware = ""
    for name in agents:
        with tempfile.TemporaryDirectory() as folder:
            hardware = repeat(name, Path(folder))
    runs = " and ".join(f"3 runs of {name}" for name in agents)
    left_out = "" if renders else "; pixels were not checked, as nothing can be drawn here"
    return (
        f"{runs} are equal bit for bit on {hardware}: weights, moments, replay, random streams, "
        f"rows{left_out}"
    )


def repeat(agent: str, folder: Path) -> str:
    """Train one run twice, and a third time in two parts; returns the device and threads.

    Raises:
        Problem: the runs do not end in the same bits, or one of them fails.
    """
    from rlearly.system import machine

    overrides = [f"agent={agent}", *REPEATED[agent].split(), "video_size=0", "log_every_frames=20"]
    overrides += ["checkpoint_every_frames=0", "plasticity.every_steps=20"]
    whole, half = f"train_frames={WHOLE_FRAMES}", f"train_frames={HALF_FRAMES}"
    first, again, stopped = (folder / name for name in ("first", "again", "stopped"))
    _train(*overrides, whole, f"run_dir={first}")
    facts = json.loads((first / "provenance.json").read_text(encoding="utf-8"))[-1]["determinism"]
    hardware = f"{facts['device']} with {machine.describe_threads(facts['threads'])}"
    _train(*overrides, whole, f"run_dir={again}")
    _compare(first, again, f"{agent} on {hardware} does not repeat", facts)
    _train(*overrides, half, f"run_dir={stopped}")
    _train(f"resume={stopped}", whole)
    _compare(first, stopped, f"{agent} on {hardware} differs when stopped and resumed", facts)
    return hardware


def _train(*overrides: str) -> None:
    """Train in a process of its own, as a user would."""
    command = [sys.executable, "-W", "ignore", "-m", "rlearly.train", *overrides]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        raise Problem(f"{overrides[0]} does not train: {_last_line(done.stderr)}")


def _compare(one: Path, two: Path, failure: str, facts: dict[str, Any]) -> None:
    from rlearly.core.tree_diff import first_difference

    found = first_difference(_result(one), _result(two))
    if found is None:
        return
    remedies = ["threads=1"] * (facts["threads"] > 1) + ["device=cpu"] * (facts["device"] != "cpu")
    remedy = (
        f"try {' and '.join(remedies)} in your runs; OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= "
        "python -m rlearly.doctor determinism checks whether that helps"
        if remedies
        else "with one CPU thread the cause is in the code: does anything draw from a global "
        "generator, read the clock, or go unsaved?"
    )
    raise Problem(f"{failure}, first at {found}: {remedy}.")


def _result(run: Path) -> dict[str, Any]:
    """The rows and the last checkpoint of a run, without what depends on the clock."""
    from rlearly.training import checkpoint

    rows = [
        json.loads(line)
        for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    timed = ("speed/", "eval/seconds")
    rows = [{k: v for k, v in row.items() if not k.startswith(timed)} for row in rows]
    _, state = checkpoint.load_newest(run / "checkpoints")
    del state["trainer"]["elapsed_seconds"], state["sinks"]
    return {"rows": rows, **state}


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


CHECKS: dict[str, Callable[[], str]] = {
    "packages": packages,
    "learner": learner,
    "memory": memory,
    "disk": disk,
    "opengl": opengl,
    "drawing": drawing,
    "update": update,
    "video": video,
}
LONG_CHECKS: dict[str, Callable[[], str]] = {"determinism": determinism}
"""These take up to a minute, so they run only when named."""


@as_command
def main(names: list[str]) -> int:
    """Run the named checks, or all short ones; exit status 1 if one of them failed."""
    if "--help" in names or "-h" in names:
        print(f"Usage: python -m rlearly.doctor [CHECK ...]\nChecks: {', '.join(CHECKS)}")
        print(f"Run only if named, as it takes up to a minute: {', '.join(LONG_CHECKS)}")
        return DONE
    checks = CHECKS | LONG_CHECKS
    for name in names:
        if name not in checks:
            raise ConfigError(f"There is no check {name!r}; {did_you_mean(name, checks)}")
    failed = 0
    for name in names or CHECKS:
        try:
            print(f"ok       {name:11} {checks[name]()}", flush=True)
        except (Problem, ConfigError) as error:
            failed += 1
            print(f"PROBLEM  {name:11} {error}", flush=True)
        except Exception as error:  # the other checks may tell more
            failed += 1
            print(f"PROBLEM  {name:11} the check itself failed: it {raised(error)}", flush=True)
    print(f"{failed} problem(s): see above." if failed else "All checks passed.")
    return FAILED if failed else DONE
