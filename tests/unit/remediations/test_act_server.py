"""edgeguard-act from the socket to the file: what it believes, whom it answers, and what it refuses."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import subprocess
import time

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from edgeguard.baseline.document import ManifestRef, compile_baseline, sign
from edgeguard.baseline.image import for_image, lies_in
from edgeguard.baseline.keys import ensure_device_key
from edgeguard.baseline.policy import Policy
from edgeguard.baseline.store import Store
from edgeguard.codec import cose
from edgeguard.codec.manifest import Block, Entry, Writer
from edgeguard.daemon import act
from edgeguard.daemon.loop import Loop
from edgeguard.errors import RemediationRefused
from edgeguard.evaluate.ledger import Ledger
from edgeguard.model import (
    Condition,
    Mode,
    Observation,
    Operator,
    Outcome,
    Result,
    Rule,
    Severity,
    Watch,
)
from edgeguard.remediations import ActRequest
from edgeguard.remediations.client import Client
from edgeguard.settings import Paths, Settings
from edgeguard.upgrades import overlay

GOOD = b"\x7fELF the good one\n"
REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
WATCHES = (Watch("/usr/sbin", "program", protect=True),)
SAME = (Condition("sha256", Operator.SAME, None),)


class Device:
    """A device with a key, a signed baseline over one program, and a ledger."""

    def __init__(self, base):
        self.base = base
        self.state = base / "state"
        self.root = base / "root"
        for directory in (self.state / "vault", self.root / "usr/sbin", base / "state-act"):
            directory.mkdir(parents=True)
        for directory in (self.root, self.root / "usr", self.root / "usr/sbin"):
            directory.chmod(0o755)
        self.program = self.root / "usr/sbin/sshd"
        self.program.write_bytes(b"trojan")
        digest = hashlib.sha256(GOOD).digest()
        (self.state / "vault" / digest.hex()).write_bytes(GOOD)
        self.rule = Rule(
            "program-content", "EG-FILE-002", "file", Severity.CRITICAL, "t", (), SAME, Mode.ENFORCE, "restore-file"
        )
        self.settings = Settings(
            mode="enforce",
            paths=Paths(root=str(self.root), state=str(self.state), trust=str(base / "trust"), runtime=str(base)),
        )
        out = io.BytesIO()
        writer = Writer(out)
        entry = Entry(0o100755, os.geteuid(), os.getegid(), len(GOOD), "program", digest)
        writer.add(b"/usr/sbin", [b"sshd"], [entry])
        writer.close()
        self.manifest = out.getvalue()
        self.seed = ensure_device_key(str(self.state))
        self.install(1)
        self.finding = self.found("/usr/sbin/sshd")

    def boot(self, image):
        """The image that runs; of baselines that are installed from now on, the one that they are for."""
        (self.root / "usr/lib").mkdir(exist_ok=True)
        (self.root / "usr/lib/os-release").write_text(f"IMAGE_VERSION={image}\n")

    def install(self, revision, rule=None, seed=None, watches=WATCHES, image=None):
        policy = Policy(watches, (rule or self.rule,))
        store = Store(str(self.state))
        sha = hashlib.sha256(self.manifest).digest()
        files = ManifestRef(sha, len(self.manifest), 1)
        device = cose.device_id(cose.public_of(self.seed))
        baseline = compile_baseline(policy, {"listener": {}}, files, revision, 1000, device=device)
        if image is not None:
            baseline = for_image(baseline, lies_in(str(self.root))._replace(name=image))
        os.makedirs(store.directory, exist_ok=True)
        with open(store.manifest_path(sha), "wb") as file:
            file.write(self.manifest)
        with open(store.path_of(revision), "wb") as file:
            file.write(sign(baseline, seed or self.seed))
        with open(os.path.join(store.directory, "floor"), "w", encoding="ascii") as file:
            file.write(str(revision))

    def found(self, subject):
        """Write a ledger with one open finding; its id."""
        ledger = Ledger()
        seen = Observation("file", subject, {"sha256": b"x"}, 2000)
        (change,) = ledger.apply(
            [Result(self.rule, seen, Outcome.FAIL, SAME, {"sha256": b"y"}, {"sha256": b"x"})], 2000
        )
        (self.state / "ledger.cbor").write_bytes(ledger.to_cbor())
        return change.finding.id

    def ask(self, verb="restore-file", finding=None, settings=None):
        server = act.Act(settings or self.settings)
        try:
            return server.answer(ActRequest(verb, finding or self.finding))
        except RemediationRefused as error:
            return act.Reply(ok=False, state="refused", detail=str(error))


@pytest.fixture
def device(tmp_path):
    return Device(tmp_path)


def test_a_changed_program_is_restored_and_undone(device):
    reply = device.ask()
    assert reply.ok, reply
    assert device.program.read_bytes() == GOOD
    assert device.ask("undo").ok
    assert device.program.read_bytes() == b"trojan"


def _untouched(device, reply, words):
    assert reply.state == "refused"
    assert words in reply.detail
    assert device.program.read_bytes() == b"trojan"


def test_mode_audit_of_the_device(device):
    audit = device.settings._replace(mode="audit")
    _untouched(device, device.ask(settings=audit), "mode audit")


@pytest.mark.parametrize("base", ["this baseline's", "another's"])
def test_a_program_that_a_package_has_changed_since(device, base):
    """The protected copy is the old one: putting it back would bring a repaired hole back."""
    digest = hashlib.sha256(device.manifest).digest() if base == "this baseline's" else b"x" * 32
    os.makedirs(device.state / "upgrades")
    new = Entry(0o100755, 0, 0, 3, "program", b"n" * 32)
    found, size = overlay.write_manifest(str(device.state), [Block(b"/usr/sbin", [b"sshd"], [new])])
    overlay.install(str(device.state), overlay.Overlay(digest, found, size, {}, (), {}), device.seed)
    for path in (device.state / "upgrades").iterdir():
        path.chmod(0o600)
    if base == "another's":
        assert device.ask().ok
    else:
        _untouched(device, device.ask(), "a package changed this file")


def test_mode_audit_of_the_rule(device):
    device.install(2, device.rule._replace(mode=Mode.AUDIT))
    _untouched(device, device.ask(), "mode audit")


def test_another_verb_than_the_policy_orders(device):
    _untouched(device, device.ask("quarantine-file"), "does not order this")


def test_a_rule_that_the_policy_does_not_have(device):
    device.install(2, device.rule._replace(id="another"))
    _untouched(device, device.ask(), "no such rule")


def test_a_finding_that_the_ledger_does_not_have(device):
    _untouched(device, device.ask(finding="F-0000"), "no such finding")


def test_a_path_that_the_policy_does_not_watch(device):
    finding = device.found("/etc/shadow")
    _untouched(device, device.ask(finding=finding), "does not watch")


def test_a_baseline_of_another_signer(device):
    device.install(1, seed=cose.generate_seed())
    _untouched(device, device.ask(), "no valid signed baseline")


def test_an_older_baseline_than_we_have_acted_by(device):
    device.install(5)
    assert device.ask("restore-file").ok
    device.program.write_bytes(b"trojan")
    os.unlink(Store(str(device.state)).path_of(5))
    device.install(4)
    _untouched(device, device.ask(), "older")


def _fallen_back(device, acted):
    """A device that ran image A with revision 5, then B with 9, and runs A again. `acted`: in both."""
    device.boot("A")
    device.install(5, image="A")
    if acted:
        assert device.ask().ok
    device.boot("B")
    device.install(9, image="B")
    device.program.write_bytes(b"trojan")
    assert device.ask().ok
    device.boot("A")
    device.program.write_bytes(b"trojan")
    slots = f"{lies_in(str(device.root)).sha256.hex()} 5 - A\n"
    (device.state / "baseline/slots").write_text(slots)


@pytest.mark.parametrize("acted", [True, False])
def test_a_device_that_fell_back_to_its_other_image_is_put_right(device, acted):
    _fallen_back(device, acted)
    assert device.ask().ok
    assert device.program.read_bytes() == GOOD


def test_no_older_measure_for_the_image_that_runs(device):
    """Whatever the daemon's user writes into its state: it is signed, and it is older than what was acted by."""
    _fallen_back(device, acted=True)
    device.install(4, image="A")
    os.unlink(Store(str(device.state)).path_of(9))
    os.unlink(Store(str(device.state)).path_of(5))
    _untouched(device, device.ask(), "older than 5")


