"""Loading: dtypes, devices, the embedded model, snapshots of the hub, and one line for each mistake."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file, save_file
from tiny import tiny_ids, tiny_model
from transformers.utils import logging

from evoray.embedded import EMBEDDED
from evoray.errors import UserError
from evoray.model import (
    Need,
    checkpoint_facts,
    load_config,
    load_model,
    load_tokenizer,
    pick_device,
    quiet_transformers,
    resolve_checkpoint,
    settle_numerics,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A float16 llama on disk, without tokenizer."""
    tiny_model("llama").to(torch.float16).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.fixture
def hub(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub that holds the llama as "someone/llama"; returns its snapshot."""
    cache = tmp_path / "hub"
    repository = cache / "models--someone--llama"
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(folder, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return snapshot


def _answer(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> list[dict[str, Any]]:
    """Let the hub answer every download with an error, and nothing be in the cache; returns the requests."""
    requests: list[dict[str, Any]] = []

    def snapshot_download(model: str, **arguments: Any) -> str:
        requests.append({"model": model, **arguments})
        if arguments["local_files_only"]:
            raise LocalEntryNotFoundError("not in the cache")
        raise error

    monkeypatch.setattr("evoray.model.checkpoint.snapshot_download", snapshot_download)
    return requests


def test_a_loaded_model_is_ready_for_evaluation(folder: Path) -> None:
    model = load_model(str(folder))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    # float32 on the CPU, whatever the checkpoint's dtype; its values exactly.
    assert model.dtype == torch.float32
    stored = load_file(folder / "model.safetensors")
    assert all(torch.equal(model.get_parameter(name), tensor.float()) for name, tensor in stored.items())
    # What an export writes is the checkpoint's own configuration, so it must not say that caching is off.
    assert model.config.use_cache


def test_dtype_can_be_chosen(folder: Path) -> None:
    assert load_model(str(folder), dtype="bfloat16").dtype == torch.bfloat16
    assert load_model(str(folder), dtype="float16").dtype == torch.float16
    with pytest.raises(UserError, match="dtype int4: not one of auto, float32, float16, bfloat16"):
        load_model(str(folder), dtype="int4")


def test_attention_implementation_reaches_the_model(folder: Path) -> None:
    assert load_model(str(folder), attn_implementation="eager").config._attn_implementation == "eager"
    with pytest.raises(UserError, match="nope"):
        load_model(str(folder), attn_implementation="nope")


def test_the_embedded_model() -> None:
    facts = checkpoint_facts(EMBEDDED)
    model = load_model(EMBEDDED)
    assert type(model).__name__ == facts.model_class == "LlamaForCausalLM"
    tokenizer = load_tokenizer(EMBEDDED)
    ids_BT = torch.tensor([tokenizer("any text")["input_ids"]])
    assert bool(model(input_ids=ids_BT).logits.isfinite().all())


def test_loading_leaves_transformers_as_talkative_as_it_was(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    load_model(str(folder))
    checkpoint_facts(str(folder))
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    with contextlib.suppress(UserError), quiet_transformers():
        assert not logging.is_progress_bar_enabled()
        raise UserError("any")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_numerics_are_settled() -> None:
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = True
    settle_numerics()
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cudnn.benchmark
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UserError, match="device toaster: not known; choose auto, cpu, cuda"):
        pick_device("toaster")
    with pytest.raises(UserError, match="device meta: not supported"):
        pick_device("meta")
    with pytest.raises(UserError, match=r"device cuda:99: torch sees \d+ CUDA devices"):
        pick_device("cuda:99")


def test_missing_weights_are_named_not_made_up(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 of the weights .*model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(str(folder))


def test_unreadable_models_are_one_line(folder: Path, tmp_path: Path) -> None:
    def line(model: object, action: Any = load_model) -> str:
        with pytest.raises(UserError) as caught:
            action(str(model))
        text = str(caught.value)
        assert "\n" not in text
        return text

    assert "there is no such folder" in line(tmp_path / "none")
    assert "there is no such folder" in line("./none")
    assert "there is no such folder" in line("")
    assert "neither a folder nor a model id" in line("a b")
    assert "is a file" in line(folder / "config.json")
    (tmp_path / "empty").mkdir()
    assert "no config.json in" in line(tmp_path / "empty")
    assert "no tokenizer in" in line(folder, load_tokenizer)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "can't load it" in line(folder)
    (folder / "model.safetensors").unlink()
    assert "no weights (model.safetensors or pytorch_model.bin)" in line(folder)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "tokenizer.json").write_text("{broken")
    assert "its tokenizer" in line(folder, load_tokenizer)

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "unheard_of"}))
    assert "unheard_of" in line(folder)
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    assert "quantized already (gptq)" in line(folder)
    assert "quantized already (gptq)" in line(folder, checkpoint_facts)
    (folder / "config.json").write_text("{broken")
    assert "can't load it" in line(folder, load_config)


def test_models_without_a_causal_head_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "vision"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    save_file({"w": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="can't load it"):
        load_model(str(folder))
    with pytest.raises(UserError, match="can't load it"):
        checkpoint_facts(str(folder))


def test_code_of_a_checkpoint_runs_only_when_trusted(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "homemade",
        "auto_map": {"AutoConfig": "home.HomeConfig", "AutoModelForCausalLM": "home.Home"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "home.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class HomeConfig(LlamaConfig):\n    model_type = 'homemade'\n"
        "class Home(LlamaForCausalLM):\n    config_class = HomeConfig\n"
    )
    with pytest.raises(UserError, match="brings its own code; give --trust-remote-code"):
        load_model(str(folder))
    model = load_model(str(folder), trust_remote_code=True)
    assert type(model).__name__ == "Home"
    assert checkpoint_facts(str(folder), trust_remote_code=True).model_class == "Home"


def test_folders_have_no_revisions(folder: Path) -> None:
    with pytest.raises(UserError, match=r"revision main: .* is a folder and has no revisions"):
        load_model(str(folder), revision="main")


def test_cached_snapshots_are_used_without_asking_the_hub(hub: Path, folder: Path) -> None:
    assert resolve_checkpoint("someone/llama") == hub
    assert resolve_checkpoint("someone/llama", COMMIT) == hub
    facts = checkpoint_facts("someone/llama")
    assert facts.revision == COMMIT
    assert facts.weights_digest == checkpoint_facts(str(folder)).weights_digest
    ids_BT = tiny_ids()
    expected = load_model(str(folder))(input_ids=ids_BT).logits
    assert torch.equal(load_model("someone/llama", revision="main")(input_ids=ids_BT).logits, expected)


def test_an_incomplete_snapshot_is_completed(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration was fetched before, the weights were not; and they turn out to be pickles."""
    weights = load_file(hub / "model.safetensors")
    (hub / "model.safetensors").unlink()
    requests: list[list[str]] = []

    def snapshot_download(model: str, **arguments: Any) -> str:
        if not arguments["local_files_only"]:
            requests.append(arguments["allow_patterns"])
            if "pytorch_model*.bin" in arguments["allow_patterns"]:
                torch.save(weights, hub / "pytorch_model.bin")
        return str(hub)

    monkeypatch.setattr("evoray.model.checkpoint.snapshot_download", snapshot_download)
    assert resolve_checkpoint("someone/llama", need=Need.config) == hub
    assert requests == []
    assert load_model("someone/llama").dtype == torch.float32
    assert ["model*.safetensors" in patterns for patterns in requests] == [True, False]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (RepositoryNotFoundError, "model someone/thing: no such folder, nor such a model on the hub"),
        (GatedRepoError, "model someone/thing is gated; ask for access on the hub and set HF_TOKEN"),
        (RevisionNotFoundError, "the hub has the model but not this revision"),
        (LocalEntryNotFoundError, "not in the local cache, and the hub can't be reached"),
        (OSError, "not in the local cache, and the hub can't be reached"),
    ],
)
def test_what_the_hub_says_is_one_line(kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Made without their constructors, which want a response of the network and differ between versions.
    requests = _answer(monkeypatch, kind.__new__(kind, "no answer"))
    with pytest.raises(UserError, match=message) as caught:
        load_model("someone/thing")
    assert "\n" not in str(caught.value)
    assert [request["local_files_only"] for request in requests] == [True, False]


def test_several_gpus_are_wanted_where_there_are_none() -> None:
    with pytest.raises(UserError, match=r"^--gpus-per-worker 2 with device cpu: blocks are spread over GPUs alone"):
        load_model("embedded", device="cpu", gpus=2)
    if torch.cuda.device_count() < 9:
        with pytest.raises(UserError, match=r"^--gpus-per-worker 9: torch sees \d CUDA devices here"):
            load_model("embedded", device="auto", gpus=9)
