"""How the miniature base model is trained: draws a world, trains a VAE on it, then a text encoder and a U-Net together.

    python -m tools.train_miniature              everything: about an hour on two CPU cores
    python -m tools.train_miniature --images   only writes train/ and reg/ with the model that is there
    python -m tools.train_miniature --evaluate   only asks that model for 200 unseen images

The layout is Stable Diffusion 1's (latents of 4 channels at an eighth of the size, a CLIP text encoder of 77 tokens, a
U-Net with cross attention, epsilon objective, the same noise schedule), only smaller; the result is an ordinary
diffusers folder. Captions are shuffled and lose tags at random, so that every tag is learnt alone; one caption in ten
is empty, for classifier-free guidance. One caption in ten of the world is never trained on: those are the unseen ones.

The same seed gives the same batches; a run that was stopped goes on from the last checkpoint in `--work_folder`. The
model in `model/` was trained in several sittings, while this script was being written: docs/log.md tells how it differs.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
import zlib
from itertools import pairwise
from math import cos, pi
from pathlib import Path

import numpy as np
import torch
import torch.distributed as distributed
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from library.families.clip_text import build_tokenizer, clip_merges
from library.files import replacing
from library.miniature import MODEL_FOLDER, REGULARIZATION_FOLDER, TRAIN_FOLDER
from library.miniature.checker import identify
from library.miniature.drawings import (
    CharacterScene,
    Scene,
    caption,
    character_caption,
    draw,
    draw_anything,
    draw_character,
    random_scene,
    tags,
    world_words,
)

# Width x height in pixels, and the share of the images: a LoRA trained in buckets meets sizes it knows.
SHARES = {(64, 64): 0.60, (48, 80): 0.12, (80, 48): 0.12, (64, 48): 0.08, (48, 64): 0.08}
IMAGE_COUNT = 20_000  # per worker
WORKERS = 2  # processes of one thread each: they wait for one another once per step, threads at every operation

PERSON_SHARE, PAIR_SHARE = 0.2, 0.07  # single shapes are what the model is judged by, and the hardest to learn
VAE_STEPS, VAE_LR = 3000, 2e-3
VAE_CROP_STEPS, VAE_CROP = 1500, 32  # first on small cut-outs: four times as many steps in the same time
VAE_CROP_BATCH, VAE_BATCH = 8, 4  # per worker
ANCHOR_STEPS = 500
KL_WEIGHT = 1e-4  # per latent number, against the mean error per colour value
DENOISER_STEPS, DENOISER_BATCH, DENOISER_LR = 7300, 24, 1e-3  # per worker
SHORT_CAPTION_STEPS, SHORT_CAPTION = 6800, 40  # first without the padding that no caption needs: a quarter faster
MIN_SNR_GAMMA = 5.0  # Hang et al. 2023, arXiv:2303.09556
EMPTY_CAPTION_RATE = 0.1
CHECKPOINT_EVERY = 250

GUIDANCE_SCALE, SAMPLING_STEPS = 4.0, 20  # what the evaluation uses

# ---- The parts of the model ------------------------------------------------------------------------------------------


def world_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with its 1,500 most frequent merges and those that make each word of the world one token."""
    merges = clip_merges()
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    needed = set(range(1500))
    for word in world_words():
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:  # byte-pair encoding: the most frequent pair first
            rank, index = min((ranks[pair], i) for i, pair in enumerate(pairwise(pieces)) if pair in ranks)
            needed.add(rank)
            pieces[index : index + 2] = ["".join(merges[rank])]
    return build_tokenizer(tuple(merges[rank] for rank in sorted(needed)))


def start_calmly(module: nn.Module) -> None:
    """Every residual branch adds nothing yet, so the first steps see a short network."""
    for name, parameter in module.named_parameters():
        if ".conv2." in name or ".proj_out." in name or (".to_out." in name and "transformer" not in name):
            nn.init.zeros_(parameter)


