"""A search of every kind of budget: what each of its candidates costs, counted by hand, and that it goes on to the bit.

Whatever kind it is, candidates are counted by `Counter`: tensor by tensor of the checkpoint, with the weights of the
store.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from searches import USUAL, WITHOUT_STORE, Material, bits_of, killed_at, searching_with

from evoray.cluster import LocalPool
from evoray.formats import dense_weight
from evoray.run import search as driver
from evoray.run.journal import Journal
from evoray.run.plan import SearchPlan, plan_search
from evoray.run.search import search
from evoray.settings import SearchSettings
from evoray.space import Genotype
from evoray.store import Location, VariantStore

GROUP = 32
"""Group size of all stores here."""


@dataclass
class Tally:
    """What a configuration costs, counted tensor by tensor of the checkpoint's file."""

    weights: int = 0
    code_bits: int = 0
    bytes: int = 0
    size: int = 0
    zeros: int = 0
    gone: dict[str, int] = field(default_factory=lambda: {"self_attn": 0, "mlp": 0})

    def costs(self) -> dict[str, Any]:
        """As best.json has them."""
        return {
            "bits": self.code_bits / self.weights,
            "bpw": 8 * self.bytes / self.weights,
            "bytes": self.bytes,
            "size": self.size,
            "sparsity": self.zeros / self.weights,
        }


class Counter:
    """Counts configurations of a model and a store by hand, with weights that are really read."""

    def __init__(self, model: str, store: str | None) -> None:
        self._tensors = load_file(Path(model) / "model.safetensors")
        self._store = VariantStore.open(store) if store else None
        self._levels: dict[tuple[str, str], tuple[int, int, int]] = {}

    def tally(self, configuration: dict[str, str]) -> Tally:
        found = Tally()
        gone = [site + "." for site, level in configuration.items() if level == "dropped"]
        for name, tensor in self._tensors.items():
            layer = name.startswith("model.layers.") and tensor.ndim == 2
            found.weights += layer * tensor.numel()
            if any(name.startswith(site) for site in gone):
                found.zeros += layer * tensor.numel()
                # One layer for each sublayer.
                found.gone["self_attn"] += name.endswith("self_attn.q_proj.weight")
                found.gone["mlp"] += name.endswith("mlp.up_proj.weight")
                continue
            code_bits, stored, zeros, records = 8 * tensor.nbytes, tensor.nbytes, 0, 0
            if layer and self._store is not None:
                site = name.removesuffix(".weight")
                code_bits, stored, zeros = self._level(site, configuration[site])
                records = next(each.record_bytes for each in self._store.manifest.layers if each.name == site)
            if layer:
                found.code_bits += code_bits
                found.bytes += stored
                found.zeros += zeros
            found.size += stored + records
        return found

    def _level(self, layer: str, level: str) -> tuple[int, int, int]:
        """Code bits, bytes and zeros of a layer at a level: packed codes, scales of 4 bytes, or mask and values."""
        if (layer, level) in self._levels:
            return self._levels[layer, level]
        assert self._store is not None
        kind = self._store.manifest.kind
        weight_OI = dense_weight(self._store.read(layer, level), torch.float32)
        (rows, columns), count = weight_OI.shape, weight_OI.numel()
        bits, times, share = level.partition("x")
        coded = kind == "quantization" or (kind == "joint" and "." not in bits)
        scales = 4 * rows * (columns // GROUP)
        if coded and not times:
            found = int(bits) * count, rows * 4 * math.ceil(columns * int(bits) / 32) + scales, 0
        elif coded:
            # Codes that are kept may be zero, too: these can't be told from the weight.
            zeros = math.ceil(count * Fraction(share))
            assert zeros <= int((weight_OI == 0).sum())
            kept = count - zeros
            found = int(bits) * kept, math.ceil(count / 8) + math.ceil(kept * int(bits) / 8) + scales, zeros
        else:
            zeros = int((weight_OI == 0).sum())
            found = 32 * (count - zeros), math.ceil(count / 8) + 4 * (count - zeros), zeros
        self._levels[layer, level] = found
        return found


@dataclass(frozen=True)
class Case:
    """A search that has run once, with the pool that it ran on."""

    name: str
    settings: Callable[[Path], SearchSettings]
    plan: SearchPlan
    counter: Counter
    run: Path

    def candidates(self) -> list[Genotype]:
        """All that were measured, each once."""
        journal = Journal(Location.parse(str(self.run)))
        found = [tuple(entry["genotype"]) for row in journal.rows for entry in journal.evaluations(row).to_pylist()]
        return list(dict.fromkeys(found))


DROPS: dict[str, Any] = WITHOUT_STORE | {"initial_candidates": 4}
POPULATION: dict[str, Any] = {"population": 2, "survivors": (3, 2)}

# name -> store, changes of settings
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sparsity in steps": ("steps", {"target_bits": None, "target_sparsity": 0.5}),
    "sparsities": ("sparsities", {"target_bits": None, "target_sparsity": 0.52, "mutation": "budget"}),
    "sublayers": ("none", {**DROPS, **POPULATION, "drop_blocks": 2}),
    "blocks": ("none", {**DROPS, "drop_blocks": 2, "drop_entire_block": True}),
    "pairs": ("none", {**DROPS, "drop_blocks": 1, "drop_two_consecutive": True}),
    "share by dropping": ("none", {**DROPS, "target_sparsity": 0.4, "allow_drops": True}),
    "joint bpw": ("joint", {"target_bits": None, "target_bpw": 3.8}),
    "joint size": ("joint", {**POPULATION, "target_bits": None, "target_size": 200_000}),
    "bits and drops": ("bits", {"target_bits": None, "target_size": 150_000, "allow_drops": True, "init": "dp"}),
    "bits beside drops": ("bits", {**POPULATION, "target_bits": 2.8, "drop_blocks": 2, "init": "dp"}),
}


