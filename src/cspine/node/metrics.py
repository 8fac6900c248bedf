"""What Prometheus reads from a node: an HTTP page on loopback, made from the ledger at each reading.

Nothing is counted in memory, so figures go on after a restart and are the same whichever machine of a shared database
is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from cspine.errors import UsageError
from cspine.node.figures import Figures
from cspine.node.ledger import ENDED, OPEN, Ledger
from cspine.node.settings import Metrics
from cspine.node.status import gather


class NodeCollector(Collector):
    """Makes the figures when they are asked for.

    Args:
        ledger: of the node.
        data: folder whose disk is looked at.
        clock: seconds since the epoch.
    """

    def __init__(self, ledger: Ledger, data: Path, clock: Callable[[], float] = time.time) -> None:
        self._ledger, self._data, self._clock = ledger, data, clock

    def describe(self) -> Iterator[Metric]:
        """Nothing: names are known without reading the database at start."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All figures."""
        status = gather(self._ledger, self._data, self._clock())
        states: dict[str, float] = {state: status.studies.get(state, 0) for state in (*OPEN, *ENDED)}
        yield _gauges("cspine_node_studies", "Studies by state", "state", states)
        yield GaugeMetricFamily("cspine_node_queue_length", "Studies that have not ended", status.queued)
        yield GaugeMetricFamily("cspine_node_oldest_seconds", "Age of the oldest of them", status.oldest_seconds)
        yield _gauges("cspine_node_failing", "Studies and results in trouble now", "reason", status.failing)
        failures = CounterMetricFamily("cspine_node_failures", "Tries that failed", labels=["reason"])
        for reason, count in status.failures.items():
            failures.add_metric([reason], count)
        yield failures
        steps = SummaryMetricFamily("cspine_node_step_seconds", "Time of each step of a study", labels=["step"])
        for step, (count, seconds) in Figures(self._ledger.database).tally("step").items():
            steps.add_metric([step], count_value=count, sum_value=seconds)
        yield steps
        names = {one.name: one for one in status.destinations}
        for state in ("delivered", "waiting", "shelved"):
            counts = {name: int(getattr(one, state)) for name, one in names.items()}
            yield _gauges(f"cspine_node_results_{state}", f"Results {state}", "destination", counts)
        drifts = {item.feature: item.psi for item in status.drift}
        yield _gauges("cspine_node_drift_psi", "Population stability index against the reference", "feature", drifts)
        yield GaugeMetricFamily("cspine_node_disk_free_bytes", "Free on the disk of the data", status.disk_free_bytes)


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


class MetricsServer:
    """The page. Close it when the node ends.

    Args:
        settings: where it listens; ``port`` must be set.
        collector: what makes the figures.

    Raises:
        UsageError: the port is taken or the address is none of this machine's.
    """

    def __init__(self, settings: Metrics, collector: NodeCollector) -> None:
        # A registry of its own: the default one would tell of the process, and of other libraries.
        registry = CollectorRegistry(auto_describe=False)
        registry.register(collector)
        try:
            self._server, self._thread = _start(settings, registry)
        except OSError as error:
            raise UsageError(
                f"the metrics page cannot listen: {error.strerror or type(error).__name__}",
                where="metrics.port",
                fix="Choose a free port and an address of this machine",
            ) from error

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_port)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


def _start(settings: Metrics, registry: CollectorRegistry) -> tuple[Any, Any]:
    return start_http_server(settings.port or 0, addr=settings.host, registry=registry)
