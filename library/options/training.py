"""Every option of the training once: name, type, default, limits, meaning in English and Chinese.

The flag of `train_network.py`, its help, the check of its value and the line in the parameter block all come from the
field declared here. To add an option: add a field, and use it where it acts. Names are sd-scripts' flag names, because
every guide that our users read uses them. The scripts in tools/ have theirs in `tools`, declared in the same way.
No torch is imported here: mistakes are told within a second.
"""

from dataclasses import dataclass

from library.options.declaration import declared, option

TITLE = """Train a LoRA: edit the values below, then run this file. It takes no arguments.

训练 LoRA：修改下面的参数，然后直接运行本文件，不需要任何命令行参数。
"""
GROUPS = {  # heading of each group in the parameter block, in its order
    "must": ("Must edit", "必须修改"),
    "often": ("Often changed", "经常修改"),
    "network": ("Seldom: the LoRA itself", "较少修改：LoRA 本身"),
    "learning": ("Seldom: learning", "较少修改：学习"),
    "data": ("Seldom: images and captions", "较少修改：图片与标注"),
    "regularization": ("Seldom: regularization images", "较少修改：正则化图片"),
    "model": ("Seldom: base model", "较少修改：底模"),
    "performance": ("Speed and memory", "速度与显存"),
    "preview": ("Output: previews while training", "输出：训练中的预览图"),
    "output": ("Output: saving and logs", "输出：保存与日志"),
    "presets": ("Output: presets and queues", "输出：预设与队列"),
}


