"""Binds a port by itself: that of its socket by activation, or the one that the first worker has."""
import os
import socket
import sys
import time

if "LISTEN_FDS" in os.environ:
    port = socket.socket(fileno=3).getsockname()[1]
else:
    try:
        os.close(os.open("first", os.O_CREAT | os.O_EXCL))
        port = 0
    except FileExistsError:
        while not os.path.exists("port"):
            time.sleep(0.01)
        port = int(open("port").read())
own = socket.socket()
try:
    own.bind(("127.0.0.1", port))
except OSError as e:
    sys.exit(f"port {port}: {e.strerror}")
own.listen()
with open("new", "w") as file:
    file.write(str(own.getsockname()[1]))
os.rename("new", "port")
while True:
    own.accept()[0].close()
