"""The compute loop of the transformers engine, one step at a time: who is prefilled, who decodes, who leaves.

A step is: at most `prefill_chunk` prompt tokens, then one token for every decoding sequence. So calls join and leave
between steps, and a long prompt delays the others' next token by one chunk at most. Short prompts (and what is left of
those whose beginning is cached) are computed together, several in one forward. Single-threaded and without asyncio:
flowserve/engines/hf.py runs it in a thread, tests run it directly. Results are left in `outbox`.

Slots: 0 to len(live)-1 decode, the next one is being prefilled.
"""

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from flowserve.engines import sampling
from flowserve.engines.base import Finish, Logprob, Output, Tokenizer
from flowserve.engines.batch import Batch
from flowserve.engines.blend.blend import Blend
from flowserve.engines.blend.decoder import Decoder
from flowserve.engines.grammar import Grammar, Grammars
from flowserve.engines.hf_reuse import Rotary, placed, provenance
from flowserve.engines.job import Choice, Job
from flowserve.engines.prefix import PrefixCache
from flowserve.errors import EngineError
from flowserve.ids import Tokens


@dataclass(frozen=True, slots=True)
class _Admitted:
    """A job that has room, and how much of its prompt is there already."""

    turn: tuple[int, int, Job]
    """As it waited."""
    start: Tokens

    @property
    def job(self) -> Job:
        return self.turn[2]

    @property
    def rest(self) -> tuple[int, ...]:
        """The tokens to compute."""
        return self.job.prompt[self.start :]


