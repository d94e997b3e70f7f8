"""Preview prompts as sd-scripts writes them, and samplers that denoise."""

import itertools
import json
import math
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers.schedulers import scheduling_ddim as ddim

from library.contracts import LatentSpace, NoiseSpec
from library.diffusion import sampling
from library.diffusion.sampling import Prompt
from library.families import tiny
from library.messages import UserError


class PerfectFamily:
    """Knows the latents it should draw, and predicts exactly the noise that leads there."""

    facts = SimpleNamespace(latents=LatentSpace())

    def __init__(self, objective: str, answer: torch.Tensor, zero_terminal_snr: bool = False):
        self.noise, self.answer = NoiseSpec(objective=objective, zero_terminal_snr=zero_terminal_snr), answer
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        if zero_terminal_snr:
            betas = ddim.rescale_zero_terminal_snr(betas)
        self.alphas_bar = torch.cumprod(1 - betas, 0)

    def encode_captions(self, captions):
        return {"states": torch.zeros(len(captions), 1, 1)}

    def size_conditioning(self, sizes):
        return {}

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


@pytest.mark.slow("every sampler with every objective")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # diffusers' own
@pytest.mark.parametrize(("objective", "zero_terminal_snr"), [("epsilon", False), ("v", False), ("v", True)])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_reaches_the_image_of_a_perfect_model(sampler, objective, zero_terminal_snr):
    answer = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    family = PerfectFamily(objective, answer, zero_terminal_snr)
    sampling.generate(family, Prompt("a", width=64, height=64, seed=1, step_count=30, scale=1, sampler=sampler))
    assert (family.drawn - answer).abs().mean() < 0.1 * answer.abs().mean()


class PerfectFlow(PerfectFamily):
    """Knows the latents it should draw, and predicts the line that leads there."""

    def __init__(self, answer: torch.Tensor, **spec):
        self.noise, self.answer, self.times = NoiseSpec(objective="flow", **spec), answer, []

    def predict(self, noisy, t, conditioning):
        self.times.append(float(t))
        sigma = t.reshape(-1, 1, 1, 1) / 1000
        return (noisy - self.answer) / sigma


@pytest.mark.parametrize("step_count", [1, 7])
@pytest.mark.parametrize("sampler", ["euler", "euler_a", "ddim"])
def test_flow_reaches_the_image_of_a_perfect_model_exactly(sampler, step_count):
    answer = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    family = PerfectFlow(answer, shift=3.0)
    sampling.generate(family, Prompt("a", width=64, height=64, seed=1, step_count=step_count, scale=1, sampler=sampler))
    torch.testing.assert_close(family.drawn, answer, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("spec", "shift"), [(dict(shift=3.0), 3.0), (dict(timestep_law="flux_shift"), 1.58308)])
def test_flow_begins_at_pure_noise_and_takes_the_shifted_steps_of_diffusers(spec, shift):
    """Of the FLUX pipeline: sigmas from 1 to 1 / n, shifted by exp(mu) of the 16 tokens of this image."""
    family = PerfectFlow(torch.zeros(1, 4, 8, 8), **spec)
    sampling.generate(family, Prompt("a", width=64, height=64, seed=1, step_count=4, scale=1, sampler="euler"))
    even = [1, 0.75, 0.5, 0.25]
    expected = [1000 * shift * point / (1 + (shift - 1) * point) for point in even]
    assert family.times == pytest.approx(expected, rel=1e-3)
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    theirs.set_timesteps(sigmas=even, mu=math.log(shift))
    assert family.times == pytest.approx(theirs.timesteps.tolist(), rel=1e-3)


def test_latents_are_those_of_the_family(monkeypatch):
    """16 channels of squares of 16 pixels; the shift by resolution counts a token for each."""
    family = PerfectFlow(torch.zeros(1), timestep_law="flux_shift", patch_size=1)
    monkeypatch.setattr(family, "facts", SimpleNamespace(latents=LatentSpace(16, 16)))
    told = family.encode_captions(["a"])
    prompt = Prompt("a", width=64, height=64, seed=1, step_count=2, scale=1, sampler="euler")
    sampling.generate_encoded(family, prompt, told, None, hires=sampling.Hires(1.5, 0.5))
    assert family.drawn.shape == (1, 16, 6, 6)
    shift = math.exp(0.5 + (16 - 256) * 0.65 / 3840)
    assert family.times[1] == pytest.approx(1000 * shift * 0.5 / (1 + (shift - 1) * 0.5), rel=1e-4)


