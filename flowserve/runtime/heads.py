"""Heads of prompts in the runtime: rendered and measured aside, computed by the engine that the scheduler names.

Nothing here can fail a run: a head that cannot be rendered or computed is one that is not there. Decisions: core/heads.py.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from flowserve.core import commands as c
from flowserve.core import events as e
from flowserve.engines.base import Call, Sampling, Segment
from flowserve.engines.chat import PromptMessage
from flowserve.errors import FlowServeError
from flowserve.graphs import evaluate, heads
from flowserve.ids import EngineId, FrameId, NodeId, RunId
from flowserve.runtime import prompts
from flowserve.runtime.pool import Pool
from flowserve.runtime.prompts import PromptFormats
from flowserve.runtime.run import Run
from flowserve.runtime.threads import Threads

log = logging.getLogger("flowserve.runtime")

Key = tuple[RunId, FrameId, NodeId]


@dataclass(slots=True)
class Head:
    """The known beginning of one prompt."""

    job: "asyncio.Task[None]"
    """Measures or computes it."""
    model: str = ""
    messages: tuple[PromptMessage, ...] = ()
    segments: tuple[Segment, ...] = ()


class Heads:
    """Those that are measured or computed."""

    def __init__(
        self,
        pool: Pool,
        formats: PromptFormats,
        threads: Threads,
        post: Callable[[e.Event], None],
        spawn: "Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]",
    ) -> None:
        self._pool = pool
        self._formats = formats
        self._threads = threads
        self._post = post
        self._spawn = spawn
        self._heads: dict[Key, Head] = {}

    def measure(self, run: Run, command: c.MeasureHead) -> None:
        key = command.run, command.frame, command.node
        self._heads[key] = Head(self._spawn(self._measure(run, key)))

    async def _measure(self, run: Run, key: Key) -> None:
        """In a thread: heads that are worth computing are long."""
        prefix: tuple[int, ...] = ()
        tokens, head = 0, self._heads[key]
        try:
            head.model, head.messages = self._known(run, key)
            tokenizer = self._pool.tokenizer(head.model)
            if head.messages and tokenizer is not None:
                format = self._formats.of(tokenizer)
                head.segments = await self._threads.call(format.segments, head.messages, continue_final=True)
                ids = [i for segment in head.segments for i in segment.ids]
                root = self._pool.numbers.root(run.tenant, self._pool.adapter(head.model))
                tokens, prefix = len(ids), self._pool.numbers.of(root, ids)
        except FlowServeError as error:
            log.debug("the head of %s is not known: %s", key, error)
        self._post(e.HeadMeasured(*key, tokens, prefix))

    def _known(self, run: Run, key: Key) -> tuple[str, tuple[PromptMessage, ...]]:
        """The model that will be called, and what can be rendered now of the messages: all but the last are whole. Nothing
        where passages have no order yet (`any_order`): that is chosen for the whole prompt."""
        _, frame_id, node_id = key
        plan, frame = run.program.plan, run.frames[frame_id]
        node = plan.nodes[node_id]
        spec = plan.llms[node.target]
        unknown = heads.unknown(node, {dep for dep in node.deps if dep not in frame.values})
        template = heads.head(spec.template, unknown) if spec.any_order is None else None
        if template is None:
            return "", ()
        known = tuple(arg for arg in node.args if arg.name not in unknown)
        values = evaluate.arguments(plan, replace(node, args=known), frame)
        messages = tuple(prompts.template_messages(replace(spec, template=template), values, lambda prompt: prompt))
        return prompts.model_of(spec, run, node), messages

    def compute(self, run: Run, command: c.ComputeHead) -> None:
        key = command.run, command.frame, command.node
        self._pool.members[command.engine].counts["heads"] += 1
        self._heads[key].job = self._spawn(self._compute(run, key, command.engine))

    async def _compute(self, run: Run, key: Key, engine: EngineId) -> None:
        head = self._heads[key]
        call = Call(
            id=f"{run.id}/head/{key[1]}/{key[2]}",
            segments=head.segments,
            sampling=Sampling(max_tokens=1),
            model=self._pool.own_name(engine, head.model),
            tenant=run.tenant,
            stream=False,
            messages=head.messages,
            meta={"workflow": run.program.plan.name, "run": run.id},
        )
        try:
            await self._pool.engine(engine).prefill(call)
        except FlowServeError as error:
            log.info("engine %s did not compute the head of %s: %s", engine, key, error)
        del self._heads[key]
        self._post(e.HeadComputed(*key))

    def drop(self, command: c.DropHead) -> None:
        """Leaving a call aborts it at the engine."""
        head = self._heads.pop((command.run, command.frame, command.node))
        head.job.cancel()
