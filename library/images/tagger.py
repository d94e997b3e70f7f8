"""WD-style taggers: an ONNX model and a table of tags beside it say which of some ten thousand tags an image has.

They are SmilingWolf's models and what follows their form: `selected_tags.csv` with a row for each output (name and
danbooru's category), and an input of BGR values from 0 to 255, the image in the middle of a white square. Read for
the facts, no code taken: the models' cards, sd-scripts' `tag_images_by_wd14_tagger.py`, ComfyUI-WD14-Tagger (with
`name.csv` beside `name.onnx`) and the web UI's wd14-tagger.

Models with another input (PixAI, animetimm: a `preprocess.json` lies beside them) or another table (Camie, CL: a .json)
are not taken for one of these. To add such a kind: a function that prepares its input, chosen in `open_tagger`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from library.files import JsonObject
from library.messages import UserError, say

if TYPE_CHECKING:
    from library.images.local_models import Onnx, Session

TABLE = "selected_tags.csv"
OTHER_INPUT = "preprocess.json"  # beside models whose images are prepared otherwise
ADVISED = "SmilingWolf/wd-swinv2-tagger-v3"  # 467 MB; as good as the base-sized ones get
USUAL_SIZE = 448  # pixels, where a model does not say
ENOUGH = 3  # times the model's size: what an image is averaged down to before it is resized well

KNOWN = (  # best first: by generation, then by the F1 of their cards (v3 counts rare tags more: 0.477 to 0.440)
    "wd-eva02-large-tagger-v3", "wd-vit-large-tagger-v3", "wd-swinv2-tagger-v3", "wd-convnext-tagger-v3",
    "wd-vit-tagger-v3", "wd-v1-4-moat-tagger-v2", "wd-v1-4-convnextv2-tagger-v2", "wd-v1-4-swinv2-tagger-v2",
    "wd-v1-4-convnext-tagger-v2", "wd-v1-4-vit-tagger-v2", "wd-v1-4-convnext-tagger", "wd-v1-4-vit-tagger",
)  # fmt: skip

GENERAL, CHARACTER, RATING = 0, 4, 9  # danbooru's numbers; others (artist, copyright, meta) are treated as general
KINDS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}  # numbers a model may take


# ---- which models there are ----


def table_of(model: Path) -> Path | None:
    """The table of tags beside a model; None: it is no tagger of this kind."""
    if (model.parent / OTHER_INPUT).exists():
        return None
    tables = (model.with_suffix(".csv"), model.parent / TABLE)
    return next((table for table in tables if table.is_file()), None)


def name_of(model: Path) -> str:
    """What a person calls a model: "SmilingWolf/wd-vit-tagger-v3" in a hub's cache, else by its file or folder."""
    for folder in model.parents:
        if folder.name.startswith("models--"):
            return folder.name.removeprefix("models--").replace("--", "/")
    return model.parent.name if model.stem.lower() == "model" else model.stem


def best_first(models: Iterable[Path]) -> list[Path]:
    """Those of the models that are taggers, the best known first; others keep their order."""

    def rank(model: Path) -> int:
        name = name_of(model).lower()
        return next((number for number, known in enumerate(KNOWN) if name.endswith(known)), len(KNOWN))

    return sorted((model for model in models if table_of(model)), key=rank)


def is_called(model: Path, name: str) -> bool:
    """Whether a model is the one with this hub name, "owner/name" or "name", wherever a program has put it."""
    wanted = name.lower().replace("\\", "/").split("/")
    # ModelScope writes ___ for a dot; sd-scripts makes one folder of owner and name
    parts = [part.lower().replace("___", ".") for part in (*model.parts[:-1], model.stem)]
    own = name_of(model).lower().split("/")[-1]
    return wanted[-1] in (own, *parts) or "_".join(wanted) in parts


# ---- running one ----


class Tag(NamedTuple):
    """One tag that a tagger sees."""

    name: str  # as in the table: "long_hair"
    category: int
    probability: float


