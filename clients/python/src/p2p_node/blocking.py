"""The same names for programs without asyncio.

The calls run on one event loop in a thread in the background, shared by all
nodes of the program. They can be made from any thread; Ctrl-C ends the call
that the main thread waits in.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar, cast

from . import node as _async
from . import roles as _roles
from ._messages import Messages as _AsyncMessages
from ._messages import in_use
from .daemon import Daemon
from .errors import Closed
from .message import Body, Message, Received, Sent, Trust
from .node import PathPolicy
from .peers import Connected, Invitation, Joined, Peer, PeerChange, Pong, Removed, SentMessage
from .v1 import message_pb2 as pb

__all__ = ["Daemon", "Message", "Messages", "Node", "P2PClient", "P2PServer", "ReceivedMessage"]

T = TypeVar("T")
AnyNode = TypeVar("AnyNode", bound=_async.Node)
SelfNode = TypeVar("SelfNode", bound="_Node[Any]")

#: Messages fetched from the event loop at once; a switch of threads costs
#: more than a message.
_TAKE = 64
#: How long the event loop may take to end with the program, in seconds.
_ENDS_WITHIN = 5.0


class _Loop:
    """The event loop in the background."""

    _lock = threading.Lock()
    _shared: asyncio.AbstractEventLoop | None = None
    _pid = 0

    @classmethod
    def get(cls) -> asyncio.AbstractEventLoop:
        with cls._lock:
            # A forked child has the object, but not the thread.
            if cls._shared is None or cls._pid != os.getpid():
                loop = asyncio.new_event_loop()
                thread = threading.Thread(target=loop.run_forever, name="p2p_node", daemon=True)
                thread.start()
                atexit.register(_end, loop, thread)
                cls._shared, cls._pid = loop, os.getpid()
            return cls._shared


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """Ends what a program left open, so that nothing runs into its end."""

    async def cancel_all() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    if thread.is_alive():
        with contextlib.suppress(concurrent.futures.TimeoutError):
            asyncio.run_coroutine_threadsafe(cancel_all(), loop).result(_ENDS_WITHIN)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_ENDS_WITHIN)


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs it in the background, and ends it if this thread is interrupted."""
    loop = _Loop.get()
    if asyncio._get_running_loop() is loop:
        coroutine.close()
        raise RuntimeError(
            "a blocking call from a callback of p2p_node would wait for itself; use another thread"
        )
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


@dataclass(slots=True, eq=False)
class ReceivedMessage(Received):
    """A message that came in."""

    def ack(self) -> None:
        """As `p2p_node.ReceivedMessage.ack`."""
        inbox = self._inbox
        if inbox is None:
            return

        async def ack() -> None:
            inbox.done(self)
            await inbox.acked(self.cursor)

        _run(ack())


class Messages:
    """One loop over the messages of a channel, as `Node.messages` says."""

    def __init__(self, messages: _AsyncMessages[ReceivedMessage], auto_ack: bool) -> None:
        self._messages = messages
        self._auto_ack = auto_ack
        self._taken: deque[ReceivedMessage] = deque()
        self._current: ReceivedMessage | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # Held by the thread that waits for a message.
        self._asking = threading.Lock()
        # Threads: in `for`, and working on `_current`.
        self._looping: threading.Thread | None = None
        self._working: threading.Thread | None = None

    def __iter__(self) -> Messages:
        if not self._auto_ack:
            return self
        if not self._asking.acquire(blocking=False):
            raise in_use("thread")
        try:
            self._refuse_another(self._working)
            self._looping = threading.current_thread()
            if self._current is not None:
                # A loop was left in the middle of this one, and another begins.
                self._current = None
                unseen = self._unseen()

                async def again() -> None:
                    self._messages.restart(unseen)

                _run(again())
        finally:
            self._asking.release()
        return self

    def __next__(self) -> ReceivedMessage:
        # Threads that acknowledge by hand take turns.
        if not self._asking.acquire(blocking=not self._auto_ack):
            raise in_use("thread")
        try:
            if self._auto_ack:
                # Outside of `for` each message may be asked for by another thread.
                self._refuse_another(self._working if self._working is self._looping else None)
            message = self._next()
            if self._auto_ack:
                self._current, self._working = message, threading.current_thread()
            return message
        finally:
            self._asking.release()

    def _next(self) -> ReceivedMessage:
        if self._current is not None and self._current._inbox is not None:
            _Loop.get().call_soon_threadsafe(self._current._inbox.done, self._current)
        self._current = None
        if not self._taken:
            self._loop = _Loop.get()
            try:
                self._taken.extend(_run(self._messages.take(_TAKE)))
            except (Closed, concurrent.futures.CancelledError):
                # By the app itself, from another thread, or at its end.
                raise StopIteration from None
        return self._taken.popleft()

    def _refuse_another(self, working: threading.Thread | None) -> None:
        """As there, for threads: see `p2p_node.Messages`."""
        if working is None or working is threading.current_thread() or not working.is_alive():
            return
        if self._current is not None and not self._current._done:
            raise in_use("thread")

    def close(self) -> None:
        """Ends the loop and gives the consumer up; as `aclose` there."""
        self._taken.clear()
        self._current = None
        _run(self._messages.aclose())

    def __enter__(self) -> Messages:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # The event loop is over.
                self._loop.call_soon_threadsafe(self._messages.leave, self._unseen())

    def _unseen(self) -> set[int]:
        unseen = {message.cursor for message in self._taken}
        self._taken.clear()
        return unseen


