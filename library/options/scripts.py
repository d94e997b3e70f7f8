"""sd-scripts' programs, and which of ours takes the place of each; whole commands that call them.

`docs/sd-scripts.md` shows the same table, in both languages. To add a program: a row.
"""

from pathlib import PurePosixPath
from typing import NamedTuple

from library.messages import say
from library.options.checks import ConfigError

TAKEN = ("train_network.py", "sdxl_train_network.py")  # their flags are ours
CONTINUATIONS = ("\\", "^", "`")  # a line goes on, in one shell; a word, in another
OF_SHELLS = (".sh", ".ps1", ".bat", ".cmd")
OF_LAUNCHERS = (  # of accelerate's own flags, those that mean the same here
    "num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port", "mixed_precision",
)  # fmt: skip


class Place(NamedTuple):
    """What takes the place of programs."""

    programs: tuple[str, ...]
    ours: str  # "": nothing does
    english: str
    chinese: str


PLACES = (
    Place(
        ("merge_lora.py", "sdxl_merge_lora.py", "svd_merge_lora.py", "merge_lora_old.py"),
        "tools/merge_loras.py",
        "several LoRAs into one, or into a base model",
        "把多个 LoRA 合并成一个，或合并进底模",
    ),
    Place(
        ("resize_lora.py",),
        "tools/resize_lora.py",
        "another rank, or the rank that each layer needs",
        "换一个秩，或让每层自动选取所需的秩",
    ),
    Place(
        ("extract_lora_from_models.py",),
        "tools/extract_lora.py",
        "the difference of two base models as a LoRA",
        "从两个底模的差异中提取 LoRA",
    ),
    Place(
        ("check_lora_weights.py", "show_metadata.py", "lora_interrogator.py"),
        "tools/show_lora.py",
        "what is in a LoRA file",
        "查看 LoRA 文件的内容",
    ),
    Place(
        ("gen_img.py", "gen_img_diffusers.py", "sdxl_gen_img.py", "sdxl_minimal_inference.py"),
        "tools/try_lora.py",
        "images with LoRAs, as a grid; regularization images: tools/make_reg_images.py",
        "用 LoRA 画对比图；生成正则化图片用 tools/make_reg_images.py",
    ),
    Place(
        (
            "tag_images_by_wd14_tagger.py",
            "make_captions.py",
            "make_captions_by_git.py",
            "caption_images_by_florence2.py",
        ),
        "tools/tag_images.py",
        "tags for every image, by a WD tagger; it writes no sentences",
        "用 WD 打标模型给图片打标签；不生成句子",
    ),
    Place(
        ("clean_captions_and_tags.py",),
        "tools/edit_tags.py",
        "tags changed over the whole set",
        "成批修改标签",
    ),
    Place(
        ("detect_face_rotate.py", "resize_images_to_resolution.py"),
        "tools/prepare_images.py",
        "clean images of the right size, faces cut out",
        "整理图片、统一尺寸、裁出人脸",
    ),
    Place(
        (
            "cache_latents.py",
            "cache_text_encoder_outputs.py",
            "prepare_buckets_latents.py",
            "merge_captions_to_metadata.py",
            "merge_dd_tags_to_metadata.py",
        ),
        "train_network.py",
        "the training reads captions and keeps its caches by itself; in_json reads a metadata file that is there",
        "训练时自动读取标注并缓存；已有的元数据文件用 in_json 读取",
    ),
    Place(
        ("train_db.py", "fine_tune.py", "sdxl_train.py"),
        "train_network.py",
        "a LoRA of the same images; whole models are not trained",
        "用同样的图片训练 LoRA；不训练完整模型",
    ),
    Place(
        (
            "flux_train_network.py",
            "sd3_train_network.py",
            "lumina_train_network.py",
            "hunyuan_image_train_network.py",
            "anima_train_network.py",
        ),
        "",
        "only Stable Diffusion 1.x, 2.x and XL are trained here",
        "这里只训练 Stable Diffusion 1.x、2.x 和 XL",
    ),
    Place(
        (
            "train_textual_inversion.py",
            "sdxl_train_textual_inversion.py",
            "train_controlnet.py",
            "train_control_net.py",
            "sdxl_train_control_net.py",
            "sdxl_train_control_net_lllite.py",
            "train_leco.py",
        ),
        "",
        "only LoRAs are trained here",
        "这里只训练 LoRA",
    ),
    Place(
        ("extract_lora_from_dylora.py", "convert_diffusers20_original_sd.py", "merge_models.py", "latent_upscaler.py"),
        "",
        "nothing here does that",
        "这里没有对应的功能",
    ),
)


