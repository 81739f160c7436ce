"""The way to the daemon: where its socket is, and waiting for it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

import grpc
import grpc.aio

from .errors import (
    Closed,
    DeadlineExceeded,
    P2PError,
    PermissionDenied,
    Unavailable,
    daemon_lost,
    from_rpc,
)
from .v1 import message_pb2 as pb
from .v1.message_pb2_grpc import P2PStub

if TYPE_CHECKING:
    from .v1.message_pb2_grpc import P2PAsyncStub

log = logging.getLogger("p2p_node")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

SYSTEM_SOCKET = Path("/run/p2p-node/p2p-node.sock")
#: How long one attempt to reach the daemon may take, in seconds.
_ATTEMPT = 5.0
#: A daemon that starts opens the socket to its group a moment after making it.
_FORBIDDEN_FOR = 2.0
#: How long gRPC may take to end what was cancelled, in seconds.
_LAST_EVENTS = 0.02
#: A frame that holds less than this is always taken, in bytes: gRPC's own
#: default, for the first Status.
_SMALL_FRAME = 4 << 20


def find_socket() -> Path:
    """Where the daemon's socket is looked for.

    That is P2P_NODE_SOCKET, else $XDG_RUNTIME_DIR/p2p-node/p2p-node.sock if it
    exists, else /run/p2p-node/p2p-node.sock.
    """
    if named := os.environ.get("P2P_NODE_SOCKET"):
        return Path(named)
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        own = Path(runtime, "p2p-node", "p2p-node.sock")
        if own.exists():
            return own
    return SYSTEM_SOCKET


def channel_options(max_frame_bytes: int) -> list[tuple[str, int | str]]:
    """Options of a gRPC channel to the daemon."""
    return [
        # gRPC would send the socket's path there, and every call would fail.
        ("grpc.default_authority", "localhost"),
        ("grpc.max_receive_message_length", max_frame_bytes),
        ("grpc.max_send_message_length", max_frame_bytes),
        # Attempts are paced here. Without a pool of its own a channel takes
        # over how long another one to the same socket has to wait.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]


class Backoff:
    """Pauses that grow from `first` to `longest` seconds, each with jitter."""

    def __init__(self, first: float = 0.05, longest: float = 2.0) -> None:
        self._first, self._next, self._longest = first, first, longest

    def reset(self) -> None:
        """Begins anew."""
        self._next = self._first

    async def wait(self) -> None:
        """Takes the next pause."""
        pause, self._next = self._next, min(self._next * 2, self._longest)
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311


class StreamCall(Protocol[T_co]):
    """A call that answers with a stream."""

    async def read(self) -> T_co | object:
        """The next frame."""

    def cancel(self) -> bool:
        """Ends it."""


class _Channel:
    """A channel and how many calls run on it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.stub: P2PAsyncStub = P2PStub(channel)
        self.users = 0


