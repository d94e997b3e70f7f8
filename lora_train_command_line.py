"""Train a LoRA: edit the values below, then run this file. It takes no arguments.

训练 LoRA：修改下面的参数，然后直接运行本文件，不需要任何命令行参数。
"""

# Values are Python: 512, 10 * 2, 1e-4, "text", True, False, None (not given).
# Windows paths need the r: r"D:\pictures\train", or / for \: "D:/pictures/train".
# SyntaxError at the start? A missing quote, “ ” ， for " , or \ without r: python tools/doctor.py says which.
#
# 参数值用 Python 写法：512、10 * 2、1e-4、"文字"、True、False、None（不填）。
# Windows 路径前面要加 r：r"D:\图片\训练集"，或用 / 代替 \："D:/图片/训练集"。
# 启动时报 SyntaxError？多半是漏了引号、用了中文标点 “ ” ， 或路径没加 r：python tools/doctor.py 会用中文指出来。
#
# fmt: off

# ---- Must edit | 必须修改 ----
pretrained_model_name_or_path = r"library/miniature/model"  # base model: .safetensors, .ckpt or diffusers folder of SD 1.x, SD 2.x or SDXL; default: the built-in miniature | 底模：SD 1.x、SD 2.x 或 SDXL 的 .safetensors、.ckpt 文件或 diffusers 文件夹；默认是自带的微型模型
images_dir = r"pictures"              # your raw images, including sub-folders, which tools/prepare_images.py cleans; nothing in it is ever changed | 您收集的原始图片所在的目录，含子目录，由 tools/prepare_images.py 整理；其中的文件绝不会被改动
trigger_word = "mytag"                # the word that calls your subject up, a made-up one; the scripts in tools/ put it into captions and folder names; None: none | 触发词，请用自造的词；tools/ 里的脚本会把它写进标注和目录名；None 表示没有
train_data_dir = r"auto"              # the folder that CONTAINS the folders named [repeats]_[concept], such as 10_mytag; not such a folder itself; "auto": what tools/sort_into_folders.py made in output_dir/train; before that, the built-in miniature's | 训练集目录：里面放 [重复次数]_[概念] 形式的文件夹，如 10_mytag；填它们的上一级，不要填到里面；"auto"：tools/sort_into_folders.py 在 output_dir/train 里建好的；还没有时用自带的微型训练集
reg_data_dir = r"auto"                # regularization images, in folders of the same form; about doubles the steps; "auto": what tools/make_reg_images.py made in output_dir/reg, if anything; None: without (overfits sooner) | 正则化图片目录，结构与训练集相同；步数约加倍；"auto"：tools/make_reg_images.py 在 output_dir/reg 里画好的，没有则不用；None 表示不用（更容易过拟合）
output_dir = r"output"                # where the result goes; made if missing | 输出目录，没有会自动建立
output_name = "auto"                  # name of the result, without extension; "auto": the trigger word | 输出文件名，不带扩展名；"auto" 表示用触发词
preset = None                         # what you train: "character", "style", "garment" or "face" sets repeats, rank, epochs and tags here and in tools/ to what suits it, each named with its reason; what you changed stays, a value still as delivered counts as not set; None: nothing is set | 训练什么："character" 角色、"style" 画风、"garment" 服装、"face" 人脸；会为这里和 tools/ 设定合适的重复次数、秩、轮数和标签，并逐项说明理由；您改过的保持不变，仍是默认值的视为未填；None 表示不设定

