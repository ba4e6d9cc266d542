"""The only place that knows concrete classes by name: from settings to a runtime that can be started.

Heavy packages are imported by the adapter that is asked for, and a missing one is reported with the
command that installs it. Beside this file: engines.py makes engines, files.py reads users' files,
limits.py what is set for tenants.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from flowserve.assemble.engines import ENGINES, make_seats, model_folder
from flowserve.assemble.files import Declared, load, load_workflows
from flowserve.assemble.limits import with_limits
from flowserve.config import SHADOW_SHARE, PoolConfig, RuntimeConfig
from flowserve.errors import ConfigError
from flowserve.graphs.workflow import Workflow
from flowserve.poolspec import EngineSpec, PoolSpec, read, unknown_option
from flowserve.retrieval.protocols import RetrievalService
from flowserve.runtime.certified import Folder
from flowserve.runtime.runner import Runtime

__all__ = ["ENGINES", "Declared", "Settings", "load", "load_workflows", "make_runtime", "model_folder"]

DEFAULT_INDEXES = Path(".flowserve/indexes")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a runtime is made of."""

    engine: str = "hf"
    """Name in `ENGINES`."""
    model: str = "demo"
    """A folder, a hub name, `demo` or `demo-arithmetic` (the models that come with FlowServe)."""
    replicas: int = 1
    """Engines of that model; each `vllm` one is a process of its own."""
    url: tuple[str, ...] = ()
    """With engine `openai`: addresses of servers, one engine each."""
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    """With engine `vllm`: any of vLLM's engine arguments."""
    pool: Path | None = None
    """A file that describes the engines (`flowserve.poolspec`), instead of the five settings above."""
    indexes: Path = DEFAULT_INDEXES
    """Folder of the indexes; made when something is ingested."""
    private_indexes: bool = False
    """Whether every tenant has indexes of its own, beside those that all may read; else they share all of them."""
    embedder: str = "minilm"
    """For new indexes: `minilm`, `hash`, or a sentence-transformers folder or hub name."""
    reranker: Path | None = None
    """Folder of a cross-encoder for searches with `rerank=`; None: by the vectors of the index."""
    certificates: Path | None = None
    """Folder of certificates of exit rules (`flowserve gate stopping`); None: calls end early by the default rule only."""
    shadow_share: float = SHADOW_SHARE
    """Of the calls that a certified rule has stopped, so many run on unseen to watch their certificate; 0: none."""
    reuse: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `cachestore.settings.ReuseSettings` for the store of each engine; empty: passages are reused as prefixes only."""
    max_batch: int = 32
    """Sequences that the embedded engine `hf` decodes at once."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    """How much is taken on and how it is ordered."""


def settings_from_environment() -> Settings:
    """`FLOWSERVE_ENGINE`, `FLOWSERVE_MODEL`, `FLOWSERVE_URL`, `FLOWSERVE_POOL`, `FLOWSERVE_INDEXES` and
    `FLOWSERVE_EMBEDDER`, over the defaults."""
    plain = Settings()
    pool = os.environ.get("FLOWSERVE_POOL")
    return Settings(
        engine=os.environ.get("FLOWSERVE_ENGINE", plain.engine),
        model=os.environ.get("FLOWSERVE_MODEL", plain.model),
        url=tuple(os.environ.get("FLOWSERVE_URL", "").split()),
        pool=Path(pool) if pool else None,
        indexes=Path(os.environ.get("FLOWSERVE_INDEXES", plain.indexes)),
        embedder=os.environ.get("FLOWSERVE_EMBEDDER", plain.embedder),
    )


def pool_spec(settings: Settings) -> PoolSpec:
    """The pool that is asked for: by file, or by engine, model, replicas and addresses."""
    if settings.pool is not None:
        if settings.reuse:
            raise ConfigError(
                f"reuse: expected it in {settings.pool}, as `reuse = {{ ... }}` of an engine; got it beside the file"
            )
        return read(settings.pool)
    options: dict[str, Any] = {"reuse": dict(settings.reuse)} if settings.reuse else {}
    if settings.engine == "hf":
        options["max_batch"] = settings.max_batch
    if settings.engine == "vllm":
        options["args"] = dict(settings.engine_args)
    elif settings.engine_args:
        raise ConfigError(f"engine_args: expected none for the engine '{settings.engine}'; only vllm takes them")
    model = settings.model if settings.engine in ("hf", "vllm") or settings.model != "demo" else ""
    if settings.url and settings.replicas != 1:
        raise ConfigError("expected either replicas or addresses; got both. One engine stands for each address")
    return PoolSpec((EngineSpec(settings.engine, model, "", settings.replicas, settings.url, options=options),))


def make_retrieval(settings: Settings) -> RetrievalService:
    """The service over the folder of indexes. The embedder is loaded at its first use."""
    from flowserve.retrieval.rerank import CrossEncoderReranker
    from flowserve.retrieval.service import Retrieval

    reranker = None if settings.reranker is None else CrossEncoderReranker(settings.reranker)
    return Retrieval(settings.indexes, embedder=settings.embedder, private=settings.private_indexes, reranker=reranker)


def make_runtime(
    settings: Settings, workflows: Iterable[Workflow[..., Any]] = (), log_line: Callable[[str], object] | None = None
) -> Runtime:
    """A runtime, not yet started, that serves `workflows`. Raises GraphError, ConfigError, UnknownName."""
    spec = pool_spec(settings)
    config = with_limits(settings.runtime, spec)
    if spec.pool:
        config = replace(config, pool=_pool_config(config.pool, spec.pool))
    runtime = Runtime(
        make_seats(spec),
        retrieval=make_retrieval(settings),
        config=config,
        log_line=log_line,
        certificates=_certificates(settings),
    )
    for workflow in workflows:
        runtime.register(workflow.program)
    return runtime


def _certificates(settings: Settings) -> Folder | None:
    return None if settings.certificates is None else Folder(settings.certificates, settings.shadow_share)


def _pool_config(config: PoolConfig, changes: Mapping[str, Any]) -> PoolConfig:
    known = [item.name for item in fields(PoolConfig)]
    for name, value in changes.items():
        if name not in known:
            raise unknown_option("[pool]", name, known)
        wanted = type(getattr(config, name))
        if not isinstance(value, int | float) or isinstance(value, bool) != (wanted is bool):
            raise ConfigError(
                f"[pool] {name}: expected {'true or false' if wanted is bool else 'a number'}; got {value!r}"
            )
    return replace(config, **changes)


def checked(choices: Mapping[str, Any]) -> Settings:
    """Settings from the environment with `choices` on top. Raises ConfigError for an unknown one."""
    known = {item.name for item in fields(Settings)}
    unknown = sorted(set(choices) - known)
    if unknown:
        raise ConfigError(f"expected settings among {', '.join(sorted(known))}; got {', '.join(unknown)}")
    given: dict[str, Any] = dict(choices)
    for name in ("indexes", "pool", "reranker", "certificates"):
        if given.get(name) is not None:
            given[name] = Path(given[name])
    if "url" in given:
        given["url"] = (given["url"],) if isinstance(given["url"], str) else tuple(given["url"])
    return replace(settings_from_environment(), **given)


async def default_runtime(choices: Mapping[str, Any]) -> Runtime:
    """What `wf.run` uses where nothing else was said: the environment's settings with `choices`, started."""
    runtime = make_runtime(checked(choices))
    await runtime.start()
    return runtime
