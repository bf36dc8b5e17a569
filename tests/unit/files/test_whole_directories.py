"""A directory whose files are plain is learned and read again without an entry of each; whatever is not so gets the
full look, and tells what that tells. Changes that a verify must find leave listing, inode, size and times as seen."""

import io
import os

import pytest
from files_world import World

from edgeguard.codec import sha
from edgeguard.codec.layers import Layers
from edgeguard.codec.manifest import ATTRIBUTES, CATEGORY, HEAD, Categories, Entry, Layout, Writer, encode_block
from edgeguard.errors import DecodeError
from edgeguard.linux import fileflags, glance, statx
from edgeguard.linux.glance import Glance
from edgeguard.model import Watch
from edgeguard.sensors import content, looker, observed
from edgeguard.sensors.bulk import Bulk
from edgeguard.sensors.look import CHUNK
from edgeguard.sensors.observed import STAT
from tests import lent

LARGE = CHUNK + 5
NAME = "/etc/\udcff\n"


@pytest.fixture
def world(tmp_path):
    """Some of everything."""
    (tmp_path / "root").mkdir()
    world = World(tmp_path / "root", [Watch("/etc", "config")])
    for path, held in (("/etc/a", b"one"), ("/etc/empty", b""), ("/etc/large", b"x" * LARGE), (NAME, b"name")):
        world.write(path, held)
    for number in range(2 * statx.SLOTS + 3):
        world.write(f"/etc/many/{number}", b"%d" % number)
    world.write("/etc/alone/just", b"y" * CHUNK)
    world.write("/etc/set", b"program", 0o4755)
    world.write("/etc/marked", b"marked")
    os.setxattr(world.path("/etc/marked"), "user.mark", b"x")
    os.mkfifo(world.path("/etc/fifo"))
    os.symlink("a", world.path("/etc/link"))
    world.learn()
    return world


@pytest.fixture
def no_look(monkeypatch):
    """But for /, of which only one name is watched."""
    original = looker.Looker.directory

    def refuse(self, visit, *args, **options):
        assert not visit.path, "a full look"
        return original(self, visit, *args, **options)

    monkeypatch.setattr(looker.Looker, "directory", refuse)


def verify(world):
    return world.sweep(full=True, cached=True)


def in_full(world):
    """The same without what is tested here; what is written does not count."""
    before = world.observed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(looker.statx, "BY_COLUMNS", False)
        told = verify(world)
    world.observed = before
    return told


def seen_so(world):
    """Let observed.db say that inode, change time and size of everything are as they are now."""
    out = io.BytesIO()
    reader = observed.Reader(io.BytesIO(world.observed))
    writer = observed.Writer(out, reader.plan, None)
    writer.start(0)
    for record in reader.records():
        names = record.joined.split(b"\0")
        found = [os.lstat(world.path(record.directory + b"/" + name)) for name in names]
        stats = b"".join(STAT.pack(at.st_ino, at.st_ctime_ns, at.st_size) for at in found)
        writer.put(observed.encode(record.directory, names, stats, record.block, record.listing), len(names), 0)
    writer.close()
    world.observed = out.getvalue()


def test_what_is_as_it_was_seen_needs_no_full_look(world, no_look):
    assert verify(world) == {}
    assert not world.summary.written


def test_it_counts_as_a_full_look_counts(world):
    now = world.clock()
    world.clock = lambda: now
    in_full(world)
    full = vars(world.summary)
    verify(world)
    assert vars(world.summary) == full
    assert full["bytes_read"] > LARGE + CHUNK


