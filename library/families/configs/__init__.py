"""The configurations of the networks of Stable Diffusion, as single files of it need them."""

import json
from pathlib import Path

from library.files import JsonObject

Configs = dict[str, JsonObject]  # network -> its configuration: numbers, names and lists, as diffusers writes them


def read_configs(name: str) -> Configs:
    """By the folder that a network has in a diffusers model: "unet", "vae", "text_encoder" (and "text_encoder_2")."""
    return json.loads((Path(__file__).parent / f"{name}.json").read_text(encoding="utf-8"))
