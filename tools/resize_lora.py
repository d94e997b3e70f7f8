"""Make LoRA files smaller: another rank, or for each layer the rank it needs. Edit the values below, then run this
file; it takes no arguments.

缩小 LoRA 文件：换一个秩，或让每层自动选取所需的秩。修改下面的参数，然后直接运行本文件，不需要任何命令行参数。
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
lora = r"output/mytag.safetensors"  # a LoRA file, or a folder: all LoRAs in it, including sub-folders; they are never changed | LoRA 文件，或一个目录（处理其中所有 LoRA，含子目录）；原文件不会被改动
new_rank = 16                       # the new rank, usually 4~64; with dynamic_method, the maximum per layer | 新的秩，常用 4~64；使用 dynamic_method 时是每层的上限

# ---- Often changed | 经常修改 ----
dynamic_method = None  # choose each layer's rank by its singular values: "sv_ratio" (those above the largest / dynamic_param), "sv_fro" (as many as hold this share of the Frobenius norm), "sv_cumulative" (... of their sum); None: new_rank for all | 按奇异值给每层选秩："sv_ratio"（保留大于 最大值/dynamic_param 的）、"sv_fro"（保留到 Frobenius 范数的这一比例）、"sv_cumulative"（保留到奇异值总和的这一比例）；None 表示全部用 new_rank
dynamic_param = None   # for dynamic_method: sv_ratio 2~20, sv_fro 0.9~0.99, sv_cumulative 0.7~0.95; larger keeps more | dynamic_method 的参数：sv_ratio 用 2~20，sv_fro 用 0.9~0.99，sv_cumulative 用 0.7~0.95；越大保留越多
new_conv_rank = None   # the same as new_rank for 3x3 convolutions; None: new_rank | 3x3 卷积层的 new_rank；None 表示与 new_rank 相同

# ---- Seldom changed | 较少修改 ----
pretrained_model_name_or_path = None  # for DoRA files, which become a LoRA: the base model they were trained on; it is never changed | 用于 DoRA 文件（会变成 LoRA）：训练时的底模；原文件不会被改动

# ---- Output | 输出 ----
language = "auto"               # language of the messages: "auto" (by the system), "en", "zh" | 提示语言："auto"（按系统）、"en"、"zh"
open_pages = "auto"             # open the page in the browser at the end: "auto" where there is a screen, True, False | 结束时在浏览器里打开结果页："auto" 有屏幕时打开，True，False
save_precision = None           # number format of the files: "fp16", "bf16", "float"; None: as they are | 文件精度："fp16"、"bf16"、"float"；None 表示不变
output_dir = r"output/resized"  # where the files and the summary go, under their own names with the rank behind; none is overwritten | 结果和结果页的输出目录，文件名后面会加上秩；不会覆盖已有文件

# fmt: on
# ---- Do not edit below | 请勿修改下方内容 ----

import json
import sys
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.files import free_path
from library.messages import UserError, log, plural, say
from library.options import parameter_block
from library.options.tools import TOOLS, ResizeLora
from library.reporting import desktop, pages

if TYPE_CHECKING:
    from library.tooling.lora_files import LoraFile
    from library.tooling.new_lora import NewLora

PAGE = "summary.html"
OF_RANKS = {  # arguments of a network that hold no longer once its ranks are others, or its kind is
    "conv_dim", "conv_alpha", "block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas", "rs_lora",
    "network_reg_dims", "algo", "factor", "dora_wd", "wd_on_output",
}  # fmt: skip


def main() -> int:
    return parameter_block.run_tool(__file__, globals(), TOOLS["resize_lora.py"], run)


class Result(NamedTuple):
    """What became of a file."""

    source: Path
    target: Path
    old_ranks: dict[str, int]  # by layer
    made: "NewLora"

    @property
    def ranks(self) -> list[int]:
        return [layer.rank for layer in self.made.layers.values()]

    @property
    def kept(self) -> list[float]:
        """Shares of the Frobenius norm, of the layers that had any."""
        return [layer.likeness.kept for layer in self.made.layers.values() if layer.likeness] or [1.0]


def run(settings: ResizeLora) -> int:
    """Resize what was not resized before; the exit code is 2 where nothing could be read."""
    from tqdm import tqdm

    from library.tooling import lora_files

    source = Path(settings.lora)
    paths = lora_files.find_loras(source)
    results, left_out, done = [], [], 0
    for path in tqdm(paths, disable=None if len(paths) > 1 else True, desc=say("files", "文件")):
        folder = path.parent.relative_to(source) if source.is_dir() else Path()
        try:
            if result := resized(settings, path, Path(settings.output_dir) / folder):
                results.append(result)
                log.info(result_line(result))
            else:
                done += 1
        except UserError as error:
            left_out += error.problems
    for line in left_out:
        log.info(say(f"left out: {line}", f"跳过：{line}"))
    if done:
        log.info(say(f"nothing to do for {plural(done, 'file')}: already made", f"{done} 个文件无需处理：之前已生成"))
    if results:
        path = write_page(settings, results, left_out)
        log.info(say(f"summary: {path}", f"结果页：{path}"))
        desktop.open_page(path, settings.open_pages)
    return 0 if results or done else 2


def largest_ranks(made: "NewLora") -> tuple[int, int]:
    """Of its layers, and of its 3x3 convolutions; 0: it has none."""
    ranks: dict[bool, int] = {True: 0, False: 0}
    for layer in made.layers.values():
        ranks[layer.is_conv] = max(ranks[layer.is_conv], layer.rank)
    return ranks[False], ranks[True]


def suffix(settings: ResizeLora, made: "NewLora") -> str:
    """What a result is called by, behind the file's name: the ranks that it has, or how they were chosen."""
    if settings.dynamic_method:
        return f"{settings.dynamic_method}-{settings.dynamic_param:g}"
    plain, conv = largest_ranks(made)
    return f"dim{plain or conv}" + (f"-conv{conv}" if settings.new_conv_rank and plain and conv else "")


