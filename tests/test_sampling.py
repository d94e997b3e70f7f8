"""Preview prompts as sd-scripts writes them, and samplers that denoise."""

import json

import pytest
import torch

from library import sampling
from library.contracts import Conditioning, NoiseSpec
from library.messages import UserError
from library.sampling import Prompt


class PerfectFamily:
    """Knows the latents it should draw, and predicts exactly the noise that leads there."""

    def __init__(self, objective: str, answer: torch.Tensor):
        self.noise, self.answer = NoiseSpec(objective=objective), answer
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.alphas_bar = torch.cumprod(1 - betas, 0)

    def encode_captions(self, captions, sizes):
        return Conditioning(torch.zeros(len(captions), 1, 1))

    def predict(self, noisy, t, conditioning):
        alpha_bar = self.alphas_bar[t.long().clamp(0, 999)].reshape(-1, 1, 1, 1).float()
        noise = (noisy - alpha_bar.sqrt() * self.answer) / (1 - alpha_bar).sqrt()
        if self.noise.objective == "epsilon":
            return noise
        return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * self.answer

    def decode_latents(self, latents):
        self.drawn = latents
        return torch.zeros(1, 3, 8, 8)


SAMPLERS = [name for name in sampling.SAMPLERS if not name.startswith("k_") and name != "lms"]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # diffusers' own
@pytest.mark.parametrize("objective", ["epsilon", "v"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_reaches_the_picture_of_a_perfect_model(sampler, objective):
    answer = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    family = PerfectFamily(objective, answer)
    sampling.draw(family, Prompt("a", width=64, height=64, seed=1, step_count=30, scale=1, sampler=sampler))
    assert (family.drawn - answer).abs().mean() < 0.1 * answer.abs().mean()


@pytest.mark.parametrize(("scale", "expected"), [(1, 3.0), (0, 1.0), (7.5, 1 + 7.5 * 2)])
def test_guidance_goes_from_the_negative_towards_the_prompt(scale, expected):
    class Family(PerfectFamily):
        def encode_captions(self, captions, sizes):
            return Conditioning(torch.tensor([float(caption) for caption in captions]))

        def predict(self, noisy, t, conditioning):
            return conditioning.states * torch.ones_like(noisy)

    family = Family("epsilon", torch.zeros(1))
    positive, negative = (family.encode_captions([text], None) for text in ("3", "1"))
    predict = sampling.guided(family, positive, negative if scale != 1 else None, scale)
    assert torch.all(predict(torch.zeros(1, 4, 2, 2), torch.tensor([5])) == expected)


def test_drawing_disturbs_no_random_stream_of_the_training():
    before = torch.get_rng_state()
    family = PerfectFamily("epsilon", torch.zeros(1, 4, 8, 8))
    sampling.draw(family, Prompt("a", width=64, height=64, seed=1, step_count=3, sampler="euler_a"))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_line_of_options_is_read():
    prompt = sampling.parse_line("1girl, red hair --n bad, blurry --w 512 --h 768 --d 7 --s 20 --l 5.5 --ss euler")
    expected = Prompt("1girl, red hair", "bad, blurry", 512, 768, 7, 20, 5.5, "euler")
    assert prompt == expected


def test_a_prompt_that_looks_like_an_option_is_a_prompt():
    """sd-scripts reads a prompt beginning with "n ..." as a negative prompt."""
    assert sampling.parse_line("n something, w 5").text == "n something, w 5"


def test_prompt_files_of_every_form_mean_the_same(tmp_path):
    (tmp_path / "a.txt").write_text("# comment\n\na cat --n dog --d 3\n", encoding="utf-8-sig")
    (tmp_path / "a.json").write_text(json.dumps([{"prompt": "a cat", "negative_prompt": "dog", "seed": 3}]))
    (tmp_path / "a.toml").write_text('[prompt]\nnegative_prompt="dog"\n[[prompt.subset]]\nprompt="a cat"\nseed=3\n')
    (tmp_path / "gbk.txt").write_bytes("红色的猫".encode("gb18030"))
    for name in ("a.txt", "a.json", "a.toml"):
        assert sampling.read_prompts(tmp_path / name) == [Prompt("a cat", "dog", seed=3)]
    assert sampling.read_prompts(tmp_path / "gbk.txt") == [Prompt("红色的猫")]


def test_every_bad_line_is_named_with_its_number(tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("fine\na --w big\nb --ss magic\nc --zz 1\nd --s 0\n")
    with pytest.raises(UserError) as error:
        sampling.read_prompts(file)
    assert len(error.value.problems) == 4
    for number, word in ((2, "big"), (3, "magic"), (4, "--zz"), (5, "--s 0")):
        assert any(f"p.txt:{number}: " in problem and word in problem for problem in error.value.problems)


def test_an_empty_prompt_file_is_told(tmp_path):
    (tmp_path / "p.txt").write_text("# nothing\n")
    with pytest.raises(UserError, match="no prompt"):
        sampling.read_prompts(tmp_path / "p.txt")


def test_sizes_are_multiples_of_8_and_not_too_small():
    prompts = [Prompt("a", width=517, height=20), Prompt("b")]
    completed = sampling.complete(prompts, size=(512, 768), seed=5, sampler="ddim")
    assert [(p.width, p.height, p.seed, p.sampler) for p in completed] == [(512, 64, 5, "ddim"), (512, 768, 5, "ddim")]


def test_a_grid_holds_all_pictures_at_their_size():
    pictures = [sampling.to_picture(torch.full((3, 8, 16), value)) for value in (-1.0, 0.0, 1.0)]
    sheet = sampling.grid([pictures[:2], pictures[2:]], gap=2)
    assert sheet.size == (16 + 2 + 16, 8 + 2 + 8)
    assert sheet.getpixel((0, 0)) == (0, 0, 0)
    assert sheet.getpixel((20, 0)) == (128, 128, 128)
