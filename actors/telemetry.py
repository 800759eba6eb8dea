"""Each actor process serves its own metrics, vLLM's among them, from one registry."""

from __future__ import annotations

import ray
from prometheus_client import start_http_server

EVERY_INTERFACE = ("", "0.0.0.0")


def serve_metrics(host: str) -> str:
    """Serve this process's metrics on a free port of `host`; return the address to scrape.

    Where `host` means every interface, the address is that of this Ray node.
    """
    server, _ = start_http_server(port=0, addr=host)
    address = ray.util.get_node_ip_address() if host in EVERY_INTERFACE else host
    return f"{address}:{server.server_port}"
