"""Other trainers' names: taken, renamed, or refused with a reason.

Users come with a block, preset or command of sd-scripts or of an earlier zero-argument script. `translate` turns such
values into ours, says the present name, and says why where something is not offered. To add a name: add a row.
What no table knows is left as it is; `checks.check` then tells it as unknown, with the nearest name.
"""

import ast
from collections.abc import Callable
from types import NoneType
from typing import Any

from library.messages import say
from library.options import window_presets
from library.options.checks import asks, from_text, no_effect, place, quoted
from library.options.declaration import Given, Scalar, Value, Values, Where
from library.options.training import OPTIONS

# ---- names ----

RENAMED = {
    # the zero-argument scripts this project descends from
    "base_model": "pretrained_model_name_or_path",
    "img_folder": "train_data_dir",
    "reg_img_folder": "reg_data_dir",
    "output_folder": "output_dir",
    "change_output_name": "output_name",
    "net_dim": "network_dim",
    "alpha": "network_alpha",
    "scheduler": "lr_scheduler",
    "cosine_restarts": "lr_scheduler_num_cycles",
    "scheduler_power": "lr_scheduler_power",
    "warmup_lr_ratio": "lr_warmup_steps",
    "num_workers": "max_data_loader_n_workers",
    "batch_size": "train_batch_size",
    "num_epochs": "max_train_epochs",
    "save_at_n_epochs": "save_every_n_epochs",
    "shuffle_captions": "shuffle_caption",
    "max_steps": "max_train_steps",
    "train_resolution": "resolution",
    "min_bucket_resolution": "min_bucket_reso",
    "max_bucket_resolution": "max_bucket_reso",
    "buckets": "enable_bucket",
    "lora_model_for_resume": "network_weights",
    "load_previous_save_state": "resume",
    "test_seed": "seed",
    "gradient_acc_steps": "gradient_accumulation_steps",
    "save_as": "save_model_as",
    "max_clip_token_length": "max_token_length",
    "no_meta": "no_metadata",
    "log_dir": "logging_dir",
    "unet_only": "network_train_unet_only",
    "text_only": "network_train_text_encoder_only",
    "locon_dim": "conv_dim",
    "locon_alpha": "conv_alpha",
    # presets of bmaltais' window
    "max_resolution": "resolution",
    "epoch": "max_train_epochs",
    "optimizer": "optimizer_type",
    "lora_network_weights": "network_weights",
    "lr_warmup": "lr_warmup_steps",
    "LoRA_type": "network_module",
    "text_encoder_learning_rate": "text_encoder_lr",
    "unet_learning_rate": "unet_lr",
    # lora-scripts (SD-Trainer): train.sh and train.ps1, and presets
    "pretrained_model": "pretrained_model_name_or_path",
    "parameterization": "v_parameterization",
    "max_train_epoches": "max_train_epochs",
    "train_unet_only": "network_train_unet_only",
    "train_text_encoder_only": "network_train_text_encoder_only",
    "lr": "learning_rate",
    "lr_restart_cycles": "lr_scheduler_num_cycles",
    "dropout": "network_dropout",
    # LoRA_Easy_Training_Scripts
    "warmup_ratio": "lr_warmup_steps",
    "tag_occurrence": "tag_occurrence_txt_file",
    # sd-scripts' own earlier spelling
    "caption_extention": "caption_extension",
}

# Values of a renamed option that counted differently: name -> function of the value.
CONVERTED: dict[str, Callable[[Any], object]] = {
    "lr_warmup": lambda percent: (percent or 0) / 100 if isinstance(percent or 0, (int, float)) else percent,
}

SWITCHES: dict[str, tuple[str, Value]] = {  # name -> the option it sets, and to what
    **dict.fromkeys(("use_lion", "use_lion_optimizer"), ("optimizer_type", "Lion")),
    "use_8bit_adam": ("optimizer_type", "AdamW8bit"),
    "full_fp16": ("mixed_precision", "fp16"),
    "full_bf16": ("mixed_precision", "bf16"),
    **dict.fromkeys(("fp8_base", "fp8_base_unet"), ("int8_base", True)),
    "use_wandb": ("log_with", "wandb"),
    "sdxl_no_half_vae": ("no_half_vae", True),
    "sdxl_cache_text_encoder_outputs": ("cache_text_encoder_outputs", True),
}

