"""The server's half of a chat in two terminals: python chat_server.py [NAME].

The other half is chat_client.py, on a machine that this one trusts. Ctrl-D ends.
"""

import sys
import threading

from p2p_node.blocking import P2PServer

name = sys.argv[1] if len(sys.argv) > 1 else "server"
guests: set[str] = set()


def listen(node: P2PServer) -> None:
    for message in node.messages("chat"):
        said = message.json()
        guests.add(message.sender)
        print(f"{said['name']}: {said['text']}", flush=True)


with P2PServer() as node:
    print(f"{node.peer_id} waits for guests", flush=True)
    threading.Thread(target=listen, args=(node,), daemon=True).start()
    for line in sys.stdin:
        for guest in list(guests):
            node.send_message(guest, {"name": name, "text": line.rstrip("\n")}, channel="chat")
