"""Approximate blocks stay out of the prefix cache of exact requests."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence

from flowserve.engines.vllm.connector.metadata import Paste
from flowserve.ids import Tokens


def recipe(paste: Paste) -> bytes:
    """Names everything by which a blended prompt differs from an exact one with the same tokens."""
    chunks, policy = [dataclasses.asdict(chunk) for chunk in paste.chunks], dataclasses.asdict(paste.policy)
    return json.dumps([chunks, policy], sort_keys=True).encode()


def clean_tokens(paste: Paste, block_tokens: Tokens) -> Tokens:
    """How many tokens at the start of a prompt lie in blocks that nothing is pasted into."""
    return paste.chunks[0].start // block_tokens * block_tokens


def salted(hashes: Sequence[bytes], paste: Paste, block_tokens: Tokens) -> list[bytes]:
    """Block hashes, from the first block with a pasted token on under names that only this recipe has. vLLM chains the
    hashes of later blocks from the last one, so generated tokens are apart too."""
    first = clean_tokens(paste, block_tokens) // block_tokens
    name = recipe(paste)
    return [*hashes[:first], *(hashlib.sha256(name + one).digest() for one in hashes[first:])]
