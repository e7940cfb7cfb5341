"""The whole job on the embedded model: build, search, judge.

Holds: `run_demo`.
"""

from pathlib import Path

from evoray.run.best import SearchResult
from evoray.run.build import run_build
from evoray.run.progress import Progress
from evoray.run.search import search
from evoray.settings import BuildSettings, SearchSettings

EMBEDDED = "embedded"


def run_demo(folder: str, workers: int | None, progress: Progress) -> SearchResult:
    """Builds variants of the embedded model by GPTQ and searches at 3 bits. About two minutes on two cores.

    Args:
        folder: where store and run go. What lies there already is not done again.
        workers: as in `SearchSettings`.
        progress: told what happens.
    """
    store, run = str(Path(folder) / "store"), str(Path(folder) / "run")
    progress.note(f"building variants of the embedded model (2 to 6 bits, GPTQ) in {store}")
    run_build(
        BuildSettings(
            model=EMBEDDED, store=store, data=EMBEDDED, group_size=64, sequence_length=256, hessian_tokens=16384
        ),
        progress,
    )
    progress.note(f"searching the best 3-bit configuration in {run}")
    settings = SearchSettings(
        model=EMBEDDED,
        store=store,
        data=EMBEDDED,
        run=run,
        target_bits=3.0,
        sequence_length=256,
        generations=20,
        offspring=16,
        survivors=(4, 2, 1),
        tokens=(1024, 4096, 8192),
        search_tokens=32768,
        judge_tokens=32768,
        workers=workers,
    )
    return search(settings, progress)
