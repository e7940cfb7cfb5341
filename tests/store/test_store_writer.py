"""Building a store: it goes on where it was killed, and a half-written layer does not exist."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from evoray.errors import EvorayError, UserError
from evoray.store import LayerEntry, LevelCost, StoreHeader, StoreWriter, Variant, VariantStore
from evoray.store import writer as writer_module
from evoray.store.manifest import BuildState, read_document, write_document

NAMES = ("blocks.0.q", "blocks.0.k", "blocks.1.q", "blocks.1.k")


def header(**changes) -> StoreHeader:
    values = {
        "model": "m", "weights_digest": "w", "dtype": "float32", "kind": "quantization", "method": "rtn",
        "levels": ("2", "4"), "group_size": 8, "symmetric": True, "scale_dtype": "float32",
        "cost_format": "compressed-tensors", "dense_bytes": 0, "settings": {"seed": 0},
    }  # fmt: skip
    return StoreHeader(**{**values, **changes})


def entry(name: str) -> LayerEntry:
    costs = {level: LevelCost(code_bits=1, bytes=2) for level in ("2", "4")}
    return LayerEntry(
        name=name, block=int(name.split(".")[1]), out_features=1, in_features=1, dense_bytes=4, record_bytes=16,
        costs=costs,
    )  # fmt: skip


def variants(name: str) -> list[Variant]:
    return [
        Variant(name, level, {"codes": f"{name} {level}".encode() * 9}, {"format": "x"}, 0.0) for level in ("2", "4")
    ]


def build(place, names=NAMES, **changes) -> StoreWriter:
    writer = StoreWriter(place, header(**changes))
    for name in names:
        if name not in writer.finished_layers():
            writer.write(entry(name), variants(name))
    return writer


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def whole(tmp_path) -> dict[str, bytes]:
    """The files of a store built without a stop."""
    build(tmp_path / "whole").finish()
    return files(tmp_path / "whole")


def test_a_store_holds_its_manifest_and_a_file_per_layer(whole):
    assert set(whole) == {"manifest.json", *(f"layers/{name}.arrow" for name in NAMES)}


def test_an_exception_in_the_middle_of_a_file_leaves_no_trace(tmp_path, whole, monkeypatch):
    class Stop(Exception):
        pass

    def half(path, layer, given):
        path.write_bytes(b"ARROW1 half")
        raise Stop

    build(tmp_path / "store", NAMES[:2])
    monkeypatch.setattr(writer_module, "write_layer", half)
    with pytest.raises(Stop):
        build(tmp_path / "store")
    monkeypatch.undo()
    assert set(files(tmp_path / "store")) == {"building.json", *(f"layers/{name}.arrow" for name in NAMES[:2])}
    again = StoreWriter(tmp_path / "store", header())
    assert again.finished_layers() == set(NAMES[:2])
    build(tmp_path / "store").finish()
    assert files(tmp_path / "store") == whole


def test_a_published_file_that_nothing_names_does_not_exist(tmp_path, whole, monkeypatch):
    """Killed between the renaming of the file and the naming of the layer."""

    def stop(self):
        raise KeyboardInterrupt

    build(tmp_path / "store", NAMES[:1])
    monkeypatch.setattr(StoreWriter, "_save", stop)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "store")
    monkeypatch.undo()
    assert (tmp_path / "store" / "layers" / f"{NAMES[1]}.arrow").exists()
    assert StoreWriter(tmp_path / "store", header()).finished_layers() == {NAMES[0]}
    build(tmp_path / "store").finish()
    assert files(tmp_path / "store") == whole


CHILD = """
import sys
sys.path[:0] = {paths!r}
import test_store_writer as mine
from evoray.store import writer

real, layers = writer.write_layer, []
def pausing(path, layer, given):
    entry = real(path, layer, given)
    layers.append(layer)
    if len(layers) == 3:
        path.write_bytes(path.read_bytes()[:200])
        print("half", flush=True)
        sys.stdin.read()
    return entry
writer.write_layer = pausing
mine.build({place!r}).finish()
"""


def test_a_build_killed_in_the_middle_of_a_file_goes_on(tmp_path, whole):
    place = tmp_path / "store"
    paths = [str(Path(__file__).parent), *filter(None, sys.path)]
    code = CHILD.format(paths=paths, place=str(place))
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"half\n"
        assert any(name.endswith(".tmp") for name in os.listdir(place / "layers"))
        with pytest.raises(UserError, match=r"still being built \(2 layers are finished\)"):
            VariantStore.open(place)
        child.kill()
    assert child.returncode == -9
    writer = StoreWriter(place, header())
    assert writer.finished_layers() == set(NAMES[:2])
    assert set(files(place)) == {"building.json", *(f"layers/{name}.arrow" for name in NAMES[:2])}
    build(place).finish()
    assert files(place) == whole


@pytest.mark.parametrize("count", range(len(NAMES) + 1))
def test_what_is_finished_is_told_as_a_whole_document_tells_it(tmp_path, count):
    writer = build(tmp_path, NAMES[:count], model='a "model"\nof two lines, ü')
    if not count:
        writer._save()
    text = (tmp_path / "building.json").read_bytes()
    state = read_document(BuildState, text, "building.json")
    assert write_document(state) == text
    assert [layer.name for layer in state.layers] == list(NAMES[:count])


class Seconds:
    """A clock that stands still until it is moved."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(writer_module.time, "monotonic", lambda: self.now)


def named(place: Path) -> list[str]:
    """The layers that would survive a crash."""
    path = place / "building.json"
    return [layer.name for layer in read_document(BuildState, path.read_bytes(), path).layers] if path.exists() else []