Reason = tuple[str, str]

# What is not quite the same under the new name.
BUT: dict[str, Reason] = {
    **dict.fromkeys(
        ("full_fp16", "full_bf16"),
        (
            "the LoRA's own weights stay in float32, so that no small update is lost",
            "LoRA 自身的权重仍为 float32，以免丢失微小的更新",
        ),
    ),
    **dict.fromkeys(
        ("fp8_base", "fp8_base_unet"),
        ("8 bits as well, with less rounding, and on any device", "同样是 8 位，误差更小，任何设备都能用"),
    ),
}

# What None meant where ours has no None.
NONE_MEANT: dict[str, Value] = {
    "lr_decay_steps": 0,
    "keep_tokens": 0,
    "caption_dropout_rate": 0.0,
    "caption_tag_dropout_rate": 0.0,
    "gradient_accumulation_steps": 1,
    "lr_warmup_steps": 0,
    "lr_scheduler_num_cycles": 1,
    "lr_scheduler_power": 1.0,
    "max_token_length": 75,
    "max_grad_norm": 0.0,
    "min_timestep": 0,
    "max_timestep": 1000,
    "prior_loss_weight": 1.0,
    "save_precision": "float",
    "save_model_as": "safetensors",
    "optimizer_type": "AdamW",
}

# Other spellings of values: option -> lower-case spelling -> ours.
SPELLINGS: dict[str, dict[str, str | None]] = {
    "network_module": {
        "networks.lora": "lora",
        "networks.loha": "loha",
        "networks.lokr": "lokr",
        "standard": "lora",
        "kohya locon": "lora",
        "locon": "lora",
        "lycoris/locon": "lora",
        "lycoris/loha": "loha",
        "lycoris/lokr": "lokr",
        "lycoris.kohya": "lora",  # unless algo says more
    },
    "mixed_precision": {"fp32": "no", "float32": "no", "float": "no", "float16": "fp16", "bfloat16": "bf16"},
    "save_precision": {"fp32": "float", "float32": "float", "float16": "fp16", "bfloat16": "bf16"},
    "optimizer_type": {"": "AdamW"},
    "lr_scheduler_type": {"": None},
}

# Of network_args: LyCORIS's algorithms, and how each is called here.
ALGORITHMS = {"lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr"}

# LyCORIS's choices of layers. Of "full" the convolutions get network_dim where conv_dim does not say otherwise.
PRESETS: dict[str, Values] = {
    "full": {},
    "attn-mlp": {},
    "attn-only": {"exclude_patterns": [".*_ff_net_.*", ".*_proj_(in|out)", ".*_mlp_.*"]},
    "unet-transformer-only": {"network_train_unet_only": True},
}

# Other names in network_args -> the option that is meant; and names of both.
ARGUMENTS = {
    "dropout": "network_dropout",
    "factor": "lokr_factor",
    **{
        name: name
        for name in (
            "conv_dim", "conv_alpha", "rs_lora", "rank_dropout", "module_dropout", "block_dims", "block_alphas",
            "conv_block_dims", "conv_block_alphas", "down_lr_weight", "mid_lr_weight", "up_lr_weight",
            "block_lr_zero_threshold", "network_reg_dims", "network_reg_lrs", "loraplus_lr_ratio",
            "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio",
        )
    },
}  # fmt: skip
KNOWN_ARGUMENTS = (*ARGUMENTS, "include_patterns", "exclude_patterns", "algo", "preset", "dora_wd")
IDLE_ARGUMENTS = {"verbose", "train_t5xxl", "wd_on_output", "block_size"}  # nothing here that they could change

# ---- what is not here ----

