"""The public Python API: what `import rlearly` offers and what it costs."""

import ast
import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import rlearly


def names_for_type_checkers():
    tree = ast.parse(Path(rlearly.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.asname: node.module.removeprefix("rlearly.")
        for node in block.body
        for alias in node.names
    }


def test_lazy_names_are_those_that_type_checkers_see():
    assert names_for_type_checkers() == rlearly._PUBLIC


@pytest.mark.parametrize("name", sorted(names_for_type_checkers()))
def test_every_public_name_imports(name):
    assert getattr(rlearly, name).__name__ == name
    assert name in dir(rlearly)
    assert getattr(rlearly, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'rlearly' has no attribute 'nothing'"):
        getattr(rlearly, "nothing")  # noqa: B009


def test_importing_rlearly_imports_neither_torch_nor_gymnasium():
    script = "import sys, rlearly; print([m for m in ('torch', 'gymnasium') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8")
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("module", sorted(rlearly._MODULES))
def test_examples_in_docstrings_run(module):
    assert doctest.testmod(importlib.import_module(f"rlearly.{module}")).failed == 0