@dataclass(frozen=True)
class Table:
    """The tags of a model, one for each output."""

    path: Path
    names: list[str]
    categories: list[int]

    def seen(self, probabilities: np.ndarray, floor: float) -> list[Tag]:
        """The ratings, and all other tags more probable than `floor`; the most probable first.

        Args:
            probabilities: (T,) of one image.
        """
        found = [
            Tag(name, category, float(probability))
            for name, category, probability in zip(self.names, self.categories, probabilities, strict=True)
            if probability > floor or category == RATING
        ]
        return sorted(found, key=lambda tag: -tag.probability)


def read_table(path: Path) -> Table:
    """Read a `selected_tags.csv`. Raises UserError."""
    names, categories, problem = [], [], ""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if not {"name", "category"} <= set(rows.fieldnames or ()):
                problem = say("no columns name and category in its first line", "首行没有 name 和 category 列")
            else:
                for row in rows:
                    names.append(row["name"] or "")
                    categories.append(int(row["category"]))
                if not names:
                    problem = say("there is no tag in it", "里面没有标签")
    except OSError as error:
        problem = error.strerror or str(error)
    except (ValueError, TypeError, csv.Error) as error:  # also text that is not UTF-8
        problem = say(f"tag {len(names)}: {error}", f"第 {len(names)} 个标签：{error}")
    if problem:
        raise UserError(
            say(
                f"{path}: cannot be read as a table of tags ({problem}). Download it again from where the model is "
                "from",
                f"{path}：无法作为标签表读取（{problem}）。请从模型的来源处重新获取",
            )
        )
    return Table(path, names, categories)


@dataclass(frozen=True)
class Tagger:
    """A tagger that is ready to run."""

    session: Session
    table: Table
    input: str
    number: type  # np.float32 or np.float16
    size: int  # S, the side of the square it looks at
    is_channels_first: bool
    fixed_batch: int | None  # B, where the model takes no other number of images

    def prepare(self, image: Image.Image) -> np.ndarray:
        """An RGB image as the model looks at it: whole, in the middle of a white square, (S, S, 3) uint8, BGR."""
        return on_square(image, self.size)

    def probabilities(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """(B, T) probability of each tag in each of some images of `prepare`. Raises UserError."""
        step = self.fixed_batch or len(prepared)
        return np.concatenate([self._run(prepared[at : at + step], step) for at in range(0, len(prepared), step)])

    def _run(self, prepared: Sequence[np.ndarray], step: int) -> np.ndarray:
        pixels = np.zeros((step, self.size, self.size, 3), self.number)  # what is missing to a fixed batch stays black
        pixels[: len(prepared)] = np.stack(prepared)
        if self.is_channels_first:
            pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        try:
            outputs = self.session.run(None, {self.input: pixels})
        except Exception as error:  # onnxruntime's own exceptions have no common name
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                say(
                    f'the tagger failed ({reason}). If memory is full, lower batch_size; otherwise use device = "cpu"',
                    f'标签模型运行出错（{reason}）。内存或显存不足请减小 batch_size，否则请设 device = "cpu"',
                )
            ) from error
        outputs = [np.asarray(output) for output in outputs]
        count = len(self.table.names)
        found = next((output for output in outputs if output.ndim == 2 and output.shape[1] == count), None)
        if found is None:
            raise _other_table(self.table, outputs[0].shape[-1] if outputs[0].ndim else 0)
        found = found[: len(prepared)].astype(np.float32)
        if not np.isfinite(found).all():
            raise UserError(
                say(
                    'the tagger gives no numbers (NaN): this device computes it wrongly. Use device = "cpu"',
                    '标签模型的输出不是数（NaN）：此设备计算有误。请设 device = "cpu"',
                )
            )
        if found.min() < -0.01 or found.max() > 1.01:  # some exports leave out the last layer
            found = 1 / (1 + np.exp(-found.clip(-80, 80)))
        return found


