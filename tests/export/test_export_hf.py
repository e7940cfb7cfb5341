"""The exported checkpoint is the model that was measured."""

import json
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from stores import tiny_store
from tiny import tiny_ids, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

import evoray.export.hf as hf
from evoray.configuration import Configuration, parse_configuration
from evoray.embedded import model_path
from evoray.errors import EvorayError, UserError
from evoray.export import ExportSource, export
from evoray.formats import dense_weight
from evoray.model import ModelAdapter, checkpoint_facts
from evoray.store import VariantStore

pytestmark = pytest.mark.usefixtures("same_products")


class Case:
    """A saved tiny model with a store, and a configuration that uses all levels and the base weight."""

    def __init__(
        self, folder: Path, family: str, levels: Sequence[str] = ("2", "3", "4"), dtype: torch.dtype = torch.float32
    ) -> None:
        self.model = str(folder / "model")
        made = tiny_model(family).to(dtype)
        made.generation_config = GenerationConfig(max_new_tokens=17, bos_token_id=1, eos_token_id=2, pad_token_id=0)
        made.save_pretrained(self.model)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / "model" / name).write_bytes((Path(model_path()) / name).read_bytes())
        digest = checkpoint_facts(self.model).weights_digest
        self.store = tiny_store(folder / "store", self.loaded(), levels, model=self.model, weights_digest=digest)
        layers = [layer.name for layer in VariantStore.open(self.store).manifest.layers]
        choices = (*levels, "base")
        self.configuration: Configuration = {
            name: choices[index % len(choices)] for index, name in enumerate(layers[:-1])
        }  # the last layer is not named, and keeps its base weight

    def loaded(self, folder: str | Path | None = None) -> PreTrainedModel:
        model = AutoModelForCausalLM.from_pretrained(folder or self.model, dtype=torch.float32)
        return model.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=["llama", "qwen2", "gpt2"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """llama's head is tied; qwen2's is not, and it has biases; gpt2 keeps its weights the other way around."""
    return Case(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def exported(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(
        "hf",
        ExportSource.open(case.model, case.store, case.configuration),
        str(tmp_path_factory.mktemp("out") / "exported"),
    )


def test_its_logits_are_those_of_the_swapped_model(case: Case, exported: Path) -> None:
    adapter = ModelAdapter(case.loaded())
    store = VariantStore.open(case.store)
    ids = tiny_ids(vocabulary=90)
    base = adapter.logits(ids)
    for name, level in case.configuration.items():
        if level != "base":
            adapter.swap(name, adapter.ready(name, dense_weight(store.read(name, level), adapter.dtype)))
    wanted = adapter.logits(ids)
    found = case.loaded(exported)(input_ids=ids, use_cache=False).logits
    assert torch.equal(found, wanted)
    assert not torch.equal(found, base)


def test_its_weights_are_what_the_codes_dequantize_to_and_all_others_the_base_models(
    case: Case, exported: Path
) -> None:
    store, before, after = VariantStore.open(case.store), case.loaded().state_dict(), case.loaded(exported).state_dict()
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        layer = name.removesuffix(".weight")
        level = case.configuration.get(layer, "base")
        wanted = before[name]
        if name.endswith(".weight") and level != "base":
            wanted = dense_weight(store.read(layer, level), torch.float32)
            wanted = wanted.T if "gpt2" in str(type(case.loaded())) else wanted
        assert torch.equal(tensor, wanted), name


def test_all_that_belongs_to_a_checkpoint_is_there_and_unharmed(case: Case, exported: Path) -> None:
    before, after = (json.loads((Path(folder) / "config.json").read_text()) for folder in (case.model, exported))
    assert after == before
    assert (
        GenerationConfig.from_pretrained(exported).to_dict() == GenerationConfig.from_pretrained(case.model).to_dict()
    )
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (case.model, exported)]
    assert tokenizers[0]("Hello, wörld").input_ids == tokenizers[1]("Hello, wörld").input_ids
    assert parse_configuration((exported / "evoray-configuration.txt").read_text()) == case.configuration
    # As open to others as any new file; safetensors and temporary folders are not by themselves.
    (exported.parent / "probe").touch()
    usual = stat.S_IMODE((exported.parent / "probe").stat().st_mode)
    assert {stat.S_IMODE(file.stat().st_mode) for file in exported.iterdir()} == {usual}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("llama"), "llama")


def test_scales_of_more_digits_than_the_checkpoint_are_not_rounded(tmp_path: Path) -> None:
    half = Case(tmp_path, "llama", dtype=torch.float16)  # the store's scales are float32
    out = export("hf", ExportSource.open(half.model, half.store, half.configuration), str(tmp_path / "out"))
    store, after = VariantStore.open(half.store), half.loaded(out).state_dict()
    for name, level in half.configuration.items():
        if level != "base":
            assert torch.equal(after[f"{name}.weight"], dense_weight(store.read(name, level), torch.float32)), name


def test_it_appears_whole_or_not_at_all(llama: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf, "load_tokenizer", full)
    with pytest.raises(EvorayError, match="can't be written: No space left on device"):
        export("hf", ExportSource.open(llama.model, llama.store, llama.configuration), str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_left_alone(llama: Case, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    for out in (tmp_path, tmp_path / "mine"):
        with pytest.raises(UserError, match="holds something already; give a new folder"):
            export("hf", ExportSource.open(llama.model, llama.store, llama.configuration), str(out))
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_an_empty_folder_and_paths_with_spaces_and_umlauts(llama: Case, tmp_path: Path) -> None:
    out = tmp_path / "ein Häufchen" / "Gewichte"
    out.mkdir(parents=True)
    assert export("hf", ExportSource.open(llama.model, llama.store, {}), str(out)) == out
    base = llama.loaded().state_dict()
    assert all(torch.equal(tensor, base[name]) for name, tensor in llama.loaded(out).state_dict().items())


def test_it_refuses_what_does_not_fit(llama: Case, tmp_path: Path) -> None:
    other = tmp_path / "other"
    tiny_model("llama", seed=1).save_pretrained(other)
    first = next(iter(llama.configuration))
    for model, configuration, said in [
        (str(other), llama.configuration, "made from other base weights"),
        (llama.model, {"nope": "3"}, "the configuration names nope"),
        (llama.model, {first: "7"}, "has no level '7'; choose 2, 3, 4 or base"),
    ]:
        with pytest.raises(UserError, match=said):
            export("hf", ExportSource.open(model, llama.store, configuration), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
