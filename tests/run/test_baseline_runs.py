"""Every baseline as a run of its own: what it chooses, by slow measurement, and that its result serves as a search's.

`Slow` measures with whole models of transformers in float64, one block of text at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from searches import WITHOUT_STORE, Material, searching_with
from torch import Tensor
from transformers import AutoModelForCausalLM

from evoray.baselines import BASELINES, Problem, uniform
from evoray.cluster import LocalPool
from evoray.evolve import Purpose, rng
from evoray.fitness import Fitness
from evoray.formats import dense_weight
from evoray.report.tables import inspect
from evoray.run.baseline import run_baseline
from evoray.run.best import SearchResult
from evoray.run.evaluate import evaluate
from evoray.run.export import run_export
from evoray.run.ground import Ground, plan_ground
from evoray.run.named import configuration_of
from evoray.run.search import search
from evoray.settings import BaselineSettings, EvalSettings, ExportSettings
from evoray.space import Genotype
from evoray.store import Manifest, VariantStore
from evoray.tokens import draw_batches

TOKENS = 192

LEVELS = ("uniform", "random", "dp", "owl", "greedy")
SUBLAYERS = ("cosine", "norm-ratio", "l2", "l2-normalised", "perplexity", "kl", "sequential", "random", "uniform")
BLOCKS = ("cosine-window", "brute-force", "cosine", "sequential")
BOTH = ("uniform", "random", "dp", "greedy")

BUDGETS: dict[str, dict[str, Any]] = {
    "levels": {"target_bits": 2.8},
    "both": {"target_bits": 2.3, "allow_drops": True},
    "sublayers": WITHOUT_STORE | {"drop_blocks": 2},
    "blocks": WITHOUT_STORE | {"drop_blocks": 3, "drop_entire_block": True},
}

RUNS = [
    (budget, method)
    for budget, methods in (("levels", LEVELS), ("both", BOTH), ("sublayers", SUBLAYERS), ("blocks", BLOCKS))
    for method in methods
]


def of_search(settings: Any) -> dict[str, Any]:
    """Settings of a search that a baseline has, too."""
    values: dict[str, Any] = settings.model_dump(include=set(BaselineSettings.model_fields) - {"tokens"})
    return values


class Slow:
    """A model and its store."""

    def __init__(self, settings: BaselineSettings, ground: Ground) -> None:
        self.space, self.manifest = ground.space, ground.manifest
        self.store = VariantStore.open(settings.store) if settings.store else None
        self.model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float64).eval()
        self.base = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        draws = rng(settings.seed, 0, Purpose.BASELINE)
        batches = draw_batches(ground.text, settings.tokens, draws, settings.tokens_per_pass)
        self.blocks = [
            torch.from_numpy(ground.text.blocks[block][:cut].astype(np.int64))[None]
            for batch in batches
            for block, cut in zip(batch.blocks, batch.cuts, strict=True)
        ]
        assert sum(ids_1T.shape[1] for ids_1T in self.blocks) == settings.tokens
        self.teacher = [self.logs(ids_1T) for ids_1T in self.blocks]
        self.known: dict[tuple[Genotype, str], float] = {}

    def logs(self, ids_1T: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = self.model(ids_1T, use_cache=False).logits[0].log_softmax(-1)
        return found

    def install(self, configuration: dict[str, str]) -> None:
        """Levels as weights. What a sublayer adds is nothing when its last matrix is zero."""
        self.model.load_state_dict(self.base)
        for site, level in configuration.items():
            module = self.model.get_submodule(site)
            if level == "dropped":
                for name, part in module.named_modules():
                    if name.endswith(("o_proj", "down_proj")):
                        part.weight.data.zero_()
            elif level != "kept":
                assert self.store is not None
                module.weight.data.copy_(dense_weight(self.store.read(site, level), torch.float32))

    def loss(self, genotype: Genotype, fitness: str) -> float:
        if (genotype, fitness) not in self.known:
            self.install(self.space.configuration(genotype))
            total, count = 0.0, 0
            for ids_1T, teacher_TV in zip(self.blocks, self.teacher, strict=True):
                student_TV = self.logs(ids_1T)
                if fitness == "kl":
                    total += float((teacher_TV.exp() * (teacher_TV - student_TV)).sum())
                    count += ids_1T.shape[1]
                else:
                    total -= float(student_TV[:-1].gather(1, ids_1T[0, 1:, None]).sum())
                    count += ids_1T.shape[1] - 1
            self.known[genotype, fitness] = total / count
        return self.known[genotype, fitness]

    def measure(self, genotypes: Sequence[Genotype], fitness: str | None = None) -> np.ndarray:
        return np.array([self.loss(genotype, fitness or "kl") for genotype in genotypes])

    def influences(self, spans: tuple[tuple[str, ...], ...]) -> np.ndarray:
        """What goes into a sublayer is what its norm is given; what comes out is what the next one's is given."""
        self.install({})
        before: dict[str, Tensor] = {}
        behind: dict[str, Tensor] = {}
        hooks = []
        for number, block in enumerate(self.model.model.layers):

            def entered(_: Any, given: Any, name: str = f"model.layers.{number}") -> None:
                before[name] = before[name + ".self_attn"] = given[0][0]

            def between(_: Any, given: Any, name: str = f"model.layers.{number}") -> None:
                behind[name + ".self_attn"] = before[name + ".mlp"] = given[0][0]

            def left(_: Any, __: Any, out: Any, name: str = f"model.layers.{number}") -> None:
                behind[name] = behind[name + ".mlp"] = (out[0] if isinstance(out, tuple) else out).reshape(-1, 64)

            hooks.append(block.input_layernorm.register_forward_pre_hook(entered))
            hooks.append(block.post_attention_layernorm.register_forward_pre_hook(between))
            hooks.append(block.register_forward_hook(left))
        sums = np.zeros((len(spans), 4))
        for ids_1T in self.blocks:
            self.logs(ids_1T)
            for number, span in enumerate(spans):
                x_TD, y_TD = before[span[0]], behind[span[-1]]
                x_T, y_T, change_T = x_TD.norm(dim=1), y_TD.norm(dim=1), (y_TD - x_TD).norm(dim=1)
                cosine_T = torch.cosine_similarity(x_TD, y_TD, dim=1, eps=0)
                turned_T = (y_TD / y_T[:, None] - x_TD / x_T[:, None]).norm(dim=1)
                sums[number] += [float(each_T.sum()) for each_T in (1 - cosine_T, change_T / y_T, change_T, turned_T)]
        for hook in hooks:
            hook.remove()
        return sums / sum(ids_1T.shape[1] for ids_1T in self.blocks)

    def problem(self, settings: BaselineSettings) -> Problem:
        stored = self.manifest if isinstance(self.manifest, Manifest) else None
        layers = self.manifest.layers
        return Problem(
            self.space,
            {name: file.errors for name, file in stored.files.items()} if stored else {},
            {layer.name: layer.outliers for layer in stored.layers} if stored else {},
            {layer.name: layer.block for layer in layers},
            {layer.name: layer.out_features * layer.in_features for layer in layers},
            self.measure,
            self.influences,
            settings.seed,
            settings.candidates or 10_000,
        )


