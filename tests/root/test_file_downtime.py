"""What changes while the daemon is stopped, killed, or killed at any step of a sweep is found at the next start, and
none of it is learned."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_guard import TREE, FileGuard, guarded

from edgeguard.model import Origin

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts and fanotify marks")]

DIRECTORIES, FILES = 8, 12
BEGIN = f"""
import os, signal, sys
sys.path[:0] = [{str(TREE)!r}]
sys.path.append("/usr/lib/python3/dist-packages")
"""
# The daemon, dying when it comes to the step that the file `die` names.
DAEMON = (
    BEGIN
    + """
with open("{base}/die") as file:
    point = file.read()

def die(*_arguments, **_options):
    os.kill(os.getpid(), signal.SIGKILL)

from edgeguard.daemon import rounds
if point == "the first difference is told":
    rounds.Rounds._found = die
elif point == "all is told":
    rounds.Rounds.adopt_swept = die
elif point == "the findings are kept":
    rounds.adopt = die
elif point == "the sweep is adopted":
    kept = rounds.adopt
    rounds.adopt = lambda state: (kept(state), die())
from edgeguard.daemon.main import main
sys.exit(main(sys.argv[1:]))
"""
)
# The helper, taking the daemon with it.
HELPER = (
    BEGIN
    + """
with open("{base}/die") as file:
    point = file.read() if sys.argv[1] == "sweep" else ""

def die(*_arguments, **_options):
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)

def after(steps, function):
    left = [steps]
    def step(*arguments, **options):
        left[0] -= 1
        if left[0] < 0:
            die()
        return function(*arguments, **options)
    return step

from edgeguard.daemon import frames, sweeping
from edgeguard.sensors import observed, sweep
if point == "it begins":
    sweeping.sweep = die
elif point == "some directories are looked at":
    sweep.Sweep._merge = after(3, sweep.Sweep._merge)
elif point == "some of its memory is written":
    observed.Writer.keep = after(5, observed.Writer.keep)
    observed.Writer.put = after(3, observed.Writer.put)
elif point == "its memory is written":
    sweeping.os.fsync = die
elif point == "its memory is on the disk":
    say = frames.Out.say
    frames.Out.say = lambda self, message: die() if "summary" in message else say(self, message)
from edgeguard.daemon.helper import main
sys.exit(main(sys.argv[1:]))
"""
)
POINTS = (
    "it begins",
    "some directories are looked at",
    "some of its memory is written",
    "its memory is written",
    "its memory is on the disk",
    "the first difference is told",
    "all is told",
    "the findings are kept",
    "the sweep is adopted",
)


@pytest.fixture
def guard(tmp_path: Path) -> Iterator[FileGuard]:
    with guarded(tmp_path) as made:
        programs = tmp_path / "bin"
        programs.mkdir()
        for name in ("edgeguard-seal", "edgeguard-uplink"):
            (programs / name).symlink_to(TREE / "packaging/bin" / name)
        (programs / "edgeguard-helper").write_text(HELPER.replace("{base}", str(tmp_path)))
        settings = tmp_path / "agent.toml"
        settings.write_text(settings.read_text().replace(f"{TREE}/packaging/bin", str(programs)))
        (tmp_path / "die").write_text("")
        for number in range(DIRECTORIES):
            (made.watched / f"d{number}").mkdir()
            for item in range(FILES):
                (made.watched / f"d{number}/f{item}").write_text("as it should be")
        made.start()
        yield made


def change(guard: FileGuard, item: int) -> set[str]:
    """In every other directory: one file changed in content, one in mode, one gone, one new, one in another's place."""
    changed = set()
    for number in range(0, DIRECTORIES, 2):
        place = guard.watched / f"d{number}"
        (place / f"f{item}").write_text("as it SHOULD be")
        (place / f"f{item + 1}").chmod(0o4755)
        (place / f"f{item + 2}").unlink()
        (place / f"new{item}").write_text("new")
        os.rename(guard.watched / f"d{number + 1}/f{item}", place / f"f{item + 3}")
        names = (f"f{item}", f"f{item + 1}", f"f{item + 2}", f"new{item}", f"f{item + 3}")
        changed |= {str(place / name) for name in names[:4]} | {str(guard.watched / f"d{number + 1}/f{item}")}
        if (place / f"f{item + 3}").read_text() != "as it should be":
            changed.add(str(place / f"f{item + 3}"))
    return changed


def subjects(guard: FileGuard) -> set[str]:
    return {item.subject for item in guard.findings()}


def baselines(guard: FileGuard) -> list[str]:
    return sorted(os.listdir(guard.base / "state/baseline"))


def check(guard: FileGuard, wanted: set[str], learned: list[str]) -> None:
    """Found, all of it and nothing else; and it stays so."""
    guard.until(lambda: subjects(guard) == wanted)
    guard.scan()
    assert subjects(guard) == wanted
    assert baselines(guard) == learned


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_what_changed_meanwhile_is_found(guard: FileGuard, number: int) -> None:
    learned = baselines(guard)
    guard.stop(number)
    wanted = change(guard, 0)
    guard.start()
    guard.until(lambda: subjects(guard) == wanted)
    assert {item.origin for item in guard.findings()} == {Origin.DOWN}
    check(guard, wanted, learned)
    guard.stop(number)
    wanted |= change(guard, 4)
    guard.start()
    check(guard, wanted, learned)


@pytest.mark.parametrize("point", POINTS)
def test_killed_in_a_sweep_it_finds_all_of_it_at_the_next(guard: FileGuard, point: str) -> None:
    learned = baselines(guard)
    guard.stop()
    wanted = change(guard, 0)
    (guard.base / "die").write_text(point)
    guard.spawn("-c", DAEMON.replace("{base}", str(guard.base)))
    assert guard.daemon is not None
    assert guard.daemon.wait(60) == -signal.SIGKILL
    wanted |= change(guard, 4)
    (guard.base / "die").write_text("")
    guard.start()
    check(guard, wanted, learned)


def test_killed_while_it_makes_a_new_observed_db(guard: FileGuard) -> None:
    """Without one everything is read, and compared with the signed manifest."""
    learned = baselines(guard)
    guard.stop()
    wanted = change(guard, 0)
    shutil.copy(guard.base / "state/observed.db", guard.base / "kept")
    for damage in (b"", (guard.base / "kept").read_bytes()[:-9], os.urandom(200), None):
        if damage is None:
            (guard.base / "state/observed.db").unlink()
        else:
            (guard.base / "state/observed.db").write_bytes(damage)
        guard.start()
        guard.until(lambda: subjects(guard) == wanted)
        guard.stop(signal.SIGKILL)
    guard.start()
    check(guard, wanted, learned)
