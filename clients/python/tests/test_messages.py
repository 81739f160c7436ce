"""Messages both ways, in every form."""

import asyncio

import pytest
from conftest import Start

from p2p_node import Daemon, InvalidArgument, Message, MessageState, Node, Reason, Route
from p2p_node.daemon import pair


async def first(node: Node, channel: str = "") -> Message:
    async for message in node.messages(channel):
        await message.ack()
        return message
    raise AssertionError("the loop ended")


async def test_dict_bytes_text_and_message_arrive_both_ways(two: tuple[Daemon, Daemon]) -> None:
    async with Node(two[0].socket) as a, Node(two[1].socket) as b:
        for sender, receiver in ((a, b), (b, a)):
            await sender.send_message(receiver.peer_id, {"text": "grüße", "number": 7}, type="greeting")
            got = await first(receiver)
            assert got.json() == {"text": "grüße", "number": 7}
            assert got.type == "greeting"
            assert got.metadata == {"content-type": "application/json"}
            assert (got.sender, got.recipient) == (sender.peer_id, receiver.peer_id)
            assert got.route is Route.LAN
            assert got.timestamp > 0
            assert got.received_at > 0

            await sender.send_message(receiver.peer_id, b"\x00\xff")
            got = await first(receiver)
            assert (got.payload, got.metadata) == (b"\x00\xff", {})

            await sender.send_message(receiver.peer_id, "plain", metadata={"lang": "en"})
            got = await first(receiver)
            assert got.text() == "plain"
            assert got.metadata == {"content-type": "text/plain", "lang": "en"}

            whole = Message(
                b"x", type="t", metadata={"k": "v"}, id="one", timestamp=5, channel="c", reply_to="r"
            )
            sent = await sender.send_message(receiver.peer_id, whole, channel="not this one")
            assert sent.id == "one"
            got = await first(receiver, "c")
            assert (got.payload, got.type, got.metadata, got.id) == (b"x", "t", {"k": "v"}, "one")
            assert (got.timestamp, got.channel, got.reply_to) == (5, "c", "r")


async def test_what_cannot_be_sent_is_refused_before_it_leaves(two: tuple[Daemon, Daemon]) -> None:
    async with Node(two[0].socket) as a:
        with pytest.raises(TypeError, match="a list cannot be sent"):
            await a.send_message(two[1].peer_id, [1])  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="JSON"):
            await a.send_message(two[1].peer_id, {"x": float("nan")})
        with pytest.raises(ValueError, match="ttl is 0 s"):
            await a.send_message(two[1].peer_id, b"", ttl=0)
        with pytest.raises(ValueError, match="path is 'relay'; use 'any'"):
            await a.send_message(two[1].peer_id, b"", path="relay")  # type: ignore[arg-type]


async def test_what_is_no_json_names_the_message(two: tuple[Daemon, Daemon]) -> None:
    async with Node(two[0].socket) as a, Node(two[1].socket) as b:
        await a.send_message(b.peer_id, Message(b"{", id="bad"))
        got = await first(b)
        with pytest.raises(ValueError, match=f"message bad from {a.peer_id} is not JSON"):
            got.json()


async def test_messages_for_a_direct_path(two: tuple[Daemon, Daemon]) -> None:
    async with Node(two[0].socket) as a, Node(two[1].socket) as b:
        await a.send_message(b.peer_id, b"1", path="direct_only", wait="stored")
        await a.send_message(b.peer_id, b"2", path="prefer_direct", prefer_direct_wait=60)
        await a.send_messages(b.peer_id, [b"3"], path="direct_only")
        assert [(await first(b)).payload for _ in range(3)] == [b"1", b"2", b"3"]
        with pytest.raises(InvalidArgument) as refused:
            await a.send_message(b.peer_id, b"", prefer_direct_wait=1)
        assert "PATH_POLICY_PREFER_DIRECT" in str(refused.value)


