"""A stream's payloads to outputs of a call: what token_reading.py and text_reading.py share.

A success is believed only when the server has said it all: a reason for every choice, then [DONE]. Until then the
output that ends the call is held back. Where our own stop strings end the last choice we hang up, and nothing more is
needed.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flowserve.engines.base import Call, Finish, Logprob, Output
from flowserve.engines.openai import failures
from flowserve.errors import EngineError, EngineLost
from flowserve.ids import Tokens

DONE = b"[DONE]"
REASONS = {"stop": Finish.STOP, "length": Finish.LENGTH}


@dataclass(frozen=True, slots=True)
class Delta:
    """What one payload adds to a choice."""

    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[Logprob, ...] = ()
    untold: Tokens = 0


class Reader(ABC):
    """One call's answer while it comes. `where` names the server in errors."""

    def __init__(self, call: Call, where: str, prompt_tokens: Tokens) -> None:
        self._call = call
        self._where = where
        self._prompt_tokens = prompt_tokens
        self._told_prompt = False
        self.asked = 1 if call.sampling.temperature == 0 else call.sampling.n
        """Choices that the server shall write. Greedy ones are all alike: one is written and told n times."""
        self._open = set(range(self.asked))
        self._writing = set(self._open)
        """Choices that the server has not ended."""
        self._begun: set[int] = set()
        self._held: Output | None = None
        self._count: Tokens = 0
        self._usage: Mapping[str, Any] = {}
        self.complete = False
        """The server has said its last word."""

    @property
    def over(self) -> bool:
        """Every choice has its finish, or the server has nothing more to say."""
        return self.complete or (not self._open and self._held is None)

    @property
    def written_out(self) -> bool:
        """The server has ended every choice."""
        return not self._writing

    @property
    def running(self) -> int:
        """Choices that have begun and have not ended."""
        return len(self._open & self._begun)

    @property
    def waiting(self) -> int:
        """Choices that have not begun."""
        return len(self._open - self._begun)

    def read(self, payloads: Iterable[bytes]) -> Iterator[Output]:
        """What they add, until it is over. Raises RequestError and EngineError for what they report or how they are
        wrong."""
        for payload in payloads:
            if self.over:
                return
            yield from self._take(payload)

    def abort(self) -> list[Output]:
        """The outputs that end what has not ended."""
        held, self._held = self._held, None
        if held is not None:
            return self._copied([replace(held, finish=Finish.ABORT)])
        ends = [self._output(index, Delta(text=self._rest(index)), Finish.ABORT) for index in sorted(self._open)]
        return self._copied(ends)

    def cut(self) -> EngineError:
        """The error for a stream that ends here."""
        missing = f"{len(self._writing)} choices without a finish_reason" if self._writing else "no [DONE]"
        return EngineLost(f"call '{self._call.id}': {self._where}: protocol: the stream ended early ({missing})")

    def _take(self, payload: bytes) -> list[Output]:
        if payload == DONE:
            return self._copied(self._finish())
        chunk = self._parse(payload)
        if chunk.get("error") is not None:
            raise failures.refused(failures.told(500, chunk), self._where, self._call)
        usage = chunk.get("usage")
        if isinstance(usage, Mapping):
            self._usage = usage
        outputs = [self._choice(choice) for choice in self._choices(chunk)]
        return self._copied([output for output in outputs if output is not None])

    def _copied(self, outputs: list[Output]) -> list[Output]:
        others = range(self.asked, self._call.sampling.n)
        if not others:
            return outputs
        return [
            output if index == 0 else replace(output, index=index, prompt_tokens=0, cached_tokens=0)
            for output in outputs
            for index in (0, *others)
        ]

    @abstractmethod
    def _delta(self, index: int, choice: Mapping[str, Any]) -> Delta:
        """What the server's `choice` holds."""

    @abstractmethod
    def _rest(self, index: int) -> str:
        """Text held back of a choice that ends here."""

    @abstractmethod
    def _stopped(self, index: int) -> bool:
        """A stop string of the call has come; asked after `_delta` and after `_rest`."""

    def _choice(self, choice: Mapping[str, Any]) -> Output | None:
        index = self._index(choice)
        finish = self._reason(choice.get("finish_reason"))
        if index not in self._open:
            self._written(index, finish)
            return None  # our stop string came first; what the server still sends of it is not wanted
        delta = self._delta(index, choice)
        self._written(index, finish)
        if self._stopped(index):
            finish = Finish.STOP
        if finish is None:
            empty = not (delta.token_ids or delta.text or delta.untold)
            return None if empty else self._output(index, delta, None)
        rest = self._rest(index)
        if self._stopped(index):
            finish = Finish.STOP
        output = self._output(index, replace(delta, text=delta.text + rest), finish)
        if self._open or self._writing:
            return output
        self._held = output
        return None

    def _written(self, index: int, finish: Finish | None) -> None:
        if index not in self._writing:
            raise self._wrong(f"expected nothing of choice {index} behind its finish_reason; got more")
        if finish is not None:
            self._writing.discard(index)

    def _finish(self) -> list[Output]:
        if self._writing:
            raise self.cut()
        self.complete = True
        held, self._held = self._held, None
        if held is None:
            return []
        self._count += (more := self._not_counted())
        return [replace(held, cached_tokens=self._cached(), untold=held.untold + more)]

    def _cached(self) -> Tokens:
        details = self._usage.get("prompt_tokens_details")
        return natural(details.get("cached_tokens")) if isinstance(details, Mapping) else 0

    def _not_counted(self) -> Tokens:
        """Tokens of the answer that only `usage` knows of."""
        return 0

    def _output(self, index: int, delta: Delta, finish: Finish | None) -> Output:
        self._begun.add(index)
        self._count += len(delta.token_ids) + delta.untold
        if finish is not None:
            self._open.discard(index)
        first = index == 0 and not self._told_prompt
        self._told_prompt = self._told_prompt or first
        return Output(
            index=index,
            token_ids=delta.token_ids,
            text=delta.text,
            logprobs=delta.logprobs,
            finish=finish,
            prompt_tokens=self._prompt_tokens if first else 0,
            untold=delta.untold,
        )

    def _parse(self, payload: bytes) -> Mapping[str, Any]:
        try:
            chunk = json.loads(payload.decode())
        except (ValueError, RecursionError) as error:
            raise self._wrong(f"expected JSON in UTF-8; got {type(error).__name__}") from None
        if not isinstance(chunk, dict):
            raise self._wrong(f"expected an object; got {type(chunk).__name__}")
        return chunk

    def _choices(self, chunk: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        choices = chunk.get("choices") or ()
        if not isinstance(choices, list | tuple) or not all(isinstance(choice, dict) for choice in choices):
            raise self._wrong("expected `choices` to be a list of objects")
        return choices

    def _index(self, choice: Mapping[str, Any]) -> int:
        index = choice.get("index", 0)
        if type(index) is not int or not 0 <= index < self.asked:
            raise self._wrong(f"expected choices 0 to {self.asked - 1}; got another index")
        return index

    def _reason(self, reason: Any) -> Finish | None:
        if reason is None:
            return None
        known = REASONS.get(reason) if isinstance(reason, str) else None
        if known is not None:
            return known
        name = reason if isinstance(reason, str) and reason.isidentifier() else type(reason).__name__
        said = f"call '{self._call.id}': {self._where} ended it with finish_reason '{name[:40]}'"
        if name in ("abort", "error"):  # nobody here asked for it, so its engine has died or is being closed
            raise EngineLost(said)
        raise EngineError(f"{said}; expected stop or length")

    def _wrong(self, problem: str) -> EngineError:
        return failures.protocol(f"call '{self._call.id}': {self._where}", problem)


def natural(value: Any) -> int:
    """A count out of JSON; 0 for what is none."""
    return value if type(value) is int and value > 0 else 0
