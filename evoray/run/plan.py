"""Everything a search needs, found and checked before a worker starts.

Holds: `SearchPlan`, `plan_search`, `located`, `quantized_store`, `block_length`, `worker_spec`, `worker_memory`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from evoray.cluster import WorkerSpec
from evoray.cluster.capacity import HostMemory
from evoray.errors import UserError
from evoray.evolve import LevelSwitch, OnePlusLambda, Rung, rungs
from evoray.fitness import Fitness
from evoray.model import Facts, checkpoint_facts, load_tokenizer, model_folder
from evoray.run.named import configuration_of
from evoray.settings import TOP_K, EvalSettings, MutationRule, Preset, SearchSettings
from evoray.space import Budget, Genotype, Measure, Space, Tie, quantization_space
from evoray.store import Location, Manifest, VariantStore
from evoray.tokens import BosPolicy, Role, TokenText, read_text, resolve_bos

USUAL_SEQUENCE = 512
"""Default length of blocks in tokens. Many short blocks of different documents tell more than few long ones."""

PAPER_SEQUENCE = 8192
"""The same for `--preset evopress`."""

MIB = 1 << 20

_DECIDING = (
    "target_bits",
    "target_bpw",
    "target_size",
    "levels",
    "tie",
    "fitness",
    "top_k",
    "offspring",
    "survivors",
    "tokens",
    "initial_candidates",
    "mutation",
    "switches",
    "seed",
    "tokens_per_pass",
    "vocabulary_chunk",
    "threads_per_worker",
    "attn_implementation",
    "dtype",
)
"""Settings that decide the result beside model, store and text."""


@dataclass(frozen=True)
class SearchPlan:
    """A search, ready to be run.

    Attributes:
        settings: as given, with what was left open resolved.
        facts: of the base model.
        manifest: of the store.
        space: what may be chosen.
        fitness: what is minimised.
        rungs: of each generation.
        text: the search text.
        judge_text: the held-out text.
        start: where `--init` begins, or None.
        spec: how workers are built.
        memory: bytes of host memory each worker asks for.
    """

    settings: SearchSettings
    facts: Facts
    manifest: Manifest
    space: Space
    fitness: Fitness
    rungs: tuple[Rung, ...]
    text: TokenText
    judge_text: TokenText
    start: Genotype | None
    spec: WorkerSpec
    memory: int

    def strategy(self) -> OnePlusLambda:
        """The search, before its first generation."""
        settings = self.settings
        return OnePlusLambda(
            self.space,
            offspring=settings.offspring,
            rungs=self.rungs,
            mutation=LevelSwitch(equal_steps=settings.mutation is MutationRule.equal_steps, maximum=settings.switches),
            seed=settings.seed,
            generations=settings.generations,
            initial_candidates=settings.initial_candidates,
            start=self.start,
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the result. Not in it: workers, addresses, paths, limits, and how many generations: a run
        goes on when that is raised."""
        settings = self.settings
        return {
            "model": self.facts.weights_digest,
            "store": self.manifest.digest,
            "search_text": self.text.digest,
            "start": list(self.start) if self.start is not None else None,
            **{name: settings.model_dump(mode="json")[name] for name in _DECIDING},
        }

    @property
    def generation_tokens(self) -> int:
        """Candidate tokens of a generation at most."""
        counts = [self.settings.offspring, *(rung.survivors for rung in self.rungs)]
        entering = counts[:-1]
        entering[-1] += 1  # the parent joins the last rung
        return sum(count * rung.tokens for count, rung in zip(entering, self.rungs, strict=True))


