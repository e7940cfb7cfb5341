"""Reading a store: what was written comes back without a copy, and every corruption is named."""

import errno
import hashlib
import os
import pickle
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evoray.errors import UserError
from evoray.store import TRANSFERS, LayerEntry, LevelCost, Location, StoreHeader, StoreWriter, Variant, VariantStore
from evoray.store.cache import NodeCache

LEVELS = ("2", "3", "4")
LAYERS = ("blocks.0.up", "blocks.1.up")


def header(**changes) -> StoreHeader:
    values = {
        "model": "m", "weights_digest": "w", "dtype": "float32", "kind": "quantization", "method": "rtn",
        "levels": LEVELS, "group_size": 8, "symmetric": False, "scale_dtype": "float32",
        "cost_format": "compressed-tensors", "dense_bytes": 0,
    }  # fmt: skip
    return StoreHeader(**{**values, **changes})


def entry(layer: str) -> LayerEntry:
    costs = {level: LevelCost(code_bits=int(level), bytes=int(level)) for level in LEVELS}
    return LayerEntry(
        name=layer, block=int(layer.split(".")[1]), out_features=1, in_features=1, dense_bytes=4, record_bytes=16,
        costs=costs,
    )  # fmt: skip


def variants(layer: str, seed: int = 0, size: int = 1000) -> list[Variant]:
    made = []
    for level in LEVELS:
        rng = np.random.default_rng([seed, int(level), int(layer.split(".")[1])])
        columns = {"codes": rng.bytes(size * int(level)), "scales": rng.bytes(size)}
        if level != "3":
            columns["zeros"] = rng.bytes(40)
        made.append(Variant(layer, level, columns, {"format": "x", "bits": int(level)}, float(rng.random())))
    return made


def build(place, seed: int = 0, size: int = 1000) -> None:
    writer = StoreWriter(place, header())
    for layer in LAYERS:
        writer.write(entry(layer), variants(layer, seed, size))
    writer.finish()


def remote(folder) -> Location:
    return Location.inside(
        pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem()), "bucket/store", "s3://bucket/store"
    )


def same(found: Variant, wanted: Variant) -> bool:
    columns = {name: bytes(column) for name, column in found.columns.items()}
    return (found.layer, found.level, columns, found.meta, found.error) == (
        wanted.layer, wanted.level, wanted.columns, wanted.meta, wanted.error,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["local", "uri", "remote"])
def test_variants_come_back(kind, tmp_path):
    place = {"local": tmp_path, "uri": tmp_path.as_uri(), "remote": remote(tmp_path)}[kind]
    build(place)
    store = VariantStore.open(place, cache=tmp_path / "cache")
    assert [layer.name for layer in store.manifest.layers] == list(LAYERS)
    for layer in LAYERS:
        for wanted in variants(layer):
            for _ in range(2):
                found = store.read(layer, wanted.level)
                assert same(found, wanted)
                assert list(found.columns) == list(wanted.columns)
                assert all(column.readonly for column in found.columns.values())
    assert (tmp_path / "cache").exists() == (kind == "remote")


def test_reading_copies_nothing_and_keeps_no_file_open(tmp_path):
    build(tmp_path, size=100_000)
    store = VariantStore.open(tmp_path)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None
    allocated = pa.total_allocated_bytes()
    found = [store.read(layer, level) for layer in LAYERS for level in LEVELS]
    assert pa.total_allocated_bytes() - allocated < 10_000
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before
    # The mapping lives as long as what was read from it, and columns start where machine words may start.
    del store
    assert same(found[0], variants(LAYERS[0], size=100_000)[0])
    assert all(
        np.frombuffer(column, np.uint8).ctypes.data % 8 == 0 for read in found for column in read.columns.values()
    )


def test_the_file_is_plain_arrow_with_a_row_per_level(tmp_path):
    build(tmp_path)
    with pa.memory_map(str(tmp_path / "layers" / f"{LAYERS[0]}.arrow")) as source:
        reader = pa.ipc.open_file(source)
        assert reader.num_record_batches == len(LEVELS)
        table = reader.read_all().to_pylist()
    assert [row["level"] for row in table] == list(LEVELS)
    assert [row["zeros"] is None for row in table] == [False, True, False]
    assert [row["codes"] for row in table] == [variant.columns["codes"] for variant in variants(LAYERS[0])]


