"""Whole builds of tiny models: what is in the store, and that an interrupted build ends with the same bytes."""

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import VOCABULARY, tiny_model

from evoray.cluster.rota import Rota
from evoray.compress import HessianInputs, Method, Quantization, build, store_header
from evoray.compress.builder import build_by
from evoray.compress.gptq import gptq
from evoray.compress.hessian import add_sums
from evoray.compress.recipe import HESSIAN_SHARDS
from evoray.compress.work import BuildWork
from evoray.errors import EvorayError, UserError
from evoray.formats import dense_weight
from evoray.model import ModelAdapter, checkpoint_facts
from evoray.store import StoreWriter, VariantStore
from evoray.tokens import TokenText

GPTQ = Quantization(levels=(2, 4, 8), group_size=32, tokens_per_pass=64)
RECIPES = {
    "rtn": Quantization(method=Method.RTN, levels=(2, 4, 8), group_size=32),
    "gptq": GPTQ,
    "asymmetric": Quantization(
        levels=(3, 8), group_size=16, symmetric=False, scale_dtype="float16", tokens_per_pass=64
    ),
    "quantized": Quantization(
        levels=(2, 4, 8), group_size=-1, hessian_inputs=HessianInputs.QUANTIZED, hessian_level=2, tokens_per_pass=64
    ),
}


class Interrupted(Exception):
    """Stands for whatever may end a build."""


def random_text(seed: int = 0) -> TokenText:
    rng = np.random.default_rng(seed)
    blocks = tuple(
        rng.integers(3, VOCABULARY - 10, length, dtype=np.int32) for length in (24, 24, 15, 24, 24, 7, 24, 24, 24, 20)
    )
    return TokenText(blocks, tuple(f"document {index // 2}" for index in range(len(blocks))), 24)


@pytest.fixture(scope="session")
def facts_of(tmp_path_factory):
    """Facts of a tiny model's checkpoint by its family."""
    known = {}

    def find(family):
        if family not in known:
            folder = tmp_path_factory.mktemp(family)
            tiny_model(family).save_pretrained(folder)
            known[family] = checkpoint_facts(str(folder))
        return known[family]

    return find


def start(facts, place, recipe) -> StoreWriter:
    return StoreWriter(place, store_header(facts, recipe, random_text(), compute_dtype="float32", device="cpu"))


def run(facts, family, place, recipe, progress=None, adapter=None):
    adapter = adapter or ModelAdapter(tiny_model(family))
    return build(adapter, start(facts, place, recipe), recipe, random_text(), progress=progress)


def stop_after(layers: int):
    def progress(done, total, name):
        if done >= layers:
            raise Interrupted

    return progress


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_store_holds_every_layer_at_every_level(family, name, facts_of, tmp_path):
    recipe, adapter = RECIPES[name], ModelAdapter(tiny_model(family))
    calls = []
    manifest = run(
        facts_of(family),
        family,
        tmp_path,
        recipe,
        lambda done, total, layer: calls.append((done, total, layer)),
        adapter,
    )
    store = VariantStore.open(tmp_path)
    assert store.manifest == manifest
    assert [entry.name for entry in manifest.layers] == list(adapter.layers)
    total = len(adapter.layers)
    assert [(done, of) for done, of, _ in calls] == [(done, total) for done in range(total + 1)]
    for entry in manifest.layers:
        base = adapter.weight_OI(entry.name)
        assert (entry.block, entry.out_features, entry.in_features) == (
            adapter.layers[entry.name].block,
            *base.shape,
        )
        errors = []
        for level, cost in entry.costs.items():
            variant = store.read(entry.name, level)
            assert sum(len(column) for column in variant.columns.values()) == cost.bytes
            assert cost.code_bits == int(level) * base.numel()
            weight = dense_weight(variant, torch.float32)
            errors.append(float(((weight - base) ** 2).sum() / (base**2).sum()))
            # With 8 bits GPTQ's freedom to move other weights is worth little.
            assert variant.error == pytest.approx(errors[-1], rel=1e-4) if name == "rtn" else variant.error < 0.3
        assert errors[-1] < 5e-4
        assert errors == sorted(errors, reverse=True)
        assert torch.equal(adapter.layers[entry.name].module.weight, adapter.layers[entry.name].base)


