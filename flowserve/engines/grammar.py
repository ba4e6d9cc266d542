"""Output that satisfies a JSON Schema, a regular expression or a grammar, token by token, by llguidance.

A `Grammar` belongs to one choice: it fills a mask of allowed tokens and is told what was chosen.
"""

import json
from collections import OrderedDict
from threading import Lock
from typing import Any

import llguidance
import llguidance.numpy
import numpy as np

from flowserve.engines.base import Call
from flowserve.errors import EngineError, InputError, Unsupported

CACHED_SCHEMAS = 128
FORM: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON as models and json.dumps write it. Free white space would let a weak model write blanks without end."""


class Grammar:
    """The state of one choice."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def fork(self) -> "Grammar":
        """An independent copy at the same point."""
        return Grammar(self._matcher.deep_copy())

    def fill_mask(self, masks: np.ndarray, row: int) -> None:
        """Set the bits of the tokens that may come next."""
        llguidance.numpy.fill_next_token_bitmask(self._matcher, masks, row)
        self._check()

    def take(self, token: int) -> None:
        """`token` was chosen."""
        self._matcher.consume_token(token)
        self._check()

    @property
    def complete(self) -> bool:
        """Nothing may follow but the end."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise EngineError(f"constrained decoding failed: {self._matcher.get_error()}")


class Grammars:
    """Compiles schemas for one tokenizer. Thread-safe; compiling may take a tenth of a second for large schemas."""

    def __init__(self, tokenizer_json: str, vocabulary: int, eos_ids: tuple[int, ...]) -> None:
        """Raises Unsupported when llguidance cannot tell which bytes the tokenizer's tokens stand for."""
        try:
            self._tokenizer = llguidance.LLTokenizer(
                tokenizer_json, n_vocab=vocabulary, eos_token=list(eos_ids) or None
            )
        except Exception as error:
            raise Unsupported(
                f"this model's tokenizer cannot be constrained to a schema ({str(error)[:60]} ...): it is not known which "
                "bytes its tokens stand for. Let the prompt ask for the form and validate, or use a model with a byte-level or "
                "SentencePiece tokenizer"
            ) from error
        self._vocabulary = vocabulary
        self._compiled: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self._lock = Lock()

    def compile(self, call: Call) -> Grammar | None:
        """What constrains `call`, at its start; None: nothing. Raises InputError for what is wrong or has unsupported
        parts."""
        key = _source(call)
        if key is None:
            return None
        with self._lock:
            matcher = self._compiled.get(key)
        if matcher is None:
            matcher = self._matcher(*key)
            with self._lock:
                self._compiled[key] = matcher
                while len(self._compiled) > CACHED_SCHEMAS:
                    self._compiled.popitem(last=False)
        return Grammar(matcher.deep_copy())

    def masks(self, rows: int) -> np.ndarray:
        """Empty masks for `rows` choices."""
        return np.zeros(llguidance.numpy.get_bitmask_shape(rows, self._vocabulary), dtype=np.int32)

    def _matcher(self, kind: str, source: str) -> Any:
        try:
            if kind == "schema":
                grammar = llguidance.LLMatcher.grammar_from_json_schema(source, overrides=FORM)
            else:
                grammar = getattr(llguidance.LLMatcher, _MAKERS[kind])(source)
        except ValueError as error:
            raise InputError(f"the {kind} cannot be used for constrained decoding: {error}") from error
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise InputError(f"the {kind} cannot be used for constrained decoding: {matcher.get_error()}")
        return matcher


_MAKERS = {"regex": "grammar_from_regex", "grammar": "grammar_from_lark"}


def _source(call: Call) -> tuple[str, str] | None:
    """(`schema`, `regex` or `grammar`; its text)."""
    if call.schema is not None:
        try:
            return "schema", json.dumps(call.schema, sort_keys=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"the schema is not JSON: {error}") from error
    for kind in _MAKERS:
        text = getattr(call, kind)
        if text is not None:
            return kind, text
    return None
