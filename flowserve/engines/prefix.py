"""Exact reuse of KV between calls that begin with the same tokens: a radix tree per tenant, least recently used first out.

A node holds a run of tokens and their KV. Keys encode positions, so a run is reused only where it stood: as a prefix.
Tenants have separate trees; there is no path from one to another's state.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flowserve.engines.slots import Kv
from flowserve.ids import Bytes, Tokens

Save = Callable[[Tokens, Tokens], Kv]
"""(start, end) of the sequence to its KV."""


@dataclass(slots=True, eq=False)
class _Node:
    tokens: tuple[int, ...]
    kv: Kv
    parent: "_Node | None"
    children: dict[int, "_Node"] = field(default_factory=dict)
    """By first token."""
    used: int = 0


class PrefixCache:
    """See the module. Used by one thread."""

    def __init__(self, capacity_bytes: Bytes) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes: Bytes = 0
        self._roots: dict[str, _Node] = {}
        self._leaves: dict[_Node, None] = {}
        self._ticks = itertools.count(1)

    def match(self, tenant: str, tokens: Sequence[int]) -> list[Kv]:
        """KV of the longest known prefix of `tokens`, in order."""
        found: list[Kv] = []
        node = self._roots.get(tenant)
        at = 0
        while node is not None and at < len(tokens):
            node = node.children.get(tokens[at])
            if node is None:
                break
            node.used = next(self._ticks)
            common = _common(node.tokens, tokens, at)
            found.append(node.kv if common == len(node.tokens) else _part(node.kv, 0, common))
            at += common
            if common < len(node.tokens):
                break
        return found

    def insert(self, tenant: str, tokens: Sequence[int], save: Save) -> None:
        """Remember the KV of `tokens`; `save` is asked only for what is not known yet."""
        if self.capacity_bytes <= 0 or not tokens:
            return
        node = self._roots.setdefault(tenant, _Node((), (), None))
        at = 0
        while at < len(tokens):
            child = node.children.get(tokens[at])
            if child is None:
                self._add(node, tuple(tokens[at:]), save(at, len(tokens)))
                break
            child.used = next(self._ticks)
            common = _common(child.tokens, tokens, at)
            if common < len(child.tokens):
                child = self._split(child, common)
            node, at = child, at + common
        self._evict()

    def clear(self) -> None:
        self._roots.clear()
        self._leaves.clear()
        self.used_bytes = 0

    def _add(self, parent: _Node, tokens: tuple[int, ...], kv: Kv) -> None:
        node = _Node(tokens, kv, parent, used=next(self._ticks))
        parent.children[tokens[0]] = node
        self._leaves.pop(parent, None)
        self._leaves[node] = None
        self.used_bytes += _bytes(kv)

    def _split(self, node: _Node, at: int) -> _Node:
        """Cut a node's run in two; returns the upper half."""
        parent = node.parent
        assert parent is not None, "a root has no run"
        upper = _Node(node.tokens[:at], _part(node.kv, 0, at, copy=True), parent, used=node.used)
        parent.children[upper.tokens[0]] = upper
        upper.children[node.tokens[at]] = node
        node.kv = _part(node.kv, at, len(node.tokens), copy=True)
        node.tokens, node.parent = node.tokens[at:], upper
        return upper

    def _evict(self) -> None:
        while self.used_bytes > self.capacity_bytes and self._leaves:
            leaf = min(self._leaves, key=lambda node: node.used)
            del self._leaves[leaf]
            self.used_bytes -= _bytes(leaf.kv)
            parent = leaf.parent
            assert parent is not None, "a leaf has a parent"
            del parent.children[leaf.tokens[0]]
            if not parent.children and parent.parent is not None:
                self._leaves[parent] = None
        for tenant in [tenant for tenant, root in self._roots.items() if not root.children]:
            del self._roots[tenant]


def _common(run: Sequence[int], tokens: Sequence[int], at: int) -> int:
    """How many tokens of `run` are `tokens[at:]`."""
    length = min(len(run), len(tokens) - at)
    if tuple(tokens[at : at + length]) == tuple(run[:length]):
        return length
    return next(i for i in range(length) if run[i] != tokens[at + i])


def _part(kv: Kv, start: Tokens, end: Tokens, copy: bool = False) -> Kv:
    parts = (plane[:, :, start:end] for plane in kv)
    return tuple(part.clone() if copy else part for part in parts)


def _bytes(kv: Kv) -> Bytes:
    return sum(plane.nbytes for plane in kv)
