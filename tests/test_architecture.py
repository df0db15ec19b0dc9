"""Who may import whom."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY, TINY_STATE

PACKAGE = Path(__file__).parents[1] / "rlearly"


def modules():
    return {
        ".".join(p.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): p
        for p in PACKAGE.rglob("*.py")
    }


def imported(path):
    """The rlearly modules that a file imports, in functions and for types too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return {name.removeprefix("rlearly.") for name in found if name.startswith("rlearly.")}


MAY_IMPORT = {
    "core": "",
    "system": "core",
    "config": "core",
    "nn": "core",
    "kernels": "core nn",
    "plasticity": "core config system nn",
    "replay": "core config system nn",
    "agents": "core config system nn kernels plasticity",
    "envs": "core config system",
    "training": "core config system nn",
    "config.resolve": "core config plasticity agents envs replay training",
    "config.help": "core config agents envs",
    "training.builder": "core config config.resolve system nn plasticity replay agents envs "
    "training",
    "testing": "core config system nn plasticity agents envs training",
    "experiments": "core config config.resolve system training training.builder",
    "api": "core config config.resolve system nn agents envs training training.builder experiments",
    "commands": "core config config.resolve config.help system agents envs training "
    "training.builder experiments api",
}
"""Folder, or module with a rule of its own -> the folders and such modules that it may import,
besides its own folder."""


def room(module):
    """The longest entry of MAY_IMPORT that a module belongs to."""
    parts = module.split(".")
    if len(parts) == 1 and module not in MAY_IMPORT:
        return "commands"
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next(name for name in names if name in MAY_IMPORT)


def first_circle(imports):
    """A chain of modules that ends where it began, or None. `imports`: module -> modules."""
    done, path = set(), []

    def visit(module):
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return None
        path.append(module)
        found = next(filter(None, map(visit, sorted(imports.get(module, ())))), None)
        path.pop()
        done.add(module)
        return found

    return next(filter(None, map(visit, sorted(imports))), None)


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_follow_the_layers(module):
    own = room(module)
    allowed = {own, own.split(".")[0], *MAY_IMPORT[own].split()}
    for name in imported(modules()[module]) & set(modules()):
        assert room(name) in allowed, f"{module} imports {name}"


def test_no_circle_of_imports():
    known = modules()
    imports = {name: (imported(path) & set(known)) - {name} for name, path in known.items()}
    assert first_circle(imports) is None


def test_a_circle_is_found():
    assert first_circle({"a": {"b"}, "b": {"c"}, "c": set()}) is None
    assert first_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_nothing_imports_a_command():
    for name, path in modules().items():
        if name:
            for other in imported(path) & set(modules()):
                assert room(other) != "commands" or room(name) == "commands", f"{name}: {other}"


def test_folders_are_small_enough_to_read():
    for folder in [PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir())]:
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= 14, f"{folder} holds {len(files)} modules"


def test_every_package_that_a_test_may_be_skipped_for_is_pinned():
    pins = (PACKAGE.parent / "requirements.lock").read_text(encoding="utf-8").split()
    pinned = {re.sub("[-_.]+", "-", pin.split("==")[0]).lower() for pin in pins}
    distributions = importlib.metadata.packages_distributions()
    tests = [path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("*.py")]
    wanted = {name for text in tests for name in re.findall(r'importorskip\("(\w+)', text)}
    assert len(wanted) > 5
    for package in wanted:
        names = [re.sub("[-_.]+", "-", name).lower() for name in distributions.get(package, ())]
        assert pinned & set(names), f"{package} is not in requirements.lock"


def test_top_level_doors_lead_into_the_package():
    for door in ("agents", "envs", "experiments"):
        assert (PACKAGE.parent / door).resolve() == PACKAGE / door


def test_every_module_imports_without_what_windows_lacks():
    program = (
        "import importlib, pkgutil, sys\n"
        "for name in ('fcntl', 'pwd', 'grp', 'termios'): sys.modules[name] = None\n"
        "import rlearly\n"
        "for module in pkgutil.walk_packages(rlearly.__path__, 'rlearly.'):\n"
        "    importlib.import_module(module.name)\n"
        "from rlearly import StepCounter\n"
        "counter = StepCounter(); counter.add(); counter.add(); print(counter.steps)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert done.stdout.strip().splitlines()[-1:] == ["2"], done.stderr


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
        encoding="utf-8",
        cwd=PACKAGE.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert " 0 updates" not in done.stdout
    assert done.stderr.splitlines()[-1] == "[]"
