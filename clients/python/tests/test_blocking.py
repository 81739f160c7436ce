"""The face without asyncio."""

import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import DEADLINE

from p2p_node import AlreadyExists, Daemon, Message, NotFound
from p2p_node.blocking import Node


class Trouble(Exception):
    """What goes wrong in the body of a loop."""


def test_messages_both_ways(two: tuple[Daemon, Daemon]) -> None:
    with Node(two[0].socket) as a, Node(two[1].socket) as b:
        for sender, receiver in ((a, b), (b, a)):
            sender.send_message(receiver.peer_id, {"n": 1}, wait="stored")
            for message in receiver.messages():
                assert message.json() == {"n": 1}
                message.ack()
                break


def test_order_and_number_of_many(two: tuple[Daemon, Daemon]) -> None:
    count = 5000
    with Node(two[0].socket) as a, Node(two[1].socket) as b:
        half = count // 2
        a.send_messages(b.peer_id, [b"%d" % number for number in range(half)])
        a.send_messages(b.peer_id, (b"%d" % number for number in range(half, half + 100)))
        a.send_messages(b.peer_id, [b"%d" % number for number in range(half + 100, count)])
        number = 0
        for message in b.messages():
            assert message.payload == b"%d" % number
            number += 1
            if number == count:
                message.ack()
                break


def test_what_was_fetched_and_not_seen_counts_no_attempt(daemon: Daemon) -> None:
    with Node(daemon.socket) as node:
        node.send_messages(node.peer_id, [b"%d" % number for number in range(20)])
        with pytest.raises(Trouble):
            for message in node.messages():
                if message.payload == b"3":
                    raise Trouble
        seen = list[tuple[bytes, int]]()
        inbox = node.messages()
        for message in inbox:
            seen.append((message.payload, message.attempt))
            if len(seen) == 2:
                break
        assert seen == [(b"3", 2), (b"4", 1)]
        for message in inbox:
            assert (message.payload, message.attempt) == (b"4", 2)
            with pytest.raises(AlreadyExists):
                next(node.messages())
            break
        inbox.close()
        with node.messages() as inbox:
            assert next(inbox).payload == b"4"


def test_by_hand(daemon: Daemon) -> None:
    with Node(daemon.socket) as node:
        node.send_messages(node.peer_id, [b"0", b"1", b"2"])
        with node.messages(auto_ack=False, max_unacked=2) as inbox:
            one, two = next(inbox), next(inbox)
            two.ack()
            one.ack()
            assert next(inbox).payload == b"2"


def test_calls_and_errors(two: tuple[Daemon, Daemon]) -> None:
    with Node(two[0].socket) as node:
        assert node.status().peer_id == node.peer_id
        assert node.ping(two[1].peer_id).rtt_ms > 0
        assert node.explain_path(two[1].peer_id).verdict
        assert node.net_check().verdict
        assert node.find_peer(two[1].peer_id).peer_id == two[1].peer_id
        assert [row.peer_id for row in node.peers()] == [two[1].peer_id]
        with pytest.raises(NotFound):
            node.send_message("nobody", b"")
        sent = node.send_message(two[1].peer_id, Message(b"", id="one"))
        assert node.get_message(sent.id).peer == two[1].peer_id


def test_several_threads_share_a_node(daemon: Daemon) -> None:
    with Node(daemon.socket) as node:

        def send(name: str) -> None:
            for number in range(50):
                node.send_message(node.peer_id, {"name": name, "number": number})

        threads = [threading.Thread(target=send, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        next_of = dict.fromkeys("abcd", 0)
        for message in node.messages():
            said = message.json()
            assert said["number"] == next_of[said["name"]]
            next_of[said["name"]] += 1
            if set(next_of.values()) == {50}:
                break
        for thread in threads:
            thread.join()


def test_the_daemon_may_be_restarted(daemon: Daemon) -> None:
    with Node(daemon.socket) as node:
        inbox = node.messages()
        node.send_message(node.peer_id, b"1")
        assert next(inbox).payload == b"1"
        daemon.kill()
        daemon.start()
        node.send_message(node.peer_id, b"2")
        assert next(inbox).payload == b"2"
        inbox.close()


def test_ctrl_c_ends_a_loop_that_waits(daemon: Daemon) -> None:
    program = (
        "import sys\n"
        "from p2p_node.blocking import Node\n"
        "with Node(sys.argv[1]) as node:\n"
        "    node.send_message(node.peer_id, b'')\n"
        "    try:\n"
        "        for message in node.messages():\n"
        "            print('waiting', flush=True)\n"
        "    except KeyboardInterrupt:\n"
        "        node.send_message(node.peer_id, b'bye')\n"
        "        print('bye', flush=True)\n"
    )
    command = [sys.executable, "-c", program, str(daemon.socket)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as app:
        assert app.stdout is not None
        assert app.stdout.readline() == "waiting\n"
        app.send_signal(signal.SIGINT)
        out, err = app.communicate(timeout=DEADLINE)
    assert (out, err, app.returncode) == ("bye\n", "", 0)


def test_a_program_that_forgets_to_close_ends_quietly(daemon: Daemon) -> None:
    program = (
        "import sys\n"
        "from p2p_node.blocking import Node\n"
        "node = Node(sys.argv[1]).start()\n"
        "node.send_message(node.peer_id, b'x')\n"
        "print(next(node.messages()).payload)\n"
    )
    command = [sys.executable, "-c", program, str(daemon.socket)]
    begin = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert (done.stdout, done.stderr, done.returncode) == ("b'x'\n", "", 0)
    assert time.monotonic() - begin < DEADLINE / 2


def test_a_loop_is_of_one_thread(daemon: Daemon) -> None:
    with Node(daemon.socket) as node:
        node.send_messages(node.peer_id, [b"0", b"1"])
        inbox = node.messages()
        at_work, goes_on = threading.Event(), threading.Event()
        seen = list[bytes]()

        def work() -> None:
            for message in inbox:
                at_work.set()
                assert goes_on.wait(60)
                seen.append(message.payload)

        thread = threading.Thread(target=work)
        thread.start()
        assert at_work.wait(60)
        with pytest.raises(AlreadyExists, match="another thread of this program"):
            iter(inbox)
        with pytest.raises(AlreadyExists):
            next(inbox)
        goes_on.set()
        while len(seen) < 2 or not inbox._asking.locked():
            assert thread.is_alive()
            time.sleep(0.01)
        # It waits for the next one.
        with pytest.raises(AlreadyExists, match="or waiting for one"):
            iter(inbox)
        inbox.close()
        thread.join(60)
        assert not thread.is_alive()


def test_threads_share_a_loop_that_they_acknowledge_by_hand(daemon: Daemon) -> None:
    with Node(daemon.socket) as node:
        inbox, seen = node.messages(auto_ack=False), list[bytes]()

        def work() -> None:
            for message in inbox:
                message.ack()
                seen.append(message.payload)
                if len(seen) == 20:
                    inbox.close()

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        node.send_messages(node.peer_id, [b"%d" % number for number in range(20)])
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
    assert sorted(seen, key=int) == [b"%d" % number for number in range(20)]
