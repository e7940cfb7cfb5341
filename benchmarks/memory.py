"""What a driver and a node take of memory, with 1 and with 8 workers: the variants of a store are there once.

    python -m benchmarks.memory [--actors 1 8]

A random Llama of 91 M parameters with variants at 2 to 8 bits, made for this. Workers measure candidates that use them
all; then the proportional set size (PSS) of every process is read from `/proc/PID/smaps_rollup`: a page that several
processes have in common counts in each for its part, so that sums over processes are true. The same of the store's
files alone, from `/proc/PID/smaps`, shows how often the node holds them: the sum of the resident sizes (RSS) counts a
file for every worker that maps it, the sum of the PSS once.

Each number of workers has a driver's process of its own, and a Ray of its own.
"""

import argparse
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import evoray
from benchmarks.large import random_llama, random_text
from benchmarks.log import append, table
from evoray.cluster.ray_pool import RayPool
from evoray.cluster.worker import WorkerSpec
from evoray.evolve import Purpose, rng
from evoray.fitness import Fitness
from evoray.run.shapes import Shapes
from evoray.run.teacher import teach_text
from evoray.settings import VARIANT_BYTES
from evoray.store import VariantStore
from evoray.tokens import draw_batches

SHAPE: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "vocab_size": 4096,
    "max_position_embeddings": 2048,
}
"""85 M weights in layers and 6 M in embedding and head: a store of seven levels is larger than the checkpoint."""

LEVELS = ("2", "3", "4", "5", "6", "7", "8")
MIB = 1 << 20


@dataclass(frozen=True)
class Taken:
    """Bytes of a process, or of some.

    Attributes:
        rss, pss: resident, and proportional.
        anonymous: of `pss`, what no file stands behind: models, ready variants, what libraries allocate.
    """

    rss: int = 0
    pss: int = 0
    anonymous: int = 0

    def __add__(self, other: "Taken") -> "Taken":
        return Taken(self.rss + other.rss, self.pss + other.pss, self.anonymous + other.anonymous)


@dataclass(frozen=True)
class Figures:
    """A node at work.

    Attributes:
        actors: how many workers.
        driver, workers, others: the driver, all workers, Ray's own processes.
        mapped: of `workers`, the files of the store.
    """

    actors: int
    driver: Taken
    workers: Taken
    others: Taken
    mapped: Taken

    def row(self, stored: int) -> list[str]:
        """The table's line; `stored` is bytes of the store's files of layers."""
        node = self.driver + self.workers + self.others
        return [
            str(self.actors),
            _mib(self.driver.pss),
            _mib(self.workers.pss // self.actors),
            _mib(self.workers.anonymous // self.actors),
            _mib(self.workers.pss),
            _mib(self.mapped.rss),
            _mib(self.mapped.pss),
            f"{self.mapped.pss / stored:.3f}",
            _mib(self.others.pss),
            _mib(node.pss),
        ]


HEADER = [
    "workers",
    "driver",
    "a worker",
    "of it no file's",
    "all workers",
    "store mapped, sum of RSS",
    "sum of PSS",
    "of the store's size",
    "Ray's own",
    "the node",
]


def _mib(count: int) -> str:
    return f"{count / MIB:,.0f}"


def whole(process: int) -> Taken:
    """What a process takes."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text("ascii").splitlines()
    found = {words[0]: 1024 * int(words[1]) for line in lines[1:] if (words := line.split())}
    return Taken(found["Rss:"], found["Pss:"], found["Pss_Anon:"])


def files_under(process: int, folder: str) -> Taken:
    """What it takes by mapping files of a folder."""
    rss = pss = 0
    inside = False
    for line in Path(f"/proc/{process}/smaps").read_text("utf-8", "replace").splitlines():
        words = line.split(maxsplit=5)
        if not words[0].endswith(":"):  # a mapping begins: addresses, rights, offset, device, inode, path
            inside = len(words) == 6 and words[5].startswith(f"{folder}/")
        elif inside and words[0] == "Rss:":
            rss += 1024 * int(words[1])
        elif inside and words[0] == "Pss:":
            pss += 1024 * int(words[1])
    return Taken(rss, pss)


def node(model: str, store: str, actors: int, candidates: int, tokens: int, variants: int) -> Figures:
    """Lets workers measure candidates of all variants in this process's pool, and looks at the memory of all.

    Args:
        model: folder.
        store: folder of the variants.
        actors: how many workers, of one thread.
        candidates: with a random level for every layer.
        tokens: of the one batch.
        variants: bytes that each worker may take for ready variants.
    """
    manifest = VariantStore.open(store).manifest
    text = random_text(SHAPE["vocab_size"], tokens, tokens)
    draws = np.random.default_rng(0)
    rows_NL = draws.integers(0, len(LEVELS), (candidates, len(manifest.layers))).astype(np.int8)
    spec = WorkerSpec(model=model, store=store, device="cpu", threads=1, variant_bytes=variants)
    with RayPool(spec, workers=f"{actors}..{actors}", hung_after=3600.0) as pool:
        batches = draw_batches(text, tokens, rng(0, 1, Purpose.BATCHES), tokens)
        works = teach_text(pool, text, shapes=Shapes()).works(batches)
        losses_NB = pool.measure(rows_NL, works, Fitness.kl)
        assert np.isfinite(losses_NB).all()
        workers = [actor.pid for actor in pool._actors if actor.pid]
        assert len(workers) == actors
        others = [child.pid for child in psutil.Process().children(recursive=True) if child.pid not in workers]
        found = Figures(
            actors=actors,
            driver=whole(os.getpid()),
            workers=sum(map(whole, workers), Taken()),
            others=sum(map(whole, others), Taken()),
            mapped=sum((files_under(worker, store) for worker in workers), Taken()),
        )
    return found


def main() -> None:
    """Parses arguments, measures, logs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--candidates", type=int, default=128, help="with a random level for every layer")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--variant-memory", type=int, default=512, help="MiB for ready variants, of each worker")
    parser.add_argument("--no-log", action="store_true")
    given = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        model, store = random_llama(Path(folder) / "model", SHAPE, "cpu"), str(Path(folder).resolve() / "store")
        evoray.build(model=model, store=store, method="rtn", levels=LEVELS, group_size=128, threads=1)
        weights = sum(path.stat().st_size for path in Path(model).glob("*.safetensors"))
        stored = sum(path.stat().st_size for path in (Path(store) / "layers").iterdir())
        for actors in given.actors:
            # A process of its own, begun anew: this one built the store.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as driver:
                arguments = (model, store, actors, given.candidates, given.tokens, given.variant_memory * MIB)
                lines.append(driver.submit(node, *arguments).result().row(stored))
    body = (
        f"MiB, proportional set sizes where nothing else is said. A random Llama of {weights / MIB:,.0f} MiB in "
        f"bfloat16 (float32 in workers on CPUs) with variants at {LEVELS[0]} to {LEVELS[-1]} bits, {stored / MIB:,.0f} "
        f"MiB; {given.candidates} candidates with a random level for every layer, on {given.tokens} tokens; ready "
        f"variants take up to {given.variant_memory} MiB of each worker, where {VARIANT_BYTES // MIB:,} are usual.\n\n"
        + table(HEADER, lines)
    )
    if given.no_log:
        print(body)
    else:
        append("memory of a driver and its node", body)


if __name__ == "__main__":
    main()