async def test_the_way_to_a_peer_is_told(two: tuple[Daemon, Daemon]) -> None:
    async with Node(two[0].socket) as a:
        await a.ping(two[1].peer_id)
        path = await a.explain_path(two[1].peer_id)
        assert Route(path.route) is Route.LAN
        assert path.verdict
        assert not path.advice
        assert (await a.net_check()).verdict
        found = await a.find_peer(two[1].peer_id)
        assert found.peer_id == two[1].peer_id


async def test_order_is_that_of_the_calls(two: tuple[Daemon, Daemon]) -> None:
    count = 3000
    async with Node(two[0].socket) as a, Node(two[1].socket) as b:
        sends = [a.send_message(b.peer_id, b"%d" % number) for number in range(count)]
        await asyncio.gather(*sends)
        sent = await a.send_messages(b.peer_id, (b"%d" % number for number in range(count, 2 * count)))
        assert [each.state for each in sent] == [MessageState.QUEUED] * count
        number = 0
        async for message in b.messages():
            assert message.payload == b"%d" % number
            number += 1
            if number == 2 * count:
                break


async def test_large_messages_do_not_jam(start: Start) -> None:
    config = '[limits]\nmax_message_bytes = "8 MiB"\n'
    one, other = start(config=config), start(config=config)
    pair(one, other)
    async with Node(one.socket) as a, Node(other.socket) as b:
        body = bytes(8 << 20)
        await a.send_messages(b.peer_id, [body] * 3)
        count = 0
        async for message in b.messages():
            assert len(message.payload) == len(body)
            count += 1
            if count == 3:
                break


async def test_stored_says_what_keeps_it(two: tuple[Daemon, Daemon]) -> None:
    async with Node(two[0].socket) as a:
        sent = await a.send_message(two[1].peer_id, b"now", wait="stored")
        assert sent.state is MessageState.STORED
        two[1].kill()
        sent = await a.send_message(two[1].peer_id, b"later", wait="stored", timeout=0.5)
        assert sent.state in (MessageState.QUEUED, MessageState.SENT)
        assert (await a.get_message(sent.id)).state == sent.state
        assert (await a.cancel(sent.id)).id == sent.id


async def test_many_that_nobody_stores_jam_nothing(
    two: tuple[Daemon, Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The daemon's stream holds a place for each; ours is made anew in time.
    monkeypatch.setattr("p2p_node._send._MAX_ABANDONED", 8)
    async with Node(two[0].socket) as a, Node(two[1].socket) as b:
        two[1].kill()
        for _ in range(5):
            waits = [a.send_message(two[1].peer_id, b"x", wait="stored", timeout=0.3) for _ in range(6)]
            for sent in await asyncio.gather(*waits):
                assert sent.state in (MessageState.QUEUED, MessageState.SENT)
        await asyncio.to_thread(two[1].start)
        await a.add_peer(two[1].peer_id, addresses=two[1].addresses)
        number = 0
        async for message in b.messages():
            number += 1
            assert message.sequence == number
            if number == 30:
                break


async def test_ephemeral_needs_a_listener(two: tuple[Daemon, Daemon]) -> None:
    async with Node(two[0].socket) as a, Node(two[1].socket) as b:
        sent = await a.send_message(b.peer_id, b"", channel="none", ephemeral=True, wait="stored")
        assert (sent.state, sent.reason) == (MessageState.REJECTED, Reason.NO_CONSUMER)
        loop = b.messages("live")
        coming = asyncio.ensure_future(loop.__anext__())
        while True:
            sent = await a.send_message(b.peer_id, b"tick", channel="live", ephemeral=True, wait="stored")
            if sent.state is MessageState.STORED:
                break
        got = await coming
        assert (got.payload, got.cursor) == (b"tick", 0)
        await loop.aclose()


async def test_an_id_can_be_sent_again(two: tuple[Daemon, Daemon]) -> None:
    async with Node(two[0].socket) as a:
        message = Message(b"x", id="same", timestamp=1)
        assert not (await a.send_message(two[1].peer_id, message)).duplicate
        assert (await a.send_message(two[1].peer_id, message)).duplicate


async def test_to_oneself(daemon: Daemon) -> None:
    async with Node(daemon.socket) as a:
        await a.send_message(a.peer_id, {"me": True})
        assert (await first(a)).json() == {"me": True}
