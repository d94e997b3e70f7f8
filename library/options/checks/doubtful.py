"""What can be done, but is probably not meant, or has no effect.

To add one: a row in `needs`, if an option does nothing without another, or else an `if` in the function of its subject.
Rules are as in `impossible`.
"""

import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator

from library.messages import Note, say
from library.options.checks.impossible import Rule
from library.options.declaration import PROJECT
from library.options.derived import trains_denoiser, trains_text_encoder
from library.options.training import OPTIONS, Config

# Learning rates outside of these are told as doubtful. Prodigy and D-Adaptation scale theirs by themselves: 1 is right.
_USUAL_RATES = {
    "prodigy": (0.1, 10),
    "dadapt": (0.1, 10),
    "sgd": (1e-6, 10),
    "lion": (1e-7, 3e-3),
    "adam": (1e-6, 1e-2),
}


def doubts(config: Config) -> Iterator[Rule]:
    """All of them."""
    for subject in SUBJECTS:
        yield from subject(config)


def _changed(c: Config) -> set[str]:
    """Options that are not as delivered."""
    return {name for name, option in OPTIONS.items() if getattr(c, name) != option.default}


def _changes_tags(c: Config) -> bool:
    return c.shuffle_caption or c.caption_tag_dropout_rate > 0 or c.token_warmup_step > 0


def unusual_rates(c: Config) -> Iterator[Rule]:
    """Learning rates."""
    low, high = next(
        (rates for name, rates in _USUAL_RATES.items() if c.optimizer_type.lower().startswith(name)), (0, 1e9)
    )
    of_text = c.text_encoder_lr if isinstance(c.text_encoder_lr, list) else [c.text_encoder_lr]
    own_rates = [c.unet_lr] * trains_denoiser(c) + of_text * trains_text_encoder(c)  # None: learning_rate
    used = {
        "learning_rate": None in own_rates,
        "unet_lr": trains_denoiser(c),
        "text_encoder_lr": trains_text_encoder(c),
    }
    for name in (name for name, is_used in used.items() if is_used):
        given = of_text if name == "text_encoder_lr" else [getattr(c, name)]
        rate = max((rate for rate in given if rate is not None), default=None) if None not in given else None
        if rate and not low <= rate <= high:
            yield (
                (name, "optimizer_type"),
                say(
                    f"is far {'above' if rate > high else 'below'} the usual for {c.optimizer_type}: "
                    f"{low:g} to {high:g}",
                    f"远{'大于' if rate > high else '小于'} {c.optimizer_type} 的常用范围：{low:g} 到 {high:g}",
                ),
            )


def unavailable(c: Config) -> Iterator[Rule]:
    """What this machine or this program does otherwise."""
    if c.optimizer_type.lower().startswith("paged") or c.optimizer_type.lower().endswith("8bit"):
        reason = why_no_8bit_adam(c.device)
        if reason:
            yield (
                ("optimizer_type",),
                say(
                    f"cannot work here ({reason}): the same without 8 bits is used instead",
                    f"在此无法使用（{reason}）：改用不带 8 位的同一种优化器",
                ),
            )


def without_effect(c: Config) -> Iterator[Rule]:
    """Changed, but nothing looks at it."""
    changed = _changed(c)
    for name, (acts, needed) in needs(c).items():
        if name in changed and not acts:
            yield (name,), say(f"has no effect without {needed}", f"没有 {needed} 就不起作用")
    if c.no_half_vae and c.mixed_precision in ("no", "fp16"):
        yield (
            ("no_half_vae", "mixed_precision"),
            say(
                f'has no effect with mixed_precision = "{c.mixed_precision}": the VAE computes in float32 already',
                f'在 mixed_precision = "{c.mixed_precision}" 时不起作用：VAE 本来就以 float32 计算',
            ),
        )


