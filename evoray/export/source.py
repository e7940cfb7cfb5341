"""What is exported, checked before anything is written.

Holds: `Depth`, `ExportOptions`, `ExportSource`, `layers_of`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from transformers import PreTrainedModel

from evoray.configuration import DROPPED, KEPT, Configuration
from evoray.errors import UserError
from evoray.model import Facts, checkpoint_facts, load_model
from evoray.run.named import resolve_sites
from evoray.space.costs import check_configuration
from evoray.store import VariantStore


class Depth(StrEnum):
    """How a checkpoint says what is dropped.

    `zeros`: zero weights, which every engine runs; `removed`: whole blocks are gone and the rest are renumbered;
    `no-op`: entries of `block_configs`, for engines that read them.
    """

    zeros = "zeros"
    removed = "removed"
    no_op = "no-op"


@dataclass(frozen=True)
class ExportOptions:
    """What a user may choose beside the format.

    Attributes:
        depth: how a checkpoint says what is dropped.
        allow_dense: layers that the format can't hold at their level stay dense, with their dequantized weights.
    """

    depth: Depth = Depth.zeros
    allow_dense: bool = False


@dataclass(frozen=True)
class ExportSource:
    """A configuration with the model and the variants it is of.

    Attributes:
        model: the base model, a folder or an id.
        revision: of the model on the hub.
        trust_remote_code: let the checkpoint's own Python run.
        allow_partial: accept models with less than 90% of their weights in reach.
        facts: of the base model.
        variants: the store; None for a configuration that only drops.
        configuration: layer -> level, sublayer or block -> dropped or kept, in the model's own names; what it does not
            name stays as it is.
        options: what the user chose.
        best: what the run's best.json says; empty for a plain configuration.
    """

    model: str
    revision: str | None
    trust_remote_code: bool
    allow_partial: bool
    facts: Facts
    variants: VariantStore | None
    configuration: Configuration
    options: ExportOptions = ExportOptions()
    best: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        model: str,
        store: str | None,
        configuration: Configuration,
        *,
        revision: str | None = None,
        trust_remote_code: bool = False,
        allow_partial: bool = False,
        options: ExportOptions | None = None,
        best: Mapping[str, Any] | None = None,
    ) -> Self:
        """Reads facts and manifest, and checks that all fit.

        Raises:
            UserError: the store is of another model, or the configuration does not fit.
        """
        variants = None if store is None else VariantStore.open(store)
        facts = checkpoint_facts(model, revision, trust_remote_code, allow_partial=allow_partial)
        configuration = resolve_sites(configuration, facts.droppable)
        layers = layers_of(facts, configuration)
        if variants is not None:
            check_configuration(variants.manifest, layers)
            variants.manifest.check_made_from(model, facts.weights_digest)
        return cls(
            model=model,
            revision=revision,
            trust_remote_code=trust_remote_code,
            allow_partial=allow_partial,
            facts=facts,
            variants=variants,
            configuration=configuration,
            options=options or ExportOptions(),
            best=best or {},
        )

    @property
    def layers(self) -> Configuration:
        """What of the configuration is to be found in a store: layer -> level."""
        return layers_of(self.facts, self.configuration)

    @property
    def dropped(self) -> list[str]:
        """Sublayers and blocks that are dropped."""
        return [name for name, level in self.configuration.items() if level == DROPPED]

    def load(self, dtype: str) -> PreTrainedModel:
        """The base model on the CPU.

        Args:
            dtype: to load it in, such as float32.
        """
        return load_model(
            self.model,
            revision=self.revision,
            dtype=dtype,
            device="cpu",
            trust_remote_code=self.trust_remote_code,
        )

    def needed_variants(self) -> VariantStore | None:
        """The store, for formats that need the variants.

        Raises:
            UserError: the configuration has levels, and there is no store.
        """
        if self.variants is None and self.layers:
            name, level = next(iter(self.layers.items()))
            raise UserError(f"the configuration has {name} at level {level}; give the --store of its variants")
        return self.variants


def layers_of(facts: Facts, configuration: Configuration) -> Configuration:
    """What of a configuration is to be found in a store; sees that the rest are sites that can be dropped.

    Raises:
        UserError: a name or level that doesn't go with the other.
    """
    sites = {site.name for site in facts.droppable}
    for name, level in configuration.items():
        if name in sites and level not in (DROPPED, KEPT):
            raise UserError(f"{name} has no level {level!r}; choose {DROPPED} or {KEPT}")
        if name not in sites and level in (DROPPED, KEPT):
            raise UserError(
                f"{name} can't be {level}: it is no sublayer or block; those of {facts.model_class} run from "
                f"{facts.droppable[0].name} to {facts.droppable[-1].name}"
            )
    return {name: level for name, level in configuration.items() if name not in sites}
