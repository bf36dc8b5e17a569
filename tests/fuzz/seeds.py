#!/usr/bin/python3
"""Writes the first inputs of every harness into a folder: `python3 -m tests.fuzz.seeds FOLDER`.

They are golden vectors, files of this tree and small samples of what devices have, each made by the product's own
writer where there is one; and of every class of bug that readers of such bytes have had elsewhere, one hostile sample.
`run --minimise` boils them down, together with what the fuzzer found, to tests/fuzz/corpus.
"""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeguard.baseline import policy, store
from edgeguard.baseline.document import ManifestRef, compile_baseline, with_reference
from edgeguard.codec import cbor, cose, encrypt, manifest
from edgeguard.codec.digests import Algorithm
from edgeguard.control import VERBS, dump
from edgeguard.daemon import frames
from edgeguard.evaluate.ledger import Ledger
from edgeguard.linux import netlink
from edgeguard.model import Actor, Finding, Observation, Origin, Outcome, Severity, State, Status
from edgeguard.records import memory, mqttwire, receipts, wire
from edgeguard.sensors import logbook, logs, observed, rotation
from tests.fuzz import formats, texts
from tests.fuzz.table import TABLE

TOP = Path(__file__).resolve().parents[2]
VECTORS = TOP / "tests/vectors"
NOW = texts.NOW
DEEP = 3000  # beyond the interpreter's recursion limit
DIGITS = 5000  # beyond the digits that Python turns into a number

Seeds = Iterator[bytes]


def _vectors(pattern: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(VECTORS.glob(pattern))]


def cbor_seeds() -> Seeds:
    yield cbor.encode({"a": [1, -1, 2**64 - 1, -(2**64)], "b": b"\xff", "c": None, "d": True, 7: "\u00e9" * 20})
    yield cbor.encode([[[[[[[1]]]]]]])
    yield from (
        b"\x9b" + b"\xff" * 8,
        b"\x5b" + b"\xff" * 8,
        b"\x81" * DEEP,
        b"\xa1\x61\x62\x01\x61\x61",
        b"\xf9\x7e\x00",
    )


def cose_seeds() -> Seeds:
    yield from _vectors("*.eg?")


def segment_seeds() -> Seeds:
    for data in _vectors("*.egs"):
        for part in wire.split(data):
            parts = cbor.decode(cose.parse1(part).payload, depth=1, size=wire.SEGMENT_MAX)
            if parts[14] >= wire.CODEC_PACKED:
                continue
            yield wire._inflate(parts[14], parts[15])
            for row in cbor.decode(wire._inflate(parts[14], parts[15]), depth=wire.DEPTH)[1]:
                yield cbor.encode([["text", b"\xff\xfe"], [row]])
    yield cbor.encode(
        [["\x1b[2J\n", b"\xff", "\u202e"], [[0, 15 << 4, 0], [1, 15 << 4, 1], [2, 15 << 4, -1]], [[1, 2, 1, 0]]]
    )


def packed_seeds() -> Seeds:
    data = (VECTORS / "segment-packed.egs").read_bytes()
    parts = cbor.decode(cose.parse1(data).payload, depth=1, size=wire.SEGMENT_MAX)
    body = wire._inflate(parts[14], parts[15], parts[13])
    yield body
    for row in cbor.decode(body, depth=wire.DEPTH)[1]:
        yield cbor.encode([["text", b"\xff\xfe"], [row], [], bytes(32)])
    yield cbor.encode([[], [[0, 2 << 4, 0, -1, {1: {1: -1}, 2: {1: 0}, 3: {1: 1}, 20: {2: 5}}]], [], bytes(32)])


def evidence_seeds() -> Seeds:
    yield from _vectors("*.egs")
    yield b"0-0000000000000002.egs/3-9999999999999999.egs/\x1b[2J.egs/\xff.egs/.egs/a\nb.egs"
    row = bytes((0, 1, 0, 1, 1, 0, 1, 0))
    yield b"".join(bytes((0, number, number - 1, number * 2, 1, 0, 1, 0)) for number in range(1, 30))
    yield (
        row * 4
        + bytes((0, 9, 3, 40, 1, 0, 1, 205))
        + bytes((0, 4, 1, 3, 9, 1, 0, 77))
        + bytes((1, 9, 9, 9, 9, 9, 9, 1))
    )