def test_flow_draws_a_second_time_from_a_noisy_image():
    answer = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    family = PerfectFlow(answer)
    told = family.encode_captions([""])
    prompt = Prompt("", width=64, height=64, seed=1, step_count=4, scale=1, sampler="euler")
    family.predict, once = (lambda noisy, t, told: fitted(noisy, t, told)), family.predict

    def fitted(noisy, t, told):
        family.answer = torch.nn.functional.interpolate(answer, noisy.shape[2:])
        return once(noisy, t, told)

    sampling.generate_encoded(family, prompt, told, None, hires=sampling.Hires(1.5, 0.5))
    torch.testing.assert_close(family.drawn, family.answer, rtol=1e-4, atol=1e-4)
    assert family.times == [1000, 750, 500, 250, 500, 375, 250, 125]


@pytest.mark.parametrize(("scale", "expected"), [(1, 3.0), (0, 1.0), (7.5, 1 + 7.5 * 2)])
def test_guidance_goes_from_the_negative_towards_the_prompt(scale, expected):
    class Family(PerfectFamily):
        def encode_captions(self, captions):
            return {"states": torch.tensor([float(caption) for caption in captions])}

        def predict(self, noisy, t, conditioning):
            return conditioning["states"] * torch.ones_like(noisy)

    family = Family("epsilon", torch.zeros(1))
    positive, negative = (family.encode_captions([text]) for text in ("3", "1"))
    predict = sampling.guided(family, positive, negative if scale != 1 else None, scale)
    assert torch.all(predict(torch.zeros(1, 4, 2, 2), torch.tensor([5])) == expected)


# ---- the web UI's samplers ----


