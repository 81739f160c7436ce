"""Two nodes come to trust each other by a ticket."""

import pytest
from conftest import Start

from p2p_node import ChangeCause, FailedPrecondition, InvalidArgument, Node
from p2p_node.blocking import Node as BlockingNode

pytestmark = pytest.mark.usefixtures("needs_invitations")


async def test_a_ticket_makes_two_nodes_trust_each_other(start: Start) -> None:
    one, other = start(), start()
    async with Node(one.socket) as inviter, Node(other.socket) as joiner:
        invitation = await inviter.invite(alias="guest", expires=600)
        joined = await joiner.join(invitation.ticket, alias="host")
        assert (joined.peer_id, joined.alias) == (inviter.peer_id, "host")
        async for change in inviter.watch_peers():
            if change.peer.alias == "guest":
                assert change.peer.peer_id == joiner.peer_id
                assert change.cause in (ChangeCause.SNAPSHOT, ChangeCause.JOINED, ChangeCause.BOOK)
                break
        await joiner.send_message("host", b"thanks", wait="stored")
        await inviter.send_message("guest", b"welcome", wait="stored")


async def test_a_bad_ticket_has_its_own_words(start: Start) -> None:
    one = start()
    async with Node(one.socket) as node:
        with pytest.raises(InvalidArgument) as caught:
            await node.join("no ticket")
        assert caught.value.reason == "TICKET_MALFORMED"
        own = await node.invite()
        with pytest.raises(InvalidArgument) as caught:
            await node.join(own.ticket)
        assert caught.value.reason == "TICKET_OWN"


def test_the_blocking_face_joins_too(start: Start) -> None:
    one, other, third = start(), start(), start()
    with BlockingNode(one.socket) as a, BlockingNode(other.socket) as b, BlockingNode(third.socket) as c:
        ticket = a.invite().ticket
        assert b.join(ticket).peer_id == a.peer_id
        with pytest.raises(FailedPrecondition) as caught:
            c.join(ticket)
        assert caught.value.reason == "TICKET_USED"
