"""Hostile and broken input, one table: every case ends in a warning or an error that names the file and the cure.

None ends in a traceback, a hang, a full memory or a wrong training set. A row is: build the bad thing in an empty
folder and let the real entry read it; what must happen; words that must be said. To add a case: add a row.
"""

import functools
import io
import json
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save, save_file

import train_network
from library import families
from library.contracts import Fit
from library.data import captions, decoding, samples
from library.diffusion import sampling
from library.messages import UserError, set_language
from library.options import command_line as arguments
from library.options import parameter_block, sd_scripts
from library.options.checks import check
from library.storage import lora_file

resource = pytest.importorskip("resource", reason="memory is measured as POSIX does, and links need no rights there")

SECONDS = 20  # no case may take longer
MEBIBYTES = 300  # nor more memory
PROJECT = Path(__file__).parent.parent
BOMBS: list[Callable[[], bytes]] = []
MADE = Path(tempfile.gettempdir()) / f"made_by_a_pickle_{os.getpid()}"

Content = bytes | str | Callable[[Path], Any]  # of a file; or what makes it
Attempt = Callable[[Path, Path], tuple[Any, list[str]]]  # empty folder, tiny base model -> what came of it, warnings


class Case(NamedTuple):
    """One row: a UserError is "refused", warnings are "warned", neither is "works"."""

    must: str
    attempt: Attempt
    words: tuple[str, ...] = ()
    holds: Callable[[Any], bool] = lambda result: True


def refused(attempt: Attempt, *words: str) -> Case:
    return Case("refused", attempt, words)


def warned(attempt: Attempt, *words: str, holds: Callable[[Any], bool]) -> Case:
    return Case("warned", attempt, words, holds)


def works(attempt: Attempt, holds: Callable[[Any], bool]) -> Case:
    return Case("works", attempt, (), holds)


# ---- building ----


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def red(size: tuple[int, int] = (16, 16), kind: str = "PNG", **options) -> bytes:
    return encoded(Image.new("RGB", size, "red"), kind, **options)


def noise(kind: str, **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), kind, **options)


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG that says of itself what it likes: 1 bit grey, all black unless `chunks` hold something else."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    body = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in body)


