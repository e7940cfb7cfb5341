"""The embedded text: names decide roles, and no text is in two of them."""

import hashlib
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoray.embedded import text
from evoray.embedded.text import documents, role_of
from evoray.errors import UserError

ROLES = ("train", "search", "judge")
NAMES = st.text(st.characters(categories=["Ll", "Nd"]), min_size=1)


@pytest.fixture(scope="module")
def by_role() -> dict[str, list[str]]:
    return {role: documents(role) for role in ROLES}


def test_no_text_occurs_twice_in_one_role_or_in_two(by_role: dict[str, list[str]]) -> None:
    every = [document for role in ROLES for document in by_role[role]]
    assert len(set(every)) == len(every)


def test_no_long_paragraph_occurs_in_two_roles(by_role: dict[str, list[str]]) -> None:
    held = {
        role: {
            " ".join(paragraph.split())
            for document in by_role[role]
            for paragraph in document.split("\n\n")
            if len(paragraph) >= 60
        }
        for role in ROLES
    }
    assert not held["train"] & held["search"]
    assert not held["train"] & held["judge"]
    assert not held["search"] & held["judge"]


def test_every_role_has_enough_text(by_role: dict[str, list[str]]) -> None:
    size = {role: sum(len(document.encode()) for document in by_role[role]) for role in ROLES}
    assert size["train"] >= 1_500_000
    assert size["search"] >= 300_000
    assert size["judge"] >= 150_000


def test_documents_are_whole_and_ordered_by_name(by_role: dict[str, list[str]]) -> None:
    expected = [topics[name].strip() for name in sorted(topics) if role_of("topic", name) == "judge"]
    expected = [document for document in expected if len(document.encode()) >= 256]
    assert by_role["judge"][: len(expected)] == expected
    names = [document.split("\n", 1)[0] for document in by_role["judge"][len(expected) :]]
    assert names == sorted(names)
    assert all(role_of("module", name) == "judge" for name in names)


@given(NAMES, st.sampled_from(["topic", "module"]))
def test_a_role_is_the_hash_of_the_name(name: str, kind: str) -> None:
    # The share in exact integers, from all 256 bits.
    share = int(hashlib.sha256(f"{kind}:{name}".encode()).hexdigest(), 16)
    hundredths = share * 100 // 2**256
    expected = "judge" if hundredths < 15 else "search" if hundredths < 34 else "train"
    assert role_of(kind, name) == expected  # type: ignore[arg-type]


@given(NAMES, NAMES)
def test_modules_of_one_package_and_its_private_twins_share_a_role(top: str, below: str) -> None:
    role = role_of("module", top)
    assert role_of("module", f"{top}.{below}") == role
    assert role_of("module", f"_{top}") == role
    assert role_of("module", f"_py{top}") == role


def test_roles_of_known_names_stay_what_they_were() -> None:
    # What is held out must stay held out in every later release: the packaged model was trained on the rest.
    assert [role_of("module", name) for name in ("difflib", "doctest", "enum", "statistics")] == ["judge"] * 4
    assert [role_of("module", name) for name in ("inspect", "shutil", "configparser")] == ["search"] * 3
    assert [role_of("module", name) for name in ("logging.handlers", "_pydecimal", "typing")] == ["train"] * 3
    assert role_of("topic", "specialnames") == "train"


def test_the_order_in_which_sources_are_found_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [entry for entry in text._module_sources(Path(text.sysconfig.get_path("stdlib"))) if entry[0] < "c"]

    def shuffled(seed: int) -> dict[str, Sequence[str]]:
        def sources(library: Path) -> Iterator[tuple[str, Path]]:
            yield from random.Random(seed).sample(found, len(found))

        monkeypatch.setattr(text, "_module_sources", sources)
        return dict(text._documents_by_role.__wrapped__())

    assert shuffled(1) == shuffled(2)


def test_a_passage_belongs_to_the_most_held_out_role(monkeypatch: pytest.MonkeyPatch) -> None:
    # `difflib` is for judging, `inspect` for search, `typing` for training.
    judged, searched, trained = ("\n".join([f"{word} stands here and is long enough"] * 9) for word in ("A", "B", "C"))
    quoted = judged.replace("\n", "\n    ")
    modules = [
        ("difflib", f"{judged}\n\nSee also:"),
        ("inspect", f"{quoted}\n\nSee also:\n\n{searched}"),
        ("typing", f"{judged}\n\n{trained}\n\n{searched}\n\nSee also:"),
    ]
    monkeypatch.setattr(text, "topics", {})
    monkeypatch.setattr(text, "_module_documents", lambda: modules)
    assert text._documents_by_role.__wrapped__() == {
        "judge": (f"{judged}\n\nSee also:",),
        "search": (f"See also:\n\n{searched}",),
        "train": (f"{trained}\n\nSee also:",),
    }


def test_docstrings_are_headed_by_what_they_describe(tmp_path: Path) -> None:
    source = tmp_path / "sample.py"
    source.write_text(
        '"""About it."""\nif True:\n    class A(int):\n        """An A."""\n'
        '        def f(self, x: int = 1, *, y): \n            """Does f.\n\n            Well.\n            """\n'
        "        def g(self): pass\n"
    )
    tree = text.ast.parse(source.read_text())
    assert list(text._docstrings("sample", tree)) == [
        "sample\n\nAbout it.",
        "class A:\n\nAn A.",
        "def A.f(self, x: int=1, *, y):\n\nDoes f.\n\nWell.",
    ]


def test_an_unknown_role_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"'testing'.*train, search, judge"):
        documents("testing")  # type: ignore[arg-type]


def test_reading_the_text_imports_no_torch() -> None:
    code = "import sys, evoray.embedded.text as t; t.documents('judge'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
