"""The first batches of a run as a page (`debug_dataset`): the very pictures and captions that training would see."""

import dataclasses
from pathlib import Path
from typing import Any

from library.messages import say
from library.training.prepare import Prepared

MOST_SHOWN = 60  # pictures; as many as anyone looks through


def show_set(prepared: Prepared) -> Path:
    """Write the page into output_dir, and say where it is.

    Pictures are resized, cut, mirrored and coloured as they would be, the captions shuffled; where a mask hides a part,
    that part is dark.
    """
    from library.data.dataset import Dataset
    from library.reporting import pages

    plan, config = prepared.plan, dataclasses.replace(prepared.config, max_data_loader_n_workers=0)
    blocks, shown = [], 0
    for number, batch in enumerate(Dataset(plan, config, prepared.seed).batches(1), 1):
        figures = [_figure(batch, at) for at in range(len(batch.samples))]
        height, width = batch.pixels.shape[2:]
        heading = say(f"batch {number}: {width} x {height}", f"第 {number} 批：{width} x {height}")
        blocks.append(pages.section(heading, pages.pictures(figures)))
        shown += len(figures)
        if shown >= MOST_SHOWN:
            break
    numbers = {
        say("pictures", "图片"): len(plan.found.train),
        say("regularization", "正则化"): len(plan.found.regularization),
        say("batches in the first epoch", "第一轮批次"): plan.batch_counts[0],
        say("steps", "步数"): plan.step_count,
    }
    intro = say(
        "What the first epoch begins with, as it would be trained (debug_dataset). Nothing was trained.",
        "第一轮开头的内容，与训练时完全一致（debug_dataset）。没有进行训练。",
    )
    title = say(f"The data of {prepared.name}", f"{prepared.name} 的训练内容")
    path = Path(config.output_dir) / f"{prepared.name}.dataset.html"
    pages.write(path, pages.page(title, pages.paragraph(intro), pages.facts(numbers), *blocks))
    print(
        say(
            f"debug_dataset: {shown} pictures with their captions: {path}. Nothing was trained",
            f"debug_dataset：{shown} 张图片及其标签见 {path}。没有进行训练",
        )
    )
    return path


def _figure(batch: Any, at: int) -> Any:
    """One picture as it would be trained, for `pages.pictures`."""
    from PIL import Image

    from library.reporting import pages

    sample, pixels = batch.samples[at], (batch.pixels[at] + 1) * 127.5
    if batch.masks is not None:
        learnt = batch.masks[at].repeat_interleave(pixels.shape[1] // batch.masks.shape[2], 1)
        pixels = pixels * (0.2 + 0.8 * learnt.repeat_interleave(pixels.shape[2] // batch.masks.shape[3], 2))
    picture = Image.fromarray(pixels.round().byte().permute(1, 2, 0).numpy())
    weight = float(batch.weights[at])
    notes = [batch.captions[at] or say("(empty caption)", "（空标签）")]
    notes += [say(f"weight {weight:g}", f"权重 {weight:g}")] if weight != 1 else []
    return pages.picture(picture, f"{sample.folder}/{sample.image_path.name}", " · ".join(notes))
