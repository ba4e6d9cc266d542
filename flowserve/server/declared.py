"""Programs that clients run themselves and have declared: which nodes they have, and what may come after each.

A declared node is a part of its own to the scheduler: how long its calls take and answer is learned apart from other calls of
the same model. Names that nobody declared share one part, so nobody fills its memory by inventing names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flowserve.graphs.caller import Caller

MOST_PROGRAMS = 256
"""Kept; the one that was declared or called longest ago goes first."""


@dataclass(slots=True)
class Program:
    """One tenant's program."""

    name: str
    after: Mapping[str, Sequence[str]]
    """Node -> the nodes that may come next; every node is a key."""
    calls: dict[str, int] = field(default_factory=dict)
    """Model calls by node."""


class Declared:
    """See the module. Tenants do not see each other's."""

    def __init__(self) -> None:
        self._programs: dict[tuple[str, str], Program] = {}

    def put(self, tenant: str, name: str, after: Mapping[str, Sequence[str]]) -> Program:
        """Declare or declare anew; the same graph keeps its counts."""
        old = self._programs.pop((tenant, name), None)
        program = old if old is not None and old.after == after else Program(name, after)
        self._programs[tenant, name] = program
        while len(self._programs) > MOST_PROGRAMS:
            self._programs.pop(next(iter(self._programs)))
        return program

    def get(self, tenant: str, name: str) -> Program | None:
        return self._programs.get((tenant, name))

    def names(self, tenant: str) -> list[str]:
        return sorted(name for whose, name in self._programs if whose == tenant)

    def part(self, tenant: str, caller: Caller | None) -> str:
        """What the scheduler knows a call's node by, and counts the call; empty where the node is not declared."""
        if caller is None or caller.program is None or caller.node is None:
            return ""
        program = self._programs.get((tenant, caller.program))
        if program is None or caller.node not in program.after:
            return ""
        self._programs[tenant, caller.program] = self._programs.pop((tenant, caller.program))
        program.calls[caller.node] = program.calls.get(caller.node, 0) + 1
        return f"{tenant}/{caller.program}/{caller.node}"
