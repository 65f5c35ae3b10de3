"""Two kinds of errors, and no third one."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

import crossmost.runtime
from crossmost.commands.app import explain
from crossmost.runtime.errors import InvalidInput, RuntimeFailure

MODULES = [module.name for module in pkgutil.iter_modules(crossmost.runtime.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_every_error_of_a_module_is_one_of_the_two_and_a_line_for_the_user(name):
    module = importlib.import_module(f"crossmost.runtime.{name}")
    own = [
        each
        for each in vars(module).values()
        if inspect.isclass(each)
        and issubclass(each, Exception)
        and each.__module__ == module.__name__
        and not each.__name__.startswith("_")
    ]
    for error in own:
        assert issubclass(error, InvalidInput) != issubclass(error, RuntimeFailure)
        code, line = explain(error("expected one thing,\nfound another"))
        assert code == (2 if issubclass(error, InvalidInput) else 1)
        assert line == "expected one thing, found another"
