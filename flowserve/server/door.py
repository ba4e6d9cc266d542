"""What all doors share: the runtime behind them, who may see which run, and when to say no before starting."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.types import Receive

from flowserve.errors import Overloaded, RunCancelled, UnknownName, Unsupported
from flowserve.graphs.dynamic import DynamicNode
from flowserve.graphs.program import Program
from flowserve.graphs.tool import ToolNode
from flowserve.ids import RunId, Seconds
from flowserve.retrieval.protocols import RetrievalService
from flowserve.runtime.records import SubmitOptions
from flowserve.runtime.run import Run
from flowserve.runtime.runner import Runtime
from flowserve.server.declared import Declared
from flowserve.server.errors import BadRequest, fault_of
from flowserve.server.metrics import Metrics
from flowserve.server.settings import ServerSettings
from flowserve.server.sse import Stops, StreamLimits, gone


class Door:
    """One per application; kept as `app.state.door`."""

    def __init__(
        self,
        runtime: Runtime,
        settings: ServerSettings,
        tools: Sequence[ToolNode[..., Any]] = (),
        dynamics: Sequence[DynamicNode[..., Any]] = (),
    ) -> None:
        self.runtime = runtime
        self.settings = settings
        self.tools = tuple(tools)
        """What specs may name."""
        self.dynamics = tuple(dynamics)
        self._adopted: dict[str, str] = {}
        """Workflow that a client brought -> its tenant."""
        self.declared = Declared()
        """Programs that clients run themselves."""
        self.stops = Stops()
        self.metrics = Metrics(runtime)
        self.limits = StreamLimits(settings.keep_alive_s, settings.write_idle_s, settings.max_stream_backlog_bytes)
        self._streams: Counter[RunId] = Counter()

    # --- starting ---------------------------------------------------------------------------------------------

    async def submit(self, workflow: str, inputs: dict[str, Any], options: SubmitOptions) -> Run:
        """Start a run, or say at once why not."""
        self._open()
        program = self.program(workflow, options.tenant)
        return await self._started(self.runtime.submit(program, inputs, options))

    async def generate(self, **call: Any) -> Run:
        """As `Runtime.generate`, for a client."""
        self._open()
        return await self._started(self.runtime.generate(**call))

    def _open(self) -> None:
        if self.stops.closing:
            raise BadRequest(503, "closing", "the server is shutting down", retry_after_s=5.0)

    async def _started(self, starting: Awaitable[Run]) -> Run:
        """Count what was started, and what was refused for want of room."""
        try:
            run = await starting
        except Overloaded as error:
            self.metrics.refused(fault_of(error).code)
            raise
        self.metrics.follow(run)
        return run

    def adopt(self, program: Program, tenant: str) -> bool:
        """Serve what a client brought; whether its name is new. Raises 409 for a name that is not this tenant's."""
        new = program.name not in self.runtime.workflows()
        if not new and self._adopted.get(program.name) != tenant:
            raise BadRequest(
                409, "not_yours", f"the workflow '{program.name[:100]}' was not brought by you; take another name"
            )
        if new and len(self._adopted) >= self.settings.max_adopted:
            raise BadRequest(
                409,
                "too_many_workflows",
                f"{self.settings.max_adopted} workflows were brought by clients, which is the limit",
            )
        self._adopted[program.name] = tenant
        self.runtime.register(program)
        return new

    # --- looking up -------------------------------------------------------------------------------------------

    def programs(self, tenant: str) -> dict[str, Program]:
        """What this tenant may run, by name: the operator's workflows and those that it brought."""
        every = sorted(self.runtime.workflows().items())
        return {name: program for name, program in every if self._adopted.get(name, tenant) == tenant}

    def program(self, name: str, tenant: str) -> Program:
        program = self.runtime.workflows().get(name)
        if program is None or self._adopted.get(name, tenant) != tenant:
            raise UnknownName("workflow", name[:100], list(self.programs(tenant)))
        return program

    def run(self, run_id: str, tenant: str) -> Run:
        """A run of this tenant. Another tenant's run is unknown in the same words."""
        shown = run_id[:100]
        try:
            run = self.runtime.run(RunId(run_id))
        except UnknownName:
            raise UnknownName("run", shown) from None
        if run.tenant != tenant:
            raise UnknownName("run", shown)
        return run

    def retrieval(self) -> RetrievalService:
        if self.runtime.retrieval is None:
            raise Unsupported("this server has no retrieval; start it with a folder of indexes")
        return self.runtime.retrieval

    # --- waiting ----------------------------------------------------------------------------------------------

    async def wait(self, run: Run, receive: Receive, timeout_s: Seconds | None = None) -> bool:
        """Until the run has ended (True), or the client has left, the time is up or the server closes (False).

        The framework does not notice that a client left during a plain call; this does.
        """
        if run.done:
            await run.wait()
            return True
        ended = asyncio.ensure_future(run.wait())
        left = asyncio.ensure_future(gone(receive))
        try:
            await asyncio.wait({ended, left, self.stops.now}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            return ended.done()
        finally:
            ended.cancel()
            left.cancel()

    async def outcome(self, run: Run) -> None:
        """Raise what an ended run ended with, if not with a result."""
        try:
            await run.result()
        except RunCancelled:
            self._open()
            raise

    # --- streams ----------------------------------------------------------------------------------------------

    def take_stream(self, run: Run) -> Callable[[], None]:
        """Count one more reader of `run`; returns what to call when it has gone."""
        if self._streams[run.id] >= self.settings.max_streams_per_run:
            raise BadRequest(
                429,
                "too_many_streams",
                f"expected at most {self.settings.max_streams_per_run} streams of one run at a time",
                retry_after_s=1.0,
            )
        self._streams[run.id] += 1

        def give_back() -> None:
            self._streams[run.id] -= 1
            if self._streams[run.id] <= 0:
                del self._streams[run.id]

        return give_back