def needs(c: Config) -> dict[str, tuple[object, str]]:
    """Option -> (whether it acts, what it needs for that)."""
    changes_tags = _changes_tags(c)
    is_huber = c.loss_type in ("huber", "smooth_l1")
    return {
        "keep_tokens": (changes_tags, "shuffle_caption / caption_tag_dropout_rate / token_warmup_step"),
        "caption_separator": (changes_tags, "shuffle_caption / caption_tag_dropout_rate / token_warmup_step"),
        "token_warmup_min": (c.token_warmup_step > 0, "token_warmup_step"),
        "conv_alpha": (c.conv_dim is not None or c.conv_block_dims, "conv_dim"),
        "block_lr_zero_threshold": (
            c.down_lr_weight or c.mid_lr_weight or c.up_lr_weight,
            "down_lr_weight / mid_lr_weight / up_lr_weight",
        ),
        "conv_block_alphas": (c.conv_block_dims or c.conv_dim, "conv_block_dims / conv_dim"),
        "include_patterns": (c.exclude_patterns, "exclude_patterns"),
        "skip_until_initial_step": (c.initial_step, "initial_step"),
        "base_weights_multiplier": (c.base_weights, "base_weights"),
        "loraplus_unet_lr_ratio": (trains_denoiser(c), "unet_lr"),
        "loraplus_text_encoder_lr_ratio": (trains_text_encoder(c), "text_encoder_lr"),
        "stop_text_encoder_training": (trains_text_encoder(c), "text_encoder_lr"),
        **dict.fromkeys(
            ("block_dims", "block_alphas", "conv_block_dims", "down_lr_weight", "mid_lr_weight", "up_lr_weight"),
            (trains_denoiser(c), "unet_lr"),
        ),
        "lokr_factor": (c.network_module == "lokr", 'network_module = "lokr"'),
        "lr_scheduler_num_cycles": (
            c.lr_scheduler in ("cosine_with_restarts", "cosine_with_min_lr", "warmup_stable_decay"),
            'lr_scheduler = "cosine_with_restarts"',
        ),
        "lr_decay_steps": (c.lr_scheduler == "warmup_stable_decay", 'lr_scheduler = "warmup_stable_decay"'),
        "lr_scheduler_timescale": (c.lr_scheduler == "inverse_sqrt", 'lr_scheduler = "inverse_sqrt"'),
        "lr_scheduler_min_lr_ratio": (
            c.lr_scheduler in ("cosine_with_min_lr", "warmup_stable_decay"),
            'lr_scheduler = "cosine_with_min_lr"',
        ),
        "lr_scheduler_args": (
            c.lr_scheduler_type or c.lr_scheduler == "piecewise_constant",
            "lr_scheduler_type",
        ),
        "noise_offset_random_strength": (c.noise_offset, "noise_offset"),
        "multires_noise_discount": (c.multires_noise_iterations, "multires_noise_iterations"),
        "ip_noise_gamma_random_strength": (c.ip_noise_gamma, "ip_noise_gamma"),
        "huber_schedule": (is_huber, 'loss_type = "huber"'),
        "huber_c": (is_huber, 'loss_type = "huber"'),
        "huber_scale": (is_huber and c.huber_schedule != "snr", 'huber_schedule = "exponential"'),
        "lr_scheduler_power": (c.lr_scheduler == "polynomial", 'lr_scheduler = "polynomial"'),
        "save_last_n_epochs": (c.save_every_n_epochs is not None, "save_every_n_epochs"),
        "save_last_n_epochs_state": (c.save_state and c.save_every_n_epochs, "save_state / save_every_n_epochs"),
        "save_last_n_steps": (c.save_every_n_steps, "save_every_n_steps"),
        "save_last_n_steps_state": (c.save_state and c.save_every_n_steps, "save_state / save_every_n_steps"),
        "vae_batch_size": (c.cache_latents, "cache_latents"),
        "ddp_timeout": (
            c.num_processes > 1 or c.num_machines > 1 or os.environ.get("WORLD_SIZE", "1") != "1",
            "num_processes",
        ),
        "log_prefix": (c.logging_dir, "logging_dir"),
        "log_tracker_name": (c.logging_dir or c.log_with, "logging_dir"),
        "log_tracker_config": (c.logging_dir or c.log_with, "logging_dir"),
        "log_config": (c.logging_dir or c.log_with, "logging_dir"),
        "wandb_run_name": (c.log_with in ("wandb", "all"), 'log_with = "wandb"'),
        "wandb_api_key": (c.log_with in ("wandb", "all"), 'log_with = "wandb"'),
        "cache_dir": (c.cache_latents and c.cache_latents_to_disk, "cache_latents_to_disk"),
        "sort_tag_occurrence_alphabetically": (c.tag_occurrence_txt_file, "tag_occurrence_txt_file"),
        "prior_loss_weight": (c.reg_data_dir or c.dataset_config, "reg_data_dir"),
        "reg_captions": (c.reg_data_dir or c.dataset_config, "reg_data_dir"),
        "reg_rotate": (c.reg_data_dir or c.dataset_config, "reg_data_dir"),
        "dataset_repeats": (c.dataset_config or c.in_json, "in_json"),
        "conditioning_data_dir": (c.masked_loss is not False, "masked_loss"),
        **dict.fromkeys(
            ("validation_seed", "validate_every_n_epochs", "validate_every_n_steps", "max_validation_steps")
            + ("early_stop",),
            (c.validation_split or c.validation_data_dir, "validation_split"),
        ),
        "min_bucket_reso": (c.enable_bucket, "enable_bucket"),
        "max_bucket_reso": (c.enable_bucket, "enable_bucket"),
        "bucket_no_upscale": (c.enable_bucket, "enable_bucket"),
    }


