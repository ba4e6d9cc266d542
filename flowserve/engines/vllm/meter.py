"""What vLLM says of itself after every step, made into Load messages."""

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

from flowserve.engines.vllm.connector.metadata import PARAMS
from flowserve.engines.vllm.control import SCARCE
from flowserve.engines.vllm.wire import Load
from flowserve.ids import Seconds

REPORT_S: Seconds = 0.1


@dataclasses.dataclass(slots=True)
class _Rank:
    """The latest of one data-parallel rank."""

    running: int = 0
    waiting: int = 0
    kv_used: float = 0.0


class Meter:
    """Gathers the statistics of all ranks. `report` gets a Load ten times a second at most, and when all is done;
    `pressed` is called at each step that leaves calls waiting or little memory free."""

    def __init__(self, report: Callable[[Load], None], pressed: Callable[[], None]) -> None:
        self._report = report
        self._pressed = pressed
        self.reused: Callable[[dict[str, Any]], None] = _ignore
        """Gets what our connector's scheduler half tells of prompts."""
        self.records: Callable[[], list[tuple[str, str, int]]] = list
        """Tells what happened to records of passages."""
        self._ranks: dict[int, _Rank] = {}
        self._steps = 0
        self._preemptions = 0
        self._asked = 0
        self._hit = 0
        self._timer: asyncio.TimerHandle | None = None
        self._told_at = -REPORT_S

    def logger(self, config: Any, rank: int) -> StatLoggerBase:
        """For AsyncLLM's `stat_loggers`."""
        return _StatLogger(config, rank, self)

    def record(self, rank: int, scheduler: Any, iteration: Any) -> None:
        """vLLM's SchedulerStats and IterationStats of a step; either may be None."""
        self._steps += 1
        if iteration is not None:
            self._preemptions += iteration.num_preempted_reqs
        if scheduler is not None:
            prefixes = scheduler.prefix_cache_stats
            self._asked += prefixes.queries
            self._hit += prefixes.hits
            now = _Rank(scheduler.num_running_reqs, scheduler.num_waiting_reqs, scheduler.kv_cache_usage)
            self._ranks[rank] = now
            if scheduler.kv_connector_stats:
                self.reused(scheduler.kv_connector_stats.get(PARAMS, {}))
            if now.waiting or now.kv_used > SCARCE:
                self._pressed()
        self._tell_soon()

    def _tell_soon(self) -> None:
        loop = asyncio.get_running_loop()
        idle = not any(rank.running or rank.waiting for rank in self._ranks.values())
        if idle or loop.time() - self._told_at >= REPORT_S:
            self.tell()
        elif self._timer is None:
            self._timer = loop.call_later(REPORT_S, self.tell)

    def tell(self) -> None:
        """Report now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._told_at = asyncio.get_running_loop().time()
        ranks = self._ranks.values()
        self._report(
            Load(
                running=sum(rank.running for rank in ranks),
                waiting=sum(rank.waiting for rank in ranks),
                kv_used=max((rank.kv_used for rank in ranks), default=0.0),
                steps=self._steps,
                preemptions=self._preemptions,
                prefix_asked=self._asked,
                prefix_hit=self._hit,
                records=self.records(),
            )
        )


def _ignore(told: dict[str, Any]) -> None:
    """Nobody pastes anything."""


class _StatLogger(StatLoggerBase):  # type: ignore[misc]
    def __init__(self, vllm_config: Any, engine_index: int, meter: Meter) -> None:
        self._rank = engine_index
        self._meter = meter

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        self._meter.record(self._rank, scheduler_stats, iteration_stats)

    def log_engine_initialized(self) -> None:
        """Nothing to say."""
