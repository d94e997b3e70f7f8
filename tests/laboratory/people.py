"""Sets of persons for the laboratory: what all of them share is given, the rest differs at random."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from library.miniature.drawings import Scene, draw, random_scene, tags

BACKGROUNDS = ("white", "gray", "blue", "pink")  # of what is drawn and asked for


def person(rng: random.Random, **shared: str) -> Scene:
    """Somebody before a plain background, with the fields of `Person` that are given."""
    found = random_scene(rng, person_share=1.0).person
    found = replace(found, hat_colour="", position="center" if found.framing != "full body" else found.position)
    found = replace(found, **shared)
    if found.garment == "shirt" and not found.legwear:
        found = replace(found, legwear=rng.choice(["trousers", "skirt"]), legwear_colour=rng.choice(["red", "blue"]))
    if found.garment == "dress":
        found = replace(found, legwear="", legwear_colour="")
    return Scene(rng.choice(BACKGROUNDS), person=found)


def described(scene: Scene, deleted: Sequence[str] = (), trigger: str = "mytag") -> str:
    """The caption of an image, behind the trigger word and without the tags that were deleted."""
    return ", ".join([trigger, *(tag for tag in tags(scene) if tag not in deleted)])


def write(folder: Path, scenes: Sequence[Scene], captions: Sequence[str | None]) -> None:
    """Images with their captions; None: without a caption file."""
    folder.mkdir(parents=True)
    for index, (scene, caption) in enumerate(zip(scenes, captions, strict=True)):
        draw(scene).save(folder / f"{index:02}.png")
        if caption is not None:
            (folder / f"{index:02}.txt").write_text(caption, encoding="utf-8")


def asked(*wanted: str, trigger: str = "mytag") -> list[str]:
    """Prompts for a person with these tags, one before each background; trigger "": without one."""
    begin = [trigger, "person"] if trigger else ["person"]
    return [", ".join([*begin, *wanted, f"{background} background"]) for background in BACKGROUNDS]
