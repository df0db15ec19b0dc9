"""Where a run comes from: its command, code, packages and machine."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import psutil
import torch

from rlearly.system import determinism, machine

PACKAGE = Path(__file__).parents[1]
DIFF_CHARACTERS = 1_000_000
"""Longest diff that is recorded."""

UNTRACKED_FILES = 100
"""Maximum number of names of untracked files that are recorded."""

GIT_SECONDS = 10.0
NOT_FOUND = 1
"""Exit status of git where a file is not tracked, or there is no commit yet."""

GIT_ENVIRONMENT = {
    "GIT_OPTIONAL_LOCKS": "0",  # only look: the user may be committing at this moment
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
}
DIFF = (
    "diff",
    "--no-ext-diff",
    "--no-textconv",
    "--no-color",
    "--src-prefix=a/",
    "--dst-prefix=b/",
)
"""A diff that runs none of the repository's programs and does not depend on its settings."""

RECORDED_VARIABLES = ("SLURM_JOB", "SLURM_ARRAY", "CUDA_", "MUJOCO_", "OMP_", "MKL_")
"""Prefixes of environment variables that are recorded."""


def provenance(
    arguments: Sequence[str],
    threads: int | None,
    device: torch.device,
    env_modules: Sequence[str] = (),
    plugin_modules: Sequence[str] = (),
) -> dict[str, Any]:
    """Command, code, packages, hardware, and all else that repeating a run bit for bit depends on.

    Args:
        arguments: the overrides of the command.
        env_modules: the modules of the env, if it is the user's own (`rlearly.envs.code_of`).
        plugin_modules: the modules of the agent, networks, ... that are the user's own
            (`rlearly.config.plugins.modules_of`).
    """
    return {
        "argv": [*sys.argv[:1], *arguments],
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "code": {"path": str(PACKAGE), "sha256": _sha256(PACKAGE), **_own_distribution()},
        "git": repository(PACKAGE / "__init__.py", [PACKAGE]),
        "env_code": [_user_code(name) for name in env_modules],
        "plugins": [_user_code(name) for name in plugin_modules],
        "python": sys.version,
        "packages": {
            d.metadata["Name"]: d.version
            for d in sorted(importlib.metadata.distributions(), key=lambda d: str(d.name).lower())
        },
        "hardware": {
            "platform": platform.platform(),
            "processor": machine.processor(),
            "cores": os.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        },
        "threads": threads,
        "determinism": determinism.facts(device),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(RECORDED_VARIABLES)
        },
    }


# --- installed packages ---


