"""Real daemons for the tests; nothing is mocked."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from p2p_node import Daemon, Node, Unimplemented
from p2p_node.daemon import pair

#: Longest that anything waited for may take, in seconds.
DEADLINE = 60.0

Start = Callable[..., Daemon]

# A script that a shell runs in the background has it ignored, and so would the
# programs that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts daemons that end with the test."""
    with ExitStack() as stack:

        def one(**options: object) -> Daemon:
            return stack.enter_context(Daemon(**options))  # type: ignore[arg-type]

        yield one


@pytest.fixture
def daemon(start: Start) -> Daemon:
    """One daemon."""
    return start()


@pytest.fixture
def two(start: Start) -> tuple[Daemon, Daemon]:
    """Two daemons that trust each other."""
    first, second = start(), start()
    pair(first, second)
    return first, second


async def within(awaitable: Awaitable[object], seconds: float = DEADLINE) -> None:
    """Waits for it, with a deadline."""
    await asyncio.wait_for(awaitable, seconds)


@pytest.fixture
def needs_presence(daemon: Daemon) -> None:
    """Skips where the daemon is older than the package."""

    async def probe() -> None:
        async with Node(daemon.socket) as node:
            try:
                await node.set_presence(roles=["probe"])
            except Unimplemented as error:
                pytest.skip(f"the daemon under test cannot do that: {error}")

    asyncio.run(probe())


@pytest.fixture
def needs_invitations(daemon: Daemon) -> None:
    """Skips where the daemon is older than the package."""

    async def probe() -> None:
        async with Node(daemon.socket) as node:
            try:
                await node.invite(expires=60)
            except Unimplemented as error:
                pytest.skip(f"the daemon under test cannot do that: {error}")

    asyncio.run(probe())
