"""The daemon comes and goes while an app works."""

import asyncio
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from conftest import Start, within

from p2p_node import Daemon, DeadlineExceeded, InvalidArgument, Message, Node, Unavailable


async def test_ten_thousand_messages_through_restarts(two: tuple[Daemon, Daemon]) -> None:
    """None is lost, none comes twice, and the order is kept."""
    count, step = 10_000, 2_000
    sender, receiver = two
    progress = asyncio.Event()
    seen = list[tuple[int, int]]()

    async def send(node: Node) -> None:
        async def bodies() -> AsyncGenerator[bytes, None]:
            for number in range(count):
                yield b"%d" % number

        sent = await node.send_messages(receiver.peer_id, bodies())
        assert len({each.id for each in sent}) == count

    async def receive(node: Node) -> None:
        async for message in node.messages():
            seen.append((int(message.payload), message.cursor))
            progress.set()
            if len(seen) == count:
                await message.ack()
                return

    async def restart() -> None:
        for goal in range(step // 2, count - step, step):
            while len(seen) < goal:
                progress.clear()
                await progress.wait()
            for daemon in (sender, receiver):
                daemon.kill()
                await asyncio.to_thread(daemon.start)

    async with Node(sender.socket) as a, Node(receiver.socket) as b:
        await within(asyncio.gather(send(a), receive(b), restart()), 150)
        # The wrapper itself drops by cursor what it had handed out already.
        assert len({cursor for _, cursor in seen}) == count
        assert [number for number, _ in seen] == list(range(count))
        last = seen[-1][1]
        assert await b.ack(last) == last


async def test_single_sends_wait_for_the_daemon(daemon: Daemon) -> None:
    told = list[str]()
    async with Node(daemon.socket, on_wait=told.append) as node:
        await node.send_message(node.peer_id, b"before")
        daemon.kill()
        late = asyncio.ensure_future(node.send_message(node.peer_id, b"while it is away"))
        with pytest.raises(DeadlineExceeded):
            await node.send_message(node.peer_id, b"in a hurry", timeout=0.3)
        assert not late.done()
        await asyncio.to_thread(daemon.start)
        await within(late)
        payloads = list[bytes]()
        async for message in node.messages():
            payloads.append(message.payload)
            if len(payloads) == 2:
                break
        assert payloads == [b"before", b"while it is away"]
        assert len(told) == 1
        assert "waiting for it" in told[0]


async def test_a_timeout_holds_without_the_daemon(daemon: Daemon) -> None:
    async with Node(daemon.socket) as node:
        daemon.kill()
        began = asyncio.get_running_loop().time()
        with pytest.raises(DeadlineExceeded, match="no receipt for message") as caught:
            await node.send_message(node.peer_id, Message(b"", id="mine"), wait="stored", timeout=0.5)
        assert caught.value.metadata == {"id": "mine"}
        assert asyncio.get_running_loop().time() - began < 5


async def test_calls_are_made_again(daemon: Daemon) -> None:
    async with Node(daemon.socket) as node:
        before = (await node.status()).instance_id
        daemon.kill()
        call = asyncio.ensure_future(node.status(timeout=60))
        await asyncio.to_thread(daemon.start)
        assert (await call).instance_id != before
        daemon.kill()
        with pytest.raises(DeadlineExceeded, match="no daemon at"):
            await node.status(timeout=0.2)


async def test_an_ephemeral_message_is_not_sent_twice(two: tuple[Daemon, Daemon]) -> None:
    async with Node(two[0].socket) as a:
        two[1].kill()
        # It waits for the peer until this daemon goes as well.
        sending = asyncio.ensure_future(a.send_message(two[1].peer_id, b"", ephemeral=True, wait="stored"))
        await a.send_message(two[1].peer_id, b"behind it")
        two[0].kill()
        with pytest.raises(Unavailable, match="may or may not have arrived"):
            await sending


async def test_an_ordered_stop_is_waited_for_too(start: Start, tmp_path: Path) -> None:
    daemon = start(directory=tmp_path / "kept")
    async with Node(daemon.socket) as node:
        loop = node.messages()
        coming = asyncio.ensure_future(loop.__anext__())
        await node.send_message(node.peer_id, b"1")
        assert (await coming).payload == b"1"
        await asyncio.to_thread(daemon.stop)
        coming = asyncio.ensure_future(loop.__anext__())
        await asyncio.to_thread(daemon.start)
        await node.send_message(node.peer_id, b"2")
        assert (await coming).payload == b"2"
        await loop.aclose()


async def test_larger_limits_after_a_restart_are_used(start: Start, tmp_path: Path) -> None:
    daemon = start(directory=tmp_path / "d")
    async with Node(daemon.socket) as node:
        body = bytes(5 << 20)
        with pytest.raises(InvalidArgument):
            await node.send_message(node.peer_id, body)
        await asyncio.to_thread(daemon.stop)
        start(directory=tmp_path / "d", config='[limits]\nmax_message_bytes = "8 MiB"\n')
        await node.send_message(node.peer_id, body)
        async for message in node.messages():
            assert len(message.payload) == len(body)
            break


async def test_a_restored_backup_hides_no_message(start: Start, tmp_path: Path) -> None:
    """A store that is older than before gives the same cursors to other messages."""
    daemon = start(directory=tmp_path / "d")
    async with Node(daemon.socket) as node:
        loop = node.messages()
        await node.send_messages(node.peer_id, [b"before"])
        assert (await loop.__anext__()).payload == b"before"
        await asyncio.to_thread(daemon.stop)
        shutil.copytree(tmp_path / "d" / "state", tmp_path / "backup")
        await asyncio.to_thread(daemon.start)
        await node.send_messages(node.peer_id, [b"lost"] * 5)
        for _ in range(5):
            message = await loop.__anext__()
        await message.ack()
        daemon.kill()
        shutil.rmtree(tmp_path / "d" / "state")
        shutil.copytree(tmp_path / "backup", tmp_path / "d" / "state")
        await asyncio.to_thread(daemon.start)
        await node.send_message(node.peer_id, b"after")
        payloads = list[bytes]()
        while b"after" not in payloads:
            payloads.append((await loop.__anext__()).payload)
        assert payloads in ([b"before", b"after"], [b"after"])
        await loop.aclose()
