"""Step 4: draw regularization pictures with the base model. Edit the values below, then run this file; it takes no
arguments. Stop it at any time: started again, it goes on.

第 4 步：用底模生成正则化图片。修改下面的参数，然后直接运行本文件，不需要任何命令行参数。随时可以停止，再次运行会接着做。
"""

# Values are Python: 512, 10 * 2, 1e-4, "text", True, False, None (not given).
# Windows paths need the r: r"D:\pictures\train", or / for \: "D:/pictures/train".
# A SyntaxError at the start: look in the line it names for a missing quote, or for “ ” ， in place of " ,
#
# 参数值用 Python 写法：512、10 * 2、1e-4、"文字"、True、False、None（不填）。
# Windows 路径前面要加 r：r"D:\图片\训练集"，或用 / 代替 \："D:/图片/训练集"。
# 启动时报 SyntaxError：请看它指出的那一行，是否漏了引号，或用了中文标点 “ ” ，
#
# fmt: off

# ---- Must edit | 必须修改 ----
pretrained_model_name_or_path = "library/miniature/model"  # the base model that you will train on: .safetensors, .ckpt or diffusers folder; as delivered: the built-in miniature | 将要用来训练的底模：.safetensors、.ckpt 文件或 diffusers 文件夹；默认是自带的微型模型
train_data_dir = "output/train"       # the folder that HOLDS the folders named [repeats]_[concept], as in lora_train_command_line.py | 训练集目录，里面放 [重复次数]_[概念] 形式的文件夹，与 lora_train_command_line.py 中相同
output_dir = "output/reg"             # where the regularization folders are made; it is then your reg_data_dir | 正则化图片的输出目录；之后把它填入 reg_data_dir

# ---- Often changed | 经常修改 ----
prompts = "captions"    # what is drawn: the training pictures' own "captions" without your word, one picture for each, or only the "class words" below | 画什么："captions" 按每张训练图的标签（去掉触发词）各画一张，"class words" 只用下面的类别词
class_words = "1girl"   # what your subject is, such as "1girl" or "a photo of a woman"; also takes the place of a caption that is empty without your word | 主体的类别，如 "1girl" 或 "a photo of a woman"；去掉触发词后为空的标签也用它
remove_words = None     # further words to leave out of the captions; the folders' own words always are; None: none | 另外要从标签中去掉的词；目录名里的词总会去掉；None 表示没有
images_per_caption = 1  # pictures drawn for each training picture, usually 1 | 每张训练图对应生成的张数，常用 1
negative_prompt = ""    # what shall not be seen, such as "lowres, bad anatomy"; empty: nothing is said | 反向提示词，如 "lowres, bad anatomy"；留空表示不用
resolution = "auto"     # as in lora_train_command_line.py: "auto", 512, 768, 1024; each picture gets the size of its training picture's bucket | 与 lora_train_command_line.py 中相同："auto"、512、768、1024；每张图的尺寸与对应训练图的桶相同

# ---- Seldom changed | 较少修改 ----
sampler = "euler_a"         # sampler: euler_a, euler, ddim, dpmsolver++, heun, ... | 采样器：euler_a、euler、ddim、dpmsolver++、heun 等
steps = 25                  # steps of the sampler, usually 20~30 | 采样步数，常用 20~30
guidance_scale = 7.0        # how closely the prompt is followed, usually 5~8 | 提示词引导强度（CFG），常用 5~8
seed = 1                    # same seed, same pictures | 随机种子，相同则图片相同
clip_skip = None            # as in lora_train_command_line.py: 2 for anime models of SD 1.x | 与 lora_train_command_line.py 中相同：SD 1.x 二次元模型用 2
vae = None                  # another VAE: file or folder; None: the base model's own | 外置 VAE：文件或文件夹；None 表示用底模自带的
mixed_precision = "auto"    # arithmetic: "no" (fp32), "fp16", "bf16"; "auto": by the device | 计算精度："no"（fp32）、"fp16"、"bf16"；"auto" 按设备选择
device = "auto"             # "auto", "cpu", "cuda", "cuda:1", "mps"; AMD (ROCm) is "cuda" too | 计算设备："auto"、"cpu"、"cuda"、"cuda:1"、"mps"；AMD（ROCm）也写 "cuda"
caption_extension = ".txt"  # ending of the caption files, .txt or .caption | 标签文件的扩展名，.txt 或 .caption

# ---- Output | 输出 ----
language = "auto"  # language of the messages: "auto" (by the system), "en", "zh" | 提示语言："auto"（按系统）、"en"、"zh"

# ---- Do not edit below | 请勿修改下方内容 ----

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library import block
from library.tool_config import TOOLS


def main() -> int:
    return block.run_tool(__file__, globals(), TOOLS["make_reg_images.py"], lambda settings: 0)


if __name__ == "__main__":
    raise SystemExit(main())
