"""The VAE of Stable Diffusion: images to latents and back, and where files keep it.

SD 1.x, SD 2.x and SDXL have the same architecture and differ in weights and scale. SDXL's overflows in fp16.
"""

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from library.families.loading import Place, Source, build, fill, folder_tensors
from library.families.recognise import read_json
from library.families.weights_file import open_tensors, read_header, refuse_absent
from library.files import JsonObject
from library.messages import UserError, say

ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
EARLY_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # diffusers before 0.12


@torch.no_grad()
def encode_images(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> (B, C, h, w) scaled latents: the mean of the VAE's distribution.

    sd-scripts draws once from the distribution. Its spread is far below the noise of training, and the mean gives the
    same latents whether they are cached or not.
    """
    pixels = pixels.to(vae.post_quant_conv.weight.device, vae.post_quant_conv.weight.dtype)
    return vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor


@torch.no_grad()
def decode_latents(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """(B, C, h, w) scaled -> (B, 3, H, W) in [-1, 1]."""
    latents = latents.to(vae.post_quant_conv.weight.device, vae.post_quant_conv.weight.dtype)
    return vae.decode(latents / vae.config.scaling_factor).sample.clamp(-1, 1)


def build_vae(config: JsonObject, device: str) -> AutoencoderKL:
    return build(lambda: AutoencoderKL.from_config(config), device)


def original_sources(name: str, prefix: str, block_count: int) -> Iterable[Source]:
    """Where a checkpoint with the original names keeps a parameter; it counts the decoder's blocks backwards."""
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(
        r"up_blocks\.(\d+)\.(resnets\.|upsamplers\.0)",
        lambda m: f"up.{block_count - 1 - int(m[1])}." + ("block." if m[2] == "resnets." else "upsample"),
        name,
    )
    name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    found = re.fullmatch(r"(.*)mid_block\.attentions\.0\.(.+)\.(weight|bias)", name)
    if found:
        name = f"{found[1]}mid.attn_1.{ATTENTION[found[2]]}.{found[3]}"
    return (Source(prefix + name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")),)


def diffusers_sources(name: str) -> Iterable[Source]:
    """Where a file in diffusers' layout keeps a parameter: under its name, or an early name of the attention."""
    for ours, early in EARLY_ATTENTION.items():
        if f".attentions.0.{ours}." in name:
            return Source(name), Source(name.replace(ours, early))
    return (Source(name),)


def load_vae(path: Path, config: JsonObject, place: Place, scope: str | None = None) -> AutoencoderKL:
    """A VAE from a file of either layout, from a whole checkpoint (the VAE in it is taken), or from a diffusers folder.

    Args:
        config: of the family; a folder's own is used instead.
        scope: beginning of the VAE's names, where known.

    Raises:
        UserError: there is no VAE of Stable Diffusion in it.
    """
    refuse_absent(path)
    if path.is_dir():
        folder = path / "vae" if (path / "vae").is_dir() else path
        config = read_json(folder / "config.json") or config
        tensors = folder_tensors(folder, "VAE")
        shapes = {name: tuple(tensors[name].shape) for name in tensors if name.startswith("decoder.conv_in")}
    else:
        shapes = read_header(path).shapes
        tensors = open_tensors([path])
    if scope is None:
        scope = next((s for s in ("first_stage_model.", "vae.") if any(n.startswith(s) for n in shapes)), "")
    refuse_other_vae(path, shapes, scope)
    if scope == "":  # a file of the VAE's training may hold its loss and averages too
        own = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
        tensors = {name: tensors[name] for name in tensors if name.startswith(own)}
    is_original = any(name.startswith(scope + "decoder.mid.") for name in tensors)
    block_count = len(config["block_out_channels"])
    sources = partial(original_sources, prefix=scope, block_count=block_count) if is_original else diffusers_sources
    if not is_original and scope:
        sources = lambda name: [Source(scope + source.name) for source in diffusers_sources(name)]  # noqa: E731
    return fill(build_vae(config, "meta"), tensors, sources, place, part="VAE", path=path, scope=scope)


def refuse_other_vae(path: Path, shapes: dict[str, tuple[int, ...]], scope: str) -> None:
    """Raise a UserError that names what was given in place of a VAE with 4 latent channels."""
    first = shapes.get(scope + "decoder.conv_in.weight")
    if first is None:
        raise UserError(_no_vae(path))
    channels = first[1] if len(first) == 4 else 0
    if channels != 4:
        raise UserError(_other_channels(path, channels))


def _no_vae(path: Path) -> str:
    return say(
        f"{path}: this file contains no VAE of Stable Diffusion. Give a VAE under `vae` (sd-vae-ft-mse, "
        "kl-f8-anime2, sdxl_vae, ...).",
        f"{path}：这个文件里没有 Stable Diffusion 的 VAE。请在 vae 里填写 VAE 文件"
        "（如 sd-vae-ft-mse、kl-f8-anime2、sdxl_vae）。",
    )


def _other_channels(path: Path, channels: int) -> str:
    return say(
        f"{path}: this VAE has latents of {channels} channels, not 4: it belongs to another model family "
        "(SD3, FLUX, ...). Use a VAE of SD 1.x, 2.x or SDXL.",
        f"{path}：这个 VAE 的潜变量有 {channels} 个通道，而不是 4 个，属于别的模型（SD3、FLUX 等）。"
        "请使用 SD 1.x、2.x 或 SDXL 的 VAE。",
    )