def plan_search(settings: SearchSettings, stage: Callable[[str], object] = lambda text: None) -> SearchPlan:
    """Reads store, facts and texts, and checks that they fit.

    Args:
        settings: of the search.
        stage: told what is done next.

    Raises:
        UserError: anything that can't work, before a worker starts or a weight is read.
    """
    steps = rungs(settings.survivors, settings.tokens)
    if settings.survivors[0] > settings.offspring:
        raise UserError(
            f"--survivors {settings.survivors[0]}: more than the {settings.offspring} offspring of a generation; "
            "lower it, or raise --offspring"
        )
    settings = located(settings)
    manifest = quantized_store(settings.store).manifest
    space = quantization_space(manifest, _budget(settings), Tie(settings.tie), settings.levels)
    start = _start(settings, space)
    stage("reading the model's facts")
    facts = checkpoint_facts(
        settings.model, settings.revision, settings.trust_remote_code, allow_partial=settings.allow_partial
    )
    manifest.check_made_from(settings.model, facts.weights_digest)
    usual = PAPER_SEQUENCE if settings.preset is Preset.evopress else USUAL_SEQUENCE
    length = block_length(settings.sequence_length, facts, usual)
    settings = settings.model_copy(update={"revision": facts.revision or settings.revision})
    tokenizer = load_tokenizer(settings.model, settings.revision, settings.trust_remote_code)
    bos = resolve_bos(BosPolicy(settings.bos), tokenizer)
    settings = settings.model_copy(update={"sequence_length": length, "bos": bos.value})
    stage("reading the search text")
    text = read_text(
        settings.data,
        Role.search,
        tokenizer,
        sequence_length=length,
        max_tokens=settings.search_tokens,
        bos=bos,
        separator=settings.separator,
        exclude=frozenset(manifest.documents),
    )
    if max(settings.tokens) > text.tokens:
        raise UserError(
            f"--tokens {max(settings.tokens)}: more tokens than the search text has ({text.tokens} of "
            f"{settings.data}); lower it, raise --search-tokens, or give more text"
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
        exclude=frozenset(manifest.documents) | frozenset(text.document_digests),
    )
    return SearchPlan(
        settings=settings,
        facts=facts,
        manifest=manifest,
        space=space,
        fitness=Fitness(settings.fitness),
        rungs=steps,
        text=text,
        judge_text=judge_text,
        start=start,
        spec=worker_spec(settings, facts, settings.store),
        memory=worker_memory(settings, facts, manifest),
    )


def _budget(settings: SearchSettings) -> Budget:
    if settings.target_bits is not None:
        return Budget(Measure.BITS, settings.target_bits)
    if settings.target_bpw is not None:
        return Budget(Measure.BPW, settings.target_bpw)
    assert settings.target_size is not None
    return Budget(Measure.SIZE, settings.target_size)


def _start(settings: SearchSettings, space: Space) -> Genotype | None:
    if settings.init is None:
        return None
    genotype = space.genotype(configuration_of(settings.init))
    if not space.is_legal(genotype):
        costs = space.summary(genotype)
        raise UserError(
            f"--init {settings.init} is above the budget ({costs.bits:.4f} bits, {costs.bpw:.4f} bpw, "
            f"{costs.size} bytes); give one within it, or raise the target"
        )
    return genotype


_S = TypeVar("_S", SearchSettings, EvalSettings)


def located(settings: _S) -> _S:
    """The same with absolute paths of model and store.

    Workers, and later commands on the run, may have another working directory.
    """
    absolute: dict[str, str] = {}
    if settings.model is not None and (folder := model_folder(settings.model)) is not None:
        absolute["model"] = str(folder)
    if settings.store is not None:
        absolute["store"] = str(Location.parse(settings.store))
    return settings.model_copy(update=absolute)


def quantized_store(place: str) -> VariantStore:
    """A store whose levels are bitwidths.

    Raises:
        UserError: there is none, or it is of another kind.
    """
    store = VariantStore.open(place)
    if store.manifest.kind != "quantization":
        raise UserError(f"store {place} holds variants of kind {store.manifest.kind!r}; give one of kind quantization")
    return store


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


def worker_spec(settings: SearchSettings | EvalSettings, facts: Facts, store: str | None) -> WorkerSpec:
    """How each worker is built. All load the commit that the driver saw, wherever a branch has moved meanwhile."""
    return WorkerSpec(
        model=facts.model,
        store=store,
        revision=facts.revision or settings.revision,
        trust_remote_code=settings.trust_remote_code,
        attn_implementation=settings.attn_implementation,
        dtype=settings.dtype.value,
        allow_partial=settings.allow_partial,
        device=settings.device.value,
        weights_digest=facts.weights_digest,
        threads=settings.threads_per_worker,
        vocabulary_chunk=settings.vocabulary_chunk,
        top_k=settings.top_k if isinstance(settings, SearchSettings) else TOP_K,
        boundary_bytes=settings.boundary_memory,
        variant_bytes=settings.variant_memory,
    )


def worker_memory(settings: SearchSettings | EvalSettings, facts: Facts, manifest: Manifest | None) -> HostMemory:
    """Bytes of host memory that a worker asks for: base model, ready variants, states, and 300 MiB of libraries.

    Where memory is short, ready variants but for one layer's can be done without.
    """
    # On CPUs "auto" is float32; on a GPU the host only holds a file at a time, and asking for more does no harm.
    width = {"float16": 2, "bfloat16": 2}.get(settings.dtype.value, 4) / (4 if facts.dtype == "float32" else 2)
    base = facts.parameter_bytes * width
    layers = [layer.dense_bytes * width for layer in manifest.layers] if manifest else []
    variants = min(settings.variant_memory, sum(layers) * len(manifest.levels)) if manifest else 0
    return HostMemory(int(base + variants + 300 * MIB), int(variants), int(max(layers, default=0)))
