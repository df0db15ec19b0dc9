"""The exit statuses of all commands."""

from __future__ import annotations

DONE, FAILED, BAD_REQUEST, SAVED, INTERRUPTED, READER_GONE = 0, 1, 2, 75, 130, 141

MEANINGS = {
    DONE: "done",
    FAILED: "the env or learning failed, memory ran out, or rlearly has a bug (with a traceback)",
    BAD_REQUEST: "the request cannot be met, or a file cannot be read or written",
    SAVED: "stopped and saved; continue with the command that was printed",
    INTERRUPTED: "interrupted by Ctrl-C before there was anything to save, or by a second Ctrl-C",
    READER_GONE: "the program that reads the output exited, as with `| head`",
}
"""Status -> its meaning, for --help and the documentation."""

STATUS_HELP = "\n".join(
    ["", "Exit status", *(f"  {status:3}  {meaning}" for status, meaning in MEANINGS.items())]
)
"""The last lines of a command's --help."""
