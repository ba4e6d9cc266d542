"""Calls in vLLM's words."""

import json
import math
from typing import Any

from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

from flowserve.engines.vllm.control import KEEP
from flowserve.engines.vllm.wire import Ask
from flowserve.errors import EngineError
from flowserve.ids import Tokens

PIECE_TOKENS = 16
"""A call that nobody reads along is told in pieces of so many."""
FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As in engines/grammar.py: free white space would let a weak model write blanks without end."""
LOWEST = 1 << 30
"""Priority of what is computed ahead of time."""
_SEEDS = 1 << 63


def sampling_params(
    ask: Ask,
    index: int,
    written: Tokens = 0,
    keep: str = "",
    pieces: Tokens | None = None,
    transfer: dict[str, Any] | None = None,
) -> SamplingParams:
    """Of choice `index`, which has `written` tokens already.

    keep: what its blocks are pinned as when it ends; "": they are not. pieces: tokens that are told at once.
    transfer: `kv_transfer_params`, for our connector.
    """
    return SamplingParams(
        temperature=ask.temperature,
        top_p=ask.top_p,
        top_k=ask.top_k,
        # vLLM takes -1 for no seed
        seed=None if ask.seed is None else (ask.seed + index + written) % _SEEDS,
        max_tokens=ask.max_tokens - written,
        logprobs=ask.logprobs,
        flat_logprobs=ask.logprobs is not None,
        ignore_eos=ask.ignore_eos,
        thinking_token_budget=ask.thinking_budget,
        structured_outputs=None if ask.constraint is None else structured(ask.constraint),
        extra_args=_extra(keep, transfer),
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        stream_interval=pieces,
        skip_clone=True,
    )


def prefill_params(transfer: dict[str, Any] | None = None) -> SamplingParams:
    """As little output as vLLM lets there be."""
    return SamplingParams(
        temperature=0.0,
        max_tokens=1,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args=_extra("", transfer),
    )


def _extra(keep: str, transfer: dict[str, Any] | None) -> dict[str, Any] | None:
    extra: dict[str, Any] = {KEEP: keep} if keep else {}
    return extra | ({"kv_transfer_params": transfer} if transfer else {}) or None


def structured(constraint: tuple[str, str]) -> StructuredOutputsParams:
    """constraint: (`schema`, `regex` or `grammar`; its text)."""
    kind, text = constraint
    if kind == "schema":
        return StructuredOutputsParams(json=json.dumps({**json.loads(text), "x-guidance": FORM}))
    return StructuredOutputsParams(regex=text) if kind == "regex" else StructuredOutputsParams(grammar=text)


def told_logprobs(flat: Any, count: int) -> list[tuple[float, list[tuple[int, float]]]]:
    """Per position of vLLM's FlatLogprobs its own and the `count` likeliest. What a constraint forbids is left out.

    Raises EngineError when one is not a number: the model's logits are not finite.
    """
    told = []
    for start, end in zip(flat.start_indices, flat.end_indices, strict=True):
        # The chosen token comes first, and again among the likeliest, except where vLLM has merged two outputs.
        values = dict(zip(flat.token_ids[start:end], flat.logprobs[start:end], strict=True))
        if any(map(math.isnan, values.values())):
            raise EngineError("the model's logits are not finite")
        ranked = sorted(values.items(), key=lambda pair: -pair[1])[:count]
        told.append((flat.logprobs[start], [pair for pair in ranked if pair[1] > -math.inf]))
    return told
