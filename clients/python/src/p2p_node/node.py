"""The asyncio face: `Node`, this machine's daemon for one app."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar, cast

from ._connection import Connection, find_socket
from ._listen import Subscription
from ._messages import Messages
from ._presence import Announcement, watch
from ._send import Sender, receipt
from .errors import DeadlineExceeded, InvalidArgument, NotFound, P2PError
from .message import Body, Received, ReceivedMessage, Sent, Trust, to_proto, to_sent
from .peers import (
    Connected,
    Invitation,
    Joined,
    Peer,
    PeerChange,
    Pong,
    Removed,
    SentMessage,
    convert,
)
from .v1 import message_pb2 as pb

SelfNode = TypeVar("SelfNode", bound="Node")

#: Longest path of a Unix socket, in bytes.
_MAX_SOCKET_PATH = 107
#: How long `wait="stored"` waits if the app does not say, in seconds.
_STORED_WITHIN = 10.0
#: How long calls may take if the app does not say, in seconds.
_CALL = 10.0
#: The same for a look at a message when the time to send it is up already.
_STATE = 1.0
#: The same for Join, of which the daemon takes up to 30 s.
_JOIN = 35.0
#: Paths that a message may be sent over.
PathPolicy = Literal["any", "prefer_direct", "direct_only"]
_PATHS = {
    "any": pb.PATH_POLICY_ANY,
    "prefer_direct": pb.PATH_POLICY_PREFER_DIRECT,
    "direct_only": pb.PATH_POLICY_DIRECT_ONLY,
}
#: Messages handed out and not acknowledged, unless the app says otherwise.
_MAX_UNACKED = 1024


class Node:
    """This machine's daemon, for one app.

    `socket` is where the daemon is; by default it is looked for as
    `find_socket` says. `on_wait` is called with a text for a person each time
    that this begins to wait for something: the daemon, or a server.

    Use it in `async with`, or call `start` and `close`.
    """

    def __init__(
        self, socket: str | os.PathLike[str] | None = None, *, on_wait: Callable[[str], object] | None = None
    ) -> None:
        self._socket = socket
        self._on_wait = on_wait
        self._message_type: type[Received] = ReceivedMessage
        self._opened: tuple[Connection, Sender] | None = None
        self._subscriptions: dict[tuple[str, str], Subscription[Any]] = {}
        # Those too that ended and may have something to acknowledge.
        self._all_subscriptions = weakref.WeakSet[Subscription[Any]]()
        self._announcement: Announcement | None = None
        self._announcing: asyncio.Lock | None = None

    async def start(self: SelfNode, *, timeout: float | None = None) -> SelfNode:
        """Connects to the daemon, waiting for it as long as it is not there.

        Raises:
            DeadlineExceeded: it was not there for `timeout` seconds.
            PermissionDenied: this user may not open its socket.

        """
        path = Path(self._socket) if self._socket is not None else find_socket()
        if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
            raise InvalidArgument(
                f"socket {path} has {len(os.fsencode(path))} bytes; the system's limit is "
                f"{_MAX_SOCKET_PATH}: choose a shorter path",
                field="socket",
            )
        if self._opened is None:
            connection = Connection(path, self._on_wait)
            self._opened = connection, Sender(connection)
            self._announcing = asyncio.Lock()
        try:
            await self._connection.ready_within(timeout)
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self) -> None:
        """Tells the daemon what is done, and ends all loops and calls."""
        if self._opened is None:
            return
        (connection, sender), self._opened = self._opened, None
        await asyncio.gather(*(each.stop() for each in list(self._all_subscriptions)))
        if self._announcement is not None:
            await self._announcement.close()
            self._announcement = None
        await sender.close()
        await connection.close()

    async def __aenter__(self: SelfNode) -> SelfNode:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def peer_id(self) -> str:
        """This node's own peer id, the name by which others know it."""
        return self._connection.status.peer_id

    # Messages

    async def send_message(
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
        """Sends to a peer, by its peer id or alias.

        A dict becomes JSON and str UTF-8, each with a metadata entry
        "content-type"; a Message can say everything itself, and what it leaves
        empty comes from the arguments.

        With wait="queued" this returns when the message is on this node's disk;
        the daemon goes on from there, for `ttl` seconds (7 days unless
        configured). With "stored" it returns when the message is on the peer's,
        or after `timeout` (10 s by default) with the state it has: the daemon
        still goes on. Messages to one peer and channel arrive in the order of
        the calls, as long as these wait for the same.

        When the daemon goes away meanwhile, this waits for it and asks again
        under the same id, so that the message is sent once. `ephemeral` goes to
        an app that listens right now, or not at all.

        With path="direct_only" no relay carries the message: it waits for a
        direct path, and those behind it on the channel with it. With
        "prefer_direct" it does so for `prefer_direct_wait` seconds (5), then it
        goes any way.

        Raises:
            P2PError: the daemon refuses it: LimitExceeded when its outbox is
                full, NotFound when the peer is not in the address book, ...
            DeadlineExceeded: no answer within `timeout` seconds (None: no limit
                with "queued"); the message may have been taken.
            TypeError, ValueError: the body cannot be written.

        """
        request = self._request(
            peer, body, channel, type, metadata, reply_to, wait, ttl, ephemeral, path, prefer_direct_wait
        )
        if timeout is None and wait == "stored":
            timeout = _STORED_WITHIN
        try:
            return to_sent(await receipt(self._sender, request, timeout))
        except DeadlineExceeded as late:
            if wait != "stored" or ephemeral:
                raise
            return await self._state_of(request, late)

    async def send_messages(
        self,
        peer: str,
        bodies: Iterable[Body] | AsyncIterable[Body],
        *,
        channel: str = "",
        type: str = "",
        metadata: Mapping[str, str] | None = None,
        wait: Literal["queued", "stored"] = "queued",
        ttl: float | None = None,
        path: PathPolicy = "any",
        prefer_direct_wait: float | None = None,
    ) -> list[Sent]:
        """Sends many, without waiting for one before the next; else as `send_message`.

        Raises:
            P2PError: the first refusal, when all under way have their answer;
                no more are read from `bodies` then. Messages behind it may
                have been taken: to send again safely, give Messages with ids.

        """
        sender, receipts, refused = (
            self._sender,
            list[asyncio.Future[pb.SendResponse]](),
            list[BaseException](),
        )

        def ended(future: asyncio.Future[pb.SendResponse]) -> None:
            if not future.cancelled() and (error := future.exception()) is not None:
                refused.append(error)

        try:
            async with aclosing(_each(bodies)) as each:
                async for body in each:
                    request = self._request(
                        peer, body, channel, type, metadata, "", wait, ttl, False, path, prefer_direct_wait
                    )
                    receipts.append(await sender.put(request))
                    receipts[-1].add_done_callback(ended)
                    if refused:
                        break
        except asyncio.CancelledError:
            for future in receipts:
                future.cancel()
            raise
        finally:
            answers = await asyncio.gather(*receipts, return_exceptions=True)
        sent = list[Sent]()
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            sent.append(to_sent(answer))
        return sent

    def messages(
        self,
        channel: str = "",
        *,
        consumer: str = "default",
        auto_ack: bool = True,
        max_unacked: int = _MAX_UNACKED,
    ) -> Messages[ReceivedMessage]:
        """The messages of a channel, oldest first, then those that come.

            async for message in node.messages():
                print(message.sender, message.text())

        A message is done when the loop asks for the next one. One at which the
        loop is left, be it by an exception, break or return, is not done: the
        next loop begins with it, `attempt` raised by one. To leave the loop
        after a message that is done, `await message.ack()` before.

        Done messages are acknowledged to the daemon, so that they do not come
        again, together and within 20 ms; what an app was told just before it
        died may come again. `consumer` names who reads: each name gets every
        message, and one loop at a time can use it.

        With `auto_ack=False` only `ack()` makes a message done, in any order;
        while `max_unacked` are not, the loop waits.

        Errors in the loop: AlreadyExists (another program has this consumer),
        LimitExceeded, DataLoss. A daemon that goes away is waited for.
        """
        if max_unacked < 1:
            raise ValueError(f"max_unacked is {max_unacked}; give at least 1")
        loop = Messages(lambda: self._subscription(channel, consumer), auto_ack, max_unacked)
        return cast("Messages[ReceivedMessage]", loop)

    async def ack(self, cursor: int, *, channel: str = "", consumer: str = "default") -> int:
        """Marks all messages up to a cursor as done; returns where the consumer stands.

        For what no loop can do: to pass over a damaged message, say.
        """
        request = pb.AckRequest(channel=channel, consumer=consumer, cursor=cursor)
        answer = await self._connection.call("Ack", lambda stub, left: stub.Ack(request, timeout=left), _CALL)
        return answer.cursor

    async def get_message(
        self,
        id: str,
        *,
        peer: str | None = None,
        channel: str | None = None,
    ) -> SentMessage:
        """What became of a message sent from here.

        Raises:
            NotFound: no such message.
            FailedPrecondition: several have this id; say which peer or channel.

        """
        request = pb.GetMessageRequest(id=id, peer=peer, channel=channel)
        answer = await self._connection.call(
            "GetMessage", lambda stub, left: stub.GetMessage(request, timeout=left), _CALL
        )
        return convert(SentMessage, answer.message)

    async def cancel(
        self,
        id: str,
        *,
        peer: str | None = None,
        channel: str | None = None,
        timeout: float | None = _CALL,
    ) -> SentMessage:
        """Takes back a message, unless the peer has it; the state says which."""
        request = pb.CancelRequest(id=id, peer=peer, channel=channel)
        answer = await self._connection.call(
            "Cancel", lambda stub, left: stub.Cancel(request, timeout=left), timeout
        )
        return convert(SentMessage, answer.message)

    # Peers

    async def peers(self, *, online: bool = False) -> list[Peer]:
        """All peers, or those connected: one row each."""
        rows = list[Peer]()
        request = pb.ListPeersRequest(online=online)
        while True:
            answer = await self._connection.call(
                "ListPeers", lambda stub, left: stub.ListPeers(request, timeout=left), _CALL
            )
            rows.extend(convert(Peer, row) for row in answer.peers)
            request.page_token = answer.next_page_token
            if not request.page_token:
                return rows

    async def watch_peers(self, *, book_only: bool = False) -> AsyncGenerator[PeerChange, None]:
        """The peers as they are (cause SNAPSHOT), then every change.

        After a restart of the daemon, what differs comes in the same way.
        """
        async with aclosing(watch(self._connection, book_only)) as changes_of_table:
            async for _, changes in changes_of_table:
                for change in changes:
                    yield convert(PeerChange, change)

    async def add_peer(
        self,
        peer: str,
        *,
        alias: str = "",
        addresses: Iterable[str] = (),
        trust: Trust = Trust.TRUSTED,
        pinned: bool | None = None,
    ) -> Peer:
        """Puts a peer into the address book, trusted unless `trust` says KNOWN."""
        request = pb.AddPeerRequest(
            peer=peer,
            alias=alias,
            addresses=addresses,
            trust=cast("pb.Trust.ValueType", int(trust)),
            pinned=pinned,
        )
        answer = await self._connection.call(
            "AddPeer", lambda stub, left: stub.AddPeer(request, timeout=left), _CALL
        )
        return convert(Peer, answer.peer)

    async def remove_peer(self, peer: str) -> Removed:
        """Takes a peer out of the address book; it is not trusted any more."""
        request = pb.RemovePeerRequest(peer=peer)
        return convert(
            Removed,
            await self._connection.call(
                "RemovePeer", lambda stub, left: stub.RemovePeer(request, timeout=left), _CALL
            ),
        )

    async def invite(
        self, *, alias: str = "", expires: float | None = None, timeout: float | None = 2 * _CALL
    ) -> Invitation:
        """Makes a ticket with which one other node can join; `expires` in seconds (1 h)."""
        request = pb.InviteRequest(alias=alias, expires_ms=_milliseconds(expires, "expires"))
        # Not asked again: a second ticket would stay open.
        return convert(
            Invitation,
            await self._connection.call(
                "Invite", lambda stub, left: stub.Invite(request, timeout=left), timeout, again=False
            ),
        )

    async def join(self, ticket: str, *, alias: str = "", timeout: float | None = _JOIN) -> Joined:
        """Redeems another node's ticket: both trust each other from then on."""
        request = pb.JoinRequest(ticket=ticket, alias=alias)
        return convert(
            Joined,
            await self._connection.call("Join", lambda stub, left: stub.Join(request, timeout=left), timeout),
        )

    async def connect(self, target: str, *, timeout: float | None = _CALL) -> Connected:
        """Connects to a peer: an id, an alias, or a multiaddr that ends in /p2p/PEER_ID."""
        request = (
            pb.ConnectRequest(address=target) if target.startswith("/") else pb.ConnectRequest(peer=target)
        )
        return convert(
            Connected,
            await self._connection.call(
                "Connect", lambda stub, left: stub.Connect(request, timeout=left), timeout
            ),
        )

    async def ping(self, peer: str, *, timeout: float | None = _CALL) -> Pong:
        """Measures the round trip to a peer, connecting first if needed."""
        request = pb.PingRequest(peer=peer)
        return convert(
            Pong,
            await self._connection.call("Ping", lambda stub, left: stub.Ping(request, timeout=left), timeout),
        )

    async def find_peer(self, peer: str, *, timeout: float | None = _CALL) -> pb.FindPeerResponse:
        """Looks for a peer by its id alone; does not connect. No addresses: `detail` says why."""
        request = pb.FindPeerRequest(peer=peer)
        return await self._connection.call(
            "FindPeer", lambda stub, left: stub.FindPeer(request, timeout=left), timeout
        )

    async def net_check(self, *, timeout: float | None = _CALL) -> pb.NetCheckResponse:
        """How this node can be reached from outside, what is wrong, and what cures it."""
        return await self._connection.call(
            "NetCheck", lambda stub, left: stub.NetCheck(pb.NetCheckRequest(), timeout=left), timeout
        )

    async def explain_path(self, peer: str, *, timeout: float | None = _CALL) -> pb.ExplainPathResponse:
        """Why a peer is reached as it is, what was tried, and what would make it better."""
        request = pb.ExplainPathRequest(peer=peer)
        return await self._connection.call(
            "ExplainPath", lambda stub, left: stub.ExplainPath(request, timeout=left), timeout
        )

    async def status(self, *, timeout: float | None = _CALL) -> pb.StatusResponse:
        """The daemon's own condition."""
        return await self._connection.call(
            "Status", lambda stub, left: stub.Status(pb.StatusRequest(), timeout=left), timeout
        )

    async def set_presence(self, *, roles: Iterable[str] | None = None, text: str | None = None) -> None:
        """Announces to trusted peers what this app is, until it closes.

        Restarts of the daemon included. What is None stays as it was.
        """
        connection = self._connection
        assert self._announcing is not None  # noqa: S101
        async with self._announcing:
            before = self._announcement
            new = Announcement(
                connection,
                roles if roles is not None else before.roles if before else (),
                text if text is not None else before.text if before else "",
            )
            try:
                await new.begun()
            except BaseException:
                await new.close()
                raise
            # The new one is in force before the old one ends: no gap is seen.
            self._announcement = new
            if before is not None:
                await before.close()

    # Inside

    @property
    def _connection(self) -> Connection:
        return self._both()[0]

    @property
    def _sender(self) -> Sender:
        return self._both()[1]

    def _both(self) -> tuple[Connection, Sender]:
        if self._opened is None:
            raise P2PError(
                "this node is not open; call start(), or use it in `async with`", reason="NOT_STARTED"
            )
        return self._opened

    def _subscription(self, channel: str, consumer: str) -> Subscription[Any]:
        key = channel, consumer or "default"
        found = self._subscriptions.get(key)
        if found is None:

            def ended(subscription: Subscription[Any]) -> None:
                if self._subscriptions.get(key) is subscription:
                    del self._subscriptions[key]

            found = Subscription(self._connection, *key, self._message_type, ended)
            self._subscriptions[key] = found
            self._all_subscriptions.add(found)
        return found

    def _request(
        self,
        peer: str,
        body: Body,
        channel: str,
        kind: str,
        metadata: Mapping[str, str] | None,
        reply_to: str,
        wait: str,
        ttl: float | None,
        ephemeral: bool,
        path: str,
        prefer_direct_wait: float | None,
    ) -> pb.SendRequest:
        if wait not in ("queued", "stored"):
            raise ValueError(f'wait is {wait!r}; use "queued" or "stored"')
        if path not in _PATHS:
            raise ValueError(f"path is {path!r}; use {', '.join(map(repr, _PATHS))}")
        return pb.SendRequest(
            peer=peer,
            message=to_proto(body, channel, kind, metadata or {}, reply_to),
            wait=pb.WAIT_QUEUED if wait == "queued" else pb.WAIT_STORED,
            ttl_ms=_milliseconds(ttl, "ttl"),
            ephemeral=ephemeral,
            path=_PATHS[path],
            prefer_direct_wait_ms=_milliseconds(prefer_direct_wait, "prefer_direct_wait"),
        )

    async def _state_of(self, sent: pb.SendRequest, late: DeadlineExceeded) -> Sent:
        """How far a message is that was not stored in time; `late` if nobody can say."""
        message = sent.message
        request = pb.GetMessageRequest(id=message.id, peer=sent.peer, channel=message.channel)
        try:
            answer = await self._connection.call(
                "GetMessage", lambda stub, left: stub.GetMessage(request, timeout=left), _STATE
            )
        except NotFound:
            raise DeadlineExceeded(
                f"the daemon did not take message {message.id} in time; send it again under the same id",
                metadata={"id": message.id},
            ) from None
        except P2PError:
            raise late from None
        found = convert(SentMessage, answer.message)
        return Sent(found.id, found.state, False, found.reason, found.detail, found.sequence)


async def _each(bodies: Iterable[Body] | AsyncIterable[Body]) -> AsyncGenerator[Body, None]:
    if isinstance(bodies, AsyncIterable):
        async for body in bodies:
            yield body
    else:
        for body in bodies:
            yield body


def _milliseconds(seconds: float | None, name: str) -> int:
    """What the API takes; 0 is its default, so that shorter times become 1."""
    if seconds is None:
        return 0
    if seconds <= 0:
        raise ValueError(f"{name} is {seconds} s; give more than 0")
    return max(1, round(seconds * 1000))