def test_what_the_store_does_not_have_is_named(tmp_path):
    build(tmp_path)
    store = VariantStore.open(tmp_path)
    with pytest.raises(UserError, match=r"layer 'blocks\.7\.up' is not in the store, which has 2 layers"):
        store.read("blocks.7.up", "2")
    with pytest.raises(UserError, match=r"layer 'blocks\.0\.up' has no level '8'; the store has 2, 3, 4"):
        store.read(LAYERS[0], "8")
    with pytest.raises(UserError, match=r"no store at .*nowhere \(there is no manifest.json\); make one with"):
        VariantStore.open(tmp_path / "nowhere")


def test_an_unfinished_store_says_so(tmp_path):
    writer = StoreWriter(tmp_path, header())
    writer.write(entry(LAYERS[0]), variants(LAYERS[0]))
    with pytest.raises(
        UserError, match=r"still being built \(1 layers are finished\); run the same `evoray build` again"
    ):
        VariantStore.open(tmp_path)


def damage_flip(file: Path, folder: Path) -> None:
    data = bytearray(file.read_bytes())
    codes = variants(LAYERS[1])[1].columns["codes"]
    data[data.index(codes) + 17] ^= 4
    file.write_bytes(data)


def damage_cut(file: Path, folder: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def damage_garbage(file: Path, folder: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def damage_other_layer(file: Path, folder: Path) -> None:
    shutil.copy(file.parent / f"{LAYERS[0]}.arrow", file)


def damage_other_store(file: Path, folder: Path) -> None:
    build(folder / "other", seed=1)
    shutil.copy(folder / "other" / "layers" / file.name, file)


def damage_missing(file: Path, folder: Path) -> None:
    file.unlink()


DAMAGES = [
    (damage_flip, "its checksum is wrong"),
    (damage_cut, r"it has \d+ bytes instead of \d+"),
    (damage_garbage, "it is no sound Arrow file"),
    (damage_other_layer, r"it holds the layer blocks\.0\.up"),
    (damage_other_store, "its checksum is wrong"),
    (damage_missing, "it is missing"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_corruption_is_named_and_the_rest_still_reads(damage, message, tmp_path):
    build(tmp_path / "store")
    file = tmp_path / "store" / "layers" / f"{LAYERS[1]}.arrow"
    damage(file, tmp_path)
    store = VariantStore.open(tmp_path / "store")
    for _ in range(2):
        with pytest.raises(UserError, match=message) as caught:
            store.read(LAYERS[1], "3")
    text = str(caught.value)
    assert text.startswith(f"layer {LAYERS[1]}, level 3: {file} is corrupt")
    assert "delete that file and run the same `evoray build` again" in text
    assert "\n" not in text
    assert same(store.read(LAYERS[0], "3"), variants(LAYERS[0])[1])
    # What the text tells to do helps.
    file.unlink(missing_ok=True)
    writer = StoreWriter(tmp_path / "store", header())
    assert writer.finished_layers() == {LAYERS[0]}
    writer.write(entry(LAYERS[1]), variants(LAYERS[1]))
    writer.finish(LAYERS)
    assert same(VariantStore.open(tmp_path / "store").read(LAYERS[1], "3"), variants(LAYERS[1])[1])


@pytest.mark.parametrize("damage", [damage for damage, _ in DAMAGES])
def test_a_corrupt_remote_file_is_named_and_never_cached(damage, tmp_path):
    place = remote(tmp_path)
    build(place)
    damage(tmp_path / "bucket" / "store" / "layers" / f"{LAYERS[1]}.arrow", tmp_path)
    store = VariantStore.open(place, cache=tmp_path / "cache")
    with pytest.raises(
        UserError, match=r"layer blocks\.1\.up, level 3: s3://bucket/store/layers/blocks\.1\.up\.arrow is"
    ):
        store.read(LAYERS[1], "3")
    assert same(store.read(LAYERS[0], "3"), variants(LAYERS[0])[1])
    kept = [path.name for path in (tmp_path / "cache").iterdir() if not path.name.endswith(".lock")]
    assert kept == [store.manifest.files[LAYERS[0]].sha256]


@pytest.fixture(scope="module")
def sound():
    with tempfile.TemporaryDirectory() as folder:
        build(folder, size=40)
        file = Path(folder) / "layers" / f"{LAYERS[0]}.arrow"
        yield Path(folder), file, file.read_bytes()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_is_harmless_or_named(sound, data):
    folder, file, whole = sound
    changed = bytearray(whole)
    changed[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    # A new file each time: what is mapped must not change under its readers.
    file.unlink()
    file.write_bytes(changed)
    store = VariantStore.open(folder)
    for wanted in variants(LAYERS[0], size=40):
        try:
            found = store.read(LAYERS[0], wanted.level)
        except UserError as error:
            named = str(error)
        else:
            named = None
            assert same(found, wanted)
        assert named is None or named.startswith(f"layer {LAYERS[0]}, level {wanted.level}: {file} is corrupt")


def test_a_file_spoilt_in_the_cache_is_fetched_again(tmp_path):
    place = remote(tmp_path)
    build(place)
    first = VariantStore.open(place, cache=tmp_path / "cache")
    wanted = variants(LAYERS[0])[1]
    assert same(first.read(LAYERS[0], "3"), wanted)
    kept = tmp_path / "cache" / first.manifest.files[LAYERS[0]].sha256
    data = bytearray(kept.read_bytes())
    data[data.index(wanted.columns["codes"])] ^= 1
    kept.unlink()
    kept.write_bytes(data)
    assert same(VariantStore.open(place, cache=tmp_path / "cache").read(LAYERS[0], "3"), wanted)


def test_a_small_cache_keeps_what_was_read_last(tmp_path):
    place = remote(tmp_path)
    build(place)
    files = VariantStore.open(place).manifest.files
    largest = max(file.size for file in files.values())
    # There is room for one of the two files.
    store = VariantStore.open(place, cache=tmp_path / "cache", cache_bytes=largest)
    held = []
    for layer in (LAYERS[0], LAYERS[1], LAYERS[1], LAYERS[0]):
        fetched = TRANSFERS.fetched
        held.append((layer, store.read(layer, "3")))
        assert [name for name in os.listdir(tmp_path / "cache") if len(name) == 64] == [files[layer].sha256]
        assert (TRANSFERS.fetched > fetched) == (len(held) != 3)
        assert [*store._files] == [layer], "what made room is let go, so that the disk has its bytes again"
    assert all(same(found, variants(layer)[1]) for layer, found in held), "variants that are held stay as they are"


def test_files_that_make_room_before_they_are_mapped_are_read_all_the_same(tmp_path, monkeypatch):
    place = remote(tmp_path)
    build(place)
    fetch, fetched = NodeCache.fetch, []

    def gone_at_once(self, source, *, size, sha256):
        """Another process on a small disk needs the room."""
        fetched.append(fetch(self, source, size=size, sha256=sha256))
        assert fetched[-1] is not None
        self.discard(sha256)
        return fetched[-1]

    monkeypatch.setattr(NodeCache, "fetch", gone_at_once)
    store = VariantStore.open(place, cache=tmp_path / "cache")
    for layer in LAYERS:
        for wanted in variants(layer):
            assert same(store.read(layer, wanted.level), wanted)
    assert fetched


@pytest.mark.parametrize("how", ["none free", "full on the way", "budget below a file"])
def test_without_room_for_a_cache_variants_come_all_the_same(how, tmp_path, monkeypatch, caplog):
    place = remote(tmp_path)
    build(place)

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if how == "none free":
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    elif how == "full on the way":
        monkeypatch.setattr("evoray.store.location.os.fsync", full)
    store = VariantStore.open(place, cache=tmp_path / "cache", cache_bytes=10 if how == "budget below a file" else None)
    for _ in range(2):
        for layer in LAYERS:
            for wanted in variants(layer):
                assert same(store.read(layer, wanted.level), wanted)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert said[0].startswith("variants are read from s3://bucket/store/layers/")
    assert "without the cache of this node, which is slower: " in said[0]
    assert not [name for name in os.listdir(tmp_path / "cache") if not name.endswith(".lock")]


def test_wrong_bytes_are_told_with_file_and_both_digests(tmp_path, monkeypatch):
    place = remote(tmp_path)
    build(place)
    file = tmp_path / "bucket" / "store" / "layers" / f"{LAYERS[1]}.arrow"
    wanted = hashlib.sha256(file.read_bytes()).hexdigest()
    damage_flip(file, tmp_path)
    got = hashlib.sha256(file.read_bytes()).hexdigest()
    for cache_bytes in (None, 10):
        store = VariantStore.open(place, cache=tmp_path / "cache", cache_bytes=cache_bytes)
        with pytest.raises(UserError) as caught:
            store.read(LAYERS[1], "3")
        for part in (f"s3://bucket/store/layers/{LAYERS[1]}.arrow", f"its sha256 is {got} instead of {wanted}"):
            assert part in str(caught.value)


def test_a_manifest_travels(tmp_path):
    build(tmp_path)
    manifest = VariantStore.open(tmp_path).manifest
    assert pickle.loads(pickle.dumps(manifest)).digest == manifest.digest
