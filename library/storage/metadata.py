"""What a LoRA file says about itself: sd-scripts' ss_* entries and the modelspec.* standard.

A1111 shows them (base model, trigger words, buckets), merge tools read rank and alpha from them, and people repeat each
other's recipes by them. All values are strings, and None is "None". The sshs_* hashes depend on the tensors, so
`lora_file` adds them.
"""

import base64
import json
import mimetypes
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from library.files import JsonObject, sha256, sha256_of_file
from library.options.training import Config

LYCORIS = {  # network_module -> the arguments by which LyCORIS knows it; lora is sd-scripts' own
    "loha": {"algo": "loha"}, "lokr": {"algo": "lokr"},
    "dora": {"algo": "lora", "dora_wd": "True", "wd_on_output": "False"},
}  # fmt: skip

NETWORK_ARGS = (  # options that are network_args in sd-scripts
    "rank_dropout", "module_dropout", "block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas",
    "down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold", "network_reg_dims", "network_reg_lrs",
    "loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio", "exclude_patterns",
    "include_patterns",
)  # fmt: skip

# What sd-scripts records about options that we do not have: as its options are when they are off.
OFF = {
    "ss_fp8_base": False,
    "ss_fp8_base_unet": False,
    "ss_full_fp16": False,
}


# What sd-scripts records only where the images come from train_data_dir, not from dataset_config.
OF_FOLDERS = (
    "ss_batch_size_per_device", "ss_total_batch_size", "ss_color_aug", "ss_flip_aug", "ss_random_crop",
    "ss_shuffle_caption", "ss_enable_bucket", "ss_bucket_no_upscale", "ss_min_bucket_reso", "ss_max_bucket_reso",
    "ss_keep_tokens", "ss_resolution",
)  # fmt: skip


# What the user says in metadata_*, beside the title.
GIVEN = (
    "author", "description", "license", "tags", "usage_hint", "thumbnail", "merged_from", "trigger_phrase",
    "preprocessor", "is_negative_embedding",
)  # fmt: skip

MOST_METADATA = 100_000_000  # bytes; a longer header is no header


class ModelHashes(NamedTuple):
    """A base model's file, as A1111 knows it."""

    name: str  # base name of the file
    legacy: str | None = None  # 8 hex digits; None for a folder
    sha256: str | None = None


@dataclass(frozen=True)
class Run:
    """This run, and how far it has come when the file is written."""

    output_name: str  # of its files; not the option's where an earlier run had taken that
    session_id: int  # random, the same in all files of the run
    started_at: float  # seconds since 1970
    saved_at: float
    epoch: int  # that are complete
    step: int  # of the optimizer
    optimizer: str  # "torch.optim.adamw.AdamW(weight_decay=0.1)"
    model: ModelHashes
    vae: ModelHashes | None = None  # only where another VAE was given
    process_count: int = 1
    decided: Mapping[str, object] = field(default_factory=dict)  # option -> what its "auto" came to in this run


def build(config: Config, data: JsonObject, family_metadata: dict[str, str], run: Run) -> dict[str, str]:
    """All entries of one file, but for the sshs_* hashes.

    Args:
        config: as trained with, "auto" resolved.
        data: facts of the data set and the length of the run under their ss_* names, as `data.plan.metadata` gives
            them; plain dicts become JSON.
        family_metadata: the family's own entries, such as ss_base_model_version and modelspec.architecture.
        run: where training stands.

    Returns:
        With no_metadata only what web interfaces and merge tools need to use the file.
    """
    entries = {**_network(config), **family_metadata, **_modelspec(config, data["ss_resolution"], run)}
    if not config.no_metadata:
        decided = {f"ss_{name}": value for name, value in run.decided.items()}
        entries |= OFF | _of_config(config) | decided | _of_run(run) | _of_batches(config, run)
        entries |= {
            name: json.dumps(value) if isinstance(value, (dict, list)) else value for name, value in data.items()
        }
        for name in OF_FOLDERS if "ss_datasets" in data else ():  # each data set and subset tells its own
            entries.pop(name, None)
    return {name: str(value) for name, value in entries.items()}


