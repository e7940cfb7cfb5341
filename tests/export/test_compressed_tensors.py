"""Packed checkpoints are what was measured, bit for bit, and as large as was promised."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from compressed_tensors.utils.match import match_name, match_named_modules, match_targets
from exports import IDS_BT, Case, loaded, quantization_of, tensors_of
from searches import material
from torch import Tensor, nn
from transformers import AutoTokenizer

import evoray.export.compressed_tensors as compressed_tensors
from evoray.configuration import DROPPED, KEPT, parse_configuration
from evoray.errors import UserError
from evoray.export import Depth, export
from evoray.run.export import run_export
from evoray.run.search import search
from evoray.settings import ExportSettings
from evoray.space.costs import configuration_costs

pytestmark = pytest.mark.usefixtures("same_products")

LEVELS = ("2", "3", "4", "5", "6", "8")
# Wide enough for groups of 128, and enough blocks for every number of bits.
WIDE = {"hidden_size": 128, "intermediate_size": 256}
# Rows of 72 and 104 codes, which end inside a word at odd bits; 18 rows of keys and values do, too, as zero points.
ODD = {"hidden_size": 72, "intermediate_size": 104, "num_attention_heads": 4, "num_key_value_heads": 1}

FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
"""`packed_modules_mapping` of vLLM's llama, qwen2 and gemma2."""


def _one(name: str, family: str, dtype: torch.dtype, group_size: int, **changes: Any) -> Any:
    return pytest.param((family, dtype, group_size, changes), id=name)


@pytest.fixture(
    scope="module",
    params=[
        _one("llama-32", "llama", torch.bfloat16, 32),
        _one("qwen2-64", "qwen2", torch.float16, 64, **WIDE),
        _one("gemma2-128", "gemma2", torch.bfloat16, 128, **WIDE, head_dim=32),
        _one("gemma3-vision", "gemma3_vision", torch.bfloat16, 32),
        _one("phi3-rows", "phi3", torch.float32, -1),
        _one("llama-odd", "llama", torch.float32, 8, **ODD),
    ],
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, torch.dtype]:
    """llama and gemma tie their heads; qwen2 doesn't, and has biases; phi3 has layers that are fused already."""
    family, dtype, group_size, changes = request.param
    folder = tmp_path_factory.mktemp("case")
    return Case.of(folder, family, dtype, changes, levels=LEVELS, group_size=group_size), dtype


@pytest.fixture(scope="module")
def exported(case: tuple[Case, torch.dtype], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, _ = case
    return export(
        "compressed-tensors", made.source(made.tied(LEVELS)), str(tmp_path_factory.mktemp("out") / "exported")
    )


def test_transformers_loads_the_weights_and_gives_the_logits_that_were_measured(
    case: tuple[Case, torch.dtype], exported: Path
) -> None:
    made, dtype = case
    configuration = made.tied(LEVELS)
    assert set(configuration.values()) == set(LEVELS)
    model = loaded(exported)
    logits = model(input_ids=IDS_BT, use_cache=False).logits
    base = loaded(made.model, dtype)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            level = configuration.get(name)
            wanted = made.weight_OI(name, level, dtype) if level else base.get_submodule(name).weight
            assert torch.equal(module.weight, wanted), name
            assert module.weight.dtype is dtype
    assert torch.equal(logits, made.logits(configuration, dtype))
    assert not torch.equal(logits, base(input_ids=IDS_BT, use_cache=False).logits)


def test_each_packed_layer_has_one_target_and_nothing_else_has(case: tuple[Case, torch.dtype], exported: Path) -> None:
    made, _ = case
    configuration = made.tied(LEVELS)
    quantization = quantization_of(exported)
    groups = quantization["config_groups"].values()
    targets = [target for group in groups for target in group["targets"]]
    assert len(targets) == len(set(targets))
    assert len(groups) == len(LEVELS)
    model = loaded(made.model)
    bits = {target: group["weights"]["num_bits"] for group in groups for target in group["targets"]}
    matched = {name: match_targets(name, module, targets) for name, module in model.named_modules()}
    assert {name: [str(bits[target]) for target in found] for name, found in matched.items() if found} == {
        name: [level] for name, level in configuration.items()
    }
    assert {name for name, _ in match_named_modules(model, targets, quantization["ignore"])} == set(configuration)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert set(quantization["ignore"]) == linear - set(configuration)
    assert "lm_head" in quantization["ignore"]
    assert QuantizationConfig.model_validate(quantization).format == "pack-quantized"


def test_what_vllm_fuses_is_found_by_the_names_of_its_parts(case: tuple[Case, torch.dtype], exported: Path) -> None:
    made, _ = case
    whole = {"q_proj": "qkv_proj", "up_proj": "gate_up_proj"}
    parts = [name.rpartition(".") for name in made.tied(LEVELS)]
    for fused in (f"{parent}.{whole[last]}" for parent, _, last in parts if last in whole):
        holding = [
            group
            for group in quantization_of(exported)["config_groups"].values()
            if any(match_name(fused, target, FUSED) for target in group["targets"])
        ]
        assert len(holding) == 1, fused


def test_the_files_have_the_promised_size(case: tuple[Case, torch.dtype], exported: Path) -> None:
    made, _ = case
    configuration, manifest = made.tied(LEVELS), made.variants.manifest
    tensors = tensors_of(exported)
    assert sum(tensor.nbytes for tensor in tensors.values()) == configuration_costs(manifest, configuration).size
    # Names in files are older than those of the modules where a model has text and vision.
    older = any(name.startswith("language_model.model.") for name in tensors)
    for layer in manifest.layers:
        level = configuration.get(layer.name)
        saved = layer.name.replace("model.language_model.", "language_model.model.") if older else layer.name
        own = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{saved}.weight")}
        promised = layer.costs[level].bytes + layer.record_bytes if level else layer.dense_bytes
        assert sum(tensor.nbytes for tensor in own.values()) == promised, layer.name
        parts = {"weight_packed", "weight_scale", "weight_shape"} if level else {"weight"}
        assert {name.rpartition(".")[2] for name in own} == parts
        if level:
            # The library's words are the store's.
            stored = bytes(made.variants.read(layer.name, level).columns["codes"])
            assert own[f"{saved}.weight_packed"].numpy().tobytes() == stored


def test_all_that_belongs_to_a_checkpoint_is_there(case: tuple[Case, torch.dtype], exported: Path) -> None:
    made, _ = case
    before, after = (json.loads((Path(folder) / "config.json").read_text()) for folder in (made.model, exported))
    del after["quantization_config"]
    for config in (before, after):
        # The tests' model was cast after its parts' configurations were made.
        config.get("vision_config", {}).pop("dtype", None)
        config.get("text_config", {}).pop("dtype", None)
    assert after == before
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (made.model, exported)]
    assert tokenizers[0]("Hello, wörld").input_ids == tokenizers[1]("Hello, wörld").input_ids
    assert parse_configuration((exported / "evoray-configuration.txt").read_text()) == made.tied(LEVELS)


