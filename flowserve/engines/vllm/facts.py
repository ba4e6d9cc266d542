"""What a started engine can do, found out from it: by its configuration as vLLM settled it, and by trying."""

import asyncio
import importlib.metadata
from collections.abc import Sequence
from typing import Any

from transformers import AutoTokenizer
from vllm.inputs.engine import tokens_input
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

from flowserve.engines.vllm.wire import Ready, Start, TokenizerParts
from flowserve.errors import ConfigError

TRIALS: dict[str, dict[str, Any]] = {
    "schema": {"json": '{"type": "boolean"}'},
    "regex": {"regex": "[ab]"},
    "grammar": {"grammar": 'start: "a"'},
}
"""By kind of constraint: a small one."""


async def ready(llm: Any, start: Start, operations: Sequence[str]) -> Ready:
    """operations: of our scheduler in it. Raises ConfigError for a model whose tokenizer cannot be used."""
    config = llm.vllm_config
    cache, scheduler, model = config.cache_config, config.scheduler_config, config.model_config
    tokenizer = await asyncio.to_thread(_tokenizer_parts, model)
    events = config.kv_events_config
    memory = getattr(cache, "kv_cache_size_tokens", None) or cache.num_gpu_blocks * cache.block_size
    device = str(config.device_config.device_type)
    return Ready(
        tokenizer=tokenizer,
        version=importlib.metadata.version(importlib.metadata.packages_distributions()["vllm"][0]),
        device=device,
        max_context=model.max_model_len,
        kv_tokens=memory - cache.block_size,  # one block is vLLM's null block
        block_tokens=cache.block_size,
        window=scheduler.max_num_seqs,
        batch_tokens=scheduler.max_num_batched_tokens,
        constraints=await _constraints(llm),
        prefix_reuse=bool(cache.enable_prefix_caching),
        priority=scheduler.policy == "priority",
        thinking=config.reasoning_config is not None and config.reasoning_config.enabled,
        kv_connector=config.kv_transfer_config is not None,
        # Every data-parallel rank has an endpoint of its own; one is listened to.
        kv_events=start.kv_events and bool(events and events.enable_kv_cache_events) and _ranks(config) == 1,
        sleep=bool(model.enable_sleep_mode) and device != "cpu",
        # A stop among accepted draft tokens would leave KV that is not of the session's tokens.
        sessions=config.speculative_config is None and int(start.session_share * scheduler.max_num_seqs) > 0,
        controls=list(operations),
    )


def _ranks(config: Any) -> int:
    return int(config.parallel_config.data_parallel_size)


async def _constraints(llm: Any) -> list[str]:
    """Whether a backend can constrain a tokenizer turns out when the first grammar is compiled."""
    worked = await asyncio.gather(*(_works(llm, kind) for kind in TRIALS))
    return [kind for kind, works in zip(TRIALS, worked, strict=True) if works]


async def _works(llm: Any, kind: str) -> bool:
    try:
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            structured_outputs=StructuredOutputsParams(**TRIALS[kind]),
        )
        finish = ""
        async for output in llm.generate(tokens_input([0]), params, f"trial-{kind}"):
            finish = output.outputs[0].finish_reason or ""
    except Exception:  # noqa: BLE001 a backend says no in many ways
        return False
    return finish in ("stop", "length")


def _tokenizer_parts(model: Any) -> TokenizerParts:
    """The tokenizer as published, which is not always the one that vLLM uses inside."""
    try:
        published = AutoTokenizer.from_pretrained(
            model.tokenizer, revision=model.tokenizer_revision, trust_remote_code=model.trust_remote_code
        )
        text = published.backend_tokenizer.to_str()
    except (OSError, ValueError, ImportError, KeyError, AttributeError) as error:
        raise ConfigError(f"model '{model.model}': expected a fast tokenizer (tokenizer.json); {error}") from error
    eos = model.try_get_generation_config().get("eos_token_id")
    return TokenizerParts(
        json=text,
        chat_template=published.chat_template,
        special={name: str(token) for name, token in published.special_tokens_map.items() if isinstance(token, str)},
        added=[(i, token.content, token.special) for i, token in published.added_tokens_decoder.items()],
        unknown=published.unk_token_id,
        eos=published.eos_token_id,
        eos_ids=[] if eos is None else [eos] if isinstance(eos, int) else list(eos),
    )
