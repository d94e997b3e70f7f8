"""The families of base models that are known: a row for each, and the file that says everything about it.

A family's file imports neither torch nor anything that does before it loads a model: what a checkpoint is, and how a
person calls it, is told within milliseconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from library.contracts import FamilyFacts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from library.contracts import Family, ModelInfo, NoiseSpec
    from library.families.configs import Configs
    from library.families.loading import LoadOptions, Sources

FAMILIES = {  # name -> the file it is described in
    "sd1": "library.families.sd",
    "sd2": "library.families.sd",
    "sdxl": "library.families.sdxl",
}


class FamilyFile(Protocol):
    """What stands in a family's file, which may be that of several."""

    FACTS: Mapping[str, FamilyFacts]  # by name
    TINY: Mapping[str, Configs]  # configurations of its networks that make kilobytes of them, for tests

    def read_configs(self, name: str) -> Configs:
        """The configurations of its networks as single files need them, which do not carry their own."""

    def load(self, info: ModelInfo, noise: NoiseSpec, configs: Configs, options: LoadOptions) -> Family:
        """The model that `inspect` has found."""

    def create(
        self, name: str, noise: NoiseSpec, configs: Configs, device: str, max_token_length: int | None = None
    ) -> Family:
        """A model from configurations alone: random, or of true size without memory on the "meta" device."""

    def token_counts(self, info: ModelInfo, configs: Configs, captions: list[str]) -> list[int]:
        """How many tokens each caption has, before any weight is read."""

    def sources(self, name: str, configs: Configs) -> Sources:
        """Where single files keep the parameters of the networks that can be adapted."""


def file_of(name: str) -> FamilyFile:
    return cast(FamilyFile, import_module(FAMILIES[name]))


def facts_of(name: str) -> FamilyFacts:
    return file_of(name).FACTS[name]


def all_facts() -> list[FamilyFacts]:
    return [facts_of(name) for name in FAMILIES]