@pytest.fixture(scope="module")
def stores(deep: Material, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Material]:
    folder = tmp_path_factory.mktemp("stores")
    sparse: dict[str, Any] = {"kind": "sparsity", "method": "magnitude"}
    joint = {"kind": "joint", "method": "magnitude", "group_size": GROUP, "scales": "minmax"}
    return {
        "none": deep,
        "bits": deep,
        "steps": deep.with_store(folder / "steps", **sparse, target_sparsity=0.5, steps=3, step_weights=300),
        "sparsities": deep.with_store(folder / "sparsities", **sparse, levels=("0.3", "0.45", "0.6", "0.7")),
        "joint": deep.with_store(folder / "joint", **joint, levels=("2", "3", "4", "4x0.6", "0.5")),
    }


@pytest.fixture(scope="module", params=list(CASES))
def case(
    stores: dict[str, Material], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Case]:
    kind, changes = CASES[request.param]

    def settings(run: Path) -> SearchSettings:
        return stores[kind].settings(run, **USUAL | changes)

    run = tmp_path_factory.mktemp("kinds") / "run"
    plan = plan_search(settings(run))
    with LocalPool(plan.ground.spec) as pool, searching_with(pool):
        search(settings(run))
        counter = Counter(stores[kind].model, plan.settings.store)
        yield Case(request.param, settings, plan, counter, run)