def _network(config: Config) -> dict[str, object]:
    entries: dict[str, object] = {
        "ss_network_module": "lycoris.kohya" if config.network_module in LYCORIS else "networks.lora",
        "ss_network_dim": config.network_dim,
        "ss_network_alpha": config.network_alpha or config.network_dim,
    }
    args = dict(LYCORIS.get(config.network_module, {}))
    if config.network_module == "lokr":
        args["factor"] = str(config.lokr_factor or -1)
    if config.rs_lora:
        args["rs_lora"] = "True"
    if config.conv_dim:
        args |= dict(conv_dim=str(config.conv_dim), conv_alpha=str(config.conv_alpha or config.conv_dim))
    given = {name: getattr(config, name) for name in NETWORK_ARGS}
    args |= {name: _as_argument(name, value) for name, value in given.items() if value}
    if args:
        entries["ss_network_args"] = json.dumps(args)
    return entries


def _as_argument(name: str, value: object) -> str:
    """A value as it is written in sd-scripts' network_args."""
    is_joined = isinstance(value, list) and not name.endswith("_patterns")
    return ",".join(map(str, value)) if is_joined else str(value)


def _modelspec(config: Config, resolution: tuple[int, int], run: Run) -> dict[str, object]:
    """The standard of https://github.com/Stability-AI/ModelSpec, but for what the family says."""
    entries: dict[str, object] = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": config.metadata_title or run.output_name,
        "modelspec.date": datetime.fromtimestamp(int(run.saved_at)).isoformat(),
        "modelspec.resolution": f"{resolution[0]}x{resolution[1]}",
    }
    if config.clip_skip is not None:
        entries["modelspec.encoder_layer"] = config.clip_skip
    for name in GIVEN:
        if (value := getattr(config, f"metadata_{name}")) is not None:
            entries[f"modelspec.{name}"] = as_data_url(value) if name == "thumbnail" else value
    return entries


def as_data_url(image: str) -> str:
    """An image's file as the text that a browser shows as that image; such a text as it is."""
    if image.startswith("data:"):
        return image
    kind = mimetypes.guess_type(image)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(Path(image).read_bytes()).decode()}"


def _of_config(config: Config) -> dict[str, object]:
    return {
        "ss_learning_rate": config.learning_rate,
        "ss_text_encoder_lr": config.text_encoder_lr,
        "ss_unet_lr": config.unet_lr,
        "ss_lr_scheduler": config.lr_scheduler,
        "ss_lr_warmup_steps": config.lr_warmup_steps,
        "ss_max_grad_norm": config.max_grad_norm,
        "ss_gradient_accumulation_steps": config.gradient_accumulation_steps,
        "ss_gradient_checkpointing": config.gradient_checkpointing,
        "ss_mixed_precision": config.mixed_precision,
        "ss_lowram": config.lowram,
        "ss_seed": config.seed,
        "ss_network_dropout": config.network_dropout,
        "ss_scale_weight_norms": config.scale_weight_norms,
        "ss_min_snr_gamma": config.min_snr_gamma,
        "ss_noise_offset": config.noise_offset,
        "ss_noise_offset_random_strength": config.noise_offset_random_strength,
        "ss_adaptive_noise_scale": config.adaptive_noise_scale,
        "ss_multires_noise_iterations": config.multires_noise_iterations,
        "ss_multires_noise_discount": config.multires_noise_discount,
        "ss_ip_noise_gamma": config.ip_noise_gamma,
        "ss_ip_noise_gamma_random_strength": config.ip_noise_gamma_random_strength,
        "ss_zero_terminal_snr": config.zero_terminal_snr,
        "ss_debiased_estimation": config.debiased_estimation_loss,
        "ss_loss_type": config.loss_type,
        "ss_huber_schedule": config.huber_schedule,
        "ss_huber_scale": config.huber_scale,
        "ss_huber_c": config.huber_c,
        "ss_prior_loss_weight": config.prior_loss_weight,
        "ss_clip_skip": config.clip_skip,
        "ss_max_token_length": config.max_token_length,
        "ss_cache_latents": config.cache_latents,
        "ss_caption_dropout_rate": config.caption_dropout_rate,
        "ss_caption_dropout_every_n_epochs": config.caption_dropout_every_n_epochs,
        "ss_caption_tag_dropout_rate": config.caption_tag_dropout_rate,
        "ss_shuffle_caption": config.shuffle_caption,
        "ss_keep_tokens": config.keep_tokens,
        "ss_color_aug": config.color_aug,
        "ss_flip_aug": config.flip_aug,
        "ss_random_crop": config.random_crop,
        "ss_face_crop_aug_range": config.face_crop_aug_range,
        "ss_resize_interpolation": config.resize_interpolation,
        "ss_skip_image_resolution": config.skip_image_resolution,
        "ss_enable_bucket": config.enable_bucket,
        "ss_bucket_no_upscale": config.bucket_no_upscale,
        "ss_min_bucket_reso": config.min_bucket_reso,
        "ss_max_bucket_reso": config.max_bucket_reso,
        "ss_training_comment": config.training_comment,
        "ss_validation_split": config.validation_split,
        "ss_validation_seed": config.validation_seed,
        "ss_validate_every_n_epochs": config.validate_every_n_epochs,
        "ss_validate_every_n_steps": config.validate_every_n_steps,
        "ss_max_validation_steps": config.max_validation_steps,
    }


