"""Checkpoints in the layout of GPTQ hold the codes of the store: a slow reader of that layout alone finds them."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from searches import Material
from tiny import tiny_ids, tiny_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from evoray.configuration import DROPPED, Configuration, parse_configuration
from evoray.embedded import model_path
from evoray.errors import UserError
from evoray.export import Depth, ExportOptions, ExportSource, export
from evoray.formats import dense_weight
from evoray.model import ModelAdapter, checkpoint_facts
from evoray.store import VariantStore

pytestmark = pytest.mark.usefixtures("same_products")

BITS = ("2", "3", "4", "8")


def saved(folder: Path, family: str = "llama", **changes: Any) -> Material:
    """A model whose layers have 64 to 256 columns, without a store."""
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4} if family != "gpt2" else {}
    tiny_model(family, **shape | changes).save_pretrained(folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "model" / name).write_bytes((Path(model_path()) / name).read_bytes())
    return Material(str(folder / "model"), "", "")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return saved(tmp_path_factory.mktemp("gptq"))


@pytest.fixture(scope="module")
def packed(model: Material, tmp_path_factory: pytest.TempPathFactory) -> Material:
    """With a store of all levels that can be packed, and of two that can't."""
    folder = tmp_path_factory.mktemp("store") / "store"
    return model.with_store(folder, method="rtn", levels=(*BITS, "5", "6"), group_size=64, scales="minmax")


def mixed(store: str, levels: Sequence[str] = BITS) -> Configuration:
    """Each block and half of a block at another level, siblings at the same one, one layer at its base weight."""
    layers = [layer.name for layer in VariantStore.open(store).manifest.layers]
    found = {name: levels[(int(name.split(".")[2]) + (3 if ".mlp." in name else 0)) % len(levels)] for name in layers}
    return {**found, "model.layers.1.mlp.down_proj": "base"}


def written(made: Material, configuration: Configuration, out: Path, **options: Any) -> tuple[Any, dict[str, Tensor]]:
    """Exports, and gives quantization_config and all tensors."""
    source = ExportSource.open(made.model, made.store or None, configuration, options=ExportOptions(**options))
    folder = export("gptq", source, str(out))
    return json.loads((folder / "config.json").read_text())["quantization_config"], load_file(
        folder / "model.safetensors"
    )


def fields(words: Sequence[int], bits: int, count: int) -> list[int]:
    """Numbers of so many bits, lowest bits of the first word first, with no regard to where words end."""
    stream = sum((word & 0xFFFFFFFF) << (32 * index) for index, word in enumerate(words))
    return [(stream >> (bits * index)) & ((1 << bits) - 1) for index in range(count)]


def read_back(tensors: dict[str, Tensor], layer: str, bits: int, version: str) -> Tensor:
    """The weight [O, I] of a layer in the dtype of its scales, entry by entry."""
    qweight, qzeros, scales, g_idx = (tensors[f"{layer}.{kind}"] for kind in ("qweight", "qzeros", "scales", "g_idx"))
    assert (qweight.dtype, qzeros.dtype, g_idx.dtype) == (torch.int32,) * 3
    columns, rows = len(g_idx), qweight.shape[1]
    assert qweight.shape[0] * 32 == columns * bits
    assert qzeros.shape[1] * 32 == rows * bits
    assert scales.shape == (len(qzeros), rows)
    zeros = [fields(row.tolist(), bits, rows) for row in qzeros]
    weight = torch.empty(rows, columns, dtype=scales.dtype)
    for row in range(rows):
        for column, code in enumerate(fields(qweight[:, row].tolist(), bits, columns)):
            group = int(g_idx[column])
            weight[row, column] = code - (zeros[group][row] + (version == "gptq"))
        weight[row] *= scales[g_idx.long(), row]
    return weight


def ruled(config: Any, name: str) -> Any:
    """What engines find for a module: its bits and group size, or None where it is dense. Sees that one rule counts."""
    found = [rule for rule in config["dynamic"] if re.match(rule[2:], name)]
    assert len(found) <= 1, (name, found)
    if found and found[0].startswith("-:"):
        return None
    assert not found or found[0].startswith("+:")
    settings = config | (config["dynamic"][found[0]] if found else {})
    return settings["bits"], settings["group_size"]


