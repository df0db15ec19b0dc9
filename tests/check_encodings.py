"""`python tests/check_encodings.py`: list every text file or pipe that is opened without encoding=.

Without it Python takes the locale's, and what one machine wrote another cannot read. ruff's PLW1514
finds such calls only on objects that it knows the type of.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("rlearly", "benchmarks", "docs", "tests")

TEXT = {"read_text", "write_text", "FileHandler", "TextIOWrapper"}
"""Calls that always read or write text."""

BY_MODE = {"open": "r", "fdopen": "r", "TemporaryFile": "w+b", "NamedTemporaryFile": "w+b"}
"""Calls that read or write text unless their mode contains b -> their default mode."""

OTHER = ("os", "Image", "webbrowser", "tarfile", "zipfile", "gzip", "distribution")
"""Modules whose `open` is another function, or binary by default; objects whose `read_text` is."""


def without_encoding(source: str) -> Iterator[tuple[int, str]]:
    """(line, name) of each call that opens text without `encoding`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            function = node.func
            name = getattr(function, "attr", getattr(function, "id", ""))
            owner = getattr(getattr(function, "value", None), "id", "")
            if _is_text(node, name, owner) and "encoding" not in {k.arg for k in node.keywords}:
                yield node.lineno, name


def _is_text(call: ast.Call, name: str, owner: str) -> bool:
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if any(_is_true(keywords.get(key)) for key in ("text", "universal_newlines")):
        return True
    if name not in BY_MODE or (name == "open" and owner in OTHER):
        return name in TEXT and owner not in OTHER
    after_path = name == "fdopen" or (name == "open" and isinstance(call.func, ast.Name))
    at = 1 if after_path else 0
    mode = keywords.get("mode", call.args[at] if len(call.args) > at else None)
    if mode is None:
        return "b" not in BY_MODE[name]
    return isinstance(mode, ast.Constant) and "b" not in str(mode.value)


def _is_true(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and value.value is True


def main() -> int:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name} without encoding; add encoding='utf-8'"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, name in without_encoding(path.read_text(encoding="utf-8"))
    ]
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
