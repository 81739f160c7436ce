"""Apps in Python and Go, grpcurl and the command line talk to each other, and
10,000 messages flow from Python to Go while the daemon under each is killed
and started again.

Needs the Python package importable, Go's programs built and grpcurl:
scripts/test-interop sees to that.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from p2p_node.daemon import Daemon

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
NODE = os.environ["P2P_NODE_BIN"]
GO = Path(os.environ["GO_PROGRAMS"])
# Longest that anything may take.
DEADLINE = 180.0
MESSAGES = 10_000
# A daemon is killed each time that so many messages have arrived.
KILL_EVERY = 900


def main() -> None:
    with (
        Daemon(listen=["/ip4/127.77.1.1/udp/0/quic-v1"]) as a,
        Daemon(listen=["/ip4/127.77.1.2/udp/0/quic-v1"]) as b,
    ):
        join(a, b)
        talk(a, b)
        flow(a, b)
    print("interop: all is well")


# --- everyone talks to everyone ---------------------------------------------


def join(a: Daemon, b: Daemon) -> None:
    """By the command line: a ticket of a, redeemed at b."""
    ticket = json.loads(cli(a, "--json", "invite", "--alias", "go"))["ticket"]
    joined = json.loads(cli(b, "--json", "join", ticket, "--alias", "python"))
    assert joined["peer_id"] == a.peer_id, joined
    print("interop: joined by the command line")


def talk(a: Daemon, b: Daemon) -> None:
    """A Python app at a, a Go app at b, each also written to by a command."""
    server = [sys.executable, "-W", "error", str(ROOT / "clients/python/examples/chat_server.py"), "python"]
    with app(server, a) as python, app([str(GO / "client"), "-name", "go"], b) as go:
        python.hears("waits for guests")
        go.hears("talking to")
        go.types("hello from Go")
        python.hears("go: hello from Go")
        python.types("hello from Python")
        go.hears("python: hello from Python")
        line = {"name": "cli", "text": "hello from the command line"}
        stored = cli(a, "--json", "send", "go", json.dumps(line), "--channel", "chat")
        assert json.loads(stored)["state"] == "MESSAGE_STATE_STORED", stored
        go.hears("cli: hello from the command line")
        line = {"name": "grpcurl", "text": "hello from grpcurl"}
        payload = base64.b64encode(json.dumps(line).encode()).decode()
        request = {"peer": "python", "message": {"channel": "chat", "payload": payload}}
        assert "MESSAGE_STATE_STORED" in grpcurl(b, "Send", request)
        python.hears("grpcurl: hello from grpcurl")
        print("interop: Go -> Python, Python -> Go, command line -> Go, grpcurl -> Python")

    grpcurl(
        b,
        "Send",
        {"peer": "python", "message": {"channel": "words", "payload": base64.b64encode(b"one").decode()}},
    )
    heard = json.loads(cli(a, "--json", "listen", "--channel", "words", "--max", "1"))
    assert base64.b64decode(heard["message"]["payload"]) == b"one", heard
    cli(a, "send", "go", "two", "--channel", "words")
    heard = grpcurl(b, "Listen", {"channel": "words", "ack_mode": "ACK_MODE_AUTO"}, until="payload")
    assert base64.b64encode(b"two").decode() in heard, heard
    print("interop: grpcurl -> command line, command line -> grpcurl")


# --- 10,000 messages over daemons that are killed ----------------------------


def flow(a: Daemon, b: Daemon) -> None:
    log = Path(tempfile.mkdtemp(prefix="p2p-node-interop-")) / "log"
    receiver = [str(GO / "receiver"), "-file", str(log), "-socket", str(b.socket), "-channel", "flow"]
    receiver += ["-count", str(MESSAGES), "-timeout", f"{DEADLINE:.0f}s"]
    sender = [
        sys.executable,
        "-W",
        "error",
        str(HERE / "sender.py"),
        str(a.socket),
        b.peer_id,
        "flow",
        str(MESSAGES),
    ]
    with app(receiver, b) as go, app(sender, a) as python:
        killed = 0
        while lines(log) < MESSAGES:
            mark = min((killed + 1) * KILL_EVERY, MESSAGES)
            poll(lambda: lines(log) >= mark or not go.runs(), f"{mark} lines; there are {lines(log)}")
            if lines(log) >= MESSAGES or not go.runs():
                break
            daemon = (a, b)[killed % 2]
            daemon.kill()
            daemon.start()
            killed += 1
        go.ends()
        python.ends()
    check(log)
    log.unlink()
    log.parent.rmdir()
    print(f"interop: {MESSAGES:,} messages from Python to Go, in order and once each, over {killed} kills")
    assert killed >= 8, f"the daemons were killed only {killed} times"


def lines(log: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return log.read_bytes().count(b"\n")
    return 0


def check(log: Path) -> None:
    """Every message is in the Go app's own log, once and in its place."""
    pairs = [line.split(" ", 1) for line in log.read_text().splitlines()]
    cursors = [int(cursor) for cursor, _ in pairs]
    assert cursors == sorted(set(cursors)), "a cursor came twice or out of order"
    payloads = [payload for _, payload in pairs]
    assert payloads == [str(number) for number in range(MESSAGES)], (
        "messages are lost, doubled or out of order"
    )


# --- programs ---------------------------------------------------------------


class App:
    """A program that is spoken to by lines."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.said: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.rstrip("\n"))

    def types(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hears(self, text: str) -> None:
        poll(lambda: any(text in line for line in self.said), lambda: f"{text!r}; it said {self.said}")

    def runs(self) -> bool:
        return self.process.poll() is None

    def ends(self) -> None:
        status = self.process.wait(DEADLINE)
        assert status == 0, f"{self.process.args}: status {status}: {self.said}"


@contextlib.contextmanager
def app(command: list[str], daemon: Daemon) -> Iterator[App]:
    environment = {**os.environ, "P2P_NODE_SOCKET": str(daemon.socket), "PYTHONUNBUFFERED": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, env=environment, text=True, **pipes)
    with process:
        app = App(process)
        try:
            yield app
        finally:
            process.kill()
            app.reader.join()


def cli(daemon: Daemon, *words: str) -> str:
    command = [NODE, "--socket", str(daemon.socket), *words]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=DEADLINE, stdin=subprocess.DEVNULL, check=False
    )
    assert done.returncode == 0, done
    return done.stdout


def grpcurl(daemon: Daemon, method: str, request: dict[str, object], until: str = "") -> str:
    """One call; of a stream, what comes until a line has the text."""
    command = [
        "grpcurl",
        "-plaintext",
        "-unix",
        "-d",
        json.dumps(request),
        str(daemon.socket),
        f"p2p.v1.P2P/{method}",
    ]
    if not until:
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=True).stdout
    with app(command, daemon) as call:
        call.hears(until)
        return "\n".join(call.said)


def poll(condition: Callable[[], bool], what: str | Callable[[], str]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"no {what if isinstance(what, str) else what()}"
        time.sleep(0.01)


if __name__ == "__main__":
    main()