class _Node(Generic[AnyNode]):
    """What the blocking nodes have in common."""

    def __init__(self, node: AnyNode) -> None:
        self._node = node
        node._message_type = ReceivedMessage

    def start(self: SelfNode, *, timeout: float | None = None) -> SelfNode:
        """Connects to the daemon, waiting for it as long as it is not there."""
        _run(self._node.start(timeout=timeout))
        return self

    def close(self) -> None:
        """Tells the daemon what is done, and ends all loops and calls."""
        _run(self._node.close())

    def __enter__(self: SelfNode) -> SelfNode:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def peer_id(self) -> str:
        """This node's own peer id."""
        return self._node.peer_id

    def send_message(
        self,
        peer: str,
        body: Body,
        *,
        channel: str = "",
        type: str = "",
        metadata: Mapping[str, str] | None = None,
        reply_to: str = "",
        wait: Literal["queued", "stored"] = "queued",
        timeout: float | None = None,
        ttl: float | None = None,
        ephemeral: bool = False,
        path: PathPolicy = "any",
        prefer_direct_wait: float | None = None,
    ) -> Sent:
        """As `p2p_node.Node.send_message`."""
        return _run(
            self._node.send_message(
                peer,
                body,
                channel=channel,
                type=type,
                metadata=metadata,
                reply_to=reply_to,
                wait=wait,
                timeout=timeout,
                ttl=ttl,
                ephemeral=ephemeral,
                path=path,
                prefer_direct_wait=prefer_direct_wait,
            )
        )

    def send_messages(
        self,
        peer: str,
        bodies: Iterable[Body],
        *,
        channel: str = "",
        type: str = "",
        metadata: Mapping[str, str] | None = None,
        wait: Literal["queued", "stored"] = "queued",
        ttl: float | None = None,
        path: PathPolicy = "any",
        prefer_direct_wait: float | None = None,
    ) -> list[Sent]:
        """As `p2p_node.Node.send_messages`; `bodies` is read in a thread of its own."""
        return _run(
            self._node.send_messages(
                peer,
                bodies if isinstance(bodies, list | tuple) else _apart(bodies),
                channel=channel,
                type=type,
                metadata=metadata,
                wait=wait,
                ttl=ttl,
                path=path,
                prefer_direct_wait=prefer_direct_wait,
            )
        )

    def messages(
        self,
        channel: str = "",
        *,
        consumer: str = "default",
        auto_ack: bool = True,
        max_unacked: int = _async._MAX_UNACKED,
    ) -> Messages:
        """As `p2p_node.Node.messages`, for a plain `for`."""
        loop = self._node.messages(channel, consumer=consumer, auto_ack=False, max_unacked=max_unacked)
        return Messages(cast("_AsyncMessages[ReceivedMessage]", loop), auto_ack)

    def ack(self, cursor: int, *, channel: str = "", consumer: str = "default") -> int:
        """As `p2p_node.Node.ack`."""
        return _run(self._node.ack(cursor, channel=channel, consumer=consumer))

    def get_message(self, id: str, *, peer: str | None = None, channel: str | None = None) -> SentMessage:
        """As `p2p_node.Node.get_message`."""
        return _run(self._node.get_message(id, peer=peer, channel=channel))

    def cancel(
        self,
        id: str,
        *,
        peer: str | None = None,
        channel: str | None = None,
        timeout: float | None = 10.0,
    ) -> SentMessage:
        """As `p2p_node.Node.cancel`."""
        return _run(self._node.cancel(id, peer=peer, channel=channel, timeout=timeout))

    def peers(self, *, online: bool = False) -> list[Peer]:
        """As `p2p_node.Node.peers`."""
        return _run(self._node.peers(online=online))

    def watch_peers(self, *, book_only: bool = False) -> Iterator[PeerChange]:
        """As `p2p_node.Node.watch_peers`, for a plain `for`."""
        changes = self._node.watch_peers(book_only=book_only)

        async def step() -> PeerChange:
            return await changes.__anext__()

        try:
            while True:
                yield _run(step())
        finally:
            _run(changes.aclose())

    def add_peer(
        self,
        peer: str,
        *,
        alias: str = "",
        addresses: Iterable[str] = (),
        trust: Trust = Trust.TRUSTED,
        pinned: bool | None = None,
    ) -> Peer:
        """As `p2p_node.Node.add_peer`."""
        return _run(self._node.add_peer(peer, alias=alias, addresses=addresses, trust=trust, pinned=pinned))

    def remove_peer(self, peer: str) -> Removed:
        """As `p2p_node.Node.remove_peer`."""
        return _run(self._node.remove_peer(peer))

    def invite(
        self, *, alias: str = "", expires: float | None = None, timeout: float | None = 20.0
    ) -> Invitation:
        """As `p2p_node.Node.invite`."""
        return _run(self._node.invite(alias=alias, expires=expires, timeout=timeout))

    def join(self, ticket: str, *, alias: str = "", timeout: float | None = 35.0) -> Joined:
        """As `p2p_node.Node.join`."""
        return _run(self._node.join(ticket, alias=alias, timeout=timeout))

    def connect(self, target: str, *, timeout: float | None = 10.0) -> Connected:
        """As `p2p_node.Node.connect`."""
        return _run(self._node.connect(target, timeout=timeout))

    def ping(self, peer: str, *, timeout: float | None = 10.0) -> Pong:
        """As `p2p_node.Node.ping`."""
        return _run(self._node.ping(peer, timeout=timeout))

    def find_peer(self, peer: str, *, timeout: float | None = 10.0) -> pb.FindPeerResponse:
        """As `p2p_node.Node.find_peer`."""
        return _run(self._node.find_peer(peer, timeout=timeout))

    def net_check(self, *, timeout: float | None = 10.0) -> pb.NetCheckResponse:
        """As `p2p_node.Node.net_check`."""
        return _run(self._node.net_check(timeout=timeout))

    def explain_path(self, peer: str, *, timeout: float | None = 10.0) -> pb.ExplainPathResponse:
        """As `p2p_node.Node.explain_path`."""
        return _run(self._node.explain_path(peer, timeout=timeout))

    def status(self, *, timeout: float | None = 10.0) -> pb.StatusResponse:
        """As `p2p_node.Node.status`."""
        return _run(self._node.status(timeout=timeout))

    def set_presence(self, *, roles: Iterable[str] | None = None, text: str | None = None) -> None:
        """As `p2p_node.Node.set_presence`."""
        _run(self._node.set_presence(roles=roles, text=text))


