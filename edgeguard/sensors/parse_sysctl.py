"""The kernel settings that matter for security, and which of two values is the stronger one. Pure.

A level is a rank: higher is stronger, -1 is a value that this table does not know (which a rule treats as weaker).
Settings that have no order (a program path, a pattern) have `ordered` false and level 0: ask for the same value.
"""

from __future__ import annotations

from collections.abc import Mapping

VALUE_MAX = 4096  # bytes; core_pattern has 128, the rest are numbers

# One line a setting: values from the weakest to the strongest; those joined with a comma are equally strong.
_RANKED = """
kernel.kptr_restrict                            0 1 2
kernel.dmesg_restrict                           0 1
kernel.randomize_va_space                       0 1 2
kernel.yama.ptrace_scope                        0 1 2 3
kernel.unprivileged_bpf_disabled                0 2 1
kernel.unprivileged_userns_clone                1 0
kernel.apparmor_restrict_unprivileged_userns    0 1
kernel.kexec_load_disabled                      0 1
kernel.modules_disabled                         0 1
kernel.io_uring_disabled                        0 1 2
fs.protected_hardlinks                          0 1
fs.protected_symlinks                           0 1
fs.protected_fifos                              0 1 2
fs.protected_regular                            0 1 2
fs.suid_dumpable                                1 2 0
dev.tty.ldisc_autoload                          1 0
dev.tty.legacy_tiocsti                          1 0
vm.unprivileged_userfaultfd                     1 0
net.core.bpf_jit_harden                         0 1 2
net.ipv4.ip_forward                             1 0
net.ipv4.tcp_syncookies                         0 1,2
net.ipv4.icmp_echo_ignore_broadcasts            0 1
net.ipv4.icmp_ignore_bogus_error_responses      0 1
net.ipv4.conf.all.rp_filter                     0 2 1
net.ipv4.conf.default.rp_filter                 0 2 1
net.ipv4.conf.all.accept_redirects              1 0
net.ipv4.conf.default.accept_redirects          1 0
net.ipv4.conf.all.send_redirects                1 0
net.ipv4.conf.default.send_redirects            1 0
net.ipv4.conf.all.accept_source_route           1 0
net.ipv4.conf.default.accept_source_route       1 0
net.ipv4.conf.all.log_martians                  0 1
net.ipv4.conf.default.log_martians              0 1
net.ipv6.conf.all.forwarding                    1 0
net.ipv6.conf.default.forwarding                1 0
net.ipv6.conf.all.accept_redirects              1 0
net.ipv6.conf.default.accept_redirects          1 0
net.ipv6.conf.all.accept_source_route           1 0 -1
net.ipv6.conf.default.accept_source_route       1 0 -1
net.ipv6.conf.all.accept_ra                     2 1 0
net.ipv6.conf.default.accept_ra                 2 1 0
"""
_HIGHER_IS_STRONGER = ("kernel.perf_event_paranoid", "vm.mmap_min_addr")
_FEWER_BITS_ARE_STRONGER = ("kernel.sysrq",)
_NONE_IS_STRONGER = ("user.max_user_namespaces",)  # any number above 0 lets a user make namespaces
_UNORDERED = ("kernel.core_pattern", "kernel.modprobe")


def _ranks() -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = {}
    for line in _RANKED.split("\n"):
        key, *groups = line.split() or [""]
        if key:
            table[key] = {value: rank for rank, group in enumerate(groups) for value in group.split(",")}
    return table


RANKS: Mapping[str, Mapping[str, int]] = _ranks()
KEYS: tuple[str, ...] = (*RANKS, *_HIGHER_IS_STRONGER, *_FEWER_BITS_ARE_STRONGER, *_NONE_IS_STRONGER, *_UNORDERED)


def path_of(key: str) -> str:
    """Below /proc/sys; none of our keys has a component with a dot in it."""
    return "/proc/sys/" + key.replace(".", "/")


def ordered(key: str) -> bool:
    return key not in _UNORDERED


def level(key: str, value: str) -> int:
    """How strong `value` is for `key`."""
    if key in RANKS:
        return RANKS[key].get(value, -1)
    if key in _UNORDERED:
        return 0
    try:
        number = int(value)
    except ValueError:
        return -1
    if key in _HIGHER_IS_STRONGER:
        return max(number + 1, 0)  # perf_event_paranoid begins at -1
    if key in _NONE_IS_STRONGER:
        return int(number == 0)
    return _sysrq(number)


def _sysrq(mask: int) -> int:
    """0 allows nothing, 1 everything, else each bit one more function (Documentation/admin-guide/sysrq.rst)."""
    if mask == 1:
        return 0
    return max(10 - (mask & 0x1FE).bit_count(), 1)
