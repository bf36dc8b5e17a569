"""After a mount only what it may concern is looked at: where there are containers, something is mounted all day."""

from __future__ import annotations

from edgeguard.daemon.sensors import LIBRARIES, attention, concerning
from edgeguard.model import Watch

WATCHES = (
    Watch("/etc", "config"),
    Watch("/home/*/.ssh", "keys"),
    Watch("/usr/sbin", "program"),
    Watch("/", "other", only="setid"),
)


def test_mounts_in_and_above_what_is_watched() -> None:
    points = ["/etc/passwd", "/usr", "/usr/sbin/sshd", "/home", "/home/anna", "/home/anna/.ssh", "/etc"]
    assert list(concerning(WATCHES, points)) == points


def test_mounts_elsewhere() -> None:
    points = ["/run/user/1000", "/var/lib/docker/overlay2/1/merged", "/media/usb", "/usr/sbin2", "/etcetera"]
    points += ["/home/anna/mail"]
    assert list(concerning(WATCHES, points)) == []


def test_attention_for_key_files_that_no_watch_names() -> None:
    places = ["/home/anna/.ssh/authorized_keys", "/var/www/.ssh/authorized_keys", "/etc/keys/anna", "/usr/sbin/.ssh/k"]
    places += ["/proc/.ssh/authorized_keys", "/run/sshd/.ssh/authorized_keys", "/srv/[a]/.ssh/authorized_keys"]
    assert attention(WATCHES, places) == (Watch("/var/www/.ssh/authorized_keys", "key", recurse=False),)
    assert attention(WATCHES[1:-1], places[:2]) == (LIBRARIES, *attention(WATCHES, places))


def test_attention_for_the_cache_of_libraries() -> None:
    """Policies leave it out of /etc; a site that watches it as something else is heard."""
    etc = Watch("/etc", "config", exclude=("/etc/ld.so.cache",))
    assert attention((etc,), ()) == (LIBRARIES,)
    assert attention((etc, Watch("/etc/ld.so.cache", "config")), ()) == ()
