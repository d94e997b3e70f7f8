"""What an image that we have drawn says about itself: how it was made, for web UIs and for us.

A PNG carries two texts. `parameters` is what AUTOMATIC1111's web UI writes and reads back ("PNG Info"); `lora_recipe`
holds the same values as JSON, by which the image is known again: it is finished, and drawn as is wanted now.
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

GenerationParameters = dict[str, str | int | float | None]
# prompt, negative_prompt (plain text), steps, sampler, guidance_scale, seed, width, height, clip_skip, model,
# model_hash, vae: all that decides an image but the device's rounding. Of some: has_weights (the texts are in the web
# UI's writing, not plain), lora_hashes ("mytag: 0123456789ab, ..."), hires_scale, hires_strength.


def infotext(parameters: GenerationParameters) -> str:
    """The parameters as the web UI writes it below its images.

    Brackets are weights there. Where they are plain text here they are escaped: pasted there, the text encoder sees the
    same.
    """
    written = (lambda text: text) if parameters.get("has_weights") else _escaped
    lines = [written(str(parameters["prompt"]))]
    if parameters["negative_prompt"]:
        lines.append(f"Negative prompt: {written(str(parameters['negative_prompt']))}")
    is_uniform = parameters["sampler"] in SAMPLERS and parameters["sampler"] not in (
        "ddim",
        "pndm",
    )  # those have no such choice
    is_hires = parameters.get("hires_scale") is not None
    values = {
        "Steps": parameters["steps"],
        "Sampler": SAMPLERS.get(str(parameters["sampler"]), parameters["sampler"]),
        "CFG scale": f"{parameters['guidance_scale']:g}",
        "Seed": parameters["seed"],
        "Size": f"{parameters['width']}x{parameters['height']}",
        "Model hash": parameters["model_hash"],
        "Model": parameters["model"],
        "VAE": parameters["vae"],
        "Clip skip": parameters["clip_skip"],
        "Schedule type": "Uniform" if is_uniform else None,
        "RNG": "CPU",  # the web UI's setting under which it draws the same noise
        "Denoising strength": f"{parameters['hires_strength']:g}" if is_hires else None,
        "Hires upscale": f"{parameters['hires_scale']:g}" if is_hires else None,
        "Hires upscaler": "Latent" if is_hires else None,
        "Lora hashes": f'"{parameters["lora_hashes"]}"' if parameters.get("lora_hashes") else None,
    }
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in values.items() if value is not None)])


def _escaped(text: str) -> str:
    return re.sub(r"([\\()\[\]])", r"\\\1", text)


def write_image(path: Path, image: Image.Image, parameters: GenerationParameters) -> None:
    """Write an image with its generation parameters, at once or not at all. Raises OSError."""
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", infotext(parameters))
    texts.add_text(KEY, json.dumps(parameters))
    with replacing(path, is_synced=True) as half:
        image.save(half, "PNG", pnginfo=texts)


def read_parameters(path: Path) -> GenerationParameters | None:
    """The generation parameters of an image made here; None: it is another's, or not whole."""
    try:
        with open(path, "rb") as file:
            with Image.open(file, formats=["PNG"]) as image:
                text = image.info.get(KEY)
            file.seek(-len(END_OF_PNG), os.SEEK_END)
            is_whole = file.read() == END_OF_PNG
        parameters = json.loads(text) if text and is_whole else None
    except (OSError, ValueError, SyntaxError):  # Pillow's own for what is no PNG, or a damaged one
        return None
    return parameters if isinstance(parameters, dict) else None


def differences(before: GenerationParameters, now: GenerationParameters) -> dict[str, tuple[object, object]]:
    """{name: (before, now)} of what is not the same."""
    return {name: (before.get(name), now.get(name)) for name in before | now if before.get(name) != now.get(name)}


def model_of(path: Path) -> str | None:
    """The name of the model that drew an image, as a web UI or we wrote it into the PNG; None: it does not say."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            text = image.info.get("parameters")
    except (OSError, ValueError, SyntaxError):
        return None
    found = re.search(r"(?:^|, )Model: ([^,\n]+)", text, re.MULTILINE) if isinstance(text, str) else None
    return found[1].strip() if found else None