ATTENTION = ("torch's own memory-efficient attention is used in any case", "一律使用 torch 自带的省显存注意力实现")
WORKERS = ("images are prefetched by threads, which persist", "预读图片用的是线程，会一直保留")
OFFLINE = ("the tokenizer is part of the project; nothing is downloaded", "分词器已包含在项目中，不会下载任何文件")
LAUNCHER = ("it belongs to another program's window or launcher", "它属于其他程序的界面或启动器")
CACHE = ("the cache manages itself", "缓存由程序自行管理")
RECOGNISED = ("the base model is detected automatically", "底模会自动识别")
GRADIENTS = (
    "the LoRA's gradients lie in one tensor, are summed once a step, and take little memory",
    "LoRA 的梯度放在一个张量里，每步只汇总一次，占用很少",
)
OTHER_FAMILIES = (
    "it is for FLUX, SD3 and others, which are not trained here",
    "它用于 FLUX、SD3 等，这里不训练这些模型",
)

# Accepted, and said to have no effect. Values that ask for nothing (False, None, 0, "") are not worth a line.
WITHOUT_EFFECT: dict[str, Reason] = {
    **dict.fromkeys(
        ("xformers", "sdpa", "mem_eff_attn", "split_attn", "attn_mode", "use_flash_attn", "use_sage_attn"), ATTENTION
    ),
    **dict.fromkeys(("persistent_data_loader_workers", "persistent_workers"), WORKERS),
    "tokenizer_cache_dir": OFFLINE,
    **dict.fromkeys(
        ("cache_info", "skip_cache_check", "cache_text_encoder_outputs_to_disk", "text_encoder_batch_size"), CACHE
    ),
    "disable_mmap_load_safetensors": ("files are read in the way that suits the system", "按系统选择读取文件的方式"),
    **dict.fromkeys(("highvram", "lowvram"), ("memory is managed automatically", "显存按实际情况管理")),
    **dict.fromkeys(
        ("cpu_offload_checkpointing", "unsloth_offload_checkpointing"),
        (
            "what gradient_checkpointing keeps stays on the device; if that is too much, the run says what to change",
            "gradient_checkpointing 保留的数据留在显存中；如果放不下，启动时会提示如何调整",
        ),
    ),
    **dict.fromkeys(("fused_backward_pass", "ddp_gradient_as_bucket_view", "ddp_static_graph"), GRADIENTS),
    **dict.fromkeys(("v2", "is_v2_model", "sdxl", "model_train_type"), RECOGNISED),
    **dict.fromkeys(
        ("gpu_ids", "multi_gpu"), ("device and num_processes choose the GPUs", "显卡由 device 和 num_processes 决定")
    ),
    **dict.fromkeys(
        (
            "num_cpu_threads_per_process",
            "model_list",
            "save_json_only",
            "save_json_name",
            "no_token_padding",
            "save_as_bool",
            "training_preset",
            "extra_accelerate_launch_args",
            "dynamo_mode",
            "dynamo_use_dynamic",
            "dynamo_use_fullgraph",
            "LyCORIS_preset",
            "train_on_input",
            "randomly_choice_prompt",
        ),
        LAUNCHER,
    ),
    **dict.fromkeys(
        ("name", "version", "author", "description", "train_type"), ("it describes the preset", "它是预设本身的说明")
    ),
    **dict.fromkeys(
        (
            "learning_rate_te",
            "learning_rate_te1",
            "learning_rate_te2",
            "mem_eff_save",
            "fused_optimizer_groups",
            "blockwise_fused_optimizers",
        ),
        ("it is for the training of whole models", "它用于训练完整模型"),
    ),
    **dict.fromkeys(
        (
            "ae",
            "clip_g",
            "clip_l",
            "guidance_scale",
            "discrete_flow_shift",
            "logit_mean",
            "logit_std",
            "mode_scale",
            "model_prediction_type",
            "timestep_sampling",
            "sigmoid_scale",
            "weighting_scheme",
            "train_blocks",
            "apply_t5_attn_mask",
            "apply_lg_attn_mask",
            "split_mode",
            "double_blocks_to_swap",
            "single_blocks_to_swap",
            "save_clip",
            "save_t5xxl",
            "train_t5xxl",
            "t5xxl",
            "t5xxl_device",
            "t5xxl_dtype",
            "t5xxl_max_token_length",
            "flux1_cache_text_encoder_outputs",
            "flux1_cache_text_encoder_outputs_to_disk",
            "flux1_clip_l",
            "flux1_t5xxl",
            "flux_fused_backward_pass",
            "sd3_cache_text_encoder_outputs",
            "sd3_cache_text_encoder_outputs_to_disk",
            "sd3_fused_backward_pass",
            "sd3_text_encoder_batch_size",
            "byt5",
            "clip_g_dropout_rate",
            "clip_l_dropout_rate",
            "t5_dropout_rate",
            "controlnet_model_name_or_path",
            "cross_attn_lr",
            "self_attn_lr",
            "mlp_lr",
            "mod_lr",
            "llm_adapter_lr",
            "llm_adapter_path",
            "enable_scaled_pos_embed",
            "pos_emb_random_crop_rate",
            "fp8_scaled",
            "fp8_vl",
            "gemma2",
            "gemma2_max_token_length",
            "qwen3",
            "qwen3_max_token_length",
            "t5_max_token_length",
            "t5_tokenizer_path",
            "text_encoder",
            "text_encoder_cpu",
            "model_type",
            "sample_batch_size",
            "system_prompt",
            "training_shift",
            "vae_chunk_size",
            "vae_disable_cache",
            "split_qkv",
        ),
        OTHER_FAMILIES,
    ),
}

