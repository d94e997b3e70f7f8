"""What cannot be done: pairs of options that exclude each other, and options that need another.

To add one: an `if` in the function of its subject. A rule is a tuple of the options concerned, and what is said behind
the first one's value; it is left out where one of them is wrong by itself.
"""

import importlib.util
import os
from collections.abc import Iterator

from library.messages import say
from library.options.derived import trains_denoiser, trains_text_encoder
from library.options.training import Config

Rule = tuple[tuple[str, ...], str]

FINDS_ONE_RATE = {  # optimizers that take one learning rate for all parts, in lower case
    "prodigy", "dadaptation", "dadaptadampreprint", "dadaptadam", "dadaptadagrad", "dadaptadan", "dadaptadanip",
    "dadaptlion", "dadaptsgd",
}  # fmt: skip


def contradictions(config: Config) -> Iterator[Rule]:
    """All of them."""
    for subject in SUBJECTS:
        yield from subject(config)


def images(c: Config) -> Iterator[Rule]:
    """Changed at every use, held out, or given twice."""
    for name in ("color_aug", "random_crop", "face_crop_aug_range"):
        if getattr(c, name) and c.cache_latents:
            yield (
                (name, "cache_latents"),
                say(
                    "changes the images at every use, so they cannot be cached. Set cache_latents to False, or this",
                    "每次都会改变图片，因此不能缓存。请把 cache_latents 或此项设为 False",
                ),
            )
    if c.validation_split not in (0, "auto") and c.validation_data_dir:
        yield (
            ("validation_split", "validation_data_dir"),
            say(
                "can't be combined with validation_data_dir. Set validation_split to 0, or validation_data_dir to None",
                "与 validation_data_dir 互相排斥。请把 validation_split 设为 0，或把 validation_data_dir 设为 None",
            ),
        )
    if c.reg_data_dir and os.path.abspath(c.reg_data_dir) == os.path.abspath(c.train_data_dir):
        yield (
            ("reg_data_dir", "train_data_dir"),
            say(
                "is the training folder itself. Choose another folder, or None",
                "就是训练集目录。请填另一个目录，或 None",
            ),
        )


def trained_parts(c: Config) -> Iterator[Rule]:
    """Something must be trained."""
    if c.network_train_unet_only and c.network_train_text_encoder_only:
        yield (
            ("network_train_unet_only", "network_train_text_encoder_only"),
            say(
                "can't be combined with network_train_text_encoder_only. Set one of them to False",
                "与 network_train_text_encoder_only 互相排斥。请把其中一个设为 False",
            ),
        )
    elif not trains_denoiser(c) and not trains_text_encoder(c):
        rate = "text_encoder_lr" if c.network_train_text_encoder_only else "unet_lr"
        yield (
            (rate, "unet_lr", "text_encoder_lr"),
            say(
                "leaves nothing to train, because the other part is not trained either. Set a learning rate",
                "使得没有可训练的部分，因为另一部分也不训练。请填一个学习率",
            ),
        )


def cached_captions(c: Config) -> Iterator[Rule]:
    """What is encoded once must not change."""
    if c.cache_text_encoder_outputs is True:
        changing = {
            "shuffle_caption": c.shuffle_caption,
            "caption_dropout_rate": c.caption_dropout_rate > 0,
            "caption_dropout_every_n_epochs": bool(c.caption_dropout_every_n_epochs),
            "caption_tag_dropout_rate": c.caption_tag_dropout_rate > 0,
            "token_warmup_step": c.token_warmup_step > 0,
            "enable_wildcard": c.enable_wildcard,
        }
        for name in (name for name, active in changing.items() if active):
            yield (
                ("cache_text_encoder_outputs", name),
                say(
                    f"is not possible with {name}, which changes the captions. Turn one of them off",
                    f"不能与 {name} 同用，因为它会改变标注。请关闭其中一个",
                ),
            )
        if trains_text_encoder(c):
            yield (
                ("cache_text_encoder_outputs", "text_encoder_lr", "network_train_unet_only"),
                say(
                    "is not possible while the text encoder is trained. Set text_encoder_lr to 0, or this to False",
                    "不能在训练文本编码器时使用。请把 text_encoder_lr 设为 0，或把此项设为 False",
                ),
            )