def new_vae() -> AutoencoderKL:
    """Images to latents of an eighth of their size and back; 1 M parameters.

    It starts calmly, and latents carry little noise: from diffusers' own initial values the colours were still not
    learnt after 250 steps.
    """
    vae = AutoencoderKL(
        block_out_channels=(16, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )
    start_calmly(vae)
    with torch.no_grad():
        vae.quant_conv.bias[4:] -= 5.0  # the logarithm of the latents' variance
    return vae


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            projection_dim=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_unet() -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 96),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,  # diffusers' SD 1.x configurations mean the number of heads
        cross_attention_dim=128,
        norm_num_groups=16,
    )
    start_calmly(unet)
    return unet


def new_scheduler() -> DDIMScheduler:
    """SD 1.x's noise schedule."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


# ---- Images --------------------------------------------------------------------------------------------------------


def is_unseen(scene: Scene) -> bool:
    """One caption in ten, chosen by its letters, is kept out of the training."""
    return zlib.crc32(caption(scene).encode()) % 10 == 0


def draw_world(count: int, seed: str) -> dict[tuple[int, int], tuple[list[list[str]], np.ndarray]]:
    """Training images by size: their tags, and (count, H, W, 3) bytes."""
    rng = random.Random(seed)
    world = {}
    for size, share in SHARES.items():
        scenes = []
        while len(scenes) < round(count * share):
            scene = random_scene(rng, PERSON_SHARE, PAIR_SHARE)
            if not is_unseen(scene):
                scenes.append(scene)
        world[size] = [tags(scene) for scene in scenes], np.stack([np.asarray(draw(scene, size)) for scene in scenes])
    return world


def as_pixels(images: np.ndarray) -> Tensor:
    """(B, H, W, 3) bytes -> (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def shuffled_caption(image_tags: list[str], rng: random.Random) -> str:
    """A caption as users write them: sometimes complete, sometimes with tags missing, in some order, or empty."""
    if rng.random() < EMPTY_CAPTION_RATE:
        return ""
    kept = list(image_tags)
    if rng.random() < 0.5:
        kept = [tag for tag in kept if rng.random() > 0.2]
    if rng.random() < 0.7:
        rng.shuffle(kept)
    return ", ".join(kept)


# ---- Training --------------------------------------------------------------------------------------------------------


def learning_rate(step: int, step_count: int, highest: float) -> float:
    """100 steps of warm-up, then half a cosine down to a fiftieth: the small end does what averaging weights would."""
    decay = 0.5 * (1 + cos(pi * step / step_count))
    return highest * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * decay)


def worker() -> int:
    """The number of this process among those that train together."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def average_gradients(module: nn.Module) -> None:
    """Every worker goes on with the mean of all workers' gradients, so their weights stay equal."""
    if distributed.is_initialized():
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in module.parameters()]
        together = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(together)
        parts = together.div_(distributed.get_world_size()).split([gradient.numel() for gradient in gradients])
        for parameter, part in zip(module.parameters(), parts, strict=True):
            parameter.grad = part.view_as(parameter)


