"""One generation that looks things up as it goes, as a transaction: `step` takes an event and returns commands.

Step i of the generation is a few tokens written behind a passage, which a query made of the text before it finds. A *guess* is
the passage that a local cache has for that query. Steps may be written behind guesses; `Verify` asks the index for all of them at
once. The steps before the first wrong guess are committed, that one and all behind it are rolled back, and it is written again
behind the passage that the index found. So what is committed is what a run without guesses writes:

    committed <= verified, written <= looked         (numbers of steps; committed = min(verified, written))

Read with: `stride.py`. A command and the events that answer it carry the number of roll-backs before it; an event from before the
last one is about text that is gone, and is ignored.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from flowserve.core.speculation.stride import Stride
from flowserve.errors import InternalError
from flowserve.ids import Seconds, Tokens

Row = int
"""A passage, as its index numbers it."""
NOTHING: Row = -1
"""The index finds nothing: the step is written without a passage."""


class Mode(StrEnum):
    """What may happen before a passage is known to be right."""

    SEQUENTIAL = "sequential"
    """Nothing: every step waits for its search."""
    SPECULATIVE = "speculative"
    """Steps are written behind guesses, then verified; nothing is written meanwhile."""
    OVERLAPPED = "overlapped"
    """Steps are written while earlier ones are verified."""


# --- events --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Looked:
    """The query of a step is made, and the cache was asked."""

    life: int
    guess: Row | None
    """None: the cache has nothing, or was not asked."""
    seconds: Seconds


@dataclass(frozen=True, slots=True)
class Written:
    """A step is written."""

    life: int
    tokens: Tokens
    ended: bool
    """The generation ends with it."""
    seconds: Seconds


@dataclass(frozen=True, slots=True)
class Found:
    """The index has answered a Verify: the passage of each step, in order."""

    rows: tuple[Row, ...]
    seconds: Seconds


Event = Looked | Written | Found

# --- commands ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Look:
    """Make the query of `step`, and ask the cache if `guess`."""

    life: int
    step: int
    guess: bool


@dataclass(frozen=True, slots=True)
class Write:
    """Write `step` behind passage `row`."""

    life: int
    step: int
    row: Row


@dataclass(frozen=True, slots=True)
class Verify:
    """Search the index for the queries of `num` steps from `first` on, all at once."""

    first: int
    num: int


@dataclass(frozen=True, slots=True)
class Commit:
    """Steps before `upto` are what a run without guesses writes: they may be seen."""

    upto: int


@dataclass(frozen=True, slots=True)
class RollBack:
    """Forget `step` and what is behind it, `tokens` in all; stop what is being looked up and written for it."""

    step: int
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class End:
    """Everything is committed."""


Command = Look | Write | Verify | Commit | RollBack | End

# --- the transaction -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Speculation:
    """Where one generation stands; only `begin` and `step` change it."""

    mode: Mode
    stride: Stride
    life: int = 0
    """Roll-backs so far."""
    rows: list[Row | None] = field(default_factory=list)
    """By step: its passage or guess; None: nobody knows yet. As many as have been looked up."""
    tokens: list[Tokens] = field(default_factory=list)
    """By step: how many were written. As many as have been written."""
    verified: int = 0
    """Steps whose passages the index has found."""
    committed: int = 0
    ends: bool = False
    """The last written step ended the generation."""
    over: bool = False
    looking: bool = False
    writing: bool = False
    verifying: int = 0
    """Steps that the index is being asked about; 0: none."""
    looked_s: Seconds = 0.0
    """What the last look took: part of the step that is written next."""
    num_guessed: int = 0
    """Guesses that the index has judged."""
    num_right: int = 0
    num_wasted: Tokens = 0
    """Tokens of steps that were rolled back, once written whole."""


def begin(state: Speculation) -> list[Command]:
    """The first commands."""
    return _next(state)


def step(state: Speculation, event: Event) -> list[Command]:
    """The commands that `event` leads to."""
    out: list[Command] = []
    match event:
        case Looked(life, guess, seconds):
            if life == state.life:
                state.looking, state.looked_s = False, seconds
                state.rows.append(guess)
        case Written(life, tokens, ended, seconds):
            if life == state.life:
                state.writing, state.ends = False, ended
                state.tokens.append(tokens)
                state.stride.wrote(seconds + state.looked_s)
        case Found(rows, seconds):
            out += _found(state, rows, seconds)
    return out + _next(state)


def _found(state: Speculation, rows: tuple[Row, ...], seconds: Seconds) -> list[Command]:
    """Judge the guesses up to the first wrong one; queries behind it were made of text that is gone."""
    if len(rows) != state.verifying:
        raise InternalError(f"{state.verifying} steps were to be verified, {len(rows)} were", repr(state))
    first, guessed, right = state.verified, 0, 0
    out: list[Command] = []
    for place, row in enumerate(rows, first):
        guess = state.rows[place]
        guessed += guess is not None
        state.rows[place] = row
        state.verified = place + 1
        if guess is not None and guess != row:
            out.append(_roll_back(state, place))
            break
        right += guess is not None
    state.verifying = 0
    state.num_guessed += guessed
    state.num_right += right
    state.stride.verified(right, guessed, len(rows), seconds)
    return out


def _roll_back(state: Speculation, place: int) -> Command:
    lost = sum(state.tokens[place:])
    state.life += 1
    state.num_wasted += lost
    state.ends = state.looking = state.writing = False
    del state.rows[place + 1 :], state.tokens[place:]
    return RollBack(place, lost)


def _next(state: Speculation) -> list[Command]:
    """What can be done now: show, look up, verify, write."""
    out: list[Command] = []
    written, looked = len(state.tokens), len(state.rows)
    if (whole := min(written, state.verified)) > state.committed:
        state.committed = whole
        out.append(Commit(whole))
    if state.ends and state.committed == written and not state.over:
        state.over = True
        out.append(End())
    if state.over:
        return out
    stride = 0 if state.mode is Mode.SEQUENTIAL else state.stride.next()
    if not state.ends and not state.looking and looked == written and _may_look(state, looked, stride):
        state.looking = True
        out.append(Look(state.life, looked, guess=state.mode is not Mode.SEQUENTIAL))
    if not state.verifying and (num := _due(state, stride)):
        state.verifying = num
        out.append(Verify(state.verified, num))
    if not state.writing and written < looked and _may_write(state, written, stride):
        row = state.rows[written]
        assert row is not None
        state.writing = True
        out.append(Write(state.life, written, row))
    return out


def _may_look(state: Speculation, looked: int, stride: int) -> bool:
    """A guess more? Overlapped, a second round may be guessed while the first is verified."""
    if state.mode is Mode.OVERLAPPED:
        return looked - state.verified < max(2 * stride, 1)
    return not state.verifying and looked - state.verified < max(stride, 1)


def _may_write(state: Speculation, written: int, stride: int) -> bool:
    """The passage of the step that is next is known, or guessed and to be risked."""
    if written < state.verified:
        return True
    if state.rows[written] is None or stride == 0:
        return False
    return state.mode is Mode.OVERLAPPED or not state.verifying


def _due(state: Speculation, stride: int) -> int:
    """Steps to verify now. Overlapped, as soon as their queries are known; else when they are written, as far as they may be."""
    written, looked = len(state.tokens), len(state.rows)
    pending = looked - state.verified
    if not pending:
        return 0
    waits = written < looked and (state.rows[-1] is None or stride == 0)
    full = pending >= stride and (state.mode is Mode.OVERLAPPED or written == looked)
    return pending if waits or full or state.ends else 0
