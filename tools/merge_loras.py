"""Several LoRAs into one, each with its own weight, or into a base model. Edit the values below, then run this file;
it takes no arguments.

把多个 LoRA 按各自的权重合并成一个，或合并进底模。修改下面的参数，然后直接运行本文件，不需要任何命令行参数。
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
loras = ["output/first.safetensors", "output/second.safetensors"]  # the LoRA files, of one kind of base model | 要合并的 LoRA 文件，须对应同一类底模
ratios = [0.6, 0.4]                   # weight of each, in the same order, usually 0.3~1; like a strength in the prompt | 各自的权重，顺序与上面相同，常用 0.3~1，与提示词里的强度同义
method = "concat"                     # "concat": one LoRA, exact, its rank is the sum of theirs; "svd": one LoRA of new_rank, as close as that rank allows; "checkpoint": a copy of the base model with them inside | "concat"：合成一个 LoRA，结果精确，秩为各秩之和；"svd"：合成一个秩为 new_rank 的 LoRA，尽量接近；"checkpoint"：合并进底模的副本

# ---- Often changed | 经常修改 ----
new_rank = 32                         # rank with "svd", usually 16~128 | "svd" 的秩，常用 16~128
new_conv_rank = None                  # rank of 3x3 convolutions with "svd"; None: new_rank | "svd" 时 3x3 卷积层的秩；None 表示与 new_rank 相同
pretrained_model_name_or_path = None  # base model for "checkpoint", and for DoRA files: .safetensors, .ckpt or diffusers folder; it is read tensor by tensor and never changed | "checkpoint" 以及 DoRA 文件所用的底模：.safetensors、.ckpt 文件或 diffusers 文件夹；逐个张量读取，原文件不会被改动

# ---- Output | 输出 ----
language = "auto"              # language of the messages: "auto" (by the system), "en", "zh" | 提示语言："auto"（按系统）、"en"、"zh"
open_pages = "auto"            # open the page in the browser at the end: "auto" where there is a screen, True, False | 结束时在浏览器里打开结果页："auto" 有屏幕时打开，True，False
save_precision = None          # number format of the result: "fp16", "bf16", "float"; None: as in the files, in a checkpoint as it was | 结果的精度："fp16"、"bf16"、"float"；None 表示与原文件相同
output_name = "merged"         # file name of the result; no file is overwritten: a taken name gets -2, -3, ... | 结果的文件名；不会覆盖已有文件，重名时加 -2、-3……
output_dir = r"output/merged"  # where the result goes; made if missing | 结果的输出目录，没有会自动建立

# fmt: on
# ---- Do not edit below | 请勿修改下方内容 ----

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.files import free_path
from library.messages import UserError, log, plural, say
from library.options import parameter_block
from library.options.tools import TOOLS, MergeLoras


def main() -> int:
    return parameter_block.run_tool(__file__, globals(), TOOLS["merge_loras.py"], run)


def run(settings: MergeLoras) -> int:
    """Merge, unless it was done before; the exit code is 0."""
    from library.tooling import lora_files

    paths = [lora_files.from_project(entry) for entry in settings.loras]
    if missing := [path for path in paths if not path.is_file()]:
        told = [say(f"loras: {path}: there is no such file", f"loras：{path}：没有这个文件") for path in missing]
        raise UserError(told)
    into_model = settings.method == "checkpoint"
    model = Path(settings.pretrained_model_name_or_path) if settings.pretrained_model_name_or_path else None
    base = model if into_model else None
    name = settings.output_name + (".safetensors" if base is None or base.is_file() else "")
    target = Path(settings.output_dir) / name
    ranks = dict(rank=settings.new_rank, conv_rank=settings.new_conv_rank) if settings.method == "svd" else {}
    provenance = lora_files.provenance(
        "merge_loras", [*paths, *([model] if model else [])], ratios=settings.ratios, method=settings.method,
        precision=settings.save_precision, **ranks,
    )  # fmt: skip
    if made := lora_files.made_before(target, provenance):
        log.info(
            say(f"nothing to do: {made} was made of these files already", f"无需处理：{made} 已由这些文件合并而成")
        )
        return 0
    # of a weight of 0 nothing is in the result, and so nothing in its metadata
    parts = [(file, ratio) for file, ratio in zip(read_loras(paths), settings.ratios, strict=True) if ratio]
    target = free_path(target)
    if base:
        into_checkpoint(settings, parts, base, target, provenance)
    else:
        into_one(settings, parts, target, provenance)
    log.info(say(f"written: {target} ({size_text(target)})", f"已写入：{target}（{size_text(target)}）"))
    return 0


def read_loras(paths: list[Path]) -> list:
    """All files. Raises UserError, naming all that cannot be merged."""
    from library.tooling import lora_files

    files, problems = [], []
    for path in paths:
        try:
            files.append(lora_files.read_lora(path))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    lora_files.same_family(files)
    return files


def into_one(settings: MergeLoras, weighted: list, target: Path, provenance: str) -> None:
    """One LoRA of files, each with its weight: side by side, or cut to a rank."""
    from tqdm import tqdm

    from library.lora_files import low_rank
    from library.storage.lora_file import PRECISIONS
    from library.tooling import lora_files
    from library.tooling.new_lora import NewLora

    files = [file for file, _ in weighted]
    family = lora_files.same_family(files)
    model = lora_files.base_for(files, settings.pretrained_model_name_or_path)
    if settings.pretrained_model_name_or_path and model is None:
        log.info(_model_not_needed())
    parts: dict[str, list] = {}  # layer -> (what a file adds to it, the file's weight)
    for file, ratio in weighted:
        for name, update in lora_files.by_saved_name(file).items():
            parts.setdefault(name, []).append((update, ratio))
    refuse_other_shapes(files, parts)
    embeddings: dict = {}
    for file in files:
        if file.bundled:
            embeddings = file.bundled | embeddings
            log.info(lora_files.bundled_note(file.path.name, file.embeddings, "kept in the result", "会保留在结果里"))
    dtype = PRECISIONS.get(settings.save_precision) or widest([file.dtype for file in files])
    made = NewLora(dtype)
    for name, found in tqdm(parts.items(), disable=None, desc=say("merging", "合并")):
        whole = own = side_by_side(name, found, model)
        is_conv = len(found[0][0].shape()) > 2
        if settings.method == "svd":
            rank = settings.new_conv_rank if is_conv and settings.new_conv_rank else settings.new_rank
            own = low_rank.of_product(*whole).cut(rank)
        made.add(name, own, float(len(own[0])), likeliest(found).whole_shape(), whole=whole)
    entries = lora_files.merged_metadata(weighted, family, target.stem) | made.metadata()
    weights = ", ".join(f"{file.path.stem} x {ratio:g}" for file, ratio in weighted)
    entries["ss_training_comment"] = f"merged ({settings.method}) of {weights}"
    lora_files.save(target, made.tensors | embeddings, entries | {lora_files.PROVENANCE: provenance})
    numbers, ranks = str(dtype).removeprefix("torch."), [layer.rank for layer in made.layers.values()]
    log.info(
        say(
            f"{plural(len(files), 'LoRA')}, {plural(len(parts), 'layer')}, rank {span(ranks)}, {numbers}",
            f"{len(files)} 个 LoRA，{len(parts)} 层，秩 {span(ranks)}，{numbers}",
        )
    )
    log.info(made.kept())
    if settings.method == "concat" and any(file.is_whole for file in files):
        log.info(_exact_is_large(max(ranks)))


def side_by_side(name: str, found: list, model) -> tuple:
    """(R, n k k) down and (m, R) up, float32: up @ down is the sum of ratio * scale * up @ down of all."""
    import torch

    weights = (model.weight_for(name, update) if model else None for update, _ in found)
    thin = [
        (*update.thin(weight=weight), update.scale * ratio)
        for (update, ratio), weight in zip(found, weights, strict=True)
    ]
    return torch.cat([down for down, _, _ in thin]), torch.cat([up * scale for _, up, scale in thin], dim=1)


def likeliest(found: list):
    """The file's update that tells the layer's shape: of a 1x1 convolution one that is written as such."""
    return max((update for update, _ in found), key=lambda update: len(update.whole_shape()))


def refuse_other_shapes(files: list, parts: dict[str, list]) -> None:
    odd = [name for name, found in parts.items() if len({factors.shape() for factors, _ in found}) > 1]
    if odd:
        shapes = " / ".join(str(factors.shape()) for factors, _ in parts[odd[0]])
        raise UserError(
            say(
                f"{plural(len(odd), 'layer has', 'layers have')} different shapes in the files, such as {odd[0]} ({shapes}): they are made for "
                "different base models and cannot be merged",
                f"有 {len(odd)} 层在各文件中形状不同，如 {odd[0]}（{shapes}）：它们对应不同的底模，不能合并",
            )
        )


def widest(dtypes: list):
    """The type that holds what all of these hold; of fp16 with bf16 float32."""
    import torch

    widest = dtypes[0]
    for dtype in dtypes[1:]:
        widest = torch.promote_types(widest, dtype)
    return widest


def span(numbers) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low}~{high}"


def into_checkpoint(settings: MergeLoras, weighted: list, base: Path, target: Path, provenance: str) -> None:
    """A copy of the base model with the LoRAs in its weights, tensor by tensor."""
    from tqdm import tqdm

    from library import families
    from library.families import rewriting
    from library.lora_files import merging
    from library.storage import disk
    from library.storage.lora_file import PRECISIONS
    from library.tooling import lora_files

    info = families.inspect(base)
    log.info(families.describe(info))
    family = families.blueprint(info)
    targets = family.layers()
    files, problems, found = [file for file, _ in weighted], [], []
    for file in files:
        if file.bundled:
            log.warning(
                lora_files.bundled_note(
                    file.path.name,
                    file.embeddings,
                    "a checkpoint can't hold it, only the LoRA is merged",
                    "底模文件放不下它，只合并 LoRA 部分",
                )
            )
        try:
            own = merging.fit(file.path.name, file.factors, targets, made_for=file.family, base=family.facts)
            found.append(own)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    size, room = rewriting.model_size(info), disk.free(target)
    if size * (2 if settings.save_precision == "float" else 1) > room:
        raise UserError(
            say(
                f"{target}: the model takes up to {disk.mib(size)}, but only {disk.mib(room)} are free there",
                f"{target}：模型最多需要 {disk.mib(size)}，但该磁盘只剩 {disk.mib(room)}",
            )
        )
    updates: dict = {}
    layers = {target.saved_as: target.layer for target in targets}
    for by_layer, (_, ratio) in zip(found, weighted, strict=True):
        for name, factors in by_layer.items():
            updates.setdefault(layers[name], []).append((factors, ratio))
    stored = families.stored_weights(info, family)
    changes = {stored[layer]: partial(merging.with_updates, updates=own) for layer, own in updates.items()}

    def described(entries: dict[str, str]) -> dict[str, str]:
        kept = {name: value for name, value in entries.items() if name != "modelspec.hash_sha256"}
        return (
            kept
            | lora_files.merged_modelspec([base, *(file.path for file in files)], target.stem)
            | {lora_files.PROVENANCE: provenance}
        )

    with tqdm(total=size, unit="B", unit_scale=True, disable=None, desc=say("writing", "写入")) as bar:
        rewriting.rewrite(
            info, target, changes, dtype=PRECISIONS.get(settings.save_precision), metadata=described,
            progress=bar.update,
        )  # fmt: skip
    log.info(
        say(
            f"{plural(len(files), 'LoRA')} into {plural(len(changes), 'layer')}; everything else is as it was",
            f"{len(files)} 个 LoRA 合并进 {len(changes)} 层，其余部分保持原样",
        )
        if settings.save_precision is None
        else say(
            f"{plural(len(files), 'LoRA')} into {plural(len(changes), 'layer')}; all numbers as {settings.save_precision}",
            f"{len(files)} 个 LoRA 合并进 {len(changes)} 层，全部以 {settings.save_precision} 保存",
        )
    )


def size_text(path: Path) -> str:
    from library.storage import disk

    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return disk.mib(sum(file.stat().st_size for file in files))


# ---- in words ----


def _model_not_needed() -> str:
    return say(
        "pretrained_model_name_or_path is not needed here: no file is a DoRA",
        "这里用不到 pretrained_model_name_or_path：没有 DoRA 文件",
    )


def _exact_is_large(rank: int) -> str:
    return say(
        f"a LoHa, LoKr or DoRA as an exact LoRA takes up to rank {rank}. "
        'method = "svd" with new_rank makes a smaller file',
        f'LoHa、LoKr、DoRA 要精确地写成 LoRA，秩最高要到 {rank}。用 method = "svd" 加 new_rank 可以得到较小的文件',
    )


if __name__ == "__main__":
    raise SystemExit(main())
