"""Serve the numbers of a store to Prometheus.

    python examples/prometheus_exporter.py STORE [PORT]

At each scrape the store is opened for reading, which takes milliseconds and disturbs no writer, and the newest state's
`stats()` are handed out. Without PORT the system chooses one; the address is printed.
Needs `pip install prometheus_client`.
"""

import sys
import threading
from collections.abc import Iterator
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

import tokendance as td

COHORT = {
    "logical_bytes": "What all caches would take whole, in bytes.",
    "stored_bytes": "What is stored, positions and metadata included, in bytes.",
    "byte_ratio": "Logical over stored bytes of the cohort; at most the number of agents.",
    "generation": "Number of the newest committed state.",
    "written_bytes": "What the newest commit wrote, in bytes.",
    "n_mirrors": "Agents beside the master.",
}
MIRROR = {
    "logical_bytes": "What the agent's cache would take whole, in bytes.",
    "stored_bytes": "What the agent adds to what is stored, in bytes.",
    "n_diff_blocks": "Blocks of the agent's own.",
    "max_dropped_norm": "Largest difference that the threshold dropped, as an L2 norm.",
}


class StoreCollector(Collector):
    """Turns a store's `stats()` into metrics whenever it is asked.

    Parameters
    ----------
    path : str
        The store's folder. If it cannot be read, ``tokendance_up`` is 0 and nothing else is told.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the metrics of the state that is the newest now."""
        up = GaugeMetricFamily("tokendance_up", "Whether the store could be opened.", labels=["store"])
        try:
            with td.open(self.path, "r") as store:
                stats = store.stats()
        except (td.TokenDanceError, OSError):
            up.add_metric([self.path], 0)
            yield up
            return
        up.add_metric([self.path], 1)
        yield up
        for key, text in COHORT.items():
            family = GaugeMetricFamily(f"tokendance_{key}", text, labels=["store"])
            family.add_metric([self.path], stats[key])
            yield family
        for key, text in MIRROR.items():
            family = GaugeMetricFamily(f"tokendance_mirror_{key}", text, labels=["store", "agent"])
            for agent, numbers in stats["mirrors"].items():
                family.add_metric([self.path, agent], numbers[key])
            yield family


def serve(path: str, port: int = 0) -> tuple[WSGIServer, threading.Thread]:
    """Serve the metrics of a store on loopback, in a thread; port 0 lets the system choose."""
    registry = CollectorRegistry()
    registry.register(StoreCollector(path))
    return start_http_server(port, addr="127.0.0.1", registry=registry)


def main() -> None:
    """Serve until interrupted."""
    server, thread = serve(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    with server:
        print(f"http://127.0.0.1:{server.server_port}/metrics", flush=True)
        try:
            thread.join()
        except KeyboardInterrupt:
            server.shutdown()


if __name__ == "__main__":
    main()
