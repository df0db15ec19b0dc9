"""Makes Python processes with this folder in their PYTHONPATH look like another system to rlearly.

RLEARLY_TEST_SYSTEM names it: win32 or darwin. Third-party packages are imported before, because
they consist of binaries for the system that runs this.
"""

import importlib
import os
import shutil
import signal
import sys
from pathlib import Path

SYSTEM = os.environ.pop("RLEARLY_TEST_SYSTEM", None)  # not in processes that imports start
THIRD_PARTY = (
    "asyncio", "ctypes", "filelock", "gymnasium", "h5py", "hydra.core", "imageio.v3",
    "matplotlib.pyplot", "mmap", "multiprocessing", "numpy", "psutil", "rich.live", "shutil",
    "subprocess", "tempfile", "tensorboardX", "threadpoolctl", "torch._dynamo",
)  # fmt: skip

NOT_ON_WINDOWS = {
    "modules": ("fcntl", "pwd", "grp", "termios", "resource", "tty", "pty", "syslog", "readline"),
    "os": (
        "fork", "forkpty", "sched_getaffinity", "sched_setaffinity", "killpg", "setsid", "setpgid",
        "getpgid", "getuid", "geteuid", "getgid", "mkfifo", "posix_fadvise", "posix_fallocate",
        "pwrite", "pread", "preadv", "pwritev", "uname", "sysconf", "getloadavg",
        "fchmod", "chown", "waitid", "P_PID", "WEXITED", "WNOWAIT", "nice", "memfd_create",
    ),
    "signal": (
        "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGALRM", "SIGPIPE", "SIGQUIT", "SIGCHLD",
        "SIGSTOP", "SIGCONT", "SIGTSTP", "pthread_kill", "pthread_sigmask", "sigwait", "alarm",
        "setitimer",
    ),
    "mmap": ("MAP_PRIVATE", "MAP_ANONYMOUS", "MAP_SHARED", "MAP_ANON"),
}  # fmt: skip
NOT_ON_MACOS = {
    "modules": (),
    "os": (
        "sched_getaffinity", "sched_setaffinity", "posix_fadvise", "posix_fallocate", "waitid",
        "P_PID", "WEXITED", "WNOWAIT", "memfd_create",
    ),
    "signal": (),
    "mmap": (),
}  # fmt: skip


def pretend(system):
    """Hide what a system lacks, make it refuse what it refuses, and give it its name."""
    for name in THIRD_PARTY:
        importlib.import_module(name)
    lacks = NOT_ON_WINDOWS if system == "win32" else NOT_ON_MACOS
    for name in lacks["modules"]:
        sys.modules[name] = None
    for module in ("os", "signal", "mmap"):
        for name in lacks[module]:
            if hasattr(sys.modules[module], name):
                delattr(sys.modules[module], name)
    signal.Signals = [n for n in signal.Signals if n.name not in lacks["signal"]]
    _refuse(system)
    shutil._use_fd_functions = system != "win32"
    sys.platform = system


def _refuse(system):
    """No /proc and no sysfs; on Windows no opened directories and no : in the names of files."""
    import ctypes

    opened, made = os.open, os.mkdir
    read, load = Path.open, ctypes.CDLL.__init__

    def checked(path):
        text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
        if text.startswith(("/proc/", "/sys/")):
            raise FileNotFoundError(2, "there is no /proc", text)
        if system == "win32" and set(text) & set('<>:"|?*'):
            raise OSError(22, "the name holds a character that Windows forbids", text)

    def open_descriptor(path, *args, **kwargs):
        checked(path)
        if system == "win32" and Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **kwargs)

    def mkdir(path, *args, **kwargs):
        checked(path)
        return made(path, *args, **kwargs)

    def path_open(self, *args, **kwargs):
        checked(self)
        return read(self, *args, **kwargs)

    def cdll(self, name, *args, **kwargs):
        if name is None and system == "win32":
            raise TypeError("LoadLibrary() argument 1 must be str, not None")
        if name and str(name).startswith("libc.so"):
            raise OSError(f"{name}: there is no such library")
        load(self, name, *args, **kwargs)

    os.open, os.mkdir, Path.open = open_descriptor, mkdir, path_open
    ctypes.CDLL.__init__ = cdll


if SYSTEM:
    pretend(SYSTEM)
    os.environ["RLEARLY_TEST_SYSTEM"] = SYSTEM
