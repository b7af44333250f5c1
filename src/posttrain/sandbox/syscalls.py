"""The system calls that confined Python is refused, as a seccomp program (BPF; `man 2 seccomp`).

What pure computation with files never needs: processes and threads, other programs, the network, signals and
limits of other processes, kernel interfaces. One process, one thread: nothing can be left behind, and the
limits of one process are the limits of all.
"""

from __future__ import annotations

import errno
import platform
import struct

from posttrain.common.errors import ConfigError

# name -> number on x86_64 and on aarch64, None where there is none
REFUSED: dict[str, tuple[int, int | None]] = {
    # processes, threads, programs
    "clone": (56, 220), "clone3": (435, 435), "fork": (57, None), "vfork": (58, None),
    "execve": (59, 221), "execveat": (322, 281), "setsid": (112, 157), "setpgid": (109, 154),
    # the network
    "socket": (41, 198),
    # signals to, and memory and files of, other processes
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "kcmp": (312, 272), "migrate_pages": (256, 238), "move_pages": (279, 239),
    # limits and priorities, its own included
    "setrlimit": (160, 164), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setattr": (314, 274), "prctl": (157, 167), "seccomp": (317, 277),
    # memory that no limit of the process counts
    "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
    "memfd_create": (319, 279), "memfd_secret": (447, 447),
    # name spaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "move_mount": (429, 429), "open_tree": (428, 428),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    # doors of the kernel that were the way out before
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "fanotify_init": (300, 262),
    # the machine, for who runs it as root
    "reboot": (169, 142), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171),
    "clock_adjtime": (305, 266), "sethostname": (170, 161), "setdomainname": (171, 162),
    "mknod": (133, None), "mknodat": (259, 33), "syslog": (103, 116), "vhangup": (153, 58),
    "iopl": (172, None), "ioperm": (173, None), "personality": (135, 92),
}  # fmt: skip

# Second argument of a call that is else allowed. A descriptor can be made to signal any process of the user;
# a terminal can be typed into.
REFUSED_COMMANDS: dict[str, tuple[tuple[int, int], tuple[int, ...]]] = {
    "fcntl": ((72, 25), (8, 10, 15)),  # F_SETOWN, F_SETSIG, F_SETOWN_EX
    "ioctl": ((16, 29), (0x8901, 0x8902, 0x5412, 0x541C)),  # FIOSETOWN, SIOCSPGRP, TIOCSTI, TIOCLINUX
}
_PRLIMIT64 = (302, 261)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_*

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF_LD|W|ABS, JMP|JEQ|K, JMP|JGE|K, RET|K
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM  # SECCOMP_RET_*
_NUMBER, _ARCH, _FIRST, _SECOND, _THIRD = 0, 4, 16, 24, 32  # offsets in struct seccomp_data, low halves


def program(machine: str | None = None) -> bytes:
    """The filter as an array of `struct sock_filter`. machine: as `uname -m` says, this one's where None.

    Raises ConfigError for a machine whose call numbers are not known.
    """
    machine = machine or platform.machine()
    if machine not in _MACHINES:
        raise ConfigError(
            f"no sandbox for machine type '{machine}': system calls are known of {', '.join(_MACHINES)} "
            "(Linux); run model-written code on one of these"
        )
    column, arch = _MACHINES[machine]
    code = [_op(_LOAD, _ARCH), _op(_EQUAL, arch, 1, 0), _op(_RETURN, _KILL), _op(_LOAD, _NUMBER)]
    if machine == "x86_64":  # the x32 numbers lead to the same calls
        code += [_op(_AT_LEAST, 0x40000000, 0, 1), _op(_RETURN, _KILL)]
    for numbers in REFUSED.values():
        number = numbers[column]
        if number is not None:
            code += [_op(_EQUAL, number, 0, 1), _op(_RETURN, _REFUSE)]
    for numbers_, commands in REFUSED_COMMANDS.values():
        checks = [step for c in commands for step in (_op(_EQUAL, c, 0, 1), _op(_RETURN, _REFUSE))]
        body = [_op(_LOAD, _SECOND), *checks, _op(_RETURN, _ALLOW)]
        code += [_op(_EQUAL, numbers_[column], 0, len(body)), *body]
    code += _own_limits_only(_PRLIMIT64[column])
    return b"".join([*code, _op(_RETURN, _ALLOW)])


def _own_limits_only(number: int) -> list[bytes]:
    """prlimit64(pid, resource, new, old): reading one's own, as getrlimit does; nothing else is let by."""
    zero = [
        step
        for offset in (_FIRST, _THIRD, _THIRD + 4)
        for step in (_op(_LOAD, offset), _op(_EQUAL, 0, 1, 0), _op(_RETURN, _REFUSE))
    ]
    return [_op(_EQUAL, number, 0, len(zero)), *zero]


def _op(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, k)
