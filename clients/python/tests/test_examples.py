"""The examples, each as a process, as a reader would run them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import pytest

from p2p_node import Daemon

EXAMPLES = Path(__file__).parent.parent / "examples"

pytestmark = pytest.mark.usefixtures("needs_presence")


class Terminal:
    """A running example."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        self.keyboard: IO[str] = process.stdin
        self.screen: IO[str] = process.stdout

    def type(self, line: str) -> None:
        self.keyboard.write(line + "\n")
        self.keyboard.flush()


@pytest.fixture
def run() -> Iterator["Run"]:
    with ExitStack() as stack:
        yield Run(stack)


class Run:
    """Starts examples that end with the test."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def __call__(self, daemon: Daemon, name: str, *args: str) -> Terminal:
        process = self._stack.enter_context(
            subprocess.Popen(
                [sys.executable, str(EXAMPLES / name), *args],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "P2P_NODE_SOCKET": str(daemon.socket)},
            )
        )
        self._stack.callback(process.kill)
        return Terminal(process)


def test_chat(two: tuple[Daemon, Daemon], run: Run) -> None:
    server = run(two[0], "chat_server.py", "Ada")
    assert server.screen.readline() == f"{two[0].peer_id} waits for guests\n"
    client = run(two[1], "chat_client.py", "Bob")
    assert client.screen.readline() == f"talking to {two[0].peer_id}\n"
    assert server.screen.readline() == "Bob: (is here)\n"
    client.type("hello, can you hear me?")
    assert server.screen.readline() == "Bob: hello, can you hear me?\n"
    server.type("wie schön")
    assert client.screen.readline() == "Ada: wie schön\n"
    for terminal in (client, server):
        terminal.keyboard.close()
        assert terminal.process.wait(30) == 0
        assert terminal.process.stderr is not None
        assert "Traceback" not in terminal.process.stderr.read()


def test_sensor(two: tuple[Daemon, Daemon], run: Run) -> None:
    run(two[1], "sensor.py", two[0].peer_id, "0.05")
    receiver = run(two[0], "sensor_receiver.py")
    assert receiver.screen.readline() == f"{two[0].peer_id} waits for readings\n"
    for number in range(1, 6):
        assert receiver.screen.readline().startswith(f"{two[1].peer_id[-6:]} #{number}: load ")
    receiver.process.send_signal(signal.SIGINT)
    assert receiver.process.wait(30) == 0
    # What was printed and not acknowledged may come again; nothing is left out.
    again = run(two[0], "sensor_receiver.py")
    again.screen.readline()
    first = int(again.screen.readline().split("#")[1].split(":")[0])
    assert first <= 6