def test_the_other_image_must_really_run(device):
    _fallen_back(device, acted=True)
    device.boot("C")
    os.unlink(Store(str(device.state)).path_of(9))
    (device.state / "baseline/floor").write_text("5")
    _untouched(device, device.ask(), "older than 9")


def test_a_manifest_that_was_changed(device):
    (name,) = (item for item in os.listdir(device.state / "baseline") if item.endswith(".egm"))
    path = device.state / "baseline" / name
    path.write_bytes(path.read_bytes().replace(b"sshd", b"sshx"))
    _untouched(device, device.ask(), "manifest")


@pytest.mark.parametrize("damage", [lambda path: path.chmod(0o666), lambda path: path.write_bytes(b"\xa1"), os.unlink])
def test_a_ledger_that_cannot_be_believed(device, damage):
    damage(device.state / "ledger.cbor")
    _untouched(device, device.ask(), "ledger")


def test_a_ledger_that_is_a_symlink(device, tmp_path):
    os.rename(device.state / "ledger.cbor", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", device.state / "ledger.cbor")
    _untouched(device, device.ask(), "ledger.cbor cannot be read")


def test_nothing_is_done_while_dpkg_runs_and_it_may_be_asked_again(device, monkeypatch):
    monkeypatch.setattr(act.preflight, "dpkg_running", lambda *_: "a package is being installed")
    reply = device.ask()
    _untouched(device, reply, "package")
    assert reply.retry_s > 0


def test_nothing_is_written_into_the_daemons_state(device):
    before = {name: os.stat(device.state / "baseline" / name) for name in os.listdir(device.state / "baseline")}
    device.install(2)
    (device.state / "baseline/floor").write_text("1")
    device.ask()
    assert (device.state / "baseline/floor").read_text() == "1"
    assert set(before) < set(os.listdir(device.state / "baseline"))


# -- the socket


def _converse(device, data):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        act.converse(theirs, act.Act(device.settings))
        theirs.shutdown(socket.SHUT_WR)
        return ours.makefile("rb").read()


def _line(**changes):
    return json.dumps({"verb": "restore-file", "finding": "F-0000", "nonce": 3} | changes).encode() + b"\n"


def test_a_request_and_its_reply_are_one_line_each(device):
    reply = json.loads(_converse(device, _line(finding=device.finding)))
    assert (reply["ok"], reply["state"], reply["nonce"]) == (True, "done", 3)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"{}\n",
        b"[]\n",
        b"nonsense\n",
        _line()[:-1],
        _line(verb="sh -c reboot"),
        _line(verb=["restore-file"]),
        _line(finding="../../etc/passwd"),
        _line(finding="F-7K2M\n"),
        _line(finding=""),
        _line(finding=None),
        _line(nonce=-1),
        _line(nonce=True),
        _line(nonce=1.5),
        _line(nonce=2**60),
        _line(path="/etc/shadow"),
        b"[" * 4000 + b"\n",
        b"x" * 5000 + b"\n",
    ],
)
def test_anything_but_a_request_is_refused(device, data):
    reply = json.loads(_converse(device, data))
    assert (reply["ok"], reply["state"]) == (False, "refused")
    assert device.program.read_bytes() == b"trojan"


