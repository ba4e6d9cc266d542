"""Whether and when a failed execution is tried again.

Three bounds hold at once, so that a broken backend is not answered with a storm:

- the node's own `Retry.attempts`, on the codes it names (losing an engine does not count here);
- the run's budget: `run_retries`, or `retry_share` of its first executions if that is more;
- the scheduler's budget: a bucket that holds at most `retry_reserve` retries, starts full, and gains
  `retry_share` with every first execution. When everything fails, retries settle at that share of the traffic.

Back-off doubles and has full jitter (uniform between 0 and the doubled value), drawn from a hash of
(run, task, attempt): the same in every replay, unrelated between tasks.
"""

from hashlib import blake2b
from typing import TYPE_CHECKING

from flowserve.core.events import Code
from flowserve.graphs.plan import Retry
from flowserve.ids import RunId, Seconds, TaskId

if TYPE_CHECKING:
    from flowserve.core.config import Config
    from flowserve.core.state import Run, SchedulerState, Task

FINAL = (Code.REQUEST, Code.LIMIT, Code.INTERNAL)
"""Trying again cannot help; no `Retry.on` changes that."""


def jitter(run: RunId, task: TaskId, attempt: int) -> float:
    """A number in [0, 1) that looks random and is always the same for the same arguments."""
    digest = blake2b(f"{run}\0{task}\0{attempt}".encode("utf-8", "surrogatepass"), digest_size=7).digest()
    return int.from_bytes(digest, "big") / 2.0**56


def backoff_s(retry: Retry, failures: int, share: float) -> Seconds:
    """The pause after failure number `failures` (from 1): `share` of the doubled and capped back-off."""
    doubled = retry.backoff_s * 2.0 ** min(failures - 1, 62)
    return max(0.0, share * min(retry.max_backoff_s, doubled))


def is_retryable(retry: Retry, code: Code) -> bool:
    """Does the node want to be tried again after `code`, attempts aside?"""
    return code not in FINAL and (not retry.on or code.value in retry.on)


def retry_delay_s(state: "SchedulerState", task: "Task", code: Code, retry_after_s: Seconds | None) -> Seconds | None:
    """The pause before `task` runs again, or None when the failure is final. `task.failures` counts this one already.

    What the failing side asked for (`retry_after_s`) comes on top of the jittered back-off, so that everybody who
    was told the same moment does not come back at it.
    """
    retry = task.node.retry
    asked = retry_after_s if retry_after_s is not None and retry_after_s > 0 else 0.0
    if task.failures >= retry.attempts or not is_retryable(retry, code) or asked > state.config.max_retry_after_s:
        return None
    if not has_budget(state, task.run):
        return None
    return asked + backoff_s(retry, task.failures, jitter(task.run.id, task.id, task.attempt))


def has_budget(state: "SchedulerState", run: "Run") -> bool:
    """May `run` retry once more?"""
    config = state.config
    return state.retry_tokens >= 1.0 and run.retries < max(config.run_retries, config.retry_share * run.executions)


def spend(state: "SchedulerState", run: "Run") -> None:
    """One retry was granted."""
    run.retries += 1
    state.retry_tokens -= 1.0


def earn(state: "SchedulerState", run: "Run") -> None:
    """One first execution was dispatched."""
    config: Config = state.config
    run.executions += 1
    tokens = state.retry_tokens + config.retry_share
    state.retry_tokens = tokens if tokens < config.retry_reserve else float(config.retry_reserve)
