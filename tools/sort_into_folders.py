"""Step 5: put pictures and captions into [repeats]_[concept] folders. As delivered they are copied. Edit the values
below, then run this file; it takes no arguments.

第 5 步：把图片和标签放进 [重复次数]_[概念] 目录。默认是复制。修改下面的参数，然后直接运行本文件，不需要任何命令行参数。
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
images_dir = "output/prepared"  # the folder of pictures with their captions and masks; sub-folders become concepts of their own | 图片及其标签、蒙版所在的目录；子目录各成一个概念
output_dir = "output/train"     # where the [repeats]_[concept] folders are made; it is then your train_data_dir | 在这里建立 [重复次数]_[概念] 目录；之后把它填入 train_data_dir
concept = "mytag"               # the word that will call it up; a made-up one. Sub-folders take their own names | 触发词，请用自造的词；子目录则用各自的名称

# ---- Often changed | 经常修改 ----
repeats = None         # how often each picture is seen in an epoch; None: proposed from the next three | 每轮中每张图的重复次数；None 表示按下面三项推算
target_steps = 1500    # steps that the training shall have, usually 1000~3000; with regularization images it has about twice as many | 希望的训练步数，常用 1000~3000；使用正则化图片时约加倍
max_train_epochs = 10  # as in lora_train_command_line.py | 与 lora_train_command_line.py 中相同
train_batch_size = 2   # as in lora_train_command_line.py | 与 lora_train_command_line.py 中相同
action = "copy"        # "show" the plan only, "copy", "move", or "link" (no further disk space) | "show" 只显示方案，"copy" 复制，"move" 移动，"link" 硬链接（不多占硬盘）

# ---- Seldom changed | 较少修改 ----
pretrained_model_name_or_path = None  # base model, whose tokenizer is asked what your word means to it; None: that of SD 1.x and SDXL | 底模，用其分词器检查触发词；None 表示用 SD 1.x 与 SDXL 的分词器
caption_extension = ".txt"            # ending of the caption files, .txt or .caption | 标签文件的扩展名，.txt 或 .caption

# ---- Output | 输出 ----
language = "auto"  # language of the messages: "auto" (by the system), "en", "zh" | 提示语言："auto"（按系统）、"en"、"zh"

# ---- Do not edit below | 请勿修改下方内容 ----

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library import block
from library.tool_config import TOOLS


def main() -> int:
    return block.run_tool(__file__, globals(), TOOLS["sort_into_folders.py"], lambda settings: 0)


if __name__ == "__main__":
    raise SystemExit(main())
