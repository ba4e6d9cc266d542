"""A tokenizer without a vocabulary file: words become checksums, anything else UTF-8 bytes.

Reversible, the same in every process, and close to real token counts. For the scripted engine and for tests.
"""

import re
from collections.abc import Sequence
from zlib import crc32

BOS, END = "<s>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
SPECIAL = (BOS, END, *ROLES)
FIRST_SPECIAL = 256
FIRST_WORD = 1024
MAX_WORDS = 1 << 20
"""Words remembered for decoding; later ones are written in bytes."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}{{ call['function'] | tojson }}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_PIECES = re.compile(r" ?\w+| ?[^\w\s]+|\s+")


class WordTokenizer:
    """See the module. `chat_template` may use the `special` tokens; the first is bos, the second eos. None: no template."""

    def __init__(self, chat_template: str | None = CHAT_TEMPLATE, special: Sequence[str] = SPECIAL) -> None:
        self._chat_template = chat_template
        self._special = tuple(special)
        self._pattern = re.compile("|".join(re.escape(token) for token in sorted(special, key=len, reverse=True)))
        self._words: dict[int, str] = {}

    def encode(self, text: str) -> list[int]:
        return [i for piece in _PIECES.findall(text) for i in self._piece(piece)]

    def encode_template(self, text: str) -> list[int]:
        ids: list[int] = []
        at = 0
        for match in self._pattern.finditer(text):
            ids += self.encode(text[at : match.start()])
            ids.append(FIRST_SPECIAL + self._special.index(match.group()))
            at = match.end()
        return ids + self.encode(text[at:])

    def decode(self, ids: Sequence[int]) -> str:
        pieces: list[bytes] = []
        for i in ids:
            if i < FIRST_SPECIAL:
                pieces.append(bytes((i,)))
            elif i >= FIRST_WORD:
                pieces.append(self._words.get(i, "\N{REPLACEMENT CHARACTER}").encode())
        return b"".join(pieces).decode(errors="replace")

    @property
    def chat_template(self) -> str | None:
        return self._chat_template

    @property
    def special_tokens(self) -> dict[str, str]:
        return {"bos_token": self._special[0], "eos_token": self._special[1]}

    @property
    def added_tokens(self) -> tuple[str, ...]:
        """Every string that `encode_template` recognises."""
        return self._special

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return (FIRST_SPECIAL + 1,)

    @property
    def fingerprint(self) -> str:
        return f"words {self._special!r} {self._chat_template!r}"

    def _piece(self, piece: str) -> list[int]:
        try:
            data = piece.encode()
        except UnicodeEncodeError:  # a lone surrogate: not text; the same as decoding with errors="replace"
            data = piece.encode(errors="replace")
            piece = data.decode()
        i = FIRST_WORD + (crc32(data) & 0x3FFFFFFF)
        known = self._words.get(i)
        if known is None and len(self._words) < MAX_WORDS:
            known = self._words.setdefault(i, piece)
        return [i] if known == piece else list(data)
