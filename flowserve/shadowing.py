"""Which requests are computed a second time, the dear way, to see what the cheap way did to them."""

from hashlib import sha256
from typing import Final

BEHIND: Final = 1 << 20
"""Added to the priority of a call that is computed unseen: behind what clients wait for."""


def is_shadowed(request: str, share: float) -> bool:
    """Is this request among the share? Decided by its id alone, so that every replica and every replay decides alike."""
    return int.from_bytes(sha256(request.encode()).digest()[:8], "big") < share * 2**64
