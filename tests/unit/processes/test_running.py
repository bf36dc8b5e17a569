"""The table: the worst speaks, repeats are counted exactly, floods are bounded, nothing flaps."""

from hypothesis import given
from hypothesis import strategies as st

from edgeguard.sensors.programs import Program
from edgeguard.sensors.running import LINGER_S, REPEAT_S, TELL_MAX, Running, Table


def program(name="/tmp/x", state="ok", *, writable=True, known=False):
    return Program(name, name, state, writable, known)


GOOD = program("/usr/bin/ls", writable=False, known=True)


def enter(table, pid, what, start=1):
    return table.enter(pid, Running(start, what.exe, 0, what))


def test_the_worst_speaks_then_the_newest():
    table = Table()
    enter(table, 1, program(state="deleted"), 5)
    enter(table, 2, program(), 9)
    enter(table, 3, program(state="deleted"), 7)
    assert table.worst("/tmp/x")[0] == 3
    table.leave(3, 1.0)
    assert table.worst("/tmp/x")[0] == 1
    table.leave(1, 1.0)
    assert table.worst("/tmp/x")[0] == 2


def test_an_ordinary_program_is_told_once():
    table = Table()
    enter(table, 1, GOOD)
    assert table.tell(GOOD, 1.0)
    table.leave(1, 1.0)
    assert "/usr/bin/ls" not in table.subjects
    enter(table, 2, GOOD)
    assert not table.tell(GOOD, 100.0)
    changed = GOOD._replace(exe_known=False)
    enter(table, 3, changed)
    assert table.tell(changed, 101.0)


def test_repeats_are_counted_exactly_and_end_once():
    table = Table()
    told = repeats = 0
    for pid in range(1, 201):
        mono = 10.0 + pid / 100
        enter(table, pid, program())
        told += table.tell(program(), mono)
        table.leave(pid, mono)
        for name in table.repeated(mono):
            repeats += table.take_repeats(name)
        assert table.gone(mono) == []
    assert table.waiting()
    table.repeated(20.0)
    repeats += table.take_repeats("/tmp/x")
    assert told + repeats == 200
    assert told <= 3
    assert table.gone(12.0 + LINGER_S) == ["/tmp/x"]
    assert not table.waiting()


def test_a_flood_of_programs_is_counted_by_directory():
    table = Table()
    told = 0
    for pid in range(1, 1001):
        enter(table, pid, program(f"/tmp/x{pid}"))
        told += table.tell(program(f"/tmp/x{pid}"), 5.5)
        table.leave(pid, 5.5)
    crowds, quiet = table.take_crowds(6.0)
    assert told == TELL_MAX
    assert crowds == {"/tmp/*": 1000 - TELL_MAX}
    assert quiet == []
    assert len(table.subjects) <= TELL_MAX
    assert table.take_crowds(6.0 + LINGER_S) == ({}, ["/tmp/*"])


def test_a_flood_of_a_containers_programs_is_nothing_to_speak_of():
    table = Table()
    for pid in range(1, 200):
        foreign = program(f"foreign:/usr/bin/x{pid}", "foreign", writable=False)
        enter(table, pid, foreign)
        table.tell(foreign, 10.0)
    assert table.take_crowds(10.5) == ({}, [])


def test_exec_leaves_the_subject_before():
    table = Table()
    enter(table, 1, GOOD)
    assert enter(table, 1, program()) == "/usr/bin/ls"
    assert table.worst("/usr/bin/ls") is None
    assert table.leave(99, 1.0) is None


EVENT = st.tuples(st.sampled_from(["enter", "leave", "tick"]), st.integers(1, 4), st.integers(0, 2))


@given(st.lists(EVENT, max_size=60))
def test_subjects_and_processes_always_agree(events):
    table = Table()
    mono = 0.0
    for kind, pid, which in events:
        if kind == "enter":
            what = (GOOD, program(), program("/tmp/y", "deleted"))[which]
            enter(table, pid, what)
            table.tell(what, mono)
        elif kind == "leave":
            table.leave(pid, mono)
        else:
            mono += REPEAT_S * (which + 1)
            table.repeated(mono)
            table.gone(mono)
        held = {(pid, one.program.subject) for pid, one in table.processes.items()}
        assert held == {(pid, name) for name, one in table.subjects.items() for pid in one.pids}
