"""The nodes that know what they are: `P2PServer`, and `P2PClient`, which finds it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from contextlib import aclosing
from typing import TypeVar, cast

from ._connection import Backoff, log
from ._presence import watch
from .errors import DeadlineExceeded, P2PError, SeveralServers
from .message import Trust
from .node import Node
from .v1 import message_pb2 as pb

SelfNode = TypeVar("SelfNode", bound=Node)

#: The role that servers announce and clients look for.
SERVER_ROLE = "server"
#: Peers dialled at once to see whether they are servers.
_DIALS = 4


class P2PServer(Node):
    """A node that announces the role "server", so that clients find it."""

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        *,
        roles: Iterable[str] = (SERVER_ROLE,),
        text: str = "",
        on_wait: Callable[[str], object] | None = None,
    ) -> None:
        super().__init__(socket, on_wait=on_wait)
        self._roles, self._text = tuple(roles), text

    async def start(self: SelfNode, *, timeout: float | None = None) -> SelfNode:
        """As `Node.start`; returns when the role is announced."""
        await Node.start(self, timeout=timeout)
        server = cast("P2PServer", self)
        try:
            await self.set_presence(roles=server._roles, text=server._text)
        except BaseException:
            await self.close()
            raise
        return self


class P2PClient(Node):
    """A node that finds its server: the one trusted peer with the role "server".

    `server` names it beforehand, by peer id or alias, and nothing is searched.
    """

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        *,
        server: str | None = None,
        role: str = SERVER_ROLE,
        on_wait: Callable[[str], object] | None = None,
    ) -> None:
        super().__init__(socket, on_wait=on_wait)
        self._server, self._role = server, role

    async def start(self: SelfNode, *, timeout: float | None = None) -> SelfNode:
        """As `Node.start`; returns when the server is found, waiting for it.

        Raises:
            SeveralServers: more than one trusted peer has the role.
            DeadlineExceeded: none within `timeout` seconds.

        """
        loop = asyncio.get_running_loop()
        until = None if timeout is None else loop.time() + timeout
        await Node.start(self, timeout=timeout)
        client = cast("P2PClient", self)
        try:
            if client._server is None:
                await client.find_server(timeout=None if until is None else max(until - loop.time(), 0.001))
        except BaseException:
            await self.close()
            raise
        return self

    @property
    def server(self) -> str:
        """The server: its peer id, or what was given."""
        if self._server is None:
            raise P2PError("no server was found yet; call start()", reason="NOT_STARTED")
        return self._server

    async def find_server(self, *, timeout: float | None = None) -> str:
        """Looks for the server anew and returns its peer id; errors as `start`."""
        dialler = asyncio.create_task(self._dial())
        try:
            self._server = await asyncio.wait_for(self._find(), timeout)
        except asyncio.TimeoutError:
            raise DeadlineExceeded(
                f"no trusted peer announced the role {self._role!r} within {timeout:.1f} s; "
                "see `p2p-node peers`, or name the server with P2PClient(server=...)",
                reason="NO_SERVER",
            ) from None
        finally:
            dialler.cancel()
            await asyncio.wait([dialler])
        return self._server

    async def _find(self) -> str:
        told = False
        async with aclosing(watch(self._connection, True)) as tables:
            async for rows, _ in tables:
                if (server := self._only_server(rows.values())) is not None:
                    return server
                if not told:
                    told = True
                    trusted = sum(row.trust == pb.TRUST_TRUSTED for row in rows.values())
                    self._connection.tell(
                        f"none of {trusted} trusted peers announces the role {self._role!r}; waiting. "
                        "A peer becomes trusted by `p2p-node invite` there and `p2p-node join` here"
                    )
        raise AssertionError("a watch ends by an error only")

    def _only_server(self, rows: Iterable[pb.Peer]) -> str | None:
        servers = [row for row in rows if row.trust == pb.TRUST_TRUSTED and self._role in row.roles]
        if len(servers) > 1:
            names = ", ".join(f"{row.peer_id} ({row.alias})" if row.alias else row.peer_id for row in servers)
            raise SeveralServers(
                f"{len(servers)} trusted peers announce the role {self._role!r}: {names}; "
                "choose one with P2PClient(server=...)",
                [row.peer_id for row in servers],
            )
        return servers[0].peer_id if servers else None

    async def _dial(self) -> None:
        """Connects to trusted peers that are offline: only then their roles are seen."""
        backoff, places = Backoff(5.0, 60.0), asyncio.Semaphore(_DIALS)

        async def dial(peer: str) -> None:
            async with places:
                try:
                    await self.connect(peer)
                except P2PError as error:
                    log.debug("%s is not reached: %s", peer, error)

        while True:
            try:
                rows = await self.peers()
            except P2PError as error:
                log.debug("the peers are not listed: %s", error)
            else:
                offline = [row.peer_id for row in rows if row.trust is Trust.TRUSTED and not row.online]
                await asyncio.gather(*(dial(peer) for peer in offline))
            await backoff.wait()
