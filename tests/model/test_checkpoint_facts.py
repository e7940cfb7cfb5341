"""Facts of a checkpoint against the loaded model, and the digest of its weights against the obvious reference."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model
from transformers import AutoModelForCausalLM

from evoray.errors import UserError
from evoray.model import ModelAdapter, checkpoint_facts, model_folder, weights_digest
from evoray.model.checkpoint import checkpoint_dtype, weight_files


def _saved(family: str, folder: Path, dtype: torch.dtype = torch.float32, **settings: object) -> Path:
    tiny_model(family).to(dtype).save_pretrained(folder, **settings)
    return folder


@pytest.mark.parametrize(
    ("family", "dtype", "max_position"),
    [
        ("llama", torch.float16, 2048),
        ("gpt2", torch.float32, 128),
        ("mamba", torch.bfloat16, None),
        ("opt", torch.float32, 128),
        ("gemma3_vision", torch.bfloat16, 131072),
    ],
)
def test_facts_are_those_of_the_loaded_model(
    family: str, dtype: torch.dtype, max_position: int | None, tmp_path: Path
) -> None:
    folder = _saved(family, tmp_path / family, dtype)
    facts = checkpoint_facts(str(folder))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    adapter = ModelAdapter(model)
    parameters = dict(model.named_parameters())
    assert {name: facts.tensors[name] for name in parameters} == {n: tuple(p.shape) for n, p in parameters.items()}
    assert facts.dtype == str(dtype).removeprefix("torch.")
    assert facts.model_class == type(model).__name__
    assert facts.n_blocks == adapter.n_blocks
    assert facts.max_position == max_position
    assert facts.revision is None
    assert [(x.name, x.block, x.out_features, x.in_features) for x in facts.layers] == [
        (ref.name, ref.block, ref.out_features, ref.in_features) for ref in adapter.layers.values()
    ]
    layer_bytes = sum(ref.base.numel() * dtype.itemsize for ref in adapter.layers.values())
    assert sum(layer.dense_bytes for layer in facts.layers) == layer_bytes
    assert facts.dense_bytes == facts.parameter_bytes - layer_bytes
    # save_pretrained wrote each tensor once, in one dtype.
    stored = load_file(folder / "model.safetensors")
    assert facts.parameter_bytes == sum(tensor.numel() for tensor in stored.values()) * dtype.itemsize


def test_a_folder_named_like_a_commit_has_no_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _saved("llama", tmp_path / ("0123456789" * 4))
    monkeypatch.chdir(tmp_path)
    for model in (str(folder), folder.name):
        assert checkpoint_facts(model).revision is None
        assert model_folder(model) == folder
    assert model_folder("embedded") is None
    assert model_folder("someone/llama") is None


def test_facts_read_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _saved("llama", tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("safetensors.torch.load_file", refuse)
    monkeypatch.setattr("transformers.modeling_utils.safe_open", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert checkpoint_facts(str(folder)).n_blocks == 3


def test_weights_out_of_reach_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    folder = str(_saved("qwen3_moe", tmp_path))
    with pytest.raises(UserError, match=r"Qwen3MoeExperts.*--allow-partial"):
        checkpoint_facts(folder)
    facts = checkpoint_facts(folder, allow_partial=True)
    assert len(facts.layers) == 12
    assert "Qwen3MoeExperts" in facts.notes[0]


def _reference_digest(folder: Path, names: list[str]) -> str:
    """The digest as its docstring says it, all bytes in memory."""
    digest = hashlib.sha256(b"evoray weights 1\n")
    for name in names:
        data = (folder / name).read_bytes()
        header = 8 + int.from_bytes(data[:8], "little") if name.endswith(".safetensors") else 0
        digest.update(f"{name}\n{len(data)}\n{header}\n".encode())
        digest.update(data[:header])
        rest = data[header:]
        if len(rest) <= 64 * 4096:
            digest.update(rest)
        else:
            for page in range(64):
                begin = page * (len(rest) - 4096) // 63
                digest.update(rest[begin : begin + 4096])
    return digest.hexdigest()


def test_digest_is_the_reference(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    save_file({"w": torch.randn(300, 1000, generator=generator)}, tmp_path / "model.safetensors")
    assert weights_digest(tmp_path) == _reference_digest(tmp_path, ["model.safetensors"])
    small = tmp_path / "small"
    small.mkdir()
    save_file({"w": torch.randn(3, 1001, generator=generator)}, small / "model.safetensors")
    assert weights_digest(small) == _reference_digest(small, ["model.safetensors"])
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    torch.save({"w": torch.randn(300, 1000, generator=generator)}, pickled / "pytorch_model.bin")
    assert weights_digest(pickled) == _reference_digest(pickled, ["pytorch_model.bin"])


def test_digest_knows_content_and_not_place_or_time(tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.mkdir()
    path = first / "model.safetensors"
    weights = {"w": torch.ones(300, 1000), "b": torch.zeros(5)}
    save_file(weights, path)
    digest = weights_digest(first)
    second = tmp_path / "second"
    shutil.copytree(first, second)
    (second / "model.safetensors").touch()
    assert weights_digest(second) == digest

    seen = {digest}
    data = bytearray(path.read_bytes())
    for place in (-1, 8 + int.from_bytes(data[:8], "little")):  # last and first byte of the weights
        data[place] ^= 1
        path.write_bytes(data)
        seen.add(weights_digest(first))
    save_file({"v": weights["w"], "b": weights["b"]}, path)  # another name
    seen.add(weights_digest(first))
    save_file({**weights, "b": torch.zeros(6)}, path)  # another shape
    seen.add(weights_digest(first))
    assert len(seen) == 5


def test_shards_are_read_by_their_index(tmp_path: Path) -> None:
    folder = _saved("llama", tmp_path, max_shard_size="100KB")
    names = weight_files(folder)
    assert len(names) > 1
    assert all(name.startswith("model-0") for name in names)
    facts = checkpoint_facts(str(folder))
    assert facts.weights_digest == _reference_digest(folder, sorted(names))
    (folder / "other.safetensors").write_bytes(b"not read by anyone")
    assert weights_digest(folder) == facts.weights_digest
    (folder / names[1]).unlink()
    with pytest.raises(UserError, match=f"1 of {len(names)} weight files are missing, {names[1]}"):
        checkpoint_facts(str(folder))


def test_dtype_is_that_of_most_weights(tmp_path: Path) -> None:
    config = tiny_model("llama").config
    config.dtype = torch.float32
    tensors = {"big": torch.zeros(9, 9, dtype=torch.bfloat16), "small": torch.zeros(9)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert checkpoint_dtype(tmp_path, config) == torch.bfloat16
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert checkpoint_dtype(tmp_path, config) == torch.float32


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "no readable safetensors file"), (b"\xff" * 64, "no readable safetensors file")],
)
def test_unreadable_weights_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    folder = _saved("llama", tmp_path)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=message):
        checkpoint_facts(str(folder))


def test_unreadable_index_is_named(tmp_path: Path) -> None:
    folder = _saved("llama", tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": 3}))
    with pytest.raises(UserError, match=r"model.safetensors.index.json is unreadable"):
        checkpoint_facts(str(folder))


def test_weights_that_were_cut_off_are_named(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="or cut off; download the checkpoint again"):
        checkpoint_facts(str(tmp_path))