# ---- Often changed | 经常修改 ----
resolution = "auto"      # training size: 512 (SD 1.x), 768 (SD 2.x v), 1024 (SDXL), or "width,height"; time and memory grow with the area; "auto": the base model's own | 训练分辨率：SD 1.x 用 512，SD 2.x v 用 768，SDXL 用 1024，也可写 "宽,高"；时间与显存随面积增长；"auto" 按底模决定
train_batch_size = 2     # images per step, 1~6 on 12 GB at 512; more needs more memory | 每步图片数，12 GB 显存 512 分辨率可用 1~6；越大越占显存
max_train_epochs = 10    # how many times the whole set is seen, usually 4~20; takes longer, and too many overfit | 训练轮数，常用 4~20；时间随之增长，过多会过拟合
max_train_steps = None   # number of steps, usually 1000~3000; if set, overrides max_train_epochs; None: by epochs | 训练步数，常用 1000~3000；填写后优先于 max_train_epochs；None 表示按轮数
learning_rate = None     # learning rate, usually 5e-5~2e-4 (Lion a third, Prodigy 1); None: by model and optimizer, 1e-4 for AdamW on SD | 学习率，常用 5e-5~2e-4（Lion 用三分之一，Prodigy 用 1）；None 表示按底模和优化器决定，SD 配 AdamW 为 1e-4
unet_lr = None           # learning rate of the denoiser (the U-Net), usually None; None: as learning_rate; 0: do not train it | 去噪网络（U-Net）的学习率，常用 None；None 表示同 learning_rate，0 表示不训练
text_encoder_lr = None   # text encoder's own learning rate, usually half of the denoiser's to the same; None: as learning_rate; 0: do not train it (faster); SDXL: [1e-5, 5e-6] for its two | 文本编码器学习率，常用去噪网络的一半到相同；None 表示同 learning_rate，0 表示不训练（更快）；SDXL 有两个，可写 [1e-5, 5e-6]
network_dim = 32         # rank, usually 4~128; larger learns more, overfits sooner, and makes a larger file | 秩，常用 4~128；越大学得越多，也越容易过拟合，文件越大
network_alpha = 32.0     # the update is scaled by alpha / dim, usually half of dim to dim; None or 0: as dim | 更新量乘以 alpha / dim，常用 dim 的一半到等于 dim；None 或 0 表示等于 dim
save_every_n_epochs = 2  # also keep a file every n epochs, usually 1~4, to go back to when the last one is overfitted; None: only the last | 每几轮另存一个文件，常用 1~4，过拟合时可以退回；None 表示只存最后一个
clip_skip = None         # 1 or None: realistic models; 2: anime models (NovelAI and its descendants); SDXL ignores it | 1 或 None 用于写实模型，2 用于二次元模型（NovelAI 系）；SDXL 不用此项
seed = 23                # same seed, same result; None: a new one, which is printed | 随机种子，相同则结果相同；None 表示随机选取并打印出来

# ---- Seldom: the LoRA itself | 较少修改：LoRA 本身 ----
network_module = "lora"               # kind of adapter: lora (fastest); dora, loha, lokr learn differently, lokr's file is small; slower; read by web UIs | 网络种类：lora（最快）；dora、loha、lokr 学习方式不同，lokr 文件小，训练较慢；网页界面均可读取
network_weights = None                # start from this LoRA file; takes its weights, not its position in the training | 从已有的 LoRA 文件开始训练，只读权重，不含训练进度
conv_dim = None                       # also adapt the 3x3 convolutions, with this rank, usually 4~16; larger file, somewhat slower; None: not | 同时训练 3x3 卷积层，填它们的秩，常用 4~16；文件更大，略慢；None 表示不训练
conv_alpha = 1.0                      # alpha of those convolutions, usually 1 to conv_dim; None or 0: as conv_dim | 这些卷积层的 alpha，常用 1 到 conv_dim；None 或 0 表示等于 conv_dim
network_dropout = None                # share of the LoRA's inner values dropped while training, 0.1~0.5; less overfitting, slower learning; None: none | 训练时随机丢弃 LoRA 内部值的比例，0.1~0.5；减轻过拟合，但学得更慢；None 表示不丢弃
network_train_unet_only = False       # train only the denoiser (the U-Net); faster, less memory | 只训练去噪网络（U-Net）；更快，更省显存
network_train_text_encoder_only = False  # train only the text encoder; learns far less | 只训练文本编码器；能学到的少得多
scale_weight_norms = None             # upper limit for the norm of each layer's update, usually 1; less overfitting; None: no limit | 每层更新量的范数上限，常用 1；减轻过拟合；None 表示不限制

