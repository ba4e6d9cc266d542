"""Approximate blocks stay out of the prefix cache of exact requests."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence

from flowserve.engines.vllm.connector.metadata import Paste


def recipe(paste: Paste) -> bytes:
    """Names everything by which a blended prompt differs from an exact one with the same tokens."""
    return json.dumps(dataclasses.asdict(paste), sort_keys=True).encode()


def salted(hashes: Sequence[bytes], paste: Paste, block_tokens: int) -> list[bytes]:
    """Block hashes, from the first block with a pasted token on under names that only this recipe has. vLLM chains the
    hashes of later blocks from the last one, so generated tokens are apart too."""
    first = paste.chunks[0].start // block_tokens
    name = recipe(paste)
    return [*hashes[:first], *(hashlib.sha256(name + one).digest() for one in hashes[first:])]