def baseline_seeds() -> Seeds:
    small = policy.parse([("50-site.toml", b"".join(_policies()))], *texts.known())
    made = compile_baseline(
        small, {}, ManifestRef(bytes(32), 100, 3), 7, NOW, device=bytes(16), note="why", parent=bytes(32)
    )
    made = with_reference(
        made, "listener", "tcp/0.0.0.0:22", {"exe": "/usr/sbin/sshd", "ports": (1, 2), "who": "\udcff"}
    )
    yield made.to_cbor()
    yield compile_baseline(policy.Policy(), {}, None, 1, NOW).to_cbor()


def receipt_seeds() -> Seeds:
    for data in _vectors("*.egr"):
        yield cose.parse1(data).payload
    head, part = receipts.Head(0, 4, bytes(32)), receipts.Range(0, 6, 9)
    refused = receipts.Refusal(bytes(32), "malformed")
    yield receipts.encode(receipts.Receipt(bytes(16), NOW, (head,), (part,), (refused,), (0,), (bytes(8),)))


def answer_seeds() -> Seeds:
    ok = b"HTTP/1.1 200 OK\r\n"
    for data in _vectors("*.egr"):
        yield ok + b"Content-Length: %d\r\n\r\n" % len(data) + data
    yield ok + b"Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nX: y\r\n\r\n"
    yield b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 503 Busy\r\nRetry-After: Wed, 21 Oct 2099 07:28:00 GMT\r\n\r\nwait"
    yield b"HTTP/1.1 429 No\r\nRetry-After: 1\r\nContent-Length: 99999999999999999999\r\n\r\n\xff"
    yield b"HTTP/1.1 100 C\r\n\r\n" * 900
    yield ok + b"A: b\r\n" * 200 + b"\r\n"


def encrypted_seeds() -> Seeds:
    good = encrypt.encrypt(b"\xd2\x84", encrypt.public_of(formats.READER), encrypt.EXPORT_AAD)
    yield good
    yield good.replace(encrypt.parse(good)[3], bytes(32))  # a point of low order
    yield encrypt.TAG + cbor.encode([b"", {}, b"", []])
    yield good[:100] + good[-70:]
    yield encrypt.TAG + b"\x81" * DEEP


CERTIFICATE = b"""-----BEGIN CERTIFICATE-----
MIIBgDCCASegAwIBAgIUAQ==
-----END CERTIFICATE-----
"""


def certificate_seeds() -> Seeds:
    name = b"\x30\x00"
    for begins, ends in ((b"\x17\x0d260102030405Z", b"\x17\x0d490102030405Z"), (b"\x18\x0f20500102030405Z",) * 2):
        period = begins + ends
        signed = b"\xa0\x03\x02\x01\x02\x02\x01\x07" + name * 2 + b"\x30" + bytes([len(period)]) + period
        yield b"\x30" + bytes([len(signed) + 2]) + b"\x30" + bytes([len(signed)]) + signed
    yield CERTIFICATE
    yield from (b"\x30\x84\xff\xff\xff\xff", b"\x30\x80", b"\x30\x03\x30\x05\x02")


def enrolment_seeds() -> Seeds:
    seed = formats.READER
    payload = cbor.encode([1, cose.public_of(seed), "ABCD-EFGH", b"csr"])
    yield cose.sign1(payload, seed, cose.ENROL_AAD)
    yield cose.sign1(payload, bytes(32), cose.ENROL_AAD)
    key = b"a" * 64
    yield cbor.encode([1, "pump", CERTIFICATE, CERTIFICATE, key, b""])
    yield cbor.encode([1, "pump", CERTIFICATE, CERTIFICATE, key + b"\n", key])


def memory_seeds() -> Seeds:
    known = memory.Known((receipts.Range(1, 2, 9),), NOW, NOW, NOW)
    yield memory.encode(memory.Memory(known, memory.Known(), memory.Books(NOW, 1, 2, NOW, -3, 4)))
    yield from (b"[" * DEEP, b'{"books": [1e999]}', b"9" * DIGITS)


def epoch_seeds() -> Seeds:
    yield from _vectors("*.ege")
    device, before = cose.device_id(cose.public_of(formats.SEED)), cose.public_of(formats.NEXT)
    core = ["epoch", 1, device, 7, bytes(32), 2, 5, NOW, 1, [[0, 4, bytes(16)], [2, 9, b""]], [6, before]]
    yield cbor.encode(core)
    yield cbor.encode([*core[:10], None])
    yield cbor.encode([*core[:3], 2**62 - 1, *core[4:9], [[3, 2**62 - 1, b"\x07" * 16]] * 2, [1, bytes(32)], "more"])


