"""What is in LoRA files: trigger words, base model, ranks, strength of each block, what is wrong, and which programs
read them. Edit the values below, then run this file; it takes no arguments.

查看 LoRA 文件的内容：触发词、底模、秩、各分块的强度、有没有问题、哪些软件能读取。
修改下面的参数，然后直接运行本文件，不需要任何命令行参数。
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
lora = None  # a LoRA file, or a folder: all LoRAs in it, including sub-folders; nothing is changed; None: what lora_train_command_line.py makes | LoRA 文件，或一个目录（查看其中所有 LoRA，含子目录）；不改动任何文件；None 表示 lora_train_command_line.py 的结果

# ---- Seldom changed | 较少修改 ----
pretrained_model_name_or_path = None  # base model whose layers the files are compared with; None: a model of the family they were made for | 用来核对各层的底模；None 表示按文件对应的系列核对

# ---- Output | 输出 ----
language = "auto"    # language of the messages: "auto" (by the system), "en", "zh" | 提示语言："auto"（按系统）、"en"、"zh"
open_pages = "auto"  # open the page in the browser at the end: "auto" where there is a screen, True, False | 结束时在浏览器里打开结果页："auto" 有屏幕时打开，True，False
output_dir = None    # where the page goes; None: output/shown | 结果页的输出目录；None 表示 output/shown

# fmt: on
# ---- Do not edit below | 请勿修改下方内容 ----

import json
import math
import re
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from library.contracts import FamilyFacts
from library.messages import UserError, log, plural, say
from library.options import parameter_block
from library.options.tools import TOOLS, ShowLora
from library.reporting import desktop, findings, pages

PAGE = "summary.html"
PLAUSIBLE = 1e-3, 20  # alpha / rank outside of it is a mistake
OF_LAYERS = (  # arguments of a network that give layers sizes of their own
    "block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas", "network_reg_dims",
)  # fmt: skip
TOLD = {  # in the metadata -> what it is called
    "ss_output_name": ("name", "名称"),
    "ss_sd_model_name": ("trained on", "训练底模"),
    "ss_base_model_version": ("family", "底模系列"),
    "ss_steps": ("steps", "步数"),
    "ss_epoch": ("epochs", "轮数"),
    "ss_num_train_images": ("training samples per epoch", "每轮训练样本"),
    "ss_num_reg_images": ("regularization samples", "正则化样本"),
    "ss_resolution": ("resolution", "分辨率"),
    "ss_total_batch_size": ("batch", "批大小"),
    "ss_learning_rate": ("learning rate", "学习率"),
    "ss_unet_lr": ("denoiser learning rate", "去噪网络学习率"),
    "ss_text_encoder_lr": ("text encoder learning rate", "文本编码器学习率"),
    "ss_lr_scheduler": ("schedule", "学习率调度"),
    "ss_optimizer": ("optimizer", "优化器"),
    "ss_network_module": ("network", "网络"),
    "ss_network_dim": ("rank", "秩"),
    "ss_network_alpha": ("alpha", "alpha"),
    "ss_network_args": ("network arguments", "网络参数"),
    "ss_clip_skip": ("clip skip", "clip skip"),
    "ss_min_snr_gamma": ("min-SNR gamma", "min-SNR gamma"),
    "ss_noise_offset": ("noise offset", "noise offset"),
    "ss_seed": ("seed", "随机种子"),
    "ss_training_comment": ("comment", "备注"),
    "modelspec.merged_from": ("merged from", "合并自"),
    "modelspec.date": ("date", "日期"),
}


def main() -> int:
    return parameter_block.run_tool(__file__, globals(), TOOLS["show_lora.py"], run)


@dataclass
class Group:
    """Layers of a part with the same rank and alpha."""

    part: str
    rank: int | None  # None: it has none, such as a LoKr of whole matrices
    alpha: float | None
    is_conv: bool
    count: int = 0


@dataclass
class LoraSummary:
    """What is told of a file."""

    path: Path
    metadata: dict[str, str]
    kinds: list[str]
    line: str | None
    words: list[str]
    numbers: str  # types of its tensors
    embeddings: list[str] = field(default_factory=list)  # that it holds besides
    groups: list[Group] = field(default_factory=list)
    layer_norms: dict[str, float] = field(default_factory=dict)  # of the updates, where they are known
    norms: dict[str, tuple[int, float]] = field(default_factory=dict)  # block -> layers, norm of their updates
    readings: dict = field(default_factory=dict)  # program -> readers.Reading
    is_compared: bool = False  # with a base model's layers
    findings: list[tuple[str, str, str]] = field(default_factory=list)  # level, text, cure


def run(settings: ShowLora) -> int:
    """Show every file; the exit code is 2 where none could be read."""
    from library.tooling import lora_files

    known = Known(settings.pretrained_model_name_or_path)
    shown, left_out = [], []
    for path in lora_files.find_loras(Path(settings.lora)):
        try:
            shown.append(read_lora(path, known))
        except UserError as error:
            left_out += error.problems
    for one in shown:
        log.info("\n".join(lines_of(one)) + "\n")
    for line in left_out:
        log.info(say(f"left out: {line}", f"跳过：{line}"))
    if not shown:
        return 2
    path = write_page(settings, shown, left_out)
    log.info(say(f"summary: {path}", f"结果页：{path}"))
    desktop.open_page(path, settings.open_pages)
    return 0


class Known:
    """The layers of base models, worked out once for each family."""

    def __init__(self, model: str | None):
        self.model = model
        self.layers: dict = {}

    def of(self, family: FamilyFacts | None, names: list[str]) -> tuple[list | None, str | None]:
        """The base model's layers, and what it is called; None: nothing tells which.

        Args:
            names: of a file's layers, by which the built-in miniature is known.
        """
        from library import families
        from library.tooling import lora_files

        if self.model:
            if None not in self.layers:
                self.layers[None] = families.blueprint(families.inspect(self.model)).layers()
            return self.layers[None], family and family.title
        if family is None:
            return None, None
        if family.name not in self.layers:
            self.layers[family.name] = families.architecture(family.name).layers()
        if small := lora_files.miniature_layers(family, names):
            return small, say(f"the built-in miniature ({family.title})", f"自带的微型模型（{family.title}）")
        return self.layers[family.name], family.title

    @cached_property
    def weights(self):
        """A `lora_files.BaseModel`; None: no model was given."""
        from library import families
        from library.tooling import lora_files

        return lora_files.BaseModel(families.inspect(self.model)) if self.model else None


def read_lora(path: Path, known: Known) -> LoraSummary:
    """Read one file. Raises UserError: it is no adapter."""
    from library import families
    from library.adapters import sizes
    from library.lora_files import layouts, merging, readers
    from library.lora_files.factors import UNDERSTOOD, canonical, read_factors
    from library.storage import metadata
    from library.tooling import lora_files

    tensors, bundled, entries = lora_files.load(path)
    others = layouts.other_kinds(tensors)
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    factors = {}
    if not broken and set(others) <= set(UNDERSTOOD):
        factors = read_factors(path.name, tensors, entries)
    names = list(dict.fromkeys(layouts.layer_of(name) for name in tensors))
    plain = any(re.search(r"lora_(down|A)\.|lora\.down\.", name) for name in tensors) and "DoRA" not in others
    kinds = (["LoRA"] if plain else []) + others
    kinds += ["LoCon in three steps"] if any(name.endswith(".lora_mid.weight") for name in tensors) else []
    if factors:
        family = merging.family_of(factors, entries, families.all_facts())
    else:  # by the metadata and the names alone
        family = merging.family_of(dict.fromkeys(names), entries, families.all_facts())
    numbers = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}))
    targets, line = known.of(family, names)
    layers = None if targets is None else set(layouts.by_name(targets))
    shown = LoraSummary(path, entries, kinds, line, metadata.trigger_words(entries), numbers)
    shown.embeddings = layouts.bundled_names(bundled)
    shown.is_compared = layers is not None
    shown.readings = readers.readings(kinds, names, layers)
    places = {target.saved_as: target.layer for target in targets or ()}
    for name, update in factors.items():
        own = canonical({name: update}, targets or ())[0]  # by the names of the model's layers
        is_conv = len(update.shape()) > 2
        norm = None
        for saved_as, part in own.items():
            shaped = part.shaped(tuple(places[saved_as].weight.shape))
            is_conv = is_conv or (shaped is not None and len(shaped.shape()) > 2)
            if part.needs_weight and shaped and known.weights:
                norm = float(shaped.update("cpu", known.weights.read(saved_as)).norm())
        if not update.needs_weight:
            norm = norm_of(update)
        alpha = tensors.get(f"{name}.alpha")
        count(shown, name, norm, Group(sizes.part_of(name), update.rank, alpha_of(update, alpha), is_conv))
    judge(shown, tensors, broken, factors, names, layers)
    return shown


def norm_of(update) -> float:
    """The Frobenius norm of what is added to a layer."""
    from library.lora_files.factors import Factors

    if not isinstance(update, Factors):
        return float(update.update("cpu").norm())
    down, up = (part.double() for part in update.thin())
    square = float(((up.T @ up) * (down @ down.T)).sum())  # of r x r products
    return max(0.0, square) ** 0.5 * abs(update.scale)


def alpha_of(update, tensor) -> float | None:
    """As the file has it; that of a LoRA may stand in its metadata."""
    from library.lora_files.factors import Factors

    if isinstance(update, Factors):
        return update.scale * update.rank
    return float(tensor) if tensor is not None else None


def count(shown: LoraSummary, name: str, norm: float | None, group: Group) -> None:
    """Put a layer into its group and its block."""
    from library.adapters import sizes

    if norm is not None:
        at = sizes.block_name(name)
        layers, whole = shown.norms.get(at, (0, 0.0))
        shown.norms[at] = (layers + 1, math.hypot(whole, norm))
        shown.layer_norms[name] = norm
    for other in shown.groups:
        alike = (other.part, other.rank, other.is_conv) == (group.part, group.rank, group.is_conv)
        if alike and math.isclose(other.alpha or 0, group.alpha or 0, rel_tol=1e-3, abs_tol=1e-9):
            other.count += 1
            return
    group.count = 1
    shown.groups.append(group)


def judge(shown: LoraSummary, tensors: dict, broken: list, factors: dict, names: list, layers) -> None:
    """What is wrong with a file, or fine."""
    find = shown.findings.append
    if broken:
        find((
            "red",
            say(
                f"{len(broken)} of {len(tensors)} tensors contain NaN or infinities, the first is {broken[0]}",
                f"{len(tensors)} 个张量中有 {len(broken)} 个含有 NaN 或无穷大，第一个是 {broken[0]}",
            ),
            say("Its training failed: use an earlier file of it.", "训练当时已失败：请换用它较早的文件。"),
        ))  # fmt: skip
    zero = [name for name, norm in shown.layer_norms.items() if norm == 0]
    if factors and len(zero) == len(factors):
        find((
            "red",
            say("every layer adds zero: nothing was learned", "所有层的更新量都是 0：什么都没学到"),
            say("Was its learning rate 0 or tiny?", "学习率是否为 0 或过小？"),
        ))  # fmt: skip
    elif zero:
        find((
            "amber",
            say(
                f"{len(zero)} of {plural(len(factors), 'layer')} {'adds' if len(zero) == 1 else 'add'} zero, such as {zero[0]}",
                f"{len(factors)} 层中有 {len(zero)} 层的更新量是 0，如 {zero[0]}",
            ),
            "",
        ))  # fmt: skip
    elif len(shown.layer_norms) < len(factors):
        find(("green", _needs_weights(), ""))
    elif factors:
        find(("green", say("no NaN, and every layer adds something", "没有 NaN，每层都有更新量"), ""))
    elif not broken:
        find((
            "amber",
            _not_understood(" / ".join(shown.kinds)),
            "",
        ))  # fmt: skip
    shown.findings += odd_sizes(shown)
    if shown.embeddings:
        find(("green", _bundled(shown.embeddings), ""))
    strange = [name for name in names if layers is not None and name not in layers]
    if strange:
        find((
            "red",
            say(
                f"{len(strange)} of {plural(len(names), 'layer')} {'is' if len(strange) == 1 else 'are'} in no {shown.line or 'such'} model, such as {strange[0]}",
                f"{len(names)} 层中有 {len(strange)} 层不存在于 {shown.line or '该'} 模型，如 {strange[0]}",
            ),
            say(
                "Programs ignore them or refuse the file.", "各软件会忽略这些层，或拒绝读取该文件。"
            ),
        ))  # fmt: skip
    if not shown.metadata:
        find((
            "amber",
            say("no metadata: its trigger word and base model are unknown",
                "没有元数据：无从得知触发词和底模"),
            "",
        ))  # fmt: skip


def odd_sizes(shown: LoraSummary) -> list[tuple[str, str, str]]:
    """Ranks and alphas that can hardly be meant, or that the metadata deny."""
    odd = []
    for group in shown.groups:
        if group.rank and group.alpha and not PLAUSIBLE[0] <= abs(group.alpha) / group.rank <= PLAUSIBLE[1]:
            odd.append(("amber", *_odd_alpha(group)))
    told = shown.metadata
    try:
        args = json.loads(told.get("ss_network_args", "{}"))
    except ValueError:
        args = {}
    if not isinstance(args, dict) or any(args.get(name) for name in OF_LAYERS):
        return odd  # layers have sizes of their own
    for is_conv, values in ((False, told), (True, args)):
        names = ("conv_dim", "conv_alpha") if is_conv else ("ss_network_dim", "ss_network_alpha")
        own = [group for group in shown.groups if group.is_conv == is_conv and group.rank]
        if not own:
            continue
        rank = _number(values.get(names[0]))
        largest = max(group.rank or 0 for group in own)
        if rank and rank != largest:
            odd.append(("amber", *_denied(names[0], f"{rank:g}", say("rank", "秩"), f"{largest}")))
        alpha = _number(values.get(names[1]))
        if args.get("rs_lora") == "True" and alpha:
            alpha *= largest**0.5
        alphas = [group.alpha for group in own if group.alpha is not None and group.rank == largest]
        if rank == largest and alpha and alphas and not any(math.isclose(alpha, one, rel_tol=0.01) for one in alphas):
            odd.append(("amber", *_denied(names[1], f"{alpha:g}", "alpha", f"{alphas[0]:g}")))
    return odd


def _number(text: str | None) -> float | None:
    """None: it is none, such as "Dynamic"."""
    try:
        return float(text or "")
    except ValueError:
        return None


# ---- in words ----


def _odd_alpha(group: Group) -> tuple[str, str]:
    scale = (group.alpha or 0) / (group.rank or 1)
    return (
        say(
            f"{plural(group.count, 'layer')} of {group.part}: alpha {group.alpha:g} at rank {group.rank} multiplies "
            f"the update by {scale:g}; usual is 0.01 to 2",
            f"{group.part} 有 {group.count} 层：秩 {group.rank} 配 alpha {group.alpha:g}，更新量会乘以 {scale:g}，"
            "常见的是 0.01~2",
        ),
        say(
            "The file was probably changed by a tool that lost the alpha. If the images break, try other strengths.",
            "可能是某个工具写错了 alpha。如果画面崩坏，请换别的强度试试。",
        ),
    )


def _denied(name: str, told: str, what: str, own: str) -> tuple[str, str]:
    return (
        say(
            f"its metadata say {name} = {told}, its layers have {what} {own}",
            f"元数据写着 {name} = {told}，而各层的 {what} 是 {own}",
        ),
        say(
            "The file was changed afterwards; programs go by the layers.",
            "文件后来被改动过；各软件以各层的数值为准。",
        ),
    )


def _needs_weights() -> str:
    return say(
        "no NaN; what a DoRA adds depends on the base model: set pretrained_model_name_or_path to see its norms",
        "没有 NaN；DoRA 的更新量取决于底模：设 pretrained_model_name_or_path 才能算出范数",
    )


def _not_understood(kinds: str) -> str:
    return say(
        f"it is a {kinds}: its ranks and norms are not shown; merge_loras.py and resize_lora.py don't support it",
        f"这是 {kinds}：不显示它的秩与范数；merge_loras.py、resize_lora.py 不支持它",
    )


def _bundled(embeddings: list[str]) -> str:
    names = ", ".join(embeddings)
    return say(
        f"it also holds the embedding{'' if len(embeddings) == 1 else 's'} {names}: A1111 loads it with the LoRA, "
        "other programs use the LoRA alone",
        f"它还带有嵌入模型 {names}：A1111 会随 LoRA 一起载入，其他软件只用 LoRA 部分",
    )


def facts_of(shown: LoraSummary) -> dict[str, str]:
    """What the metadata tells, in the user's language."""
    from library.diffusion import prompts

    facts = {}
    if shown.words:
        facts[say("trigger words", "触发词")] = prompts.typed(shown.words)
    for key, names in TOLD.items():
        value = shown.metadata.get(key, "")
        if value not in ("", "None", "{}"):
            facts[say(*names)] = value
    return facts


