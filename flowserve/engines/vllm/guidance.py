"""Compiles a constraint before vLLM does, because vLLM's guidance backend keeps errors to its log and then constrains
nothing, or lets nothing through."""

import asyncio
from collections import OrderedDict
from typing import Any

import llguidance
import llguidance.hf
import llguidance.numpy
from vllm.v1.structured_output.backend_guidance import serialize_guidance_grammar
from vllm.v1.structured_output.request import get_structured_output_key

from flowserve.engines.vllm.params import structured
from flowserve.errors import InputError

KNOWN = 128
"""Constraints whose verdict is remembered."""


class Compiler:
    """For the tokenizer and vocabulary of an AsyncLLM, as its EngineCore has them."""

    def __init__(self, llm: Any) -> None:
        tokenizer = llm.renderer.tokenizer
        self._vocabulary = max(llm.model_config.get_vocab_size(), len(tokenizer))
        self._tokenizer = llguidance.hf.from_tokenizer(tokenizer, self._vocabulary)
        self._verdicts: OrderedDict[tuple[str, str], str] = OrderedDict()

    async def check(self, constraint: tuple[str, str]) -> None:
        """Raises InputError for what cannot be compiled. Large schemas take tenths of a second, in a thread."""
        verdict = self._verdicts.get(constraint)
        if verdict is None:
            verdict = await asyncio.to_thread(self._verdict, constraint)
            self._verdicts[constraint] = verdict
            while len(self._verdicts) > KNOWN:
                self._verdicts.popitem(last=False)
        if verdict:
            raise InputError(f"the {constraint[0]} cannot be used for constrained decoding: {verdict}")

    def _verdict(self, constraint: tuple[str, str]) -> str:
        """What is wrong with it, or ""."""
        try:
            grammar = serialize_guidance_grammar(*get_structured_output_key(structured(constraint)))
        except (ValueError, KeyError, TypeError) as error:
            return str(error)
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        if not matcher.is_error():  # some limits show when it is used
            mask = llguidance.numpy.allocate_token_bitmask(1, self._vocabulary)
            llguidance.numpy.fill_next_token_bitmask(matcher, mask)
        return matcher.get_error() if matcher.is_error() else ""
