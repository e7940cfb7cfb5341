"""A whole search of a second: a tiny model with a store and a text, settings for it, and what a run must have in common
with another one to be the same.

`material` makes model, store and text; `Material.settings` the settings, `Material.with_store` another store;
`WITHOUT_STORE` changes them to only drop; `bits_of` reads a run directory; `killed_at` ends a driver at a write; `Told`
keeps what a search tells.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_model

from evoray.cluster import Pool, WorkerSpec
from evoray.embedded import model_path
from evoray.run.build import run_build
from evoray.run.journal import GenerationRow, Journal
from evoray.run.progress import Progress
from evoray.settings import BuildSettings, SearchSettings
from evoray.store import Location


@dataclass(frozen=True)
class Material:
    """Folders of a model and a store, and a text file."""

    model: str
    store: str
    text: str

    def settings(self, run: str | Path, **changes: Any) -> SearchSettings:
        """Generation 0 and four more, by the paper's rules, in this process, about 6000 candidate tokens."""
        usual: dict[str, Any] = {
            **PAPERS,
            "model": self.model,
            "store": self.store,
            "data": self.text,
            "run": str(run),
            "target_bits": 2.8,
            "sequence_length": 64,
            "generations": 4,
            "offspring": 8,
            "initial_candidates": 6,
            "survivors": (2, 1),
            "tokens": (64, 256),
            "search_tokens": 2048,
            "judge_tokens": 512,
            "tokens_per_pass": 128,
            "workers": 0,
        }
        return SearchSettings(**usual | changes)

    def with_store(self, folder: Path, **building: Any) -> Material:
        """The same model and text with another store, built without text."""
        usual: dict[str, Any] = {"model": self.model, "store": str(folder), "threads": 1}
        run_build(BuildSettings(**usual | building))
        return replace(self, store=str(folder))

    @property
    def spec(self) -> WorkerSpec:
        """Workers of these searches."""
        return WorkerSpec(model=self.model, store=self.store, device="cpu")


PAPERS: dict[str, Any] = {"race": "fixed", "proposals": "mutation"}
"""The paper's rules: what is measured, and how much of it, is known beforehand."""

USUAL: dict[str, Any] = {"race": "sequential", "proposals": "learned"}
"""What searches do by default."""

WITHOUT_STORE: dict[str, Any] = {"store": None, "target_bits": None}
"""Changes of settings for a search that only drops."""


def material(folder: Path, blocks: int = 3) -> Material:
    """Makes all of it in a folder."""
    model = folder / "model"
    tiny_model("llama", vocab_size=264, max_position_embeddings=128, num_hidden_layers=blocks).save_pretrained(model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(model_path()) / name, model)
    draws = np.random.default_rng(0)
    words = ["".join(draws.choice(list("abcdefghij"), draws.integers(2, 8))) for _ in range(200)]
    documents = [json.dumps({"text": " ".join(draws.choice(words, 30))}) for _ in range(200)]
    (folder / "text.jsonl").write_text("\n".join(documents) + "\n", encoding="utf-8")
    made = Material(str(model), "", str(folder / "text.jsonl"))
    return made.with_store(folder / "store", method="rtn", levels=("2", "3", "4"), group_size=32, scales="minmax")


def bits_of(run: str | Path) -> dict[str, Any]:
    """Everything of a run that must not depend on who ran it, when, and how often it was interrupted."""
    folder = Location.parse(run)
    journal = Journal(folder)
    generations = []
    for row in journal.rows:
        data = (folder / "evaluations" / row.evaluations).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row.sha256
        generations.append(
            {key: value for key, value in vars(row).items() if key not in ("seconds", "lost_workers", "busy_seconds")}
            | {"batches": journal.batches(row.generation).to_pylist()}
        )
    best = json.loads((folder / "best.json").read_bytes())
    return {"generations": generations, "best": {key: best[key] for key in best if key != "seconds"}}


def bits_anywhere(run: str | Path) -> dict[str, Any]:
    """The same without what names the places of store and run."""
    bits = bits_of(run)
    return {**bits, "best": {key: value for key, value in bits["best"].items() if key not in ("store", "command")}}


class _Kept:
    """A pool that a search may use but not close."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def __enter__(self) -> _Kept:
        return self

    def __exit__(self, *_: Any) -> None:
        return None


@contextmanager
def searching_with(pool: Pool | None) -> Iterator[None]:
    """Searches and baselines inside work with this pool, and leave it open; None: opening a pool is a mistake."""

    def hand_out(settings: SearchSettings, _spec: object, _memory: object, progress: Progress) -> _Kept:
        assert pool is not None, "a pool was opened"
        progress.starting(settings.workers)(1.0)
        return _Kept(pool)

    with pytest.MonkeyPatch.context() as patch:
        for verb in ("search", "baseline"):
            patch.setattr(f"evoray.run.{verb}.started_pool", hand_out)
        yield


class KilledError(BaseException):
    """Nothing in the package may catch it, as nothing catches a killed process."""


@contextmanager
def killed_at(name: str, number: int, *, after: bool) -> Iterator[None]:
    """Who writes a file of this name inside is killed the so-manieth time (from 0), before or after the write."""
    write, seen = Location.write_bytes, list[str]()

    def counted(self: Location, data: bytes) -> None:
        now = self.name == name and len(seen) == number
        seen.extend([self.name] if self.name == name else [])
        if now and not after:
            raise KilledError
        write(self, data)
        if now:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Location, "write_bytes", counted)
        try:
            yield
        except KilledError:
            return
    raise AssertionError(f"nobody was killed: {name} was written {len(seen)} times")


class Told(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.logs: list[str] = []
        self.generations: list[int] = []
        self.shares: dict[str, list[float]] = {}
        self.steps: dict[str, list[float]] = {}

    def note(self, text: str) -> None:
        self.notes.append(text)

    def stage(self, name: str) -> Callable[[float], None]:
        return self.shares.setdefault(name, []).append

    def step(self, name: str) -> Callable[[float], None]:
        return self.steps.setdefault(name, []).append

    def keep_log(self, name: str, data: bytes) -> None:
        self.logs.append(name)

    def generation(self, row: GenerationRow, generations: int) -> None:
        self.generations.append(row.generation)
