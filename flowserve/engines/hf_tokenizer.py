"""A Hugging Face tokenizer behind the Tokenizer contract. Thread-safe: works on the Rust objects, which are not changed.

There are two of them: the tokenizer as published, for template text, and one without its control tokens, for data. So
`<|im_end|>` or `<think>` in a user's text becomes the tokens of its characters. Control tokens are the special ones, those
that the chat template writes, and those that look like it; other added tokens (runs of blanks, HTML tags) are words.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from flowserve.errors import ConfigError

_ANCHOR = "\n"


class HFTokenizer:
    """Wraps a (fast) transformers tokenizer. `eos_ids` adds to the tokenizer's own end-of-sequence token."""

    def __init__(self, tokenizer: Any, eos_ids: Iterable[int] = ()) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, RustTokenizer):
            raise ConfigError(
                f"the model's tokenizer ({type(tokenizer).__name__}) is not a fast one; expected a tokenizer.json"
            )
        described = json.loads(backend.to_str())
        described |= {"truncation": None, "padding": None}
        self.json = json.dumps(described, ensure_ascii=False)
        """The tokenizer as published, serialised."""
        self._template = RustTokenizer.from_str(self.json)
        self._chat_template = _single_template(getattr(tokenizer, "chat_template", None))
        self._fingerprint = hashlib.sha256(f"{self.json}{self._chat_template}".encode()).hexdigest()
        words = [row for row in described["added_tokens"] if not self._controls(row["content"], row["special"])]
        self._data = RustTokenizer.from_str(
            json.dumps({**described, "added_tokens": words, "post_processor": None}, ensure_ascii=False)
        )
        self._special = {
            name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)
        }
        added = tokenizer.added_tokens_decoder
        self._control = tuple(t.content for t in added.values() if self._controls(t.content, t.special))
        unknown = getattr(tokenizer, "unk_token_id", None)
        self._hidden = frozenset(i for i, token in added.items() if token.special and i != unknown)
        own = tokenizer.eos_token_id
        all_eos: list[int] = [*([] if own is None else [own]), *eos_ids]
        self._eos_ids = tuple(dict.fromkeys(all_eos))
        self._anchor_ids = {id(tok): tok.encode(_ANCHOR, add_special_tokens=False).ids for tok in self._both}
        self._anchored = {id(tok): self._adds_a_space(tok) for tok in self._both}

    def encode(self, text: str) -> list[int]:
        ids = self._ids(self._data, text)
        return ids if self._hidden.isdisjoint(ids) else self._spelled(text)

    def encode_template(self, text: str) -> list[int]:
        return self._ids(self._template, text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._template.decode(ids, skip_special_tokens=True)

    @property
    def chat_template(self) -> str | None:
        return self._chat_template

    @property
    def special_tokens(self) -> dict[str, str]:
        return dict(self._special)

    @property
    def added_tokens(self) -> tuple[str, ...]:
        """Every string that `encode_template` recognises and `encode` does not."""
        return self._control

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return self._eos_ids

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def _controls(self, token: str, special: bool) -> bool:
        return special or token in (self._chat_template or "") or (token.startswith("<|") and token.endswith("|>"))

    @property
    def _both(self) -> tuple[RustTokenizer, RustTokenizer]:
        return self._template, self._data

    def _ids(self, tokenizer: RustTokenizer, text: str) -> list[int]:
        text = _valid(text)
        if self._anchored[id(tokenizer)] and text:
            # SentencePiece puts a space before the first word; a segment in mid-prompt must not get one.
            anchor = self._anchor_ids[id(tokenizer)]
            ids = tokenizer.encode(_ANCHOR + text, add_special_tokens=False).ids
            if ids[: len(anchor)] == anchor:
                return ids[len(anchor) :]
        return tokenizer.encode(text, add_special_tokens=False).ids

    def _adds_a_space(self, tokenizer: RustTokenizer) -> bool:
        anchor = self._anchor_ids[id(tokenizer)]
        with_anchor = tokenizer.encode(f"{_ANCHOR}a", add_special_tokens=False).ids
        return (
            with_anchor[: len(anchor)] == anchor
            and with_anchor[len(anchor) :] != tokenizer.encode("a", add_special_tokens=False).ids
        )

    def _spelled(self, text: str) -> list[int]:
        """For vocabularies whose plain pieces include special tokens: those are spelled out, letter by letter."""
        pattern = "|".join(re.escape(token) for token in sorted(self._control, key=len, reverse=True))
        ids: list[int] = []
        for i, part in enumerate(re.split(f"({pattern})", text)):
            for piece in part if i % 2 else [part]:
                ids += [token for token in self._ids(self._data, piece) if token not in self._hidden]
        return ids


def _single_template(template: Any) -> str | None:
    """A tokenizer may have several named templates; `default` is the one for chat."""
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else None


def _valid(text: str) -> str:
    """Lone surrogates are not text; Rust refuses them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text
