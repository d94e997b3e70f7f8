"""Every option reaches the place that uses it: each is changed in a small run, and the change must be seen.

A row of EFFECTS: what is changed, what both runs have in common, and what tells that it took effect. An option without
a row fails the last test of this file.
"""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from library import families
from library.options.training import OPTIONS
from tests.conftest import Result, draw_set, events

See = Callable[[Result, Result], bool]  # (the run without the change, the run with it)


class Effect(NamedTuple):
    change: dict
    seen: See
    base: dict = {}


def shapes(result: Result) -> dict:
    return {name: tuple(tensor.shape) for name, tensor in result.weights.items()}


def other_weights(plain: Result, changed: Result) -> bool:
    ours, theirs = plain.weights, changed.weights
    return ours.keys() == theirs.keys() and any(not torch.equal(ours[name], theirs[name]) for name in ours)


def entry(name: str, value: str) -> See:
    return lambda plain, changed: plain.metadata.get(name) != changed.metadata.get(name) == value


def step_count(count: int) -> See:
    return lambda plain, changed: len(plain.steps) != len(changed.steps) == count


def rates(part: str, first: float, last: float) -> See:
    def seen(plain: Result, changed: Result) -> bool:
        at = [step[f"lr/{part}"] for step in changed.steps]
        return [at[0], at[-1]] == pytest.approx([first, last], rel=0.01, abs=1e-9)

    return seen


def made(name: str) -> See:
    """A file (or folder) that only the changed run leaves behind."""
    return lambda plain, changed: any(changed.folder.glob(name)) and not any(plain.folder.glob(name))


def beside(path: str) -> See:
    """A folder outside the output, which nothing else makes."""
    return lambda plain, changed: any(any(place.iterdir()) for place in changed.folder.parent.glob(path))


def steps_kept(run: Result) -> list[int]:
    return sorted(int(path.stem[-8:]) for path in run.folder.glob("it-step*.safetensors"))


def only_last(name: str, all_of: list[int], last: list[int]) -> See:
    """States that are removed, while the files beside them stay."""

    def kept(run: Result, ending: str) -> list[int]:
        return [number for number in all_of if (run.folder / f"{name.format(number)}{ending}").exists()]

    return lambda plain, changed: (
        kept(plain, "-state") == kept(changed, ".safetensors") == all_of and kept(changed, "-state") == last
    )


def said(text: str) -> See:
    return lambda plain, changed: text in changed.said and text not in plain.said


def buckets(*sizes: tuple[int, int]) -> See:
    def seen(plain: Result, changed: Result) -> bool:
        now, before = (json.loads(run.metadata["ss_bucket_info"])["buckets"].values() for run in (changed, plain))
        resolutions = {tuple(bucket["resolution"]) for bucket in now}
        return resolutions == set(sizes) != {tuple(bucket["resolution"]) for bucket in before}

    return seen


def only(beginning: str) -> See:
    return lambda plain, changed: (
        {name.startswith(beginning) for name in changed.weights} == {True}
        and {name.startswith(beginning) for name in plain.weights} == {True, False}
    )


def small_norms(plain: Result, changed: Result) -> bool:
    def largest(run: Result) -> float:
        names = [name.removesuffix(".alpha") for name in run.weights if name.endswith(".alpha")]
        layers = [(run.weights[f"{n}.lora_up.weight"].flatten(1), run.weights[f"{n}.lora_down.weight"]) for n in names]
        return max(float((up.float() @ down.flatten(1).float()).norm()) for up, down in layers)

    return largest(changed) < 0.0101 < largest(plain)


def other_image(plain: Result, changed: Result) -> bool:
    name = "it.preview.png"
    return (plain.folder / name).read_bytes() != (changed.folder / name).read_bytes()


def validated(result: Result, what: str = "step") -> list:
    return [event[what] for event in events(result.folder, "validation")]


def dtype(kind: torch.dtype) -> See:
    return lambda plain, changed: {tensor.dtype for tensor in changed.weights.values()} == {kind}


def other_shapes(plain: Result, changed: Result) -> bool:
    return shapes(plain).keys() == shapes(changed).keys() and shapes(plain) != shapes(changed)