def _sha256(package: Path) -> str:
    """The SHA-256 of the names and contents of a package's Python files."""
    digest = hashlib.sha256()
    for file in sorted(filter(Path.is_file, package.rglob("*.py"))):  # not an editor's lock
        digest.update(f"{file.relative_to(package).as_posix()}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _own_distribution() -> dict[str, Any]:
    """The version of the rlearly that runs, and where it was installed from.

    Both are None if it was not installed. Another rlearly may be: it is in `packages`.
    """
    for distribution in importlib.metadata.distributions(name="rlearly"):
        origin = _origin(distribution)
        places = [Path(str(distribution.locate_file("rlearly")))]
        if origin and origin.get("dir_info", {}).get("editable"):
            places.append(Path(url2pathname(urlsplit(origin["url"]).path), "rlearly"))
        if any(place.exists() and place.samefile(PACKAGE) for place in places):
            return {"version": distribution.version, "installed_from": origin}
    return {"version": None, "installed_from": None}


def _origin(distribution: importlib.metadata.Distribution) -> dict[str, Any] | None:
    """pip's direct_url.json, without the password of a URL: a folder, or a repository's commit."""
    with contextlib.suppress(ValueError):
        text = distribution.read_text("direct_url.json") or "null"
        return json.loads(re.sub(r"(?<=://)[^/@\s\"]+@", "", text))
    return None


# --- repositories ---


def repository(file: Path, scope: Sequence[Path] | None = None) -> dict[str, Any]:
    """The commit and changes of the repository that tracks a file.

    All values are None if no repository tracks it: one that merely contains the file's folder is
    not recorded, nor are its changes.

    Args:
        file: a file of the code that runs.
        scope: what the diff covers; None: the files of that repository that were imported.

    Returns:
        path: of the repository. commit: its HEAD. dirty: whether a tracked file differs from it,
        or one of the scope is not tracked. diff: of the scope. untracked: files of the scope that
        are neither tracked nor ignored. refused: why git refused to answer, for a repository that
        exists.
    """
    found: dict[str, Any] = dict.fromkeys(
        ("path", "commit", "dirty", "diff", "untracked", "refused")
    )
    file = Path(os.path.realpath(file))
    try:
        _git(file.parent, "ls-files", "--error-unmatch", "--", file.name)
        top = Path(os.fsdecode(_git(file.parent, "rev-parse", "--show-toplevel")[:-1]))
        scope = imported_files(top) if scope is None else scope
        untracked = _git_paths(top, scope, "ls-files", "--others", "--exclude-standard")
        found |= {"path": str(top), "untracked": untracked.decode(errors="replace").splitlines()}
        found["untracked"] = found["untracked"][:UNTRACKED_FILES]
        found["dirty"] = True  # as long as there is no commit
        commit = _git(top, "rev-parse", "--quiet", "--verify", "HEAD").decode().strip()
        found |= {"commit": commit, "dirty": None}
        found["dirty"] = bool(untracked or _git(top, *DIFF, "--name-only", "HEAD"))
        found["diff"] = _shortened(_git_paths(top, scope, *DIFF, "HEAD"))
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip()
        if error.returncode != NOT_FOUND and "not a git repository" not in reason:
            found["refused"] = reason.partition("\n")[0]
    except (OSError, subprocess.TimeoutExpired) as error:
        found["refused"] = str(error)
    return found


def imported_files(folder: Path) -> list[Path]:
    """The files below a folder that were imported, without those of rlearly and of installed
    packages."""
    left_out = [PACKAGE, *map(Path, set(sysconfig.get_paths().values()))]
    found = set()
    for module in list(sys.modules.values()):
        name = vars(module).get("__file__") if isinstance(module, ModuleType) else None
        if isinstance(name, str) and not any(map(Path(name).is_relative_to, left_out)):
            file = Path(os.path.realpath(name))
            if file.is_relative_to(folder) and not any(map(file.is_relative_to, left_out)):
                found.add(file)
    return sorted(found)


def _user_code(name: str) -> dict[str, Any]:
    """A module of the user's, its file with its SHA-256, and the repository that tracks it."""
    file = getattr(sys.modules.get(name), "__file__", None)
    found: dict[str, Any] = {"module": name, "file": file, "sha256": None, "git": None}
    if file:
        with contextlib.suppress(OSError):  # deleted since it was imported, or inside an archive
            found["sha256"] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        found["git"] = repository(Path(file))
    return found


def changed_code(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The user's modules whose files changed between two entries, as `the code of my_agents`."""
    listed = ("env_code", "plugins")
    then, today = (
        {part["module"]: part.get("sha256") for key in listed for part in entry.get(key, ())}
        for entry in (before, now)
    )
    return [
        f"the code of {module}"
        for module, digest in today.items()
        if then.get(module) not in (None, digest)
    ]


def _shortened(diff: bytes) -> str | None:
    """A diff as text, which ends with a note if it is cut; None if nothing changed."""
    text = diff.decode(errors="backslashreplace")
    if len(text) > DIFF_CHARACTERS:
        return f"{text[:DIFF_CHARACTERS]}\n[cut here: the diff has {len(text):,} characters]"
    return text or None


def _git_paths(top: Path, paths: Sequence[Path], *arguments: str) -> bytes:
    """What git prints for these paths only, asked in groups, as a command line is limited."""
    return b"".join(
        _git(top, *arguments, "--", *map(str, paths[i : i + 100]))
        for i in range(0, len(paths), 100)
    )


def _git(folder: Path, *arguments: str) -> bytes:
    """What git prints in a folder, whatever repository the environment names.

    Raises:
        CalledProcessError: git refused.
        OSError, TimeoutExpired: git is not installed, or takes too long.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name.startswith("GIT_CONFIG_")
    }
    return subprocess.run(
        ["git", "--literal-pathspecs", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments],
        check=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env=environment | GIT_ENVIRONMENT,
        timeout=GIT_SECONDS,
    ).stdout
