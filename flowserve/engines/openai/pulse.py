"""What a server was last seen doing: alive or not, its load, and how much of that is not ours."""

from flowserve.engines.openai.client import Client
from flowserve.engines.openai.discovery import Server
from flowserve.engines.openai.failures import Unreachable
from flowserve.engines.openai.metrics import Load, read_load
from flowserve.errors import EngineError, EngineLost
from flowserve.ids import Seconds

LOOK_S: Seconds = 5.0
"""How long a look may take."""
MISSES = 3
"""Looks in a row that fail before the server is taken for lost; one is enough where nobody listens."""


class Pulse:
    """One server, asked by `look`."""

    def __init__(self, client: Client, server: Server) -> None:
        self._client = client
        self._server = server
        self._misses = 0
        self._excess = (0, 0)
        self.load = server.load or Load()
        self.steps = 0
        """Its counter of steps since the start."""
        self.others = (0, 0)
        """Choices of others that run and that wait: what it counted more than ours, twice in a row. Once may be a
        choice of ours that has ended meanwhile."""

    @property
    def weak(self) -> bool:
        """The latest look failed."""
        return self._misses > 0

    @property
    def cheap(self) -> bool:
        """It has pages for such questions."""
        return self._server.health or self._server.load is not None

    async def look(self, running: int, waiting: int) -> None:
        """Ask once; `running` and `waiting` are ours. Raises EngineLost when it is gone, or is another process by
        now."""
        try:
            await self._ask(running, waiting)
        except EngineError as error:
            self._misses += 1
            if self._misses >= MISSES or isinstance(error, Restarted | Unreachable):
                raise
        else:
            self._misses = 0

    async def _ask(self, running: int, waiting: int) -> None:
        if self._server.health or not self.cheap:
            path = "/health" if self._server.health else "/v1/models"
            answer = await self._client.get(path, LOOK_S)
            if answer.status >= 500:
                raise EngineLost(f"{self._client.where} answered {answer.status} to GET {path}")
        names = self._server.dialect.metrics
        if self._server.load is None or names is None:
            return
        answer = await self._client.get("/metrics", LOOK_S)
        load = read_load(answer.body.decode(errors="replace"), names)
        if load is None:
            raise EngineLost(f"{self._client.where} answered {answer.status} to GET /metrics, without its load")
        if load.born != self.load.born or load.steps < self.load.steps:
            raise Restarted(f"{self._client.where} was started anew: it may have another model")
        self.steps += load.steps - self.load.steps
        self.load = load
        excess = (max(0, load.running - running), max(0, load.waiting - waiting))
        self.others = (min(excess[0], self._excess[0]), min(excess[1], self._excess[1]))
        self._excess = excess


class Restarted(EngineLost):
    """The server's counters began anew."""
