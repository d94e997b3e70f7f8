"""Every option once: its name, type, default, limits, and what it means in English and Chinese.

The flag of `train_network.py`, its help, the check of its value and the line in the parameter block all come from the
field declared here. To add an option: add a field, and use it where it acts. Names are sd-scripts' flag names, because
every guide that our users read uses them. No torch is imported here: mistakes are told within a second.
"""

from dataclasses import dataclass, field
from typing import Any

GROUPS = {  # heading of each group in the parameter block, in its order
    "must": ("Must edit", "必须修改"),
    "often": ("Often changed", "经常修改"),
    "network": ("The LoRA itself", "LoRA 本身"),
    "learning": ("Learning", "学习"),
    "data": ("Pictures and captions", "图片与标签"),
    "regularization": ("Regularization images", "正则化图片"),
    "model": ("Base model", "底模"),
    "performance": ("Speed and memory", "速度与显存"),
    "preview": ("Previews while training", "训练中的预览图"),
    "output": ("Saving and logs", "保存与日志"),
    "presets": ("Presets and queues", "预设与队列"),
}


def option(
    default: Any,
    english: str,
    chinese: str,
    group: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    choices: tuple | None = None,
    path: str | None = None,
    in_block: bool = True,
    flag: bool = True,
) -> Any:
    """Declare one option.

    Args:
        default: also says which values are "not given".
        english, chinese: meaning, usual range and cost, in one line each.
        group: a key of GROUPS.
        minimum, maximum: limits, both allowed values.
        above: a limit that is not itself allowed.
        choices: the only values, where they can be listed.
        path: "file", "folder" (must exist), "model" (file or folder, must exist) or "output" (will be made).
        in_block: whether the parameter block shows it; rare options are flags only.
        flag: whether `train_network.py` takes it; what only the parameter block needs is not a flag.
    """
    metadata = dict(
        english=english, chinese=chinese, group=group, minimum=minimum, maximum=maximum, above=above,
        choices=choices, path=path, in_block=in_block, flag=flag,
    )  # fmt: skip
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """What the user asked for: checked, complete, and never changed on the way."""

    # ---- must ----
    pretrained_model_name_or_path: str = option(
        "library/miniature/model",
        "base model: .safetensors, .ckpt or diffusers folder; SD 1.x, SD 2.x or SDXL. As delivered: the built-in miniature",
        "底模：.safetensors、.ckpt 或 diffusers 文件夹，支持 SD 1.x、SD 2.x、SDXL；默认是自带的微型模型",
        "must", path="model")  # fmt: skip
    train_data_dir: str = option(
        "library/miniature/train",
        "the folder that HOLDS the folders named [repeats]_[concept], such as 10_mytag",
        "训练集目录：里面放 [重复次数]_[概念] 形式的文件夹，如 10_mytag；选它们的上一级，不要选到里面",
        "must", path="folder")  # fmt: skip
    reg_data_dir: str | None = option(
        "library/miniature/reg",
        "regularization images, folders of the same form; None: without (forgets old things sooner)",
        "正则化图片目录，结构与训练集相同；None 表示不用（更容易过拟合、忘掉旧知识）",
        "must", path="folder")  # fmt: skip
    output_dir: str = option(
        "output", "where the result goes; made if missing", "输出目录，没有会自动建立", "must", path="output")  # fmt: skip
    output_name: str = option(
        "mytag", "name of the result, without ending", "输出文件名，不带扩展名", "must")  # fmt: skip

    # ---- often ----
    resolution: int | str = option(
        "auto",
        'training size: 512 (SD 1.x), 768 (SD 2.x v), 1024 (SDXL), or "width,height"; cost grows with the area. "auto": the base model\'s own',
        '训练分辨率：SD 1.x 用 512，SD 2.x v 用 768，SDXL 用 1024，也可写 "宽,高"；显存与时间随面积增长。"auto" 按底模决定',
        "often")  # fmt: skip
    train_batch_size: int = option(
        4, "pictures per step, 1~6 on 12 GB at 512; more needs more memory",
        "每步图片数，12 GB 显存 512 分辨率可用 1~6；越大越占显存", "often", minimum=1)  # fmt: skip
    max_train_epochs: int | None = option(
        10, "how many times the whole set is seen, usually 4~20", "训练轮数，常用 4~20", "often", minimum=1)  # fmt: skip
    max_train_steps: int | None = option(
        None, "number of steps instead of epochs; None: by epochs", "按步数训练（优先于轮数）；None 表示按轮数",
        "often", minimum=1)  # fmt: skip
    learning_rate: float = option(
        1e-4, "step size of learning, usually 5e-5~2e-4 (Lion: a third of it; Prodigy: 1)",
        "学习率，常用 5e-5~2e-4（Lion 用三分之一，Prodigy 用 1）", "often", above=0)  # fmt: skip
    unet_lr: float | None = option(
        None, "U-Net's own; None: learning_rate; 0: do not train it", "U-Net 学习率；None 表示同 learning_rate，0 表示不训练",
        "often", minimum=0)  # fmt: skip
    text_encoder_lr: float | None = option(
        5e-5, "text encoder's own, usually half of U-Net's; None: learning_rate; 0: do not train it (faster)",
        "文本编码器学习率，常用 U-Net 的一半；None 表示同 learning_rate，0 表示不训练（更快）", "often", minimum=0)  # fmt: skip
    network_dim: int = option(
        32, "rank, usually 4~128; larger learns more and overfits sooner, larger file",
        "秩，常用 4~128；越大学得越多，也越容易过拟合，文件越大", "often", minimum=1)  # fmt: skip
    network_alpha: float | None = option(
        16.0, "the update is scaled by alpha / dim, usually half of dim to dim; None or 0: dim",
        "更新量乘以 alpha / dim，常用 dim 的一半到等于 dim；None 或 0 表示等于 dim", "often", minimum=0)  # fmt: skip
    save_every_n_epochs: int | None = option(
        2, "also keep a file every n epochs, to go back to when the last is overfitted; None: only the last",
        "每隔几轮另存一个文件，过拟合时可以退回；None 表示只存最后一个", "often", minimum=1)  # fmt: skip
    clip_skip: int | None = option(
        None, "1 or None: real-life models; 2: anime models (NovelAI line); SDXL ignores it",
        "1 或 None：写实模型；2：二次元模型（NovelAI 系）；SDXL 不用此项", "often", minimum=1, maximum=12)  # fmt: skip
    seed: int | None = option(
        23, "same seed, same result; None: a new one, which is printed", "随机种子，相同则结果相同；None 表示随机并打印出来",
        "often", minimum=0, maximum=2**32 - 1)  # fmt: skip

    # ---- the LoRA itself ----
    network_module: str = option("lora", "kind of adapter", "网络种类", "network", choices=("lora",))
    network_weights: str | None = option(
        None, "start from this LoRA file; only its weights, not its position", "从已有的 LoRA 文件继续学习（只读权重，不含进度）",
        "network", path="file")  # fmt: skip
    conv_dim: int | None = option(
        None, "also adapt 3x3 convolutions, with this rank, usually 4~16; None: not", "同时训练 3x3 卷积层的秩，常用 4~16；None 表示不训练",
        "network", minimum=1)  # fmt: skip
    conv_alpha: float | None = option(1.0, "alpha of those", "卷积层的 alpha", "network", minimum=0)
    network_dropout: float | None = option(
        None, "share of the LoRA's inner values dropped while training, 0.1~0.5; against overfitting",
        "训练时随机丢弃 LoRA 内部值的比例，0.1~0.5，减轻过拟合", "network", minimum=0, maximum=0.99)  # fmt: skip
    network_train_unet_only: bool = option(False, "train the U-Net only", "只训练 U-Net", "network")
    network_train_text_encoder_only: bool = option(False, "train the text encoder only", "只训练文本编码器", "network")
    scale_weight_norms: float | None = option(
        None, "upper limit for the norm of each layer's update, e.g. 1; None: no limit", "限制每层更新量的范数，如 1；None 表示不限制",
        "network", above=0)  # fmt: skip

    # ---- learning ----
    optimizer_type: str = option(
        "AdamW", "AdamW, Lion, Prodigy, Adafactor, AdamW8bit, SGD, or an import path",
        "优化器：AdamW、Lion、Prodigy、Adafactor、AdamW8bit、SGD，或 Python 导入路径", "learning")  # fmt: skip
    optimizer_args: list[str] | None = option(
        None, 'extra settings, such as ["weight_decay=0.1", "betas=0.9,0.99"]', '优化器附加参数，如 ["weight_decay=0.1", "betas=0.9,0.99"]',
        "learning")  # fmt: skip
    use_8bit_adam: bool = option(
        False, "the same as optimizer_type AdamW8bit; NVIDIA only", "等于 optimizer_type 填 AdamW8bit，只能用于 NVIDIA", "learning")  # fmt: skip
    lr_scheduler: str = option(
        "cosine", "how the learning rate moves", "学习率变化方式", "learning",
        choices=("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt", "adafactor"))  # fmt: skip
    lr_scheduler_num_cycles: int = option(
        1, "restarts of cosine_with_restarts", "cosine_with_restarts 的重启次数", "learning", minimum=1)  # fmt: skip
    lr_scheduler_power: float = option(1.0, "exponent of polynomial", "polynomial 的指数", "learning", above=0)
    lr_warmup_steps: int | float | str = option(
        0, 'steps until the full learning rate: 100, or a share: 0.05 or "5%"', '预热步数：如 100，或占总步数的比例：0.05 或 "5%"',
        "learning")  # fmt: skip
    max_grad_norm: float = option(1.0, "longer gradients are cut to this; 0: never", "梯度裁剪上限；0 表示不裁剪", "learning", minimum=0)
    min_snr_gamma: float | None = option(
        None, "weigh easy timesteps less, 5 usually; steadier learning", "降低容易的时间步的权重，常用 5，学习更稳", "learning", above=0)  # fmt: skip
    noise_offset: float | None = option(
        None, "0.03~0.1 lets it learn very dark and very bright pictures", "0.03~0.1，便于学习很暗或很亮的图", "learning", minimum=0)  # fmt: skip

    # ---- pictures and captions ----
    caption_extension: str = option(".txt", "ending of the caption files", "标签文件的扩展名", "data")
    shuffle_caption: bool = option(
        False, "shuffle the comma-separated tags at each use; needs the text encoder at every step",
        "每次使用时打乱逗号分隔的标签", "data")  # fmt: skip
    keep_tokens: int = option(0, "so many first tags stay in front when shuffling", "打乱时前几个标签保持不动", "data", minimum=0)
    caption_prefix: str | None = option(None, "put before every caption", "加在每条标签最前面的文字", "data", in_block=False)
    caption_suffix: str | None = option(None, "put behind every caption", "加在每条标签最后面的文字", "data", in_block=False)
    caption_dropout_rate: float = option(
        0.0, "share of uses with an empty caption, 0~0.1", "以空标签训练的比例，0~0.1", "data", minimum=0, maximum=1)  # fmt: skip
    caption_dropout_every_n_epochs: int | None = option(
        None, "every n-th epoch with empty captions", "每隔几轮整轮使用空标签", "data", minimum=1)  # fmt: skip
    caption_tag_dropout_rate: float = option(
        0.0, "share of tags left out at each use, 0~0.2", "每次随机去掉的标签比例，0~0.2", "data", minimum=0, maximum=1)  # fmt: skip
    max_token_length: int = option(
        150, "caption tokens that are read: 75, 150 or 225; the rest is cut", "标签最多读取的 token 数：75、150 或 225，超出部分被截掉",
        "data", choices=(75, 150, 225))  # fmt: skip
    enable_bucket: bool = option(
        True, "train every picture near its own shape; off: all are cropped to one size", "按图片长宽比分桶；关闭则全部裁成同一尺寸", "data")  # fmt: skip
    min_bucket_reso: int | None = option(
        None, "shortest side of a bucket; None: half of the resolution", "桶的最短边；None 表示分辨率的一半", "data", minimum=16)  # fmt: skip
    max_bucket_reso: int | None = option(
        None, "longest side of a bucket; None: twice the resolution", "桶的最长边；None 表示分辨率的两倍", "data", minimum=16)  # fmt: skip
    bucket_reso_steps: int | None = option(
        None, "sides are multiples of this; None: 64 (the miniature: 16)", "桶边长的步进；None 表示 64（微型模型 16）", "data", minimum=8)  # fmt: skip
    bucket_no_upscale: bool = option(False, "never enlarge small pictures", "小图不放大", "data")
    flip_aug: bool = option(
        False, "also learn each picture mirrored; not for asymmetric characters or text", "同时学习左右翻转的图；不对称的角色、文字不要用", "data")  # fmt: skip
    color_aug: bool = option(False, "vary the colours a little; excludes cache_latents", "轻微改变颜色；不能与 cache_latents 同用", "data")
    random_crop: bool = option(False, "crop at random instead of the centre; excludes cache_latents", "随机裁剪而非居中；不能与 cache_latents 同用", "data")

    # ---- regularization ----
    prior_loss_weight: float = option(
        1.0, "weight of regularization images, 0~1", "正则化图片的权重，0~1", "regularization", minimum=0)  # fmt: skip
    reg_captions: bool = option(
        True, "read caption files of regularization images; False: their folder's text only", "读取正则化图片的标签文件；False 表示只用文件夹名", "regularization")  # fmt: skip
    reg_rotate: bool = option(
        True, "a surplus of regularization images takes turns over the epochs; False: the first ones only, as sd-scripts",
        "正则化图片有多余时各轮轮流使用；False 表示只用前面的（与 sd-scripts 相同）", "regularization")  # fmt: skip

    # ---- base model ----
    vae: str | None = option(None, "another VAE: file or folder", "外置 VAE：文件或文件夹", "model", path="model")
    v2: bool = option(False, "the base model is SD 2.x; recognised by itself, here to insist", "底模是 SD 2.x（会自动识别，一般不用填）", "model")
    v_parameterization: bool = option(
        False, "the base model predicts v; recognised by itself, here to insist", "底模为 v 预测（会自动识别，一般不用填）", "model")  # fmt: skip

    # ---- performance ----
    mixed_precision: str = option(
        "auto", 'arithmetic: "no" (fp32), "fp16", "bf16"; "auto": by the device', '计算精度："no"（fp32）、"fp16"、"bf16"；"auto" 按设备选择',
        "performance", choices=("auto", "no", "fp16", "bf16"))  # fmt: skip
    gradient_checkpointing: bool = option(False, "less memory, but slower: computes parts twice", "省显存但更慢：部分内容算两遍", "performance")
    gradient_accumulation_steps: int = option(
        1, "batches per step: a larger batch without more memory, but slower", "每步累积几个批次：不增显存而变相增大批次，但更慢", "performance", minimum=1)  # fmt: skip
    cache_latents: bool = option(
        True, "encode each picture once; faster, less memory", "每张图只编码一次，更快更省显存", "performance")  # fmt: skip
    cache_latents_to_disk: bool = option(
        True, "keep the encoded pictures for the next run", "把编码结果存盘，下次直接用", "performance")  # fmt: skip
    cache_dir: str | None = option(
        None, "where; None: .cache in the training folder", "存盘位置；None 表示训练集目录下的 .cache", "performance", path="output")  # fmt: skip
    cache_text_encoder_outputs: bool | str = option(
        "auto", "encode each caption once; only where the text encoder is not trained and captions stay the same",
        "每条标签只编码一次；只在不训练文本编码器且标签不变时可用", "performance", choices=("auto", True, False))  # fmt: skip
    max_data_loader_n_workers: int = option(
        2, "threads that read pictures ahead, 0~8", "预读图片的线程数，0~8", "performance", minimum=0)  # fmt: skip
    xformers: bool = option(False, "torch's own attention is used in any case", "一律使用 torch 自带的注意力实现，填了也不需要 xformers", "performance")
    lowram: bool = option(
        False, "load the base model straight to the device", "底模直接载入显卡，省内存", "performance", in_block=False)  # fmt: skip
    device: str = option(
        "auto", '"auto", "cpu", "cuda", "cuda:1", "mps"', '计算设备："auto"、"cpu"、"cuda"、"cuda:1"、"mps"', "performance")  # fmt: skip

    # ---- previews ----
    sample_prompts: str | None = option(
        None, "file with a prompt per line (.txt), or .toml, .json; None: prompts from the captions of the set",
        "预览提示词文件：.txt 每行一条，或 .toml、.json；None 表示用训练集的标签", "preview", path="file")  # fmt: skip
    sample_every_n_epochs: int | None = option(
        None, "draw previews every n epochs; None: only at the end; 0: never", "每几轮画一次预览；None 表示只在最后，0 表示不画",
        "preview", minimum=0)  # fmt: skip
    sample_every_n_steps: int | None = option(None, "draw previews every n steps", "每几步画一次预览", "preview", minimum=1)
    sample_at_first: bool = option(False, "also before training, to compare", "训练前也画一次，便于比较", "preview")
    sample_sampler: str = option(
        "euler_a", "sampler of the previews", "预览采样器", "preview",
        choices=("ddim", "pndm", "lms", "euler", "euler_a", "heun", "dpm_2", "dpm_2_a", "dpmsolver", "dpmsolver++", "dpmsingle",
                 "k_lms", "k_euler", "k_euler_a", "k_dpm_2", "k_dpm_2_a"))  # fmt: skip

    # ---- saving and logs ----
    save_every_n_steps: int | None = option(None, "also keep a file every n steps", "每几步另存一个文件", "output", minimum=1)
    save_last_n_epochs: int | None = option(
        None, "keep only the last n of the files saved between", "中途文件只保留最近几个", "output", minimum=1)  # fmt: skip
    save_precision: str = option(
        "fp16", 'number format of the file: "fp16" (half the size), "bf16", "float"', '文件精度："fp16"（小一半）、"bf16"、"float"',
        "output", choices=("fp16", "bf16", "float"))  # fmt: skip
    save_model_as: str = option("safetensors", "file format", "文件格式", "output", choices=("safetensors", "ckpt", "pt"))
    save_state: bool = option(
        False, "also save what is needed to continue exactly (a few times the LoRA's size)", "同时保存训练状态以便继续训练（几倍于 LoRA 的大小）", "output")  # fmt: skip
    resume: str | None = option(
        None, "continue from such a state: a folder named ...-state", "从训练状态继续：填 ...-state 文件夹", "output", path="folder")  # fmt: skip
    no_metadata: bool = option(False, "write no training details into the file", "文件里不写训练信息", "output")
    training_comment: str | None = option(None, "a note kept in the file", "写入文件的备注", "output")
    logging_dir: str | None = option(
        None, "also write TensorBoard curves here", "TensorBoard 日志目录", "output", path="output")  # fmt: skip
    tag_occurrence_txt_file: bool = option(True, "write the count of all tags beside the result", "在输出目录写出标签统计", "output")
    sort_tag_occurrence_alphabetically: bool = option(False, "sorted by name, not by count", "标签统计按名称排序，而非按次数", "output")
    language: str = option(
        "auto", 'of the messages: "auto" (by the system), "en", "zh"', '提示语言："auto"（按系统）、"en"、"zh"', "output",
        choices=("auto", "en", "zh"))  # fmt: skip

    # ---- presets: only the parameter block needs them ----
    save_json_folder: str | None = option(
        None, "keep this configuration as a .json preset here", "把本次参数存为 .json 预设的目录", "presets", path="output", flag=False)  # fmt: skip
    load_json_path: str | None = option(
        None, "a preset: its values replace those above", "读取预设，其值取代上面的参数", "presets", path="file", flag=False)  # fmt: skip
    json_load_skip_list: list[str] | None = option(
        None, 'names not taken from the preset, such as ["train_data_dir"]', '不从预设读取的参数名，如 ["train_data_dir"]', "presets", flag=False)  # fmt: skip
    multi_run_folder: str | None = option(
        None, "train every preset of this folder, one after another; finished ones move to complete/",
        "依次训练此目录中的每个预设，完成的移入 complete/", "presets", path="folder", flag=False)  # fmt: skip
