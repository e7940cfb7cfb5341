"""The dashboard shows what there is, all of it, and nothing else."""

import json
import re
from pathlib import Path

from evoray.cluster.metrics import METRICS, TRANSFERRED

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "evoray.json"


def test_every_metric_is_shown_and_every_one_shown_exists() -> None:
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    asked = [name for panel in panels for target in panel["targets"] for name in re.findall(r"ray_\w+", target["expr"])]
    # Ray puts its name before ours, and behind what counts on that it is a total.
    assert sorted(asked) == sorted(
        [*(f"ray_{name}" for name in METRICS), *(f"ray_{name}_total" for name in TRANSFERRED)]
    )


def test_no_panel_lies_on_another() -> None:
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
    assert all(panel["gridPos"]["w"] == panel["gridPos"]["h"] == 8 for panel in panels)
