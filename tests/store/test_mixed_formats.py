"""Levels of one layer in several formats share the columns of its file, in whatever order each names its own."""

from evoray.store import LayerEntry, LevelCost, StoreHeader, StoreWriter, Variant, VariantStore


def test_every_level_comes_back_whatever_columns_the_others_have(tmp_path):
    columns = {
        "2": {"codes": b"c2", "scales": b"s2"},
        "2x0.5": {"mask": b"m", "codes": b"cm", "scales": b"sm"},
        "0.5": {"values": b"v", "mask": b"n"},
    }
    header = StoreHeader(
        model="m", weights_digest="w", dtype="float16", kind="joint", method="sparsegpt", levels=tuple(columns),
        group_size=-1, symmetric=True, scale_dtype="float16", cost_format="tight", dense_bytes=0,
    )  # fmt: skip
    entry = LayerEntry(
        name="a", block=0, out_features=4, in_features=4, dense_bytes=32, record_bytes=0,
        costs={level: LevelCost(code_bits=1, bytes=1, kept=None if level == "2" else 8) for level in columns},
        outliers={"5": 0.25},
    )  # fmt: skip
    writer = StoreWriter(tmp_path, header)
    writer.write(entry, [Variant("a", level, columns[level], {"format": "x"}, float(len(level))) for level in columns])
    manifest = writer.finish()
    assert manifest.files["a"].errors == {"2": 1.0, "2x0.5": 5.0, "0.5": 3.0}
    store = VariantStore.open(tmp_path)
    assert store.manifest.layer("a") == entry
    for level, given in columns.items():
        variant = store.read("a", level)
        assert {name: bytes(column) for name, column in variant.columns.items()} == given
        assert variant.error == manifest.files["a"].errors[level]
