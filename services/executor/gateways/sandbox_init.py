"""Runs inside the sandbox, before the agent: forwards one loopback port to the model gateway's Unix socket.

Started by path with `python -I -S`: it may use nothing but the standard library, and little of that, since every start
of an agent waits for it. Arguments: most processes (0: no bound), port, socket, command and its arguments.
"""

import os
import resource
import socket
import sys
import threading
from contextlib import suppress


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while True:
            data = source.recv(65536)
            if not data:
                break
            target.sendall(data)
    except OSError:
        # The other side is gone; what is left is to tell both.
        data = b""
    for end, how in ((target, socket.SHUT_WR), (source, socket.SHUT_RD)):
        with suppress(OSError):
            end.shutdown(how)


def _forward(client: socket.socket, path: str) -> None:
    gateway = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        gateway.connect(path)
    except OSError:
        client.close()
        return
    back = threading.Thread(target=_pump, args=(gateway, client), daemon=True)
    back.start()
    _pump(client, gateway)
    back.join()
    client.close()
    gateway.close()


def main() -> None:
    """Listens, forks the forwarder, and becomes the command."""
    processes, port, path, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(64)
    if os.fork() != 0:
        listener.close()
        if processes:
            # Here, inside the user namespace, where only the agent's own are counted; outside all of the user's were.
            hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
            bound = processes if hard == resource.RLIM_INFINITY else min(processes, hard)
            resource.setrlimit(resource.RLIMIT_NPROC, (bound, bound))
        os.execv(command[0], command)  # noqa: S606
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    while True:
        client, _ = listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_forward, args=(client, path), daemon=True).start()


main()
