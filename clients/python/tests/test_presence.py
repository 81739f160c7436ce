"""Roles, and how a client finds its server."""

import asyncio

import pytest
from conftest import Start, within

from p2p_node import ChangeCause, Daemon, DeadlineExceeded, Node, P2PClient, P2PServer, SeveralServers
from p2p_node.blocking import P2PClient as BlockingClient
from p2p_node.blocking import P2PServer as BlockingServer
from p2p_node.daemon import pair

pytestmark = pytest.mark.usefixtures("needs_presence")


async def test_a_client_finds_the_one_server(two: tuple[Daemon, Daemon]) -> None:
    async with P2PServer(two[0].socket) as server, P2PClient(two[1].socket) as client:
        assert client.server == server.peer_id
        await client.send_message(client.server, {"hello": "server"})
        async for message in server.messages():
            assert message.json() == {"hello": "server"}
            await server.send_message(message.sender, {"hello": "client"}, reply_to=message.id)
            break
        async for message in client.messages():
            assert message.json() == {"hello": "client"}
            break


async def test_a_client_waits_for_its_server_and_tells(two: tuple[Daemon, Daemon]) -> None:
    told = list[str]()
    client = P2PClient(two[1].socket, on_wait=told.append)
    with pytest.raises(DeadlineExceeded, match="no trusted peer announced the role 'server' within"):
        await client.start(timeout=0.5)
    starting = asyncio.ensure_future(client.start())
    while len(told) < 2:
        await asyncio.wait([starting], timeout=0.05)
    assert told[1].startswith("none of 1 trusted peers announces the role 'server'; waiting.")
    async with P2PServer(two[0].socket) as server:
        await within(starting)
        assert client.server == server.peer_id
        await client.close()


async def test_a_client_with_a_named_server_does_not_wait(daemon: Daemon) -> None:
    async with P2PClient(daemon.socket, server="home") as client:
        assert client.server == "home"


async def test_several_servers_are_named(start: Start) -> None:
    one, other, third = start(), start(), start()
    pair(one, third)
    pair(other, third)
    async with P2PServer(one.socket), P2PServer(other.socket), Node(third.socket) as watcher:
        async for _ in watcher.watch_peers():
            if sum("server" in row.roles for row in await watcher.peers()) == 2:
                break
        with pytest.raises(SeveralServers, match=r"2 trusted peers announce .*P2PClient\(server=") as caught:
            await P2PClient(third.socket).start(timeout=30)
        assert set(caught.value.servers) == {one.peer_id, other.peer_id}


async def test_a_server_stays_announced_over_restarts(two: tuple[Daemon, Daemon]) -> None:
    async with P2PServer(two[0].socket, text="open") as server, P2PClient(two[1].socket) as client:
        for daemon in two:
            daemon.kill()
            await asyncio.to_thread(daemon.start)
            # The ports stay: they are chosen once.
            assert await client.find_server(timeout=60) == server.peer_id
        row = next(row for row in await client.peers() if row.peer_id == server.peer_id)
        assert (row.roles, row.presence) == (("server",), "open")
        await server.set_presence(text="closed")
        async for change in client.watch_peers():
            if change.peer.presence == "closed":
                assert change.peer.roles == ("server",)
                break


async def test_a_watch_goes_on_over_a_restart(two: tuple[Daemon, Daemon]) -> None:
    async with Node(two[0].socket) as node:
        changes = node.watch_peers(book_only=True)
        change = await changes.__anext__()
        assert (change.cause, change.peer.peer_id) == (ChangeCause.SNAPSHOT, two[1].peer_id)
        two[0].kill()
        await asyncio.to_thread(two[0].start)
        await node.remove_peer(two[1].peer_id)
        async for change in changes:
            if change.cause == ChangeCause.REMOVED:
                assert change.peer.peer_id == two[1].peer_id
                break
        await changes.aclose()


def test_the_blocking_face_finds_servers_too(two: tuple[Daemon, Daemon]) -> None:
    with BlockingServer(two[0].socket) as server, BlockingClient(two[1].socket) as client:
        assert client.server == server.peer_id
        client.set_presence(roles=["client"], text="here")
        for change in server.watch_peers():
            if change.peer.presence == "here":
                assert change.peer.roles == ("client",)
                break