def k_sigmas(count):
    """k-diffusion's DiscreteSchedule.get_sigmas: by the logarithm between the model's own, 0 at the end."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas_bar = torch.cumprod(1 - betas, 0)
    logs = (((1 - alphas_bar) / alphas_bar) ** 0.5).log()
    levels = []
    for t in torch.linspace(999, 0, count).tolist():
        low = min(int(t), 998)
        levels.append(float((logs[low] + (t - low) * (logs[low + 1] - logs[low])).exp()))
    return [*levels, 0.0]


def k_timestep(sigma):
    """The timestep, not a whole one, that this noise level has."""
    levels = torch.tensor(k_sigmas(1000)[:-1][::-1], dtype=torch.float64).log()
    below = int((levels <= math.log(sigma) + 1e-9).nonzero()[-1])
    below = min(below, 998)
    return below + float((math.log(sigma) - levels[below]) / (levels[below + 1] - levels[below]))


def k_sample(name, predict, x, sigmas, noise):
    """Karras et al. 2022 (arXiv:2206.00364) and Lu et al. 2022 (arXiv:2211.01095) as k-diffusion steps them."""

    def clean(x, sigma):
        t = torch.tensor([k_timestep(sigma)], dtype=torch.float32)
        return x - sigma * predict((x / (sigma**2 + 1) ** 0.5).float(), t).double()

    slopes, before = [], None
    for i, (now, after) in enumerate(itertools.pairwise(sigmas)):
        guess = clean(x, now)
        slope = (x - guess) / now
        if name == "euler_a":
            up = min(after, (after**2 * (now**2 - after**2) / now**2) ** 0.5)
            x = x + slope * ((after**2 - up**2) ** 0.5 - now)
            x = x + noise().double() * up if after > 0 else x
        elif name == "heun" and after > 0:
            second = x + slope * (after - now)
            x = x + (slope + (second - clean(second, after)) / after) / 2 * (after - now)
        elif name == "lms":
            slopes = [slope, *slopes[:3]]
            for j, earlier in enumerate(slopes):
                others = [sigmas[i - k] for k in range(len(slopes)) if k != j]
                grid = torch.linspace(now, after, 20001, dtype=torch.float64)
                basis = torch.stack([(grid - o) / (sigmas[i - j] - o) for o in others] or [grid * 0 + 1]).prod(0)
                x = x + earlier * torch.trapezoid(basis, grid)
        elif name == "dpmsolver++" and after > 0:
            step = math.log(now / after)
            ahead = guess
            if before is not None:
                ratio = math.log(sigmas[i - 1] / now) / step
                ahead = (1 + 1 / (2 * ratio)) * guess - before / (2 * ratio)
            x = after / now * x - math.expm1(-step) * ahead
        else:
            x = x + slope * (after - now)
        before = guess
    return x


class CurvedFamily(PerfectFamily):
    """Predicts something that depends on everything, smoothly; keeps the latents it is given to decode."""

    def __init__(self):
        super().__init__("epsilon", torch.zeros(1))

    def predict(self, noisy, t, conditioning):
        return torch.tanh(noisy * (0.8 + 0.2 * torch.cos(t / 300)) + 0.1 * conditioning["states"].mean())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own
@pytest.mark.parametrize("sampler", ["euler", "euler_a", "heun", "lms", "dpmsolver++"])
@pytest.mark.parametrize("hires", [None, sampling.Hires(1.5, 0.4)])
def test_samplers_take_the_web_uis_steps(sampler, hires):
    """Same noise, same levels, same formulas; and a second time at the end of a longer schedule."""
    family, steps = CurvedFamily(), 7
    told = family.encode_captions(["a"])
    prompt = Prompt("a", width=64, height=64, seed=5, step_count=steps, scale=1, sampler=sampler)
    sampling.generate_encoded(family, prompt, told, None, hires=hires)

    def predict(noisy, t):
        return family.predict(noisy, t, told)

    generator = torch.Generator().manual_seed(5)

    def noise(side=8):
        return torch.randn(1, 4, side, side, generator=generator)

    x = k_sample(sampler, predict, noise().double() * k_sigmas(steps)[0], k_sigmas(steps), noise)
    if hires:
        x = torch.nn.functional.interpolate(x, (12, 12), mode="bilinear", antialias=False)
        generator.manual_seed(5)
        sigmas = k_sigmas(int(steps / 0.4))[-steps - 1 :]
        x = k_sample(sampler, predict, x + noise(12).double() * sigmas[0], sigmas, lambda: noise(12))
    torch.testing.assert_close(family.drawn.double(), x, rtol=2e-3, atol=2e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own
@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_models_trained_down_to_pure_noise_are_drawn_from_there(sampler):
    """As diffusers does it: rescaled betas, and the last timestep first."""
    noise = NoiseSpec(objective="v", zero_terminal_snr=True)
    general = dict(beta_start=noise.beta_start, beta_end=noise.beta_end, beta_schedule="scaled_linear")
    general |= dict(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    if sampler == "ddim":
        theirs = diffusers.DDIMScheduler(**general, clip_sample=False, set_alpha_to_one=False)
    else:
        theirs = diffusers.EulerDiscreteScheduler(**general)
    theirs.set_timesteps(10)
    ours = sampling.build_sampler(sampler, noise, 10)
    if sampler == "euler":  # other timesteps on purpose: the web UI's
        ours.set_timesteps(10)
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = [
        sampling.denoised(lambda x, t: torch.tanh(x + t / 500 - 1), each, start * each.init_noise_sigma, None)
        for each in (ours, theirs)
    ]
    assert ours.timesteps[0] == 999
    torch.testing.assert_close(*drawn, rtol=5e-3, atol=5e-3)
    levels = sampling.web_ui_sigmas(noise, 5)[1]
    assert levels[0] == pytest.approx(4518.8, rel=1e-3)  # A1111's and ComfyUI's


def test_the_second_drawing_tells_sdxl_its_own_size():
    seen = []

    class Sized(PerfectFamily):
        def encode_captions(self, captions):
            return {"states": torch.zeros(1, 1, 1), "pooled": torch.zeros(1, 1)}

        def size_conditioning(self, sizes):
            return {"sizes": sizes}

        def predict(self, noisy, t, conditioning):
            seen.append((tuple(noisy.shape[2:]), conditioning["sizes"][0].tolist()))
            return torch.zeros_like(noisy)

    family = Sized("epsilon", torch.zeros(1))
    told = family.encode_captions([""]) | family.size_conditioning(sampling.image_sizes(64, 48))
    prompt = Prompt("", width=64, height=48, seed=1, step_count=2, scale=1, sampler="euler")
    sampling.generate_encoded(family, prompt, told, None, hires=sampling.Hires(2, 0.5))
    assert seen == [((6, 8), [48, 64, 0, 0, 48, 64])] * 2 + [((12, 16), [96, 128, 0, 0, 96, 128])] * 2


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # diffusers' own
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "pndm"])
def test_every_sampler_draws_a_second_time(sampler):
    answer = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    family = PerfectFamily("epsilon", answer)
    told = family.encode_captions([""])
    prompt = Prompt("", width=64, height=64, seed=1, step_count=20, scale=1, sampler=sampler)
    family.predict, once = (lambda noisy, t, told: fitted(noisy, t, told)), family.predict

    def fitted(noisy, t, told):
        family.answer = torch.nn.functional.interpolate(answer, noisy.shape[2:])
        return once(noisy, t, told)

    sampling.generate_encoded(family, prompt, told, None, hires=sampling.Hires(1.5, 0.5))
    assert family.drawn.shape == (1, 4, 12, 12)
    assert (family.drawn - family.answer).abs().mean() < 0.15 * answer.abs().mean()


def test_drawing_disturbs_no_random_stream_of_the_training():
    before = torch.get_rng_state()
    family = PerfectFamily("epsilon", torch.zeros(1, 4, 8, 8))
    sampling.generate(family, Prompt("a", width=64, height=64, seed=1, step_count=3, sampler="euler_a"))
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


def test_a_grid_holds_all_images_at_their_size():
    images = [sampling.to_image(torch.full((3, 8, 16), value)) for value in (-1.0, 0.0, 1.0)]
    sheet = sampling.grid([images[:2], images[2:]], gap=2)
    assert sheet.size == (16 + 2 + 16, 8 + 2 + 8)
    assert sheet.getpixel((0, 0)) == (0, 0, 0)
    assert sheet.getpixel((20, 0)) == (128, 128, 128)


def test_weights_and_breaks_of_a_prompt_act_in_its_image():
    """`(x:1.0)` is x; other weights, `[x]` and BREAK change the image, escaped brackets are letters."""
    family = tiny("sd1")

    def drawn(text, negative=""):
        prompt = Prompt(text, negative, width=64, height=64, seed=1, step_count=2, sampler="euler")
        return sampling.generate_weighted(family, prompt).tobytes()

    plain = drawn("red circle, hat")
    assert drawn("(red circle:1.0), hat") == plain
    assert drawn("red circle, hat <lora:other:0.5>") != b""
    assert drawn("<lora:other:0.5>red circle, hat") == plain
    assert len({plain, *map(drawn, ("(red circle:1.5), hat", "[red circle], hat", "red circle BREAK hat"))}) == 4
    assert drawn(r"red circle \(hat\)") != drawn("red circle (hat)")
    assert drawn("red circle, hat", "(bad:1.0)") == drawn("red circle, hat", "bad") != drawn("red circle, hat", "[bad]")


@pytest.mark.parametrize(
    "line", ["a cat AND a dog", "a [cat:dog:0.5]", "a [cat|dog]", "a --n [b|c]", "<hypernet:x:1> a"]
)
def test_what_a_preview_cannot_do_is_refused_with_its_line(tmp_path, line):
    (tmp_path / "p.txt").write_text(f"fine\n{line}\n")
    with pytest.raises(UserError, match=r"p.txt:2: .*not supported"):
        sampling.read_prompts(tmp_path / "p.txt")


def test_what_a_preview_leaves_out_is_said():
    prompts = sampling.prompts_of("a <lora:x:0.8>, <lyco:y> --n bad <lora:x:0.8>\nb # later\nc")
    named, remark = sampling.left_out(prompts)
    assert named.startswith("sample_prompts: <lora:x:0.8>, <lyco:y> left out")
    assert '"# later" left out' in remark
    assert sampling.left_out([Prompt("(a:1.2) BREAK b")]) == []
