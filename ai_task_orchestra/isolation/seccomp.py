"""seccomp: system calls that a program of a task has no business with are refused.

It closes what Landlock does not cover: kinds of sockets, new user namespaces (in which a process has every power over
what is its own, the kernel's weaknesses included), memory and queues that are found by number and outlive their makers,
keys that the kernel keeps for the account, and the kernel's own administration.
"""

from __future__ import annotations

import ctypes
import errno
import struct

from ai_task_orchestra.isolation.kernel import LINUX, MACHINE, PR_SET_SECCOMP, checked, prctl

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16

_MODE_FILTER = 2
_CLONE_NEWUSER = 0x10000000
_X32 = 0x40000000

# Offsets in what a filter sees of a call, and the machine's instructions.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW = 0x7FFF0000
_ERROR = 0x00050000

# name: number on x86-64, on 64-bit ARM.
_CALLS = {
    "socket": (41, 198),
    "clone": (56, 220),
    "unshare": (272, 97),
    "prlimit64": (302, 261),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "truncate": (76, 45),
    "chroot": (161, 51),
    "acct": (163, 89),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "syslog": (103, 116),
    "quotactl": (179, 60),
    "init_module": (175, 105),
    "delete_module": (176, 106),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "perf_event_open": (298, 241),
    "open_by_handle_at": (304, 265),
    "setns": (308, 268),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    # Programs fall back to the older way where these "do not exist"; the arguments of clone3 can't be looked at, and
    # a ring opens sockets without asking for them by `socket`.
    "clone3": (435, 435),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
}
_NOT_THERE = ("clone3", "io_uring_setup", "io_uring_enter", "io_uring_register")
_BY_ARGUMENT = ("socket", "clone", "unshare", "prlimit64")
# What reaches, in the machine's own namespaces, beyond what a program may see. Landlock knows `truncate` late.
_REACHING_OUT = ("shmget", "semget", "msgget", "mq_open", "truncate")
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}


def known_machine() -> bool:
    """Whether we know the numbers of this machine's system calls."""
    return LINUX and MACHINE in _ARCHITECTURES


def install(families: tuple[int, ...], *, apart: bool) -> None:
    """Filter the system calls of this process and everything it starts. `no_new_privs` must be set.

    Args:
        families: the kinds of sockets that may be made.
        apart: we are in namespaces of our own, where nothing can be reached that is not ours.

    Raises:
        OSError: the kernel can't do it.
    """
    code = _program(families, apart)
    instructions = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(code) // 8, ctypes.addressof(instructions))
    checked(prctl(PR_SET_SECCOMP, _MODE_FILTER, header), "seccomp")


def _program(families: tuple[int, ...], apart: bool) -> bytes:
    architecture, column = _ARCHITECTURES[MACHINE]
    numbers = {name: each[column] for name, each in _CALLS.items()}
    denied, absent, unreachable = (_ERROR | each for each in (errno.EPERM, errno.ENOSYS, errno.ENETUNREACH))
    program = _step(_LOAD, _ARCHITECTURE) + _step(_EQUAL, architecture, 1, 0) + _step(_RETURN, absent)
    program += _step(_LOAD, _NUMBER)
    if column == 0:
        program += _step(_AT_LEAST, _X32, 0, 1) + _step(_RETURN, absent)
    for name, number in numbers.items():
        if name in _BY_ARGUMENT or (name in _REACHING_OUT and apart):
            continue
        answer = absent if name in _NOT_THERE else denied
        program += _step(_EQUAL, number, 0, 1) + _step(_RETURN, answer)
    for name in ("clone", "unshare"):
        program += _step(_EQUAL, numbers[name], 0, 4) + _step(_LOAD, _FIRST_ARGUMENT)
        program += _step(_ANY_BIT, _CLONE_NEWUSER, 0, 1) + _step(_RETURN, denied) + _step(_RETURN, _ALLOW)
    program += _step(_EQUAL, numbers["prlimit64"], 0, 4) + _step(_LOAD, _FIRST_ARGUMENT)  # 0 is the caller itself
    program += _step(_EQUAL, 0, 0, 1) + _step(_RETURN, _ALLOW) + _step(_RETURN, denied)
    program += _step(_EQUAL, numbers["socket"], 1, 0) + _step(_RETURN, _ALLOW) + _step(_LOAD, _FIRST_ARGUMENT)
    for family in families:
        program += _step(_EQUAL, family, 0, 1) + _step(_RETURN, _ALLOW)
    return program + _step(_RETURN, unreachable)


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
