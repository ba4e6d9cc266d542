"""Any transformers causal LM in this process: the embedded engine, and the reference for the others.

Batching across calls is ours (flowserve/engines/stepper.py over batch.py and slots.py), on transformers' models and cache
classes. Transformers' own continuous batching (5.23: ContinuousBatchingManager, generate_batch with paged sdpa) was
tried first. It cancels and streams, but its per-request settings are temperature, top-k and top-p alone: no seed of
a request's own, no mask of a grammar, no logprobs of alternatives, no sharing bounded by tenant. On a CPU it sizes its
memory from a device it does not have and took ten seconds to start for a model of two million parameters.

One thread loads the model and computes. The event loop only puts calls into its inbox and gets outputs back
once per step. Read next: stepper.py.
"""

import asyncio
import logging
import queue
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flowserve.cachestore.divergence import LogProbs
from flowserve.cachestore.gatefiles import Gates
from flowserve.cachestore.geometry import Geometry
from flowserve.cachestore.keys import Identity
from flowserve.cachestore.policies import Policy
from flowserve.cachestore.segments import Quality
from flowserve.cachestore.settings import ReuseSettings
from flowserve.cachestore.store import Store, told
from flowserve.engines.base import (
    BaseEngine,
    Call,
    Capabilities,
    EngineStatus,
    Origin,
    Output,
    Sampling,
    Segment,
    Tokenizer,
)
from flowserve.engines.batch import SlotBatch
from flowserve.engines.blend.blend import Blend
from flowserve.engines.blend.decoder import Decoder
from flowserve.engines.checks import check_call
from flowserve.engines.chunk_store import CODEC, StoredChunks, open_chunks
from flowserve.engines.grammar import Grammars
from flowserve.engines.hf_load import Source, load_model
from flowserve.engines.hf_reuse import ChunkReuse, Counts, Finder, Rotary, geometry_of, layers_of
from flowserve.engines.hf_shadows import ReuseShadows
from flowserve.engines.hf_tokenizer import HFTokenizer
from flowserve.engines.job import Job
from flowserve.engines.model_identity import identity_of
from flowserve.engines.prefix import PrefixCache
from flowserve.engines.stepper import Stepper
from flowserve.errors import ConfigError, EngineError, EngineLost, InputError, StoreError, Unsupported
from flowserve.ids import Bytes, EngineId, Seconds, Tokens

log = logging.getLogger("flowserve.engines")

MAKING = 32
"""Chunks that may wait to be encoded for the store; others are when they are missed again."""
IDLE_RELEASE_S: Seconds = 30.0
"""After so long without work the KV table is given back."""
REPORT_S: Seconds = 0.1
"""The listener hears of steps at most this often."""


