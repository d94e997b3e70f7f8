"""Lines of base models: what a checkpoint is, and how to load it.

    info = inspect(path)                 family and objective from names and small texts; no torch, no weights
    token_counts(info, captions)         how long captions are, before anything is loaded
    family = open_model(path, ...)       a `contracts.Family`, frozen, from what lies on this machine and nothing else
    family = tiny("sdxl")                a random one of kilobytes, for tests
    family = architecture("sdxl")        one of true size on the meta device: shapes and names without memory
    stored_weights(info, blueprint(info))    where a model's files keep each layer, to read or rewrite it alone

To add a family: a file such as `sd.py`, which says everything about it, and a row in `table.FAMILIES`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from library.contracts import Family, ModelInfo, NoiseSpec
from library.families.clip_text import is_everyday_word
from library.families.configs import Configs
from library.families.recognise import inspect, read_json
from library.families.table import FAMILIES, all_facts, facts_of, file_of
from library.families.weights_file import refuse_absent
from library.files import JsonObject
from library.messages import UserError, say

if TYPE_CHECKING:
    import torch

    from library.families import rewriting

__all__ = [
    "FAMILIES",
    "all_facts",
    "architecture",
    "blueprint",
    "describe",
    "facts_of",
    "inspect",
    "is_everyday_word",
    "open_model",
    "stored_weights",
    "tiny",
    "token_counts",
]


def open_model(
    path: str | Path,
    *,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    vae: str | Path | None = None,
    vae_dtype: torch.dtype | None = None,
    objective: str | None = None,
    clip_skip: int | None = None,
    max_token_length: int | None = None,
    configs: Configs | None = None,
) -> Family:
    """Load a base model, frozen and in evaluation mode; never asks a network.

    Args:
        path: a .safetensors or .ckpt file with the original names, or a diffusers folder.
        dtype: of all weights. The parameters come straight from the file in it, one at a time.
        device: where they are put.
        vae: a file or folder whose VAE replaces the model's.
        vae_dtype: of the VAE; None: `dtype`, but float32 for an SDXL VAE that overflows in fp16.
        objective: "epsilon" or "v" if the user says so; None: as `inspect` has found.
        clip_skip: layer of the text encoder, counted from the last: None or 1 the last. SDXL ignores it.
        max_token_length: 75 (None), 150 or 225 tokens of a caption are seen.
        configs: of "unet", "vae", "text_encoder"(, "text_encoder_2") for a single file of unusual size.

    Returns:
        A `contracts.Family` and two things more: `info`, the `ModelInfo`, and `warnings`, texts for the user.

    Raises:
        UserError: see `inspect`; or `vae` is no VAE, tensors are missing or unknown, values are impossible.
    """
    if vae is not None:
        refuse_absent(vae)
    info = inspect(path)
    noise, warnings = noise_of(info, objective)
    all_configs = read_configs(info.family) | folder_configs(info) | (configs or {})
    from library.families.loading import LoadOptions, Place

    options = LoadOptions(
        Place(dtype, device), Path(vae).expanduser() if vae else None, vae_dtype, clip_skip, max_token_length
    )
    model = file_of(info.family).load(info, noise, all_configs, options)
    model.warnings[:0] = warnings + vae_warnings(vae, all_configs["vae"])
    return model


def tiny(
    name: str = "sd1", *, objective: str | None = None, max_token_length: int | None = None, seed: int = 0
) -> Family:
    """A random model of kilobytes with all parts of its family: same seed, same bits.

    Args:
        objective: None: the family's usual one.
    """
    import torch

    noise = replace(facts_of(name).noise, objective=objective or next(iter(facts_of(name).resolutions)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return file_of(name).create(name, noise, file_of(name).TINY[name], "cpu", max_token_length)


def architecture(name: str) -> Family:
    """A model of true size on the meta device: every name and shape, no memory, no values."""
    return file_of(name).create(name, facts_of(name).noise, read_configs(name), "meta")


def blueprint(info: ModelInfo, max_token_length: int | None = None) -> Family:
    """The model that `inspect` has found, on the meta device: what it will need can be counted before it is loaded."""
    configs = read_configs(info.family) | folder_configs(info)
    noise = replace(facts_of(info.family).noise, objective=info.objective)
    return file_of(info.family).create(info.family, noise, configs, "meta", max_token_length)


def stored_weights(info: ModelInfo, family: Family) -> dict[torch.nn.Module, rewriting.Stored]:
    """Where the model that `blueprint` shows keeps the weight of each layer that can be adapted; see `rewriting`."""
    from library.families import rewriting

    sources = file_of(info.family).sources(info.family, read_configs(info.family))
    return rewriting.stored_weights(info, family, sources)


def token_counts(info: ModelInfo, captions: list[str]) -> list[int]:
    """How many tokens each caption has for this model's text encoder, before any weight is read."""
    return file_of(info.family).token_counts(info, read_configs(info.family) | folder_configs(info), captions)


