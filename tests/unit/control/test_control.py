"""The control socket with real sockets and a real loop: rights, limits, rude clients."""

import contextlib
import json
import os
import socket
import stat
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopers import Serving, connect, read_all, until

from edgeguard import control
from edgeguard.control import VERBS, Access, call, dump, load
from edgeguard.control_server import client as its_client
from edgeguard.control_server import server as its_server
from edgeguard.control_server.parameters import check_parameters
from edgeguard.control_server.peers import Peer, Rights, peer_of
from edgeguard.control_server.server import Server
from edgeguard.errors import ControlError, DaemonSilent, DecodeError, NotPermitted, OlderRevision

READER, ADMIN = 4001, 4002


def status(request):
    request.reply({"code": 0, "text": "OK\n"})


def count(request):
    request.stream({"finding": {"n": n, "pad": "x" * 500}} for n in range(5000))


def explode(request):
    raise ZeroDivisionError("a bug")


def refuse(request):
    raise OlderRevision("revision 3 is older than 5")


class Held:
    """A handler that answers later, from outside."""

    def __init__(self):
        self.requests = []
        self.left = 0

    def __call__(self, request):
        request.on_close = self._gone
        self.requests.append(request)

    def _gone(self):
        self.left += 1


@pytest.fixture
def world(tmp_path):
    held = Held()
    bugs = []
    path = str(tmp_path / "control.sock")
    peers = {"now": None}

    def identify(connection):
        return peers["now"] or peer_of(connection)

    handlers = {
        "Status": status,
        "Findings": count,
        "Explain": explode,
        "BaselineInstall": refuse,
        "Log": held,
        "Reload": status,
    }

    def make(loop):
        rights = Rights(owner=os.getuid(), readers=READER, admins=ADMIN)
        return Server(path, loop, handlers, rights, lambda verb, error: bugs.append((verb, error)), identify=identify)

    serving = Serving(make)
    with serving as server:
        server.held, server.bugs, server.peers, server.path, server.turns = held, bugs, peers, path, serving.loop
        yield server


def ask(world, method, **parameters):
    return list(call(world.path, method, parameters))


def error_of(data):
    message = json.loads(data.splitlines()[-1])
    return message["error"].removeprefix("org.edgeguard.")


def test_question_and_answer(world):
    assert ask(world, "Status") == [{"code": 0, "text": "OK\n"}]
    assert stat.S_IMODE(os.stat(world.path).st_mode) == 0o660


def test_a_stream_arrives_whole_and_in_order(world):
    answers = ask(world, "Findings")
    assert [answer["finding"]["n"] for answer in answers] == list(range(5000))


def test_several_requests_on_one_connection(world):
    with connect(world.path) as client:
        client.sendall(dump({"method": "org.edgeguard.Status"}) * 3)
        client.shutdown(socket.SHUT_WR)  # half closed: it still wants its answers
        assert len(read_all(client).splitlines()) == 3


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"GET / HTTP/1.1\n", "InvalidRequest"),
        (b"[" * 60_000 + b"\n", "InvalidRequest"),
        (b'{"method":"org.edgeguard.Status","method":"x"}\n', "InvalidRequest"),
        (b'{"method":"org.edgeguard.Status","shell":"x"}\n', "InvalidRequest"),
        (b'{"method":7}\n', "InvalidRequest"),
        (b'{"method":"org.edgeguard.Status","parameters":{"width":NaN}}\n', "InvalidRequest"),
        (b'{"method":"org.edgeguard.Shell"}\n', "MethodNotFound"),
        (b'{"method":"org.edgeguard.Version"}\n', "MethodNotFound"),  # declared, but the daemon has no handler
        (b'{"method":"org.edgeguard.Status","parameters":{"width":true}}\n', "InvalidParameter"),
        (b'{"method":"org.edgeguard.Status","parameters":{"width":1e9}}\n', "InvalidParameter"),
        (b'{"method":"org.edgeguard.Status","parameters":{"with":80}}\n', "InvalidParameter"),
        (b'{"method":"org.edgeguard.BaselineInstall","parameters":{"path":"/x"}}\n', "OlderRevision"),
        (b'{"method":"org.edgeguard.BaselineInstall","parameters":{"path":"/\\ud800"}}\n', "InvalidParameter"),
        (b'{"method":"org.edgeguard.Explain","parameters":{"id":"F-1"}}\n', "InternalError"),
    ],
)
def test_what_is_wrong_has_a_name(world, line, error):
    with connect(world.path) as client:
        client.sendall(line)
        client.shutdown(socket.SHUT_WR)
        assert error_of(read_all(client)) == error
    assert ask(world, "Status")


