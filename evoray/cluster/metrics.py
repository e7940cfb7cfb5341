"""Figures of a run at work, where whoever watches the cluster finds them: Ray's metrics, which Prometheus collects.

Holds: `METRICS`, `TRANSFERRED`, `RunMetrics`, `TransferMetrics`. `deploy/grafana/evoray.json` shows all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ray.util.metrics import Counter, Gauge

from evoray.store import TRANSFERS

METRICS = {
    "evoray_generation": "The last generation that was journaled.",
    "evoray_fitness": "Loss of its winner on the last rung [nats per token].",
    "evoray_bits": "Code bits per compressible weight of its winner.",
    "evoray_candidate_tokens_per_second": "Tokens times candidates that the generation measured, over its time.",
    "evoray_lost_workers": "How many times a worker was lost since the driver began.",
    "evoray_worker_busy_share": "Share of the generation in which a worker had work, 0 to 1.",
}
"""Name -> what it says. All have the label `run`, the last also `worker`. Ray puts `ray_` before the names."""

BUSY = "evoray_worker_busy_share"

TRANSFERRED = {
    "evoray_cache_hits": ("hits", "Files that a node's cache had."),
    "evoray_fetched_bytes": ("fetched", "Bytes that came from object storage."),
    "evoray_retries": ("retries", "Requests of object storage that were made again."),
}
"""Name -> what `TRANSFERS` calls it, and what it says. Each process of driver and workers counts on from its beginning;
Ray tells them apart by its own labels, and puts `_total` behind the names."""


class RunMetrics:
    """Shows the figures of a run, and the transfers of its driver."""

    def __init__(self) -> None:
        self._gauges = {
            name: Gauge(name, description, tag_keys=("run", "worker") if name == BUSY else ("run",))
            for name, description in METRICS.items()
        }
        self._transfers = TransferMetrics()

    def publish(self, run: str, figures: Mapping[str, float], busy: Sequence[float] = ()) -> None:
        """Shows figures of a generation.

        Args:
            run: place of the run.
            figures: names without `evoray_` -> value; what is not among `METRICS` is passed over.
            busy: the share of each worker.
        """
        for name, value in figures.items():
            if (gauge := self._gauges.get(f"evoray_{name}")) is not None:
                gauge.set(value, {"run": run})
        self._transfers.publish()
        for worker, share in enumerate(busy):
            self._gauges[BUSY].set(share, {"run": run, "worker": str(worker)})


class TransferMetrics:
    """Counts on what `TRANSFERS` of this process counts."""

    def __init__(self) -> None:
        self._counters = {name: Counter(name, description) for name, (_, description) in TRANSFERRED.items()}
        self._told = dict.fromkeys(TRANSFERRED, 0)

    def publish(self) -> None:
        """Shows what came since this was last called."""
        for name, (attribute, _) in TRANSFERRED.items():
            now = getattr(TRANSFERS, attribute)
            if now > self._told[name]:
                self._counters[name].inc(now - self._told[name])
                self._told[name] = now