NOT_OFFERED = ("it is not supported here", "这里没有此功能")
NO_UPLOAD = (
    "nothing is uploaded. When the run has ended: hf upload NAME/REPOSITORY output/mytag.safetensors",
    "不会上传任何文件。训练结束后可手动运行：“hf upload 用户名/仓库名 output/mytag.safetensors”",
)
OWN_CODE = (
    "it runs a Python class of your own; describe the images in dataset_config instead",
    "它会运行用户自己的 Python 类；请改用 dataset_config 描述数据集",
)
NO_DEEPSPEED = (
    "DeepSpeed divides models that one GPU cannot hold; here int8_base and gradient_checkpointing make room, and "
    "num_processes takes several GPUs",
    "DeepSpeed 用于单卡放不下的模型；这里请用 int8_base 和 gradient_checkpointing 省显存，用 num_processes 使用多卡",
)
NETWORK_ARGUMENT = ("this network argument is not supported here", "这里没有这一网络参数")

# Refused with a reason, unless the value is what the other trainer does without it (listed first).
REFUSED: dict[str, tuple[tuple[Scalar, ...], Reason]] = {
    "dataset_class": ((), OWN_CODE),
    **dict.fromkeys(
        (
            "huggingface_repo_id",
            "huggingface_repo_type",
            "huggingface_path_in_repo",
            "huggingface_token",
            "huggingface_repo_visibility",
            "save_state_to_huggingface",
            "async_upload",
        ),
        ((), NO_UPLOAD),
    ),
    "resume_from_huggingface": ((), ("resume takes a folder of this machine", "resume 只能填本机的文件夹")),
    **dict.fromkeys(
        (
            "deepspeed",
            "zero_stage",
            "offload_optimizer_device",
            "offload_optimizer_nvme_path",
            "offload_param_device",
            "offload_param_nvme_path",
            "zero3_init_flag",
            "zero3_save_16bit_model",
            "fp16_master_weights_and_gradients",
        ),
        ((), NO_DEEPSPEED),
    ),
    **dict.fromkeys(
        ("flux1_checkbox", "sd3_checkbox"),
        ((), ("only Stable Diffusion 1.x, 2.x and XL are trained here", "这里只训练 Stable Diffusion 1.x、2.x 和 XL")),
    ),
    **dict.fromkeys(
        (
            "rank_dropout_scale",
            "train_norm",
            "decompose_both",
            "use_cp",
            "use_tucker",
            "use_scalar",
            "constrain",
            "rescaled",
            "bypass_mode",
            "dylora_unit",
        ),
        ((), NETWORK_ARGUMENT),
    ),
    "unit": ((1,), NETWORK_ARGUMENT),
    **dict.fromkeys(
        ("dataset", "datasets", "subsets", "args"),
        (
            (),
            (
                "data sets are written as tables headed [[datasets]], their folders as [[datasets.subsets]]",
                "数据集请写成以 [[datasets]] 开头的表，其中的目录写成 [[datasets.subsets]]",
            ),
        ),
    ),
    "train_mode": (("lora",), ("only LoRAs are trained here", "这里只训练 LoRA")),
    "lyco": (
        (),
        ('set network_module to "loha", "lokr" or "dora"', '请把 network_module 设为 "loha"、"lokr" 或 "dora"'),
    ),
    **dict.fromkeys(
        ("blocks_to_swap",),
        ((), NOT_OFFERED),
    ),
}