@given(st.binary(max_size=300))
@examples(max_examples=200, deadline=None)
def test_any_bytes_are_a_request_or_refused(data):
    try:
        act.parse_request(data + b"\n")
    except RemediationRefused:
        return


def test_a_stranger_gets_no_answer(device, monkeypatch):
    monkeypatch.setattr(act, "allowed_uids", lambda: frozenset((12345,)))
    assert _converse(device, _line(finding=device.finding)) == b""
    assert device.program.read_bytes() == b"trojan"


def test_a_peer_that_says_nothing_is_hung_up(device, monkeypatch):
    monkeypatch.setattr(act, "PEER_S", 0.05)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.send(b'{"verb"')
        with pytest.raises(TimeoutError):
            act.converse(theirs, act.Act(device.settings))


def test_without_a_socket_from_systemd_it_says_so(monkeypatch):
    monkeypatch.delenv("LISTEN_PID", raising=False)
    with pytest.raises(RemediationRefused):
        act.inherited()


@pytest.mark.parametrize("arguments", [["--socket"], ["--run", "x"], ["--idle", "soon"], ["x"]])
def test_a_wrong_command_line(arguments):
    assert act.main(arguments) == 64


def listens(path):
    """A socket has its name before anybody may connect to it."""
    with socket.socket(socket.AF_UNIX) as peer:
        return peer.connect_ex(str(path)) == 0


