"""Finding the daemon, and waiting for it."""

import asyncio
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Start, within

from p2p_node import Daemon, DeadlineExceeded, InvalidArgument, Node, P2PError, find_socket


async def test_a_daemon_that_starts_later_is_waited_for(
    tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "p2p_node")
    told = list[str]()
    late = Daemon(tmp_path / "late")
    node = Node(late.socket, on_wait=told.append)
    starting = asyncio.ensure_future(node.start())
    while not told:
        await asyncio.wait([starting], timeout=0.05)
    with await asyncio.to_thread(late.start):
        await within(starting)
        assert node.peer_id == late.peer_id
        await node.close()
    assert len(told) == 1
    assert told[0].startswith(
        f"no daemon at {late.socket} (there is no socket); waiting for it. Start it with"
    )
    assert [record.getMessage() for record in caplog.records] == [
        told[0],
        f"the daemon at {late.socket} is there",
    ]


async def test_a_deadline_ends_the_wait(tmp_path: Path) -> None:
    with pytest.raises(
        DeadlineExceeded, match=r"no daemon at .*nowhere within 0.2 s: there is no socket"
    ) as caught:
        await Node(tmp_path / "nowhere").start(timeout=0.2)
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, P2PError)
    assert caught.value.reason == "NO_DAEMON"


async def test_a_socket_left_behind_says_so(tmp_path: Path, start: Start) -> None:
    daemon = start(directory=tmp_path / "d")
    daemon.kill()
    with pytest.raises(DeadlineExceeded, match="nobody serves the socket"):
        await Node(daemon.socket).start(timeout=0.2)


async def test_a_path_too_long_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="the system's limit is 107") as caught:
        await Node(tmp_path / ("x" * 120)).start()
    assert caught.value.field == "socket"


async def test_a_node_that_is_not_open_says_so(daemon: Daemon) -> None:
    node = Node(daemon.socket)
    with pytest.raises(P2PError, match=r"not open; call start\(\)"):
        await node.peers()
    async with node:
        await node.peers()
    with pytest.raises(P2PError, match=r"not open; call start\(\)"):
        await node.send_message("x", b"")
    # It can be opened again.
    async with node:
        await node.peers()


def test_where_the_socket_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("P2P_NODE_SOCKET", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert find_socket() == Path("/run/p2p-node/p2p-node.sock")
    own = tmp_path / "p2p-node" / "p2p-node.sock"
    own.parent.mkdir()
    own.touch()
    assert find_socket() == own
    monkeypatch.setenv("P2P_NODE_SOCKET", "/elsewhere")
    assert find_socket() == Path("/elsewhere")


async def test_the_environment_names_the_socket(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2P_NODE_SOCKET", str(daemon.socket))
    async with Node() as node:
        assert node.peer_id == daemon.peer_id


def test_a_socket_that_is_forbidden_says_who_may(daemon: Daemon) -> None:
    program = (
        "import asyncio, os, sys\n"
        "from p2p_node import Node, PermissionDenied\n"
        "os.getuid() == 0 and (os.setgroups([]), os.setgid(65534), os.setuid(65534))\n"
        "async def main():\n"
        "    try:\n"
        "        await Node(sys.argv[1]).start(timeout=30)\n"
        "    except PermissionDenied as error:\n"
        "        print(error)\n"
        "asyncio.run(main())\n"
    )
    daemon.directory.chmod(0o755)
    daemon.socket.chmod(0o600 if __import__("os").getuid() == 0 else 0)
    command = [sys.executable, "-c", program, str(daemon.socket)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(f"this user may not open {daemon.socket}: become a member"), done.stderr
