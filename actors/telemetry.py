"""Each actor process serves its own metrics, vLLM's among them, from one registry."""

from __future__ import annotations

import functools
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import ray
from prometheus_client import make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

EVERY_INTERFACE = ("", "0.0.0.0")


@functools.cache
def serve_metrics(host: str) -> str:
    """Serve this process's metrics on a free port of `host`; return the address to scrape.

    Once in a process; the same address is returned from then on.

    Where `host` means every interface, the address is that of this Ray node.
    """
    family, *_ = socket.getaddrinfo(host or None, 0, flags=socket.AI_PASSIVE)[0]
    server_class = type("Server", (ThreadingWSGIServer,), {"address_family": family})
    server = make_server(host, 0, _plain_text(), server_class, handler_class=_Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = ray.util.get_node_ip_address() if host in EVERY_INTERFACE else host
    return f"{address}:{server.server_port}"


def _plain_text() -> Callable[..., Iterable[bytes]]:
    """The metrics in Prometheus' text format, whatever the request prefers.

    In OpenMetrics, prometheus-client 0.26 writes the colons of vLLM's names as underscores.
    """
    app = make_wsgi_app()

    def plain(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ.pop("HTTP_ACCEPT", None)
        return app(environ, start_response)

    return plain


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """A scrape is no news."""