def test_every_candidate_is_within_the_budget_by_hand(case: Case) -> None:
    space, settings = case.plan.ground.space, case.plan.settings
    candidates = case.candidates()
    assert len(candidates) >= (3 if case.name == "pairs" else 12)
    dropping = 0
    for genotype in candidates:
        tally = case.counter.tally(space.configuration(genotype))
        attn, mlp = tally.gone.values()
        dropping += attn + mlp > 0
        if settings.drop_blocks is not None:
            size = 2 if settings.drop_two_consecutive else 1
            assert (attn, mlp) == (settings.drop_blocks * size,) * 2
        elif not settings.allow_drops:
            assert (attn, mlp) == (0, 0)
        if settings.drop_entire_block or settings.drop_two_consecutive:
            gone = {site for site, level in space.configuration(genotype).items() if level == "dropped"}
            assert all(site.removeprefix("model.layers.").isdecimal() for site in gone)
        if settings.drop_two_consecutive:
            first = min(int(site.rpartition(".")[2]) for site in gone)
            assert first % 2 == 0
            assert gone == {f"model.layers.{first}", f"model.layers.{first + 1}"}
        if case.name == "sparsity in steps":
            assert 2 * tally.zeros == tally.weights
        elif settings.target_sparsity is not None:
            assert tally.zeros >= Fraction(str(settings.target_sparsity)) * tally.weights
        if settings.target_bpw is not None:
            assert 8 * tally.bytes <= Fraction(str(settings.target_bpw)) * tally.weights
        if settings.target_size is not None:
            assert tally.size <= settings.target_size
        if settings.target_bits is not None:
            # The levels keep their own budget, as if what is dropped were there.
            levels = {
                site: gene.levels[index]
                for gene, index in zip(space.genes, genotype, strict=True)
                for site in gene.sites
                if gene.levels != ("dropped", "kept")
            }
            whole = case.counter.tally(levels)
            assert whole.code_bits <= Fraction(str(settings.target_bits)) * whole.weights
            assert tally.code_bits < whole.code_bits
    if settings.allow_drops:
        assert dropping > 2


def test_what_is_dropped_frees_bytes_for_others(case: Case) -> None:
    settings = case.plan.settings
    freeing = []
    for genotype in case.candidates():
        configuration = case.plan.ground.space.configuration(genotype)
        if "dropped" not in configuration.values():
            continue
        # Everything back at the lowest level would be too much: what stays has taken the room.
        stays = {site: level for site, level in configuration.items() if level not in ("dropped", "kept")}
        layers = [] if case.plan.settings.store is None else [layer.name for layer in case.plan.ground.manifest.layers]
        back = case.counter.tally(dict.fromkeys(layers, "2") | stays)
        freeing.append(settings.target_size is not None and back.size > settings.target_size)
    assert any(freeing) == (case.name == "bits and drops")


def test_results_have_the_costs_counted_by_hand(case: Case) -> None:
    rows = Journal(Location.parse(str(case.run))).rows
    best = json.loads((case.run / "best.json").read_text())
    space = case.plan.ground.space
    for row in rows:
        costs = case.counter.tally(space.configuration(row.winner)).costs()
        assert {name: getattr(row, name) for name in costs if name != "bytes"} == {
            name: value for name, value in costs.items() if name != "bytes"
        }
    costs = case.counter.tally(best["configuration"]).costs()
    assert best["configuration"] == space.configuration(rows[-1].winner)
    assert {name: best[name] for name in costs} == costs
    found = best["held_out"]["candidates"]["found"]
    assert {name: found[name] for name in costs} == costs


def test_an_interrupted_search_ends_as_a_whole_one(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find, found = driver.find_by_baseline, list[str]()

    def counted(name: str, *args: Any, **how: Any) -> Any:
        found.append(name)
        return find(name, *args, **how)

    monkeypatch.setattr(driver, "find_by_baseline", counted)
    rows = Journal(Location.parse(str(case.run))).rows
    assert len(rows) >= 4
    # So few tokens seldom leave a race without doubt, so the parent may stay; what is measured changes all the same.
    assert len({row.sha256 for row in rows}) == len(rows)
    settings = case.settings(tmp_path)
    with killed_at("generations.parquet", 1, after=False):
        search(settings)
    with killed_at("generations.parquet", 1, after=True):
        search(settings)
    assert len(Journal(Location.parse(str(tmp_path))).rows) == 3
    search(settings)
    assert bits_of(tmp_path) == bits_of(case.run)
    assert found == ([] if settings.init is None else [settings.init])
