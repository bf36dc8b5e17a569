"""Our own formats: what comes from a disk that was damaged, from a network, or from a program that is not ours.

Where bytes are accepted, what must hold of the value is asserted too: one value has one encoding, and what passed as a
whole can be looked into without an error.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import struct
import tempfile

from edgeguard import control
from edgeguard.baseline.document import Baseline
from edgeguard.cli import enroll
from edgeguard.codec import cbor, certificates, cose, encrypt, manifest, tpm
from edgeguard.codec.digests import Algorithm, swift
from edgeguard.codec.values import columns_from_plain
from edgeguard.collector import enrolment, events
from edgeguard.control_server.client import Request
from edgeguard.control_server.peers import Peer, Rights
from edgeguard.control_server.server import Server
from edgeguard.daemon import act, frames
from edgeguard.errors import DecodeError, EdgeGuardError
from edgeguard.evaluate.ledger import Ledger
from edgeguard.records import (
    certify,
    chain,
    defects,
    epoch,
    evidence,
    examine,
    journal,
    losses,
    memory,
    mqttwire,
    receipts,
    wire,
)
from edgeguard.records.link import RETRY_AFTER_MAX, Response, UplinkError, refusal, taken
from edgeguard.remediations import client, undo
from edgeguard.sensors import logbook, observed
from edgeguard.upgrades import deb, expected, overlay
from tests.fuzz.each import each

DEVICE = bytes(16)
HEADER = [1, DEVICE, 0, 1, 1, 1, 1, 0, bytes(32), 1000, 1_790_000_000_000, 2, bytes(8), 0, wire.CODEC_RAW]
COUNT_AT = 7  # where the header says how many records there are
GENERATION = 3
READER = b"\x42" * 32


def cbor_value(data: bytes) -> None:
    each(data, lambda data: cbor.decode_prefix(data, len(data) // 2), lambda data: cbor.decode(data, depth=2))
    value = cbor.decode(data)
    assert cbor.encode(value) == data, "one value has one encoding"


def cose_message(data: bytes) -> None:
    """A segment file, a receipt, a baseline: the envelope and what is read before the signature is verified."""
    each(data, cose.parse1, receipts.unverified)
    for part in wire.split(data):
        wire.decode_header(cose.parse1(part).payload)
        shown(wire.decode_segment(cose.parse1(part).payload))


def segment_body(data: bytes) -> None:
    """The body of a segment below an honest header: what a device with a good key may still send."""
    with contextlib.suppress(DecodeError):
        wire.decode_record(data)
    content = cbor.decode(data, depth=wire.DEPTH, size=wire.INFLATED_MAX)
    rows = content[1] if isinstance(content, list) and len(content) > 1 else []
    header = list(HEADER)
    header[COUNT_AT] = len(rows) if isinstance(rows, list) else 1
    shown(wire.decode_segment(cbor.encode([*header, data])))


def packed_body(data: bytes) -> None:
    """The same of a segment with a dictionary: rows with differences and digests."""
    content = cbor.decode(data, depth=wire.DEPTH, size=wire.INFLATED_MAX)
    rows = content[1] if isinstance(content, list) and len(content) > 1 else []
    header = [*HEADER[:-2], 1, wire.CODEC_PACKED]
    header[COUNT_AT] = len(rows) if isinstance(rows, list) else 1
    shown(wire.decode_segment(cbor.encode([*header, data]), str, lambda _number: bytes(32)))


def shown(segment: wire.Segment) -> None:
    """What the collector does with every record: JSON for the store, one line for people."""
    for record in segment.records:
        document = json.loads(json.dumps(events.body(record)))
        events.code(record)
        event = {"time": events.iso(record.wall or 0), "name": "device", **document}
        for line in (events.line(event), events.sentence(event)):
            assert line.isprintable(), "one line that is safe on a terminal"


def baseline(data: bytes) -> None:
    found = Baseline.from_cbor(data)
    assert Baseline.from_cbor(found.to_cbor()) == found


SEED = b"\x01" * 32  # of a device whose identity key signs whatever it is given
NEXT = b"\x02" * 32


def epoch_statement(data: bytes) -> None:
    """Bytes as a statement, and as what a device with a good identity key says in one."""
    each(data, epoch.unverified)
    identity = cose.public_of(SEED)
    keys = certify.Keys([identity])
    for made in (data, cose.sign1(data, SEED, cose.EPOCH_AAD), _announced(data)):
        epoch.is_statement(made)
        with contextlib.suppress(certify.Refused):
            said = keys.admit(made)
            assert epoch.opened(made, identity) == said
            assert keys.find(cose.kid_of(said.public)) is not None
    report = defects.Report()
    follower = chain.Chain(report)
    for device, line in keys.lines.items():
        follower.epochs(device, line, complete=True)
        for said in line:
            heads = []
            for stream, sequence, _ in said.heads:
                place, digests = (device, stream, sequence), (bytes(32), bytes(32))
                heads.append(examine.Link(*place, *digests, 1, 1, said.number, said.boot, None, None))
            for link in sorted(heads):
                follower.follow(link)
    follower.finish()
    for line_ in defects.lines(report, events.iso, events.printable):
        assert line_.isprintable(), "one line that is safe on a terminal"


def _announced(core: bytes) -> bytes:
    return cose.sign1(cose.sign1(core, NEXT, cose.NEXT_AAD), SEED, cose.EPOCH_AAD)


def receipt(data: bytes) -> None:
    found = receipts.decode(data)
    receipts.encode(found)


class _Socket:
    """What a collector says to the uplink, after TLS."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def encrypted(data: bytes) -> None:
    """An export on a stick: the envelope, and what a key that is ours makes of it."""
    encrypt.parse(data)
    encrypt.decrypt(data, READER, encrypt.EXPORT_AAD)


