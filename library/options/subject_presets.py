"""What suits a kind of subject: `preset = "garment"` in lora_train_command_line.py. To add one: add rows.

A row sets one option of one script where the user has not: where the value is still as delivered. Each is said with its
reason. Garment and face are the recipes that many guides pass on; a preset is a start, not a law.
"""

from typing import NamedTuple

from library.messages import Note, say
from library.options.declaration import AnyDeclared, Value, Values, Where

TRAIN, SORT = "lora_train_command_line.py", "sort_into_folders.py"
PREPARE, EDIT, DRAW = "prepare_images.py", "edit_tags.py", "make_reg_images.py"
# Tags of clothes; * stands for any letters. What is the wearer's or the scene's stays.
GARMENT_TAGS = [
    "*uniform", "serafuku", "*shirt", "*skirt", "*dress", "*sleeves", "sleeveless", "*collar", "*jacket", "*coat",
    "*pants", "*shorts", "*kimono", "*ribbon", "*bow", "*bowtie", "*necktie", "*sweater", "*hoodie", "*vest",
    "*cardigan", "*swimsuit", "*bikini", "*leotard", "*apron", "*cape", "*frills", "*lace", "*buttons", "*belt",
]  # fmt: skip


class Row(NamedTuple):
    """One option of one script, and why."""

    script: str
    name: str
    value: Value
    english: str
    chinese: str


PRESETS = {
    "character": [
        Row(SORT, "target_steps", 1500, "enough for one character; more overfits",
            "一个角色够用，再多容易过拟合"),
        Row(TRAIN, "max_train_epochs", 10, "ten files to choose the best epoch from",
            "有十轮可以挑选"),
        Row(TRAIN, "network_dim", 32, "holds one character with its details",
            "足够记住一个角色及其细节"),
        Row(TRAIN, "network_alpha", 16.0, "half of the rank learns more gently, so tags keep their meaning",
            "取秩的一半，学得更缓和，标签保持原有的含义"),
        Row(TRAIN, "save_every_n_epochs", 1, "the last epoch is not always the best",
            "最后一轮不一定最好"),
    ],
    "style": [
        Row(SORT, "target_steps", 3000, "a style is in all images and takes longer than one subject",
            "画风体现在所有图片里，比单个对象需要更多步数"),
        Row(TRAIN, "network_dim", 64, "a style touches every layer",
            "画风牵涉所有层"),
        Row(TRAIN, "network_alpha", 32.0, "half of the rank", "取秩的一半"),
        Row(TRAIN, "text_encoder_lr", 0, "a style is how things look, not what words mean",
            "画风是画法，不是词义"),
        Row(TRAIN, "max_train_epochs", 10, "ten files to choose the best epoch from",
            "有十轮可以挑选"),
        Row(TRAIN, "save_every_n_epochs", 1, "the last epoch is not always the best",
            "最后一轮不一定最好"),
    ],
    "garment": [
        Row(SORT, "repeats", 6, "6_mycloths: for 20 to 30 images, at most 10",
            "即 6_mycloths：20~30 张图时够用，不要超过 10"),
        Row(TRAIN, "max_train_epochs", 10, "a garment needs no more",
            "服装不需要更多轮"),
        Row(TRAIN, "train_batch_size", 1, "30 images x 6 x 10 are then 1,800 steps",
            "30 张 x 6 x 10 即 1800 步"),
        Row(TRAIN, "network_dim", 32, "enough for one garment", "一件衣服足够"),
        Row(TRAIN, "network_alpha", 32.0, "as the rank", "与秩相同"),
        Row(EDIT, "delete_tags", GARMENT_TAGS,
            'tags of the garment move to the trigger word, which then calls it up alone; nothing is changed before '
            'action = "apply"; set a list of your own to keep what is not the garment\'s',
            '衣服自身的标签转移到触发词上，之后只写触发词就能调出整件衣服；action = "apply" 之前不会改动；'
            '要保留不属于这件衣服的标签，请自己填写清单'),
        Row(PREPARE, "faces", "erase", "the wearer's face is not part of the garment",
            "模特的脸不属于衣服"),
    ],
    "face": [
        Row(PREPARE, "faces", "recipe", "cropped faces are learned, the same person's full images give the body",
            "学习截取的脸部，身体比例由同一人的完整图片提供"),
        Row(SORT, "repeats", 10, "10_mywife: faces", "即 10_mywife：脸部"),
        Row(TRAIN, "train_batch_size", 1, "100 faces x 10 are then 1,000 steps an epoch",
            "100 张脸 x 10 即每轮 1000 步"),
        Row(TRAIN, "max_train_epochs", 10, "the usual number", "常用轮数"),
        Row(TRAIN, "save_every_n_epochs", 2, "later epochs may be overfitted: choose among five",
            "后面几轮可能过拟合，可在五个文件里挑选"),
        Row(TRAIN, "network_dim", 32, "enough for 100 images", "100 张图足够"),
        Row(TRAIN, "network_alpha", 32.0, "32/32", "即 32/32"),
        Row(TRAIN, "reg_captions", False, "the full images need no captions: their folder's name is enough",
            "完整图片不需要标注，用目录名即可"),
    ],
}  # fmt: skip


def with_preset(
    preset: object, script: str, values: Values, where: Where, declared: AnyDeclared
) -> tuple[Values, Where, list[str]]:
    """The values with the preset's where they are still as delivered, and a line for each that is told.

    Args:
        preset: as the main block says; what is no preset is for the check to refuse.
        script: file name of the script whose values these are.
        where: a value of a .json or .toml file is the user's in any case.
    """
    values, where, lines = dict(values), dict(where), []
    rows = PRESETS.get(preset, []) if isinstance(preset, str) else []
    kept: list[str] = []
    for row in rows:
        if row.script != script:
            continue
        option = declared.options[row.name]
        value = values.get(row.name, option.in_script)
        is_own = value != option.in_script or ".json:" in where.get(row.name, "")
        if is_own and value != row.value:
            kept.append(f"{row.name} = {value}")
        if is_own:
            continue
        values[row.name] = list(row.value) if isinstance(row.value, list) else row.value
        lines.append(Note(_sets(preset, row), "green"))
        if row.value != value:
            where[row.name] = say(f'preset "{preset}"', f'预设 "{preset}"')
    if kept:
        listed = ", ".join(kept)
        text = say(f'preset "{preset}": yours stays: {listed}', f'预设 "{preset}"：保留您填的 {listed}')
        lines.append(Note(text, "green"))
    return values, where, lines


def _sets(preset: object, row: Row) -> str:
    value = f'"{row.value}"' if isinstance(row.value, str) else row.value
    return say(
        f'preset "{preset}": {row.name} = {value} ({row.english})',
        f'预设 "{preset}"：{row.name} = {value}（{row.chinese}）',
    )
