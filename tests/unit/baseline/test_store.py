"""Baselines on disk: the newest valid one, refusals by name, and no way back below the floor."""

import os
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from edgeguard.baseline import keys, store
from edgeguard.baseline.document import Baseline, ManifestRef, compile_baseline, open_signed, sign
from edgeguard.baseline.policy import Policy
from edgeguard.codec import cose
from edgeguard.errors import DecodeError, OlderRevision, PolicyError, SettingsError

SEED = bytes(range(32))
PUBLIC = cose.public_of(SEED)
DEVICE = cose.device_id(PUBLIC)
NOW = 1_790_000_000_000


def make(revision, seed=SEED, **changes):
    values = {"device": DEVICE, **changes}
    return sign(compile_baseline(Policy(), {}, values.pop("files", None), revision, NOW, **values), seed)


@pytest.fixture
def place(tmp_path):
    return store.Store(str(tmp_path))


def install(place, data):
    return place.install(data, open_signed(data, [PUBLIC], DEVICE, place.floor(), NOW))


def load(place, now=NOW):
    return place.load_verified([PUBLIC], DEVICE, now)


def drop(place, name, data):
    os.makedirs(place.directory, exist_ok=True)
    with open(os.path.join(place.directory, name), "wb") as file:
        file.write(data)


def refusals(loaded):
    return {item.name: type(item.error).__name__ for item in loaded.refused}


def test_an_empty_store(place):
    loaded = load(place)
    assert (loaded.baseline, loaded.refused, place.floor(), place.parent()) == (None, (), 0, None)


def test_install_and_load(place):
    path = install(place, make(1))
    assert path.endswith("baseline/00000001.egb")
    assert os.stat(path).st_mode & 0o777 == 0o600
    install(place, make(2))
    loaded = load(place)
    assert (loaded.baseline.revision, loaded.name, place.floor(), loaded.refused) == (2, "00000002.egb", 2, ())
    assert loaded.data == make(2)
    assert place.parent() == loaded.digest
    assert place.current([PUBLIC], DEVICE, NOW).revision == 2


def test_install_refuses_what_is_not_newer(place):
    install(place, make(2))
    for revision in (1, 2):
        data = make(revision)
        with pytest.raises(OlderRevision):
            place.install(data, open_signed(data, [PUBLIC], DEVICE, 0, NOW))


@pytest.mark.parametrize(
    ("data", "name", "error"),
    [
        (make(9, bytes(32)), "00000009.egb", "BadSignature"),
        (make(1), "00000009.egb", "OlderRevision"),
        (make(1), "attack.egb", "OlderRevision"),
        (make(2), "attack.egb", "OlderRevision"),
        (make(9, device=bytes(16)), "00000009.egb", "WrongDevice"),
        (make(9)[:-9], "00000009.egb", "Truncated"),
        (make(9)[:-9] + bytes(9), "00000009.egb", "Corrupt"),
        (b"", "00000009.egb", "Truncated"),
        (make(9, not_before=NOW + 1), "00000009.egb", "NotYetValid"),
    ],
)
def test_a_bad_newer_file_leaves_the_standing_one(place, data, name, error):
    install(place, make(2))
    drop(place, name, data)
    loaded = load(place)
    assert loaded.baseline.revision == 2
    assert refusals(loaded) == {name: error}
    assert place.floor() == 2


def test_an_expired_newer_file(place):
    install(place, make(2))
    body = compile_baseline(Policy(), {}, None, 9, NOW, device=DEVICE)._replace(expires=NOW + 5)
    drop(place, "00000009.egb", sign(body, SEED))
    assert refusals(load(place, NOW + 5)) == {"00000009.egb": "Expired"}


def test_odd_files_are_refused_not_followed(place, tmp_path):
    install(place, make(2))
    os.mkfifo(os.path.join(place.directory, "fifo.egb"))
    os.mkdir(os.path.join(place.directory, "dir.egb"))
    drop(place, "notes.txt", b"x")
    (tmp_path / "elsewhere").write_bytes(make(9))
    os.symlink(tmp_path / "elsewhere", os.path.join(place.directory, "link.egb"))
    loaded = load(place)
    assert loaded.baseline.revision == 2
    assert refusals(loaded) == dict.fromkeys(["fifo.egb", "dir.egb", "link.egb"], "Corrupt")


