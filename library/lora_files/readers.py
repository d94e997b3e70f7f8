"""Which programs read an adapter file: by the kinds it holds, and by what its layers are called.

A1111 (1.10) takes names apart at the first dot and knows those with underscores. ComfyUI and Forge look each name up in
one list: underscores, and of diffusers' names with dots those of text encoders and of U-Net layers outside of attention
(within it they know the older `.processor.to_q_lora`, which nobody writes any more). diffusers (0.42) converts
underscores and reads its own. To add a program: a row in READS and in NAMES.

Source: the programs' loaders, read for their behaviour: extensions-builtin/Lora/networks.py of A1111, comfy/lora.py of
ComfyUI, packages_3rdparty/comfyui_lora_collection/lora.py of Forge, loaders/lora_conversion_utils.py of diffusers.
"""

import re
from collections.abc import Collection
from typing import NamedTuple

WEB_UIS = ("A1111", "Forge", "ComfyUI")
PROGRAMS = (*WEB_UIS, "diffusers")
READS = {  # kind -> programs that read it
    "LoRA": PROGRAMS,
    "LoCon in three steps": WEB_UIS,  # lora_mid
    "LoHa": WEB_UIS,
    "LoKr": WEB_UIS,
    "DoRA": WEB_UIS,  # diffusers leaves the magnitudes away
    "full": WEB_UIS,
    "norm": WEB_UIS,
    "GLoRA": WEB_UIS,
    "OFT": ("A1111", "ComfyUI"),
    "IA3": ("A1111",),
}
DOTS_IN_LISTS = r"lora_|text_encoder(_2)?\.text_model\.|unet\.(?!.*\.to_(q|k|v|out))"
NAMES = {  # program -> beginnings of the names that it takes
    "A1111": r"lora_",
    "Forge": DOTS_IN_LISTS,
    "ComfyUI": DOTS_IN_LISTS,
    "diffusers": r"lora_|unet\.|text_encoder(_2)?\.",
}


class Reading(NamedTuple):
    """How far a program reads a file."""

    kinds: list[str]  # that it does not know
    names: list[str]  # of layers that it does not know

    @property
    def is_whole(self) -> bool:
        return not (self.kinds or self.names)


def readings(kinds: Collection[str], names: Collection[str], known: Collection[str] | None) -> dict[str, Reading]:
    """Program -> what of a file it does not read.

    Args:
        kinds: keys of READS.
        names: of the file's layers.
        known: of the base model's layers, in every writing; None: not compared.
    """
    return {
        program: Reading(
            [kind for kind in kinds if program not in READS[kind]],
            [name for name in names if not re.match(NAMES[program], name) or (known is not None and name not in known)],
        )
        for program in PROGRAMS
    }