def test_a_bug_is_reported_not_fatal(world):
    with pytest.raises(ControlError, match="bug"):
        ask(world, "Explain", id="F-1")
    assert [(verb, type(error)) for verb, error in world.bugs] == [("Explain", ZeroDivisionError)]


def test_eight_megabytes_in_one_line(world):
    with connect(world.path) as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(b"x" * (8 * 1024 * 1024))
        assert error_of(read_all(client)) == "TooLong"
    assert ask(world, "Status")


def test_three_hundred_idle_connections_do_not_delay_status(world):
    idle = []
    try:
        idle += (connect(world.path) for _ in range(300))
        began = time.monotonic()
        assert ask(world, "Status")
        assert time.monotonic() - began < 1
        until(lambda: world.clients <= its_server.CLIENTS_MAX)
    finally:
        for client in idle:
            client.close()


def test_busy_is_said_when_everybody_is_served(world, monkeypatch):
    monkeypatch.setattr(its_server, "STREAMS_MAX", 100)
    followers = []
    for number in range(its_server.CLIENTS_MAX):
        follower = connect(world.path)
        follower.sendall(dump({"method": "org.edgeguard.Log", "parameters": {"follow": True}}))
        followers.append(follower)
        until(lambda number=number: len(world.held.requests) == number + 1)
    with pytest.raises(ControlError, match="clients are being served"):
        ask(world, "Status")
    for follower in followers:
        follower.close()
    until(lambda: world.clients == 0)
    assert world.held.left == its_server.CLIENTS_MAX


def test_followers_leave_room_for_questions(world):
    followers = []
    for _ in range(its_server.STREAMS_MAX):
        follower = connect(world.path)
        follower.sendall(dump({"method": "org.edgeguard.Log"}))
        followers.append(follower)
    until(lambda: len(world.held.requests) == its_server.STREAMS_MAX)
    with pytest.raises(ControlError, match="following"):
        ask(world, "Log")
    assert ask(world, "Status")
    for follower in followers:
        follower.close()


def test_slow_line_is_cut_off(world, monkeypatch):
    monkeypatch.setattr(its_client, "LINE_S", 0.2)
    with connect(world.path) as client:
        client.sendall(b'{"method":')
        assert error_of(read_all(client)) == "TimedOut"
    assert ask(world, "Status")


def test_a_reader_that_takes_nothing_is_cut_off(world, monkeypatch):
    monkeypatch.setattr(its_client, "STUCK_S", 0.2)
    with connect(world.path) as client:
        client.sendall(dump({"method": "org.edgeguard.Findings"}))
        until(lambda: world.clients == 1)
        assert ask(world, "Status")  # nobody else waits for it
        until(lambda: world.clients == 0)


def test_a_follower_that_does_not_read_loses_the_thread(world):
    with connect(world.path) as client:
        client.sendall(dump({"method": "org.edgeguard.Log"}))
        until(lambda: world.held.requests)
        request = world.held.requests[0]
        said = 0
        while request.reply({"record": "x" * 10_000}, continues=True):
            said += 1
            assert said < 200, "its buffer has no bound"
        assert request.closed
        assert world.held.left == 1


def test_half_closed_waits_for_a_late_answer_without_spinning(world):
    with connect(world.path) as client:
        client.sendall(dump({"method": "org.edgeguard.Log"}))
        client.shutdown(socket.SHUT_WR)
        until(lambda: world.held.requests)
        before = world.turns.turns
        time.sleep(0.3)
        assert world.turns.turns - before < 60
        world.held.requests[0].reply({"count": 0})
        assert json.loads(read_all(client)) == {"parameters": {"count": 0}}