class Connection:
    """A channel to the daemon that is made anew when the daemon was away.

    Each channel has a number, its generation. Who sees one fail asks for a
    later one with `ready(after=generation)`.
    """

    def __init__(self, socket: Path, on_wait: Callable[[str], object] | None) -> None:
        self.socket = socket
        self.generation = 0
        self.status = pb.StatusResponse()
        self._on_wait = on_wait
        self._present: _Channel | None = None
        self._lock = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False
        self._why = "not tried yet"

    @contextlib.contextmanager
    def using(self) -> Iterator[P2PAsyncStub]:
        """The calls, on the present channel, which stays open for that long.

        To close a channel cancels what runs on it, and that could not be told
        from the app's own wish.
        """
        channel = self._present
        if self._closed or channel is None:
            raise Closed("this node was closed; make another")
        channel.users += 1
        try:
            yield channel.stub
        finally:
            channel.users -= 1
            self._close_unused(channel)

    @property
    def max_message_bytes(self) -> int:
        """Largest payload that the daemon takes."""
        return self.status.limits.max_message_bytes

    @property
    def max_frame_bytes(self) -> int:
        """Largest gRPC frame that the daemon takes."""
        return self.status.limits.max_frame_bytes

    def tell(self, text: str) -> None:
        """Tells the app, once for each wait, what is waited for."""
        log.warning("%s", text)
        if self._on_wait is not None:
            try:
                self._on_wait(text)
            except Exception:
                # The wait goes on: it is not the callback's.
                log.exception("on_wait failed")

    async def ready(self, after: int = 0) -> int:
        """Waits until there is a channel later than `after`; returns its number."""
        if self._present is not None and self.generation > after and not self._closed:
            return self.generation
        async with self._lock:
            if self._present is None or self.generation <= after:
                await self._connect()
            if self._closed:
                raise Closed("this node was closed; make another")
            return self.generation

    async def ready_within(self, timeout: float | None) -> None:
        """As `ready`, for at most `timeout` seconds."""
        try:
            await asyncio.wait_for(self.ready(), timeout)
        except asyncio.TimeoutError:
            raise self._not_there(timeout) from None

    async def call(
        self,
        name: str,
        make: Callable[[P2PAsyncStub, float | None], Awaitable[T]],
        timeout: float | None,
        *,
        again: bool = True,
    ) -> T:
        """Makes a unary call, if `again` once more after the daemon was away.

        Raises:
            P2PError: by the status; DeadlineExceeded also when the daemon was
                not there for `timeout` seconds.

        """
        loop = asyncio.get_running_loop()
        until = None if timeout is None else loop.time() + timeout
        failed = 0
        while True:
            left = None if until is None else max(until - loop.time(), 0.001)
            try:
                generation = await asyncio.wait_for(self.ready(after=failed), left)
            except asyncio.TimeoutError:
                raise self._not_there(timeout) from None
            left = None if until is None else max(until - loop.time(), 0.001)
            try:
                with self.using() as stub:
                    return await make(stub, left)
            except grpc.aio.AioRpcError as failure:
                error = from_rpc(failure, name)
                if not daemon_lost(error):
                    raise error from None
                if not again:
                    raise Unavailable(f"{name}: the daemon went away: {error}") from None
                failed = generation

    async def refresh(self) -> None:
        """Learns the daemon's limits anew, if it was restarted unseen."""
        request = pb.StatusRequest()
        status = await self.call("Status", lambda stub, left: stub.Status(request, timeout=left), None)
        if status.instance_id != self.status.instance_id:
            await self.ready(after=self.generation)

    async def read(self, call: StreamCall[T], name: str) -> T:
        """The next frame of a stream.

        Raises:
            P2PError: the stream is over, and why.

        """
        try:
            frame = await call.read()
        except grpc.aio.AioRpcError as failure:
            raise from_rpc(failure, name) from None
        if frame is grpc.aio.EOF:
            raise Unavailable(f"{name}: the daemon ended the stream")
        return cast(T, frame)

    async def close(self) -> None:
        """Ends all calls."""
        self._closed = True
        present, self._present = self._present, None
        if present is not None:
            await present.channel.close()
        await asyncio.gather(*self._closing)
        # What was cancelled ends in gRPC's own thread, which complains on stderr
        # if the event loop is closed before it hears of that.
        await asyncio.sleep(_LAST_EVENTS)

    def _close_unused(self, channel: _Channel) -> None:
        if channel is not self._present and channel.users == 0 and not self._closed:
            task = asyncio.create_task(channel.channel.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _not_there(self, timeout: float | None) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"no daemon at {self.socket} within {timeout} s: {self._why}", reason="NO_DAEMON"
        )

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        backoff, told, forbidden = Backoff(), False, None
        while not self._closed:
            try:
                await self._open()
            except PermissionError:
                self._why = "permission denied"
                forbidden = forbidden or loop.time()
                if loop.time() - forbidden > _FORBIDDEN_FOR:
                    raise self._forbidden() from None
            except (OSError, asyncio.TimeoutError) as error:
                self._why = _explain(error)
            except P2PError as error:
                if not daemon_lost(error) and not isinstance(error, DeadlineExceeded):
                    raise
                self._why = str(error)
            else:
                if told:
                    log.info("the daemon at %s is there", self.socket)
                return
            if not told and forbidden is None:
                told = True
                self.tell(
                    f"no daemon at {self.socket} ({self._why}); waiting for it. Start it with "
                    "`systemctl start p2p-node` or `p2p-node run`, or name its socket in P2P_NODE_SOCKET"
                )
            await backoff.wait()

    async def _open(self) -> None:
        # The system's own words first: gRPC's do not tell one cause from another.
        _, writer = await asyncio.wait_for(asyncio.open_unix_connection(self.socket), _ATTEMPT)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        channel, status = await self._try(_SMALL_FRAME)
        if status.limits.max_frame_bytes != _SMALL_FRAME:
            await channel.close()
            channel, status = await self._try(status.limits.max_frame_bytes)
        if self._closed:
            await channel.close()
            return
        before, self._present = self._present, _Channel(channel)
        self.status = status
        self.generation += 1
        if before is not None:
            self._close_unused(before)

    async def _try(self, max_frame_bytes: int) -> tuple[grpc.aio.Channel, pb.StatusResponse]:
        channel = grpc.aio.insecure_channel(f"unix:{self.socket}", options=channel_options(max_frame_bytes))
        try:
            return channel, await P2PStub(channel).Status(pb.StatusRequest(), timeout=_ATTEMPT)
        except grpc.aio.AioRpcError as failure:
            await channel.close()
            raise from_rpc(failure, "Status") from None
        except BaseException:
            await channel.close()
            raise

    def _forbidden(self) -> PermissionDenied:
        return PermissionDenied(
            f"this user may not open {self.socket}: become a member of the group that it belongs to "
            "(`sudo usermod -aG p2p-node $USER`, then log in anew)",
            reason="SOCKET_FORBIDDEN",
        )


def _explain(error: OSError | asyncio.TimeoutError) -> str:
    if isinstance(error, OSError):
        if error.errno == errno.ENOENT:
            return "there is no socket"
        if error.errno == errno.ECONNREFUSED:
            return "nobody serves the socket"
        if error.strerror:
            return error.strerror
    return "it does not answer"