def test_gptq_has_the_smaller_output_errors(facts_of, tmp_path):
    adapter = ModelAdapter(tiny_model("llama"))
    run(facts_of("llama"), "llama", tmp_path / "gptq", RECIPES["gptq"], adapter=adapter)
    run(facts_of("llama"), "llama", tmp_path / "rtn", RECIPES["rtn"], adapter=adapter)
    ids = [torch.from_numpy(block.astype(np.int64))[None] for block in random_text().blocks]
    logits = [adapter.logits(row) for row in ids]
    lost = {}
    for name in ("gptq", "rtn"):
        store = VariantStore.open(tmp_path / name)
        for layer in adapter.layers:
            adapter.swap(layer, adapter.ready(layer, dense_weight(store.read(layer, "4"), torch.float32)))
        lost[name] = sum(
            float(((adapter.logits(row) - base) ** 2).sum()) for row, base in zip(ids, logits, strict=True)
        )
    assert lost["gptq"] < 0.8 * lost["rtn"]


@pytest.mark.parametrize(
    ("name", "family"), [("rtn", "gpt2"), ("gptq", "llama"), ("quantized", "llama"), ("quantized", "gemma3n")]
)
def test_an_interrupted_build_ends_with_the_same_bytes(name, family, facts_of, tmp_path):
    if family == "gemma3n":  # blocks that can't be resumed
        adapter = ModelAdapter(tiny_model(family), allow_partial=True)
        folder = tmp_path / "model"
        tiny_model(family).save_pretrained(folder)
        facts = checkpoint_facts(str(folder), allow_partial=True)
    else:
        adapter, facts = ModelAdapter(tiny_model(family)), facts_of(family)
    recipe = RECIPES[name]
    run(facts, family, tmp_path / "whole", recipe, adapter=adapter)
    # In the middle of a group of layers, in the middle of a block, at the end of one.
    stops = (1, 2, 5, 7, 13) if name != "rtn" else (1, 4)
    for stop in stops:
        with pytest.raises(Interrupted):
            run(facts, family, tmp_path / "parts", recipe, stop_after(stop), adapter)
        assert all(torch.equal(ref.module.weight, ref.base) for ref in adapter.layers.values())
        assert not (tmp_path / "parts" / "manifest.json").exists()
    run(facts, family, tmp_path / "parts", recipe, adapter=adapter)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


class Ring:
    """A crew of several models in this process, some of which lose all that they have in hand, now and then."""

    def __init__(self, works, losses, seed):
        self.works, self.losses, self.draws = works, losses, np.random.default_rng(seed)
        self.rota, self.given, self.sums, self.tasks, self.lost = Rota(HESSIAN_SHARDS), {}, {}, [], 0
        self.new = [work() for work in works]

    def turn(self, done):
        while not done():
            worker = int(self.draws.integers(len(self.works)))
            item = self.rota.assign(worker)
            if self.draws.random() < self.losses:
                self.lost += 1
                self.rota.lost(worker)
                self.new[worker] = self.works[worker]()
            elif item is not None:
                self.carry(self.new[worker], item)
                self.rota.done(worker)

    def carry(self, work, item):
        if isinstance(item, int):
            task, take = self.tasks[item]
            take(work.make(task))
        elif item.looks:
            self.sums[item.shard] = work.observe(item.shard, item.block, moves=item.moves)
        else:
            work.advance(item.shard, item.block, self.given.get(item.block))

    def observe(self, block, *, moves):
        self.rota.walk(block, looks=True, moves=moves)
        self.turn(lambda: self.rota.walked)
        total = {}
        for shard in range(HESSIAN_SHARDS):
            add_sums(total, self.sums.pop(shard))
        return total

    def advance(self, block, given):
        if given is not None:
            self.given[block] = dict(given)
        self.rota.walk(block, looks=False, moves=True)
        self.turn(lambda: self.rota.walked)

    def make(self, tasks, take):
        for task in tasks:
            self.tasks.append((task, take))
            self.rota.add(len(self.tasks) - 1)

    def finish(self):
        self.turn(lambda: not self.rota.unfinished)


