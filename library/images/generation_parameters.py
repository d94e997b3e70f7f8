"""What a picture that we have drawn says about itself: how it was made, for web UIs and for us.

A PNG carries two texts. `parameters` is what AUTOMATIC1111's web UI writes and reads back ("PNG Info"); `lora_recipe`
holds the same values as JSON, by which the picture is known again: it is finished, and drawn as is wanted now.
"""

import json
import os
import re
from pathlib import Path

from PIL import Image, PngImagePlugin

from library.files import replacing

KEY = "lora_recipe"
END_OF_PNG = b"IEND\xaeB`\x82"

SAMPLERS = {  # our name -> the web UI's; others have none there
    "ddim": "DDIM", "pndm": "PLMS", "lms": "LMS", "euler": "Euler", "euler_a": "Euler a", "heun": "Heun",
    "dpm_2": "DPM2", "dpm_2_a": "DPM2 a", "dpmsolver++": "DPM++ 2M", "dpmsingle": "DPM++ 2S",
}  # fmt: skip

Recipe = dict[str, str | int | float | None]
# prompt, negative_prompt (plain text), steps, sampler, guidance_scale, seed, width, height, clip_skip, model,
# model_hash, vae: all that decides a picture but the device's rounding. Of some: has_weights (the texts are in the web
# UI's writing, not plain), lora_hashes ("mytag: 0123456789ab, ..."), hires_scale, hires_strength.


def infotext(recipe: Recipe) -> str:
    """The recipe as the web UI writes it below its pictures.

    Brackets are weights there. Where they are plain text here they are escaped: pasted there, the text encoder sees the
    same.
    """
    written = (lambda text: text) if recipe.get("has_weights") else _escaped
    lines = [written(recipe["prompt"])]
    if recipe["negative_prompt"]:
        lines.append(f"Negative prompt: {written(recipe['negative_prompt'])}")
    is_uniform = recipe["sampler"] in SAMPLERS and recipe["sampler"] not in (
        "ddim",
        "pndm",
    )  # those have no such choice
    is_hires = recipe.get("hires_scale") is not None
    values = {
        "Steps": recipe["steps"],
        "Sampler": SAMPLERS.get(recipe["sampler"], recipe["sampler"]),
        "CFG scale": f"{recipe['guidance_scale']:g}",
        "Seed": recipe["seed"],
        "Size": f"{recipe['width']}x{recipe['height']}",
        "Model hash": recipe["model_hash"],
        "Model": recipe["model"],
        "VAE": recipe["vae"],
        "Clip skip": recipe["clip_skip"],
        "Schedule type": "Uniform" if is_uniform else None,
        "RNG": "CPU",  # the web UI's setting under which it draws the same noise
        "Denoising strength": f"{recipe['hires_strength']:g}" if is_hires else None,
        "Hires upscale": f"{recipe['hires_scale']:g}" if is_hires else None,
        "Hires upscaler": "Latent" if is_hires else None,
        "Lora hashes": f'"{recipe["lora_hashes"]}"' if recipe.get("lora_hashes") else None,
    }
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in values.items() if value is not None)])


def _escaped(text: str) -> str:
    return re.sub(r"([\\()\[\]])", r"\\\1", text)


def write(path: Path, picture: Image.Image, recipe: Recipe) -> None:
    """Write a picture with its recipe, at once or not at all. Raises OSError."""
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", infotext(recipe))
    texts.add_text(KEY, json.dumps(recipe))
    with replacing(path, is_synced=True) as half:
        picture.save(half, "PNG", pnginfo=texts)


def read(path: Path) -> Recipe | None:
    """The recipe of a picture that was drawn here; None: it is another's, or not whole."""
    try:
        with open(path, "rb") as file:
            with Image.open(file, formats=["PNG"]) as picture:
                text = picture.info.get(KEY)
            file.seek(-len(END_OF_PNG), os.SEEK_END)
            is_whole = file.read() == END_OF_PNG
        recipe = json.loads(text) if text and is_whole else None
    except (OSError, ValueError, SyntaxError):  # Pillow's own for what is no PNG, or a damaged one
        return None
    return recipe if isinstance(recipe, dict) else None


def differences(before: Recipe, now: Recipe) -> dict[str, tuple]:
    """{name: (before, now)} of what is not the same."""
    return {name: (before.get(name), now.get(name)) for name in before | now if before.get(name) != now.get(name)}


def model_of(path: Path) -> str | None:
    """The name of the model that drew a picture, as a web UI or we wrote it into the PNG; None: it does not say."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            text = picture.info.get("parameters")
    except (OSError, ValueError, SyntaxError):
        return None
    found = re.search(r"(?:^|, )Model: ([^,\n]+)", text, re.MULTILINE) if isinstance(text, str) else None
    return found[1].strip() if found else None
