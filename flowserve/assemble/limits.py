"""What a pool's file and the command line say of tenants and prices, as settings."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from flowserve.config import Price, RuntimeConfig, TenantLimits
from flowserve.errors import ConfigError
from flowserve.poolspec import PoolSpec, unknown_option

WEIGHT = "weight"
"""Of a tenant, beside its limits."""

T = TypeVar("T", TenantLimits, Price)


def with_limits(config: RuntimeConfig, spec: PoolSpec) -> RuntimeConfig:
    """`config` with what the file says. What `config` says of a tenant or a model already replaces that of the file."""
    limits, weights, prices = dict(config.tenant_limits), dict(config.tenant_weights), dict(config.prices)
    for tenant, table in spec.tenants.items():
        given = dict(table)
        if WEIGHT in given:
            weights.setdefault(tenant, _weight(given.pop(WEIGHT), f"[tenant.{tenant}]"))
        limits.setdefault(tenant, made(TenantLimits, given, f"[tenant.{tenant}]", WEIGHT))
    for model, table in spec.prices.items():
        prices.setdefault(model, made(Price, table, f"[price.{model}]"))
    return replace(
        config,
        tenant_limits=tuple(limits.items()),
        tenant_weights=tuple(weights.items()),
        prices=tuple(prices.items()),
    )


def made(cls: type[T], given: Mapping[str, Any], where: str, *others: str) -> T:
    """A `cls` of the given fields. `where` names the place in messages, `others` what may stand beside them there."""
    known: list[str] = [item.name for item in fields(cls)]
    for name in given:
        if name not in known:
            raise unknown_option(where, name, [*known, *others])
    try:
        return cls(**given)
    except TypeError:
        raise ConfigError(f"{where}: expected input and output; got {', '.join(given) or 'nothing'}") from None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _weight(value: object, where: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ConfigError(f"{where}: weight: expected a number above 0; got {value!r}")