def learning_rates(c: Config) -> Iterator[Rule]:
    """Of single layers, and of text encoders."""
    own_paces = {
        name
        for name in (
            "down_lr_weight",
            "mid_lr_weight",
            "up_lr_weight",
            "network_reg_lrs",
            "loraplus_lr_ratio",
            "loraplus_unet_lr_ratio",
            "loraplus_text_encoder_lr_ratio",
        )
        if getattr(c, name) is not None
    }
    kind = c.optimizer_type.lower()
    is_relative = kind == "adafactor" and not any(
        arg.replace(" ", "").lower() == "relative_step=false" for arg in c.optimizer_args or []
    )
    for name in sorted(own_paces) if kind.startswith(("prodigy", "dadapt")) or is_relative else ():
        cure_en, cure_zh = (
            ('set optimizer_args = ["relative_step=False"]', '请填 optimizer_args = ["relative_step=False"]')
            if is_relative
            else ('use another, such as "AdamW"', '请换用其他优化器，如 "AdamW"')
        )
        yield (
            (name, "optimizer_type"),
            say(
                f"is not possible with {c.optimizer_type}, which finds one learning rate for all layers: {cure_en}, or "
                "leave this out",
                f"不能与 {c.optimizer_type} 同用，它为所有层寻找同一个学习率：{cure_zh}，或去掉此项",
            ),
        )
    if kind in FINDS_ONE_RATE and trains_denoiser(c) and trains_text_encoder(c):
        of_text = c.text_encoder_lr if isinstance(c.text_encoder_lr, list) else [c.text_encoder_lr]
        asked = [(c.learning_rate or 1.0) if rate is None else rate for rate in [c.unet_lr, *of_text]]
        if len(rates := dict.fromkeys(rate for rate in asked if rate)) > 1:
            yield ("text_encoder_lr", "unet_lr", "learning_rate", "optimizer_type"), _rates_differ(c, list(rates))
    if isinstance(c.text_encoder_lr, list) and len(c.text_encoder_lr) > 2:
        yield (
            ("text_encoder_lr",),
            say(
                "are more than two learning rates: SDXL has two text encoders, other models one",
                "多于两个学习率：SDXL 有两个文本编码器，其他模型只有一个",
            ),
        )


def network(c: Config) -> Iterator[Rule]:
    """Ranks, files to begin with, and what a kind of adapter cannot."""
    if c.dim_from_weights and not c.network_weights:
        yield (
            ("dim_from_weights", "network_weights"),
            say("needs network_weights: the file to take them from", "需要 network_weights：从该文件读取"),
        )
    from_file = ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas", "network_reg_dims")
    for name in (name for name in from_file if c.dim_from_weights and getattr(c, name) is not None):
        yield (
            (name, "dim_from_weights"),
            say(
                "and dim_from_weights both set the ranks. Remove one of them",
                "与 dim_from_weights 都规定秩。请去掉其中一个",
            ),
        )
    if c.base_weights_multiplier and c.base_weights and len(c.base_weights_multiplier) > len(c.base_weights):
        yield (
            ("base_weights_multiplier", "base_weights"),
            say(
                f"has more values than base_weights has files ({len(c.base_weights)})",
                f"的个数多于 base_weights 的文件数（{len(c.base_weights)}）",
            ),
        )
    if c.ema_decay and c.optimizer_type.lower().endswith("schedulefree"):
        yield (
            ("ema_decay", "optimizer_type"),
            say(
                f"is not possible with {c.optimizer_type}, which saves an average of its own. Remove one of them",
                f"不能与 {c.optimizer_type} 同用，它本来就保存自己的平均值。请去掉其中一个",
            ),
        )
    if c.network_module != "lora" and c.network_dropout:
        yield (
            ("network_dropout", "network_module"),
            say(
                f'is not possible with network_module = "{c.network_module}", which has no inner values to drop. '
                'Set it to None, or use "lora"',
                f'不能与 network_module = "{c.network_module}" 同用，它没有可丢弃的内部值。请设为 None，或改用 "lora"',
            ),
        )


def logs(c: Config) -> Iterator[Rule]:
    """Where losses are sent."""
    if c.log_with in ("tensorboard", "all") and not c.logging_dir:
        yield (
            ("log_with", "logging_dir"),
            say(
                'needs logging_dir: the folder for TensorBoard. Set it, e.g. "logs", or remove log_with',
                '需要 logging_dir（TensorBoard 的目录）。请填写，如 "logs"，或不要填 log_with',
            ),
        )
    if c.log_with in ("wandb", "all") and importlib.util.find_spec("wandb") is None:
        yield (
            ("log_with",),
            say(
                "needs the package wandb: pip install wandb. Or use TensorBoard: set only logging_dir",
                '需要 wandb：请运行 "pip install wandb"；或改用 TensorBoard：只填 logging_dir',
            ),
        )


def length_and_schedule(c: Config) -> Iterator[Rule]:
    """How long, how fast, and by which optimizer."""
    if c.max_train_steps is None and c.max_train_epochs is None:
        yield (
            ("max_train_epochs", "max_train_steps"),
            say(
                "and max_train_steps = None: how long should it train? Set one of them",
                "并且 max_train_steps = None：要训练多久？请填其中一个",
            ),
        )
    if c.lr_warmup_steps and c.lr_scheduler in ("constant", "adafactor", "piecewise_constant"):
        yield (
            ("lr_warmup_steps", "lr_scheduler"),
            say(
                f'has no effect with lr_scheduler = "{c.lr_scheduler}", which has no warmup. Use '
                '"constant_with_warmup", or set it to 0',
                f'不能与 lr_scheduler = "{c.lr_scheduler}" 同用，它没有预热。'
                '请改用 "constant_with_warmup"，或把此项设为 0',
            ),
        )
    if c.max_train_steps is not None and c.lr_warmup_steps >= c.max_train_steps:
        yield (
            ("lr_warmup_steps", "max_train_steps"),
            _warmup_is_too_long(c.max_train_steps),
        )
    if c.lr_scheduler == "adafactor" and c.optimizer_type.lower() != "adafactor":
        yield (
            ("lr_scheduler", "optimizer_type"),
            say(
                f'needs optimizer_type = "Adafactor", not "{c.optimizer_type}". Use "constant" or another schedule',
                f'需要 optimizer_type = "Adafactor"，而不是 "{c.optimizer_type}"。请改用 "constant" 或其他方式',
            ),
        )
    if c.lr_scheduler == "warmup_stable_decay" and not c.lr_decay_steps:
        yield (
            ("lr_scheduler", "lr_decay_steps"),
            say(
                'needs lr_decay_steps, such as 0.2 or "20%"',
                '需要 lr_decay_steps，如 0.2 或 "20%"',
            ),
        )