ONE_EPOCH = dict(max_train_epochs=1)  # 6 steps, where the row does not say otherwise
TWO_EPOCHS = dict(max_train_epochs=2)
CONSTANT = dict(lr_scheduler="constant")
PREVIEW = TWO_EPOCHS | dict(sample_every_n_epochs=None, sample_prompts="{prompts}")
MEASURED = dict(validation_data_dir="{measured set}", text_encoder_lr=0)
EFFECTS = {
    "pretrained_model_name_or_path": Effect(dict(pretrained_model_name_or_path="{other model}"), other_weights),
    "train_data_dir": Effect(dict(train_data_dir="{other set}"), entry("ss_num_train_images", "2")),
    "reg_data_dir": Effect(dict(reg_data_dir=None), entry("ss_num_reg_images", "0")),
    "output_name": Effect(dict(output_name="that"), made("that.safetensors")),
    "resolution": Effect(dict(resolution="48,64"), entry("ss_resolution", "(48, 64)")),
    "train_batch_size": Effect(dict(train_batch_size=6), step_count(3)),
    "max_train_epochs": Effect(dict(max_train_epochs=2), step_count(12)),
    "max_train_steps": Effect(dict(max_train_steps=5), step_count(5)),
    "learning_rate": Effect(dict(learning_rate=1e-3), rates("unet", 1e-3, 1e-3 / 6), dict(lr_scheduler="linear")),
    "unet_lr": Effect(dict(unet_lr=3e-3), rates("unet", 3e-3, 3e-3), dict(lr_scheduler="constant")),
    "text_encoder_lr": Effect(
        dict(text_encoder_lr=2e-3), rates("text_encoder", 2e-3, 2e-3), dict(lr_scheduler="constant")
    ),
    "network_dim": Effect(dict(network_dim=3), entry("ss_network_dim", "3")),
    "network_alpha": Effect(dict(network_alpha=1.0), other_weights),
    "save_every_n_epochs": Effect(dict(save_every_n_epochs=1), made("it-000001.safetensors"), TWO_EPOCHS),
    "clip_skip": Effect(dict(clip_skip=2), other_weights),
    "seed": Effect(dict(seed=8), other_weights),
    "network_module": Effect(
        dict(network_module="loha"), lambda _, changed: any(name.endswith("hada_w1_a") for name in changed.weights)
    ),
    "rs_lora": Effect(dict(rs_lora=True), other_weights),
    "lokr_factor": Effect(
        dict(lokr_factor=2), lambda plain, changed: shapes(plain) != shapes(changed), dict(network_module="lokr")
    ),
    "network_weights": Effect(dict(network_weights="{lora}"), other_weights),
    "conv_dim": Effect(dict(conv_dim=2), lambda plain, changed: len(changed.weights) > len(plain.weights)),
    "conv_alpha": Effect(dict(conv_alpha=2.0), other_weights, dict(conv_dim=2)),
    "network_dropout": Effect(dict(network_dropout=0.5), other_weights),
    "rank_dropout": Effect(dict(rank_dropout=0.5), other_weights),
    "module_dropout": Effect(dict(module_dropout=0.5), other_weights),
    "block_dims": Effect(dict(block_dims=[2] * 12 + [3] * 13), other_shapes),
    "block_alphas": Effect(dict(block_alphas=[1.0] * 25), other_weights),
    "conv_block_dims": Effect(dict(conv_block_dims=[1] * 25), lambda a, b: len(b.weights) > len(a.weights)),
    "conv_block_alphas": Effect(dict(conv_block_alphas=[2.0] * 25), other_weights, dict(conv_dim=2)),
    "network_reg_dims": Effect(dict(network_reg_dims=["mid_block.*=3"]), other_shapes),
    "exclude_patterns": Effect(dict(exclude_patterns=["mid_.*"]), lambda a, b: len(b.weights) < len(a.weights)),
    "include_patterns": Effect(
        dict(include_patterns=["mid_.*"]),
        lambda a, b: len(b.weights) > len(a.weights),
        dict(exclude_patterns=[".*d_.*"]),
    ),
    "down_lr_weight": Effect(dict(down_lr_weight="zeros+.5"), rates("unet_block1", 5e-3, 5e-3), CONSTANT),
    "mid_lr_weight": Effect(dict(mid_lr_weight="0.5"), rates("unet_block12", 5e-3, 5e-3), CONSTANT),
    "up_lr_weight": Effect(dict(up_lr_weight="zeros+.5"), rates("unet_block16", 5e-3, 5e-3), CONSTANT),
    "block_lr_zero_threshold": Effect(
        dict(block_lr_zero_threshold=0.6),
        lambda a, b: len(b.weights) < len(a.weights),
        CONSTANT | dict(mid_lr_weight="0.5"),
    ),
    "network_reg_lrs": Effect(dict(network_reg_lrs=["mid_.*=1e-3"]), rates("unet_reg0", 1e-3, 1e-3), CONSTANT),
    "loraplus_lr_ratio": Effect(dict(loraplus_lr_ratio=4.0), rates("text_encoder plus", 4e-2, 4e-2), CONSTANT),
    "loraplus_unet_lr_ratio": Effect(dict(loraplus_unet_lr_ratio=4.0), rates("unet plus", 4e-2, 4e-2), CONSTANT),
    "loraplus_text_encoder_lr_ratio": Effect(
        dict(loraplus_text_encoder_lr_ratio=4.0), rates("text_encoder plus", 4e-2, 4e-2), CONSTANT
    ),
    "weighted_captions": Effect(dict(weighted_captions=True), other_weights, dict(caption_prefix="(big:1.4),")),
    "network_train_unet_only": Effect(dict(network_train_unet_only=True), only("lora_unet_")),
    "network_train_text_encoder_only": Effect(dict(network_train_text_encoder_only=True), only("lora_te_")),
    "scale_weight_norms": Effect(dict(scale_weight_norms=0.01), small_norms),
    "optimizer_type": Effect(
        dict(optimizer_type="Lion"), lambda _, changed: "Lion" in changed.metadata["ss_optimizer"]
    ),
    "optimizer_args": Effect(dict(optimizer_args=["weight_decay=50.0"]), other_weights),
    "lr_scheduler": Effect(dict(lr_scheduler="constant"), rates("unet", 1e-2, 1e-2)),
    "lr_scheduler_num_cycles": Effect(
        dict(lr_scheduler_num_cycles=3), other_weights, dict(lr_scheduler="cosine_with_restarts")
    ),
    "lr_scheduler_power": Effect(dict(lr_scheduler_power=3.0), other_weights, dict(lr_scheduler="polynomial")),
    "lr_warmup_steps": Effect(
        dict(lr_warmup_steps=0.5), rates("unet", 0, 1e-2), dict(lr_scheduler="constant_with_warmup")
    ),
    "max_grad_norm": Effect(
        dict(max_grad_norm=0.01), other_weights, dict(optimizer_type="SGD", save_precision="float")
    ),
    "min_snr_gamma": Effect(dict(min_snr_gamma=0.01), other_weights),
    "noise_offset": Effect(dict(noise_offset=0.5), other_weights),
    "noise_offset_random_strength": Effect(
        dict(noise_offset_random_strength=True), other_weights, dict(noise_offset=0.5)
    ),
    "adaptive_noise_scale": Effect(dict(adaptive_noise_scale=1.0), other_weights, dict(noise_offset=0.5)),
    "multires_noise_iterations": Effect(dict(multires_noise_iterations=3), other_weights),
    "multires_noise_discount": Effect(
        dict(multires_noise_discount=0.9), other_weights, dict(multires_noise_iterations=3)
    ),
    "ip_noise_gamma": Effect(dict(ip_noise_gamma=0.5), other_weights),
    "ip_noise_gamma_random_strength": Effect(
        dict(ip_noise_gamma_random_strength=True), other_weights, dict(ip_noise_gamma=0.5)
    ),
    "immiscible_noise": Effect(dict(immiscible_noise=4), other_weights),
    "zero_terminal_snr": Effect(dict(zero_terminal_snr=True), other_weights, dict(v_parameterization=True)),
    "min_timestep": Effect(dict(min_timestep=900), other_weights),
    "max_timestep": Effect(dict(max_timestep=100), other_weights),
    "loss_type": Effect(dict(loss_type="l1"), other_weights),
    "huber_schedule": Effect(dict(huber_schedule="constant"), other_weights, dict(loss_type="huber")),
    "huber_c": Effect(dict(huber_c=0.9), other_weights, dict(loss_type="huber")),
    "huber_scale": Effect(
        dict(huber_scale=9.0), other_weights, dict(loss_type="huber", huber_schedule="constant")
    ),
    "scale_v_pred_loss_like_noise_pred": Effect(
        dict(scale_v_pred_loss_like_noise_pred=True), other_weights, dict(v_parameterization=True)
    ),
    "v_pred_like_loss": Effect(dict(v_pred_like_loss=0.5), other_weights),
    "debiased_estimation_loss": Effect(dict(debiased_estimation_loss=True), other_weights),
    "lr_scheduler_type": Effect(
        dict(lr_scheduler_type="ExponentialLR", lr_scheduler_args=["gamma=0.5"]), rates("unet", 1e-2, 1e-2 / 2**5)
    ),
    "lr_decay_steps": Effect(
        dict(lr_decay_steps=6), rates("unet", 1e-2, 1e-2 * (1 + math.cos(math.pi * 5 / 6)) / 2),
        TWO_EPOCHS | dict(lr_scheduler="warmup_stable_decay", lr_decay_steps=3),
    ),
    "lr_scheduler_timescale": Effect(
        dict(lr_scheduler_timescale=4), rates("unet", 1e-2, 1e-2 * (4 / 15) ** 0.5),
        TWO_EPOCHS | dict(lr_scheduler="inverse_sqrt"),
    ),
    "lr_scheduler_min_lr_ratio": Effect(
        dict(lr_scheduler_min_lr_ratio=1.0), rates("unet", 1e-2, 1e-2), dict(lr_scheduler="cosine_with_min_lr")
    ),
    "caption_extension": Effect(dict(caption_extension=".cap"), said("3 from the folder's name")),
    "shuffle_caption": Effect(dict(shuffle_caption=True), other_weights),
    "keep_tokens": Effect(dict(keep_tokens=2), other_weights, dict(shuffle_caption=True)),
    "caption_prefix": Effect(dict(caption_prefix="cat, "), other_weights),
    "keep_tokens_separator": Effect(dict(keep_tokens_separator=","), other_weights, dict(shuffle_caption=True)),
    "caption_separator": Effect(dict(caption_separator=" "), other_weights, dict(shuffle_caption=True)),
    "secondary_separator": Effect(dict(secondary_separator="d"), other_weights),
    "enable_wildcard": Effect(dict(enable_wildcard=True), other_weights, dict(caption_prefix="{a|cat|dog}")),
    "token_warmup_min": Effect(dict(token_warmup_min=3), other_weights, dict(token_warmup_step=8)),
    "token_warmup_step": Effect(dict(token_warmup_step=0.9), other_weights),
    "caption_suffix": Effect(dict(caption_suffix=", cat"), other_weights),
    "caption_dropout_rate": Effect(dict(caption_dropout_rate=1.0), other_weights),
    "caption_dropout_every_n_epochs": Effect(dict(caption_dropout_every_n_epochs=2), other_weights, TWO_EPOCHS),
    "caption_tag_dropout_rate": Effect(dict(caption_tag_dropout_rate=0.9), other_weights),
    "max_token_length": Effect(dict(max_token_length=75), said("75 caption tokens"), dict(caption_prefix="a " * 90)),
    "enable_bucket": Effect(dict(enable_bucket=False), buckets((64, 64))),
    "min_bucket_reso": Effect(dict(min_bucket_reso=64), buckets((64, 64))),
    "max_bucket_reso": Effect(dict(max_bucket_reso=64), buckets((64, 64), (32, 64))),
    "bucket_reso_steps": Effect(dict(bucket_reso_steps=32), buckets((64, 64), (32, 96)), dict(max_bucket_reso=96)),
    "bucket_no_upscale": Effect(dict(bucket_no_upscale=True), buckets((64, 64), (48, 80)), dict(resolution=96)),
    "flip_aug": Effect(dict(flip_aug=True), other_weights),
    "color_aug": Effect(dict(color_aug=True), other_weights, dict(cache_latents=False)),
    "random_crop": Effect(dict(random_crop=True), other_weights, dict(cache_latents=False, enable_bucket=False)),
    "face_crop_aug_range": Effect(
        dict(face_crop_aug_range="1,2"), other_weights,
        dict(cache_latents=False, train_data_dir="{faces}"),
    ),
    "resize_interpolation": Effect(
        dict(resize_interpolation="nearest"), other_weights, dict(resolution=48, reg_data_dir=None)
    ),
    "skip_image_resolution": Effect(dict(skip_image_resolution="50,80"), step_count(4)),
    "conditioning_data_dir": Effect(dict(conditioning_data_dir="{masks}"), other_weights),
    "dataset_config": Effect(dict(dataset_config="{data sets}"), entry("ss_num_train_images", "4")),
    "in_json": Effect(
        dict(in_json="{captions}", train_data_dir="{other set}/1_cat"),
        lambda _, changed: "captions.json" in changed.metadata["ss_dataset_dirs"],
    ),
    "dataset_repeats": Effect(
        dict(dataset_repeats=3), entry("ss_num_train_images", "6"),
        dict(in_json="{captions}", train_data_dir="{other set}/1_cat"),
    ),
    "keep_best": Effect(
        dict(keep_best=False),
        lambda plain, changed: [len(list(run.folder.glob("*-best*"))) for run in (plain, changed)] == [1, 0], MEASURED,
    ),
    "early_stop": Effect(
        dict(early_stop=1, max_train_epochs=9, learning_rate=1.0),
        lambda plain, changed: len(changed.steps) < len(plain.steps),
        MEASURED | dict(validate_every_n_epochs=1, max_train_epochs=9, learning_rate=1.0),
    ),
    "validation_split": Effect(dict(validation_split=0.4), entry("ss_num_validation_images", "1")),
    "validation_data_dir": Effect(
        dict(validation_data_dir="{measured set}"), entry("ss_num_validation_images", "2")
    ),
    "validation_seed": Effect(
        dict(validation_seed=1), lambda plain, changed: validated(plain, "loss") != validated(changed, "loss"), MEASURED
    ),
    "validate_every_n_epochs": Effect(
        dict(validate_every_n_epochs=2), lambda plain, changed: validated(changed) == [0, 12] != validated(plain),
        MEASURED | TWO_EPOCHS | dict(validate_every_n_epochs=1),
    ),
    "validate_every_n_steps": Effect(
        dict(validate_every_n_steps=4),
        lambda plain, changed: validated(changed) == [0, 4, 6, 8, 12] != validated(plain),
        MEASURED | TWO_EPOCHS | dict(validate_every_n_epochs=1),
    ),
    "max_validation_steps": Effect(
        dict(max_validation_steps=1), lambda plain, changed: validated(plain, "loss") != validated(changed, "loss"),
        MEASURED | dict(train_batch_size=1, max_train_epochs=1),
    ),
    "masked_loss": Effect(dict(masked_loss=False), other_weights, dict(train_data_dir="{masked set}")),
    "alpha_mask": Effect(dict(alpha_mask=True), other_weights, dict(train_data_dir="{transparent set}")),
    "prior_loss_weight": Effect(dict(prior_loss_weight=0.5), other_weights),
    "reg_captions": Effect(dict(reg_captions=False), said("caption files are not read")),
    "reg_rotate": Effect(dict(reg_rotate=False), said("2 of 8 regularization images are never used"), TWO_EPOCHS),
    "vae": Effect(dict(vae="{other vae}"), other_weights),
    "v_parameterization": Effect(dict(v_parameterization=True), entry("modelspec.prediction_type", "v")),
    "mixed_precision": Effect(dict(mixed_precision="bf16"), said("bfloat16 (as asked)")),
    "gradient_checkpointing": Effect(dict(gradient_checkpointing=True), entry("ss_gradient_checkpointing", "True")),
    "int8_base": Effect(dict(int8_base=True), other_weights),
    "cuda_graphs": Effect(dict(cuda_graphs=True), said("no CUDA graphs")),
    "attention": Effect(dict(attention="chunked"), said("attention in chunks of")),
    "gradient_accumulation_steps": Effect(dict(gradient_accumulation_steps=4), step_count(2)),
    "cache_latents": Effect(dict(cache_latents=False), lambda plain, changed: "encoded" not in changed.said),
    "cache_latents_to_disk": Effect(
        dict(cache_latents_to_disk=True, cache_dir="{folder}/cache"), beside("cache/latents")
    ),
    "cache_dir": Effect(
        dict(cache_dir="{folder}/second"), beside("second/latents"),
        dict(cache_latents_to_disk=True, cache_dir="{folder}/first"),
    ),
    "cache_text_encoder_outputs": Effect(
        dict(cache_text_encoder_outputs=False), lambda plain, changed: "captions: " in plain.said
        and "captions: " not in changed.said, dict(text_encoder_lr=0.0),
    ),
    "device": Effect(dict(device="cpu"), lambda _, changed: "device cpu" in changed.said),
    "sample_prompts": Effect(dict(sample_prompts="{other prompts}"), other_image, PREVIEW),
    "sample_every_n_epochs": Effect(dict(sample_every_n_epochs=1), made("sample/it_e000001_00_*.png"), PREVIEW),
    "sample_every_n_steps": Effect(dict(sample_every_n_steps=4), made("sample/it_000004_00_*.png"), PREVIEW),
    "sample_at_first": Effect(dict(sample_at_first=True), made("sample/it_e000000_00_*.png"), PREVIEW),
    "sample_strengths": Effect(dict(sample_strengths=[0.7]), made("sample/it_end_00_x0.7_*.png"), PREVIEW),
    "sample_sampler": Effect(dict(sample_sampler="ddim"), other_image, PREVIEW),
    "save_every_n_steps": Effect(dict(save_every_n_steps=2), made("it-step00000002.safetensors")),
    "save_last_n_epochs": Effect(
        dict(save_last_n_epochs=1),
        lambda plain, changed: (plain.folder / "it-000001.safetensors").exists()
        and not (changed.folder / "it-000001.safetensors").exists(),
        dict(save_every_n_epochs=1, max_train_epochs=3),
    ),
    "save_precision": Effect(dict(save_precision="float"), dtype(torch.float32)),
    "save_model_as": Effect(dict(save_model_as="ckpt"), made("it.ckpt")),
    "save_state": Effect(dict(save_state=True), made("it-state/state.json")),
    "no_metadata": Effect(dict(no_metadata=True), lambda _, changed: "ss_seed" not in changed.metadata),
    "training_comment": Effect(dict(training_comment="for 小明"), entry("ss_training_comment", "for 小明")),
    "logging_dir": Effect(dict(logging_dir="{folder}/log"), beside("log")),
    "metadata_title": Effect(dict(metadata_title="A title"), entry("modelspec.title", "A title")),
    "metadata_thumbnail": Effect(
        dict(metadata_thumbnail="data:image/png;base64,AA"), entry("modelspec.thumbnail", "data:image/png;base64,AA")
    ),
    "no_half_vae": Effect(dict(no_half_vae=True), other_weights, dict(mixed_precision="bf16")),
    "save_n_epoch_ratio": Effect(dict(save_n_epoch_ratio=2), made("it-000001.safetensors"), TWO_EPOCHS),
    "save_last_n_epochs_state": Effect(
        dict(save_last_n_epochs_state=1), only_last("it-00000{}", [1, 2], [2]),
        dict(save_every_n_epochs=1, max_train_epochs=3, save_state=True),
    ),
    "save_last_n_steps": Effect(
        dict(save_last_n_steps=3),
        lambda plain, changed: steps_kept(plain) == [2, 4, 6, 8, 10] and steps_kept(changed) == [8, 10],
        TWO_EPOCHS | dict(save_every_n_steps=2),
    ),
    "save_last_n_steps_state": Effect(
        dict(save_last_n_steps_state=3), only_last("it-step{:08}", [2, 4, 6, 8, 10], [8, 10]),
        TWO_EPOCHS | dict(save_every_n_steps=2, save_state=True),
    ),
    "save_state_on_train_end": Effect(
        dict(save_state_on_train_end=True),
        lambda plain, changed: [path.name for path in changed.folder.glob("*-state")] == ["it-state"]
        and not any(plain.folder.glob("*-state")), TWO_EPOCHS | dict(save_every_n_epochs=1),
    ),
    "log_prefix": Effect(dict(log_prefix="try-"), beside("log/try-*"), dict(logging_dir="{folder}/log")),
    "log_tracker_name": Effect(dict(log_tracker_name="mine"), beside("log/mine"), dict(logging_dir="{folder}/log")),
    "console_log_level": Effect(
        dict(console_log_level="ERROR"), lambda plain, changed: "saved" in plain.said and not changed.said
    ),
    "console_log_file": Effect(
        dict(console_log_file="{folder}/said.txt"),
        lambda plain, changed: (changed.folder.parent / "said.txt").read_text("utf-8").split() == changed.said.split(),
    ),
    "tag_occurrence_txt_file": Effect(dict(tag_occurrence_txt_file=True), made("it.tags.txt")),
    "sort_tag_occurrence_alphabetically": Effect(
        dict(sort_tag_occurrence_alphabetically=True),
        lambda plain, changed: (plain.folder / "it.tags.txt").read_text().split()[1] == "person"
        and (changed.folder / "it.tags.txt").read_text().split()[1:3] == ["blue", "hair"],
        dict(tag_occurrence_txt_file=True),
    ),
    "language": Effect(dict(language="zh"), said("已保存")),
}  # fmt: skip
TOGETHER = [  # changed in one run, as each leaves a trace of its own
    [
        "training_comment", "metadata_title", "metadata_thumbnail", "network_dim", "save_every_n_steps", "save_state",
        "save_precision", "optimizer_type", "gradient_checkpointing", "validation_split",
    ],
    ["caption_extension", "reg_captions", "attention", "cuda_graphs", "device"],
    ["unet_lr", "text_encoder_lr"],
    ["down_lr_weight", "mid_lr_weight", "up_lr_weight"],
    ["network_reg_lrs", "loraplus_text_encoder_lr_ratio"],
    ["sample_every_n_epochs", "sample_every_n_steps", "sample_at_first", "sample_strengths"],
]  # fmt: skip
ELSEWHERE = {  # seen by a test of another file, or by one below
    "debug_dataset": "test_dataset_config.py::test_debug_dataset_shows_the_first_batches_and_trains_nothing",
    "output_dir": "every test of test_train.py",
    "lr_scheduler_args": "lr_scheduler_type above",
    "resume": "test_train.py::test_a_continued_run_gives_the_bits_of_an_unbroken_one, test_survival.py",
    **dict.fromkeys(
        ("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port"), "test_distributed.py"
    ),
    **dict.fromkeys(("torch_compile", "dynamo_backend"), "test_the_compiler_gets_the_blocks_and_the_backend"),
    **dict.fromkeys(
        ("log_with", "log_tracker_config", "log_config", "wandb_run_name", "wandb_api_key"), "test_trackers.py"
    ),
    **{name: "test_metadata.py" for name in OPTIONS if name.startswith("metadata_") and name not in EFFECTS},
    "console_log_simple": "test_console.py",
    "ddp_timeout": "test_distributed.py",
    "vae_batch_size": "test_images_are_encoded_so_many_at_once",
    "device_plan": "test_the_device_plan_is_shown_without_training",
    "lowram": "test_lowram_loads_straight_to_the_device",
    "max_data_loader_n_workers": "test_the_number_of_reading_threads_is_the_users",
    **dict.fromkeys(("dim_from_weights", "base_weights", "base_weights_multiplier", "ema_decay"), "test_learning.py"),
    "stop_text_encoder_training": "test_learning.py",
    **dict.fromkeys(("initial_epoch", "initial_step", "skip_until_initial_step"), "test_learning.py"),
    **dict.fromkeys(("images_dir", "trigger_word"), "test_shared.py"),
    "preset": "test_subject_presets.py",
    **dict.fromkeys(("open_pages", "notify_at_end"), "test_desktop.py"),
    "save_json_folder": "test_parameter_block.py",
    "load_json_path": "test_parameter_block.py",
    "json_load_skip_list": "test_parameter_block.py",
    "multi_run_folder": "test_parameter_block.py",
}


