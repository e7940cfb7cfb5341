"""The log of measurements.

Holds: `append`, `hardware`, `table`.
"""

import datetime
import os
from collections.abc import Sequence
from pathlib import Path

from evoray.cluster.worker import cpu_name, versions

LOG = Path(__file__).parent / "LOG.md"


def hardware() -> str:
    """What this was measured on: processor, cores, GPU, versions."""
    import torch

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    found = ", ".join(f"{name} {number}" for name, number in versions().items())
    return f"{cpu_name()}, {os.cpu_count()} cores{gpu}; {found}"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def append(title: str, body: str) -> None:
    """Prints a finding and adds it to LOG.md under today's date."""
    text = f"\n## {datetime.date.today().isoformat()}: {title}\n\n{hardware()}\n\n{body}\n"
    print(text)
    with LOG.open("a", encoding="utf-8") as log:
        log.write(text)