@pytest.mark.parametrize(
    ("name", "family"), [("rtn", "gpt2"), ("gptq", "llama"), ("quantized", "llama"), ("quantized", "gemma3n")]
)
def test_any_crew_makes_the_same_bytes_whoever_is_lost(name, family, facts_of, tmp_path):
    if family == "gemma3n":  # blocks that can't be resumed: what is compressed has to stay in place behind a boundary
        tiny_model(family).save_pretrained(tmp_path / "model")
        facts = checkpoint_facts(str(tmp_path / "model"), allow_partial=True)
    else:
        facts = facts_of(family)
    adapters = [ModelAdapter(tiny_model(family), allow_partial=True) for _ in range(3)]
    recipe = RECIPES[name]
    blocks = {layer: ref.block for layer, ref in adapters[0].layers.items()}
    run(facts, family, tmp_path / "whole", recipe, adapter=adapters[0])
    text = random_text() if recipe.needs_text else None
    for seed, losses in ((0, 0.0), (1, 0.1 if recipe.needs_text else 0.4)):
        place, lost = tmp_path / str(seed), 0
        for stop in (1, 6, 11, None):
            writer = start(facts, place, recipe)
            works = [
                functools.partial(BuildWork, adapter, writer.header, recipe, text)
                for adapter in adapters[: 3 if stop != 6 else 1]
            ]
            ring = Ring(works, losses, seed)
            if stop is None:
                build_by(ring, writer, recipe, blocks)
            else:
                with pytest.raises(Interrupted):
                    build_by(ring, writer, recipe, blocks, progress=stop_after(stop))
            lost += ring.lost
        assert bool(lost) == bool(losses)
        assert contents(place) == contents(tmp_path / "whole")
        assert all(torch.equal(ref.module.weight, ref.base) for each in adapters for ref in each.layers.values())


def test_finished_layers_are_not_computed_again(facts_of, tmp_path, monkeypatch):
    adapter = ModelAdapter(tiny_model("llama"))
    with pytest.raises(Interrupted):
        run(facts_of("llama"), "llama", tmp_path, GPTQ, stop_after(7), adapter)
    solved = []

    def spy(weights, *args, **kwargs):
        solved.extend(weights)
        return gptq(weights, *args, **kwargs)

    monkeypatch.setattr("evoray.compress.quantization.gptq", spy)
    manifest = run(facts_of("llama"), "llama", tmp_path, GPTQ, adapter=adapter)
    assert solved == list(adapter.layers)[7:]
    assert run(facts_of("llama"), "llama", tmp_path, GPTQ, adapter=adapter) == manifest
    assert solved == list(adapter.layers)[7:]


def test_a_layer_that_was_lost_is_made_again(facts_of, tmp_path):
    adapter = ModelAdapter(tiny_model("llama"))
    recipe = RECIPES["quantized"]
    run(facts_of("llama"), "llama", tmp_path, recipe, adapter=adapter)
    before = contents(tmp_path)
    (tmp_path / "layers" / "model.layers.1.self_attn.k_proj.arrow").unlink()
    run(facts_of("llama"), "llama", tmp_path, recipe, adapter=adapter)
    assert contents(tmp_path) == before


KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(int(sys.argv[3]))
sys.path[:0] = sys.argv[4:]
from test_builder import RECIPES, run
from evoray.model import checkpoint_facts

def progress(done, total, name):
    if done == 9:
        os.kill(os.getpid(), signal.SIGKILL)