def describe(info: ModelInfo) -> str:
    """One line for the person: what the model is, and where its objective was seen."""
    title = facts_of(info.family).title
    return say(
        f"{info.path.name} ({title}, {info.objective}: {info.objective_source})",
        f"{info.path.name}（{title}，{info.objective}：{info.objective_source}）",
    )


def read_configs(name: str) -> Configs:
    """The configurations of a family's networks, as single files of it need them."""
    return file_of(name).read_configs(name)


def folder_configs(info: ModelInfo) -> Configs:
    """The configurations that a diffusers folder carries."""
    if not info.path.is_dir():
        return {}
    found = {}
    for part in read_configs(info.family):
        config = read_json(info.path / part / "config.json")
        if config is None:
            raise UserError(
                say(
                    f"{info.path}: {part}/config.json is missing; the download is not complete. Download it again.",
                    f"{info.path}：缺少 {part}/config.json，文件夹没有下载完整，请重新下载。",
                )
            )
        found[part] = config
    return found


def noise_of(info: ModelInfo, objective: str | None) -> tuple[NoiseSpec, list[str]]:
    """The noise this model was trained with, and warnings where the user says otherwise."""
    facts = facts_of(info.family)
    if objective not in (None, *facts.resolutions):
        known = facts.resolutions
        raise UserError(
            say(
                f"objective = {objective}: {facts.title} knows {' and '.join(known)}.",
                f"objective = {objective}：{facts.title} 只有 {' 和 '.join(known)}。",
            )
        )
    warnings = []
    if objective not in (None, info.objective) and info.is_objective_seen:
        warnings.append(_other_objective_asked(info, objective))
    spec = replace(facts.noise, objective=objective or info.objective)
    spec = replace(spec, zero_terminal_snr=info.zero_terminal_snr and spec.objective == "v")
    scheduler = read_json(info.path / "scheduler" / "scheduler_config.json") if info.path.is_dir() else None
    if not scheduler:
        return spec, warnings
    if scheduler.get("beta_schedule", "scaled_linear") != "scaled_linear":
        warnings.append(_other_beta_schedule(info.path, scheduler["beta_schedule"]))
    return (
        replace(
            spec,
            beta_start=scheduler.get("beta_start", spec.beta_start),
            beta_end=scheduler.get("beta_end", spec.beta_end),
            step_count=scheduler.get("num_train_timesteps", spec.step_count),
        ),
        warnings,
    )


def vae_warnings(vae: str | Path | None, config: JsonObject) -> list[str]:
    """A warning where the VAE's folder names another scale than the model needs: it belongs to another line."""
    folder = Path(vae).expanduser() if vae is not None else None
    if folder is None or not folder.is_dir():
        return []
    own = read_json((folder / "vae" if (folder / "vae").is_dir() else folder) / "config.json") or {}
    scale, needed = own.get("scaling_factor", 0.18215), config.get("scaling_factor", 0.18215)
    if scale == needed:
        return []
    return [_scaled_otherwise(vae, scale, needed)]


def _other_objective_asked(info: ModelInfo, objective: str | None) -> str:
    return say(
        f"{info.path.name}: training for {objective} as you asked, although the model looks like "
        f"{info.objective} ({info.objective_source}). If the images turn to noise, leave v_parameterization "
        "unset.",
        f"{info.path.name}：按您的要求以 {objective} 训练，但该模型看起来是 {info.objective}"
        f"（{info.objective_source}）。如果出图变成噪点，请不要设置 v_parameterization。",
    )


def _other_beta_schedule(path: Path, schedule: object) -> str:
    return say(
        f"{path}: its beta_schedule is {schedule}; training uses scaled_linear, as all Stable Diffusion does.",
        f"{path}：它的 beta_schedule 是 {schedule}，训练时按 Stable Diffusion 通用的 scaled_linear 处理。",
    )


def _scaled_otherwise(vae: str | Path | None, scale: object, needed: object) -> str:
    return say(
        f"{vae}: this VAE's latents are scaled by {scale}, the base model's by {needed}: it belongs to another "
        "model family, and images will be wrong. Choose a VAE of the base model's family.",
        f"{vae}：这个 VAE 的缩放系数是 {scale}，而底模是 {needed}，二者不属于同一系列，"
        "出图会不正常。请换用与底模配套的 VAE。",
    )
