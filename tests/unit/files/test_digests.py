"""A baseline has digests of one kind for life: what is learned with it is swept by it, named after it, and anything of
another kind is read anew or refused, never taken as equal."""

import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from files_world import World
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.codec import digests, manifest
from edgeguard.codec.digests import Algorithm, held, slim, swift
from edgeguard.codec.layers import Layers
from edgeguard.codec.manifest import Entry, Reader, Writer, algorithm_in
from edgeguard.errors import DecodeError
from edgeguard.model import Origin, Watch
from edgeguard.sensors import copies, deep, look, observed, sweep
from edgeguard.sensors.copies import CannotCompare
from edgeguard.sensors.deep import Position
from tests import lent

REPOSITORY = Path(__file__).parents[3]
REAL = {
    Algorithm.SHA256: lambda data: hashlib.sha256(data).digest(),
    Algorithm.BLAKE2B: lambda data: hashlib.blake2b(data, digest_size=32).digest(),
}
TEXT = b"root:x:0:0\n"


@pytest.fixture(params=Algorithm)
def world(tmp_path, request):
    made = World(tmp_path / "root", [Watch("/etc", "config"), Watch("/etc/ssh", "config", protect=True)])
    made.algorithm = request.param
    made.write("/etc/passwd", TEXT)
    made.write("/etc/empty", b"")
    made.write("/etc/large", b"x" * (look.CHUNK + 1))
    made.write("/etc/ssh/sshd_config", b"PermitRootLogin no\n")
    made.write("/etc/marked", b"marked")
    os.setxattr(made.path("/etc/marked"), "user.mark", b"x")
    return made


def other(algorithm):
    return next(item for item in Algorithm if item is not algorithm)


@given(st.binary(max_size=300))
def test_both_are_what_everybody_calls_so(data):
    for algorithm, real in REAL.items():
        assert slim(algorithm).digest(data) == swift(algorithm).digest(data) == real(data)
        assert swift(algorithm).direct()(data).digest() == real(data)


def test_what_is_learned_has_the_digest_and_its_name(world):
    seen = {}
    world.learn(emit=lambda item: seen.__setitem__(item.subject, item))
    assert world.manifest.algorithm is world.algorithm
    columns = seen["/etc/passwd"].columns
    assert columns[world.algorithm.value] == REAL[world.algorithm](TEXT)
    assert other(world.algorithm).value not in columns
    assert held(columns) == (world.algorithm, REAL[world.algorithm](TEXT))
    for name in ("passwd", "empty", "large"):
        content = Path(os.fsdecode(world.path(f"/etc/{name}"))).read_bytes()
        assert world.manifest.lookup(b"/etc/" + name.encode()).digest == REAL[world.algorithm](content)


def test_extended_attributes_are_the_same_in_every_baseline(world):
    world.learn()
    text = b"user.mark\0" + (1).to_bytes(4, "little") + b"x"
    assert world.manifest.lookup(b"/etc/marked").xattrs == hashlib.sha256(text).digest()


@pytest.mark.parametrize("more", [{}, {"full": True}, {"full": True, "cached": True}, {"compare": True}])
def test_every_sweep_finds_a_change_and_nothing_else(world, more):
    world.learn()
    assert world.sweep(**more) == {}
    world.write("/etc/passwd", b"root::0:0\n")
    seen = world.sweep(**more)
    assert list(seen) == ["/etc/passwd"]
    assert seen["/etc/passwd"].columns[world.algorithm.value] == REAL[world.algorithm](b"root::0:0\n")
    assert observed.Reader(io.BytesIO(world.observed)).algorithm is world.algorithm


def test_a_baseline_with_other_digests_is_compared_by_reading_all_anew(world, tmp_path):
    """As when a baseline from elsewhere comes into force: nothing is in doubt, and nothing is believed of before."""
    world.learn()
    before = world.observed
    world.algorithm = other(world.algorithm)
    world.write("/etc/passwd", b"root::0:0\n")
    world.learn()
    world.write("/etc/passwd", TEXT)
    world.observed = before
    seen = world.sweep()
    assert list(seen) == ["/etc/passwd"]
    assert seen["/etc/passwd"].columns[world.algorithm.value] == REAL[world.algorithm](TEXT)
    assert world.summary.bytes_read > look.CHUNK
    assert not world.summary.damaged
    assert world.summary.notes == [f"this baseline has digests by {world.algorithm.label}: all is read anew"]
    assert world.sweep() == {}
    assert world.summary.notes == []


