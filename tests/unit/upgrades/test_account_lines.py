"""Which accounts a package's scripts and sysusers.d files make and take away, read without a shell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.upgrades.account_lines import ACCOUNTS_MAX, NOLOGIN, SYSUSERS_MAX, declared, made, taken
from edgeguard.upgrades.postrm import SCRIPT_MAX

POSTINST = rb"""#!/bin/sh
set -e
NAME="broker"
# adduser --system remark
if ! getent passwd $NAME >/dev/null; then
    adduser --system --group --quiet --home /var/lib/broker \
        --gecos "the eve of broker" --no-create-home "$NAME" 2>/dev/null || true
fi
getent group plain > /dev/null || addgroup --system plain >/dev/null
adduser broker dialout
/usr/sbin/useradd -r -d / -s /bin/bash -c mallory postgres && echo done
adduser --system "$UNKNOWN"
echo adduser --system said
cat > adduser trudy
"""
POSTRM = b'if [ "$1" = purge ]; then deluser --quiet --system broker > /dev/null || true; delgroup plain; fi\n'


def test_what_is_made_is_named_with_its_shell() -> None:
    assert made(POSTINST) == {
        "user broker": NOLOGIN,
        "group broker": "",
        "group plain": "",
        "user postgres": "/bin/bash",
        "group postgres": "",
    }


def test_what_is_taken_away_is_named() -> None:
    assert taken(POSTRM) == {"user broker", "group broker", "group plain"}
    assert made(POSTRM) == {}
    assert taken(POSTINST) == frozenset()
    assert taken(b"deluser anna sudo") == frozenset(), "out of a group"


@pytest.mark.parametrize(
    "line",
    [b"adduser 'a\nb'", b"adduser $(id -un)", b"adduser a b", b"adduser", b"adduser --home eve", b"xadduser eve"],
)
def test_what_is_not_plain_is_not_said(line: bytes) -> None:
    assert made(line) == {}


def test_the_same_letter_means_two_things() -> None:
    assert made(b"groupadd -f -r plain\naddgroup plainer\nuseradd -f 30 -r broker\ngroupadd -rf third\n") == {
        "group plain": "",
        "group plainer": "",
        "user broker": "/bin/sh",
        "group broker": "",
        "group third": "",
    }
    assert taken(b"userdel -f broker; groupdel -f plain") == {"user broker", "group broker", "group plain"}


@pytest.mark.parametrize(
    ("line", "shell"),
    [
        (b"useradd -r broker", "/bin/sh"),
        (b"useradd --system --no-create-home broker", "/bin/sh"),
        (b"useradd -rms /bin/zsh broker", "/bin/zsh"),
        (b"useradd -rMs/bin/zsh -d /srv broker", "/bin/zsh"),
        (b"useradd -Mrd /srv -c 'The broker' -s /bin/false broker", "/bin/false"),
        (b"useradd -rU -g daemon -G audio,video broker", "/bin/sh"),
        (b"adduser --system --shell=/bin/sh broker", "/bin/sh"),
        (b"adduser --system --shell= broker", ""),
        (b"adduser --quiet --system broker", NOLOGIN),
        (b"adduser --disabled-password --gecos '' broker", "/bin/bash"),
    ],
)
def test_the_shell_is_what_the_program_would_take(line: bytes, shell: str) -> None:
    """Where none is said: of useradd Debian's default, of adduser another for people than for the system."""
    assert made(line) == {"user broker": shell, "group broker": ""}


def test_sysusers() -> None:
    text = b"""# u remark -
u broker - "The broker" /var/lib/broker
u! locked 350:350 - - /bin/sh
g plain -
m broker dialout
r - 500-600
u %i - x
u "un closed
u root 0 x /root /bin/bash
"""
    assert declared(text) == {
        "user broker": NOLOGIN,
        "group broker": "",
        "user locked": "/bin/sh",
        "group locked": "",
        "group plain": "",
        "user root": "/bin/bash",
        "group root": "",
    }


def test_bounds() -> None:
    assert made(b"adduser a\n" * SCRIPT_MAX) == {}
    assert declared(b"g a -\n" * SYSUSERS_MAX) == {}
    assert len(declared(b"".join(b"g a%d -\n" % number for number in range(1000)))) == ACCOUNTS_MAX
    assert len(made(b"".join(b"addgroup a%d\n" % number for number in range(1000)))) == ACCOUNTS_MAX


@given(
    st.lists(st.sampled_from([*POSTINST.split(), b"\n", b"'", b'"', b"\\\n", b";", b"u", b"\x00", b"\xff"])).map(
        b" ".join
    )
)
def test_any_bytes_are_names_or_nothing(text: bytes) -> None:
    for found in (made(text), declared(text), taken(text)):
        assert all(subject.partition(" ")[0] in ("user", "group") for subject in found)
        assert all(subject.partition(" ")[2].isprintable() for subject in found)
