"""The daemon comes and goes while an app works."""

import asyncio
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from conftest import Start, within

from p2p_node import Daemon, DeadlineExceeded, FailedPrecondition, InvalidArgument, Message, Node, Unavailable


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


async def wiped(daemon: Daemon) -> None:
    """Starts it with a store that was begun anew, and this node's name with it."""
    daemon.kill()
    shutil.rmtree(daemon.directory / "state")
    await asyncio.to_thread(daemon.start)


async def test_a_new_store_hides_no_message(daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    """Its cursors are those of other messages before."""
    async with Node(daemon.socket) as node, node.messages() as inbox:
        await node.send_messages(node.peer_id, [b"before %d" % number for number in range(6)])
        for _ in range(4):
            last = await inbox.__anext__()
        # Two were read ahead, and one is at work: what is done with it then is
        # not done with the new one that has its cursor.
        await wiped(daemon)
        await node.send_messages(daemon.peer_id, [b"after %d" % number for number in range(6)])
        await within(last.ack())
        seen = list[tuple[bytes, int]]()
        while not seen or seen[-1][0] != b"after 5":
            message = await asyncio.wait_for(inbox.__anext__(), 20)
            seen.append((message.payload, message.attempt))
        new = [each for each in seen if each[0].startswith(b"after")]
        assert new == [(b"after %d" % number, 1) for number in range(6)]
        assert caplog.text.count("store was begun anew") == 1


async def test_a_new_store_gets_no_old_acknowledgement(daemon: Daemon) -> None:
    async with Node(daemon.socket) as node:
        loop = node.messages(auto_ack=False)
        await node.send_messages(node.peer_id, [b"before"] * 4)
        last = [await loop.__anext__() for _ in range(4)]
        daemon.kill()
        # Done while nobody can be told.
        telling = [asyncio.ensure_future(message.ack()) for message in last]
        await asyncio.sleep(0.1)
        shutil.rmtree(daemon.directory / "state")
        await asyncio.to_thread(daemon.start)
        await node.send_messages(daemon.peer_id, [b"%d" % number for number in range(6)])
        await within(asyncio.gather(*telling))
        await within(loop.aclose())
    async with Node(daemon.socket) as node, node.messages() as inbox:
        got = [(await asyncio.wait_for(inbox.__anext__(), 20)).payload for _ in range(6)]
        assert got == [b"%d" % number for number in range(6)]


async def test_a_late_acknowledgement_is_not_for_a_new_store(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2p_node._listen._LINGER", 0.01)
    async with Node(daemon.socket) as node:
        await node.send_message(node.peer_id, b"before")
        loop = node.messages()
        late = await loop.__anext__()
        subscription = loop._subscription
        assert subscription is not None
        del loop
        await within(asyncio.wait([subscription._reader]))
        await wiped(daemon)
        # On the daemon's disk before the consumer asks anew.
        await node.send_message(daemon.peer_id, b"after")
        with pytest.raises(FailedPrecondition, match="comes again"):
            await late.ack()
        assert (await asyncio.wait_for(node.messages().__anext__(), 20)).payload == b"after"
