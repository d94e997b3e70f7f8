"""One page over everything: pictures, tags, buckets, regularization, parameters, machine; what is wrong and how to
cure it. It reads lora_train_command_line.py and trains nothing. Run this file; it takes no arguments.

一页看清全部：图片、标签、分桶、正则化、参数、机器，哪里有问题、怎么解决。它读取 lora_train_command_line.py，不训练。
直接运行本文件，不需要任何命令行参数。
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

# ---- Often changed | 经常修改 ----
script = "lora_train_command_line.py"  # the file whose parameters are looked at: a copy of lora_train_command_line.py, or a .toml of train_network.py | 要检查的参数文件：lora_train_command_line.py 或它的副本，也可以是 train_network.py 的 .toml

# ---- Seldom changed | 较少修改 ----
similarity = 6        # how many of 64 hash bits may differ in the same picture, usually 4~10 | 判为同一张图时 64 位哈希允许不同的位数，常用 4~10
check_machine = True  # also look at the device; imports torch, which takes some seconds | 同时检查设备；需要导入 torch，耗时数秒

# ---- Output | 输出 ----
language = "auto"             # language of the messages: "auto" (by the system), "en", "zh" | 提示语言："auto"（按系统）、"en"、"zh"
output_dir = "output/doctor"  # where the page goes | 结果页的输出目录

# ---- Do not edit below | 请勿修改下方内容 ----

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library import block
from library.tool_config import TOOLS


def main() -> int:
    return block.run_tool(__file__, globals(), TOOLS["doctor.py"], lambda settings: 0)


if __name__ == "__main__":
    raise SystemExit(main())
