"""Helper frames: what goes in comes out; what is not ours is one named error."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.daemon.frames import LENGTH, Unpacker, observation_from_plain, observation_to_plain, pack
from edgeguard.errors import DecodeError
from edgeguard.model import NOBODY, Actor, Observation, Origin, Status

texts = st.text(max_size=20) | st.binary(max_size=20).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
values = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | texts | st.binary(max_size=8)
values |= st.lists(texts, max_size=3).map(tuple)
observations = st.builds(
    Observation,
    kind=st.sampled_from(["file", "listener"]),
    subject=texts,
    columns=st.dictionaries(st.text("abc", min_size=1, max_size=4), values, max_size=4),
    at=st.integers(0, 2**45),
    status=st.sampled_from(Status),
    origin=st.sampled_from(Origin),
    actor=st.sampled_from([NOBODY, Actor(pid=1, exe="/bin/sh", argv=("sh", "-c"), uid=0)]),
    note=texts,
)


@settings(max_examples=60, deadline=None)
@given(observations)
def test_an_observation_survives_the_pipe(observation: Observation) -> None:
    (message,) = Unpacker().feed(pack({"o": observation_to_plain(observation)}))
    assert observation_from_plain(message["o"]) == observation


@settings(max_examples=30, deadline=None)
@given(st.lists(st.dictionaries(st.text("abc", min_size=1), st.integers(0, 9)), max_size=4), st.integers(1, 7))
def test_chunks_do_not_matter(messages: list[dict[str, int]], step: int) -> None:
    data = b"".join(pack(message) for message in messages)
    unpacker, out = Unpacker(), []
    for at in range(0, len(data), step):
        out += unpacker.feed(data[at : at + step])
    assert out == messages


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_messages_or_our_error(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        Unpacker().feed(data)


def test_a_huge_frame_is_refused_before_it_is_read() -> None:
    with pytest.raises(DecodeError):
        Unpacker().feed(LENGTH.pack(2**31))
