"""What a pool of engines is made of: as data, and from a file.

    [[engine]]
    kind = "vllm"                     # vllm, openai, hf or fake
    model = "Qwen/Qwen3-0.6B"
    replicas = 2                      # `vllm`: processes of their own; each gets cores or GPUs of its own
    roles = ["small"]                 # names besides its model's, for nodes with model="small"
    args = { max_num_seqs = 64 }      # `vllm`: any engine argument
    reuse = { disk = "kv" }           # `vllm`, `hf`: store for the KV of passages, any field of ReuseSettings but the secret

    [[engine]]
    kind = "openai"
    url = ["http://10.0.0.7:8000", "http://10.0.0.8:8000"]      # one engine per address
    roles = ["large"]

    [pool]                            # any field of PoolConfig
    stall_s = 10.0

    [tenant.team-a]                   # any field of TenantLimits, and the tenant's weight; "*": all that are not named
    live_runs = 8
    runs_per_minute = 60
    weight = 2

    [price.large]                     # per million tokens, by any name of a model; "*": all that are not named
    input = 2.5
    output = 10.0

Keys that are not named here are the adapter's own settings; the adapter refuses those it does not know.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from flowserve.errors import ConfigError

MAX_REPLICAS = 256


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One entry: an engine, or several alike."""

    kind: str
    """Name of the adapter."""
    model: str = ""
    """Folder, hub name, or name of a model of ours; of a server, the model that is asked for."""
    id: str = ""
    """Id of the engine; replicas get it with a number. "": the kind."""
    replicas: int = 1
    url: tuple[str, ...] = ()
    """Addresses of servers, one engine each."""
    roles: tuple[str, ...] = ()
    """Names that it answers to besides its models'."""
    default: bool | None = None
    """Calls that name no model may come here. None: if it is the first entry, or has its model."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The adapter's own settings."""

    @property
    def count(self) -> int:
        """Engines that it stands for."""
        return len(self.url) or self.replicas


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """The entries, and what the file says of `PoolConfig`, of tenants and of prices."""

    engines: tuple[EngineSpec, ...]
    pool: Mapping[str, Any] = field(default_factory=dict)
    tenants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Tenant -> what the file says of its limits and its weight."""
    prices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Model -> what the file says of its price."""

    def ids(self) -> list[list[str]]:
        """Ids of the engines of each entry. Entries of one kind without ids of their own are numbered on."""
        totals: dict[str, int] = {}
        for spec in self.engines:
            totals[spec.id or spec.kind] = totals.get(spec.id or spec.kind, 0) + spec.count
        numbers: dict[str, Iterator[int]] = {}
        found = []
        for spec in self.engines:
            base = spec.id or spec.kind
            count = numbers.setdefault(base, iter(range(1_000_000)))
            found.append([base if totals[base] == 1 else f"{base}-{next(count)}" for _ in range(spec.count)])
        return found

    def is_default(self, spec: EngineSpec) -> bool:
        """Do calls that name no model come to it?"""
        if spec.default is not None:
            return spec.default
        if any(other.default for other in self.engines):
            return False
        first = self.engines[0]
        return spec is first or (bool(spec.model) and spec.model == first.model)


def read(path: Path) -> PoolSpec:
    """The pool that a TOML file describes. Raises ConfigError, naming the file, entry and key."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: expected a file that describes a pool; {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected TOML; {error}") from error
    unknown = sorted(set(data) - {"engine", "pool", "tenant", "price"})
    if unknown:
        known = "[[engine]], [pool], [tenant.NAME] and [price.MODEL]"
        raise ConfigError(f"{path}: expected the tables {known}; got {', '.join(unknown)}")
    entries = data.get("engine")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{path}: expected at least one [[engine]] table; got none")
    engines = tuple(entry_of(entry, f"{path}, engine {number}") for number, entry in enumerate(entries, 1))
    pool = data.get("pool", {})
    if not isinstance(pool, dict):
        raise ConfigError(f"{path}: expected [pool] to be a table; got {pool!r}")
    return PoolSpec(engines, pool, _tables(data, "tenant", path), _tables(data, "price", path))


def _tables(data: Mapping[str, Any], kind: str, path: Path) -> dict[str, dict[str, Any]]:
    """`[KIND.NAME]` tables by name."""
    found = data.get(kind, {})
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected tables [{kind}.NAME]; got {kind} = {found!r}")
    for name, table in found.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: expected [{kind}.{name}] to be a table; got {table!r}")
    return found


def entry_of(entry: Mapping[str, Any], where: str) -> EngineSpec:
    """One entry from plain data. `where` names it in messages."""
    given = dict(entry)
    own: dict[str, Any] = {}
    for item in fields(EngineSpec):
        if item.name != "options" and item.name in given:
            own[item.name] = _checked(item.name, given.pop(item.name), where)
    if "kind" not in own:
        raise ConfigError(f"{where}: expected 'kind'; got {', '.join(sorted(entry)) or 'nothing'}")
    if own.get("url") and own.get("replicas", 1) != 1:
        raise ConfigError(f"{where}: expected either 'url' or 'replicas'; got both. One engine stands for each address")
    return EngineSpec(**own, options=given)


def _checked(name: str, value: Any, where: str) -> Any:
    if name in ("url", "roles"):
        listed = [value] if isinstance(value, str) else value
        if isinstance(listed, list) and listed and all(isinstance(item, str) and item for item in listed):
            return tuple(listed)
        raise ConfigError(f"{where}: {name}: expected a text or a list of texts; got {value!r}")
    if name == "replicas":
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_REPLICAS:
            return value
        raise ConfigError(f"{where}: replicas: expected a number from 1 to {MAX_REPLICAS}; got {value!r}")
    if name == "default":
        if isinstance(value, bool):
            return value
        raise ConfigError(f"{where}: default: expected true or false; got {value!r}")
    if isinstance(value, str) and value:
        return value
    raise ConfigError(f"{where}: {name}: expected a text; got {value!r}")


def unknown_option(where: str, name: str, known: list[str]) -> ConfigError:
    """The error for a setting that an adapter does not have."""
    near = get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(known))}"
    return ConfigError(f"{where}: there is no setting '{name}'; {hint}")
