"""Whether an archive that this device trusts vouches for a .deb.

The chain is apt's own: a key that the operator gave to a source signs its Release file, that holds the digests of the
Packages indexes, and those hold the digests of the .debs. apt has checked it when it fetched them; here it is checked
again from the signature on, because what lies in /var/lib/apt/lists could have been put there since. Indexes that the
hook kept count as well: a .deb stays the archive's when its index has moved on.

What dpkg says about installed packages proves nothing: whoever changes files can change that too.
"""

from __future__ import annotations

import base64
import os
import re
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import IO, NamedTuple

ARCHIVE = "archive"  # a signature vouches
OPERATOR = "operator"  # the operator said [trusted=yes]
NOBODY = "nobody"

FILES_MAX = 1000  # of sources, keyrings and indexes each
TEXT_MAX = 4 << 20  # bytes of a Release file or a list of sources; Debian's Release has 0.3 MB
KEYRING_MAX = 4 << 20
INDEX_MAX = 2 << 30  # bytes of a Packages index as text; Debian's has 50 MB
CHUNK = 4 << 20
VERIFY_S = 30
VERIFIERS = ("/usr/bin/gpgv", "/usr/bin/sqv")
APT_HELPER = "/usr/lib/apt/apt-helper"  # reads an index however it is compressed
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}
COMPRESSED = ("lz4", "xz", "gz", "bz2", "zst", "lzma")
_DIGEST = re.compile(rb"\nSHA256: ([0-9a-f]{64})\n")
FINGERPRINT = re.compile(r"[0-9A-F]{40}|[0-9A-F]{64}")
_LISTED = re.compile(rb" ([0-9a-f]{64}) +(\d+) (\S+)")


class Source(NamedTuple):
    """One place that the operator told apt to fetch from."""

    prefix: str  # of the names of its files in /var/lib/apt/lists
    keyrings: tuple[str, ...]  # files; empty: those that apt trusts for all sources
    fingerprints: frozenset[str]  # of the only keys that may sign; empty: any of the keyrings
    keys: bytes  # an armoured key written into the source itself
    trusted: bool  # [trusted=yes]


class Vouching(NamedTuple):
    """Who vouches for which .deb (SHA-256), and what was in the way, in plain sentences."""

    found: Mapping[bytes, str]
    troubles: tuple[str, ...]


def vouch(root: str, directories: Sequence[str], digests: frozenset[bytes]) -> Vouching:
    """`directories`: (directory, prefix of file names) where indexes lie."""
    found: dict[bytes, str] = {}
    troubles: list[str] = []
    listed = sources(root)
    for directory in directories:
        for source in listed:
            if digests <= found.keys():
                break
            _ask(root, directory, source, digests, found, troubles)
    return Vouching(found, tuple(dict.fromkeys(troubles))[:20])


def _ask(
    root: str, directory: str, source: Source, wanted: frozenset[bytes], found: dict[bytes, str], troubles: list[str]
) -> None:
    """What this source's indexes say, as far as they are signed."""
    folder, _, mark = directory.rpartition("/")
    names = [name[len(mark) :] for name in _names(folder) if name.startswith(mark + source.prefix)]
    word = OPERATOR if source.trusted else ARCHIVE
    try:
        release = _release(root, folder, mark, source)
    except OSError as error:
        troubles.append(f"{source.prefix}: {error.strerror}")
        release = None
    if release is None and not source.trusted:
        if names:
            troubles.append(f"{source.prefix}: no signature of a key that this source trusts")
        return
    for name in names:
        if "_Packages" not in name:
            continue
        inner = name[len(source.prefix) :]
        try:
            hits, digest = _search(f"{folder}/{mark}{name}", wanted)
        except OSError as error:  # `apt update` has just replaced it
            troubles.append(f"{name}: {error.strerror}")
            continue
        if source.trusted or (release is not None and digest in listed(release, inner)):
            for hit in hits:
                found.setdefault(hit, word)


# -- Release files and their signatures


def _release(root: str, folder: str, mark: str, source: Source) -> bytes | None:
    """The text of the Release file, if a key of the source signed it."""
    base = f"{folder}/{mark}{source.prefix}"
    keyring = _keyring(root, source)
    if not keyring:
        return None
    if (signed := _content(base + "InRelease", TEXT_MAX)) is not None:
        parts = clear_signed(signed)
        return parts[0] if parts is not None and _trusted(source, signers(*parts, keyring)) else None
    text, signature = _content(base + "Release", TEXT_MAX), _content(base + "Release.gpg", TEXT_MAX)
    if text is None or signature is None:
        return None
    return text if _trusted(source, signers(text, signature, keyring)) else None


def _trusted(source: Source, fingerprints: frozenset[str]) -> bool:
    """One good signature is enough: an archive that changes its key signs with both for a while."""
    return bool(fingerprints & source.fingerprints if source.fingerprints else fingerprints)


