"""Uses the installed package, as a stranger would: both faces, one message each."""

import asyncio
from importlib.metadata import version
from importlib.resources import files

import p2p_node
from p2p_node import Daemon, Node
from p2p_node.blocking import Node as BlockingNode


async def hello(daemon: Daemon) -> None:
    async with Node(daemon.socket) as node:
        await node.send_message(node.peer_id, {"hello": "asyncio"})
        async for message in node.messages():
            assert message.json() == {"hello": "asyncio"}
            await message.ack()
            break


with Daemon() as daemon:
    asyncio.run(hello(daemon))
    with BlockingNode(daemon.socket) as node:
        node.send_message(node.peer_id, {"hello": "threads"})
        assert next(node.messages()).json() == {"hello": "threads"}

assert files(p2p_node).joinpath("py.typed").is_file()
print(f"p2p-node {version('p2p-node')} works as installed")
