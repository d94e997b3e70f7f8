"""The first batches of a run as a page (`debug_dataset`): the very images and captions that training would see."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from library.messages import log, plural, say
from library.reporting import pages
from library.reporting.pages import Figure
from library.training.resolve import settings_of
from library.training.run import Run

if TYPE_CHECKING:
    from torch import Tensor

    from library.contracts import Batch

MOST_SHOWN = 60  # images; as many as anyone looks through


class ShownBatch(NamedTuple):
    """A batch, for the page."""

    width: int
    height: int
    figures: list[Figure]


class DebugDatasetPage(NamedTuple):
    """What templates/debug_dataset.html shows."""

    name: str  # of the run
    image_count: int
    regularization_count: int
    batch_count: int
    step_count: int
    batches: list[ShownBatch]


def show_dataset(run: Run) -> Path:
    """Write the page into output_dir, and say where it is.

    Images are resized, cut, mirrored and coloured as they would be, the captions shuffled; where a mask hides a part,
    that part is dark.
    """
    plan, batches = run.plan, first_batches(run)
    content = DebugDatasetPage(
        name=run.name,
        image_count=len(plan.samples.train),
        regularization_count=len(plan.samples.regularization),
        batch_count=plan.batch_counts[0],
        step_count=plan.step_count,
        batches=batches,
    )
    path = Path(run.settings.output_dir) / f"{run.name}.dataset.html"
    pages.write(path, pages.render("debug_dataset.html", content))
    count = sum(len(batch.figures) for batch in batches)
    log.info(
        say(
            f"debug_dataset: {plural(count, 'image')} with captions: {path}. Nothing was trained",
            f"debug_dataset：{count} 张图片及其标注见 {path}。没有进行训练",
        )
    )
    return path


def first_batches(run: Run) -> list[ShownBatch]:
    """The batches that the first epoch begins with, until MOST_SHOWN images are shown."""
    from library.data.dataset import Dataset

    config = settings_of(run.settings, dict(max_data_loader_n_workers=0))
    batches: list[ShownBatch] = []
    for batch in Dataset(run.plan, config, run.seed).batches(1):
        assert batch is not None, "there is no other process"
        assert batch.pixels is not None, "nothing is cached"
        height, width = batch.pixels.shape[2:]
        batches.append(
            ShownBatch(width, height, [_figure(batch, batch.pixels, at) for at in range(len(batch.samples))])
        )
        if sum(len(one.figures) for one in batches) >= MOST_SHOWN:
            break
    return batches


def _figure(batch: Batch, images: Tensor, at: int) -> Figure:
    """One image as it would be trained."""
    from PIL import Image

    sample, pixels = batch.samples[at], (images[at] + 1) * 127.5  # (3, H, W)
    if batch.masks is not None:
        learned = batch.masks[at].repeat_interleave(pixels.shape[1] // batch.masks.shape[2], 1)
        pixels = pixels * (0.2 + 0.8 * learned.repeat_interleave(pixels.shape[2] // batch.masks.shape[3], 2))
    image = Image.fromarray(pixels.round().byte().permute(1, 2, 0).numpy())
    weight = float(batch.weights[at])
    notes = [batch.captions[at] or say("(empty caption)", "（空标注）")]
    notes += [say(f"weight {weight:g}", f"权重 {weight:g}")] if weight != 1 else []
    return pages.figure_of(image, f"{sample.folder}/{sample.image_path.name}", " · ".join(notes))