@pytest.fixture(scope="session")
def places(tmp_path_factory, tiny_model):
    """Things that options point to, by the names they have in EFFECTS."""
    from tests.conftest import write_diffusers_folder

    root = tmp_path_factory.mktemp("places")
    other = families.tiny("sd1", seed=5)
    (root / "one.txt").write_text("mytag --s 2 --w 64 --h 64")
    (root / "two.txt").write_text("cat --s 2 --w 64 --h 64 --d 3")
    draw_set(root / "set" / "1_cat", ["a cat", "a dog"], [(64, 64)] * 2)
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 40, 64))
    for kind in ("masked", "transparent"):
        folder = draw_set(root / kind / "1_cat", ["a cat", "a dog"], [(64, 64)] * 2)
        (folder / "masks").mkdir()
        for image in folder.glob("*.png"):
            if kind == "masked":
                mask.save(folder / "masks" / image.name)
            else:
                opened = Image.open(image)
                opened.putalpha(mask)
                opened.save(image)
    (root / "some masks").mkdir()
    mask.save(root / "some masks" / "0.png")
    draw_set(root / "faces" / "1_cat", ["a cat"] * 2, [(128, 128)] * 2)
    for path in (root / "faces" / "1_cat").glob("*.png"):
        path.rename(path.with_stem(f"{path.stem}_60_60_40_40"))
    (root / "captions.json").write_text(json.dumps({name: {"caption": "a cat"} for name in "01"}))
    subset = f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{(root / 'set' / '1_cat').as_posix()}'\n"
    (root / "sets.toml").write_text(subset + subset.replace("[[datasets]]", "[[datasets]]\nresolution = 48"))
    return {
        "{masks}": str(root / "some masks"),
        "{faces}": str(root / "faces"),
        "{captions}": str(root / "captions.json"),
        "{data sets}": str(root / "sets.toml"),
        "{other model}": str(write_diffusers_folder(root / "model", other)),
        "{other vae}": str(root / "model" / "vae"),
        "{other set}": str(root / "set"),
        "{measured set}": str(draw_set(root / "measured", ["mytag, hat", "a hat"], [(64, 64)] * 2, seed=3)),
        "{masked set}": str(root / "masked"),
        "{transparent set}": str(root / "transparent"),
        "{prompts}": str(root / "one.txt"),
        "{other prompts}": str(root / "two.txt"),
    }


