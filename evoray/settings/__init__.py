"""Settings of every verb: strict, frozen, the same from the command line, a YAML file and Python.

Holds:
    fields: `Settings` and the groups of fields that verbs share
    build: `BuildSettings`; choice: `SearchSettings`, `BaselineSettings`; sweep: `SweepSettings`
    results: `EvalSettings`, `ExportSettings`
    presets: the defaults of `--preset`; recipes: `Recipe`, `find_recipe`, `recipes`: the defaults of `--recipe`
    loading: `load_settings`; yaml_file: `read_yaml`; command: `command_of`

A field's description is its help on the command line, and its name is its flag.
"""

from evoray.settings.build import BuildSettings
from evoray.settings.choice import TARGETS, BaselineSettings, ChoiceSettings, SearchSettings
from evoray.settings.command import command_of
from evoray.settings.fields import (
    TOKENS_PER_PASS,
    TOP_K,
    VARIANT_BYTES,
    VOCABULARY_CHUNK,
    WORK_BYTES,
    Device,
    Dtype,
    ModelSettings,
    MutationRule,
    Preset,
    ProposalRule,
    RacePolicy,
    Settings,
    TextSettings,
    WorkSettings,
    flag,
)
from evoray.settings.loading import load_settings
from evoray.settings.presets import PRESETS
from evoray.settings.recipes import Recipe, find_recipe, matching_recipes, recipes
from evoray.settings.results import EvalSettings, ExportSettings
from evoray.settings.sweep import SweepSettings
from evoray.settings.yaml_file import read_yaml

__all__ = [
    "PRESETS",
    "TARGETS",
    "TOKENS_PER_PASS",
    "TOP_K",
    "VARIANT_BYTES",
    "VOCABULARY_CHUNK",
    "WORK_BYTES",
    "BaselineSettings",
    "BuildSettings",
    "ChoiceSettings",
    "Device",
    "Dtype",
    "EvalSettings",
    "ExportSettings",
    "ModelSettings",
    "MutationRule",
    "Preset",
    "ProposalRule",
    "RacePolicy",
    "Recipe",
    "SearchSettings",
    "Settings",
    "SweepSettings",
    "TextSettings",
    "WorkSettings",
    "command_of",
    "find_recipe",
    "flag",
    "load_settings",
    "matching_recipes",
    "read_yaml",
    "recipes",
]
