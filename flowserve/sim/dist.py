"""Distributions of lengths and durations: a constant, a lognormal, or what was observed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf
from typing import Any

from flowserve.errors import ConfigError
from flowserve.sim.chance import normal, uniform


@dataclass(frozen=True, slots=True)
class Dist:
    """A lognormal around `median` (`sigma` 0: always the median), or one of `values`; never outside `least`..`most`."""

    median: float = 0.0
    sigma: float = 0.0
    values: tuple[float, ...] = ()
    """Observed; each as likely as the others. Empty: the lognormal."""
    least: float = 0.0
    most: float = inf

    def draw(self, key: int) -> float:
        if self.values:
            value = self.values[int(uniform(key) * len(self.values))]
        elif self.sigma:
            value = self.median * exp(self.sigma * normal(key))
        else:
            value = self.median
        return max(self.least, min(self.most, value))

    def count(self, key: int) -> int:
        """The draw as a whole number."""
        return round(self.draw(key))


def parse(value: Any, where: str) -> Dist:
    """A number, a list of observations, or a table with some of median, sigma, values, least, most."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Dist(_number(value, where))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return Dist(values=_numbers(value, where))
    if isinstance(value, Mapping) and value and not value.keys() - {"median", "sigma", "values", "least", "most"}:
        given = {name: _number(item, f"{where}.{name}") for name, item in value.items() if name != "values"}
        return Dist(**given, values=_numbers(value.get("values", ()), f"{where}.values"))
    raise ConfigError(
        f"{where}: expected a number, a list of numbers, or a table of median, sigma, values, least, most; got {value!r}"
    )


def _numbers(values: Any, where: str) -> tuple[float, ...]:
    return tuple(_number(value, where) for value in values)


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < inf:
        raise ConfigError(f"{where}: expected a number of at least 0; got {value!r}")
    return float(value)
