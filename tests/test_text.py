"""TextStream against the plain definition: decode everything, then search it for stop strings."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetero.serve.http.text import TextStream

# Few letters, so that stop strings begin, fail and overlap all the time.
letters = st.text("abé\U0001f600", max_size=30)
stops = st.lists(st.text("abé", min_size=1, max_size=5), max_size=4)


def run(pieces: list[bytes], stop: list[str]) -> tuple[str, bool]:
    stream = TextStream(stop)
    out = ""
    for piece in pieces:
        out += stream.push(piece)
        if stream.stopped:
            return out, True
    out += stream.finish()
    return out, stream.stopped


def cut(raw: bytes, at: list[int]) -> list[bytes]:
    edges = sorted({0, len(raw), *(place % (len(raw) + 1) for place in at)})
    return [raw[start:end] for start, end in pairwise(edges)]


def expected(text: str, stop: list[str]) -> tuple[str, bool]:
    matches = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    return (text[: min(matches)[1]], True) if matches else (text, False)


@given(letters, stops, st.lists(st.integers(0, 200)))
def test_any_split_gives_the_text_before_the_first_stop_string(
    text: str, stop: list[str], at: list[int]
) -> None:
    assert run(cut(text.encode(), at), stop) == expected(text, stop)


@given(st.binary(max_size=40), stops, st.lists(st.integers(0, 200)))
def test_any_split_of_any_bytes_gives_what_decoding_them_at_once_gives(
    raw: bytes, stop: list[str], at: list[int]
) -> None:
    assert run(cut(raw, at), stop) == expected(raw.decode("utf-8", "replace"), stop)


@given(letters, stops)
def test_text_comes_out_as_soon_as_no_stop_string_can_begin_with_it(
    text: str, stop: list[str]
) -> None:
    stream = TextStream(stop)
    out = ""
    for position, char in enumerate(text, 1):
        out += stream.push(char.encode())
        if stream.stopped:
            break
        seen = text[:position]
        held = max((n for s in stop for n in range(1, len(s)) if seen.endswith(s[:n])), default=0)
        assert out == seen[: position - held]
        assert stream.num_held == held
        assert stream.holds_text == (held > 0)


def test_code_point_waits_for_its_last_byte() -> None:
    stream = TextStream()
    assert [stream.push(bytes([byte])) for byte in "é\U0001f600".encode()] == [
        *("", "é"),
        *("", "", "", "\U0001f600"),
    ]


def test_invalid_byte_is_replaced_as_soon_as_it_is_certain() -> None:
    stream = TextStream()
    assert stream.push(b"\xe2\x82") == ""
    assert stream.holds_text
    assert stream.push(b"A") == "\ufffdA"
    assert stream.push(b"\xff") == "\ufffd"


def test_half_a_code_point_at_the_end_is_replaced() -> None:
    stream = TextStream()
    assert stream.push(b"a\xf0\x9f") == "a"
    assert stream.finish() == "\ufffd"


def test_stop_string_across_pieces_never_shows() -> None:
    stream = TextStream(["<end>"])
    assert [stream.push(piece) for piece in (b"one <", b"en", b"tity <e", b"nd> two")] == [
        "one ",
        "",
        "<entity ",
        "",
    ]
    assert stream.stopped


def test_held_beginning_comes_out_at_the_end() -> None:
    stream = TextStream(["<end>"])
    assert stream.push(b"a <en") == "a "
    assert stream.finish() == "<en"
    assert not stream.stopped


def test_stop_string_can_be_completed_by_the_flush() -> None:
    stream = TextStream(["\ufffd"])
    assert stream.push(b"a\xf0") == "a"
    assert stream.finish() == ""
    assert stream.stopped


@pytest.mark.parametrize("pieces", [[b"abc"], [b"a", b"b", b"c"]])
def test_stop_string_that_is_complete_first_wins(pieces: list[bytes]) -> None:
    stream = TextStream(["abc", "b"])
    out = ""
    for piece in pieces:
        if not stream.stopped:
            out += stream.push(piece)
    assert out == "a"