def resized(settings: ResizeLora, path: Path, folder: Path) -> Result | None:
    """Write a file's smaller copy; None: it was written before. Raises UserError."""
    from library.lora_files import low_rank
    from library.storage.lora_file import PRECISIONS
    from library.tooling import lora_files
    from library.tooling.new_lora import NewLora

    conv_rank, model = settings.new_conv_rank or settings.new_rank, settings.pretrained_model_name_or_path
    provenance = lora_files.provenance(
        "resize_lora", [path, *([Path(model)] if model else [])], rank=settings.new_rank, conv_rank=conv_rank, method=settings.dynamic_method,
        target=settings.dynamic_param, precision=settings.save_precision,
    )  # fmt: skip
    if lora_files.made_in(folder, f"{path.stem}-", provenance):
        return None
    file = lora_files.read_lora(path)
    made, old_ranks = NewLora(PRECISIONS.get(settings.save_precision) or file.dtype), {}
    base = lora_files.base_for([file], model)
    for name, factors in lora_files.by_saved_name(file).items():
        down, up = factors.thin(weight=base.weight_for(name, factors) if base else None)
        apart = low_rank.of_product(down, up)
        is_conv = len(factors.shape()) > 2
        rank = min(conv_rank if is_conv else settings.new_rank, len(apart.values))
        if settings.dynamic_method:
            rank = low_rank.choose_rank(apart.values, settings.dynamic_method, settings.dynamic_param, rank)
        old_ranks[name] = factors.rank or len(down)
        made.add(
            name, apart.cut(rank), factors.scale * rank, factors.whole_shape(), whole=(down, up * factors.scale)
        )  # fmt: skip
    target = free_path(folder / f"{path.stem}-{suffix(settings, made)}.safetensors")
    entries = described(settings, file, made, max(old_ranks.values()))
    if file.bundled:
        log.info(lora_files.bundled_note(file.path.name, file.embeddings, "kept in the result", "会保留在结果里"))
    lora_files.save(target, made.tensors | file.bundled, entries | {lora_files.PROVENANCE: provenance})
    return Result(path, target, old_ranks, made)


