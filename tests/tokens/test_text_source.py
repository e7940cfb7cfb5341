"""Sources: every form is read, what can't be is one line that names it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from evoray.errors import EvorayError, UserError
from evoray.tokens.source import Row, TextSource


def values(spec: object) -> list[Any]:
    return [row.value for row in TextSource.parse(str(spec)).rows()]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub of one data set, `rows`; `asked` is what `load_dataset` was called with."""
    state: dict[str, Any] = {"rows": [{"text": "one"}, {"text": "two"}], "asked": None}

    def load_dataset(name: str, config: str | None, *, split: str, streaming: bool) -> Any:
        state["asked"] = (name, config, split, streaming)
        if name != "house/known":
            raise ConnectionError(f"Couldn't reach {name!r}\non any mirror")
        return datasets.Dataset.from_list(state["rows"]).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return state


def test_text_file_is_one_row_still_to_be_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffGrüße\r\nzwei\n".encode())
    assert list(TextSource.parse(str(path)).rows()) == [Row("Grüße\nzwei\n", str(path), cut=True)]


def test_jsonl_and_parquet_give_the_same_rows(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "one\nline"}, {"id": "b", "text": None}, {"id": "c", "text": "three"}]
    for path in (write_jsonl(tmp_path / "a.jsonl", rows), write_parquet(tmp_path / "a.parquet", rows)):
        assert values(path) == ["one\nline", "three"]
        assert values(f"{path}:id") == ["a", "b", "c"]


def test_default_column_is_text_then_messages_then_the_only_strings(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hello"}]
    for row, expected in (
        ({"body": "no", "messages": chat, "text": "yes"}, "yes"),
        ({"body": "no", "messages": chat}, chat),
        ({"body": "yes", "number": 3}, "yes"),
    ):
        assert values(write_jsonl(tmp_path / "a.jsonl", [row])) == [expected]
        assert values(write_parquet(tmp_path / "a.parquet", [row])) == [expected]


def test_folder_is_all_its_text_files_in_order_of_paths(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "notes.md").write_text("not text of ours")
    write_jsonl(tmp_path / "z.jsonl", [{"text": "third"}])
    assert values(tmp_path) == ["first", "second", "third"]


def test_list_of_sources_and_a_path_with_a_comma(tmp_path: Path) -> None:
    (tmp_path / "a,b.txt").write_text("whole")
    (tmp_path / "a.txt").write_text("part")
    assert values(tmp_path / "a,b.txt") == ["whole"]
    assert values(f"{tmp_path}/a.txt, {tmp_path}/a.txt") == ["part", "part"]
    assert not TextSource.parse(f"{tmp_path}/a.txt").streamed
    assert TextSource.parse(f"{tmp_path}/a.txt,house/known").streamed


@pytest.mark.parametrize(
    ("spec", "asked"),
    [
        ("house/known", ("house/known", None, "train", True)),
        ("house/known:small", ("house/known", "small", "train", True)),
        ("house/known::test", ("house/known", None, "test", True)),
        ("house/known:small:test:text", ("house/known", "small", "test", True)),
    ],
)
def test_hub_fields(hub: dict[str, Any], spec: str, asked: tuple[Any, ...]) -> None:
    assert values(spec) == ["one", "two"]
    assert hub["asked"] == asked


def test_hub_errors(hub: dict[str, Any]) -> None:
    with pytest.raises(
        UserError, match=r"(?s)^data set house/gone::train can't be loaded .*Couldn't reach.*network"
    ) as caught:
        values("house/gone")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no column 'body' in data set house/known::train row 1; its columns are text"):
        values("house/known:::body")
    hub["rows"] = [{"one": "a", "two": "b"}]
    with pytest.raises(UserError, match="2 columns of strings; name one of one, two"):
        values("house/known")


def test_stream_that_breaks_off_is_a_failure_not_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        yield {"text": "one"}
        raise OSError("connection lost")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: broken())
    rows = TextSource.parse("house/known").rows()
    assert next(rows).value == "one"
    with pytest.raises(EvorayError, match=r"broke off after row 1 .*connection lost") as caught:
        next(rows)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    "spec",
    ["no.txt", "no.jsonl", "no.parquet:text", "./no", "../no", "/no/where", "~/no", "C:\\no", "C:/no", "data\\no"],
)
def test_missing_files_are_not_taken_for_data_sets(spec: str) -> None:
    with pytest.raises(UserError, match="no such text file or folder"):
        TextSource.parse(spec)


@pytest.mark.parametrize("spec", ["", "a,,b", "name:a:b:c:d", "no name", "one/two/three"])
def test_what_names_no_text(spec: str) -> None:
    with pytest.raises(UserError, match=r"give a \.txt"):
        TextSource.parse(spec)


def test_files_of_other_kinds_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text in folder"):
        TextSource.parse(str(tmp_path))
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(UserError, match=r"ends in '\.csv'; it must end in \.txt"):
        TextSource.parse(str(tmp_path / "a.csv"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\n\xff\n", r"a\.txt line 2 is not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": \n', r"a\.jsonl line 3 is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n["x"]\n', r"a\.jsonl line 2 is '\[\"x\"\]'; .* one JSON object per line"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "x"}\n', r"no column 'text' in .*a\.jsonl line 2; its columns are body"),
        ("a.jsonl", b'{"text": 3}\n', r"column 'text' of .*a\.jsonl line 1 is a int"),
        ("a.jsonl", b'{"messages": [{"content": "x"}]}\n', r"column 'messages' of .*a\.jsonl line 1 is a list"),
        ("a.parquet", b"not parquet", r"a\.parquet can't be read after row 0"),
    ],
)
def test_unreadable_rows_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        values(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_embedded_text_keeps_the_roles_it_has_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import evoray.embedded.text

    monkeypatch.setattr(evoray.embedded.text, "documents", lambda role: [f"{role} a", f"{role} b"])
    rows = [(row.value, row.reserved, row.cut) for row in TextSource.parse("embedded").rows()]
    assert rows == [(f"{role} {name}", role, False) for role in ("search", "judge") for name in "ab"]


def test_importing_the_room_is_cheap() -> None:
    heavy = "{'torch', 'ray', 'datasets', 'transformers', 'tokenizers', 'pyarrow'}"
    code = f"import sys, evoray.tokens; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
