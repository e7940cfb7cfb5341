"""A population against the published protocol, written plainly.

Holds: `PublishedProtocol`, `protocol_row`.

The published search keeps every variant as a dense float16 file, reads each changed layer from disk for every
candidate, keeps the teacher's full logits on the host, and runs one document at a time. Here the same candidates on the
same tokens go through that and through a pool of workers, interleaved in one run, all cores on both sides: one process
with a thread per core there, a worker of one thread per core here.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch

import evoray
from benchmarks.clock import Clock, interleaved
from benchmarks.population import offspring
from evoray.cluster.ray_pool import RayPool
from evoray.evolve import Purpose, rng
from evoray.fitness import Fitness
from evoray.formats import dense_weight
from evoray.model import load_model
from evoray.run.shapes import Shapes
from evoray.run.teacher import teach_text
from evoray.space import Budget, Measure, Tie, quantization_space
from evoray.store import VariantStore
from evoray.tokens import TokenText, draw_batches


class PublishedProtocol:
    """One model whose layers are read from dense files, one document at a time.

    Args:
        model: id or folder.
        store: the variants.
        used: (layer, level) of those that are written out, as `<layer>/<level>.pth` in float16.
        folder: where to.
        device: of the model.
    """

    def __init__(
        self, model: str, store: VariantStore, used: Collection[tuple[str, str]], folder: Path, device: str
    ) -> None:
        self.model = load_model(model, device=device)
        self.device, self.folder = device, folder
        self.state: dict[str, str] = {}
        for layer, level in used:
            (folder / layer).mkdir(parents=True, exist_ok=True)
            torch.save(dense_weight(store.read(layer, level), torch.float16), folder / layer / f"{level}.pth")

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


def protocol_row(
    model: str,
    store: VariantStore,
    text: TokenText,
    folder: Path,
    *,
    candidates: int,
    tokens: int,
    cores: int,
    device: str,
    clock: Clock,
    pairs: int,
) -> list[str]:
    """Measures both sides.

    Args:
        model: id or folder.
        store: its variants at bits.
        text: blocks of one length.
        folder: where the dense files go.
        candidates, tokens: children of one parent, and on how many tokens.
        cores: on both sides.
        device: "cpu", or that of one worker.
        clock, pairs: by which time, how many times.
    """
    space = quantization_space(store.manifest, Budget(Measure.BITS, 3.0), Tie.NONE)
    genotypes = offspring(space, candidates)
    batches = draw_batches(text, tokens, rng(0, 1, Purpose.BATCHES), 2048)
    documents = [
        torch.from_numpy(text.blocks[block][:cut].astype(np.int64))
        for batch in batches
        for block, cut in zip(batch.blocks, batch.cuts, strict=True)
    ]
    used = {pair for genotype in genotypes for pair in space.configuration(genotype).items()}
    published = PublishedProtocol(model, store, used, folder / "dense", device)
    torch.set_num_threads(cores)
    targets = published.teach(documents)
    workers = 0 if device != "cpu" else cores
    with evoray.open_pool(model, str(store.location), workers=workers, device=device) as pool:
        works = teach_text(pool, text, shapes=Shapes()).works(batches)
        rows_NL = space.rows(genotypes)
        # Once each beforehand: files in the page cache there, variants ready here.
        pool.measure(rows_NL, works, Fitness.kl)
        processes = [actor.pid for actor in pool._actors if actor.pid] if isinstance(pool, RayPool) else []

        def publish() -> list[float]:
            torch.set_num_threads(cores)
            return [published.fitness(space.configuration(genotype), documents, targets) for genotype in genotypes]

        def check(found_NB: np.ndarray, expected: list[float]) -> None:
            assert np.allclose(found_NB.sum(1) / tokens, expected, rtol=2e-3), "the two measure different things"

        timed = interleaved(
            pairs,
            lambda: clock.time(lambda: pool.measure(rows_NL, works, Fitness.kl), processes),
            lambda: clock.time(publish),
            check,
        )
    return [*timed.cells(candidates * tokens), "", ""]
