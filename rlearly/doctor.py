"""`python -m rlearly.doctor`: check and time everything that a run needs on this machine."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rlearly.config import ConfigError, did_you_mean
from rlearly.envs import rendering

NEEDED = ("torch", "gymnasium", "dm_control", "mujoco", "hydra-core", "av", "tensorboardX", "wandb")


class Problem(Exception):
    """A check failed; the text says what to do."""


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

    from rlearly import machine

    threads = machine.settle(None)
    device = machine.choose_device("auto")
    size = 4096 if device.type == "cuda" else 1024
    a = torch.rand(size, size, device=device)
    torch.matmul(a, a)
    began = time.monotonic()
    for _ in range(5):
        a = (a @ a).mul_(1e-3)
    float(a.sum())
    rate = 5 * 2 * size**3 / (time.monotonic() - began) / 1e9
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {rate:,.0f} GFLOP/s in matrix products"
    return f"no GPU; {threads} CPU threads, {rate:,.0f} GFLOP/s in matrix products"


def memory() -> str:
    from rlearly import machine

    available = machine.available_bytes()
    dog = 84 * 84 * 3 + 38 * 4 + 10
    fits = int(max(0, available - machine.WORKING_BYTES) / dog)
    return (
        f"{machine.gigabytes(available)} available: room for {fits:,} transitions of dog_run "
        f"(the paper's replay of 1,000,000 takes {machine.gigabytes(1_000_000 * dog)})"
    )


def disk() -> str:
    place = Path("runs") if Path("runs").is_dir() else Path()
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise Problem(
            f"{place.resolve()} cannot be written ({error.strerror}): name another with run_dir="
        ) from None
    return f"{shutil.disk_usage(place).free / 1e9:,.0f} GB free in {place.resolve()}"


def opengl() -> str:
    named = os.environ.get("MUJOCO_GL")
    backend = rendering.choose_backend()
    if backend is None:
        raise Problem(f"nothing can be drawn here: {rendering.remedy()}")
    states = [f"{n}: {rendering.reason_against(n) or 'works'}" for n in rendering.BACKENDS]
    told = f"MUJOCO_GL={named} is set; " if named else ""
    return f"{told}using {backend} ({'; '.join(states)})"


def drawing() -> str:
    """Steps and draws in a process of its own: a broken driver can take its process along."""
    script = (
        "import time\n"
        "from rlearly import envs\n"
        "said = []\n"
        "for name in ('cartpole_balance', 'dog_run'):\n"
        "    env = envs.make(envs.config_for(name), pixels=True, model_seed=0)\n"
        "    obs, _ = env.reset(seed=0)\n"
        "    assert obs.std() > 1, f'{name} is drawn blank'\n"
        "    began = time.monotonic()\n"
        "    for _ in range(10): env.step(env.action_space.low)\n"
        "    said.append(f'{name} {(time.monotonic() - began) * 100:.1f} ms')\n"
        "    env.close()\n"
        "print('an agent step with its 84x84 image: ' + ', '.join(said))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        _, refused, sentence = last.partition("ConfigError: ")
        raise Problem(sentence if refused else f"drawing fails ({last}); {rendering.INSTALL}")
    return done.stdout.strip().splitlines()[-1]


def update() -> str:
    from rlearly import compose, machine

    words = ["agent=drm", "env=dog_run", "train_frames=2", "seed_frames=0", "replay_ratio=1"]
    config = compose.compose(words)
    seconds = compose.forecast_seconds(config, machine.choose_device("auto"))
    return f"a DrM update at the paper's size and one dog_run step: {seconds:.2f} s together"


def video() -> str:
    import numpy as np

    from rlearly.video import Video

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "test.mp4"
        with Video(path) as film:
            for i in range(5):
                film.add(np.full((64, 64, 3), 40 * i, dtype=np.uint8))
        return f"H.264 mp4 encoded ({path.stat().st_size} bytes)"


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all checks, or those named; exit status 1 if one of them failed."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--help" in words or "-h" in words:
        print(f"Usage: python -m rlearly.doctor [CHECK ...]\nChecks: {', '.join(CHECKS)}")
        return 0
    for word in words:
        if word not in CHECKS:
            print(f"rlearly: There is no check {word!r}; {did_you_mean(word, CHECKS)}")
            return 2
    failed = 0
    for name in words or CHECKS:
        try:
            print(f"ok       {name:9} {CHECKS[name]()}", flush=True)
        except (Problem, ConfigError) as error:
            failed += 1
            print(f"PROBLEM  {name:9} {error}", flush=True)
    print("All is well." if not failed else f"{failed} problem(s): see above.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
