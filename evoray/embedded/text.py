"""Text that every Python carries: the topics of `pydoc` and the standard library's docstrings.

    documents    the documents of one role, in a fixed order
    role_of      the role that a name has, in every Python version

No module is imported to read its docstrings: sources are parsed with `ast`. A document is one topic, or all
docstrings of one module with the heads of what they describe.

A role belongs to a *name*, never to a text, so that what is held out stays held out when a later Python rewords
it. A topic's name is the topic; a module's name is that of its top-level package with the private marks taken
off, because modules move inside their package between versions (`pathlib` is a file in 3.12 and a package in 3.13)
and into private twins (`datetime` of 3.11 is `_pydatetime` in 3.12).

Topics quote each other (`compound` holds all of `try`), and so do modules. A paragraph belongs to the most held out
role that it occurs in: judging before search, search before training.
"""

import ast
import hashlib
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Literal, get_args

from evoray.errors import UserError

__all__ = ["Role", "documents", "role_of"]

Role = Literal["train", "search", "judge"]

# A name's hash, as a number in [0, 1), is for judging below the first bound, for search below the second, and for
# training above. Names differ much in size; with these bounds, of 2.4 MB in all, search has over 300 KB and judging
# over 150 KB in each of Python 3.11 to 3.13.
JUDGE_BELOW = 0.15
SEARCH_BELOW = 0.34

# Packages whose text is test data, or a copy of other tools' sources, and not documentation.
SKIPPED_PACKAGES = frozenset({"ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "turtledemo"})
SKIPPED_FOLDERS = frozenset({"__pycache__", "idle_test", "site-packages", "test", "tests"})

# Below this a document (bytes) is a heading and a line: too little to predict anything from.
SHORTEST_DOCUMENT = 256

# Passages (paragraphs, in characters) from this length on are in one role only.
SHORTEST_PASSAGE = 60


def role_of(kind: Literal["topic", "module"], name: str) -> Role:
    """The role of a topic or of a module, decided by its name alone.

    Args:
        kind: What the name names; a topic and a module of the same name (`string`) are decided separately.
        name: A topic of `pydoc`, or the dotted name of a module.

    Returns:
        "train", "search" or "judge": the same in every Python version, on every machine.
    """
    if kind == "module":
        top = name.partition(".")[0]
        # `_pyio` and `_io` describe what `io` does; held out together or not at all.
        name = top.removeprefix("_py").lstrip("_") or top
    digest = hashlib.sha256(f"{kind}:{name}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    if share < JUDGE_BELOW:
        return "judge"
    return "search" if share < SEARCH_BELOW else "train"


def documents(role: Role) -> list[str]:
    """All documents of one role, whole: callers cut them into blocks.

    Args:
        role: "train", "search" or "judge".

    Returns:
        Texts in the order of their names, topics before modules. No text occurs twice, nor in two roles; nor does
        a paragraph of 60 characters or more occur in two roles.

    Raises:
        UserError: `role` is none of the three.
    """
    if role not in get_args(Role):
        raise UserError(f"no role {role!r} in the embedded text; choose one of {', '.join(get_args(Role))}")
    return list(_documents_by_role()[role])


@lru_cache(maxsize=1)
def _documents_by_role() -> dict[Role, tuple[str, ...]]:
    """Every role's documents; read once per process, for parsing the library takes seconds."""
    named = [(role_of("topic", name), topics[name].strip()) for name in sorted(topics)]
    named += [(role_of("module", name), text) for name, text in _module_documents()]
    held_out: set[str] = set()
    kept: dict[Role, tuple[str, ...]] = {}
    # The most held out role comes first and keeps its documents whole; the later ones lose what it has.
    for role in ("judge", "search", "train"):
        texts = [_without(held_out, text) for its, text in named if its == role]
        kept[role] = tuple(dict.fromkeys(text for text in texts if len(text.encode()) >= SHORTEST_DOCUMENT))
        held_out |= {passage for text in kept[role] for passage in map(_bare, text.split("\n\n"))}
    return kept


def _without(held_out: set[str], text: str) -> str:
    """The text less its passages that are held out; short ones ("See also:") stand everywhere and are no secret."""
    passages = text.split("\n\n")
    return "\n\n".join(p for p in passages if len(p) < SHORTEST_PASSAGE or _bare(p) not in held_out)


def _bare(passage: str) -> str:
    """The passage's words: one topic quotes another at another indentation."""
    return " ".join(passage.split())


def _module_documents() -> Iterator[tuple[str, str]]:
    """Name and document of every module of the standard library that has a source, in the order of names."""
    library = Path(sysconfig.get_path("stdlib"))
    for name, path in sorted(_module_sources(library)):
        try:
            source = path.read_text(encoding="utf-8")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in others' sources are not our user's concern
                tree = ast.parse(source)
        except (OSError, SyntaxError, ValueError):
            continue  # unreadable, or a template that is no Python
        yield name, "\n\n".join(_docstrings(name, tree))


def _module_sources(library: Path) -> Iterator[tuple[str, Path]]:
    """Dotted name and path of each source file below `library` that belongs to the standard library."""
    for top in sys.stdlib_module_names - SKIPPED_PACKAGES:
        if (library / f"{top}.py").is_file():
            yield top, library / f"{top}.py"
        for path in (library / top).rglob("*.py"):
            parts = path.relative_to(library).with_suffix("").parts
            if not SKIPPED_FOLDERS.intersection(parts):
                yield ".".join(part for part in parts if part != "__init__"), path


def _docstrings(name: str, tree: ast.Module) -> Iterator[str]:
    """The module's docstring, then each documented class's and function's, headed by its own first line."""
    described = ast.get_docstring(tree)
    if described:
        yield f"{name}\n\n{described}"
    else:
        yield name
    yield from _definitions(tree, "")


def _definitions(parent: ast.AST, prefix: str) -> Iterator[str]:
    """Documented definitions below `parent` in the order of the source, methods under dotted names."""
    for node in ast.iter_child_nodes(parent):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _definitions(node, prefix)  # definitions under `if` and `try`
            continue
        described = ast.get_docstring(node)
        if described:
            if isinstance(node, ast.ClassDef):
                yield f"class {prefix}{node.name}:\n\n{described}"
            else:
                yield f"def {prefix}{node.name}({ast.unparse(node.args)}):\n\n{described}"
        yield from _definitions(node, f"{prefix}{node.name}.")