def test_a_follower_that_half_closed_and_then_left_is_noticed(world):
    client = connect(world.path)
    client.sendall(dump({"method": "org.edgeguard.Log"}))
    client.shutdown(socket.SHUT_WR)
    until(lambda: world.held.requests)
    client.close()
    until(lambda: world.held.left == 1)
    assert not world.held.requests[0].reply({})


OTHER = os.geteuid() + 1000  # not whoever runs this: the daemon's own user may do everything


@pytest.mark.parametrize(
    ("peer", "reads", "acts"),
    [
        (Peer(1, 0, 0), True, True),
        (Peer(1, 65534, 65534), False, False),
        (Peer(1, OTHER, OTHER, (READER,)), True, False),
        (Peer(1, OTHER, READER), True, False),
        (Peer(1, OTHER, OTHER, (27, ADMIN)), True, True),
    ],
)
def test_rights(world, peer, reads, acts):
    world.peers["now"] = peer
    for method, allowed in (("Status", reads), ("Reload", acts)):
        if allowed:
            assert ask(world, method)
        else:
            with pytest.raises(NotPermitted):
                ask(world, method)


def test_groups_that_do_not_exist_open_nothing():
    rights = Rights(owner=500)
    assert not rights.allows(Peer(1, 1000, 1000, (4294967295,)), Access.READ)


def test_the_peer_is_who_the_kernel_says(world):
    with connect(world.path) as client:
        client.sendall(dump({"method": "org.edgeguard.Log"}))
        until(lambda: world.held.requests)
    peer = world.held.requests[0].peer
    assert (peer.pid, peer.uid, peer.gid) == (os.getpid(), os.getuid(), os.getgid())
    assert set(peer.groups) == set(os.getgroups())


def test_nobody_listens(tmp_path):
    with pytest.raises(DaemonSilent):
        list(call(str(tmp_path / "none"), "Status"))


def test_a_daemon_that_does_not_answer(tmp_path):
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "mute"))
        mute.listen()
        began = time.monotonic()
        with pytest.raises(DaemonSilent):
            list(call(str(tmp_path / "mute"), "Status", timeout=0.2))
        assert time.monotonic() - began < 1


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_line_is_an_object_or_our_error(line):
    with contextlib.suppress(DecodeError):
        assert isinstance(load(line), dict)


@given(
    st.dictionaries(
        st.sampled_from(["width", "color", "format", "x"]), st.none() | st.booleans() | st.integers() | st.text()
    )
)
@settings(max_examples=200, deadline=None)
def test_checked_parameters_are_complete(given_parameters):
    declared = VERBS["Status"].parameters
    with contextlib.suppress(ControlError):
        assert check_parameters(declared, given_parameters).keys() == declared.keys()


def test_every_verb_says_what_it_answers():
    for name, verb in VERBS.items():
        assert verb.answer, name
        for parameter in verb.parameters.values():
            assert parameter.description
            assert parameter.type in {"str", "int", "bool", "strs"}
            assert parameter.default is None or not parameter.required


def test_dump_is_one_ascii_line():
    line = dump({"name": "a\nb\x1b\udcff"})
    assert line.count(b"\n") == 1
    assert line.isascii()
    assert load(line) == {"name": "a\nb\x1b\udcff"}
    assert control.REQUEST_MAX == 65536


def test_a_follower_is_patient_and_an_act_may_take_its_time(world, monkeypatch):
    monkeypatch.setattr(control, "PATIENCE", {**control.PATIENCE, "Reload": 0.1})
    world.handlers["Reload"] = world.held
    with pytest.raises(DaemonSilent):
        ask(world, "Reload")
    answers = call(world.path, "Log", {"follow": True}, timeout=0.1)
    threading.Timer(0.3, lambda: world.held.requests[-1].reply({"count": 0})).start()
    assert list(answers) == [{"count": 0}]


def test_half_a_character_is_no_text():
    """JSON may spell a lone surrogate, which no file, no record and no terminal can hold; bytes of a name are fine."""
    declared = VERBS["Accept"].parameters
    good = {"ids": ["F-1"], "reason": "because \udcff"}
    assert check_parameters(declared, good)["reason"] == good["reason"]
    for bad in ({**good, "reason": "\ud800"}, {**good, "ids": ["\udfff"]}):
        with pytest.raises(ControlError, match="expected"):
            check_parameters(declared, bad)