@pytest.mark.slow("trains 180 times")
def test_changing_an_option_is_seen(subtests, run, places, tmp_path, capsys):
    """One test with many parts, so that each run is made once, whether it is somebody's base or somebody's change."""
    results: dict[str, Result] = {}

    def result(options: dict) -> Result:
        key = json.dumps(options, sort_keys=True)
        if key not in results:
            results[key] = trained(f"run{len(results)}", ONE_EPOCH | options)
        return results[key]

    def trained(output: str, options: dict) -> Result:
        known = places | {"{folder}": str(tmp_path), "{lora}": str(tmp_path / "run0" / "it.safetensors")}
        for name, value in options.items():
            for mark, place in known.items():
                if isinstance(value, str) and mark in value:
                    options = options | {name: value.replace(mark, place)}
        capsys.readouterr()
        folder = run(output=output, **options)
        return Result(folder, capsys.readouterr().out)

    assert result({}).folder.name == "run0"
    for name, effect in EFFECTS.items():
        with subtests.test(option=name):
            together = next((group for group in TOGETHER if name in group), [name])
            change = {key: value for other in together for key, value in EFFECTS[other].change.items()}
            assert effect.seen(result(effect.base), result(effect.base | change))


@pytest.mark.parametrize("group", TOGETHER, ids=lambda group: group[0])
def test_options_that_are_changed_together_have_one_base_and_no_value_in_common(group):
    assert all(EFFECTS[name].base == EFFECTS[group[0]].base for name in group)
    assert sum(len(EFFECTS[name].change) for name in group) == len({key for n in group for key in EFFECTS[n].change})


