"""The private daemon, and what is left of it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import DEADLINE

from p2p_node import Daemon

PROGRAM = """
import time
from p2p_node import Daemon
daemon = Daemon().start()
print(daemon.pid, daemon.directory, flush=True)
while True:
    time.sleep(0.05)  # A read could begin just after the signal, and miss it.
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that ended and was not waited for counts as gone.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until_gone(pid: int, directory: Path) -> None:
    until = time.monotonic() + DEADLINE
    while alive(pid) or directory.exists():
        assert time.monotonic() < until, f"process {pid} or {directory} is still there"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_it_ends_with_the_program(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as program:
        assert program.stdout is not None
        pid, directory = program.stdout.readline().decode().split()
        assert alive(int(pid))
        program.send_signal(number)
        program.wait(DEADLINE)
        wait_until_gone(int(pid), Path(directory))


def test_nothing_is_left_after_a_stop() -> None:
    with Daemon() as daemon:
        pid, directory = daemon.pid, daemon.directory
        assert pid is not None
        assert daemon.log()
        assert daemon.start() is daemon
    wait_until_gone(pid, directory)
    assert daemon.pid is None


def test_a_directory_that_was_given_stays(tmp_path: Path) -> None:
    directory = tmp_path / "kept"
    with Daemon(directory) as daemon:
        peer_id = daemon.peer_id
    with Daemon(directory) as daemon:
        assert daemon.peer_id == peer_id


async def test_it_works_in_async_with() -> None:
    async with Daemon() as daemon:
        assert daemon.peer_id


def test_a_failed_start_shows_the_log() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)the daemon ended with status \d+:.*no_such_setting"):
        Daemon(config="no_such_setting = 1\n").start()


def test_a_missing_executable_says_where_it_was_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2P_NODE_BIN", "/nowhere/p2p-node")
    with pytest.raises(FileNotFoundError, match="P2P_NODE_BIN is '/nowhere/p2p-node'"):
        Daemon().start()
    monkeypatch.delenv("P2P_NODE_BIN")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FileNotFoundError, match="no `p2p-node` in PATH"):
        Daemon().start()
