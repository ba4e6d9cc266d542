"""Between the wire and the core, once in each direction."""

from dataclasses import asdict
from typing import Any

from flowserve.errors import Problem
from flowserve.graphs.plan import Budget, Plan
from flowserve.graphs.types import Doc
from flowserve.retrieval.documents import Document
from flowserve.retrieval.protocols import IndexInfo
from flowserve.runtime.records import NodeRecord, RunEvent, RunSnapshot, SubmitOptions, reuse_data
from flowserve.runtime.reporting import spending_data
from flowserve.server.schemas import BudgetIn, IngestRequest, RunRequest
from flowserve.server.wire import dumps

# --- in ---------------------------------------------------------------------------------------------------------


def options_of(body: RunRequest, tenant: str, stream: bool) -> SubmitOptions:
    """`stream`: the client reads along."""
    return SubmitOptions(
        timeout_s=body.timeout,
        priority=body.priority,
        tier=body.slo.tier if body.slo is not None else None,
        tenant=tenant,
        budget=budget_of(body.budget),
        session=body.session_id,
        metadata=body.metadata,
        overrides={name: change.model_dump(exclude_none=True) for name, change in body.overrides.items()},
        allow_degraded=body.degrade,
        seed=body.seed,
        stream=stream,
    )


def budget_of(body: BudgetIn | None) -> Budget | None:
    return None if body is None else Budget(body.tokens, body.seconds, body.money)


def documents_of(body: IngestRequest) -> list[Document]:
    return [Document(item.id, item.text, item.metadata) for item in body.documents]


# --- out: plain data of the shapes in `schemas` -------------------------------------------------------------------


def run_summary(run: RunSnapshot) -> dict[str, Any]:
    return {
        "object": "run",
        "id": run.id,
        "workflow": run.workflow,
        "version": run.version,
        "status": run.status,
        "created": run.created,
        "started": run.started,
        "ended": run.ended,
        "usage": {
            "tokens_in": run.tokens_in,
            "tokens_out": run.tokens_out,
            "cached_tokens": run.cached_tokens,
            "trial_tokens": run.trial_tokens,
            "wasted_tokens": run.wasted_tokens,
            **reuse_data(run.provenance),
            **spending_data(run.spent),
        },
        "session_id": run.session,
        "caller": None if run.caller is None else run.caller.data(),
        "metadata": run.metadata,
        "last_seq": run.last_seq,
    }


def run_result(run: RunSnapshot) -> dict[str, Any]:
    votes = [{"node": record.label, **asdict(record.votes)} for record in run.nodes if record.votes is not None]
    told = {"degraded": list(run.degraded), "exits": list(run.exits), "votes": votes}
    return {**run_summary(run), "result": run.result, "error": run.error, **told}


def run_detail(run: RunSnapshot) -> dict[str, Any]:
    return {**run_result(run), "nodes": [_node(record) for record in run.nodes]}


def _node(record: NodeRecord) -> dict[str, Any]:
    return {
        "task": record.task,
        "node": record.node,
        "label": record.label,
        "kind": record.kind,
        "status": record.status.value,
        "attempt": record.attempt,
        "ready_s": record.ready_s,
        "started_s": record.started_s,
        "first_token_s": record.first_token_s,
        "ended_s": record.ended_s,
        "tokens_in": record.tokens_in,
        "tokens_out": record.tokens_out,
        "cached_tokens": record.cached_tokens,
        "trial_tokens": record.trial_tokens,
        "wasted_tokens": record.wasted_tokens,
        **reuse_data(record.provenance),
        "engine": record.engine,
        "error": record.error,
        "votes": None if record.votes is None else asdict(record.votes),
    }


def event_data(event: RunEvent) -> bytes:
    """The `data` line of a server-sent event."""
    return dumps(
        {
            "seq": event.seq,
            "run_id": event.run,
            "ts": event.ts,
            "type": event.type,
            "node": event.node,
            "task": event.task,
            "data": event.data,
        }
    )


def workflow_summary(plan: Plan) -> dict[str, Any]:
    return {
        "object": "workflow",
        "name": plan.name,
        "version": plan.digest,
        "description": plan.description,
        "nodes": len(plan.nodes),
    }


def workflow_out(plan: Plan) -> dict[str, Any]:
    slo = {"ttft": plan.slo.ttft, "e2e": plan.slo.e2e, "tpot": plan.slo.tpot, "tier": plan.slo.tier}
    return {**workflow_summary(plan), "input": plan.input, "output": plan.output, "slo": slo}


def graph_out(plan: Plan) -> dict[str, Any]:
    return {
        "name": plan.name,
        "version": plan.digest,
        "nodes": [
            {
                "id": node.id,
                "name": node.name,
                "kind": node.kind.name.lower(),
                "block": node.block,
                "deps": list(node.deps),
                "bodies": list(node.bodies),
                "limit": node.limit,
            }
            for node in plan.nodes
        ],
        "blocks": [
            {
                "id": block.id,
                "name": block.name,
                "params": list(block.params),
                "nodes": list(block.nodes),
                "parent": block.parent,
            }
            for block in plan.blocks
        ],
    }


def problem_out(problem: Problem) -> dict[str, Any]:
    return {"where": problem.where, "expected": problem.expected, "came": problem.came, "remedy": problem.remedy}


def index_out(info: IndexInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "documents": info.documents,
        "passages": info.passages,
        "embedder": info.embedder,
        "generation": info.generation,
        "kind": info.kind,
    }


def hit_out(hit: Doc) -> dict[str, Any]:
    return {
        "text": hit.text,
        "id": hit.id,
        "document": hit.document,
        "score": float(hit.score),
        "metadata": dict(hit.metadata),
    }
