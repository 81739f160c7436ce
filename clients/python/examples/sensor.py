"""Sends a reading every second: python sensor.py [SERVER] [SECONDS].

SERVER is the alias or peer id of the receiver; without it, the trusted peer
that announces to be a server is looked for. A reading is on this machine's disk
when send_message returns, and waits there while the receiver is away.
"""

import asyncio
import contextlib
import itertools
import sys
import time
from pathlib import Path

from p2p_node import P2PClient

server = sys.argv[1] if len(sys.argv) > 1 else None
pause = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0


def load() -> float:
    """How busy this machine is; put your sensor here."""
    return float(Path("/proc/loadavg").read_text().split()[0])


async def main() -> None:
    async with P2PClient(server=server) as node:
        for number in itertools.count(1):
            reading = {"number": number, "at": time.time(), "load": load()}
            await node.send_message(node.server, reading, channel="readings", type="load")
            await asyncio.sleep(pause)


with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main())