class Stepper:
    """See the module."""

    def __init__(
        self,
        batch: Batch,
        tokenizer: Tokenizer,
        prefixes: PrefixCache,
        grammars: Grammars | None,
        *,
        max_batch: int,
        max_context: Tokens,
        prefill_chunk: Tokens,
        rotary: Rotary | None = None,
        decoder: Decoder | None = None,
    ) -> None:
        """rotary: where chunks are reused; then every call is told where its KV came from. decoder: where dynamic policies choose what is
        recomputed."""
        self.outbox: list[tuple[Job, Any]] = []
        self.tokens_out = 0
        self.steps = 0
        self._batch = batch
        self._tokenizer = tokenizer
        self._prefixes = prefixes
        self._grammars = grammars
        self._max_batch = max_batch
        self._max_context = max_context
        self._prefill_chunk = prefill_chunk
        self._rotary = rotary
        self._decoder = decoder
        self._eos = frozenset(tokenizer.eos_ids)
        self._live: list[Choice] = []
        self._waiting: list[tuple[int, int, Job]] = []
        self._arrivals = itertools.count()
        self._current: Job | None = None
        self._computed: Tokens = 0  # of the current job's prompt

    @property
    def running(self) -> int:
        """Choices in the batch."""
        return len(self._live) + (self._current is not None)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        return not (self._live or self._waiting or self._current)

    @property
    def kv_used(self) -> float:
        return self._batch.used(sum(choice.length for choice in self._live) + self._computed)

    def add(self, job: Job) -> None:
        heapq.heappush(self._waiting, (job.call.priority, next(self._arrivals), job))

    def abort(self, job: Job) -> None:
        """The job's open choices end now, with what they have."""
        if job.over:
            return
        for choice in self._live:
            if choice.job is job:
                self._end(choice, Finish.ABORT, choice.stream.finish())
        for index in sorted(job.open):
            self._output(job, index, finish=Finish.ABORT)
        if job.prefill_only and not job.over:
            self._close(job, None)
        self._drop_ended()

    def abort_all(self) -> None:
        for job in dict.fromkeys([*(choice.job for choice in self._live), *(job for *_, job in self._waiting)]):
            self.abort(job)
        if self._current is not None:
            self.abort(self._current)

    def fail_all(self, error: Exception) -> None:
        """Every job ends with `error`."""
        for job in [choice.job for choice in self._live] + [job for *_, job in self._waiting]:
            self._close(job, error)
        if self._current is not None:
            self._close(self._current, error)
        self._drop_ended()

    def release(self) -> None:
        """Give unused memory back; only when idle."""
        self._batch.release()

    def step(self) -> None:
        """Some prefill, then one token for each decoding sequence."""
        self.steps += 1
        self._prefill()
        if self._live:
            self._decode()
        self._drop_ended()

    # --- prefill ---------------------------------------------------------------------------------------

    def _prefill(self) -> None:
        budget = self._prefill_chunk
        while budget > 0:
            if self._current is None:
                group = self._group(budget)
                if len(group) > 1:
                    budget -= self._prefill_together(group)
                    continue
                if group:
                    self._current, self._computed = group[0].job, group[0].start
            job = self._current
            if job is None:
                return
            try:
                budget -= self._prefill_some(job, budget)
            except Exception as error:  # noqa: BLE001 whatever a forward raises concerns this call alone
                self._fail([job], error)
            if job.over or self._computed == len(job.prompt):
                self._current, self._computed = None, 0
                self._drop_ended()

    def _group(self, budget: Tokens) -> list[_Admitted]:
        """The next waiting job, and those behind it that go with it into one forward of at most `budget` tokens."""
        group: list[_Admitted] = []
        while (found := self._admitted(group, budget)) is not None:
            if found.job.over:
                continue
            group.append(found)
            if not (self._batch.prefills_together and self._may_join(found.job)):
                break
        return group

    @staticmethod
    def _may_join(job: Job) -> bool:
        """It takes one slot and becomes one decoding sequence, so the slots of a group have no gaps."""
        return len(job.open) == 1 and not job.alone and job.patch is None

    def _admitted(self, group: Sequence[_Admitted], budget: Tokens) -> _Admitted | None:
        """The next waiting job, if there is room for it beside those that decode and beside `group`."""
        while self._waiting and self._waiting[0][2].over:
            heapq.heappop(self._waiting)
        if not self._waiting:
            return None
        turn = self._waiting[0]
        job = turn[2]
        if group and not self._may_join(job):
            return None
        others = [choice.job for choice in self._live] + [member.job for member in group]
        slots = len(others) + max(1, len(job.open))
        if others and slots > self._max_batch:
            return None
        positions = max(self._reach(one) for one in (job, *others))
        # At least one token is computed: its logits are needed.
        known = self._prefixes.match(job.call.tenant, job.prompt[:-1]) if self._batch.shares_prefixes else []
        admitted = _Admitted(turn, sum(kv[0].shape[2] for kv in known))
        if group:
            together = (*group, admitted)
            width = max(len(member.rest) for member in together)
            if width * len(together) > budget:
                return None
            positions = max(positions, *(member.start + width for member in together))
        if others and not self._batch.can_hold(slots, positions):
            return None
        heapq.heappop(self._waiting)
        try:
            self._batch.hold(slots, positions)
            at = 0
            for kv in known:
                self._batch.load(len(others), at, kv)
                at += kv[0].shape[2]
            job.cached = admitted.start
            self._patch(job, len(others))
        except Exception as error:  # noqa: BLE001 out of memory, most likely
            self._fail([job], error)
        return admitted

    def _patch(self, job: Job, slot: int) -> None:
        """Put the chunks at hand into the job's slot, behind what is cached exactly."""
        if self._rotary is None:
            return
        todo = (
            range(job.cached, len(job.prompt)) if job.patch is None else job.patch.computed(job.cached, len(job.prompt))
        )
        job.provenance = provenance(job.patch, job.cached, job.prompt_tokens, todo)
        if job.patch is None or not job.provenance.pasted:
            return
        for chunk in job.patch.pasted:
            part = placed(chunk, job.cached, self._rotary)
            if part is not None:
                self._batch.load(slot, *part)
        if Blend.chooses(job.patch.policy):
            assert self._decoder is not None, "the engine was started with this policy"
            job.provenance = None
            job.blend = Blend(
                self._decoder, job.patch.policy, job.prompt, todo, job.cached, job.patch.pasted, job.patch.question
            )
            job.exact = job.cached
        else:
            job.todo = list(todo)
            job.exact = self._exact(job, todo)

    @staticmethod
    def _exact(job: Job, computed: Sequence[Tokens]) -> Tokens:
        """So many tokens from the beginning are cached or computed, and nothing before them was pasted."""
        return next(at for at, position in enumerate([*computed, -1], job.cached) if at != position)

    def _reach(self, job: Job) -> Tokens:
        """Positions the job may come to need."""
        more = 0 if job.prefill_only else job.call.sampling.max_tokens
        return min(len(job.prompt) + more, self._max_context)

    def _prefill_some(self, job: Job, budget: Tokens) -> Tokens:
        if job.over:
            return 0
        slot = len(self._live)
        if job.blend is not None:
            spent = self._blend_some(job, job.blend, slot, budget)
            logits = job.blend.logits
        elif job.todo is None:
            end = self._computed + budget if self._batch.chunks_prefill else len(job.prompt)
            ids = job.prompt[self._computed : end]
            logits = self._batch.prefill(slot, ids, self._computed)
            self._computed += len(ids)
            spent = len(ids)
        else:
            now, job.todo = job.todo[:budget], job.todo[budget:]
            ids = tuple(job.prompt[i] for i in now)
            logits = self._batch.prefill_at(slot, ids, now)
            self._computed = now[-1] + 1
            spent = len(ids)
        if self._computed == len(job.prompt):
            assert logits is not None, "they come with the last token"
            choices = self._begin(job, slot)
            if job.prefill_only:
                self._close(
                    job, None if job.encoded_from is None else self._encoded(slot, job.encoded_from, len(job.prompt))
                )
            else:
                self._advance(choices, logits.expand(len(choices), -1))
        return spent

    def _blend_some(self, job: Job, blend: Blend, slot: int, budget: Tokens) -> Tokens:
        spent = blend.advance(slot, budget)
        self._computed = len(job.prompt) - (blend.logits is None)
        if blend.logits is not None and blend.chosen is not None:
            job.provenance = provenance(job.patch, job.cached, job.prompt_tokens, blend.chosen)
            job.exact = self._exact(job, blend.chosen)
        return spent

    def _encoded(self, slot: int, start: Tokens, end: Tokens) -> torch.Tensor:
        """A stretch of a slot with its keys taken back to no position, as hf_reuse.Pasted has it."""
        assert self._rotary is not None, "only engines that reuse chunks are asked for them"
        (kv,) = self._batch.save(slot, start, end)
        kv[0::2] = self._rotary.unrotate(kv[0::2], start)
        return kv

    def _prefill_together(self, group: Sequence[_Admitted]) -> Tokens:
        """Compute the rest of every prompt of a group and choose the first tokens; what it cost."""
        slot = len(self._live)
        rests = [member.rest for member in group]
        try:
            logits = self._batch.prefill_together(slot, rests, [member.start for member in group])
        except Exception:  # noqa: BLE001 one of them, or their number, is too much: each is tried alone
            for member in group:
                member.job.alone = True
                heapq.heappush(self._waiting, member.turn)
            return 0
        choices: list[Choice] = []
        try:
            for i, member in enumerate(group):
                choices += self._begin(member.job, slot + i)
            self._advance(choices, logits)
        except Exception as error:  # noqa: BLE001 the slots behind the one that failed are not theirs any more
            self._fail([member.job for member in group], error)
        self._drop_ended()
        return max(map(len, rests)) * len(group)

    def _begin(self, job: Job, slot: int) -> list[Choice]:
        """The prompt is computed: remember it, and give every choice its slot."""
        self._remember(job.call.tenant, job.prompt[: job.exact], slot)
        count = len(job.open)
        for other in range(slot + 1, slot + count):
            self._batch.copy(slot, other, len(job.prompt))
        grammars = [job.grammar and job.grammar.fork() for _ in range(count)]
        choices = [
            Choice(job, i, grammar, self._tokenizer.decode, self._max_context) for i, grammar in enumerate(grammars)
        ]
        self._live += choices
        return choices

    def _remember(self, tenant: str, tokens: Sequence[int], slot: int) -> None:
        if self._batch.shares_prefixes:
            self._prefixes.insert(tenant, tokens, lambda start, end: self._batch.save(slot, start, end))

    # --- decode ----------------------------------------------------------------------------------------

    def _decode(self) -> None:
        live = list(self._live)
        try:
            logits = self._batch.decode([choice.ids[-1] for choice in live], [choice.length for choice in live])
        except Exception as error:  # noqa: BLE001 all of them were in this forward
            self._fail([choice.job for choice in live], error)
            return
        self._advance(live, logits)

    def _advance(self, choices: Sequence[Choice], logits: torch.Tensor) -> None:
        """Choose the next token of each."""
        for choice, row in zip(choices, logits, strict=True):
            if choice.job.first is not None and not choice.ids:
                choice.job.first(row)
        constrained = [(i, choice) for i, choice in enumerate(choices) if choice.grammar is not None]
        allowed = self._constrained(constrained, logits) if constrained else logits
        fine = torch.isfinite(allowed.amax(dim=-1)).tolist()
        tokens = sampling.choose(allowed, [choice.chooser for choice in choices])
        wanted = [choice.job.call.sampling.logprobs for choice in choices]
        tops = sampling.logprobs(logits, tokens, wanted)
        for choice, token, top, finite in zip(choices, tokens, tops, fine, strict=True):
            if choice.job.over:
                continue
            try:
                if not finite:
                    raise EngineError("the model's logits are not finite")
                self._take(choice, token, top)
            except Exception as error:  # noqa: BLE001 a grammar or a decoder that fails concerns its own call
                self._fail([choice.job], error)

    def _constrained(self, constrained: Sequence[tuple[int, Choice]], logits: torch.Tensor) -> torch.Tensor:
        assert self._grammars is not None, "a grammar came from them"
        masks = self._grammars.masks(len(constrained))
        for row, (_, choice) in enumerate(constrained):
            assert choice.grammar is not None
            try:
                choice.grammar.fill_mask(masks, row)
            except EngineError as error:
                self._fail([choice.job], error)
        allowed = logits.clone()
        sampling.forbid(allowed, [i for i, _ in constrained], masks)
        return allowed

    def _take(self, choice: Choice, token: int, top: sampling.TopLogprobs | None) -> None:
        """`token` is the choice's next; tell the caller, and end the choice if it is the last."""
        choice.ids.append(token)
        self.tokens_out += 1
        logprobs = () if top is None else (self._logprob(choice, token, top),)
        text = ""
        finish: Finish | None = None
        if token in self._eos and not choice.job.call.sampling.ignore_eos:
            finish = Finish.STOP
        else:
            text = choice.stream.push((token,))
            if choice.stream.stopped or (choice.grammar is not None and self._completes(choice.grammar, token)):
                finish = Finish.STOP
            elif len(choice.ids) >= choice.limit:
                finish = Finish.LENGTH
        if finish is None:
            self._output(choice.job, choice.index, (token,), text, logprobs)
            return
        text += choice.stream.finish()
        if choice.stream.stopped:
            finish = Finish.STOP
        self._end(choice, finish, text, (token,), logprobs)

    @staticmethod
    def _completes(grammar: Grammar, token: int) -> bool:
        grammar.take(token)
        return grammar.complete

    def _logprob(self, choice: Choice, token: int, top: sampling.TopLogprobs) -> Logprob:
        """`token` is the choice's last. Texts are as they read behind the one before: alone, word pieces keep their marks."""
        before = tuple(choice.ids[-2:-1])
        context = self._tokenizer.decode(before) if before else ""

        def text(i: int) -> str:
            both = self._tokenizer.decode((*before, i))
            return both[len(context) :] if both.startswith(context) else self._tokenizer.decode((i,))

        return Logprob(token, text(token), top.chosen, tuple((i, text(i), value) for i, value in top.top))

    # --- ends ------------------------------------------------------------------------------------------

    def _end(
        self,
        choice: Choice,
        finish: Finish,
        text: str,
        ids: tuple[int, ...] = (),
        logprobs: tuple[Logprob, ...] = (),
    ) -> None:
        if choice.index not in choice.job.open:
            return
        tokens = (*choice.job.prompt, *choice.ids[:-1])
        if choice.ids and finish is not Finish.ABORT:
            self._remember(choice.job.call.tenant, tokens[: choice.job.exact], self._live.index(choice))
        self._output(choice.job, choice.index, ids, text, logprobs, finish)

    def _output(
        self,
        job: Job,
        index: int,
        ids: tuple[int, ...] = (),
        text: str = "",
        logprobs: tuple[Logprob, ...] = (),
        finish: Finish | None = None,
    ) -> None:
        first = index == 0 and not job.announced
        job.announced = job.announced or first
        prompt, cached = (job.prompt_tokens, min(job.cached, job.prompt_tokens)) if first else (0, 0)
        known = job.provenance if first else None
        self.outbox.append((job, Output(index, ids, text, logprobs, finish, prompt, cached, known)))
        if finish is not None:
            job.open.discard(index)
            job.over = not job.open

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        for job in dict.fromkeys(jobs):
            if isinstance(error, EngineError):
                self._close(job, error)
            else:
                failure = EngineError(f"call '{job.call.id}': {type(error).__name__}: {error}")
                failure.__cause__ = error
                self._close(job, failure)

    def _close(self, job: Job, item: Exception | torch.Tensor | None) -> None:
        """The last word on a job."""
        if job.over:
            return
        job.over = True
        job.open.clear()
        self.outbox.append((job, item))

    def _drop_ended(self) -> None:
        """Close the gaps that ended choices left in the slots."""
        live, before = self._live, len(self._live)
        slot = 0
        while slot < len(live):
            if live[slot].index in live[slot].job.open:
                slot += 1
                continue
            last = live.pop()
            if slot < len(live):
                if last.index in last.job.open:
                    self._batch.move(len(live), slot, last.length)
                live[slot] = last
        if self._current is not None and self._current.over:
            self._current, self._computed = None, 0
        elif self._current is not None and len(live) < before and self._computed:
            length = self._computed if self._current.patch is None else len(self._current.prompt)
            self._batch.move(before, len(live), length)