@pytest.fixture
def running(device):
    """The program itself, started as `make run` does."""
    path = device.base / "act.sock"
    config = device.base / "agent.toml"
    config.write_text(
        f'mode = "enforce"\n[paths]\nroot = "{device.root}"\nstate = "{device.state}"\ntrust = "{device.base}/trust"\n'
    )
    launcher = os.path.join(REPOSITORY, "packaging/bin/edgeguard-act")
    words = ["/usr/bin/python3", "-IS", launcher, "--settings", str(config), "--socket", str(path), "--idle", "60"]
    started = subprocess.Popen(words, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 20
    while not listens(path) and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    yield str(path)
    started.kill()
    started.wait()
    started.stderr.close()


def test_the_daemons_client_and_the_program_understand_each_other(device, running):
    loop = Loop()
    client = Client(loop, running)
    replies = []

    def on_reply(request, reply):
        replies.append((request, reply))
        if len(replies) == 3:
            loop.stop()

    loop.later(20, loop.stop)
    client.send(ActRequest("restore-file", device.finding, 1), on_reply)
    client.send(ActRequest("undo", device.finding, 2), on_reply)
    client.send(ActRequest("undo", device.finding, 3), on_reply)
    assert replies == [], "never called back before send returns"
    loop.run()
    assert [reply.state for _, reply in replies] == ["done", "done", "refused"], replies
    assert device.program.read_bytes() == b"trojan"


def test_systemd_hands_the_socket_over_and_it_ends_when_idle(device):
    """As by edgeguard-act.socket: the listening socket is descriptor 3, LISTEN_PID is the process itself."""
    path = str(device.base / "act.sock")
    config = device.base / "agent.toml"
    config.write_text(
        f'mode = "enforce"\n[paths]\nroot = "{device.root}"\nstate = "{device.state}"\ntrust = "{device.base}/trust"\n'
    )
    listener = act.listen(path)
    launcher = os.path.join(REPOSITORY, "packaging/bin/edgeguard-act")
    child = os.fork()
    if not child:
        os.dup2(listener.fileno(), 3)
        words = ["/usr/bin/python3", "-IS", launcher, "--settings", str(config), "--idle", "0.2"]
        os.execve(words[0], words, {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})
    with listener, socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(20)
        peer.connect(path)
        peer.sendall(_line(finding=device.finding))
        reply = json.loads(peer.makefile("rb").readline())
    assert (reply["state"], device.program.read_bytes()) == ("done", GOOD)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_nobody_listens(tmp_path):
    loop = Loop()
    replies = []
    Client(loop, str(tmp_path / "absent")).send(
        ActRequest("undo", "F-0000"), lambda *item: (replies.append(item), loop.stop())
    )
    loop.run()
    assert replies[0][1].state == "failed"


@pytest.mark.parametrize(
    "answer", [b"", b"nonsense\n", b"[]\n", b'{"ok":true,"state":"done","detail":"","nonce":9}\n', b"x" * 9000]
)
def test_odd_answers_and_silence_are_failures(tmp_path, answer):
    path = str(tmp_path / "sock")
    listener = act.listen(path)
    loop = Loop()
    replies = []
    client = Client(loop, path, timeout_s=0.2)
    client.send(ActRequest("undo", "F-0000", 1), lambda *item: (replies.append(item), loop.stop()))
    held = []

    def accept():
        peer, _ = listener.accept()
        held.append(peer)
        if answer:
            peer.sendall(answer)

    loop.watch(listener.fileno(), accept)
    loop.run()
    assert replies[0][1].state == "failed"
    for item in (*held, listener):
        item.close()


def test_where_only_set_id_programs_are_watched_nothing_else_is_taken_away(device):
    """A daemon that was taken over could name any file; the verb looks for itself."""
    rule = device.rule._replace(remediation="quarantine-file")
    device.rule = rule
    device.install(2, rule, watches=(Watch("/", "other", only="setid"),))
    database = device.root / "usr/database"
    database.write_bytes(b"precious")
    reply = device.ask("quarantine-file", device.found("/usr/database"))
    assert "other rights" in reply.detail
    assert database.exists()
    database.chmod(0o4755)
    assert device.ask("quarantine-file", device.found("/usr/database")).ok
    assert not database.exists()