def test_a_valid_newer_file_comes_into_force_and_lifts_the_floor(place):
    """Also what a power cut between rename and floor leaves behind."""
    install(place, make(2))
    drop(place, "00000005.egb", make(5))
    assert load(place).baseline.revision == 5
    assert place.floor() == 5


def test_no_way_back(place):
    install(place, make(2))
    install(place, make(3))
    os.unlink(place.path_of(3))
    assert load(place).baseline is None  # revision 2 is history, whoever removed revision 3
    drop(place, "00000003.egb", make(2))
    assert refusals(load(place)) == {"00000003.egb": "OlderRevision"}


def test_a_damaged_floor_is_made_again(place):
    install(place, make(4))
    drop(place, "floor", b"\xff")
    assert place.floor() == 0
    assert load(place).baseline.revision == 4
    assert place.floor() == 4


def test_rollback_is_a_new_revision(place):
    install(place, make(1, target="first"))
    install(place, make(2, target="second"))
    data = place.rollback(1, [PUBLIC], SEED, NOW + 7, "back to r1")
    install_at = open_signed(data, [PUBLIC], DEVICE, place.floor(), NOW + 7)
    parent = place.parent()
    place.install(data, install_at)
    baseline = load(place, NOW + 7).baseline
    assert (baseline.revision, baseline.target, baseline.note, baseline.parent) == (3, "first", "back to r1", parent)
    assert [name for name, _ in place.history([PUBLIC])] == ["00000003.egb", "00000002.egb", "00000001.egb"]


def test_history_is_bounded_and_manifests_go_with_it(place, monkeypatch):
    monkeypatch.setattr(store, "HISTORY_MAX", 3)
    for revision in range(1, 6):
        digest = bytes([revision]) * 32
        os.makedirs(place.directory, exist_ok=True)
        with open(place.manifest_path(digest), "wb") as file:
            file.write(b"manifest")
        install(place, make(revision, files=ManifestRef(digest, 8, 1)))
    assert sorted(os.listdir(place.directory)) == sorted(
        [f"0000000{n}.egb" for n in (3, 4, 5)] + [(bytes([n]) * 32).hex() + ".egm" for n in (3, 4, 5)] + ["floor"]
    )
    shown = [entry.revision for _, entry in place.history([PUBLIC]) if isinstance(entry, Baseline)]
    assert shown == [5, 4, 3]


def test_history_shows_what_is_damaged(place):
    install(place, make(1))
    install(place, make(2))
    drop(place, "00000001.egb", b"x")
    assert [type(entry).__name__ for _, entry in place.history([PUBLIC])] == ["Baseline", "Corrupt"]


def test_device_key_is_made_once(tmp_path):
    seed = keys.ensure_device_key(str(tmp_path))
    path = tmp_path / "keys" / "device.key"
    assert path.read_bytes() == seed
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert keys.ensure_device_key(str(tmp_path)) == seed
    assert keys.device_public(str(tmp_path)) == cose.public_of(seed)
    assert sorted(os.listdir(path.parent)) == ["device.key", "device.pub"]


def test_many_that_start_at_the_same_time_are_one_device(tmp_path):
    """The daemon and the hook of an update may be the first ones, both."""
    with ThreadPoolExecutor(8) as pool:
        for turn in range(20):
            state, begin = str(tmp_path / str(turn)), Barrier(8)

            def start(_number, state=state, begin=begin):
                begin.wait()
                return keys.ensure_device_key(state)

            seeds = list(pool.map(start, range(8)))
            assert set(seeds) == {(tmp_path / str(turn) / "keys/device.key").read_bytes()}
            assert keys.device_public(state) == cose.public_of(seeds[0])
            assert sorted(os.listdir(f"{state}/keys")) == ["device.key", "device.pub"]


def test_a_crash_while_making_the_key(tmp_path):
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "device.key.new").write_bytes(b"half")
    assert len(keys.ensure_device_key(str(tmp_path))) == 32


def test_credentials_come_first(tmp_path, monkeypatch):
    (tmp_path / "edgeguard-identity").write_bytes(SEED)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert keys.ensure_device_key(str(tmp_path / "state")) == SEED
    assert keys.device_public(str(tmp_path / "state")) == PUBLIC
    assert not (tmp_path / "state" / "keys" / "device.key").exists()


