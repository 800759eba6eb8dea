"""The metrics endpoint, asked as Prometheus asks."""

from __future__ import annotations

import urllib.request

import pytest
from prometheus_client import REGISTRY, Gauge

from actors.telemetry import serve_metrics

ACCEPT = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
"""What Prometheus 2 sends."""


@pytest.mark.parametrize("accept", [ACCEPT, "text/plain;version=1.0.0;escaping=allow-utf-8", "*/*"])
def test_names_keep_their_colons_whatever_is_asked_for(accept):
    gauge = Gauge("test:running", "As vLLM names its own.")
    try:
        gauge.set(3)
        address = serve_metrics("127.0.0.1")
        request = urllib.request.Request(f"http://{address}/metrics", headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=10) as reply:
            assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert "\ntest:running 3.0\n" in reply.read().decode()
    finally:
        REGISTRY.unregister(gauge)
