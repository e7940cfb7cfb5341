"""Every command of ours that manifests, scripts and documents show: its flags exist and its values are taken."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from evoray.cli import app
from evoray.settings import (
    BaselineSettings,
    BuildSettings,
    EvalSettings,
    ExportSettings,
    SearchSettings,
    SweepSettings,
    load_settings,
)

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "build": BuildSettings,
    "search": SearchSettings,
    "sweep": SweepSettings,
    "baseline": BaselineSettings,
    "eval": EvalSettings,
    "export": ExportSettings,
}


def commands_of(lines: str) -> Iterator[str]:
    """Commands in the lines of a shell: at the beginning of one, or behind the `--` of a submission."""
    for line in re.sub(r"\\\n#?", " ", lines).splitlines():
        found = re.search(r"(?:^[#$ ]*|-- +)(evoray [a-z][^\"]*)", line)
        if found is not None and not found[1].endswith("..."):
            yield found[1].strip()


def shown() -> list[tuple[str, str]]:
    """(where, command) of all there are."""
    found = []
    for path in sorted([*ROOT.glob("deploy/**/*"), ROOT / "README.md"]):
        if not path.is_file():
            continue
        text = path.read_text("utf-8")
        if path.suffix == ".md":
            text = "\n".join(re.findall(r"```(?:bash|sh)?\n(.*?)```", text, re.S))
        elif path.parent.parent.name == "kuberay":
            text = yaml.safe_load(text).get("spec", {}).get("entrypoint", "")
        found += [(path.name, command) for command in commands_of(text)]
    return found


@pytest.mark.parametrize(("where", "command"), shown())
def test_a_shown_command_is_one_that_works(where: str, command: str) -> None:
    _, verb, *arguments = shlex.split(command, comments=True)
    program = typer.main.get_command(app)
    found = program.get_command(typer.Context(program), verb)  # type: ignore[attr-defined]
    assert found is not None, f"{where}: no verb {verb}"
    # Parses and does nothing; raises where a flag does not exist.
    parsed = found.make_context(verb, list(arguments)).params
    if verb in SETTINGS and parsed.get("config") is None:
        kind = SETTINGS[verb]
        load_settings(kind, {name: parsed[name] for name in kind.model_fields}, None)


def test_commands_are_found_where_they_stand() -> None:
    there = shown()
    for name in ("README.md", "rayjob.yaml", "ray-job-submit.sh", "runtime-env.yaml"):
        assert any(where == name for where, _ in there), name
    text = """
# job submit -- \\
#    evoray search --x \\
#  --y 'a b'
$ evoray inspect run  # shows
an evoray thing
say "-- evoray report run"
evoray build ...
"""
    assert [shlex.split(command, comments=True) for command in commands_of(text)] == [
        ["evoray", "search", "--x", "--y", "a b"],
        ["evoray", "inspect", "run"],
        ["evoray", "report", "run"],
    ]
