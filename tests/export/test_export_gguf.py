"""Types of GGUF tensors: each expression finds its tensor and no other, types and bits are those of llama.cpp."""

import re
import shlex
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from searches import Material
from tiny import tiny_config, tiny_model

from evoray.configuration import DROPPED, KEPT, Configuration, parse_configuration
from evoray.embedded import model_path
from evoray.errors import UserError
from evoray.export import ExportOptions, ExportSource, export
from evoray.export.gguf import TYPES, layer_type, tensor_name, tensor_pattern
from evoray.model import LayerShape, checkpoint_facts
from evoray.store import VariantStore

LEVELS = ("2", "3", "4", "5", "6", "8")
# family of tiny models -> architecture of llama.cpp
ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3": gguf.MODEL_ARCH.GEMMA3,
    "phi3": gguf.MODEL_ARCH.PHI3,
}


def saved(folder: Path, family: str, levels: Sequence[str] = LEVELS, blocks: int = 12) -> Material:
    """A model of 12 blocks, so that some numbers begin like others, with a store of wide and narrow layers."""
    changes = {"num_hidden_layers": blocks, "hidden_size": 64, "intermediate_size": 256, "vocab_size": 264}
    if family == "gemma3":
        # As many as blocks; of the configuration, made for three, there are fewer.
        changes["layer_types"] = ["full_attention"] * blocks  # type: ignore[assignment]
    tiny_model(family, **changes if family != "gpt2" else {}).save_pretrained(folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "model" / name).write_bytes((Path(model_path()) / name).read_bytes())
    made = Material(str(folder / "model"), "", "")
    return made.with_store(folder / "store", method="rtn", levels=levels, group_size=32, scales="minmax")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return saved(tmp_path_factory.mktemp("llama"), "llama")


def written(made: Material, configuration: Configuration, out: Path, options: ExportOptions | None = None) -> Path:
    source = ExportSource.open(made.model, made.store or None, configuration, options=options)
    return export("gguf", source, str(out))


def found_by_llama_cpp(file: Path, tensor: str) -> list[str]:
    """Types that llama-quantize finds for a tensor: words, cut at the first =, expressions in lower case, searched."""
    types = []
    for word in file.read_text().split():
        pattern, _, type_ = word.partition("=")
        assert pattern
        assert type_.upper() in gguf.GGMLQuantizationType.__members__
        if re.search(pattern.lower(), tensor, re.ASCII):
            types.append(type_.upper())
    return types


def of_model(family: str, made: Material) -> dict[str, str]:
    """Every tensor of the model by llama.cpp's own tables: name in GGUF -> name in the checkpoint."""
    names = gguf.get_tensor_name_map(ARCHITECTURES[family], 12)
    theirs = {}
    for name in checkpoint_facts(made.model).tensors:
        inner, _, kind = name.rpartition(".")
        known = names.get_name(inner)
        assert known is not None, name
        theirs[f"{known}.{kind}"] = name
    assert len(theirs) == len(checkpoint_facts(made.model).tensors)
    return theirs


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_every_layer_is_found_once_and_nothing_else(family: str, tmp_path: Path) -> None:
    made = saved(tmp_path, family)
    layers = {layer.name: layer for layer in VariantStore.open(made.store).manifest.layers}
    configuration = {
        name: (*LEVELS, "base")[(index + layer.block) % 7] for index, (name, layer) in enumerate(layers.items())
    }
    out = written(made, configuration, tmp_path / "out")
    file = out / "tensor-types.txt"
    tensors = of_model(family, made)
    counts = {tensor: found_by_llama_cpp(file, tensor) for tensor in tensors}
    for tensor, name in tensors.items():
        layer = name.removesuffix(".weight")
        assert len(counts[tensor]) == (layer in layers and name.endswith(".weight")), tensor
    assert len(file.read_text().split()) == file.read_text().count("\n") == len(layers)
    # Names around ours.
    for tensor in list(tensors)[:40]:
        for other in (f"x{tensor}", f"{tensor}x", f"v.{tensor}", tensor.replace("blk.1", "blk.13")):
            assert other in tensors or not found_by_llama_cpp(file, other)
    wanted = {"2": "Q2_K", "3": "Q3_K", "4": "Q4_K", "5": "Q5_K", "6": "Q6_K", "8": "Q8_0", "base": "F32"}
    narrow = {"2": "Q4_0", "3": "Q4_0", "4": "Q5_0", "5": "Q5_1", "6": "Q8_0", "8": "Q8_0", "base": "F32"}
    seen = set()
    for tensor, name in tensors.items():
        if counts[tensor]:
            layer = name.removesuffix(".weight")
            columns = layers[layer].in_features
            assert counts[tensor] == [(narrow if columns % 256 else wanted)[configuration[layer]]], tensor
            seen |= {(columns % 256 == 0, configuration[layer])}
    assert len(seen) == 14