def precedence(c: Config) -> Iterator[Rule]:
    """One of two that go before the other."""
    if c.max_train_steps is not None and c.max_train_epochs is not None and "max_train_epochs" in _changed(c):
        yield (
            ("max_train_steps", "max_train_epochs"),
            say(
                f"overrides max_train_epochs = {c.max_train_epochs}",
                f"优先于 max_train_epochs = {c.max_train_epochs}",
            ),
        )
    if c.initial_step and c.initial_epoch:
        yield (
            ("initial_step", "initial_epoch"),
            say(
                f"overrides initial_epoch = {c.initial_epoch}",
                f"优先于 initial_epoch = {c.initial_epoch}",
            ),
        )
    for name in ("initial_epoch", "initial_step"):
        if getattr(c, name) and c.resume not in (None, "auto", "new"):
            yield (
                (name, "resume"),
                say("has no effect: the state given as resume says it", "不起作用：resume 的训练状态已含进度"),
            )
    if c.save_n_epoch_ratio and "save_every_n_epochs" in _changed(c):
        yield (
            ("save_n_epoch_ratio", "save_every_n_epochs"),
            say(
                f"overrides save_every_n_epochs = {c.save_every_n_epochs}",
                f"优先于 save_every_n_epochs = {c.save_every_n_epochs}",
            ),
        )
    if c.save_model_as != "safetensors":
        yield (("save_model_as",), _no_room_for_metadata())
    if c.save_state_on_train_end and c.save_state:
        yield (
            ("save_state_on_train_end", "save_state"),
            say("has no effect: save_state does it, too", "不起作用：save_state 已包含它"),
        )
    if c.resume not in (None, "auto", "new") and c.network_weights:
        yield (
            ("network_weights", "resume"),
            say("is replaced by the state given as resume", "会被 resume 的训练状态取代"),
        )


def captions_and_images(c: Config) -> Iterator[Rule]:
    """What is learnt, and from which model."""
    if c.weighted_captions and _changes_tags(c):
        yield (
            ("weighted_captions",),
            say(
                "and tags that are moved or left out: no bracket may hold a comma, or it is torn apart; write "
                "(red hair:1.2), (smile:1.2)",
                "与打乱或丢弃标签同用时，括号内不能有逗号，否则会被拆散；请写成 (red hair:1.2), (smile:1.2)",
            ),
        )
    if c.reg_data_dir and c.prior_loss_weight == 0:
        yield (
            ("prior_loss_weight",),
            say(
                "leaves the regularization images without effect, they only take time; "
                "set reg_data_dir to None instead",
                "使正则化图片不起作用，只花时间；请改把 reg_data_dir 设为 None",
            ),
        )
    paths = ["pretrained_model_name_or_path", *([] if c.dataset_config else ["train_data_dir", "reg_data_dir"])]
    miniature = [name for name in paths if is_delivered(name, getattr(c, name))]
    if miniature and "train_data_dir" not in miniature:
        for name in miniature:
            yield (
                (name, "train_data_dir"),
                Note(
                    say(
                        "is still the built-in miniature's: set your own",
                        "还是自带微型模型的，请换成您自己的",
                    ),
                    "red",
                ),
            )


def is_delivered(name: str, path: object) -> bool:
    """Whether a path is still the one of the built-in miniature."""
    delivered = OPTIONS[name].default
    return isinstance(path, str) and delivered is not None and os.path.abspath(path) == str(PROJECT / delivered)


def why_no_8bit_adam(device: str = "auto") -> str | None:
    """The reason why 8-bit Adam cannot run here, as far as it shows before torch is imported; None where it may."""
    if device in ("cpu", "mps"):
        return say(f"device {device}", f"设备为 {device}")
    try:
        build = importlib.metadata.version("torch").partition("+")[2]
    except importlib.metadata.PackageNotFoundError:
        build = ""
    if build.startswith(("rocm", "cpu")):
        return say(f"torch is a {build} build", f"torch 是 {build} 版本")
    if importlib.util.find_spec("bitsandbytes") is None:
        return say("the package bitsandbytes is not installed", "没有安装 bitsandbytes")
    return None


def _no_room_for_metadata() -> str:
    return say(
        "has no room for metadata: programs and show_lora.py can't tell its trigger words, base model or settings. "
        '"safetensors" has',
        "存不下元数据：各软件和 show_lora.py 都看不到触发词、底模与训练参数。safetensors 可以",
    )


SUBJECTS = (unusual_rates, precedence, unavailable, without_effect, captions_and_images)
