"""Data sets as a file describes them (`dataset_config`), in sd-scripts' form, .toml or .json:

    [general]                       what holds for all
    [[datasets]]                    sizes and batches of a set: resolution, batch_size, enable_bucket, ...
      [[datasets.subsets]]          a folder of images or a metadata file: image_dir, num_repeats, flip_aug, ...

What a subset says goes before what its data set says, that before [general], and that before the run's own parameters.
So a subset is a `Folder` with a `Config` of its own, and nothing else of the program knows where it came from: it reads
`sample.options` where a folder of `train_data_dir` has none. To let an option be set here: add its name to OF_SETS or
OF_SUBSETS.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from library.data.folders import Folder, same
from library.files import JsonObject
from library.messages import say
from library.options import sd_scripts
from library.options.checks import ConfigError, assignment, check_values, contradictions, doubts, nearest
from library.options.config_files import read_values, tables_of
from library.options.declaration import declared, option
from library.options.derived import changes_images
from library.options.file_layouts import data_sets, describes_data_sets, is_configuration
from library.options.training import OPTIONS, TRAINING, Config

OF_SETS = (  # their images share buckets
    "train_batch_size", "resolution", "enable_bucket", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps",
    "bucket_no_upscale", "skip_image_resolution",
)  # fmt: skip
OF_SUBSETS = (
    "caption_extension", "shuffle_caption", "keep_tokens", "keep_tokens_separator", "caption_separator",
    "secondary_separator", "enable_wildcard", "token_warmup_min", "token_warmup_step", "caption_prefix",
    "caption_suffix", "caption_dropout_rate", "caption_dropout_every_n_epochs", "caption_tag_dropout_rate", "flip_aug",
    "color_aug", "random_crop", "face_crop_aug_range", "resize_interpolation", "alpha_mask", "conditioning_data_dir",
)  # fmt: skip
SPELLED = {"batch_size": "train_batch_size"}  # here: as an option of the run
EXCHANGED = {ours: theirs for theirs, ours in SPELLED.items()}


@dataclass(frozen=True)
class Subset:
    """What only a subset has."""

    image_dir: str | None = option("data", None, path="folder",
        english="the folder with the images directly in it", chinese="直接放着图片的目录")  # fmt: skip
    metadata_file: str | None = option("data", None, path="file",
        english="captions of its images, as in_json", chinese="图片的标注文件，同 in_json")  # fmt: skip
    class_tokens: str | None = option("data", None,
        english="caption of images without a caption file", chinese="没有标注文件的图片所用的标注")  # fmt: skip
    is_reg: bool = option("data", False,
        english="whether they are regularization images", chinese="是否为正则化图片")  # fmt: skip
    num_repeats: int = option("data", 1, minimum=0,
        english="how often each is used in an epoch", chinese="每张图每轮使用的次数")  # fmt: skip


SUBSET = declared(Subset, "", {})
ANYWHERE = {"num_repeats"}  # of Subset, what a data set or [general] may say for all its subsets

HARMLESS = {  # taken, and said to have no effect
    "cache_info": ("image information is always cached", "图片信息总会自动记住"),
    "custom_attributes": ("nothing uses it", "没有程序读取它"),
}
REFUSED = {
    "network_multiplier": ("a LoRA is trained at its full strength", "LoRA 以完整强度训练"),
    "validation_split": ("set it for the whole run, outside of this file", "请在此文件之外为整个训练设定"),
    "validation_seed": ("set it for the whole run, outside of this file", "请在此文件之外为整个训练设定"),
}
NEUTRAL = {"network_multiplier": 1, "validation_split": 0}  # what sd-scripts does without it


class Described(NamedTuple):
    """What a file describes."""

    subsets: list[Folder]  # each with its options
    overrides: list[JsonObject]  # of each data set: options that it has for itself
    notes: list[str]


def values_of(options: Config) -> JsonObject:
    """What may differ between subsets, of the options of one."""
    return {name: getattr(options, name) for name in OF_SUBSETS}


def of_in_json(config: Config) -> Described:
    """The one data set of `in_json`: all images that the file names, below `train_data_dir`."""
    assert config.in_json
    assert config.train_data_dir
    path, file = Path(config.train_data_dir), Path(config.in_json)
    return Described([Folder(path, config.dataset_repeats, "", False, options=config, metadata_file=file)], [{}], [])


def read_dataset_config(config: Config) -> Described:
    """What `dataset_config` describes.

    Raises:
        ConfigError: all that is wrong with it, each with its line.
    """
    assert config.dataset_config
    reader = _Reader(config, Path(config.dataset_config))
    if is_configuration(reader.file_tables) and not describes_data_sets(reader.file_tables):
        raise ConfigError([_is_a_configuration(reader.file)])
    described = reader.described()
    if reader.problems:
        raise ConfigError(reader.problems)
    return described


@dataclass
class _Level:
    """Checked values under their names here, and where each stands."""

    values: JsonObject
    where: dict[str, str]

    def options(self, names: tuple[str, ...]) -> JsonObject:
        return {name: value for name, value in self.values.items() if name in names}


class _Reader:
    """Reads a file once; what is wrong gathers in `problems`."""

    def __init__(self, config: Config, file: Path):
        self.config, self.file = config, file
        self.file_tables, self.text = tables_of(file)
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.lines: dict[tuple[int, str], int] = {}  # (identity of the table, key) -> line
        self._found: dict[str, list[int]] = {}  # key -> lines that are not given away yet
        # (place of a value, what is doubtful) -> subsets for which that is so
        self._doubted: Counter[tuple[Hashable, str]] = Counter()
        self._inherited: Counter[Hashable] = Counter()  # place of a value -> subsets for which it holds
        self._locate(self.file_tables)
        self.tables = data_sets(self.file_tables)

    def _locate(self, table: JsonObject) -> None:
        """Keys are met in the order of the file: the n-th of a name stands where the name is written the n-th time."""
        for key, value in table.items():
            children = value if isinstance(value, list) else [value]
            children = [child for child in children if isinstance(child, dict)]
            if not children or isinstance(value, dict):
                if key not in self._found:
                    pattern = rf"(?:^|[{{,\[])[ \t]*[\"']?{re.escape(key)}[\"']?[ \t]*[=:\]]"
                    starts = [found.end() for found in re.finditer(pattern, self.text, re.MULTILINE)]
                    self._found[key] = [self.text.count("\n", 0, start) + 1 for start in starts]
                self.lines[id(table), key] = self._found[key].pop(0) if self._found[key] else 1
            for child in children:
                self._locate(child)

    def _tell_parameters(self) -> None:
        """Say of the file's parameters which do not count, because it is no `config_file` or a flag has another."""
        if self.tables is not self.file_tables:
            values, where = read_values(self.file)
            good, _, _ = check_values(TRAINING, *sd_scripts.translate(values, where)[:2])
            idle = [
                name
                for name, value in good.items()
                if name in OPTIONS and not OPTIONS[name].path and getattr(self.config, name) != value
            ]
            if idle:
                self.notes.append(_are_not_read(self.file, idle))

    def described(self) -> Described:
        self._tell_parameters()
        subsets: list[Folder] = []
        overrides: list[JsonObject] = []
        for key in self.tables:
            if key not in ("general", "datasets"):
                known, here = "[general], [[datasets]]", self.lines.get((id(self.tables), key), 1)
                line = say(f"{key}: only {known} is allowed here", f"{key}：这里只能有 {known}")
                self.problems.append(f"{self.file.name}:{here}: {line}")
        general = self.tables.get("general", {})
        if not isinstance(general, dict):
            self._tell_form("general", "[general]")
            general = {}
        everywhere = self._level(general, "general", _Level({}, {}))
        sets = self._tables(self.tables, "datasets", "[[datasets]]")
        for at, table in enumerate(sets):
            own = self._level(table, "datasets", everywhere)
            overrides.append(own.options(OF_SETS))
            taken: list[Folder] = []
            for number, entry in enumerate(self._tables(table, "subsets", "[[datasets.subsets]]"), 1):
                level = self._level(entry, "subsets", own)
                which = say(f"data set {at + 1}, subset {number}", f"第 {at + 1} 个数据集的第 {number} 个子集")
                if folder := self._folder(level, at, which, entry, taken):
                    taken.append(folder)
            subsets += taken
        if not subsets and not self.problems:
            self.problems.append(
                say(f"{self.file.name}: all subsets are left out", f"{self.file.name}：所有子集都被跳过")
            )
        self.problems = list(dict.fromkeys(self.problems))
        self.notes += [line for (at, line), count in self._doubted.items() if count == self._inherited[at]]
        return Described(subsets, overrides, list(dict.fromkeys(self.notes)))

    def _tables(self, table: JsonObject, key: str, header: str) -> list[JsonObject]:
        """The tables below a table; there must be some."""
        found = table.get(key, [])
        if not isinstance(found, list) or not found or not all(isinstance(one, dict) for one in found):
            self._tell_form(key, header)
            return []
        return found

    def _tell_form(self, key: str, header: str) -> None:
        self.problems.append(
            say(
                f"{self.file.name}: {key} is missing, or not written as tables headed {header}",
                f"{self.file.name}：缺少 {key}，或没有写成以 {header} 开头的表",
            )
        )

    def _level(self, table: JsonObject, kind: str, above: _Level) -> _Level:
        """The values of a table, over those of the tables above it.

        Args:
            kind: "general", "datasets" or "subsets".
        """
        values, where = {}, {}
        for key, value in table.items():
            name = SPELLED.get(key, key)
            if value is None or (kind, key) == ("datasets", "subsets"):
                continue
            at = f"{self.file.name}:{self.lines.get((id(table), key), 1)}"
            if key not in EXCHANGED and (name in OF_SUBSETS or (name in OF_SETS and kind != "subsets")):
                known = TRAINING
            elif key in SUBSET.options and (kind == "subsets" or key in ANYWHERE):
                known = SUBSET
            else:
                self._other(key, value, at, kind)
                continue
            checked, problems, _ = check_values(known, {name: value}, {name: at})
            self.problems += problems
            values |= checked
            where |= dict.fromkeys(checked, at)
        return _Level(above.values | values, above.where | where)

    def _other(self, key: str, value: object, at: str, kind: str) -> None:
        """Say of a key that is no option here what it is."""
        if key in HARMLESS:
            english, chinese = HARMLESS[key]
            if value:
                self.notes.append(say(f"{at}: {key} has no effect: {english}", f"{at}: {key} 不起作用：{chinese}"))
            return
        if key in REFUSED:
            english, chinese = REFUSED[key]
            if value != NEUTRAL.get(key):
                self.problems.append(
                    say(f"{at}: {key} is not supported: {english}", f"{at}: {key} 不能使用：{chinese}")
                )
            return
        if key in SUBSET.options:
            cure = say("it belongs to [[datasets.subsets]]", "应写在 [[datasets.subsets]] 里")
        elif SPELLED.get(key, key) in OF_SETS and key not in EXCHANGED:
            cure = say(
                "it belongs to [[datasets]] or [general]: the subsets of a data set share their buckets",
                "应写在 [[datasets]] 或 [general] 里：同一数据集的子集共用分桶",
            )
        elif key in OPTIONS and key not in EXCHANGED:
            cure = say(
                "it applies to the whole run; set it outside of this file", "它对整个训练有效，请在此文件之外设定"
            )
        else:
            names = [EXCHANGED.get(name, name) for name in OF_SETS + OF_SUBSETS] + list(SUBSET.options)
            meant = nearest(key, names)
            hint = say(f". Did you mean {meant}?", f"。是不是 {meant}？") if meant else ""
            cure = say(f"there is no such option{hint}", f"没有这个选项{hint}")
        self.problems.append(f"{at}: {key}: {cure}")

    def _folder(self, level: _Level, dataset: int, which: str, entry: JsonObject, taken: list[Folder]) -> Folder | None:
        """The subset, unless something is wrong with it or it is not used."""
        options_of_subset: JsonObject = {"num_repeats": self.config.dataset_repeats}
        own = Subset(**options_of_subset | level.options(tuple(SUBSET.options)))
        if not own.image_dir and not own.metadata_file:
            if not {"image_dir", "metadata_file"} & entry.keys():  # else it is told what is wrong with them
                self.problems.append(
                    say(
                        f"{self.file.name}: {which}: image_dir is missing: the folder with its images",
                        f"{self.file.name}：{which}：缺少 image_dir（图片所在目录）",
                    )
                )
            return None
        options = dataclasses.replace(self.config, **level.options(OF_SETS + OF_SUBSETS))
        self._check_together(options, level)
        file = Path(own.metadata_file) if own.metadata_file else None
        path = Path(own.image_dir or Path(own.metadata_file or "").parent)
        if own.num_repeats == 0:
            line = say(f"{which} ({path}) is left out: num_repeats = 0", f"{which}（{path}）已跳过：num_repeats = 0")
            self.notes.append(line)
            return None
        for other in taken:
            if (file and other.metadata_file and same(file, other.metadata_file)) or (
                not file and not other.metadata_file and same(path, other.path)
            ):
                self.notes.append(
                    say(
                        f"{which} ({file or path}) is left out: an earlier one of the same data set is the same",
                        f"{which}（{file or path}）已跳过：与同一数据集中前面的子集相同",
                    )
                )
                return None
        text = own.class_tokens or ""
        return Folder(path, own.num_repeats, text, own.is_reg, dataset=dataset, options=options, metadata_file=file)

    def _check_together(self, options: Config, level: _Level) -> None:
        """The rules between options, as far as they are about what stands in the file."""
        if changes_images(options):  # the latents of no image are then cached: `prepare.resolve` says so
            options = dataclasses.replace(options, cache_latents=False)
        for names, text in contradictions(options):
            given = [name for name in names if name in level.where]
            if given:
                start = "" if names[0] in given else f"{level.where[given[0]]}: "
                self.problems.append(f"{start}{assignment(names[0], getattr(options, names[0]), level.where)} {text}")
        self._inherited.update(level.where.values())
        for (name, *_), text in doubts(options):
            if name in level.where:
                line = f"{assignment(name, getattr(options, name), level.where)} {text}"
                self._doubted[level.where[name], line] += 1


# ---- what is said ----


def _is_a_configuration(file: Path) -> str:
    return say(
        f"{file.name} holds parameters and no data sets ([[datasets]]): give it as --config_file, or as load_json_path",
        f"{file.name} 里是参数，没有数据集（[[datasets]]）：请把它用作 --config_file 或 load_json_path",
    )


def _are_not_read(file: Path, names: list[str]) -> str:
    listed = ", ".join(names)
    return say(
        f"{file.name}: not read from there: {listed}. As dataset_config a file gives data sets only; its parameters "
        "count where it is the --config_file and no flag says otherwise",
        f"{file.name}：未读取其中的 {listed}。作为 dataset_config 的文件只提供数据集；"
        "把它用作 --config_file、且命令行没有另设时，这些参数才有效",
    )
