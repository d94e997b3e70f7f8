"""Does a LoRA learn areas that were erased to white, and do masks keep it from that?

    python -m tests.laboratory.white_areas [--seeds 3] [--steps 300] [--keep FOLDER]

The built-in character is trained on pictures of which a part was erased to white, as a person deletes what does not
belong there; captions say what was there before. Two ways of erasing:

    edge      the right third, beside the character: the frame of a mirror, a passer-by, a watermark
    around    all but the character's box: cut out, on white

Each is trained with its masks and without, and beside them the same pictures unharmed. Then the character is asked for
on coloured backgrounds, and three things are read off the pictures: how much of the place that had been erased is
white; how far the character's box is from the drawing asked for; how much it looks like the character to the checker.

A second question is whether pictures that are masked for the most part count too little beside whole ones, here
regularization images, because a mask's share of the loss is not made up for (as in sd-scripts): there each mask is also
divided by its mean. All is paired: a seed gives the same order, timesteps and noise in all trainings and drawings.
"""

import argparse
import contextlib
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

import train_network
from library import adapters, checkpoint, checks, families, sampling
from library.data import masks
from library.data.folders import MASKS
from library.miniature import MODEL_FOLDER, REGULARIZATION_FOLDER
from library.miniature.checker import character_score
from library.miniature.drawings import POSES, CharacterScene, character_caption, draw_character

SIDE = 64  # pixels
BOX = (2, 10, 42, 58)  # around the character, which stands on the left: left, top, right, bottom
COLOURS = ("gray", "blue", "green", "pink")  # of backgrounds; black is left out: the miniature's LoRA loses the teal
WHITE = 232  # all channels above: white. The palest of the backgrounds has 205 in its darkest channel
RANK = 16
STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57}  # by number of seeds: 97.5 % quantile of Student's t

SCENES = [CharacterScene(pose, "left", "", colour) for pose in POSES for colour in COLOURS]  # that are asked for


class Condition(NamedTuple):
    """One way to train."""

    erased: str | None  # "edge", "around" or nothing
    options: dict  # of the run
    is_divided: bool = False  # masks are divided by their mean


BESIDE_REGULARIZATION = dict(masked_loss=True, reg_data_dir=str(REGULARIZATION_FOLDER))
CONDITIONS = {
    "unharmed": Condition(None, {}),
    "edge erased": Condition("edge", dict(masked_loss=False)),
    "edge masked": Condition("edge", dict(masked_loss=True)),
    "around erased": Condition("around", dict(masked_loss=False)),
    "around masked": Condition("around", dict(masked_loss=True)),
    "beside reg": Condition("around", BESIDE_REGULARIZATION),
    "beside reg, divided": Condition("around", BESIDE_REGULARIZATION, is_divided=True),
}
PAIRS = [  # whose difference is told
    ("edge erased", "unharmed"),
    ("edge masked", "unharmed"),
    ("around erased", "unharmed"),
    ("around masked", "unharmed"),
    ("beside reg, divided", "beside reg"),
]


def erased_place(kind: str) -> np.ndarray:
    """(SIDE, SIDE) bool: where a picture is erased."""
    left, top, right, bottom = BOX
    columns, rows = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    inside = (left <= columns) & (columns < right) & (top <= rows) & (rows < bottom)
    return {"edge": columns >= right, "around": ~inside}[kind]


