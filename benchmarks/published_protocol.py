"""A population against the published protocol, written plainly.

The published search keeps every variant as a dense float16 file, reads each changed layer from disk for every
candidate, keeps the teacher's full logits on the host, and runs one document at a time. Here the same candidates on the
same tokens go through that and through a pool of workers, interleaved in one run, all cores on both sides: one process
with a thread per core there, a worker of one thread per core here.

    python -m benchmarks.published_protocol --model FOLDER --data TEXT.txt
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import evoray
from benchmarks.log import append, table
from benchmarks.population import offspring, whole_blocks
from evoray.evolve import Purpose, rng
from evoray.fitness import Fitness
from evoray.formats import dense_weight
from evoray.model import load_model
from evoray.run.teacher import teach_text
from evoray.space import Budget, Measure, Tie, quantization_space
from evoray.store import VariantStore
from evoray.tokens import draw_batches


class PublishedProtocol:
    """One model whose layers are read from dense files, one document at a time.

    Args:
        model: id or folder.
        store: the variants, written out as `<layer>/<level>.pth` in float16.
        folder: where to.
        device: of the model.
    """

    def __init__(self, model: str, store: VariantStore, folder: Path, device: str) -> None:
        self.model = load_model(model, device=device)
        self.device, self.folder = device, folder
        self.layers = [layer.name for layer in store.manifest.layers]
        self.state: dict[str, str] = {}
        for layer in store.manifest.layers:
            (folder / layer.name).mkdir(parents=True)
            for level in layer.levels:
                weight = dense_weight(store.read(layer.name, level), torch.float16)
                torch.save(weight, folder / layer.name / f"{level}.pth")

    def teach(self, documents: list[torch.Tensor]) -> list[torch.Tensor]:
        """The base model's logits of each document, on the host."""
        with torch.no_grad():
            return [self.model(document[None].to(self.device), use_cache=False).logits.cpu() for document in documents]

    def fitness(
        self, configuration: dict[str, str], documents: list[torch.Tensor], targets: list[torch.Tensor]
    ) -> float:
        """Mean KL divergence per token."""
        for layer, level in configuration.items():
            if self.state.get(layer) != level:
                parameter = self.model.get_submodule(layer).weight
                loaded = torch.load(self.folder / layer / f"{level}.pth", map_location=self.device, weights_only=True)
                parameter.data = loaded.to(parameter.dtype)
                self.state[layer] = level
        total, tokens = 0.0, 0
        with torch.no_grad():
            for document, target in zip(documents, targets, strict=True):
                logits = self.model(document[None].to(self.device), use_cache=False).logits
                teacher = target.to(self.device)
                total += torch.nn.functional.kl_div(
                    logits.float().log_softmax(-1).flatten(0, 1),
                    teacher.float().log_softmax(-1).flatten(0, 1),
                    reduction="sum",
                    log_target=True,
                ).item()
                tokens += len(document)
        return total / tokens


def main() -> None:
    """Parses arguments, measures, logs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--data", default="embedded")
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--group-size", type=int, default=64)
    given = parser.parse_args()
    on_gpu = given.device != "cpu"
    with tempfile.TemporaryDirectory() as folder:
        variants = f"{folder}/store"
        evoray.build(model=given.model, store=variants, method="rtn", group_size=given.group_size)
        store = VariantStore.open(variants)
        space = quantization_space(store.manifest, Budget(Measure.BITS, 3.0), Tie.NONE)
        genotypes = offspring(space, given.candidates)
        text = whole_blocks(given.model, given.data, given.sequence_length)
        batches = draw_batches(text, given.tokens, rng(0, 1, Purpose.BATCHES), 2048)
        documents = [
            torch.from_numpy(text.blocks[block][:cut].astype(np.int64))
            for batch in batches
            for block, cut in zip(batch.blocks, batch.cuts, strict=True)
        ]
        published = PublishedProtocol(given.model, store, Path(folder) / "dense", given.device)
        torch.set_num_threads(given.cores)
        targets = published.teach(documents)
        with evoray.open_pool(given.model, variants, workers=0 if on_gpu else given.cores, device=given.device) as pool:
            works = teach_text(pool, text, tokens_per_pass=2048).works(batches)
            rows_NL = space.rows(genotypes)
            # Once each beforehand: files in the page cache there, variants ready here.
            pool.measure(rows_NL, works, Fitness.kl)
            ratios, ours, theirs = [], [], []
            for _ in range(given.pairs):
                torch.set_num_threads(given.cores)
                began = time.perf_counter()
                expected = [
                    published.fitness(space.configuration(genotype), documents, targets) for genotype in genotypes
                ]
                slow = time.perf_counter() - began
                began = time.perf_counter()
                losses_NB = pool.measure(rows_NL, works, Fitness.kl)
                fast = time.perf_counter() - began
                assert np.allclose(losses_NB.sum(1) / given.tokens, expected, rtol=2e-3), (
                    "the two measure different things"
                )
                ratios.append(slow / fast)
                ours.append(given.candidates * given.tokens / fast)
                theirs.append(given.candidates * given.tokens / slow)
    append(
        f"against the published protocol on {os.path.basename(given.model.rstrip('/'))}",
        f"{given.candidates} children x {given.tokens} tokens, {given.device}, {given.cores} cores on both sides, "
        f"{given.pairs} pairs.\n\n"
        + table(
            ["ratio", "range", "candidate tokens/s", "published tokens/s"],
            [
                [
                    f"{statistics.median(ratios):.2f}",
                    f"{min(ratios):.2f} to {max(ratios):.2f}",
                    f"{statistics.median(ours):,.0f}",
                    f"{statistics.median(theirs):,.0f}",
                ]
            ],
        ),
    )


if __name__ == "__main__":
    main()