def test_a_damaged_key_is_never_replaced(tmp_path):
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "device.key").write_bytes(b"short")
    with pytest.raises(DecodeError):
        keys.ensure_device_key(str(tmp_path))
    assert (tmp_path / "keys" / "device.key").read_bytes() == b"short"


def test_fleet_keys_replace_local_trust(tmp_path):
    assert keys.trusted_keys(str(tmp_path / "none"), PUBLIC) == ([PUBLIC], "local")
    assert keys.trusted_keys(str(tmp_path), PUBLIC) == ([PUBLIC], "local")
    fleet = cose.public_of(bytes(32))
    (tmp_path / "a.pub").write_text(fleet.hex().upper() + "\n")
    (tmp_path / "readme").write_text("no key")
    assert keys.trusted_keys(str(tmp_path), PUBLIC) == ([fleet], "fleet")
    (tmp_path / "b.pub").write_text("xyz")
    with pytest.raises(SettingsError, match=r"b\.pub"):
        keys.trusted_keys(str(tmp_path), PUBLIC)


def test_policy_directories_mask_by_name(tmp_path):
    vendor, site = tmp_path / "vendor", tmp_path / "site"
    vendor.mkdir()
    site.mkdir()
    for name in ("10-a.toml", "20-b.toml", "30-c.toml", "40-d.toml"):
        (vendor / name).write_text(f"# vendor {name}\n")
    (vendor / "README").write_text("x")
    (site / "20-b.toml").write_text("# site\n")
    (site / "30-c.toml").write_text("\n")
    (site / "40-d.toml").symlink_to("/dev/null")
    (site / "15-e.toml").write_text("# more\n")
    found = store.read_policy_dirs(str(vendor), str(site))
    assert found == [
        (str(vendor / "10-a.toml"), b"# vendor 10-a.toml\n"),
        (str(site / "15-e.toml"), b"# more\n"),
        (str(site / "20-b.toml"), b"# site\n"),
    ]
    assert store.read_policy_dirs(str(tmp_path / "no"), str(tmp_path / "nowhere")) == []


def test_policy_files_are_bounded(tmp_path, monkeypatch):
    (tmp_path / "a.toml").write_bytes(b"#" * (store.POLICY_FILE_MAX + 1))
    with pytest.raises(PolicyError, match="256 KiB"):
        store.read_policy_dirs(str(tmp_path), "")
    os.unlink(tmp_path / "a.toml")
    os.mkfifo(tmp_path / "b.toml")
    with pytest.raises(PolicyError, match="not a regular file"):
        store.read_policy_dirs(str(tmp_path), "")
    monkeypatch.setattr(store, "POLICY_FILES_MAX", 0)
    with pytest.raises(PolicyError, match="at most 0"):
        store.read_policy_dirs(str(tmp_path), "")


def test_what_somebody_is_installing_is_not_raised_for_him(place):
    """Between its file and its floor another process reads: both would write the floor, and the slots."""
    install(place, make(2))
    other = store.Store(os.path.dirname(place.directory))
    with other.alone():
        drop(place, "00000003.egb", make(3))
        assert load(place).baseline.revision == 3
        assert place.floor() == 2
        with pytest.raises(OlderRevision):
            install(other, make(2))
        assert load(other).baseline.revision == 3
        assert place.floor() == 3, "who is alone waits for nobody"
    drop(place, "00000004.egb", make(4))
    assert load(place).baseline.revision == 4
    assert place.floor() == 4


def test_two_that_install_and_read_at_the_same_time(tmp_path):
    """Whoever installs writes the floor, and nobody else meanwhile."""
    together = Barrier(4)

    def reads():
        place = store.Store(str(tmp_path))
        together.wait()
        return [load(place).baseline.revision for _ in range(200)]

    def installs():
        place = store.Store(str(tmp_path))
        together.wait()
        for revision in range(2, 60):
            with place.alone():
                install(place, make(revision))
        return [59]

    install(store.Store(str(tmp_path)), make(1))
    with ThreadPoolExecutor(4) as pool:
        found = [future.result() for future in [pool.submit(reads) for _ in range(3)] + [pool.submit(installs)]]
    assert all(seen == sorted(seen) for seen in found)
    assert store.Store(str(tmp_path)).floor() == 59