def tpm_seeds() -> Seeds:
    number = b"\x00\x20" + b"\x11" * 32
    yield b"\x00\x18\x00\x0b" + number * 2
    yield b"\x00\x18\x00\x0b" + b"\x00\x00" * 2
    area = bytes.fromhex("0023000b0004047200000010" + "0018000b" + "00030010") + number * 2
    yield len(area).to_bytes(2, "big") + area
    yield b"\xff\xff" + area
    yield b"\x00\x54" + area.replace(b"\x00\x18\x00\x0b", b"\x00\x10")


def es256_seeds() -> Seeds:
    yield from _vectors("tpm-*.ege")
    order = bytes.fromhex("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551")
    yield from (order + b"\x01" * 32, b"\x01" * 32 + order, b"\xff" * 64, bytes(64), b"\x01" * 64)


def _finding(identifier: str, **columns: object) -> Finding:
    values: dict[str, object] = dict.fromkeys(Finding._fields, "")
    values |= {"id": identifier, "rule": "r", "kind": "file", "subject": "/etc/\udcff", "code": "EG-FILE-001"}
    values |= {"severity": Severity.HIGH, "state": State.OPEN, "origin": Origin.LIVE, "outcome": Outcome.FAIL}
    values |= {"expected": {}, "observed": columns, "first_seen": NOW, "last_seen": NOW, "count": 1}
    values |= {"actor": Actor(pid=7, exe="/bin/sh", parents=((1, "/sbin/init"),)), "resolved_at": None, "details": None}
    return Finding(**{name: values[name] for name in Finding._fields})  # type: ignore[arg-type]  # checked by from_cbor


def ledger_seeds() -> Seeds:
    from edgeguard.evaluate.archive import pack
    from edgeguard.evaluate.ledger import Acceptance

    one = _finding("F-AWF1", mode=0o644, groups=("a", "b"))
    key = (one.rule, one.kind, one.subject)
    data = pack([(key, one)], {key: Acceptance(bytes(8), "root", "it is right", NOW, NOW)}, {"EG-FILE-001": 3})
    Ledger.from_cbor(data)
    yield from (data, Ledger().to_cbor())


def journal_seeds() -> Seeds:
    for data in segment_seeds():
        body = cbor.decode(data, depth=wire.DEPTH)
        record = cbor.encode([0, 1, 2, body[1][0]])
        mark = cbor.encode([2, bytes(16)])
        commit = cbor.encode([2, 3, 1, 1, 1])
        yield b"".join(len(part).to_bytes(2, "little") + part for part in (record, mark, record, commit, record))
        break
    yield cbor.encode([1, bytes(16), 3, [[1, 4, 2, 3], [6, 6, 1, 0]]])
    yield b"EGJRNL1\n" + bytes(90)


def manifest_seeds() -> Seeds:
    out = io.BytesIO()
    writer = manifest.Writer(out)
    plain = manifest.Entry(0o100644, 0, 0, 5, "config", bytes(32))
    writer.add(b"/etc", [b"a", b"b"], [plain, manifest.Entry(0o120777, 0, 0, 0, "config", b"", b"../x")])
    writer.add(
        b"/etc/x", [b"su"], [manifest.Entry(0o104755, 0, 0, 9, "program", bytes(32), b"", b"\1" * 20, bytes(32))]
    )
    writer.add(b"/usr", [b"bin"], [manifest.Entry(0o40755, 0, 0, 0, "program")])
    writer.close()
    yield out.getvalue()
    for algorithm in Algorithm:
        empty = io.BytesIO()
        manifest.Writer(empty, algorithm).close()
        yield empty.getvalue()


def logbook_seeds() -> Seeds:
    tail = rotation.Tail(5000, 4096, bytes(16))
    sample = rotation.Sample(4096, bytes(range(16)), tail)
    known = (logs.Known((1, 2), sample), logs.Known((3, 4), sample, tail, "shortened", 9))
    yield logbook.encode(bytes(16), [(f"/var/log/{at}\udcff", one) for at, one in enumerate(known)])
    yield logbook.encode(bytes(16), ())


