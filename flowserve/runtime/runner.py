"""What the doors and the embedded API hold: submit, look up, cancel, close.

The work is done by `driver.Driver`; this file is the part of the runtime that clients talk to.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flowserve.clock import Clock, SystemClock
from flowserve.config import RuntimeConfig
from flowserve.core import events as e
from flowserve.core import quotas
from flowserve.core.budgets import OTHERS
from flowserve.core.priority import TIERS
from flowserve.engines.base import Engine, Sampling
from flowserve.engines.tools import Choice, ToolFormat
from flowserve.errors import InputError, Overloaded, UnknownName
from flowserve.graphs.plan import ExitSpec, ToolSpec
from flowserve.graphs.program import Program
from flowserve.graphs.types import Message
from flowserve.ids import RunId, Seconds, Tokens
from flowserve.retrieval.protocols import RetrievalService
from flowserve.runtime.certified import Certificates
from flowserve.runtime.driver import Driver
from flowserve.runtime.history import History
from flowserve.runtime.limits import checked_budget
from flowserve.runtime.pool import Seat
from flowserve.runtime.pool_rows import row
from flowserve.runtime.prompts import RawCall, check_overrides, offered
from flowserve.runtime.raw import raw_program
from flowserve.runtime.records import SubmitOptions
from flowserve.runtime.run import Run
from flowserve.runtime.streaming import result_nodes


class Runtime:
    """Runs workflows on engines. Create it, `await start()`, and `await aclose()` it on one event loop."""

    def __init__(
        self,
        engines: Sequence[Engine | Seat] = (),
        *,
        retrieval: RetrievalService | None = None,
        config: RuntimeConfig | None = None,
        clock: Clock | None = None,
        log_line: Callable[[str], object] | None = None,
        certificates: Certificates | None = None,
    ) -> None:
        """`certificates` say which exit rules were found harmless for which models and prompts; None: no others than the default.
        `log_line` gets the scheduler's events, a JSON line each, for replay (`core.log`); it holds no prompt or answer."""
        self.config = config or RuntimeConfig()
        self.clock: Clock = clock or SystemClock()
        self.retrieval = retrieval
        self.history = History(self.config.kept_runs, self.config.kept_events)
        self._driver = Driver(engines, retrieval, self.config, self.clock, self.history.add, log_line, certificates)
        self._programs: dict[str, Program] = {}
        self._started = False
        self._closed = False

    # --- life -------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the engines. Raises what an engine's `start` raises, after closing those that had started."""
        try:
            await self._driver.pool.start()
        except BaseException:
            await self.aclose()
            raise
        self._started = True

    async def aclose(self) -> None:
        """Cancel what runs, wait for it to stop, close engines and indexes. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for run in list(self._driver.live.values()):
            run.cancel()
        await self._driver.close()
        await self._driver.pool.close()
        if self.retrieval is not None:
            await self.retrieval.close()

    def ready(self) -> tuple[bool, str]:
        """Can a model call be served now, and if not, why."""
        if self._closed or not self._started:
            return False, "closing" if self._closed else "starting"
        return self._driver.pool.ready()

    # --- what clients ask ---------------------------------------------------------------------------------------

    def register(self, program: Program) -> None:
        """Serve `program` under its name; one of the same name is replaced for future runs."""
        self._programs[program.plan.name] = program

    def workflows(self) -> dict[str, Program]:
        return dict(self._programs)

    def models(self) -> tuple[str, ...]:
        """Names that a model call may ask for, without repeats."""
        return self._driver.pool.models()

    def engines(self) -> list[dict[str, Any]]:
        """One row per engine, for people and metrics."""
        return [row(member, self._driver.state) for member in self._driver.pool.members.values()]

    def learn(self, lessons: Sequence[e.Learned]) -> None:
        """Know what an earlier scheduler has learned (`core.learning.lessons`). Call it before the first run."""
        for lesson in lessons:
            self._driver.post(lesson)

    def lengths(self) -> tuple[str, dict[str, float]]:
        """Who foretells the lengths of answers, and how well of late."""
        lengths = self._driver.state.lengths
        return lengths.name, lengths.figures()

    def early_frames(self) -> tuple[int, int]:
        """Frames of maps that were opened before their list was whole, and how many of these were dropped again."""
        return self._driver.state.streamed, self._driver.state.started_over

    def shadows(self) -> tuple[Mapping[str, int], Tokens]:
        """What became of stopped calls that ran on, by verdict; and the tokens that they cost."""
        return self._driver.shadows.verdicts, self._driver.shadows.tokens

    def drain(self, engine: str, replace: bool = False) -> None:
        """Give an engine no more calls; when it is empty, close it, or start it anew. Raises UnknownName."""
        self._driver.post(e.DrainRequested(self._driver.pool.check(engine), replace))

    def resume(self, engine: str) -> None:
        """Take a drained engine back. Raises UnknownName."""
        self._driver.post(e.ResumeRequested(self._driver.pool.check(engine)))

    def end_session(self, tenant: str, session: str) -> None:
        """No call of this session comes any more; one that comes all the same begins anew."""
        self._driver.post(e.SessionEnded(tenant, session))

    def standing(self, tenant: str) -> dict[str, tuple[float, float, Seconds]]:
        """Of each rate that bounds `tenant`: what a minute gives, what is left, seconds until it is full; see `core.quotas`."""
        return quotas.standing(self._driver.state, tenant, self.clock.now())

    async def submit(
        self, workflow: str | Program, inputs: Mapping[str, Any], options: SubmitOptions | None = None
    ) -> Run:
        """Start a run. Raises UnknownName, InputError or Overloaded; nothing is started then."""
        options = options or SubmitOptions()
        program = workflow if isinstance(workflow, Program) else self._program(workflow)
        check_overrides(options.overrides, _model_nodes(program))
        if self.config.passes and not options.overrides:  # settings of one run can make unequal what is declared equal
            program = program.rewritten
        return await self._begin(program, program.bind_input(inputs), options, None)

    async def generate(
        self,
        *,
        model: str,
        messages: Sequence[Message] | None = None,
        prompt: str | None = None,
        sampling: Sampling,
        tools: Sequence[ToolSpec] = (),
        tool_choice: Choice = "auto",
        parallel_tools: bool = True,
        schema: dict[str, Any] | None = None,
        exit: ExitSpec | None = None,
        part: str = "",
        options: SubmitOptions | None = None,
    ) -> Run:
        """One model call under the same scheduler as everything else; `result()` is a `records.Generation`.

        part: of a program of the client's that makes it, by a name of few: what calls of a part are like is learned by itself.
        """
        if (messages is None) == (prompt is None):
            raise InputError("a model call takes either messages or a prompt")
        if model not in self.models():
            raise UnknownName("model", model, self.models())
        if exit is not None and (tools or schema is not None or sampling.n > 1):
            raise InputError("only one free text can end early: leave tools, a schema, further choices or the exit out")
        format = None
        if tools and tool_choice != "none":
            format = ToolFormat(offered(tools), tool_choice, parallel=parallel_tools, output=schema)
        raw = RawCall(model, sampling, None if messages is None else tuple(messages), prompt, format, schema)
        return await self._begin(raw_program(model, exit, part), (), options or SubmitOptions(), raw)

    def run(self, run: RunId) -> Run:
        """The handle of a live or remembered run. Raises UnknownName."""
        found = self._driver.live.get(run) or self.history.get(run)
        if found is None:
            raise UnknownName("run", run)
        return found

    def runs(
        self, workflow: str | None = None, status: str | None = None, after: str | None = None, limit: int = 50
    ) -> list[Run]:
        """Newest first; `after` is the id of the last run of the page before."""
        runs = sorted((*self._driver.live.values(), *self.history.runs()), key=lambda run: (-run.created, run.id))
        if after is not None:
            place = next((i for i, run in enumerate(runs) if run.id == after), len(runs))
            runs = runs[place + 1 :]
        wanted = [run for run in runs if workflow in (None, run.program.plan.name) and status in (None, run.status)]
        return wanted[:limit]

    def forget(self, run: RunId) -> None:
        """Drop an ended run from memory. Raises UnknownName, or InputError for a live one."""
        if not self.run(run).done:
            raise InputError(f"run {run} has not ended; cancel it first")
        self.history.drop(run)

    def _program(self, name: str) -> Program:
        if name not in self._programs:
            raise UnknownName("workflow", name, list(self._programs))
        return self._programs[name]

    async def _begin(
        self, program: Program, values: tuple[Any, ...], options: SubmitOptions, raw: RawCall | None
    ) -> Run:
        if self._closed:
            raise Overloaded("the runtime is closing", retry_after_s=5.0)
        if options.timeout_s is not None and not 0 < options.timeout_s < float("inf"):
            raise InputError(f"timeout_s: expected a number of seconds above 0; got {options.timeout_s}")
        if options.tier is not None and options.tier not in TIERS:
            raise InputError(f"tier: expected one of {', '.join(TIERS)}; got {options.tier!r}")
        plan = program.plan
        budget = checked_budget(options.budget, plan, self._priced)
        run_id = RunId(f"run_{secrets.token_hex(10)}")
        run = Run(run_id, program, options, self.clock.wall(), self.clock.now(), self._cancel)
        run.inputs, run.raw = values, raw
        run.streamed = frozenset(node.id for node in plan.nodes) if raw is not None else result_nodes(plan)
        self._driver.live[run_id] = run
        self._driver.post(
            e.RunSubmitted(
                run_id,
                plan,
                deadline_s=min(options.timeout_s or self.config.default_timeout_s, self.config.max_timeout_s),
                tenant=options.tenant,
                tier=options.tier or plan.slo.tier,
                priority=options.priority,
                session=options.session,
                degrade=options.allow_degraded,
                budget=budget,
            )
        )
        await run.accepted
        return run

    def _priced(self, model: str) -> bool:
        """Has every engine that could take a call for `model` a price?"""
        prices = dict(self.config.prices)
        serving = self._driver.state.serving.get(model, [])
        known = model in prices or OTHERS in prices
        return known or (bool(serving) and all(not prices.keys().isdisjoint(engine.models) for engine in serving))

    def _cancel(self, run: RunId) -> None:
        self._driver.post(e.CancelRequested(run))


def _model_nodes(program: Program) -> list[str]:
    """Names of the nodes that call a model."""
    kinds = {"LLM", "AGENT"}
    return [node.name for node in program.plan.nodes if node.kind.name in kinds]