def open_tagger(model: Onnx, table: Table) -> Tagger:
    """What an opened model needs to be run.

    Args:

    Raises:
        UserError: it looks at no image, or has another number of outputs than there are tags.
    """
    inputs = model.session.get_inputs()
    shape = list(inputs[0].shape) if len(inputs) == 1 else []
    is_channels_first = len(shape) == 4 and shape[1] == 3
    if len(shape) != 4 or not (is_channels_first or shape[3] == 3) or inputs[0].type not in KINDS:
        raise UserError(
            say(
                f"{model.path}: is not a WD-style tagger: its input is not one RGB image (its input: {shape}). Get "
                f"model.onnx and {TABLE} of {ADVISED}",
                f"{model.path}：不是 WD 系标签模型：它的输入不是三通道图片（输入形状 {shape}）。"
                f"请获取 {ADVISED} 的 model.onnx 和 {TABLE}",
            )
        )
    outputs = [output.shape[-1] for output in model.session.get_outputs() if output.shape]
    if outputs and all(isinstance(count, int) and count != len(table.names) for count in outputs):
        raise _other_table(table, outputs[0])
    size = shape[2]
    return Tagger(
        model.session,
        table,
        inputs[0].name,
        KINDS[inputs[0].type],
        size if isinstance(size, int) and size > 0 else USUAL_SIZE,
        is_channels_first,
        shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None,
    )


def _other_table(table: Table, outputs: int) -> UserError:
    return UserError(
        say(
            f"{table.path} has {len(table.names):,} tags, but the model beside it gives {outputs:,}: they belong to "
            "different models. Get both files from the same place",
            f"{table.path} 有 {len(table.names):,} 个标签，旁边的模型却输出 {outputs:,} 个：两个文件不属于同一个模型。"
            "请从同一处获取这两个文件",
        )
    )


def on_square(image: Image.Image, size: int) -> np.ndarray:
    """An RGB image in the middle of a white square, (S, S, 3) uint8, BGR; padded, then resized bicubically.

    So the models' own demonstration does it. An image of many times the size is averaged down before.
    """
    factor = max(image.size) // (ENOUGH * size)
    if factor > 1:
        image = image.reduce(factor)
    side = max(image.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))[:, :, ::-1]


# ---- from what it sees to a caption ----


def chosen_tags(seen: Iterable[Tag], general: float, character: float, *, with_rating: bool = False) -> list[Tag]:
    """The tags that are sure enough, the surest first; the most probable rating last.

    Args:
        general, character: a tag must be more probable than this; so 1 takes none.
    """
    seen = sorted(seen, key=lambda tag: -tag.probability)
    sure = [tag for tag in seen if tag.probability > (character if tag.category == CHARACTER else general)]
    tags = [tag for tag in sure if tag.category != RATING]
    ratings = [tag for tag in seen if tag.category == RATING]
    return tags + ratings[:1] if with_rating else tags


def written(name: str, *, underscores: bool = False, escape_brackets: bool = False) -> str:
    """A tag as it stands in a caption: `long_hair` as "long hair"; emoticons such as `^_^` keep their underscore."""
    if not underscores and not is_emoticon(name):
        name = name.replace("_", " ")
    if escape_brackets:
        name = re.sub(r"[()]", r"\\\g<0>", name)
    return " ".join(name.replace(",", " ").split())  # a comma would make two tags of it


def is_emoticon(name: str) -> bool:
    """Whether a tag draws a face: `>_<`, `(o)_(o)`, `0_0`. None has two letters or digits in a row, and every word has.

    The rule holds for the web UI tagger's list of 19, and for tags that were made since.
    """
    return "_" in name and name.isascii() and not re.search("[A-Za-z0-9]{2}", name)


def joined(words: Iterable[str], same: Callable[[str], str]) -> str:
    """A caption of words in their order, each once.

    Args:
        same: gives one spelling for all spellings of a word.
    """
    once: dict[str, str] = {}
    for word in words:
        once.setdefault(same(word), word)
    return ", ".join(word for spelling, word in once.items() if spelling)