def aide_seeds() -> Seeds:
    head = b"Full = p+i+n+u+g+s+b+m+c+H-i\ndatabase_in=file:/x\n@@define RUN run\n"
    yield head + b"@@if not defined X\n/etc Full\n@@else\n/usr Full\n@@endif\n!/etc/mtab$ f\n=/home$ d E+p\n"
    yield head + b"/@@{RUN}/a(b|c)?[0-9]+\\\\.log$ f >\n!/var/[^/]+/x.*/y$\n-/a{2,3}$\n/b\\ c\\@ R\n"
    yield head + b"@@include /etc/aide/b\n@@x_include /etc/aide.d ^[a-z]+$\n/long \\\n  R\n"
    yield head + b"/ =vfat R-i\n!/w d=tmpfs\n@@if @@{AIDE_VERSION} version_ge 0.19\n/a%20b%c3%a9$ R\n@@endif\n"
    yield head + b"@@include /etc/aide.d ^[a-z]+$ /mnt\n=/srv/ R\n-/proc\n"


def observed_seeds() -> Seeds:
    subjects = {b"b": manifest.Entry(0o100644, 0, 0, 5, "", bytes(32))}
    for algorithm in Algorithm:
        out = io.BytesIO()
        writer = observed.Writer(out, bytes(32), None, algorithm)
        writer.start(0)
        for directory, names in ((b"/etc", [b"a", b"b"]), (b"/usr", [b"b"])):
            block = observed.block_of(directory, subjects)
            record = observed.encode(directory, names, observed.STAT.pack(1, 2, 3) * len(names), block)
            writer.put(record, len(names), 0)
        writer.close()
        yield out.getvalue()


def frames_seeds() -> Seeds:
    actor = Actor(pid=7, exe="/bin/sh")
    seen = Observation(
        "file", "/etc/\udcff", {"mode": 420, "x": ("a",)}, NOW, Status.PRESENT, Origin.SWEEP, actor, "note"
    )
    message = {"observations": [frames.observation_to_plain(seen)]}
    yield from (frames.pack(message), cbor.encode(message), cbor.encode({"error": "no", "progress": {"done": 1}}))


def control_seeds() -> Seeds:
    example = {"str": "F-AWF1", "strs": ["F-AWF1", "F-EP2Z"], "int": 5, "bool": True}
    for name, verb in VERBS.items():
        given = {key: example[parameter.type] for key, parameter in verb.parameters.items()}
        yield dump({"method": f"org.edgeguard.{name}", "parameters": given})
    yield dump({"parameters": {"verdict": "OK"}, "continues": True})
    yield dump({"error": "org.edgeguard.NotPermitted", "parameters": {"message": "no"}})
    yield dump({"verb": "restore-file", "finding": "F-AWF1", "nonce": 0})
    yield dump({"ok": True, "state": "done", "detail": "restored", "retry_s": 0, "nonce": 0})
    undone = {
        "id": "x",
        "finding": "F-AWF1",
        "verb": "restore-file",
        "subject": "/x",
        "at": 1,
        "state": "done",
        "plan": {},
    }
    yield dump({**undone, "detail": "", "changed": 0, "v": 1})
    yield b'{"method":"Why","parameters":{"subject":"\\ud800"}}'
    yield b'{"method":"Accept","parameters":{"ids":["\\ud800"],"reason":"\\udfff","marks":[]}}'
    yield from (b"[" * DEEP, b'{"a":' * DEEP, b'{"nonce":' + b"9" * DIGITS + b"}", b'{"a":1,"a":2}', b'{"a":NaN}')


def netlink_seeds() -> Seeds:
    inet = struct.pack(
        "=BBBB2s2s16s16sI8sIIIII", 2, 10, 0, 0, b"\0\x16", b"\0\0", bytes(16), bytes(16), 0, bytes(8), 0, 0, 0, 0, 7
    )
    six = b"\x0a" + inet[1:] + struct.pack("=HHB3x", 5, 11, 1)
    yield netlink.pack(20, 2, 1, inet) + netlink.pack(20, 2, 1, six) + netlink.pack(3, 2, 1, bytes(4))
    yield netlink.pack(2, 0, 1, struct.pack("=i", -13))
    event = struct.pack("=II8xII", 2, 0, 77, 77)
    yield (
        struct.pack("=IHHII", 16 + 20 + len(event), 3, 0, 0, 0)
        + struct.pack("=IIIIHH", 1, 1, 0, 0, len(event), 0)
        + event
    )
    yield from (inet, six)


