"""An unchanged directory is known by its listing; what is kept of one never lacks a name that the listing has."""

import io
import os

import pytest
from files_world import World

from edgeguard.linux import dirents
from edgeguard.model import Watch
from edgeguard.sensors import look, looker, observed, walk
from edgeguard.sensors.observed import NO_LISTING

HEAD = len(observed.MAGIC) + observed.PLAN


@pytest.fixture
def world(tmp_path):
    (tmp_path / "root").mkdir()
    world = World(tmp_path / "root", [Watch("/etc", "config"), Watch("/srv/a*", "config")])
    for path in ("/etc/passwd", "/etc/ssh/sshd_config", "/etc/ssh/\udcff\n", "/srv/abc", "/srv/other"):
        world.write(path)
    world.learn()
    return world


def records(world):
    return {record.directory: record for record in observed.Reader(io.BytesIO(world.observed)).records()}


def unlisted(world):
    """observed.db as the first version of the format has it."""
    found = [observed.UNLISTED_MAGIC, world.observed[len(observed.MAGIC) : HEAD]]
    for record in records(world).values():
        length = observed.HEAD.size + len(record.directory)
        found += [record.raw[:length], record.raw[length + observed.LISTING :]]
    reader = observed.Reader(io.BytesIO(world.observed))
    list(reader.records())
    return b"".join([*found, world.observed[reader.offset :]])


def test_only_a_directory_with_all_its_names_has_a_listing(world):
    kept = {directory: record.listing != NO_LISTING for directory, record in records(world).items()}
    assert kept == {b"": False, b"/etc": True, b"/etc/ssh": True, b"/srv": False}


def test_an_unchanged_directory_takes_no_names(world, monkeypatch):
    world.watches = [Watch("/etc", "config")]
    world.learn()
    monkeypatch.setattr(dirents, "names", None)
    assert world.sweep() == {}
    assert not world.summary.written


def test_another_order_is_no_change(world, monkeypatch):
    """As after a start, on some file systems."""
    original = walk.sha.blake2b
    monkeypatch.setattr(walk.sha, "blake2b", lambda data, size: bytes(reversed(original(data, size))))
    monkeypatch.setattr(looker.Looker, "_one", None)
    assert world.sweep() == {}
    assert not world.summary.written


def test_what_vanishes_while_it_is_looked_at_and_comes_back_is_found(world, monkeypatch):
    """It comes back as it was, so that the listing before and after is the same."""
    world.write("/etc/evil", b"evil")
    original = look.Eye._regular

    def away(self, directory, name, at, watch):
        if name != "evil":
            return original(self, directory, name, at, watch)
        os.rename(world.path("/etc/evil"), world.path("/aside"))
        try:
            return original(self, directory, name, at, watch)
        finally:
            os.rename(world.path("/aside"), world.path("/etc/evil"))

    monkeypatch.setattr(look.Eye, "_regular", away)
    assert "/etc/evil" not in world.sweep()
    assert records(world)[b"/etc"].listing == NO_LISTING
    monkeypatch.undo()
    assert "/etc/evil" in world.sweep()
    assert records(world)[b"/etc"].listing != NO_LISTING


def test_what_vanishes_while_it_is_listed_and_comes_back_is_found(world, monkeypatch):
    world.write("/etc/evil", b"evil")
    original = dirents.names

    def away(listing):
        found = original(listing)
        if b"evil" in found:
            os.rename(world.path("/etc/evil"), world.path("/aside"))
        return found

    surviving = walk.Walker._surviving

    def back(self, path, names, fd):
        found = surviving(self, path, names, fd)
        os.rename(world.path("/aside"), world.path("/etc/evil"))
        return found

    monkeypatch.setattr(dirents, "names", away)
    monkeypatch.setattr(walk.Walker, "_surviving", back)
    assert "/etc/evil" not in world.sweep()
    monkeypatch.undo()
    assert "/etc/evil" in world.sweep()


def test_the_first_version_of_the_format_is_carried_over(world):
    world.observed = unlisted(world)
    before = world.observed
    world.write("/etc/passwd", b"changed")
    assert list(world.sweep()) == ["/etc/passwd"]
    assert not world.summary.damaged
    assert world.summary.bytes_read == len(b"changed")
    assert world.observed != before
    assert {record.listing != NO_LISTING for record in records(world).values()} == {True, False}
    assert world.sweep() == {}


def test_the_process_stands_where_it_stood(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert world.sweep() == {}
    assert os.path.samefile(os.getcwd(), tmp_path)


def test_a_root_that_is_named_from_here_stays_the_same(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world.root = type(world.root)("root")
    assert world.sweep() == {}
    os.unlink(tmp_path / "root/etc/passwd")
    assert list(world.sweep()) == ["/etc/passwd"]
