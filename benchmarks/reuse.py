"""A population against its plain forward passes: the reuse ratio.

Candidate tokens per second of the evaluator on one rung, over tokens per second of plain `model(input_ids)` passes of
the same candidates, their weights already in place, plus the same loss from full logits. Same device, dtype, batches
and threads; the two interleaved in one process; the median of the ratios of the pairs.

    python -m benchmarks.reuse --model FOLDER --data TEXT.txt
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch

import evoray
from benchmarks.log import append, table
from benchmarks.population import block_drops, offspring, whole_blocks
from evoray.evaluator import Evaluator, Work
from evoray.evolve import Purpose, rng
from evoray.fitness import Fitness
from evoray.model import ModelAdapter, load_model
from evoray.space import Budget, Measure, Tie, quantization_space
from evoray.store import VariantStore
from evoray.tokens import TokenText, draw_batches

QUANTIZATION = {"128 offspring x 2,048 tokens": (128, 2048), "16 survivors x 16,384 tokens": (16, 16384)}
DEPTH = "32 offspring x 2,048 tokens, a quarter of the blocks dropped"


def plain(
    evaluator: Evaluator, rows_NL: np.ndarray, works: list[Work], teacher: list[torch.Tensor]
) -> tuple[float, np.ndarray]:
    """Seconds of the plain passes with their loss, and the losses [N, B]."""
    seconds, losses = 0.0, []
    for row_L in rows_NL:
        evaluator._install(row_L)
        row = []
        for work, log_p_BTV in zip(works, teacher, strict=True):
            ids_BT = evaluator._ids(work)
            began = time.perf_counter()
            with torch.inference_mode():
                student_BTV = evaluator.adapter.model(input_ids=ids_BT, use_cache=False).logits.float().log_softmax(-1)
                kl_BT = torch.nn.functional.kl_div(student_BTV, log_p_BTV, reduction="none", log_target=True).sum(-1)
                row += [float(kl_BT[index, :cut].sum()) for index, cut in enumerate(work.cuts)]
            if ids_BT.is_cuda:
                torch.cuda.synchronize()
            seconds += time.perf_counter() - began
        losses.append(row)
    return seconds, np.array(losses)


def case_row(
    name: str, evaluator: Evaluator, rows_NL: np.ndarray, tokens: int, text: TokenText, tokens_per_pass: int, pairs: int
) -> list[str]:
    """Measures one case."""
    batches = draw_batches(text, tokens, rng(0, 1, Purpose.BATCHES), tokens_per_pass)
    works = []
    for batch in batches:
        untaught = Work(batch.ids(text), batch.cuts)
        works.append(Work(untaught.ids, untaught.cuts, tuple(evaluator.teach(untaught))))
    with torch.inference_mode():
        teacher = [evaluator.adapter.logits(evaluator._ids(work)).float().log_softmax(-1) for work in works]

    def population() -> np.ndarray:
        return np.concatenate([evaluator.losses(rows_NL, work, Fitness.kl) for work in works], axis=1)

    before = evaluator.blocks_run
    population()  # variants ready, as in every generation but the first
    kept = int((rows_NL != 0).sum()) if evaluator.cache.store is None else len(rows_NL) * evaluator.adapter.n_blocks
    share = (evaluator.blocks_run - before) / (kept * len(works))
    ratios, ours, theirs = [], [], []
    for _ in range(pairs):
        slow, expected = plain(evaluator, rows_NL, works, teacher)
        fast, found = timed(population)
        assert np.allclose(found.sum(1), expected.sum(1), rtol=1e-3), "the two measure different things"
        ratios.append(slow / fast)
        ours.append(len(rows_NL) * tokens / fast)
        theirs.append(len(rows_NL) * tokens / slow)
    return [
        name,
        f"{statistics.median(ratios):.2f}",
        f"{min(ratios):.2f} to {max(ratios):.2f}",
        f"{statistics.median(ours):,.0f}",
        f"{statistics.median(theirs):,.0f}",
        f"{share:.3f}",
    ]


def timed(call: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Seconds and result."""
    began = time.perf_counter()
    result = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began, result


def main() -> None:
    """Parses arguments, measures, logs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--data", default="embedded")
    parser.add_argument("--only", choices=["all", "quantization", "depth"], default="all")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--tokens-per-pass", type=int, default=2048)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        evoray.build(model=given.model, store=folder, method="rtn", group_size=given.group_size, threads=given.threads)
        torch.set_num_threads(given.threads)
        store = VariantStore.open(folder)
        adapter = ModelAdapter(load_model(given.model, device=given.device))
        text = whole_blocks(given.model, given.data, given.sequence_length)
        space = quantization_space(store.manifest, Budget(Measure.BITS, 3.0), Tie.NONE)
        cases = [
            (name, Evaluator(adapter, store), space.rows(offspring(space, candidates)), tokens)
            for name, (candidates, tokens) in QUANTIZATION.items()
            if given.only in ("all", "quantization")
        ]
        if given.only in ("all", "depth"):
            dropping = Evaluator(adapter, None, droppable=range(adapter.n_blocks))
            cases.append((DEPTH, dropping, block_drops(adapter.n_blocks, 32), 2048))
        rows = [case_row(*case, text, given.tokens_per_pass, given.pairs) for case in cases]
    header = ["case", "reuse ratio", "range", "candidate tokens/s", "plain tokens/s", "blocks run"]
    append(
        f"reuse ratio on {os.path.basename(given.model.rstrip('/'))}",
        f"{given.threads} thread, {adapter.dtype}, blocks of {given.sequence_length}, {given.pairs} pairs, "
        f"children of one parent by the paper's mutation.\n\n" + table(header, rows),
    )


if __name__ == "__main__":
    main()
