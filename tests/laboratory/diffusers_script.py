"""What diffusers' script for LoRAs does, rewritten on diffusers and peft: the peer that ours is compared with.

The script is `examples/text_to_image/train_text_to_image_lora.py`, with its default arguments.
"""

import contextlib
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

from tests.laboratory.experiment import LORA


def train_as_diffusers(folder: Path, values: dict[str, Any]) -> None:
    """A LoRA as the script trains it, in float32; it is written into `folder`.

    LoRA by peft on `to_q`, `to_k`, `to_v` and `to_out.0` of the U-Net, alpha as large as the rank, the text encoder as
    it is; captions of 77 tokens; uniform timesteps; latents sampled from the VAE at each use; AdamW with a weight decay
    of 0.01 and a constant rate; gradients cut to length 1. Its resizing and cropping do nothing to square images.

    Args:
        values: options by our names; used are those that the script has, too.
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
        middle, deviation = spread.mean[chosen], spread.std[chosen]  # (B, 4, h, w)
        latents = (middle + deviation * torch.randn_like(middle)) * pipeline.vae.config.scaling_factor
        noise = torch.randn_like(latents)
        t = torch.randint(0, schedule.config.num_train_timesteps, (len(chosen),))
        predicted = unet(schedule.add_noise(latents, noise, t), t, states[chosen]).sample
        F.mse_loss(predicted, noise).backward()
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