def tpm_structure(data: bytes) -> None:
    """What a TPM, or whoever sits between it and us, gives as a signature or a public key."""
    with contextlib.suppress(DecodeError):
        assert len(tpm.signature(data)) == cose.SIGNATURE_SIZE
    found = tpm.public(data)
    assert cose.is_identity(found.key)
    found.objection()


POINT = bytes.fromhex("0360fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6")  # of RFC 6979, A.2.5


def es256_message(data: bytes) -> None:
    """Bytes as a signature, as a key, and as a whole message of an identity key in a TPM."""
    protected = cbor.encode({1: cose.ES256, 4: cose.kid_of(POINT)})
    made = b"\xd2" + cbor.encode([protected, {}, b"payload", data[:64].ljust(64, b"\0")])
    each(made, lambda message: cose.verify1(message, [POINT], cose.EPOCH_AAD))
    key = b"\x02" + data[:32].ljust(32, b"\0")
    each(
        key,
        cose.check_point,
        lambda public: cose.verify1(made.replace(cose.kid_of(POINT), cose.kid_of(public)), [public], b""),
    )
    cose.verify1(data, [POINT], cose.EPOCH_AAD)


def certificate(data: bytes) -> None:
    """When a certificate is valid and whose it is, by our own small reader of DER."""
    each(data, certificates.validity, certificates.common_name, certificates.der)


def by_mqtt(data: bytes) -> None:
    """What a broker brings: topics, replies, and a stream of packets, which is followed alike however it is cut."""
    each(data, _topic, _reply, _stream)


def _topic(data: bytes) -> None:
    device, kind = mqttwire.parse_topic(data.decode("utf-8", "replace"))
    assert mqttwire.topic(device, kind).encode() == data


def _reply(data: bytes) -> None:
    answer = mqttwire.decode(data)
    assert len(answer.body) <= mqttwire.BODY_MAX
    assert answer.retry_after is None or 0 < answer.retry_after <= mqttwire.RETRY_MAX
    assert mqttwire.decode(mqttwire.encode(answer)) == answer


def _stream(data: bytes) -> None:
    ends = []
    for step in (len(data) or 1, 1, 3):
        frames = mqttwire.Frames(200, 2000)
        try:
            for at in range(0, len(data), step):
                frames.feed(data[at : at + step])
            ends.append(("", frames.refusal))
        except DecodeError as error:
            ends.append((str(error), 0))
    assert len({(not trouble, refusal) for trouble, refusal in ends}) == 1
    if ends[0][0]:
        raise DecodeError(ends[0][0])


def enrolment_request(data: bytes) -> None:
    """What somebody without a certificate sends to the collector, and what a collector answers."""
    each(data, enrolment.parse, enroll.parse)


