"""Serves by itself on the port in the file "port"; the first worker chooses it. Where it is in use, a worker
says so and goes on without it; with "retries" it tries again and then ends, as gunicorn does; with "shares"
all workers have it."""
import os
import signal
import socket
import sys
import time

signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
how = sys.argv[1:]
own = socket.socket()
own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
if "shares" in how:
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
try:
    os.close(os.open("first", os.O_CREAT | os.O_EXCL))
    own.bind(("127.0.0.1", 0))
    own.listen()
    with open("new", "w") as file:
        file.write(str(own.getsockname()[1]))
    os.rename("new", "port")
except FileExistsError:
    while not os.path.exists("port"):
        time.sleep(0.01)
    port = int(open("port").read())
    for _ in range(5):
        try:
            own.bind(("127.0.0.1", port))
            break
        except OSError:
            print(f"Connection in use: ('127.0.0.1', {port})", file=sys.stderr, flush=True)
        while "retries" not in how:
            time.sleep(60)
        time.sleep(0.5)
    else:
        sys.exit(1)
    own.listen()
while True:
    client, _ = own.accept()
    client.recv(1000)
    client.sendall(b"HTTP/1.0 200 OK\r\n\r\n%d" % os.getpid())
    client.close()
