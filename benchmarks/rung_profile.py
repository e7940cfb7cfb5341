"""Where the time of a rung goes: a population on one batch, part by part and operation by operation.

    python -m benchmarks.rung_profile --model FOLDER --data TEXT.txt

Prints two tables and adds them to LOG.md. Parts are timed by hooks around the model's own modules, in CPU time of this
process; operations by torch's profiler, in wall time and slowed down, so only their shares mean something.
"""

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import evoray
from benchmarks.log import append, table
from benchmarks.population import offspring, whole_blocks
from evoray.evaluator import Evaluator, Work
from evoray.evolve import Purpose, rng
from evoray.fitness import Fitness
from evoray.model import DropKind, ModelAdapter, load_model
from evoray.space import Budget, Measure, Tie, quantization_space
from evoray.store import VariantStore
from evoray.tokens import draw_batches

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::_linear_pointwise")


class PartTimes:
    """CPU seconds of nested parts, each without those inside it."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._open: list[list[Any]] = []  # [name, began, seconds of parts inside]

    def begin(self, name: str) -> None:
        self._open.append([name, time.process_time(), 0.0])

    def end(self) -> None:
        name, began, inside = self._open.pop()
        took = time.process_time() - began
        self.seconds[name] += took - inside
        self.calls[name] += 1
        if self._open:
            self._open[-1][2] += took

    @contextmanager
    def around(self, owner: Any, method: str, name: str) -> Iterator[None]:
        """Times a method of an object while the context lasts."""
        own: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.begin(name)
            try:
                return own(*args, **kwargs)
            finally:
                self.end()

        setattr(owner, method, timed)
        try:
            yield
        finally:
            delattr(owner, method)


def part_rows(evaluator: Evaluator, call: Callable[[], object]) -> list[list[str]]:
    """Seconds and share of each part of a call."""
    adapter, times, handles = evaluator.adapter, PartTimes(), []
    names = {DropKind.attn: "attention", DropKind.mlp: "MLP"}
    modules = {
        module: names[site.kind]
        for name, site in adapter.droppable.items()
        if site.kind in names
        for module in adapter.modules(name)
    }
    # What a block has beside its sublayers are norms and sums; the decoder embeds, and prepares masks and positions.
    modules |= dict.fromkeys(adapter.blocks, "norms and sums of blocks")
    for module, name in modules.items():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: times.begin(name), prepend=True))
        handles.append(module.register_forward_hook(lambda *_: times.end()))
    head = evaluator._head(Work(torch.zeros(1, 2).numpy(), (2,)))
    with (
        times.around(adapter, "hidden", "embedding, masks, positions, last norm"),
        times.around(evaluator.sites, "install", "installing variants"),
        times.around(head, "kl", "KL beside the head"),
        times.around(head.head, "summary", "head and log-sum-exp"),
    ):
        times.begin("walk")
        call()
        times.end()
    for handle in handles:
        handle.remove()
    whole = sum(times.seconds.values())
    return [
        [name, f"{seconds:.2f}", f"{seconds / whole:.1%}", f"{times.calls[name]:,}"]
        for name, seconds in times.seconds.most_common()
    ]


def operation_rows(call: Callable[[], object], most: int = 14) -> list[list[str]]:
    """Share of the operations that take most."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        call()
    events = [event for event in found.key_averages() if event.self_cpu_time_total > 0]
    whole = sum(event.self_cpu_time_total for event in events)
    events.sort(key=lambda event: -event.self_cpu_time_total)
    return [
        [
            event.key + (" (matrix product)" if event.key in PRODUCTS else ""),
            f"{event.self_cpu_time_total / whole:.1%}",
            f"{event.count:,}",
        ]
        for event in events[:most]
    ]


def main() -> None:
    """Parses arguments, measures, logs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--data", default="embedded")
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--group-size", type=int, default=64)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        place = str(Path(folder) / "store")
        evoray.build(model=given.model, store=place, method="rtn", group_size=given.group_size, threads=1)
        store = VariantStore.open(place)
        evaluator = Evaluator(ModelAdapter(load_model(given.model, device="cpu")), store)
        text = whole_blocks(given.model, given.data, given.sequence_length)
        space = quantization_space(store.manifest, Budget(Measure.BITS, 3.0), Tie.NONE)
        rows_NL = space.rows(offspring(space, given.candidates))
        batch = draw_batches(text, given.tokens, rng(0, 1, Purpose.BATCHES), given.tokens)[0]
        plain = Work(batch.ids(text), batch.cuts)
        work = Work(plain.ids, plain.cuts, tuple(evaluator.teach(plain)))

        def call() -> object:
            return evaluator.losses(rows_NL, work, Fitness.kl)

        call()  # variants ready
        parts, operations = part_rows(evaluator, call), operation_rows(call)
    append(
        f"where a rung's time goes on {os.path.basename(given.model.rstrip('/'))}",
        f"{given.candidates} offspring x {given.tokens} tokens in one batch of blocks of {given.sequence_length}, one "
        f"thread, float32, variants ready. CPU seconds; parts without the parts inside them.\n\n"
        + table(["part", "seconds", "share", "calls"], parts)
        + "\n\n"
        + table(["operation", "share", "calls"], operations),
    )


if __name__ == "__main__":
    main()