# ---- Seldom: learning | 较少修改：学习 ----
optimizer_type = "AdamW"     # optimizer: AdamW, AdamW8bit, Lion, Prodigy, DAdaptAdam, AdamWScheduleFree, Adafactor, SGDNesterov, ..., or an import path such as pytorch_optimizer.CAME | 优化器：AdamW、AdamW8bit、Lion、Prodigy、DAdaptAdam、AdamWScheduleFree、Adafactor、SGDNesterov 等，或导入路径如 pytorch_optimizer.CAME
optimizer_args = None        # its extra settings, such as ["weight_decay=0.1", "betas=0.9,0.99"]; None: its defaults | 优化器附加参数，如 ["weight_decay=0.1", "betas=0.9,0.99"]；None 表示用默认值
lr_scheduler = "cosine"      # how the learning rate moves: constant, constant_with_warmup, linear, cosine, cosine_with_restarts, cosine_with_min_lr, polynomial, inverse_sqrt, warmup_stable_decay, piecewise_constant, adafactor | 学习率变化方式：constant、constant_with_warmup、linear、cosine、cosine_with_restarts、cosine_with_min_lr、polynomial、inverse_sqrt、warmup_stable_decay、piecewise_constant、adafactor
lr_scheduler_num_cycles = 1  # number of cycles of cosine_with_restarts, usually 1~4 | cosine_with_restarts 的周期数，常用 1~4
lr_scheduler_power = 1.0     # exponent of polynomial, usually 1~2 | polynomial 的指数，常用 1~2
lr_warmup_steps = 0          # steps until the full learning rate: a number such as 100, or a share such as 0.05 or "5%" | 学习率升到最大所用的步数：如 100；也可写占总步数的比例，如 0.05 或 "5%"
max_grad_norm = 1.0          # clip the gradient norm to this, usually 1; 0: never | 梯度裁剪上限，常用 1；0 表示不裁剪
min_snr_gamma = 5.0          # min-SNR: weight easy timesteps less, usually 5; learns more in the same steps; None: off, as in sd-scripts | 降低容易的时间步的权重，常用 5；同样步数学得更多；None 表示不用（sd-scripts 的默认）
noise_offset = None          # helps with very dark and very bright images, usually 0.03~0.1; None: off | 便于学习很暗或很亮的图，常用 0.03~0.1；None 表示不用

# ---- Seldom: images and captions | 较少修改：图片与标注 ----
caption_extension = ".txt"            # extension of the caption files, .txt or .caption | 标注文件的扩展名，.txt 或 .caption
shuffle_caption = False               # shuffle the comma-separated tags at each use; slower: the text encoder runs at every step | 每次使用时打乱逗号分隔的标签；更慢：每步都要运行文本编码器
keep_tokens = 0                       # this many first tags stay in place when shuffling and are never dropped, usually 1 (the trigger word) | 打乱时前几个标签保持不动，也不会被去掉，常用 1（触发词）
caption_dropout_rate = 0.0            # share of uses with an empty caption, 0~0.1 | 以空标注训练的比例，0~0.1
caption_dropout_every_n_epochs = None  # every n-th epoch with empty captions; None: none | 每隔几轮有一轮全部使用空标注；None 表示没有
caption_tag_dropout_rate = 0.0        # share of tags dropped at each use, 0~0.2 | 每次随机去掉的标签比例，0~0.2
max_token_length = 150                # caption tokens that are read: 75, 150 or 225; the rest is cut; more is somewhat slower | 每条标注最多读取的 token 数：75、150 或 225，超出部分被截掉；越多略慢
enable_bucket = True                  # train every image near its own aspect ratio; False: crop all to one size | 按图片长宽比分桶训练；False 表示全部裁成同一尺寸
min_bucket_reso = None                # shortest side of a bucket, usually 256~320 at 512; None: half of the resolution | 桶的最短边，512 时常用 256~320；None 表示分辨率的一半
max_bucket_reso = None                # longest side of a bucket, usually 960~1024 at 512; None: twice the resolution | 桶的最长边，512 时常用 960~1024；None 表示分辨率的两倍
bucket_reso_steps = None              # sides of buckets are multiples of this, a multiple of 8; None: 64 (the miniature: 16) | 桶边长的步进，须为 8 的倍数；None 表示 64（微型模型为 16）
bucket_no_upscale = False             # never enlarge small images | 不放大小图
flip_aug = False                      # also train on each image mirrored; not for asymmetric characters or text | 同时学习左右翻转的图；不对称的角色、文字不要用
color_aug = False                     # vary the colors a little; can't be used with cache_latents, so it is slower | 轻微改变颜色；不能与 cache_latents 同用，因此更慢
random_crop = False                   # crop randomly instead of at the center; can't be used with cache_latents, so it is slower | 随机裁剪而不是居中裁剪；不能与 cache_latents 同用，因此更慢
masked_loss = "auto"                  # train only where masks/photo.png beside photo.jpg is white, not where it is black; "auto": for images that have a mask; True: require masks; False: train on everything | 只学习蒙版白色处，不学黑色处；photo.jpg 的蒙版是同目录下的 masks/photo.png；"auto"：有蒙版的图才用，True：必须有蒙版，False：全部学习
alpha_mask = False                    # do not train on transparent parts; False: they become white, and white is learned | 不学习图片的透明部分；False 表示透明处变成白色，并照样学习
validation_split = "auto"             # share of the training images held out for validation, to find the best epoch; "auto": a tenth from 10 images on; 0: none | 留出多少比例的训练图片做验证，据此推荐用哪一轮；"auto"：满 10 张时留出十分之一；0 表示不留

