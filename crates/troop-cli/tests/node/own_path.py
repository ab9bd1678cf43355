# Serves at a path that it binds by itself, as gunicorn does: it takes the path from whoever has it, and
# removes it at its end.
import os, signal, socket, sys

path = sys.argv[1]


def remove(*_):
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def end(*_):
    remove()
    os._exit(0)


remove()
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
signal.signal(signal.SIGTERM, end)
if 'NOTIFY_SOCKET' in os.environ:
    at = os.environ['NOTIFY_SOCKET'].replace('@', '\0')
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', at)
while True:
    client, _ = listener.accept()
    client.sendall(str(os.getpid()).encode())
    client.close()