@dataclass(frozen=True)
class Base:
    """A budget with who measures fast and slowly."""

    material: Material
    ground: Ground
    pool: LocalPool
    slow: Slow

    def settings(self, folder: Path, budget: str, method: str) -> BaselineSettings:
        return baseline_settings(self.material, folder, budget, method)


def baseline_settings(material: Material, folder: Path, budget: str, method: str) -> BaselineSettings:
    values = of_search(material.settings(folder, **BUDGETS[budget]))
    count = 20 if method == "random" else None
    return BaselineSettings(**values, method=method, tokens=TOKENS, candidates=count)


@pytest.fixture(scope="module")
def grounds(material: Material, deep: Material) -> Iterator[dict[str, Base]]:
    found = {}
    for budget in BUDGETS:
        chosen = material if budget in ("levels", "both") else deep
        settings, ground = plan_ground(baseline_settings(chosen, Path("unused"), budget, "uniform"))
        found[budget] = Base(chosen, ground, LocalPool(ground.spec), Slow(settings, ground))
    yield found
    for each in found.values():
        each.pool.close()


@dataclass(frozen=True)
class Ran:
    """A baseline that has run."""

    budget: str
    settings: BaselineSettings
    base: Base
    result: SearchResult


@pytest.fixture(scope="module", params=RUNS, ids="-".join)
def ran(
    grounds: dict[str, Base], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ran]:
    budget, method = request.param
    base = grounds[budget]
    settings = base.settings(tmp_path_factory.mktemp("baseline") / "run", budget, method)
    with searching_with(base.pool):
        yield Ran(budget, settings, base, run_baseline(settings))


