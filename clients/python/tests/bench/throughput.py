"""How many messages a second go from one Python program to another.

    P2P_NODE_BIN=target/release/p2p-node python tests/bench/throughput.py [COUNT] [BYTES]

Two daemons, two processes; each message is on the sender's disk, on the
receiver's, and acknowledged by its loop.
"""

import asyncio
import subprocess
import sys
import time

from p2p_node import Daemon, Node
from p2p_node.daemon import pair

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
BYTES = int(sys.argv[2]) if len(sys.argv) > 2 else 1024

RECEIVER = """
import asyncio, sys
from p2p_node import Node
async def main():
    async with Node(sys.argv[1]) as node:
        count = 0
        async for message in node.messages():
            count += 1
            if count == int(sys.argv[2]):
                await message.ack()
                break
asyncio.run(main())
"""


async def main() -> None:
    async with Daemon() as one, Daemon() as other:
        pair(one, other)
        async with Node(one.socket) as node:
            await node.ping(other.peer_id)
            command = [sys.executable, "-c", RECEIVER, str(other.socket), str(COUNT)]
            with subprocess.Popen(command) as receiver:
                body = bytes(BYTES)
                begin = time.monotonic()
                await node.send_messages(other.peer_id, (body for _ in range(COUNT)))
                sent = time.monotonic() - begin
                await asyncio.to_thread(receiver.wait)
                arrived = time.monotonic() - begin
            begin, single = time.monotonic(), 200
            for _ in range(single):
                await node.send_message(other.peer_id, body)
            each = (time.monotonic() - begin) / single
    print(f"{COUNT} messages of {BYTES} bytes: sent {COUNT / sent:,.0f}/s, received {COUNT / arrived:,.0f}/s")
    print(f"one after another, each on the disk before the next: {each * 1e3:.2f} ms each")


asyncio.run(main())
