"""What a loop acknowledges, and what comes again."""

import asyncio
import subprocess
import sys

import pytest
from conftest import within

from p2p_node import AlreadyExists, Daemon, Messages, Node, ReceivedMessage
from p2p_node._listen import _RELEASED_WITHIN


class Trouble(Exception):
    """What goes wrong in the body of a loop."""


async def fill(node: Node, count: int) -> None:
    await node.send_messages(node.peer_id, [b"%d" % number for number in range(count)])


async def take(node: Node, count: int, **options: object) -> list[tuple[bytes, int]]:
    """Payload and attempt of the next messages; the last is acknowledged too."""
    seen = list[tuple[bytes, int]]()
    async for message in node.messages(**options):  # type: ignore[arg-type]
        seen.append((message.payload, message.attempt))
        if len(seen) == count:
            await message.ack()
            break
    return seen


async def test_an_exception_brings_the_message_again(daemon: Daemon) -> None:
    async with Node(daemon.socket) as node:
        await fill(node, 10)
        with pytest.raises(Trouble):
            async for message in node.messages():
                if message.payload == b"3":
                    raise Trouble
        # What was read ahead and never seen by the app counts no attempt.
        assert await take(node, 3) == [(b"3", 2), (b"4", 1), (b"5", 1)]


async def test_break_leaves_the_message_undone(daemon: Daemon) -> None:
    async with Node(daemon.socket) as node:
        await fill(node, 3)
        for attempt in (1, 2, 3):
            async for message in node.messages():
                assert (message.payload, message.attempt) == (b"0", attempt)
                break
        assert await take(node, 2) == [(b"0", 4), (b"1", 1)]
        assert await take(node, 1) == [(b"2", 1)]


async def test_a_loop_over_the_same_object_begins_with_what_was_left(daemon: Daemon) -> None:
    async with Node(daemon.socket) as node:
        await fill(node, 2)
        inbox = node.messages()
        with pytest.raises(Trouble):
            async for _ in inbox:
                raise Trouble
        async for message in inbox:
            assert (message.payload, message.attempt) == (b"0", 2)
            break


async def test_ack_after_the_loop_drops_what_failed(daemon: Daemon) -> None:
    async with Node(daemon.socket) as node:
        await fill(node, 2)
        failed: ReceivedMessage | None = None
        try:
            async for message in node.messages():
                failed = message
                raise Trouble
        except Trouble:
            assert failed is not None
            await failed.ack()
        assert await take(node, 1) == [(b"1", 1)]


async def test_what_is_done_stays_done_for_the_next_program(daemon: Daemon) -> None:
    async with Node(daemon.socket) as node:
        await fill(node, 5)
        count = 0
        async for _ in node.messages():
            count += 1
            if count == 4:
                break
    async with Node(daemon.socket) as node:
        payloads = [payload for payload, _ in await take(node, 2)]
    assert payloads == [b"3", b"4"]


async def test_async_with_gives_the_consumer_up(daemon: Daemon) -> None:
    async with Node(daemon.socket) as one, Node(daemon.socket) as other:
        await fill(one, 2)
        async with one.messages() as inbox:
            async for message in inbox:
                await message.ack()
                break
        assert [message async for message in inbox] == []
        assert [payload for payload, _ in await take(other, 1)] == [b"1"]


