"""The numbers of a report, from run directories and their stores alone: no picture, no model, no worker.

Holds: `read_run`, `named_apart`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.compute as pc
import yaml

from evoray.configuration import BASE, DROPPED, KEPT
from evoray.errors import EvorayError, UserError
from evoray.report.allocation import allocation_of, goes_with, ordered_levels, place_of
from evoray.report.numbers import Generation, Judged, LevelError, Part, Rung, RunNumbers
from evoray.run.directory import BEST, DEVICE, IDENTITY, SETTINGS
from evoray.run.journal import Journal
from evoray.run.named import read_best
from evoray.space.costs import level_totals
from evoray.store import Location, Manifest, VariantStore

EVERYTHING_ELSE = "embeddings, head, norms, biases"
RECORDS = "records of the format"
LAYERS = "layers"


def read_run(place: str | Location, name: str | None = None) -> RunNumbers:
    """Reads one run, of a search or a baseline, finished or not. What is missing is left out, with a note.

    Args:
        place: the run directory.
        name: what to call it; by default the last part of its path.

    Raises:
        UserError: no run directory, or a damaged journal or best.json.
    """
    location = Location.parse(place)
    if not (location / IDENTITY).exists():
        raise UserError(f"{location} is no run directory (no {IDENTITY}); give one of evoray search or evoray baseline")
    notes: list[str] = []
    journal, best = Journal(location), read_best(location) or {}
    identity, device = _document(location, IDENTITY, notes), _document(location, DEVICE, notes)
    settings = _document(location, SETTINGS, notes)
    held_out = best.get("held_out", {})
    judged = tuple(_judged(each, figures) for each, figures in held_out.get("candidates", {}).items())
    digests = best.get("digests") or {key: identity.get(key) for key in ("model", "store", "search_text")}
    manifest = _manifest(best.get("store") or settings.get("store"), digests.get("store"), notes)
    baseline = best.get("baseline") or settings.get("method")
    configuration = {str(site): str(level) for site, level in best.get("configuration", {}).items()}
    errors = _errors(manifest)
    if manifest is not None and not errors:
        notes.append("the store has no layer errors in its manifest")
    generations = _generations(journal)
    return RunNumbers(
        name=name or location.name,
        place=str(location),
        baseline=baseline,
        state=_state(baseline, settings, generations, best),
        fitness=best.get("fitness", {}).get("name") or settings.get("fitness"),
        generations=generations,
        funnel=_funnel(journal, notes),
        allocation=allocation_of(configuration, manifest) if configuration else None,
        parts=_parts(best, configuration, manifest, notes),
        errors=errors,
        error_levels=ordered_levels([error.level for error in errors], manifest),
        judged=judged,
        held_out={key: held_out.get(key) for key in ("data", "tokens")} if judged else {},
        doubts=tuple(held_out.get("doubts", ())),
        costs={key: best[key] for key in ("bits", "bpw", "bytes", "size", "sparsity") if key in best},
        facts=_facts(journal, best, settings),
        digests=digests,
        versions=best.get("versions") or {key: device[key] for key in _VERSIONS if key in device},
        device={key: value for key, value in (best.get("device") or device).items() if key not in _VERSIONS},
        settings=settings,
        notes=tuple(notes),
    )


_VERSIONS = ("python", "torch", "transformers", "evoray")
"""Keys of device.json that say which programs worked, not on what."""


def named_apart(places: Sequence[Location]) -> list[str]:
    """The shortest ends of paths that tell places apart."""
    parts = [[part for part in place.path.split("/") if part] or ["run"] for place in places]
    longest = max(map(len, parts))
    for length in range(1, longest + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(place) for place in places]


def _document(run: Location, name: str, notes: list[str]) -> dict[str, Any]:
    """A JSON or YAML object of the run directory; nothing where it is missing or damaged."""
    try:
        data = (run / name).read_bytes()
        found = yaml.safe_load(data) if name == SETTINGS else json.loads(data)
    except FileNotFoundError:
        return {}
    except (ValueError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict):
        notes.append(f"{name} is damaged and was passed over")
        return {}
    return found


def _manifest(place: str | None, digest: str | None, notes: list[str]) -> Manifest | None:
    """The manifest of the run's store, if it is still the store that the run worked with."""
    if place is None:
        return None
    try:
        manifest = VariantStore.open(place).manifest
    except EvorayError as error:
        notes.append(f"bytes and errors by kind of layer are left out, because the store can't be read: {error}")
        return None
    if digest is not None and manifest.digest != digest:
        notes.append(f"bytes and errors by kind of layer are left out: {place} is another store than the run's")
        return None
    return manifest


def _state(
    baseline: str | None, settings: Mapping[str, Any], generations: Sequence[Generation], best: Mapping[str, Any]
) -> str:
    if baseline is not None:
        return f"baseline {baseline}" + ("" if "held_out" in best else ", not finished")
    done = generations[-1].generation if generations else 0
    progress = f"generation {done} of {settings.get('generations', '?')}"
    if not best:
        return f"{BEST} is not there yet" if generations else "no generation is finished yet"
    return progress if "held_out" in best else f"{progress}, not judged yet"


