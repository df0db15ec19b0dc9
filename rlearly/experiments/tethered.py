"""`python -m rlearly.experiments.tethered MODULE [ARGUMENT ...]`: run a module that stops if its
parent process dies.

When the parent dies, even by SIGKILL, this process gets SIGTERM, on which a run saves a checkpoint
and stops. Elsewhere than on Linux, the module runs without this.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent = int(os.environ.pop("RLEARLY_PARENT", os.getppid()))
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before we asked
            sys.exit(75)
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
