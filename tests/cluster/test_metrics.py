"""Figures that whoever watches the cluster sees; that they arrive there is in `test_ray_job`."""

from typing import Any

import pytest

from evoray.cluster import metrics
from evoray.cluster.metrics import METRICS, TRANSFERRED, RunMetrics, TransferMetrics
from evoray.store import TRANSFERS


class Meter:
    """Keeps what it is told."""

    made: dict[str, "Meter"]

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...] = ()) -> None:
        assert description.endswith((".", "]."))
        self.tag_keys, self.told = tag_keys, list[Any]()
        self.made[name] = self

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == set(self.tag_keys)
        self.told.append((value, tags.get("worker")))

    def inc(self, value: float) -> None:
        assert value > 0
        self.told.append(value)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Meter]:
    """Name -> meter of all that are made."""
    monkeypatch.setattr(Meter, "made", {}, raising=False)
    monkeypatch.setattr(metrics, "Gauge", Meter)
    monkeypatch.setattr(metrics, "Counter", Meter)
    return Meter.made


def test_figures_of_a_run_are_set_with_its_name_and_each_workers_share_with_its_number(made: dict[str, Meter]) -> None:
    shown = RunMetrics()
    assert made.keys() == METRICS.keys() | TRANSFERRED.keys()
    shown.publish("s3://bucket/run", {"generation": 3, "fitness": 0.25, "something": 1.0}, [0.5, 1.0])
    assert made["evoray_generation"].told == [(3, None)]
    assert made["evoray_fitness"].told == [(0.25, None)]
    assert made["evoray_worker_busy_share"].told == [(0.5, "0"), (1.0, "1")]
    assert made["evoray_bits"].told == []


def test_transfers_are_counted_on(made: dict[str, Meter]) -> None:
    shown = TransferMetrics()
    before = TRANSFERS.fetched
    shown.publish()
    TRANSFERS.add(fetched=100, retries=2)
    shown.publish()
    shown.publish()
    assert sum(made["evoray_fetched_bytes"].told) == before + 100
    assert made["evoray_retries"].told[-1] == 2
