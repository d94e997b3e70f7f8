"""Is a LoRA of ours as good as one of diffusers' own training script, and what do our defaults add?

The other side is `examples/text_to_image/train_text_to_image_lora.py` of diffusers, rewritten here on diffusers and
peft from what it does with its default arguments: see `train_as_diffusers`.
"""

import contextlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from tests.laboratory.character import QUESTIONS, SHOWN, make_set, measure
from tests.laboratory.experiment import LORA, Claim, Comparison, Training

STEPS, RANK = 200, 32


def train_as_diffusers(folder: Path, values: dict[str, Any]) -> None:
    """The script with its default arguments, in float32.

    LoRA by peft on `to_q`, `to_k`, `to_v` and `to_out.0` of the U-Net, alpha as large as the rank, the text encoder as
    it is; captions of 77 tokens; uniform timesteps; latents sampled from the VAE at each use; AdamW with a weight decay
    of 0.01 and a constant rate; gradients cut to length 1. Its resizing and cropping do nothing to square pictures.

    Args:
        values: of our options those that the script has, too; `min_snr_gamma` is its `snr_gamma`.
    """
    torch.manual_seed(values["seed"])
    model = values["pretrained_model_name_or_path"]
    with open(folder / "said.txt", "w", encoding="utf-8") as log, contextlib.redirect_stderr(log):
        pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None, dtype=torch.float32)
    schedule = DDPMScheduler.from_pretrained(model, subfolder="scheduler")
    unet, tokenizer = pipeline.unet, pipeline.tokenizer
    for module in (unet, pipeline.vae, pipeline.text_encoder):
        module.requires_grad_(False)
    rank = values["network_dim"]
    layers = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=layers))
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=values["learning_rate"], weight_decay=1e-2)
    snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)  # (1000,)

    files = sorted(Path(values["train_data_dir"]).glob("*/*.png"))
    pixels = torch.tensor(np.stack([np.asarray(Image.open(file)) for file in files]))  # (N, H, W, 3)
    pixels = pixels.permute(0, 3, 1, 2) / 127.5 - 1
    captions = [file.with_suffix(".txt").read_text(encoding="utf-8") for file in files]
    length = tokenizer.model_max_length
    tokens = tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    with torch.no_grad():
        spread = pipeline.vae.encode(pixels).latent_dist  # of (N, 4, h, w)
        states = pipeline.text_encoder(tokens.input_ids).last_hidden_state  # (N, 77, C): nothing in it is trained

    def step(chosen: Tensor) -> None:
        mean, std = spread.mean[chosen], spread.std[chosen]
        latents = (mean + std * torch.randn_like(mean)) * pipeline.vae.config.scaling_factor
        noise = torch.randn_like(latents)
        t = torch.randint(0, schedule.config.num_train_timesteps, (len(chosen),))
        predicted = unet(schedule.add_noise(latents, noise, t), t, states[chosen]).sample
        loss = F.mse_loss(predicted, noise, reduction="none").mean(dim=(1, 2, 3))  # (B,)
        if gamma := values.get("min_snr_gamma"):
            loss = loss * snr[t].clamp(max=gamma) / snr[t]
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    done = 0
    while done < values["max_train_steps"]:
        for chosen in DataLoader(torch.arange(len(files)), values["train_batch_size"], shuffle=True):
            if done < values["max_train_steps"]:
                step(chosen)
                done += 1
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers, weight_name=LORA)


def theirs(rate: float, **options: Any) -> Training:
    given = dict(network_dim=RANK, max_train_steps=STEPS, learning_rate=rate)
    return Training(make_set, given | options, train_as_diffusers)


def ours(rate: float | None, with_regularization: bool = True, **options: Any) -> Training:
    """With the block's defaults, which are those of `Config`, beside `options`."""
    given = dict(network_dim=RANK, network_alpha=float(RANK), max_train_steps=STEPS, learning_rate=rate)
    return Training(partial(make_set, with_regularization=with_regularization), given | options)


ITS_SETTINGS = dict(with_regularization=False, network_train_unet_only=True, lr_scheduler="constant")
BESIDES_ATTENTION = [".*_ff_net_.*", ".*_proj_in", ".*_proj_out"]  # layers that we adapt and the script does not
SCRIPT, NEARLY = "diffusers' script", "the script less 0.1"
SENSES = {"concept": "more", "obedience": "more", "prior": "more", "leak": "less"}  # measure -> what is better


def nearly(results: Mapping[str, Mapping[str, float]]) -> Mapping[str, float]:
    """The script's results, each by 0.1 worse: who is better than these is no worse than the script."""
    return {name: number + (0.1 if SENSES.get(name) == "less" else -0.1) for name, number in results[SCRIPT].items()}


def no_worse(condition: str) -> list[Comparison]:
    words = f"{condition}: {{}} certainly not worse by 0.1"
    return [
        Comparison(words.format(name), (condition, name), sense, (NEARLY, name), margin=0.0)
        for name, sense in SENSES.items()
    ]


CLAIM = Claim(
    title="A LoRA of ours is no worse than one of diffusers' own script",
    sentence="",
    method="""The character is trained at rank 32 for 200 steps of 4 pictures: by the script, and by ours, beginning
with the script's layers and settings (attention of the U-Net alone, constant rate, no regularization pictures), then
with its settings on the layers that we adapt, which are those of sd-scripts, then with the block's defaults, and with
these changed. The script has the rate that scored best for it on two other seeds among 5e-4, 1e-3, 2e-3 and 4e-3:
2e-3, and so has ours on its layers; else ours has its usual rate for a model this narrow, 5e-4. *Certainly not worse by
0.1* compares with the script's result less 0.1 (of leaks: plus 0.1), so the true difference to the script is by 0.1
less good than the one below. The miniature was itself trained with min-SNR weights, which may favour them here.""",
    trainings={
        SCRIPT: theirs(2e-3),
        "its layers": ours(2e-3, **ITS_SETTINGS, exclude_patterns=BESIDES_ATTENTION),
        "its settings": ours(None, **ITS_SETTINGS),
        "defaults": ours(None),
        "no regularization": ours(None, with_regularization=False),
        "min-SNR 5": ours(None, min_snr_gamma=5.0),
        "min-SNR 5, prior 0.3": ours(None, min_snr_gamma=5.0, prior_loss_weight=0.3),
    },
    derived={NEARLY: nearly},
    questions=QUESTIONS,
    measure=measure,
    sampling_steps=10,
    comparisons=[
        *no_worse("its layers"),
        *no_worse("its settings"),
        *no_worse("defaults"),
        *no_worse("min-SNR 5, prior 0.3"),
        Comparison("the defaults keep more of old words", ("defaults", "prior"), "more", (SCRIPT, "prior"), margin=0.03),
        Comparison(
            "min-SNR learns more of the concept", ("min-SNR 5", "concept"), "more", ("defaults", "concept"), margin=0.03
        ),
        Comparison(
            "with regularization pictures at weight 0.3 still more",
            ("min-SNR 5, prior 0.3", "concept"), "more", ("min-SNR 5", "concept"), margin=0.03,
        ),
    ],
    shown=SHOWN,
)  # fmt: skip
