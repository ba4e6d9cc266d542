"""Equal work that is asked for while it is being done is done once (single-flight), and what was done is kept.

For `cache=True` nodes only: their authors say that equal inputs may be answered from an earlier result, and an earlier
one is what comes here too. Who comes second waits for the first; if that one fails or is cancelled, the next
of those who wait does the work, under its own limits and retries. A failure is never shared.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from flowserve.runtime.cache import ResultCache


class Flights:
    """What is being computed now, by the key of its result. Use on one loop only."""

    def __init__(self, cache: ResultCache) -> None:
        self._cache = cache
        self._leaders: dict[str, asyncio.Future[None]] = {}

    async def value(self, key: str, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """The value of `key`: kept, or that of whoever computes it now, or of `work`. Raises what `work` raises."""
        while key not in self._cache:
            leader = self._leaders.get(key)
            if leader is None:
                return await self._lead(key, work)
            await asyncio.wait([leader])
        return self._cache[key]

    async def _lead(self, key: str, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        over = self._leaders[key] = asyncio.get_running_loop().create_future()
        try:
            value = await work()
            self._cache[key] = value
            return value
        finally:
            del self._leaders[key]
            over.set_result(None)
