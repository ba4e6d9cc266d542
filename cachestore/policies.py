"""Which tokens of pasted chunks are recomputed: policies by name, with their parameters, and what static ones select.

A static policy is known before the forward pass, so a scheduler can count its tokens; a dynamic one (hkvd, budgeted, query_attn)
chooses while layers are computed: `flowserve/engines/blend/` in the `hf` engine, and hkvd in vLLM's connector. Everything that no chunk covers, and the last token of the prompt, is
always computed, whatever the policy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from flowserve.errors import ConfigError
from flowserve.ids import Tokens

NAMES: Final = ("none", "sink0", "first_k", "hkvd", "budgeted", "query_attn", "full")
STATIC: Final = frozenset({"none", "sink0", "first_k", "full"})
PASTES: Final = frozenset({"none", "sink0"})
"""Policies that recompute nothing of a chunk: only class `fast` allows them."""
PARAMETERS: Final[Mapping[str, tuple[str, ...]]] = {
    "none": (),
    "sink0": (),
    "first_k": ("k",),
    "hkvd": ("ratio", "check_layer", "metric", "gradual"),
    "budgeted": ("ratio",),
    "query_attn": ("ratio",),
    "full": (),
}
"""Which fields of a Policy mean something to it."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy with its parameters; those of other policies are ignored.

    none: paste what was encoded alone. sink0: the same of chunks that were encoded behind a sink prefix (LegoLink-0, EPIC, ICML 2025).
    first_k: the first `k` tokens of every chunk; EPIC spares one at position 0, but our records are encoded behind a sink, which
    is not there. hkvd: the `ratio` of tokens whose KV deviates
    most at `check_layer` (CacheBlend, EuroSys 2025, section 4). budgeted: of each chunk the share that its context demands (Cache-Craft,
    SIGMOD 2025). query_attn: the `ratio` of tokens that the question attends to most (ProphetKV, ICML 2026). full: all.
    """

    name: str
    ratio: float = 0.15
    """Share of pasted tokens that is recomputed: hkvd, budgeted (mean over chunks), query_attn."""
    k: Tokens = 16
    """first_k: tokens at the start of a chunk."""
    check_layer: int = 1
    """hkvd: the layer at which deviations are compared; from 1, because those of layer 0 are nought."""
    metric: str = "v_l2"
    """hkvd: `v_l2`, `k_l2` or `kv_l2`; squared, keys in the frame of their new positions."""
    gradual: tuple[float, ...] = ()
    """hkvd: ratios of the layers after the check layer, each at most the one before, the last for all that follow (the paper's gradual
    filtering); () keeps one set."""

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ConfigError(f"reuse policy: expected one of {', '.join(NAMES)}; got '{self.name}'")
        if not 0.0 <= self.ratio <= 1.0:
            raise ConfigError(f"reuse policy '{self.name}' ratio: expected 0 to 1, got {self.ratio}")
        if self.k < 0:
            raise ConfigError(f"reuse policy '{self.name}' k: expected at least 0 tokens, got {self.k}")
        if self.check_layer < 1:
            raise ConfigError(
                f"reuse policy '{self.name}' check_layer: expected at least 1, got {self.check_layer}: "
                "KV of layer 0 depends on token and position alone, so nothing deviates there"
            )
        if self.metric not in ("v_l2", "k_l2", "kv_l2"):
            raise ConfigError(f"reuse policy '{self.name}' metric: expected v_l2, k_l2 or kv_l2; got '{self.metric}'")
        steps = (self.ratio if not self.gradual else max(self.gradual[0], self.ratio), *self.gradual)
        if any(later > earlier or later < 0.0 or later > 1.0 for earlier, later in pairwise(steps)):
            raise ConfigError(
                f"reuse policy '{self.name}' gradual: expected ratios from 0 to 1, none above the one before; got {self.gradual}"
            )

    @property
    def static(self) -> bool:
        """Is its selection known before the forward pass?"""
        return self.name in STATIC

    def head(self, tokens: Tokens) -> Tokens:
        """Tokens at the start of a chunk of so many that are recomputed whatever else is chosen."""
        match self.name:
            case "first_k":
                return min(self.k, tokens)
            case "full":
                return tokens
            case _:
                return 0

    @property
    def parameters(self) -> dict[str, Any]:
        """Its own, by name: what tells it from others of its name."""
        return {name: getattr(self, name) for name in PARAMETERS[self.name]}

    def __str__(self) -> str:
        """As `parse_policy` reads it; with defaults, which may change."""
        told = (f"{name}={_told(value)}" for name, value in self.parameters.items() if value != ())
        return ":".join(filter(None, (self.name, ",".join(told))))


def parse_policy(text: str) -> Policy:
    """Of `hkvd`, `first_k:32` (its first parameter) or `hkvd:ratio=0.2,gradual=0.2/0.1`. Raises ConfigError."""
    name, _, rest = text.partition(":")
    Policy(name)  # an unknown name is the first thing to say
    values: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        parameter, equals, value = item.partition("=")
        if not equals:
            parameter, value = next(iter(PARAMETERS[name]), ""), item
        if parameter not in PARAMETERS[name]:
            known = ", ".join(f"{each}=" for each in PARAMETERS[name]) or "no parameters"
            raise ConfigError(f"reuse policy '{text}': expected {known}; got '{item}'")
        try:
            values[parameter] = _READERS[parameter](value)
        except ValueError as error:
            raise ConfigError(f"reuse policy '{text}' {parameter}: expected a number, got '{value}'") from error
    return Policy(name, **values)


_READERS: Final[Mapping[str, Any]] = {
    "k": int,
    "ratio": float,
    "check_layer": int,
    "metric": str,
    "gradual": lambda text: tuple(float(each) for each in text.split("/")),
}


def _told(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)