def test_a_slice_of_the_deep_sweep_waits_for_that(world):
    world.learn()
    before = world.observed
    world.algorithm = other(world.algorithm)
    world.learn()
    told = []
    options = {"slices": 1, "seconds": 60.0, "hash_file_max": 1 << 30}
    place = (world.watches, str(world.root), world.manifest)
    done = deep.read_slice(*place, io.BytesIO(before), Position(), 0, 86_400, told.append, **options)
    assert (done.files, done.position, told) == (0, Position(), [])
    done = deep.read_slice(*place, io.BytesIO(world.observed), Position(), 0, 86_400, told.append, **options)
    assert (done.files, told) == (5, [])


def test_a_manifest_of_another_kind_than_was_said_is_refused(world):
    world.learn()
    world.algorithm = other(world.algorithm)
    with pytest.raises(DecodeError, match="not"):
        world.sweep(full=True)


def test_copies_are_named_by_it_and_checked_by_it(world, tmp_path):
    vault = tmp_path / "vault"
    vault.mkdir()
    world.learn(vault=str(vault))
    digest = REAL[world.algorithm](b"PermitRootLogin no\n")
    assert os.listdir(vault) == [digest.hex()]
    assert copies.earlier(str(vault), world.algorithm, digest) == b"PermitRootLogin no\n"
    (vault / digest.hex()).write_bytes(b"PermitRootLogin yes\n")
    with pytest.raises(CannotCompare, match="damaged"):
        copies.earlier(str(vault), world.algorithm, digest)
    path = os.fsdecode(world.path("/etc/passwd"))
    assert copies.present(path, world.algorithm, REAL[world.algorithm](TEXT)) == TEXT
    with pytest.raises(CannotCompare, match="changed since"):
        copies.present(path, other(world.algorithm), REAL[world.algorithm](TEXT))


def written(algorithm):
    out = io.BytesIO()
    writer = Writer(out, algorithm)
    writer.add(b"/etc", [b"a"], [Entry(0o100644, 0, 0, 1, "config", b"d" * 32)])
    writer.close()
    return out.getvalue()


def opened(data):
    fd = lent.lend(os.memfd_create("manifest"))
    os.write(fd, data)
    return Reader(fd)


def test_the_manifest_says_which_and_only_that_byte_differs():
    one, two = written(Algorithm.SHA256), written(Algorithm.BLAKE2B)
    assert [at for at, pair in enumerate(zip(one, two, strict=True)) if pair[0] != pair[1]] == [len(one) - 9]
    for algorithm in Algorithm:
        assert opened(written(algorithm)).algorithm is algorithm
        assert algorithm_in(written(algorithm)) is algorithm


@given(st.integers(len(digests.NUMBERS), 255))
def test_a_kind_of_tomorrow_is_refused_by_name(number):
    data = bytearray(written(Algorithm.SHA256))
    data[-9] = number
    for read in (opened, algorithm_in):
        with pytest.raises(DecodeError, match=f"not known here \\(number {number}\\)"):
            read(bytes(data))


def test_layers_are_of_one_kind():
    with pytest.raises(DecodeError, match="BLAKE2b was laid over SHA-256"):
        Layers(opened(written(Algorithm.SHA256)), opened(written(Algorithm.BLAKE2B)))
    assert Layers(None, opened(written(Algorithm.BLAKE2B))).algorithm is Algorithm.BLAKE2B


@given(st.binary(max_size=120))
def test_any_bytes_are_a_manifest_of_a_known_kind_or_none(data):
    try:
        assert algorithm_in(data) in Algorithm
    except DecodeError:
        return


def test_nothing_that_reads_by_blake2b_loads_openssl(tmp_path):
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/a").write_bytes(b"x")
    text = f"""
import io, sys
sys.path.insert(0, {str(REPOSITORY)!r})
from edgeguard.codec.digests import Algorithm
from edgeguard.model import Watch
from edgeguard.sensors import sweep
made = io.BytesIO(), io.BytesIO()
sweep.learn([Watch("/etc", "config")], {str(tmp_path / "root")!r}, *made, algorithm=Algorithm({{}}))
print("_hashlib" in sys.modules)
"""
    said = [
        subprocess.run(
            [sys.executable, "-c", text.format(repr(name))], capture_output=True, text=True, check=True
        ).stdout
        for name in ("blake2b", "sha256")
    ]
    assert said == ["False\n", "True\n"], "the other one does, or this test sees nothing"


def test_what_was_seen_without_a_baseline_of_files_is_sha256(tmp_path):
    made = World(tmp_path / "root", [Watch("/etc", "config")])
    made.write("/etc/a", b"x")
    out = io.BytesIO()
    seen = []
    sweep.sweep(made.watches, str(made.root), None, None, out, 1, Origin.SWEEP, False, seen.append)
    assert observed.Reader(io.BytesIO(out.getvalue())).algorithm is Algorithm.SHA256
    assert manifest.NUMBERS is digests.NUMBERS