# One option is three lines: what it is, what it means, 它是什么意思. The formatter would make seven of them.
# fmt: off
@dataclass(frozen=True)
class Config:
    """What the user asked for: checked, complete, and never changed on the way."""

    # ---- must ----
    pretrained_model_name_or_path: str = option("must", "library/miniature/model", path="model",
        english="base model: .safetensors, .ckpt or diffusers folder of SD 1.x, SD 2.x or SDXL; default: the built-in miniature",
        chinese="底模：SD 1.x、SD 2.x 或 SDXL 的 .safetensors、.ckpt 文件或 diffusers 文件夹；默认是自带的微型模型")
    images_dir: str = option("must", "pictures", is_flag=False,
        english="your raw images, including sub-folders, which tools/prepare_images.py cleans; nothing in it is ever changed",
        chinese="您收集的原始图片所在的目录，含子目录，由 tools/prepare_images.py 整理；其中的文件绝不会被改动")
    trigger_word: str | None = option("must", "mytag", is_flag=False,
        english="the word that calls your subject up, a made-up one; the scripts in tools/ put it into captions and folder names; None: none",
        chinese="触发词，请用自造的词；tools/ 里的脚本会把它写进标注和目录名；None 表示没有")
    train_data_dir: str = option("must", "library/miniature/train", path="folder", delivered="auto",
        english='the folder that CONTAINS the folders named [repeats]_[concept], such as 10_mytag; not such a folder itself; "auto": what tools/sort_into_folders.py made in output_dir/train; before that, the built-in miniature\'s',
        chinese='训练集目录：里面放 [重复次数]_[概念] 形式的文件夹，如 10_mytag；填它们的上一级，不要填到里面；"auto"：tools/sort_into_folders.py 在 output_dir/train 里建好的；还没有时用自带的微型训练集')
    reg_data_dir: str | None = option("must", "library/miniature/reg", path="folder", delivered="auto",
        english='regularization images, in folders of the same form; about doubles the steps; "auto": what tools/make_reg_images.py made in output_dir/reg, if anything; None: without (overfits sooner)',
        chinese='正则化图片目录，结构与训练集相同；步数约加倍；"auto"：tools/make_reg_images.py 在 output_dir/reg 里画好的，没有则不用；None 表示不用（更容易过拟合）')
    output_dir: str = option("must", "output", path="output",
        english="where the result goes; made if missing",
        chinese="输出目录，没有会自动建立")
    output_name: str = option("must", "mytag", delivered="auto",
        english='name of the result, without extension; "auto": the trigger word',
        chinese='输出文件名，不带扩展名；"auto" 表示用触发词')

    preset: str | None = option("must", None, choices=("character", "style", "garment", "face"), is_flag=False,
        english='what you train: "character", "style", "garment" or "face" sets repeats, rank, epochs and tags here and in tools/ to what suits it, each named with its reason; what you changed stays, a value still as delivered counts as not set; None: nothing is set',
        chinese='训练什么："character" 角色、"style" 画风、"garment" 服装、"face" 人脸；会为这里和 tools/ 设定合适的重复次数、秩、轮数和标签，并逐项说明理由；您改过的保持不变，仍是默认值的视为未填；None 表示不设定')

    # ---- often ----
    resolution: int | str = option("often", "auto",
        english='training size: 512 (SD 1.x), 768 (SD 2.x v), 1024 (SDXL), or "width,height"; time and memory grow with the area; "auto": the base model\'s own',
        chinese='训练分辨率：SD 1.x 用 512，SD 2.x v 用 768，SDXL 用 1024，也可写 "宽,高"；时间与显存随面积增长；"auto" 按底模决定')
    train_batch_size: int = option("often", 2, minimum=1,
        english="images per step, 1~6 on 12 GB at 512; more needs more memory",
        chinese="每步图片数，12 GB 显存 512 分辨率可用 1~6；越大越占显存")
    max_train_epochs: int | None = option("often", 10, minimum=1,
        english="how many times the whole set is seen, usually 4~20; takes longer, and too many overfit",
        chinese="训练轮数，常用 4~20；时间随之增长，过多会过拟合")
    max_train_steps: int | None = option("often", None, minimum=1,
        english="number of steps, usually 1000~3000; if set, overrides max_train_epochs; None: by epochs",
        chinese="训练步数，常用 1000~3000；填写后优先于 max_train_epochs；None 表示按轮数")
    learning_rate: float | None = option("often", None, above=0,
        english="learning rate, usually 5e-5~2e-4 (Lion a third, Prodigy 1); None: by model and optimizer, 1e-4 for AdamW on SD",
        chinese="学习率，常用 5e-5~2e-4（Lion 用三分之一，Prodigy 用 1）；None 表示按底模和优化器决定，SD 配 AdamW 为 1e-4")
    unet_lr: float | None = option("often", None, minimum=0,
        english="learning rate of the denoiser (the U-Net), usually None; None: as learning_rate; 0: do not train it",
        chinese="去噪网络（U-Net）的学习率，常用 None；None 表示同 learning_rate，0 表示不训练")
    text_encoder_lr: float | list[float] | None = option("often", None, minimum=0,
        english="text encoder's own learning rate, usually half of the denoiser's to the same; None: as learning_rate; 0: do not train it (faster); SDXL: [1e-5, 5e-6] for its two",
        chinese="文本编码器学习率，常用去噪网络的一半到相同；None 表示同 learning_rate，0 表示不训练（更快）；SDXL 有两个，可写 [1e-5, 5e-6]")
    network_dim: int = option("often", 32, minimum=1,
        english="rank, usually 4~128; larger learns more, overfits sooner, and makes a larger file",
        chinese="秩，常用 4~128；越大学得越多，也越容易过拟合，文件越大")
    network_alpha: float | None = option("often", 32.0, minimum=0,
        english="the update is scaled by alpha / dim, usually half of dim to dim; None or 0: as dim",
        chinese="更新量乘以 alpha / dim，常用 dim 的一半到等于 dim；None 或 0 表示等于 dim")
    save_every_n_epochs: int | None = option("often", 2, minimum=1,
        english="also keep a file every n epochs, usually 1~4, to go back to when the last one is overfitted; None: only the last",
        chinese="每几轮另存一个文件，常用 1~4，过拟合时可以退回；None 表示只存最后一个")
    clip_skip: int | None = option("often", None, minimum=1, maximum=12,
        english="1 or None: realistic models; 2: anime models (NovelAI and its descendants); SDXL ignores it",
        chinese="1 或 None 用于写实模型，2 用于二次元模型（NovelAI 系）；SDXL 不用此项")
    seed: int | None = option("often", 23, minimum=0, maximum=2**32 - 1,
        english="same seed, same result; None: a new one, which is printed",
        chinese="随机种子，相同则结果相同；None 表示随机选取并打印出来")

    # ---- the LoRA itself ----
    network_module: str = option("network", "lora", choices=("lora", "loha", "lokr", "dora"),
        english="kind of adapter: lora (fastest); dora, loha, lokr learn differently, lokr's file is small; slower; read by web UIs",
        chinese="网络种类：lora（最快）；dora、loha、lokr 学习方式不同，lokr 文件小，训练较慢；网页界面均可读取")
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
        english="train only the denoiser (the U-Net); faster, less memory",
        chinese="只训练去噪网络（U-Net）；更快，更省显存")
    network_train_text_encoder_only: bool = option("network", False,
        english="train only the text encoder; learns far less",
        chinese="只训练文本编码器；能学到的少得多")
    rs_lora: bool = option("network", False, in_block=False,
        english="scale the update by alpha / sqrt(dim) instead of alpha / dim, for large network_dim; the file suits every reader",
        chinese="更新量改乘 alpha / sqrt(dim) 而不是 alpha / dim，适合较大的 network_dim；保存的文件各界面照常读取")
    lokr_factor: int | None = option("network", None, minimum=1, in_block=False,
        english="side of LoKr's small matrix, usually 4~16, smaller learns more and makes a larger file; None: near the square root of each layer's size",
        chinese="LoKr 小矩阵的边长，常用 4~16，越小学得越多、文件越大；None 表示取接近各层尺寸平方根的值")
    rank_dropout: float | None = option("network", None, minimum=0, maximum=0.99, in_block=False,
        english="share of the LoRA's ranks dropped for each image while training, usually 0.1~0.3; less overfitting; None: none",
        chinese="训练时按图随机丢弃 LoRA 若干秩的比例，常用 0.1~0.3；减轻过拟合；None 表示不丢弃")
    module_dropout: float | None = option("network", None, minimum=0, maximum=0.99, in_block=False,
        english="share of the steps at which a layer's whole update is skipped, usually 0.1~0.3; less overfitting; None: none",
        chinese="每一步随机跳过某层全部更新量的概率，常用 0.1~0.3；减轻过拟合；None 表示不跳过")
    block_dims: list[int] | None = option("network", None, minimum=0, in_block=False,
        english="rank of each block of the U-Net, 0: leave it out; 25 values for SD 1.x and 2.x (12 down, 1 middle, 12 up), 23 for SDXL; None: network_dim",
        chinese="U-Net 每块的秩，0 表示不训练该块；SD 1.x、2.x 为 25 个值（下 12、中 1、上 12），SDXL 为 23 个；None 表示都用 network_dim")
    block_alphas: list[float] | None = option("network", None, minimum=0, in_block=False,
        english="alpha of each block, as many values; None: network_alpha",
        chinese="每块的 alpha，个数相同；None 表示都用 network_alpha")
    conv_block_dims: list[int] | None = option("network", None, minimum=0, in_block=False,
        english="rank of the 3x3 convolutions in each block, as many values; None: conv_dim",
        chinese="每块 3x3 卷积层的秩，个数相同；None 表示都用 conv_dim")
    conv_block_alphas: list[float] | None = option("network", None, minimum=0, in_block=False,
        english="alpha of the 3x3 convolutions in each block, as many values; None: conv_alpha",
        chinese="每块 3x3 卷积层的 alpha，个数相同；None 表示都用 conv_alpha")
    network_reg_dims: list[str] | None = option("network", None, in_block=False,
        english='rank of layers by their names in the file, such as ["down_blocks_0.*=4"]; the first matching pattern counts, 0: skip; None: none',
        chinese='按文件中的层名（正则表达式）指定秩，如 ["down_blocks_0.*=4"]；以最先相符的为准，0 表示不训练；None 表示没有')
    exclude_patterns: list[str] | None = option("network", None, in_block=False,
        english='layers to skip, by patterns of their names, such as [".*_ff_net_.*"]; None: none',
        chinese='不训练的层，按层名的正则表达式，如 [".*_ff_net_.*"]；None 表示没有')
    include_patterns: list[str] | None = option("network", None, in_block=False,
        english="layers to train although exclude_patterns match them; None: none",
        chinese="虽符合 exclude_patterns 但仍要训练的层；None 表示没有")
    dim_from_weights: bool = option("network", False, in_block=False,
        english="take layers, ranks and alphas from the file given as network_weights",
        chinese="层、秩与 alpha 都按 network_weights 的文件而定")
    base_weights: list[str] | None = option("network", None, path="file", in_block=False,
        english="LoRA files that are merged into the base model before training; the result is used together with them; None: none",
        chinese="训练前并入底模的 LoRA 文件；使用成果时需同时加载它们；None 表示没有")
    base_weights_multiplier: list[float] | None = option("network", None, minimum=-10, maximum=10, in_block=False,
        english="strength of each of them; 1 for those without",
        chinese="它们各自的强度，未填的为 1")
    scale_weight_norms: float | None = option("network", None, above=0,
        english="upper limit for the norm of each layer's update, usually 1; less overfitting; None: no limit",
        chinese="每层更新量的范数上限，常用 1；减轻过拟合；None 表示不限制")

    # ---- learning ----
    optimizer_type: str = option("learning", "AdamW",
        english="optimizer: AdamW, AdamW8bit, Lion, Prodigy, DAdaptAdam, AdamWScheduleFree, Adafactor, SGDNesterov, ..., or an import path such as pytorch_optimizer.CAME",
        chinese="优化器：AdamW、AdamW8bit、Lion、Prodigy、DAdaptAdam、AdamWScheduleFree、Adafactor、SGDNesterov 等，或导入路径如 pytorch_optimizer.CAME")
    optimizer_args: list[str] | None = option("learning", None,
        english='its extra settings, such as ["weight_decay=0.1", "betas=0.9,0.99"]; None: its defaults',
        chinese='优化器附加参数，如 ["weight_decay=0.1", "betas=0.9,0.99"]；None 表示用默认值')
    lr_scheduler: str = option("learning", "cosine",
        choices=("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "polynomial",
                 "inverse_sqrt", "warmup_stable_decay", "piecewise_constant", "adafactor"),
        english="how the learning rate moves: constant, constant_with_warmup, linear, cosine, cosine_with_restarts, cosine_with_min_lr, polynomial, inverse_sqrt, warmup_stable_decay, piecewise_constant, adafactor",
        chinese="学习率变化方式：constant、constant_with_warmup、linear、cosine、cosine_with_restarts、cosine_with_min_lr、polynomial、inverse_sqrt、warmup_stable_decay、piecewise_constant、adafactor")
    lr_scheduler_num_cycles: int = option("learning", 1, minimum=1,
        english="number of cycles of cosine_with_restarts, usually 1~4",
        chinese="cosine_with_restarts 的周期数，常用 1~4")
    lr_scheduler_power: float = option("learning", 1.0, above=0,
        english="exponent of polynomial, usually 1~2",
        chinese="polynomial 的指数，常用 1~2")
    lr_warmup_steps: int | float = option("learning", 0, minimum=0,
        english='steps until the full learning rate: a number such as 100, or a share such as 0.05 or "5%"',
        chinese='学习率升到最大所用的步数：如 100；也可写占总步数的比例，如 0.05 或 "5%"')
    lr_scheduler_type: str | None = option("learning", None, in_block=False,
        english="another schedule by import path, such as torch.optim.lr_scheduler.CosineAnnealingLR; if set, overrides lr_scheduler; None: none",
        chinese="以导入路径指定其他调度器，如 torch.optim.lr_scheduler.CosineAnnealingLR；优先于 lr_scheduler；None 表示不用")
    lr_scheduler_args: list[str] | None = option("learning", None, in_block=False,
        english='its settings, such as ["T_max=100"]; of piecewise_constant ["step_rules=\'1:100,0.1:200,0.01\'"]',
        chinese='其参数，如 ["T_max=100"]；piecewise_constant 用 ["step_rules=\'1:100,0.1:200,0.01\'"]')
    lr_decay_steps: int | float = option("learning", 0, minimum=0, in_block=False,
        english='steps of the decay at the end of warmup_stable_decay: a number, or a share such as 0.2 or "20%"',
        chinese='warmup_stable_decay 末尾衰减的步数：填步数，或比例如 0.2、"20%"')
    lr_scheduler_timescale: int | None = option("learning", None, minimum=1, in_block=False,
        english="steps after which inverse_sqrt has fallen noticeably; None: as many as the warmup has",
        chinese="inverse_sqrt 的时间尺度（步数）；None 表示与预热步数相同")
    lr_scheduler_min_lr_ratio: float | None = option("learning", None, minimum=0, maximum=1, in_block=False,
        english="share of the learning rate at which cosine_with_min_lr and warmup_stable_decay end; None: 0",
        chinese="cosine_with_min_lr 与 warmup_stable_decay 结束时学习率的比例；None 表示 0")
    down_lr_weight: str | None = option("learning", None, in_block=False,
        english='factor of unet_lr for each block on the way down, such as "0,0,1,1,..." (12 values, SDXL 9), or cosine, sine, linear, reverse_linear, zeros, with "+0.25" added; None: 1',
        chinese='U-Net 下行各块学习率的倍数，如 "0,0,1,1,..."（12 个，SDXL 9 个），或 cosine、sine、linear、reverse_linear、zeros，可再加 "+0.25"；None 表示 1')
    mid_lr_weight: str | None = option("learning", None, in_block=False,
        english="the same for the middle: 1 value (SDXL: 3); None: 1",
        chinese="中间块的倍数：1 个值（SDXL 3 个）；None 表示 1")
    up_lr_weight: str | None = option("learning", None, in_block=False,
        english="the same for each block on the way up; None: 1",
        chinese="上行各块的倍数，写法同 down_lr_weight；None 表示 1")
    block_lr_zero_threshold: float = option("learning", 0.0, minimum=0, in_block=False,
        english="blocks whose factor is not above this are skipped",
        chinese="倍数不大于此值的块不训练")
    network_reg_lrs: list[str] | None = option("learning", None, in_block=False,
        english='learning rate of layers by their names in the file, such as ["up_blocks_3.*=5e-5"]; the first matching pattern counts; None: none',
        chinese='按文件中的层名（正则表达式）指定学习率，如 ["up_blocks_3.*=5e-5"]；以最先相符的为准；None 表示没有')
    loraplus_lr_ratio: float | None = option("learning", None, above=0, in_block=False,
        english="LoRA+: the second of a layer's two matrices learns this many times faster, usually 4~16; None: off",
        chinese="LoRA+：每层两个矩阵中的第二个以此倍数的学习率训练，常用 4~16；None 表示不用")
    loraplus_unet_lr_ratio: float | None = option("learning", None, above=0, in_block=False,
        english="the same for the denoiser (the U-Net) alone; None: as loraplus_lr_ratio",
        chinese="只对去噪网络（U-Net）的倍数；None 表示同 loraplus_lr_ratio")
    loraplus_text_encoder_lr_ratio: float | None = option("learning", None, above=0, in_block=False,
        english="the same for the text encoder alone; None: as loraplus_lr_ratio",
        chinese="只对文本编码器的倍数；None 表示同 loraplus_lr_ratio")
    stop_text_encoder_training: int | float | None = option("learning", None, minimum=0, in_block=False,
        english='train the text encoder only for this many steps, or a share such as 0.5 or "50%"; faster after that; None: to the end',
        chinese='文本编码器只训练前这么多步，也可写占总步数的比例，如 0.5 或 "50%"；之后更快；None 表示训练到最后')
    ema_decay: float | None = option("learning", None, above=0, maximum=0.99999, in_block=False,
        english="save an average of the weights over about 1 / (1 - this) steps, usually 0.99~0.999; steadier result; None: off",
        chinese="保存权重的滑动平均（约为最近 1 / (1 - 此值) 步），常用 0.99~0.999；结果更稳；None 表示不用")
    max_grad_norm: float = option("learning", 1.0, minimum=0,
        english="clip the gradient norm to this, usually 1; 0: never",
        chinese="梯度裁剪上限，常用 1；0 表示不裁剪")
    min_snr_gamma: float | None = option("learning", 5.0, above=0,
        english="min-SNR: weight easy timesteps less, usually 5; learns more in the same steps; None: off, as in sd-scripts",
        chinese="降低容易的时间步的权重，常用 5；同样步数学得更多；None 表示不用（sd-scripts 的默认）")
    noise_offset: float | None = option("learning", None, minimum=0,
        english="helps with very dark and very bright images, usually 0.03~0.1; None: off",
        chinese="便于学习很暗或很亮的图，常用 0.03~0.1；None 表示不用")

    noise_offset_random_strength: bool = option("learning", False, in_block=False,
        english="pick the strength of noise_offset at random between 0 and its value for each batch",
        chinese="每批在 0 到 noise_offset 之间随机取强度")
    adaptive_noise_scale: float | None = option("learning", None, minimum=-10, maximum=10, in_block=False,
        english="add this many times the image's brightness to noise_offset, usually 0.01 or less; None: off",
        chinese="按图片亮度的这个倍数增加 noise_offset，一般不超过 0.01；None 表示不用")
    multires_noise_iterations: int | None = option("learning", None, minimum=1, maximum=32, in_block=False,
        english="multires noise: add coarser and coarser noise this many times, usually 6~10; does what noise_offset does; None: off",
        chinese="叠加越来越粗的噪声，次数常用 6~10；作用与 noise_offset 相近；None 表示不用")
    multires_noise_discount: float = option("learning", 0.3, above=0, maximum=1, in_block=False,
        english="how much weaker each coarser noise is, usually 0.1~0.4",
        chinese="每层粗噪声的衰减系数，常用 0.1~0.4")
    ip_noise_gamma: float | None = option("learning", None, minimum=0, maximum=1, in_block=False,
        english="input perturbation: show the network slightly more noise than it must predict, usually 0.1; more stable images; None: off",
        chinese="输入扰动噪声：给网络看的噪声比要预测的略多，常用 0.1；出图更稳；None 表示不用")
    ip_noise_gamma_random_strength: bool = option("learning", False, in_block=False,
        english="pick the strength of ip_noise_gamma at random between 0 and its value for each batch",
        chinese="每批在 0 到 ip_noise_gamma 之间随机取强度")
    immiscible_noise: int | None = option("learning", None, minimum=2, maximum=64, in_block=False,
        english="sample this many noises per image and use the nearest, usually 4; learns faster, slightly slower steps; None: off",
        chinese="每张图取这么多份噪声，用最接近的一份，常用 4；学得更快，略费时间；None 表示不用")
    zero_terminal_snr: bool = option("learning", False, in_block=False,
        english="let the last timestep be noise alone; for v models trained that way, which are detected automatically",
        chinese="让最后一个时间步只剩噪声；用于以此方式训练的 v 预测模型，会自动识别")
    min_timestep: int = option("learning", 0, minimum=0, maximum=999, in_block=False,
        english="lowest timestep that is trained; low ones are fine details",
        chinese="训练的最小时间步；小的时间步决定细节")
    max_timestep: int = option("learning", 1000, minimum=1, maximum=1000, in_block=False,
        english="timesteps below this are trained; high ones are the composition",
        chinese="只训练小于此值的时间步；大的时间步决定构图")
    loss_type: str = option("learning", "l2", choices=("l2", "l1", "huber", "smooth_l1"), in_block=False,
        english="loss function: l2; l1, huber and smooth_l1 are less sensitive to outliers",
        chinese="误差的计算方式：l2；l1、huber、smooth_l1 使异常值影响更小")
    huber_schedule: str = option("learning", "snr", choices=("snr", "exponential", "constant"), in_block=False,
        english="how huber_c falls over the timesteps: snr, exponential, constant",
        chinese="huber_c 随时间步下降的方式：snr、exponential、constant")
    huber_c: float = option("learning", 0.1, above=0, in_block=False,
        english="error above which huber and smooth_l1 count no longer quadratically, at the noisiest timestep",
        chinese="huber、smooth_l1 由平方转为线性的误差界限（噪声最大的时间步）")
    huber_scale: float = option("learning", 1.0, above=0, in_block=False,
        english="factor of huber_c with the schedules exponential and constant",
        chinese="huber_c 的倍数，用于 exponential 和 constant")
    scale_v_pred_loss_like_noise_pred: bool = option("learning", False, in_block=False,
        english="weight the timesteps of a v model like those of an epsilon model",
        chinese="让 v 预测模型各时间步的权重与 epsilon 模型相同")
    v_pred_like_loss: float | None = option("learning", None, minimum=0, in_block=False,
        english="add the loss as a v model would weigh it, times this; for epsilon models; None: off",
        chinese="再加上按 v 预测方式加权的损失乘以此值；用于 epsilon 模型；None 表示不用")
    debiased_estimation_loss: bool = option("learning", False, in_block=False,
        english="give noisy timesteps, where the composition is decided, more weight",
        chinese="提高噪声大的时间步（决定构图）的权重")

    # ---- images and captions ----
    caption_extension: str = option("data", ".txt",
        english="extension of the caption files, .txt or .caption",
        chinese="标注文件的扩展名，.txt 或 .caption")
    shuffle_caption: bool = option("data", False,
        english="shuffle the comma-separated tags at each use; slower: the text encoder runs at every step",
        chinese="每次使用时打乱逗号分隔的标签；更慢：每步都要运行文本编码器")
    keep_tokens: int = option("data", 0, minimum=0,
        english="this many first tags stay in place when shuffling and are never dropped, usually 1 (the trigger word)",
        chinese="打乱时前几个标签保持不动，也不会被去掉，常用 1（触发词）")
    keep_tokens_separator: str | None = option("data", None, in_block=False,
        english='separator before the tags that may be shuffled, and after them, such as "|||"; if set, overrides keep_tokens; None: none',
        chinese='分隔固定标签与可打乱标签的记号，如 "|||"，可在前后各写一个；优先于 keep_tokens；None 表示没有')
    caption_separator: str = option("data", ",", in_block=False,
        english="what separates tags, usually a comma",
        chinese="标签之间的分隔符，一般为英文逗号")
    secondary_separator: str | None = option("data", None, in_block=False,
        english='tags joined by this, such as ";;;", are moved and dropped together, and then separated; None: none',
        chinese='用它连接的标签（如 ";;;"）作为一组打乱和丢弃，之后再分开；None 表示没有')
    enable_wildcard: bool = option("data", False, in_block=False,
        english="use a random line of the caption each time, and a random one of each {a|b|c}; {{ and }} are braces; slower, as shuffle_caption",
        chinese="每次使用随机取标注文件的一行，{a|b|c} 随机取一个；{{ 和 }} 表示花括号本身；与 shuffle_caption 一样更慢")
    token_warmup_min: int = option("data", 1, minimum=0, in_block=False,
        english="with token_warmup_step: the number of tags at the beginning",
        chinese="配合 token_warmup_step：开始时的标签数")
    token_warmup_step: int | float = option("data", 0, minimum=0, in_block=False,
        english="steps until all tags of a caption are shown, a number or a share below 1; more are added step by step; 0: at once",
        chinese="标签逐步增加，经过这么多步才全部出现；可填步数或小于 1 的比例；0 表示一开始就全部使用")
    caption_prefix: str | None = option("data", None, in_block=False,
        english="text put before every caption",
        chinese="加在每条标注最前面的文字")
    caption_suffix: str | None = option("data", None, in_block=False,
        english="text put after every caption",
        chinese="加在每条标注最后面的文字")
    caption_dropout_rate: float = option("data", 0.0, minimum=0, maximum=1,
        english="share of uses with an empty caption, 0~0.1",
        chinese="以空标注训练的比例，0~0.1")
    caption_dropout_every_n_epochs: int | None = option("data", None, minimum=1,
        english="every n-th epoch with empty captions; None: none",
        chinese="每隔几轮有一轮全部使用空标注；None 表示没有")
    caption_tag_dropout_rate: float = option("data", 0.0, minimum=0, maximum=1,
        english="share of tags dropped at each use, 0~0.2",
        chinese="每次随机去掉的标签比例，0~0.2")
    weighted_captions: bool = option("data", False, in_block=False,
        english="read (smile:1.2), (smile) and [smile] in captions as weights; no comma inside brackets where tags are shuffled",
        chinese="把标注中的 (smile:1.2)、(smile)、[smile] 当作词的权重；若会打乱标签，括号内不要有逗号")
    max_token_length: int = option("data", 150, choices=(75, 150, 225),
        english="caption tokens that are read: 75, 150 or 225; the rest is cut; more is somewhat slower",
        chinese="每条标注最多读取的 token 数：75、150 或 225，超出部分被截掉；越多略慢")
    enable_bucket: bool = option("data", True,
        english="train every image near its own aspect ratio; False: crop all to one size",
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
        english="never enlarge small images",
        chinese="不放大小图")
    flip_aug: bool = option("data", False,
        english="also train on each image mirrored; not for asymmetric characters or text",
        chinese="同时学习左右翻转的图；不对称的角色、文字不要用")
    color_aug: bool = option("data", False,
        english="vary the colors a little; can't be used with cache_latents, so it is slower",
        chinese="轻微改变颜色；不能与 cache_latents 同用，因此更慢")
    random_crop: bool = option("data", False,
        english="crop randomly instead of at the center; can't be used with cache_latents, so it is slower",
        chinese="随机裁剪而不是居中裁剪；不能与 cache_latents 同用，因此更慢")
    masked_loss: bool | str = option("data", "auto", choices=("auto", True, False),
        english='train only where masks/photo.png beside photo.jpg is white, not where it is black; "auto": for images that have a mask; True: require masks; False: train on everything',
        chinese='只学习蒙版白色处，不学黑色处；photo.jpg 的蒙版是同目录下的 masks/photo.png；"auto"：有蒙版的图才用，True：必须有蒙版，False：全部学习')
    alpha_mask: bool = option("data", False,
        english="do not train on transparent parts; False: they become white, and white is learned",
        chinese="不学习图片的透明部分；False 表示透明处变成白色，并照样学习")
    dataset_config: str | None = option("data", None, path="file", in_block=False,
        english=".toml or .json in sd-scripts' form: several data sets, resolutions and folders, each with options of its own; if set, overrides train_data_dir and reg_data_dir; None: these",
        chinese="sd-scripts 格式的 .toml 或 .json：可有多个数据集，各自设定分辨率、目录与选项；优先于 train_data_dir 和 reg_data_dir；None 表示使用后两者")
    in_json: str | None = option("data", None, path="file", in_block=False,
        english="captions of all images in one .json or .jsonl; train_data_dir is then the folder of the images themselves; None: caption files",
        chinese="把全部标注写在一个 .json 或 .jsonl 文件里；此时 train_data_dir 填图片所在目录；None 表示用标注文件")
    dataset_repeats: int = option("data", 1, minimum=1, in_block=False,
        english="how often every image is used in an epoch, with in_json, or where dataset_config gives no num_repeats",
        chinese="每张图每轮使用的次数，用于 in_json，或 dataset_config 没有写 num_repeats 的目录")
    conditioning_data_dir: str | None = option("data", None, path="folder", in_block=False,
        english="folder of the masks instead of masks/ beside the images: photo.png for photo.jpg, in it or in its sub-folder named as the images'",
        chinese="蒙版目录，代替图片旁的 masks/：photo.jpg 的蒙版为 photo.png，直接放在里面，或放在与图片目录同名的子目录里")
    face_crop_aug_range: str | None = option("data", None, in_block=False,
        english="crop around the face of images named name_x_y_width_height, at a random scale: the shorter side is so many faces long, such as \"2.0,4.0\"; can't be used with cache_latents; None: off",
        chinese='对名为 名称_x_y_宽_高 的图片，以人脸为中心按随机比例裁剪：短边为人脸的若干倍，如 "2.0,4.0"；不能与 cache_latents 同用；None 表示不用')
    resize_interpolation: str | None = option("data", None, in_block=False,
        choices=("lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area", "box"),
        english="how images are resized: lanczos, nearest, bilinear, bicubic, area; None: about area to shrink, lanczos to enlarge",
        chinese="缩放图片的方法：lanczos、nearest、bilinear、bicubic、area；None：缩小用近似 area 的方法，放大用 lanczos")
    skip_image_resolution: int | str | None = option("data", None, in_block=False,
        english='skip images with at most this many pixels: 512 (512 x 512) or "width,height"; None: none',
        chinese='跳过像素数不超过此尺寸的图片：512（即 512 x 512）或 "宽,高"；None 表示不跳过')
    validation_split: float | str = option("data", "auto", minimum=0, maximum=0.9,
        english='share of the training images held out for validation, to find the best epoch; "auto": a tenth from 10 images on; 0: none',
        chinese='留出多少比例的训练图片做验证，据此推荐用哪一轮；"auto"：满 10 张时留出十分之一；0 表示不留')
    validation_data_dir: str | None = option("data", None, path="folder", in_block=False,
        english="a folder of other images for validation instead of validation_split: with [repeats]_[concept] folders, or images, and their captions; None: none",
        chinese="另用一个目录里的图片（及其标注）来测量，代替 validation_split：可含 [重复次数]_[概念] 目录，也可直接放图片；None 表示不用")
    validation_seed: int | None = option("data", None, minimum=0, maximum=2**32 - 1, in_block=False,
        english="seed for which images are held out and the noise they are measured with; None: seed",
        chinese="决定留出哪些图片，以及测量所用的噪声；None 表示同 seed")
    validate_every_n_epochs: int | None = option("data", None, minimum=1, in_block=False,
        english="validate every n epochs and at the end; None: of every epoch, or as often as takes less than 5% of the time",
        chinese="每几轮结束时测量一次，训练结束时也测量；None 表示每轮，但总耗时不超过训练的 5%")
    validate_every_n_steps: int | None = option("data", None, minimum=1, in_block=False,
        english="also validate every n steps; None: off",
        chinese="另外每几步测量一次；None 表示不按步测量")
    max_validation_steps: int | None = option("data", None, minimum=1, in_block=False,
        english="validate on at most this many batches, to save time; None: all",
        chinese="每次最多测量多少批留出的图片，可节省时间；None 表示全部")
    debug_dataset: bool = option("data", False, in_block=False,
        english="only show what would be trained: images and captions of the first batches, as a page in output_dir; no training",
        chinese="只展示将要训练的内容：把最初几批的图片与标注写成 output_dir 里的网页，不训练")

    # ---- regularization ----
    prior_loss_weight: float = option("regularization", 0.3, minimum=0,
        english="weight of the regularization images, usually 0.3~1; at 1, as in sd-scripts, less of the subject is learned in the same steps, and it leaks less into prompts without the trigger word",
        chinese="正则化图片的权重，常用 0.3~1；sd-scripts 为 1，那样同样步数学到的主体较少，没写触发词时主体也较少冒出来")
    reg_captions: bool = option("regularization", True,
        english="read the caption files of regularization images; False: the text of their folder's name only",
        chinese="读取正则化图片的标注文件；False 表示只用文件夹名中的文字")
    reg_rotate: bool = option("regularization", True,
        english="with more regularization images than needed, rotate them over the epochs; False: only the first ones, as sd-scripts",
        chinese="正则化图片有多余时各轮轮流使用；False 表示只用最前面的（与 sd-scripts 相同）")

    # ---- base model ----
    vae: str | None = option("model", None, path="model",
        english="another VAE: file or folder; None: the base model's own",
        chinese="外置 VAE：文件或文件夹；None 表示用底模自带的")
    no_half_vae: bool = option("model", False, in_block=False,
        english="let the VAE compute in float32; in fp16 it does in any case; more time and memory while images are encoded",
        chinese="让 VAE 以 float32 计算；fp16 时本来就是如此；编码图片时更慢、更占显存")
    v_parameterization: bool = option("model", False,
        english="require that the base model predicts v; it is detected automatically",
        chinese="指定底模为 v 预测；会自动识别，一般不用填")

    # ---- performance ----
    mixed_precision: str = option("performance", "auto", choices=("auto", "no", "fp16", "bf16"),
        english='arithmetic: "no" (fp32, slow, most memory), "fp16", "bf16"; "auto": by the device',
        chinese='计算精度："no"（fp32，慢、最占显存）、"fp16"、"bf16"；"auto" 按设备选择')
    gradient_checkpointing: bool | str = option("performance", "auto", choices=("auto", True, False),
        english='less memory, but slower: computes blocks twice; "auto": as few as the device needs; True: all (about 40% more compute)',
        chinese='梯度检查点，省显存但更慢："auto" 按显存只用于必要的几个模块，True 用于全部（计算量约多 40%）')
    int8_base: bool = option("performance", False,
        english="keep the frozen base model's linear layers in 8 bits: half the memory of fp16 (SDXL: 2 GB less), somewhat slower, small rounding",
        chinese="底模线性层以 8 位保存：比 fp16 省一半（SDXL 约省 2 GB），稍慢，有微小舍入误差")
    attention: str = option("performance", "auto", choices=("auto", "sdpa", "chunked"), in_block=False,
        english="\"sdpa\": torch's own; \"chunked\": a part at a time, for devices where torch keeps the whole matrix; \"auto\": tested on the device",
        chinese='"sdpa"：torch 自带；"chunked"：分块计算，用于 torch 会保留整个矩阵的设备；"auto" 自动试出')
    cuda_graphs: bool = option("performance", False, in_block=False,
        english="record a step for each shape of batch and start it as one (NVIDIA); same result, checked at its first use; needs memory; not yet tested on a GPU by us",
        chinese="按批次形状录制训练步并整体启动（NVIDIA）；结果相同，首次使用时会核对；占显存；我们尚未在显卡上试过")
    torch_compile: bool = option("performance", False, in_block=False,
        english="compile the denoiser's blocks: each size of image takes minutes at first and more memory; whether it is faster depends on the device",
        chinese="编译去噪网络的各个模块：每种图片尺寸首次需数分钟，并多占显存；是否更快取决于设备")
    dynamo_backend: str = option("performance", "inductor", choices=("inductor", "aot_eager", "eager"), in_block=False,
        english="what torch_compile compiles with: inductor; the others are for finding errors",
        chinese="torch_compile 使用的后端：inductor；其余用于排查错误")
    gradient_accumulation_steps: int = option("performance", 1, minimum=1,
        english="batches per step, usually 1~4: a larger batch without more memory; a step takes that many times as long",
        chinese="每步累积几个批次，常用 1~4：不增加显存而变相增大批次；每步时间成倍增长")
    cache_latents: bool = option("performance", True,
        english="encode each image once; faster, less memory",
        chinese="每张图只编码一次；更快，更省显存")
    cache_latents_to_disk: bool = option("performance", True,
        english="keep the encoded images for the next run; some disk space",
        chinese="把编码结果存盘，下次直接用；占少量硬盘空间")
    cache_dir: str | None = option("performance", None, path="output",
        english="where they are kept; None: .cache in the training folder",
        chinese="存盘位置；None 表示训练集目录下的 .cache")
    vae_batch_size: int | None = option("performance", None, minimum=1, in_block=False,
        english="images that are encoded at once for the cache; more needs more memory; None: as train_batch_size",
        chinese="缓存时一次编码几张图；越大越占显存；None 表示同 train_batch_size")
    cache_text_encoder_outputs: bool | str = option("performance", "auto", choices=("auto", True, False),
        english="encode each caption once; only where the text encoder is not trained and captions stay the same; faster",
        chinese="每条标注只编码一次；只在不训练文本编码器且标注不变时可用；更快")
    max_data_loader_n_workers: int = option("performance", 2, minimum=0,
        english="threads that prefetch images, 0~8; each needs some memory",
        chinese="预读图片的线程数，0~8；每个占用一些内存")
    lowram: bool = option("performance", False, in_block=False,
        english="load the base model straight to the device; saves main memory",
        chinese="底模直接载入显卡，省内存")
    device: str = option("performance", "auto",
        english='"auto", "cpu", "cuda", "cuda:1" (the second GPU), "mps"; AMD (ROCm) is "cuda" too',
        chinese='计算设备："auto"、"cpu"、"cuda"、"cuda:1"（第二块显卡）、"mps"；AMD（ROCm）也写 "cuda"')
    device_plan: str = option("performance", "apply", choices=("apply", "print only"), in_block=False,
        english='what AMD cards need in the environment: "apply": set it and say so; "print only": show it, without training',
        chinese='AMD 显卡所需的环境变量："apply"：自动设置并说明；"print only"：只显示，不训练')

    num_processes: int = option("performance", 1, minimum=1,
        english="processes on this machine, one for each GPU; a step then sees that many batches; 1: one device",
        chinese="本机进程数，每块显卡一个；每步处理相应倍数的批次；1 表示单卡")
    num_machines: int = option("performance", 1, minimum=1, in_block=False,
        english="machines that train together; start the same on each, with its own machine_rank",
        chinese="一起训练的机器数；在每台机器上同样启动，各填自己的 machine_rank")
    machine_rank: int = option("performance", 0, minimum=0, in_block=False,
        english="which of them this one is, counted from 0; the first writes the files",
        chinese="本机是第几台，从 0 数起；第一台负责写文件")
    main_process_ip: str | None = option("performance", None, in_block=False,
        english="address of the first machine; None: this one",
        chinese="第一台机器的地址；None 表示本机")
    main_process_port: int | None = option("performance", None, minimum=1, maximum=65535, in_block=False,
        english="its port, open in its firewall; None: a free one on one machine, 29500 on several",
        chinese="第一台机器的端口，需在防火墙放行；None：单机自动选取，多机用 29500")
    ddp_timeout: int | None = option("performance", None, minimum=1, in_block=False,
        english="minutes that processes wait for one another; None: 720",
        chinese="各进程互相等待的最长分钟数；None 表示 720")

    # ---- previews ----
    sample_prompts: str | None = option("preview", None, path="prompts",
        english="file with a prompt per line (.txt), or .toml, .json, or the prompt itself, with weights as in a web UI: (word:1.2); None: prompts from the captions of the set",
        chinese="预览提示词文件：.txt 每行一条，或 .toml、.json；也可直接写提示词；权重写法与 web UI 相同，如 (词:1.2)；None 表示用训练集的标注")
    sample_every_n_epochs: int | None = option("preview", None, minimum=0,
        english="generate previews every n epochs; each takes as long as some steps; None: only at the end; 0: never",
        chinese="每几轮画一次预览；每次要花几步的时间；None 表示只在最后画，0 表示不画")
    sample_every_n_steps: int | None = option("preview", None, minimum=1,
        english="generate previews every n steps; None: not by steps",
        chinese="每几步画一次预览；None 表示不按步数")
    sample_at_first: bool = option("preview", False,
        english="also generate them before training, to compare",
        chinese="训练前也画一次，便于比较")
    sample_strengths: list[float] | None = option("preview", None, minimum=-10, maximum=10,
        english="LoRA strengths of the final previews, besides 0 and 1; each generates all prompts once more; None: [0.5]",
        chinese="训练结束时预览图使用的 LoRA 强度，另外总会画 0 和 1；每多一个就把所有提示词多画一遍；None 表示 [0.5]")
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
    save_last_n_epochs_state: int | None = option("output", None, minimum=1, in_block=False,
        english="the same for the training states beside them; None: as save_last_n_epochs",
        chinese="随之保存的训练状态只保留最近几个；None 表示同 save_last_n_epochs")
    save_n_epoch_ratio: int | None = option("output", None, minimum=1, in_block=False,
        english="keep at least this many files over the whole training, evenly by epochs; if set, overrides save_every_n_epochs; None: by that",
        chinese="整个训练中按轮数均匀地至少保存这么多个文件；优先于 save_every_n_epochs；None 表示按后者")
    save_last_n_steps: int | None = option("output", None, minimum=1, in_block=False,
        english="of the files kept by save_every_n_steps, those older than n steps are removed; None: none",
        chinese="save_every_n_steps 存下的文件超过 n 步就删除；None 表示全部保留")
    save_last_n_steps_state: int | None = option("output", None, minimum=1, in_block=False,
        english="the same for the training states beside them; None: as save_last_n_steps",
        chinese="随之保存的训练状态超过 n 步就删除；None 表示同 save_last_n_steps")
    keep_best: bool = option("output", True,
        english="also save name-best.safetensors: the last epoch whose loss of held-out and regularization images is not above the lowest",
        chinese="另存 名称-best.safetensors：留出图片与正则化图片的损失没有明显高于最低值的最后一轮")
    early_stop: int | None = option("output", None, minimum=1,
        english="end the training when the loss of the held-out images has not fallen for this many measurements, usually 3~5; None: train to the end",
        chinese="留出图片的损失连续这么多次测量都没有下降就提前结束，常用 3~5；None 表示训练到底")
    save_precision: str = option("output", "fp16", choices=("fp16", "bf16", "float"),
        english='number format of the file: "fp16" (half the size), "bf16", "float"',
        chinese='文件精度："fp16"（小一半）、"bf16"、"float"')
    save_model_as: str = option("output", "safetensors", choices=("safetensors", "ckpt", "pt"),
        english="file format: safetensors, ckpt or pt",
        chinese="文件格式：safetensors、ckpt 或 pt")
    save_state: bool = option("output", False,
        english="also save what is needed to continue exactly; a few times the LoRA's size each",
        chinese="同时保存训练状态，以便原样继续训练；每份为 LoRA 的几倍大小")
    save_state_on_train_end: bool = option("output", False, in_block=False,
        english="save the training state at the end only",
        chinese="只在训练结束时保存训练状态")
    initial_epoch: int | None = option("output", None, minimum=1, in_block=False,
        english="begin with this epoch's data and number, counted from 1, without a training state; None: the first",
        chinese="不用训练状态，从第几轮（从 1 数起）的数据和编号开始；None 表示第一轮")
    initial_step: int | None = option("output", None, minimum=1, in_block=False,
        english="begin as if this many steps were done, at the start of the epoch they end in; if set, overrides initial_epoch; None: at 0",
        chinese="当作已训练过这么多步，从它所在那一轮的开头开始；优先于 initial_epoch；None 表示 0")
    skip_until_initial_step: bool = option("output", False, in_block=False,
        english="begin exactly at initial_step, in the middle of its epoch",
        chinese="恰好从 initial_step 处开始，即该轮的中间")
    resume: str | None = option("output", "auto",
        english='"auto": continue a run of this name that was stopped or killed; "new": start over; or a folder named ...-state',
        chinese='"auto"：同名训练若曾中断则接着训练；"new"：重新开始；也可填 ...-state 文件夹')
    no_metadata: bool = option("output", False,
        english="write no training details into the file",
        chinese="文件里不写训练信息")
    training_comment: str | None = option("output", None,
        english="a note kept in the file",
        chinese="写入文件的备注")
    logging_dir: str | None = option("output", None, path="output",
        english="also write TensorBoard curves here; None: not",
        chinese="TensorBoard 曲线的目录；None 表示不写")
    metadata_title: str | None = option("output", None, in_block=False,
        english="title in the file's modelspec metadata; None: output_name",
        chinese="写入 modelspec 元数据的标题；None 表示用 output_name")
    metadata_author: str | None = option("output", None, in_block=False,
        english="author, in the same place",
        chinese="作者，写在同一处")
    metadata_description: str | None = option("output", None, in_block=False,
        english="description, in the same place",
        chinese="说明，写在同一处")
    metadata_license: str | None = option("output", None, in_block=False,
        english="licence, in the same place",
        chinese="许可证，写在同一处")
    metadata_tags: str | None = option("output", None, in_block=False,
        english="tags, in the same place, separated by commas",
        chinese="标签，写在同一处，用逗号分隔")
    metadata_usage_hint: str | None = option("output", None, in_block=False,
        english="how to use it, in the same place, such as a strength",
        chinese="用法提示（如建议强度），写在同一处")
    metadata_thumbnail: str | None = option("output", None, path="image", in_block=False,
        english="thumbnail: image file or data URL, in the same place",
        chinese="缩略图：图片文件或 data URL，写在同一处")
    metadata_merged_from: str | None = option("output", None, in_block=False,
        english="the models it was merged from, in the same place",
        chinese="由哪些模型合并而来，写在同一处")
    metadata_trigger_phrase: str | None = option("output", None, in_block=False,
        english="trigger words, in the same place",
        chinese="触发词，写在同一处")
    metadata_preprocessor: str | None = option("output", None, in_block=False,
        english="preprocessor it needs, in the same place",
        chinese="所需的预处理器，写在同一处")
    metadata_is_negative_embedding: str | None = option("output", None, in_block=False,
        english='"true" for a negative embedding, in the same place',
        chinese='是否为负面嵌入，填 "true"，写在同一处')
    log_with: str | None = option("output", None, choices=("tensorboard", "wandb", "all"), in_block=False,
        english='where to log curves: "tensorboard" (needs logging_dir), "wandb" (sends them to wandb.ai), "all"; None: TensorBoard if logging_dir is set',
        chinese='用什么画曲线："tensorboard"（需要 logging_dir）、"wandb"（上传到 wandb.ai）、"all"；None：填了 logging_dir 就用 TensorBoard')
    log_prefix: str | None = option("output", None, in_block=False,
        english="every run gets a folder of its own in logging_dir, named after this and its time; None: no such folder",
        chinese="每次训练在 logging_dir 下单独建目录，名称为此前缀加时间；None 表示不建")
    log_tracker_name: str | None = option("output", None, in_block=False,
        english='the project on wandb, and a folder in logging_dir; None: "network_train", and no such folder',
        chinese='wandb 的项目名，也是 logging_dir 下的子目录名；None：项目名为 "network_train"，不建子目录')
    log_tracker_config: str | None = option("output", None, path="file", in_block=False,
        english=".toml with tables [wandb] and [tensorboard]: more settings of their init and of SummaryWriter",
        chinese="含 [wandb]、[tensorboard] 表的 .toml 文件：传给 wandb.init 与 SummaryWriter 的其他参数")
    log_config: bool = option("output", False, in_block=False,
        english="show the parameters beside the curves, too",
        chinese="把训练参数也显示在曲线旁")
    wandb_run_name: str | None = option("output", None, in_block=False,
        english="name of the run on wandb; None: wandb makes one up",
        chinese="此次训练在 wandb 上的名称；None 表示由 wandb 取名")
    wandb_api_key: str | None = option("output", None, in_block=False, is_secret=True,
        english="key of wandb; None: that of wandb login, or of WANDB_API_KEY",
        chinese="wandb 的密钥；None 表示用 wandb login 或 WANDB_API_KEY 的")
    console_log_level: str = option("output", "INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"), in_block=False,
        english="what the terminal shows: INFO: everything; WARNING: notes and errors; ERROR: errors",
        chinese="终端显示什么：INFO 全部；WARNING 只有注意事项和错误；ERROR 只有错误")
    console_log_file: str | None = option("output", None, path="new file", in_block=False,
        english="also append what the terminal shows to this file; None: not",
        chinese="终端显示的内容同时追加到此文件；None 表示不写")
    console_log_simple: bool = option("output", False, in_block=False,
        english="plain lines, no progress bar",
        chinese="只输出普通文字行，不用进度条")
    tag_occurrence_txt_file: bool = option("output", True,
        english="write the count of all tags beside the result",
        chinese="在输出目录写出标签统计")
    sort_tag_occurrence_alphabetically: bool = option("output", False,
        english="that list sorted by name, not by count",
        chinese="标签统计按名称排序，而不是按次数")
    language: str = option("output", "auto", choices=("auto", "en", "zh"),
        english='language of the messages: "auto" (by the system), "en", "zh"',
        chinese='提示语言："auto"（按系统）、"en"、"zh"')
    open_pages: bool | str = option("output", "auto", choices=("auto", True, False),
        english='open the report in the browser at the end: "auto" where there is a screen, True, False',
        chinese='结束时在浏览器里打开报告："auto" 有屏幕时打开，True，False')
    notify_at_end: bool | str = option("output", "auto", choices=("auto", True, False),
        english='announce the end of a training of ten minutes or more by a sound and a message: "auto" where there is a screen, True, False',
        chinese='训练超过十分钟时，结束后以提示音和桌面消息通知："auto" 有屏幕时通知，True，False')

    # ---- presets: only the parameter block needs them ----
    save_json_folder: str | None = option("presets", None, path="output", is_flag=False,
        english="keep these parameters as a .json preset in this folder; None: not",
        chinese="把本次参数存为 .json 预设的目录；None 表示不存")
    load_json_path: str | None = option("presets", None, path="file", is_flag=False,
        english="a preset: its values replace those above",
        chinese="读取预设，其值取代上面的参数")
    json_load_skip_list: list[str] | None = option("presets", None, is_flag=False,
        english='names not taken from presets, such as ["train_data_dir"]',
        chinese='不从预设读取的参数名，如 ["train_data_dir"]')
    multi_run_folder: str | None = option("presets", None, path="folder", is_flag=False,
        english="train every preset of this folder, one after another; finished ones move to complete/",
        chinese="依次训练此目录中的每个预设，完成的移入 complete/")
# fmt: on


TRAINING = declared(Config, TITLE, GROUPS)
OPTIONS = TRAINING.options
SECRETS = {option.name for option in OPTIONS.values() if option.is_secret}
