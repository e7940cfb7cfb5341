"""The figures that the evaluator is held to, each with its goal; any of them can be measured alone.

    python -m benchmarks.bench --model FOLDER --data TEXT.txt [--row quantization] [--clock cpu]

Prints one table and adds it to LOG.md. The goals are for a Llama of 12 blocks and 5.7 M parameters; other models, such
as the embedded one that is measured by default, have ratios of their own.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import evoray
from benchmarks.clock import Clock
from benchmarks.log import append, table
from benchmarks.population import whole_blocks
from benchmarks.published_protocol import protocol_row
from benchmarks.reuse import ReuseBench
from evoray.model import ModelAdapter, load_model
from evoray.store import VariantStore

HEADER = [
    "row",
    "case",
    "goal",
    "ratio",
    "range",
    "candidate tokens/s",
    "other side's tokens/s",
    "blocks run",
    "memory",
]
"""`memory`: the most that is held beside the base model and ready weights; the goal is the limit, 2,048 MiB."""

GOALS = {
    "quantization": ("128 offspring x 2,048 tokens, against plain passes", 1.4),
    "survivors": ("16 survivors x 16,384 tokens, against plain passes", 1.3),
    "depth": ("32 offspring x 2,048 tokens, a quarter of the blocks dropped, against plain passes", 1.15),
    "protocol": ("32 offspring x 2,048 tokens, all cores, against the published protocol", 4),
}
"""Row -> what is measured, and the least ratio to reach."""


class Bench:
    """A model with its variants and a text, ready to measure any row.

    Args:
        given: arguments of the command line.
        folder: for variants.
    """

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self.given, self.folder = given, folder
        evoray.build(
            model=given.model, store=str(folder / "store"), method="rtn", group_size=given.group_size, threads=1
        )
        self.store = VariantStore.open(str(folder / "store"))
        self.text = whole_blocks(given.model, given.data, given.sequence_length)
        self.clock = Clock(given.clock)

    def measure(self, rows: Sequence[str]) -> list[list[str]]:
        """The rows of the table, in order."""
        found = []
        for row in rows:
            case, goal = GOALS[row]
            cells = self._protocol() if row == "protocol" else self._reuse(row)
            found.append([row, case, f">= {goal}", *cells])
        return found

    def _reuse(self, row: str) -> list[str]:
        given = self.given
        torch.set_num_threads(given.threads)
        adapter = ModelAdapter(load_model(given.model, device=given.device))
        bench = ReuseBench(adapter, self.store, self.text, given.tokens_per_pass, self.clock, given.pairs)
        measures: dict[str, Callable[[], list[str]]] = {
            "quantization": lambda: bench.quantization(128, 2048),
            "survivors": lambda: bench.quantization(16, 16384),
            "depth": lambda: bench.depth(32, 2048),
        }
        return measures[row]()

    def _protocol(self) -> list[str]:
        given = self.given
        return protocol_row(
            given.model,
            self.store,
            self.text,
            self.folder,
            candidates=32,
            tokens=2048,
            cores=given.cores,
            device=given.device,
            clock=self.clock,
            pairs=given.pairs,
        )


def main() -> None:
    """Parses arguments, measures, logs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--data", default="embedded")
    parser.add_argument("--row", choices=["all", *GOALS], default="all")
    parser.add_argument("--clock", choices=[clock.value for clock in Clock], default=Clock.wall.value)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of rows against plain passes")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="of rows against the published protocol")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--tokens-per-pass", type=int, default=2048)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = Bench(given, Path(folder)).measure(list(GOALS) if given.row == "all" else [given.row])
    append(
        f"goals of the evaluator on {os.path.basename(given.model.rstrip('/'))}",
        f"{given.clock} time, {given.device}, {given.threads} thread against plain passes, {given.cores} cores against "
        f"the published protocol, blocks of {given.sequence_length}, {given.pairs} interleaved pairs.\n\n"
        + table(HEADER, rows),
    )


if __name__ == "__main__":
    main()
