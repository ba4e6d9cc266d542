"""Items of a list that a model is still writing: where they end in the text, and what they are.

`ItemScanner` finds the ends and judges nothing: what is no JSON, or does not fit its type, fails when the whole output is
read, and what was begun with it is dropped then. Each character is looked at once, however the text is cut.
"""

import json
import re
from collections.abc import Sequence
from enum import Enum, auto
from typing import Any

from flowserve.errors import ValueInvalid
from flowserve.graphs.encode import canonical
from flowserve.graphs.plan import Get, Node, Source
from flowserve.graphs.program import Program
from flowserve.graphs.shapes import Shape, jsonable
from flowserve.ids import NodeId
from flowserve.runtime.frames import Frame

_OUTSIDE = re.compile(r'["\[\]{},:]')
_INSIDE = re.compile(r'["\\]')


class _Cut(Enum):
    """What a mark says of the text that is kept."""

    DROP = auto()
    NAME = auto()
    """It is the name of what follows."""
    BEFORE = auto()
    """It is an item, unless it is blank."""
    AFTER = auto()
    """With the mark it is an item."""


class ItemScanner:
    """Cuts items out of JSON text that comes in pieces: those of the array at the top, or under the names of `path`."""

    def __init__(self, path: Sequence[str]) -> None:
        self._path = tuple(path)
        self._depth = 0
        """Containers that are open."""
        self._matched = 0
        """Of these, the outermost ones that are on the path: an object per name, then the array."""
        self._next = True
        """The value that comes is the next one of the path."""
        self._kept: list[str] = []
        """Text since the latest mark that stood right in the innermost container of the path."""
        self._string = False
        self._escaped = False
        """The piece before ended between a backslash and what it escapes."""
        self._over = False
        """The array has been closed, or an object around the place where it should have been."""

    def push(self, text: str) -> list[str]:
        """The items that are whole now and were not before, each as its JSON text."""
        found: list[str] = []
        start, at = 0, int(self._escaped)
        if text:
            self._escaped = False
        while not self._over and (mark := (_INSIDE if self._string else _OUTSIDE).search(text, at)) is not None:
            at = mark.end()
            if mark[0] == "\\":
                self._escaped = at == len(text)
                at += 1
            elif (cut := self._cut(mark[0])) is not None:
                self._kept.append(text[start : at if cut is _Cut.AFTER else at - 1])
                self._take(cut, "".join(self._kept).strip(), found)
                self._kept.clear()
                start = at
        self._kept.append(text[start:])
        return found

    def _cut(self, mark: str) -> _Cut | None:
        """Count a mark. None: what is kept goes on behind it."""
        inside, in_array = self._depth == self._matched, self._matched > len(self._path)
        if mark == '"':
            self._string = not self._string
            return _Cut.AFTER if inside and in_array and not self._string else None
        if mark in "[{":
            wanted = inside and self._next and mark == ("[" if self._matched == len(self._path) else "{")
            self._depth += 1
            self._matched += wanted
            self._next = False
            return _Cut.DROP if wanted else None
        if mark in "]}":
            self._depth -= 1
            self._over = inside
            if in_array:
                return _Cut.BEFORE if inside else _Cut.AFTER if self._depth == self._matched else None
            return None
        if not inside:
            return None
        self._next = False
        if in_array:
            return _Cut.BEFORE
        return _Cut.NAME if mark == ":" and self._matched else _Cut.DROP

    def _take(self, cut: _Cut, kept: str, found: list[str]) -> None:
        if cut is _Cut.NAME:
            self._next = _is_name(kept, self._path[self._matched - 1])
        elif cut is not _Cut.DROP and kept:
            found.append(kept)


def _is_name(text: str, name: str) -> bool:
    try:
        return bool(json.loads(text) == name)
    except ValueError:
        return False


MOST_LISTS = 8
"""Of one output that are looked for; maps of others wait for the whole of it. Each list is one more look at the text."""


class ItemList:
    """A list that maps take items of, as far as the model has written it."""

    def __init__(self, path: Sequence[str], shape: Shape) -> None:
        self.maps: list[NodeId] = []
        self.items: list[tuple[Any, ...]] = []
        """Parameters for the frames of the map."""
        self._scanner: ItemScanner | None = ItemScanner(path)
        self._shape = shape

    def push(self, text: str) -> bool:
        """Take in what the model has written next. Whether there are more items now."""
        before = len(self.items)
        for item in self._scanner.push(text) if self._scanner is not None else ():
            try:
                self.items.append((self._shape.loads(item),))
            except Exception:  # noqa: BLE001  # types may run code; what is wrong is told when the whole output is read
                self._scanner = None
                break
        return len(self.items) > before


def lists_of(program: Program, node: Node, frame: Frame) -> list[ItemList]:
    """The lists that maps take items of while `node` writes in `frame`; the frame shows them to the maps."""
    found: dict[tuple[str, ...], ItemList] = {}
    for map in program.streams.get(node.id, ()):
        path = _path(map.args[0].source)
        whole = program.shapes.models.get(program.plan.llms[node.target].name)
        shape = whole.items(path) if whole is not None else None
        if shape is not None and (path in found or len(found) < MOST_LISTS):
            written = found.setdefault(path, ItemList(path, shape))
            written.maps.append(map.id)
            frame.written[map.id] = written.items
    return list(found.values())


def _path(source: Source) -> tuple[str, ...]:
    path: list[str] = []
    while isinstance(source, Get):
        path.append(str(source.key))
        source = source.of
    return tuple(reversed(path))


def same(a: Any, b: Any) -> bool:
    """Whether nobody who reads them could tell two values apart: 1 is neither `true` nor 1.0."""
    try:
        return type(a) is type(b) and bool(a == b) and canonical(jsonable(a)) == canonical(jsonable(b))
    except ValueInvalid:
        return False