# ---- Seldom: regularization images | 较少修改：正则化图片 ----
prior_loss_weight = 0.3  # weight of the regularization images, usually 0.3~1; at 1, as in sd-scripts, less of the subject is learned in the same steps, and it leaks less into prompts without the trigger word | 正则化图片的权重，常用 0.3~1；sd-scripts 为 1，那样同样步数学到的主体较少，没写触发词时主体也较少冒出来
reg_captions = True      # read the caption files of regularization images; False: the text of their folder's name only | 读取正则化图片的标注文件；False 表示只用文件夹名中的文字
reg_rotate = True        # with more regularization images than needed, rotate them over the epochs; False: only the first ones, as sd-scripts | 正则化图片有多余时各轮轮流使用；False 表示只用最前面的（与 sd-scripts 相同）

# ---- Seldom: base model | 较少修改：底模 ----
vae = None                  # another VAE: file or folder; None: the base model's own | 外置 VAE：文件或文件夹；None 表示用底模自带的
v_parameterization = False  # require that the base model predicts v; it is detected automatically | 指定底模为 v 预测；会自动识别，一般不用填

# ---- Speed and memory | 速度与显存 ----
mixed_precision = "auto"             # arithmetic: "no" (fp32, slow, most memory), "fp16", "bf16"; "auto": by the device | 计算精度："no"（fp32，慢、最占显存）、"fp16"、"bf16"；"auto" 按设备选择
gradient_checkpointing = "auto"      # less memory, but slower: computes blocks twice; "auto": as few as the device needs; True: all (about 40% more compute) | 梯度检查点，省显存但更慢："auto" 按显存只用于必要的几个模块，True 用于全部（计算量约多 40%）
int8_base = False                    # keep the frozen base model's linear layers in 8 bits: half the memory of fp16 (SDXL: 2 GB less), somewhat slower, small rounding | 底模线性层以 8 位保存：比 fp16 省一半（SDXL 约省 2 GB），稍慢，有微小舍入误差
gradient_accumulation_steps = 1      # batches per step, usually 1~4: a larger batch without more memory; a step takes that many times as long | 每步累积几个批次，常用 1~4：不增加显存而变相增大批次；每步时间成倍增长
cache_latents = True                 # encode each image once; faster, less memory | 每张图只编码一次；更快，更省显存
cache_latents_to_disk = True         # keep the encoded images for the next run; some disk space | 把编码结果存盘，下次直接用；占少量硬盘空间
cache_dir = None                     # where they are kept; None: .cache in the training folder | 存盘位置；None 表示训练集目录下的 .cache
cache_text_encoder_outputs = "auto"  # encode each caption once; only where the text encoder is not trained and captions stay the same; faster | 每条标注只编码一次；只在不训练文本编码器且标注不变时可用；更快
max_data_loader_n_workers = 2        # threads that prefetch images, 0~8; each needs some memory | 预读图片的线程数，0~8；每个占用一些内存
device = "auto"                      # "auto", "cpu", "cuda", "cuda:1" (the second GPU), "mps"; AMD (ROCm) is "cuda" too | 计算设备："auto"、"cpu"、"cuda"、"cuda:1"（第二块显卡）、"mps"；AMD（ROCm）也写 "cuda"
num_processes = 1                    # processes on this machine, one for each GPU; a step then sees that many batches; 1: one device | 本机进程数，每块显卡一个；每步处理相应倍数的批次；1 表示单卡

