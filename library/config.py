"""Every option once: name, type, default, limits, meaning in English and Chinese; and the check of values.

The flag of `train_network.py`, its help, the check of its value and the line in the parameter block all come from the
field declared here. To add an option: add a field, and use it where it acts. To add a rule between options: add an `if`
to `contradictions` (the run cannot go on) or to `doubts` (it can, but the user should know). Names are sd-scripts' flag
names, because every guide that our users read uses them. No torch is imported here: mistakes are told within a second.
"""

import difflib
import importlib.metadata
import importlib.util
import math
import os
import re
from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from library.messages import UserError, say, set_language

GROUPS = {  # heading of each group in the parameter block, in its order
    "must": ("Must edit", "必须修改"),
    "often": ("Often changed", "经常修改"),
    "network": ("Seldom: the LoRA itself", "较少修改：LoRA 本身"),
    "learning": ("Seldom: learning", "较少修改：学习"),
    "data": ("Seldom: pictures and captions", "较少修改：图片与标签"),
    "regularization": ("Seldom: regularization images", "较少修改：正则化图片"),
    "model": ("Seldom: base model", "较少修改：底模"),
    "performance": ("Speed and memory", "速度与显存"),
    "preview": ("Output: previews while training", "输出：训练中的预览图"),
    "output": ("Output: saving and logs", "输出：保存与日志"),
    "presets": ("Output: presets and queues", "输出：预设与队列"),
}