# Asymmetric


@pytest.fixture(scope="module", params=[32, 8, -1], ids=["usual", "odd", "rows"])
def asymmetric(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path]:
    changes = ODD if request.param == 8 else {}
    folder = tmp_path_factory.mktemp("asymmetric")
    made = Case.of(
        folder, "qwen2", torch.bfloat16, changes, levels=("4", "8"), group_size=request.param, symmetric=False
    )
    return made, export("compressed-tensors", made.source(made.tied(("4", "8"))), str(folder / "out"))


def _unpacked(words_RW: Tensor, bits: int, count: int) -> Tensor:
    """Codes of each row, read as one number of many digits: int64 [R, count]."""
    rows = [int.from_bytes(row.numpy().tobytes(), "little") for row in words_RW]
    assert all(row >> (bits * count) == 0 for row in rows)  # padding is zero
    return torch.tensor([[(row >> (bits * index)) % (1 << bits) for index in range(count)] for row in rows])


def test_asymmetric_layers_read_back_from_the_words_alone(asymmetric: tuple[Case, Path]) -> None:
    made, out = asymmetric
    tensors = tensors_of(out)
    for name, level in made.tied(("4", "8")).items():
        bits = int(level)
        rows, columns = tensors[f"{name}.weight_shape"].tolist()
        codes_OI = _unpacked(tensors[f"{name}.weight_packed"], bits, columns)
        zero_OG = _unpacked(tensors[f"{name}.weight_zero_point"].T.contiguous(), bits, rows).T
        scale_OG = tensors[f"{name}.weight_scale"]
        group = columns // scale_OG.shape[1]
        # A whole number of nine bits times a bfloat16 is exact in float64, so this rounds once.
        steps_OI = codes_OI - zero_OG.repeat_interleave(group, 1)
        weight_OI = (steps_OI.double() * scale_OG.double().repeat_interleave(group, 1)).to(torch.bfloat16)
        assert torch.equal(weight_OI, made.weight_OI(name, level, torch.bfloat16)), name


def test_asymmetric_layers_read_back_by_the_library(asymmetric: tuple[Case, Path]) -> None:
    made, out = asymmetric
    tensors = tensors_of(out)
    schemes = [QuantizationScheme(**group) for group in quantization_of(out)["config_groups"].values()]
    assert [(scheme.weights.num_bits, scheme.weights.symmetric) for scheme in schemes] == [(4, False), (8, False)]
    for name, level in made.tied(("4", "8")).items():
        (scheme,) = (scheme for scheme in schemes if name in scheme.targets)
        parts = {key.rpartition(".")[2]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}.weight_")}
        weight_OI = PackedQuantizationCompressor.decompress(parts, scheme)["weight"]
        assert torch.equal(weight_OI, made.weight_OI(name, level, torch.bfloat16)), name