def read_by(shown: LoraSummary) -> list[str]:
    """A line for each program."""
    lines = []
    for program, reading in shown.readings.items():
        if reading.kinds:
            kinds = " / ".join(reading.kinds)
            lines.append(say(f"{program}: no, {kinds} is not supported", f"{program}：不能，不支持 {kinds}"))
        elif reading.names:
            count = len(reading.names)
            lines.append(
                say(
                    f"{program}: {plural(count, 'layer is', 'layers are')} lost, such as {reading.names[0]}",
                    f"{program}：有 {count} 层读不到，如 {reading.names[0]}",
                )
            )
        else:
            lines.append(say(f"{program}: yes", f"{program}：能"))
    return lines


def group_rows(shown: LoraSummary) -> list[list[object]]:
    conv = say(" (3x3)", "（3x3）")
    return [
        [
            group.part + conv * group.is_conv,
            group.count,
            "-" if group.rank is None else group.rank,
            "-" if group.alpha is None else f"{group.alpha:g}",
        ]
        for group in shown.groups
    ]


def norm_rows(shown: LoraSummary) -> list[list[object]]:
    from library.adapters import sizes

    whole = sum(norm**2 for _, norm in shown.norms.values()) ** 0.5
    return [
        [name, layers, f"{norm:.4g}", f"{(norm / whole) ** 2 if whole else 0:.1%}"]
        for name, (layers, norm) in sorted(shown.norms.items(), key=lambda item: sizes.block_order(item[0]))
    ]