def fsnotify_seeds() -> Seeds:
    yield struct.pack("=iIII", 1, 2, 0, 16) + b"name".ljust(16, b"\0") + struct.pack("=iIII", -1, 0x4000, 0, 0)
    info = struct.pack("=BBH8sIi", 2, 0, 20 + 8 + 4, bytes(8), 8, 1) + bytes(8) + b"abc\0"
    yield struct.pack("=IBBHQii", 24 + len(info), 3, 0, 24, 0x100, -1, 7) + info
    yield struct.pack("=IBBHQii", 24, 3, 0, 24, 0x4000, -1, 0)


def uevent_seeds() -> Seeds:
    yield b"add@/devices/pci0000:00/usb1/1-1.2\0ACTION=add\0SUBSYSTEM=usb\0"
    yield b"remove@/module/usbhid\0"
    device = bytes((18, 1, 0, 2, 0, 0, 0, 64)) + b"\x6b\x1d\x02\x00" + bytes(6)
    yield (
        device
        + bytes((9, 2, 25, 0, 1, 1, 0, 0x80, 50))
        + bytes((9, 4, 0, 0, 1, 8, 6, 80, 0))
        + bytes((7, 5, 1, 2, 0, 2, 0))
    )


PROC_SAMPLES = (
    b"7 (a) b) S 1 7 7 34816 7 4194560 1 0 0 0 1 1 0 0 20 0 1 0 12345 1000000 100 18446744073709551615 0 0 0 0 0\n",
    b"Name:\tbash\nUmask:\t0022\nUid:\t1000\t1000\t1000\t1000\nGid:\t1000\t1000\t1000\t1000\n",
    b"0::/user.slice/user-1000.slice/session-3.scope\n",
    b"1:name=systemd:/system.slice/ssh.service\n0::/x\n",
    b"usbhid 65536 1 hid_generic,hid_x, Live 0x0000000000000000 (OE)\n",
    b"usbhid " + b"9" * DIGITS + b" 1 - Live 0x0\n",
    (
        b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n"
        b"23 22 0:21 / /a\\040b ro,nosuid - tmpfs tmpfs rw,size=1k\n"
    ),
    (
        b"  sl  local_address rem_address   st\n   0: 0100007F:0016 00000000:0000 0A "
        b"00000000:00000000 00:00000000 00000000     0        0 12345 1\n"
    ),
    b"x\n   0: 0100007F:0016 -0001007:0000 0A 00000000:00000000 00:00000000 00000000 0 0 45 1\n",
    b"x\n   0: "
    + b"0" * 32
    + b":0016 "
    + b"0" * 32
    + b":0000 07 00000000:00000000 00:00000000 00000000  0  0 12345 1\n",
    b"/usr/bin/python3\0-c\0\xff\n\0",
    b"2\n",
    b"9" * DIGITS,
)


def _policies() -> list[bytes]:
    """A watch, a rule with every kind of condition, a waiver; small enough for a fuzzer."""
    return [
        b'[[watch]]\npath = "/etc/*/conf"\ncategory = "config"\nexclude = ["/etc/x"]\n',
        b'[[rule]]\nid = "r1"\ncode = "EG-FILE-001"\nkind = "file"\nseverity = "high"\ntitle = "t"\n',
        b'where = { category = "config" }\nexpect = { uid = 0 }\n',
        b'[[waiver]]\ncode = "EG-FILE-001"\nsubject = "/x"\nowner = "me"\nreason = "so"\nexpires = 2027-01-01\n',
        b'[validity]\nexpires_after = "400d"\n',
    ]


