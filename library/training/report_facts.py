"""What does not change in a run, as the report page shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from library.options import command_line
from library.options.training import Config
from library.reporting import charts
from library.training.dataset_findings import statistics_of
from library.training.run import Run

if TYPE_CHECKING:
    from library.data.plan import Overview
    from library.data.tag_statistics import TagStatistics

MOST_TAGS = 60


class TagRow(NamedTuple):
    """A tag, and where its feature goes."""

    tag: str
    count: int
    share: str
    fate: str


class TrainedImage(NamedTuple):
    """An image that the run trains on."""

    path: Path
    caption: str


@dataclass
class Facts:
    """What does not change in a run."""

    name: str  # of all its files
    folder: Path  # where they are
    suffix: str  # of the LoRA files
    settings: Config
    step_counts: list[int]  # of each epoch
    held_out_count: int  # images that are measured and not trained on
    family: str  # "SD 1.x"
    model: str  # file or folder of the base model
    machine: str
    memory: str  # the table of what the run was to hold
    plan: Overview
    trigger_words: list[str]
    prompts: list[str]
    tags: list[TagRow]  # the most frequent
    tag_count: int
    images: dict[str, TrainedImage]  # by "10_mytag/003.png"
    notes: list[str]  # what was said at the start; grows with the run
    command: str

    @property
    def step_count(self) -> int:
        return sum(self.step_counts)

    @property
    def epoch_count(self) -> int:
        return len(self.step_counts)

    def epoch_at(self, step: float) -> float:
        """A step as a place among the epochs: 2.5 in the middle of the third."""
        done = 0
        for epoch, count in enumerate(self.step_counts):
            if step <= done + count:
                return epoch + (step - done) / count
            done += count
        return float(self.epoch_count)

    def over_epochs(self, values: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
        """Values by step as at most so many points over the epochs."""
        return [(self.epoch_at(step), value) for step, value in charts.thinned(values, most)]


def facts_of(run: Run, memory: str) -> Facts:
    """From what was asked and what it came to.

    Args:
        memory: the table of what the run is to hold.
    """
    from library import families
    from library.data import captions, held_out, plan

    settings, planned = run.settings, run.plan
    folders = [folder for folder in planned.samples.folders if not folder.is_regularization]
    statistics = statistics_of(planned, settings)
    rows = tag_rows(statistics, {folder.name: folder.text.strip() or None for folder in folders}) if statistics else []
    return Facts(
        name=run.name,
        folder=run.output_dir,
        suffix=settings.save_model_as,
        settings=settings,
        step_counts=list(planned.step_counts),
        held_out_count=len(planned.samples.validation),
        family=families.facts_of(run.model.family).title,
        model="/".join(run.model.path.resolve().parts[-2 if run.model.path.is_dir() else -1 :]),
        machine=run.device.description,
        memory=memory,
        plan=plan.overview(planned, settings),
        trigger_words=sorted({folder.text.strip() for folder in folders} - {""}),
        prompts=[prompt.text for prompt in run.prompts],
        tags=rows,
        tag_count=len(statistics.tags) if statistics else 0,
        images={
            f"{one.folder}/{one.image_path.name}": TrainedImage(one.image_path, captions.whole_of(one, settings))
            for one in held_out.of_subject(planned.samples, settings)
        },
        notes=run.notes,
        command=command_line.command(settings),
    )


def tag_rows(statistics: TagStatistics, words: dict[str, str | None]) -> list[TagRow]:
    """The most frequent tags, and where the feature of each goes; each judged in the folder where it stands most."""
    from library.data import tag_statistics

    rows = []
    for tag in list(statistics.tags.values())[:MOST_TAGS]:
        folder = max(statistics.folders, key=lambda name, tag=tag: statistics.share(tag, name))
        fate = tag_statistics.fate(statistics, tag, words.get(folder), folder)
        rows.append(TagRow(tag.text, statistics.count(tag), f"{statistics.share(tag, folder):.0%}", fate))
    return rows
