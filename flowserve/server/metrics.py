"""What `/metrics` shows. No label holds text that a client chose: workflows and engines are the operator's.

Counters and histograms are fed when a run ends; gauges are read from the runtime when somebody asks.
"""

import asyncio
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flowserve.runtime.records import NodeRecord, RunSnapshot
from flowserve.runtime.run import Run
from flowserve.runtime.runner import Runtime

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
STATES = ("starting", "up", "suspect", "tripped", "down", "closed")
YIELD_EVERY = 256
"""Nodes of one run after which the loop gets a turn."""


class Metrics:
    """Counts what ended. One per application."""

    def __init__(self, runtime: Runtime) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._runs = Counter(
            "flowserve_runs", "Runs that ended, by outcome.", ["workflow", "status"], registry=self.registry
        )
        self._run_seconds = Histogram(
            "flowserve_run_seconds",
            "From submission to the end.",
            ["workflow"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._node_seconds = Histogram(
            "flowserve_node_seconds",
            "From the start of a node's last execution to its end.",
            ["workflow", "kind"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._queue_seconds = Histogram(
            "flowserve_node_queue_seconds",
            "From ready to started.",
            ["workflow", "kind"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._tokens = Counter(
            "flowserve_tokens",
            "Tokens of model calls; `cached` ones are part of `in`, `trial` and `wasted` ones are no part of `out`, "
            "`computed` counts failed and cancelled calls too.",
            ["workflow", "direction"],
            registry=self.registry,
        )
        self._degraded = Counter(
            "flowserve_degraded",
            "Executions that did less than declared, to keep a deadline.",
            ["workflow", "what"],
            registry=self.registry,
        )
        self._exits = Counter(
            "flowserve_exits",
            "Model calls that were ended early, by their rule or by their budget, or could not be.",
            ["workflow", "did"],
            registry=self.registry,
        )
        self._prompt_tokens = Counter(
            "flowserve_prompt_tokens",
            "Prompt tokens by where their KV came from, at engines that reuse passages: `exact`, `pasted`, `recomputed`.",
            ["workflow", "origin", "policy"],
            registry=self.registry,
        )
        self._engine_seconds = Counter(
            "flowserve_run_engine_seconds",
            "Of model calls at engines, failed and cancelled ones included.",
            ["workflow"],
            registry=self.registry,
        )
        self._money = Counter(
            "flowserve_run_money",
            "What ended runs have cost, by the price table.",
            ["workflow"],
            registry=self.registry,
        )
        self._refused = Counter(
            "flowserve_runs_refused", "Runs that were not accepted, by code.", ["code"], registry=self.registry
        )
        self._following: set[asyncio.Task[None]] = set()
        self.registry.register(_Gauges(runtime, self))

    @property
    def live(self) -> int:
        """Runs that were submitted here and have not ended."""
        return len(self._following)

    def follow(self, run: Run) -> None:
        """Count `run` when it ends."""
        task = asyncio.create_task(self._follow(run))
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    async def _follow(self, run: Run) -> None:
        await run.wait()
        ended = run.snapshot()
        self._count(ended)
        for i, node in enumerate(ended.nodes, 1):
            self._count_node(ended.workflow, node)
            if i % YIELD_EVERY == 0:
                await asyncio.sleep(0)

    def _count(self, run: RunSnapshot) -> None:
        self._runs.labels(run.workflow, run.status).inc()
        if run.ended is not None:
            self._run_seconds.labels(run.workflow).observe(run.ended - run.created)
        counts = {"in": run.tokens_in, "out": run.tokens_out, "cached": run.cached_tokens, "trial": run.trial_tokens}
        counts["wasted"] = run.wasted_tokens
        for direction, count in counts.items():
            self._tokens.labels(run.workflow, direction).inc(count)
        for exited in run.exits:
            self._exits.labels(run.workflow, exited["did"]).inc()
        for taken in run.degraded:
            self._degraded.labels(run.workflow, taken["what"]).inc()
        if run.spent is not None:
            self._tokens.labels(run.workflow, "computed").inc(run.spent.prompt + run.spent.output)
            self._engine_seconds.labels(run.workflow).inc(run.spent.seconds)
            self._money.labels(run.workflow).inc(run.spent.money or 0.0)

    def refused(self, code: str) -> None:
        """A run was not accepted."""
        self._refused.labels(code).inc()

    def _count_node(self, workflow: str, node: NodeRecord) -> None:
        if node.provenance is not None:
            for origin in ("exact", "pasted", "recomputed"):
                count = getattr(node.provenance, origin)
                self._prompt_tokens.labels(workflow, origin, node.provenance.policy).inc(count)
        if node.started_s is None:
            return
        if node.ended_s is not None:
            self._node_seconds.labels(workflow, node.kind).observe(node.ended_s - node.started_s)
        if node.ready_s is not None:
            self._queue_seconds.labels(workflow, node.kind).observe(node.started_s - node.ready_s)

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)


class _Gauges(Collector):
    """What is true at the moment of the question."""

    def __init__(self, runtime: Runtime, metrics: Metrics) -> None:
        self._runtime = runtime
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        live = GaugeMetricFamily("flowserve_runs_live", "Runs submitted over HTTP and not ended.")
        live.add_metric([], self._metrics.live)
        yield live
        yield from self._lengths()
        frames = CounterMetricFamily(
            "flowserve_early_frames",
            "Items of maps begun before their list was whole; `dropped` ones were begun in vain and are part of `begun`.",
            labels=["outcome"],
        )
        for outcome, count in zip(("begun", "dropped"), self._runtime.early_frames(), strict=True):
            frames.add_metric([outcome], count)
        yield frames
        yield from self._shadows()
        rows = self._runtime.engines()
        for name, field, text in (
            ("flowserve_engine_up", "up", "1 when the engine takes calls."),
            ("flowserve_engine_inflight", "running", "Choices in the engine's batch."),
            ("flowserve_engine_waiting", "waiting", "Calls that wait inside the engine."),
            ("flowserve_engine_kv_used", "kv_used", "Share of KV memory in use."),
            ("flowserve_engine_calls", "calls", "Calls that the scheduler has there."),
            ("flowserve_engine_backlog_tokens", "backlog_tokens", "Prompt tokens that it still has to compute."),
            ("flowserve_engine_outstanding_tokens", "outstanding_tokens", "Output that it is still expected to write."),
            ("flowserve_engine_parked", "waiting_for_it", "Calls that wait for just this engine and its cache."),
            ("flowserve_engine_prefix_hit_ratio", "prefix_hit_rate", "Prompt tokens found in its prefix cache."),
            ("flowserve_engine_ms_per_token", "ms_per_token", "Time between two tokens of a call, a running mean."),
        ):
            family = GaugeMetricFamily(name, text, labels=["engine"])
            for row in rows:
                if row.get(field) is not None:
                    family.add_metric([str(row["id"])], float(row[field]))
            yield family
        states = GaugeMetricFamily("flowserve_engine_state", "1 for the state it is in.", labels=["engine", "state"])
        happened = CounterMetricFamily(
            "flowserve_engine_events", "What happened to it: losses, restarts, ...", labels=["engine", "event"]
        )
        records = CounterMetricFamily(
            "flowserve_engine_records",
            "What happened in the store of an engine's chunks; `detail` is a tier, a reason, a verdict or a policy.",
            labels=["engine", "what", "detail"],
        )
        for row in rows:
            for what, detail, count in row["records"]:
                records.add_metric([str(row["id"]), what, detail], float(count))
            for state in STATES:
                states.add_metric([str(row["id"]), state], float(row["state"] == state))
            for event, count in sorted(row["events"].items()):
                happened.add_metric([str(row["id"]), event], float(count))
        yield states
        yield happened
        yield records

    def _shadows(self) -> Iterator[Metric]:
        verdicts, tokens = self._runtime.shadows()
        shadows = CounterMetricFamily(
            "flowserve_shadows",
            "Calls stopped under a certificate that ran on unseen, by what it came to; `let_go` ones did not run.",
            labels=["verdict"],
        )
        for verdict, count in sorted(verdicts.items()):
            shadows.add_metric([verdict], count)
        yield shadows
        cost = CounterMetricFamily("flowserve_shadow_tokens", "Tokens that they wrote; charged to nobody.")
        cost.add_metric([], tokens)
        yield cost

    def _lengths(self) -> Iterator[Metric]:
        predictor, figures = self._runtime.lengths()
        for figure, text in (
            ("error_tokens", "Error of the predicted lengths of answers, a running mean."),
            ("tokens", "Length of the answers that were predicted, a running mean."),
            ("p90_coverage", "Share of them that were no longer than their predicted p90, a running mean."),
        ):
            family = GaugeMetricFamily(f"flowserve_length_{figure}", text, labels=["predictor"])
            if figure in figures:
                family.add_metric([predictor], figures[figure])
            yield family
