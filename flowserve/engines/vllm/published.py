"""The model's tokenizer in the server process, from what its host sent: transformers, and torch with it, need not be
imported."""

from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer

from flowserve.engines.hf_tokenizer import HFTokenizer
from flowserve.engines.vllm.wire import TokenizerParts


@dataclass(frozen=True, slots=True)
class _Published:
    """What HFTokenizer reads of a transformers tokenizer, under the same names."""

    backend_tokenizer: RustTokenizer
    chat_template: Any
    special_tokens_map: dict[str, str]
    added_tokens_decoder: dict[int, AddedToken]
    unk_token_id: int | None
    eos_token_id: int | None


def tokenizer_of(parts: TokenizerParts) -> HFTokenizer:
    """Gives the same ids, texts and fingerprint as the tokenizer that the parts were taken from."""
    published = _Published(
        RustTokenizer.from_str(parts.json),
        parts.chat_template,
        parts.special,
        {i: AddedToken(text, special=special) for i, text, special in parts.added},
        parts.unknown,
        parts.eos,
    )
    return HFTokenizer(published, parts.eos_ids)