def extended(caption: str, missing_word: str | None, words: Iterable[str], same: Callable[[str], str]) -> str:
    """A person's caption with what it lacks, itself unchanged in between; its further lines stay.

    Args:
        caption: all lines of the file; the first that is not blank is what counts.
        missing_word: put before it; None: nothing.
        words: put behind it, where they are not in it in any spelling.
    """
    lines = caption.splitlines(keepends=True)
    at = next((number for number, line in enumerate(lines) if line.strip()), None)
    if at is None:
        return joined([missing_word or "", *words], same)
    line = lines[at]
    text = line.strip()
    present = {same(part) for part in re.split("[,，、]", text)} | {same(missing_word or "")}
    behind = joined((word for word in words if same(word) not in present), same)
    if not missing_word and not behind:
        return caption
    text = ", ".join(part for part in (missing_word, re.sub(r"[,，、\s]+$", "", text), behind) if part)
    start, end = line[: len(line) - len(line.lstrip())], line[len(line.rstrip("\r\n")) :]
    return "".join([*lines[:at], start + text + end, *lines[at + 1 :]])


# ---- what it saw, remembered ----


class Sightings:
    """What a tagger saw in the images of a set, on disk: with other thresholds no image is looked at again.

    `.tags/seen.jsonl` in the folder of the set has a line for each look, of about 2 kB: the image, what its file was,
    the model, and all tags above a floor that lies below every usual threshold. In memory are only the lines' places.
    """

    FILE = ".tags/seen.jsonl"
    FLOOR = 0.1

    def __init__(self, folder: Path, table: Table, by: str):
        """Open what there is, or begin it. A context manager.

        Args:
            by: tells the model from all others.

        Raises:
            UserError: the folder cannot be written to.
        """
        self._folder, self._by = folder, by
        self._categories = dict(zip(table.names, table.categories, strict=True))
        path = folder / self.FILE
        try:
            path.parent.mkdir(exist_ok=True)
            self._file = open(path, "ab+")  # noqa: SIM115  # closed by __exit__
        except OSError as error:
            raise UserError(
                say(
                    f"{path} cannot be written ({error.strerror or error}). Change its permissions",
                    f"{path} 无法写入（{error.strerror or error}）。请修改权限",
                )
            ) from error
        self._places: dict[str, int] = {}
        self._file.seek(0)
        place, line = 0, b""
        for line in self._file:
            entry = self._entry(line)
            if entry and entry["by"] == by:
                self._places[entry["picture"]] = place
            place += len(line)
        if line and not line.endswith(b"\n"):
            self._file.write(b"\n")  # a run was killed in the middle of its last line

    def __enter__(self) -> Sightings:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    @staticmethod
    def _entry(line: bytes) -> JsonObject | None:
        try:
            entry = json.loads(line)
            return entry if {"picture", "file", "by", "floor", "tags"} <= set(entry) else None
        except (ValueError, TypeError):
            return None

    def _now(self, image: Path) -> list[int]:
        stat = image.stat()
        return [stat.st_size, stat.st_mtime_ns]

    def get(self, image: Path, floor: float) -> list[Tag] | None:
        """What was seen in an image that is still the same file; None: it must be looked at."""
        place = self._places.get(image.relative_to(self._folder).as_posix())
        if place is None:
            return None
        self._file.seek(place)
        entry = self._entry(self._file.readline())
        try:
            if entry is None or entry["file"] != self._now(image) or entry["floor"] > floor:
                return None
            return [Tag(name, self._categories[name], float(value)) for name, value in entry["tags"].items()]
        except (OSError, KeyError, ValueError, AttributeError, TypeError):  # somebody else wrote it
            return None

    def put(self, image: Path, seen: Iterable[Tag], floor: float) -> None:
        """Remember what was seen; on disk when the next one is read or the file is closed."""
        name = image.relative_to(self._folder).as_posix()
        tags = {tag.name: round(tag.probability, 4) for tag in seen}
        entry = {"picture": name, "file": self._now(image), "by": self._by, "floor": floor, "tags": tags}
        self._file.seek(0, 2)
        self._places[name] = self._file.tell()
        self._file.write(json.dumps(entry, ensure_ascii=False).encode(errors="replace") + b"\n")
