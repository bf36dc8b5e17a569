"""What is read of a broker's messages: subjects and headers that anybody may have written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.collector import jetstream, work

DEVICE = bytes(range(16))


def test_a_device_has_its_subject_and_nothing_else_gets_into_one():
    assert jetstream.subject(DEVICE.hex()) == "eg.up.000102030405060708090a0b0c0d0e0f"
    assert jetstream.device_of(jetstream.subject(DEVICE.hex())) == DEVICE
    for wrong in ("", "*", ">", "00.01", DEVICE.hex()[:-2], DEVICE.hex() + "00", " " * 32, DEVICE.hex()[:-1] + " "):
        with pytest.raises(ValueError):  # noqa: PT011 - whichever says so
            jetstream.subject(wrong)


def test_a_worker_answers_fronts_only():
    good = "eg.re.0123456789abcdef.17"
    assert jetstream.reply_of({jetstream.REPLY: good}) == good
    for wrong in (
        "",
        "$JS.API.STREAM.DELETE.EDGEGUARD",
        "eg.up.00",
        "eg.re.a.>",
        "eg.re.a.1.2",
        "eg.re.*.1",
        good + "\n",
    ):
        assert jetstream.reply_of({jetstream.REPLY: wrong}) is None
    assert jetstream.reply_of(None) is None


@pytest.mark.parametrize(("reply", "count"), [
    ("$JS.ACK.EDGEGUARD.workers.3.10.12.1700000000000000000.5", 3),
    ("$JS.ACK.hub.ACCOUNT.EDGEGUARD.workers.2.10.12.1700000000000000000.5", 2),
    ("$JS.ACK.hub.ACCOUNT.EDGEGUARD.workers.2.10.12.1700000000000000000.5.token", 2),
    ("_INBOX.abc", 0),
    ("$JS.ACK.EDGEGUARD.workers.many.10.12.17.5", 0),
    ("$JS.ACK", 0),
])  # fmt: skip
def test_how_often_a_message_came_stands_in_its_reply(reply, count):
    assert work.deliveries(reply) == count


@given(st.text())
def test_any_text_is_read_or_refused(text):
    assert work.deliveries(text) >= 0
    assert 0 <= work.deliveries(f"$JS.ACK.a.b.{text}.1.1.1.1") <= work.COUNT_MAX
    assert jetstream.device_of(text) is None or len(jetstream.device_of(text)) == 16
    assert jetstream.reply_of({jetstream.REPLY: text}) in {None, text}


def test_the_same_line_is_said_once_until_there_is_another():
    said = []
    tell = jetstream.once(said.append)
    for line in "aabba":
        tell(line)
    assert said == ["a", "b", "a"]
