"""The built-in miniature base model: SD 1's layout, a few MB large, trained on images the project draws.

A fresh machine has no checkpoint and may have no network; with this folder a LoRA can be trained anyway, within minutes
on two CPU cores, and it visibly works. Here are only the places, so that asking for one imports nothing:

    model/   a diffusers folder like any SD 1.x one: unet, vae, text_encoder, tokenizer, scheduler; fp16
    train/   10_mytag: images of a character that the base model has never seen, with tags
    reg/     1_world: images that the base model itself made from tags of its own world, for regularization

`drawings.py` is the world it knows, `checker.py` tells whether an image shows what its caption says, and
`tools/train_miniature.py` is how it was trained.
"""

from pathlib import Path

MODEL_FOLDER = Path(__file__).parent / "model"
TRAIN_FOLDER = Path(__file__).parent / "train"
REGULARIZATION_FOLDER = Path(__file__).parent / "reg"
