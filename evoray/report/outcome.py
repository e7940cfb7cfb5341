"""The last line of a verb: what came of it, and where it is. Whoever looks at a log looks there first.

Holds: `result_outcome`, `sweep_outcome`, `build_outcome`.
"""

from typing import TYPE_CHECKING

from evoray.run.best import SearchResult
from evoray.run.directory import BEST
from evoray.sizes import human_bytes
from evoray.store import Manifest

if TYPE_CHECKING:
    from evoray.run.sweep import Sweep


def result_outcome(result: SearchResult) -> str:
    """Of a search or a baseline: what it costs, its KL divergence in nats per token, why it ended, where it lies."""
    best = result.best
    kl = best["held_out"]["candidates"]["found"]["kl"]
    return (
        f"done: {best['bits']:.4f} bits, {human_bytes(best['size'])}, KL {kl:.5f} nats per token on held-out text; "
        f"{result.reason}; the result is in {result.run}/{BEST}"
    )


def sweep_outcome(found: "Sweep") -> str:
    """Of a sweep: the same in short for each budget."""
    results = "; ".join(
        f"{result.best['bits']:.4f} bits with KL {result.best['held_out']['candidates']['found']['kl']:.5f}"
        for result in found.results.values()
    )
    return f"done: {results} nats per token on held-out text; the results are in {found.run}"


def build_outcome(manifest: Manifest, store: str) -> str:
    """Of a build."""
    return f"done: {len(manifest.layers)} layers at {len(manifest.levels)} levels; the variants are in {store}"
