"""The main job as delivered: what `python lora_train_command_line.py` trains on the miniature works, and is measured.

The checker looks at images that the base model draws with and without the LoRA: does the trigger word show the
character, and do old words still show old things?
"""

import random

import pytest
import torch

import train_network
from library import adapters, families
from library.diffusion import sampling
from library.miniature.checker import CHARACTER_THRESHOLD, character_score, identify
from library.miniature.drawings import BACKGROUNDS, COLOURS, SHAPES
from library.options import checks
from library.options.declaration import PROJECT
from library.options.training import Config
from library.storage import lora_file

SAMPLER, SCALE, STEPS = "euler_a", 4.0, 20


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of the default run; it differs from the block in places, in epochs, 5 for 10, and in its previews.

    Previews of four captions at three strengths would take as long as the training.
    """
    folder = tmp_path_factory.mktemp("main job")
    changed = {"output_dir": str(folder), "cache_dir": str(folder / "cache"), "max_train_epochs": 5}
    changed["sample_prompts"] = "mytag, standing --s 4"
    config, warnings = checks.check(changed, {})
    assert train_network.run(config, warnings) == 0
    return folder


@pytest.fixture(scope="module")
def with_and_without(finished):
    """draw(captions, strength) -> images, by the base model with the LoRA at that strength."""
    family = families.open_model(PROJECT / Config.pretrained_model_name_or_path, dtype=torch.float32)
    tensors = lora_file.load_adapter(finished / "mytag.safetensors")
    options = Config()
    attached = adapters.attach(
        [target for target in family.targets() if not target.needs_conv_dim],
        rank=options.network_dim,
        alpha=options.network_alpha,
    ).eval()
    attached.load_state_dict(tensors)

    @torch.no_grad()
    def draw(captions, strength):
        """All at once, each from its own seed: what `sampling.generate` draws one by one, in a third of the time."""
        attached.multiplier = strength
        count = len(captions)
        sizes = family.size_conditioning(sampling.image_sizes(64, 64).expand(count, -1))
        positive, negative = (family.encode_captions(texts) | sizes for texts in (captions, [""] * count))
        predict = sampling.guided(family, positive, negative, SCALE)
        samplers = [sampling.build_sampler(SAMPLER, family.noise, STEPS) for _ in captions]
        seeds = [torch.Generator().manual_seed(seed) for seed in range(count)]
        latents = torch.cat([torch.randn(1, 4, 8, 8, generator=seed) for seed in seeds]) * samplers[0].init_noise_sigma
        for t in samplers[0].timesteps:
            scaled = [sampler.scale_model_input(own[None], t) for sampler, own in zip(samplers, latents, strict=True)]
            predicted = predict(torch.cat(scaled), t.expand(count))
            steps = zip(samplers, predicted, latents, seeds, strict=True)
            latents = torch.cat([one.step(p[None], t, own[None], generator=g).prev_sample for one, p, own, g in steps])
        return [sampling.to_image(pixels) for pixels in family.decode_latents(latents)]

    return draw


@pytest.mark.slow("trains the miniature for 555 steps")
def test_the_default_run_leaves_a_lora_and_images_of_it(finished):
    assert (finished / "mytag.safetensors").stat().st_size > 100_000
    assert (finished / "mytag.comparison.png").is_file()
    assert (finished / "mytag-000002.safetensors").is_file()


@pytest.mark.slow("trains the miniature for 555 steps")
def test_the_trigger_word_shows_the_character_only_with_the_lora(with_and_without):
    rng = random.Random(0)
    pale = [name for name in BACKGROUNDS if name != "black"]  # on black the miniature's LoRA often loses the teal
    captions = [f"mytag, standing, large, center, {rng.choice(pale)} background" for _ in range(12)]
    shown = [
        sum(character_score(image) > CHARACTER_THRESHOLD for image in with_and_without(captions, strength))
        for strength in (0.0, 1.0)
    ]
    assert shown[0] == 0
    assert shown[1] >= 5


@pytest.mark.slow("trains the miniature for 555 steps")
def test_old_words_still_show_old_things_with_the_lora(with_and_without):
    rng = random.Random(1)
    asked = [(rng.choice(list(SHAPES)), rng.choice(list(COLOURS))) for _ in range(24)]
    captions = [f"{colour} {shape}, center, {rng.choice(['white', 'gray'])} background" for shape, colour in asked]
    right = []
    for strength in (0.0, 1.0):
        images = with_and_without(captions, strength)
        assert not any(character_score(image) > CHARACTER_THRESHOLD for image in images)
        right.append(sum(identify(image) == wanted for image, wanted in zip(images, asked, strict=True)))
    assert right[1] >= right[0] - 5