def test_it_chooses_what_it_does_with_slow_measurement(ran: Ran) -> None:
    slow = ran.base.slow
    expected = BASELINES[ran.settings.method](slow.problem(ran.settings))
    assert ran.result.configuration == slow.space.configuration(expected)
    # None of those that choose says what uniform does: there was something to find.
    if ran.budget in ("levels", "both"):
        assert (ran.settings.method == "uniform") == (expected == uniform(slow.space))


def test_the_budget_is_met_by_hand(ran: Ran) -> None:
    configuration = ran.result.configuration
    gone = [site for site, level in configuration.items() if level == "dropped"]
    if ran.budget in ("levels", "both"):
        sizes = {layer.name: layer.out_features * layer.in_features for layer in ran.base.ground.manifest.layers}
        stays = {layer for layer in sizes if not any(layer.startswith(site + ".") for site in gone)}
        assert configuration.keys() & sizes.keys() == stays
        bits = sum(int(configuration[layer]) * sizes[layer] for layer in stays)
        assert bits <= Fraction(str(ran.settings.target_bits)) * sum(sizes.values())
        assert ran.result.best["bits"] == bits / sum(sizes.values())
    elif ran.budget == "sublayers":
        assert sorted(site.rpartition(".")[2] for site in gone) == ["mlp"] * 2 + ["self_attn"] * 2
    else:
        assert len(gone) == 3
        numbers = sorted(int(site.removeprefix("model.layers.")) for site in gone)
        if ran.settings.method == "cosine-window":
            assert numbers == list(range(numbers[0], numbers[0] + 3))


def test_its_result_has_the_form_of_a_searchs(ran: Ran, tmp_path: Path) -> None:
    best = json.loads((Path(ran.settings.run) / "best.json").read_text())
    assert best == ran.result.best
    assert best["baseline"] == ran.settings.method
    base = ran.base
    with searching_with(base.pool):
        # It serves as the start of a search, and as that search's result where there is no generation.
        settings = base.material.settings(tmp_path, init=ran.settings.run, generations=0, **BUDGETS[ran.budget])
        theirs = search(settings).best
    assert theirs["configuration"] == best["configuration"]
    assert set(best) == set(theirs) | {"baseline"}
    for name in ("fitness", "digests", "versions", "device", "held_out"):
        assert set(best[name]) == set(theirs[name])
    for name in ("found", "uniform"):
        assert best["held_out"]["candidates"][name] == theirs["held_out"]["candidates"][name]
    assert list(best["held_out"]["candidates"]) == ["found", "uniform"]
    assert (best["model"], best["store"], best["seed"]) == (theirs["model"], theirs["store"], theirs["seed"])
    assert configuration_of(ran.settings.run) == best["configuration"]
    assert inspect(ran.settings.run)[1]["best"] == best


