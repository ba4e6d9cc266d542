"""One engine as a model of vLLM's V1 scheduler: continuous batching in steps, seen from outside.

A step has a budget of tokens. Every request that writes takes one; what is left computes prompts, first the one begun, then
those that wait, in order, while there are seats and KV blocks (chunked prefill). A request begins behind what the prefix cache
holds of it. When a request that writes finds no block, the latest one loses its own and begins again later, with its prompt and
what it has written (preemption by recompute). Order is that of arrival, or priority first.

So at most one prompt is ever half computed, and all others advance by one token per step: they are one number, `ticks`, and many
steps without arrival, end or want of memory are one *span*, whose end is known in closed form. What comes meanwhile cuts the
span at the end of the step at work. `tests/sim/slow_engine.py` does the same token by token.
"""

from bisect import insort
from dataclasses import dataclass
from enum import IntEnum
from heapq import heappop, heappush
from math import inf, sqrt
from typing import Any

from flowserve.errors import ConfigError
from flowserve.ids import Seconds, Tokens
from flowserve.sim.costs import H100_8B, StepCosts
from flowserve.sim.kv import KVCache


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What an engine is; the names are vLLM's."""

    costs: StepCosts = H100_8B
    max_num_seqs: int = 256
    max_num_batched_tokens: Tokens = 8192
    kv_tokens: Tokens = 400_000
    block_tokens: Tokens = 16
    prefix_tokens: Tokens = 64
    """Of a chunk of the prefix cache: `PoolConfig.prefix_tokens`, in whole blocks."""
    prefix_caching: bool = True
    priority: bool = True
    """Waiting requests go by priority; False: by arrival alone."""

    def __post_init__(self) -> None:
        if self.prefix_tokens % self.block_tokens:
            raise ConfigError(f"prefix_tokens: expected whole blocks of {self.block_tokens}; got {self.prefix_tokens}")
        if not 0 < self.max_num_seqs <= self.max_num_batched_tokens:
            raise ConfigError(
                f"max_num_seqs: expected 1 to max_num_batched_tokens ({self.max_num_batched_tokens}); got {self.max_num_seqs}"
            )
        if self.kv_tokens < self.prefix_tokens:
            raise ConfigError(f"kv_tokens: expected at least a chunk of {self.prefix_tokens}; got {self.kv_tokens}")


class Stage(IntEnum):
    """Where a request is in its engine."""

    WAITING = 0
    PREFILL = 1
    """Its prompt is being computed."""
    WRITING = 2
    OVER = 3


class Request:
    """One call at one engine."""

    __slots__ = (
        "admitted", "base", "cached", "chain", "chunks", "computed", "end_tick", "fill", "known_chunks", "mark", "number", "owner", "priority",
        "prompt", "stage", "target", "written",
    )  # fmt: skip

    def __init__(
        self,
        owner: Any,
        prompt: Tokens,
        target: Tokens,
        chain: tuple[int, ...] = (),
        priority: int = 0,
        mark: Tokens = 0,
    ) -> None:
        self.owner = owner
        """Whose it is; the engine does not look."""
        self.prompt = max(1, prompt)
        self.target = max(1, target)
        """Tokens that it will write."""
        self.chain = chain
        """Chunk numbers of its prompt and of what it will write."""
        self.priority = priority
        self.mark = mark
        """It is told when it has written so many tokens, unless those are its last; 0: it is not."""
        self.number = 0
        """In order of arrival."""
        self.stage = Stage.WAITING
        self.cached: Tokens | None = None
        """Prompt tokens that the cache held when it first began; None: it has not."""
        self.written: Tokens = 0
        """While it does not write: so far. Then ask `EngineModel.written`."""
        self.computed: Tokens = 0
        """While its prompt is computed: tokens whose KV is there."""
        self.fill: Tokens = 0
        """Tokens to compute before it writes."""
        self.base = 0
        """While it writes: `ticks - base` is its `computed`."""
        self.end_tick = 0
        """While it writes: when its last token comes."""
        self.admitted = 0
        """When it began to write, among all that did; what was noted of it before is void."""
        self.chunks: list[int] = []
        """Chunks that it holds."""
        self.known_chunks = 0
        """So many of its chain are either held or known to be there twice."""

    def __repr__(self) -> str:
        return f"Request({self.owner!r}, {self.stage.name}, {self.prompt} in, {self.target} out)"


