"""Previews of a run: drawn with the weights as they would be saved, named as sd-scripts names them."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from library.messages import log, say
from library.options.derived import last_strengths
from library.training.run import Run, Training

if TYPE_CHECKING:
    from PIL.Image import Image

    from library.reporting.run_log import RunLog

Write = Callable[[Path, int, Callable[[], object]], None]  # see `Saver.write`
PNG_BYTES = 2**20  # of an image, about


def preview(run: Run, training: Training, run_log: RunLog, write: Write, *, when: str) -> None:
    """Previews in the middle of a run.

    Args:
        when: of their names: "e000004" after an epoch, "000500" after a step.
    """
    if run.settings.sample_every_n_epochs != 0:
        rows = sample_images(run, training, run_log)
        keep(run, run_log, write, rows, (1.0,), when)


def last_previews(run: Run, training: Training, run_log: RunLog, write: Write) -> None:
    """Previews of the finished LoRA at several strengths, and two of them as images to compare."""
    from library.diffusion import sampling

    if run.settings.sample_every_n_epochs == 0 or not run.prompts:
        return
    strengths = tuple(last_strengths(run.settings))
    rows = sample_images(run, training, run_log, strengths)
    if rows:
        without, with_lora = (rows[strengths.index(strength)] for strength in (0.0, 1.0))
        comparison, beside = (run.output_dir / f"{run.name}{end}" for end in (".comparison.png", ".preview.png"))
        write(comparison, PNG_BYTES, partial(sampling.grid([without, with_lora]).save, comparison))
        write(beside, PNG_BYTES, partial(with_lora[0].save, beside))  # web UIs show it beside the LoRA's name
        keep(run, run_log, write, rows, strengths, "end")


def sample_images(
    run: Run, training: Training, run_log: RunLog, strengths: tuple[float, ...] = (1.0,)
) -> list[list[Image]]:
    """A row of images for each strength of the LoRA, one for each prompt; none where memory is too small."""
    from library.diffusion import sampling
    from library.hardware import memory

    training.step.clear()  # previews want its memory
    device, modules = run.device.torch_device, training.family.modules()
    places = {name: next(module.parameters()).device for name, module in modules.items()}
    for module in modules.values():
        module.to(device)
    training.adapters.eval()
    rows = []
    try:
        for strength in strengths:
            training.adapters.multiplier = strength
            with training.averaged():
                rows.append([sampling.generate_weighted(training.family, prompt, device) for prompt in run.prompts])
    except RuntimeError as error:
        if not memory.is_full(error):
            raise
        log.info(say("no previews: not enough memory", "显存不足，这次没有画预览图"))
        return []
    finally:
        training.adapters.multiplier = 1.0
        training.adapters.train()
        for name, module in modules.items():
            module.to(places[name])
    return rows


def keep(
    run: Run, run_log: RunLog, write: Write, rows: list[list[Image]], strengths: tuple[float, ...], when: str
) -> None:
    """Write previews down: a row for each strength, an image for each prompt."""
    folder, clock = run.output_dir / "sample", time.strftime("%Y%m%d%H%M%S")
    write(folder, 2**12, lambda: folder.mkdir(exist_ok=True))
    files = []
    for strength, row in zip(strengths, rows, strict=False):  # no rows: memory was too small
        at = f"_x{strength:g}" if len(strengths) > 1 else ""
        names = [f"{run.name}_{when}_{n:02d}{at}_{clock}_{run.prompts[n].seed}.png" for n in range(len(row))]
        for name, image in zip(names, row, strict=True):
            write(folder / name, PNG_BYTES, partial(image.save, folder / name))
        files.append([f"sample/{name}" for name in names])
    if files:
        run_log.event("preview", epoch=run_log.epochs_told, step=run_log.step, strengths=list(strengths), files=files)
