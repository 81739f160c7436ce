"""Prints the readings that sensor.py sends: python sensor_receiver.py.

A reading counts as received when the loop asks for the next one; what was
printed just before a crash may come again, with `attempt` above 1.
"""

import asyncio
import contextlib

from p2p_node import P2PServer


async def main() -> None:
    async with P2PServer() as node:
        print(f"{node.peer_id} waits for readings", flush=True)
        async for message in node.messages("readings"):
            reading = message.json()
            print(f"{message.sender[-6:]} #{reading['number']}: load {reading['load']}", flush=True)


with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main())
