"""What is said of the reuse of passages, on the command line or in a pool file, as settings of one engine's store.

    [[engine]]
    kind = "hf"
    reuse = { disk = "/var/kv", host_bytes = 8_000_000_000, gates = "gates", balanced = "first_k:16" }

The keys are the fields of `ReuseSettings`, without the secret, which is the server's own, and `measuring`, which is no server's.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from flowserve.cachestore.settings import ReuseSettings
from flowserve.errors import ConfigError
from flowserve.poolspec import unknown_option

KINDS: Final = ("hf", "vllm")
"""Engines that may have a store. Others are a server's or a script's affair."""
TEXTS: Final = frozenset({"disk", "gates", "remote", "balanced", "fast"})
PATHS: Final = frozenset({"disk", "gates"})


def reuse_settings(kind: str, id: str, table: object, secret: bytes) -> ReuseSettings:
    """The settings of the store of engine `id`, which has a folder of its own below `disk`. Raises ConfigError."""
    where = f"engine '{id}': reuse"
    if kind not in KINDS:
        remedy = "Leave reuse out: its calls are then served exactly"
        raise ConfigError(
            f"{where}: expected an engine that can have a store, {' or '.join(KINDS)}; got {kind}. {remedy}"
        )
    if not isinstance(table, Mapping):
        raise ConfigError(f'{where}: expected a table, as reuse = {{ disk = "..." }}; got {table!r}')
    known = [item.name for item in fields(ReuseSettings) if item.name not in ("secret", "measuring")]
    given: dict[str, Any] = {}
    for name, value in table.items():
        if name not in known:
            raise unknown_option(where, name, known)
        if name in TEXTS and not (isinstance(value, str | Path) and str(value)):
            raise ConfigError(f"{where}.{name}: expected a text; got {value!r}")
        given[name] = Path(value) if name in PATHS else value
    if "disk" in given:
        given["disk"] /= id
    try:
        return ReuseSettings(**given, secret=secret)
    except ConfigError as error:
        raise ConfigError(f"engine '{id}': {error}") from error