def lines_of(shown: LoraSummary) -> list[str]:
    """The same for the terminal, in short."""
    from library.tooling import lora_files

    kind = " + ".join(shown.kinds)
    line = shown.line or say("unknown base model", "底模未知")
    lines = [f"{shown.path}: {kind}, {line}, {shown.numbers}, {lora_files.size(shown.path)}"]
    lines += [f"  {name}{say(': ', '：')}{shorten(value)}" for name, value in facts_of(shown).items()]
    for part, count, rank, alpha in group_rows(shown):
        english = f"{part}: {plural(count, 'layer')}, rank {rank}, alpha {alpha}"
        lines.append("  " + say(english, f"{part}：{count} 层，秩 {rank}，alpha {alpha}"))
    if shown.norms:
        norms = "  ".join(f"{name} {norm}" for name, _, norm, _ in norm_rows(shown))
        lines.append("  " + say(f"norm of each block: {norms}", f"各分块的范数：{norms}"))
    if not shown.is_compared:
        lines.append("  " + say("unknown base model: layer names were not compared", "底模未知：未核对层的名称"))
    lines.append("  " + say("read by ", "能否读取：") + say("; ", "；").join(read_by(shown)))
    lines += [f"  {findings.level_name(level)}{say(': ', '：')}{text}" for level, text, _ in shown.findings]
    return lines


