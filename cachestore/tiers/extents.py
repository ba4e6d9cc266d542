"""Which stretches of a slab are free: first fit, neighbours joined. Pure; whoever calls counts in pages or bytes as it likes."""

from bisect import bisect_left, insort


class Extents:
    """The free list of one slab of `size` units."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free: list[tuple[int, int]] = [(0, size)] if size else []
        """(start, length) by start; no two touch."""

    @property
    def free(self) -> int:
        """Units that nobody has."""
        return sum(length for _, length in self._free)

    @property
    def largest(self) -> int:
        """The longest stretch that `take` can give."""
        return max((length for _, length in self._free), default=0)

    def take(self, length: int) -> int | None:
        """The start of `length` units, at the lowest place where they fit; None: they fit nowhere."""
        for index, (start, room) in enumerate(self._free):
            if room >= length:
                self._free[index : index + 1] = [(start + length, room - length)] if room > length else []
                return start
        return None

    def give(self, start: int, length: int) -> None:
        """Take back what `take` gave."""
        index = bisect_left(self._free, (start, 0))
        if index < len(self._free) and self._free[index][0] == start + length:
            length += self._free.pop(index)[1]
        if index and sum(self._free[index - 1]) == start:
            start, before = self._free.pop(index - 1)
            length += before
        insort(self._free, (start, length))