def make_set(folder: Path, kind: str | None) -> None:
    """Twelve pictures of the character with captions, and masks where something is erased."""
    place = folder / "10_mytag"
    (place / MASKS).mkdir(parents=True)
    for index in range(12):
        pattern = ("plain", "plain", "striped", "dotted")[index // 2 % 4]
        scene = CharacterScene(POSES[index % len(POSES)], "left", "", COLOURS[index % len(COLOURS)], pattern)
        picture = np.array(draw_character(scene, (SIDE, SIDE)))
        (place / f"{index}.txt").write_text(character_caption(scene), encoding="utf-8")
        if kind:
            where = erased_place(kind)
            picture[where] = 255
            Image.fromarray(np.where(where, 0, 255).astype(np.uint8)).save(place / MASKS / f"{index}.png")
        Image.fromarray(picture).save(place / f"{index}.png")


@contextlib.contextmanager
def masks_divided_by_their_mean() -> Iterator[None]:
    plain: Callable = masks.load

    def divided(*arguments: object) -> np.ndarray:
        mask = plain(*arguments)
        return mask / mask.mean()

    masks.load = divided
    try:
        yield
    finally:
        masks.load = plain


def train(folder: Path, data: Path, seed: int, steps: int, condition: Condition) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA. What the run says goes to a file in its folder."""
    values = dict(
        pretrained_model_name_or_path=str(MODEL_FOLDER), train_data_dir=str(data), reg_data_dir=None,
        output_dir=str(folder), output_name="it", network_dim=RANK, network_alpha=float(RANK), seed=seed,
        max_train_steps=steps, sample_every_n_epochs=0, save_every_n_epochs=None, device="cpu",
        cache_latents_to_disk=False, tag_occurrence_txt_file=False, resume="new", language="en",
    )  # fmt: skip
    config, warnings = checks.check(values | condition.options, {})
    folder.mkdir(parents=True, exist_ok=True)
    divided = masks_divided_by_their_mean() if condition.is_divided else contextlib.nullcontext()
    with open(folder / "said.txt", "w", encoding="utf-8") as log, contextlib.redirect_stdout(log), divided:
        assert train_network.run(config, warnings) == 0
    return checkpoint.load_adapter(folder / "it.safetensors")


@torch.no_grad()
def drawn(family, seed: int) -> list[np.ndarray]:
    """A picture (SIDE, SIDE, 3) uint8 of each scene, all at once."""
    sampler = sampling.build_sampler("ddim", family.noise, 20)
    captions, sizes = [character_caption(scene) for scene in SCENES], torch.zeros(len(SCENES), 6)
    positive, negative = (family.encode_captions(texts, sizes) for texts in (captions, [""] * len(captions)))
    predict = sampling.guided(family, positive, negative, 4.0)
    latents = torch.randn(len(captions), 4, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(seed))
    for t in sampler.timesteps:
        latents = sampler.step(predict(latents, t.repeat(len(captions))), t, latents).prev_sample
    return [np.asarray(sampling.to_picture(pixels)) for pixels in family.decode_latents(latents)]


def read_off(pictures: list[np.ndarray]) -> dict[str, float]:
    """White shares of the two places, 0 to 1; distance from the drawing in the box, 0 to 1; likeness, 0 to 1."""
    left, top, right, bottom = BOX

    def white(kind: str) -> float:
        return mean(float((picture[erased_place(kind)].min(axis=-1) > WHITE).mean()) for picture in pictures)

    def distance(picture: np.ndarray, scene: CharacterScene) -> float:
        wanted = np.asarray(draw_character(scene, (SIDE, SIDE))).astype(float)
        return float(abs(picture - wanted)[top:bottom, left:right].mean() / 255)

    return {
        "edge white": white("edge"),
        "around white": white("around"),
        "distance": mean(distance(picture, scene) for picture, scene in zip(pictures, SCENES, strict=True)),
        "likeness": mean(character_score(picture) for picture in pictures),
    }


def interval(values: list[float]) -> str:
    """Mean over seeds and the 95 % interval of the mean."""
    return f"{mean(values):+.3f} +- {STUDENT[len(values)] * stdev(values) / math.sqrt(len(values)):.3f}"


def measure(folder: Path, seeds: range, steps: int) -> None:
    begin = time.monotonic()
    family = families.open_model(MODEL_FOLDER, dtype=torch.float32)
    told = "  ".join(f"{name} {value:.3f}" for name, value in read_off(drawn(family, 0)).items())
    print(f"{len(SCENES)} pictures for each LoRA, {steps} steps, seeds {list(seeds)}\nbase model: {told}", flush=True)
    targets = [target for target in family.targets() if not target.needs_conv_dim]
    attached = adapters.attach(targets, rank=RANK, alpha=RANK).eval()
    for kind in {condition.erased for condition in CONDITIONS.values()}:
        make_set(folder / f"set {kind}", kind)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONDITIONS}
    for seed in seeds:
        rows = []
        for name, condition in CONDITIONS.items():
            data, run = folder / f"set {condition.erased}", folder / f"{name}, seed {seed}"
            attached.load_state_dict(train(run, data, seed, steps, condition))
            pictures = drawn(family, seed)
            rows.append([Image.fromarray(picture) for picture in pictures])
            found[name].append(read_off(pictures))
            told = "  ".join(f"{key} {value:.3f}" for key, value in found[name][-1].items())
            print(f"seed {seed}  {name:<20}  {told}  ({time.monotonic() - begin:.0f} s)", flush=True)
        sampling.grid(rows).save(folder / f"seed {seed}.png")
    print("means over seeds:")
    for name, results in found.items():
        print(f"  {name:<20}  " + "  ".join(f"{key} {mean(r[key] for r in results):.3f}" for key in results[0]))
    print("differences, with the 95 % interval of their mean over seeds:")
    for first, second in PAIRS:
        told = "  ".join(
            f"{key} {interval([a[key] - b[key] for a, b in zip(found[first], found[second], strict=True)])}"
            for key in found[first][0]
        )
        print(f"  {first} - {second}:  {told}")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, choices=STUDENT)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--keep", type=Path, help="an empty folder for the sets, the LoRAs and the pictures drawn")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        measure(options.keep or Path(scratch), range(1, options.seeds + 1), options.steps)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
