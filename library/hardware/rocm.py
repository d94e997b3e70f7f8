"""This machine's graphics cards, seen before torch is imported: what torch must be told, and whether it suits them.

Only AMD needs settings; they come too late once torch is imported. Linux lists the cards in small files, so nothing is
loaded and nothing runs on a card. Windows has no such list: what depends on the card is left to the user there.
No AMD card was at hand: the facts are those of AMD's documentation, PyTorch's source and users' reports.

To support a card: a row in SAME_CODE or INTEGRATED. To set a variable: a row in SETTINGS.
"""

import ast
import contextlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import NamedTuple

from library.messages import say

TREE = Path("/sys/class/kfd/kfd/topology/nodes")  # of Linux's AMD driver: one folder per processor and card
PCI = Path("/sys/bus/pci/devices")
GATE = Path("/dev/kfd")  # what ROCm opens
WANTED_TORCH = "2.13.0"  # the highest of requirements-own-onnxruntime.txt

# Graphics of a processor: they share the main memory and are seldom in any build of torch.
INTEGRATED = (
    ("gfx902", "gfx909", "gfx90c", "gfx1013", "gfx1033", "gfx1035", "gfx1036")
    + ("gfx1103", "gfx1150", "gfx1151", "gfx1152", "gfx1153")
)  # fmt: skip
# Cards that run the code of another one (LLVM's AMDGPU guide: same instructions). Others crash under an override.
SAME_CODE = dict.fromkeys(("gfx1031", "gfx1032", "gfx1033", "gfx1034", "gfx1035", "gfx1036"), "gfx1030")
SAME_CODE |= dict.fromkeys(("gfx1101", "gfx1102", "gfx1103"), "gfx1100")

