"""Print any text on terminals and pipes of any encoding."""

from __future__ import annotations

import codecs
import io
import sys

ERRORS = "rlearly.printable"


def print_any_text() -> None:
    """Let standard output and error take any text, whatever the locale's encoding.

    A character that the encoding lacks comes out as an escape (\\u2212), and the bytes of a path
    that do not decode in this locale come out unchanged.
    """
    codecs.register_error(ERRORS, _printable)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)


def as_unicode(text: str) -> str:
    """Text in which bytes of a path that did not decode in this locale are read as UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _printable(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    first = UnicodeEncodeError(
        error.encoding, error.object, error.start, error.start + 1, error.reason
    )
    is_byte_of_path = "\udc80" <= error.object[error.start] <= "\udcff"
    return codecs.lookup_error("surrogateescape" if is_byte_of_path else "backslashreplace")(first)
