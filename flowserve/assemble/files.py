"""A user's Python file as what it declares."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Any

from flowserve.errors import ConfigError, FlowServeError
from flowserve.graphs.dynamic import DynamicNode
from flowserve.graphs.nodes import Node
from flowserve.graphs.tool import ToolNode
from flowserve.graphs.workflow import Workflow


@dataclass(frozen=True, slots=True)
class Declared:
    """What a Python file declares, in order of definition."""

    workflows: tuple[Workflow[..., Any], ...]
    tools: tuple[ToolNode[..., Any], ...] = ()
    dynamics: tuple[DynamicNode[..., Any], ...] = ()


def load(file: Path) -> Declared:
    """Import a Python file and collect what it declares. The file's folder is importable meanwhile.

    Raises ConfigError for a file that cannot be imported or has no workflow.
    """
    values = list(dict.fromkeys(value for value in vars(_imported(file)).values() if isinstance(value, Node)))
    workflows = tuple(value for value in values if isinstance(value, Workflow))
    if not workflows:
        raise ConfigError(f"{file}: expected at least one @fs.workflow function; found none")
    tools = tuple(value for value in values if isinstance(value, ToolNode))
    return Declared(workflows, tools, tuple(value for value in values if isinstance(value, DynamicNode)))


def load_workflows(file: Path) -> tuple[Workflow[..., Any], ...]:
    """The workflows of a Python file; see `load`."""
    return load(file).workflows


def _imported(file: Path) -> ModuleType:
    if not file.is_file():
        raise ConfigError(f"{file}: expected a Python file that declares workflows; there is no such file")
    name = f"flowserve_app_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file}: expected a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(file.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except FlowServeError:
        raise
    except (Exception, SystemExit) as error:
        where = f"{file}, line {line}" if (line := _line_of(error, file.resolve())) else str(file)
        raise ConfigError(f"{where}: cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(file.parent.resolve()))
    return module


def _line_of(error: BaseException, file: Path) -> int | None:
    """Where in `file` the error began."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).resolve() == file:
        return error.lineno
    frames = reversed(extract_tb(error.__traceback__))
    return next((frame.lineno for frame in frames if Path(frame.filename).resolve() == file), None)