@pytest.mark.parametrize(
    ("group_size", "symmetric", "scale_dtype"),
    [
        (32, True, "float16"),
        (64, False, "bfloat16"),
        (128, True, "float32"),
        (-1, False, "float16"),
        (-1, True, "auto"),
    ],
)
def test_what_is_read_back_is_what_the_store_dequantizes_to(
    model: Material, tmp_path: Path, group_size: int, symmetric: bool, scale_dtype: str
) -> None:
    made = model.with_store(
        tmp_path / "store",
        method="rtn", levels=BITS, group_size=group_size, symmetric=symmetric, scale_dtype=scale_dtype, scales="minmax",
    )  # fmt: skip
    store, configuration = VariantStore.open(made.store), mixed(made.store)
    config, tensors = written(made, configuration, tmp_path / "out")
    assert config["sym"] is symmetric
    assert config["checkpoint_format"] == config["format"] == ("gptq" if symmetric else "gptq_v2")
    assert (config["quant_method"], config["desc_act"], config["group_size"]) == ("gptq", False, group_size)
    seen = set()
    for name, level in configuration.items():
        if level == "base":
            continue
        # Every layer of a size and level costs a second; one is enough.
        kind = (level, tensors[f"{name}.qweight"].shape)
        if kind in seen:
            continue
        seen.add(kind)
        variant = store.read(name, level)
        found = read_back(tensors, name, int(level), config["checkpoint_format"])
        assert torch.equal(found, dense_weight(variant, found.dtype)), name
        assert str(found.dtype) == f"torch.{variant.meta['scale_dtype']}"
        columns = len(tensors[f"{name}.g_idx"])
        step = columns if group_size == -1 else group_size
        assert tensors[f"{name}.g_idx"].tolist() == [column // step for column in range(columns)]
        assert f"{name}.weight" not in tensors
        # Zero points: those of symmetric codes are one constant, less one.
        if symmetric:
            zeros = {value for row in tensors[f"{name}.qzeros"] for value in fields(row.tolist(), int(level), 32)}
            assert zeros == {{"2": 1, "3": 3, "4": 7, "8": 127}[level]}
    assert {level for level, _ in seen} == set(BITS)


def test_codes_of_three_bits_lie_across_words(packed: Material, tmp_path: Path) -> None:
    layer = "model.layers.0.self_attn.o_proj"
    _, tensors = written(packed, {layer: "3"}, tmp_path / "out")
    store = VariantStore.open(packed.store)
    weight, scales = dense_weight(store.read(layer, "3"), torch.float32), tensors[f"{layer}.scales"]
    codes = torch.round(weight / scales.T.repeat_interleave(64, 1)).to(torch.int64) + 4
    first, second, third = (tensors[f"{layer}.qweight"][word].to(torch.int64) & 0xFFFFFFFF for word in range(3))
    # As AutoGPTQ's tables have it: ten codes, two bits and one bit, ten codes, one bit and two bits, ten codes.
    assert torch.equal((first >> 27) & 7, codes[:, 9])
    assert torch.equal((first >> 30) | ((second & 1) << 2), codes[:, 10])
    assert torch.equal((second >> 1) & 7, codes[:, 11])
    assert torch.equal((second >> 31) | ((third & 3) << 1), codes[:, 21])
    assert torch.equal((third >> 2) & 7, codes[:, 22])
    assert torch.equal((third >> 29) & 7, codes[:, 31])


def test_rules_find_every_layer_under_both_names_and_leave_all_others(packed: Material, tmp_path: Path) -> None:
    configuration = mixed(packed.store)
    config, tensors = written(packed, configuration, tmp_path / "out")
    levels = [level for level in configuration.values() if level != "base"]
    assert config["bits"] == int(max(sorted(set(levels)), key=levels.count))
    for name, level in configuration.items():
        assert ruled(config, name) == (None if level == "base" else (int(level), 64)), name
        parent, _, last = name.rpartition(".")
        fused = {"q": "qkv_proj", "k": "qkv_proj", "v": "qkv_proj", "gate": "gate_up_proj", "up": "gate_up_proj"}
        if last.removesuffix("_proj") in fused:
            assert ruled(config, f"{parent}.{fused[last.removesuffix('_proj')]}") == (int(level), 64)
    assert ruled(config, "lm_head") is None
    # Names that only begin or end like one of ours are in no rule.
    rules = [rule[2:] for rule in config["dynamic"]]
    for name in configuration:
        for other in (
            f"{name}.x",
            f"{name}2",
            f"x.{name}",
            name.replace("layers.", "layers.1"),
            name.replace(".", "_"),
        ):
            assert not any(re.match(rule, other) for rule in rules), other
    # What is dense is as it was.
    before = load_file(Path(packed.model) / "model.safetensors")
    dense = {name: tensor for name, tensor in tensors.items() if name.endswith((".weight", ".bias"))}
    gone = {f"{name}.weight" for name, level in configuration.items() if level != "base"}
    assert dense.keys() == before.keys() - gone
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.items())


