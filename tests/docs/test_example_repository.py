"""The example repository installs, trains with the commands of its README, and passes its tests."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from saved import agent_state, equal

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "example-repo"
INSTALL = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the package, installed from a copy of the repository, and an empty one."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(EXAMPLE, folder / "repository", ignore=shutil.ignore_patterns("__pycache__"))
    site = folder / "site"
    command = [*INSTALL, "--no-index", "--target", str(site), str(folder / "repository")]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert (site / "my_rl" / "agent.py").is_file()
    (folder / "elsewhere").mkdir()
    shutil.copytree(EXAMPLE / "tests", folder / "elsewhere" / "tests")
    return folder


def run(command, installed):
    done = subprocess.run(
        ["bash", "-euc", command],
        capture_output=True,
        encoding="utf-8",
        cwd=installed / "elsewhere",
        env=os.environ
        | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(installed / "site"), str(ROOT)]),
            "OMP_NUM_THREADS": "1",
        },
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def commands():
    text = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    install, *others = blocks
    assert install == "pip install --editable .\n"
    return others


def test_commands_of_the_readme_run_as_printed(installed):
    said = "".join(run(block, installed) for block in commands())
    assert "agent.target_every_updates" in said and "resumed at 800 frames" in said
    assert "my_rl.agent:dqn on my_rl.env:Corridor-v0 at 1,000 frames" in said
    assert re.search(r"\d+ passed", said) and " failed" not in said.splitlines()[-1]
    straight = (
        "python -m rlearly.train agent=my_rl.agent:dqn env=my_rl.env:Corridor-v0 eval_episodes=5 "
        "eval_every_frames=400 replay.capacity=10000 intervention_kwargs.bound=2 "
        "'intervention=[redo,my_rl.intervention:ClipWeights]' train_frames=1000 run_dir=runs/one"
    )
    run(straight, installed)
    runs = installed / "elsewhere" / "runs"
    assert equal(agent_state(runs / "one"), agent_state(runs / "dqn")), "resumed to the bit"
    weights = agent_state(runs / "ppo")["modules"]["networks"]["actor"]
    assert weights["policy.network.1.inner.1.weight"].shape == (64, 32)


@pytest.mark.slow
def test_the_agent_learns_its_env(installed):
    words = "agent=my_rl.agent:dqn env=my_rl.env:Corridor-v0 train_frames=6000 run_dir=runs/long"
    words += " eval_every_frames=2000 eval_episodes=20 replay.capacity=10000"
    run(f"python -m rlearly.train {words}", installed)
    text = (installed / "elsewhere/runs/long/metrics.jsonl").read_text(encoding="utf-8")
    returns = [float(value) for value in re.findall(r'"eval/episode_return": ([-\d.]+)', text)]
    assert np.mean(returns[-1:]) > 0.5, returns
