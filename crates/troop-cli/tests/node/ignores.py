"""Listens on a port of its own. Its sockets by activation it ignores, or serves the first of several."""
import os
import select
import signal
import socket
import sys

signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
own = socket.socket()
own.bind(("127.0.0.1", 0))
own.listen()
served = [own] + ([socket.socket(fileno=3)] if "first" in sys.argv else [])
while True:
    for listener in select.select(served, [], [])[0]:
        listener.setblocking(False)
        try:
            client, _ = listener.accept()
        except BlockingIOError:
            continue
        client.recv(1000)
        client.sendall(b"HTTP/1.0 200 OK\r\n\r\nfine")
        client.close()
