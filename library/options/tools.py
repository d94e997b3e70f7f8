"""Every option of the scripts in tools/ once, declared as the training's are in `training`.

The block at the top of each script is written from its class (`python -m library.options` writes all), a test keeps
them equal, and `parameter_block.run_tool` checks the values. The docstring of a class is the first lines of its script. An
option that means the same in several scripts has the same name; those of the training have sd-scripts' names.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from library.messages import say
from library.options.declaration import PROJECT, AnyDeclared, declared, option

GROUPS = {
    "must": ("Must edit", "必须修改"),
    "often": ("Often changed", "经常修改"),
    "seldom": ("Seldom changed", "较少修改"),
    "output": ("Output", "输出"),
}

# One option is three lines: what it is, what it means, 它是什么意思. The formatter would make seven of them.
# fmt: off
SAMPLERS = ("ddim", "pndm", "lms", "euler", "euler_a", "heun", "dpm_2", "dpm_2_a", "dpmsolver", "dpmsolver++",
            "dpmsingle")


@dataclass(frozen=True)
class Tool:
    """What all scripts have."""

    language: str = option("output", "auto", choices=("auto", "en", "zh"),
        english='language of the messages: "auto" (by the system), "en", "zh"',
        chinese='提示语言："auto"（按系统）、"en"、"zh"')
    open_pages: bool | str = option("output", "auto", choices=("auto", True, False),
        english='open the page in the browser at the end: "auto" where there is a screen, True, False',
        chinese='结束时在浏览器里打开结果页："auto" 有屏幕时打开，True，False')


@dataclass(frozen=True)
class PrepareImages(Tool):
    """Step 2: make a clean set of raw images. Edit the values below, then run this file; it takes no arguments.

    第 2 步：把收集来的图片整理成干净的训练图片。修改下面的参数，然后直接运行本文件，不需要任何命令行参数。
    """

    images_dir: str = option("must", "pictures", path="folder", shared="images_dir",
        english="folder of raw images, including sub-folders; nothing in it is ever changed; None: that of lora_train_command_line.py",
        chinese="原始图片目录，含子目录；其中的文件绝不会被改动；None 表示与 lora_train_command_line.py 相同")
    output_dir: str = option("must", "output/prepared", path="output", shared="{output_dir}/prepared",
        english="where the clean images, their masks and the summary go; made if missing; None: output/prepared",
        chinese="整理后的图片、蒙版和结果页的输出目录，没有会自动建立；None 表示 output/prepared")
    resolution: int = option("must", 512, minimum=16, maximum=8192, shared="resolution",
        english="training resolution the images are meant for: 512 (SD 1.x), 768 (SD 2.x v), 1024 (SDXL); None: that of lora_train_command_line.py, where \"auto\" is the base model's own",
        chinese='这些图片将用于的训练分辨率：SD 1.x 为 512，SD 2.x v 为 768，SDXL 为 1024；None 表示与 lora_train_command_line.py 相同，其中 "auto" 按底模决定')
    pretrained_model_name_or_path: str = option("seldom", "library/miniature/model", path="model", shared="pretrained_model_name_or_path",
        english='base model that the images are meant for, by which resolution "auto" is decided; None: that of lora_train_command_line.py',
        chinese='这些图片将用于的底模，"auto" 的分辨率由它决定；None 表示与 lora_train_command_line.py 相同')

    duplicates: str = option("often", "leave out", choices=("leave out", "keep"),
        english='duplicates, at any size: "leave out" all but the best of each group, or "keep" them; both are shown',
        chinese='重复的图片（包括大小不同的）："leave out" 每组只留最好的一张，"keep" 全部保留；两种都会列出')
    trim_borders: bool = option("often", True,
        english="cut off plain borders and letterboxes",
        chinese="裁掉单色边框和黑边")
    text: str = option("often", "show", choices=("off", "show", "erase"),
        english="text and watermarks: \"show\" suggestions in the summary, \"erase\" them too (what lies over a face or much of the image only when regions names it), \"off\": don't look for any",
        chinese='文字与水印："show" 只在结果页标出，"erase" 同时擦除（压在脸上或占画面较大的，须写进 regions 才擦），"off" 不查找')
    background: str = option("often", "keep", choices=("keep", "colour", "transparent"),
        english="what is behind the subject: \"keep\" it, a plain \"colour\", or \"transparent\"; by a local rembg model if there is one, else a small network for photographed people and GrabCut, whose results need checking",
        chinese='主体之外的背景："keep" 保留，"colour" 换成纯色，"transparent" 变透明；有本地 rembg 模型就用它，否则真人用自带的小模型、其余用 GrabCut，结果需要过目')
    background_colour: str = option("often", "white",
        english='the colour of a plain background: a name such as "white" or "#rrggbb"',
        chinese='纯色背景的颜色：名称如 "white"，或 "#rrggbb"')
    faces: str = option("often", "keep", choices=("keep", "erase", "erase head", "cut out", "recipe"),
        english="faces: \"erase\" them (for clothes without the wearer's face), \"erase head\" with the hair, \"cut out\" only them, or \"recipe\": cropped faces as training set and the full images as regularization",
        chinese='人脸："erase" 擦除（训练衣服时不要模特的脸），"erase head" 连头发一起擦除，"cut out" 只截取脸部，"recipe"：脸部作训练集、完整图片作正则化')
    regions: str | None = option("often", None, path="file",
        english='text file of more regions to erase, one per line: "photo 1.jpg: left, top, width, height" in pixels of the upright image or in %; None: none',
        chinese='另外要擦除的区域，文本文件，每行一处："照片1.jpg: 左, 上, 宽, 高"，单位为像素（按摆正后的图）或 %；None 表示没有')

    frames_per_video: int = option("seldom", 20, minimum=0, maximum=500,
        english="sharp, unlike frames taken from each video in images_dir, spread over it; 0: leave videos out",
        chinese="从 images_dir 的每个视频里最多取多少张清晰、互不相同、均匀分布的画面；0 表示不用视频")
    face_margin: float = option("seldom", 0.5, minimum=0, maximum=3,
        english="margin around a cropped face, as a multiple of the face's side, usually 0.3~1",
        chinese="截取脸部时四周留出的空间，以脸的边长为单位，常用 0.3~1")
    upscale: str = option("seldom", "auto",
        english='images that are too small: "auto" uses a local upscaler (web UI folders are searched), else Lanczos, which adds no detail; "lanczos"; "off"; or a model file',
        chinese='太小的图片："auto" 优先用本地超分辨率模型（会查找 web UI 目录），没有则用 Lanczos（不会增加细节）；"lanczos"；"off"；或填模型文件')
    denoise: float = option("seldom", 0.0, minimum=0, maximum=30,
        english="strength of noise removal, usually 3~10; blurs a little, so only for noisy images; 0: none",
        chinese="去噪强度，常用 3~10；会略微变糊，只用于噪点多的图；0 表示不去噪")
    similarity: int = option("seldom", 6, minimum=0, maximum=20,
        english="how many of 64 hash bits may differ between duplicates, usually 4~10; higher finds more, with more errors",
        chinese="判为同一张图时 64 位哈希允许不同的位数，常用 4~10；越大找得越多，也越容易误判")
    models_dirs: list[str] | None = option("seldom", None,
        english='further folders with models, such as a web UI\'s ["D:/stable-diffusion-webui"]; None: the usual places',
        chinese='另外查找模型的目录，如 web UI 所在的 ["D:/stable-diffusion-webui"]；None 表示只查常用位置')
    device: str = option("seldom", "auto",
        english='where models run: "auto", "cpu", "cuda" (AMD too)',
        chinese='模型运行的设备："auto"、"cpu"、"cuda"（AMD 也写 cuda）')
    overwrite: bool = option("output", False,
        english="remake images that already exist; False: keep those made from the same image with the same settings, anything else in their place is an error",
        chinese="已有的图片重新生成；False：来源与设置都相同的保留，位置被其他文件占用则报错")

    def chosen_model(self) -> Path | None:
        """The super-resolution model that `upscale` names; None: it is no file."""
        file = Path(os.path.expanduser(self.upscale))
        return next((path for path in (file, PROJECT / file) if path.is_file()), None)

    def contradictions(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """What cannot be done: (the options concerned, what is said behind the first one's value)."""
        from PIL import ImageColor

        raw, clean = (Path(os.path.realpath(folder)) for folder in (self.images_dir, self.output_dir))
        if raw == clean or raw in clean.parents:
            yield ("output_dir", "images_dir"), say(
                "is inside images_dir: the clean images would be treated as raw ones next time. Choose a folder beside it",
                "在 images_dir 里面：下次整理后的图片会被当成原始图片。请选它旁边的目录")
        elif clean in raw.parents:
            yield ("images_dir", "output_dir"), say(
                "is inside output_dir: later tools would treat raw images as clean ones. Choose another output_dir",
                "在 output_dir 里面：后面的工具会把原始图片当成整理好的。请换一个 output_dir")
        try:
            colour = ImageColor.getrgb(self.background_colour)
        except ValueError:
            colour = None
        if colour is None or len(colour) != 3:
            yield ("background_colour",), say(
                'is not a color: use a name such as "white" or "lightgray", or "#rrggbb"',
                '不是颜色：请写颜色名称，如 "white"、"lightgray"，或 "#rrggbb"')
        if self.upscale not in ("auto", "lanczos", "off") and self.chosen_model() is None:
            yield ("upscale",), say(
                'is neither "auto", "lanczos", "off" nor a file that exists',
                '不是 "auto"、"lanczos"、"off"，也不是存在的文件')
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            yield ("device",), say('is not one of "auto", "cpu", "cuda", "mps"', '应为 "auto"、"cpu"、"cuda" 或 "mps"')


@dataclass(frozen=True)
class TagImages(Tool):
    """Step 3: write tags for every image. Edit the values below, then run this file; it takes no arguments.

    第 3 步：给每张图片打标签。修改下面的参数，然后直接运行本文件，不需要任何命令行参数。
    """

    images_dir: str = option("must", "output/prepared", path="folder", shared="{output_dir}/prepared",
        english="folder of images, including sub-folders; a .txt is written beside each; None: output/prepared",
        chinese="图片目录，含子目录；每张图旁边会写一个 .txt；None 表示 output/prepared")
    trigger_word: str | None = option("must", "mytag", shared="trigger_word",
        english='trigger word, put before all tags; None: that of lora_train_command_line.py; "": none (the word of a [repeats]_[concept] folder is used instead)',
        chinese='触发词，放在所有标签之前；None 表示与 lora_train_command_line.py 相同；"" 表示不加（[重复次数]_[概念] 目录用目录名里的词）')

    tagger: str | None = option("often", "auto",
        english='a WD-style tagger: folder with model.onnx and selected_tags.csv, or a hub name such as "SmilingWolf/wd-swinv2-tagger-v3"; "auto": a local one if there is one; None: folder words and facts of the image only',
        chinese='WD 系标签模型：含 model.onnx 和 selected_tags.csv 的目录，或模型库名称如 "SmilingWolf/wd-swinv2-tagger-v3"；"auto"：有本地的就用；None：只用目录名和图片本身的信息')
    general_threshold: float = option("often", 0.35, minimum=0, maximum=1,
        english="confidence threshold for general tags, usually 0.25~0.5; lower gives more tags and more wrong ones",
        chinese="一般标签的置信度下限，常用 0.25~0.5；越低标签越多，错的也越多")
    character_threshold: float = option("often", 0.85, minimum=0, maximum=1,
        english="confidence threshold for character names, usually 0.7~0.9; 1: none",
        chinese="已知角色名的置信度下限，常用 0.7~0.9；1 表示不要角色名")
    existing: str = option("often", "keep", choices=("keep", "add", "replace"),
        english='images that already have tags: "keep" them, with the trigger word put first, "add" what is missing, or "replace" them (the old ones go to .backup)',
        chinese='已有标签的图片："keep" 保留，只在最前面补上触发词，"add" 补上缺少的，"replace" 换掉（旧的存入 .backup）')
    exclude_tags: list[str] | None = option("often", None,
        english='tags that are never written, such as ["signature", "watermark"]; None: none',
        chinese='不写入的标签，如 ["signature", "watermark"]；None 表示没有')

    rating_tags: bool = option("seldom", False,
        english="also write the rating (general, sensitive, ...)",
        chinese="同时写入分级标签（general、sensitive 等）")
    underscores: bool = option("seldom", False,
        english="write long_hair instead of long hair; emoticons such as ^_^ keep theirs",
        chinese="写成 long_hair 而不是 long hair；^_^ 之类的颜文字不变")
    escape_brackets: bool = option("seldom", False,
        english="write \\( and \\) for brackets, as in a web UI's prompt; the training reads them as ( and )",
        chinese="标签里的括号写成 \\( 和 \\)，与 web UI 提示词一致；训练时按 ( 和 ) 读取")
    picture_facts: bool = option("seldom", True,
        english="without a tagger: also add orientation, plain background and dominant color",
        chinese="没有标签模型时，也写入画面方向、纯色背景和主色调")
    batch_size: int = option("seldom", 4, minimum=1, maximum=256,
        english="images tagged at once, 1~8 on a CPU, 8~32 on a GPU",
        chinese="每批处理的图片数，CPU 用 1~8，显卡用 8~32")
    models_dirs: list[str] | None = option("seldom", None,
        english='further folders with models, such as a web UI\'s ["D:/stable-diffusion-webui"]; None: the usual places',
        chinese='另外查找模型的目录，如 web UI 所在的 ["D:/stable-diffusion-webui"]；None 表示只查常用位置')
    device: str = option("seldom", "auto",
        english='where the tagger runs: "auto", "cpu", "cuda" (AMD too)',
        chinese='标签模型运行的设备："auto"、"cpu"、"cuda"（AMD 也写 cuda）')
    caption_extension: str = option("seldom", ".txt",
        english="extension of the caption files, .txt or .caption",
        chinese="标注文件的扩展名，.txt 或 .caption")
    output_dir: str = option("output", "output/tags", path="output", shared="{output_dir}/tags",
        english="where the summary goes; None: output/tags",
        chinese="结果页的输出目录；None 表示 output/tags")


@dataclass(frozen=True)
class EditTags(Tool):
    """Step 3, after tagging: see what every tag will do, and change tags over the whole set. As delivered nothing is
    changed, only shown. Edit the values below, then run this file; it takes no arguments.

    第 3 步，打完标签之后：查看每个标签的作用，成批修改标签。默认只查看，不改动。
    修改下面的参数，然后直接运行本文件，不需要任何命令行参数。
    """

    images_dir: str = option("must", "output/prepared", path="folder", shared="{output_dir}/prepared",
        english="folder of images with caption files beside them, including sub-folders; None: output/prepared",
        chinese="带标注文件的图片目录，含子目录；None 表示 output/prepared")
    trigger_word: str | None = option("must", "mytag", shared="trigger_word",
        english='trigger word, put first in every caption; None: that of lora_train_command_line.py; "": none (the word of a [repeats]_[concept] folder is used instead)',
        chinese='触发词，放在每条标注的最前面；None 表示与 lora_train_command_line.py 相同；"" 表示不加（[重复次数]_[概念] 目录用目录名里的词）')
    action: str = option("must", "show", choices=("show", "apply", "undo"),
        english='"show" what would change, "apply" it, or "undo" the last change that was applied',
        chinese='"show" 只显示将要做的改动，"apply" 执行，"undo" 撤销上一次执行的改动')

    delete_tags: list[str] | None = option("often", None,
        english='tags to delete, so that their features move to the trigger word, such as ["school uniform", "short sleeves"]; * stands for any letters; None: none',
        chinese='要删除的标签，其特征会转移到触发词上，如 ["school uniform", "short sleeves"]；* 代表任意字符；None 表示没有')
    replace_tags: list[str] | None = option("often", None,
        english='tags to rename, such as ["serafuku -> sailor suit"]; * is allowed on the left; None: none',
        chinese='要替换的标签，如 ["serafuku -> sailor suit"]；左边可用 *；None 表示没有')
    add_tags: list[str] | None = option("often", None,
        english="tags to add to every caption, after the trigger word; None: none",
        chinese="给每条标注添加的标签，放在触发词之后；None 表示没有")
    imply_tags: list[str] | None = option("often", None,
        english='wherever the first tag is present, add the second, such as ["* skirt -> skirt"]; None: none',
        chinese='出现前一个标签时补上后一个，如 ["* skirt -> skirt"]；None 表示没有')

    remove_duplicates: bool = option("seldom", True,
        english="remove repeated tags in a caption, whatever their spelling (long_hair, Long Hair)",
        chinese="同一条标注里重复的标签（包括 long_hair、Long Hair 等不同写法）只留一个")
    order: str = option("seldom", "keep", choices=("keep", "frequent first", "alphabetical"),
        english='order of the tags after the trigger word: "keep", "frequent first" or "alphabetical"',
        chinese='触发词之后的标签顺序："keep" 不变，"frequent first" 常见的在前，"alphabetical" 按字母')
    caption_extension: str = option("seldom", ".txt",
        english="extension of the caption files, .txt or .caption",
        chinese="标注文件的扩展名，.txt 或 .caption")
    output_dir: str = option("output", "output/tags", path="output", shared="{output_dir}/tags",
        english="where the summary goes; None: output/tags",
        chinese="结果页的输出目录；None 表示 output/tags")


@dataclass(frozen=True)
class SortIntoFolders(Tool):
    """Step 4: put images and captions into [repeats]_[concept] folders. As delivered they are copied. Edit the values
    below, then run this file; it takes no arguments.

    第 4 步：把图片和标签放进 [重复次数]_[概念] 目录。默认是复制。修改下面的参数，然后直接运行本文件，不需要任何命令行参数。
    """

    images_dir: str = option("must", "output/prepared", path="folder", shared="{output_dir}/prepared",
        english="folder of images with their captions and masks; None: output/prepared",
        chinese="图片及其标注、蒙版所在的目录；None 表示 output/prepared")
    output_dir: str = option("must", "output/train", path="output", shared="{output_dir}/train",
        english='where the [repeats]_[concept] folders are made; None: output/train, which train_data_dir = "auto" takes',
        chinese='在这里建立 [重复次数]_[概念] 目录；None 表示 output/train，train_data_dir = "auto" 用的就是它')
    concept: str = option("must", "mytag", shared="trigger_word",
        english="the trigger word: a made-up one, which stands in the captions; None: trigger_word of lora_train_command_line.py",
        chinese="触发词，请用自造的词，标注里也要有它；None 表示与 lora_train_command_line.py 的 trigger_word 相同")

    repeats: int | None = option("often", None, minimum=1, maximum=1000,
        english="how often each image is used in an epoch; None: computed from the next three",
        chinese="每轮中每张图的重复次数；None 表示按下面三项推算")
    target_steps: int = option("often", 1500, minimum=1,
        english="target number of training steps, usually 1000~3000; with regularization images it has about twice as many",
        chinese="希望的训练步数，常用 1000~3000；使用正则化图片时约加倍")
    max_train_epochs: int = option("often", 10, minimum=1, shared="max_train_epochs",
        english="None: that of lora_train_command_line.py",
        chinese="None 表示与 lora_train_command_line.py 相同")
    train_batch_size: int = option("often", 2, minimum=1, shared="train_batch_size",
        english="None: that of lora_train_command_line.py",
        chinese="None 表示与 lora_train_command_line.py 相同")
    action: str = option("often", "copy", choices=("show", "copy", "move", "link"),
        english='"show" the plan only, "copy", "move", or "link" (no further disk space)',
        chinese='"show" 只显示方案，"copy" 复制，"move" 移动，"link" 硬链接（不多占硬盘）')
    sub_folders: str = option("often", "auto", choices=("auto", "concepts", "together"),
        english='sub-folders of images_dir: "concepts" of their own names, all "together" in one; "auto": together where their captions hold the word concept',
        chinese='images_dir 的子目录："concepts" 各以目录名为概念，"together" 合为一个；"auto"：标注里都有 concept 这个词的才合并')

    pretrained_model_name_or_path: str | None = option("seldom", None, path="model", shared="pretrained_model_name_or_path",
        english="base model whose tokenizer is used to check the trigger word; None: that of lora_train_command_line.py",
        chinese="底模，用其分词器检查触发词；None 表示与 lora_train_command_line.py 相同")
    caption_extension: str = option("seldom", ".txt",
        english="extension of the caption files, .txt or .caption",
        chinese="标注文件的扩展名，.txt 或 .caption")
    overwrite: bool = option("output", False,
        english="replace files whose content differs, such as captions edited since; the old files go to .backup; False: list them and do nothing",
        chinese="替换内容不同的文件，如之后又改过的标注，旧的存入 .backup；False：只指出哪些不同，不做任何改动")

    def contradictions(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """What cannot be done: (the options concerned, what is said behind the first one's value)."""
        if re.search("[,，]", self.concept):
            yield ("concept",), say("contains a comma, which separates tags. Use one word", "含逗号，而逗号分隔标签。请只用一个词")
        number, _, word = self.concept.partition("_")
        if number.isdecimal() and word:
            yield ("concept",), say(
                f'begins with a number of repeats. Set concept = "{word}", repeats = {int(number)}',
                f'以重复次数开头。请设 concept = "{word}"、repeats = {int(number)}')
        images, output = (Path(os.path.realpath(folder)) for folder in (self.images_dir, self.output_dir))
        if images == output or images in output.parents:
            yield ("output_dir", "images_dir"), say(
                "is inside images_dir: its images would be sorted again next time. Choose a folder beside it",
                "在 images_dir 里面：下次会把里面的图片再整理一遍。请选它旁边的目录")


@dataclass(frozen=True)
class MakeRegImages(Tool):
    """Step 5: draw regularization images with the base model. Edit the values below, then run this file; it takes no
    arguments. Stop it at any time: started again, it goes on.

    第 5 步：用底模生成正则化图片。修改下面的参数，然后直接运行本文件，不需要任何命令行参数。随时可以停止，再次运行会接着做。
    """

    pretrained_model_name_or_path: str = option("must", "library/miniature/model", path="model", shared="pretrained_model_name_or_path",
        english="the base model that you will train on: .safetensors, .ckpt or diffusers folder; None: that of lora_train_command_line.py",
        chinese="将要用来训练的底模：.safetensors、.ckpt 文件或 diffusers 文件夹；None 表示与 lora_train_command_line.py 相同")
    train_data_dir: str = option("must", "output/train", path="folder", shared="train_data_dir",
        english="the folder that CONTAINS the folders named [repeats]_[concept]; None: that of lora_train_command_line.py, where \"auto\" is output/train",
        chinese='训练集目录，里面放 [重复次数]_[概念] 形式的文件夹；None 表示与 lora_train_command_line.py 相同，其中 "auto" 即 output/train')
    output_dir: str = option("must", "output/reg", path="output", shared="{output_dir}/reg",
        english='where the regularization folders are made; None: output/reg, which reg_data_dir = "auto" takes',
        chinese='正则化图片的输出目录；None 表示 output/reg，reg_data_dir = "auto" 用的就是它')

    prompts: str = option("often", "captions", choices=("captions", "class words"),
        english="what to generate: from the training images' \"captions\" without the trigger word, one image each, or from the \"class words\" below",
        chinese='画什么："captions" 按每张训练图的标注（去掉触发词）各画一张，"class words" 只用下面的类别词')
    class_words: str = option("often", "1girl",
        english='what your subject is, such as "1girl" or "a photo of a woman"; also used for a caption that is empty without the trigger word',
        chinese='主体的类别，如 "1girl" 或 "a photo of a woman"；去掉触发词后为空的标注也用它')
    remove_words: list[str] | None = option("often", None,
        english="more words to remove from the captions; the folders' trigger words always are; None: none",
        chinese="另外要从标注中去掉的词；目录名里的词总会去掉；None 表示没有")
    images_per_caption: int = option("often", 1, minimum=1, maximum=100,
        english="images to generate per training image, usually 1",
        chinese="每张训练图对应生成的张数，常用 1")
    negative_prompt: str = option("often", "",
        english='negative prompt, such as "lowres, bad anatomy"; empty: none',
        chinese='反向提示词，如 "lowres, bad anatomy"；留空表示不用')
    resolution: int | str = option("often", "auto", shared="resolution",
        english="\"auto\", 512, 768, 1024; each image gets the size of its training image's bucket; None: that of lora_train_command_line.py",
        chinese='"auto"、512、768、1024；每张图的尺寸与对应训练图的桶相同；None 表示与 lora_train_command_line.py 相同')

    sampler: str = option("seldom", "euler_a", choices=SAMPLERS,
        english="sampler: euler_a, euler, ddim, dpmsolver++, heun, ...",
        chinese="采样器：euler_a、euler、ddim、dpmsolver++、heun 等")
    steps: int = option("seldom", 25, minimum=1, maximum=1000,
        english="sampling steps, usually 20~30",
        chinese="采样步数，常用 20~30")
    guidance_scale: float = option("seldom", 7.0, minimum=1, maximum=30,
        english="CFG scale: how closely the prompt is followed, usually 5~8",
        chinese="提示词引导强度（CFG），常用 5~8")
    seed: int = option("seldom", 1, minimum=0, maximum=2**32 - 1,
        english="same seed, same images",
        chinese="随机种子，相同则图片相同")
    clip_skip: int | None = option("seldom", None, minimum=1, maximum=12, shared="clip_skip",
        english="2 for anime models of SD 1.x; None: that of lora_train_command_line.py",
        chinese="SD 1.x 二次元模型用 2；None 表示与 lora_train_command_line.py 相同")
    vae: str | None = option("seldom", None, path="model", shared="vae",
        english="another VAE: file or folder; None: that of lora_train_command_line.py, by default the base model's own",
        chinese="外置 VAE：文件或文件夹；None 表示与 lora_train_command_line.py 相同，默认用底模自带的")
    mixed_precision: str = option("seldom", "auto", choices=("auto", "no", "fp16", "bf16"),
        english='arithmetic: "no" (fp32), "fp16", "bf16"; "auto": by the device',
        chinese='计算精度："no"（fp32）、"fp16"、"bf16"；"auto" 按设备选择')
    device: str = option("seldom", "auto",
        english='"auto", "cpu", "cuda", "cuda:1", "mps"; AMD (ROCm) is "cuda" too',
        chinese='计算设备："auto"、"cpu"、"cuda"、"cuda:1"、"mps"；AMD（ROCm）也写 "cuda"')
    enable_bucket: bool = option("seldom", True, shared="enable_bucket",
        english="these five decide buckets, whose sizes the images get; None: those of lora_train_command_line.py",
        chinese="这五项决定分桶，图片按桶的尺寸画；None 表示与 lora_train_command_line.py 相同")
    min_bucket_reso: int | None = option("seldom", None, minimum=16, shared="min_bucket_reso",
        english="shortest side of a bucket",
        chinese="桶的最短边")
    max_bucket_reso: int | None = option("seldom", None, minimum=16, shared="max_bucket_reso",
        english="longest side of a bucket",
        chinese="桶的最长边")
    bucket_reso_steps: int | None = option("seldom", None, minimum=8, shared="bucket_reso_steps",
        english="sides of buckets are multiples of this, a multiple of 8",
        chinese="桶的边长是它的整数倍，须为 8 的倍数")
    bucket_no_upscale: bool = option("seldom", False, shared="bucket_no_upscale",
        english="smaller images get buckets of their own size",
        chinese="不放大小图，按其自身大小分桶")
    caption_extension: str = option("seldom", ".txt",
        english="extension of the caption files, .txt or .caption",
        chinese="标注文件的扩展名，.txt 或 .caption")
    overwrite: bool = option("output", False,
        english="regenerate images whose settings or captions changed; False: list them and generate nothing",
        chinese="设置或标注改过之后，重画已有的图；False：只指出哪些不符，不画任何图")

    def contradictions(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """What cannot be done; see `checks.check_tool`."""
        if not self.class_words.strip():
            yield ("class_words",), say(
                'is empty: describe your subject, e.g. "1girl"', '是空的：请填主体的类别，如 "1girl"')
        output, train = (Path(os.path.realpath(folder)) for folder in (self.output_dir, self.train_data_dir))
        inside = output.relative_to(train).parts[:1] if output.is_relative_to(train) else ()
        if output == train:
            yield ("output_dir", "train_data_dir"), say(
                "is the training folder itself. Choose another folder", "就是训练集目录。请填另一个目录")
        elif inside and re.match(r"\d+(_|$)", inside[0]):
            yield ("output_dir", "train_data_dir"), say(
                f'is in "{inside[0]}" of the training folder, whose name makes it part of the training set. Choose another folder', f'位于训练集目录的 "{inside[0]}" 中，这个名称会被当作训练图片。请填另一个目录')


@dataclass(frozen=True)
class TryLora(Tool):
    """Draw images with LoRAs: a grid of prompts and strengths. Edit the values below, then run this file; it takes no
    arguments.

    试用 LoRA：按提示词和强度画对比图。修改下面的参数，然后直接运行本文件，不需要任何命令行参数。
    """

    pretrained_model_name_or_path: str = option("must", "library/miniature/model", path="model", shared="pretrained_model_name_or_path",
        english="base model: .safetensors, .ckpt or diffusers folder; None: that of lora_train_command_line.py",
        chinese="底模：.safetensors、.ckpt 文件或 diffusers 文件夹；None 表示与 lora_train_command_line.py 相同")
    loras: list[str] | None = option("must", ("output/mytag.safetensors",), shared=("{output_dir}/{output_name}.safetensors",),
        english="LoRA files to test, or names in lora_dir: one row of images per file and strength; None: what lora_train_command_line.py makes; []: only what the prompts name",
        chinese="要试的 LoRA 文件，或 lora_dir 里的名称：每个文件、每种强度画一行；None 表示 lora_train_command_line.py 的结果；[] 表示只用提示词里写的")
    prompts: list[str] = option("must", ("mytag, standing, large, center, white background", "red circle, large, center, white background"), shared=("{trigger_word}, standing, white background", "standing, white background"),
        english='one column per prompt; None: with and without the trigger word of lora_train_command_line.py; web UI syntax: "(word:1.2)", "[word]", "BREAK", "<lora:name:0.6>" for more LoRAs from lora_dir',
        chinese='每条一列；None 表示带与不带 lora_train_command_line.py 的触发词各一条；写法与 web UI 相同："(词:1.2)"、"[词]"、"BREAK"，"<lora:名称:0.6>" 可再加 lora_dir 里的 LoRA')

    strengths: list[float] = option("often", (0.0, 0.6, 1.0),
        english="strengths of each LoRA, usually 0.5~1; 0 shows the base model",
        chinese="每个 LoRA 的强度，常用 0.5~1；0 表示只用底模")
    negative_prompt: str = option("often", "",
        english="negative prompt, in the same syntax",
        chinese="反向提示词，写法相同")
    resolution: int | str = option("often", "auto", shared="resolution",
        english="size of the images: \"auto\" (the base model's own), 512, or \"width,height\"; None: that of lora_train_command_line.py",
        chinese='图片尺寸："auto" 按底模，也可填 512 或 "宽,高"；None 表示与 lora_train_command_line.py 相同')
    seeds: list[int] = option("often", (1,), minimum=0, maximum=2**32 - 1,
        english="seeds; each makes its own grid",
        chinese="随机种子，每个种子画一张对比图")
    lora_dir: str | None = option("often", None, path="folder",
        english="where <lora:name:0.6> is looked for, such as the web UI's models/Lora; None: beside the files of loras",
        chinese="<lora:名称:0.6> 从哪里找，如 web UI 的 models/Lora；None 表示 loras 所在的目录")

    sampler: str = option("seldom", "euler_a", choices=SAMPLERS,
        english="sampler: euler_a, euler, ddim, dpmsolver++, heun, ...",
        chinese="采样器：euler_a、euler、ddim、dpmsolver++、heun 等")
    steps: int = option("seldom", 25, minimum=1, maximum=1000,
        english="sampling steps, usually 20~30",
        chinese="采样步数，常用 20~30")
    guidance_scale: float = option("seldom", 7.0, minimum=1, maximum=30,
        english="CFG scale: how closely the prompt is followed, usually 5~8",
        chinese="提示词引导强度（CFG），常用 5~8")
    clip_skip: int | None = option("seldom", None, minimum=1, maximum=12, shared="clip_skip",
        english="1: realistic models; 2: anime models (NovelAI and its descendants); SDXL ignores it; None: that of lora_train_command_line.py",
        chinese="1 用于写实模型，2 用于二次元模型（NovelAI 系）；SDXL 不用此项；None 表示与 lora_train_command_line.py 相同")
    hires_scale: float = option("seldom", 1.0, minimum=1, maximum=4,
        english="hires fix: generate again at this many times the size, usually 1.5~2; 1: off",
        chinese="按此倍数放大后再画一遍（高清修复），常用 1.5~2；1 表示不用")
    hires_strength: float = option("seldom", 0.5, minimum=0.05, maximum=1,
        english="denoising strength of the hires fix, usually 0.3~0.6",
        chinese="高清修复的重绘幅度，常用 0.3~0.6")
    vae: str | None = option("seldom", None, path="model", shared="vae",
        english="another VAE: file or folder; None: that of lora_train_command_line.py, by default the base model's own",
        chinese="外置 VAE：文件或文件夹；None 表示与 lora_train_command_line.py 相同，默认用底模自带的")
    mixed_precision: str = option("seldom", "auto", choices=("auto", "no", "fp16", "bf16"),
        english='arithmetic: "no" (fp32), "fp16", "bf16"; "auto": by the device',
        chinese='计算精度："no"（fp32）、"fp16"、"bf16"；"auto" 按设备选择')
    device: str = option("seldom", "auto",
        english='"auto", "cpu", "cuda", "cuda:1", "mps"; AMD (ROCm) is "cuda" too',
        chinese='计算设备："auto"、"cpu"、"cuda"、"cuda:1"、"mps"；AMD（ROCm）也写 "cuda"')
    output_dir: str = option("output", "output/tried", path="output", shared="{output_dir}/tried",
        english="where the grids, single images and the summary go; no existing image is overwritten; None: output/tried",
        chinese="对比图、单张图和结果页的输出目录；不会覆盖已有的图；None 表示 output/tried")

    def contradictions(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """What cannot be done; see `checks.check_tool`."""
        for name in ("prompts", "strengths", "seeds"):
            if not getattr(self, name):
                yield (name,), say("is empty: nothing would be generated", "是空的：没有可画的")
        if self.hires_scale > 1 and self.sampler == "pndm":
            yield ("sampler",), say("can't start from an image, which hires_scale needs. Use \"euler_a\"",
                                    '不能从已有的图开始画，与 hires_scale 不能同用。请改用 "euler_a"')
        if self.hires_scale > 1 and self.steps > 1000 * self.hires_strength:
            yield ("hires_strength", "steps"), say(
                f"needs a schedule of {self.steps} / {self.hires_strength:g} steps, and there are 1000. Lower steps, or raise it", f"需要 {self.steps} / {self.hires_strength:g} 步的噪声表，最多只有 1000 步。请减少 steps 或调大它")


PRECISIONS = ("fp16", "bf16", "float")


@dataclass(frozen=True)
class MergeLoras(Tool):
    """Several LoRAs into one, each with its own weight, or into a base model. Edit the values below, then run this file;
    it takes no arguments.

    把多个 LoRA 按各自的权重合并成一个，或合并进底模。修改下面的参数，然后直接运行本文件，不需要任何命令行参数。
    """

    loras: list[str] = option("must", ("output/first.safetensors", "output/second.safetensors"),
        english="the LoRA files, of one kind of base model",
        chinese="要合并的 LoRA 文件，须对应同一类底模")
    ratios: list[float] = option("must", (0.6, 0.4), minimum=-10, maximum=10,
        english="weight of each, in the same order, usually 0.3~1; like a strength in the prompt",
        chinese="各自的权重，顺序与上面相同，常用 0.3~1，与提示词里的强度同义")
    method: str = option("must", "concat", choices=("concat", "svd", "checkpoint"),
        english='"concat": one LoRA, exact, its rank is the sum of theirs; "svd": one LoRA of new_rank, as close as that rank allows; "checkpoint": a copy of the base model with them inside',
        chinese='"concat"：合成一个 LoRA，结果精确，秩为各秩之和；"svd"：合成一个秩为 new_rank 的 LoRA，尽量接近；"checkpoint"：合并进底模的副本')

    new_rank: int = option("often", 32, minimum=1, maximum=1280,
        english='rank with "svd", usually 16~128',
        chinese='"svd" 的秩，常用 16~128')
    new_conv_rank: int | None = option("often", None, minimum=1, maximum=1280,
        english='rank of 3x3 convolutions with "svd"; None: new_rank',
        chinese='"svd" 时 3x3 卷积层的秩；None 表示与 new_rank 相同')
    pretrained_model_name_or_path: str | None = option("often", None, path="model",
        english='base model for "checkpoint", and for DoRA files: .safetensors, .ckpt or diffusers folder; it is read tensor by tensor and never changed',
        chinese='"checkpoint" 以及 DoRA 文件所用的底模：.safetensors、.ckpt 文件或 diffusers 文件夹；逐个张量读取，原文件不会被改动')
    save_precision: str | None = option("output", None, choices=PRECISIONS,
        english='number format of the result: "fp16", "bf16", "float"; None: as in the files, in a checkpoint as it was',
        chinese='结果的精度："fp16"、"bf16"、"float"；None 表示与原文件相同')
    output_name: str = option("output", "merged",
        english="file name of the result; no file is overwritten: a taken name gets -2, -3, ...",
        chinese="结果的文件名；不会覆盖已有文件，重名时加 -2、-3……")
    output_dir: str = option("output", "output/merged", path="output",
        english="where the result goes; made if missing",
        chinese="结果的输出目录，没有会自动建立")

    def contradictions(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """What cannot be done; see `checks.check_tool`."""
        if not self.loras:
            yield ("loras",), say("is empty: list at least one file", "是空的：请至少填一个文件")
        elif len(self.loras) != len(self.ratios or []):
            yield ("ratios", "loras"), say(
                f"has {len(self.ratios or [])} weights for {len(self.loras)} LoRAs. Give each LoRA one",
                f"有 {len(self.ratios or [])} 个权重，而 LoRA 有 {len(self.loras)} 个。请一一对应")
        elif not any(self.ratios):
            yield ("ratios",), say("are all 0: nothing would be merged", "全是 0：没有可合并的")
        if self.method == "checkpoint" and self.pretrained_model_name_or_path is None:
            yield ("method", "pretrained_model_name_or_path"), say(
                "needs a base model: set pretrained_model_name_or_path", "需要底模：请设 pretrained_model_name_or_path")
        if self.method != "svd" and self.new_conv_rank is not None:
            yield ("new_conv_rank", "method"), say(
                'has no effect without method = "svd". Set it to None', '没有 method = "svd" 就不起作用。请设为 None')


@dataclass(frozen=True)
class ResizeLora(Tool):
    """Make LoRA files smaller: another rank, or for each layer the rank it needs. Edit the values below, then run this
    file; it takes no arguments.

    缩小 LoRA 文件：换一个秩，或让每层自动选取所需的秩。修改下面的参数，然后直接运行本文件，不需要任何命令行参数。
    """

    lora: str = option("must", "output/mytag.safetensors", path="model",
        english="a LoRA file, or a folder: all LoRAs in it, including sub-folders; they are never changed",
        chinese="LoRA 文件，或一个目录（处理其中所有 LoRA，含子目录）；原文件不会被改动")
    new_rank: int = option("must", 16, minimum=1, maximum=1280,
        english="the new rank, usually 4~64; with dynamic_method, the maximum per layer",
        chinese="新的秩，常用 4~64；使用 dynamic_method 时是每层的上限")

    dynamic_method: str | None = option("often", None, choices=("sv_ratio", "sv_fro", "sv_cumulative"),
        english="choose each layer's rank by its singular values: \"sv_ratio\" (those above the largest / dynamic_param), \"sv_fro\" (as many as hold this share of the Frobenius norm), \"sv_cumulative\" (... of their sum); None: new_rank for all",
        chinese='按奇异值给每层选秩："sv_ratio"（保留大于 最大值/dynamic_param 的）、"sv_fro"（保留到 Frobenius 范数的这一比例）、"sv_cumulative"（保留到奇异值总和的这一比例）；None 表示全部用 new_rank')
    dynamic_param: float | None = option("often", None, above=0,
        english="for dynamic_method: sv_ratio 2~20, sv_fro 0.9~0.99, sv_cumulative 0.7~0.95; larger keeps more",
        chinese="dynamic_method 的参数：sv_ratio 用 2~20，sv_fro 用 0.9~0.99，sv_cumulative 用 0.7~0.95；越大保留越多")
    new_conv_rank: int | None = option("often", None, minimum=1, maximum=1280,
        english="the same as new_rank for 3x3 convolutions; None: new_rank",
        chinese="3x3 卷积层的 new_rank；None 表示与 new_rank 相同")
    pretrained_model_name_or_path: str | None = option("seldom", None, path="model",
        english="for DoRA files, which become a LoRA: the base model they were trained on; it is never changed",
        chinese="用于 DoRA 文件（会变成 LoRA）：训练时的底模；原文件不会被改动")
    save_precision: str | None = option("output", None, choices=PRECISIONS,
        english='number format of the files: "fp16", "bf16", "float"; None: as they are',
        chinese='文件精度："fp16"、"bf16"、"float"；None 表示不变')
    output_dir: str = option("output", "output/resized", path="output",
        english="where the files and the summary go, under their own names with the rank behind; none is overwritten",
        chinese="结果和结果页的输出目录，文件名后面会加上秩；不会覆盖已有文件")

    def contradictions(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """What cannot be done; see `checks.check_tool`."""
        if self.dynamic_method and self.dynamic_param is None:
            yield ("dynamic_method", "dynamic_param"), say(
                "needs dynamic_param, such as 5 for sv_ratio or 0.95 for sv_fro",
                "需要 dynamic_param，如 sv_ratio 用 5，sv_fro 用 0.95")
        elif self.dynamic_param is not None and not self.dynamic_method:
            yield ("dynamic_param", "dynamic_method"), say(
                "has no effect without dynamic_method. Set one, or this to None", "没有 dynamic_method 就不起作用。请设置它，或把此项设为 None")
        elif self.dynamic_method == "sv_ratio" and (self.dynamic_param or 0) < 1:
            yield ("dynamic_param", "dynamic_method"), say("is below 1, the minimum for sv_ratio", "小于 1，sv_ratio 至少为 1")
        elif self.dynamic_method in ("sv_fro", "sv_cumulative") and (self.dynamic_param or 0) > 1:
            yield ("dynamic_param", "dynamic_method"), say(
                f"is above 1: it is a share for {self.dynamic_method}, such as 0.95",
                f"大于 1：对 {self.dynamic_method} 它是比例，如 0.95")
        loras, output = Path(os.path.realpath(self.lora)), Path(os.path.realpath(self.output_dir))
        if loras.is_dir() and (loras == output or loras in output.parents):
            yield ("output_dir", "lora"), say(
                "is inside the folder of the LoRAs: the results would be resized again next time. Choose a folder beside it",
                "在 LoRA 所在的目录里面：下次会把结果再缩小一遍。请选它旁边的目录")


@dataclass(frozen=True)
class ExtractLora(Tool):
    """The difference of two base models as a LoRA: what fine-tuning changed, to be used with other models. Edit the values
    below, then run this file; it takes no arguments.

    从两个模型的差异中提取 LoRA：把微调的改动用到其他模型上。修改下面的参数，然后直接运行本文件，不需要任何命令行参数。
    """

    model_org: str = option("must", "models/base.safetensors", path="model",
        english="the original model: .safetensors, .ckpt or diffusers folder",
        chinese="原始模型：.safetensors、.ckpt 文件或 diffusers 文件夹")
    model_tuned: str = option("must", "models/tuned.safetensors", path="model",
        english="the model that was made from it, of the same family (SD 1.x, SD 2.x, SDXL); both are read tensor by tensor",
        chinese="在它基础上微调的模型，须是同一系列（SD 1.x、SD 2.x、SDXL）；两者都逐个张量读取")

    network_dim: int = option("often", 32, minimum=1,
        english="rank, usually 16~128; larger contains more of the difference, larger file",
        chinese="秩，常用 16~128；越大包含的差异越多，文件越大")
    conv_dim: int | None = option("often", None, minimum=1,
        english="rank of 3x3 convolutions, usually 8~32; None: without",
        chinese="3x3 卷积层的秩，常用 8~32；None 表示不含")
    min_diff: float = option("seldom", 0.01, minimum=0, maximum=1,
        english="a text encoder whose weights all differ by less is left out, usually 0.001~0.01",
        chinese="文本编码器的权重差都小于此值时不提取它，常用 0.001~0.01")
    clamp_quantile: float = option("seldom", 0.99, minimum=0.5, maximum=1,
        english="values beyond this quantile are cut off, as sd-scripts does; 1: none, the nearest to the difference",
        chinese="截断超出此分位数的值，与 sd-scripts 相同；1 表示不截断，最接近原差异")
    device: str = option("seldom", "auto",
        english='device for the computation: "auto", "cpu", "cuda" (AMD too); SDXL takes up to an hour on two CPU cores',
        chinese='计算设备："auto"、"cpu"、"cuda"（AMD 也写 cuda）；SDXL 在两核 CPU 上最长约一小时')
    save_precision: str = option("output", "fp16", choices=PRECISIONS,
        english='number format of the file: "fp16" (half the size), "bf16", "float"',
        chinese='文件精度："fp16"（小一半）、"bf16"、"float"')
    output_name: str = option("output", "extracted",
        english="file name of the LoRA; no file is overwritten: a taken name gets -2, -3, ...",
        chinese="LoRA 的文件名；不会覆盖已有文件，重名时加 -2、-3……")
    output_dir: str = option("output", "output/extracted", path="output",
        english="where the LoRA goes; made if missing",
        chinese="结果的输出目录，没有会自动建立")

    def contradictions(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """What cannot be done; see `checks.check_tool`."""
        if os.path.realpath(self.model_org) == os.path.realpath(self.model_tuned):
            yield ("model_tuned", "model_org"), say("is model_org itself: there is no difference", "就是 model_org 本身，没有差异")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            yield ("device",), say('is not one of "auto", "cpu", "cuda"', '应为 "auto"、"cpu" 或 "cuda"')


@dataclass(frozen=True)
class ShowLora(Tool):
    """What is in LoRA files: trigger words, base model, ranks, strength of each block, what is wrong, and which programs
    read them. Edit the values below, then run this file; it takes no arguments.

    查看 LoRA 文件的内容：触发词、底模、秩、各分块的强度、有没有问题、哪些软件能读取。
    修改下面的参数，然后直接运行本文件，不需要任何命令行参数。
    """

    lora: str = option("must", "output/mytag.safetensors", path="model", shared="{output_dir}/{output_name}.safetensors",
        english="a LoRA file, or a folder: all LoRAs in it, including sub-folders; nothing is changed; None: what lora_train_command_line.py makes",
        chinese="LoRA 文件，或一个目录（查看其中所有 LoRA，含子目录）；不改动任何文件；None 表示 lora_train_command_line.py 的结果")
    pretrained_model_name_or_path: str | None = option("seldom", None, path="model",
        english="base model whose layers the files are compared with; None: a model of the family they were made for",
        chinese="用来核对各层的底模；None 表示按文件对应的系列核对")
    output_dir: str = option("output", "output/shown", path="output", shared="{output_dir}/shown",
        english="where the page goes; None: output/shown",
        chinese="结果页的输出目录；None 表示 output/shown")


@dataclass(frozen=True)
class Doctor(Tool):
    """One page over everything: images, tags, buckets, regularization, parameters, machine; what is wrong and how to
    cure it. It reads lora_train_command_line.py and trains nothing. Run this file; it takes no arguments.

    一页看清全部：图片、标签、分桶、正则化、参数、机器，哪里有问题、怎么解决。它读取 lora_train_command_line.py，不训练。
    直接运行本文件，不需要任何命令行参数。
    """

    script: str = option("often", "lora_train_command_line.py", path="file",
        english="the file whose parameters are checked: a copy of lora_train_command_line.py, or a .toml of train_network.py",
        chinese="要检查的参数文件：lora_train_command_line.py 或它的副本，也可以是 train_network.py 的 .toml")
    similarity: int = option("seldom", 6, minimum=0, maximum=20,
        english="how many of 64 hash bits may differ in the same image, usually 4~10",
        chinese="判为同一张图时 64 位哈希允许不同的位数，常用 4~10")
    check_machine: bool = option("seldom", True,
        english="also check the device; imports torch, which takes a few seconds",
        chinese="同时检查设备；需要导入 torch，耗时数秒")
    output_dir: str = option("output", "output/doctor", path="output", shared="{output_dir}/doctor",
        english="where the page goes; None: output/doctor",
        chinese="结果页的输出目录；None 表示 output/doctor")
# fmt: on


def _title(doc: str) -> str:
    """A class's docstring as the first lines of its script."""
    return "\n".join(line.strip() for line in doc.strip().splitlines()) + "\n"


TOOLS: dict[str, AnyDeclared] = {  # file in tools/ -> what its block shows
    f"{name}.py": declared(config, _title(config.__doc__ or ""), GROUPS)
    for name, config in {
        "prepare_images": PrepareImages,
        "tag_images": TagImages,
        "edit_tags": EditTags,
        "sort_into_folders": SortIntoFolders,
        "make_reg_images": MakeRegImages,
        "try_lora": TryLora,
        "merge_loras": MergeLoras,
        "resize_lora": ResizeLora,
        "extract_lora": ExtractLora,
        "show_lora": ShowLora,
        "doctor": Doctor,
    }.items()
}