def test_the_device_plan_is_shown_without_training(run, tmp_path, capsys):
    folder = run(output="never", device="auto", device_plan="print only")
    assert "device plan: " in capsys.readouterr().out
    assert not folder.exists()


def test_the_compiler_gets_the_blocks_and_the_backend(run, monkeypatch):
    from library.hardware import compilation

    asked = []

    def compiler(tell, backend):
        return lambda plain, fast: asked.append((backend, plain.__name__, fast.__name__)) or fast

    monkeypatch.setattr(compilation, "Compiler", compiler)
    run(torch_compile=True, dynamo_backend="aot_eager")
    assert asked == [("aot_eager", name, name) for name in ("resnet", "transformer_block")]


def test_lowram_loads_straight_to_the_device(run, monkeypatch):
    asked = []
    really = families.open_model
    monkeypatch.setattr(families, "open_model", lambda *a, **k: asked.append(k["device"]) or really(*a, **k))
    for lowram in (False, True):
        run(lowram=lowram)
    assert asked == ["cpu", torch.device("cpu")]


def test_images_are_encoded_so_many_at_once(run, monkeypatch):
    from library.data.cache import LatentCache

    asked = []
    really = LatentCache.fill
    monkeypatch.setattr(LatentCache, "fill", lambda *a, **k: asked.append(k["batch_size"]) or really(*a, **k))
    for size in (None, 3):
        run(vae_batch_size=size, train_batch_size=2)
    assert asked == [2, 3]


def test_the_number_of_reading_threads_is_the_users(run, monkeypatch):
    from library.data import cache, dataset

    asked = []
    for module in (cache, dataset):
        really = module.in_order
        monkeypatch.setattr(
            module, "in_order", lambda f, items, n, really=really: asked.append(n) or really(f, items, n)
        )
    run(max_data_loader_n_workers=3)
    assert set(asked) == {3}


def test_every_option_is_driven_to_the_place_that_uses_it():
    assert set(EFFECTS) | set(ELSEWHERE) == set(OPTIONS)
    assert not set(EFFECTS) & set(ELSEWHERE)
    files = {file.name: file.read_text(encoding="utf-8") for file in Path(__file__).parents[1].rglob("test_*.py")}
    for place in ELSEWHERE.values():
        assert set(re.findall(r"test_\w+\.py", place)) <= files.keys()
        for test in re.findall(r"\btest_\w+\b(?!\.py)", place):
            assert any(f"def {test}(" in text for text in files.values()), test


def test_save_precision_and_format_hold_the_same_numbers(run):
    ours = load_file(run(output="a", save_precision="float") / "it.safetensors")
    theirs = torch.load(run(output="b", save_precision="float", save_model_as="pt") / "it.pt", weights_only=True)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