def test_once_found_it_is_not_measured_again(ran: Ran) -> None:
    run = Path(ran.settings.run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with searching_with(None):
        again = run_baseline(ran.settings)
    assert again == ran.result
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    changed = {path for path in before | after if before.get(path) != after.get(path)}
    assert {path.name for path in changed if path.parent != run / "fence"} <= {"settings.yaml"}


@pytest.mark.parametrize(("budget", "method"), [("levels", "dp"), ("sublayers", "cosine"), ("blocks", "cosine-window")])
def test_its_run_can_be_judged_and_exported(
    grounds: dict[str, Base], tmp_path: Path, budget: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = grounds[budget]
    settings = base.settings(tmp_path / "run", budget, method)
    with searching_with(base.pool):
        result = run_baseline(settings)
    judged = evaluate(
        EvalSettings(
            configuration=settings.run,
            data=settings.data,
            role="judge",
            eval_tokens=512,
            sequence_length=64,
            tokens_per_pass=128,
            workers=0,
        )
    )
    found = result.best["held_out"]["candidates"]["found"]
    assert (judged.kl, judged.perplexity) == (found["kl"], found["perplexity"])
    out = run_export(ExportSettings(configuration=settings.run, out=str(tmp_path / "out")))
    exported = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float64).eval()
    base.slow.install(result.configuration)
    ids_1T = base.slow.blocks[0]
    with torch.no_grad():
        logs_TV = exported(ids_1T, use_cache=False).logits[0].log_softmax(-1)
    assert torch.allclose(logs_TV, base.slow.logs(ids_1T), atol=1e-6)


def test_dp_is_the_least_sum_of_errors_of_all_genotypes(grounds: dict[str, Base], tmp_path: Path) -> None:
    base = grounds["levels"]
    with searching_with(base.pool):
        result = run_baseline(base.settings(tmp_path, "levels", "dp"))
    manifest, space = base.ground.manifest, base.ground.space
    assert isinstance(manifest, Manifest)
    cost, error = np.zeros(1, dtype=np.int64), np.zeros(1)
    sizes = {layer.name: layer.out_features * layer.in_features for layer in manifest.layers}
    for gene in space.genes:
        # Half a million genotypes, those of the next gene's levels side by side.
        costs = [sum(int(level) * sizes[site] for site in gene.sites) for level in gene.levels]
        errors = [sum(manifest.files[site].errors[level] for site in gene.sites) for level in gene.levels]
        cost = (cost[:, None] + np.array(costs)).ravel()
        error = (error[:, None] + np.array(errors)).ravel()
    assert len(cost) == 3 ** len(space.genes) > 500_000
    legal = cost * 10 <= 28 * sum(sizes.values())
    best = int(np.argmin(np.where(legal, error, np.inf)))
    levels = np.unravel_index(best, (3,) * len(space.genes))
    assert result.configuration == space.configuration([int(level) for level in levels])


def test_sequential_is_the_obvious_loop(grounds: dict[str, Base], tmp_path: Path) -> None:
    base = grounds["sublayers"]
    with searching_with(base.pool):
        result = run_baseline(base.settings(tmp_path, "sublayers", "sequential"))
    sites, gone = list(base.ground.space.sites), list[str]()
    while len(gone) < 4:
        full = {kind for kind in ("self_attn", "mlp") if sum(site.endswith(kind) for site in gone) == 2}
        open_ = [site for site in sites if site not in gone and site.rpartition(".")[2] not in full]
        losses = {site: base.slow.loss(tuple(int(each not in (*gone, site)) for each in sites), "kl") for site in open_}
        gone.append(min(losses, key=lambda site: losses[site]))
    assert {site for site, level in result.configuration.items() if level == "dropped"} == set(gone)


def test_brute_force_is_the_best_of_all(grounds: dict[str, Base], tmp_path: Path) -> None:
    base = grounds["blocks"]
    with searching_with(base.pool):
        result = run_baseline(base.settings(tmp_path, "blocks", "brute-force"))
    choices = [tuple(int(block not in gone) for block in range(6)) for gone in combinations(range(6), 3)]
    best = min(choices, key=lambda genotype: base.slow.loss(genotype, "kl"))
    assert result.configuration == base.ground.space.configuration(best)
    assert result.best["candidate_tokens"] == len(choices) * TOKENS
    assert Fitness(result.best["fitness"]["name"]) is Fitness.kl


def test_inverted_brute_force_is_the_worst_of_all(grounds: dict[str, Base], tmp_path: Path) -> None:
    base = grounds["blocks"]
    settings = base.settings(tmp_path, "blocks", "brute-force").model_copy(update={"invert": True})
    with searching_with(base.pool):
        result = run_baseline(settings)
    choices = [tuple(int(block not in gone) for block in range(6)) for gone in combinations(range(6), 3)]
    worst = max(choices, key=lambda genotype: base.slow.loss(genotype, "kl"))
    assert result.configuration == base.ground.space.configuration(worst)
