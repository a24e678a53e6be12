"""Becomes another program, which dies when its supervisor does.

Run by path with the interpreter's `-I -S`, so that it costs milliseconds; uses the standard library only:

    python -I -S exec_child.py PARENT_PID DEATH_SIGNAL UID:GID|- PROGRAM [ARGUMENT ...]

The order matters: a change of account clears the death signal, and a parent that died before it was armed is never
noticed afterwards. Outside Linux there is no death signal; there the program only replaces this one.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
EXIT_NO_PARENT = 96
EXIT_NO_PROGRAM = 97


def main(arguments: list[str]) -> int:
    parent, death_signal, account, *argv = arguments
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's `&` ignores it, and that would be inherited
    if account != "-":  # 1. the account
        uid, gid = (int(part) for part in account.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":  # 2. the death signal
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
    if os.getppid() != int(parent):  # 3. still there?
        return EXIT_NO_PARENT
    try:
        os.execv(argv[0], argv)  # 4. the program  # noqa: S606
    except OSError as exc:
        sys.stderr.write(f"{argv[0]}: {exc.strerror}\n")
        return EXIT_NO_PROGRAM


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
