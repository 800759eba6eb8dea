"""What the driver shows to Prometheus: who there is to scrape, and the fleets as they stand.

Both are looked up at each request, so that they are true while a game stands still; both stay at
one address for as long as the process lives, so that a run is found in all of its lives.
"""

from __future__ import annotations

import json
import threading
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from actors.telemetry import serve_metrics
from cluster.member import State
from configs.errors import UserError
from configs.schema import RunConfig

if TYPE_CHECKING:
    from cluster.fleet import Fleet

SHOWN = [state.value for state in State if state is not State.GONE]
"""The states of members that a fleet still has."""


@dataclass(frozen=True)
class Target:
    """An address to scrape, and what it is."""

    address: str
    labels: Mapping[str, str] = field(default_factory=dict)


class Discovery:
    """Prometheus' HTTP service discovery: the live targets, asked for at each request."""

    def __init__(self, host: str, port: int, targets: Callable[[], Iterable[Target]]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(_groups(targets())).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """A scrape is no news."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise UserError(
                f"metrics.host {host}, metrics.discovery_port {port}: cannot listen there"
                f" ({error.strerror}); 0 takes a free port"
            ) from error
        self.url = f"http://{host}:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def _groups(targets: Iterable[Target]) -> list[dict[str, Any]]:
    return [{"targets": [t.address], "labels": dict(t.labels)} for t in targets]


class FleetFigures(Collector):
    """The fleets at the moment of a scrape: members by state, targets, calls, restarts."""

    def __init__(self, fleets: Callable[[], Mapping[str, Fleet]]) -> None:
        self._fleets = fleets

    def collect(self) -> Iterable[Metric]:
        """The figures of every fleet."""
        by_state = ["fleet", "state"]
        members = GaugeMetricFamily(
            "selfplay_fleet_members", "Members of a fleet, by state", labels=by_state
        )
        target = GaugeMetricFamily(
            "selfplay_fleet_target_members", "Members that a fleet is to have", labels=["fleet"]
        )
        unplaced = GaugeMetricFamily(
            "selfplay_fleet_unplaced_members", "Members without a place", labels=["fleet"]
        )
        calls = GaugeMetricFamily("selfplay_fleet_calls", "Calls of a fleet", labels=by_state)
        restarts = GaugeMetricFamily(
            "selfplay_fleet_restarts",
            "Restarts of a fleet's members since all actors started",
            labels=["fleet"],
        )
        for name, fleet in self._fleets().items():
            counts = Tally(member["state"] for member in fleet.describe())
            for state in SHOWN:
                members.add_metric([name, state], counts[state])
            target.add_metric([name], fleet.target)
            unplaced.add_metric([name], len(fleet.unplaced))
            calls.add_metric([name, "in_flight"], fleet.in_flight)
            calls.add_metric([name, "waiting"], fleet.waiting)
            restarts.add_metric([name], fleet.restarts)
        return [members, target, unplaced, calls, restarts]


class Scraped:
    """The driver's own metrics, and the discovery of every process that serves some."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._fleets: Mapping[str, Fleet] = {}
        self._ranks: Sequence[Target] = ()
        self._driver: Target | None = None
        self._discovery: Discovery | None = None
        self._figures = FleetFigures(lambda: self._fleets)
        REGISTRY.register(self._figures)

    def follow(self, fleets: Mapping[str, Fleet]) -> str:
        """Show the fleets of a life that begins, in place of those of the last one; gives the
        address of the discovery, which the first life opens. Raises UserError where it is taken."""
        metrics = self._config.metrics
        self._fleets, self._ranks = fleets, ()
        if self._discovery is None:
            self._discovery = Discovery(metrics.host, metrics.discovery_port, self.targets)
            self._driver = Target(serve_metrics(metrics.host), self._labels("driver"))
        return self._discovery.url

    def found(self, ranks: Sequence[Mapping[str, Any]]) -> None:
        """Show the learner's ranks too, each as it describes itself."""
        self._ranks = [
            Target(rank["metrics_address"], self._labels("learner", f"learner-{i}"))
            for i, rank in enumerate(ranks)
        ]

    def targets(self) -> Iterator[Target]:
        """Every process that serves metrics now."""
        if self._driver is not None:
            yield self._driver
        yield from self._ranks
        for name, fleet in self._fleets.items():
            for member in fleet.describe():
                if address := member.get("metrics_address"):
                    yield Target(address, self._labels(name, member["name"]))

    def close(self) -> None:
        """Be found no longer."""
        REGISTRY.unregister(self._figures)
        if self._discovery is not None:
            self._discovery.close()

    def _labels(self, fleet: str, member: str | None = None) -> dict[str, str]:
        labels = {"run": self._config.run_dir.absolute().name, "fleet": fleet}
        return labels if member is None else labels | {"member": member}
