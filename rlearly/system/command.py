"""Run a command to its exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from rlearly.core.errors import ConfigError
from rlearly.system.startup import prepare_process

READER_GONE = 141
"""The exit status of a process that SIGPIPE ended, as shells report it."""


def exit_with(main: Callable[[], int]) -> NoReturn:
    """Run a command and exit with its status.

    If the reader of its output goes away, as with `| head`, the command ends without a word.
    """
    try:
        prepare_process()
        status = main()
        sys.stdout.flush()
    except ConfigError as error:
        print(f"rlearly: {error}", file=sys.stderr)
        status = 2
    except BrokenPipeError:
        # what is still in the buffer would raise again when the interpreter ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = READER_GONE
    sys.exit(status)
