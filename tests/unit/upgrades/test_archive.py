"""An archive vouches for a .deb, or it does not. `archive/` was signed once with a key that nobody kept."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from edgeguard.upgrades import archive
from edgeguard.upgrades.archive import ARCHIVE, OPERATOR, clear_signed, dearmoured, file_name, sources, vouch

SIGNED = Path(__file__).parent / "archive"
ONE = hashlib.sha256(b"one").digest()
ELSEWHERE = hashlib.sha256(b"elsewhere").digest()
PREFIX = "deb.example.org_debian_dists_test_"
SOURCE = "Types: deb\nURIs: http://deb.example.org/debian\nSuites: test\nComponents: main\nSigned-By: /key.asc\n"
pytestmark = pytest.mark.skipif(
    not any(Path(name).exists() for name in archive.VERIFIERS), reason="neither gpgv nor sqv is installed"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A device whose apt fetched the archive."""
    (tmp_path / "etc/apt/sources.list.d").mkdir(parents=True)
    (tmp_path / "etc/apt/sources.list.d/test.sources").write_text(SOURCE)
    shutil.copy(SIGNED / "archive.asc", tmp_path / "key.asc")
    lists = tmp_path / "var/lib/apt/lists"
    lists.mkdir(parents=True)
    shutil.copy(SIGNED / "InRelease", lists / f"{PREFIX}InRelease")
    shutil.copy(SIGNED / "Packages", lists / f"{PREFIX}main_binary-all_Packages")
    return tmp_path


def asked(root: Path, digest: bytes = ONE, places: list[str] | None = None) -> str:
    places = places or [f"{root}/var/lib/apt/lists/"]
    return vouch(str(root), places, frozenset((digest,))).found.get(digest, "")


def test_the_archive_vouches(root: Path) -> None:
    assert asked(root) == ARCHIVE
    assert asked(root, ELSEWHERE) == ""


def test_a_detached_signature(root: Path) -> None:
    lists = root / "var/lib/apt/lists"
    (lists / f"{PREFIX}InRelease").unlink()
    for name in ("Release", "Release.gpg"):
        shutil.copy(SIGNED / name, lists / f"{PREFIX}{name}")
    assert asked(root) == ARCHIVE
    (lists / f"{PREFIX}Release").write_bytes((SIGNED / "Release").read_bytes() + b"\n")
    assert asked(root) == ""


def test_an_index_that_was_changed(root: Path) -> None:
    index = root / f"var/lib/apt/lists/{PREFIX}main_binary-all_Packages"
    index.write_text(index.read_text() + f"Package: three\nSHA256: {ELSEWHERE.hex()}\n\n")
    assert asked(root, ELSEWHERE) == ""
    assert asked(root) == "", "an index that is not the signed one vouches for nothing at all"


@pytest.mark.parametrize("change", ["text", "before", "after", "signature", "nothing"])
def test_a_release_file_that_was_changed(root: Path, change: str) -> None:
    file = root / f"var/lib/apt/lists/{PREFIX}InRelease"
    data = file.read_bytes()
    other = {
        "text": data.replace(b"Origin: Test", b"Origin: Tess"),
        "before": b"SHA256:\n x\n" + data,
        "after": data + b"SHA256:\n x\n",
        "signature": data.replace(b"-----BEGIN PGP SIGNATURE-----\n\n", b"-----BEGIN PGP SIGNATURE-----\n\nAAAA"),
        "nothing": b"",
    }[change]
    assert other != data
    file.write_bytes(other)
    assert asked(root) == ""


def test_a_key_that_is_not_this_sources(root: Path) -> None:
    shutil.copy(SIGNED / "other.asc", root / "key.asc")
    assert asked(root) == ""
    (root / "key.asc").unlink()
    assert asked(root) == ""
    (root / "key.asc").write_bytes(dearmoured((SIGNED / "archive.asc").read_bytes()))
    assert asked(root) == ARCHIVE, "a binary keyring is one, too"


def test_without_signed_by_the_keys_for_all_sources_count(root: Path) -> None:
    listed = root / "etc/apt/sources.list.d/test.sources"
    listed.write_text(SOURCE.replace("Signed-By: /key.asc\n", ""))
    assert asked(root) == ""
    (root / "etc/apt/trusted.gpg.d").mkdir()
    shutil.copy(SIGNED / "archive.asc", root / "etc/apt/trusted.gpg.d/a.asc")
    assert asked(root) == ARCHIVE


def test_a_key_inside_the_source(root: Path) -> None:
    key = (SIGNED / "archive.asc").read_text().splitlines()
    inline = "Signed-By:\n" + "".join(f" {line or '.'}\n" for line in key)
    listed = root / "etc/apt/sources.list.d/test.sources"
    listed.write_text(SOURCE.replace("Signed-By: /key.asc\n", inline))
    assert asked(root) == ARCHIVE


