"""Step 3, after tagging: see what every tag will do, and change tags over the whole set. As delivered nothing is
changed, only shown. Edit the values below, then run this file; it takes no arguments.

第 3 步，打完标签之后：查看每个标签的作用，成批修改标签。默认只查看，不改动。
修改下面的参数，然后直接运行本文件，不需要任何命令行参数。
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
images_dir = "output/prepared"  # the folder of pictures with caption files beside them, its sub-folders too | 带标签文件的图片目录，含子目录
trigger_word = "mytag"          # your own word, put first in every caption; None: none (a [repeats]_[concept] folder's own word is used in its place) | 自己的触发词，放在每条标签的最前面；None 表示不加（[重复次数]_[概念] 目录用目录名里的词）
action = "show"                 # "show" what would change, "apply" it, or "undo" the last change that was applied | "show" 只显示将要做的改动，"apply" 执行，"undo" 撤销上一次执行的改动

# ---- Often changed | 经常修改 ----
delete_tags = None   # tags whose features shall move to your own word, such as ["school uniform", "short sleeves"]; * stands for any letters; None: none | 要删除的标签，其特征会转移到触发词上，如 ["school uniform", "short sleeves"]；* 代表任意字符；None 表示没有
replace_tags = None  # tags to write otherwise, such as ["serafuku -> sailor suit"]; None: none | 要替换的标签，如 ["serafuku -> sailor suit"]；None 表示没有
add_tags = None      # tags to add to every caption, behind your own word; None: none | 给每条标签添加的标签，放在触发词之后；None 表示没有
imply_tags = None    # where the first tag is, the second is added, such as ["pleated skirt -> skirt"]; None: none | 出现前一个标签时补上后一个，如 ["pleated skirt -> skirt"]；None 表示没有

# ---- Seldom changed | 较少修改 ----
remove_duplicates = True    # a tag that stands twice in a caption, in whatever spelling (long_hair, Long Hair), stands once | 同一条里重复的标签（包括 long_hair、Long Hair 等不同写法）只留一个
order = "keep"              # order of the tags behind your own word: "keep", "frequent first" or "alphabetical" | 触发词之后的标签顺序："keep" 不变，"frequent first" 常见的在前，"alphabetical" 按字母
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
    return block.run_tool(__file__, globals(), TOOLS["edit_tags.py"], lambda settings: 0)


if __name__ == "__main__":
    raise SystemExit(main())
