"""Who may import whom."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY, TINY_STATE

PACKAGE = Path(__file__).parents[1] / "rlearly"
COMMANDS = {"train", "evaluate", "doctor", "help", "teacher", "report", "sweep"}


def modules():
    return {
        ".".join(p.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): p
        for p in PACKAGE.rglob("*.py")
    }


def imported(path):
    """The rlearly modules that a file imports anywhere, functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return {name.removeprefix("rlearly.") for name in found if name.startswith("rlearly.")}


def layer(module):
    first = module.split(".")[0]
    if first in ("agents", "envs", "experiments", "compose"):
        return first
    return "command" if first in COMMANDS else "core"


MAY_IMPORT = {
    "core": {"core"},
    "agents": {"core", "agents"},
    "envs": {"core", "envs"},
    "compose": {"core", "agents", "envs"},
    "experiments": {"core", "compose", "experiments"},
    "command": {"core", "agents", "envs", "compose", "experiments", "command"},
}


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_follow_the_layers(module):
    for name in imported(modules()[module]):
        assert layer(name) in MAY_IMPORT[layer(module)], f"{module} imports {name}"


def test_top_level_doors_lead_into_the_package():
    for door in ("agents", "envs", "experiments"):
        assert (PACKAGE.parent / door).resolve() == PACKAGE / door


def test_help_imports_neither_torch_nor_mujoco():
    script = (
        "import sys; from rlearly.train import main; main(['--help']); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'mujoco', 'dm_control')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, cwd=PACKAGE.parent)
    assert done.returncode == 0 and b"Agents" in done.stdout


NOT_FOR_LEARNING = ("sympy", "torch._dynamo", "matplotlib", "wandb", "dm_control", "scipy", "h5py")
"""What takes a start-up its seconds, and no run needs unless it asks for it."""


@pytest.mark.parametrize("words", [TINY_STATE["td3"], [*TINY, "agent=drm"]], ids=["td3", "drm"])
def test_a_run_learns_without_importing_what_it_does_not_use(words, tmp_path):
    script = (
        "import sys; from rlearly.train import main; "
        f"status = main([*sys.argv[1:], 'train_frames=110', 'run_dir={tmp_path / 'run'}']); "
        f"print([m for m in {NOT_FOR_LEARNING} if m in sys.modules], file=sys.stderr); "
        "sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert " 0 updates" not in done.stdout
    assert done.stderr.splitlines()[-1] == "[]"