class HFEngine(BaseEngine):
    """See the module.

    model: folder or hub name. name: what it is called in `capabilities.models`; the last part of `model` by default.
    device: "auto" is a GPU when there is one. dtype: a torch dtype's name; "auto" is float32 on a CPU, else the
        checkpoint's own.
    max_batch: sequences decoded at once. max_context: lowers the model's own limit. prefill_chunk: prompt tokens
        computed between two decode steps; None is 256 on a CPU, 2048 on a GPU.
    threads: of torch on the CPU; None is one for small models, torch's own choice for others.
    kv_bytes: bound of the KV of live sequences. prefix_bytes: of remembered prefixes; 0 turns their reuse off.
    reuse: of a store of its own, or where else KV of chunks is found and what may be pasted; None: chunks are reused as
        prefixes only.
    `Call.timeout_s` is the runtime's to keep: it aborts.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        name: str | None = None,
        id: str = "hf",
        device: str = "auto",
        dtype: str = "auto",
        max_batch: int = 32,
        max_context: Tokens | None = None,
        prefill_chunk: Tokens | None = None,
        threads: int | None = None,
        kv_bytes: Bytes = 4 << 30,
        prefix_bytes: Bytes = 256 << 20,
        revision: str | None = None,
        trust_remote_code: bool = False,
        quiet: bool = False,
        reuse: ReuseSettings | ChunkReuse | None = None,
    ) -> None:
        for field, value in (("max_batch", max_batch), ("prefill_chunk", prefill_chunk or 1), ("kv_bytes", kv_bytes)):
            if value < 1:
                raise ConfigError(f"HFEngine {field}: expected at least 1, got {value}")
        self._name = name or Path(model).name
        self._id = EngineId(id)
        self._max_batch = max_batch
        self._max_context = max_context
        self._prefill_chunk = prefill_chunk
        self._kv_bytes = kv_bytes
        self._prefix_bytes = prefix_bytes
        self._source = Source(str(model), device, dtype, threads, revision, trust_remote_code)
        self._quiet = quiet
        self._reuse = reuse
        self._making: dict[bytes, asyncio.Task[None]] = {}
        """Chunks of which records are being made, by key."""
        self._chunks: StoredChunks | None = None
        self._finder: Finder | None = None
        self._shadows: ReuseShadows | None = None
        self._capabilities = Capabilities(models=(self._name,))
        self._tokenizer: HFTokenizer | None = None
        self._vocabulary = 0
        self._grammars: Grammars | None = None
        self._no_grammars = ""
        self._stepper: Stepper | None = None
        self._inbox: queue.SimpleQueue[tuple[str, Job | None]] = queue.SimpleQueue()
        self._probes = 0
        self._encodes = 0
        self._jobs: dict[str, Job] = {}
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready: asyncio.Future[None] | None = None
        self._down = "not started"
        self._reported = 0.0
        self._flushed = 0.0

    @property
    def id(self) -> EngineId:
        return self._id

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise EngineLost(f"engine '{self._id}' is {self._down}: it has no tokenizer")
        return self._tokenizer

    async def start(self) -> None:
        if self._thread is not None:
            await self.close()
        self._inbox = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._ready = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name=f"flowserve-{self._id}", daemon=True)
        self._thread.start()
        await self._ready
        self._down = ""
        self._tell_listener()

    async def generate(self, call: Call) -> AsyncIterator[Output]:
        inbox: asyncio.Queue[Any] = asyncio.Queue()
        job = await self._job(call, inbox, prefill_only=False)
        if job.call.sampling.n > self._max_batch:
            raise InputError(
                f"call '{call.id}': n: expected at most {self._max_batch} (the batch); got {call.sampling.n}"
            )
        blended = self._watched(job)
        self._begin(job)
        remaining = call.sampling.n
        try:
            while remaining:
                item = await inbox.get()
                if isinstance(item, BaseException):
                    remaining = 0
                    raise item
                assert isinstance(item, Output), "only a prefill is answered with None"
                remaining -= item.finish is not None
                if blended and item.provenance is not None:
                    self._compare(job, blended[0])
                yield item
        finally:
            self._end(job, early=remaining > 0)

    async def prefill(self, call: Call) -> None:
        """Returns when the prompt's KV is remembered."""
        if not self._capabilities.prefix_reuse:
            return
        inbox: asyncio.Queue[Any] = asyncio.Queue()
        job = await self._job(call, inbox, prefill_only=True)
        self._begin(job)
        done = False
        try:
            item = await inbox.get()
            done = True
            if item is not None:
                raise item
        finally:
            self._end(job, early=not done)

    async def encode(self, ids: Sequence[int], sink: Sequence[int] = (), tenant: str = "") -> torch.Tensor:
        """KV of a chunk that was read alone, behind `sink`, whose own is dropped: (layers' keys and values, kv_heads, tokens,
        head_dim), keys un-rotated. Waits behind all calls that were there before."""
        if self._finder is None:
            raise Unsupported(f"engine '{self._id}' reuses no chunks: give it `reuse`")
        self._encodes += 1
        call = Call(f"encode-{self._encodes}", (Segment((*sink, *ids), Origin.CHUNK),), priority=1 << 30, tenant=tenant)
        inbox: asyncio.Queue[Any] = asyncio.Queue()
        job = await self._job(call, inbox, prefill_only=True, encoded_from=len(sink))
        self._begin(job)
        done = False
        try:
            item = await inbox.get()
            done = True
        finally:
            self._end(job, early=not done)
        if not isinstance(item, torch.Tensor):
            raise item or EngineError(f"call '{call.id}': aborted")
        return item

    async def first_logprobs(self, call: Call) -> torch.Tensor:
        """Log-probabilities of the first token of `call`, (vocabulary,) in float64: all of them, for measurements."""
        return await self._first(call, remembered=True)

    async def _first(self, call: Call, remembered: bool) -> torch.Tensor:
        inbox: asyncio.Queue[Any] = asyncio.Queue()
        sampling = Sampling(max_tokens=len(call.resumed) + 1)
        job = await self._job(replace(call, sampling=sampling), inbox, prefill_only=False)
        if not remembered:
            job.exact = 0
        found = _noted(job)
        self._begin(job)
        done = False
        try:
            item = await inbox.get()
            done = True
        finally:
            self._end(job, early=not done)
        if isinstance(item, BaseException):
            raise item
        if not found:
            raise EngineError(f"call '{call.id}': aborted")
        return found[0]

    def paste_by(self, policy: Policy) -> None:
        """From the next call on, those of class `fast` are blended by `policy`, without a gate: for measurements. Raises ConfigError
        where the engine was not started for one, or cannot run the policy."""
        if self._finder is None or not self._is_measuring:
            raise ConfigError(
                f"engine '{self._id}': expected ReuseSettings with measuring=True, to paste without a gate"
            )
        reuse = replace(self._finder.reuse, policies={Quality.FAST: policy})
        reuse.check(self._finder.geometry.layers)
        self._finder.reuse = reuse

    @property
    def _is_measuring(self) -> bool:
        return isinstance(self._reuse, ReuseSettings) and self._reuse.measuring

    async def settled(self) -> None:
        """Until what was missed so far is in the store, or was refused by it, and no shadow is at work."""
        while self._making:
            await asyncio.gather(*self._making.values())
        if self._shadows is not None:
            await self._shadows.settled()
        if self._chunks is not None:
            await asyncio.to_thread(self._chunks.store.flush)

    @property
    def identity(self) -> Identity | None:
        """Whose KV its chunks are: what gates are about; None: it has no store of its own, or is not up."""
        return None if self._chunks is None else self._chunks.identity

    @property
    def store(self) -> Store | None:
        """Its store of chunks; None: it has none of its own, or is not up."""
        return None if self._chunks is None else self._chunks.store

    @property
    def chunk_counts(self) -> Counts | None:
        """Of chunks looked for; None: this engine reuses none."""
        return None if self._finder is None else self._finder.counts

    async def abort(self, call_id: str) -> None:
        job = self._jobs.get(call_id)
        if job is not None:
            self._inbox.put(("abort", job))

    async def probe(self) -> None:
        """One token of a one-token prompt, through the same batch."""
        if self._down:
            raise EngineLost(f"engine '{self._id}' is {self._down}")
        ids = self.tokenizer.eos_ids[:1] or (0,)
        self._probes += 1
        call = Call(f"probe-{self._probes}", (Segment(ids, Origin.TEMPLATE),), Sampling(1), priority=-(1 << 30))
        async for _ in self.generate(call):
            pass

    def status(self) -> EngineStatus:
        stepper = self._stepper
        if stepper is None or self._down:
            return EngineStatus(up=False, reason=self._down)
        return EngineStatus(
            up=True,
            running=stepper.running,
            waiting=stepper.waiting + self._inbox.qsize(),
            window=self._max_batch,
            kv_used=stepper.kv_used,
            tokens_out_total=stepper.tokens_out,
            steps=stepper.steps,
            records=self._records(),
        )

    async def close(self) -> None:
        thread = self._thread
        if thread is None:
            return
        self._down = self._down or "closed"
        self._inbox.put(("close", None))
        await asyncio.to_thread(thread.join)
        self._thread = None
        await asyncio.gather(*self._making.values(), return_exceptions=True)
        if self._shadows is not None:
            await self._shadows.settled()
        if self._chunks is not None:
            await asyncio.to_thread(self._chunks.store.close)
            self._chunks = None
        self._tell_listener()

    def __repr__(self) -> str:
        return f"<HFEngine {self._id} {self._name} {self._down or 'up'} calls={sorted(self._jobs)}>"

    # --- on the event loop -------------------------------------------------------------------------------

    async def _job(
        self, call: Call, inbox: "asyncio.Queue[Any]", prefill_only: bool, encoded_from: Tokens | None = None
    ) -> Job:
        """The call, checked, with its grammar compiled and its chunks at hand."""
        if self._down:
            raise EngineLost(f"engine '{self._id}' is {self._down}")
        prompt = call.prompt_ids + call.resumed
        if call.constrained and self._grammars is None:
            what = "schema" if call.schema is not None else "regex" if call.regex is not None else "grammar"
            raise Unsupported(f"engine '{self._id}' lacks the capability '{what}': {self._no_grammars}")
        check_call(call, self._capabilities, len(prompt))
        wrong = next((i for i in prompt if not 0 <= i < self._vocabulary), None)
        if wrong is not None:
            raise InputError(
                f"call '{call.id}': token id {wrong} is outside the model's vocabulary ({self._vocabulary})"
            )
        grammar = None
        if call.constrained and self._grammars is not None and not prefill_only:
            grammar = await asyncio.to_thread(self._grammars.compile, call)
            if self._down:
                raise EngineLost(f"engine '{self._id}' is {self._down}")
        patch = None
        if self._finder is not None and call.reuse in self._finder.reuse.policies and not prefill_only:
            patch = await asyncio.to_thread(self._finder.find, call)
            if self._down:
                raise EngineLost(f"engine '{self._id}' is {self._down}")
        return Job(
            call,
            prompt,
            inbox.put_nowait,
            grammar=grammar,
            prefill_only=prefill_only,
            encoded_from=encoded_from,
            patch=patch,
        )

    def _watched(self, job: Job) -> list[torch.Tensor]:
        """Where the first token's log-probabilities will stand, if this job is to be compared with full prefill; else it stays empty."""
        due = job.patch is not None and self._shadows is not None and self._shadows.is_due(job.call)
        return _noted(job) if due else []

    def _compare(self, job: Job, blended: torch.Tensor) -> None:
        """Its first token is drawn; compare, if anything was pasted for it."""
        if self._shadows is not None and job.patch is not None and job.provenance is not None and job.provenance.pasted:
            self._shadows.begin(job.call, job.patch.policy, blended.numpy())

    async def _unseen(self, call: Call) -> LogProbs:
        return (await self._first(call, remembered=False)).numpy()

    def _turn_off(self, policy: Policy) -> None:
        """Nothing is pasted by it from now on; calls whose chunks are in their slots go on."""
        assert self._finder is not None, "it has pasted"
        self._finder.turn_off(policy)
        self._capabilities = replace(self._capabilities, chunk_reuse=self._finder.names)
        self._tell_listener()

    def _records(self) -> tuple[tuple[str, str, int], ...]:
        stored = () if self._chunks is None else told(self._chunks.store.figures)
        shown = {} if self._shadows is None else self._shadows.verdicts
        return (*stored, *((what, detail, count) for (what, detail), count in sorted(shown.items())))

    def _miss(self, chunks: StoredChunks, tenant: str, segment: Segment) -> None:
        """A chunk had no record: make one, if the store wants it and not too many wait to be made."""
        key = chunks.key(tenant, segment.ids)
        if (
            not self._down
            and key not in self._making
            and len(self._making) < MAKING
            and chunks.wants(tenant, segment.ids)
        ):
            task = self._making[key] = asyncio.ensure_future(self._make(chunks, tenant, segment))
            task.add_done_callback(lambda _: self._making.pop(key, None))

    async def _make(self, chunks: StoredChunks, tenant: str, segment: Segment) -> None:
        began = time.monotonic()
        try:
            kv = await self.encode(segment.ids, chunks.recipe.sink, tenant)
        except EngineError as error:
            log.warning("engine '%s': a chunk of %d tokens was not encoded: %s", self._id, len(segment.ids), error)
            return
        seconds = time.monotonic() - began
        await asyncio.to_thread(lambda: chunks.keep(tenant, segment, layers_of(kv), seconds))

    def _begin(self, job: Job) -> None:
        if job.call.id in self._jobs:
            raise InputError(f"call '{job.call.id}' is running already; ids are unique")
        self._jobs[job.call.id] = job
        self._inbox.put(("add", job))

    def _end(self, job: Job, early: bool) -> None:
        del self._jobs[job.call.id]
        if early:
            self._inbox.put(("abort", job))

    def _deliver(self, items: list[tuple[Job, Any]]) -> None:
        for job, item in items:
            job.deliver(item)
        now = time.monotonic()
        if now - self._reported >= REPORT_S:
            self._reported = now
            self._tell_listener()

    def _tell_listener(self) -> None:
        if self._listener is not None:
            self._listener(self, None)

    def _loaded(self, error: Exception | None) -> None:
        assert self._ready is not None
        if self._ready.done():
            return
        if error is None:
            self._ready.set_result(None)
        else:
            self._down = f"not loaded: {error}"
            self._ready.set_exception(error)

    def _lost(self, error: BaseException) -> None:
        self._down = f"lost: {type(error).__name__}: {error}"
        for job in self._jobs.values():
            job.deliver(EngineLost(f"engine '{self._id}' is {self._down}"))
        self._tell_listener()

    # --- in the thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                self._stepper = self._load()
                self._tell(self._loaded, None)
                self._work(self._stepper)
        except (ConfigError, EngineError) as error:
            self._tell(self._loaded, error)
        except BaseException as error:  # noqa: BLE001 the thread's last act is to say why it ends
            failure = EngineError(f"engine '{self._id}': {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._tell(self._loaded, failure)
            self._tell(self._lost, error)

    def _work(self, stepper: Stepper) -> None:
        while self._drain(stepper):
            if not stepper.idle:
                try:
                    stepper.step()
                except Exception as error:  # noqa: BLE001 the step's own bookkeeping failed: nobody's state is sure
                    stepper.fail_all(EngineError(f"engine '{self._id}': step failed: {type(error).__name__}: {error}"))
            self._flush(stepper)

    def _drain(self, stepper: Stepper) -> bool:
        """Take in what came; waits when there is nothing to compute. False: close."""
        while True:
            try:
                act, job = self._inbox.get(block=stepper.idle and not stepper.outbox, timeout=IDLE_RELEASE_S)
            except queue.Empty:
                if stepper.idle and not stepper.outbox:
                    stepper.release()
                    continue
                return True
            if job is None:
                stepper.abort_all()
                self._close_inbox(stepper)
                return False
            if act == "add":
                stepper.add(job)
            else:
                stepper.abort(job)

    def _close_inbox(self, stepper: Stepper) -> None:
        """Whatever came after the close is aborted too."""
        while not self._inbox.empty():
            act, job = self._inbox.get()
            if act == "add" and job is not None:
                stepper.add(job)
        stepper.abort_all()
        self._flush(stepper)

    def _flush(self, stepper: Stepper) -> None:
        """One crossing to the event loop per step, if it has something to say or nothing was said for a while."""
        now = time.monotonic()
        if stepper.outbox or (not stepper.idle and now - self._flushed >= REPORT_S):
            self._flushed = now
            items, stepper.outbox = stepper.outbox, []
            self._tell(self._deliver, items)

    def _tell(self, function: Any, argument: Any) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, argument)
        except RuntimeError:  # the loop is closed: nobody listens any more
            self._inbox.put(("close", None))

    def _opened(
        self, reuse: ReuseSettings | ChunkReuse, model: Any, tokenizer: Tokenizer, geometry: Geometry
    ) -> ChunkReuse:
        """What may be pasted and from where; with settings, a store is opened."""
        if isinstance(reuse, ChunkReuse):
            return reuse
        try:
            chunks, policies = open_chunks(reuse, identity_of(model, tokenizer), tokenizer, geometry)
        except StoreError as error:
            raise ConfigError(f"engine '{self._id}': reuse: {error}") from error
        self._chunks = chunks
        self._shadows = None
        if policies and reuse.gates is not None and not reuse.measuring:
            self._shadows = ReuseShadows(
                Gates(reuse.gates), reuse.shadow_share, chunks.identity, CODEC, self._unseen, self._turn_off
            )
        missing = partial(self._tell_miss, chunks)
        return ChunkReuse(chunks, policies, reuse.least_chunk_tokens, missing)

    def _tell_miss(self, chunks: StoredChunks, tenant: str, segment: Segment) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._miss, chunks, tenant, segment)

    def _load(self) -> Stepper:
        began = time.monotonic()
        self._say(f"loading model {self._name} ...")
        loaded = load_model(self._source, self._kv_bytes)
        if loaded.remark:
            self._say(loaded.remark)
        self._tokenizer, self._vocabulary = loaded.tokenizer, loaded.vocabulary
        self._grammars, self._no_grammars = loaded.grammars, loaded.no_grammars
        rotary, decoder = None, None
        if self._reuse is not None:
            if not loaded.batch.shares_prefixes:
                raise ConfigError(
                    f"reuse of chunks: model '{self._name}' cannot have it ({loaded.remark}). Turn reuse off."
                )
            rotary = Rotary(loaded.model)
            geometry = geometry_of(loaded.model)
            reuse = self._opened(self._reuse, loaded.model, loaded.tokenizer, geometry)
            reuse.check(geometry.layers)
            self._finder = Finder(reuse, geometry)
            if self._is_measuring or any(Blend.chooses(policy) for policy in reuse.policies.values()):
                assert isinstance(loaded.batch, SlotBatch), "it shares prefixes"
                decoder = Decoder(loaded.model, loaded.batch)
        context = min(loaded.max_context, self._max_context or sys.maxsize)
        self._capabilities = Capabilities(
            models=(self._name,),
            max_context=context,
            priority=True,
            logprobs=True,
            schema=loaded.grammars is not None,
            regex=loaded.grammars is not None,
            grammar=loaded.grammars is not None,
            prefix_reuse=loaded.batch.shares_prefixes and self._prefix_bytes > 0,
            chunk_reuse=self._finder.names if self._finder else (),
            deterministic_seed=True,
            restart=True,
        )
        seconds = time.monotonic() - began
        self._say(f"model {self._name}: {loaded.parameters / 1e6:.1f}M parameters on {loaded.device}, {seconds:.1f} s")
        return Stepper(
            loaded.batch,
            loaded.tokenizer,
            PrefixCache(self._prefix_bytes),
            loaded.grammars,
            max_batch=self._max_batch,
            max_context=context,
            prefill_chunk=self._prefill_chunk or (256 if loaded.device == "cpu" else 2048),
            rotary=rotary,
            decoder=decoder,
        )

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(text, file=sys.stderr, flush=True)


def _noted(job: Job) -> list[torch.Tensor]:
    """Where the log-probabilities of the job's first token will stand, (vocabulary,) in float64."""
    found: list[torch.Tensor] = []
    job.first = lambda logits: found.append(torch.log_softmax(logits.double(), dim=-1).cpu())
    return found
