"""Run a command: its failures become one sentence and an exit status, whatever raised them."""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, NoReturn

from rlearly.core.errors import ConfigError, RunFailed
from rlearly.core.exit_status import BAD_REQUEST, FAILED, INTERRUPTED, READER_GONE
from rlearly.system.process import restored_process
from rlearly.system.startup import prepare_process

BUG = "This is a bug in rlearly: please report it, with this traceback and the command."

REMEDIES = {
    errno.ENOSPC: "free space, then repeat the command",
    errno.EDQUOT: "free space, then repeat the command",
    errno.EACCES: "change its permissions, or name another path",
    errno.EPERM: "change its permissions, or name another path",
    errno.EROFS: "name a path that can be written",
    errno.EMFILE: "raise `ulimit -n`",
}
"""Errors of the system that a user can fix, even if no path is named -> how."""


def as_command(main: Callable[[list[str]], int]) -> Callable[[Sequence[str] | None], int]:
    """Turn a function of the arguments into a command's `main`, which returns an exit status.

    Expected failures (`ConfigError`, `RunFailed`, files that cannot be read or written, too little
    memory, a package that is not installed) are one sentence on stderr. Any other exception is a
    bug: it propagates, with a note that says so. KeyboardInterrupt propagates too, so that Ctrl-C
    also ends a script or a notebook's cell that calls `main`; `exit_with` turns it into a status.

    `main` may be imported and called, from any thread and several times. It leaves the process as
    it found it: what it changes for the whole process is in `process.restored_process` and
    `machine.computing`, with what cannot be put back.
    """

    @functools.wraps(main)
    def guarded(arguments: Sequence[str] | None = None) -> int:
        with restored_process:
            return _guarded(lambda: main(list(sys.argv[1:] if arguments is None else arguments)))

    return guarded


def _guarded(function: Callable[[], int]) -> int:
    """The function's status, or that of its failure if one sentence explains it."""
    try:
        return function()
    except BrokenPipeError:
        raise
    except Exception as error:
        expected = explained(error)
        if expected is None:
            if BUG not in getattr(error, "__notes__", ()):
                error.add_note(BUG)
            raise
        status, sentence = expected
    print(f"rlearly: {sentence}", file=sys.stderr, flush=True)
    return status


def explained(error: Exception) -> tuple[int, str] | None:
    """The exit status and sentence of a failure; None if it is a bug."""
    if isinstance(error, ConfigError):
        return BAD_REQUEST, str(error)
    if isinstance(error, RunFailed):
        return FAILED, str(error)
    if is_out_of_memory(error):
        return FAILED, f"{out_of_memory(error)}."
    if isinstance(error, ModuleNotFoundError) and not f"{error.name}.".startswith("rlearly."):
        return BAD_REQUEST, (
            f"the package {str(error.name).partition('.')[0]} is not installed in {sys.prefix}: "
            "install it; python -m rlearly.doctor packages lists what is needed."
        )
    if isinstance(error, OSError):
        return _explained_os_error(error)
    return None


def _explained_os_error(error: OSError) -> tuple[int, str] | None:
    remedy = REMEDIES.get(error.errno or 0)
    named = [os.fsdecode(n) for n in (error.filename, error.filename2) if _is_path(n)]
    if not named and remedy is None:
        return None
    what = ": ".join([*[" -> ".join(named)] * bool(named), error.strerror or str(error)])
    return BAD_REQUEST, f"{what}{f'; {remedy}' if remedy else ''}."


def _is_path(name: Any) -> bool:
    return isinstance(name, str | bytes | os.PathLike) and bool(name)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of this machine or of its GPU."""
    torch: Any = sys.modules.get("torch")
    return (
        isinstance(error, MemoryError)
        or (torch is not None and isinstance(error, torch.OutOfMemoryError))
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def out_of_memory(error: BaseException) -> str:
    """What ran out of memory, and what to do, without a full stop."""
    text = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return (
        f"memory ran out{f' ({text})' if text else ''}; free some, or use smaller sizes, as with "
        "agent.batch_size= or replay.capacity="
    )


# --- called from Python ---


class CallableModule(ModuleType):
    """A command's module that is also a function: `rlearly.train(...)` beside `rlearly.train.main`.

    `function`: "MODULE:NAME" of what a call calls; it is imported by the first call.
    """

    function: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The function; `inspect.signature` and `help` show its signature."""
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(module), name)


def call_instead(module: str, function: str) -> None:
    """Make the module of a command callable; see `CallableModule`."""
    found: Any = sys.modules[module]
    found.__class__ = CallableModule
    found.function = function


# --- a process of its own ---

_importing = 0
_interrupted = False


def exit_with(module: str) -> NoReturn:
    """Import a command's module, call its `main`, and exit with its status.

    A command's file calls this first, before its own imports, so that Ctrl-C is handled during
    these as well:

        if __name__ == "__main__":
            from rlearly.system.command import exit_with

            exit_with("rlearly.train")

    Ctrl-C ends the process with status 130, and no traceback: at once in `importing`, otherwise by
    a KeyboardInterrupt, so that what was opened is closed. If the reader of the output goes away,
    as with `| head`, the command ends without a word.
    """
    hook = sys.unraisablehook
    sys.unraisablehook = lambda found: None if _is_interrupt(found.exc_value) else hook(found)
    signal.signal(signal.SIGINT, _on_interrupt)
    try:
        status = _guarded(functools.partial(_imported_main, module))
    except BrokenPipeError:
        status = READER_GONE
    except BaseException as error:
        # third-party code may have turned the KeyboardInterrupt into an error of its own
        if not (_interrupted and isinstance(error, Exception)) and not _is_interrupt(error):
            raise
        status = INTERRUPTED
    signal.signal(signal.SIGINT, _exit_at_once)  # all is done; do not interrupt the cleaning up
    if status == INTERRUPTED:
        _say_interrupted()
    sys.exit(_without_unwritten_output(status))


def _imported_main(module: str) -> int:
    prepare_process()
    with importing():
        main = importlib.import_module(module).main
    return main()


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """In a command's own process, let Ctrl-C end it at once inside this context.

    It is for imports only: they make nothing that has to be cleaned up, and an exception in the
    middle of one can end in a crash or be swallowed. Called from Python, it changes nothing.
    """
    global _importing
    _importing += 1
    try:
        yield
    finally:
        _importing -= 1


def _on_interrupt(number: int, frame: Any) -> None:
    global _interrupted
    _interrupted = True
    if _importing:
        _say_interrupted()
        _exit_at_once(number, frame)
    raise KeyboardInterrupt


def _exit_at_once(number: int, frame: Any) -> NoReturn:
    os._exit(INTERRUPTED)


def _say_interrupted() -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"rlearly: interrupted.\n")  # print may not be called from a signal handler


def _is_interrupt(error: BaseException | None) -> bool:
    return isinstance(error, KeyboardInterrupt)


def _without_unwritten_output(status: int) -> int:
    """Write what is buffered; if that fails, drop it, or the interpreter would try again."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream:  # not closed by who started this process
                stream.flush()
        except OSError as error:
            assert stream
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if isinstance(error, BrokenPipeError):
                status = READER_GONE
            elif stream is sys.stdout:
                print(f"rlearly: the output cannot be written ({error}).", file=sys.stderr)
                status = BAD_REQUEST
    return status
