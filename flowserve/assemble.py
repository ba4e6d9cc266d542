"""The only place that knows concrete classes by name: from settings to a runtime that can be started.

Heavy packages are imported by the adapter that is asked for, and a missing one is reported with the
command that installs it.
"""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Any

from flowserve.config import RuntimeConfig
from flowserve.engines.base import Engine
from flowserve.errors import ConfigError, FlowServeError, UnknownName
from flowserve.graphs.dynamic import DynamicNode
from flowserve.graphs.nodes import Node
from flowserve.graphs.tool import ToolNode
from flowserve.graphs.workflow import Workflow
from flowserve.retrieval.protocols import RetrievalService
from flowserve.runtime.runner import Runtime

DEFAULT_INDEXES = Path(".flowserve/indexes")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a runtime is made of."""

    engine: str = "hf"
    """Name in `ENGINES`."""
    model: str = "demo"
    """A folder, a hub name, `demo` or `demo-arithmetic` (the models that come with FlowServe)."""
    indexes: Path = DEFAULT_INDEXES
    """Folder of the indexes; made when something is ingested."""
    embedder: str = "minilm"
    """For new indexes: `minilm`, `hash`, or a sentence-transformers folder or hub name."""
    max_batch: int = 32
    """Sequences that the embedded engine decodes at once."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    """How much is taken on and how it is ordered."""


def settings_from_environment() -> Settings:
    """`FLOWSERVE_ENGINE`, `FLOWSERVE_MODEL`, `FLOWSERVE_INDEXES`, `FLOWSERVE_EMBEDDER`, over the defaults."""
    plain = Settings()
    return Settings(
        engine=os.environ.get("FLOWSERVE_ENGINE", plain.engine),
        model=os.environ.get("FLOWSERVE_MODEL", plain.model),
        indexes=Path(os.environ.get("FLOWSERVE_INDEXES", plain.indexes)),
        embedder=os.environ.get("FLOWSERVE_EMBEDDER", plain.embedder),
    )


def _hf(settings: Settings) -> Engine:
    _need("hf", "torch", "transformers", "llguidance")
    from flowserve.engines.hf import HFEngine

    return HFEngine(
        model_folder(settings.model), name=settings.model, max_batch=settings.max_batch, prefix_bytes=128 << 20
    )


def _fake(settings: Settings) -> Engine:
    from flowserve.engines.fake import FakeEngine

    return FakeEngine()


ENGINES: dict[str, Callable[[Settings], Engine]] = {"hf": _hf, "fake": _fake}
"""Engines that can be asked for by name."""


def model_folder(model: str) -> str:
    """Where a model's files are: FlowServe's own by name, else what the user gave (a folder or a hub name)."""
    from flowserve import demo

    own = {"demo": demo.reader_path, "demo-arithmetic": demo.arithmetic_path}
    return str(own[model]()) if model in own else model


def make_engine(settings: Settings) -> Engine:
    if settings.engine not in ENGINES:
        raise UnknownName("engine", settings.engine, list(ENGINES))
    return ENGINES[settings.engine](settings)


def make_retrieval(settings: Settings) -> RetrievalService:
    """The service over the folder of indexes. The embedder is loaded at its first use."""
    from flowserve.retrieval.service import Retrieval

    return Retrieval(settings.indexes, embedder=settings.embedder)


def make_runtime(
    settings: Settings, workflows: Iterable[Workflow[..., Any]] = (), log_line: Callable[[str], object] | None = None
) -> Runtime:
    """A runtime, not yet started, that serves `workflows`. Raises GraphError, ConfigError, UnknownName."""
    runtime = Runtime(
        [make_engine(settings)], retrieval=make_retrieval(settings), config=settings.runtime, log_line=log_line
    )
    for workflow in workflows:
        runtime.register(workflow.program)
    return runtime


def checked(choices: Mapping[str, Any]) -> Settings:
    """Settings from the environment with `choices` on top. Raises ConfigError for an unknown one."""
    known = {item.name for item in fields(Settings)}
    unknown = sorted(set(choices) - known)
    if unknown:
        raise ConfigError(f"expected settings among {', '.join(sorted(known))}; got {', '.join(unknown)}")
    given: dict[str, Any] = dict(choices)
    if "indexes" in given:
        given["indexes"] = Path(given["indexes"])
    return replace(settings_from_environment(), **given)


async def default_runtime(choices: Mapping[str, Any]) -> Runtime:
    """What `wf.run` uses where nothing else was said: the environment's settings with `choices`, started."""
    runtime = make_runtime(checked(choices))
    await runtime.start()
    return runtime


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


def _need(extra: str, *packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"the {extra} engine needs {', '.join(missing)}, not installed here; run: pip install 'flowserve[{extra}]'"
        )