def clear_signed(data: bytes) -> tuple[bytes, bytes] | None:
    """(text, signature) of a clear-signed message; None for anything else, also for text before or after it."""
    head, begin, rest = data.partition(b"-----BEGIN PGP SIGNED MESSAGE-----\n")
    header, blank, rest = rest.partition(b"\n\n")
    text, end, signature = rest.partition(b"\n-----BEGIN PGP SIGNATURE-----\n")
    inner, closed, after = signature.partition(b"\n-----END PGP SIGNATURE-----")
    if not (begin and blank and end and closed) or head.strip() or after.strip():
        return None
    if any(not line.startswith(b"Hash: ") for line in header.split(b"\n")):
        return None
    lines = [line[2:] if line.startswith(b"- ") else line for line in text.split(b"\n")]
    if any(line.startswith(b"-----") for line in text.split(b"\n")):
        return None  # a second message inside
    armour = b"-----BEGIN PGP SIGNATURE-----\n" + inner + b"\n-----END PGP SIGNATURE-----\n"
    return b"\n".join(line.rstrip(b" \t\r") for line in lines), armour


def signers(text: bytes, signature: bytes, keyring: bytes) -> frozenset[str]:
    """The fingerprints of keys of the keyring that signed this text. Asked of whichever verifier apt has here."""
    program = next((name for name in VERIFIERS if os.path.exists(name)), "")
    if not program:
        return frozenset()
    fds = [_memory(data) for data in (keyring, signature, text)]
    try:
        ring, sig, message = (f"/proc/self/fd/{fd}" for fd in fds)
        options = ["--keyring", ring, *(["--status-fd", "1"] if program.endswith("gpgv") else [])]
        done = subprocess.run(
            [program, *options, sig, message],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=fds,
            env=ENVIRONMENT,
            timeout=VERIFY_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return frozenset()
    finally:
        for fd in fds:
            os.close(fd)
    if program.endswith("gpgv"):
        return good_signatures(done.stdout)
    words = done.stdout.decode("ascii", "replace").split() if done.returncode == 0 else []
    return frozenset(word.upper() for word in words)


def good_signatures(status: bytes) -> frozenset[str]:
    """Fingerprints (of the key and of the primary one) out of what gpgv reports. It ends with an error as soon as one
    of several signatures is by a key that it does not have; an expired or revoked key gives no GOODSIG."""
    found: set[str] = set()
    good = False
    for line in status.split(b"\n"):
        words = line.decode("ascii", "replace").split()
        if words[:1] != ["[GNUPG:]"] or len(words) < 3:
            good = good and words[1:2] != ["NEWSIG"]
        elif words[1] == "NEWSIG":
            good = False
        elif words[1] == "GOODSIG":
            good = True
        elif words[1] == "VALIDSIG" and good:
            found |= {words[2].upper(), words[-1].upper()}
    return frozenset(found)


def _memory(data: bytes) -> int:
    fd = os.memfd_create("edgeguard")
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _keyring(root: str, source: Source) -> bytes:
    """The keys that count for a source, as one binary keyring."""
    if source.keys:
        return dearmoured(source.keys)
    paths: Sequence[str] = source.keyrings
    if not paths:
        apt = f"{root.rstrip('/')}/etc/apt"
        parts = [name for name in _names(f"{apt}/trusted.gpg.d") if name.endswith((".gpg", ".asc"))]
        paths = [f"{apt}/trusted.gpg", *(f"{apt}/trusted.gpg.d/{name}" for name in parts[:FILES_MAX])]
    found = (_content(path, KEYRING_MAX) for path in paths)
    return b"".join(dearmoured(data) for data in found if data)


def dearmoured(data: bytes) -> bytes:
    """Binary keys out of armoured ones; binary ones stay as they are."""
    if not data.lstrip().startswith(b"-----BEGIN PGP PUBLIC KEY BLOCK-----"):
        return data
    keys = b""
    for block in data.split(b"-----BEGIN PGP PUBLIC KEY BLOCK-----")[1:]:
        body = block.partition(b"-----END")[0].replace(b"\r", b"")
        body = body.partition(b"\n\n")[2] if b"\n\n" in body else body
        lines = [line for line in body.split(b"\n") if line and not line.startswith(b"=") and b":" not in line]
        try:
            keys += base64.b64decode(b"".join(lines), validate=True)
        except ValueError:
            continue
    return keys


def listed(release: bytes, index: str) -> set[bytes]:
    """What a Release file says the index is, under any name that it may have on the server."""
    _, _, table = release.partition(b"\nSHA256:")
    stem = _uncompressed(index)
    found = set()
    for digest, _size, name in _LISTED.findall(table):
        if os.fsdecode(name).replace("/", "_") == stem:
            found.add(bytes.fromhex(digest.decode()))
    return found


def _uncompressed(name: str) -> str:
    stem, dot, extension = name.rpartition(".")
    return stem if dot and extension in COMPRESSED else name


# -- Packages indexes


def _search(path: str, wanted: frozenset[bytes]) -> tuple[set[bytes], bytes]:
    """Which of the digests an index holds, and its own (as text), in one reading."""
    value, hits = sha256(), set[bytes]()
    tail = b"\n"
    for chunk in _text(path):
        value.update(chunk)
        data = tail + chunk
        hits.update(digest for found in _DIGEST.findall(data) if (digest := bytes.fromhex(found.decode())) in wanted)
        tail = data[-80:]
    return hits, value.digest()


def _text(path: str) -> Iterator[bytes]:
    if path.endswith("_Packages"):
        # A link is followed: apt makes one for an archive on this device, and what it leads to is measured anyway.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                yield from _pieces(file)
        return
    # By its extension apt knows how it is compressed, so it is given under its whole name.
    words = [APT_HELPER, "cat-file", path]
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=ENVIRONMENT
    ) as child:
        assert child.stdout is not None
        try:
            yield from _pieces(child.stdout)
        finally:
            child.kill()


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    left = INDEX_MAX
    while left > 0 and (chunk := file.read(min(CHUNK, left))):
        left -= len(chunk)
        yield chunk


