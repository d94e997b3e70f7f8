"""The difference of two base models as a LoRA: what fine-tuning changed, to be used with other models. Edit the values
below, then run this file; it takes no arguments.

从两个模型的差异中提取 LoRA：把微调的改动用到其他模型上。修改下面的参数，然后直接运行本文件，不需要任何命令行参数。
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
model_org = r"models/base.safetensors"  # the original model: .safetensors, .ckpt or diffusers folder | 原始模型：.safetensors、.ckpt 文件或 diffusers 文件夹
model_tuned = r"models/tuned.safetensors"  # the model that was made from it, of the same family (SD 1.x, SD 2.x, SDXL); both are read tensor by tensor | 在它基础上微调的模型，须是同一系列（SD 1.x、SD 2.x、SDXL）；两者都逐个张量读取

# ---- Often changed | 经常修改 ----
network_dim = 32  # rank, usually 16~128; larger contains more of the difference, larger file | 秩，常用 16~128；越大包含的差异越多，文件越大
conv_dim = None   # rank of 3x3 convolutions, usually 8~32; None: without | 3x3 卷积层的秩，常用 8~32；None 表示不含

# ---- Seldom changed | 较少修改 ----
min_diff = 0.01        # a text encoder whose weights all differ by less is left out, usually 0.001~0.01 | 文本编码器的权重差都小于此值时不提取它，常用 0.001~0.01
clamp_quantile = 0.99  # values beyond this quantile are cut off, as sd-scripts does; 1: none, the nearest to the difference | 截断超出此分位数的值，与 sd-scripts 相同；1 表示不截断，最接近原差异
device = "auto"        # device for the computation: "auto", "cpu", "cuda" (AMD too); SDXL takes up to an hour on two CPU cores | 计算设备："auto"、"cpu"、"cuda"（AMD 也写 cuda）；SDXL 在两核 CPU 上最长约一小时

# ---- Output | 输出 ----
language = "auto"                 # language of the messages: "auto" (by the system), "en", "zh" | 提示语言："auto"（按系统）、"en"、"zh"
open_pages = "auto"               # open the page in the browser at the end: "auto" where there is a screen, True, False | 结束时在浏览器里打开结果页："auto" 有屏幕时打开，True，False
save_precision = "fp16"           # number format of the file: "fp16" (half the size), "bf16", "float" | 文件精度："fp16"（小一半）、"bf16"、"float"
output_name = "extracted"         # file name of the LoRA; no file is overwritten: a taken name gets -2, -3, ... | LoRA 的文件名；不会覆盖已有文件，重名时加 -2、-3……
output_dir = r"output/extracted"  # where the LoRA goes; made if missing | 结果的输出目录，没有会自动建立

# fmt: on
# ---- Do not edit below | 请勿修改下方内容 ----

import sys
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.files import free_path
from library.messages import UserError, log, plural, say
from library.options import parameter_block
from library.options.tools import TOOLS, ExtractLora

CLAMPING_MATTERS = 0.01  # a share of the norm that is worth a line


def main() -> int:
    return parameter_block.run_tool(__file__, globals(), TOOLS["extract_lora.py"], run)


def run(settings: ExtractLora) -> int:
    """Extract, unless it was done before; the exit code is 0."""
    from library import families
    from library.tooling import generate, lora_files

    paths = [Path(settings.model_org), Path(settings.model_tuned)]
    infos = [families.inspect(path) for path in paths]
    for info in infos:
        log.info(families.describe(info))
    if infos[0].family != infos[1].family:
        told = " / ".join(families.facts_of(info.family).title for info in infos)
        raise UserError(
            say(
                f"the models are of different families ({told}), so there is no difference to extract. Use two of "
                "the same family",
                f"两个模型属于不同系列（{told}），无法求差。请选同一系列的两个模型",
            )
        )
    target = Path(settings.output_dir) / f"{settings.output_name}.safetensors"
    provenance = lora_files.provenance(
        "extract_lora", paths, dim=settings.network_dim, conv_dim=settings.conv_dim, min_diff=settings.min_diff,
        clamp_quantile=settings.clamp_quantile, precision=settings.save_precision,
    )  # fmt: skip
    if made := lora_files.made_before(target, provenance):
        log.info(say(f"nothing to do: {made} was extracted already", f"无需处理：{made} 之前已提取"))
        return 0
    device = generate.choose_device(settings.device, "no", infos[0].width)
    target = free_path(target)
    extract(settings, infos, device.torch_device, target, provenance)
    log.info(say(f"written: {target} ({lora_files.size(target)})", f"已写入：{target}（{lora_files.size(target)}）"))
    return 0


def extract(settings: ExtractLora, infos: list, device, target: Path, provenance: str) -> None:
    """Layer by layer: a pair of weights is in memory at a time."""
    from tqdm import tqdm

    from library import families
    from library.lora_files import low_rank
    from library.storage.lora_file import PRECISIONS
    from library.tooling import lora_files
    from library.tooling.new_lora import NewLora

    pair = [lora_files.BaseModel(info) for info in infos]
    targets = [one for one in pair[0].targets if settings.conv_dim or not one.needs_conv_dim]
    refuse_other_shapes(infos, pair)
    parts, notes = differing_parts(settings, pair, targets)
    for line in notes:
        log.warning(line)
    made, unclamped = NewLora(PRECISIONS[settings.save_precision]), []
    same = 0  # layers
    wanted = [one for one in targets if one.part in parts]
    for one in tqdm(wanted, disable=None, desc=say("layers", "层")):
        name, shape = one.saved_as, one.layer.weight.shape
        rank = min(settings.conv_dim if shape[2:].numel() > 1 else settings.network_dim, *shape[:2])
        change = difference(pair, name)
        if not change.any():
            same += 1
            continue
        apart = low_rank.of_matrix(change.reshape(shape).flatten(1).to(device))
        apart = low_rank.Decomposition(*(part.cpu() for part in apart))
        # sd-scripts' split: all of the values in `up`; its clamping goes by both together
        nearest = apart.right[:rank].float(), (apart.left[:, :rank] * apart.values[:rank]).float()
        clamped = low_rank.clamped(*nearest, settings.clamp_quantile)
        whole = apart.cut(len(apart.values))
        made.add(name, clamped, float(rank), tuple(shape), whole=whole)
        unclamped.append(low_rank.likeness(whole, nearest))
    entries = families.blueprint(infos[0]).metadata() | made.metadata()
    entries |= {
        "ss_output_name": target.stem,
        "ss_network_dim": str(settings.network_dim),
        "ss_network_alpha": str(float(settings.network_dim)),
        "ss_training_comment": f"extracted: {infos[1].path.stem} - {infos[0].path.stem}",
        "modelspec.sai_model_spec": "1.0.1",
        **lora_files.merged_modelspec([info.path for info in infos], target.stem),
        lora_files.PROVENANCE: provenance,
    }
    lora_files.save(target, made.tensors, entries)
    log.info(
        say(
            f"{plural(len(made.layers), 'layer')} of {', '.join(parts)}", f"{'、'.join(parts)} 共 {len(made.layers)} 层"
        )
    )
    if same:
        log.info(_same_in_both(same))
    log.info(made.kept())
    without = mean(one.kept for one in unclamped)
    if without - mean(layer.likeness.kept for layer in made.layers.values()) > CLAMPING_MATTERS:
        log.warning(_clamped(settings.clamp_quantile, without))


def difference(pair: list, name: str):
    """Of a layer's weights, float32, in the second model's shape. Raises UserError: a model is damaged."""
    tuned = pair[1].read(name)
    difference = tuned - pair[0].read(name).reshape(tuned.shape)  # a 1x1 convolution may be a linear layer in one
    if not difference.isfinite().all():
        raise UserError(
            say(
                f"{name} contains NaN or infinities in one of the models: it is damaged, use another copy",
                f"{name} 在其中一个模型里含有 NaN 或无穷大，该模型已损坏，请换一份",
            )
        )
    return difference


def refuse_other_shapes(infos: list, pair: list) -> None:
    first, second = ({one.saved_as: one.layer.weight.numel() for one in model.targets} for model in pair)
    odd = [name for name in first.keys() | second.keys() if first.get(name) != second.get(name)]
    if odd:
        raise UserError(
            say(
                f"{infos[0].path} and {infos[1].path}: {plural(len(odd), 'layer is', 'layers are')} not in both or differ in shape, such as "
                f"{min(odd)}. One of the models was changed in its structure",
                f"{infos[0].path} 与 {infos[1].path}：有 {len(odd)} 层不同时存在或形状不同，如 {min(odd)}。"
                "其中一个模型的结构被改动过",
            )
        )


def differing_parts(settings: ExtractLora, pair: list, targets: list) -> tuple[list[str], list[str]]:
    """The parts that are worth extracting, and what is said of the others. Raises UserError: none."""
    from tqdm import tqdm

    largest = dict.fromkeys((one.part for one in targets), 0.0)
    for one in tqdm(targets, disable=None, desc=say("comparing", "比较")):
        if one.part == "denoiser" and largest["denoiser"]:
            continue  # that it differs at all is enough
        largest[one.part] = max(largest[one.part], float(difference(pair, one.saved_as).abs().max()))
    limits = {part: 0.0 if part == "denoiser" else settings.min_diff for part in largest}
    parts = [part for part, value in largest.items() if value > limits[part]]
    notes = [
        say(
            f"{part} is left out: its weights differ by {value:.2g} at most (min_diff = {settings.min_diff:g})",
            f"不提取 {part}：它的权重最多相差 {value:.2g}（min_diff = {settings.min_diff:g}）",
        )
        for part, value in largest.items()
        if part not in parts
    ]
    if not parts:
        raise UserError([say("the two models are the same: nothing to extract", "两个模型相同，没有可提取的"), *notes])
    return parts, notes


# ---- in words ----


def _same_in_both(count: int) -> str:
    return say(
        f"{plural(count, 'layer')} left out: the same in both models",
        f"有 {count} 层在两个模型里相同，未写入",
    )


def _clamped(quantile: float, without: float) -> str:
    from library.tooling.new_lora import percent

    return say(
        f"clamp_quantile = {quantile:g} cut much of it off: without clamping (clamp_quantile = 1) the file would hold "
        f"{percent(without)} on average",
        f"clamp_quantile = {quantile:g} 截掉了不少：不截断（clamp_quantile = 1）时平均可保留 {percent(without)}",
    )


if __name__ == "__main__":
    raise SystemExit(main())