def shorten(text: str) -> str:
    return text if len(text) < 120 else f"{text[:117]}..."


class ShownFile(NamedTuple):
    """A file on the page."""

    path: Path
    kinds: str
    model: str
    numbers: str
    size: str
    findings: list[tuple[str, str, str]]  # level, text, cure
    readings: list[list[str]]  # program, whether it reads the file
    metadata: list[tuple[str, str]]  # name, value
    groups: list[list[object]]
    norms: list[list[object]]


class ShowLoraPage(NamedTuple):
    """What templates/show_lora.html shows."""

    files: list[ShownFile]
    left_out: list[str]


def write_page(settings: ShowLora, shown: list[LoraSummary], left_out: list[str]) -> Path:
    """All files on one page."""
    content = ShowLoraPage([shown_file(one) for one in shown], left_out)
    return pages.write(Path(settings.output_dir) / PAGE, pages.render("show_lora.html", content))


def shown_file(shown: LoraSummary) -> ShownFile:
    from library.tooling import lora_files

    return ShownFile(
        path=shown.path,
        kinds=" + ".join(shown.kinds),
        model=shown.line or "?",
        numbers=shown.numbers,
        size=lora_files.size(shown.path),
        findings=shown.findings,
        readings=[re.split(": |：", line, maxsplit=1) for line in read_by(shown)],
        metadata=list(facts_of(shown).items()),
        groups=group_rows(shown),
        norms=norm_rows(shown),
    )


if __name__ == "__main__":
    raise SystemExit(main())
