"""Prepare the process of a command before it does anything else."""

from __future__ import annotations

import getpass
import importlib.util
import os
import sys
from pathlib import Path

from rlearly.core.errors import ConfigError
from rlearly.system.output import print_any_text

PACKAGE = Path(__file__).parents[1]


def prepare_process() -> None:
    """Let the process of a command print any text, use the whole package, and open files.

    Raises:
        ConfigError: the working folder is gone.
    """
    print_any_text()
    complete_package()
    name_user_and_home()
    try:
        Path.cwd()
    except OSError as error:  # MKL, among others, ends the process then
        raise ConfigError(
            f"The working folder cannot be used ({error.strerror}); it may have been deleted. "
            "Change to another one with cd."
        ) from None


def name_user_and_home() -> None:
    """Give a user who is not in the system's list, as in containers, a name and a home.

    Libraries ask for them when they look for their caches (wandb, torch.compile). The home is /,
    which cannot be written: they then take temporary folders.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = os.sep
    try:
        getpass.getuser()
    except (OSError, KeyError, ImportError):
        number = os.getuid() if hasattr(os, "getuid") else 0  # Windows has none
        os.environ["USER"] = f"user{number}"


def complete_package() -> None:
    """Run the package's __init__.py if Python took another folder of that name for the package.

    It does so where an editable installation is used in the folder that holds a checkout named
    rlearly: it finds the modules, but not the names of the package itself.
    """
    package = sys.modules["rlearly"]
    if getattr(package, "__file__", None) is None:
        own = importlib.util.spec_from_file_location(
            "rlearly", PACKAGE / "__init__.py", submodule_search_locations=[os.fspath(PACKAGE)]
        )
        assert own and own.loader
        package.__spec__, package.__file__ = own, own.origin
        package.__path__ = [os.fspath(PACKAGE)]
        own.loader.exec_module(package)
