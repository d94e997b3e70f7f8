"""Does the report's ranking put mislabelled and odd training images first?"""

import random
from pathlib import Path
from statistics import fmean

from library.miniature.drawings import CharacterScene, character_caption, draw, draw_character, random_scene
from library.training.caption_mismatch import ranked
from library.training.report_history import History
from tests.laboratory.character import make_set, random_character
from tests.laboratory.experiment import BLOCK_WEIGHTS, Claim, Comparison, Training

COUNT = 12  # images, two of them wrong
MISLABELLED, ODD = "00.png", "01.png"
LENGTHS = (150, 400, 1200)  # steps


def make_wrong_set(folder: Path, rng: random.Random) -> None:
    """The character's images; one has a caption that tells another background, one shows something else."""
    make_set(folder, rng, with_regularization=True, count=COUNT)
    place = folder / "train" / "10_mytag"
    scene, other = random_character(rng), random_character(rng)
    while other.background == scene.background:
        other = random_character(rng)
    _put(place / MISLABELLED, draw_character(scene), other)
    _put(place / ODD, draw(random_scene(rng, person_share=0, pair_share=0)), random_character(rng))


def _put(path: Path, image, described: CharacterScene) -> None:
    image.save(path)
    path.with_suffix(".txt").write_text(character_caption(described), encoding="utf-8")


def read(folder: Path) -> dict[str, float]:
    """Where the two stand in the run's ranking, and in one by the loss (the trained model's, if that was measured)."""
    history = History(folder / "it.run.jsonl")
    history.read()
    event = history.captions_compared
    found = ranked(event)
    losses = event["rows"].get("trained, with caption") or event["rows"]["unchanged, with caption"]
    by_loss = [name for _, name in sorted(zip(map(fmean, losses), event["pictures"], strict=True), reverse=True)]

    def is_wrong(name: str) -> bool:
        return Path(name).name in (MISLABELLED, ODD)

    return {
        "both on top": float(all(is_wrong(one.image) for one in found[:2])),
        "one on top": float(is_wrong(found[0].image)),
        "by loss, both on top": float(all(map(is_wrong, by_loss[:2]))),
        "wrong ones marked": fmean(one.is_odd for one in found if is_wrong(one.image)),
        "right ones marked": fmean(one.is_odd for one in found if not is_wrong(one.image)),
        "timesteps": float(len(event["timesteps"])),
    }


CLAIM = Claim(
    title="Wrong training pictures stand first in the report",
    sentence="",
    method="""Twelve pictures of the character beside regularization pictures, with the block's weights of the loss: one
has a caption that tells another background, one shows something else under a caption of the character. The report ranks
pictures by how much their captions help the model, trained and unchanged (`library/training/caption_mismatch.py`), for
3 % of the run's time: the shorter the run, the fewer timesteps, and in the shortest by the unchanged model alone. By
chance both would be on top in 1 of 66. *Marked* is what the report calls worth a look; where that begins was chosen on
other runs.""",
    trainings={
        f"{steps} steps": Training(make_wrong_set, BLOCK_WEIGHTS | dict(max_train_steps=steps)) for steps in LENGTHS
    },
    questions={},
    measure=None,
    read=read,
    comparisons=[
        comparison
        for steps in LENGTHS
        for comparison in (
            Comparison(
                f"{steps} steps: both are on top more often than by the loss",
                (f"{steps} steps", "both on top"), "more", (f"{steps} steps", "by loss, both on top"),
            ),
            Comparison(
                f"{steps} steps: wrong pictures are marked more often than right ones",
                (f"{steps} steps", "wrong ones marked"), "more", (f"{steps} steps", "right ones marked"),
            ),
        )
    ],
    shown=[],
    limits="""Real base models know many more words, and captions of real sets are less exact. An odd picture whose
caption is right (another person, correctly tagged) is found only by as much as the trigger word is wrong for it.""",
    seeds=range(21, 31),  # others than those on which the ranking was chosen
)  # fmt: skip