CHOICES = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")  # set one: they count differently
ALLOCATORS = ("PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


class Card(NamedTuple):
    """An AMD card as the kernel lists it."""

    node: int  # the kernel's number of it; processors are counted too
    architecture: str  # "gfx1031"
    memory_bytes: int  # of its own; 0 where not told
    simd_count: int

    @property
    def is_integrated(self) -> bool:
        return self.architecture in INTEGRATED


class Torch(NamedTuple):
    """The installed torch, as its files tell."""

    version: str  # "2.13.0+rocm7.2"
    hip: str | None  # of ROCm builds: "7.2.26015"
    cuda: str | None  # of CUDA builds: "13.0"
    architectures: frozenset[str] = frozenset()  # AMD cards it holds code for; "gfx103x" is a family; empty: unknown

    def has_code_for(self, architecture: str) -> bool:
        return architecture in self.architectures or f"{architecture[:-1]}x" in self.architectures


class Setting(NamedTuple):
    """One variable of the environment."""

    name: str
    value: str
    reason: str  # in the user's language


class Row(NamedTuple):
    """A variable that follows from the architecture alone."""

    name: str
    value: str  # {cache}: our folder for this torch; {architecture}: of the best card
    architectures: tuple[str, ...]  # beginnings of their names
    english: str
    chinese: str


ANY, RDNA = ("gfx", "unknown"), ("gfx10", "gfx11", "gfx12")
SETTINGS = [
    Row(
        "MIOPEN_USER_DB_PATH",
        "{cache}",
        ANY,
        "tuned convolutions are kept, for this version of torch",
        "保存卷积的调优结果，每个 torch 版本各用一份",
    ),
    Row(
        "MIOPEN_CUSTOM_CACHE_DIR",
        "{cache}",
        ANY,
        "so are their compiled kernels",
        "保存编译好的卷积内核，每个 torch 版本各用一份",
    ),
    Row(  # FAST chose a backward solver half as fast (ROCm/TheRock #2591) where it saved a minute at the start
        "MIOPEN_FIND_MODE",
        "HYBRID",
        ANY,
        "each new size is tuned once, which takes minutes the first time; FAST: at once, but slower steps",
        "每种新尺寸调优一次，首次需几分钟；设为 FAST 可立即开始，但每步较慢",
    ),
    Row("MIOPEN_LOG_LEVEL", "3", ANY, "errors only, no notes on workspaces", "只显示错误，不显示工作区提示"),
    Row(
        "TORCH_BLAS_PREFER_HIPBLASLT",
        "0",
        ("gfx10",),
        "hipBLASLt has no code for this architecture",
        "hipBLASLt 不支持此架构",
    ),
    Row(
        "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL",
        "1",
        ("gfx11", "gfx12"),
        "torch's fused attention is held back on this architecture; it is tried before use",
        "torch 在此架构上默认不启用融合注意力；启用后会先试算再使用",
    ),
    Row(
        "PYTORCH_TUNABLEOP_ENABLED",
        "1",
        RDNA,
        "matrix products use the fastest kernel found while tuning",
        "矩阵乘法使用调优时找到的最快内核",
    ),
    Row(  # left on, every partial batch is tuned: 60 to 100 s per step were reported
        "PYTORCH_TUNABLEOP_TUNING",
        "0",
        RDNA,
        "tuned only while each size occurs for the first time, not on and on",
        "只在每种尺寸首次出现时调优，不会一直进行",
    ),
    Row(
        "PYTORCH_TUNABLEOP_FILENAME",
        "{cache}/matrices-{architecture}-%d.csv",
        RDNA,
        "the tuning results are kept, for this torch and card",
        "保存调优结果，按 torch 版本和显卡区分",
    ),
    Row(
        "PYTORCH_TUNABLEOP_MAX_TUNING_DURATION_MS",
        "5",
        RDNA,
        "time for each candidate kernel (torch's default: 30)",
        "每个候选内核的试用时间（torch 默认 30）",
    ),
]


def read_tree(tree: Path = TREE) -> list[Card]:
    """The AMD cards of this machine, in the order in which ROCm counts them; none where there is no such tree."""
    try:
        numbers = sorted(int(folder.name) for folder in tree.iterdir() if folder.name.isdigit())
    except OSError:
        return []
    cards = []
    for number in numbers:
        properties = _properties(tree / str(number) / "properties")
        if not properties.get("simd_count") or not properties.get("gfx_target_version"):
            continue  # a processor, or a card that this user may not open
        banks = (_properties(file) for file in (tree / str(number) / "mem_banks").glob("*/properties"))
        own = sum(bank.get("size_in_bytes", 0) for bank in banks if bank.get("heap_type") in (1, 2))  # on the card
        memory = own or properties.get("local_mem_size", 0)  # the latter is 0 under new kernels
        architecture = _architecture(properties["gfx_target_version"])
        cards.append(Card(number, architecture, memory, properties["simd_count"]))
    return cards


def _properties(file: Path) -> dict[str, int]:
    """Lines of the form "simd_count 80"."""
    try:
        pairs = (line.split() for line in file.read_text(encoding="utf-8").splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
    except OSError:
        return {}


def _architecture(number: int) -> str:
    """100301 -> "gfx1031", 90012 -> "gfx90c"."""
    return f"gfx{number // 10000}{number // 100 % 100:x}{number % 100:x}"


def read_torch(cards: Iterable[Card] = (), packages: Path | None = None) -> Torch | None:
    """The installed torch without importing it, within a few milliseconds; None where there is none.

    Args:
        cards: where its files leave open whether it holds code for one of these, it is asked in a child process; that
            takes seconds, and happens only with PyTorch's own builds and cards like gfx1101, or with unusual builds.
        packages: the folder that torch lies in; None: where Python finds it.
    """
    if packages is None:
        spec = importlib.util.find_spec("torch")
        if spec is None or not spec.origin:
            return None
        packages = Path(spec.origin).parent.parent
    try:
        text = (packages / "torch" / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    entries = re.findall(r"^(__version__|hip|cuda)\b[^=\n]*=\s*(None|'[^'\n]*'|\"[^\"\n]*\")", text, re.MULTILINE)
    facts = {name: ast.literal_eval(value) for name, value in entries}
    if "__version__" not in facts:
        return None
    torch = Torch(facts["__version__"], facts.get("hip"), facts.get("cuda"))
    return torch._replace(architectures=_architectures(packages, cards)) if torch.hip and cards else torch


def _architectures(packages: Path, cards: Iterable[Card]) -> frozenset[str]:
    """What a ROCm build of torch holds code for: "gfx1030", or "gfx103x" for a family."""
    names = " ".join(entry.name.lower() for entry in os.scandir(packages) if entry.name.endswith(".dist-info"))
    for pattern in (r"amd_torch_device_(gfx[0-9a-f]{3,4})-", r"rocm_sdk_libraries_(gfx[0-9a-f]{2,4}x?)[-_]"):
        if built_by_amd := frozenset(re.findall(pattern, names)):
            return built_by_amd
    # PyTorch's own build carries ROCm's libraries: a card that rocBLAS does not know cannot compute anything. One that
    # it knows may still lack torch's own kernels.
    folder = packages / "torch" / "lib" / "rocblas" / "library"
    known = frozenset(re.findall(r"gfx[0-9a-f]{3,4}", " ".join(file.name for file in folder.glob("*gfx*"))))
    if known and not any(card.architecture in known & SAME_CODE.keys() for card in cards):
        return known
    return _ask_torch() or known


def _ask_torch(seconds: float = 60) -> frozenset[str]:
    """The list that torch was built for; empty where it cannot be told."""
    command = [sys.executable, "-c", "import torch; print(torch._C._cuda_getArchFlags())"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds).stdout
    except (OSError, subprocess.TimeoutExpired):
        return frozenset()
    return frozenset(re.findall(r"gfx[0-9a-f]{3,4}", answer))


def cards_to_use(cards: list[Card], environment: Mapping[str, str], torch: Torch) -> list[Card]:
    """The cards to train on, the best first: those of the user's choice, else all that are not part of a processor."""
    for name in CHOICES:
        if name in environment:
            indices = [int(part) for part in environment[name].split(",") if part.strip().isdigit()]
            return [cards[index] for index in indices if index < len(cards)]

    def rank(card: Card) -> tuple[bool, int, int]:
        can_run = torch.has_code_for(card.architecture) or torch.has_code_for(SAME_CODE.get(card.architecture, "none"))
        return can_run, card.memory_bytes, card.simd_count

    own = [card for card in cards if not card.is_integrated] or cards
    return sorted(own, key=rank, reverse=True)


def plan(cards: list[Card], environment: Mapping[str, str], torch: Torch | None, platform: str) -> list[Setting]:
    """What to put into the environment before torch is imported. Nothing that the user has set there is touched.

    Args:
        cards: from `read_tree`.
        environment: as it is: `os.environ`.
        torch: from `read_torch`.
        platform: as `sys.platform` has it.

    Returns:
        Nothing unless torch is a ROCm build and, on Linux, there is an AMD card.
    """
    if torch is None or torch.hip is None or not (cards or platform == "win32"):
        return []
    used = cards_to_use(cards, environment, torch)
    architecture = used[0].architecture if used else "unknown"
    folder = cache_folder(environment, torch, platform)
    settings = [*_choice(cards, used), *_overrides(cards, used, torch), _allocator(torch, platform)]
    settings += [
        Setting(row.name, row.value.format(cache=folder, architecture=architecture), say(row.english, row.chinese))
        for row in SETTINGS
        if architecture.startswith(row.architectures)
    ]
    return [setting for setting in settings if not any(name in environment for name in _same(setting.name))]


def _same(name: str) -> tuple[str, ...]:
    """All names under which the user may have decided the same."""
    for group in (CHOICES, ALLOCATORS):
        if name in group:
            return group
    return (name, re.sub(r"(HSA_OVERRIDE_GFX_VERSION)_\d+", r"\1", name))


def _choice(cards: list[Card], used: list[Card]) -> Iterable[Setting]:
    if used == cards:
        return
    indices = ",".join(str(cards.index(card)) for card in used)
    names = ", ".join(card.architecture for card in cards)
    reason = say(
        f"of {names}: graphics of the processor are left out, and the best card comes first",
        f"本机有 {names}：不用处理器的核显，最好的显卡排在最前",
    )
    yield Setting("ROCR_VISIBLE_DEVICES", indices, reason)


def _overrides(cards: list[Card], used: list[Card], torch: Torch) -> Iterable[Setting]:
    """Where torch lacks a card's code but has that of one with the same instructions."""
    for card in used:
        twin = SAME_CODE.get(card.architecture, "")
        if torch.has_code_for(card.architecture) or not torch.has_code_for(twin):
            continue
        reason = say(
            f"torch {torch.version} has no code for {card.architecture}; that of {twin} is the same",
            f"torch {torch.version} 不含 {card.architecture} 的代码，{twin} 的代码与之通用",
        )
        # With a second card it must not apply to that one too: on processors' graphics it crashes. ROCm before 6.3
        # may not know the form for one card; if the others are hidden, the form for all does.
        is_one_kind = len({card.architecture for card in used}) == 1
        is_for_all = len(cards) == 1 or (is_one_kind and numbers(torch.hip) < (6, 3))
        name = "HSA_OVERRIDE_GFX_VERSION" + ("" if is_for_all else f"_{card.node}")
        yield Setting(name, f"{twin[3:5]}.{twin[5]}.{twin[6]}", reason)
        if is_for_all:
            return


def _allocator(torch: Torch, platform: str) -> Setting:
    """Never both at once: expandable segments with a split size leak until memory is full (pytorch #193400)."""
    if numbers(torch.version) >= (2, 12) and platform != "win32":
        reason = say("less memory is lost in gaps (since torch 2.12)", "减少显存碎片（torch 2.12 起支持）")
        return Setting("PYTORCH_ALLOC_CONF", "expandable_segments:True", reason)
    value = "garbage_collection_threshold:0.8,max_split_size_mb:512"
    reason = say("less memory is lost in gaps", "减少显存碎片")
    return Setting("PYTORCH_ALLOC_CONF" if numbers(torch.version) >= (2, 12) else ALLOCATORS[1], value, reason)


def numbers(version: str | None) -> tuple[int, int]:
    """(2, 13) of "2.13.0+rocm7.2"; (0, 0) where it is none."""
    match = re.match(r"(\d+)\.(\d+)", version or "")
    return (int(match[1]), int(match[2])) if match else (0, 0)


def cache_folder(environment: Mapping[str, str], torch: Torch, platform: str) -> str:
    """Where tuning results are kept: a new torch or ROCm begins anew, since theirs do not fit one another."""
    if platform == "win32":
        root = environment.get("LOCALAPPDATA") or environment.get("USERPROFILE", "")
    else:
        root = environment.get("XDG_CACHE_HOME") or environment.get("HOME", "") + "/.cache"
    return f"{root}/lora-trainer/torch-{torch.version}".replace("\\", "/")


def prepare_environment(environment: MutableMapping[str, str] = os.environ, tree: Path = TREE) -> list[str]:
    """Apply the plan of this machine, before torch is imported. Takes a few milliseconds where there is no AMD card.

    Returns:
        Lines for the person: `NAME=value (reason)` for each variable set, then `advice`.
    """
    cards = read_tree(tree)
    torch = read_torch(cards)
    settings = plan(cards, environment, torch, sys.platform)
    for setting in settings:
        environment[setting.name] = setting.value
        if setting.name == "MIOPEN_USER_DB_PATH":
            with contextlib.suppress(OSError):  # then nothing is kept, and the next run tunes again
                Path(setting.value).mkdir(parents=True, exist_ok=True)
    may_open = os.access(GATE, os.R_OK | os.W_OK)
    return [line(setting) for setting in settings] + advice(cards, torch, vendors(), may_open)


def line(setting: Setting) -> str:
    """For the person."""
    name, value, reason = setting
    return say(f"{name}={value} ({reason})", f"{name}={value}（{reason}）")


def advice(cards: list[Card], torch: Torch | None, vendors: frozenset[str], may_open: bool = True) -> list[str]:
    """Why torch will not use a card that is there, and the line that installs the right one; mostly nothing.

    Args:
        vendors: from `vendors`.
        may_open: whether this user may open AMD's cards.
    """
    if torch is None:
        return []
    lines = []
    best = max((card for card in cards if not card.is_integrated), key=lambda card: card.memory_bytes, default=None)
    build = "CUDA" if torch.cuda else "ROCm" if torch.hip else "CPU"
    if "nvidia" in vendors and not torch.cuda and not (torch.hip and best):
        lines.append(_wrong_build(torch, build, "NVIDIA", _install_line("cu130")))
    elif (best or "amd" in vendors) and not torch.hip and not (torch.cuda and "nvidia" in vendors):
        # PyTorch's builds for ROCm are for Linux, where the cards are listed, and begin with RDNA 2 among the RX cards.
        has_build = best and not best.architecture.startswith(("gfx8", "gfx101"))
        line = _install_line("rocm7.2") if has_build else say("AMD's own build of torch", "AMD 自己的 torch")
        lines.append(_wrong_build(torch, build, f"AMD {best.architecture}" if best else "AMD", line))
    if torch.hip and cards and not may_open:
        lines.append(_gate_closed())
    if torch.hip and best and torch.architectures:
        twin = SAME_CODE.get(best.architecture, "")
        if not torch.has_code_for(best.architecture) and not torch.has_code_for(twin):
            lines.append(_no_code_for(torch.version, best.architecture))
    return lines


def _wrong_build(torch: Torch, build: str, card: str, cure: str) -> str:
    return say(
        f"this machine has a graphics card ({card}), but torch {torch.version} is a {build} build and cannot use it: "
        f"{cure} (README, Installation)",
        f"本机有显卡（{card}），但 torch {torch.version} 是 {build} 版，用不了它：{cure}（见 README 的“安装”）",
    )


def _install_line(build: str) -> str:
    return f"pip install torch=={WANTED_TORCH}+{build} --index-url https://download.pytorch.org/whl/{build}"


def vendors(platform: str = sys.platform, pci: Path = PCI, windows: Path | None = None) -> frozenset[str]:
    """Of "nvidia" and "amd", whose cards are here as far as files tell; on Linux AMD's are in `read_tree` instead.

    Args:
        windows: that system's folder; None: where it says it lies.
    """
    if platform == "win32":
        libraries = (windows or Path(os.environ.get("SYSTEMROOT", "C:/Windows"))) / "System32"  # drivers put them there
        drivers = {"nvidia": "nvcuda.dll", "amd": "amdhip64*.dll"}
        return frozenset(vendor for vendor, name in drivers.items() if any(libraries.glob(name)))
    for device in pci.glob("*"):
        with contextlib.suppress(OSError):
            is_display = (device / "class").read_text().startswith("0x03")
            if is_display and (device / "vendor").read_text().strip() == "0x10de":
                return frozenset({"nvidia"})
    return frozenset()


def _gate_closed() -> str:
    return say(
        f"{GATE} is not accessible to your user, so torch can't see the AMD card: sudo usermod -aG "
        "render,video $USER, and log in again",
        f"当前用户无权打开 {GATE}，torch 会看不到 AMD 显卡：请运行 sudo usermod -aG render,video $USER 后重新登录",
    )


def _no_code_for(version: str, architecture: str) -> str:
    return say(
        f"torch {version} has no code for {architecture}: AMD's own build of torch may have it (README, Installation)",
        f"torch {version} 不含 {architecture} 的代码，AMD 自己的 torch 可能支持（见 README 的“安装”）",
    )