def test_types_have_the_bits_of_their_blocks() -> None:
    by_hand = {2: 2.625, 3: 3.4375, 4: 4.5, 5: 5.5, 6: 6.5625, 8: 8.5}
    # Codes, scales and minima of parts, and halves of the whole, in bits, for 256 weights; 32 of Q8_0.
    parts = {
        2: [256 * 2, 16 * (4 + 4), 2 * 16],
        3: [256 * 2, 256, 16 * 6, 16],
        4: [256 * 4, 8 * (6 + 6), 2 * 16],
        5: [256 * 4, 256, 8 * (6 + 6), 2 * 16],
        6: [256 * 4, 256 * 2, 16 * 8, 16],
        8: [32 * 8, 16],
    }
    assert set(TYPES) == set(by_hand) == set(parts)
    for bits, type_ in TYPES.items():
        assert float(type_.bits) == by_hand[bits]
        assert type_.bits == Fraction(sum(parts[bits]), type_.block)
    shapes = [LayerShape("m", 0, 8, columns, 0, False) for columns in (256, 32, 8)]
    for shape in shapes:
        for bits in TYPES:
            type_ = layer_type(shape, str(bits), TYPES[8])
            assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_.name]] == (type_.block, type_.block_bytes)
            assert shape.in_features % type_.block == 0
            assert type_.bits >= TYPES[bits].bits


@given(st.integers(0, 999), st.integers(0, 999), st.sampled_from(["q_proj", "k_proj", "v_proj", "o_proj"]))
def test_expressions_find_their_own_names_only(block: int, other: int, last: str) -> None:
    pattern = tensor_pattern(tensor_name(f"model.layers.{block}.self_attn.{last}"))
    assert bool(re.search(pattern, tensor_name(f"model.layers.{other}.self_attn.{last}"))) is (block == other)
    assert pattern == pattern.lower()
    assert not set(pattern) & set("= \t\n")


def test_what_is_written_beside_the_types(llama: Material, tmp_path: Path) -> None:
    facts = checkpoint_facts(llama.model)
    configuration: Configuration = {layer.name: "4" for layer in facts.layers if layer.name.endswith("down_proj")}
    configuration |= {layer.name: "2" for layer in facts.layers if layer.name.endswith("o_proj")}
    configuration["model.layers.0.mlp"] = KEPT
    out = written(llama, configuration, tmp_path / "out")
    assert parse_configuration((out / "evoray-configuration.txt").read_text()) == configuration
    convert, quantize = map(shlex.split, (out / "command.txt").read_text().splitlines())
    assert convert[:3] == ["python", "convert_hf_to_gguf.py", llama.model]
    assert convert[3:] == ["--outtype", "f32", "--outfile", "base-f32.gguf"]
    assert quantize[-3:-1] == ["base-f32.gguf", "model.gguf"]
    # A quantized type, or llama-quantize does not look at the file at all.
    assert quantize[-1] in ("Q4_K_S", "Q4_0")
    flags = dict(zip(quantize[1:-3:2], quantize[2:-3:2], strict=True))
    assert flags == {
        "--tensor-type-file": "tensor-types.txt",
        "--token-embedding-type": "f32",
        "--output-tensor-type": "f32",
    }
    readme = (out / "README.md").read_text()
    assert (out / "command.txt").read_text() in readme
    # 12 blocks of q, o: 64 x 64, k, v: 32 x 64, gate, up: 256 x 64, down: 64 x 256.
    attention, half, wide = 64 * 64, 32 * 64, 64 * 256
    weights = 2 * attention + 2 * half + 3 * wide
    types = 32 * (attention + 2 * half + 2 * wide) + 4.5 * (attention + wide)
    codes = 32 * (attention + 2 * half + 2 * wide) + 2 * attention + 4 * wide
    scales = 32 / 32 * (attention + wide)
    for said, bits in (
        ("codes alone", codes),
        ("scales and zero points", codes + scales),
        ("GGUF, with scales", types),
    ):
        assert re.search(rf"{said} \| {re.escape(f'{bits / weights:.4f}')} \|", readme), said
    assert re.search("An approximation: .* other codes", readme)
    assert re.search("Judge it again", readme)
    lines = Counter(word.partition("=")[2] for word in (out / "tensor-types.txt").read_text().split())
    assert lines == {"f32": 60, "q4_0": 12, "q4_k": 12}
    for level, type_, bits, count in (("2", "Q4_0", 4.5, 12), ("4", "Q4_K", 4.5, 12), ("base", "F32", 32.0, 60)):
        assert f"| {level} | {type_} | {bits} | {count} |\n" in readme


