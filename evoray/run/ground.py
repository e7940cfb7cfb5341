"""What searches and baselines stand on: the model's facts, what may be chosen, and the texts; checked before a worker
starts.

Holds: `Ground`, `plan_ground`, `make_ground_space`, `settings_of_run`, `space_of_run`, `block_length`.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml

from evoray.cluster import WorkerSpec
from evoray.cluster.capacity import HostMemory
from evoray.configuration import DROPPED
from evoray.errors import UserError
from evoray.fitness import Fitness
from evoray.model import Facts, checkpoint_facts, load_tokenizer
from evoray.run.bare import bare_manifest
from evoray.run.directory import IDENTITY, SETTINGS
from evoray.run.sites import site_list
from evoray.run.workers import located, worker_memory, worker_spec
from evoray.settings import BaselineSettings, ChoiceSettings, Preset, SearchSettings, load_settings
from evoray.space import (
    BareManifest,
    Budget,
    KindDefaults,
    Measure,
    PricedDroppable,
    Space,
    Tie,
    Wanted,
    drop_units,
    kind_defaults,
    make_space,
)
from evoray.store import Location, Manifest, VariantStore
from evoray.tokens import BosPolicy, Role, TokenText, read_text, resolve_bos

USUAL_SEQUENCE = 512
"""Default length of blocks in tokens. Many short blocks of different documents tell more than few long ones."""

PAPER_SEQUENCE = 8192
"""The same for `--preset evopress`."""

_OF_TARGETS = {
    "target_bits": Measure.BITS,
    "target_bpw": Measure.BPW,
    "target_size": Measure.SIZE,
    "target_sparsity": Measure.SPARSITY,
}

DECIDING = (
    *_OF_TARGETS,
    "drop_blocks",
    "drop_entire_block",
    "drop_two_consecutive",
    "allow_drops",
    "levels",
    "tie",
    "max_level",
    "max_total_deviation",
    "fitness",
    "top_k",
    "invert",
    "seed",
    "tokens_per_pass",
    "vocabulary_chunk",
    "threads_per_worker",
    "attn_implementation",
    "dtype",
)
"""Settings that decide a result beside model, store and text."""

_C = TypeVar("_C", bound=ChoiceSettings)


@dataclass(frozen=True)
class Ground:
    """What a search or a baseline stands on.

    Attributes:
        facts: of the base model.
        manifest: of the store, or of the base model alone.
        defaults: what is usual for this kind of store.
        space: what may be chosen.
        fitness: what is minimised.
        text: the search text.
        judge_text: the held-out text.
        spec: how workers are built.
        memory: bytes of host memory each worker asks for.
    """

    facts: Facts
    manifest: Manifest | BareManifest
    defaults: KindDefaults
    space: Space
    fitness: Fitness
    text: TokenText
    judge_text: TokenText
    spec: WorkerSpec
    memory: HostMemory

    @property
    def digests(self) -> dict[str, str | None]:
        """What was searched, with what, on which texts."""
        return {
            "model": self.facts.weights_digest,
            "store": self.manifest.digest if isinstance(self.manifest, Manifest) else None,
            "search_text": self.text.digest,
            "judge_text": self.judge_text.digest,
        }

    def identity(self, settings: ChoiceSettings, deciding: Iterable[str]) -> dict[str, Any]:
        """What decides a result. Not in it: workers, addresses, paths and limits.

        Args:
            settings: as resolved.
            deciding: names of settings that decide it beside `DECIDING`.
        """
        values = settings.model_dump(mode="json")
        droppable = [list(gene.sites) for gene in self.space.genes if DROPPED in gene.levels]
        return {
            **{name: digest for name, digest in self.digests.items() if name != "judge_text"},
            "droppable": droppable,
            **{name: values[name] for name in (*DECIDING, *deciding)},
        }


def plan_ground(settings: _C, stage: Callable[[str], object] = lambda text: None) -> tuple[_C, Ground]:
    """Reads store, facts and texts, and checks that they fit.

    Args:
        settings: of the search or baseline.
        stage: told what is done next.

    Returns:
        The settings with what was left open resolved, and the ground.

    Raises:
        UserError: anything that can't work, before a worker starts or a weight is read.
    """
    settings = located(settings)
    stored = VariantStore.open(settings.store).manifest if settings.store is not None else None
    stage("reading the model's facts")
    facts = checkpoint_facts(
        settings.model, settings.revision, settings.trust_remote_code, allow_partial=settings.allow_partial
    )
    if stored is not None:
        stored.check_made_from(settings.model, facts.weights_digest)
    manifest, defaults, space = make_ground_space(settings, facts, stored)
    settings = settings.model_copy(
        update={"tie": settings.tie or defaults.tie.value, "revision": facts.revision or settings.revision}
    )
    usual = PAPER_SEQUENCE if getattr(settings, "preset", None) is Preset.evopress else USUAL_SEQUENCE
    length = block_length(settings.sequence_length, facts, usual)
    tokenizer = load_tokenizer(settings.model, settings.revision, settings.trust_remote_code)
    bos = resolve_bos(BosPolicy(settings.bos), tokenizer)
    settings = settings.model_copy(update={"sequence_length": length, "bos": bos.value})
    seen = frozenset(stored.documents) if stored is not None else frozenset()
    stage("reading the search text")
    text = read_text(
        settings.data,
        Role.search,
        tokenizer,
        sequence_length=length,
        max_tokens=settings.search_tokens,
        bos=bos,
        separator=settings.separator,
        exclude=seen,
    )
    stage("reading the judging text")
    judge_text = read_text(
        settings.judge_data or settings.data,
        # Text given for judging is judged on whole; what Hessians or the search saw of it is left out all the same.
        Role.judge if settings.judge_data in (None, settings.data) else Role.all,
        tokenizer,
        sequence_length=length,
        max_tokens=settings.judge_tokens,
        bos=bos,
        separator=settings.separator,
        exclude=seen | frozenset(text.document_digests),
    )
    sites = tuple(site for gene in space.genes for site in gene.sites if DROPPED in gene.levels)
    return settings, Ground(
        facts=facts,
        manifest=manifest,
        defaults=defaults,
        space=space,
        fitness=Fitness(settings.fitness),
        text=text,
        judge_text=judge_text,
        spec=worker_spec(settings, facts, settings.store, sites),
        memory=worker_memory(settings, facts, stored),
    )


def make_ground_space(
    settings: ChoiceSettings, facts: Facts, stored: Manifest | None
) -> tuple[Manifest | BareManifest, KindDefaults, Space]:
    """What may be chosen, by the settings.

    Args:
        settings: budget, levels, ties, and what may be dropped.
        facts: of the base model.
        stored: the manifest of the store; None for dropping alone.

    Raises:
        UserError: what can't be had from this store or model.
    """
    manifest: Manifest | BareManifest = stored if stored is not None else bare_manifest(facts)
    defaults = kind_defaults(manifest.kind) if stored is not None else KindDefaults(tie=Tie.NONE)
    target = settings.target
    wanted = Wanted(
        budget=Budget(_OF_TARGETS[target], getattr(settings, target)) if target is not None else None,
        tie=Tie(settings.tie) if settings.tie is not None else defaults.tie,
        levels=settings.levels,
        max_level=settings.max_level,
        max_deviation=settings.max_total_deviation,
        droppable=_units(settings, facts),
        drop=settings.drop_blocks,
    )
    return manifest, defaults, make_space(manifest, wanted)


def _units(settings: ChoiceSettings, facts: Facts) -> tuple[tuple[PricedDroppable, ...], ...]:
    if not settings.allow_drops and settings.drop_blocks is None:
        return ()
    units = drop_units(facts.droppable, whole_blocks=settings.drop_entire_block, pairs=settings.drop_two_consecutive)
    if settings.droppable is None:
        return units
    allowed = set(site_list(settings.droppable, facts.droppable))
    # A block may go where it is named, or all of its sublayers are.
    inside = {
        block.name: {site.name for site in facts.droppable if site.kind != "block" and site.block == block.block}
        for block in facts.droppable
        if block.kind == "block"
    }
    allowed |= {name for name, sublayers in inside.items() if sublayers and sublayers <= allowed}
    left = tuple(unit for unit in units if all(site.name in allowed for site in unit))
    if not left:
        raise UserError(
            f"--droppable {settings.droppable} allows none of the {len(units)} parts that could be dropped, such as "
            f"{units[0][0].name}; name some, or leave it out"
        )
    return left


def settings_of_run(location: Location) -> ChoiceSettings:
    """What a run was asked for.

    Raises:
        UserError: its settings are gone.
    """
    try:
        values = yaml.safe_load((location / SETTINGS).read_bytes())
    except FileNotFoundError:
        raise UserError(f"{location} has no {SETTINGS}; give a run directory of a search") from None
    kind = BaselineSettings if "method" in values else SearchSettings
    settings: ChoiceSettings = load_settings(
        kind, {key: value for key, value in values.items() if key not in ("preset", "recipe")}
    )
    return settings


def space_of_run(location: Location) -> Space:
    """The space of a run, from its settings.

    Raises:
        UserError: its settings or its store are gone, or another store stands in that place.
    """
    settings = settings_of_run(location)
    stored = VariantStore.open(settings.store).manifest if settings.store is not None else None
    if stored is not None and stored.digest != _searched_store(location):
        raise UserError(
            f"the store {settings.store} is another one ({stored.digest[:12]}) than {location} was searched with; "
            "put that one back, or search again"
        )
    facts = checkpoint_facts(
        settings.model, settings.revision, settings.trust_remote_code, allow_partial=settings.allow_partial
    )
    return make_ground_space(settings, facts, stored)[2]


def _searched_store(location: Location) -> str | None:
    """Digest of the store that a run was searched with."""
    try:
        found = json.loads((location / IDENTITY).read_bytes())["store"]
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        raise UserError(f"{location / IDENTITY} is missing or damaged; give another run directory") from None
    return found if isinstance(found, str) else None


def block_length(asked: int | None, facts: Facts, usual: int) -> int:
    """Tokens of a block: as asked; else as usual, or what the model reads where that is less.

    Raises:
        UserError: more is asked for than the model reads.
    """
    most = facts.max_position
    if asked is None:
        return min(usual, most) if most else usual
    if most and asked > most:
        raise UserError(f"--sequence-length {asked}: the model reads at most {most} tokens; lower it, or leave it out")
    return asked
