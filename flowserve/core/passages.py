"""Passages whose KV an engine is thought to have, so that it can paste them wherever they stand (ADR 37).

Only calls that allow it bring passages, and only engines that paste them remember any: for all others nothing here does
anything. What an engine has is guessed from the calls that went there, the least recently sent passage is forgotten first. An
engine that has not kept one computes it: the guess was dear, the answer is no other.
"""

from flowserve.core.engine_state import Engine
from flowserve.core.events import Passage
from flowserve.ids import Tokens


def sent(engine: Engine, passages: tuple[Passage, ...]) -> None:
    """A call with these passages goes there."""
    if engine.pasted and passages:
        engine.passages.add([passage.number for passage in passages])


def spared(engine: Engine, passages: tuple[Passage, ...], held: Tokens) -> Tokens:
    """Tokens behind the first `held` ones, which it holds exactly, that it does not compute."""
    if not engine.pasted:
        return 0
    behind = sum(
        min(passage.tokens, max(0, passage.start + passage.tokens - held))
        for passage in passages
        if passage.number in engine.passages
    )
    return int(behind * engine.pasted)
