"""Step 3: write tags for every picture. Edit the values below, then run this file; it takes no arguments.

第 3 步：给每张图片打标签。修改下面的参数，然后直接运行本文件，不需要任何命令行参数。
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
images_dir = "output/prepared"  # the folder of pictures, its sub-folders too; a .txt is written beside each | 图片目录，含子目录；每张图旁边会写一个 .txt
trigger_word = "mytag"          # your own word, put before all tags; None: none (a [repeats]_[concept] folder's own word is used in its place) | 自己的触发词，放在所有标签之前；None 表示不加（[重复次数]_[概念] 目录用目录名里的词）

# ---- Often changed | 经常修改 ----
tagger = "auto"             # a WD-style tagger: folder with model.onnx and selected_tags.csv, or a hub name such as "SmilingWolf/wd-swinv2-tagger-v3"; "auto": a local one if there is one; None: folder words and facts of the picture only | WD 系标签模型：含 model.onnx 和 selected_tags.csv 的目录，或模型库名称如 "SmilingWolf/wd-swinv2-tagger-v3"；"auto"：有本地的就用；None：只用目录名和图片本身的信息
general_threshold = 0.35    # how sure the tagger must be of a general tag, usually 0.25~0.5; lower gives more tags and more wrong ones | 一般标签的置信度下限，常用 0.25~0.5；越低标签越多，错的也越多
character_threshold = 0.85  # the same for names of known characters, usually 0.7~0.9; 1: none of them | 已知角色名的置信度下限，常用 0.7~0.9；1 表示不要角色名
existing = "keep"           # pictures that have tags already: "keep" theirs as they are, "add" what is missing, or "replace" them (the old ones go to .backup) | 已有标签的图片："keep" 不动，"add" 补上缺少的，"replace" 换掉（旧的存入 .backup）
exclude_tags = None         # tags that are never written, such as ["signature", "watermark"]; None: none | 不写入的标签，如 ["signature", "watermark"]；None 表示没有

# ---- Seldom changed | 较少修改 ----
rating_tags = False         # also write the rating (general, sensitive, ...) | 同时写入分级标签（general、sensitive 等）
underscores = False         # write long_hair instead of long hair; emoticons such as ^_^ keep theirs | 写成 long_hair 而不是 long hair；^_^ 之类的颜文字不变
escape_brackets = False     # write \( and \) for brackets, as in a web UI's prompt; in a caption the \ would be learnt with the tag | 标签里的括号写成 \( 和 \)，与 web UI 提示词一致；但写进标签文件时，\ 会跟着标签一起被学进去
picture_facts = True        # where there is no tagger: also the picture's format, plain background and prevailing colour | 没有标签模型时，也写入画面方向、纯色背景和主色调
batch_size = 4              # pictures tagged at once, 1~8 on a CPU, 8~32 on a GPU | 每批处理的图片数，CPU 用 1~8，显卡用 8~32
models_dirs = None          # further folders with models, such as a web UI's ["D:/stable-diffusion-webui"]; None: the usual places | 另外查找模型的目录，如 web UI 所在的 ["D:/stable-diffusion-webui"]；None 表示只查常用位置
device = "auto"             # where the tagger runs: "auto", "cpu", "cuda" (AMD too) | 标签模型运行的设备："auto"、"cpu"、"cuda"（AMD 也写 cuda）
caption_extension = ".txt"  # ending of the caption files, .txt or .caption | 标签文件的扩展名，.txt 或 .caption

# ---- Output | 输出 ----
language = "auto"           # language of the messages: "auto" (by the system), "en", "zh" | 提示语言："auto"（按系统）、"en"、"zh"
output_dir = "output/tags"  # where the summary goes | 结果页的输出目录

# ---- Do not edit below | 请勿修改下方内容 ----

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library import block
from library.tool_config import TOOLS


def main() -> int:
    return block.run_tool(__file__, globals(), TOOLS["tag_images.py"], lambda settings: 0)


if __name__ == "__main__":
    raise SystemExit(main())
