"""A private daemon, for tests and first steps."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO

import grpc

from ._connection import channel_options
from .errors import from_rpc
from .v1 import message_pb2 as pb
from .v1.message_pb2_grpc import P2PStub

#: How long a daemon may take to serve, and to end, in seconds.
_STARTS_WITHIN = 60.0
_ENDS_WITHIN = 20.0
#: Between two looks at whether it serves, in seconds.
_POLL = 0.02
#: How much of its log an error shows, in characters.
_LOG_SHOWN = 2000
_GUARD = Path(__file__).with_name("_guard.py")


def find_binary() -> str:
    """The daemon's executable: P2P_NODE_BIN, else `p2p-node` in PATH.

    Raises:
        FileNotFoundError: there is none.

    """
    named = os.environ.get("P2P_NODE_BIN")
    found = shutil.which(named or "p2p-node")
    if found is None:
        where = (
            f"P2P_NODE_BIN is {named!r}, which is no executable"
            if named
            else "there is no `p2p-node` in PATH"
        )
        raise FileNotFoundError(f"{where}; install p2p-node, or name its executable in P2P_NODE_BIN")
    return found


class Daemon:
    """A daemon of its own, with a socket, an identity and a store of its own.

    It listens on a loopback port that the system chooses, unless `listen` says
    otherwise, finds nobody by itself, and ends with this program, however that
    ends. Without `directory`, all that it leaves is removed.

    Use it in `with` or `async with`, or call `start` and `stop`.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        binary: str | os.PathLike[str] | None = None,
        listen: Iterable[str] = ("/ip4/127.0.0.1/udp/0/quic-v1",),
        config: str = "",
        args: Iterable[str] = (),
    ) -> None:
        """`config` is the text of a settings file, `args` more arguments of `run`."""
        self._temporary = directory is None
        self._directory = None if directory is None else Path(directory)
        self._binary = os.fspath(binary) if binary is not None else None
        self._listen = tuple(listen)
        self._config = config
        self._args = tuple(args)
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._status = pb.StatusResponse()

    @property
    def directory(self) -> Path:
        """Where all of it is; a temporary one is made by `start`."""
        if self._directory is None:
            raise RuntimeError("this daemon was not started; call start(), or use it in `with`")
        return self._directory

    @property
    def socket(self) -> Path:
        """Where its API is."""
        return self.directory / "sock"

    @property
    def peer_id(self) -> str:
        """Its peer id, once it has started."""
        return self._status.peer_id

    @property
    def addresses(self) -> list[str]:
        """Where it listens for peers, once it has started."""
        return list(self._status.listen_addresses)

    @property
    def pid(self) -> int | None:
        """Its process, while there is one."""
        return None if self._process is None else self._process.pid

    def log(self) -> str:
        """What it logged."""
        with contextlib.suppress(FileNotFoundError, RuntimeError):
            return (self.directory / "log").read_text(errors="replace")
        return ""

    def start(self) -> Daemon:
        """Starts it, and returns when it serves.

        Raises:
            RuntimeError: it does not; the text has the end of its log.
            FileNotFoundError: there is no executable.

        """
        if self._process is not None:
            return self
        binary = self._binary or find_binary()
        if self._directory is None:
            # Short: a socket's path has 107 bytes at most.
            self._directory = Path(tempfile.mkdtemp(prefix="p2p-"))
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        config = self.directory / "config.toml"
        config.write_text(self._config)
        command = [binary, "--socket", str(self.socket), "--config", str(config)]
        command += ["run", "--state-dir", str(self.directory / "state"), "--no-mdns"]
        for address in self._listen:
            command += ["--listen", address]
        with (self.directory / "log").open("ab") as log:
            self._process = _spawn([*command, *self._args], log)
        try:
            self._watch_over(self._process.pid)
            self._wait_until_it_serves(self._process)
        except BaseException:
            self.kill()
            self._remove_temporary()
            raise
        return self

    def stop(self) -> None:
        """Ends it in order, and removes what is temporary."""
        self._end(signal.SIGTERM)
        self._remove_temporary()

    def kill(self) -> None:
        """Ends it as a crash does (SIGKILL); `start` starts it again."""
        self._end(signal.SIGKILL)

    def add(self, other: Daemon, alias: str = "") -> None:
        """Puts another one into its address book, as trusted, with its addresses.

        Messages need that on both sides; see `pair`.
        """
        request = pb.AddPeerRequest(peer=other.peer_id, alias=alias, addresses=other.addresses)
        try:
            with self._channel() as channel:
                P2PStub(channel).AddPeer(request, timeout=_STARTS_WITHIN)
        except grpc.RpcError as error:
            raise from_rpc(error, "AddPeer") from None

    def __enter__(self) -> Daemon:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Daemon:
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    def _remove_temporary(self) -> None:
        if self._temporary and self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def _channel(self) -> grpc.Channel:
        return grpc.insecure_channel(f"unix:{self.socket}", channel_options(4 << 20))

    def _watch_over(self, pid: int) -> None:
        directory = str(self.directory) if self._temporary else ""
        guard = subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-S", str(_GUARD), str(pid), directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._guard = guard
        # From here on the pid is safe: nobody reaps the process before.
        if guard.stdout is not None:
            guard.stdout.readline()

    def _wait_until_it_serves(self, process: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + _STARTS_WITHIN
        while True:
            if (ended := process.poll()) is not None:
                raise RuntimeError(f"the daemon ended with status {ended}:\n{self.log()[-_LOG_SHOWN:]}")
            if self.socket.exists():
                with contextlib.suppress(grpc.RpcError), self._channel() as channel:
                    self._status = P2PStub(channel).Status(pb.StatusRequest(), timeout=_STARTS_WITHIN)
                    if self._status.listen_addresses or not self._listen:
                        return
            if time.monotonic() > until:
                raise RuntimeError(
                    f"the daemon does not serve within {_STARTS_WITHIN:.0f} s:\n{self.log()[-_LOG_SHOWN:]}"
                )
            time.sleep(_POLL)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            try:
                process.wait(_ENDS_WITHIN)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        guard, self._guard = self._guard, None
        if guard is not None:
            # Not told by closing its pipe: it would remove the directory.
            guard.kill()
            guard.wait()
            for pipe in (guard.stdin, guard.stdout):
                if pipe is not None:
                    pipe.close()


def pair(first: Daemon, second: Daemon) -> None:
    """Makes two daemons trust each other."""
    first.add(second)
    second.add(first)


def _spawn(command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    # Settings meant for another daemon would change this one.
    env = {name: value for name, value in os.environ.items() if not name.startswith("P2P_NODE_")}
    return subprocess.Popen(  # noqa: S603
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=env,
        # The terminal's Ctrl-C is for the program, which then says goodbye.
        start_new_session=True,
    )
