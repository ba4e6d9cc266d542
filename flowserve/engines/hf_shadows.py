"""A few blended calls of the transformers engine are prefilled in full as well, unseen, and first tokens are compared.

The client has its answer already. The shadow waits behind everything else, computes one token without pasting, and leaves nothing in the
prefix cache; one is at work at a time, and others that are due meanwhile are let go. What it shows is told to the guard
(cachestore/guard.py); when that finds a breach, the policy is off in this engine at once and its gate is shut on disk. A gate that
somebody else has shut, or that has expired, turns the policy off here as well, at the next shadow.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime

from flowserve.cachestore.divergence import LogProbs, kl
from flowserve.cachestore.gatefiles import Absent, Gates
from flowserve.cachestore.gates import subject_of
from flowserve.cachestore.guard import Guard
from flowserve.cachestore.keys import Identity
from flowserve.cachestore.policies import Policy
from flowserve.cachestore.segments import Quality
from flowserve.engines.base import Call, Sampling
from flowserve.errors import FlowServeError, StoreError
from flowserve.shadowing import BEHIND

log = logging.getLogger("flowserve.engines")


class ReuseShadows:
    """Of one engine with one model. Called on its event loop; `verdicts` may be read anywhere."""

    def __init__(
        self,
        gates: Gates,
        share: float,
        identity: Identity,
        codec: str,
        first: Callable[[Call], Awaitable[LogProbs]],
        turn_off: Callable[[Policy], None],
    ) -> None:
        """share: of blended calls. first: computes a call's first token without leaving a trace. turn_off: told of a policy
        that must not paste any longer."""
        self._guard = Guard(gates, share)
        self._gates = gates
        self._identity = identity
        self._codec = codec
        self._first = first
        self._turn_off = turn_off
        self._task: asyncio.Task[None] | None = None
        self.verdicts: Counter[tuple[str, str]] = Counter()
        """(`shadow`, `agreed` or `differed` for the likeliest first token, `let_go` or `failed` without one) and (`turned_off`, policy)."""

    def is_due(self, call: Call) -> bool:
        """Is this call to be compared, if anything is pasted?"""
        return self._guard.is_shadowed(call.id)

    def begin(self, call: Call, policy: Policy, blended: LogProbs) -> None:
        """Compare: `call`, blended by `policy`, has drawn its first token from `blended`."""
        if self._task is not None:
            self.verdicts["shadow", "let_go"] += 1
            return
        self._task = asyncio.ensure_future(self._run(call, policy, blended))

    async def settled(self) -> None:
        """Until no shadow is at work."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, call: Call, policy: Policy, blended: LogProbs) -> None:
        try:
            full = await self._first(shadow_of(call))
            agrees = bool(full.argmax() == blended.argmax())
            reason = await asyncio.to_thread(self._judge, policy, kl(full, blended), agrees)
        except FlowServeError as error:
            self.verdicts["shadow", "failed"] += 1
            log.warning("reuse of passages: the shadow of %s failed: %s", call.id, error)
            return
        finally:
            self._task = None
        self.verdicts["shadow", "agreed" if agrees else "differed"] += 1
        if reason is not None:
            self.verdicts["turned_off", str(policy)] += 1
            log.error("reuse of passages: policy '%s' is off for this model: %s", policy, reason)
            self._turn_off(policy)

    def _judge(self, policy: Policy, kl: float, agrees: bool) -> str | None:
        """Why the policy must be off; None: it may go on. Raises StoreError for a gate that cannot be read."""
        gate = self._gates.lookup(subject_of(self._identity, policy, self._codec), datetime.now(UTC))
        if isinstance(gate, Absent):
            return gate.reason
        try:
            return self._guard.observe(gate, kl, agrees)
        except StoreError as error:
            log.error("reuse of passages: what a shadow has shown cannot be kept: %s", error)
            return self._guard.disabled.get(gate.subject)


def shadow_of(call: Call) -> Call:
    """`call` up to its first token, all of it computed, for nobody's eyes."""
    return replace(
        call,
        id=f"{call.id}/reuse-shadow",
        sampling=Sampling(max_tokens=len(call.resumed) + 1),
        priority=call.priority + BEHIND,
        schema=None,
        regex=None,
        grammar=None,
        session=None,
        keep_s=0.0,
        timeout_s=None,
        stream=False,
        reuse=Quality.EXACT,
    )
