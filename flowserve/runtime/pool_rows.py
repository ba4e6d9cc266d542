"""An engine as one row: what the scheduler knows of it beside what it says of itself. For people and metrics."""

from typing import Any

from flowserve.core.engine_state import Drain
from flowserve.core.state import SchedulerState
from flowserve.runtime.pool import Member


def row(member: Member, state: SchedulerState) -> dict[str, Any]:
    """JSON-ready. `state` is starting, up, suspect, tripped, down, closed; `draining` comes beside it."""
    status, known = member.engine.status(), state.engines.get(member.engine.id)
    own = {
        "id": member.engine.id,
        "models": list(member.engine.capabilities.models),
        "roles": list(member.seat.roles),
        "default": member.seat.default,
        "up": status.up,
        "state": "starting" if member.restarting or known is None else known.health.name.lower(),
        "draining": known is not None and known.drain is not Drain.NO,
        "reason": member.reason if not member.up else "",
        "window": status.window,
        "running": status.running,
        "waiting": status.waiting,
        "kv_used": status.kv_used,
        "kv_tokens": status.kv_tokens,
        "tokens_out_total": status.tokens_out_total,
        "prefix_hit_rate": status.prefix_hit / status.prefix_asked if status.prefix_asked else None,
        "preemptions": status.preemptions,
        "events": dict(member.counts),
        "records": [list(happened) for happened in status.records],
    }
    if known is None:
        return own
    return own | {
        "calls": len(known.running),
        "backlog_tokens": known.backlog,
        "outstanding_tokens": known.ahead,
        "reserved_tokens": known.reserved,
        "resident_prefixes": len(known.resident),
        "waiting_for_it": known.queue.size,
        "ms_per_token": round(1000 * known.pace, 3) if known.pace else None,
        "pause_s": round(max(0.0, known.pause_until - state.now), 3) if known.pause_until else 0.0,
    }