def black(width: int, height: int) -> bytes:
    return png(width, height, (b"IDAT", zlib.compress(bytes(height * (1 + (width + 7) // 8)), 9)))


def frames(kind: str) -> bytes:
    blue = [Image.new("RGB", (16, 16), "blue")]
    return red(kind=kind, save_all=True, append_images=blue, **({"lossless": True} if kind == "WEBP" else {}))


def with_text_bomb() -> bytes:
    """200 MB of text, never held at once: the limits compare with the most memory held so far."""
    packer = zlib.compressobj(1)
    packed = b"".join([*(packer.compress(b"x" * 10**6) for _ in range(200)), packer.flush()])
    return png(1, 1, (b"zTXt", b"comment\0\0" + packed), (b"IDAT", zlib.compress(b"\0\0")))


def with_exif(data: bytes) -> bytes:
    return red(kind="JPEG", quality=95, exif=b"Exif\0\0" + data)


def transparent_palette() -> bytes:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    return encoded(image, transparency=1)


def lying_bitmap() -> bytes:
    data = bytearray(red(kind="BMP"))
    data[18:26] = struct.pack("<ii", 13_000, 13_000)
    return bytes(data)


def link(target: str) -> Callable[[Path], Any]:
    return lambda path: path.symlink_to(target)


def put(path: Path, content: Content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def bomb(build: Callable[..., bytes], *arguments: Any) -> Content:
    """Built before the first case: at the collection it would cost seconds, and within a case count in its limits."""
    made = functools.cache(functools.partial(build, *arguments))
    BOMBS.append(made)
    return lambda path: path.write_bytes(made())


def in_bytes(name: bytes) -> str:
    """A file name that is no UTF-8, as Python shows it."""
    return name.decode("utf-8", "surrogateescape")


def safetensors_of(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(**changed) -> dict:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changed}


class Payload:
    """What a malicious checkpoint does: here it would make a folder."""

    def __reduce__(self):
        return os.mkdir, (str(MADE),)


def torch_file(content: object, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def deflated(data: bytes) -> bytes:
    """A torch file packed anew, with 400 MB of zeros at the end of its pickle."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for name in old.namelist():
            with new.open(name, "w") as file:
                file.write(old.read(name))
                for _ in range(400 if name.endswith("data.pkl") else 0):
                    file.write(bytes(10**6))
    return buffer.getvalue()


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr("model/model.safetensors", "x")
    return buffer.getvalue()


LAYER = "lora_unet_mid_block_attentions_0_proj_in"
LORA = {f"{LAYER}.lora_down.weight": torch.ones(2, 8), f"{LAYER}.lora_up.weight": torch.ones(8, 2)}


# ---- the real entries ----


def folders(files: dict[str, Content], **options) -> Attempt:
    """`1_tag/good.png` (red) and these files, found and loaded: {path: (caption, (r, g, b) of the middle, repeats)}."""

    def attempt(folder: Path, _model: Path) -> tuple[dict, list[str]]:
        put(folder / "1_tag" / "good.png", red())
        for name, content in files.items():
            put(folder / name, content)
        found = samples.find_samples(folder, **options)
        fit = Fit((16, 16), (16, 16), (0, 0))
        seen = {
            sample.image_path.relative_to(folder).as_posix(): (
                sample.caption,
                tuple(decoding.load(sample.image_path, fit)[8, 8].tolist()),
                sample.repeats,
            )
            for sample in found.train
        }
        return seen, found.warnings

    return attempt


def images(**files: Content) -> Attempt:
    """The same, for files in `1_tag`: `a_png` stands for a.png."""
    return folders({f"1_tag/{name.replace('_', '.')}": content for name, content in files.items()})


def only_good(seen: dict) -> bool:
    """The bad file was left out, the good one was not."""
    return seen == {"1_tag/good.png": ("tag", (255, 0, 0), 1)}


def colour(*expected: int) -> Callable[[dict], bool]:
    """The other image is used too, and has this colour."""

    def holds(seen: dict) -> bool:
        (other,) = [pixel for path, (_, pixel, _) in seen.items() if path != "1_tag/good.png"]
        return np.abs(np.subtract(other, expected)).max() <= 12

    return holds


def caption(text: str) -> Callable[[dict], bool]:
    return lambda seen: seen["1_tag/good.png"][0] == text


def unreadable(name: str, files: dict[str, Content]) -> Attempt:
    """`name` may not be read; tests often run with rights that nothing is refused to, so the refusal is played."""

    def attempt(folder: Path, model: Path) -> tuple[dict, list[str]]:
        def refusing(call: Callable) -> Callable:
            def guarded(path, *arguments, **keywords):
                if isinstance(path, (str, Path)) and Path(path) == folder / name:
                    raise PermissionError(13, "Permission denied", str(path))
                return call(path, *arguments, **keywords)

            return guarded

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "scandir", refusing(os.scandir))
            patch.setattr(Path, "read_bytes", refusing(Path.read_bytes))
            patch.setattr(samples, "open", refusing(open), raising=False)
            patch.setattr(Image, "open", refusing(Image.open))
            return folders(files)(folder, model)

    return attempt


def base_model(name: str, content: Content) -> Attempt:
    return lambda folder, _model: (families.inspect(put(folder / name, content)), [])


def changed_folder(change: Callable[[Path], Any]) -> Attempt:
    """The tiny diffusers folder after `change`, opened."""

    def attempt(folder: Path, model: Path) -> tuple[Any, list[str]]:
        shutil.copytree(model, folder / "model")
        change(folder / "model")
        return families.open_model(folder / "model", dtype=torch.float32), []

    return attempt


def config_with(part: str, **changed) -> Attempt:
    def change(model: Path) -> None:
        file = model / part
        file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changed), encoding="utf-8")

    return changed_folder(change)


def weights_with(part: str, value: float) -> Attempt:
    def change(model: Path) -> None:
        (file,) = (model / part).glob("*.safetensors")
        tensors = load_file(file)
        tensors[max(tensors)].view(-1)[-1] = value
        save_file(tensors, file)

    return changed_folder(change)


def lora(name: str, content: Content) -> Attempt:
    return lambda folder, _model: (lora_file.load_adapter(put(folder / name, content)), [])


def prompts(name: str, content: Content) -> Attempt:
    return lambda folder, _model: (sampling.read_prompts(put(folder / name, content)), [])


def flags(*argv: str, **files: Content) -> Attempt:
    """Command line and .toml files up to a checked configuration; a word that names a file becomes its path."""

    def attempt(folder: Path, _model: Path) -> tuple[Any, list[str]]:
        paths = {name: str(put(folder / f"{name}.toml", content)) for name, content in files.items()}
        values, where, notices, problems = sd_scripts.translate(
            *arguments.parse([paths.get(word, word) for word in argv])
        )
        config, warnings = check(values, where, problems)
        return config, notices + warnings

    return attempt


def preset(content: Content) -> Attempt:
    return lambda folder, _model: (check(*parameter_block.load_preset(put(folder / "p.json", content))), [])


def script(old: str, new: str) -> Attempt:
    """lora_train_command_line.py with a line changed, run as users run it."""

    def attempt(folder: Path, _model: Path) -> tuple[Any, list[str]]:
        text = (PROJECT / "lora_train_command_line.py").read_text(encoding="utf-8")
        assert text.count(old) == 1
        file = put(folder / "lora_train_command_line.py", text.replace(old, new))
        environment = os.environ | {"PYTHONPATH": str(PROJECT), "PYTHONIOENCODING": "utf-8"}
        command = [sys.executable, str(file)]
        done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False, timeout=15)
        assert done.returncode in (1, 2)
        assert "Traceback" not in done.stderr
        raise UserError(done.stderr)

    return attempt


def training(files: dict[str, Content], *argv: str) -> Attempt:
    """train_network.main on `train/1_tag/good.png`, these files and flags; words that name files become their paths."""

    def attempt(folder: Path, model: Path) -> tuple[Any, list[str]]:
        put(folder / "train" / "1_tag" / "good.png", red((64, 64)))
        for name, content in files.items():
            put(folder / name, content)
        given = dict(
            pretrained_model_name_or_path=model, train_data_dir=folder / "train", output_dir=folder / "out",
            output_name="it", resolution=64, network_dim=2, max_train_steps=2, device="cpu", sample_every_n_epochs=0,
        )  # fmt: skip
        words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        with redirect_stdout(output), redirect_stderr(output):
            code = train_network.main([*words, *(str(folder / w) if (folder / w).exists() else w for w in argv)])
        output.seek(0)
        said = output.read()
        if code == 2:
            raise UserError(said)
        assert code == 0
        return load_file(folder / "out" / "it.safetensors"), [said]

    return attempt


EVIL = torch_file({"state_dict": {"a": torch.ones(1)}, "extra": Payload()})
FINE_FLAGS = ("--train_data_dir", str(PROJECT / "library/miniature/train"))
GBK = in_bytes("衣服".encode("gbk"))

# fmt: off
CASES: dict[str, Case] = {
    # ---- images ----
    "picture: zero bytes": warned(images(a_png=b""), "a.png: skipped", "0 bytes", "delete it", holds=only_good),
    "picture: truncated JPEG": warned(
        images(a_jpg=half(noise("JPEG"))), "a.jpg: skipped", "truncated", "save it again", holds=only_good
    ),
    "picture: truncated progressive JPEG": warned(
        images(a_jpg=half(noise("JPEG", progressive=True))), "a.jpg: skipped", "truncated", holds=only_good
    ),
    "picture: truncated PNG": warned(images(a_png=half(noise("PNG"))), "a.png: skipped", "again", holds=only_good),
    "picture: truncated WebP": warned(images(a_webp=half(noise("WEBP"))), "a.webp: skipped", holds=only_good),
    "picture: truncated BMP": warned(images(a_bmp=half(noise("BMP"))), "a.bmp: skipped", "again", holds=only_good),
    "picture: a JPEG whose second half is zeros": warned(
        images(a_jpg=half(noise("JPEG")) + bytes(4000)), "a.jpg: skipped: its end is", "again", holds=only_good
    ),
    "picture: a WebP whose second half is zeros": warned(
        images(a_webp=half(noise("WEBP")) + bytes(len(noise("WEBP")) - len(noise("WEBP")) // 2)),
        "a.webp: skipped: its end is missing", "download", holds=only_good,
    ),
    "picture: a JPEG filled up with zeros, as by a camera": works(
        images(a_jpg=red(kind="JPEG", quality=95) + bytes(4000)), colour(255, 0, 0)
    ),
    "picture: zeros in its middle": warned(
        images(a_png=noise("PNG")[:9000] + bytes(200) + noise("PNG")[9200:]), "a.png: skipped", holds=only_good
    ),
    "picture: a web page": warned(images(a_jpg="<html>404</html>"), "a.jpg: skipped: not a sup", holds=only_good),
    "picture: PostScript, which Pillow would run": warned(
        images(a_png=red(kind="EPS")), "a.png: skipped: not a support", holds=only_good
    ),
    "picture: a folder": warned(images(a_png=Path.mkdir), "a.png: is a folder, not an image", holds=only_good),
    "picture: a link to itself": warned(images(a_png=link("a.png")), "a.png: broken link", holds=only_good),
    "picture: links in a circle": warned(
        images(a_png=link("b.png"), b_png=link("a.png")), "a.png: broken", "b.png: broken", holds=only_good
    ),
    "picture: a link to nothing": warned(images(a_png=link("x.png")), "a.png: broken link", holds=only_good),
    "picture: a pipe": warned(images(a_png=os.mkfifo), "a.png: broken link, or not", holds=only_good),
    "picture: may not be read": warned(
        unreadable("1_tag/a.png", {"1_tag/a.png": red()}), "a.png: skipped: no permission", holds=only_good
    ),
    "picture: a bomb of 3,600 million pixels": warned(
        images(a_png=png(60_000, 60_000, (b"IDAT", zlib.compress(bytes(10**6))))),
        "a.png: skipped: more than 178 million pixels; make it smaller",
        holds=only_good,
    ),
    "picture: a bomb of 169 million pixels": warned(
        images(a_png=bomb(black, 13_000, 13_000)), "a.png: skipped: 13000 x 13000 pixels in a file of",
        "make it smaller", holds=only_good,
    ),
    "picture: a bitmap that says it has 169 million pixels": warned(
        images(a_bmp=lying_bitmap()), "a.bmp: skipped: 13000 x 13000 pixels in a file of", holds=only_good
    ),
    "picture: 200 MB of text within": warned(
        images(a_png=bomb(with_text_bomb)), "a.png: skipped", "too large", "save it again", holds=only_good
    ),
    "picture: 1 x 100000": warned(
        images(a_png=black(1, 100_000)), "a.png: skipped: 1 x 100000 pixels", "cut", holds=only_good
    ),
    "picture: 100000 x 1": warned(
        images(a_png=black(100_000, 1)), "a.png: skipped: 100000 x 1 pixels", "cut", holds=only_good
    ),
    "picture: no pixels at all": warned(images(a_png=png(0, 0)), "a.png: skipped", holds=only_good),
    "picture: one pixel": works(images(a_png=black(1, 1)), colour(0, 0, 0)),
    "picture: CMYK": works(
        images(a_jpg=encoded(Image.new("CMYK", (16, 16), (255, 0, 255, 0)), "JPEG", quality=95)), colour(0, 255, 0)
    ),
    "picture: 16 bits": works(
        images(a_png=encoded(Image.fromarray(np.full((16, 16), 32768, np.uint16)))), colour(128, 128, 128)
    ),
    "picture: 1 bit": works(images(a_png=encoded(Image.new("1", (16, 16), 1))), colour(255, 255, 255)),
    "picture: palette with transparency": works(images(a_png=transparent_palette()), colour(255, 255, 255)),
    "picture: transparent throughout": works(
        images(a_png=encoded(Image.new("RGBA", (16, 16), (0, 0, 255, 0)))), colour(255, 255, 255)
    ),
    "picture: animated GIF": warned(
        images(a_gif=frames("GIF")), "unsupported formats: a.gif", "Convert them to .png", holds=only_good
    ),
    "picture: animated GIF named .png": warned(
        images(a_png=frames("GIF")), "only the first frame is used: a.png", holds=colour(255, 0, 0)
    ),
    "picture: animated WebP": warned(
        images(a_webp=frames("WEBP")), "only the first frame is used: a.webp", holds=colour(255, 0, 0)
    ),
    "picture: animated PNG": warned(
        images(a_png=frames("PNG")), "only the first frame is used: a.png", holds=colour(255, 0, 0)
    ),
    "picture: orientation that is text": works(
        images(a_jpg=with_exif(b"II*\0\x08\0\0\0\1\0\x12\1\2\0\4\0\0\0abc\0\0\0\0\0")), colour(255, 0, 0)
    ),
    "picture: orientation 99": works(
        images(a_jpg=with_exif(b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\x63\0\0\0\0\0\0\0")), colour(255, 0, 0)
    ),
    "picture: EXIF that is no EXIF": works(images(a_jpg=with_exif(b"\xff" * 60)), colour(255, 0, 0)),
    "picture: profile that is no profile": works(images(a_png=red(icc_profile=b"\xff" * 200)), colour(255, 0, 0)),
    "picture: quotes, emoji, marks of direction and line breaks in its name": works(
        folders({"1_tag/\"it's\" 🐱 \u202egnp.\n$(x) %s {0}.png": red()}), colour(255, 0, 0)
    ),
    "picture: its name is GBK": works(folders({f"1_tag/{GBK}.png": red()}), colour(255, 0, 0)),
    # ---- masks ----
    "mask: cut in the middle": refused(
        folders({"1_tag/masks/good.png": half(noise("PNG"))}), "1 mask cannot be read: good.png (damaged", "again"
    ),
    "mask: an empty file": refused(folders({"1_tag/masks/good.png": b""}), "cannot be read: good.png", "delete"),
    "mask: a web page": refused(folders({"1_tag/masks/good.png": "<html>404</html>"}), "cannot be read: good.png"),
    "mask: a bomb of 169 million pixels": refused(
        folders({"1_tag/masks/good.png": bomb(black, 13_000, 13_000)}), "cannot be read: good.png (13000 x 13000 pixels"
    ),
    "mask: of a picture on its side": refused(
        folders({"1_tag/masks/wide.png": red((20, 30)), "1_tag/wide.png": red((30, 20))}),
        "1 mask is of another shape than their image: wide.png (20x30, wide.png: 30x20)", "EXIF",
    ),
    "mask: may not be read": refused(
        unreadable("1_tag/masks/good.png", {"1_tag/masks/good.png": red()}), "cannot be read: good.png (no permission"
    ),
    "mask: a folder of masks that may not be read": refused(
        unreadable("1_tag/masks", {"1_tag/masks/good.png": red()}), "1_tag/masks: this folder cannot be read"
    ),
    "mask: of no picture": warned(
        folders({"1_tag/masks/good.png.png": red()}), "good.png.png", "such as good.png instead of", holds=only_good
    ),
    "mask: black all over": warned(
        folders({"1_tag/masks/good.png": black(16, 16)}), "1 image teaches nothing", "good.png", holds=only_good
    ),
    "mask: a folder": works(folders({"1_tag/masks/good.png/x.png": red()}), only_good),
    "mask: no folder but a file": works(folders({"1_tag/masks": "x"}), only_good),
    # ---- captions ----
    "caption: 5 MB in one line": warned(
        images(good_txt="word, " * 900_000), "good.txt (5,400,000)", "cut there",
        holds=lambda seen: len(seen["1_tag/good.png"][0]) <= 10_000,
    ),
    "caption: 5 MB of blank lines before it": warned(
        images(good_txt="\n" * 5_000_000 + "a, b"), "good.txt (5,000,004)", holds=caption("a, b")
    ),
    "caption: control characters": warned(
        images(good_txt="a\x07\x1b, red\x0bhair"), "good.txt", "control characters",
        holds=caption("a  , red hair"),
    ),
    "caption: marks of direction": warned(
        images(good_txt="\u202emytag\u202c, \u200fhat\u2066"), "good.txt", "were removed",
        holds=caption("mytag, hat"),
    ),
    "caption: zero-width spaces and joiners": warned(
        images(good_txt="my\u200btag, r\u200ded\ufeff hat"), "good.txt", "zero-width", holds=caption("mytag, red hat")
    ),
    "caption: emoji spelt with joiners": works(
        images(good_txt="mytag, 👨\u200d👩\u200d👧"), caption("mytag, 👨\u200d👩\u200d👧")
    ),
    "caption: a picture": refused(images(good_txt=red()), "good.txt: neither UTF-8", "Save it as UTF-8"),
    "caption: half a UTF-16 letter": refused(images(good_txt=b"\xff\xfea"), "good.txt", "Save it as UTF-8"),
    "caption: GBK": warned(
        images(good_txt="红色".encode("gbk")), "good.txt", "save them as UTF-8", holds=caption("红色")
    ),
    "caption: a folder": works(images(good_txt=Path.mkdir), caption("tag")),
    "caption: a link to itself": warned(images(good_txt=link("good.txt")), "good.txt: broken", holds=caption("tag")),
    "caption: may not be read": refused(
        unreadable("1_tag/good.txt", {"1_tag/good.txt": "a"}), "good.txt: cannot be read", "or delete it"
    ),
    "caption: only a byte-order mark": warned(
        images(good_txt=b"\xef\xbb\xbf"), "1 caption file is empty", "good.txt", holds=caption("")
    ),
    "caption: line ends of old Macs": warned(
        images(good_txt="a, b\rc, d"), "only the first is read: good.txt", 
        holds=lambda seen: captions.first_line(seen["1_tag/good.png"][0]) == "a, b",
    ),
    "caption: in another case beside its own": warned(
        images(GOOD_txt="wrong", good_txt="right"), "has no image: GOOD.txt", holds=caption("right")
    ),
    "caption: quotes, backslashes, braces, flags": works(
        images(good_txt='"it\'s" \\n {0} %s --n <lora:x:1> $(x)'), caption('"it\'s" \\n {0} %s --n <lora:x:1> $(x)')
    ),
    # ---- folders ----
    "folder: no repeats": warned(folders({"0_a/x.png": red()}), "0_a: skipped: 0 repeats", "1 or", holds=only_good),
    "folder: negative repeats": warned(folders({"-3_a/x.png": red()}), "-3_a: skipped: -3", holds=only_good),
    "folder: repeats without end": refused(
        folders({"99999999999_a/x.png": red()}), "99999999999_a", "Rename it, e.g. 10_99999999999_a"
    ),
    "folder: a date": refused(folders({"20230101_trip/x.png": red()}), "20230101_trip", "Rename it, e.g. 10_2023"),
    "folder: a number of 200 digits": refused(folders({f"{'9' * 200}_a/x.png": red()}), "Rename it"),
    "folder: full-width digits": works(
        folders({"３_a/x.png": red()}), lambda seen: seen["３_a/x.png"] == ("a", (255, 0, 0), 3)
    ),
    "folder: its name is GBK": warned(
        folders({f"3_{GBK}/x.png": red()}), 'read as "衣服"', "rename it",
        holds=lambda seen: ("衣服", (255, 0, 0), 3) in seen.values(),
    ),
    "folder: invisible characters in its name": warned(
        folders({"3_my\u200btag\u202e/x.png": red()}), 'without them the caption is "mytag"', "Rename it",
        holds=lambda seen: ("mytag", (255, 0, 0), 3) in seen.values(),
    ),
    "folder: a link to itself": warned(folders({"2_b": link("2_b")}), "2_b: broken link", holds=only_good),
    "folder: a link to the one above": warned(
        folders({"2_b": link("..")}), "2_b: contains no image", holds=only_good
    ),
    "folder: may not be read": refused(
        unreadable("2_b", {"2_b/x.png": red()}), "2_b: this folder cannot be read", "hange its permissions"
    ),
    "folder: one without number may not be read": warned(
        unreadable("other", {"other/x.png": red()}), "other: this folder cannot be read", holds=only_good
    ),
    "folder: the chosen one may not be read": refused(unreadable("", {}), "cannot be read", "hange its permissions"),
    "folder: the chosen one is a link to itself": refused(
        lambda folder, _model: (samples.find_samples(put(folder / "loop", link("loop"))), []),
        "there is no folder", "loop"
    ),
    # ---- base models ----
    "model: empty": refused(base_model("m.safetensors", b""), "m.safetensors: the file is empty", "Download it again"),
    "model: header of 8 EiB": refused(
        base_model("m.safetensors", safetensors_of({}, length=2**63)), "m.safetensors: this is not", "download it again"
    ),
    "model: header of 2 GB": refused(
        base_model("m.safetensors", safetensors_of({}, length=2**31)), "m.safetensors: this is not", "download it again"
    ),
    "model: header beyond the end": refused(
        base_model("m.safetensors", safetensors_of({}, length=90_000)), "m.safetensors: the file is cut short", "again"
    ),
    "model: cut short": refused(
        base_model("m.safetensors", safetensors_of(entry(), bytes(4))), "m.safetensors: the file is cut short", "again"
    ),
}
DAMAGED = {  # headers that lie
    "a list": safetensors_of([]),
    "brackets without end": safetensors_of(b"[" * 200_000),
    "not UTF-8": safetensors_of(b'{"\xff": 1}'),
    "a number of 5,000 digits": safetensors_of(b'{"a":' + b"9" * 5000 + b"}"),
    "offsets of 400 digits": safetensors_of(
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,' + b"9" * 400 + b"]}}"
    ),
    "offsets that are text": safetensors_of(entry(data_offsets=["a", "b"]), bytes(8)),
    "three offsets": safetensors_of(entry(data_offsets=[0, 4, 8]), bytes(8)),
    "negative offsets": safetensors_of(entry(data_offsets=[-8, 8]), bytes(8)),
    "offsets the wrong way round": safetensors_of(entry(data_offsets=[8, 0]), bytes(8)),
    "tensors that overlap": safetensors_of(entry() | {"bb": entry(data_offsets=[4, 12])["a"]}, bytes(12)),
    "a gap": safetensors_of(entry() | {"bb": entry(data_offsets=[12, 20])["a"]}, bytes(20)),
    "a hidden tail": safetensors_of(entry(), bytes(16)),
    "a shape of another size": safetensors_of(entry(shape=[3]), bytes(8)),
    "a shape beyond all bounds": safetensors_of(entry(shape=[2**62, 2**62]), bytes(8)),
    "a shape that is text": safetensors_of(entry(shape="ab"), bytes(8)),
    "an unknown dtype": safetensors_of(entry(dtype="Q7"), bytes(8)),
    "metadata that is a list": safetensors_of(entry() | {"__metadata__": ["x"]}, bytes(8)),
    "metadata of numbers": safetensors_of(entry() | {"__metadata__": {"x": 3}}, bytes(8)),
}
for what, data in DAMAGED.items():
    CASES[f"model: {what}"] = refused(base_model("m.safetensors", data), "m.safetensors: the header", "Download it")
CASES |= {
    "model: malicious .ckpt": refused(
        base_model("m.ckpt", EVIL), "m.ckpt: this file does not only hold weights", "mkdir", ".safetensors version"
    ),
    "model: malicious .ckpt named .safetensors": refused(
        base_model("m.safetensors", EVIL), "m.safetensors: this file does not only", "mkdir", ".safetensors version"
    ),
    "model: malicious .ckpt of the old format": refused(
        base_model("m.ckpt", torch_file(Payload(), _use_new_zipfile_serialization=False)), "m.ckpt: this file", "mkdir"
    ),
    **{
        f"model: malicious pickle of protocol {protocol}": refused(
            base_model("m.ckpt", pickle.dumps({"a": Payload()}, protocol=protocol)), "m.ckpt: this", "again"
        )
        for protocol in (0, 1, 3, 4, 5)
    },
    "model: half a .ckpt": refused(base_model("m.ckpt", half(EVIL)), "m.ckpt: this checkpoint cannot be", "again"),
    "model: a .ckpt that unpacks to 400 MB": refused(
        base_model("m.ckpt", bomb(deflated, torch_file({"a": torch.ones(1)}))),
        "m.ckpt: this checkpoint was repacked", "orig",
    ),
    "model: a zip archive": refused(base_model("m.safetensors", archive()), "m.safetensors: this is a pack", "Unpack"),
    "model: a .ckpt that holds a number": refused(base_model("m.ckpt", torch_file(3)), "m.ckpt: this is not", "choose"),
    "model: a saved web page": refused(base_model("m.ckpt", "<!DOCTYPE html>"), "m.ckpt: this is a saved web page"),
    "model: an empty folder named .safetensors": refused(
        base_model("m.safetensors", Path.mkdir), "m.safetensors: this folder contains no model", "Give the path"
    ),
    "model: a link to itself": refused(base_model("m.ckpt", link("m.ckpt")), "m.ckpt: there is no such file", "Check"),
    "model: a pipe": refused(base_model("m.ckpt", os.mkfifo), "m.ckpt: this is not a file", "Give the path"),
    "model: a user who is not there": refused(
        lambda *_: (families.inspect("~nobody.of.this.name/m.safetensors"), []), "there is no such file", "Check"
    ),
    "model: a name that is too long": refused(
        lambda *_: (families.inspect("x" * 5000), []), "there is no such file", "Check"
    ),
    "model: a length that reads like JSON": refused(
        base_model("m.safetensors", safetensors_of(b"{}" + b" " * (0x7B - 2))), "m.safetensors: this is not a base mod"
    ),
    "model: NaN in the U-Net": refused(weights_with("unet", float("nan")), "unet", "NaN", "another copy"),
    "model: infinity in the text encoder": refused(weights_with("text_encoder", float("inf")), "text_encoder", "inf"),
    "model: NaN in the VAE": refused(weights_with("vae", float("nan")), "VAE", "NaN", "another copy"),
    "model: config.json that is no JSON": refused(
        changed_folder(lambda model: (model / "unet/config.json").write_text("{")), "config.json", "Download it again"
    ),
    "model: config.json of brackets": refused(
        changed_folder(lambda model: (model / "unet/config.json").write_text("[" * 100_000)), "config.json", "again"
    ),
    "model: config.json that is a list": refused(
        changed_folder(lambda model: (model / "vae/config.json").write_text("[]")), "vae/config.json", "again"
    ),
    "model: channels that are text": refused(config_with("unet/config.json", block_out_channels="ab"), "block_out"),
    "model: no channels": refused(config_with("vae/config.json", block_out_channels=[]), "block_out", "again"),
    "model: inputs that are a list": refused(config_with("unet/config.json", in_channels=[4]), "channels, not 4"),
    "model: a thousand million layers": refused(
        config_with("unet/config.json", layers_per_block=10**9), "unet/config.json: layers_per_block", "again"
    ),
    "model: an impossible number of heads": refused(
        config_with("text_encoder/config.json", num_attention_heads=7), "config.json is damaged", "download it again"
    ),
    "model: betas that are text": refused(
        config_with("scheduler/scheduler_config.json", beta_start="a"), "scheduler_config.json: beta_start", "again"
    ),
    "model: an objective that is a list": refused(
        config_with("scheduler/scheduler_config.json", prediction_type=["v"]), "prediction_type", "another base model"
    ),
    "model: a sample size beyond all bounds": works(
        config_with("unet/config.json", sample_size=10**12), lambda family: family.info.resolution == 512
    ),
    "model: a tokenizer that is no JSON": refused(
        changed_folder(lambda model: (model / "tokenizer/vocab.json").write_text("{")), "tokenizer: this token", "again"
    ),
    # ---- LoRA files ----
    "LoRA: empty": refused(lora("l.safetensors", b""), "l.safetensors: cannot be read", "damaged"),
    "LoRA: malicious": refused(lora("l.pt", EVIL), "l.pt: cannot be read", "mkdir"),
    "LoRA: half": refused(lora("l.safetensors", half(save(LORA))), "l.safetensors: cannot be read", "damaged"),
    "LoRA: header of 8 EiB": refused(lora("l.safetensors", safetensors_of({}, length=2**63)), "l.safetensors: cannot"),
    "LoRA: a tensor that is none of a LoRA": refused(
        lora("l.safetensors", safetensors_of(entry(), bytes(8))), "l.safetensors: not a LoRA", "A base model"
    ),
    "LoRA: a number for a matrix": refused(
        lora("l.safetensors", save(LORA | {f"{LAYER}.lora_down.weight": torch.ones(())})), "l.safetensors: ", "damaged"
    ),
    "LoRA: NaN": refused(
        lora("l.safetensors", save(LORA | {f"{LAYER}.alpha": torch.tensor(float("nan"))})), "l.safetensors", "another"
    ),
    "LoRA: names that are numbers": refused(lora("l.pt", torch_file({1: torch.ones(1)})), "l.pt: not a LoRA"),
    # ---- prompt files ----
    "prompts: UTF-16, as Windows' editor writes": works(
        prompts("p.txt", "a cat --w 64".encode("utf-16")), lambda found: found == [sampling.Prompt("a cat", width=64)]
    ),
    "prompts: zero bytes within": refused(prompts("p.txt", b"a\0b"), "p.txt: is not UTF-8", "Save it as UTF-8"),
    "prompts: a picture": refused(prompts("p.txt", red()), "p.txt: is not UTF-8", "Save it as UTF-8"),
    "prompts: one object instead of a list": works(
        prompts("p.json", '{"prompt": "a", "seed": null}'), lambda found: found == [sampling.Prompt("a")]
    ),
    "prompts: a number": refused(prompts("p.json", "5"), "p.json [1]", '"prompt" = "text"'),
    "prompts: half a letter": refused(prompts("p.json", '["\\ud800"]'), "p.json [1]: contains a broken", "again"),
    "prompts: a text": works(prompts("p.json", '"abc"'), lambda found: found == [sampling.Prompt("abc")]),
    "prompts: brackets without end": refused(prompts("p.json", "[" * 100_000), "p.json: cannot be read"),
    "prompts: a number of 5,000 digits": refused(prompts("p.json", "9" * 5000), "p.json: cannot be read"),
    "prompts: .toml without table": refused(prompts("p.toml", 'prompt = "a"'), "p.toml: contains no list", "Write [["),
    "prompts: .toml with numbers": refused(prompts("p.toml", "[prompt]\nsubset = [3]"), "p.toml: contains no", "Write"),
    "prompts: .toml of brackets": refused(prompts("p.toml", "a=" + "[" * 5000), "p.toml: cannot be read"),
    "prompts: impossible numbers": refused(
        prompts("p.txt", "a --w -5\na --h 999999\na --d -1\na --d 99999999999999999999\na --l nan\na --l 1e999"),
        "p.txt:1: --w -5", "p.txt:2: --h 999999", "p.txt:3: --d -1", "p.txt:4: --d", "p.txt:5: --l", "p.txt:6: --l",
    ),
    # ---- parameters ----
    "toml: not TOML": refused(flags("--config_file", "c", c="network_dim = = 3"), "c.toml:1: not valid TOML", "write"),
    "toml: dates, tables and NaN": refused(
        flags("--config_file", "c", c="seed = 1979-05-27\nnetwork_dim = nan\nunet_lr = [[1]]"),
        "c.toml:1: seed", "c.toml:2: network_dim", "c.toml:3: unet_lr",
    ),
    "toml: an unknown name": refused(
        flags("--config_file", "c", c="network_dims = 3"), "c.toml:1: network_dims", "Did you mean network_dim?"
    ),
    "toml: a folder": refused(flags("--config_file", "c", c=Path.mkdir), "c.toml cannot be read"),
    "flags: quotes, zero bytes and line breaks": refused(
        flags(*FINE_FLAGS, "--output_dir", "a\0b", "--output_name", 'a"b\n', "--network_dim", "3\u200b"),
        "--output_dir", "--output_name", "--network_dim",
    ),
    "toml: brackets without end": refused(flags("--config_file", "c", c="a=" + "[" * 5000), "c.toml contains no param"),
    "toml: a number of 5,000 digits": refused(flags("--config_file", "c", c="a=" + "9" * 5000), "c.toml contains"),
    "flags: bytes that are no UTF-8": refused(flags("--training_comment", "\udcff"), "--training_comment", "not UTF-8"),
    "preset: lists within lists": refused(preset('{"text_encoder_lr": [[], []]}'), "text_encoder_lr"),
    "preset: brackets without end": refused(preset("[" * 100_000), "p.json contains no parameters"),
    "preset: a number of 5,000 digits": refused(preset("9" * 5000), "p.json contains no parameters"),
    "preset: no UTF-8": refused(preset(b"\xff\xff"), "p.json is not UTF-8 text"),
    "preset: a folder": refused(preset(Path.mkdir), "p.json cannot be read"),
    "preset: values of all wrong kinds": refused(
        preset('{"network_dim": {}, "seed": [[]], "output_name": 1e999, "train_data_dir": "C:\\new"}'),
        "p.json:1: network_dim", "p.json:1: seed", "p.json:1: output_name", "p.json:1: train_data_dir",
    ),
    # Python refuses these before any line of ours runs; what it says names the line.
    "block: a missing quote": refused(script('output_name = "auto"', 'output_name = "mytag'), "line ", "unterminated"),
    "block: Chinese quotes": refused(script('output_name = "auto"', "output_name = “mytag”"), "line ", "'“' (U+201C)"),
    "block: a Windows path with \\U": refused(
        script('output_name = "auto"', 'output_name = "C:\\Users"'), "line ", "unicodeescape"
    ),
    "block: a Chinese comma": refused(script("train_batch_size = 2", "train_batch_size = 2，"), "line ", "U+FF0C"),
    "block: a Windows path with \\n": refused(
        script('output_name = "auto"', 'output_name = "mytag"; output_dir = "C:\\new"'), "a line break", r'r"C:\new"'
    ),
    # ---- the whole program ----
    "program: names and captions of every kind": warned(
        training(
            {
                f"train/2_{GBK}/{GBK}.png": red((64, 64)),
                "train/1_🐱\u202e/\"it's\" 🐱.png": frames("GIF"),
                "train/1_🐱\u202e/\"it's\" 🐱.txt": "mytag\u200b, 红色",
                "train/1_tag/good.txt": "x" * 5_000_000,
            }
        ),
        'read as "衣服"', "animated", "good.txt (5,000,000)", "invisible characters",
        holds=lambda tensors: all(tensor.isfinite().all() for tensor in tensors.values()),
    ),
    "program: no whole picture": refused(
        training({"reg/1_a/a.jpg": half(noise("JPEG")), "reg/1_a/b.png": b""}, "--reg_data_dir", "reg"),
        "no usable image in 1_a", "a.jpg: skipped", "b.png: skipped",
    ),
    "program: several things at once": refused(
        training(
            {"train/99999999_a/x.png": red(), "p.txt": "a --zz", "l.safetensors": b"", "m.ckpt": EVIL},
            "--sample_prompts", "p.txt", "--network_weights", "l.safetensors",
            "--pretrained_model_name_or_path", "m.ckpt",
        ),
        "99999999_a", "p.txt:1: --zz", "l.safetensors", "m.ckpt: this file does not only hold weights",
    ),
    "program: a malicious VAE": refused(training({"v.pt": EVIL}, "--vae", "v.pt"), "v.pt: this file does not", "mkdir"),
    "program: a VAE of a lying header": refused(
        training({"v.safetensors": DAMAGED["tensors that overlap"]}, "--vae", "v.safetensors"), "v.safetensors: the h"
    ),
    "program: a caption that is a picture": refused(
        training({"train/1_tag/good.txt": red()}), "good.txt: neither UTF-8", "Save it as UTF-8"
    ),
    "program: a folder that is a state of nothing": refused(
        training({"s-state": Path.mkdir}, "--resume", "s-state"), "s-state"
    ),
    "program: the result would lie in a file": refused(training({"o": "x"}, "--output_dir", "o"), "is a file"),
    "program: prompts of brackets": refused(
        training({"p.json": "[" * 100_000}, "--sample_prompts", "p.json"), "p.json: cannot be read"
    ),
    "program: flags in Chinese punctuation": refused(training({}, "——network_dim", "8"), "——network_dim"),
    "program: a wide dash and no name": refused(training({}, "--"), "--: there is no such flag"),
    "program: a LoRA of lying header to begin with": refused(
        training({"l.safetensors": DAMAGED["a hidden tail"]}, "--network_weights", "l.safetensors"), "l.safetensors"
    ),
    "program: NaN that was asked for": refused(training({}, "--learning_rate", "nan"), "--learning_rate nan", "number"),
}
# fmt: on


# ---- the test ----


@contextmanager
def limits() -> Iterator[None]:
    """Fail after some seconds, and where the memory at its highest has grown by too much."""

    def late(*_):
        raise TimeoutError(f"took longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - highest) / unit
    assert grown < MEBIBYTES, f"{grown:.0f} MiB more than before"


def outcome(case: Case, folder: Path, model: Path) -> tuple[str, Any, str]:
    """What happened, what came of it, and all that was said."""
    folder.mkdir()
    with limits():
        try:
            result, warnings = case.attempt(folder, model)
        except UserError as error:
            return "refused", None, str(error)
    return ("warned" if warnings else "works"), result, "\n".join(warnings)


@pytest.fixture(autouse=True, scope="module")
def bombs():
    for build in BOMBS:
        build()


@pytest.mark.slow("builds bombs, and some cases start programs")
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own about odd pickles
@pytest.mark.parametrize("name", CASES)
def test_every_case_ends_as_it_should(tmp_path, tiny_model, name):
    case = CASES[name]
    happened, result, said = outcome(case, tmp_path / "en", tiny_model("sd1"))
    assert happened == case.must, said
    assert [words for words in case.words if words not in said] == [], said
    assert happened == "refused" or case.holds(result), result
    assert not MADE.exists()


TOLD_BY_PARTS = ("picture", "caption", "folder", "model", "LoRA", "prompts", "preset")  # the others choose a language


@pytest.mark.slow("builds bombs")
@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if name.startswith(TOLD_BY_PARTS) and case.must != "works"]
)
def test_every_case_is_told_in_chinese_too(tmp_path, tiny_model, name):
    set_language("zh")
    _, _, said = outcome(CASES[name], tmp_path / "zh", tiny_model("sd1"))
    for line in said.splitlines():
        assert any(unicodedata.name(letter, "").startswith("CJK") for letter in line), line