def _of_run(run: Run) -> dict[str, object]:
    entries = {
        "ss_output_name": run.output_name,
        "ss_session_id": run.session_id,
        "ss_training_started_at": run.started_at,
        "ss_training_finished_at": run.saved_at,
        "ss_epoch": run.epoch,
        "ss_steps": run.step,
        "ss_optimizer": run.optimizer,
        **_hashes("sd_model", run.model),
    }
    return entries | (_hashes("vae", run.vae) if run.vae else {})


def _hashes(kind: str, hashes: ModelHashes) -> dict[str, object]:
    entries: dict[str, object] = {f"ss_{kind}_name": hashes.name}
    if hashes.sha256:
        entries |= {f"ss_{kind}_hash": hashes.legacy, f"ss_new_{kind}_hash": hashes.sha256}
    return entries


def _of_batches(config: Config, run: Run) -> dict[str, object]:
    size = config.train_batch_size
    return {
        "ss_batch_size_per_device": size,
        "ss_total_batch_size": size * run.process_count * config.gradient_accumulation_steps,
    }


def model_hashes(path: Path) -> ModelHashes:
    """Name and hashes of a model's file, read once from end to end (seconds for several GB); of a folder only the name.

    The legacy hash is 8 digits of the SHA-256 of 64 KiB at 1 MiB, by which early web interfaces knew a model.
    """
    if not path.is_file():
        return ModelHashes(path.name)
    with open(path, "rb") as file:
        file.seek(0x100000)
        legacy = sha256(file.read(0x10000)).hex()[:8]
    return ModelHashes(path.name, legacy, sha256_of_file(path).hex())


# ---- Reading ----


def of_file(path: Path) -> dict[str, str]:
    """The metadata of a .safetensors; {} of any other file, or where it cannot be read."""
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(min(size, MOST_METADATA))).get("__metadata__", {})
    except (OSError, ValueError, AttributeError):
        return {}
    return {str(name): str(value) for name, value in entries.items()} if isinstance(entries, dict) else {}


def web_ui_hash(path: Path) -> str:
    """The 12 digits by which A1111 names a LoRA in its images: of `sshs_model_hash`, or of the whole file if it is no
    .safetensors."""
    start = 0
    if path.suffix == ".safetensors":
        with open(path, "rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
    return sha256_of_file(path, start).hex()[:12]


def trigger_words(entries: dict[str, str]) -> list[str]:
    """The words that call up what a LoRA learnt, as far as its metadata tells; one for each folder, at most.

    Of each training folder: the word of its name if captions hold it, else the tag that stands in all of them if there
    is just one. [] where the file does not say.
    """
    words = []
    frequencies, regularization = (_table(entries.get(name)) for name in ("ss_tag_frequency", "ss_reg_dataset_dirs"))
    for folder, counts in frequencies.items():
        if folder in regularization or not isinstance(counts, dict) or not counts:
            continue
        counts = {str(tag).strip(): count for tag, count in counts.items() if isinstance(count, int)}
        concept = re.sub(r"^\d+_", "", folder).strip()
        most = max(counts.values(), default=0)
        everywhere = [tag for tag, count in counts.items() if count == most and tag]
        named = [tag for tag in counts if tag.casefold() == concept.casefold()]
        if named or len(everywhere) == 1:
            words.append((named or everywhere)[0])
    return list(dict.fromkeys(words))


def _table(text: str | None) -> dict[str, object]:
    try:
        table = json.loads(text or "{}")
    except ValueError:
        return {}
    return table if isinstance(table, dict) else {}
