"""Loads the slow engine of this folder by path: in importlib mode tests are no package and cannot import it by name."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

NAME = "flowserve_slow_engine"


@pytest.fixture(scope="session")
def slow() -> ModuleType:
    """`slow_engine.py`: the oracle of the engine model."""
    if NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(NAME, Path(__file__).with_name("slow_engine.py"))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[NAME] = module
        spec.loader.exec_module(module)
    return sys.modules[NAME]
