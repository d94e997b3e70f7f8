"""Metadata files: the captions of many images in one .json or .jsonl, as sd-scripts' fine-tuning takes them.

`{"a.png": {"caption": "...", "tags": "..."}, ...}`, or a line `{"image_path": "a.png", ...}` for each image. Keys are
paths, below the subset's folder or whole; the ending may be left out. Sizes that stand there are not believed: images
are looked at in any case, to find broken ones.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from library.data import captions
from library.data.folders import Folder, images_in
from library.data.image_names import folded, some, sort_out
from library.files import JsonObject
from library.messages import UserError, plural, say

KNOWN = {"caption", "tags", "image_path"}
LOOKED_UP = {"image_size", "train_resolution", "width", "height"}  # in the images themselves


def read_captions(folder: Folder, all_lines: bool, warnings: list[str]) -> dict[Path, str]:
    """The images of a metadata file and their captions.

    Args:
        folder: a subset with a `metadata_file`; its own path is where the images are.
        all_lines: captions may have several lines (`enable_wildcard`); the tags then follow each of them.
        warnings: what is found is added to them.

    Raises:
        UserError: it cannot be read, is no metadata file, or names no image that is there.
    """
    file, found = folder.metadata_file, {}
    missing: list[str] = []
    twice: list[str] = []
    unknown: dict[str, int] = {}
    separator = folder.options.caption_separator if folder.options else ","
    listed: dict[Path, dict[str, str]] = {}  # of each folder, its images by stem
    assert file, "only subsets with a metadata file are read here"
    for key, entry in _entries(file):
        path = _image(folder.path / key, listed)
        if path is None:
            missing.append(key)
            continue
        if path in found:
            twice.append(key)
        for name in entry.keys() - KNOWN - LOOKED_UP:
            unknown[name] = unknown.get(name, 0) + 1
        found[path] = _caption(entry, separator, all_lines)
    by_folder: dict[Path, list[str]] = {}
    for path in sorted(found):
        by_folder.setdefault(path.parent, []).append(path.name)
    for parent, names in by_folder.items():
        known = sort_out(parent, names)
        warnings += known.lines(parent)
        for name in set(names) - set(known.images):
            del found[parent / name]
    if not found:
        raise UserError(
            say(
                f"{file}: none of its images is in {folder.path}: {some(missing)}. Its keys are paths below that "
                "folder: choose the folder that fits them",
                f"{file}：里面的图片都不在 {folder.path} 中：{some(missing)}。键是相对该目录的路径，请选对目录",
            )
            if missing
            else say(f"{file}: lists no images", f"{file}：里面没有图片")
        )
    for names, english, chinese in (
        (missing, ("listed image does not exist", "listed images do not exist"), "张图片不存在，未使用"),
        (
            twice,
            ("image is listed twice; the later entry counts", "images are listed twice; the later entry counts"),
            "张图片出现两次，以后面的为准",
        ),
    ):
        if names:
            warnings.append(
                say(
                    f"{file}: {plural(len(names), *english)}: {some(names)}",
                    f"{file}：{len(names)} {chinese}：{some(names)}",
                )
            )
    if unknown:
        names = some([f"{name} ({count})" for name, count in sorted(unknown.items())])
        warnings.append(
            say(
                f"{file}: only caption and tags are read; not used: {names}",
                f"{file}：只读取 caption 和 tags；未使用：{names}",
            )
        )
    return dict(sorted(found.items()))


def _entries(file: Path) -> Iterator[tuple[str, JsonObject]]:
    """Key and entry of each image. Raises UserError."""
    try:
        text, _ = captions.decode(file.read_bytes())
    except OSError as error:
        reason = error.strerror or error
        raise UserError(say(f"{file} cannot be read ({reason})", f"{file} 无法读取（{reason}）")) from error
    except ValueError as error:
        raise UserError(say(f"{file}: {error}", f"{file}：无法识别文字编码，请另存为 UTF-8")) from error
    is_lines = file.suffix.lower() == ".jsonl"
    parts = text.splitlines() if is_lines else [text]
    for number, part in enumerate(parts, 1):
        if not part.strip():
            continue
        try:
            table = json.loads(part)
        except (ValueError, RecursionError) as error:
            line = number + getattr(error, "lineno", 1) - 1
            raise UserError(
                say(f"{file}:{line}: not valid JSON: {error}", f"{file}:{line}：不合 JSON 写法：{error}")
            ) from error
        entries = [(table.get("image_path"), table)] if is_lines and isinstance(table, dict) else None
        entries = list(table.items()) if entries is None and isinstance(table, dict) else entries
        for key, entry in entries if entries is not None else [(None, None)]:
            texts = [entry.get(name) for name in ("caption", "tags")] if isinstance(entry, dict) else [0]
            if not isinstance(key, str) or not all(text is None or isinstance(text, str) for text in texts):
                where = f"{file}:{number}" if is_lines else f"{file}: {key}"
                raise UserError(
                    say(
                        f'{where}: not of the form {{"a.png": {{"caption": "...", "tags": "..."}}}}',
                        f'{where}：不是 {{"a.png": {{"caption": "...", "tags": "..."}}}} 的形式',
                    )
                )
            yield key, entry


def _image(path: Path, listed: dict[Path, dict[str, str]]) -> Path | None:
    """The image that a key means: itself, or the one with its stem."""
    if path.is_file():
        return path
    parent = path.parent
    if parent not in listed:
        names = images_in(parent) if parent.is_dir() else []
        listed[parent] = {folded(os.path.splitext(name)[0]): name for name in reversed(names)}
    for stem in (path.name, path.stem):  # a stem may hold a dot
        if name := listed[parent].get(folded(stem)):
            return parent / name
    return None


def _caption(entry: JsonObject, separator: str, all_lines: bool) -> str:
    """Caption and tags as one text, which is sd-scripts' way of joining them."""
    caption, tags = (captions.without_invisible(entry.get(name) or "").strip() for name in ("caption", "tags"))
    if not all_lines:
        return separator.join(part for part in (captions.first_line(caption), tags) if part)
    tags = separator.join(tags.splitlines())
    lines = [line.strip() for line in caption.splitlines() if line.strip()] or [""]
    return "\n".join(separator.join(part for part in (line, tags) if part) for line in lines)
