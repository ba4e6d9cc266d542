"""One trial: a fork of a model call that is told to answer now, and how sure it is of what it answers.

The fork is a call of its own at the same engine, so its prompt is in the prefix cache there: the call's prompt and output, token
by token as they were, and the trial's text behind them. Nothing of it comes back into the call.
"""

from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from math import exp, log, prod

from flowserve.engines.base import Call, Engine, Finish, Origin, Sampling, Segment
from flowserve.engines.detok import TextStream
from flowserve.graphs.plan import ExitSpec
from flowserve.ids import Tokens
from flowserve.reasoning.extraction import hesitates
from flowserve.reasoning.forms import FORMS, Read

MOST_TOKENS: Tokens = 20
"""Of a trial, as in DEER (arXiv 2504.15895)."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What a trial came to."""

    answer: str
    """Empty: none was whole within `MOST_TOKENS`."""
    said: str
    """As the fork wrote it, up to the answer's end."""
    confidence: float
    closed: bool
    hesitates: bool = False
    """A word of doubt stands in it."""


NOTHING = Answered("", "", 0.0, closed=False)
"""No answer that can be used."""


def fork_of(call: Call, engine: Engine, written: Sequence[int], exit: ExitSpec, number: int) -> Call:
    """The `number`-th trial of `call`, which has written `written`. It goes before what else is as urgent as the call: it is
    short, and worth the more the sooner it answers."""
    return replace(
        call,
        id=f"{call.id}/trial-{number}",
        segments=continued(call, engine, written, exit.trial),
        sampling=Sampling(max_tokens=MOST_TOKENS, logprobs=0),
        priority=call.priority - 1,
        session=None,
        keep_s=0.0,
        resumed=(),
        stream=True,
        messages=None,
        meta=call.meta | {"node": f"{call.meta['node']}/trial"},
    )


def continued(call: Call, engine: Engine, written: Sequence[int], cue: str) -> tuple[Segment, ...]:
    """A prompt: that of `call`, what it has written, and the text `cue`."""
    tokenizer = engine.tokenizer
    output = Segment(tuple(written), Origin.GENERATED, tokenizer.decode(written))
    return (*call.segments, output, Segment(tuple(tokenizer.encode_template(cue)), Origin.TEMPLATE, cue))


async def ask(fork: Call, engine: Engine, exit: ExitSpec, told: Callable[[Tokens], None]) -> Answered:
    """Run a trial until its answer is whole. `told` hears of every token that it costs."""
    stream = TextStream(engine.tokenizer.decode)
    stream.push(fork.segments[-1].ids)  # some tokenizers write a space only between words
    text, starts, chances = "", [], []
    read: Read | None = None
    closed = False
    async with aclosing(engine.generate(fork)) as outputs:  # type: ignore[type-var]
        async for output in outputs:
            told(output.count)
            for token, logprob in zip(output.token_ids, output.logprobs, strict=True):
                starts.append(len(text))
                chances.append(exp(min(0.0, logprob.logprob)))
                text += stream.push((token,))
            ended = output.finish is Finish.STOP
            text += stream.finish() if ended else ""
            read = read or FORMS[exit.answer](text, ended)
            closed = _is_closed(text, exit)
            if read is not None and closed:
                break
    if read is None or not read.answer:
        return NOTHING
    own = [chance for start, chance in zip(starts, chances, strict=True) if start < read.end]
    confidence = mean(own[exit.skip :] or own, exit.mean)
    return Answered(read.answer, text[: read.end], confidence, closed, hesitates(text))


def _is_closed(text: str, exit: ExitSpec) -> bool:
    return not exit.must_close or exit.think is None or exit.think[1] in text


def mean(chances: Sequence[float], kind: str) -> float:
    """Of probabilities, `arithmetic` or `geometric`."""
    if not chances:
        return 0.0
    if kind == "arithmetic":
        return sum(chances) / len(chances)
    return float(exp(sum(map(log, chances)) / len(chances))) if prod(chances) > 0 else 0.0
