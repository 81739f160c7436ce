"""Presence: announcing what this app is, and seeing what others are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing

from ._connection import Backoff, Connection, StreamCall, log
from .errors import P2PError, daemon_lost
from .v1 import message_pb2 as pb


class Announcement:
    """Roles and a text, kept announced over restarts of the daemon."""

    def __init__(self, connection: Connection, roles: Iterable[str], text: str) -> None:
        self.roles = tuple(roles)
        self.text = text
        self._connection = connection
        self._begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run())

    async def begun(self) -> None:
        """Waits until it is in force for the first time.

        Raises:
            P2PError: the daemon refuses it.

        """
        await asyncio.shield(self._begun)

    async def close(self) -> None:
        """Takes it back."""
        self._task.cancel()
        await asyncio.wait([self._task])
        self._begun.cancel()

    async def _run(self) -> None:
        failed, backoff = 0, Backoff(longest=30.0)
        while True:
            try:
                failed = await self._connection.ready(after=failed)
                await self._hold(backoff)
            except P2PError as error:
                if daemon_lost(error):
                    await backoff.wait()
                    continue
                if not self._begun.done():
                    self._begun.set_exception(error)
                    return
                # It was taken before: a passing limit, say.
                log.warning("roles %s are not announced: %s", ", ".join(self.roles) or "none", error)
                failed -= 1
                await backoff.wait()

    async def _hold(self, backoff: Backoff) -> None:
        request = pb.SetPresenceRequest(roles=self.roles, text=self.text)
        with self._connection.using() as stub:
            call: StreamCall[pb.SetPresenceResponse] = stub.SetPresence(request)
            try:
                while True:
                    await self._connection.read(call, "SetPresence")
                    backoff.reset()
                    if not self._begun.done():
                        self._begun.set_result(None)
            finally:
                call.cancel()


Table = AsyncGenerator[tuple[dict[str, pb.Peer], list[pb.PeerChange]], None]


async def watch(connection: Connection, book_only: bool) -> Table:
    """The table of peers each time that it changes, and what changed.

    The first one is the table as it is, with a change of cause 0 for each row.
    After a restart of the daemon, or when it had to leave changes out, so come
    the rows that differ from what was known, and those that are gone as
    REMOVED.
    """
    rows: dict[str, pb.Peer] = {}
    failed, backoff = 0, Backoff()
    first = True
    while True:
        failed = await connection.ready(after=failed)
        snapshot: dict[str, pb.Peer] = {}
        try:
            async with aclosing(_frames(connection, book_only)) as frames:
                async for frame in frames:
                    backoff.reset()
                    if frame.HasField("snapshot"):
                        snapshot.update((peer.peer_id, peer) for peer in frame.snapshot.peers)
                        if not frame.snapshot.last:
                            continue
                        changes = _differences(rows, snapshot)
                        rows, snapshot = snapshot, {}
                    elif frame.HasField("changes"):
                        changes = list(frame.changes.changes)
                        _apply(rows, changes)
                    else:
                        continue
                    if changes or first:
                        first = False
                        yield rows, changes
        except P2PError as error:
            if not daemon_lost(error):
                raise
            await backoff.wait()


async def _frames(connection: Connection, book_only: bool) -> AsyncGenerator[pb.WatchPeersResponse, None]:
    with connection.using() as stub:
        call: StreamCall[pb.WatchPeersResponse] = stub.WatchPeers(pb.WatchPeersRequest(book_only=book_only))
        try:
            while True:
                yield await connection.read(call, "WatchPeers")
        finally:
            call.cancel()


def _differences(before: dict[str, pb.Peer], now: dict[str, pb.Peer]) -> list[pb.PeerChange]:
    changes = [
        pb.PeerChange(cause=pb.CHANGE_CAUSE_REMOVED, peer=pb.Peer(peer_id=peer_id))
        for peer_id in before
        if peer_id not in now
    ]
    changes += [pb.PeerChange(peer=peer) for peer_id, peer in now.items() if before.get(peer_id) != peer]
    return changes


def _apply(rows: dict[str, pb.Peer], changes: Iterable[pb.PeerChange]) -> None:
    for change in changes:
        if change.cause == pb.CHANGE_CAUSE_REMOVED:
            rows.pop(change.peer.peer_id, None)
        else:
            rows[change.peer.peer_id] = change.peer