def test_models_inside_others_have_both_names(tmp_path: Path) -> None:
    made = saved(tmp_path, "gemma3_vision")
    made = made.with_store(tmp_path / "store", method="rtn", levels=("3", "4"), group_size=32, scales="minmax")
    layers = [layer.name for layer in VariantStore.open(made.store).manifest.layers]
    configuration = {name: "3" if ".mlp." in name else "4" for name in layers}
    config, _ = written(made, configuration, tmp_path / "out")
    for name, level in configuration.items():
        theirs = name.replace("model.language_model.", "language_model.model.")
        assert theirs != name
        assert ruled(config, name) == ruled(config, theirs) == (int(level), 32)
    assert ruled(config, "model.vision_tower.encoder.layers.0.mlp.fc1") is None


def test_biases_and_fused_checkpoints(tmp_path: Path) -> None:
    for family, layer in (("qwen2", "model.layers.0.self_attn.k_proj"), ("phi3", "model.layers.0.mlp.gate_up_proj")):
        made = saved(tmp_path / family, family)
        made = made.with_store(
            tmp_path / f"s-{family}", method="rtn", levels=("2", "4"), group_size=64, scales="minmax"
        )
        layers = [each.name for each in VariantStore.open(made.store).manifest.layers]
        configuration = {name: "4" if "layers.0.mlp" in name else "2" for name in layers}
        config, tensors = written(made, configuration, tmp_path / f"out-{family}")
        bits, _ = ruled(config, layer)
        wanted = dense_weight(VariantStore.open(made.store).read(layer, configuration[layer]), torch.float32)
        assert torch.equal(read_back(tensors, layer, bits, "gptq"), wanted)
        before = load_file(Path(made.model) / "model.safetensors")
        biases = {name for name in before if name.endswith(".bias")}
        assert bool(biases) is (family == "qwen2")
        assert all(torch.equal(tensors[name], before[name]) for name in biases)


def test_configuration_and_tokenizer_load(packed: Material, tmp_path: Path) -> None:
    configuration = mixed(packed.store)
    config, _ = written(packed, configuration, tmp_path / "out")
    assert AutoConfig.from_pretrained(tmp_path / "out").quantization_config == config
    assert json.loads((tmp_path / "out" / "quantize_config.json").read_text()) == config
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (packed.model, tmp_path / "out")]
    assert tokenizers[0]("Hello, wörld").input_ids == tokenizers[1]("Hello, wörld").input_ids
    assert parse_configuration((tmp_path / "out" / "evoray-configuration.txt").read_text()) == configuration


O_PROJ, Q_PROJ = "model.layers.0.self_attn.o_proj", "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("configuration", "said"),
    [
        ({O_PROJ: "5"}, rf"{O_PROJ}, rule bits: it has 5 bits, .* --levels 2,3,4,8, .* \(--allow-dense is no help"),
        ({O_PROJ: "4", "model.layers.1.self_attn.o_proj": "6"}, "rule bits: it has 6 bits, .*, or --allow-dense here"),
        (
            {Q_PROJ: "4", Q_PROJ.replace("q_", "k_"): "3", Q_PROJ.replace("q_", "v_"): "4", O_PROJ: "4"},
            rf"{Q_PROJ} \(and 2 more\), rule fused: it is one of q_proj at 4, k_proj at 3, v_proj at 4, .*--tie fused",
        ),
        ({"model.layers.2.mlp.up_proj": "4", O_PROJ: "4"}, "rule fused: it is one of gate_proj at base, up_proj at 4"),
        ({O_PROJ: "base"}, "no layer of the configuration has a level"),
        ({}, "no layer of the configuration has a level"),
    ],
)
def test_what_can_not_be_packed_is_refused(
    packed: Material, tmp_path: Path, configuration: Configuration, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        written(packed, configuration, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "levels", "level", "said"),
    [
        ("sparsity", ("0.5",), "0.5", "rule mask: it has a mask at level 0.5, .* --kind quantization"),
        ("joint", ("4", "4x0.5", "0.5"), "4x0.5", "rule mask: it has a mask at level 4x0.5"),
    ],
)
def test_masks_are_refused(
    model: Material, tmp_path: Path, kind: str, levels: tuple[str, ...], level: str, said: str
) -> None:
    made = model.with_store(tmp_path / "store", kind=kind, method="magnitude", levels=levels)
    with pytest.raises(UserError, match=said):
        written(made, {O_PROJ: level}, tmp_path / "out")


