"""Drawing: prompt files as sd-scripts reads them, and diffusers' samplers on the noise levels of web UIs.

Noise comes from a generator of each image's own seed on the CPU, so an image is the same on every device and
drawing it disturbs nothing of the training. To add a sampler: add a row to SAMPLERS.

AUTOMATIC1111's web UI draws with k-diffusion, whose noise levels are the model's at timesteps evenly spaced from the
last to the first, between two of them by the logarithm. Set so (`web_ui_sigmas`), diffusers' Euler, Euler a, Heun, LMS
and DPM++ 2M take the same steps: same seed, same image as there with "RNG: CPU" and "Schedule type: Uniform". As
diffusers has them, all but the last are so within rounding; its DPM++ 2M leaves the lowest level out and rounds
timesteps. The others (ddim, pndm, dpm_2, dpm_2_a, dpmsolver, dpmsingle) are diffusers' own.

Models of the objective "flow" are sampled by Euler's steps whichever sampler is named, as by sd-scripts and
musubi-tuner: most of the others are made for tables of timesteps.
"""

import inspect
import json
import math
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor
from torch.nn import functional

from library import text_encoding
from library.contracts import Conditioning, Family, NoiseSpec
from library.diffusion import prompts as prompt_syntax
from library.diffusion.noise_schedules import alpha_bar, without_terminal_signal
from library.diffusion.objectives import OBJECTIVES
from library.diffusion.timesteps import LAWS
from library.messages import UserError, say

SAMPLERS = {  # name in sd-scripts -> diffusers' class and its settings
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm_2": ("KDPM2DiscreteScheduler", {}),
    "dpm_2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmsolver": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmsingle": ("DPMSolverSinglestepScheduler", {}),
}
SAMPLERS |= {f"k_{name}": SAMPLERS[name] for name in ("lms", "euler", "euler_a", "dpm_2", "dpm_2_a")}
Sampler = Any  # a scheduler of diffusers: they have much in common, but no class that says it
AS_WEB_UI = {"euler", "euler_a", "heun", "lms", "dpmsolver++", "k_euler", "k_euler_a", "k_lms"}


