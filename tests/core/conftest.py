"""Loads the kit of this folder by path: in importlib mode tests are no package and cannot import it by name."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

NAME = "flowserve_core_kit"


@pytest.fixture(scope="session")
def kit() -> ModuleType:
    """`kit.py`: plans built by hand, and a driver that is a model of the real one."""
    if NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(NAME, Path(__file__).with_name("kit.py"))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[NAME] = module
        spec.loader.exec_module(module)
    return sys.modules[NAME]