def test_imported_weights_odd_groups_and_other_modules_are_refused(model: Material, tmp_path: Path) -> None:
    folder = tmp_path / "evopress"
    for layer in checkpoint_facts(model.model).layers:
        (folder / layer.name).mkdir(parents=True)
        torch.save(torch.ones(layer.out_features, layer.in_features), folder / layer.name / "4.pth")
    imported = model.with_store(tmp_path / "imported", from_evopress=str(folder))
    with pytest.raises(
        UserError, match="rule codes: it has an imported weight without codes; use variants of evoray b"
    ):
        written(imported, {O_PROJ: "4"}, tmp_path / "out")
    odd = model.with_store(tmp_path / "odd", method="rtn", levels=("4",), group_size=8)
    with pytest.raises(UserError, match=r"rule group-size: it has groups of 8, .* evoray build --group-size 128"):
        written(odd, {O_PROJ: "4"}, tmp_path / "out")
    turned = saved(tmp_path / "gpt2", "gpt2").with_store(
        tmp_path / "turned", method="rtn", levels=("4",), group_size=32
    )
    with pytest.raises(UserError, match=r"rule linear: it is a Conv1D, .* nn.Linear only; use --format hf"):
        written(turned, {"transformer.h.0.attn.c_proj": "4"}, tmp_path / "out")
    narrow = saved(tmp_path / "narrow", intermediate_size=80)
    narrow = narrow.with_store(tmp_path / "n", method="rtn", levels=("4",), group_size=16)
    with pytest.raises(UserError, match="rule shape: it has 128 rows and 80 columns, and GPTQ packs multiples of 32"):
        written(narrow, {O_PROJ: "4", "model.layers.0.mlp.down_proj": "4"}, tmp_path / "out")


def test_what_is_allowed_to_stay_dense_has_its_dequantized_weights(packed: Material, tmp_path: Path) -> None:
    changes = {Q_PROJ: "3", Q_PROJ.replace("q_", "k_"): "4", Q_PROJ.replace("q_", "v_"): "4", O_PROJ: "5"}
    configuration = {**mixed(packed.store), **changes}
    config, tensors = written(packed, configuration, tmp_path / "out", allow_dense=True)
    store = VariantStore.open(packed.store)
    for name, level in changes.items():
        wanted = dense_weight(store.read(name, level), torch.float32)
        assert torch.equal(tensors[f"{name}.weight"], wanted), name
        assert ruled(config, name) is None
    assert ruled(config, Q_PROJ.replace("q_", "qkv_")) is None
    assert ruled(config, "model.layers.0.mlp.qkv_proj") == (config["bits"], 64)
    for name, level in configuration.items():
        if name not in changes and level != "base":
            assert ruled(config, name) == (int(level), 64)
            assert f"{name}.qweight" in tensors


def test_dropped_sublayers_are_zeros_in_codes(packed: Material, tmp_path: Path) -> None:
    configuration = {**mixed(packed.store), "model.layers.2": DROPPED, "model.layers.0.mlp": DROPPED}
    config, tensors = written(packed, configuration, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(packed.model, dtype=torch.float32).eval().requires_grad_(False)
    store, plain = VariantStore.open(packed.store), model.state_dict()
    for name, level in configuration.items():
        if level == DROPPED or level == "base":
            continue
        bits, _ = ruled(config, name)
        # Reading all back entry by entry would take long: of layers that are not dropped others tell.
        if name.startswith(("model.layers.2.", "model.layers.0.mlp")):
            assert not tensors[f"{name}.scales"].any()
            assert bits == config["bits"]
            plain[f"{name}.weight"].copy_(read_back(tensors, name, bits, "gptq") if "o_proj" in name else 0.0)
        else:
            plain[f"{name}.weight"].copy_(dense_weight(store.read(name, level), torch.float32))
    adapter = ModelAdapter(
        AutoModelForCausalLM.from_pretrained(packed.model, dtype=torch.float32).eval().requires_grad_(False)
    )
    for name, level in configuration.items():
        if level == DROPPED:
            adapter.drop(name)
        elif level != "base":
            adapter.swap(name, adapter.ready(name, dense_weight(store.read(name, level), torch.float32)))
    ids = tiny_ids(vocabulary=90)
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, adapter.logits(ids))
    with pytest.raises(UserError, match="--depth removed is not for --format gptq"):
        written(packed, configuration, tmp_path / "other", depth=Depth.removed)


def test_it_needs_a_store(model: Material, tmp_path: Path) -> None:
    source = ExportSource.open(model.model, None, {O_PROJ: "4"})
    with pytest.raises(UserError, match="give the --store of its variants"):
        export("gptq", source, str(tmp_path / "out"))
