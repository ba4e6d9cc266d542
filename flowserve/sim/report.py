"""What a simulation gave: latencies of workflows, throughput, use of the engines, waiting, prefix hits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowserve.core import commands as c
from flowserve.ids import Seconds
from flowserve.sim.drive import Drive, Execution, RunView


@dataclass(slots=True)
class Part:
    """One mix of a workload."""

    latencies: list[Seconds] = field(default_factory=list)
    """Of runs that completed, from submission to end."""
    waits: list[Seconds] = field(default_factory=list)
    """Of model calls, from ready to dispatched."""
    first: list[Seconds] = field(default_factory=list)
    """Of model calls, from dispatched to the first token."""
    submitted: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    timed_out: int = 0
    rejected: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0


@dataclass(slots=True)
class Recorder:
    """The observer of a simulation. Runs that were submitted before `warmup_s` count for nothing."""

    warmup_s: Seconds = 0.0
    parts: dict[str, Part] = field(default_factory=dict)
    last_s: Seconds = 0.0

    def _part(self, view: RunView) -> Part | None:
        arrival = view.arrival
        if arrival.at < self.warmup_s:
            return None
        part = self.parts.get(arrival.mix)
        if part is None:
            part = self.parts[arrival.mix] = Part()
        return part

    def dispatched(self, execution: Execution, waited_s: Seconds, now: Seconds) -> None:
        part = self._part(execution.view)
        if part is not None and execution.size is not None:
            part.waits.append(waited_s)

    def answered(self, execution: Execution, last: bool, now: Seconds) -> None:
        part = self._part(execution.view)
        if part is None or execution.size is None:
            return
        if not execution.told:
            part.first.append(now - execution.sent_at)
        if last:
            part.prompt_tokens += execution.size.prompt
            part.output_tokens += execution.size.output

    def ended(self, view: RunView, command: c.Complete | c.Fail | c.Reject, now: Seconds) -> None:
        part = self._part(view)
        if part is None:
            return
        self.last_s = max(self.last_s, now)
        part.submitted += 1
        if isinstance(command, c.Complete):
            part.completed += 1
            part.latencies.append(now - view.arrival.at)
        elif isinstance(command, c.Reject):
            part.rejected += 1
        else:
            name = str(command.status)
            setattr(part, name, getattr(part, name) + 1)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Mean, median and tails; empty for nothing."""
    if not values:
        return {}
    ordered = sorted(values)
    found = {"mean": sum(ordered) / len(ordered)}
    return found | {f"p{share}": quantile(ordered, share / 100) for share in (50, 95, 99)}


def quantile(ordered: Sequence[float], share: float) -> float:
    """Linear between the two nearest, as numpy's."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summary(drive: Drive, recorder: Recorder, seed: int) -> dict[str, Any]:
    """The result object of one simulation: JSON-ready, equal bytes for equal seeds."""
    span = max(recorder.last_s - recorder.warmup_s, 1e-9)
    whole = _whole(list(recorder.parts.values()))
    config = drive.state.config
    return {
        "policy": config.policy,
        "placement": config.placement,
        "seed": seed,
        "engines": len(drive.fleet.members),
        "simulated_s": drive.heap.now,
        "events": drive.num_events,
        "all": _figures(whole, span),
        "mixes": {name: _figures(part, span) for name, part in sorted(recorder.parts.items())},
        "pool": _pool(drive),
    }


def _whole(parts: Sequence[Part]) -> Part:
    whole = Part()
    for part in parts:
        for name in Part.__slots__:
            setattr(whole, name, getattr(whole, name) + getattr(part, name))
    return whole


def _figures(part: Part, span: Seconds) -> dict[str, Any]:
    return {
        "submitted": part.submitted,
        "completed": part.completed,
        "failed": part.failed,
        "cancelled": part.cancelled,
        "timed_out": part.timed_out,
        "rejected": part.rejected,
        "latency_s": percentiles(part.latencies),
        "queue_s": percentiles(part.waits),
        "engine_first_token_s": percentiles(part.first),
        "calls": len(part.waits),
        "prompt_tokens": part.prompt_tokens,
        "output_tokens": part.output_tokens,
        "runs_per_s": part.completed / span,
        "output_tokens_per_s": part.output_tokens / span,
    }


def _pool(drive: Drive) -> dict[str, Any]:
    models = [member.model for member in drive.fleet.members.values()]
    busy = [model.busy_s / max(drive.heap.now, 1e-9) for model in models]
    computed = sum(model.prefill_tokens for model in models)
    cached = sum(model.cached_tokens for model in models)
    return {
        "utilisation": {"mean": sum(busy) / len(busy), "least": min(busy), "most": max(busy)},
        "prefill_tokens": computed,
        "cached_tokens": cached,
        "prefix_hit_share": cached / max(1, cached + computed),
        "decode_tokens": sum(model.decode_tokens for model in models),
        "steps": sum(model.steps for model in models),
        "preemptions": sum(model.preemptions for model in models),
    }


ROWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("completed", ("all", "completed")),
    ("failed", ("all", "failed")),
    ("timed out", ("all", "timed_out")),
    ("rejected", ("all", "rejected")),
    ("latency mean, s", ("all", "latency_s", "mean")),
    ("latency p50, s", ("all", "latency_s", "p50")),
    ("latency p95, s", ("all", "latency_s", "p95")),
    ("latency p99, s", ("all", "latency_s", "p99")),
    ("queue p50, s", ("all", "queue_s", "p50")),
    ("queue p95, s", ("all", "queue_s", "p95")),
    ("runs/s", ("all", "runs_per_s")),
    ("output tokens/s", ("all", "output_tokens_per_s")),
    ("utilisation", ("pool", "utilisation", "mean")),
    ("prefix hits", ("pool", "prefix_hit_share")),
    ("preemptions", ("pool", "preemptions")),
)
"""Of the table for people: (name, path in the result)."""


def table(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Rows of cells, the first row the heads: a column per simulation, named by what differs."""
    rows = [["", *heads(results)]]
    for name, path in ROWS:
        rows.append([name, *(_cell(result, path) for result in results)])
    names = dict.fromkeys(name for result in results for name in result["mixes"])
    for mix in names if len(names) > 1 else ():
        for share in ("p50", "p95"):
            path = ("mixes", mix, "latency_s", share)
            rows.append([f"{mix} {share}, s", *(_cell(result, path) for result in results)])
    return rows


def heads(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each simulation is called: its policy, or its placement where the policies are equal and the placements not."""
    by = "placement" if _differ(results, "placement") and not _differ(results, "policy") else "policy"
    return [str(result[by]) for result in results]


def _differ(results: Sequence[Mapping[str, Any]], key: str) -> bool:
    return any(result[key] != results[0][key] for result in results)


def _cell(result: Mapping[str, Any], path: Sequence[str]) -> str:
    value: Any = result
    for key in path:
        value = value.get(key, {})
    return (
        ""
        if value == {}
        else f"{value:,}"
        if isinstance(value, int)
        else f"{value:.3f}"
        if value < 100
        else f"{value:,.0f}"
    )


def text(rows: Sequence[Sequence[str]]) -> str:
    """A table in plain text."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
