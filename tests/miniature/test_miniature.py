"""The miniature base model: the world is drawn the same each time, the checker is right, the model obeys."""

import random
import subprocess
import sys

import numpy as np
import pytest

from library.miniature import MODEL_FOLDER, REGULARIZATION_FOLDER, TRAIN_FOLDER
from library.miniature.checker import CHARACTER_THRESHOLD, character_score, identify, thing_score
from library.miniature.drawings import (
    BACKGROUNDS,
    PATTERNS,
    POSES,
    POSITIONS,
    SHAPES,
    SIZES,
    CharacterScene,
    Scene,
    Thing,
    caption,
    draw,
    draw_character,
    random_scene,
    world_words,
)

IMAGE_SIZES = [(64, 64), (48, 80), (80, 48)]


def random_character(rng: random.Random) -> CharacterScene:
    size, pattern = rng.choice(list(SIZES)), rng.choice(PATTERNS)
    return CharacterScene(rng.choice(POSES), rng.choice(list(POSITIONS)), size, rng.choice(list(BACKGROUNDS)), pattern)


def test_places_and_world_can_be_asked_without_torch():
    code = "import sys; import library.miniature, library.miniature.checker; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_caption_says_what_is_drawn():
    scene = Scene("blue", "striped", (Thing("circle", "red", "small", "left"),))
    assert caption(scene) == "red circle, small, left, blue background, striped background"
    pixels = np.asarray(draw(scene)).astype(int)
    red = (pixels[..., 0] > 180) & (pixels[..., 1] < 80)
    assert np.argwhere(red)[:, 1].mean() < 22  # columns: on the left
    assert 650 < red.sum() < 950  # small: radius 16


def test_the_same_seed_draws_the_same_world():
    def world(seed):
        rng = random.Random(seed)
        return [np.asarray(draw(random_scene(rng), size)) for size in IMAGE_SIZES * 10]

    assert all(np.array_equal(first, second) for first, second in zip(world(1), world(1), strict=True))
    assert not all(np.array_equal(first, second) for first, second in zip(world(1), world(2), strict=True))


@pytest.mark.slow("reads hundreds of drawings")
@pytest.mark.parametrize("noise", [0.0, 8.0])
def test_checker_reads_the_drawings(noise):
    """Also with as much noise (in steps of 255) as an image may have after the VAE."""
    rng, noise_source, right, count = random.Random(0), np.random.default_rng(0), 0, 200
    for _ in range(count):
        scene = random_scene(rng, person_share=0, pair_share=0)
        pixels = np.asarray(draw(scene, rng.choice(IMAGE_SIZES))).astype(float)
        pixels = (pixels + noise_source.normal(0, noise, pixels.shape)).clip(0, 255)
        right += identify(pixels) == (scene.things[0].shape, scene.things[0].colour)
    assert right >= 0.98 * count


def test_checker_says_how_much_an_image_looks_like_a_thing():
    for shape in SHAPES:
        image = draw(Scene(things=(Thing(shape, "blue", "small", "left"),)))
        scores = {other: thing_score(image, other, "blue") for other in SHAPES}
        assert max(scores, key=scores.get) == shape
        assert scores[shape] > 0.95
        assert thing_score(image, shape, "red") == 0


def test_checker_finds_nothing_in_an_empty_image():
    assert identify(np.full((64, 64, 3), 200)) == ("", "")
    assert thing_score(np.full((64, 64, 3), 200), "circle", "red") == 0
    assert character_score(np.full((64, 64, 3), 200)) == 0


def test_checker_knows_the_character_from_the_world():
    rng = random.Random(0)
    character = [character_score(draw_character(random_character(rng), size)) for size in IMAGE_SIZES * 20]
    world = [character_score(draw(random_scene(rng), size)) for size in IMAGE_SIZES * 40]
    assert min(character) > CHARACTER_THRESHOLD + 0.2
    assert max(world) < CHARACTER_THRESHOLD - 0.2


def test_image_sets_have_a_caption_each():
    for folder, count in [(TRAIN_FOLDER / "10_mytag", 12), (REGULARIZATION_FOLDER / "1_world", 36)]:
        images = sorted(folder.glob("*.png"))
        assert len(images) == count
        for image in images:
            text = image.with_suffix(".txt").read_text(encoding="utf-8")
            assert text.startswith("mytag, ") == (folder.name == "10_mytag")


def test_world_words_are_one_token_and_the_trigger_is_several():
    from transformers import CLIPTokenizer

    from tools.train_miniature import world_tokenizer

    tokenizer = CLIPTokenizer.from_pretrained(MODEL_FOLDER / "tokenizer", local_files_only=True)
    assert [word for word in world_words() if len(tokenizer(word).input_ids) != 3] == []  # begin, word, end
    assert len(tokenizer("mytag").input_ids) > 3
    for text in ["mytag, red circle, blue background", "Anything (else)!", ""]:
        assert tokenizer(text).input_ids == world_tokenizer()(text).input_ids


def test_model_folder_is_an_sd1_folder_of_a_few_megabytes():
    from tools.train_miniature import open_pipeline, sample

    assert sum(file.stat().st_size for file in MODEL_FOLDER.rglob("*")) < 10e6
    pipeline = open_pipeline()
    assert (pipeline.vae_scale_factor, pipeline.unet.config.in_channels) == (8, 4)
    assert pipeline.text_encoder.config.eos_token_id == pipeline.tokenizer.eos_token_id
    (image,) = sample(pipeline, ["red circle"], seed=0, size=(80, 48), step_count=2)
    assert image.size == (80, 48)


@pytest.mark.slow("draws with the model")
def test_model_draws_unseen_captions():
    """The bar is 90 % of 200 (`--evaluate`); of 60 prompts, exactly 90 % gives fewer than 49 in 1.5 % of draws."""
    from tools.train_miniature import evaluate, open_pipeline

    shares = evaluate(open_pipeline(), count=60)
    assert shares["both"] >= 49 / 60, shares