def test_layers_that_are_made_fast_are_named_together(tmp_path, whole, monkeypatch):
    clock, place = Seconds(monkeypatch), tmp_path / "store"
    writer = StoreWriter(place, header())
    found = []
    for name, seconds in zip(NAMES, (0.0, 0.6, 0.6, 7.0), strict=True):
        clock.now += seconds
        writer.write(entry(name), variants(name), name=False)
        writer.name_finished(after=1.0)
        found.append(named(place))
        assert writer.finished_layers() == set(NAMES[: len(found)])
    # The first at once, so that whoever looks finds a store in the making.
    assert found == [list(NAMES[:1]), list(NAMES[:1]), list(NAMES[:3]), list(NAMES)]
    writer.finish()
    assert files(place) == whole


def test_whatever_was_named_last_a_build_ends_with_the_same_bytes(tmp_path, whole, monkeypatch):
    """Killed with any number of files in place, of which any number are named."""
    Seconds(monkeypatch)
    for written in range(len(NAMES) + 1):
        for known in range(written + 1):
            place = tmp_path / f"{known} of {written}"
            writer = StoreWriter(place, header())
            for number, name in enumerate(NAMES[:written], start=1):
                writer.write(entry(name), variants(name), name=number == known)
            assert StoreWriter(place, header()).finished_layers() == set(NAMES[:known])
            build(place).finish()
            assert files(place) == whole
    writer = StoreWriter(tmp_path / "at the end", header())
    for name in NAMES:
        writer.write(entry(name), variants(name), name=False)
    assert named(tmp_path / "at the end") == []
    writer.name_finished()
    assert named(tmp_path / "at the end") == list(NAMES)


def test_building_a_finished_store_again_does_nothing(tmp_path, whole):
    place = tmp_path / "whole"
    times = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    writer = build(place)
    assert writer.finished_layers() == set(NAMES)
    manifest = writer.finish()
    assert manifest == VariantStore.open(place).manifest
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == times


def test_killed_between_manifest_and_the_end(tmp_path, whole):
    place = tmp_path / "whole"
    (place / "building.json").write_text("{}")
    assert VariantStore.open(place).read(NAMES[0], "2").columns["codes"] == variants(NAMES[0])[0].columns["codes"]
    assert build(place).finished_layers() == set(NAMES)
    assert files(place) == whole


@pytest.mark.parametrize("finished", [True, False])
def test_lost_and_cut_files_are_made_again(tmp_path, whole, finished):
    place = tmp_path / "store"
    writer = build(place)
    if finished:
        writer.finish()
    (place / "layers" / f"{NAMES[1]}.arrow").unlink()
    (place / "layers" / f"{NAMES[2]}.arrow").write_bytes(b"cut")
    assert StoreWriter(place, header()).finished_layers() == {NAMES[0], NAMES[3]}
    with pytest.raises(UserError, match=r"still being built \(2 layers" if finished else "still being built"):
        VariantStore.open(place)
    build(place).finish(NAMES)
    assert files(place) == whole


@pytest.mark.parametrize("finished", [True, False])
def test_another_header_is_refused_by_the_keys_that_differ(tmp_path, finished):
    writer = build(tmp_path)
    if finished:
        writer.finish()
    before = files(tmp_path)
    with pytest.raises(UserError) as caught:
        StoreWriter(tmp_path, header(group_size=16, settings={"seed": 1}, documents=tuple("abcdefghij" * 10)))
    text = str(caught.value)
    assert text.startswith(
        f"{tmp_path} holds a store made otherwise: group_size (8 there, 16 now), documents ([] there, ["
    )
    assert text.endswith("settings.seed (0 there, 1 now); give another folder by --store")
    assert len(text) < 400 + len(str(tmp_path))
    assert files(tmp_path) == before


def test_an_unfinished_manifest_of_another_order_is_put_in_order(tmp_path, whole):
    build(tmp_path / "a", [NAMES[2], NAMES[0], NAMES[3], NAMES[1]]).finish()
    manifest = VariantStore.open(tmp_path / "a").manifest
    assert [layer.name for layer in manifest.layers] == list(NAMES)
    build(tmp_path / "b", reversed(NAMES)).finish(NAMES)
    assert files(tmp_path / "b") == whole


def test_a_store_without_all_its_layers_is_not_finished(tmp_path):
    with pytest.raises(EvorayError, match=r"lacks 1 layers \(blocks\.1\.k\)"):
        build(tmp_path, NAMES[:3]).finish(NAMES)
    with pytest.raises(EvorayError, match="lacks all layers"):
        StoreWriter(tmp_path / "empty", header()).finish()
    assert not (tmp_path / "manifest.json").exists()


def test_variants_that_do_not_match_are_refused(tmp_path):
    writer = build(tmp_path, NAMES[:1])
    with pytest.raises(ValueError, match="finished already"):
        writer.write(entry(NAMES[0]), variants(NAMES[0]))
    for given in (variants(NAMES[1])[:1], variants(NAMES[0]), variants(NAMES[1]) * 2):
        with pytest.raises(ValueError, match=r"takes one variant for each of \['2', '4'\]"):
            writer.write(entry(NAMES[1]), given)
    strange = entry(NAMES[1]).model_copy(update={"costs": {"9": LevelCost(code_bits=1, bytes=1)}})
    with pytest.raises(ValueError, match="has the level '9'"):
        writer.write(strange, [])
    with pytest.raises(ValueError, match="must not be called 'level'"):
        writer.write(entry(NAMES[1]), [Variant(NAMES[1], level, {"level": b""}, {}, 0.0) for level in ("2", "4")])
    assert StoreWriter(tmp_path, header()).finished_layers() == {NAMES[0]}
