"""Draw pictures with LoRAs: a grid of prompts and strengths. Edit the values below, then run this file; it takes no
arguments.

试用 LoRA：按提示词和强度画对比图。修改下面的参数，然后直接运行本文件，不需要任何命令行参数。
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
pretrained_model_name_or_path = "library/miniature/model"  # base model: .safetensors, .ckpt or diffusers folder; as delivered: the built-in miniature | 底模：.safetensors、.ckpt 文件或 diffusers 文件夹；默认是自带的微型模型
loras = ["output/mytag.safetensors"]  # the LoRA files to try, one row of pictures for each and each strength; None: only what the prompts name | 要试的 LoRA 文件，每个文件、每种强度画一行；None 表示只用提示词里写的
prompts = ["mytag, standing, white background", "red circle, white background"]  # one column for each, as in the web UI: "(word:1.2)", "[word]", "<lora:name:0.6>" for further LoRAs of lora_dir | 每条一列，写法与 web UI 相同："(词:1.2)"、"[词]"、"<lora:名称:0.6>" 可再加 lora_dir 里的 LoRA

# ---- Often changed | 经常修改 ----
strengths = [0.0, 0.6, 1.0]  # strengths of each LoRA, usually 0.5~1; 0 shows the base model | 每个 LoRA 的强度，常用 0.5~1；0 表示只用底模
negative_prompt = ""         # what shall not be seen, in the same writing | 反向提示词，写法相同
resolution = "auto"          # size of the pictures: "auto" (the base model's own), 512, or "width,height" | 图片尺寸："auto" 按底模，也可填 512 或 "宽,高"
seeds = [1]                  # seeds; each draws a grid of its own | 随机种子，每个种子画一张对比图
lora_dir = None              # where <lora:name:0.6> is looked for, such as the web UI's models/Lora; None: beside the files of loras | <lora:名称:0.6> 从哪里找，如 web UI 的 models/Lora；None 表示 loras 所在的目录

# ---- Seldom changed | 较少修改 ----
sampler = "euler_a"       # sampler: euler_a, euler, ddim, dpmsolver++, heun, ... | 采样器：euler_a、euler、ddim、dpmsolver++、heun 等
steps = 25                # steps of the sampler, usually 20~30 | 采样步数，常用 20~30
guidance_scale = 7.0      # how closely the prompt is followed, usually 5~8 | 提示词引导强度（CFG），常用 5~8
clip_skip = None          # 1 or None: real-life models; 2: anime models (NovelAI line); SDXL ignores it | 1 或 None 用于写实模型，2 用于二次元模型（NovelAI 系）；SDXL 不用此项
hires_scale = 1.0         # draw a second time at this many times the size, usually 1.5~2; 1: not | 按此倍数放大后再画一遍（高清修复），常用 1.5~2；1 表示不用
hires_strength = 0.5      # how much the second time may change, usually 0.3~0.6 | 高清修复的重绘幅度，常用 0.3~0.6
vae = None                # another VAE: file or folder; None: the base model's own | 外置 VAE：文件或文件夹；None 表示用底模自带的
mixed_precision = "auto"  # arithmetic: "no" (fp32), "fp16", "bf16"; "auto": by the device | 计算精度："no"（fp32）、"fp16"、"bf16"；"auto" 按设备选择
device = "auto"           # "auto", "cpu", "cuda", "cuda:1", "mps"; AMD (ROCm) is "cuda" too | 计算设备："auto"、"cpu"、"cuda"、"cuda:1"、"mps"；AMD（ROCm）也写 "cuda"

# ---- Output | 输出 ----
language = "auto"            # language of the messages: "auto" (by the system), "en", "zh" | 提示语言："auto"（按系统）、"en"、"zh"
output_dir = "output/tried"  # where the grids, the single pictures and the summary go | 对比图、单张图和结果页的输出目录

# ---- Do not edit below | 请勿修改下方内容 ----

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library import block
from library.tool_config import TOOLS


def main() -> int:
    return block.run_tool(__file__, globals(), TOOLS["try_lora.py"], lambda settings: 0)


if __name__ == "__main__":
    raise SystemExit(main())
