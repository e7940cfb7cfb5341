"""A population against its plain forward passes: the reuse ratio.

Holds: `ReuseBench`.

The ratio is candidate tokens per second of the evaluator on one rung, over tokens per second of plain
`model(input_ids)` passes of the same candidates, their weights already in place and dropped blocks gone, plus the same
loss from full logits. Same device, dtype, batches and threads; the two interleaved in one process.
"""

from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.clock import Clock, interleaved
from benchmarks.population import block_drops, offspring
from evoray.evaluator import Evaluator, Work, peak_bytes
from evoray.evolve import Purpose, rng
from evoray.fitness import Fitness
from evoray.model import DropKind, ModelAdapter
from evoray.space import Budget, Measure, Tie, quantization_space
from evoray.store import VariantStore
from evoray.tokens import TokenText, draw_batches


class ReuseBench:
    """One model and one text on which populations are measured both ways.

    Args:
        adapter: the model.
        store: its variants at bits.
        text: blocks of one length, so that nothing measured is padding.
        tokens_per_pass: most tokens of a forward pass.
        clock: by which time is taken.
        pairs: how many times each side.
    """

    def __init__(
        self,
        adapter: ModelAdapter,
        store: VariantStore,
        text: TokenText,
        tokens_per_pass: int,
        clock: Clock,
        pairs: int,
    ) -> None:
        self.adapter, self.store, self.text = adapter, store, text
        self.tokens_per_pass, self.clock, self.pairs = tokens_per_pass, clock, pairs

    def quantization(self, candidates: int, tokens: int) -> list[str]:
        """Children of one parent of 3 bits, by the paper's mutation."""
        space = quantization_space(self.store.manifest, Budget(Measure.BITS, 3.0), Tie.NONE)
        return self._row(Evaluator(self.adapter, self.store), space.rows(offspring(space, candidates)), tokens)

    def depth(self, candidates: int, tokens: int) -> list[str]:
        """Children of one parent with a quarter of the blocks dropped: so many, or all that there are."""
        blocks = [name for name, site in self.adapter.droppable.items() if site.kind is DropKind.block]
        evaluator = Evaluator(self.adapter, None, droppable=blocks)
        return self._row(evaluator, block_drops(len(blocks), candidates), tokens)

    def _row(self, evaluator: Evaluator, rows_NL: np.ndarray, tokens: int) -> list[str]:
        batches = draw_batches(self.text, tokens, rng(0, 1, Purpose.BATCHES), self.tokens_per_pass)
        untaught = [Work(batch.ids(self.text), batch.cuts) for batch in batches]
        works = [Work(work.ids, work.cuts, tuple(evaluator.teach(work))) for work in untaught]
        with torch.inference_mode():
            teacher = [evaluator.adapter.logits(evaluator._ids(work)).float().log_softmax(-1) for work in works]

        def population() -> np.ndarray:
            return np.concatenate([evaluator.losses(rows_NL, work, Fitness.kl) for work in works], axis=1)

        before = evaluator.blocks_run
        population()  # variants ready, as in every generation but the first
        share = (evaluator.blocks_run - before) / (len(rows_NL) * evaluator.adapter.n_blocks * len(works))
        timed = interleaved(
            self.pairs,
            lambda: self.clock.time(population),
            lambda: self._plain(evaluator, rows_NL, works, teacher),
            _check,
        )
        # Variants are ready by now, so what is allocated is all beside them.
        peak = peak_bytes(self.adapter.device, population)
        return [*timed.cells(len(rows_NL) * tokens), f"{share:.3f}", f"{peak / (1 << 20):,.0f} MiB"]

    def _plain(
        self, evaluator: Evaluator, rows_NL: np.ndarray, works: Sequence[Work], teacher: Sequence[torch.Tensor]
    ) -> tuple[float, np.ndarray]:
        """Seconds of the plain passes with their loss, and the losses [N, B]. Putting weights in place is not timed."""
        seconds, losses = 0.0, []
        for row_L in evaluator.sites.ordered(rows_NL):
            evaluator.sites.install(row_L)
            took, losses_B = self.clock.time(lambda: _plain_losses(evaluator, works, teacher))
            seconds += took
            losses.append(losses_B)
        return seconds, np.array(losses)


def _plain_losses(evaluator: Evaluator, works: Sequence[Work], teacher: Sequence[torch.Tensor]) -> list[float]:
    """The KL divergence of the model as it stands to the teacher, from full logits: a sum per block."""
    losses = []
    with torch.inference_mode():
        for work, log_p_BTV in zip(works, teacher, strict=True):
            output = evaluator.adapter.model(input_ids=evaluator._ids(work), use_cache=False)
            student_BTV = output.logits.float().log_softmax(-1)
            kl_BT = torch.nn.functional.kl_div(student_BTV, log_p_BTV, reduction="none", log_target=True).sum(-1)
            losses += [float(kl_BT[index, :cut].sum()) for index, cut in enumerate(work.cuts)]
    return losses


def _check(found_NB: np.ndarray, expected_NB: np.ndarray) -> None:
    assert np.allclose(found_NB.sum(1), expected_NB.sum(1), rtol=1e-3), "the two measure different things"
