"""Which tokens of pasted chunks are recomputed: policies by name, with their parameters, and what static ones select.

A static policy is known before the forward pass, so a scheduler can count its tokens; a dynamic one (hkvd, query_attn)
chooses while layers are computed, and only `blend/` runs it. Everything that no chunk covers, and the last token of the prompt, is
always computed, whatever the policy.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from flowserve.errors import ConfigError
from flowserve.ids import Tokens

NAMES: Final = ("none", "sink0", "first_k", "hkvd", "budgeted", "query_attn", "full")
STATIC: Final = frozenset({"none", "sink0", "first_k", "budgeted", "full"})
PASTES: Final = frozenset({"none", "sink0"})
"""Policies that recompute nothing of a chunk: only class `fast` allows them."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy with its parameters; those of other policies are ignored.

    none: paste what was encoded alone. sink0: the same of chunks that were encoded behind a sink prefix (LegoLink-0, EPIC, ICML 2025).
    first_k: the first `k` tokens of every chunk but one at position 0 (EPIC). hkvd: the `ratio` of tokens whose KV deviates
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