IDLE_WHEN_OFF = {*SWITCHES, *WITHOUT_EFFECT}  # --no-xformers is taken and asks for nothing

REFUSED_VALUES: dict[tuple[str, str], Reason] = {
    ("save_model_as", "diffusers"): ('a LoRA is one file; use "safetensors"', 'LoRA 是单个文件；请填 "safetensors"'),
}


def translate(values: Values, where: Where) -> Given:
    """The same values under the present names.

    Args:
        values, where: as for checks.check; from a block, preset, .toml file or command line.

    Returns:
        with a notice for each name understood, and a problem for each that is refused.
    """
    other = Given(dict(values), dict(where), [], [])
    window_presets.unfold(other)
    present = {name: value for name, value in other.values.items() if name in OPTIONS}
    given = Given(present, other.where, other.notices, other.problems)
    without_effect: dict[Reason, list[str]] = {}
    for name, value in other.values.items():
        if name in OPTIONS:
            continue
        if name == "network_args":
            _take_network_args(value, other.values, given)
        elif name in SWITCHES:
            if asks(value):
                _take(*SWITCHES[name], name, given)
        elif name in RENAMED:
            new = RENAMED[name]
            value = CONVERTED.get(name, lambda same: same)(_read(new, value))
            if value is not None or new in NONE_MEANT or OPTIONS[new].kinds & {list, NoneType}:
                _take(new, value, name, given)
        elif name in WITHOUT_EFFECT:
            if asks(value):
                without_effect.setdefault(WITHOUT_EFFECT[name], []).append(name)
        elif name in REFUSED:
            harmless, (english, chinese) = REFUSED[name]
            if value and value not in harmless:
                at = place(name, given.where)
                given.problems.append(say(f"{at} is not supported: {english}", f"{at} 不能使用：{chinese}"))
        elif name.removeprefix("no_") not in IDLE_WHEN_OFF:
            present[name] = value
    given.notices.extend(no_effect(names, reason, given.where) for reason, names in without_effect.items())
    for name in list(present):
        present[name] = _spelling(name, present[name], given)
    return given


def _take(new: str, value: object, old: str, given: Given) -> None:
    """Put the value of an earlier name under the present one, unless both were given and say different things."""
    at, is_flag = place(old, given.where), given.where.get(old, "").startswith("--")
    written = f"--{new}" if is_flag else new
    if old not in RENAMED:  # a switch: its value changes too
        written += f" {quoted(value)}" if is_flag else f" = {quoted(value)}"
    english, chinese = (f" ({reason[0]})", f"（{reason[1]}）") if (reason := BUT.get(old)) else ("", "")
    given.notices.append(say(f"{at} is now written {written}{english}", f"{at} 现在写作 {written}{chinese}"))
    beats_file = is_flag and not given.where.get(new, "").startswith("--")
    if new in given.values and not beats_file and given.values[new] not in (value, OPTIONS[new].default):
        one, other = f"{at} = {quoted(value)}", f"{place(new, given.where)} = {quoted(given.values[new])}"
        given.problems.append(
            say(f"{one} and {other} are the same thing. Delete one", f"{one} 与 {other} 是同一个参数。请删除其中一个")
        )
        return
    given.values[new], given.where[new] = value, given.where.get(old, "")


