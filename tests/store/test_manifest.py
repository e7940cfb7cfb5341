"""The manifest: strict reading, identity, and what tells two headers apart."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evoray.errors import UserError
from evoray.store.manifest import (
    BuildState,
    FileEntry,
    LayerEntry,
    LevelCost,
    Manifest,
    StoreHeader,
    read_document,
    write_document,
)

HEADER = {
    "model": "m", "revision": None, "weights_digest": "w", "dtype": "bfloat16", "kind": "quantization",
    "method": "gptq", "levels": ("2", "3", "4"), "group_size": 64, "symmetric": True, "scale_dtype": "bfloat16",
    "cost_format": "compressed-tensors", "text_digest": "t", "documents": ("d1", "d2"), "dense_bytes": 7,
    "settings": {"damping": 0.01, "act_order": True},
}  # fmt: skip


def entry(name="a.b", levels=("3", "2")) -> LayerEntry:
    costs = {level: LevelCost(code_bits=int(level), bytes=int(level)) for level in levels}
    return LayerEntry(name=name, block=0, out_features=2, in_features=3, dense_bytes=12, record_bytes=16, costs=costs)


def file(levels=("3", "2")) -> FileEntry:
    return FileEntry(size=1, sha256="0" * 64, rows=dict.fromkeys(levels, "c"))


def manifest(**changes) -> Manifest:
    return Manifest(**{**HEADER, "layers": (entry(),), "files": {"a.b": file()}, **changes})


def test_it_comes_back_whole_and_keeps_the_order_of_levels():
    written = manifest()
    back = read_document(Manifest, write_document(written), "here")
    assert back == written
    assert back.digest == written.digest
    assert back.layers[0].levels == ("3", "2")
    assert back.layer("a.b") == entry()
    state = BuildState(header=StoreHeader(**HEADER), layers=(entry(),), files={"a.b": file()})
    assert read_document(BuildState, write_document(state), "here") == state


def test_what_older_stores_do_not_say_is_left_open():
    value = json.loads(write_document(manifest()))
    for cost in value["layers"][0]["costs"].values():
        del cost["kept"]
    del value["layers"][0]["outliers"], value["files"]["a.b"]["errors"]
    assert read_document(Manifest, json.dumps(value).encode(), "here") == manifest()


def test_the_digest_changes_with_every_key():
    base = manifest()
    digests = {base.digest}
    for change in (
        {"model": "n"}, {"revision": "r"}, {"weights_digest": "v"}, {"dtype": "float16"}, {"method": "rtn"},
        {"levels": ("2", "3")}, {"group_size": 32}, {"symmetric": False}, {"text_digest": None},
        {"documents": ("d1",)}, {"settings": {}}, {"dense_bytes": 8}, {"files": {"a.b": FileEntry(
            size=2, sha256="0" * 64, rows={"3": "c", "2": "c"})}},
    ):  # fmt: skip
        digests.add(manifest(**change).digest)
    assert len(digests) == 14
    assert manifest(settings={"act_order": True, "damping": 0.01}).digest == base.digest


def test_differences_name_keys_and_both_values():
    other = manifest(group_size=32, settings={"damping": 0.1, "new": 1})
    assert manifest().differences(other.header) == {
        "group_size": (64, 32),
        "settings.damping": (0.01, 0.1),
        "settings.act_order": (True, None),
        "settings.new": (None, 1),
    }
    assert manifest().differences(manifest().header) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda value: value.update(format_version=2),
            "here has format version 2, this evoray reads up to 1; use a newer",
        ),
        (lambda value: value.update(extra=1), "here: extra: unknown key"),
        (lambda value: value["layers"][0].update(extra=1), "here: layers.0.extra: unknown key"),
        (lambda value: value.pop("model"), "here: model: Field required"),
        (lambda value: value.update(group_size="many"), "here: group_size: "),
        (lambda value: value.update(levels=["2", "2"]), "a level stands twice"),
        (lambda value: value["layers"].append(value["layers"][0]), "a layer stands twice"),
        (lambda value: value.update(files={}), "layers and files do not name the same layers"),
        (lambda value: value.update(levels=["4"]), "layer a.b has the level '3'"),
        (lambda value: value["files"]["a.b"]["rows"].pop("2"), "the file of layer a.b does not hold the levels"),
        (lambda value: value["files"]["a.b"].update(errors={"2": 0.5}), "the file of layer a.b has errors of other"),
        (lambda value: value["layers"][0]["costs"]["2"].update(kept=7), "layer a.b, level '2' keeps 7 weights, more"),
        (lambda value: value["layers"][0].update(name="../../etc/x"), r"here: layers.0.name: "),
    ],
)
def test_what_is_wrong_is_named_in_one_line(change, message):
    value = json.loads(write_document(manifest()))
    change(value)
    with pytest.raises(UserError, match=message) as caught:
        read_document(Manifest, json.dumps(value).encode(), "here")
    assert "\n" not in str(caught.value)


@given(st.one_of(st.binary(max_size=40), st.text(max_size=40).map(str.encode), st.sampled_from([b"[]", b"1", b"{}"])))
def test_any_other_text_gives_one_line(text):
    with pytest.raises(UserError) as caught:
        read_document(Manifest, text, "here")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("here")


def test_nothing_can_be_changed():
    with pytest.raises(ValidationError):
        manifest().model = "n"
    with pytest.raises(UserError, match="layer 'c' is not in the store, which has 1 layers"):
        manifest().layer("c")


def test_the_same_weights_under_another_name_are_no_difference():
    assert manifest(model="elsewhere", revision="r").differences(manifest().header) == {}
    assert "model" in manifest(model="elsewhere", weights_digest="v").differences(manifest().header)