@dataclass(frozen=True)
class Prompt:
    """One image to draw; the options of a line in a prompt file stand behind the fields.

    The texts of a prompt file are in the web UI's writing, see `prompts`.
    """

    text: str
    negative: str = ""  # --n
    width: int | None = None  # --w  pixels; None: the training resolution
    height: int | None = None  # --h
    seed: int | None = None  # --d  None: the run's seed, so that epochs can be compared
    step_count: int = 30  # --s  1~1000
    scale: float = 7.5  # --l  classifier-free guidance; 1: none
    sampler: str | None = None  # --ss

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a completed prompt; see `complete`."""
        assert self.width is not None
        assert self.height is not None
        return self.width, self.height


LARGEST_SIDE = 8192  # pixels; beyond, it is a typing mistake that would fill the memory in the middle of a run

LINE_OPTIONS = {  # letter -> field, type
    "n": ("negative", str), "w": ("width", int), "h": ("height", int), "d": ("seed", int),
    "s": ("step_count", int), "l": ("scale", float), "ss": ("sampler", str),
}  # fmt: skip
FILE_KEYS = {  # keys of .toml and .json prompt files -> field
    "prompt": "text", "negative_prompt": "negative", "width": "width", "height": "height", "seed": "seed",
    "sample_steps": "step_count", "scale": "scale", "sample_sampler": "sampler",
}  # fmt: skip


def prompts_of(given: str) -> list[Prompt]:
    """The prompts of a file, or those of the text itself, one per line. Raises UserError."""
    return read_prompts(Path(given)) if Path(given[:4096]).is_file() else read_prompts(Path("sample_prompts"), given)


def read_prompts(path: Path, text: str | None = None) -> list[Prompt]:
    """The prompts of a .txt (one per line, # begins a comment), .toml or .json file, in sd-scripts' format.

    Args:
        text: what stands in it, if that is known.

    Raises:
        UserError: the file is no text, or every line that cannot be understood, with its number.
    """
    text = _decoded(path) if text is None else text
    prompts, problems = [], []
    for where, entry in _entries(path, text):
        try:
            prompts.append(parse_line(entry) if isinstance(entry, str) else _from_keys(entry))
        except ValueError as error:
            problems.append(f"{where}: {error}")
    if not prompts and not problems:
        problems.append(
            say(
                f"{path}: it contains no prompts. Write one per line, or set sample_prompts = None.",
                f"{path}：里面没有提示词。请每行写一条，或设 sample_prompts = None。",
            )
        )
    if problems:
        raise UserError(problems)
    return prompts


def _decoded(path: Path) -> str:
    """The text of a file, in whatever encoding."""
    try:
        reading = text_encoding.read(path.read_bytes())
    except OSError as error:
        raise UserError(say(f"{path}: cannot be read: {error}", f"{path}：无法读取：{error}")) from None
    if reading:
        return reading.text
    raise UserError(say(f"{path}: is not UTF-8 text. Save it as UTF-8.", f"{path}：不是 UTF-8 文本，请另存为 UTF-8。"))


def _entries(path: Path, text: str) -> list[tuple[str, str | dict[str, object]]]:
    """(place, line or table) for every prompt of the file."""
    try:
        if path.suffix.lower() == ".toml":
            table = tomllib.loads(text).get("prompt", {})
            shared = {key: value for key, value in table.items() if key != "subset"}
            entries = [shared | subset for subset in table.get("subset", [{}] if "prompt" in shared else [])]
        elif path.suffix.lower() == ".json":
            content = json.loads(text)
            entries = content if isinstance(content, list) else [content]
        else:
            lines = ((f"{path}:{number}", line.strip()) for number, line in enumerate(text.splitlines(), 1))
            return [(where, line) for where, line in lines if line and not line.startswith("#")]
    except (ValueError, RecursionError) as error:
        raise UserError(say(f"{path}: cannot be read: {error}", f"{path}：无法解析：{error}")) from None
    except (TypeError, AttributeError):  # valid, but built otherwise
        raise UserError(
            say(
                f"{path}: contains no list of prompts. Write [[prompt.subset]], and below it prompt = 'text'.",
                f"{path}：里面没有提示词列表。请写 [[prompt.subset]]，下一行写 prompt = '提示词'。",
            )
        ) from None
    return [(f"{path} [{index}]", entry) for index, entry in enumerate(entries, 1)]


def parse_line(line: str) -> Prompt:
    """ "a cat --n blurry --w 512 --d 1" -> Prompt. What stands before the first " --" is always the prompt."""
    text, *options = re.split(r"\s--(?=[a-zA-Z])", " " + line)
    values: dict[str, Any] = {}  # of the fields' types
    for option in options:
        letter, _, value = option.strip().partition(" ")
        if letter not in LINE_OPTIONS:
            known = " ".join(f"--{name}" for name in LINE_OPTIONS)
            raise ValueError(
                say(
                    f"--{letter}: there is no such option. There are {known}.",
                    f"--{letter}：没有这个选项。可用的有 {known}。",
                )
            )
        name, kind = LINE_OPTIONS[letter]
        values[name] = _number(f"--{letter}", value.strip(), kind)
    return _checked(Prompt(text.strip(), **values))


def _from_keys(entry: object) -> Prompt:
    if isinstance(entry, str):
        return parse_line(entry)
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        raise ValueError(say('a prompt needs "prompt" = "text".', '缺少 "prompt" = "提示词"。'))
    entry = {key: value for key, value in entry.items() if value is not None}  # null: not given
    unknown = sorted(set(entry) - set(FILE_KEYS))
    if unknown:
        known = ", ".join(FILE_KEYS)
        raise ValueError(say(f"unknown: {unknown}. There are {known}.", f"不认识：{unknown}。可用的有 {known}。"))
    types = {name: kind for name, kind in LINE_OPTIONS.values()} | {"text": str}
    return _checked(Prompt(**{FILE_KEYS[k]: _number(k, str(v), types[FILE_KEYS[k]]) for k, v in entry.items()}))


def _number(name: str, value: str, kind: type) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise ValueError(say(f'{name} "{value}" is not a number.', f'{name} 的值 "{value}" 不是数字。')) from None


def _checked(prompt: Prompt) -> Prompt:
    if re.search("[\ud800-\udfff]", prompt.text + prompt.negative):  # no tokenizer takes it
        raise ValueError(
            say("contains a broken character (\\ud8..); type it again.", "含有半个字符（\\ud8..），请重新填写。")
        )
    try:
        prompt_syntax.parse(prompt_syntax.without_loras(prompt.text))
        prompt_syntax.parse(prompt_syntax.without_loras(prompt.negative), is_negative=True)
    except UserError as error:
        raise ValueError(say("; ", "；").join(error.problems)) from None
    for letter, side in (("w", prompt.width), ("h", prompt.height)):
        if side is not None and not 1 <= side <= LARGEST_SIDE:
            raise ValueError(
                say(
                    f"--{letter} {side} is not 1 to {LARGEST_SIDE}.",
                    f"--{letter} {side} 应在 1 到 {LARGEST_SIDE} 之间。",
                )
            )
    if prompt.seed is not None and not 0 <= prompt.seed < 2**64:
        raise ValueError(
            say(f"--d {prompt.seed} is not 0 to 2^64 - 1.", f"--d {prompt.seed} 应在 0 到 2^64 - 1 之间。")
        )
    if not math.isfinite(prompt.scale):
        raise ValueError(say(f"--l {prompt.scale} is not a number.", f"--l {prompt.scale} 不是数字。"))
    if not 1 <= prompt.step_count <= 1000:
        raise ValueError(
            say(f"--s {prompt.step_count} is not 1 to 1000.", f"--s {prompt.step_count} 应在 1 到 1000 之间。")
        )
    if prompt.sampler is not None and prompt.sampler not in SAMPLERS:
        known = ", ".join(SAMPLERS)
        raise ValueError(
            say(f"--ss {prompt.sampler}: the samplers are {known}.", f"--ss {prompt.sampler}：可用的采样器有 {known}。")
        )
    return prompt


def left_out(prompts: list[Prompt]) -> list[str]:
    """What of these prompts a preview does not show, a line for each kind."""
    texts = [text for prompt in prompts for text in (prompt.text, prompt.negative)]
    named = list(dict.fromkeys(lora for text in texts for lora in prompt_syntax.loras(text)))
    remarks = list(dict.fromkeys(remark for text in texts for remark in re.findall(r"#.*", text)))
    lines = []
    if named:
        lines.append(_loras_left_out(named))
    if remarks:
        lines.append(_remarks_left_out(remarks))
    return lines


def complete(prompts: list[Prompt], *, size: tuple[int, int], seed: int, sampler: str) -> list[Prompt]:
    """Fill in what the prompts leave open. Sides become multiples of 8 px, 64 px at least (or `size`, if smaller)."""

    def side(wanted: int | None, default: int) -> int:
        return max(min(64, default), (wanted or default) // 8 * 8)

    return [
        replace(
            prompt,
            width=side(prompt.width, size[0]),
            height=side(prompt.height, size[1]),
            seed=seed if prompt.seed is None else prompt.seed,
            sampler=prompt.sampler or sampler,
        )
        for prompt in prompts
    ]


def build_sampler(
    name: str,
    noise: NoiseSpec,
    step_count: int,
    device: torch.device | str = "cpu",
    *,
    skipped: int = 0,
    latent_size: tuple[int, int] = (0, 0),
) -> Sampler:
    """diffusers' scheduler of this name for this noise process, ready for `step_count` steps.

    Args:
        skipped: that many first steps are not taken: it begins with an image and the noise of the next. Not for pndm,
            which has no beginning but the first.
        latent_size: rows and columns; the schedule of some "flow" families depends on them.

    Raises:
        UserError: the sampler needs a package that is not there.
    """
    if noise.objective == "flow":
        sampler = _flow_sampler(noise, step_count, device, latent_size)
    else:
        sampler = _discrete_sampler(name, noise, step_count, device)
        if name in AS_WEB_UI:
            return _with_web_ui_levels(sampler, name, noise, step_count, device, skipped)
    if hasattr(sampler, "set_begin_index"):
        sampler.set_begin_index(skipped * sampler.order)
    else:
        sampler.timesteps = sampler.timesteps[skipped:]
    return sampler


def _discrete_sampler(name: str, noise: NoiseSpec, step_count: int, device: torch.device | str) -> Sampler:
    """A row of SAMPLERS, for models that know a table of timesteps."""
    class_name, settings = SAMPLERS[name]
    general = dict(
        num_train_timesteps=noise.step_count,
        beta_start=noise.beta_start,
        beta_end=noise.beta_end,
        beta_schedule="scaled_linear",
        prediction_type=OBJECTIVES[noise.objective].prediction_type,
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
    )
    if noise.zero_terminal_snr:  # not all classes can rescale, but all take any betas; the first step is at the last
        shares = functional.pad(sampled_shares(noise), (1, 0), value=1.0)
        general |= dict(trained_betas=(1 - shares[1:] / shares[:-1]).tolist(), timestep_spacing="trailing")
    kind = getattr(diffusers, class_name)
    accepted = inspect.signature(kind.__init__).parameters
    try:
        sampler = kind(**{key: value for key, value in (general | settings).items() if key in accepted})
        sampler.set_timesteps(step_count, device=device)
    except ImportError:  # diffusers puts a class that only raises this where scipy is missing
        raise UserError(
            say(
                f'sampler "{name}" needs scipy: pip install scipy, or use "euler".',
                f'采样器 "{name}" 需要 scipy：请 pip install scipy，或改用 "euler"。',
            )
        ) from None
    return sampler


def _with_web_ui_levels(
    sampler: Sampler, name: str, noise: NoiseSpec, step_count: int, device: torch.device | str, skipped: int
) -> Sampler:
    """The sampler on the noise levels of `web_ui_sigmas`, without the first so many."""
    timesteps, sigmas = (levels[skipped:] for levels in web_ui_sigmas(noise, step_count))
    if name == "heun":  # each level but the first and the last is met twice
        timesteps = torch.cat([timesteps[:1], timesteps[1:].repeat_interleave(2)])
        sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    if name == "dpmsolver++":  # its samples are scaled: noise alone would be a little too much
        sampler.init_noise_sigma = float(sigmas[0] / (sigmas[0] ** 2 + 1) ** 0.5)
    sampler.timesteps, sampler.sigmas = timesteps.float().to(device), sigmas.float()
    return sampler


class FlowEuler(FlowMatchEulerDiscreteScheduler):
    """Euler's steps along the line from noise to an image, with the methods that the other schedulers have."""

    init_noise_sigma = 1.0

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return self.scale_noise(original_samples, timesteps, noise)  # pyrefly: ignore[bad-argument-type]


def _flow_sampler(
    noise: NoiseSpec, step_count: int, device: torch.device | str, latent_size: tuple[int, int]
) -> FlowEuler:
    """Points from pure noise to 1 / step_count, evenly and then shifted, as the pipelines of diffusers take them."""
    rows, columns = latent_size
    shift = LAWS[noise.timestep_law].shift_of(noise.shift, rows * columns // noise.patch_size**2)
    sampler = FlowEuler(num_train_timesteps=noise.step_count, shift=shift)
    sampler.set_timesteps(sigmas=[1 - step / step_count for step in range(step_count)], device=device)
    return sampler


def sampled_shares(noise: NoiseSpec) -> Tensor:
    """(step_count) share of an image's variance that is left at each timestep, float64.

    With `zero_terminal_snr` as good as nothing at the last: what AUTOMATIC1111's web UI and ComfyUI put in place of 0,
    which has no noise level.
    """
    shares = alpha_bar(noise)
    if noise.zero_terminal_snr:
        shares = without_terminal_signal(shares.sqrt()) ** 2
        shares[-1] = 4.8973451890853435e-08
    return shares


def web_ui_sigmas(noise: NoiseSpec, step_count: int) -> tuple[Tensor, Tensor]:
    """k-diffusion's "uniform" schedule.

    Returns:
        (step_count) timesteps from the last to 0, not whole ones; and (step_count + 1) noise levels sigma / signal at
        them, 0 at the end. float64.
    """
    shares = sampled_shares(noise)
    logs = ((1 - shares) / shares).sqrt().log()
    timesteps = torch.linspace(noise.step_count - 1, 0, step_count, dtype=torch.float64)
    below, above = timesteps.floor().long(), timesteps.ceil().long()
    sigmas = torch.lerp(logs[below], logs[above], timesteps.frac()).exp()
    return timesteps, torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])


