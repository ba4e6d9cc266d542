"""Names for the identifiers and units that cross module borders.

All ids are small and ordered: integers where the scheduler makes them (ties end in an arrival
number), strings where a person or another system does.
"""

from typing import NewType

RunId = NewType("RunId", str)
"""One execution of a workflow. Made by the runtime, url-safe, unique over restarts."""

TaskId = NewType("TaskId", int)
"""One execution of a plan node inside a run (a map of twelve makes twelve). The scheduler's arrival number."""

FrameId = NewType("FrameId", int)
"""One instance of a plan block inside a run; 0 is the workflow's own body."""

NodeId = NewType("NodeId", int)
"""Index into `Plan.nodes`."""

BlockId = NewType("BlockId", int)
"""Index into `Plan.blocks`; 0 is the workflow's own body."""

EngineId = NewType("EngineId", str)
"""One engine replica of the pool."""

Seconds = float
Tokens = int
Bytes = int
