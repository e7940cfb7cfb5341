"""Folders of EvoPress become stores with the same weights; what does not fit is refused before a weight is read."""

import collections
import shutil

import pytest
import torch
from builds import built, check_interrupted

from evoray.compress.evopress import NO_CODES
from evoray.errors import UserError
from evoray.formats import dense_weight
from evoray.formats.costs import cost
from evoray.model import ModelAdapter, load_model
from evoray.report.dry_run import build_estimate
from evoray.run.build import run_build
from evoray.settings import BuildSettings
from evoray.store import VariantStore

KEY = "model.layers.1.self_attn.k_proj"


@pytest.fixture(scope="module")
def weights(material):
    """Layer -> base weight."""
    adapter = ModelAdapter(load_model(material.model, dtype="float32", device="cpu"))
    return {name: adapter.weight_OI(name).clone() for name in adapter.layers}


def write(folder, weights, levels, make, **options):
    """What EvoPress writes: a dense weight per layer and level."""
    for name, weight in weights.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for level in levels:
            torch.save(make(weight, level), folder / name / f"{level}.pth", **options)


def rounded(weight, bits):
    step = float(weight.abs().max()) / (2 ** (int(float(bits)) - 1) - 0.5)
    return ((weight / step).round() * step).to(torch.bfloat16)


def pruned(weight, step):
    """500 weights a step around one half, the smallest of the matrix."""
    zeros = weight.numel() // 2 + 500 * int(step)
    flat = weight.flatten().clone()
    flat[flat.abs().argsort()[: max(0, zeros)]] = 0
    return flat.view(weight.shape).to(torch.float16)