class Hires(NamedTuple):
    """Drawing a second time, larger: the web UI's "Hires. fix" with the upscaler "Latent"."""

    scale: float  # of each side, more than 1
    strength: float  # 0 to 1: how much of the noise comes back


@torch.no_grad()
def generate(family: Family, prompt: Prompt, device: torch.device | str = "cpu") -> Image.Image:
    """Draw one image of plain captions, encoded as in training, with the model as it is now.

    Args:
        family: the model, its adapters attached or not.
        prompt: completed by `complete`.
        device: where the model is.

    Returns:
        An RGB image of prompt.width x prompt.height pixels.
    """
    own = family.size_conditioning(image_sizes(*prompt.size, device))
    positive = family.encode_captions([prompt.text]) | own
    negative = family.encode_captions([prompt.negative]) | own if prompt.scale != 1 else None
    return generate_encoded(family, prompt, positive, negative, device)


@torch.no_grad()
def generate_weighted(family: Family, prompt: Prompt, device: torch.device | str = "cpu") -> Image.Image:
    """As `generate`, of texts in the web UI's writing, encoded as there; LoRAs that they name are left out."""
    own = family.size_conditioning(image_sizes(*prompt.size, device))
    text, unwanted = prompt_syntax.without_loras(prompt.text), prompt_syntax.without_loras(prompt.negative)
    positive = family.encode_weighted(prompt_syntax.parse(text).weighted) | own
    negative = None
    if prompt.scale != 1:
        weighted = prompt_syntax.parse(unwanted, is_negative=True).weighted
        negative = family.encode_weighted(weighted, is_negative=True) | own
    return generate_encoded(family, prompt, positive, negative, device)