DOWN = "model.layers.0.mlp.down_proj"


@pytest.mark.parametrize(
    ("configuration", "said"),
    [
        ({DOWN: "4", "model.layers.1.mlp": DROPPED}, "layers.1.mlp is dropped, .* --format hf first"),
        ({DOWN: "4", "model.layers.3": DROPPED}, "layers.3 is dropped, .* --format hf first"),
        ({DOWN: "base"}, "all layers have their base weight"),
    ],
)
def test_what_gguf_can_not_say_is_refused(
    llama: Material, tmp_path: Path, configuration: Configuration, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        written(llama, configuration, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_masks_other_bits_and_other_models_are_refused(tmp_path: Path, llama: Material) -> None:
    with pytest.raises(UserError, match="--allow-dense is not for --format gguf"):
        written(llama, {DOWN: "4"}, tmp_path / "out", ExportOptions(allow_dense=True))
    sparse = llama.with_store(tmp_path / "sparse", kind="sparsity", method="magnitude", levels=("0.5",))
    with pytest.raises(UserError, match=r"kind sparsity, and GGUF types have no masks: .* --kind quantization"):
        written(sparse, {DOWN: "0.5"}, tmp_path / "out")
    joint = llama.with_store(tmp_path / "joint", kind="joint", method="magnitude", levels=("4", "4x0.5"), group_size=32)
    with pytest.raises(UserError, match=rf"{DOWN} has level 4x0.5, and GGUF types have no masks"):
        written(joint, {DOWN: "4x0.5"}, tmp_path / "out")
    assert written(joint, {DOWN: "4"}, tmp_path / "joined").is_dir()
    seven = llama.with_store(tmp_path / "seven", method="rtn", levels=("7",), group_size=32)
    with pytest.raises(UserError, match=rf"{DOWN} has 7 bits, and GGUF has types of 2, 3, 4, 5, 6, 8"):
        written(seven, {DOWN: "7"}, tmp_path / "out")
    other = saved(tmp_path / "gpt2", "gpt2", ("4",))
    with pytest.raises(UserError, match=r"transformer\.h\.0\.attn\.c_attn has no name in GGUF files that evoray knows"):
        written(other, {"transformer.h.0.attn.c_attn": "4"}, tmp_path / "out")
    with pytest.raises(UserError, match="give the --store"):
        export("gguf", ExportSource.open(llama.model, None, {DOWN: "4"}), str(tmp_path / "out"))
    with pytest.raises(UserError, match="no layer of the configuration has a level"):
        export("gguf", ExportSource.open(llama.model, None, {}), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_tiny_models_are_of_the_families_they_stand_for() -> None:
    assert {tiny_config(family).model_type for family in ARCHITECTURES} == {
        "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3",
    }  # fmt: skip
