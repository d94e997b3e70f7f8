"""What tools/sort_into_folders.py copied, and from where: the set that a person looks at stays the one that is trained.

A sorted set is a copy. The record beside its folders tells which of its files are as they were put there, so a caption
edited in the cleaned set can take the place of its copy; and which images were deleted there since, so that they are
trained no longer. What a person put into the sorted folders, or changed in them, is theirs.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from library import files
from library.data.image_names import folded

RECORD = ".sorted.json"  # beside the [repeats]_[concept] folders
REMOVED = ".removed"  # where images go whose source was deleted


class Copied(NamedTuple):
    """A file that was copied."""

    source: str  # relative to the folder of images
    sha256: str


class SortedSet(NamedTuple):
    """The record of a sorted set."""

    images_dir: Path
    copies: dict[str, Copied]  # "concept/name", folded -> what is there

    def is_as_copied(self, word: str, path: Path) -> bool:
        """Whether a file below a concept's folder is what was put there."""
        copied = self.copies.get(_key(word, path.name if path.parent.name != "masks" else f"masks/{path.name}"))
        return copied is not None and path.is_file() and files.sha256_of_file(path).hex() == copied.sha256

    def is_copied(self, word: str, name: str, images_dir: Path) -> bool:
        """Whether a file was copied from this folder of images."""
        return _key(word, name) in self.copies and os.path.realpath(images_dir) == os.path.realpath(self.images_dir)

    def is_deleted(self, word: str, name: str) -> bool:
        """Whether a file was copied from one that is there no longer."""
        copied = self.copies.get(_key(word, name))
        return copied is not None and self.is_there() and not os.path.lexists(self.images_dir / copied.source)

    def is_there(self) -> bool:
        """Whether the cleaned set is there at all: one that was moved away tells nothing."""
        return any(os.path.lexists(self.images_dir / copied.source) for copied in self.copies.values())


def read(folder: Path) -> SortedSet | None:
    """The record of a sorted set; None: there is none that can be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        copies = {key: Copied(*copied) for key, copied in content["files"].items()}
        return SortedSet(Path(os.path.normpath(folder / content["images_dir"])), copies)
    return None


def write(folder: Path, images_dir: Path, copies: dict[tuple[str, str], tuple[Path, Path]]) -> None:
    """Write the record anew.

    Args:
        copies: (concept, name) -> the source and its copy.
    """
    root = images_dir.absolute()
    content = {
        "images_dir": _relative(root, folder.absolute()),
        "files": {
            _key(word, name): [_relative(source.absolute(), root), files.sha256_of_file(copy).hex()]
            for (word, name), (source, copy) in copies.items()
        },
    }
    files.write(folder / RECORD, json.dumps(content, ensure_ascii=False, indent=1).encode())


def _relative(path: Path, folder: Path) -> str:
    """So that a project can be moved as a whole; absolute on another drive."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        return path.as_posix()


def _key(word: str, name: str) -> str:
    return folded(f"{word}/{name}")