def _judged(name: str, figures: Mapping[str, Any]) -> Judged:
    return Judged(
        name=name,
        bits=figures["bits"],
        bpw=figures["bpw"],
        size=figures["size"],
        sparsity=figures.get("sparsity", 0.0),
        kl=figures["kl"],
        perplexity=figures["perplexity"],
        better_by=-figures["found_minus_this_kl"],
        interval=figures["interval_95"],
    )


def _generations(journal: Journal) -> tuple[Generation, ...]:
    found: list[Generation] = []
    tokens, seconds = 0, 0.0
    for row in journal.rows:
        tokens, seconds = tokens + row.tokens, seconds + row.seconds
        found.append(
            Generation(
                generation=row.generation,
                total_tokens=tokens,
                total_seconds=seconds,
                fitness=row.fitness,
                parent_fitness=row.parent_fitness,
                accepted=row.accepted,
                candidates=row.candidates,
                tokens=row.tokens,
                seconds=row.seconds,
                lost_workers=row.lost_workers,
                busy_seconds=row.busy_seconds,
                bits=row.bits,
                bpw=row.bpw,
                size=row.size,
            )
        )
    return tuple(found)


def _funnel(journal: Journal, notes: list[str]) -> tuple[Rung, ...]:
    """Candidates and tokens per rung. All candidates of a rung share its batches, so the first batch counts them."""
    found: list[Rung] = []
    try:
        for row in journal.rows:
            evaluations, batches = journal.evaluations(row), journal.batches(row.generation)
            for rung in sorted(set(batches["rung"].to_pylist())):
                first = pc.and_(pc.equal(evaluations["rung"], rung), pc.equal(evaluations["batch"], 0))
                cuts = batches.filter(pc.equal(batches["rung"], rung))["cuts"]
                each = pc.sum(pc.list_flatten(cuts)).as_py() or 0
                found.append(Rung(row.generation, rung, evaluations.filter(first).num_rows, each))
    except UserError as error:
        notes.append(f"the funnel of the race is left out: {error}")
        return ()
    return tuple(found)


def _errors(manifest: Manifest | None) -> tuple[LevelError, ...]:
    grouped: dict[tuple[str, str], list[float]] = {}
    for layer in manifest.layers if manifest is not None else ():
        errors = manifest.files[layer.name].errors if manifest is not None else {}
        for level, error in errors.items():
            grouped.setdefault((place_of(layer.name)[1], level), []).append(error)
    return tuple(
        LevelError(kind, level, len(values), sum(values) / len(values), min(values), max(values))
        for (kind, level), values in grouped.items()
    )


def _parts(
    best: Mapping[str, Any], configuration: Mapping[str, str], manifest: Manifest | None, notes: list[str]
) -> tuple[Part, ...]:
    """Where the bytes of the checkpoint go: by kind of layer where a store tells, else layers and all else."""
    if not best:
        return ()
    if manifest is None:
        return Part(LAYERS, best["bytes"], None), Part(EVERYTHING_ELSE, best["size"] - best["bytes"], None)
    dropped = [site for site, level in configuration.items() if level == DROPPED]
    held: dict[str, int] = {}
    base: dict[str, int] = {}
    records = 0
    for layer in manifest.layers:
        kind, level = place_of(layer.name)[1], configuration.get(layer.name, BASE)
        gone = any(goes_with(layer.name, site) for site in dropped)
        held[kind] = held.get(kind, 0) + (0 if gone else level_totals(layer, level).bytes)
        base[kind] = base.get(kind, 0) + layer.dense_bytes
        records += 0 if gone or level in (BASE, KEPT) else layer.record_bytes
    if sum(held.values()) != best["bytes"]:
        notes.append(f"bytes by kind of layer are left out: they do not add up to the {best['bytes']} of {BEST}")
        return ()
    parts = [Part(kind, held[kind], base[kind]) for kind in held]
    parts += [Part(RECORDS, records, 0)] if records else []
    return (*parts, Part(EVERYTHING_ELSE, best["size"] - best["bytes"] - records, manifest.dense_bytes))


def _facts(journal: Journal, best: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured, and of what; nothing where it is not known."""
    seconds = journal.seconds if journal.rows else best.get("seconds")
    found = {
        "model": best.get("model") or settings.get("model"),
        "revision": best.get("revision") or settings.get("revision"),
        "store": best.get("store") or settings.get("store"),
        "text": settings.get("data"),
        "seed": best.get("seed", settings.get("seed")),
        "generations": journal.rows[-1].generation if journal.rows else None,
        "accepted": sum(row.accepted for row in journal.rows) if journal.rows else None,
        "candidate_tokens": best.get("candidate_tokens", journal.tokens if journal.rows else None),
        "seconds": seconds,
        "tokens_per_second": journal.tokens / seconds if journal.rows and seconds else None,
        "workers": settings.get("workers"),
        "workers_lost": sum(row.lost_workers for row in journal.rows) if journal.rows else None,
        "set_aside": sorted({each for row in journal.rows for each in row.set_aside}) or None,
        "command": best.get("command"),
    }
    return {key: value for key, value in found.items() if value is not None}