def http_answer(data: bytes) -> None:
    """A reply to the uplink: bounded, or one of the errors that become a name in status.json."""
    response = Response(_Socket(data), method="POST")  # type: ignore[arg-type]
    try:
        response.begin()
        reply = taken(response)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UplinkError("bad-reply", type(error).__name__) from error
    assert len(reply.body) <= receipts.SIZE_MAX
    assert reply.retry_after is None or 0 <= reply.retry_after <= RETRY_AFTER_MAX
    assert refusal(reply).name in {"busy", "refused"}
    assert str(refusal(reply)).isprintable()


def uplink_memory(data: bytes) -> None:
    """What the uplink left for its next run: a nonsense file is as if it were not there."""
    found = memory.parse(data)
    assert memory.parse(memory.encode(found)) == found


def ledger(data: bytes) -> None:
    found = Ledger.from_cbor(data)
    Ledger.from_cbor(found.to_cbor())


def journal_file(data: bytes) -> None:
    """The bytes as a file; then as the frames of a sound one, whose CRCs a fuzzer would never find. And as the word
    about what was let go, that lies beside."""
    with contextlib.suppress(DecodeError):
        losses.merged(losses.decode(data, bytes(16)).drops)
    journal.parse(data)
    header = journal.pack_header(journal.Header(GENERATION, journal.ACTIVE, 1, bytes(16), (1,) * journal.STREAMS))
    file = bytearray(header.ljust(journal.FRAMES_AT, b"\0"))
    at = 0
    while at + 2 <= len(data):
        length = int.from_bytes(data[at : at + 2], "little") % 512
        file += journal.frame(GENERATION, data[at + 2 : at + 2 + length])
        at += 2 + length
    content = journal.parse(bytes(file))
    assert content is not None
    if len(file) > journal.FRAMES_AT:  # damage that a commit mark may show, and what the next generation says of it
        file[journal.FRAMES_AT + sum(data) % (len(file) - journal.FRAMES_AT)] ^= 1
        damaged = journal.parse(bytes(file))
        assert damaged is not None
        journal.completed(damaged, [content, damaged])
    for frame in content.frames:
        with contextlib.suppress(DecodeError):
            wire.decode_record(frame.content)


def manifest_file(data: bytes) -> None:
    fd = os.memfd_create("fuzz")
    try:
        os.write(fd, data)
        reader = manifest.Reader(fd)
        assert manifest.algorithm_in(data) is reader.algorithm, "whoever takes it in and whoever reads it agree"
        _look_into(reader)
    finally:
        os.close(fd)


def _look_into(reader: manifest.Reader) -> None:
    each(b"/usr/bin/x", reader.lookup, reader.below, lambda _path: reader.directories(), lambda _path: reader.counts())
    reader.verify()
    for block in reader.blocks():  # a manifest that verified answers every question
        assert reader.has_directory(block.directory)
        for name, entry in zip(block.names, block.entries, strict=True):
            assert reader.lookup(block.directory + b"/" + name) == entry
            entry.columns(reader.algorithm)


def logs_memory(data: bytes) -> None:
    boot = bytes(16)
    found = list(logbook.decode(data, boot))
    assert logbook.encode(data[8:24], found) == data, "one value has one encoding"


def observed_file(data: bytes) -> None:
    reader = observed.Reader(io.BytesIO(data))
    while (record := reader.current) is not None:
        reader.key()
        for _stat, _entry in record.looks().values():
            pass
        raw, begin = record.raw, observed.HEAD.size + len(record.directory)
        assert (raw if reader.listed else raw[:begin] + raw[begin + observed.LISTING :]) in data
        reader.advance()


def helper_frames(data: bytes) -> None:
    """In two pieces, as a pipe may give them; a body without a length too, which is where most of the code is."""
    cut = len(data) // 3
    unpacker = frames.Unpacker()
    each(data, lambda data: [unpacker.feed(data[:cut]), unpacker.feed(data[cut:])])
    for message in frames.Unpacker().feed(struct.pack("<I", len(data)) + data):
        for plain in message.get("observations") or ():
            frames.observation_from_plain(plain)
        columns_from_plain(message)


