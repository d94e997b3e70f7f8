"""What several tests need: messages in English, a tiny base model as a diffusers folder, a small training set."""

import json
import random
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from library.messages import set_language


@pytest.fixture(autouse=True)
def english():
    """Messages in English, whatever the machine's locale and whatever a test did before."""
    set_language("en")
    yield
    set_language("en")


def write_diffusers_folder(path: Path, family) -> Path:
    """A family's model as a diffusers folder, as a person would have it."""
    from library.families.clip_text import clip_merges

    for name, module in family.modules().items():
        module.save_pretrained(path / name)
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer = getattr(family, name, None)
        if tokenizer is not None:
            (path / name).mkdir()
            merges = clip_merges()[: len(tokenizer) - 514]
            (path / name / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()), encoding="utf-8")
            lines = ["#version: 0.2", *(" ".join(merge) for merge in merges), ""]
            (path / name / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
            named = {"pad_token": {"content": tokenizer.pad_token}}
            (path / name / "special_tokens_map.json").write_text(json.dumps(named))
    kind = "StableDiffusionXLPipeline" if family.name == "sdxl" else "StableDiffusionPipeline"
    (path / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    (path / "scheduler").mkdir()
    kinds = {"epsilon": "epsilon", "v": "v_prediction"}
    scheduler = {"prediction_type": kinds[family.noise.objective]}
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """tiny_model("sd1") -> the folder of a random base model of kilobytes; "sd2" is a v model, and there is "sdxl"."""
    from library import families

    folders: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in folders:
            folders[name] = write_diffusers_folder(tmp_path_factory.mktemp(name) / "tiny", families.tiny(name))
        return folders[name]

    return folder


def draw_set(folder: Path, captions: list[str], sizes: list[tuple[int, int]], seed: int = 0) -> Path:
    """Pictures of coloured ellipses with caption files."""
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    for index, (caption, size) in enumerate(zip(captions, sizes, strict=True)):
        picture = Image.new("RGB", size, tuple(rng.randrange(256) for _ in range(3)))
        box = (size[0] * 0.2, size[1] * 0.2, size[0] * 0.8, size[1] * 0.8)
        ImageDraw.Draw(picture).ellipse(box, fill=tuple(rng.randrange(256) for _ in range(3)))
        picture.save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(caption, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def small_set(tmp_path_factory):
    """A training set of 3 pictures in two buckets, seen twice, and 4 regularization pictures: (train, reg)."""
    root = tmp_path_factory.mktemp("set")
    captions = ["mytag, red hair, smile", "mytag, blue hair", "mytag, hat, standing, outside"]
    draw_set(root / "train" / "2_mytag", captions, [(64, 64), (64, 64), (48, 80)])
    draw_set(root / "reg" / "1_person", [f"person, hat {n}" for n in range(4)], [(64, 64)] * 4, seed=1)
    return root / "train", root / "reg"
