"""One loop over the messages of a channel, of one task at a time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic

from ._listen import R, Subscription
from .errors import AlreadyExists, Closed


class Messages(Generic[R]):
    """One loop over the messages of a channel, as `Node.messages` says.

    In `async with`, the consumer is given up at the end of the block. Without
    it, that happens 5 s after the loop was left, unless another one goes on.
    The loop ends when it is closed, or its node.
    """

    def __init__(self, find: Callable[[], Subscription[R]], auto_ack: bool, max_unacked: int) -> None:
        self._find = find
        self._auto_ack = auto_ack
        self._most = max_unacked
        self._subscription: Subscription[R] | None = None
        self._current: R | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        # Tasks: in `async for`; waiting for a message; working on `_current`.
        # Weak, as a task that failed holds the frame that holds this.
        self._looping: weakref.ref[asyncio.Task[Any]] | None = None
        self._asking: weakref.ref[asyncio.Task[Any]] | None = None
        self._working: weakref.ref[asyncio.Task[Any]] | None = None

    def __aiter__(self) -> Messages[R]:
        if self._auto_ack:
            self._refuse_another(self._working)
            self._looping = _this_task()
        if self._subscription is not None and self._current is not None:
            # A loop was left in the middle of this one, and another begins.
            self._current = None
            self.restart(set())
        return self

    async def __anext__(self) -> R:
        if not self._auto_ack:
            return await self._next()
        # Outside of `async for` each message may be asked for by a task of its
        # own: asyncio.wait_for makes one.
        self._refuse_another(self._working if self._working == self._looping else None)
        self._asking = _this_task()
        try:
            self._current = message = await self._next()
            self._working = self._asking
        finally:
            self._asking = None
        return message

    async def _next(self) -> R:
        try:
            subscription = self._attach()
            if self._current is not None:
                subscription.done(self._current)
                self._current = None
            return await subscription.next(self._most)
        except Closed:
            # By the app itself, from another task.
            raise StopAsyncIteration from None

    def _refuse_another(self, working: weakref.ref[asyncio.Task[Any]] | None) -> None:
        """Two tasks in one loop: each would mark as done what the other works on.

        Raises:
            AlreadyExists: another task waits for a message, or `working` has
                one that is not done.

        """
        if self._current is None or self._current._done:
            working = None
        for other in (self._asking, working):
            if other is None or other == _this_task():
                continue
            task = other()
            if task is not None and not task.done():
                raise in_use("task")

    async def take(self, most: int) -> list[R]:
        """Up to `most` messages, at least one; none of them is acknowledged."""
        subscription = self._attach()
        messages = [await subscription.next(self._most)]
        while len(messages) < most and subscription.has_room(self._most):
            message = subscription.next_nowait()
            if message is None:
                break
            messages.append(message)
        return messages

    def restart(self, unseen: set[int]) -> None:
        """Begins the loop again at the first message that is not done."""
        if self._subscription is not None:
            self._subscription.leave(unseen)
            self._subscription.take(self)

    def leave(self, unseen: set[int]) -> None:
        """Ends the loop, keeping the consumer for a moment."""
        if self._subscription is not None and not self._closed:
            self._closed = True
            self._subscription.leave(unseen)

    async def aclose(self) -> None:
        """Ends the loop and gives the consumer up.

        The message that was being worked on is not acknowledged and comes
        again, unless `ack()` was called.
        """
        if self._closed:
            return
        self._closed = True
        if self._subscription is not None:
            await self._subscription.stop()

    async def __aenter__(self) -> Messages[R]:
        self._attach()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # Left by break, return or an exception: the next loop may come now.
        if self._subscription is not None and self._loop is not None and not self._closed:
            with contextlib.suppress(RuntimeError):  # The event loop is over.
                self._loop.call_soon_threadsafe(_left, self._subscription)

    def _attach(self) -> Subscription[R]:
        if self._closed:
            raise Closed("this loop was closed; begin another")
        if self._subscription is None:
            subscription = self._find()
            subscription.take(self)
            self._subscription, self._loop = subscription, asyncio.get_running_loop()
        return self._subscription


def _left(subscription: Subscription[R]) -> None:
    if subscription._holder is not None and subscription._holder() is None:
        subscription.leave()


def _this_task() -> weakref.ref[asyncio.Task[Any]] | None:
    with contextlib.suppress(RuntimeError):  # No event loop runs.
        task = asyncio.current_task()
        if task is not None:
            return weakref.ref(task)
    return None


def in_use(kind: str) -> AlreadyExists:
    """The error for a second task or thread in one loop."""
    return AlreadyExists(
        f"another {kind} of this program is in the loop over this object, at a message that is not done "
        f"or waiting for one; let that end first, give each {kind} a consumer name of its own, or let "
        "them share the object of messages(auto_ack=False)",
        reason="CONSUMER_IN_USE",
        metadata={"pid": str(os.getpid())},
    )