run(checkpoint_facts(sys.argv[1]), "llama", sys.argv[2], RECIPES["quantized"], progress)
"""


def test_a_killed_build_ends_with_the_same_bytes(facts_of, tmp_path):
    facts, here = facts_of("llama"), Path(__file__).parent
    killed = subprocess.run(
        [
            sys.executable, "-c", KILLED, str(facts.folder), str(tmp_path / "parts"), str(torch.get_num_threads()),
            str(here), str(here.parent),
        ],
        capture_output=True, text=True, env=os.environ, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list((tmp_path / "parts" / "layers").glob("*.arrow"))) == 9
    with pytest.raises(UserError, match="still being built"):
        VariantStore.open(tmp_path / "parts")
    for place in ("parts", "whole"):
        run(facts, "llama", tmp_path / place, RECIPES["quantized"])
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_inputs_of_the_quantized_model_are_others_behind_the_first_block(facts_of, tmp_path):
    for name, inputs in (("base", HessianInputs.BASE), ("quantized", HessianInputs.QUANTIZED)):
        recipe = Quantization(levels=(2, 3), group_size=32, hessian_inputs=inputs, tokens_per_pass=64)
        run(facts_of("llama"), "llama", tmp_path / name, recipe)
    base, quantized = (contents(tmp_path / name / "layers") for name in ("base", "quantized"))
    same = {name for name in base if base[name] == quantized[name]}
    assert same == {name for name in base if name.startswith("model.layers.0.")}


def test_layers_without_input_are_rounded_and_named(facts_of, tmp_path):
    model = tiny_model("llama")
    mlp = model.model.layers[1].mlp
    # Takes the weight of one layer past its module, so that hooks don't see it.
    mlp.forward = lambda x: mlp.down_proj(
        torch.nn.functional.silu(torch.nn.functional.linear(x, mlp.gate_proj.weight)) * mlp.up_proj(x)
    )
    adapter, notes = ModelAdapter(model), []
    writer = start(facts_of("llama"), tmp_path / "gptq", GPTQ)
    build(adapter, writer, GPTQ, random_text(), note=notes.append)
    run(facts_of("llama"), "llama", tmp_path / "rtn", RECIPES["rtn"])
    name = "model.layers.1.mlp.gate_proj"
    assert notes == [f"the Hessian text gave no input to 1 layers, which are rounded to nearest: {name}"]
    rounded, solved = (contents(tmp_path / method / "layers") for method in ("rtn", "gptq"))
    assert [layer for layer in rounded if rounded[layer] == solved[layer]] == [f"{name}.arrow"]


def test_a_damping_that_had_to_be_raised_is_told(facts_of, tmp_path, monkeypatch):
    def raised(weights, *args, damping, **kwargs):
        return gptq(weights, *args, damping=10 * damping, **kwargs)

    monkeypatch.setattr("evoray.compress.quantization.gptq", raised)
    notes = []
    writer = start(facts_of("gpt2"), tmp_path, GPTQ)
    build(ModelAdapter(tiny_model("gpt2")), writer, GPTQ, random_text(), note=notes.append)
    assert notes[0] == (
        "the Hessian of transformer.h.0.attn.c_attn took a damping of 0.1 instead of 0.01; more Hessian text may help"
    )


def test_what_does_not_belong_together_is_refused(facts_of, tmp_path):
    adapter, facts = ModelAdapter(tiny_model("llama")), facts_of("llama")
    writer = start(facts, tmp_path, GPTQ)
    with pytest.raises(ValueError, match="not that of this recipe and text"):
        build(adapter, writer, RECIPES["quantized"], random_text())
    with pytest.raises(ValueError, match="not that of this recipe and text"):
        build(adapter, writer, GPTQ, random_text(1))
    with pytest.raises(UserError, match="needs text"):
        build(adapter, writer, GPTQ)
    with pytest.raises(UserError, match=r"group size 40 does not divide the input width of .* in 3 blocks"):
        build(adapter, writer, Quantization(group_size=40), random_text())
    adapter.layers["model.layers.2.mlp.up_proj"].base[3, 4] = float("nan")
    with pytest.raises(EvorayError, match=r"layer model\.layers\.2\.mlp\.up_proj has weights that are not finite"):
        build(adapter, start(facts, tmp_path / "rtn", RECIPES["rtn"]), RECIPES["rtn"])
