"""The engine model once more, slow and obvious: one step at a time, one request at a time, blocks as objects.

Written from how vLLM's V1 scheduler goes through its lists, without the sums and the closed forms of `sim/engine.py`.
"""

from dataclasses import dataclass, field
from typing import Any

from flowserve.sim.engine import EngineSpec


@dataclass(eq=False)
class Slow:
    """A request: `known` tokens exist, `computed` have KV."""

    owner: Any
    prompt: int
    target: int
    chain: tuple[int, ...]
    priority: int
    mark: int = 0
    number: int = 0
    known: int = 0
    computed: int = 0
    blocks: int = 0
    """Private ones."""
    chunks: list[int] = field(default_factory=list)
    looked_at: int = 0
    writes: bool = False
    """Its prompt, and what it had written before it was pushed out, are computed."""


class SlowEngine:
    """`run(arrivals, aborts)` gives [(time, owner, first or last)] in order."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.per_chunk = spec.prefix_tokens // spec.block_tokens
        self.free = spec.kv_tokens // spec.block_tokens
        self.users: dict[int, int] = {}
        """Chunk -> requests that hold it; 0: idle, in order of last use."""
        self.waiting: list[Slow] = []
        self.running: list[Slow] = []
        self.preemptions = 0
        self.busy_s = 0.0

    def run(self, arrivals: list[tuple[float, Slow]], aborts: list[tuple[float, Any]]) -> list[tuple[float, Any, str]]:
        news: list[tuple[float, Any, str]] = []
        arrivals, aborts, now, number = list(arrivals), list(aborts), 0.0, 0
        while arrivals or self.waiting or self.running:
            if not self.waiting and not self.running:
                now = max(now, arrivals[0][0])
            while arrivals and arrivals[0][0] <= now:
                number += 1
                request = arrivals.pop(0)[1]
                request.number, request.known = number, request.prompt
                self.waiting.append(request)
            while aborts and aborts[0][0] <= now:
                self._abort(aborts.pop(0)[1])
            if self.waiting or self.running:
                now = self._step(now, news)
        return news

    def _abort(self, owner: Any) -> None:
        for requests in (self.waiting, self.running):
            for request in [request for request in requests if request.owner == owner]:
                requests.remove(request)
                self._free(request)

    def _step(self, now: float, news: list[tuple[float, Any, str]]) -> float:
        budget, pushed = self.spec.max_num_batched_tokens, False
        plan: dict[Slow, int] = {}
        place = 0
        while place < len(self.running):
            request = self.running[place]
            tokens = min(request.known - request.computed, budget)
            need = self._need(request, request.computed + tokens)
            while self._available() < need:
                victim = self.running[-1]
                if self.spec.priority:
                    victim = max(self.running, key=lambda other: (other.priority, other.number))
                pushed = True
                self._push_out(victim)
                if victim in plan:
                    budget += plan.pop(victim)
                    place -= 1
                if victim is request:
                    break
            if request not in self.running:
                continue  # vLLM leaves the others out of this one step, which the model does not
            self._take(request, need)
            plan[request] = tokens
            budget -= tokens
            place += 1
        if not pushed:
            self._admit(budget, plan)
        return self._compute(now, plan, news)

    def _admit(self, budget: int, plan: dict[Slow, int]) -> None:
        while self.waiting and budget > 0 and len(self.running) < self.spec.max_num_seqs:
            request = min(self.waiting, key=lambda r: (r.priority if self.spec.priority else 0, r.number))
            hits: list[int] = []
            for chunk in request.chain[: (request.known - 1) // self.spec.prefix_tokens]:
                if chunk not in self.users or not self.spec.prefix_caching:
                    break
                hits.append(chunk)
            computed = len(hits) * self.spec.prefix_tokens
            tokens = min(request.known - computed, budget)
            need = -(-(computed + tokens) // self.spec.block_tokens) - len(hits) * self.per_chunk
            idle = sum(self.users[chunk] == 0 for chunk in hits)
            if self._available() - idle * self.per_chunk < need:
                return
            for chunk in hits:
                users = self.users.pop(chunk)
                self.users[chunk] = users + 1
            request.chunks, request.looked_at, request.computed = hits, len(hits), computed
            self.waiting.remove(request)
            self.running.append(request)
            self._take(request, need)
            plan[request] = tokens
            budget -= tokens

    def _compute(self, now: float, plan: dict[Slow, int], news: list[tuple[float, Any, str]]) -> float:
        prefill = decodes = read = 0
        for request, tokens in plan.items():
            read += request.computed
            if request.writes:
                decodes += 1
            else:
                prefill += tokens
        took = self.spec.costs.seconds(prefill, decodes, read)
        now, self.busy_s = now + took, self.busy_s + took
        ended, begun, marked = [], [], []
        for request, tokens in plan.items():
            first = request.known == request.prompt
            request.computed += tokens
            if request.computed < request.known:
                self._share(request, request.computed)
                continue
            if not request.writes:
                self._share(request, request.computed)
            request.writes = True
            request.known += 1
            if request.known == request.prompt + request.target:
                ended.append((request, first))
            elif first:
                begun.append(request)
            if 0 < request.mark <= request.known - request.prompt < request.target:
                marked.append(request)
        for request, _ in ended:
            self.running.remove(request)
            self._free(request)
        for request in marked:
            self._share(request, request.computed)
            request.mark = 0
        news += [(now, request.owner, "last") for request, _ in ended]
        news += [(now, request.owner, "first") for request in begun]
        news += [(now, request.owner, "mark") for request in marked]
        return now

    # memory

    def _available(self) -> int:
        return self.free + self.per_chunk * sum(users == 0 for users in self.users.values())

    def _need(self, request: Slow, tokens: int) -> int:
        return -(-tokens // self.spec.block_tokens) - request.blocks - len(request.chunks) * self.per_chunk

    def _take(self, request: Slow, blocks: int) -> None:
        while self.free < blocks:
            oldest = next(chunk for chunk, users in self.users.items() if users == 0)
            del self.users[oldest]
            self.free += self.per_chunk
        self.free -= blocks
        request.blocks += blocks

    def _share(self, request: Slow, computed: int) -> None:
        whole = min(computed // self.spec.prefix_tokens, len(request.chain))
        for chunk in request.chain[request.looked_at : whole]:
            if chunk not in self.users and self.spec.prefix_caching:
                self.users[chunk] = 1
                request.chunks.append(chunk)
                request.blocks -= self.per_chunk
        request.looked_at = max(request.looked_at, whole)

    def _free(self, request: Slow) -> None:
        self._share(request, request.computed)
        for chunk in reversed(request.chunks):
            users = self.users.pop(chunk) - 1
            self.users[chunk] = users
        self.free += request.blocks
        request.chunks, request.blocks, request.computed, request.looked_at = [], 0, 0, 0
        request.writes = False

    def _push_out(self, request: Slow) -> None:
        self.preemptions += 1
        self.running.remove(request)
        self._free(request)
        self.waiting.append(request)
