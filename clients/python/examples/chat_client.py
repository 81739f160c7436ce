"""The client's half of a chat in two terminals: python chat_client.py [NAME].

It finds the server by itself: the trusted peer that announces to be one.
Ctrl-D ends.
"""

import sys
import threading

from p2p_node.blocking import P2PClient

name = sys.argv[1] if len(sys.argv) > 1 else "client"


def listen(node: P2PClient) -> None:
    for message in node.messages("chat"):
        said = message.json()
        print(f"{said['name']}: {said['text']}", flush=True)


def say(node: P2PClient, text: str) -> None:
    node.send_message(node.server, {"name": name, "text": text}, channel="chat")


with P2PClient() as node:
    print(f"talking to {node.server}", flush=True)
    threading.Thread(target=listen, args=(node,), daemon=True).start()
    say(node, "(is here)")
    for line in sys.stdin:
        say(node, line.rstrip("\n"))
