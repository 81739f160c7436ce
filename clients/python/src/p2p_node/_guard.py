"""Ends a daemon when the program that started it is gone.

Run as a process of its own, with the daemon's pid and the directory to remove
(or ""), by `p2p_node.Daemon`. Its standard input is a pipe that the program
holds open: end of file means that it ended, however that was.
"""

import os
import select
import shutil
import signal
import sys

#: How long the daemon may take to end by itself, in seconds.
_GRACE = 15


def _main() -> None:
    pid, directory = int(sys.argv[1]), sys.argv[2]
    # A descriptor of the process: its number may be another's by then.
    process = os.pidfd_open(pid)
    sys.stdout.write("guarding\n")
    sys.stdout.flush()
    sys.stdin.buffer.read()
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            signal.pidfd_send_signal(process, number)
        except ProcessLookupError:
            break
        if select.select([process], [], [], _GRACE)[0]:
            break
    if directory:
        shutil.rmtree(directory, ignore_errors=True)


_main()