def image_sizes(width: int, height: int, device: torch.device | str = "cpu") -> Tensor:
    """(1, 6) as `Family.size_conditioning` takes them, of an image that is not cropped."""
    return torch.tensor([[height, width, 0, 0, height, width]], device=device)


@torch.no_grad()
def generate_encoded(
    family: Family,
    prompt: Prompt,
    positive: Conditioning,
    negative: Conditioning | None,
    device: torch.device | str = "cpu",
    hires: Hires | None = None,
) -> Image.Image:
    """Draw one image of captions that are encoded already.

    Args:
        prompt: completed by `complete`; its texts are not looked at.
        negative: None: no guidance.
        hires: draw it a second time, larger. Takes `step_count` steps again, and noise from the same seed.

    Returns:
        An RGB image of prompt.width x prompt.height pixels, or `scale` times that in whole latents.
    """
    assert prompt.seed is not None
    assert prompt.sampler is not None
    channels, factor = family.facts.latents
    generator = torch.Generator("cpu").manual_seed(prompt.seed)
    width, height = prompt.size
    size = (height // factor, width // factor)
    latents = torch.randn(1, channels, *size, generator=generator).to(device)
    sampler = build_sampler(prompt.sampler, family.noise, prompt.step_count, device, latent_size=size)
    latents = latents * sampler.init_noise_sigma
    latents = denoised(guided(family, positive, negative, prompt.scale), sampler, latents, generator)
    if hires:
        size = (int(height * hires.scale) // factor, int(width * hires.scale) // factor)
        latents = functional.interpolate(latents, size, mode="bilinear", antialias=False)
        own = family.size_conditioning(image_sizes(size[1] * factor, size[0] * factor, device))
        positive, negative = positive | own, negative and negative | own
        generator = torch.Generator("cpu").manual_seed(prompt.seed)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        # As many steps as the first time, at the end of a schedule so long that `strength` of it is that many.
        step_count = int(prompt.step_count / min(hires.strength, 0.999))
        skipped = step_count - prompt.step_count
        sampler = build_sampler(prompt.sampler, family.noise, step_count, device, skipped=skipped, latent_size=size)
        latents = sampler.add_noise(latents, noise, remaining(sampler)[:1])
        latents = denoised(guided(family, positive, negative, prompt.scale), sampler, latents, generator)
    return to_image(family.decode_latents(latents)[0])


def remaining(sampler: Sampler) -> Tensor:
    """The timesteps that are still to be taken."""
    return sampler.timesteps[getattr(sampler, "begin_index", None) or 0 :]


def denoised(
    predict: Callable[[Tensor, Tensor], Tensor], sampler: Sampler, latents: Tensor, generator: torch.Generator
) -> Tensor:
    """Take the sampler's steps."""
    randomness = {"generator": generator} if "generator" in inspect.signature(sampler.step).parameters else {}
    for t in remaining(sampler):
        prediction = predict(sampler.scale_model_input(latents, t), t.to(latents.device).reshape(1))
        latents = sampler.step(prediction, t, latents, **randomness).prev_sample
    return latents


def guided(
    family: Family, positive: Conditioning, negative: Conditioning | None, scale: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598): away from the negative, towards the positive."""

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        wanted = family.predict(noisy, t, positive).float()
        if negative is None:
            return wanted
        unwanted = family.predict(noisy, t, negative).float()
        return unwanted + scale * (wanted - unwanted)

    return predict


def to_image(pixels: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] -> a PIL image."""
    values = ((pixels.float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())


def grid(rows: list[list[Image.Image]], gap: int = 4) -> Image.Image:
    """Images side by side, in rows, on white; each at its own size."""
    heights = [max(image.height for image in row) for row in rows]
    width = max(sum(image.width + gap for image in row) for row in rows) - gap
    sheet = Image.new("RGB", (width, sum(heights) + gap * (len(rows) - 1)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for image in row:
            sheet.paste(image, (left, top))
            left += image.width + gap
        top += height + gap
    return sheet


# ---- What is said ----


def _loras_left_out(named: list[str]) -> str:
    listed = ", ".join(named)
    return say(
        f"sample_prompts: {listed} left out: previews show the LoRA that is being trained, alone. To draw several "
        "together use tools/try_lora.py",
        f"sample_prompts：{listed} 已略过：预览图只使用正在训练的这个 LoRA。要几个一起用，请用 tools/try_lora.py",
    )


def _remarks_left_out(remarks: list[str]) -> str:
    listed = say(", ", "、").join(f'"{remark}"' for remark in remarks)
    return say(
        f"sample_prompts: {listed} left out: # begins a remark in a prompt, as in web UIs",
        f"sample_prompts：{listed} 已略过：与 web UI 一样，提示词里 # 之后是注释",
    )