@pytest.mark.parametrize("line", ["deb [trusted=yes] http://deb.example.org/debian test main\n", ""])
def test_what_the_operator_trusts_without_a_signature(root: Path, line: str) -> None:
    listed = root / "etc/apt/sources.list.d/test.sources"
    listed.unlink()
    (root / "etc/apt/sources.list").write_text(line)
    (root / f"var/lib/apt/lists/{PREFIX}InRelease").unlink()
    assert asked(root) == (OPERATOR if line else "")


def test_a_source_that_is_switched_off(root: Path) -> None:
    (root / "etc/apt/sources.list.d/test.sources").write_text(SOURCE + "Enabled: no\n")
    assert asked(root) == ""


def test_the_indexes_that_the_hook_kept_count(root: Path, tmp_path: Path) -> None:
    kept = tmp_path / "transaction"
    kept.mkdir()
    lists = root / "var/lib/apt/lists"
    for file in list(lists.iterdir()):
        file.rename(kept / f"index.{file.name}")
    assert asked(root) == ""
    assert asked(root, places=[f"{kept}/index.", f"{lists}/"]) == ARCHIVE


def test_names_of_files(root: Path) -> None:
    assert file_name("http://deb.example.org/debian/dists/test/") == PREFIX
    assert file_name("https://user:word@h.example/a_b/") == "h.example_a%5fb_"
    assert [source.prefix for source in sources(str(root))] == [PREFIX]
    text = "deb [arch=amd64 signed-by=/key.asc] http://deb.example.org/debian test main # x\n# deb http://n test main\n"
    (root / "etc/apt/sources.list").write_text(text)
    (first, _) = sources(str(root))
    assert (first.prefix, first.keyrings) == (PREFIX, (f"{root}/key.asc",))


def test_clear_signed_text_is_taken_apart_strictly() -> None:
    data = (SIGNED / "InRelease").read_bytes()
    parts = clear_signed(data)
    assert parts is not None
    assert parts[0] + b"\n" == (SIGNED / "Release").read_bytes()
    assert clear_signed(data.replace(b"Hash: ", b"Text: ")) is None
    assert clear_signed(data.replace(b"Origin: Test", b"-----BEGIN PGP SIGNED MESSAGE-----")) is None


def test_an_archive_on_this_device(root: Path) -> None:
    """apt makes a link to it."""
    index = root / f"var/lib/apt/lists/{PREFIX}main_binary-all_Packages"
    index.rename(root / "Packages")
    index.symlink_to(root / "Packages")
    assert asked(root) == ARCHIVE
    (root / "Packages").unlink()
    assert asked(root) == "", "gone meanwhile, and nothing else is"


def test_only_the_keys_that_are_named_count(root: Path) -> None:
    (root / "etc/apt/trusted.gpg.d").mkdir()
    shutil.copy(SIGNED / "archive.asc", root / "etc/apt/trusted.gpg.d/archive.asc")
    release = (SIGNED / "Release").read_bytes()
    (signer, *_) = archive.signers(
        release, (SIGNED / "Release.gpg").read_bytes(), dearmoured((SIGNED / "archive.asc").read_bytes())
    )
    for mark, word in ((signer, ARCHIVE), (signer.lower() + "!", ARCHIVE), ("0" * 40, "")):
        text = f"deb [signed-by={mark}] http://deb.example.org/debian test main\n"
        (root / "etc/apt/sources.list.d/test.sources").unlink(missing_ok=True)
        (root / "etc/apt/sources.list").write_text(text)
        assert asked(root) == word, mark


def test_one_good_signature_of_several_is_enough() -> None:
    good = b"[GNUPG:] NEWSIG\n[GNUPG:] GOODSIG 89AB x\n[GNUPG:] VALIDSIG AA 2026 1 0 4 0 22 10 00 BB\n"
    absent = b"[GNUPG:] NEWSIG\n[GNUPG:] ERRSIG 0123 22 10 00 1 9 CC\n[GNUPG:] NO_PUBKEY 0123\n"
    expired = b"[GNUPG:] NEWSIG\n[GNUPG:] EXPKEYSIG 4567 x\n[GNUPG:] VALIDSIG DD 2026 1 0 4 0 22 10 00 DD\n"
    both = frozenset({"AA", "BB"})
    assert archive.good_signatures(good + absent) == archive.good_signatures(absent + good) == both
    assert archive.good_signatures(good + expired) == archive.good_signatures(expired + good) == both
    assert archive.good_signatures(absent + expired) == frozenset()
    assert archive.good_signatures(b"gpgv: Good signature\nGOODSIG VALIDSIG AA\n") == frozenset()


@pytest.mark.parametrize(
    ("suite", "prefix"), [("/", "x.example_deb_"), ("./", "x.example_deb_._"), ("sub/", "x.example_deb_sub_")]
)
def test_an_archive_without_suites(root: Path, suite: str, prefix: str) -> None:
    (source,) = archive.read_sources(f"deb http://x.example/deb {suite}\n", str(root))
    assert source.prefix == prefix
    release = b"Origin: x\nSHA256:\n " + ONE.hex().encode() + b" 3 Packages\n"
    assert archive.listed(release, "Packages.lz4") == archive.listed(release, "Packages") == {ONE}