# -- what the operator told apt


def sources(root: str) -> list[Source]:
    """All sources of this device, one for each place and suite."""
    apt = f"{root.rstrip('/')}/etc/apt"
    found: list[Source] = []
    parts = sorted(_names(f"{apt}/sources.list.d"))[:FILES_MAX]
    for path in (f"{apt}/sources.list", *(f"{apt}/sources.list.d/{name}" for name in parts)):
        text = _content(path, TEXT_MAX)
        if text is None:
            continue
        read = _deb822 if path.endswith(".sources") else _lines if path.endswith(".list") else None
        if read is not None:
            found += read(text.decode("utf-8", "surrogateescape"), root)
    return found


def read_sources(text: str, root: str) -> list[Source]:
    """The sources of one file, whichever of apt's two forms it has."""
    return [*_lines(text, root), *_deb822(text, root)]


def _lines(text: str, root: str) -> Iterator[Source]:
    """deb [option=value ...] URI SUITE COMPONENT..."""
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)", line.partition("#")[0])
        if match is None:
            continue
        options = dict(pair.partition("=")[::2] for pair in (match[1] or "").split())
        yield _source(
            match[2], match[3], options.get("signed-by", "").replace(",", " "), options.get("trusted", ""), root
        )


def _deb822(text: str, root: str) -> Iterator[Source]:
    for paragraph in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in paragraph.splitlines():
            if line.startswith("#"):
                continue
            if line[:1] in (" ", "\t"):
                fields[name] = fields.get(name, "") + "\n" + line.strip()
            else:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield _source(uri, suite, fields.get("signed-by", ""), fields.get("trusted", ""), root)


def _source(uri: str, suite: str, signed_by: str, trusted: str, root: str) -> Source:
    inner = suite.lstrip("/") if suite.endswith("/") else f"dists/{suite}/"
    place = uri.rstrip("/") + "/" + inner
    keys = b""
    keyrings: tuple[str, ...] = ()
    if "BEGIN PGP" in signed_by:
        keys = "\n".join("" if line == "." else line for line in signed_by.split("\n")).encode("utf-8", "replace")
    else:
        keyrings = tuple(root.rstrip("/") + word for word in signed_by.split() if word.startswith("/"))
    marks = (word.rstrip("!").upper() for word in signed_by.split() if not keys and not word.startswith("/"))
    fingerprints = frozenset(mark for mark in marks if FINGERPRINT.fullmatch(mark))
    return Source(file_name(place), keyrings, fingerprints, keys, trusted.lower() in ("yes", "true", "1", "on"))


def file_name(uri: str) -> str:
    """How apt calls files of a place in /var/lib/apt/lists: without scheme and login, / as _, odd bytes as %xx."""
    rest = uri.partition("://")[2] or uri.partition(":")[2]
    host, slash, path = rest.partition("/")
    host = host.rpartition("@")[2]
    text = (host + slash + path).lstrip("/") if host else slash + path
    bad = '\\|{}[]<>"^~_=!@#$%^&*'
    quoted = "".join(f"%{ord(c):02x}" if c in bad or ord(c) <= 0x20 or ord(c) >= 0x7F else c for c in text)
    return quoted.replace("/", "_")


def _names(directory: str) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.name for entry, _ in zip(entries, range(FILES_MAX * 4), strict=False))
    except OSError:
        return []


def _content(path: str, limit: int) -> bytes | None:
    """A regular file of bounded size, None where there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        data = file.read(limit + 1)
    return data if len(data) <= limit else None
