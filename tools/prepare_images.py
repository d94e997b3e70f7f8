"""Step 1 and 2: make a clean set of raw pictures. Edit the values below, then run this file; it takes no arguments.

第 1、2 步：把收集来的图片整理成干净的训练图片。修改下面的参数，然后直接运行本文件，不需要任何命令行参数。
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
images_dir = "pictures"         # the folder of raw pictures, its sub-folders too; nothing in it is ever changed | 原始图片目录，含子目录；其中的文件绝不会被改动
output_dir = "output/prepared"  # where the clean pictures, their masks and the summary go; made if missing | 整理后的图片、蒙版和结果页的输出目录，没有会自动建立
resolution = 512                # the training resolution the pictures are meant for: 512 (SD 1.x), 768 (SD 2.x v), 1024 (SDXL) | 这些图片将用于的训练分辨率：SD 1.x 为 512，SD 2.x v 为 768，SDXL 为 1024

# ---- Often changed | 经常修改 ----
duplicates = "leave out"     # the same picture again, at any size: "leave out" all but the best of each group, or "keep" them; both are shown | 重复的图片（包括大小不同的）："leave out" 每组只留最好的一张，"keep" 全部保留；两种都会列出
trim_borders = True          # cut off plain borders and letterboxes | 裁掉单色边框和黑边
text = "show"                # text and watermarks: "show" what is proposed in the summary, "erase" it too (look at what was shown first), "off": do not look for it | 文字与水印："show" 只在结果页标出，"erase" 同时擦除（请先看标出的对不对），"off" 不查找
background = "keep"          # what is behind the subject: "keep" it, a plain "colour", or "transparent"; by a local rembg model if there is one, else OpenCV's GrabCut, which wants looking at | 主体之外的背景："keep" 保留，"colour" 换成纯色，"transparent" 变透明；有本地 rembg 模型就用它，否则用 OpenCV 的 GrabCut，结果需要过目
background_colour = "white"  # the colour of a plain background: a name such as "white" or "#rrggbb" | 纯色背景的颜色：名称如 "white"，或 "#rrggbb"
faces = "keep"               # "erase" them (a garment without its model's face), "cut out" only them, or the "recipe": cut-out faces as training set and the full pictures as regularization | 人脸："erase" 擦除（训练衣服时不要模特的脸），"cut out" 只截取脸部，"recipe"：脸部作训练集、完整图片作正则化
regions = None               # a text file of further regions to erase, one a line: "photo 1.jpg: left, top, width, height" in pixels of the upright picture or in %; None: none | 另外要擦除的区域，文本文件，每行一处："照片1.jpg: 左, 上, 宽, 高"，单位为像素（按摆正后的图）或 %；None 表示没有

# ---- Seldom changed | 较少修改 ----
face_margin = 0.5   # room around a face that is cut out, in sides of the face, usually 0.3~1 | 截取脸部时四周留出的空间，以脸的边长为单位，常用 0.3~1
upscale = "auto"    # pictures that are too small: "auto" by a local super-resolution model (web UI folders are searched), else Lanczos, which adds nothing; "lanczos"; "off"; or a model file | 太小的图片："auto" 优先用本地超分辨率模型（会查找 web UI 目录），没有则用 Lanczos（不会增加细节）；"lanczos"；"off"；或填模型文件
denoise = 0.0       # strength of noise removal, usually 3~10; blurs a little, so only for noisy pictures; 0: none | 去噪强度，常用 3~10；会略微变糊，只用于噪点多的图；0 表示不去噪
similarity = 6      # how many of 64 hash bits may differ in the same picture, usually 4~10; more finds more and errs more | 判为同一张图时 64 位哈希允许不同的位数，常用 4~10；越大找得越多，也越容易误判
models_dirs = None  # further folders with models, such as a web UI's ["D:/stable-diffusion-webui"]; None: the usual places | 另外查找模型的目录，如 web UI 所在的 ["D:/stable-diffusion-webui"]；None 表示只查常用位置
device = "auto"     # where models run: "auto", "cpu", "cuda" (AMD too) | 模型运行的设备："auto"、"cpu"、"cuda"（AMD 也写 cuda）

# ---- Output | 输出 ----
language = "auto"  # language of the messages: "auto" (by the system), "en", "zh" | 提示语言："auto"（按系统）、"en"、"zh"
overwrite = False  # make pictures anew that are already there; False: those made from the same picture in the same way stay, anything else in their place is an error | 已有的图片重新生成；False：来源与设置都相同的保留，位置被其他文件占用则报错

# ---- Do not edit below | 请勿修改下方内容 ----

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library import block
from library.tool_config import TOOLS


def main() -> int:
    return block.run_tool(__file__, globals(), TOOLS["prepare_images.py"], lambda settings: 0)


if __name__ == "__main__":
    raise SystemExit(main())