def noise_and_loss(c: Config) -> Iterator[Rule]:
    """Objective, timesteps and noise."""
    if c.scale_v_pred_loss_like_noise_pred and c.v_pred_like_loss:
        yield (
            ("scale_v_pred_loss_like_noise_pred", "v_pred_like_loss"),
            say(
                "is for v models, v_pred_like_loss for epsilon models. Remove one of them",
                "用于 v 预测模型，而 v_pred_like_loss 用于 epsilon 模型。请去掉其中一个",
            ),
        )
    if c.v_pred_like_loss and c.v_parameterization:
        yield (
            ("v_pred_like_loss", "v_parameterization"),
            say(
                "is for epsilon models, and v_parameterization says that this is a v model. Remove one of them",
                "用于 epsilon 模型，而 v_parameterization 表示这是 v 预测模型。请去掉其中一个",
            ),
        )
    if c.min_timestep >= c.max_timestep:
        yield (
            ("min_timestep", "max_timestep"),
            say(
                f"is not less than max_timestep = {c.max_timestep}: no timestep is left",
                f"不小于 max_timestep = {c.max_timestep}，没有可训练的时间步",
            ),
        )
    if c.adaptive_noise_scale and not c.noise_offset:
        yield (
            ("adaptive_noise_scale", "noise_offset"),
            say("needs noise_offset; set it, e.g. 0.05", "需要 noise_offset，请填写，如 0.05"),
        )


def buckets(c: Config) -> Iterator[Rule]:
    """Sizes of images."""
    if c.enable_bucket:
        sides = [] if c.resolution == "auto" else [int(side) for side in str(c.resolution).split(",")]
        step = c.bucket_reso_steps or 64  # the limits are rounded outwards to multiples of it, as sd-scripts does
        low = c.min_bucket_reso and c.min_bucket_reso // step * step
        high = c.max_bucket_reso and -(-c.max_bucket_reso // step) * step
        if low and sides and low > min(sides):
            yield (
                ("min_bucket_reso", "resolution"),
                say(
                    f"is more than the resolution {c.resolution}. Lower it, or set it to None",
                    f"大于分辨率 {c.resolution}。请调小，或设为 None",
                ),
            )
        if high and sides and high < max(sides):
            yield (
                ("max_bucket_reso", "resolution"),
                say(
                    f"is less than the resolution {c.resolution}. Raise it, or set it to None",
                    f"小于分辨率 {c.resolution}。请调大，或设为 None",
                ),
            )
        if low and high and low > high:
            yield (
                ("min_bucket_reso", "max_bucket_reso"),
                say(
                    f"is more than max_bucket_reso = {c.max_bucket_reso}", f"大于 max_bucket_reso = {c.max_bucket_reso}"
                ),
            )
    if c.bucket_reso_steps and c.bucket_reso_steps % 8:
        yield ("bucket_reso_steps",), say("is not a multiple of 8", "不是 8 的倍数")


SUBJECTS = (
    images,
    trained_parts,
    cached_captions,
    learning_rates,
    network,
    logs,
    length_and_schedule,
    noise_and_loss,
    buckets,
)


# ---- what is said ----


def _warmup_is_too_long(step_count: int) -> str:
    return say(
        f"is not less than max_train_steps = {step_count}: the learning rate would never reach its value. Lower it, or "
        "train longer.",
        f"不小于 max_train_steps = {step_count}：学习率永远达不到设定值。请调小它，或训练更久。",
    )


def _rates_differ(c: Config, rates: list[float]) -> str:
    listed = ", ".join(f"{rate:g}" for rate in rates)
    return say(
        f"gives the parts different learning rates ({listed}), and {c.optimizer_type} finds one for all. Set unet_lr "
        "and text_encoder_lr to None (or one of them to 0, to freeze that part), and learning_rate to 1",
        f"使各部分的学习率不同（{listed}），而 {c.optimizer_type} 为所有部分寻找同一个。"
        "请把 unet_lr 和 text_encoder_lr 设为 None（或把其中一个设为 0 以冻结该部分），learning_rate 设为 1",
    )
