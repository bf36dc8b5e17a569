"""Every way of changing a watched file is found within the time that docs/sensors.md promises, under the right name,
with the process that did it; and a harmless twin of each is not."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import file_acts as acts
import pytest
from file_acts import Act, Doer
from file_guard import TREE, FileGuard, guarded

from edgeguard.model import Origin
from edgeguard.sensors.looker import RACY_NS

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts and fanotify marks")]

LIVE_MS = 2000  # what docs/sensors.md promises; a busy test machine gets five times that
PATIENCE_MS = 5 * LIVE_MS
LIVE, SWEEP, DEEP, NEVER = "at once", "next sweep", "deep sweep", "not told"
KNOWN, UNKNOWN = "known", "not known"


class Row(NamedTuple):
    name: str  # as in the table of docs/sensors.md
    act: Act
    twin: Act
    when: str = LIVE
    actor: str = KNOWN
    paths: tuple[str, ...] = ("file",)  # below the row's directory
    before: Act | None = None  # what lies there beforehand; a file with CONTENT if nothing is said


ROWS = (
    Row("write", acts.write, acts.open_only),
    Row("append", acts.append, acts.log_grows),
    Row("write by a program that keeps the file open", acts.write_and_stay, acts.open_only),
    Row("write to a shared mapping that is then closed", acts.map_and_leave, acts.map_only),
    Row("write to a shared mapping that stays", acts.map_and_stay, acts.map_only, SWEEP, UNKNOWN),
    Row("truncate", acts.truncate, acts.open_only),
    Row("hole punched", acts.punch, acts.open_only),
    Row("io_uring", acts.io_uring, acts.same_content),
    Row("splice", acts.splice, acts.read_it),
    Row("copy_file_range", acts.copy_file_range, acts.same_content),
    Row("sendfile", acts.sendfile, acts.same_content),
    Row("write through /proc/PID/fd", acts.through_proc, acts.read_it),
    Row("write from another mount namespace", acts.other_namespace, acts.read_it),
    Row("write, and mtime put back", acts.mtime_back, acts.touch_access),
    Row("rename over it", acts.rename_over, acts.same_by_rename),
    Row("RENAME_EXCHANGE with a file elsewhere", acts.exchange, acts.same_by_rename),
    Row("write through a hard link elsewhere", acts.through_link, acts.outside, before=acts.linked_outside),
    Row("write through a hard link made for it and removed", acts.through_new_link, acts.link_and_unlink, SWEEP,
        UNKNOWN),
    Row("symlink swapped", acts.symlink_swap, acts.read_it, paths=("link",), before=acts.with_link),
    Row("parent directory swapped for a symlink", acts.parent_swap, acts.there_and_back, paths=("dir", "dir/file"),
        before=acts.with_directory),
    Row("directory with files moved in", acts.moved_in, acts.outside, paths=("tree", "tree/a/b/deep")),
    Row("deep tree moved out", acts.moved_out, acts.tree_there_and_back, paths=("tree", "tree/" + "d/" * 40 + "file"),
        before=acts.with_deep_tree),
    Row("names with newline, invalid UTF-8, 255 bytes", acts.odd_names, acts.read_it,
        paths=("new\nline", "\udcff\udcfe", "n" * 255)),
    Row("path longer than PATH_MAX", acts.beyond_path_max, acts.read_it, paths=("d" * 255,)),
    Row("fifo made", acts.fifo, acts.outside, paths=("fifo",)),
    Row("device node made", acts.device_node, acts.outside, paths=("null",)),
    Row("socket made", acts.unix_socket, acts.outside, paths=("socket",)),
    Row("file made", acts.create, acts.outside, paths=("new",)),
    Row("file removed", acts.remove, acts.same_by_rename),
    Row("another file under its name for a while", acts.swap_for_long, acts.same_by_rename),
    Row("chmod", acts.chmod, acts.same_mode),
    Row("chown", acts.chown, acts.same_owner),
    Row("ACL", acts.acl, acts.same_mode),
    Row("extended attribute", acts.xattr, acts.xattr_and_back),
    Row("file capability", acts.capability, acts.touch_access),
    Row("immutable flag set", acts.immutable, acts.flags_and_back, SWEEP, UNKNOWN),
    Row("immutable flag cleared", acts.mutable, acts.immutable, SWEEP, UNKNOWN,
        before=acts.with_immutable),
    Row("file mounted over it", acts.bind_over, acts.mount_elsewhere, actor=UNKNOWN),
    Row("tmpfs mounted over its directory", acts.tmpfs_over, acts.mount_elsewhere, actor=UNKNOWN, paths=("dir/file",),
        before=acts.with_directory),
    Row("overlay mounted over its directory", acts.overlay_over, acts.mount_elsewhere, actor=UNKNOWN,
        paths=("dir/file",), before=acts.with_directory),
)  # fmt: skip

DEEP_ROWS = (
    Row("write to the block device", acts.below, acts.read_it, DEEP, UNKNOWN),
    Row("write to the block device while the file is in memory", acts.below_cached, acts.read_it, DEEP, UNKNOWN),
    Row("write to a mapped page that is being written already", acts.map_twice, acts.map_only, DEEP, UNKNOWN),
)

# Over before anybody looks: what is there afterwards is what should be.
BRIEF_ROWS = (Row("file made and removed within 50 ms", acts.come_and_go, acts.read_it, NEVER, UNKNOWN),)


def places(guard: FileGuard, row: Row) -> tuple[Path, Path]:
    number = (*ROWS, *DEEP_ROWS, *BRIEF_ROWS).index(row)
    return guard.watched / f"{number:02d}", guard.watched / f"{number:02d}.twin"


@contextlib.contextmanager
def watching(base: Path, rows: Sequence[Row]) -> Iterator[FileGuard]:
    with guarded(base) as made:
        (made.watched / "logs/log").write_bytes(b"a line\n")
        for row in rows:
            for place in places(made, row):
                place.mkdir()
                if row.before:
                    row.before(place)
                else:
                    acts.target(place).write_bytes(acts.CONTENT)
        made.start()
        yield made


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileGuard]:
    with watching(tmp_path_factory.mktemp("every"), (*ROWS, *BRIEF_ROWS)) as made:
        yield made


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_change_and_twin(guard: FileGuard, row: Row) -> None:
    place, twin = places(guard, row)
    quiet = Doer(row.twin, twin)
    quiet.finish()
    began = time.time_ns() // 1_000_000
    doer = Doer(row.act, place)
    wanted = {f"{place}/{path}" for path in row.paths}

    def found() -> bool:
        return wanted <= {item.subject for item in guard.about(place)}

    try:
        if row.when == SWEEP:
            guard.scan("--quick")
        guard.until(found, 2 * PATIENCE_MS / 1000)
        for item in guard.about(place):
            if item.subject not in wanted:
                continue
            if row.when == LIVE:
                assert item.first_seen - began <= PATIENCE_MS
            if row.actor == KNOWN:
                assert item.origin is Origin.LIVE
                assert item.actor.pid == doer.pid, item.actor
    finally:
        doer.finish()
    assert not guard.about(twin, ended=True)


def test_twins_stay_silent_after_sweeps(guard: FileGuard) -> None:
    guard.scan("--quick")
    guard.scan()
    assert [item.subject for row in ROWS for item in guard.about(places(guard, row)[1], ended=True)] == []
    assert not guard.about(guard.watched / "logs/log")


def test_what_is_over_before_anybody_looks_leaves_nothing(guard: FileGuard) -> None:
    for row in BRIEF_ROWS:
        place = places(guard, row)[0]
        Doer(row.act, place).finish()
        guard.scan("--quick")
        assert not guard.about(place)


def test_what_was_put_back_is_no_finding_any_more(guard: FileGuard) -> None:
    row = next(row for row in ROWS if row.act is acts.swap_for_long)
    guard.until(lambda: not guard.about(places(guard, row)[0]), 10)


@pytest.mark.skipif(shutil.which("debugfs") is None, reason="no debugfs")
def test_what_nothing_tells_of_is_found_by_a_deep_sweep(tmp_path: Path) -> None:
    with watching(tmp_path, DEEP_ROWS) as guard:
        mapped = Doer(acts.map_twice, places(guard, DEEP_ROWS[-1])[0])
        files = [acts.target(place) for row in DEEP_ROWS for place in places(guard, row)]
        for row in DEEP_ROWS:
            Doer(row.twin, places(guard, row)[1]).finish()
        # What was just changed is read again by every sweep; wait until it is not.
        guard.until(lambda: time.time_ns() - max(path.stat().st_ctime_ns for path in files) > RACY_NS)
        guard.scan("--quick")
        mapped.go_on()
        for row in DEEP_ROWS[:-1]:
            Doer(row.act, places(guard, row)[0]).finish()
        guard.scan("--quick")
        assert not guard.findings()
        guard.stop()
        with open(guard.base / "agent.toml", "a") as file:
            file.write("deep_s = 24\n")
        guard.start()
        wanted = {str(acts.target(places(guard, row)[0])) for row in DEEP_ROWS}
        guard.until(lambda: {item.subject for item in guard.findings()} >= wanted)
        assert {item.subject for item in guard.findings()} == wanted
        assert {item.origin for item in guard.findings()} == {Origin.SWEEP}
        guard.scan("--quick")  # and looks at all findings once more
        guard.scan()
        assert {item.subject for item in guard.findings()} == wanted
        mapped.finish()
        guard.until(lambda: "sweep: deep: " in guard.ask("log", "--lines", "500").stdout)


def _documented() -> dict[str, tuple[str, str]]:
    rows = {}
    for line in (TREE / "docs/sensors.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 5 and cells[2] in (LIVE, SWEEP, DEEP, NEVER):
            rows[cells[1]] = (cells[2], cells[3])
    return rows


def test_the_documented_table_is_this_one() -> None:
    assert _documented() == {row.name: (row.when, row.actor) for row in (*ROWS, *DEEP_ROWS, *BRIEF_ROWS)}
