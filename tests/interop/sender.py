"""The Python app of the test: sends numbered messages, one by one in order.

Usage: sender.py SOCKET PEER CHANNEL COUNT
"""

import asyncio
import sys

from p2p_node import Node


async def main(socket: str, peer: str, channel: str, count: int) -> None:
    async with Node(socket) as node:
        await node.send_messages(
            peer, (str(number) for number in range(count)), channel=channel, wait="stored"
        )


asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