class Node(_Node[_async.Node]):
    """This machine's daemon, for one app; as `p2p_node.Node`."""

    def __init__(
        self, socket: str | os.PathLike[str] | None = None, *, on_wait: Callable[[str], object] | None = None
    ) -> None:
        super().__init__(_async.Node(socket, on_wait=on_wait))


class P2PServer(_Node[_roles.P2PServer]):
    """A node that announces the role "server"; as `p2p_node.P2PServer`."""

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        *,
        roles: Iterable[str] = (_roles.SERVER_ROLE,),
        text: str = "",
        on_wait: Callable[[str], object] | None = None,
    ) -> None:
        super().__init__(_roles.P2PServer(socket, roles=roles, text=text, on_wait=on_wait))


class P2PClient(_Node[_roles.P2PClient]):
    """A node that finds its server; as `p2p_node.P2PClient`."""

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        *,
        server: str | None = None,
        role: str = _roles.SERVER_ROLE,
        on_wait: Callable[[str], object] | None = None,
    ) -> None:
        super().__init__(_roles.P2PClient(socket, server=server, role=role, on_wait=on_wait))

    @property
    def server(self) -> str:
        """The server: its peer id, or what was given."""
        return self._node.server

    def find_server(self, *, timeout: float | None = None) -> str:
        """As `p2p_node.P2PClient.find_server`."""
        return _run(self._node.find_server(timeout=timeout))


async def _apart(bodies: Iterable[Body]) -> AsyncGenerator[Body, None]:
    """Reads an iterable off the event loop, which it might hold up."""
    each, end = iter(bodies), object()
    while (body := await asyncio.to_thread(next, each, end)) is not end:
        yield cast(Body, body)