def described(settings: ResizeLora, file: "LoraFile", made: "NewLora", old: int) -> dict[str, str]:
    """The file's metadata, with what changed; in sd-scripts' words."""
    entries, ranks = file.metadata, made.metadata()
    comment = entries.get("ss_training_comment", "")
    if entries.get("ss_network_args"):
        ranks["ss_network_args"] = other_arguments(entries["ss_network_args"], ranks.get("ss_network_args", "{}"))
    if settings.dynamic_method:
        resized = f"Dynamic resize with {settings.dynamic_method}: {settings.dynamic_param} from {old}"
        ranks |= {"ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic"}
    else:
        plain, conv = largest_ranks(made)
        of_conv = f" (conv: {conv})" if plain and conv not in (0, plain) else ""
        resized = f"dimension is resized from {old} to {plain or conv}{of_conv}"
    return entries | ranks | {"ss_training_comment": f"{resized}; {comment}" if comment else resized}


def other_arguments(old: str, new: str) -> str:
    """network_args without what no longer holds of the ranks and alphas, with what does."""
    try:
        kept = {name: value for name, value in json.loads(old).items() if name not in OF_RANKS}
    except (ValueError, AttributeError):
        kept = {}
    return json.dumps(kept | json.loads(new))


def result_line(result: Result) -> str:
    """One line: ranks, what is kept, sizes."""
    from library.tooling import lora_files

    old, ranks = list(result.old_ranks.values()), result.ranks
    sizes = f"{lora_files.size(result.source)} -> {lora_files.size(result.target)}"
    kept = result.made.kept()
    return say(
        f"{result.target}: rank {span(old)} -> {span(ranks)} (mean {mean(ranks):.1f}); {kept}; {sizes}",
        f"{result.target}：秩 {span(old)} -> {span(ranks)}（平均 {mean(ranks):.1f}）；{kept}；{sizes}",
    )


def span(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low}~{high}"


class LayersOfFile(NamedTuple):
    """A file, layer by layer."""

    name: str
    rows: list[tuple[str, int, int, str]]  # layer, rank before, rank, share that is kept


class ResizeLoraPage(NamedTuple):
    """What templates/resize_lora.html shows."""

    files: list[tuple[str, ...]]  # as the columns of the table there
    layers: list[LayersOfFile]
    left_out: list[str]


def write_page(settings: ResizeLora, results: list[Result], left_out: list[str]) -> Path:
    """All files and all their layers."""
    content = ResizeLoraPage([file_row(one) for one in results], [layers_of(one) for one in results], left_out)
    return pages.write(Path(settings.output_dir) / PAGE, pages.render("resize_lora.html", content))


def file_row(result: Result) -> tuple[str, ...]:
    """Name, ranks, what is kept, sizes."""
    from library.tooling import lora_files
    from library.tooling.new_lora import percent

    ranks, kept = result.ranks, result.kept
    shares = percent(mean(kept)), percent(min(kept))
    sizes = lora_files.size(result.source), lora_files.size(result.target)
    old = span(list(result.old_ranks.values()))
    return (result.target.name, old, span(ranks), f"{mean(ranks):.1f}", *shares, *sizes)


def layers_of(result: Result) -> LayersOfFile:
    from library.tooling.new_lora import percent

    rows = [
        (name, result.old_ranks[name], layer.rank, percent(layer.likeness.kept) if layer.likeness else "-")
        for name, layer in result.made.layers.items()
    ]
    return LayersOfFile(result.target.name, rows)


if __name__ == "__main__":
    raise SystemExit(main())
