"""Other trainers' names: taken, renamed, or refused with a reason.

Users come with a block, preset or command of sd-scripts or of an earlier zero-argument script. `translate` turns such
values into ours, says the present name, and says why where something is not offered. To add a name: add a row.
What no table knows is left as it is; `checks.check` then tells it as unknown, with the nearest name.
"""

from collections.abc import Callable
from typing import Any

from library.checks import as_number, from_text, place, shown
from library.config import KINDS, OPTIONS
from library.messages import say

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
    # sd-scripts' own earlier spelling
    "caption_extention": "caption_extension",
}

# Values of a renamed option that counted differently: name -> function of the value.
CONVERTED: dict[str, Callable[[Any], Any]] = {
    "lr_warmup": lambda percent: (percent or 0) / 100 if isinstance(percent or 0, (int, float)) else percent,
}

SWITCHES = {"use_lion": ("optimizer_type", "Lion"), "use_lion_optimizer": ("optimizer_type", "Lion")}

# What None meant where ours has no None.
NONE_MEANT = {
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
SPELLINGS = {
    "network_module": {
        "networks.lora": "lora",
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

# ---- what is not here ----

Reason = tuple[str, str]

ATTENTION = ("torch's own memory-efficient attention is used in any case", "一律使用 torch 自带的省显存注意力实现")
WORKERS = ("pictures are read ahead by threads, which stay", "预读图片用的是线程，会一直保留")
OFFLINE = ("the tokenizer is part of the project; nothing is downloaded", "分词器已包含在项目中，不会下载任何文件")
CONSOLE = ("messages go to the terminal and to run.jsonl", "提示显示在终端，并写入 run.jsonl")
LAUNCHER = ("it belongs to another program's window or launcher", "它属于其他程序的界面或启动器")
CACHE = ("the cache looks after itself", "缓存由程序自行管理")

# Accepted, and said to have no effect. Values that ask for nothing (False, None, 0, "") are not worth a line.
WITHOUT_EFFECT: dict[str, Reason] = {
    **dict.fromkeys(("sdpa", "mem_eff_attn", "split_attn"), ATTENTION),
    **dict.fromkeys(("persistent_data_loader_workers", "persistent_workers"), WORKERS),
    "tokenizer_cache_dir": OFFLINE,
    **dict.fromkeys(("console_log_level", "console_log_file", "console_log_simple"), CONSOLE),
    **dict.fromkeys(("cache_info", "skip_cache_check", "vae_batch_size"), CACHE),
    "highvram": ("memory is managed by what there is", "显存按实际情况管理"),
    "no_half_vae": ("the VAE runs in a number format that does not overflow", "VAE 以不会溢出的精度运行"),
    "log_config": ("parameters are kept with the result in any case", "参数总会随结果保存"),
    "log_with": ("logging_dir alone switches TensorBoard on", "填写 logging_dir 即启用 TensorBoard"),
    "output_config": ("the equivalent command is always printed", "总会打印等价的命令"),
    **dict.fromkeys(
        ("num_cpu_threads_per_process", "model_list", "save_json_only", "save_json_name", "no_token_padding"), LAUNCHER
    ),
}

NOT_OFFERED = ("it is not offered here", "这里没有此功能")
BASE_PRECISION = ("the base model is held in mixed_precision", "底模按 mixed_precision 的精度保存")
EIGHT_BIT_BASE = (
    "int8_base takes as little memory and rounds less",
    "请改用 int8_base，同样省显存，误差更小",
)
NO_UPLOAD = ("nothing is uploaded", "不会上传任何文件")
FOLDERS = (
    "pictures come from folders named [repeats]_[concept] in train_data_dir",
    "图片来自 train_data_dir 下 [重复次数]_[概念] 形式的文件夹",
)
NO_DEEPSPEED = ("it is for clusters of GPUs", "它用于多显卡集群")
SAVE_EVERY = ("give save_every_n_epochs instead", "请改用 save_every_n_epochs")

# Refused with a reason, unless the value is what the other trainer does without it (listed first).
REFUSED: dict[str, tuple[tuple, Reason]] = {
    "save_n_epoch_ratio": ((), SAVE_EVERY),
    **dict.fromkeys(("dataset_config", "in_json", "dataset_class"), ((), FOLDERS)),
    "dataset_repeats": ((1,), FOLDERS),
    "conditioning_data_dir": (
        (),
        ("the mask of photo.jpg is masks/photo.png beside it", "photo.jpg 的蒙版是同目录下的 masks/photo.png"),
    ),
    **dict.fromkeys(("full_fp16", "full_bf16"), ((), BASE_PRECISION)),
    **dict.fromkeys(("fp8_base", "fp8_base_unet"), ((), EIGHT_BIT_BASE)),
    **dict.fromkeys(("huggingface_repo_id", "huggingface_token", "save_state_to_huggingface"), ((), NO_UPLOAD)),
    "resume_from_huggingface": ((), ("resume takes a folder of this machine", "resume 只能填本机的文件夹")),
    **dict.fromkeys(("deepspeed", "zero_stage"), ((), NO_DEEPSPEED)),
    "stop_text_encoder_training": (
        (),
        ("set text_encoder_lr = 0 to leave it out", "不训练文本编码器请设 text_encoder_lr = 0"),
    ),
    "lyco": (
        (),
        ('set network_module to "loha", "lokr" or "dora"', '请把 network_module 设为 "loha"、"lokr" 或 "dora"'),
    ),
    **dict.fromkeys(
        (
            "base_weights",
            "base_weights_multiplier",
            "blocks_to_swap",
            "cpu_offload_checkpointing",
            "debug_dataset",
            "dim_from_weights",
            "face_crop_aug_range",
            "fused_backward_pass",
            "wandb_api_key",
            "weighted_captions",
        ),
        ((), NOT_OFFERED),
    ),
}

REFUSED_VALUES: dict[tuple[str, str], Reason] = {
    ("save_model_as", "diffusers"): ('a LoRA is one file; take "safetensors"', 'LoRA 是单个文件；请填 "safetensors"'),
}


def translate(
    values: dict[str, Any], where: dict[str, str]
) -> tuple[dict[str, Any], dict[str, str], list[str], list[str]]:
    """The same values under the present names.

    Args:
        values, where: as for checks.check; from a block, preset, .toml file or command line.

    Returns:
        values and where under present names; notices (a line for each name understood); problems (refusals), for
        checks.check to tell with its own.
    """
    present = {name: value for name, value in values.items() if name in OPTIONS}
    where, notices, problems = dict(where), [], []
    for name, value in values.items():
        at = place(name, where)
        if name in OPTIONS:
            continue
        if name == "network_args":
            if str(present.get("network_module")).lower() == "lycoris.kohya":
                del present["network_module"]  # the algorithm says which
            for new, argument in _network_args(value, at, problems).items():
                _take(new, argument, name, present, where, notices, problems)
        elif name in SWITCHES:
            if value:
                _take(*SWITCHES[name], name, present, where, notices, problems)
        elif name in RENAMED:
            new = RENAMED[name]
            value = CONVERTED.get(name, lambda same: same)(_read(new, value))
            if value is not None or list in KINDS[new] or new in NONE_MEANT or type(None) in KINDS[new]:
                _take(new, value, name, present, where, notices, problems)
        elif name in WITHOUT_EFFECT:
            if value:
                english, chinese = WITHOUT_EFFECT[name]
                notices.append(say(f"{at} has no effect: {english}", f"{at} 不起作用：{chinese}"))
        elif name in REFUSED:
            harmless, (english, chinese) = REFUSED[name]
            if value and value not in harmless:
                problems.append(say(f"{at} is not taken: {english}", f"{at} 不能使用：{chinese}"))
        else:
            present[name] = value
    for name in list(present):
        present[name] = _spelling(name, present[name], where, problems)
    return present, where, notices, problems


def _take(
    new: str, value: Any, old: str, present: dict, where: dict[str, str], notices: list[str], problems: list[str]
) -> None:
    """Put the value of an earlier name under the present one, unless both were given and say different things."""
    at, is_flag = place(old, where), where.get(old, "").startswith("--")
    written = f"--{new}" if is_flag else new
    if old not in RENAMED:  # a switch: its value changes too
        written += f" {shown(value)}" if is_flag else f" = {shown(value)}"
    notices.append(say(f"{at} is now written {written}", f"{at} 现在写作 {written}"))
    beats_file = is_flag and not where.get(new, "").startswith("--")
    if new in present and not beats_file and present[new] not in (value, OPTIONS[new].default):
        problems.append(
            say(
                f"{at} = {shown(value)} and {place(new, where)} = {shown(present[new])} are the same thing. Delete one",
                f"{at} = {shown(value)} 与 {place(new, where)} = {shown(present[new])} 是同一个参数。请删除其中一个",
            )
        )
        return
    present[new], where[new] = value, where.get(old, "")


def _read(name: str, value: Any) -> Any:
    """A text from a command line or preset as the type of the option it now is."""
    return from_text(name, value) if isinstance(value, str) else value


def _network_args(value: Any, at: str, problems: list[str]) -> dict[str, Any]:
    """`conv_dim=4 algo=lokr factor=8` are options of ours; nothing else is offered."""
    items = value.split() if isinstance(value, str) else value if isinstance(value, (list, tuple)) else []
    taken = {}
    for item in items:
        name, _, text = str(item).partition("=")
        if name in ("conv_dim", "conv_alpha"):
            taken[name] = as_number(text)
        elif name == "algo" and text.lower() in ALGORITHMS:
            taken["network_module"] = ALGORITHMS[text.lower()]
        elif name == "factor":
            taken["lokr_factor"] = None if text == "-1" else as_number(text)
        elif name in ("rs_lora", "dora_wd"):
            taken[name] = from_text("rs_lora", text)
        else:
            known, algorithms = "conv_dim, conv_alpha, algo, factor, rs_lora, dora_wd", ", ".join(ALGORITHMS)
            problems.append(
                say(
                    f"{at}: {shown(item)} is not taken; only {known} are (algo: {algorithms}), as options of their own",
                    f"{at}：不能使用 {shown(item)}；只有 {known} 可用（algo：{algorithms}），它们是单独的参数",
                )
            )
    if taken.pop("dora_wd", False):
        kind = taken.get("network_module", "lora")
        if kind != "lora":
            problems.append(
                say(
                    f"{at}: dora_wd with algo={kind} is not offered; with algo=lora it is",
                    f"{at}：不支持 algo={kind} 加 dora_wd；algo=lora 可以",
                )
            )
        taken["network_module"] = "dora"
    return taken


def _spelling(name: str, value: Any, where: dict[str, str], problems: list[str]) -> Any:
    """The value of an option in our spelling."""
    if value is None and name in NONE_MEANT:
        return NONE_MEANT[name]
    if name == "text_encoder_lr" and isinstance(value, (list, tuple)) and value:
        if all(rate == value[0] for rate in value):
            return value[0]
        problems.append(
            say(
                f"{place(name, where)}: one learning rate serves all text encoders; give one value",
                f"{place(name, where)}：所有文本编码器共用一个学习率；请只填一个值",
            )
        )
        return value[0]
    if not isinstance(value, str):
        return value
    if (name, value.lower()) in REFUSED_VALUES:
        english, chinese = REFUSED_VALUES[name, value.lower()]
        at = place(name, where)
        problems.append(
            say(f"{at}: {shown(value)} is not taken: {english}", f"{at}：不能使用 {shown(value)}：{chinese}")
        )
        return OPTIONS[name].default
    return SPELLINGS.get(name, {}).get(value.lower(), value)