async def test_a_loop_that_was_left_gives_the_consumer_up_in_time(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2p_node._listen._LINGER", 0.05)
    async with Node(daemon.socket) as one, Node(daemon.socket) as other:
        await fill(one, 2)
        async for message in one.messages():
            last = message
            break
        assert [payload for payload, _ in await take(other, 1)] == [b"0"]
        # Late, and harmless: the other one did it already.
        await last.ack()
        assert [payload for payload, _ in await take(one, 1)] == [b"1"]


async def test_a_loop_that_was_left_leaves_no_task(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2p_node._listen._LINGER", 0.05)
    async with Node(daemon.socket) as node:
        await fill(node, 4)
        for number in range(3):
            async for message in node.messages():
                assert message.payload == b"%d" % number
                await message.ack()
                break
            await all_ended()
        late = await node.messages().__anext__()
        await all_ended()
        # Late, when all of it has ended; and that ends too.
        await late.ack()
        await all_ended()


async def test_the_last_acknowledgement_outlives_the_loop(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2p_node._listen._LINGER", 0.05)
    async with Node(daemon.socket) as node:
        await fill(node, 2)
        async for message in node.messages():
            daemon.kill()
            assert message._inbox is not None
            message._inbox.done(message)
            break
        await asyncio.sleep(0.3)
        await asyncio.to_thread(daemon.start)
        await all_ended()
    async with Node(daemon.socket) as node:
        assert await take(node, 1) == [(b"1", 2)]


async def all_ended() -> None:
    """Waits until no subscription has a task."""
    tasks = [task for task in asyncio.all_tasks() if "Subscription" in str(task.get_coro())]
    if tasks:
        await within(asyncio.wait(tasks))


async def test_one_loop_at_a_time(daemon: Daemon) -> None:
    async with Node(daemon.socket) as node:
        await fill(node, 1)
        async for _ in node.messages():
            with pytest.raises(AlreadyExists, match="another loop over channel '' as consumer 'default'"):
                await node.messages().__anext__()
            # Another name is another consumer, with all messages of its own.
            assert await take(node, 1, consumer="second") == [(b"0", 1)]
            break


async def test_an_exception_that_is_kept_keeps_the_loop(daemon: Daemon) -> None:
    async with Node(daemon.socket) as node:
        await fill(node, 1)

        async def work() -> None:
            inbox = node.messages()
            async for _ in inbox:
                raise Trouble

        async def work_in_with() -> None:
            async with node.messages() as inbox:
                async for _ in inbox:
                    raise Trouble

        kept = list[Exception]()
        for work_once in (work, work):
            try:
                await work_once()
            except (Trouble, AlreadyExists) as error:
                kept.append(error)
        assert isinstance(kept[1], AlreadyExists)
        assert "`async with node.messages() as inbox`" in str(kept[1])
        kept.clear()
        for _ in range(2):
            try:
                await work_in_with()
            except Trouble as error:
                kept.append(error)
        assert len(kept) == 2


async def test_closing_without_the_daemon_says_what_comes_again(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("p2p_node._listen._LAST_ACK", 0.2)
    async with Node(daemon.socket) as node:
        await fill(node, 2)
        inbox = node.messages()
        await inbox.__anext__()
        daemon.kill()
        assert inbox._subscription is not None
        assert inbox._current is not None
        inbox._subscription.done(inbox._current)
        await within(inbox.aclose())
    assert "did not confirm within 0.2 s that messages up to cursor 1 are done" in caplog.text


async def test_a_consumer_of_another_program_is_named(daemon: Daemon) -> None:
    program = (
        "import asyncio, sys\n"
        "from p2p_node import Node\n"
        "async def main():\n"
        "    async with Node(sys.argv[1]) as node:\n"
        "        async for message in node.messages():\n"
        "            print('listening', flush=True)\n"
        "asyncio.run(main())\n"
    )
    async with Node(daemon.socket) as node:
        await fill(node, 1)
        command = [sys.executable, "-c", program, str(daemon.socket)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            await asyncio.to_thread(other.stdout.readline)
            with pytest.raises(AlreadyExists) as caught:
                await node.messages().__anext__()
            assert caught.value.reason == "CONSUMER_IN_USE"
            assert caught.value.pid == other.pid
            other.kill()


async def test_a_consumer_of_this_program_is_told_after_a_moment(daemon: Daemon) -> None:
    assert _RELEASED_WITHIN < 10
    async with Node(daemon.socket) as one, Node(daemon.socket) as other:
        await fill(one, 1)
        async for _ in one.messages():
            with pytest.raises(AlreadyExists):
                await other.messages().__anext__()
            break


async def test_acknowledged_by_hand_in_any_order(daemon: Daemon) -> None:
    async with Node(daemon.socket) as node:
        await fill(node, 4)
        got = list[ReceivedMessage]()
        async for message in node.messages(auto_ack=False):
            got.append(message)
            if len(got) == 4:
                break
        await got[1].ack()
        await got[3].ack()
        assert await take(node, 1, auto_ack=False) == [(b"0", 2)]
        # 1 and 3 are done: 2 is left.
        assert await take(node, 1) == [(b"2", 2)]
        await fill(node, 1)
        assert await take(node, 1) == [(b"0", 1)]


async def test_too_many_unacknowledged_make_the_loop_wait(daemon: Daemon) -> None:
    async with Node(daemon.socket) as node:
        await fill(node, 3)
        loop = node.messages(auto_ack=False, max_unacked=2)
        one, _two = await loop.__anext__(), await loop.__anext__()
        third = asyncio.ensure_future(loop.__anext__())
        done, _ = await asyncio.wait([third], timeout=0.3)
        assert not done
        await one.ack()
        await within(third)
        await loop.aclose()
        with pytest.raises(ValueError, match="max_unacked is 0"):
            node.messages(max_unacked=0)


async def test_a_cancelled_wait_loses_nothing(daemon: Daemon) -> None:
    async with Node(daemon.socket) as node:
        loop = node.messages()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(loop.__anext__(), 0.2)
        await fill(node, 1)
        assert (await loop.__anext__()).payload == b"0"
        await loop.aclose()


async def test_a_loop_ends_with_its_node(daemon: Daemon) -> None:
    async with Node(daemon.socket) as node:
        loop = node.messages()
        listening = asyncio.ensure_future(_collect(loop))
        await fill(node, 3)
        while loop._subscription is None or loop._subscription._acked < 3:
            await asyncio.wait([listening], timeout=0.02)
    assert await asyncio.wait_for(listening, 10) == [b"0", b"1", b"2"]


async def _collect(loop: Messages[ReceivedMessage]) -> list[bytes]:
    return [message.payload async for message in loop]


async def test_a_loop_is_of_one_task(daemon: Daemon) -> None:
    """A second one would mark as done what the first works on."""
    async with Node(daemon.socket) as node:
        await fill(node, 3)
        inbox = node.messages()
        at_work, fails = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            async for _ in inbox:
                at_work.set()
                await fails.wait()
                raise Trouble

        first = asyncio.ensure_future(work())
        await within(at_work.wait())
        with pytest.raises(AlreadyExists, match="another task of this program"):
            async for _ in inbox:
                pass
        with pytest.raises(AlreadyExists, match="another task of this program"):
            await inbox.__anext__()
        fails.set()
        with pytest.raises(Trouble):
            await first
        async for message in inbox:
            assert (message.payload, message.attempt) == (b"0", 2)
            await message.ack()
            break
        # Nothing is lost by it: another task may go on.
        assert (await asyncio.wait_for(inbox.__anext__(), 10)).payload == b"1"
        await inbox.aclose()


async def test_a_task_that_waits_has_the_loop(daemon: Daemon) -> None:
    async with Node(daemon.socket) as node:
        inbox = node.messages()
        first = asyncio.ensure_future(inbox.__anext__())
        await asyncio.sleep(0)
        with pytest.raises(AlreadyExists, match="or waiting for one"):
            inbox.__aiter__()
        with pytest.raises(AlreadyExists):
            await inbox.__anext__()
        await fill(node, 2)
        # Outside of `async for`, each may be asked for by a task of its own.
        assert (await first).payload == b"0"
        assert (await asyncio.wait_for(inbox.__anext__(), 10)).payload == b"1"
        await inbox.aclose()


async def test_tasks_share_a_loop_that_they_acknowledge_by_hand(daemon: Daemon) -> None:
    async with Node(daemon.socket) as node:
        seen = list[bytes]()
        async with node.messages(auto_ack=False) as inbox:

            async def work() -> None:
                async for message in inbox:
                    seen.append(message.payload)
                    await message.ack()
                    if len(seen) == 50:
                        await asyncio.wait_for(inbox.aclose(), 10)

            workers = [asyncio.ensure_future(work()) for _ in range(3)]
            await fill(node, 50)
            await within(asyncio.gather(*workers))
    assert sorted(seen, key=int) == [b"%d" % number for number in range(50)]
