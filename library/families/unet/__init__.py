"""The U-Net of Stable Diffusion: built from a configuration, filled from a checkpoint or a diffusers folder."""

from functools import partial
from pathlib import Path

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from library.families.loading import Place, Source, build, fill, folder_tensors
from library.families.recognise import UNET
from library.families.unet.names import original_unet_name
from library.families.weights_file import open_tensors
from library.files import JsonObject


def build_unet(config: JsonObject, device: str) -> UNet2DConditionModel:
    return build(lambda: UNet2DConditionModel.from_config(config), device)


def load_unet(path: Path, config: JsonObject, place: Place) -> UNet2DConditionModel:
    """A U-Net from a checkpoint in the original layout, or from its own folder in a diffusers model."""
    unet = build_unet(config, "meta")
    if path.is_dir():
        return fill(unet, folder_tensors(path, "U-Net"), lambda name: [Source(name)], place, part="U-Net", path=path)

    sources = partial(original_sources, config=config)
    return fill(unet, open_tensors([path]), sources, place, part="U-Net", path=path, scope=UNET)


def original_sources(name: str, config: JsonObject) -> list[Source]:
    """Where a checkpoint in the original layout keeps a parameter of the U-Net."""
    return [Source(UNET + original_unet_name(name, config["layers_per_block"], config["up_block_types"]))]