FIRST, MARK, LAST = "first", "mark", "last"
News = tuple[Request, str]
"""A request wrote its first token, passed a mark, or wrote its last token (which may be the first too)."""


class EngineModel:
    """`plan` begins a span at `now`, `next_at` is its end, `finish` ends it and says what came of it."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.busy_s: Seconds = 0.0
        self.prefill_tokens = self.decode_tokens = self.cached_tokens = 0
        self.steps = self.preemptions = 0
        self.frozen_until: Seconds = 0.0
        self.reset()

    def reset(self) -> None:
        """The engine is new: nothing runs, waits or is cached."""
        spec = self.spec
        self.cache = KVCache(
            spec.kv_tokens // spec.block_tokens, spec.prefix_tokens // spec.block_tokens, spec.prefix_caching
        )
        self.waiting: list[tuple[int, int, Request]] = []
        self.writing: dict[Request, None] = {}
        """In order of admission."""
        self.partial: Request | None = None
        """The one whose prompt is half computed; it was admitted last."""
        self.ticks = 0
        self.frozen_until = 0.0
        self._arrivals = self._admitted = 0
        self._crossing = [0] * spec.block_tokens
        """By `base` modulo block: how many requests write."""
        self._kv: Tokens = 0
        """Tokens computed of all that write."""
        self._ends: list[tuple[int, int, Request]] = []
        """(tick, admitted, request) of ends and of marks."""
        self._gone: list[Request] = []
        self._pushed: list[Request] = []
        self._work: list[tuple[Request, Tokens]] = []
        """Prompt tokens that the step at work computes."""
        self._start: Seconds = 0.0
        self._count = 0
        """Steps of the span; 0: the engine is idle."""
        self._first_s: Seconds = 0.0
        self._more_s: Seconds = 0.0
        """Every step takes so much longer than the one before."""

    # --- from outside ------------------------------------------------------------------------------------------

    @property
    def next_at(self) -> Seconds:
        """When the span ends; inf: none is at work."""
        return self._start + self._elapsed(self._count) if self._count else inf

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.writing or self.partial or self._work)

    def fits(self, request: Request) -> bool:
        """Can it ever be served here?"""
        return self._blocks(request.prompt + request.target) <= self.cache.size

    def add(self, request: Request, now: Seconds) -> None:
        """A request arrives; `fits` is true of it."""
        self._arrivals += 1
        request.number = self._arrivals
        self._enqueue(request)
        self._look(now)

    def abort(self, request: Request, now: Seconds) -> None:
        """Nothing more is said of it. It leaves at the end of the step at work."""
        if request.stage is Stage.WAITING:
            self.waiting.remove(self._entry(request))
            request.stage = Stage.OVER
            self._look(now)
        elif request.stage is not Stage.OVER:
            self._gone.append(request)
            self._cut(now)

    def reprioritise(self, request: Request, priority: int, now: Seconds) -> None:
        """Another place among those that wait."""
        waits = request.stage is Stage.WAITING
        if waits:
            self.waiting.remove(self._entry(request))
        request.priority = priority
        if waits:
            insort(self.waiting, self._entry(request))
            self._look(now)

    def preempt(self, request: Request, now: Seconds) -> None:
        """Push it out of the batch, at the end of the step at work."""
        if request.stage in (Stage.PREFILL, Stage.WRITING):
            self._pushed.append(request)
            self._cut(now)

    def mark(self, request: Request, written: Tokens, now: Seconds) -> None:
        """Tell when it has written so much, after the step at work at the earliest. What was marked before is not told."""
        request.mark = max(1, written)
        if request.stage is Stage.WRITING:
            self._note_mark(request)
            self._cut(now)

    def freeze(self, until: Seconds, now: Seconds) -> None:
        """The engine stands still after the step at work."""
        self.frozen_until = max(self.frozen_until, until)
        self._cut(now)

    def written(self, request: Request, now: Seconds) -> Tokens:
        """Tokens that it has written by `now`."""
        if request.stage is not Stage.WRITING:
            return request.written
        return request.target - (request.end_tick - self.ticks) + self._done_by(now)

    # --- spans -------------------------------------------------------------------------------------------------

    def plan(self, now: Seconds) -> None:
        """Begin the next span, if there is work and none is at work."""
        if self._count:
            return
        self._leave()
        if not self.has_work:
            return
        tokens, pushed = self._schedule()
        spec, cost, num = self.spec, self.spec.costs, len(self.writing)
        read = self._kv + sum(request.computed for request, _ in self._work)
        self._start = max(now, self.frozen_until)
        self._first_s, self._more_s = cost.seconds(tokens, num, read), cost.kv_s * num
        self._count = 1
        if not self._work and not pushed:
            to_end = self._next_end() - self.ticks
            self._count = min(to_end, self._steps_in_memory(to_end)) if num else 0
            assert self._count, f"{len(self.waiting)} requests wait at an engine that does nothing: {spec}"

    def finish(self) -> list[News]:
        """The span is over: what came of it, in order."""
        count, num = self._count, len(self.writing)
        self.busy_s += self._elapsed(count)
        self.steps += count
        if count > 1:
            self.cache.take(self._need(1, count))
        self.ticks += count
        self._kv += num * count
        self.decode_tokens += num * count
        self._count = 0
        ended, marked = self._due()
        begun: list[Request] = []
        work, self._work = self._work, []
        for request, tokens in work:
            self._prefilled(request, tokens, begun, ended, marked)
        for request in ended:
            self._release(request, Stage.OVER)
        news = [(request, LAST) for request in ended] + [(request, FIRST) for request in begun]
        news += [self._pass(request) for request in marked]
        return news if not self._gone else [item for item in news if item[0] not in self._gone]

    def _due(self) -> tuple[list[Request], list[Request]]:
        """Those who have written their last token, and those who pass a mark, in order of admission."""
        ended: list[Request] = []
        marked: list[Request] = []
        ends = self._ends
        while ends and ends[0][0] <= self.ticks:
            _, admitted, request = heappop(ends)
            if request.stage is Stage.WRITING and request.admitted == admitted:
                if request.end_tick <= self.ticks:
                    ended.append(request)
                elif self._is_marked(request) and request not in marked:
                    marked.append(request)
        return ended, marked

    def _is_marked(self, request: Request) -> bool:
        """Does a request that writes stand at its mark, or behind it?"""
        return 0 < request.mark <= request.target - (request.end_tick - self.ticks)

    def _pass(self, request: Request) -> News:
        """It passes its mark: what it has written can be found by others."""
        self._share(request, self.ticks - request.base)
        request.mark = 0
        return request, MARK

    def _note_mark(self, request: Request) -> None:
        """When a request that writes will pass its mark."""
        passes = max(self.ticks + 1, request.end_tick - request.target + request.mark)
        if request.mark and passes < request.end_tick:
            heappush(self._ends, (passes, request.admitted, request))

    def _prefilled(
        self, request: Request, tokens: Tokens, begun: list[Request], ended: list[Request], marked: list[Request]
    ) -> None:
        self.prefill_tokens += tokens
        request.computed += tokens
        self._share(request, request.computed)
        if request.computed < request.fill:
            self.partial = request
            return
        if not request.written:
            begun.append(request)
        request.written += 1
        self.decode_tokens += 1
        request.stage = Stage.WRITING
        request.base = self.ticks - request.computed
        request.end_tick = self.ticks + request.target - request.written
        self._admitted += 1
        request.admitted = self._admitted
        self.writing[request] = None
        self._crossing[request.base % self.spec.block_tokens] += 1
        self._kv += request.computed
        if request.end_tick > self.ticks:
            heappush(self._ends, (request.end_tick, self._admitted, request))
            if self._is_marked(request):
                marked.append(request)
            else:
                self._note_mark(request)
        else:
            ended.append(request)
            if begun and begun[-1] is request:
                begun.pop()

    # --- one step ----------------------------------------------------------------------------------------------

    def _schedule(self) -> tuple[Tokens, bool]:
        """Decide what the next step computes: prompt tokens in all, and whether somebody was pushed out."""
        before, cache, taken = self.preemptions, self.cache, 0
        while self._need(0, 1) > taken + (rest := cache.available):
            cache.take(rest)  # those before the one that finds none have had theirs
            taken += rest
            self._push_out(self._victim())
        need = self._need(0, 1)
        cache.give(max(0, taken - need))
        cache.take(max(0, need - taken))
        budget = self.spec.max_num_batched_tokens - len(self.writing)
        tokens = self._go_on(budget)
        if self.preemptions == before:
            tokens += self._admit(budget - tokens)
        return tokens, self.preemptions > before

    def _go_on(self, budget: Tokens) -> Tokens:
        """The prompt that was begun, as far as the budget and the memory go."""
        while self.partial is not None:
            request = self.partial
            tokens = min(request.fill - request.computed, budget)
            need = self._blocks(request.computed + tokens) - self._blocks(request.computed)
            if need <= self.cache.available:
                self.cache.take(need)
                if tokens:
                    self._work.append((request, tokens))
                    self.partial = None  # until `finish` finds that there is more
                return tokens
            victim = self._victim()
            if victim is not request and (self.ticks - victim.base) % self.spec.block_tokens == 0:
                self.cache.give(1)  # what this very step had given it
            self._push_out(victim)
        return 0

    def _admit(self, budget: Tokens) -> Tokens:
        spent, cache = 0, self.cache
        while self.waiting and spent < budget and self.num_seats < self.spec.max_num_seqs:
            request = self.waiting[0][2]
            fill = request.prompt + request.written
            hits = cache.longest(request.chain, (fill - 1) // self.spec.prefix_tokens)
            known = hits * self.spec.prefix_tokens
            tokens = min(fill - known, budget - spent)
            need = self._blocks(known + tokens) - hits * cache.chunk_blocks
            chunks = request.chain[:hits]
            if need > cache.available - cache.num_idle(chunks):
                break
            del self.waiting[0]
            cache.hold(chunks)
            cache.take(need)
            request.chunks, request.known_chunks = list(chunks), hits
            request.stage, request.fill, request.computed = Stage.PREFILL, fill, known
            if request.cached is None:
                request.cached = known
                self.cached_tokens += known
            self._work.append((request, tokens))
            spent += tokens
        return spent

    @property
    def num_seats(self) -> int:
        """Requests in the batch, those of the step that is being made up included."""
        return len(self.writing) + len(self._work) + (self.partial is not None)

    def _victim(self) -> Request:
        if not self.spec.priority:
            return self.partial if self.partial is not None else next(reversed(self.writing))
        partial = [] if self.partial is None else [self.partial]
        return max([*self.writing, *partial], key=lambda request: (request.priority, request.number))

    def _push_out(self, request: Request) -> None:
        self.preemptions += 1
        self._release(request, Stage.WAITING)
        self._enqueue(request)

    def _leave(self) -> None:
        """Those who were aborted or pushed out while the step was at work."""
        gone, self._gone = self._gone, []
        for request in gone:
            if request.stage is Stage.WAITING:
                self.waiting.remove(self._entry(request))
                request.stage = Stage.OVER
            elif request.stage is not Stage.OVER:
                self._release(request, Stage.OVER)
        pushed, self._pushed = self._pushed, []
        for request in pushed:
            if request.stage in (Stage.PREFILL, Stage.WRITING):
                self._push_out(request)

    def _release(self, request: Request, stage: Stage) -> None:
        """It gives its memory back; what was computed stays in the cache while there is room."""
        writes = request.stage is Stage.WRITING
        computed = self.ticks - request.base if writes else request.computed
        if writes:
            request.written = request.target - (request.end_tick - self.ticks)
            del self.writing[request]
            self._crossing[request.base % self.spec.block_tokens] -= 1
            self._kv -= computed
        elif self.partial is request:
            self.partial = None
        self._share(request, computed)
        self.cache.drop(request.chunks)
        self.cache.give(self._blocks(computed) - len(request.chunks) * self.cache.chunk_blocks)
        request.chunks, request.known_chunks, request.computed = [], 0, 0
        request.stage = stage

    def _share(self, request: Request, computed: Tokens) -> None:
        """Whole chunks that have been computed can be found by others."""
        whole = min(computed // self.spec.prefix_tokens, len(request.chain))
        for number in request.chain[request.known_chunks : whole]:
            if self.cache.share(number):
                request.chunks.append(number)
        request.known_chunks = max(request.known_chunks, whole)

    # --- small sums --------------------------------------------------------------------------------------------

    def _blocks(self, tokens: Tokens) -> int:
        return -(-tokens // self.spec.block_tokens)

    def _need(self, begin: int, end: int) -> int:
        """Blocks that those who write take in steps `begin` to `end` of a span, counted from now."""
        size = self.spec.block_tokens
        cycles, rest = divmod(end - begin, size)
        need = cycles * len(self.writing)
        first = (self.ticks + begin) % size
        last = first + rest
        return need + sum(self._crossing[first:last]) + sum(self._crossing[: max(0, last - size)])

    def _steps_in_memory(self, most: int) -> int:
        """Steps that the memory allows; the blocks of the first are taken already."""
        size = self.spec.block_tokens
        blocked = self.waiting and self.num_seats < self.spec.max_num_seqs
        # who waits for memory may find less in the cache, and so fit, as soon as something is given up there
        available = self.cache.free if blocked else self.cache.available
        if self._need(1, most) <= available:
            return most
        cycles = min(most // size, available // max(1, len(self.writing)))
        steps = max(1, cycles * size)
        while steps < most and self._need(1, steps + 1) <= available:
            steps += 1
        while steps > 1 and self._need(1, steps) > available:
            steps -= 1
        return steps

    def _next_end(self) -> int:
        ends = self._ends
        while ends and (ends[0][2].stage is not Stage.WRITING or ends[0][2].admitted != ends[0][1]):
            heappop(ends)
        return ends[0][0] if ends else 0

    def _elapsed(self, steps: int) -> Seconds:
        return self._first_s * steps + self._more_s * (steps * (steps - 1) / 2)

    def _done_by(self, now: Seconds) -> int:
        """Steps of the span that have ended by `now`."""
        if not self._count:
            return 0
        over = now - self._start
        steps = self._about(over)
        while steps < self._count and self._elapsed(steps + 1) <= over:
            steps += 1
        while steps and self._elapsed(steps) > over:
            steps -= 1
        return min(steps, self._count)

    def _about(self, over: Seconds) -> int:
        """Steps in `over` seconds, give or take one."""
        if over <= 0:
            return 0
        half = self._first_s - self._more_s / 2
        if self._more_s * over < 1e-9 * half * half:
            return min(self._count, int(over / self._first_s))
        return min(self._count, int((sqrt(half * half + 2 * self._more_s * over) - half) / self._more_s))

    def _cut(self, now: Seconds) -> None:
        """Let the span end with the step at work at `now`."""
        if self._count > 1:
            over = now - self._start
            steps = max(1, self._done_by(now))
            if steps < self._count and self._elapsed(steps) < over:
                steps += 1
            self._count = steps

    def _look(self, now: Seconds) -> None:
        """Somebody came to wait: does that change anything before the span ends?"""
        if self._count > 1 and self.waiting and self.num_seats < self.spec.max_num_seqs:
            self._cut(now)

    def _enqueue(self, request: Request) -> None:
        insort(self.waiting, self._entry(request))

    def _entry(self, request: Request) -> tuple[int, int, Request]:
        return (request.priority if self.spec.priority else 0, request.number, request)
