"""Results of `cache=True` nodes, in memory, least recently used goes first.

A key holds everything that decides the result: tenant, workflow version, node, the arguments as canonical JSON, and the
bound of a search that was degraded. A model call that draws at random without a seed is never cached.
"""

import hashlib
import json
from collections import OrderedDict
from typing import Any

from flowserve.core.commands import Dispatch, Role
from flowserve.errors import FlowServeError
from flowserve.graphs.plan import Kind
from flowserve.runtime.prompts import reuse_of, sampling_of
from flowserve.runtime.run import Run, TaskState


class ResultCache:
    """At most `entries` values, keyed by what decides them."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._values: OrderedDict[str, Any] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        self._values.move_to_end(key)
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        while len(self._values) > self._entries:
            self._values.popitem(last=False)

    def key(self, run: Run, task: TaskState, command: Dispatch) -> str | None:
        """The key of this execution, or None where its result must not be kept."""
        node = task.node
        if not node.cache or task.role is not Role.NODE or run.raw is not None:
            return None
        extra = ""
        if node.kind is Kind.LLM:
            spec = run.program.plan.llms[node.target]
            sampling, model = sampling_of(spec, run, task)
            if sampling.temperature > 0 and sampling.seed is None:
                return None
            extra = f"{model} {sampling!r} {reuse_of(spec, run, node)}"
        try:
            arguments = run.program.dump(task.frame.arguments(node))
        except FlowServeError:
            return None
        parts = [run.tenant, run.program.plan.digest, node.id, extra, arguments, command.limit]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