def policy_seeds() -> Seeds:
    for name, data in store.read_policy_dirs(str(TOP / "packaging/policy.d"), ""):
        pieces = data.split(b"\n\n[[")
        yield from (pieces[0], *(b"[[" + piece for piece in pieces[1 :: max(1, len(pieces) // 12)]))
        assert name
    for path in sorted((TOP / "tests/corpus/policy").glob("*/*.toml")):
        yield path.read_bytes()
    yield b"".join(_policies())
    yield from toml_bombs()


def toml_bombs() -> Seeds:
    yield from (b"a = " + b"[" * DEEP, b"a = " + b"{b=" * DEEP, b"a = " + b"9" * DIGITS, b"mode = 0x" + b"f" * DIGITS)
    yield from (b"[" + b"a." * DEEP + b"a]", b"x = 9999-12-31T23:59:59-23:59", b"a = 1e999999", b'a = "\\UFFFFFFFF"')
    yield b"[[waiver]]\nexpires = 0001-01-01T00:00:00+23:59\n"
    yield b"[[rule]]\nexpect = { uid = 0x" + b"f" * DIGITS + b" }\n"


def settings_seeds() -> Seeds:
    yield b'name = "pump-07"\nmode = "enforce"\n[uplink]\nurl = "https://c.example:7443"\n\n[budget]\nsweep_s = 9\n'
    yield b'[paths]\nroot = "/"\nstate = "/x"\n'
    yield b'[alerts]\nquiet = ["22:00-06:00"]\nzone = "UTC"\n[[alerts.webhook]]\nname = "a"\nurl = "https://a/b?c"\n'
    yield b'[[alerts.mail]]\nname = "m"\nserver = "s"\nfrom = "a@b.c"\nto = ["d@e.f"]\n[silence]\nbeats = 3\n'
    yield b'[metrics]\nlisten = "[::1]:9464"\n[store]\nurl = "postgresql://a@b/c"\n'
    yield from toml_bombs()


def image_seeds() -> Seeds:
    yield b'ID=debian\nIMAGE_ID=pump\nIMAGE_VERSION="2026.11.1"\n'
    yield b"IMAGE_VERSION='\xff 1'\n"
    yield b"%s 8 - pump 2026.11.1\n%s 9 11111111-2222 pump 2026.11.2\n" % (b"ab" * 32, b"cd" * 32)
    yield b"%s 8 x \xe2\x80\xa8y\nz 1 2 3\n" % (b"00" * 32)


def dpkg_seeds() -> Seeds:
    yield (
        b"Package: dpkg\nStatus: install ok installed\nArchitecture: arm64\nVersion: 1.21.22\nDescription: x\n y\n\n"
        b"Package: x\nStatus: hold reinstreq half-configured\nVersion: 1:2~3\n\n"
    )
    yield b"/usr/bin/a\n/usr/bin/a.distrib\nx\n/bin/b\n/bin/b.d\n:\n"
    yield b'P="x"\nJOB=/etc/cron.d/${P}\n# rm /a\nrm -f "$JOB" \\\n  /etc/x/*.d /etc/x/y\nucf --purge /etc/default/$P\n'


def sshd_seeds() -> Seeds:
    yield (
        b'Port 22\nPermitRootLogin = "no"\nCiphers -3des*\nMatch User a\\ b Address 1.2.3.4\n  X11Forwarding yes # c\n'
        b"MaxAuthTries 3\nAllowUsers a 'b c' d\nSubsystem sftp internal-sftp\nLogLevel VERBOSE\nMatch all\n"
    )
    yield b"Include /etc/ssh/x\nMACs hmac-md5\nPermitTunnel point-to-point\nSkeyAuthentication yes\n"


def present_cache(*paths: str | bytes, order: str = "<", flags: int | None = None, count: int | None = None) -> bytes:
    """The dynamic loader's cache in its present layout."""
    flags = {"<": 2, ">": 3}[order] if flags is None else flags
    at, rows, strings = 48 + 24 * len(paths), b"", b""
    for path in paths:
        rows += struct.pack(order + "iIIIQ", 3, at + len(strings), at + len(strings), 0, 0)
        strings += os.fsencode(path) + b"\0"
    head = struct.pack(order + "IIB3xI12x", len(paths) if count is None else count, len(strings), flags, 0)
    return b"glibc-ld.so.cache1.1" + head + rows + strings


def old_cache(*paths: str, behind: bytes = b"", align: int = 8) -> bytes:
    """A cache of the old layout; with a present one behind its table the strings of that one are its own."""
    rows, strings = b"", b""
    end = 16 + 12 * len(paths)
    pad = bytes(-end % align) if behind else b""
    for path in paths:
        at = len(pad) + len(behind) + len(strings)
        rows += struct.pack("=iII", 1, at, at)
        strings += os.fsencode(path) + b"\0"
    return b"ld.so-1.7.0\0" + struct.pack("=I", len(paths)) + rows + pad + behind + strings


def libraries_seeds() -> Seeds:
    yield present_cache("/lib/x86_64-linux-gnu/libc.so.6", b"/srv/\xff/libz.so.1", "libx.so")
    yield present_cache("/lib/libc.so.6", "/srv/", order=">")
    yield present_cache("/usr/lib/libc.so.6", flags=0)
    yield old_cache("/lib/libc.so.6", "/srv/evil/libz.so.1", behind=present_cache("/lib/libc.so.6"))
    yield old_cache("/lib/libc.so.6")
    yield b"include /etc/ld.so.conf.d/*.conf x\n/opt/a/ # b\nhwcap 0 x\n  /opt/b=libc6\n"


def changes_seeds() -> Seeds:
    """Old and new of each format, and texts that are made to cost much or to hide a secret."""
    between = b"-" * 64 + b"\n"
    pairs = (
        (b"root:x:0:0::/root:/bin/sh\n", b"root:x:0:0::/root:/bin/sh\neve:x:0:0::/root:/bin/sh\n"),
        (b"pi:$6$salt$aaaaaaaaaaaa:1:0:99999:7:::\n", b"pi:!$6$salt$bbbbbbbbbbbb:2:0:99999:7::9:\n"),
        (b"sudo:x:27:pi\n", b"sudo:x:27:pi,eve\n"),
        (b"Defaults env_reset\nroot ALL=(ALL) ALL\n", b"root ALL=(ALL) \\\n ALL\neve ALL=NOPASSWD: ALL # x\n"),
        (b"PermitRootLogin no\n", b'PermitRootLogin=yes\nMatch User a\n SetEnv A="b\n'),
        (b"5 4 * * * root /a\n", b"MAILTO=x\n@reboot root curl -u a:b https://a:b@c/\n5 4 * * 1 root /a\n"),
        (
            b"[Service]\nExecStart=/a\n",
            b"[Service]\nExecStart=\nExecStart=/b \\\n# c\n --token x\nEnvironment=P_PASSWORD=x\n",
        ),
    )
    for old, new in pairs:
        yield old + between + new
    yield b"a = 1\n-----BEGIN A KEY-----\nabc=\n" + between + b"password: |\n  a\n  b\n" + b"Aa0/" * 16 + b"\nq==\n"
    yield b"password='\n" * 500 + between + b"x" * 60_000
    yield b"".join(b"%d\n" % number for number in range(2900)) + between + b"\n" * 2900
    yield b"<password>\nx\n</password>\n--password \\\nx\n" + between + b'token = """\nx\n'


def accounts_seeds() -> Seeds:
    yield b"root:x:0:0:root:/root:/bin/bash\nx::1000:1000::/home/x:\n+nis::::::\nbad:x:99999999999:1:::\n"
    yield b"root:$y$j9T$abc:19000:0:99999:7:::\nx:!:1::::1:2:\ny:*:::::::\nz:x:0::::9:1:\n"
    yield b"sudo:x:27:a,b\nx:!::a,b\n+:::\nsudo:$6$abcdefghijk:root:a\n"
    blob = b"AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
    yield b'command="a \\" b",no-pty ssh-ed25519 ' + blob + b" me@there\nssh-rsa AAAA\n# x\n"


def apt_seeds() -> Seeds:
    signed = TOP / "tests/unit/upgrades/archive"
    yield from (path.read_bytes() for path in sorted(signed.iterdir()))
    yield b"a-b 1:2~x amd64 same < 1:3 amd64 same /c/a-b_1%3a3_amd64.deb\ncd 1 all none > - - none **REMOVE**"
    yield b"deb [arch=amd64 signed-by=/k.gpg trusted=yes] http://u:p@h/debian stable main # x\n"
    yield b"Types: deb deb-src\nURIs: http://h/a_b https://i/\nSuites: s ./\nSigned-By:\n -----BEGIN PGP\n .\n x\n"
    yield b"1:1.0~rc1-1+deb12u1\n" + b"9" * DIGITS
    yield b"deb http:// /\nURIs: :\nTypes: deb\nSuites: /\n"


def _tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def package_seeds() -> Seeds:
    control = tarfile.TarInfo("./control")
    yield _tar(
        (control, b"Package: ab\nVersion: 1\nArchitecture: all\nMulti-Arch: same\n"),
        (tarfile.TarInfo("./postinst"), b"x"),
    )
    file, hard, soft, device = (tarfile.TarInfo(f"./usr/bin/{name}") for name in "abcd")
    hard.type, hard.linkname = tarfile.LNKTYPE, "./usr/bin/a"
    soft.type, soft.linkname = tarfile.SYMTYPE, "../x"
    device.type = tarfile.CHRTYPE
    yield _tar((file, b"data"), (hard, b""), (soft, b""), (device, b""), (tarfile.TarInfo("./" + "l" * 300), b"y"))
    hard.linkname = "./nowhere"
    yield _tar((hard, b""))
    yield _tar((tarfile.TarInfo("./../../etc/passwd"), b"z"))
    yield _tar((file, b"data"))[:700]
    yield b"!<arch>\ndebian-binary   "


def overlay_seeds() -> Seeds:
    yield cbor.encode(overlay_row())
    yield cbor.encode([1, "x", 5, "unpack", [["ab", "all", "1", "2", "archive", b"s" * 32, 7, b"#!"]], ["trouble"]])
    yield cbor.encode([1, b"", b"", 0, {}, [], []])
    yield cbor.encode([2])


def overlay_row() -> list[Any]:
    return [1, b"b" * 32, b"d" * 32, 9, [["ab", "1"]], [["ab", "1", "nobody", 3, ""]], [[b"/etc/x", b"f" * 32]], []]


def mqtt_seeds() -> Seeds:
    """Topics, replies and packets; and lengths that do not end, giants, a PUBACK that says no."""
    for kind in (mqttwire.UP, mqttwire.RENEW, mqttwire.RX):
        yield mqttwire.topic(bytes(range(16)), kind).encode()
    yield b"eg/1/" + b"A" * 32 + b"/up"
    yield b"eg/1/+/up"
    yield mqttwire.encode(mqttwire.Answer(bytes(16), 200, None, b"\xd2\x84"))
    yield mqttwire.encode(mqttwire.Answer(bytes(16), 503, 60, b"busy\n"))
    yield cbor.encode([1, bytes(16), 2**64 - 1, 2**64 - 1, b""])
    yield b"\x20\x06\x00\x00\x03\x22\x00\x0a" + b"\x90\x04\x00\x01\x00\x01" + b"\x40\x03\x00\x01\x87\xd0\x00"
    yield b"\x40\x02\x00\x01" + b"\x40\x04\x00\x01\x10\x00" + b"\x32\x81\x01" + bytes(129)
    yield b"\x30\xff\xff\xff\xff\x7f"
    yield b"\x30\x80\x80\x80\x00" * 3
    yield b"\x30\xff\xff\xff\x7f" + bytes(50)
    yield bytes(40)
    yield b"\xd0\x00" * 1200


SEEDS = {
    "apt": apt_seeds,
    "package": package_seeds,
    "overlay": overlay_seeds,
    "cbor": cbor_seeds,
    "cose": cose_seeds,
    "segment": segment_seeds,
    "packed": packed_seeds,
    "baseline": baseline_seeds,
    "evidence": evidence_seeds,
    "receipt": receipt_seeds,
    "epoch": epoch_seeds,
    "tpm": tpm_seeds,
    "es256": es256_seeds,
    "ledger": ledger_seeds,
    "journal": journal_seeds,
    "manifest": manifest_seeds,
    "observed": observed_seeds,
    "frames": frames_seeds,
    "control": control_seeds,
    "netlink": netlink_seeds,
    "fsnotify": fsnotify_seeds,
    "uevent": uevent_seeds,
    "procfs": lambda: iter(PROC_SAMPLES),
    "policy": policy_seeds,
    "aide": aide_seeds,
    "logbook": logbook_seeds,
    "answer": answer_seeds,
    "memory": memory_seeds,
    "certificate": certificate_seeds,
    "enrolment": enrolment_seeds,
    "mqtt": mqtt_seeds,
    "encrypted": encrypted_seeds,
    "settings": settings_seeds,
    "image": image_seeds,
    "dpkg": dpkg_seeds,
    "sshd": sshd_seeds,
    "libraries": libraries_seeds,
    "changes": changes_seeds,
    "accounts": accounts_seeds,
}


def write(folder: Path) -> None:
    assert SEEDS.keys() == {harness.name for harness in TABLE}
    for name, seeds in SEEDS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(seeds()):
            (folder / name / f"seed-{number:03d}").write_bytes(data)


if __name__ == "__main__":
    os.umask(0o022)
    write(Path(sys.argv[1]))
    print(json.dumps({name: sum(1 for _ in seeds()) for name, seeds in SEEDS.items()}))