def test_asymmetric_files_have_the_promised_size(asymmetric: tuple[Case, Path]) -> None:
    made, out = asymmetric
    costs = configuration_costs(made.variants.manifest, made.tied(("4", "8")))
    assert sum(tensor.nbytes for tensor in tensors_of(out).values()) == costs.size


# Dropped sublayers, whole runs


def test_dropped_sublayers_are_dense_zeros(tmp_path: Path) -> None:
    made = Case.of(tmp_path, "qwen2", torch.float32, {"num_hidden_layers": 4})
    configuration = made.tied(("3", "4"))
    configuration |= {"model.layers.1": DROPPED, "model.layers.2.mlp": DROPPED, "model.layers.0.mlp": KEPT}
    out = export("compressed-tensors", made.source(configuration), str(tmp_path / "out"))
    logits = loaded(out)(input_ids=IDS_BT, use_cache=False).logits
    assert torch.equal(logits, made.logits(configuration, torch.float32))
    gone = [name for name in made.tied(("3", "4")) if name.startswith(("model.layers.1.", "model.layers.2.mlp."))]
    assert set(gone) < set(quantization_of(out)["ignore"])
    assert not any(tensors_of(out)[f"{name}.weight"].any() for name in gone)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_removed_blocks_are_gone_and_the_rest_renumbered(tmp_path: Path, family: str) -> None:
    made = Case.of(tmp_path, family, torch.bfloat16, {"num_hidden_layers": 4})
    blocks = "model.layers"
    configuration = made.tied(("3", "4"))
    # Block 2 goes sublayer by sublayer, and of block 0 one alone, which is zeros.
    configuration |= {f"{blocks}.1": DROPPED, f"{blocks}.0.mlp": DROPPED}
    configuration |= {f"{blocks}.2.{part}": DROPPED for part in ("self_attn", "mlp")}
    out = export("compressed-tensors", made.source(configuration, depth=Depth.removed), str(tmp_path / "out"))
    model = loaded(out)
    assert model.config.num_hidden_layers == 2
    logits = model(input_ids=IDS_BT, use_cache=False).logits
    assert torch.equal(logits, made.logits(configuration, torch.bfloat16))
    targets = [name for group in quantization_of(out)["config_groups"].values() for name in group["targets"]]
    old = {f"{blocks}.1.": f"{blocks}.3.", f"{blocks}.0.": f"{blocks}.0."}
    assert len(targets) == len(set(targets)) > 3
    for name in targets:
        start = f"{'.'.join(name.split('.')[:3])}."
        bits = (
            tensors_of(out)[f"{name}.weight_packed"].shape[1]
            * 32
            // made.weight_OI(
                before := old[start] + name.removeprefix(start), configuration[before], torch.float32
            ).shape[1]
        )
        assert str(bits) == configuration[before]


def test_removed_blocks_with_zero_points_are_refused(tmp_path: Path) -> None:
    made = Case.of(tmp_path, "llama", torch.bfloat16, {"num_hidden_layers": 3}, levels=("4",), symmetric=False)
    configuration = made.tied(("4",)) | {"model.layers.1": DROPPED}
    with pytest.raises(UserError, match="transformers loads no packed zero points"):
        export("compressed-tensors", made.source(configuration, depth=Depth.removed), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_run_is_as_large_as_its_best_json_says(tmp_path: Path) -> None:
    made = material(tmp_path)
    run = str(tmp_path / "run")
    search(made.settings(run, generations=1, offspring=4, initial_candidates=2))
    out = run_export(ExportSettings(format="compressed-tensors", configuration=run, out=str(tmp_path / "out")))
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    assert sum(tensor.nbytes for tensor in tensors_of(out).values()) == best["size"]


def test_the_order_of_a_configuration_makes_no_difference(tmp_path: Path) -> None:
    made = Case.of(tmp_path)
    configuration = made.tied(("3", "4"))
    turned = dict(reversed(configuration.items()))
    outs = [
        export("compressed-tensors", made.source(given), str(tmp_path / str(index)))
        for index, given in enumerate((configuration, turned))
    ]
    for file in ("config.json", "model.safetensors"):
        assert (outs[0] / file).read_bytes() == (outs[1] / file).read_bytes()


def test_it_warns_of_what_its_readers_may_get_wrong() -> None:
    said = " ".join(compressed_tensors.WARNINGS)
    assert "dequantize=True" in said
    assert "zero points" in said