# ---- Output: previews while training | 输出：训练中的预览图 ----
sample_prompts = None         # file with a prompt per line (.txt), or .toml, .json, or the prompt itself, with weights as in a web UI: (word:1.2); None: prompts from the captions of the set | 预览提示词文件：.txt 每行一条，或 .toml、.json；也可直接写提示词；权重写法与 web UI 相同，如 (词:1.2)；None 表示用训练集的标注
sample_every_n_epochs = None  # generate previews every n epochs; each takes as long as some steps; None: only at the end; 0: never | 每几轮画一次预览；每次要花几步的时间；None 表示只在最后画，0 表示不画
sample_every_n_steps = None   # generate previews every n steps; None: not by steps | 每几步画一次预览；None 表示不按步数
sample_at_first = False       # also generate them before training, to compare | 训练前也画一次，便于比较
sample_strengths = None       # LoRA strengths of the final previews, besides 0 and 1; each generates all prompts once more; None: [0.5] | 训练结束时预览图使用的 LoRA 强度，另外总会画 0 和 1；每多一个就把所有提示词多画一遍；None 表示 [0.5]
sample_sampler = "euler_a"    # sampler of the previews: euler_a, euler, ddim, dpmsolver++, heun, ... | 预览采样器：euler_a、euler、ddim、dpmsolver++、heun 等

# ---- Output: saving and logs | 输出：保存与日志 ----
save_every_n_steps = None             # also keep a file every n steps; None: not by steps | 每几步另存一个文件；None 表示不按步数
save_last_n_epochs = None             # of the files kept by save_every_n_epochs, only the last n stay; None: all | save_every_n_epochs 存下的文件只保留最近几个；None 表示全部保留
keep_best = True                      # also save name-best.safetensors: the last epoch whose loss of held-out and regularization images is not above the lowest | 另存 名称-best.safetensors：留出图片与正则化图片的损失没有明显高于最低值的最后一轮
early_stop = None                     # end the training when the loss of the held-out images has not fallen for this many measurements, usually 3~5; None: train to the end | 留出图片的损失连续这么多次测量都没有下降就提前结束，常用 3~5；None 表示训练到底
save_precision = "fp16"               # number format of the file: "fp16" (half the size), "bf16", "float" | 文件精度："fp16"（小一半）、"bf16"、"float"
save_model_as = "safetensors"         # file format: safetensors, ckpt or pt | 文件格式：safetensors、ckpt 或 pt
save_state = False                    # also save what is needed to continue exactly; a few times the LoRA's size each | 同时保存训练状态，以便原样继续训练；每份为 LoRA 的几倍大小
resume = "auto"                       # "auto": continue a run of this name that was stopped or killed; "new": start over; or a folder named ...-state | "auto"：同名训练若曾中断则接着训练；"new"：重新开始；也可填 ...-state 文件夹
no_metadata = False                   # write no training details into the file | 文件里不写训练信息
training_comment = None               # a note kept in the file | 写入文件的备注
logging_dir = None                    # also write TensorBoard curves here; None: not | TensorBoard 曲线的目录；None 表示不写
tag_occurrence_txt_file = True        # write the count of all tags beside the result | 在输出目录写出标签统计
sort_tag_occurrence_alphabetically = False  # that list sorted by name, not by count | 标签统计按名称排序，而不是按次数
language = "auto"                     # language of the messages: "auto" (by the system), "en", "zh" | 提示语言："auto"（按系统）、"en"、"zh"
open_pages = "auto"                   # open the report in the browser at the end: "auto" where there is a screen, True, False | 结束时在浏览器里打开报告："auto" 有屏幕时打开，True，False
notify_at_end = "auto"                # announce the end of a training of ten minutes or more by a sound and a message: "auto" where there is a screen, True, False | 训练超过十分钟时，结束后以提示音和桌面消息通知："auto" 有屏幕时通知，True，False

# ---- Output: presets and queues | 输出：预设与队列 ----
save_json_folder = None     # keep these parameters as a .json preset in this folder; None: not | 把本次参数存为 .json 预设的目录；None 表示不存
load_json_path = None       # a preset: its values replace those above | 读取预设，其值取代上面的参数
json_load_skip_list = None  # names not taken from presets, such as ["train_data_dir"] | 不从预设读取的参数名，如 ["train_data_dir"]
multi_run_folder = None     # train every preset of this folder, one after another; finished ones move to complete/ | 依次训练此目录中的每个预设，完成的移入 complete/

# fmt: on
# ---- Do not edit below | 请勿修改下方内容 ----


def main() -> int:
    """Check the values above, print the same run as a command, and train. torch is imported after the checks."""
    from library.messages import log
    from library.options import command_line, parameter_block

    def train(config, warnings):
        log.info(command_line.command(config))
        import train_network

        return train_network.run(config, warnings)

    return parameter_block.run_training(__file__, globals(), train)


if __name__ == "__main__":
    raise SystemExit(main())
