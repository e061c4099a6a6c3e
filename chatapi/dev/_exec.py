"""Becomes the command it is given, with its life tied to its parent's and, if told so, without root's rights.

A script, not for import: `python -I -S _exec.py PARENT_PID SIGNAL UID:GID|- COMMAND…`. It does what `preexec_fn`
would, but in a fresh process, where running Python between fork and exec is safe.
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal this process gets when the thread that started it ends."""


def main() -> None:
    parent, death_signal, user, *command = sys.argv[1:]
    if user != "-":
        uid, gid = (int(number) for number in user.split(":"))
        os.setgroups([gid])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        # Only now: a change of user clears it.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(death_signal))
        if os.getppid() != int(parent):
            sys.exit("The starting process has ended.")
    try:
        os.execvp(command[0], command)  # noqa: S606 - no shell is wanted
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
