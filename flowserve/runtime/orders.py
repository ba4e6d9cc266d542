"""In which order the free items of a prompt are written: the one that shares its beginning with recent prompts.

Only for lists whose order their author has declared to mean nothing (`any_order=`), since another order is another prompt. Engines
reuse KV of equal beginnings alone, so of all orders the best is the one that walks longest through the orders of prompts that
were made lately: the knowledge tree of RAGCache (2404.12457) with the walk of CacheWeaver, but of names instead of KV, and so
without the engines' help.

A tenant's prompts are ordered by that tenant's own past: trees are not shared, and neither is the room in them.
"""

import itertools
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from flowserve.graphs.template import Piece, RenderedPrompt

ENTRIES = 4_096
"""Places in orders that are remembered per tenant."""
LOOKUPS = 1_024
"""Places that are looked at for one prompt; then the longest walk so far is taken. At worst 1 to 2 ms on a slow core, usually a tenth."""

Name = bytes
"""What tells items apart: a hash of the text, so that no text is kept."""


@dataclass(slots=True, eq=False)
class _Place:
    """An item at the end of an order that some prompt had."""

    name: Name
    parent: "_Place | None"
    """None: what comes before the list."""
    children: dict[Name, "_Place"] = field(default_factory=dict)
    used: int = 0
    """Larger when a later prompt went through it."""


class RecentOrders:
    """A tree of the orders of recent prompts, below what stood before each list; at most `entries` places.

    Equal calls in equal sequence give equal orders: there is no clock and no chance in it.
    """

    def __init__(self, entries: int = ENTRIES, lookups: int = LOOKUPS) -> None:
        self._entries = entries
        self._lookups = lookups
        self._heads: dict[Name, _Place] = {}
        self._recent: OrderedDict[_Place, None] = OrderedDict()
        """Least recently used first. A place is touched after all that stand below it, so the first has none below."""
        self._ticks = itertools.count(1)

    def __len__(self) -> int:
        return len(self._recent)

    def proposed(self, head: Name, names: Sequence[Name], sizes: Sequence[int]) -> tuple[int, ...]:
        """A permutation of the places of `names`: those of the longest known beginning, then the others as they came.

        The length of a beginning is the sum of its `sizes`; of equal ones the most recently used is taken.
        """
        start = self._heads.get(head)
        if start is None:
            return tuple(range(len(names)))
        places: dict[Name, deque[int]] = {}
        for place, name in enumerate(names):
            places.setdefault(name, deque()).append(place)
        end = self._end(start, Counter(names), dict(zip(names, sizes, strict=True)))
        first = [places[name].popleft() for name in _walk(start, end)]
        return (*first, *sorted(itertools.chain.from_iterable(places.values())))

    def remember(self, head: Name, names: Iterable[Name]) -> None:
        """A prompt was made with `names` in this order behind `head`."""
        place = self._heads.get(head)
        if place is None:
            place = self._heads[head] = _Place(head, None)
        path = [place]
        for name in names:
            child = place.children.get(name)
            if child is None:
                child = place.children[name] = _Place(name, place)
            path.append(place := child)
        for place in reversed(path):
            place.used = next(self._ticks)
            self._recent[place] = None
            self._recent.move_to_end(place)
        while len(self._recent) > self._entries:
            self._forget(self._recent.popitem(last=False)[0])

    def _forget(self, place: _Place) -> None:
        assert not place.children, "what stands below a place was used before it"
        siblings = self._heads if place.parent is None else place.parent.children
        del siblings[place.name]

    def _end(self, start: _Place, left: Counter[Name], sizes: Mapping[Name, int]) -> _Place:
        """Where the longest walk below `start` over what is `left` ends; depth first, the most recently used first."""
        best, longest, whole = start, 0, sum(left[name] * size for name, size in sizes.items())
        walked, size = [start], 0
        ahead = [_next(start, left)]
        for _ in range(self._lookups):
            if longest == whole:
                break
            place = next(ahead[-1], None)
            if place is not None:
                walked.append(place)
                ahead.append(_next(place, left))
                left[place.name] -= 1
                size += sizes[place.name]
                if size > longest:
                    best, longest = place, size
            elif len(walked) > 1:
                ahead.pop()
                place = walked.pop()
                left[place.name] += 1
                size -= sizes[place.name]
            else:
                break
        return best


def _next(place: _Place, left: Mapping[Name, int]) -> Iterator[_Place]:
    """Where a walk can go on from `place`, the most recently used first. Read when it is asked for the first of them."""
    below = place.children
    few, many = (below, left) if len(below) < len(left) else (left, below)
    found = [below[name] for name in few if name in many and left[name] > 0]
    yield from sorted(found, key=lambda child: -child.used)


def _walk(start: _Place, end: _Place) -> Iterator[Name]:
    """The names from below `start` down to `end`."""
    names = []
    while end is not start:
        names.append(end.name)
        assert end.parent is not None, "every place stands below its start"
        end = end.parent
    return reversed(names)


class PromptOrders:
    """Puts the free pieces of prompts in order, by what prompts of the same tenant began with. Used on one loop.

    There are as many trees as tenants, and these are configured; to forget one tenant for another's sake would tell of it.
    """

    def __init__(self) -> None:
        self._tenants: dict[str, RecentOrders] = {}

    def arranged(self, tenant: str, for_whom: tuple[str, ...], prompt: RenderedPrompt) -> RenderedPrompt:
        """`prompt` with its free pieces in the order that shares most, which is remembered. No piece is lost or added.

        `for_whom`: what else must be equal where a beginning is shared, the model above all.
        """
        system, user = _free(prompt.system), _free(prompt.user)
        if not system and not user:
            return prompt
        pieces, places = (prompt.system, system) if system else (prompt.user, user)
        orders = self._tenants.setdefault(tenant, RecentOrders())
        before = () if system else (*prompt.system, *prompt.history)
        head = named(repr((for_whom, bool(system), before, pieces[: places.start])))
        free = pieces[places.start : places.stop]
        names = [named(piece.text) for piece in free]
        order = orders.proposed(head, names, [len(piece.text) for piece in free])
        orders.remember(head, [names[place] for place in order])
        laid = (*pieces[: places.start], *(free[place] for place in order), *pieces[places.stop :])
        return replace(prompt, system=laid) if system else replace(prompt, user=laid)


def _free(pieces: Sequence[Piece]) -> range:
    """Where the free pieces stand: beside each other, since one loop made them."""
    places = [place for place, piece in enumerate(pieces) if piece.free]
    return range(places[0], places[-1] + 1) if places else range(0)


def named(text: str) -> Name:
    """The name of a text; a repeated one would need 2^64 texts."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
