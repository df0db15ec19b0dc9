"""The public Python API: what `import rlearly` offers and what it costs."""

import ast
import doctest
import importlib
import inspect
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
    functions = {
        name: sys.modules[f"rlearly.{name}"].function.partition(":")[0].removeprefix("rlearly.")
        for name in rlearly._COMMANDS
        if getattr(rlearly, name)
    }
    assert names_for_type_checkers() == rlearly._PUBLIC | functions


@pytest.mark.parametrize("name", sorted(names_for_type_checkers()))
def test_every_public_name_imports(name):
    assert getattr(rlearly, name).__name__.removeprefix("rlearly.") == name
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
def test_examples_in_docstrings_run(module, tmp_path):
    check_examples(importlib.import_module(f"rlearly.{module}"), tmp_path)


@pytest.mark.parametrize("module", ["api.policy", "api.training", "api.sweep", "api.report"])
def test_examples_of_functions_behind_commands_run(module, tmp_path):
    check_examples(importlib.import_module(f"rlearly.{module}"), tmp_path)


def check_examples(module, folder):
    fixtures = {"getfixture": {"tmp_path": folder}.get}
    result = doctest.testmod(module, extraglobs=fixtures)
    assert result.attempted or module.__name__ != "rlearly.api.training"
    assert result.failed == 0


def test_a_command_is_a_function_that_shows_its_signature():
    assert list(inspect.signature(rlearly.train).parameters)[:2] == ["overrides", "env"]
    assert callable(importlib.import_module("rlearly.train").main)