def option(
    group: str,
    default: Any,
    *,
    english: str,
    chinese: str,
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
        group: a key of GROUPS.
        default: also says which values are "not given".
        english, chinese: meaning, usual range and cost, in one line each; both say the same.
        minimum, maximum: limits, both allowed values.
        above: a limit that is not itself allowed.
        choices: the only values, where they can be listed.
        path: "file", "folder" (must exist), "model" (file or folder, must exist) or "output" (will be made).
        in_block: whether the parameter block shows it; rare options are flags only.
        flag: whether `train_network.py` takes it; what only the parameter block needs is not a flag.
    """
    metadata = {name: value for name, value in locals().items() if name != "default"}
    return field(default=default, metadata=metadata)


# One option is three lines: what it is, what it means, 它是什么意思. The formatter would make seven of them.
# fmt: off
@dataclass(frozen=True)
class Config:
    """What the user asked for: checked, complete, and never changed on the way."""

    # ---- must ----
    pretrained_model_name_or_path: str = option("must", "library/miniature/model", path="model",
        english="base model: .safetensors, .ckpt or diffusers folder of SD 1.x, SD 2.x or SDXL; as delivered: the built-in miniature",
        chinese="底模：SD 1.x、SD 2.x 或 SDXL 的 .safetensors、.ckpt 文件或 diffusers 文件夹；默认是自带的微型模型")
    train_data_dir: str = option("must", "library/miniature/train", path="folder",
        english="the folder that HOLDS the folders named [repeats]_[concept], such as 10_mytag; not such a folder itself",
        chinese="训练集目录：里面放 [重复次数]_[概念] 形式的文件夹，如 10_mytag；填它们的上一级，不要填到里面")
    reg_data_dir: str | None = option("must", "library/miniature/reg", path="folder",
        english="regularization images, in folders of the same form; about doubles the steps; None: without (overfits sooner)",
        chinese="正则化图片目录，结构与训练集相同；步数约加倍；None 表示不用（更容易过拟合）")
    output_dir: str = option("must", "output", path="output",
        english="where the result goes; made if missing",
        chinese="输出目录，没有会自动建立")
    output_name: str = option("must", "mytag",
        english="name of the result, without ending",
        chinese="输出文件名，不带扩展名")

    # ---- often ----
    resolution: int | str = option("often", "auto",
        english='training size: 512 (SD 1.x), 768 (SD 2.x v), 1024 (SDXL), or "width,height"; time and memory grow with the area; "auto": the base model\'s own',
        chinese='训练分辨率：SD 1.x 用 512，SD 2.x v 用 768，SDXL 用 1024，也可写 "宽,高"；时间与显存随面积增长；"auto" 按底模决定')
    train_batch_size: int = option("often", 4, minimum=1,
        english="pictures per step, 1~6 on 12 GB at 512; more needs more memory",
        chinese="每步图片数，12 GB 显存 512 分辨率可用 1~6；越大越占显存")
    max_train_epochs: int | None = option("often", 10, minimum=1,
        english="how many times the whole set is seen, usually 4~20; time grows with it, too many overfit",
        chinese="训练轮数，常用 4~20；时间随之增长，过多会过拟合")
    max_train_steps: int | None = option("often", None, minimum=1,
        english="number of steps, usually 1000~3000; given, it goes before max_train_epochs; None: by epochs",
        chinese="训练步数，常用 1000~3000；填写后优先于 max_train_epochs；None 表示按轮数")
    learning_rate: float = option("often", 1e-4, above=0,
        english="step size of learning, usually 5e-5~2e-4 (Lion: a third of it; Prodigy: 1)",
        chinese="学习率，常用 5e-5~2e-4（Lion 用三分之一，Prodigy 用 1）")
    unet_lr: float | None = option("often", None, minimum=0,
        english="U-Net's own learning rate, usually None; None: as learning_rate; 0: do not train it",
        chinese="U-Net 学习率，常用 None；None 表示同 learning_rate，0 表示不训练")
    text_encoder_lr: float | None = option("often", 5e-5, minimum=0,
        english="text encoder's own learning rate, usually half of U-Net's; None: as learning_rate; 0: do not train it (faster)",
        chinese="文本编码器学习率，常用 U-Net 的一半；None 表示同 learning_rate，0 表示不训练（更快）")
    network_dim: int = option("often", 32, minimum=1,
        english="rank, usually 4~128; larger learns more, overfits sooner, and makes a larger file",
        chinese="秩，常用 4~128；越大学得越多，也越容易过拟合，文件越大")
    network_alpha: float | None = option("often", 16.0, minimum=0,
        english="the update is scaled by alpha / dim, usually half of dim to dim; None or 0: as dim",
        chinese="更新量乘以 alpha / dim，常用 dim 的一半到等于 dim；None 或 0 表示等于 dim")
    save_every_n_epochs: int | None = option("often", 2, minimum=1,
        english="also keep a file every n epochs, usually 1~4, to go back to when the last one is overfitted; None: only the last",
        chinese="每几轮另存一个文件，常用 1~4，过拟合时可以退回；None 表示只存最后一个")
    clip_skip: int | None = option("often", None, minimum=1, maximum=12,
        english="1 or None: real-life models; 2: anime models (NovelAI line); SDXL ignores it",
        chinese="1 或 None 用于写实模型，2 用于二次元模型（NovelAI 系）；SDXL 不用此项")
    seed: int | None = option("often", 23, minimum=0, maximum=2**32 - 1,
        english="same seed, same result; None: a new one, which is printed",
        chinese="随机种子，相同则结果相同；None 表示随机选取并打印出来")

    # ---- the LoRA itself ----
    network_module: str = option("network", "lora", choices=("lora",),
        english="kind of adapter: lora",
        chinese="网络种类：lora")
    network_weights: str | None = option("network", None, path="file",
        english="start from this LoRA file; takes its weights, not its position in the training",
        chinese="从已有的 LoRA 文件开始训练，只读权重，不含训练进度")
    conv_dim: int | None = option("network", None, minimum=1,
        english="also adapt the 3x3 convolutions, with this rank, usually 4~16; larger file, somewhat slower; None: not",
        chinese="同时训练 3x3 卷积层，填它们的秩，常用 4~16；文件更大，略慢；None 表示不训练")
    conv_alpha: float | None = option("network", 1.0, minimum=0,
        english="alpha of those convolutions, usually 1 to conv_dim; None or 0: as conv_dim",
        chinese="这些卷积层的 alpha，常用 1 到 conv_dim；None 或 0 表示等于 conv_dim")
    network_dropout: float | None = option("network", None, minimum=0, maximum=0.99,
        english="share of the LoRA's inner values dropped while training, 0.1~0.5; less overfitting, slower learning; None: none",
        chinese="训练时随机丢弃 LoRA 内部值的比例，0.1~0.5；减轻过拟合，但学得更慢；None 表示不丢弃")
    network_train_unet_only: bool = option("network", False,
        english="train the U-Net only; faster, less memory",
        chinese="只训练 U-Net；更快，更省显存")
    network_train_text_encoder_only: bool = option("network", False,
        english="train the text encoder only; learns far less",
        chinese="只训练文本编码器；能学到的少得多")
    scale_weight_norms: float | None = option("network", None, above=0,
        english="upper limit for the norm of each layer's update, usually 1; less overfitting; None: no limit",
        chinese="每层更新量的范数上限，常用 1；减轻过拟合；None 表示不限制")

    # ---- learning ----
    optimizer_type: str = option("learning", "AdamW",
        english="optimizer: AdamW, Lion, Prodigy, Adafactor, AdamW8bit, SGD, or an import path",
        chinese="优化器：AdamW、Lion、Prodigy、Adafactor、AdamW8bit、SGD，或 Python 导入路径")
    optimizer_args: list[str] | None = option("learning", None,
        english='its extra settings, such as ["weight_decay=0.1", "betas=0.9,0.99"]; None: its defaults',
        chinese='优化器附加参数，如 ["weight_decay=0.1", "betas=0.9,0.99"]；None 表示用默认值')
    use_8bit_adam: bool = option("learning", False,
        english="the same as optimizer_type AdamW8bit; less memory; NVIDIA only, needs bitsandbytes",
        chinese="等于 optimizer_type 填 AdamW8bit；更省显存；只能用于 NVIDIA，需要 bitsandbytes")
    lr_scheduler: str = option("learning", "cosine",
        choices=("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt", "adafactor"),
        english="how the learning rate moves: constant, constant_with_warmup, linear, cosine, cosine_with_restarts, polynomial, inverse_sqrt, adafactor",
        chinese="学习率变化方式：constant、constant_with_warmup、linear、cosine、cosine_with_restarts、polynomial、inverse_sqrt、adafactor")
    lr_scheduler_num_cycles: int = option("learning", 1, minimum=1,
        english="number of waves of cosine_with_restarts, usually 1~4",
        chinese="cosine_with_restarts 的周期数，常用 1~4")
    lr_scheduler_power: float = option("learning", 1.0, above=0,
        english="exponent of polynomial, usually 1~2",
        chinese="polynomial 的指数，常用 1~2")
    lr_warmup_steps: int | float | str = option("learning", 0, minimum=0,
        english='steps until the full learning rate: a number such as 100, or a share such as 0.05 or "5%"',
        chinese='学习率升到最大所用的步数：如 100；也可写占总步数的比例，如 0.05 或 "5%"')
    max_grad_norm: float = option("learning", 1.0, minimum=0,
        english="longer gradients are cut to this length, usually 1; 0: never",
        chinese="梯度裁剪上限，常用 1；0 表示不裁剪")
    min_snr_gamma: float | None = option("learning", None, above=0,
        english="weigh the easy timesteps less, usually 5; steadier learning, no cost; None: off",
        chinese="降低容易的时间步的权重，常用 5；学习更稳，没有代价；None 表示不用")
    noise_offset: float | None = option("learning", None, minimum=0,
        english="lets it learn very dark and very bright pictures, usually 0.03~0.1; None: off",
        chinese="便于学习很暗或很亮的图，常用 0.03~0.1；None 表示不用")

    # ---- pictures and captions ----
    caption_extension: str = option("data", ".txt",
        english="ending of the caption files, .txt or .caption",
        chinese="标签文件的扩展名，.txt 或 .caption")
    shuffle_caption: bool = option("data", False,
        english="shuffle the comma-separated tags at each use; slower: the text encoder runs at every step",
        chinese="每次使用时打乱逗号分隔的标签；更慢：每步都要运行文本编码器")
    keep_tokens: int = option("data", 0, minimum=0,
        english="that many first tags keep their place when shuffling and are never left out, usually 1 (the trigger word)",
        chinese="打乱时前几个标签保持不动，也不会被去掉，常用 1（触发词）")
    caption_prefix: str | None = option("data", None, in_block=False,
        english="put before every caption",
        chinese="加在每条标签最前面的文字")
    caption_suffix: str | None = option("data", None, in_block=False,
        english="put behind every caption",
        chinese="加在每条标签最后面的文字")
    caption_dropout_rate: float = option("data", 0.0, minimum=0, maximum=1,
        english="share of uses with an empty caption, 0~0.1",
        chinese="以空标签训练的比例，0~0.1")
    caption_dropout_every_n_epochs: int | None = option("data", None, minimum=1,
        english="every n-th epoch with empty captions; None: none",
        chinese="每隔几轮有一轮全部使用空标签；None 表示没有")
    caption_tag_dropout_rate: float = option("data", 0.0, minimum=0, maximum=1,
        english="share of tags left out at each use, 0~0.2",
        chinese="每次随机去掉的标签比例，0~0.2")
    max_token_length: int = option("data", 150, choices=(75, 150, 225),
        english="caption tokens that are read: 75, 150 or 225; the rest is cut; more is somewhat slower",
        chinese="每条标签最多读取的 token 数：75、150 或 225，超出部分被截掉；越多略慢")
    enable_bucket: bool = option("data", True,
        english="train every picture near its own shape; False: all are cropped to one size",
        chinese="按图片长宽比分桶训练；False 表示全部裁成同一尺寸")
    min_bucket_reso: int | None = option("data", None, minimum=16,
        english="shortest side of a bucket, usually 256~320 at 512; None: half of the resolution",
        chinese="桶的最短边，512 时常用 256~320；None 表示分辨率的一半")
    max_bucket_reso: int | None = option("data", None, minimum=16,
        english="longest side of a bucket, usually 960~1024 at 512; None: twice the resolution",
        chinese="桶的最长边，512 时常用 960~1024；None 表示分辨率的两倍")
    bucket_reso_steps: int | None = option("data", None, minimum=8,
        english="sides of buckets are multiples of this, a multiple of 8; None: 64 (the miniature: 16)",
        chinese="桶边长的步进，须为 8 的倍数；None 表示 64（微型模型为 16）")
    bucket_no_upscale: bool = option("data", False,
        english="never enlarge small pictures",
        chinese="不放大小图")
    flip_aug: bool = option("data", False,
        english="also learn each picture mirrored; not for asymmetric characters or text",
        chinese="同时学习左右翻转的图；不对称的角色、文字不要用")
    color_aug: bool = option("data", False,
        english="vary the colours a little; excludes cache_latents, so it is slower",
        chinese="轻微改变颜色；不能与 cache_latents 同用，因此更慢")
    random_crop: bool = option("data", False,
        english="crop at random instead of the centre; excludes cache_latents, so it is slower",
        chinese="随机裁剪而不是居中裁剪；不能与 cache_latents 同用，因此更慢")

    # ---- regularization ----
    prior_loss_weight: float = option("regularization", 1.0, minimum=0,
        english="weight of the regularization images, usually 0.3~1",
        chinese="正则化图片的权重，常用 0.3~1")
    reg_captions: bool = option("regularization", True,
        english="read the caption files of regularization images; False: the text of their folder's name only",
        chinese="读取正则化图片的标签文件；False 表示只用文件夹名中的文字")
    reg_rotate: bool = option("regularization", True,
        english="where there are more regularization images than needed, they take turns over the epochs; False: only the first ones, as sd-scripts",
        chinese="正则化图片有多余时各轮轮流使用；False 表示只用最前面的（与 sd-scripts 相同）")

    # ---- base model ----
    vae: str | None = option("model", None, path="model",
        english="another VAE: file or folder; None: the base model's own",
        chinese="外置 VAE：文件或文件夹；None 表示用底模自带的")
    v2: bool = option("model", False,
        english="insist that the base model is SD 2.x; it is recognised by itself",
        chinese="指定底模是 SD 2.x；会自动识别，一般不用填")
    v_parameterization: bool = option("model", False,
        english="insist that the base model predicts v; it is recognised by itself",
        chinese="指定底模为 v 预测；会自动识别，一般不用填")

    # ---- performance ----
    mixed_precision: str = option("performance", "auto", choices=("auto", "no", "fp16", "bf16"),
        english='arithmetic: "no" (fp32, slow, most memory), "fp16", "bf16"; "auto": by the device',
        chinese='计算精度："no"（fp32，慢、最占显存）、"fp16"、"bf16"；"auto" 按设备选择')
    gradient_checkpointing: bool = option("performance", False,
        english="less memory, but slower: computes parts twice",
        chinese="省显存但更慢：部分内容算两遍")
    gradient_accumulation_steps: int = option("performance", 1, minimum=1,
        english="batches per step, usually 1~4: a larger batch without more memory; a step takes that many times as long",
        chinese="每步累积几个批次，常用 1~4：不增加显存而变相增大批次；每步时间成倍增长")
    cache_latents: bool = option("performance", True,
        english="encode each picture once; faster, less memory",
        chinese="每张图只编码一次；更快，更省显存")
    cache_latents_to_disk: bool = option("performance", True,
        english="keep the encoded pictures for the next run; some disk space",
        chinese="把编码结果存盘，下次直接用；占少量硬盘空间")
    cache_dir: str | None = option("performance", None, path="output",
        english="where they are kept; None: .cache in the training folder",
        chinese="存盘位置；None 表示训练集目录下的 .cache")
    cache_text_encoder_outputs: bool | str = option("performance", "auto", choices=("auto", True, False),
        english="encode each caption once; only where the text encoder is not trained and captions stay the same; faster",
        chinese="每条标签只编码一次；只在不训练文本编码器且标签不变时可用；更快")
    max_data_loader_n_workers: int = option("performance", 2, minimum=0,
        english="threads that read pictures ahead, 0~8; each needs some memory",
        chinese="预读图片的线程数，0~8；每个占用一些内存")
    xformers: bool = option("performance", False,
        english="not needed: torch's own attention is used in any case",
        chinese="不需要：一律使用 torch 自带的注意力实现")
    lowram: bool = option("performance", False, in_block=False,
        english="load the base model straight to the device; saves main memory",
        chinese="底模直接载入显卡，省内存")
    device: str = option("performance", "auto",
        english='"auto", "cpu", "cuda", "cuda:1" (the second GPU), "mps"; AMD (ROCm) is "cuda" too',
        chinese='计算设备："auto"、"cpu"、"cuda"、"cuda:1"（第二块显卡）、"mps"；AMD（ROCm）也写 "cuda"')

    # ---- previews ----
    sample_prompts: str | None = option("preview", None, path="file",
        english="file with a prompt per line (.txt), or .toml, .json; None: prompts from the captions of the set",
        chinese="预览提示词文件：.txt 每行一条，或 .toml、.json；None 表示用训练集的标签")
    sample_every_n_epochs: int | None = option("preview", None, minimum=0,
        english="draw previews every n epochs; each takes as long as some steps; None: only at the end; 0: never",
        chinese="每几轮画一次预览；每次要花几步的时间；None 表示只在最后画，0 表示不画")
    sample_every_n_steps: int | None = option("preview", None, minimum=1,
        english="draw previews every n steps; None: not by steps",
        chinese="每几步画一次预览；None 表示不按步数")
    sample_at_first: bool = option("preview", False,
        english="also draw them before training, to compare",
        chinese="训练前也画一次，便于比较")
    sample_sampler: str = option("preview", "euler_a",
        choices=("ddim", "pndm", "lms", "euler", "euler_a", "heun", "dpm_2", "dpm_2_a", "dpmsolver", "dpmsolver++", "dpmsingle",
                 "k_lms", "k_euler", "k_euler_a", "k_dpm_2", "k_dpm_2_a"),
        english="sampler of the previews: euler_a, euler, ddim, dpmsolver++, heun, ...",
        chinese="预览采样器：euler_a、euler、ddim、dpmsolver++、heun 等")

    # ---- saving and logs ----
    save_every_n_steps: int | None = option("output", None, minimum=1,
        english="also keep a file every n steps; None: not by steps",
        chinese="每几步另存一个文件；None 表示不按步数")
    save_last_n_epochs: int | None = option("output", None, minimum=1,
        english="of the files kept by save_every_n_epochs, only the last n stay; None: all",
        chinese="save_every_n_epochs 存下的文件只保留最近几个；None 表示全部保留")
    save_precision: str = option("output", "fp16", choices=("fp16", "bf16", "float"),
        english='number format of the file: "fp16" (half the size), "bf16", "float"',
        chinese='文件精度："fp16"（小一半）、"bf16"、"float"')
    save_model_as: str = option("output", "safetensors", choices=("safetensors", "ckpt", "pt"),
        english="file format: safetensors, ckpt or pt",
        chinese="文件格式：safetensors、ckpt 或 pt")
    save_state: bool = option("output", False,
        english="also save what is needed to continue exactly; a few times the LoRA's size each",
        chinese="同时保存训练状态，以便原样继续训练；每份为 LoRA 的几倍大小")
    resume: str | None = option("output", None, path="folder",
        english="continue from such a state: a folder named ...-state",
        chinese="从训练状态继续：填 ...-state 文件夹")
    no_metadata: bool = option("output", False,
        english="write no training details into the file",
        chinese="文件里不写训练信息")
    training_comment: str | None = option("output", None,
        english="a note kept in the file",
        chinese="写入文件的备注")
    logging_dir: str | None = option("output", None, path="output",
        english="also write TensorBoard curves here; None: not",
        chinese="TensorBoard 曲线的目录；None 表示不写")
    tag_occurrence_txt_file: bool = option("output", True,
        english="write the count of all tags beside the result",
        chinese="在输出目录写出标签统计")
    sort_tag_occurrence_alphabetically: bool = option("output", False,
        english="that list sorted by name, not by count",
        chinese="标签统计按名称排序，而不是按次数")
    language: str = option("output", "auto", choices=("auto", "en", "zh"),
        english='language of the messages: "auto" (by the system), "en", "zh"',
        chinese='提示语言："auto"（按系统）、"en"、"zh"')

    # ---- presets: only the parameter block needs them ----
    save_json_folder: str | None = option("presets", None, path="output", flag=False,
        english="keep these parameters as a .json preset in this folder; None: not",
        chinese="把本次参数存为 .json 预设的目录；None 表示不存")
    load_json_path: str | None = option("presets", None, path="file", flag=False,
        english="a preset: its values replace those above",
        chinese="读取预设，其值取代上面的参数")
    json_load_skip_list: list[str] | None = option("presets", None, flag=False,
        english='names not taken from presets, such as ["train_data_dir"]',
        chinese='不从预设读取的参数名，如 ["train_data_dir"]')
    multi_run_folder: str | None = option("presets", None, path="folder", flag=False,
        english="train every preset of this folder, one after another; finished ones move to complete/",
        chinese="依次训练此目录中的每个预设，完成的移入 complete/")
# fmt: on


def _kinds(annotation: Any) -> set[type]:
    """{float, NoneType} of `float | None`; a list counts as `list`."""
    parts = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    return {get_origin(part) or part for part in parts}


OPTIONS: dict[str, Field] = {option.name: option for option in fields(Config)}
KINDS: dict[str, set[type]] = {name: _kinds(annotation) for name, annotation in get_type_hints(Config).items()}
PROJECT = Path(__file__).resolve().parent.parent
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?<!\.safetensors)(?<!\.ckpt)")  # org/name


class ConfigError(UserError):
    """All that is wrong with the parameters, one line each."""

    def __init__(self, problems: list[str]):
        count = len(problems)
        super().__init__(problems, say(f"{count} problem(s) in the parameters:", f"参数有 {count} 处问题："))


def check(values: dict[str, Any], where: dict[str, str], problems: list[str] | None = None) -> tuple[Config, list[str]]:
    """The complete configuration, and what the user should know about it.

    Args:
        values: by name, as given; what is missing takes its default.
        where: name -> where it was given: "lora_train_command_line.py:41", "x.toml:3" or "--flag".
        problems: found before (see kohya.translate); told together with those found here.

    Returns:
        The configuration, with paths expanded and spellings unified, and warnings, one line each.

    Raises:
        ConfigError: naming every problem at once.
    """
    problems, warnings, checked, wrong = list(problems or []), [], {}, set()
    for name, value in values.items():
        if name not in OPTIONS:
            problems.append(_unknown(name, where))
            continue
        try:
            checked[name] = _checked(name, value, where)
        except ValueError as error:
            wrong.add(name)
            problems.append(f"{told(name, value, where)} {error}")
    if "train_data_dir" in values:
        checked.setdefault("reg_data_dir", None)  # the miniature's would not go with it
    for name in ("color_aug", "random_crop"):
        if checked.get(name) and "cache_latents" not in checked:
            checked["cache_latents"] = False
            warnings.append(
                say(
                    f"cache_latents is off, because {name} changes the pictures at every use",
                    f"已关闭 cache_latents，因为 {name} 每次都会改变图片",
                )
            )
    for name, option in OPTIONS.items():
        if option.default and option.metadata["path"] in ("folder", "model"):
            checked.setdefault(name, str(PROJECT / option.default))  # the miniature, whatever folder we are in

    config = Config(**checked)
    for found, rules in ((problems, contradictions), (warnings, doubts)):
        for names, text in rules(config):
            if wrong.isdisjoint(names):
                found.append(f"{told(names[0], getattr(config, names[0]), where)} {text}")
    if problems:
        raise ConfigError(problems)
    return config, warnings


def place(name: str, where: dict[str, str]) -> str:
    """How a line begins that speaks of an option: `--name`, or `file:line: name`."""
    at = where.get(name, "")
    if at.startswith("--"):
        return f"--{name}"
    return f"{at}: {name}" if at else name


def told(name: str, value: Any, where: dict[str, str]) -> str:
    """The same with its value: `--name value`, or `file:line: name = value`."""
    if not where.get(name, "").startswith("--"):
        return f"{place(name, where)} = {shown(value)}"
    values = value if isinstance(value, list) else [value]
    return " ".join([f"--{name}", *(shown(value) for value in values)])


def shown(value: Any) -> str:
    """A value as the user would write it."""
    return f'"{value}"' if isinstance(value, str) and value.isprintable() else repr(value)


def nearest(name: str, names: Any) -> str | None:
    """The one of `names` that was most likely meant."""
    by_lower = {str(other).lower(): str(other) for other in names}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def choose_language(values: dict[str, Any]) -> None:
    """Speak the language that was asked for, before anything is said."""
    language = str(values.get("language", "auto")).lower()
    set_language("zh" if language.startswith(("zh", "cn")) else "en" if language.startswith("en") else "auto")


def from_text(name: str, text: str) -> Any:
    """The value that a text from the command line or a preset stands for; the text itself if it stands for none."""
    kinds, lower = KINDS[name], text.strip().lower()
    if NoneType in kinds and lower in ("", "none"):
        return None
    if bool in kinds and lower in ("true", "false"):
        return lower == "true"
    if kinds & {int, float}:
        return as_number(text)
    return text


def as_number(text: str) -> int | float | str:
    """The number a text stands for, or the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


# ---- one value ----


def _refuse(english: str, chinese: str) -> NoReturn:
    """What is wrong with a value; `check` puts place, name and value before it."""
    raise ValueError(say(english, chinese))


def _checked(name: str, value: Any, where: dict[str, str]) -> Any:
    """The value in its one spelling."""
    limits, kinds = OPTIONS[name].metadata, KINDS[name]
    if not limits["flag"] and (where.get(name, "").startswith("--") or ".toml:" in where.get(name, "")):
        _refuse("is only for lora_train_command_line.py", "只能用在 lora_train_command_line.py 里")
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if NoneType in kinds and isinstance(value, str) and value.strip().lower() in ("", "none"):
        value = None  # None in quotes
    if value is None and NoneType not in kinds:
        usual = shown(OPTIONS[name].default)
        _refuse(f"is not possible here; as delivered: {usual}", f"不能用于此参数；默认值是 {usual}")
    if value is None:
        return None
    if list in kinds:
        return _list(name, value) or None
    if name == "resolution":
        return _resolution(value)
    if isinstance(value, (list, tuple)):
        _one_value(value)
    if name == "lr_warmup_steps":
        return _warmup(value)
    if limits["choices"]:
        return _choice(value, limits["choices"])
    if bool in kinds:
        return _switch(value)
    if kinds & {int, float}:
        return _number(value, kinds, limits)
    if not isinstance(value, str):
        _refuse(f'is not text; put it in quotes: "{value}"', f'不是文字；请加引号："{value}"')
    if limits["path"]:
        return _path(value, limits["path"])
    return _file_name(value) if name == "output_name" else value


def _number(value: Any, kinds: set[type], limits: Any) -> int | float | None:
    number = _finite(value, whole=float not in kinds)
    low, high, above = limits["minimum"], limits["maximum"], limits["above"]
    if (low is None or number >= low) and (high is None or number <= high) and (above is None or number > above):
        return number
    if number == 0 and NoneType in kinds:
        return None  # save every 0 epochs, 0 steps instead of epochs: not at all
    if above is not None:
        _refuse(f"is not above {above:g}", f"必须大于 {above:g}")
    if high is None:
        _refuse(f"is below {low:g}, the least possible", f"小于允许的最小值 {low:g}")
    _refuse(f"is not between {low} and {high}", f"不在 {low} 到 {high} 之间")


def _finite(value: Any, whole: bool) -> int | float:
    if isinstance(value, str) and not isinstance(as_number(value), str):
        _refuse(f"is text; remove the quotes: {value}", f"是文字；请去掉引号：{value}")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        _refuse("is not a number", "不是数字")
    if not whole:
        return float(value)
    if value != int(value):
        _refuse("is not a whole number", "不是整数")
    return int(value)


def _switch(value: Any) -> bool:
    if isinstance(value, (bool, int, float)) and value in (True, False):  # 1 and 0 as well
        return bool(value)
    if str(value).lower() in ("true", "false"):
        plain = str(value).capitalize()
        _refuse(f"is text; remove the quotes: {plain}", f"是文字；请去掉引号：{plain}")
    _refuse("is neither True nor False", "不是 True 或 False")


def _choice(value: Any, choices: tuple) -> Any:
    for choice in choices:
        if str(value).lower() == str(choice).lower():
            return choice
    meant = nearest(str(value), choices)
    hint = say(f" Did you mean {shown(meant)}?", f"是不是 {shown(meant)}？") if meant else ""
    listed = ", ".join(shown(choice) for choice in choices)
    _refuse(f"is none of {listed}.{hint}", f"不在可选值之内：{listed}。{hint}")


def _one_value(value: list | tuple) -> NoReturn:
    if not value:
        _refuse("has no value", "没有填值")
    _refuse(
        f"are {len(value)} values, one is expected; put quotes around a text with spaces",
        f"是 {len(value)} 个值，只能填一个；含空格的文字要加引号",
    )


def _list(name: str, value: Any) -> list[str]:
    items = value.split() if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
        _refuse('is not a list of texts such as ["a", "b"]', '不是文字列表，应如 ["a", "b"]')
    for item in items if name == "optimizer_args" else ():
        if not re.fullmatch(r"[A-Za-z_]\w*=.*", item, re.DOTALL):
            _refuse(f'holds "{item}", which is not name=value', f'中的 "{item}" 不是 名称=值 的形式')
    return list(items)


def _resolution(value: Any) -> int | str:
    """ "auto", the side of a square, or "width,height"."""
    if isinstance(value, str) and value.strip().lower() == "auto":
        return "auto"
    sides = re.split("[,，xX×]", value) if isinstance(value, str) else value
    sides = list(sides) if isinstance(sides, (list, tuple)) else [sides]
    try:
        sides = [_finite(as_number(side) if isinstance(side, str) else side, whole=True) for side in sides]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or not all(16 <= side <= 16384 for side in sides):
        _refuse(
            'is no size: 512, "512,768" (width,height) or "auto"', '不是尺寸：可填 512、"512,768"（宽,高）或 "auto"'
        )
    return sides[0] if len(set(sides)) == 1 else f"{sides[0]},{sides[1]}"


def _warmup(value: Any) -> int | float:
    """Steps (int), or a share of all steps (float below 1)."""
    text = str(value).strip()
    try:
        number = float(text[:-1]) / 100 if text.endswith("%") else _finite(as_number(text), whole=False)
    except ValueError:
        number = -1.0
    if isinstance(value, bool) or number < 0 or (number >= 1 and (number != int(number) or text.endswith("%"))):
        _refuse('is neither steps (100) nor a share (0.05, "5%")', '不是步数（100），也不是比例（0.05、"5%"）')
    return number if 0 < number < 1 else int(number)


_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def _file_name(value: str) -> str:
    """A name that every system takes, Windows included."""
    stem, ending = os.path.splitext(value)
    if ending.lower() in (".safetensors", ".ckpt", ".pt"):
        _refuse(f'has an ending; leave it out: "{stem}"', f'带有扩展名；请去掉："{stem}"')
    bad = " ".join(sorted({shown(letter) for letter in value if letter in '/\\:*?"<>|' or ord(letter) < 32}))
    if bad:
        _refuse(
            f"holds {bad}, which a file name cannot; a folder goes into output_dir",
            f"含有文件名不能用的字符 {bad}；文件夹请写在 output_dir",
        )
    reserved = value.split(".")[0].strip().lower() in _RESERVED
    if reserved or not value.strip() or value != value.strip(" ").rstrip(".") or len(value.encode()) > 200:
        _refuse("cannot be a file name on every system; take another", "不能在所有系统上作文件名；请换一个")
    return value


# ---- paths ----

_TYPED = {"\a": r"\a", "\b": r"\b", "\t": r"\t", "\n": r"\n", "\v": r"\v", "\f": r"\f", "\r": r"\r"}
_TYPED |= {chr(n): f"\\{n}" for n in range(8) if n not in (7,)}


def _path(value: str, kind: str) -> str:
    """The path with `~` expanded; must fit `kind` (see option)."""
    control = next((letter for letter in value if ord(letter) < 32), None)
    if control:
        known = {"\n": ("a line break", "换行符"), "\t": ("a tab", "制表符")}
        english, chinese = known.get(control, ("a control character", "控制字符"))
        typed = "".join(_TYPED.get(letter, letter) for letter in value)
        _refuse(
            f"contains {english}, because \\ in plain quotes is special: "
            f"""write it with / or as r"{typed}" (in .toml: '{typed}')""",
            f"中含有{chinese}，因为普通引号里的 \\ 有特殊含义："
            f"""请用 / 代替，或写成 r"{typed}"（.toml 里写 '{typed}'）""",
        )
    path = os.path.expanduser(value)
    if not path.strip():
        _refuse("is empty; give a path", "是空的；请填路径")
    is_file, is_folder = os.path.isfile(path), os.path.isdir(path)
    if is_file and kind in ("folder", "output"):
        _refuse("is a file; a folder is needed", "是文件；需要的是文件夹")
    if is_folder and kind == "file":
        _refuse("is a folder; a file is needed", "是文件夹；需要的是文件")
    if not (kind == "output" or is_file or is_folder):
        _missing(path, is_hub_name=kind == "model" and HUB_NAME.fullmatch(value))
    return path


def _missing(path: str, is_hub_name: Any) -> NoReturn:
    """Say of a path that is not there where it stops being right, and what is there instead."""
    tidy = path.strip().strip("\"'")
    if tidy != path and os.path.exists(tidy):
        _refuse(f'does not exist. Did you mean "{tidy}"?', f'不存在。是不是 "{tidy}"？')
    wanted = Path(path).absolute()
    folder = next(
        parent for parent in [*wanted.parents, Path(wanted.anchor)] if parent.is_dir() or parent == parent.parent
    )
    first, *rest = wanted.relative_to(folder).parts
    try:
        meant = nearest(first, os.listdir(folder))
    except OSError:  # a folder we may not read, or a drive that is not there
        meant = None
    english, chinese = f'does not exist: there is no "{first}" in "{folder}".', f'不存在："{folder}" 里没有 "{first}"。'
    if meant and (not rest or os.path.exists(folder.joinpath(meant, *rest))):
        meant = folder.joinpath(meant, *rest)
        _refuse(f'{english} Did you mean "{meant}"?', f'{chinese}是不是 "{meant}"？')
    if is_hub_name:
        _refuse(
            "is not here, and models are not downloaded: give a .safetensors file or a diffusers folder",
            "不在本机，程序不会下载模型：请填 .safetensors 文件或 diffusers 文件夹的路径",
        )
    _refuse(english, chinese)


# ---- rules between options: (the options concerned, what is said behind the first one's value) ----

Rule = tuple[tuple[str, ...], str]


def trains_unet(config: Config) -> bool:
    return config.unet_lr != 0 and not config.network_train_text_encoder_only


def trains_text_encoder(config: Config) -> bool:
    return config.text_encoder_lr != 0 and not config.network_train_unet_only


def contradictions(config: Config) -> Iterator[Rule]:
    """What cannot be done."""
    c = config
    for name in ("color_aug", "random_crop"):
        if getattr(c, name) and c.cache_latents:
            yield (
                (name, "cache_latents"),
                say(
                    "changes the pictures at every use, so they cannot be cached. Set cache_latents to False, or this",
                    "每次都会改变图片，因此不能缓存。请把 cache_latents 或此项设为 False",
                ),
            )
    if c.network_train_unet_only and c.network_train_text_encoder_only:
        yield (
            ("network_train_unet_only", "network_train_text_encoder_only"),
            say(
                "excludes network_train_text_encoder_only. Set one of them to False",
                "与 network_train_text_encoder_only 互相排斥。请把其中一个设为 False",
            ),
        )
    elif not trains_unet(c) and not trains_text_encoder(c):
        rate = "text_encoder_lr" if c.network_train_text_encoder_only else "unet_lr"
        yield (
            (rate, "unet_lr", "text_encoder_lr"),
            say(
                "leaves nothing to train, because the other part is not trained either. Give it a learning rate",
                "使得没有可训练的部分，因为另一部分也不训练。请填一个学习率",
            ),
        )
    if c.cache_text_encoder_outputs is True:
        changing = {
            "shuffle_caption": c.shuffle_caption,
            "caption_dropout_rate": c.caption_dropout_rate > 0,
            "caption_dropout_every_n_epochs": bool(c.caption_dropout_every_n_epochs),
            "caption_tag_dropout_rate": c.caption_tag_dropout_rate > 0,
        }
        for name in (name for name, active in changing.items() if active):
            yield (
                ("cache_text_encoder_outputs", name),
                say(
                    f"is not possible with {name}, which changes the captions. Set one of them off",
                    f"不能与 {name} 同用，因为它会改变标签。请关闭其中一个",
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
    if c.max_train_steps is None and c.max_train_epochs is None:
        yield (
            ("max_train_epochs", "max_train_steps"),
            say(
                "and max_train_steps = None: how long shall it train? Give one of them",
                "并且 max_train_steps = None：要训练多久？请填其中一个",
            ),
        )
    if c.lr_warmup_steps and c.lr_scheduler in ("constant", "adafactor"):
        yield (
            ("lr_warmup_steps", "lr_scheduler"),
            say(
                f'does not go with lr_scheduler = "{c.lr_scheduler}", which has no warmup. '
                'Take "constant_with_warmup", or set it to 0',
                f'不能与 lr_scheduler = "{c.lr_scheduler}" 同用，它没有预热。请改用 "constant_with_warmup"，或把此项设为 0',
            ),
        )
    if c.max_train_steps is not None and c.lr_warmup_steps >= c.max_train_steps:
        yield (
            ("lr_warmup_steps", "max_train_steps"),
            say(
                f"is not less than max_train_steps = {c.max_train_steps}: the learning rate would never reach its value. "
                "Lower it, or train longer.",
                f"不小于 max_train_steps = {c.max_train_steps}：学习率永远达不到设定值。请调小它，或训练更久。",
            ),
        )
    if c.lr_scheduler == "adafactor" and c.optimizer_type.lower() != "adafactor":
        yield (
            ("lr_scheduler", "optimizer_type"),
            say(
                f'needs optimizer_type = "Adafactor", not "{c.optimizer_type}". Take "constant" or another',
                f'需要 optimizer_type = "Adafactor"，而不是 "{c.optimizer_type}"。请改用 "constant" 或其他方式',
            ),
        )
    if c.use_8bit_adam and c.optimizer_type.lower() not in ("adamw", "adamw8bit"):
        yield (
            ("use_8bit_adam", "optimizer_type"),
            say(
                f'excludes optimizer_type = "{c.optimizer_type}". Set one of them as delivered',
                f'与 optimizer_type = "{c.optimizer_type}" 互相排斥。请把其中一个改回默认值',
            ),
        )
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
    if c.reg_data_dir and os.path.abspath(c.reg_data_dir) == os.path.abspath(c.train_data_dir):
        yield (
            ("reg_data_dir", "train_data_dir"),
            say(
                "is the training folder itself. Give another folder, or None",
                "就是训练集目录。请填另一个目录，或 None",
            ),
        )


# Learning rates outside of these are told as doubtful. Prodigy and D-Adaptation scale theirs by themselves: 1 is right.
_USUAL_RATES = {
    "prodigy": (0.1, 10),
    "dadapt": (0.1, 10),
    "sgd": (1e-6, 10),
    "lion": (1e-7, 3e-3),
    "adam": (1e-6, 1e-2),
}


def doubts(config: Config) -> Iterator[Rule]:
    """What can be done, but is probably not meant, or has no effect."""
    c = config
    changed = {name for name, option in OPTIONS.items() if getattr(c, name) != option.default}
    low, high = next(
        (rates for name, rates in _USUAL_RATES.items() if c.optimizer_type.lower().startswith(name)), (0, 1e9)
    )
    own_rates = [c.unet_lr] * trains_unet(c) + [c.text_encoder_lr] * trains_text_encoder(c)  # None: learning_rate
    used = {"learning_rate": None in own_rates, "unet_lr": trains_unet(c), "text_encoder_lr": trains_text_encoder(c)}
    for name in (name for name, is_used in used.items() if is_used):
        rate = getattr(c, name)
        if rate and not low <= rate <= high:
            yield (
                (name, "optimizer_type"),
                say(
                    f"is far {'above' if rate > high else 'below'} the usual for {c.optimizer_type}: {low:g} to {high:g}",
                    f"远{'大于' if rate > high else '小于'} {c.optimizer_type} 的常用范围：{low:g} 到 {high:g}",
                ),
            )
    if c.max_train_steps is not None and c.max_train_epochs is not None and "max_train_epochs" in changed:
        yield (
            ("max_train_steps", "max_train_epochs"),
            say(
                f"goes before max_train_epochs = {c.max_train_epochs}",
                f"优先于 max_train_epochs = {c.max_train_epochs}",
            ),
        )
    if c.xformers:
        yield (
            ("xformers",),
            say("is not needed: torch's own attention is used instead", "不需要：改用 torch 自带的注意力实现"),
        )
    if c.use_8bit_adam or c.optimizer_type.lower() == "adamw8bit":
        reason = why_no_8bit_adam(c.device)
        if reason:
            name = "use_8bit_adam" if c.use_8bit_adam else "optimizer_type"
            yield (
                (name,),
                say(
                    f"cannot work here ({reason}): plain AdamW is used instead",
                    f"在此无法使用（{reason}）：改用普通 AdamW",
                ),
            )
    changes_tags = c.shuffle_caption or c.caption_tag_dropout_rate > 0
    no_effect = {  # option: (it acts, what it needs)
        "keep_tokens": (changes_tags, "shuffle_caption / caption_tag_dropout_rate"),
        "conv_alpha": (c.conv_dim is not None, "conv_dim"),
        "lr_scheduler_num_cycles": (c.lr_scheduler == "cosine_with_restarts", 'lr_scheduler = "cosine_with_restarts"'),
        "lr_scheduler_power": (c.lr_scheduler == "polynomial", 'lr_scheduler = "polynomial"'),
        "save_last_n_epochs": (c.save_every_n_epochs is not None, "save_every_n_epochs"),
        "cache_dir": (c.cache_latents and c.cache_latents_to_disk, "cache_latents_to_disk"),
        "sort_tag_occurrence_alphabetically": (c.tag_occurrence_txt_file, "tag_occurrence_txt_file"),
        "prior_loss_weight": (c.reg_data_dir, "reg_data_dir"),
        "reg_captions": (c.reg_data_dir, "reg_data_dir"),
        "reg_rotate": (c.reg_data_dir, "reg_data_dir"),
        "min_bucket_reso": (c.enable_bucket, "enable_bucket"),
        "max_bucket_reso": (c.enable_bucket, "enable_bucket"),
        "bucket_no_upscale": (c.enable_bucket, "enable_bucket"),
    }
    for name, (acts, needed) in no_effect.items():
        if name in changed and not acts:
            yield (name,), say(f"has no effect without {needed}", f"没有 {needed} 就不起作用")
    if c.reg_data_dir and c.prior_loss_weight == 0:
        yield (
            ("prior_loss_weight",),
            say(
                "leaves the regularization images without effect, they only take time; set reg_data_dir to None instead",
                "使正则化图片不起作用，只花时间；请改把 reg_data_dir 设为 None",
            ),
        )
    miniature = [
        name for name in ("pretrained_model_name_or_path", "train_data_dir", "reg_data_dir") if _is_delivered(c, name)
    ]
    if miniature and "train_data_dir" not in miniature:
        for name in miniature:
            yield (
                (name, "train_data_dir"),
                say(
                    "is still the built-in miniature's, which does not go with your training set",
                    "仍是自带的微型模型所用的，与你的训练集不相配",
                ),
            )
    if c.v2 and (c.clip_skip or 1) > 1:
        yield ("clip_skip", "v2"), say("is not usual with SD 2.x, leave it None", "一般不用于 SD 2.x，请填 None")
    if c.resume and c.network_weights:
        yield (
            ("network_weights", "resume"),
            say("is replaced by the state given as resume", "会被 resume 的训练状态取代"),
        )


def _is_delivered(config: Config, name: str) -> bool:
    """Whether a path is still the one of the built-in miniature."""
    value = getattr(config, name)
    return value is not None and os.path.abspath(value) == str(PROJECT / OPTIONS[name].default)


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


def _unknown(name: str, where: dict[str, str]) -> str:
    is_flag = where.get(name, "").startswith("--")
    meant = nearest(name, OPTIONS)
    meant = f"--{meant}" if meant and is_flag else meant
    hint = say(f" Did you mean {meant}?", f"是不是 {meant}？") if meant else ""
    if is_flag:
        return say(f"--{name}: there is no such flag.{hint}", f"--{name}：没有这个参数。{hint}")
    return say(
        f"{place(name, where)}: there is no such parameter.{hint}", f"{place(name, where)}：没有这个参数。{hint}"
    )
