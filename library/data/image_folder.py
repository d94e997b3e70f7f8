"""Images and captions of any folder and its sub-folders, named [repeats]_[concept] or not: what the tools work on.

`samples` is for training, and refuses more. Nothing here imports torch.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from library import text_encoding
from library.data import captions
from library.data.decoding import UNREADABLE_EXTENSIONS
from library.data.folders import REG, entries, images_in, is_file, is_folder, subfolders
from library.data.image_names import holds_companions, is_image, some, sort_out
from library.data.samples import CAPTION_EXTENSIONS, caption_file, encoding_is_doubtful, folded, no_text
from library.messages import UserError, plural, say


class CaptionedImage(NamedTuple):
    """An image file and its caption, which may be missing."""

    path: Path
    caption_path: Path  # where its caption is, or would be
    caption: str | None = None  # all lines of the file; None: there is none
    encoding: str = "utf-8"  # the file was read in
    is_sure: bool = True  # False: another encoding is as likely, so that nothing may be written over it

    @property
    def tags(self) -> list[str]:
        """The comma-separated parts of the caption's first line."""
        return captions.tags(captions.first_line(self.caption or ""))


@dataclass(frozen=True)
class ImageFolder:
    """What a folder holds."""

    folder: Path
    images: list[CaptionedImage]  # sorted by path
    notes: list[str] = field(default_factory=list)  # what was passed over, and why

    def name(self, image: CaptionedImage) -> str:
        """An image's path below the folder, as a person would write it."""
        return image.path.relative_to(self.folder).as_posix()


def beside_training(found: ImageFolder) -> set[Path]:
    """The images in a folder `reg` beside others: regularization, as faces = "recipe" leaves a person's full images."""
    inside = {image.path for image in found.images if image.path.relative_to(found.folder).parts[0] == REG}
    return inside if len(inside) < len(found.images) else set()


def is_face_recipe(folder: Path) -> bool:
    """Whether a folder is what faces = "recipe" of prepare_images.py made: faces in train/, full images in reg/."""
    names = {path.name for path in subfolders(folder)} if folder.is_dir() else set()
    return names == {"train", REG} and not images_in(folder)


def find_images(
    folder: str | Path, *, caption_extension: str = ".txt", may_be_empty: bool = False, must_be_sure: bool = False
) -> ImageFolder:
    """All images below a folder, without masks, control images and previews; links to folders are not followed.

    Args:
        must_be_sure: captions of doubtful encoding are refused, as they will be written anew.

    Raises:
        UserError: there is no image at all, unless that may be; or a caption that cannot be read: it would be lost if
            it were written.
    """
    folder = Path(folder)
    extension = caption_extension if caption_extension.startswith(".") else f".{caption_extension}"
    if not re.fullmatch(r"(\.[\w-]+)+", extension) or is_image(f"x{extension}"):  # an image would be overwritten
        raise UserError(
            say(
                f'caption_extension = "{caption_extension}" is not an extension of caption files. Use ".txt" or '
                '".caption"',
                f'caption_extension = "{caption_extension}" 不能作标注文件的扩展名。请用 ".txt" 或 ".caption"',
            )
        )
    images: list[CaptionedImage] = []
    notes: list[str] = []
    problems: list[str] = []
    _collect(folder, extension, must_be_sure, images, notes, problems)
    if not images and not problems and not may_be_empty:
        problems.append(say(f"{folder}: contains no images", f"{folder}：里面没有图片"))
    if problems:
        raise UserError(problems + notes)
    return ImageFolder(folder, images, notes)


def _collect(
    folder: Path,
    extension: str,
    must_be_sure: bool,
    images: list[CaptionedImage],
    notes: list[str],
    problems: list[str],
) -> None:
    try:
        listed = entries(folder)
    except UserError as error:  # of one sub-folder; the others are still of use
        notes += error.problems
        return
    names = [entry.name for entry in listed if is_file(entry)]
    files = {folded(name): name for name in names} | dict(zip(names, names, strict=True))
    unreadable = [name for name in names if os.path.splitext(name)[1].lower() in UNREADABLE_EXTENSIONS]
    if unreadable:
        notes.append(
            say(
                f"{folder}: {plural(len(unreadable), 'file')} in unsupported formats: {some(unreadable)}. Convert "
                "them to .png",
                f"{folder}：{len(unreadable)} 个文件的格式不支持：{some(unreadable)}。请转换为 .png",
            )
        )
    without: list[Path] = []
    listed_images = sort_out(folder, filter(is_image, names))
    notes += listed_images.lines(folder)
    places: dict[Path, Path] = {}  # image -> where its caption is, or would be
    contents: dict[Path, bytes] = {}  # of those that have one
    for name in listed_images.images:
        path = folder / name
        written = caption_file(path, files, extension)
        places[path] = folder / written if written else path.with_suffix(extension)
        try:
            if written:
                contents[path] = places[path].read_bytes()
            else:
                without.append(path)
        except OSError as error:
            problems.append(_caption_is_unreadable(places.pop(path), error))
    readings = dict(zip(contents, text_encoding.read_all(list(contents.values())), strict=True))
    for path, caption_path in places.items():
        if path not in readings:
            images.append(CaptionedImage(path, caption_path))
        elif reading := readings[path]:
            images.append(CaptionedImage(path, caption_path, reading.text, reading.encoding, reading.is_sure))
        else:
            problems.append(no_text(caption_path))
    doubtful = [(places[path].name, one) for path, one in readings.items() if one and not one.is_sure]
    if doubtful:
        (problems if must_be_sure else notes).append(encoding_is_doubtful(folder, doubtful))
    for ending in CAPTION_EXTENSIONS:
        others = [path.name for path in without if ending != extension.lower() and caption_file(path, files, ending)]
        if others:
            notes.append(
                say(
                    f"{folder}: {plural(len(others), 'image has', 'images have')} captions ending in {ending}, "
                    f'which are not read: {some(others)}. To read them, set caption_extension = "{ending}"',
                    f"{folder}：{len(others)} 张图片的标注文件扩展名是 {ending}，没有读取：{some(others)}。要读取请"
                    f'设 caption_extension = "{ending}"',
                )
            )
    for entry in listed:
        path = folder / entry.name
        if is_folder(entry) and not entry.is_symlink() and not holds_companions(path, listed_images.images):
            _collect(path, extension, must_be_sure, images, notes, problems)


def _caption_is_unreadable(path: Path, error: OSError) -> str:
    return say(
        f"{path}: cannot be read ({error.strerror or error}). Change its permissions",
        f"{path}：无法读取（{error.strerror or error}）。请修改文件权限",
    )
