"""The figures that the evaluator is held to, each with its goal; any of them can be measured alone.

    python -m benchmarks.bench --model FOLDER --data TEXT.txt [--row quantization] [--clock cpu]

Prints one table and adds it to LOG.md. The goals are for a Llama of 12 blocks and 5.7 M parameters; other models, such
as the embedded one that is measured by default, have ratios of their own.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch

import evoray
from benchmarks.build import build_rows, crew_row
from benchmarks.clock import Clock
from benchmarks.large import LLAMA_8B, computed_rate, matrix_rate, random_llama, random_text
from benchmarks.log import append, table
from benchmarks.population import whole_blocks
from benchmarks.published_protocol import protocol_row
from benchmarks.reuse import ReuseBench
from evoray.model import ModelAdapter, load_model
from evoray.store import VariantStore
from evoray.tokens import TokenText

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
    "quantization": ("128 offspring x 2,048 tokens, against plain passes", ">= 1.4"),
    "survivors": ("16 survivors x 16,384 tokens, against plain passes", ">= 1.3"),
    "depth": ("32 offspring x 2,048 tokens, a quarter of the blocks dropped, against plain passes", ">= 1.15"),
    "protocol": ("128 offspring x 2,048 tokens, all cores, against the published protocol", ">= 4"),
    "build": ("GPTQ at 2 to 6 bits, against one column loop per layer and level; tokens are Hessian text", ">= 3"),
    "loops": ("its column loops alone", ">= 3"),
    "crew": ("the same build, all cores: a worker each, against one process with a thread each", ">= 3"),
    "gpu": (
        "Llama of 8 B parameters, random, bfloat16, one GPU, 128 offspring x 2,048 tokens, against plain passes",
        ">= 1.1, and 45% of the matrix rate",
    ),
    "gpu-protocol": ("the same model, 32 offspring x 2,048 tokens, against the published protocol", ">= 10"),
}
"""Row -> what is measured, and the least ratio to reach."""

REUSE = {
    "quantization": lambda bench: bench.quantization(128, 2048),
    "survivors": lambda bench: bench.quantization(16, 16384),
    "depth": lambda bench: bench.depth(32, 2048),
}


class Bench:
    """Measures rows by the arguments of the command line.

    Args:
        given: these.
        folder: for models and variants.
    """

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self.given, self.folder, self.clock = given, folder, Clock(given.clock)

    def measure(self, rows: Sequence[str]) -> list[list[str]]:
        """The rows of the table, in order."""
        found: dict[str, list[str]] = {}
        for row in rows:
            if row.startswith("gpu") and not torch.cuda.is_available():
                found[row] = ["not measured: no GPU"]
            elif row in REUSE:
                found[row] = REUSE[row](self._reuse)
            elif row == "protocol":
                found[row] = self._protocol(self.given.model, self._store, self._text, self.given.device, 128)
            elif row in ("build", "loops") and row not in found:
                both = build_rows(*self._built, self.clock, self.given.pairs)
                found |= {name: cells for name, cells in zip(("build", "loops"), both, strict=True) if name in rows}
            elif row == "crew":
                found[row] = crew_row(*self._built, self.given.cores, self.clock, self.given.pairs)
            elif row == "gpu":
                found[row] = self._gpu()
            elif row == "gpu-protocol":
                found[row] = self._protocol(self._large, self._large_store, self._large_text, "cuda", 32)
        empty = [""] * len(HEADER)
        return [[row, *GOALS[row], *found[row], *empty][: len(HEADER)] for row in rows]

    @cached_property
    def _store(self) -> VariantStore:
        return self._rtn(self.given.model, self.given.group_size)

    @cached_property
    def _text(self) -> TokenText:
        return whole_blocks(self.given.model, self.given.data, self.given.sequence_length)

    @cached_property
    def _reuse(self) -> ReuseBench:
        given = self.given
        torch.set_num_threads(given.threads)
        adapter = ModelAdapter(load_model(given.model, device=given.device))
        return ReuseBench(adapter, self._store, self._text, given.tokens_per_pass, self.clock, given.pairs)

    @cached_property
    def _built(self) -> tuple[str, TokenText, int]:
        """What is built: model, Hessian text, group size."""
        given = self.given
        return given.model, whole_blocks(given.model, given.data, given.sequence_length, 16384), given.group_size

    @cached_property
    def _large(self) -> str:
        return random_llama(self.folder / "large", LLAMA_8B, "cuda")

    @cached_property
    def _large_store(self) -> VariantStore:
        return self._rtn(self._large, 128)

    @cached_property
    def _large_text(self) -> TokenText:
        return random_text(LLAMA_8B["vocab_size"], self.given.sequence_length, 65536)

    def _rtn(self, model: str, group_size: int) -> VariantStore:
        place = tempfile.mkdtemp(dir=self.folder)
        evoray.build(model=model, store=place, method="rtn", group_size=group_size, threads=1)
        return VariantStore.open(place)

    def _gpu(self) -> list[str]:
        adapter = ModelAdapter(load_model(self._large, device="cuda", dtype="bfloat16"))
        bench = ReuseBench(adapter, self._large_store, self._large_text, 2048, self.clock, self.given.pairs)
        cells = bench.quantization(128, 2048)
        computed = computed_rate(adapter, float(cells[2].replace(",", "")), float(cells[4]))
        share = computed / matrix_rate("cuda", torch.bfloat16)
        return [f"{cells[0]}, {share:.0%} of the matrix rate", *cells[1:]]

    def _protocol(self, model: str, store: VariantStore, text: TokenText, device: str, candidates: int) -> list[str]:
        return protocol_row(
            model,
            store,
            text,
            Path(tempfile.mkdtemp(dir=self.folder)),
            candidates=candidates,
            tokens=2048,
            cores=self.given.cores,
            device=device,
            clock=self.clock,
            pairs=self.given.pairs,
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
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="of rows on all cores")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--tokens-per-pass", type=int, default=2048)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = Bench(given, Path(folder)).measure(list(GOALS) if given.row == "all" else [given.row])
    append(
        f"goals of the evaluator on {os.path.basename(given.model.rstrip('/'))}",
        f"{given.clock} time, {given.device}, {given.threads} thread where nothing else is said, or all {given.cores} "
        f"cores; blocks of {given.sequence_length}, {given.pairs} interleaved pairs.\n\n" + table(HEADER, rows),
    )


if __name__ == "__main__":
    main()
