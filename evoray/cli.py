"""The command line: arguments in, one line out when something is wrong. All work is done in the rooms below.

A verb's flags are the fields of its settings; `--config FILE.yaml` holds the same names, and flags win over it.
"""

import inspect as signatures
import json
import sys
import types
from collections.abc import Callable
from typing import Any, NoReturn, Union, get_args, get_origin

import click
import typer
from pydantic_core import PydanticUndefined
from rich.console import Console

from evoray.errors import EvorayError
from evoray.settings import (
    BuildSettings,
    EvalSettings,
    ExportSettings,
    SearchSettings,
    Settings,
    flag,
    load_settings,
)

app = typer.Typer(
    name="evoray",
    help="Evolutionary search for non-uniform compression of language models, on one machine or a Ray cluster.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_debug = False
_quiet = False


@app.callback()
def _common(
    debug: bool = typer.Option(False, "--debug", help="Show tracebacks."),
    quiet: bool = typer.Option(False, "--quiet", help="Show results only."),
    version: bool = typer.Option(False, "--version", help="Show the version and stop.", is_eager=True),
) -> None:
    global _debug, _quiet
    _debug, _quiet = debug, quiet
    if version:
        from importlib.metadata import version as version_of

        typer.echo(f"evoray {version_of('evoray')}")
        raise typer.Exit


def _progress() -> Any:
    from evoray.run.progress import Progress, RichProgress

    return Progress() if _quiet else RichProgress()


def _show(renderable: Any) -> None:
    Console(soft_wrap=not sys.stdout.isatty()).print(renderable)


def _flag_type(annotation: Any) -> Any:
    """What typer parses a field as: whole and decimal numbers and switches as they are, all else as text."""
    plain = annotation
    if get_origin(annotation) in (Union, types.UnionType):
        plain = next(part for part in get_args(annotation) if part is not type(None))
    return plain if plain in (bool, int, float) else str


def _verb(kind: type[Settings], name: str, example: str) -> Callable[[Callable[[Any], None]], None]:
    """Makes a verb whose flags are the fields of `kind`."""

    def decorate(run: Callable[[Any], None]) -> None:
        parameters = [
            signatures.Parameter(
                "config",
                signatures.Parameter.KEYWORD_ONLY,
                annotation=str | None,
                default=typer.Option(None, "--config", help="YAML file with the same names; flags win over it."),
            )
        ]
        for field, info in kind.model_fields.items():
            parsed = _flag_type(info.annotation)
            default = info.default
            shown: bool | str = False
            if default is not PydanticUndefined and default is not None and parsed is not bool:
                shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
            names = [flag(field)] if parsed is not bool else [f"{flag(field)}/--no-{field.replace('_', '-')}"]
            parameters.append(
                signatures.Parameter(
                    field,
                    signatures.Parameter.KEYWORD_ONLY,
                    annotation=parsed | None,
                    default=typer.Option(None, *names, help=info.description, show_default=shown),
                )
            )

        def command(**given: Any) -> None:
            file = given.pop("config")
            run(load_settings(kind, given, file))

        command.__signature__ = signatures.Signature(parameters)  # type: ignore[attr-defined]
        command.__doc__ = f"{run.__doc__}\n\n    Example: {example}"
        app.command(name)(command)

    return decorate


@_verb(
    BuildSettings,
    "build",
    "evoray build --model meta-llama/Llama-3.1-8B --data wikitext:wikitext-2-raw-v1 --store variants",
)
def _build(settings: BuildSettings) -> None:
    """Make the variants of every layer: quantized at each of several bitwidths."""
    from evoray.report.dry_run import build_estimate
    from evoray.report.tables import inspect
    from evoray.run.build import run_build

    if settings.dry_run:
        _show(build_estimate(settings))
        return
    with _progress() as progress:
        run_build(settings, progress)
    _show(inspect(settings.store)[0])


@_verb(
    SearchSettings,
    "search",
    "evoray search --model meta-llama/Llama-3.1-8B --store variants --data my-text.jsonl --run run --target-bits 3",
)
def _search(settings: SearchSettings) -> None:
    """Find the level of every layer for a budget: average bits, bits per weight, or size."""
    from evoray.report.dry_run import search_estimate
    from evoray.report.tables import comparison
    from evoray.run.search import search

    if settings.dry_run:
        _show(search_estimate(settings))
        return
    with _progress() as progress:
        try:
            result = search(settings, progress)
        except KeyboardInterrupt:
            progress.note(f"stopped; {settings.run} keeps every finished generation: the same command goes on with it")
            raise
    held_out = result.best["held_out"]
    _show(comparison(held_out["candidates"], held_out["tokens"]))
    _show(f"{result.reason}; the result is in {result.run}/best.json")


@_verb(EvalSettings, "eval", "evoray eval --model embedded --store variants --configuration run --data held-out.txt")
def _eval(settings: EvalSettings) -> None:
    """Judge a configuration, or the base model: perplexity and KL on any text."""
    from evoray.report.tables import evaluation_table
    from evoray.run.evaluate import evaluate

    with _progress() as progress:
        found = evaluate(settings, progress)
    _show(evaluation_table(found))


@_verb(ExportSettings, "export", "evoray export --configuration run --out model-3bit")
def _export(settings: ExportSettings) -> None:
    """Write a checkpoint of a configuration."""
    from evoray.run.export import run_export

    _show(f"wrote {run_export(settings)}")


@app.command("inspect")
def _inspect(
    place: str = typer.Argument(help="A store, a run directory, or a file of `layer: level` lines."),
    store: str | None = typer.Option(None, "--store", help="Prices a configuration by the variants of this store."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Show what is in a store, a run or a configuration.

    Example: evoray inspect run
    """
    from evoray.report.tables import inspect

    table, found = inspect(place, store)
    _show(table) if not as_json else typer.echo(json.dumps(found, indent=1))


@app.command("demo")
def _demo(
    folder: str = typer.Option("evoray-demo", "--folder", help="Where store and run go."),
    workers: int | None = typer.Option(None, "--workers", min=0, help="Workers. 0: this process, without Ray."),
) -> None:
    """The whole job on the embedded model, in a few minutes on a laptop.

    Example: evoray demo
    """
    from evoray.report.tables import comparison
    from evoray.run.demo import run_demo

    with _progress() as progress:
        result = run_demo(folder, workers, progress)
    held_out = result.best["held_out"]
    _show(comparison(held_out["candidates"], held_out["tokens"]))
    _show(f"variants: {folder}/store\nrun:      {result.run}\nresult:   {result.run}/best.json")
    _show(f"look:     evoray inspect {folder}/run")
    _show(f"export:   evoray export --configuration {folder}/run --out {folder}/model")


def main() -> NoReturn:
    """Runs the command line. Exit code 2 for a user's mistake, 1 for a failure, 130 for Ctrl-C."""
    try:
        app(standalone_mode=False)
    except EvorayError as error:
        if _debug:
            raise
        _fail(str(error), error.exit_code)
    except click.exceptions.Exit as leaving:
        sys.exit(leaving.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    except Exception as error:
        if _debug:
            raise
        _fail(f"{type(error).__name__}: {error} (--debug shows the traceback)", 1)
    sys.exit(0)


def _fail(message: str, code: int) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