CHANGES = {
    "content": lambda world: world.write("/etc/a", b"ONE"),
    "content of the last of many": lambda world: world.write("/etc/many/99", b"xx"),
    "content of a large one": lambda world: world.write("/etc/large", b"X" * LARGE),
    "size": lambda world: world.write("/etc/a", b"longer"),
    "a large size": lambda world: world.write("/etc/a", b"x" * LARGE),
    "to nothing": lambda world: world.write("/etc/a", b""),
    "from nothing": lambda world: world.write("/etc/empty", b"x"),
    "mode": lambda world: os.chmod(world.path("/etc/a"), 0o600),
    "mode of the set-id program": lambda world: os.chmod(world.path("/etc/set"), 0o755),
    "mode of a directory": lambda world: os.chmod(world.path("/etc/many"), 0o700),
    "mode of a FIFO": lambda world: os.chmod(world.path("/etc/fifo"), 0o666),
    "an attribute": lambda world: os.setxattr(world.path("/etc/a"), "user.mark", b"x"),
    "another attribute": lambda world: os.setxattr(world.path("/etc/marked"), "user.mark", b"y"),
    "no attribute": lambda world: os.removexattr(world.path("/etc/marked"), "user.mark"),
    "an attribute of a directory": lambda world: os.setxattr(world.path("/etc/many"), "user.mark", b"x"),
    "a name that is not text": lambda world: world.write(NAME, b"NAME"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_differs_is_found_and_told_as_by_a_full_look(world, change):
    CHANGES[change](world)
    seen_so(world)
    full = in_full(world)
    assert len(full) == 1
    assert verify(world) == full
    assert verify(world) == full  # it still is not as it should be


@pytest.mark.parametrize("column", [1, 2])
def test_another_owner_is_found(world, column):
    if os.geteuid():
        pytest.skip("needs root")
    owner = [-1, 1, -1] if column == 1 else [-1, -1, 1]
    os.chown(world.path("/etc/a"), *owner[1:])
    seen_so(world)
    full = in_full(world)
    assert list(full) == ["/etc/a"]
    assert verify(world) == full


@pytest.mark.parametrize("flag", [fileflags.FS_IMMUTABLE_FL, fileflags.FS_APPEND_FL])
def test_a_flag_that_holds_it_is_found(world, flag):
    fd = os.open(world.path("/etc/a"), os.O_RDONLY)
    try:
        try:
            fileflags.hold(fd, flag)
        except OSError:
            pytest.skip("no such flags here")
        seen_so(world)
        full = in_full(world)
        assert list(full) == ["/etc/a"]
        assert verify(world) == full
    finally:
        fileflags.hold(fd, 0)
        os.close(fd)


def test_another_target_of_a_link_is_found(world, monkeypatch):
    monkeypatch.setattr(os, "readlink", lambda *_args, **_options: "b")
    full = in_full(world)
    assert list(full) == ["/etc/link"]
    assert verify(world) == full


def test_what_is_as_seen_and_not_as_it_should_be_is_told(world):
    """It was there and known before this verify."""
    world.write("/etc/a", b"ONE")
    assert list(world.sweep()) == ["/etc/a"]
    assert world.sweep() == {}
    before = world.observed
    assert list(verify(world)) == ["/etc/a"]
    assert world.observed == before


def test_where_something_is_known_to_differ_it_is_read_once(world, monkeypatch):
    world.write("/etc/a", b"ONE")
    world.sweep()
    monkeypatch.setattr(content.Disk, "read", lambda *_args: None)
    asked = []
    monkeypatch.setattr(Bulk, "_files", lambda _self, _fd, names, *_rest: asked.extend(names) or False)
    verify(world)
    assert asked
    assert b"a" not in asked


def test_what_changes_while_it_is_read_is_left_to_a_full_look(world, monkeypatch):
    """After its content was read, so that only the answer after it can tell."""
    listxattr = os.listxattr
    touched = []

    def touching(target, **options):
        if isinstance(target, int) and not touched and os.readlink(f"/proc/self/fd/{target}").endswith("/a"):
            touched.append(target)
            os.chmod(target, 0o600)
        return listxattr(target, **options)

    monkeypatch.setattr(os, "listxattr", touching)
    told = verify(world)
    assert touched
    assert told["/etc/a"].columns["mode"] == 0o600


@pytest.mark.parametrize("other", ["fifo", "link", "nothing", "directory"])
def test_what_takes_its_place_after_the_listing_is_left_to_a_full_look(world, monkeypatch, other):
    path = world.path("/etc/a")
    writers = []
    same = Glance.same

    def swapping(self, fd, names, stats):
        found = same(self, fd, names, stats)
        if b"a" in names and not writers:
            os.unlink(path)
            writers.append(-1)
            if other == "fifo":
                os.mkfifo(path)
                writers[0] = os.open(path, os.O_RDWR | os.O_NONBLOCK)
                os.write(writers[0], b"one")
            elif other == "link":
                os.symlink("many/1", path)
            elif other == "directory":
                os.mkdir(path)
        return found

    monkeypatch.setattr(Glance, "same", swapping)
    told = verify(world)
    assert told["/etc/a"].columns.get("type") == {"link": "symlink", "nothing": None}.get(other, other)
    if other == "fifo":
        assert os.read(writers[0], 9) == b"one"  # for somebody else
        os.close(writers[0])


def test_what_changed_just_now_is_left_to_a_full_look(world, monkeypatch):
    seen = []
    monkeypatch.setattr(Bulk, "_files", lambda *_args: seen.append(1))
    latest = max(os.lstat(world.path(path)).st_ctime_ns for path in ("/etc/a", "/etc/link", "/etc/many/1"))
    world.clock = lambda: latest - 10**9
    verify(world)
    assert not seen


def test_where_it_is_not_told_what_holds_a_file_nothing_is_read_twice(world, monkeypatch):
    monkeypatch.setattr(statx, "_TELLING", b"")
    assert verify(world) == {}
    in_full(world)
    once = world.summary.bytes_read
    verify(world)
    assert world.summary.bytes_read == once


def test_a_file_that_is_too_large_keeps_its_note(world):
    world.learn(hash_file_max=CHUNK)
    for _ in range(2):
        assert world.sweep(full=True, cached=True, hash_file_max=CHUNK) == {}
        assert world.summary.notes == [f"/etc/large: larger than {CHUNK} bytes: only its attributes are watched"]


def test_a_category_that_the_manifest_does_not_have_is_damage(world):
    for packed in world.manifest.packed():
        layout = Layout.of(packed.raw[: HEAD.size])
        raw = bytearray(packed.raw)
        raw[layout.attributes + CATEGORY + ATTRIBUTES.size * (layout.entries - 1)] = 1
        with pytest.raises(DecodeError):
            packed._replace(raw=bytes(raw)).says(b"")


def manifest_of(path, blocks):
    with open(path, "wb") as file:
        writer = Writer(file)
        for directory, entries in blocks:
            writer.add(directory, list(entries), list(entries.values()))
        writer.close()
    return lent.manifest(path)


def entry(category="config", uid=0):
    return Entry(0o100644, uid, 0, 3, category, sha.digest(b"x"))


@pytest.mark.parametrize("count", [0, 1, 2, 511, 512, 513, 514, 1025])
def test_what_is_stored_is_what_is_said_whatever_the_number_of_directories(tmp_path, count):
    reader = manifest_of(tmp_path / "m", [(b"/%05d" % number, {b"a": entry()}) for number in range(count)])
    assert [packed.directory for packed in reader.packed()] == [b"/%05d" % number for number in range(count)]
    for first in {0, 1, count // 2, max(0, count - 1), count}:
        assert [packed.block() for packed in reader.packed(min(first, count))] == list(reader.blocks())[first:]
    reader.verify()


def test_two_layers_as_they_are_stored_say_what_both_say(tmp_path):
    base = manifest_of(
        tmp_path / "base",
        [
            (b"/a", {b"x": entry(), b"y": entry("program")}),
            (b"/b", {b"x": entry()}),
            (b"/c", {b"x": entry()}),
            (b"/f", {b"x": entry()}),
        ],
    )
    top = manifest_of(
        tmp_path / "top",
        [
            (b"/0", {b"new": entry(uid=2)}),
            (b"/a", {b"b": entry(uid=3), b"x": entry("gone")}),
            (b"/c", {b"x": entry("gone")}),
            (b"/d", {b"x": entry("gone"), b"z": entry()}),
            (b"/g", {b"z": entry("program")}),
        ],
    )
    for layers in (Layers(base, top), Layers(None, top)):
        for path in (b"", b"/a", b"/d"):
            packed = list(layers.packed_tree(path))
            assert [one.block()._replace(names=[], entries=[]) for one in packed] == [
                one._replace(names=[], entries=[]) for one in layers.tree(path)
            ]
            assert [dict(zip(one.names, one.entries, strict=True)) for one in map(type(packed[0]).block, packed)] == [
                dict(zip(one.names, one.entries, strict=True)) for one in layers.tree(path)
            ]
        assert [one.directory for one in layers.packed()] == [one.directory for one in layers.blocks()]
    joined = next(one for one in Layers(base, top).packed() if one.directory == b"/a")
    plain = encode_block(b"/a", [b"b", b"y"], [entry("", 3), entry("")], Categories([""]))
    assert joined.says(plain)
    assert not joined.says(encode_block(b"/a", [b"b", b"y"], [entry("", 4), entry("")], Categories([""])))


def test_layers_are_known_by_their_bytes_too(world, tmp_path, no_look):
    world.manifest = Layers(world.manifest, manifest_of(tmp_path / "top", [(b"/zzz", {b"x": entry("gone")})]))
    assert verify(world) == {}


def test_a_change_that_leaves_everything_as_it_was_is_one_too(world, monkeypatch):
    """Content may have been changed and put back while it was read: only the change time tells."""
    looked = []
    directory = looker.Looker.directory
    monkeypatch.setattr(
        looker.Looker, "directory", lambda *args, **more: looked.append(args[1].path) or directory(*args, **more)
    )
    listxattr = os.listxattr

    def touching(target, **options):
        if isinstance(target, int) and not looked[1:] and os.readlink(f"/proc/self/fd/{target}").endswith("/a"):
            os.chmod(target, 0o644)
        return listxattr(target, **options)

    monkeypatch.setattr(os, "listxattr", touching)
    assert verify(world) == {}
    assert looked == ["", "/etc"]
    assert world.summary.written  # with the new change time


@pytest.mark.parametrize("row", [0, 1, statx.SLOTS - 1])
@pytest.mark.parametrize("field", range(8))
def test_answers_are_compared_one_by_one(tmp_path, row, field):
    room = statx.Room()
    stats, attributes = [], []
    for number in range(statx.SLOTS):
        (tmp_path / str(number)).write_bytes(bytes(number))
        fd = os.open(tmp_path / str(number), os.O_RDONLY)
        assert not statx.ask(fd, b"", statx.AT_EMPTY_PATH, fileflags.STATX_BASIC_STATS, room.slots[number])
        at = os.fstat(fd)
        os.close(fd)
        stats.append([at.st_ino, at.st_ctime_ns, at.st_size])
        attributes.append([at.st_mode, 0, 0, at.st_uid, at.st_gid, at.st_size])

    def told():
        rows = b"".join(STAT.pack(*one) for one in stats)
        return room.as_seen(statx.SLOTS, memoryview(rows)) and room.attributes(statx.SLOTS) == b"".join(
            ATTRIBUTES.pack(*one) for one in attributes
        )

    assert told()
    if field < 3:
        stats[row][field] ^= 1
    elif field < 7:
        attributes[row][(0, 3, 4, 5)[field - 3]] ^= 1
    else:
        attributes[row][5] ^= 1 << 40
    assert not told()


def learned(world, **options):
    """(manifest, observed.db)."""
    world.learn(**options)
    with open(world.beside or world.root.parent / "manifest", "rb") as file:
        return file.read(), world.observed


def learned_in_full(world, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(looker.statx, "BY_COLUMNS", False)
        return learned(world, **options)


def make_more(world):
    """Watches of several kinds, and what is no plain file in between."""
    world.watches = [
        Watch("/etc", "config"),
        Watch("/etc/many", "program"),
        Watch("/usr", "program", exclude=("/usr/share/x*",)),
        Watch("/var", "log", content=False),
        Watch("/home", "setid", only="setid"),
        Watch("/srv/*/a", "unit"),
    ]
    for path in ("/usr/bin/a", "/usr/share/x/y", "/usr/share/z", "/var/log/a", "/home/me/plain", "/srv/b/a", "/usr/\n"):
        world.write(path, path.encode())
    world.write("/home/me/set", b"set", 0o4755)
    os.mkdir(world.path("/etc/nothing"))
    for number in range(statx.SLOTS):
        os.symlink(f"{number}", world.path(f"/etc/alone/{number}"))
        world.write(f"/etc/alone/{number}x", b"%d" % number)


@pytest.mark.parametrize("largest", [1 << 32, CHUNK])
def test_a_learn_writes_what_full_looks_write(world, largest):
    make_more(world)
    full = learned_in_full(world, hash_file_max=largest)
    counts = vars(world.summary)
    assert learned(world, hash_file_max=largest) == full
    assert vars(world.summary) == counts
    for whole in (False, True):
        assert world.sweep(full=whole, cached=whole, hash_file_max=largest) == {}


def test_a_plain_directory_is_learned_without_a_full_look(world, no_look):
    world.learn()
    assert world.summary.subjects == world.manifest.count


def test_a_learn_with_a_vault_keeps_what_it_kept(world, tmp_path, monkeypatch):
    """Named by a path that only holds where the process stood when it began."""
    make_more(world)
    world.watches[1] = Watch("/etc/many", "program", protect=True)
    full = learned_in_full(world, vault=f"{tmp_path}/vault", emit=None)
    kept = sorted(os.listdir(tmp_path / "vault"))
    assert len(kept) == 2 * statx.SLOTS + 3
    monkeypatch.chdir(tmp_path)
    assert learned(world, vault="other") == full
    assert sorted(os.listdir(tmp_path / "other")) == kept


@pytest.mark.parametrize("flag", [fileflags.FS_IMMUTABLE_FL, fileflags.FS_APPEND_FL])
def test_what_is_held_by_a_flag_is_learned_with_it_and_read_once(world, flag):
    os.setxattr(world.path("/etc/many/7"), "user.mark", b"x")
    opened = [os.open(world.path(path), os.O_RDONLY) for path in ("/etc/a", "/etc/many/7")]
    try:
        try:
            for fd in opened:
                fileflags.hold(fd, flag)
        except OSError:
            pytest.skip("no such flags here")
        full = learned_in_full(world)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(looker.Eye, "quick", None)
            patch.setattr(looker.Looker, "_one", lambda *args: original(*args) if not args[1].path else None)
            assert learned(world) == full
            assert verify(world) == {}
    finally:
        for fd in opened:
            fileflags.hold(fd, 0)
            os.close(fd)


original = looker.Looker._one


def test_a_learn_tells_each_subject_where_somebody_asks(world):
    told = []
    world.learn(emit=lambda seen: told.append(seen.subject))
    assert len(told) == world.manifest.count


def test_progress_counts_what_is_learned(world):
    make_more(world)
    told = []
    world.learn(progress=told.append)
    assert told[-1].files == world.summary.files
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Glance, "told", lambda *_args: None)
        again = []
        world.learn(progress=again.append)
    assert {(one.total_files, one.total_bytes) for one in told[:-1]} == {
        (one.total_files, one.total_bytes) for one in again[:-1]
    }


def test_what_changed_just_now_is_learned_by_a_full_look(world):
    latest = max(os.lstat(world.path(path)).st_ctime_ns for path in ("/etc/a", "/etc/link", "/etc/many/1"))
    world.clock = lambda: latest + 10**9
    full = learned_in_full(world)
    assert learned(world) == full
    assert (observed.UNSURE).to_bytes(8, "little", signed=True) in world.observed


@pytest.mark.parametrize("how", ["while it is read", "fifo", "link", "nothing", "directory", "another"])
def test_what_changes_while_it_is_learned_is_learned_as_it_is_then(world, monkeypatch, how):
    path = world.path("/etc/a")
    done = []
    if how == "while it is read":
        listxattr = os.listxattr

        def touching(target, **options):
            if isinstance(target, int) and not done and os.readlink(f"/proc/self/fd/{target}").endswith("/a"):
                done.append(os.chmod(target, 0o600))
            return listxattr(target, **options)

        monkeypatch.setattr(os, "listxattr", touching)
    else:
        told = Glance.told

        def swapping(self, fd, names):
            found = told(self, fd, names)
            if b"a" in names and not done:
                done.append(os.unlink(path))
                if how == "fifo":
                    os.mkfifo(path)
                elif how == "link":
                    os.symlink("many/1", path)
                elif how == "directory":
                    os.mkdir(path)
                elif how == "another":
                    world.write("/etc/a", b"one", 0o600)
            return found

        monkeypatch.setattr(Glance, "told", swapping)
    found = learned(world)
    assert done
    monkeypatch.undo()
    assert found[0] == learned_in_full(world)[0]


@pytest.mark.parametrize("by", ["lstat", "statx"])
def test_what_is_told_of_names_is_what_lstat_tells(world, monkeypatch, by):
    if by == "statx":
        monkeypatch.setattr(glance, "tells", lambda _layout: False)
    looking = Glance()
    for path in ("/etc", "/etc/many"):
        fd = os.open(world.path(path), os.O_RDONLY)
        names = sorted(map(os.fsencode, os.listdir(fd)))
        found = [os.lstat(name, dir_fd=fd) for name in names]
        told = looking.told(fd, names)
        looking.close()
        os.close(fd)
        assert told.stats == b"".join(STAT.pack(at.st_ino, at.st_ctime_ns, at.st_size) for at in found)
        assert [kind >> 4 for kind in told.types] == [at.st_mode >> 12 for at in found]
        assert {told.device} == {at.st_dev for at in found}


def test_names_on_several_devices_are_left_to_full_looks():
    looking = Glance()
    fd = os.open("/", os.O_RDONLY)
    try:
        alone = looking.told(fd, [b"proc"])
        assert alone.device == os.lstat("/proc").st_dev
        assert alone.types[0] >> 4 == 0o4
        assert looking.told(fd, [b"proc", b"sys"]) is None
        assert looking.told(fd, [b"proc", b"proc", b"no such name"]) is None
    finally:
        looking.close()
        os.close(fd)


def test_a_file_on_another_device_is_not_what_lstat_saw(tmp_path):
    room = statx.Room()
    (tmp_path / "a").write_bytes(b"a")
    fd = os.open(tmp_path / "a", os.O_RDONLY)
    statx.ask(fd, b"", statx.AT_EMPTY_PATH, fileflags.STATX_BASIC_STATS, room.slots[0])
    device = os.fstat(fd).st_dev
    os.close(fd)
    assert room.on(device, 1)
    assert room.on(0, 1)
    assert not room.on(device + 1, 1)
    assert not room.on(device, 2)


def test_what_is_no_file_or_not_told_in_full_is_not_as_seen(tmp_path, monkeypatch):
    room = statx.Room()
    for path, kind in ((tmp_path, False), (tmp_path / "a", True)):
        if kind:
            path.write_bytes(b"a")
        fd = os.open(path, os.O_RDONLY)
        statx.ask(fd, b"", statx.AT_EMPTY_PATH, fileflags.STATX_BASIC_STATS, room.slots[0])
        at = os.fstat(fd)
        os.close(fd)
        row = memoryview(STAT.pack(at.st_ino, at.st_ctime_ns, at.st_size))
        assert room.as_seen(1, row) is kind
    monkeypatch.setattr(statx, "_TELLING", b"")
    assert not room.as_seen(1, row)
