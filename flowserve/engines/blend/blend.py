"""Policies that choose while layers are computed, for one prompt whose chunks lie in its slot already.

    hkvd        all rows up to the check layer; there those of which the KV deviates most go on (CacheBlend, EuroSys 2025, section 4)
    budgeted    all rows up to layer 1; there each chunk gets a share by its context impact (Cache-Craft, SIGMOD 2025)
    query_attn  the rows that no chunk covers through all layers, over what is pasted; what the question (what stands behind all passages)
                looks at most is then computed together with them (ProphetKV, ICML 2026)

What was computed is kept, also in the layers of a row before it was left out. Masks are exact, as in every prefill. Work is counted
in rows and layers, so a step takes a part of a blend as it takes a part of any prompt.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from flowserve.cachestore.policies import Policy
from flowserve.engines.blend.decoder import Decoder
from flowserve.engines.blend.scores import Look, attention, deviation
from flowserve.engines.blend.selection import count, highest, shared_out
from flowserve.engines.blend.walk import Walk
from flowserve.ids import Tokens


class Placed(Protocol):
    """A chunk's place in a prompt."""

    @property
    def start(self) -> Tokens: ...

    @property
    def end(self) -> Tokens: ...


class Blend:
    """One prompt's prefill. Call `advance` until `logits` are there."""

    def __init__(
        self,
        decoder: Decoder,
        policy: Policy,
        ids: Sequence[int],
        fixed: Sequence[Tokens],
        start: Tokens,
        chunks: Sequence[Placed],
        question: Tokens,
    ) -> None:
        """fixed: positions from `start` on that are computed whatever the policy says; the last of the prompt is one. Before `start`
        the slot holds exact KV. chunks: ascending; what lies before `start` is passed over. question: where what stands behind all
        passages begins; at least the last token asks."""
        self._decoder = decoder
        self._policy = policy
        self._ids = ids
        self._fixed = frozenset(fixed)
        self._all = range(start, len(ids))
        self._chunks = [chunk for chunk in chunks if chunk.end > start]
        self._question = min(question, len(ids) - 1)
        self._pasted = len(self._all) - len(self._fixed)
        self._walk: Walk | None = None
        self._slot = 0
        self._owed = 0
        """Rows times layers that were computed beyond what was told."""
        self._steps = {"hkvd": self._hkvd, "budgeted": self._budgeted, "query_attn": self._query_attn}[policy.name]()
        self.chosen: list[Tokens] | None = None
        """Positions that are computed in all layers, ascending; None while that is open."""
        self.logits: torch.Tensor | None = None
        """After the prompt's last token, (vocabulary,)."""

    @staticmethod
    def chooses(policy: Policy) -> bool:
        """Does this policy choose while layers are computed? With a ratio of 0 nothing is left to choose."""
        return not policy.static and policy.ratio > 0

    def advance(self, slot: int, budget: Tokens) -> Tokens:
        """Compute until about `budget` tokens' worth of work is done, or all is. Returns how much it was, at least 1."""
        self._slot = slot
        if self._walk is not None:
            self._walk.slot = slot
        layers = self._decoder.num_layers
        done = self._owed
        while self.logits is None and done < budget * layers:
            done += next(self._steps, 0)
        self._owed = done % layers
        return max(1, done // layers)

    # --- policies: they yield the rows that one layer has been computed for -----------------------------

    def _hkvd(self) -> Iterator[int]:
        policy, check = self._policy, self._policy.check_layer
        shares = dict(enumerate((policy.ratio, *policy.gradual), start=check))
        walk = self._begin(self._all)
        for index in range(self._decoder.num_layers):
            if index in shares:
                fresh, pasted = walk.store(index)
                yield len(walk)
                scores = deviation(policy.metric, fresh, pasted)
                self._keep(walk, scores, count(shares[index], self._pasted))
            yield from self._through(walk, index)
        self._end(walk)

    def _budgeted(self) -> Iterator[int]:
        check = min(1, self._decoder.num_layers - 1)
        walk = self._begin(self._all)
        for index in range(self._decoder.num_layers):
            if index == check:
                walk.store(index)
                yield len(walk)
                yield from self._keep_shares(walk, index)
            yield from self._through(walk, index)
        self._end(walk)

    def _keep_shares(self, walk: Walk, index: int) -> Iterator[int]:
        """Of each chunk its share goes on: the pasted rows that look most at what stands before the chunk."""
        keep = self._forced(walk)
        rows: list[torch.Tensor] = []
        scores: list[torch.Tensor] = []
        weights: list[float] = []
        for chunk in self._chunks:
            inside = ((walk.positions >= chunk.start) & (walk.positions < chunk.end)).nonzero().squeeze(1)
            look = Look(self._decoder, index, chunk.start)
            yield from look.of(walk, inside)
            open_ = ~keep[inside]
            rows.append(inside[open_])
            scores.append(look.outer[open_])
            weights.append(look.impact)
        counts = shared_out(count(self._policy.ratio, self._pasted), [len(each) for each in rows], weights)
        for each, looked, chosen in zip(rows, scores, counts, strict=True):
            keep[each] = highest(looked, chosen)
        walk.narrow(keep)

    def _query_attn(self) -> Iterator[int]:
        walk = self._begin(sorted(self._fixed))
        asking = (walk.positions >= self._question).nonzero().squeeze(1)
        block = self._decoder.block(walk.positions[asking], walk.hidden)
        looked = torch.zeros(block.visible, device=walk.hidden.device)
        for index in range(self._decoder.num_layers):
            queries = self._decoder.queries(index, walk.hidden[asking], block)
            if index < self._decoder.num_layers - 1:
                yield from walk.layer(index)
            else:
                walk.store(index)
                yield len(walk)
            keys, _ = self._decoder.table.read(index, self._slot, slice(0, block.visible))
            looked += attention(queries, keys, self._decoder.mask(index, block)).sum(dim=0)
        open_ = torch.tensor([p for p in self._all if p not in self._fixed], device=looked.device)
        best = open_[highest(looked[open_], count(self._policy.ratio, self._pasted))]
        walk = self._begin(sorted(self._fixed.union(best.tolist())))
        for index in range(self._decoder.num_layers):
            yield from self._through(walk, index)
        self._end(walk)

    # --- their parts -------------------------------------------------------------------------------------

    def _begin(self, positions: Sequence[Tokens]) -> Walk:
        self._walk = Walk(self._decoder, self._slot, self._ids, positions)
        return self._walk

    def _through(self, walk: Walk, index: int) -> Iterator[int]:
        """Of the last layer only the last row's output is wanted; of the others, their KV."""
        if index == self._decoder.num_layers - 1:
            self.chosen = walk.positions.tolist()
            walk.store(index)
            yield len(walk)
            walk.narrow(walk.positions == walk.positions[-1])
        yield from walk.layer(index)

    def _end(self, walk: Walk) -> None:
        self.logits = walk.logits()

    def _forced(self, walk: Walk) -> torch.Tensor:
        """Which rows go on whatever their score: booleans, (rows,)."""
        fixed = torch.zeros(len(self._ids), dtype=torch.bool)
        fixed[list(self._fixed)] = True
        return fixed.to(walk.positions.device)[walk.positions]

    def _keep(self, walk: Walk, scores: torch.Tensor, chosen: int) -> None:
        """The `chosen` highest of the rows that are pasted go on, with those that must."""
        keep = self._forced(walk)
        open_ = ~keep
        keep[open_] = highest(scores[open_], chosen)
        walk.narrow(keep)
