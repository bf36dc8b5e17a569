"""What pam-auth-update makes, and what somebody else makes of it."""

from __future__ import annotations

import pytest

from edgeguard.upgrades.pam import made_of

TEMPLATE = b"""# common
$auth_primary
auth\trequisite\t\t\tpam_deny.so
auth\trequired\t\t\tpam_permit.so
$auth_additional
"""
UNIX = b"""Name: Unix
Auth-Type: Primary
Auth:
\t[success=end default=ignore]\tpam_unix.so nullok try_first_pass
Auth-Initial:
\t[success=end default=ignore]\tpam_unix.so nullok
Session-Type: Additional
Session:
\trequired\tpam_unix.so
"""
OTHER = b"Name: Other\nAuth:\n\t[success=end default=ignore]\tpam_other.so try_first_pass\n"
CAP = b"Name: Capabilities\nAuth-Final:\n\toptional\t\t\tpam_cap.so\n"
ONE = b"auth [success=1 default=ignore] pam_unix.so nullok\n"
REST = b"auth requisite pam_deny.so\nauth required pam_permit.so\n"
PROFILES = (UNIX, OTHER, CAP)
TWO = b"""auth [success=2 default=ignore] pam_unix.so nullok
auth [success=1 default=ignore] pam_other.so try_first_pass
"""


@pytest.mark.parametrize("text", [ONE + REST, b"# why\n" + TWO + REST + b"auth optional pam_cap.so \n"])
def test_what_it_makes(text: bytes) -> None:
    assert made_of(text, TEMPLATE, PROFILES)


@pytest.mark.parametrize(
    "text",
    [
        ONE.replace(b"success=1", b"success=2") + REST,  # lands behind the end
        TWO.replace(b"success=2", b"success=1") + REST,
        ONE + b"auth required pam_permit.so\n",  # nobody denies
        ONE + b"auth required pam_permit.so\nauth requisite pam_deny.so\n",
        ONE.replace(b"default=ignore", b"default=1") + REST,
        ONE + b"auth sufficient pam_permit.so\n" + REST,
        ONE + b"auth sufficient pam_unix.so nullok\n" + REST,
        ONE + REST + b"auth sufficient pam_evil.so\n",
        ONE + REST + b"@include evil\n",
        ONE + REST + b"session required pam_unix.so\nauth",
        b"auth [default=1] pam_permit.so\n" + REST,
        b"auth sufficient pam_permit.so \\\n# " + ONE + REST,
        b"",
    ],
)
def test_what_it_does_not_make(text: bytes) -> None:
    assert not made_of(text, TEMPLATE, PROFILES)


def test_a_session_without_modules_of_its_own() -> None:
    template, rest = (text.replace(b"auth", b"session") for text in (TEMPLATE, REST))
    text = b"session [default=1] pam_permit.so\n" + rest + b"session required pam_unix.so\n"
    assert made_of(text, template, PROFILES)