def train_steps(name: str, modules: list[nn.Module], loss_of_step, step_count: int, highest_lr: float, work: Path):
    """Plain AdamW steps; goes on from the checkpoint of that name if there is one.

    Args:
        loss_of_step: step -> loss; its random numbers must depend on the step and the worker alone.
    """
    module = nn.ModuleList(modules)
    optimizer = torch.optim.AdamW(module.parameters(), lr=highest_lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    file, first = work / f"{name}.pt", 0
    if file.exists():
        state = torch.load(file)
        module.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    module.train()
    losses, start = [], time.monotonic()
    for step in range(first, step_count):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, step_count, highest_lr)
        torch.manual_seed(step * WORKERS + worker())
        loss = loss_of_step(step)
        loss.backward()
        average_gradients(module)
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if worker() == 0 and (step + 1) % 50 == 0:
            seconds = (time.monotonic() - start) / (step + 1 - first)
            loss_mean = np.mean(losses[-50:])
            print(f"{name} step {step + 1:5d}/{step_count}  loss {loss_mean:.4f}  {seconds:.2f} s/step", flush=True)
        if worker() == 0 and ((step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == step_count):
            state = {"weights": module.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            with replacing(file) as half:
                torch.save(state, half)
    module.eval().requires_grad_(False)


def train_vae(world, seed: int, work: Path) -> AutoencoderKL:
    """Error of the image and of its edges, with a little KL.

    For the first steps three of the four channels are drawn towards the mean colour of their 8 x 8 pixels. Without this
    anchor the colours take thousands of steps to get through the bottleneck.
    """
    torch.manual_seed(seed)
    vae = new_vae()
    sizes, shares = list(SHARES), list(SHARES.values())

    def loss_of_step(step: int) -> Tensor:
        rng = random.Random(f"vae {seed} {step} {worker()}")
        size, whole = rng.choices(sizes, shares)[0], step >= VAE_CROP_STEPS
        count = VAE_BATCH if whole else VAE_CROP_BATCH
        images = [world[size][1][rng.randrange(len(world[size][1]))] for _ in range(count * 3 // 4)]
        for index in range(0, len(images), 6):  # colours exchanged, and anything: more than this world's images
            images[index] = images[index][:, :, rng.sample(range(3), 3)]
        images += [np.asarray(draw_anything(rng, size)) for _ in range(count - len(images))]
        if not whole:
            images = [_cut_out(image, rng) for image in images]
        pixels = as_pixels(np.stack(images))  # (B, 3, H, W)
        posterior = vae.encode(pixels).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        edges = sum(F.l1_loss(decoded.diff(dim=axis), pixels.diff(dim=axis)) for axis in (2, 3))
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = F.l1_loss(decoded, pixels) + 2 * F.mse_loss(decoded, pixels) + 0.2 * edges + KL_WEIGHT * kl
        anchor = F.mse_loss(posterior.mean[:, :3], 2 * F.avg_pool2d(pixels, 8))
        return loss + max(0.0, 1 - step / ANCHOR_STEPS) * anchor

    train_steps("vae", [vae], loss_of_step, VAE_STEPS, VAE_LR, work)
    sample = encode(vae, draw_world(1000, f"scale {seed}")[(64, 64)][1])  # the same in every worker
    vae.register_to_config(scaling_factor=round(1 / sample.std().item(), 5))
    return vae


def _cut_out(image: np.ndarray, rng: random.Random) -> np.ndarray:
    top, left = (rng.randrange(side - VAE_CROP + 1) for side in image.shape[:2])
    return image[top : top + VAE_CROP, left : left + VAE_CROP]


@torch.no_grad()
def encode(vae: AutoencoderKL, images: np.ndarray) -> Tensor:
    """(count, H, W, 3) bytes -> (count, 4, h, w) latents, not yet scaled."""
    parts = [vae.encode(as_pixels(images[i : i + 50])).latent_dist.mode() for i in range(0, len(images), 50)]
    return torch.cat(parts)


def random_timesteps(count: int) -> Tensor:
    """(count,) 0..999: half of them anywhere, half around the middle, where it is decided which shape it will be.

    Colour, place and background are decided at more noise and learnt early; the shape comes last.
    """
    middle = (1000 * torch.randn(count).mul(0.8).add(0.2).sigmoid()).long().clamp(max=999)
    return torch.where(torch.rand(count) < 0.5, middle, torch.randint(0, 1000, (count,)))


def train_denoiser(world, vae: AutoencoderKL, tokenizer, seed: int, work: Path):
    """The text encoder and the U-Net together, as one model that reads tags and predicts the noise."""
    torch.manual_seed(seed)
    text_encoder, unet = new_text_encoder(tokenizer), new_unet()
    unet.to(memory_format=torch.channels_last)
    latents = {size: encode(vae, images) * vae.config.scaling_factor for size, (_, images) in world.items()}
    signal_squared = new_scheduler().alphas_cumprod  # (1000,)
    snr = signal_squared / (1 - signal_squared)
    sizes, shares = list(SHARES), list(SHARES.values())

    def loss_of_step(step: int) -> Tensor:
        rng = random.Random(f"denoiser {seed} {step} {worker()}")
        size = rng.choices(sizes, shares)[0]
        chosen = [rng.randrange(len(latents[size])) for _ in range(DENOISER_BATCH)]
        captions = [shuffled_caption(world[size][0][index], rng) for index in chosen]
        length = SHORT_CAPTION if step < SHORT_CAPTION_STEPS else tokenizer.model_max_length
        tokens = tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        clean = latents[size][chosen].contiguous(memory_format=torch.channels_last)  # (B, 4, h, w)
        noise = torch.randn_like(clean)
        t = random_timesteps(DENOISER_BATCH)
        signal, sigma = (part[t].sqrt()[:, None, None, None] for part in (signal_squared, 1 - signal_squared))
        predicted = unet(signal * clean + sigma * noise, t, text_encoder(tokens.input_ids).last_hidden_state).sample
        loss = F.mse_loss(predicted, noise, reduction="none").mean(dim=(1, 2, 3))  # (B,)
        return (loss * snr[t].clamp(max=MIN_SNR_GAMMA) / snr[t]).mean()

    train_steps("denoiser", [text_encoder, unet], loss_of_step, DENOISER_STEPS, DENOISER_LR, work)
    return text_encoder, unet


# ---- What comes out --------------------------------------------------------------------------------------------------


def save_model(vae, text_encoder, unet, tokenizer, folder: Path) -> None:
    """An ordinary diffusers folder in fp16; the tokenizer also as vocab.json and merges.txt, as SD 1.x has it."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet.to(memory_format=torch.contiguous_format),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    if folder.exists():
        shutil.rmtree(folder)
    pipeline.to(dtype=torch.float16).save_pretrained(folder)
    file = folder / "text_encoder" / "model.safetensors"  # transformers 5 drops the prefix that SD 1.x has
    weights = {f"text_model.{name}": weight for name, weight in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    vocabulary = json.dumps(tokenizer.get_vocab(), ensure_ascii=False)
    (folder / "tokenizer" / "vocab.json").write_text(vocabulary, encoding="utf-8")


def open_pipeline(folder: Path = MODEL_FOLDER) -> StableDiffusionPipeline:
    """The finished model, as any SD 1.x folder is opened; computes in fp32."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(
    pipeline: StableDiffusionPipeline,
    captions: list[str],
    seed: int,
    size: tuple[int, int] = (64, 64),
    guidance_scale: float = GUIDANCE_SCALE,
    step_count: int = SAMPLING_STEPS,
) -> list[Image.Image]:
    """One image per caption, 50 at a time."""
    generator, images = torch.Generator().manual_seed(seed), []
    for first in range(0, len(captions), 50):
        images += pipeline(
            captions[first : first + 50],
            width=size[0],
            height=size[1],
            guidance_scale=guidance_scale,
            num_inference_steps=step_count,
            generator=generator,
        ).images
    return images


def unseen_scenes(count: int, seed: int) -> list[Scene]:
    """Scenes of one shape each whose captions were never trained on."""
    rng, scenes = random.Random(f"unseen {seed}"), []
    while len(scenes) < count:
        scene = random_scene(rng, person_share=0, pair_share=0)
        if is_unseen(scene):
            scenes.append(scene)
    return scenes


def evaluate(pipeline: StableDiffusionPipeline, count: int = 200, seed: int = 1, **options) -> dict[str, float]:
    """Shares of unseen captions whose image has the right shape, the right colour, and both."""
    scenes = unseen_scenes(count, seed)
    images = sample(pipeline, [caption(scene) for scene in scenes], seed, **options)
    found = [identify(image) for image in images]
    asked = [(scene.things[0].shape, scene.things[0].colour) for scene in scenes]
    return {
        "shape": float(np.mean([f[0] == a[0] for f, a in zip(found, asked, strict=True)])),
        "colour": float(np.mean([f[1] == a[1] for f, a in zip(found, asked, strict=True)])),
        "both": float(np.mean([f == a for f, a in zip(found, asked, strict=True)])),
    }


CHARACTER_IMAGES = [  # size in pixels, and the scene: as mixed as a user's folder
    ((64, 64), CharacterScene("standing", "center", "large", "white")),
    ((200, 200), CharacterScene("waving", "center", "large", "blue")),
    ((128, 128), CharacterScene("arms up", "center", "large", "gray")),
    ((150, 200), CharacterScene("standing", "bottom", "", "green")),
    ((200, 150), CharacterScene("looking left", "left", "", "pink")),
    ((96, 160), CharacterScene("arms up", "top", "", "white", "striped")),
    ((160, 96), CharacterScene("looking right", "right", "large", "black")),
    ((80, 120), CharacterScene("waving", "center", "", "pink", "dotted")),
    ((120, 80), CharacterScene("standing", "left", "large", "green", "gradient")),
    ((48, 80), CharacterScene("looking left", "center", "large", "blue")),
    ((96, 96), CharacterScene("looking right", "center", "", "black", "dotted")),
    ((100, 75), CharacterScene("waving", "right", "", "gray", "gradient")),
]
REGULARIZATION_SCENES = 24  # beside one image for each of the character's


def write_train_set(folder: Path) -> None:
    """`10_mytag`: a dozen images of the character, with tags in text files."""
    target = _emptied(folder / "10_mytag")
    for index, (size, scene) in enumerate(CHARACTER_IMAGES, start=1):
        _write(target / f"mytag_{index:02d}", draw_character(scene, size), character_caption(scene))


def write_regularization_set(pipeline: StableDiffusionPipeline, seed: int, folder: Path) -> None:
    """`1_world`: what the base model itself makes of the character's tags less the character, and of its own world."""
    target, sizes = _emptied(folder / "1_world"), list(SHARES)
    captions = [", ".join(character_caption(scene).split(", ")[2:]) for _, scene in CHARACTER_IMAGES]
    rng = random.Random(f"regularization {seed}")
    captions += [caption(random_scene(rng)) for _ in range(REGULARIZATION_SCENES)]
    for index, text in enumerate(captions, start=1):
        (image,) = sample(pipeline, [text], seed + index, sizes[index % len(sizes)])
        _write(target / f"world_{index:02d}", image, text)


def _emptied(folder: Path) -> Path:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def _write(stem: Path, image: Image.Image, text: str) -> None:
    image.save(stem.with_suffix(".png"), optimize=True)
    stem.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")


def train(rank: int, arguments: argparse.Namespace) -> None:
    """What one worker does; the first one saves the model."""
    torch.set_num_threads(1)
    meeting = arguments.work_folder.resolve() / "meeting"
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=WORKERS)
    tokenizer, seed = world_tokenizer(), arguments.seed
    world = draw_world(IMAGE_COUNT, f"world {seed} {rank}")
    vae = train_vae(world, seed, arguments.work_folder)
    text_encoder, unet = train_denoiser(world, vae, tokenizer, seed, arguments.work_folder)
    if rank == 0:
        save_model(vae, text_encoder, unet, tokenizer, arguments.model_folder)
    distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work_folder", type=Path, default=Path("output/miniature"), help="checkpoints, to go on from")
    parser.add_argument("--model_folder", type=Path, default=MODEL_FOLDER)
    parser.add_argument("--evaluate", action="store_true", help="do not train; measure the model that is there")
    parser.add_argument("--pictures", action="store_true", help="do not train; write the picture sets anew and measure")
    parser.add_argument("--guidance_scale", type=float, default=GUIDANCE_SCALE)
    parser.add_argument("--sampling_steps", type=int, default=SAMPLING_STEPS)
    arguments = parser.parse_args()
    if not (arguments.evaluate or arguments.images):
        arguments.work_folder.mkdir(parents=True, exist_ok=True)
        (arguments.work_folder / "meeting").unlink(missing_ok=True)
        torch.multiprocessing.spawn(train, args=(arguments,), nprocs=WORKERS)
    if not arguments.evaluate:
        write_train_set(arguments.model_folder.parent / TRAIN_FOLDER.name)
        pipeline = open_pipeline(arguments.model_folder)
        write_regularization_set(pipeline, arguments.seed, arguments.model_folder.parent / REGULARIZATION_FOLDER.name)
    shares = evaluate(
        open_pipeline(arguments.model_folder),
        guidance_scale=arguments.guidance_scale,
        step_count=arguments.sampling_steps,
    )
    print("200 unseen captions:", ", ".join(f"{name} right {share:.1%}" for name, share in shares.items()))


if __name__ == "__main__":
    main()
