"""What was made of which raw image, so that a second run makes nothing anew and nobody's file is overwritten.

One line of JSON for each event in `prepared.jsonl`, appended while the tool runs: a run that is killed loses nothing.
Before files are written their names are noted, so that what a killed run left half done is known to be ours.
"""

import json
import threading
from pathlib import Path
from typing import NamedTuple, Self

from library import files
from library.files import JsonObject
from library.messages import UserError, say

FILE = "prepared.jsonl"


class Record(NamedTuple):
    """What was made of one raw image."""

    digest: str  # of the raw file's bytes
    settings: str  # in short, of all that decided the result
    stem: str  # the name given to it, below its folder and without ending
    files: dict[str, str]  # path below the folder -> digest of the bytes; in a text "/" stands between folders
    report: JsonObject  # what the summary says of it


def digest_of(data: bytes) -> str:
    """A short name for bytes; two that differ have different ones."""
    return files.sha256(data).hex()[:32]


class Manifest:
    """The records of a folder; a context manager. Threads may add to it at the same time.

    Raises:
        UserError: the file cannot be read or written, or is another program's.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.records: dict[str, Record] = {}  # by the raw image's name
        self.begun: dict[str, set[str]] = {}  # files a killed run was about to write
        self.answers: JsonObject = {}  # see `remember`
        self._lock = threading.Lock()
        self._file = None
        path = folder / FILE
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(_unusable(path, error)) from error
        for number, line in enumerate(lines):
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                if number == len(lines) - 1:
                    break  # the line at which a run was killed
                raise UserError(_unusable(path, error)) from error
        self._is_long = len(lines) > 2 * (len(self.records) + len(self.answers)) + 100

    def _take(self, line: JsonObject) -> None:
        if "begun" in line:
            self.begun.setdefault(line["raw"], set()).update(line["begun"])
        elif "answer" in line:
            self.answers[line["question"]] = line["answer"]
        else:
            self.records[line["raw"]] = Record(*(line[name] for name in Record._fields))
            self.begun.pop(line["raw"], None)

    def __enter__(self) -> Self:
        path = self.folder / FILE
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._is_long:
                files.write(path, "".join(map(_line, self._events())).encode())
            self._file = open(path, "a", encoding="utf-8")  # closed by __exit__
        except OSError as error:
            raise UserError(_unusable(path, error)) from error
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()

    def _events(self) -> list[JsonObject]:
        made = [{"raw": raw, **record._asdict()} for raw, record in self.records.items()]
        begun = [{"raw": raw, "begun": sorted(files)} for raw, files in self.begun.items()]
        return made + begun + [{"question": name, "answer": answer} for name, answer in self.answers.items()]

    def is_ours(self, raw: str, file: str) -> bool:
        """Whether a file, named below the folder, was written for this raw image and not changed since."""
        if file in self.begun.get(raw, ()):
            return True
        known = self.records[raw].files.get(file) if raw in self.records else None
        return known is not None and known == digest_of((self.folder / file).read_bytes())

    def begin(self, raw: str, files: list[str]) -> None:
        """To be called before files are written."""
        self._append({"raw": raw, "begun": files})

    def done(self, raw: str, record: Record) -> None:
        """To be called when they are written."""
        self._append({"raw": raw, **record._asdict()})

    def remember(self, question: str, answer: object) -> None:
        """Keep what was found out at some cost; it is then in `answers`."""
        self._append({"question": question, "answer": answer})

    def _append(self, line: JsonObject) -> None:
        with self._lock:
            assert self._file is not None, "within `with`"
            self._take(line)
            self._file.write(_line(line))
            self._file.flush()


def _line(event: JsonObject) -> str:
    return json.dumps(event) + "\n"


def _unusable(path: Path, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or error
    return say(
        f"{path} cannot be used ({reason}). It says what was made of which image. Choose another output_dir, or "
        "move the whole folder away",
        f"{path} 无法使用（{reason}）。它记录每张图片由什么生成。请换一个 output_dir，或把整个目录移走",
    )
