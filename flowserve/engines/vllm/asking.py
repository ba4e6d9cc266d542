"""A call, checked, in the words of the wire."""

import json
from collections.abc import Collection, Iterator, Sequence

from flowserve.engines.base import Call, Capabilities, Origin
from flowserve.engines.vllm.wire import Ask
from flowserve.errors import InputError
from flowserve.ids import Tokens

GREEDY = 1e-5
"""Temperatures below are 0 to vLLM."""


def copies_of(call: Call) -> int:
    """How many of its choices are the same: vLLM refuses several greedy ones, which would all be."""
    return call.sampling.n if call.sampling.temperature < GREEDY else 1


def ask_of(
    key: int,
    call: Call,
    prompt: Sequence[int],
    capabilities: Capabilities,
    loras: Collection[str],
    pasting: Collection[str] = (),
) -> Ask:
    """prompt: the call's, with what another engine has written. pasting: classes of reuse that the engine has a policy for.

    Raises InputError for a schema that is no JSON.
    """
    sampling = call.sampling
    pastes = str(call.reuse) in pasting and call.model not in loras
    written = len(call.resumed)
    return Ask(
        key=key,
        prompt=list(prompt),
        max_tokens=min(sampling.max_tokens - written, capabilities.max_context - len(prompt)),
        temperature=0.0 if sampling.temperature < GREEDY else sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=None if sampling.seed is None else sampling.seed + written,
        n=sampling.n // copies_of(call),
        logprobs=sampling.logprobs,
        ignore_eos=sampling.ignore_eos,
        thinking_budget=sampling.thinking_budget,
        priority=call.priority if capabilities.priority else 0,
        tenant=call.tenant,
        lora=call.model if call.model in loras else "",
        constraint=_constraint(call),
        session=call.session or "",
        keep_s=call.keep_s,
        whole=not call.stream,
        stops=bool(sampling.stop),
        reuse=str(call.reuse) if pastes else "",
        chunks=list(_chunks(call)) if pastes else [],
    )


def _chunks(call: Call) -> Iterator[tuple[Tokens, Tokens, str, str]]:
    at = 0
    for segment in call.segments:
        if segment.origin is Origin.CHUNK and segment.ids:
            yield at, at + len(segment.ids), segment.document, segment.version
        at += len(segment.ids)


def _constraint(call: Call) -> tuple[str, str] | None:
    """(its kind, its text)."""
    if call.schema is not None:
        try:
            return "schema", json.dumps(call.schema)
        except (TypeError, ValueError) as error:
            raise InputError(f"call '{call.id}': the schema is not JSON: {error}") from error
    for kind, text in (("regex", call.regex), ("grammar", call.grammar)):
        if text is not None:
            return kind, text
    return None
