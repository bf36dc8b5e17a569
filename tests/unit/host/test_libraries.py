"""Where programs look for libraries: the loader's cache against its configuration, with caches that ldconfig made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.errors import DecodeError
from edgeguard.model import Status
from edgeguard.sensors import ldcache, parse_ldcache
from edgeguard.sensors.ldcache import Directories
from edgeguard.sensors.parse_ldcache import TooMuch, directories, origin
from tests.fuzz.seeds import old_cache as old
from tests.fuzz.seeds import present_cache as present

LDCONFIG = shutil.which("ldconfig", path="/usr/sbin:/sbin")
NOW = 1_790_000_000_000
OWN, EVIL = "/lib/x86_64-linux-gnu/libz.so.1", "/srv/evil/libz.so.1"


def put(root: Path, path: str, data: str | bytes) -> None:
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data.encode() if isinstance(data, str) else data)


def origins(root: Path, eyes: Directories | None = None, now: int = NOW) -> dict[str, object]:
    seen = list((eyes or Directories()).observe(str(root), now))
    assert all(each.status is Status.PRESENT for each in seen), seen
    assert all(bool(each.columns["library"]) == (each.columns["origin"] == "neither") for each in seen)
    return {each.subject: each.columns["origin"] for each in seen}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path, "etc/ld.so.conf", "include /etc/ld.so.conf.d/*.conf\n\n")
    put(tmp_path, "etc/ld.so.conf.d/libc.conf", "# libc default configuration\n/usr/local/lib\n")
    return tmp_path


# -- bytes


@pytest.mark.parametrize(
    "cache",
    [
        present(OWN, EVIL),
        present(OWN, EVIL, order=">"),
        present(OWN, EVIL, order="<" if sys.byteorder == "little" else ">", flags=0),
        old(OWN, EVIL),
        old(OWN, behind=present(EVIL)),
        old(OWN, behind=present(EVIL), align=4),
        old(OWN, OWN, behind=present(OWN, EVIL, count=1 << 31)),  # behind an old one the loader does not ask
        old(OWN, EVIL, behind=present(OWN, flags=1)),
        present(OWN, EVIL).rstrip(b"\0"),
        present("/lib/x86_64-linux-gnu/", OWN, "/srv/evil/", EVIL),  # directories are no libraries
    ],
)
def test_every_layout(cache: bytes) -> None:
    assert directories(cache, sys.byteorder) == {"/lib/x86_64-linux-gnu": "libz.so.1", "/srv/evil": "libz.so.1"}


@pytest.mark.parametrize(
    "cache",
    [
        b"",
        b"\0" * 4096,
        present(),
        present(OWN, flags=1),
        present(OWN, flags=4),
        present(OWN, count=9),
        present(OWN)[:60],
        b"ld.so-1.7.0\0\xff\xff\xff\xff" + bytes(64),
        b"glibc-ld.so.cache1.0" + present(OWN)[20:],
    ],
)
def test_what_the_loader_ignores(cache: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        directories(cache, "little")
    assert not isinstance(caught.value, TooMuch)


def test_names_as_they_come() -> None:
    found = directories(present("libx.so", "/liby.so", b"/srv/\xff\x1b[2J/b.so", b"/srv/\xff\x1b[2J/a.so"), "little")
    assert found == {".": "libx.so", "/": "liby.so", "/srv/\udcff\x1b[2J": "a.so"}
    assert directories(present("/srv/" + "x" * 5000), "little") == {}  # nobody can open that


def test_bounds() -> None:
    with pytest.raises(TooMuch):
        directories(present(*(f"/srv/{n}/x" for n in range(parse_ldcache.DIRECTORIES_MAX + 1))), "little")
    count = parse_ldcache.ENTRIES_MAX + 1
    with pytest.raises(TooMuch):
        directories(present(count=count) + bytes(24 * count), "little")


@given(st.sampled_from([b"", b"glibc-ld.so.cache1.1", b"ld.so-1.7.0\0"]), st.binary(max_size=300))
def test_any_bytes(magic: bytes, data: bytes) -> None:
    try:
        found = directories(magic + data, "little")
    except DecodeError:
        return
    assert all(library and "/" not in library for library in found.values())


@given(st.lists(st.from_regex(r"/[a-z/.]{0,9}/[a-z.]{1,9}", fullmatch=True), min_size=1), st.sampled_from("<>"))
def test_what_is_written_is_read(paths: list[str], order: str) -> None:
    found = directories(present(*paths, order=order), sys.byteorder)
    assert found.keys() == {path.rpartition("/")[0] for path in paths}


# -- whose directories they are


@pytest.mark.parametrize(
    "directory",
    [
        *("/lib", "/usr/lib", "/lib64", "/usr/lib64", "/lib32", "/libx32", "/lib/aarch64-linux-gnu"),
        *("/usr/lib/arm-linux-gnueabihf", "/lib/x86_64-linux-gnux32", "/usr/lib/mips64el-linux-gnuabi64"),
        *("/lib/x86_64-linux-gnu/glibc-hwcaps/x86-64-v3", "/usr/lib/glibc-hwcaps/power9"),
        *("/lib/arm-linux-gnueabihf/vfp", "/usr/lib/x86_64-linux-gnu/tls/haswell"),
    ],
)
def test_the_loaders_own(directory: str) -> None:
    assert origin(directory, frozenset()) == "loader"


@pytest.mark.parametrize(
    "directory",
    [
        *("/srv/evil", "/usr/lib/evil", "/usr/local/lib", "/lib/../srv/evil", "//lib", "/lib/", ".", "/", "/libx"),
        *("/srv/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu/evil", "/lib/x86_64-linux-gnu\n", "/lib/x-linux-musl"),
        *("/lib/glibc-hwcaps/../../srv", "/srv/glibc-hwcaps/x86-64-v3", "/lib/glibc-hwcaps", "/LIB", "/lib/vfp/x"),
    ],
)
def test_nobodys(directory: str) -> None:
    assert origin(directory, frozenset({"/opt/app/lib"})) == "neither"


def test_configured(root: Path) -> None:
    put(root, "etc/ld.so.conf", "include ld.so.conf.d/*.conf more\t/etc/x  # y\nhwcap 0 nosegneg\n/opt/a/ \n")
    put(root, "etc/ld.so.conf.d/b.conf", "  /opt/b//\n#/opt/not\n/opt/c=libc6\nincludes\ninclude /etc/ld.so.conf\n")
    put(root, "etc/x", "/opt/d")
    put(root, "etc/ld.so.conf.d/not.txt", "/opt/not")
    named = ["/opt/a", "/opt/b", "/opt/c", "/opt/d", "/opt/a/glibc-hwcaps/x86-64-v2", "/usr/local/lib"]
    put(root, "etc/ld.so.cache", present(*(f"{each}/l.so" for each in [*named, "/opt/not", "/opt"])))
    found = origins(root)
    assert {each for each in found if found[each] == "configuration"} == set(named)
    assert {each for each in found if found[each] == "neither"} == {"/opt/not", "/opt"}


# -- looks


def test_no_cache_and_a_broken_one(root: Path) -> None:
    assert origins(root) == {}
    for broken in (b"", b"x" * 100, present(OWN, count=9)):
        put(root, "etc/ld.so.cache", broken)
        [seen] = Directories().observe(str(root), NOW)
        assert (seen.subject, seen.status) == ("*", Status.UNREADABLE)
        assert "the loader ignores it" in seen.note
    (root / "etc/ld.so.cache").unlink()
    os.mkfifo(root / "etc/ld.so.cache")
    assert [each.subject for each in Directories().observe(str(root), NOW)] == ["*"]


def test_what_the_loader_reads_and_we_do_not_is_told(root: Path) -> None:
    put(root, "etc/ld.so.cache", present(*(f"/srv/{n}/x" for n in range(300))))
    assert [each.subject for each in Directories().observe(str(root), NOW)] == ["*", ldcache.CACHE]
    with (root / "etc/ld.so.cache").open("r+b") as file:
        file.truncate(parse_ldcache.SIZE_MAX + 1)
    assert [each.subject for each in Directories().observe(str(root), NOW)] == ["*", ldcache.CACHE]


def test_a_package_that_is_purged_runs_ldconfig_at_the_end(root: Path) -> None:
    """For ten minutes what the configuration named when this very cache was seen counts."""
    put(root, "etc/ld.so.conf.d/app.conf", "/opt/app/lib\n")
    put(root, "etc/ld.so.cache", present("/opt/app/lib/libapp.so.1"))
    eyes = Directories()
    assert origins(root, eyes) == {"/opt/app/lib": "configuration"}
    (root / "etc/ld.so.conf.d/app.conf").unlink()
    assert origins(root, eyes, NOW + ldcache.GRACE_MS - 1) == {"/opt/app/lib": "configuration"}
    assert origins(root, eyes, NOW + ldcache.GRACE_MS) == {"/opt/app/lib": "neither"}
    assert origins(root, eyes, NOW - 1) == {"/opt/app/lib": "neither"}  # the clock was set
    assert origins(root) == {"/opt/app/lib": "neither"}
    put(root, "etc/again", present("/opt/app/lib/libapp.so.1"))
    os.replace(root / "etc/again", root / "etc/ld.so.cache")
    assert origins(root, eyes, NOW + 1) == {"/opt/app/lib": "neither"}  # another cache


@pytest.mark.skipif(LDCONFIG is None, reason="no ldconfig on this machine")
@pytest.mark.parametrize("layout", ["new", "compat", "old"])
def test_caches_of_the_real_ldconfig(root: Path, layout: str) -> None:
    """`make install` and a package that brings a file of the configuration are silent; `ldconfig DIRECTORY` is not."""
    library = Path(next(path for path in Path("/lib").glob("*-linux-gnu*/libz.so.1*")))
    place = {name: root / name for name in ("local", "app", "evil")}
    for each in place.values():
        each.mkdir()
        shutil.copy(library, each / "libz.so.1")
    put(root, "conf", f"include {root}/conf.d/*.conf\n")
    put(root, "conf.d/libc.conf", f"{place['local']}\n")
    put(root, "conf.d/app.conf", f"{place['app']}///\n")
    put(root, "etc/ld.so.conf", (root / "conf").read_text().replace(str(root), "/etc"))
    for name in ("libc", "app"):
        put(root, f"etc/conf.d/{name}.conf", (root / f"conf.d/{name}.conf").read_bytes())

    def made(*more: Path) -> dict[str, object]:
        command = [str(LDCONFIG), "-X", "-c", layout, "-C", str(root / "etc/ld.so.cache"), "-f", str(root / "conf")]
        subprocess.run([*command, *map(str, more)], check=True, capture_output=True)
        return origins(root)

    fine = made()
    assert "neither" not in fine.values()
    assert fine[str(place["local"])] == fine[str(place["app"])] == "configuration"
    assert "loader" in fine.values()
    evil = made(place["evil"])
    assert {each for each in evil if evil[each] == "neither"} == {str(place["evil"])}
    assert made() == fine