class _Client:
    """Who asks, for a server without sockets."""

    peer = Peer(1, 0, 0)
    gone = False
    request: Request | None = None

    def __init__(self) -> None:
        self.said = b""

    def say(self, line: bytes, last: bool) -> bool:
        del last
        self.said += line
        return True

    def refuse(self, error: control.ControlError) -> None:
        self.said += control.dump({"error": error.name, "parameters": {"message": str(error)}})


class _Server(Server):
    """The server's way with a line, without its sockets; handlers take every text to the file system's bytes."""

    def __init__(self) -> None:
        self.rights = Rights()
        self.denied = 0
        self._on_bug = None
        self._clients = {}
        self.handlers = dict.fromkeys(control.VERBS, _answer)


def _answer(request: Request) -> None:
    for value in request.parameters.values():
        for text in value if isinstance(value, list) else (value,):
            if isinstance(text, str):
                os.fsencode(text)  # what the daemon does with a path, a reason or an id
    request.reply({"given": sorted(request.parameters)})


def control_line(data: bytes) -> None:
    """A request to the daemon, its reply, and the same bytes in the place of each other line of JSON."""
    line = data.partition(b"\n")[0]
    asking = _Client()
    _Server().dispatch(asking, line)  # type: ignore[arg-type]  # stands in for a connection
    assert asking.said.endswith(b"\n"), "every line is answered"
    each(asking.said[:-1], control._checked)
    each(line, control._checked, lambda line: act.parse_request(line + b"\n"))
    client.parse_reply(data, 0)
    with contextlib.suppress(ValueError, RecursionError):
        undo._record(json.loads(line))
    with contextlib.suppress(EdgeGuardError):
        control.load(data)


def package(data: bytes) -> None:
    """What dpkg-deb hands over, as either part of a package."""

    def files(data: bytes) -> None:
        with deb.untar(io.BytesIO(data)) as tar:
            for member in deb.listed(tar, swift(Algorithm.BLAKE2B)):
                assert member.path.startswith(b"/")
                assert b".." not in member.path.split(b"/")

    def controlled(data: bytes) -> None:
        with deb.untar(io.BytesIO(data)) as tar:
            assert "/" not in deb.controlled(tar).name

    each(data, files, controlled)


LINK = struct.Struct("<BBBBBBBB")  # of a made-up link: stream, number, previous, first, n, epoch, boot, lost


def evidence_folder(data: bytes) -> None:
    """The bytes as files of a log, as names of more files, and as links of a chain: a list, and lines that are safe."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        for name in (b"0-0000000000000001.egs", b"x.egs", *data.split(b"/")[:8]):
            path = folder.encode() + b"/" + name.replace(b"\0", b"")[:100]
            with contextlib.suppress(OSError), open(path, "xb") as file:
                file.write(data)
        reports = [evidence.directory(folder, [DEVICE + DEVICE])]
    assert not reports[0].clean, "nobody signed that"
    reports.append(defects.Report())
    heads = [chain.Known(DEVICE, 0, len(data) % 7 + 1, bytes([len(data) % 5]) * 32, "a receipt")]
    follower = chain.Chain(reports[1], heads)
    links = []
    for at in range(0, len(data) - LINK.size + 1, LINK.size):
        stream, number, previous, first, n, epoch, boot, lost = LINK.unpack_from(data, at)
        digests = bytes([number]) * 32, bytes([previous]) * 32
        place = (DEVICE, stream % 4, number + 1)
        links.append(examine.Link(*place, *digests, first, n + 1, epoch, boot, first, None, "", lost % 3))
        drops = (wire.Drop(lost + 1, lost + 1 + n, lost % 9, stream % 4),) if lost > 200 else ()
        follower.lost(DEVICE, examine.Losses(drops, ((stream % 4, None if lost == 77 else lost),)))
    for link in sorted(links):
        follower.follow(link)
    follower.finish()
    for found in reports:
        assert json.loads(json.dumps(defects.document(found, events.iso)))["clean"] is found.clean
        for line in defects.lines(found, events.iso, events.printable):
            assert line.isprintable(), "one line that is safe on a terminal"


def overlay_and_expected(data: bytes) -> None:
    """What helpers keep between two calls."""
    each(data, lambda data: expected.unpack(data, "x"), lambda data: overlay.unpack(cbor.decode(data)))
