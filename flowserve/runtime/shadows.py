"""Calls that were stopped and run on, unseen, to learn whether their certificate still holds.

The client has its answer already. The shadow is the same call continued from where it was stopped, behind everything else at the
engine, and what it comes to is compared with what was delivered. Nobody is charged for it: its tokens are counted apart.
"""

import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from flowserve.engines.base import Call, Engine, Finish
from flowserve.errors import FlowServeError
from flowserve.graphs.plan import ExitSpec
from flowserve.ids import EngineId, Tokens
from flowserve.reasoning.answers import same
from flowserve.reasoning.extraction import final_answer
from flowserve.reasoning.shadow import Verdict
from flowserve.runtime.certified import Watch
from flowserve.runtime.threads import Threads
from flowserve.runtime.trials import ask, fork_of
from flowserve.shadowing import BEHIND

log = logging.getLogger("flowserve.runtime")


class Shadows:
    """Runs them, one at an engine: others that are due meanwhile are let go."""

    def __init__(self, spawn: Callable[[Coroutine[Any, Any, None]], object], threads: Threads) -> None:
        self._spawn = spawn
        self._threads = threads
        self._busy: set[EngineId] = set()
        self.verdicts: Counter[str] = Counter()
        """By name of the verdict; `let_go` and `failed` are those without one."""
        self.tokens: Tokens = 0

    def begin(
        self, watch: Watch, call: Call, engine: Engine, written: Sequence[int], exit: ExitSpec, answer: str
    ) -> None:
        """Continue `call`, which has written `written` and was stopped with `answer`."""
        if engine.id in self._busy:
            self.verdicts["let_go"] += 1
            return
        self._busy.add(engine.id)
        self._spawn(self._run(watch, shadow_of(call, written), engine, exit, answer))

    async def _run(self, watch: Watch, call: Call, engine: Engine, exit: ExitSpec, answer: str) -> None:
        try:
            own = await self._end(call, engine, exit)
            verdict = Verdict.AGREED if same(answer, own) else Verdict.DIFFERED
            reason = await self._threads.call(watch.observe, verdict)
        except FlowServeError as error:
            self.verdicts["failed"] += 1
            log.warning("early exit: shadow %s failed: %s", call.id, error)
            return
        finally:
            self._busy.discard(engine.id)
        self.verdicts[verdict.name.lower()] += 1
        if reason is not None:
            log.error("early exit: the certificate of %s is revoked: %s", call.id, reason)

    async def _end(self, call: Call, engine: Engine, exit: ExitSpec) -> str:
        """The answer of the whole chain: what its text names, else what it answers when told to at its end."""
        ids, finish = list(call.resumed), Finish.LENGTH
        if len(ids) < call.sampling.max_tokens:
            async with aclosing(engine.generate(call)) as outputs:  # type: ignore[type-var]
                async for output in outputs:
                    ids += output.token_ids
                    self.tokens += output.count
                    finish = output.finish or finish
        if finish is Finish.LENGTH:
            return ""
        named = final_answer(engine.tokenizer.decode(ids), last_number=exit.answer == "number")
        return named or (await ask(fork_of(call, engine, ids, exit, 1), engine, exit, self._told)).answer

    def _told(self, count: Tokens) -> None:
        self.tokens += count


def shadow_of(call: Call, written: Sequence[int]) -> Call:
    """`call` from behind `written` on, for nobody's eyes."""
    return replace(
        call,
        id=f"{call.id}/shadow",
        priority=call.priority + BEHIND,
        session=None,
        keep_s=0.0,
        timeout_s=None,
        resumed=tuple(written),
        stream=False,
        meta=call.meta | {"node": f"{call.meta['node']}/shadow"},
    )