def flags_of(argv: list[str]) -> list[str]:
    """The flags of a command line, also where it is pasted whole: `accelerate launch ... sdxl_train_network.py --...`.

    Raises:
        ConfigError: it calls another program of sd-scripts, or a shell's script; said with what takes its place.
    """
    argv = [word for word in argv if word not in CONTINUATIONS]
    if not argv or argv[0].startswith("-"):
        return argv
    at, name = next(((at, name) for at, word in enumerate(argv) if (name := _name_of(word)).endswith(".py")), (0, ""))
    if name in TAKEN:
        return [*_of_launcher(argv[:at]), *argv[at + 1 :]]
    first = _name_of(argv[0])
    if place := next((place for place in PLACES if name in place.programs), None):
        raise ConfigError([_is_another(name, place)])
    if name:
        raise ConfigError([_is_a_program(argv[at])])
    if first.endswith(OF_SHELLS):
        raise ConfigError([is_of_a_shell(argv[0])])
    hint = first.endswith((".toml", ".json"))
    raise ConfigError([_comes_before(argv[0], meant=f"--config_file {argv[0]}" if hint else "")])


def _name_of(word: str) -> str:
    return PurePosixPath(word.replace("\\", "/")).name.lower()


def _of_launcher(words: list[str]) -> list[str]:
    """The flags of `accelerate launch` that count here, too."""
    kept: list[str] = []
    counts = False
    for word in words:
        if word.startswith("--"):
            counts = word[2:].partition("=")[0].replace("-", "_") in OF_LAUNCHERS
        kept += [word] if counts else []
    return kept


# ---- what is said ----


def _is_another(name: str, place: Place) -> str:
    if not place.ours:
        return say(
            f"{name} of sd-scripts has no counterpart: {place.english}",
            f"sd-scripts 的 {name} 在这里没有对应的脚本：{place.chinese}",
        )
    edit, edit_zh = (
        ("; edit the values at its top, it takes no arguments", "；请修改文件开头的参数，它不接受命令行参数")
        if place.ours.startswith("tools/")
        else ("", "")
    )
    return say(
        f"instead of sd-scripts' {name}: python {place.ours} ({place.english}){edit}",
        f"请用 python {place.ours} 代替 sd-scripts 的 {name}（{place.chinese}）{edit_zh}",
    )


def _is_a_program(word: str) -> str:
    return say(
        f"{word} is a program of its own, run it as python {word}. train_network.py takes flags: see --help",
        f"{word} 是另一个程序，请直接运行 python {word}。train_network.py 只接受 --参数，见 --help",
    )


def is_of_a_shell(word: str) -> str:
    return say(
        f"{word} is a shell's script, not a file of values. Give the flags in it to python train_network.py; variables "
        "such as network_dim=32 of lora-scripts' train.sh go into lora_train_command_line.py",
        f"{word} 是命令行脚本，不是参数文件。请把其中的 --参数交给 python train_network.py；"
        "lora-scripts 的 train.sh 中 network_dim=32 这样的变量可以写进 lora_train_command_line.py",
    )


def _comes_before(word: str, meant: str) -> str:
    hint, hint_zh = (f". Did you mean {meant}?", f"。是不是 {meant}？") if meant else ("", "")
    return say(f'"{word}" comes before the first --flag{hint}', f'"{word}" 前面没有 --参数名{hint_zh}')