def _read(name: str, value: object) -> Any:
    """A text from a command line or preset as the type of the option it now is."""
    return from_text(name, value) if isinstance(value, str) and name in OPTIONS else value


def _take_network_args(value: object, others: Values, given: Given) -> None:
    """`conv_dim=4 algo=lokr factor=8` under the names of our options.

    Args:
        others: all values, with the conv_dim that LyCORIS's preset "full", which is its default, gives to convolutions.
    """
    full = {}
    if str(given.values.get("network_module")).lower() == "lycoris.kohya":
        del given.values["network_module"]  # the algorithm says which
        names = {"conv_dim": "network_dim", "conv_alpha": "network_alpha"}
        full = {new: others.get(name) or OPTIONS[name].default for new, name in names.items()}
    for new, argument in _network_args(value, place("network_args", given.where), given.problems, full).items():
        _take(new, argument, "network_args", given)


def _network_args(value: object, at: str, problems: list[str], full: Values) -> Values:
    """`conv_dim=4 algo=lokr factor=8` by the names of our options.

    Args:
        full: what LyCORIS's preset "full", which is its default, gives to convolutions; {}: they are not its arguments.
    """
    items = value.split() if isinstance(value, str) else value if isinstance(value, (list, tuple)) else []
    taken: Values = {}
    is_dora, preset = False, "full"
    for item in items:
        name, _, text = str(item).partition("=")
        if name == "algo" and text.lower() in ALGORITHMS:
            taken["network_module"] = ALGORITHMS[text.lower()]
        elif name == "preset" and text in PRESETS:
            preset = text
        elif name == "dora_wd" and text.lower() in ("true", "false"):
            is_dora = text.lower() == "true"
        elif name in ARGUMENTS:
            new = ARGUMENTS[name]
            taken[new] = None if (name, text) == ("factor", "-1") else from_text(new, text)
        elif name in ("exclude_patterns", "include_patterns"):
            taken[name] = _patterns(text)
        elif name not in IDLE_ARGUMENTS and text.lower() not in ("", "false", "none", "0"):
            problems.append(_is_no_argument(at, item))
    if is_dora:
        kind = taken.get("network_module", "lora")
        if kind != "lora":
            problems.append(_is_no_dora(at, kind))
        taken["network_module"] = "dora"
    if preset == "full" and "conv_dim" not in taken:
        taken = full | taken
    return PRESETS[preset] | taken


def _patterns(text: str) -> list[str]:
    """One pattern, or several written as Python writes a list."""
    try:
        read = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        read = text
    return [str(one) for one in read] if isinstance(read, (list, tuple)) else [text]


def _spelling(name: str, value: object, given: Given) -> Any:
    """The value of an option in our spelling."""
    if value is None and name in NONE_MEANT:
        return NONE_MEANT[name]
    if not isinstance(value, str):
        return value
    if (name, value.lower()) in REFUSED_VALUES:
        english, chinese = REFUSED_VALUES[name, value.lower()]
        at = place(name, given.where)
        given.problems.append(
            say(f"{at}: {quoted(value)} is not supported: {english}", f"{at}：不能使用 {quoted(value)}：{chinese}")
        )
        return OPTIONS[name].default
    return SPELLINGS.get(name, {}).get(value.lower(), value)


# ---- what is said ----


def _is_no_argument(at: str, item: object) -> str:
    return say(
        f"{at}: {quoted(item)} is not supported; only {', '.join(KNOWN_ARGUMENTS)} are (algo: "
        f"{', '.join(ALGORITHMS)}; preset: {', '.join(PRESETS)})",
        f"{at}：不能使用 {quoted(item)}；可用的只有 {'、'.join(KNOWN_ARGUMENTS)}（algo："
        f"{'、'.join(ALGORITHMS)}；preset：{'、'.join(PRESETS)}）",
    )


def _is_no_dora(at: str, kind: str) -> str:
    return say(
        f"{at}: dora_wd with algo={kind} is not supported; with algo=lora it is",
        f"{at}：不支持 algo={kind} 加 dora_wd；algo=lora 可以",
    )
