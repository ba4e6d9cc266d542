"""Events do not depend on how their bytes are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowserve.engines.openai.sse import SSE
from flowserve.errors import EngineError

ends = st.sampled_from(["\n", "\r\n", "\r"])
texts = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)
fields = st.one_of(
    texts.map(lambda text: f"data: {text}"),
    texts.map(lambda text: f"data:{text}"),
    texts.map(lambda text: f": {text}"),
    texts.map(lambda text: f"event: {text}"),
    st.sampled_from(["data", "id: 7", "retry: 10", "datax: no", ""]),
)
streams = st.lists(st.tuples(fields, ends), max_size=30).map(lambda rows: "".join(a + b for a, b in rows).encode())


def slow(data: bytes) -> list[bytes]:
    """The specification, line by line, over the whole stream."""
    lines = data.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n")
    events: list[bytes] = []
    held: list[str] = []
    for line in lines:
        if line == "":
            events += ["\n".join(held).encode()] if held else []
            held = []
        elif line == "data" or line.startswith("data:"):
            held.append(line[5:].removeprefix(" "))
    return events + (["\n".join(held).encode()] if held else [])


def parse(pieces: list[bytes]) -> list[bytes]:
    parser = SSE()
    return [payload for piece in pieces for payload in parser.feed(piece)] + parser.end()


@given(streams, st.data())
def test_the_cuts_make_no_difference(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)))))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert parse(pieces) == parse([stream]) == parse([bytes([byte]) for byte in stream]) == slow(stream)


@pytest.mark.parametrize(
    ("stream", "payloads"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data:a\r\n\r\ndata:  b\r\n\r\n", [b"a", b" b"]),
        (b": keep-alive\n\ndata: a\n\n", [b"a"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"event: x\nid: 1\ndata: a\nretry: 5\n\n", [b"a"]),
        (b"data: [DONE]", [b"[DONE]"]),
        (b"\n\n\n\n", []),
    ],
)
def test_examples(stream: bytes, payloads: list[bytes]) -> None:
    assert parse([stream]) == payloads


def test_a_long_event_is_refused_before_it_is_whole() -> None:
    parser = SSE(limit=100)
    parser.feed(b"data: " + b"x" * 90)
    with pytest.raises(EngineError, match="at most 100 bytes"):
        parser.feed(b"x" * 10)
