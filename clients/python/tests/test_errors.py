"""Each failure has its type, and the facts that the daemon gives."""

import asyncio
import subprocess

import grpc
import pytest
from conftest import Start

from p2p_node import (
    AlreadyExists,
    Daemon,
    FailedPrecondition,
    InvalidArgument,
    LimitExceeded,
    Message,
    Node,
    NotFound,
    Trust,
    Unavailable,
)
from p2p_node.daemon import find_binary

STRANGER = "12D3KooWQhK9vUDG1AYF5u5PNmWs8gqsfqaipBEpjpFNvc6RCC4y"


async def test_not_found(daemon: Daemon) -> None:
    async with Node(daemon.socket) as node:
        with pytest.raises(NotFound, match='"nobody" is neither a peer id nor an alias') as caught:
            await node.ping("nobody")
        assert caught.value.code is grpc.StatusCode.NOT_FOUND
        assert caught.value.reason == "PEER_UNKNOWN"
        with pytest.raises(NotFound, match="peer add"):
            await node.send_message(STRANGER, b"")
        with pytest.raises(NotFound) as caught:
            await node.get_message("no such id")
        assert caught.value.reason == "MESSAGE_UNKNOWN"


async def test_invalid_argument_names_the_field(daemon: Daemon) -> None:
    async with Node(daemon.socket) as node:
        with pytest.raises(InvalidArgument) as caught:
            await node.add_peer(STRANGER, alias="no spaces")
        assert caught.value.field == "alias"
        with pytest.raises(
            InvalidArgument, match=r"message\.payload has 1048577 bytes; the limit is 1048576"
        ) as caught:
            await node.send_message(node.peer_id, bytes((1 << 20) + 1))
        assert caught.value.field == "message.payload"
        with pytest.raises(InvalidArgument, match="shorten its other fields"):
            await node.send_message(node.peer_id, Message(type="x" * (5 << 20)))
        with pytest.raises(InvalidArgument, match="metadata has 65 entries"):
            await node.send_message(node.peer_id, b"", metadata={str(number): "" for number in range(65)})
        # Nothing of that ended the stream for others.
        await node.send_message(node.peer_id, b"")


async def test_already_exists(daemon: Daemon) -> None:
    async with Node(daemon.socket) as node:
        await node.send_message(node.peer_id, Message(b"one", id="same"))
        with pytest.raises(AlreadyExists):
            await node.send_message(node.peer_id, Message(b"other", id="same"))


async def test_limits_say_which_and_how_much(start: Start) -> None:
    daemon = start(config="[limits]\nmax_streams = 4\n")
    async with Node(daemon.socket) as node:
        await node.send_message(node.peer_id, b"")
        loops = [node.messages(consumer=str(number)) for number in range(4)]
        for loop in loops[:3]:
            await loop.__anext__()
        with pytest.raises(LimitExceeded) as caught:
            await loops[3].__anext__()
        error = caught.value
        assert (error.limit, error.owner, error.used, error.max) == ("max_streams", "LOCAL", 4, 4)
        await loops[0].aclose()


async def test_a_full_outbox_is_a_limit(start: Start) -> None:
    one, other = start(config='[limits]\nmax_outbox_bytes = "2 MiB"\nmax_peer_bytes = "2 MiB"\n'), start()
    one.add(other)
    other.kill()
    async with Node(one.socket) as node:
        with pytest.raises(LimitExceeded):
            await node.send_messages(other.peer_id, [bytes(1 << 18)] * 16)


async def test_failed_precondition(daemon: Daemon) -> None:
    command = [find_binary(), "--socket", str(daemon.socket), "peer", "block", STRANGER]
    await asyncio.to_thread(subprocess.run, command, check=True)
    async with Node(daemon.socket) as node:
        with pytest.raises(FailedPrecondition) as caught:
            await node.send_message(STRANGER, b"")
        assert "block" in str(caught.value)


async def test_a_peer_that_is_away_is_not_a_daemon_that_is_away(daemon: Daemon) -> None:
    async with Node(daemon.socket) as node:
        generation = node._connection.generation
        with pytest.raises(Unavailable) as caught:
            await node.connect(f"/ip4/127.0.0.1/tcp/9/p2p/{STRANGER}")
        assert caught.value.reason == "UNREACHABLE"
        assert node._connection.generation == generation


async def test_the_book(two: tuple[Daemon, Daemon]) -> None:
    async with Node(two[0].socket) as node:
        peer = await node.add_peer(two[1].peer_id, alias="other", pinned=True)
        assert (peer.alias, peer.pinned, peer.trust) == ("other", True, Trust.TRUSTED)
        assert (await node.ping("other")).peer_id == two[1].peer_id
        assert (await node.connect("other")).already_connected
        assert [row.alias for row in await node.peers(online=True)] == ["other"]
        with pytest.raises(AlreadyExists) as caught:
            await node.add_peer(STRANGER, alias="other")
        assert caught.value.reason == "ALIAS_TAKEN"
        assert caught.value.metadata == {"peer": two[1].peer_id}
        assert (await node.remove_peer("other")).peer_id == two[1].peer_id
