"""A TCP proxy on this machine that holds back what passes: latency on a network that has none."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

CHUNK = 1 << 16


class Proxy:
    """Passes connections on to `target`, each piece of data `delay_s` later than it came."""

    def __init__(self, target: str, host: str = "127.0.0.1") -> None:
        """Listen at `host`, on a free port."""
        at, _, port = target.rpartition(":")
        self._target = at, int(port)
        self.delay_s = 0.0
        self._server = socket.create_server((host, 0))
        self.address = f"{host}:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                time.sleep(self.delay_s)
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