@pytest.fixture(scope="module")
def folders(weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evopress")
    write(folder / "quantization", weights, ("2", "3", "4.0"), rounded)
    # Out of the usual old format: files that can't be mapped.
    write(folder / "sparsity", weights, range(-2, 2), pruned, _use_new_zipfile_serialization=False)
    torch.save({"sparsity": 0.5, "weights_diff": 500, "num_levels": 2}, folder / "sparsity" / "metadata.pth")
    return folder


def test_quantized_weights_come_back_to_the_bit(material, weights, folders, tmp_path):
    manifest = built(material, tmp_path, from_evopress=str(folders / "quantization"), group_size=32, data=None)
    assert (manifest.method, manifest.levels, manifest.settings["codes"]) == ("evopress", ("2", "3", "4"), False)
    store = VariantStore.open(tmp_path)
    assert list(weights) == [entry.name for entry in manifest.layers]
    for entry in manifest.layers:
        base = weights[entry.name]
        assert set(entry.outliers) == {"3", "5", "7", "10"}
        for level, found in entry.costs.items():
            wanted = rounded(base, level)
            assert torch.equal(dense_weight(store.read(entry.name, level), torch.bfloat16), wanted)
            assert found == cost(*base.shape, bits=int(level), group_size=32, symmetric=True, scale_dtype="bfloat16")
            error = float(((wanted.float() - base) ** 2).sum() / (base**2).sum())
            assert manifest.files[entry.name].errors[level] == pytest.approx(error, rel=1e-4)


def test_sparse_steps_keep_what_the_metadata_say(material, weights, folders, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(folders / "sparsity", source)
    # One that keeps more than its step says, and one with a zero among what it keeps.
    more = pruned(weights[KEY], 0)
    more[more == 0] = torch.where(torch.arange(int((more == 0).sum())) < 7, 1.0, 0.0).half()
    less = pruned(weights[KEY], -1)
    less.view(-1)[less.view(-1).nonzero()[0]] = 0
    torch.save(more, source / KEY / "0.pth")
    torch.save(less, source / KEY / "-1.pth")
    (source / KEY / "-2.pth").unlink()
    manifest = built(material, tmp_path / "store", kind="sparsity", from_evopress=str(source), data=None)
    assert manifest.levels == ("1", "0", "-1", "-2")
    assert {key: manifest.settings[key] for key in ("target_sparsity", "steps", "step_weights")} == {
        "target_sparsity": 0.5, "steps": 2, "step_weights": 500,
    }  # fmt: skip
    assert (manifest.cost_format, manifest.scale_dtype) == ("bitmask", "float16")
    store = VariantStore.open(tmp_path / "store")
    for entry in manifest.layers:
        size = weights[entry.name].numel()
        for level, found in entry.costs.items():
            nominal = size // 2 - 500 * int(level)
            assert found.kept == (nominal + 7 if (entry.name, level) == (KEY, "0") else nominal)
            # The model is in float32.
            assert (found.code_bits, found.bytes) == (32 * found.kept, size // 8 + 4 * found.kept)
            if entry.name != KEY:
                weight = dense_weight(store.read(entry.name, level), torch.float16)
                assert torch.equal(weight, pruned(weights[entry.name], level))
    assert manifest.layer(KEY).levels == ("1", "0", "-1")


def test_without_metadata_the_zeros_are_counted(material, weights, folders, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(folders / "sparsity", source)
    (source / "metadata.pth").unlink()
    less = pruned(weights[KEY], -1)
    less.view(-1)[less.view(-1).nonzero()[0]] = 0
    torch.save(less, source / KEY / "-1.pth")
    manifest = built(material, tmp_path / "store", kind="sparsity", from_evopress=str(source), data=None)
    assert manifest.layer(KEY).costs["-1"].kept == 1024 + 500 - 1
    assert "step_weights" not in manifest.settings


def test_layer_errors_are_those_of_the_folder(material, weights, folders, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(folders / "sparsity", source)
    # As compute_layer_errors.py makes it: dictionaries by the size of layers, of dictionaries of lists.
    groups = collections.defaultdict(lambda: collections.defaultdict(list))
    for index, (name, weight) in enumerate(weights.items()):
        for step in range(4):
            groups[weight.numel()][name].append(index * (step > 0) + 0.1 * step)
    groups.default_factory = dict
    torch.save(groups, source / "errors.pth")
    manifest = built(material, tmp_path / "store", kind="sparsity", from_evopress=str(source), data=None)
    for index, name in enumerate(weights):
        # Rising levels: -2 first.
        expected = {"-2": 0.0, "-1": index + 0.1, "0": index + 0.2, "1": index + 0.1 * 3}
        assert manifest.files[name].errors == expected
        assert list(manifest.files[name].errors) == ["1", "0", "-1", "-2"]


def test_an_interrupted_import_ends_with_the_same_bytes(material, folders, tmp_path):
    source = str(folders / "quantization")
    check_interrupted(material, tmp_path, (1, 5), from_evopress=source, group_size=-1, symmetric=False, data=None)


def test_what_can_not_be_exported_is_said(material, folders, tmp_path):
    from searches import Told

    told = Told()
    settings = BuildSettings(
        model=material.model, store=str(tmp_path), kind="sparsity", from_evopress=str(folders / "sparsity"), threads=1
    )
    run_build(settings, told)
    assert f"note: {NO_CODES}" in told.notes
    cells = [str(cell) for column in build_estimate(settings)[0].columns for cell in column._cells]
    assert "1, 0, -1, -2" in cells


@pytest.fixture
def source(folders, tmp_path):
    """A folder of its own, of quantized levels."""
    shutil.copytree(folders / "quantization", tmp_path / "source")
    return tmp_path / "source"


def other(weight):
    return lambda source: torch.save(weight, source / KEY / "3.pth")


class Strange:
    """Of a class that no loader should make."""


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (shutil.rmtree, "there is no such folder; give one with LAYER/LEVEL.pth files"),
        (lambda source: (source / "model.layers.9.x").mkdir(), r"the model has no layer model\.layers\.9\.x; give the"),
        (lambda source: shutil.rmtree(source / KEY), rf"1 of the model's 21 layers are missing: {KEY}; make them"),
        (lambda source: [file.unlink() for file in (source / KEY).iterdir()], rf"layers are missing: {KEY};"),
        (lambda source: (source / KEY / "3.pth").unlink(), rf"layer {KEY} lacks level 3, which others have"),
        (lambda source: shutil.copy(source / KEY / "3.pth", source / KEY / "3.0.pth"), "level 3 is there twice, in 3"),
        (lambda source: shutil.copy(source / KEY / "3.pth", source / KEY / "x.pth"), "its name is no whole level"),
        (lambda source: shutil.copy(source / KEY / "3.pth", source / KEY / "2.5.pth"), "its name is no whole level"),
        (lambda source: shutil.copy(source / KEY / "3.pth", source / KEY / "-1.pth"), "level -1 is no number of bits"),
        (other(torch.ones(3, 4, dtype=torch.bfloat16)), r"has the shape \[3, 4\], the layer \[32, 64\]"),
        (other(torch.ones(32, 64)), r"has the dtype torch\.float32; all weights must have one of"),
        (other({"a": 1}), "holds no weight but a dict"),
        (other(Strange()), "is no file of weights"),
        (lambda source: (source / KEY / "3.pth").write_bytes(b"PK"), "is no file of weights"),
        (lambda source: torch.save([1], source / "errors.pth"), "holds no layer errors by group and layer"),
        (lambda source: torch.save({-1: {KEY: [0.1]}}, source / "errors.pth"), "has no error for each of the 3 levels"),
    ],
)
def test_what_does_not_fit_is_refused(material, source, tmp_path, spoil, said):
    spoil(source)
    with pytest.raises(UserError, match=said) as caught:
        built(material, tmp_path / "store", from_evopress=str(source), group_size=32, data=None)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_sparse_folders_that_are_refused(material, folders, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(folders / "sparsity", source)
    torch.save({"sparsity": 0.5, "owl_m": [5]}, source / "metadata.pth")
    with pytest.raises(UserError, match="does not say sparsity, weights_diff and num_levels"):
        built(material, tmp_path / "store", kind="sparsity", from_evopress=str(source), data=None)
    with pytest.raises(UserError, match="group size 48 does not divide"):
        built(material, tmp_path / "store", from_evopress=str(folders / "quantization"), group_size=48, data=None)
