"""tools/prepare_images.py from a messy folder to a clean set, and again, and again otherwise."""

import hashlib
import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from library.images import faces, resizing, text_regions
from library.images.region import Region
from library.messages import UserError, set_language
from library.options.checks import ConfigError, check_tool
from library.options.declaration import PROJECT
from library.options.tools import TOOLS
from library.tooling import cleaning

DECLARED = TOOLS["prepare_images.py"]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("prepare_images", PROJECT / "tools" / "prepare_images.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def prepare(tool, tmp_path, monkeypatch, capsys):
    """prepare(option=value, ...) -> what it printed. Nothing is found in images unless a test says so."""
    monkeypatch.setattr(text_regions, "find_text", lambda image: [])
    monkeypatch.setattr(text_regions, "open_reader", lambda: None)
    monkeypatch.setattr(faces, "find_faces", lambda image, model=None, **more: [])
    monkeypatch.setattr("library.images.local_models.find_models", lambda patterns, extra=None: [])

    def prepare(**options):
        values = {"images_dir": str(tmp_path / "raw"), "output_dir": str(tmp_path / "out"), "resolution": 64}
        assert tool.prepare(check_tool(DECLARED, values | options, {})) == 0
        return capsys.readouterr().out

    return prepare


def photo(seed, width=96, height=80):
    """Blobs of many sizes, as photos have: no two alike, and no plain border."""
    rng = np.random.default_rng(seed)
    layers = 0
    for cells, strength in ((3, 100), (9, 50), (30, 25)):
        grid = rng.uniform(-strength, strength, (cells, cells, 3)).astype(np.float32)
        layers = layers + np.stack(
            [np.asarray(Image.fromarray(grid[..., c]).resize((width, height), 3)) for c in range(3)], -1
        )
    return Image.fromarray((128 + layers).clip(0, 255).astype(np.uint8))


def save(image, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def files(folder):
    """Everything a person sees in a folder, with "/" between folders."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts)}


def states(folder):
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def raw(tmp_path):
    """A few images of every kind of trouble."""
    folder = tmp_path / "raw"
    save(photo(1), folder / "角色 1.png")
    (folder / "角色 1.txt").write_bytes("红发, 微笑".encode("gbk"))
    save(photo(1).resize((72, 60)), folder / "again" / "copy.jpg", quality=80)
    (folder / "again" / "same.png").write_bytes((folder / "角色 1.png").read_bytes())
    exif = Image.Exif()
    exif[0x0112] = 6
    save(photo(2).transpose(Image.Transpose.ROTATE_90), folder / "sub" / "turned.JPG", exif=exif, quality=95)
    framed = Image.new("RGB", (116, 120), "black")
    framed.paste(photo(3), (10, 20))
    save(framed, folder / "sub" / "film.png")
    cut_out = photo(4).convert("RGBA")
    alpha = Image.new("L", cut_out.size, 0)
    ImageDraw.Draw(alpha).ellipse((10, 5, 85, 78), fill=255)
    cut_out.putalpha(alpha)
    save(cut_out, folder / "cut.png")
    save(photo(5, 400, 300), folder / "large.bmp")
    save(photo(6, 40, 30), folder / "small.gif")
    save(photo(7), folder / "photo.jpg_large", format="JPEG")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 nothing")
    (folder / "notes.md").write_text("x")
    return folder


# ---- once ----


def test_a_messy_folder_becomes_a_clean_set(raw, prepare, tmp_path):
    before, out = states(raw), tmp_path / "out"
    said = prepare()
    assert states(raw) == before
    assert files(out) == {
        "角色 1.png", "角色 1.txt", "sub/turned.png", "sub/film.png", "cut.png", "masks/cut.png", "large.png",
        "small.png", "photo.png", "prepared.jsonl", "summary.html",
    }  # fmt: skip
    assert (out / "角色 1.txt").read_text(encoding="utf-8") == "红发, 微笑"
    for file in files(out) - {"角色 1.txt", "prepared.jsonl", "summary.html"}:
        with Image.open(out / file) as image:
            assert (image.format, image.mode) == ("PNG", "L" if "masks/" in file else "RGB"), file
            assert 64 * 64 <= image.width * image.height <= 96 * 96, file
    assert np.array_equal(Image.open(out / "角色 1.png"), photo(1))  # within the range: its pixels as they were
    assert np.abs(np.asarray(Image.open(out / "sub" / "turned.png")).astype(int) - photo(2)).mean() < 4
    assert np.array_equal(Image.open(out / "sub" / "film.png"), photo(3))
    assert "10 raw images: 1 skipped, 2 left out as duplicates, 7 used" in said
    assert "could not be used: 1 (broken.jpg)" in said
    assert "enlarged by Lanczos, which adds no detail: 1 (small.gif)" in said
    page = (out / "summary.html").read_text(encoding="utf-8")
    for words in ("again/same.png", "again/copy.jpg", "the same file", "left out", "broken.jpg", ".md (1)"):
        assert words in page


def test_a_cropped_and_a_watermarked_copy_of_a_photo_are_left_out_and_asked_about_once(prepare, tmp_path, monkeypatch):
    from library.images import duplicates
    from tests.images.test_cleaning import photographed, with_text

    folder = tmp_path / "raw"
    image = photographed(1, blur=0.5)
    save(image.crop((40, 0, 480, 360)), folder / "cropped.png")
    save(image, folder / "whole.png")
    save(with_text(image, (250, 320)), folder / "z marked.png")
    save(photographed(2, blur=0.5), folder / "other.png")
    assert "4 raw images: 0 skipped, 2 left out as duplicates, 2 used" in prepare()
    made = {name for name in files(tmp_path / "out") if name.endswith(".png")}
    assert "other.png" in made
    assert made & {"whole.png", "z marked.png"}  # which of the two bears the text is not known
    assert "cropped.png" not in made
    monkeypatch.setattr(duplicates, "details", None)  # what was found out is remembered
    assert "2 left out as duplicates" in prepare()


def test_a_soft_photo_is_not_taken_for_an_enlarged_one(prepare, tmp_path):
    """The larger of two copies stays, unless it was made from the smaller."""
    from tests.images.test_cleaning import photographed

    soft = photographed(1, blur=0.7)
    small = photographed(2, blur=0.7).resize((240, 180), Image.Resampling.LANCZOS)
    save(soft, tmp_path / "raw/genuine.png")
    save(soft.resize((240, 180), Image.Resampling.LANCZOS), tmp_path / "raw/shrunk.png")
    save(small, tmp_path / "raw/small.png")
    save(small.resize((480, 360), Image.Resampling.BICUBIC), tmp_path / "raw/enlarged.png")
    prepare()
    assert {name for name in files(tmp_path / "out") if name.endswith(".png")} == {"genuine.png", "small.png"}


def test_what_is_transparent_becomes_the_colour_and_black_in_the_mask(raw, prepare, tmp_path):
    prepare(background_colour="#00ff00", trim_borders=False)
    clean = np.asarray(Image.open(tmp_path / "out" / "cut.png"))
    mask = np.asarray(Image.open(tmp_path / "out" / "masks" / "cut.png"))
    assert clean.shape[:2] == mask.shape == (80, 96)
    assert np.array_equal(mask, np.asarray(Image.open(raw / "cut.png").getchannel("A")))
    assert (clean[mask == 0] == (0, 255, 0)).all()
    assert np.array_equal(clean[mask == 255], np.asarray(photo(4))[mask == 255])


def test_transparent_backgrounds_stay_so_and_hide_nothing(raw, prepare, tmp_path, monkeypatch):
    def subject(image, model=None):
        alpha = np.zeros(image.shape[:2], np.uint8)
        alpha[20:60, 30:70] = 255
        return alpha

    monkeypatch.setattr(cleaning.background, "subject", subject)
    said = prepare(background="transparent", trim_borders=False)
    clean = np.asarray(Image.open(tmp_path / "out" / "角色 1.png"))
    assert clean.shape == (80, 96, 4)
    assert np.array_equal(clean[..., 3], subject(clean))
    assert (clean[clean[..., 3] == 0] == (255, 255, 255, 0)).all()
    assert np.array_equal(clean[..., 3], np.asarray(Image.open(tmp_path / "out" / "masks" / "角色 1.png")))
    assert "GrabCut" in said


def test_text_is_shown_and_erased_only_on_request(raw, prepare, tmp_path, monkeypatch):
    monkeypatch.setattr(text_regions, "find_text", lambda image: [Region(8, 60, 40, 9, 0.9, "text")])
    said = prepare()
    assert "may contain text or a watermark: 7 (" in said
    assert 'class="box"' in (tmp_path / "out" / "summary.html").read_text(encoding="utf-8")
    assert np.array_equal(Image.open(tmp_path / "out" / "角色 1.png"), photo(1))
    assert not (tmp_path / "out" / "masks" / "角色 1.png").exists()
    prepare(text="erase")
    clean, mask = (np.asarray(Image.open(tmp_path / "out" / name)) for name in ("角色 1.png", "masks/角色 1.png"))
    expected = np.full((80, 96), 255, np.uint8)
    expected[60:69, 8:48] = 0
    assert np.array_equal(mask, expected)
    assert (clean[mask == 0] == 255).all()
    assert np.array_equal(clean[mask == 255], np.asarray(photo(1))[mask == 255])


def test_text_over_a_face_or_much_of_the_image_is_erased_only_with_a_persons_yes(raw, prepare, tmp_path, monkeypatch):
    boxes = [Region(8, 60, 20, 9, 0.9, "text"), Region(32, 24, 10, 5, 0.8, "text"), Region(0, 0, 96, 8, 0.7, "text")]
    monkeypatch.setattr(text_regions, "find_text", lambda image: boxes)
    monkeypatch.setattr(
        faces,
        "find_faces",
        lambda image, model=None, unsure=False: [Region(30, 20, 20, 20, 0.55, "face")] if unsure else [],
    )
    said = prepare(text="erase", trim_borders=False)
    mask = np.asarray(Image.open(tmp_path / "out" / "masks" / "角色 1.png"))
    expected = np.full((80, 96), 255, np.uint8)
    expected[60:69, 8:28] = 0
    assert np.array_equal(mask, expected)
    assert "not erased without your yes: 7 (" in said
    page = (tmp_path / "out" / "summary.html").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.removeprefix("<pre>").startswith("角色 1.png: ")]
    assert len(lines) == 2
    (tmp_path / "yes.txt").write_text(lines[0].removeprefix("<pre>") + "\n", encoding="utf-8")  # to the face's
    said = prepare(text="erase", trim_borders=False, regions=str(tmp_path / "yes.txt"))
    mask = np.asarray(Image.open(tmp_path / "out" / "masks" / "角色 1.png"))
    expected[24:29, 32:42] = 0
    assert np.array_equal(mask, expected)
    page = (tmp_path / "out" / "summary.html").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.removeprefix("<pre>").startswith("角色 1.png: ")]
    assert len(lines) == 1  # nobody is asked twice


def test_without_a_reader_text_is_not_shown_and_erasing_is_refused(raw, prepare, tmp_path, monkeypatch):
    def missing():
        raise UserError("text cannot be looked for")

    monkeypatch.setattr(text_regions, "open_reader", missing)
    monkeypatch.setattr(text_regions, "find_text", lambda image: pytest.fail("looked"))
    assert "text cannot be looked for" in prepare()
    assert (tmp_path / "out" / "角色 1.png").exists()
    assert "text cannot" not in prepare(text="off", output_dir=str(tmp_path / "other"))
    with pytest.raises(UserError, match="text cannot be looked for"):
        prepare(text="erase")


def test_regions_of_the_users_file_are_those_of_the_upright_untrimmed_image(raw, prepare, tmp_path):
    text = "film.png： 20，50%，30，20\nsub/turned.jpg: 10, 20, 30, 40\n*.gif: 0, 0, 10, 10\n"
    (tmp_path / "区域.txt").write_bytes(text.encode("gbk"))
    prepare(regions=str(tmp_path / "区域.txt"))
    film = np.asarray(Image.open(tmp_path / "out" / "sub" / "masks" / "film.png"))
    expected = np.full((80, 96), 255, np.uint8)  # 20 rows and 10 columns of the frame are gone
    expected[40:60, 10:40] = 0
    assert np.array_equal(film, expected)
    turned = np.asarray(Image.open(tmp_path / "out" / "sub" / "masks" / "turned.png"))
    assert (turned[20:60, 10:40] == 0).all()
    assert (turned == 0).sum() == 30 * 40


def test_faces_are_erased_or_cut_out(raw, prepare, tmp_path, monkeypatch):
    monkeypatch.setattr(faces, "find_faces", lambda image, model=None, **more: [Region(30, 20, 20, 20, 0.9, "face")])
    prepare(faces="erase")
    mask = np.asarray(Image.open(tmp_path / "out" / "masks" / "角色 1.png"))
    assert (mask[20:40, 30:50] == 0).all()
    assert (mask == 0).sum() < 2 * 20 * 20
    prepare(faces="cut out", output_dir=str(tmp_path / "faces"), face_margin=0.5)
    made = files(tmp_path / "faces")
    assert {"角色 1_face1.png", "sub/turned_face1.png"} <= made
    assert not {"角色 1.png", "角色 1.txt", "角色 1_face1.txt"} & made
    face = Image.open(tmp_path / "faces" / "角色 1_face1.png")
    expected = photo(1).crop((20, 10, 60, 50)).resize((64, 64), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(face).astype(int) - expected).mean() < 1


def test_a_head_is_erased_with_its_hair(raw, prepare, tmp_path, monkeypatch):
    monkeypatch.setattr(faces, "find_faces", lambda image, model=None, **more: [Region(30, 30, 20, 20, 0.9, "face")])
    prepare(faces="erase head")
    mask = np.asarray(Image.open(tmp_path / "out" / "masks" / "角色 1.png"))
    expected = np.full((80, 96), 255, np.uint8)
    expected[15:52, 20:60] = 0
    assert np.array_equal(mask, expected)


def test_the_face_recipe_makes_a_training_set_and_its_regularization(raw, prepare, tmp_path, monkeypatch):
    monkeypatch.setattr(faces, "find_faces", lambda image, model=None, **more: [Region(9, 9, 15, 15, 0.9, "face")] * 2)
    said = prepare(faces="recipe")
    made = files(tmp_path / "out")
    assert {"train/角色 1_face1.png", "train/角色 1_face2.png", "reg/角色 1.png", "train/sub/film_face1.png"} <= made
    assert "train/small_face1.png" in made
    assert "reg/small.png" not in made  # bodies of poor quality are not wanted
    assert not {file for file in made if file.endswith(".txt")}
    assert np.array_equal(Image.open(tmp_path / "out" / "reg" / "角色 1.png"), photo(1))  # with its face
    train = sum(file.startswith("train/") and "masks" not in file for file in made)
    assert f"{train} cropped faces are the training set" in said


@pytest.mark.parametrize("kind", ["recipe", "cut out"])
def test_what_is_cut_out_as_a_face_still_has_one(raw, prepare, tmp_path, monkeypatch, kind):
    """The face of one behind the subject goes with the background: it was written, as a square of plain colour."""
    monkeypatch.setattr(
        faces, "find_faces", lambda image, model=None, **more: [Region(x, 9, 15, 15, 0.9, "face") for x in (9, 60)]
    )

    def left_half(image, model=None):
        return np.where(np.arange(image.shape[1]) < 48, 255, 0).astype(np.uint8)[None].repeat(len(image), 0)

    monkeypatch.setattr(cleaning.background, "subject", left_half)
    (tmp_path / "r.txt").write_text("photo.jpg_large: 0, 0, 30, 30\n", encoding="utf-8")
    for name in ("large.bmp", "small.gif", "broken.jpg"):
        (raw / name).unlink()
    said = prepare(faces=kind, background="colour", trim_borders=False, regions=str(tmp_path / "r.txt"))
    start = "train/" if kind == "recipe" else ""
    made = {file for file in files(tmp_path / "out") if "_face" in file and "masks" not in file}
    assert made == {f"{start}{name}_face1.png" for name in ("sub/turned", "sub/film", "角色 1")}
    assert "a face was erased with the background or by a region, and is not cut out: 5 (" in said
    assert "no face found: 2 (cut.png, photo.jpg_large)" in said


def test_a_subject_without_its_face_is_none(raw, prepare, tmp_path, monkeypatch):
    monkeypatch.setattr(faces, "find_faces", lambda image, model=None, **more: [Region(9, 9, 15, 15, 0.9, "face")])

    def below(image, model=None):
        mask = np.full(image.shape[:2], 255, np.uint8)
        mask[:25] = 0
        return mask

    monkeypatch.setattr(cleaning.background, "subject", below)
    said = prepare(faces="recipe", background="colour")
    assert "or one without its face; background kept: 7 (" in said
    face = np.asarray(Image.open(tmp_path / "out" / "train" / "角色 1_face1.png"))
    assert (face == 255).all(axis=2).mean() < 0.1


@pytest.mark.parametrize("kind", ["recipe", "cut out"])
def test_a_face_recipe_without_a_face_is_red(raw, prepare, tmp_path, kind):
    said = prepare(faces=kind)
    assert "no face found in any image, so there is nothing to learn: 7 (" in said
    assert "drawn faces need" in said
    page = (tmp_path / "out" / "summary.html").read_text(encoding="utf-8")
    assert "no face found in any image" in page[page.index("red") :]


def test_whoever_has_a_face_model_is_not_told_to_get_one(raw, prepare, tmp_path, monkeypatch):
    monkeypatch.setattr(cleaning.Models, "names", lambda self: {"face": "yolo.onnx", "background": "", "enlarger": ""})
    monkeypatch.setattr(
        faces, "find_faces", lambda image, model=None, **more: [Region(9, 9, 15, 15, 0.9, "face")][image[0, 0, 0] % 2 :]
    )
    said = prepare(faces="recipe")
    assert "no face found: " in said
    assert "drawn faces need" not in said


def test_backgrounds_removed_by_a_guess_are_shown_first(raw, prepare, tmp_path, monkeypatch):
    """角色 1.png is cut out by a guess, nearly whole; film.png loses its frame, which is more."""

    def subject(image, model=None):
        alpha = np.full(image.shape[:2], 255, np.uint8)
        if np.array_equal(image, photo(1)):
            alpha[:2] = 0
        return alpha

    monkeypatch.setattr(cleaning.background, "subject", subject)
    monkeypatch.setattr(cleaning.background, "is_doubtful", lambda mask: bool(mask.all()))
    for background, first in (("keep", "film.png"), ("transparent", "角色 1.png")):
        prepare(background=background)
        page = (tmp_path / "out" / "summary.html").read_text(encoding="utf-8")
        pairs = page[page.index("Before and after") :]
        places = {
            name: pairs.index(f">{name}<" if f">{name}<" in pairs else name) for name in ("sub/film.png", "角色 1.png")
        }
        assert min(places, key=places.get).endswith(first)


def test_two_raw_images_of_one_name_do_not_collide(prepare, tmp_path):
    for seed, name in enumerate(("a.png", "a.jpg", "a_jpg.png", "a (1).png")):
        save(photo(seed), tmp_path / "raw" / name)
    prepare()
    save(photo(9), tmp_path / "raw" / "A.webp")  # the same name to Windows
    prepare()
    images = {file for file in files(tmp_path / "out") if file.endswith(".png")}
    assert len(images) == 5
    assert len({file.lower() for file in images}) == 5
    shown = {hashlib.sha256((tmp_path / "out" / file).read_bytes()).digest() for file in images}
    assert len(shown) == 5


def test_the_small_are_left_where_nothing_shall_be_enlarged(raw, prepare, tmp_path):
    said = prepare(upscale="off")
    assert Image.open(tmp_path / "out" / "small.png").size == (40, 30)
    assert "below 64 x 64 pixels, not enlarged: 1 (small.png)" in said


def test_a_missing_spandrel_is_told_and_lanczos_helps(raw, prepare, tmp_path, monkeypatch):
    model = tmp_path / "RealESRGAN_x4plus.pth"
    model.write_bytes(b"model")
    monkeypatch.setitem(__import__("sys").modules, "spandrel", None)
    monkeypatch.setattr("library.images.local_models.find_models", lambda patterns, extra=None: [model])
    said = prepare()
    assert "pip install spandrel" in said
    assert "enlarged by Lanczos" in said
    with pytest.raises(UserError, match="pip install spandrel"):
        prepare(upscale=str(model))


def test_a_model_that_is_there_enlarges_the_small(raw, prepare, tmp_path, monkeypatch):
    def twice(image):
        return np.repeat(np.repeat(image, 2, axis=0), 2, axis=1) // 2  # darker: so it can be told from Lanczos

    model = tmp_path / "2x_any.pth"
    model.write_bytes(b"model")
    monkeypatch.setattr(resizing, "open_model", lambda path, device: resizing.Enlarger(path.name, 2, twice))
    said = prepare(upscale=str(model))
    assert "enlarging: 2x_any.pth on cpu" in said
    assert "Lanczos" not in said
    mean = np.asarray(photo(6, 40, 30)).mean()
    assert np.asarray(Image.open(tmp_path / "out" / "small.png")).mean() == pytest.approx(mean / 2, rel=0.05)
    assert np.array_equal(Image.open(tmp_path / "out" / "角色 1.png"), photo(1))


def video(path, scenes, seconds=2.0, rate=10):
    """A film that stays at each image for so long; a scene is blurred by motion but for one frame of five."""
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, scenes[0].size)
    for scene in scenes:
        for number in range(round(seconds * rate)):
            image = scene if number % 5 == 1 else scene.filter(ImageFilter.GaussianBlur(4))
            writer.write(np.ascontiguousarray(np.asarray(image)[..., ::-1]))
    writer.release()


def sharp(seed):
    """A drawing with hard edges."""
    rng, image = np.random.default_rng(seed), photo(seed, 320, 240)
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = (int(value) for value in rng.integers(0, 200, 2))
        pen.rectangle((x, y, x + 60, y + 40), fill=tuple(int(value) for value in rng.integers(0, 255, 3)))
    return image


def test_a_video_gives_sharp_frames_spread_over_it_and_none_twice(prepare, tmp_path):
    video(tmp_path / "raw" / "试穿.mp4", [sharp(1), sharp(2), sharp(1), sharp(3)])
    before = states(tmp_path / "raw")
    said = prepare(frames_per_video=8, resolution=256)
    assert "试穿.mp4: 3 frames of this video taken" in said
    made = sorted(file for file in files(tmp_path / "out") if file.endswith(".png"))
    assert len(made) == 3
    for file, expected in zip(made, (sharp(1), sharp(2), sharp(3)), strict=True):
        frame = Image.open(tmp_path / "out" / file)
        assert np.abs(np.asarray(frame).astype(int) - np.asarray(expected.resize(frame.size))).mean() < 12, file
    assert "3 used" in said
    assert "blurred" not in said
    assert states(tmp_path / "raw") == before
    said = prepare(frames_per_video=8, resolution=256)
    assert "nothing to do: 3 clean images are up to date" in said


def test_videos_are_left_out_on_request_and_those_of_moving_photos_always(prepare, tmp_path):
    save(photo(1), tmp_path / "raw" / "IMG_1.jpg")
    video(tmp_path / "raw" / "IMG_1.mp4", [sharp(1)], seconds=0.5)
    video(tmp_path / "raw" / "a.mp4", [sharp(2)], seconds=0.5)
    (tmp_path / "raw" / "b.mp4").write_bytes(b"nothing")
    said = prepare(frames_per_video=0)
    assert "2 videos not used, because frames_per_video = 0" in said
    assert "moving part of a phone" in (tmp_path / "out" / "summary.html").read_text(encoding="utf-8")
    said = prepare(frames_per_video=1)
    assert "a.mp4: 1 frame of this video taken" in said
    assert "could not be used: 1 (b.mp4)" in said
    assert {file for file in files(tmp_path / "out") if file.endswith(".png")} == {"IMG_1.png", "a_mp4_000001.png"}


def test_a_folder_of_an_unreadable_video_is_told(prepare, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "b.mp4").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"b\.mp4: no video that OpenCV can read"):
        prepare()


# ---- again ----


def test_a_second_run_makes_nothing_anew(raw, prepare, tmp_path, monkeypatch):
    prepare()
    before = states(tmp_path / "out")

    def never(*given, **more):
        raise AssertionError("made again")

    monkeypatch.setattr(cleaning.Cleaner, "clean", never)
    said = prepare()
    assert "nothing to do: 7 clean images are up to date" in said
    after = states(tmp_path / "out")
    changed = {path for path in before | after if before.get(path) != after.get(path)}
    assert {Path(path).name for path in changed} <= {"summary.html"}


def test_only_what_is_new_is_made_and_what_was_deleted_stays_away(raw, prepare, tmp_path):
    prepare()
    (tmp_path / "out" / "large.png").unlink()
    (tmp_path / "out" / "角色 1.txt").write_text("mytag, tagged since", encoding="utf-8")
    before = states(tmp_path / "out")
    save(photo(20), raw / "new.png")
    said = prepare()
    assert "1 processed now, 7 unchanged" in said
    assert "deleted or moved since an earlier run, and not made again: 1 (large.png)" in said
    assert not (tmp_path / "out" / "large.png").exists()
    assert (tmp_path / "out" / "角色 1.txt").read_text(encoding="utf-8") == "mytag, tagged since"
    assert {path: state for path, state in states(tmp_path / "out").items() if path.endswith("1.png")} == {
        path: state for path, state in before.items() if path.endswith("1.png")
    }
    prepare(overwrite=True)
    assert (tmp_path / "out" / "large.png").exists()
    assert (tmp_path / "out" / "角色 1.txt").read_text(encoding="utf-8") == "mytag, tagged since"


def test_other_settings_make_anew_and_leave_nothing_of_the_earlier(raw, prepare, tmp_path, monkeypatch):
    monkeypatch.setattr(text_regions, "find_text", lambda image: [Region(8, 60, 40, 9, 0.9, "text")])
    prepare(text="erase")
    assert (tmp_path / "out" / "masks" / "角色 1.png").exists()
    prepare(text="off")
    assert not (tmp_path / "out" / "masks" / "角色 1.png").exists()
    assert (tmp_path / "out" / "masks" / "cut.png").exists()
    assert np.array_equal(Image.open(tmp_path / "out" / "角色 1.png"), photo(1))


def test_no_file_of_the_users_is_overwritten(raw, prepare, tmp_path):
    out = tmp_path / "out"
    save(photo(50), out / "large.png")
    save(photo(51), out / "masks" / "角色 1.png")
    before = states(out)
    with pytest.raises(UserError) as caught:
        prepare()
    assert caught.value.problems == [str(out / "large.png"), str(out / "masks" / "角色 1.png")]
    assert "overwrite = True" in str(caught.value)
    assert {path: state for path, state in states(out).items() if path in before} == before
    assert not (out / "角色 1.png").exists()  # told before anything is made
    prepare(overwrite=True)
    assert Image.open(out / "large.png").size != photo(50).size


def test_an_image_retouched_by_hand_is_not_overwritten_by_other_settings(raw, prepare, tmp_path):
    prepare()
    save(photo(60), tmp_path / "out" / "large.png")
    prepare()  # nothing is to do
    with pytest.raises(UserError, match=r"large\.png"):
        prepare(denoise=5)
    assert np.array_equal(Image.open(tmp_path / "out" / "large.png"), photo(60))


def test_a_run_that_was_stopped_goes_on(raw, prepare, tmp_path, monkeypatch):
    clean, count = cleaning.Cleaner.clean, []

    def stops(self, image, stem):
        count.append(stem)
        if len(count) == 4:
            raise KeyboardInterrupt
        return clean(self, image, stem)

    with monkeypatch.context() as patch:
        patch.setattr(cleaning.Cleaner, "clean", stops)
        with pytest.raises(KeyboardInterrupt):
            prepare()
    made = states(tmp_path / "out")
    prepare()
    assert len([file for file in files(tmp_path / "out") if file.endswith(".png")]) == 8
    for path, state in made.items():
        if path.endswith(".png"):
            assert state == states(tmp_path / "out")[path]
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_what_is_left_of_images_that_are_gone_is_told_and_left(raw, prepare, tmp_path):
    prepare()
    (raw / "large.bmp").unlink()
    fine = np.random.default_rng(0).integers(-40, 41, (160, 192, 1))  # what an enlarged copy would not have
    better = (np.asarray(photo(1).resize((192, 160))) + fine).clip(0, 255).astype(np.uint8)
    save(Image.fromarray(better), raw / "better.png")
    said = prepare()
    assert "skipped now: 2 (" in said
    assert "large.png" in said
    assert (tmp_path / "out" / "large.png").exists()
    assert (tmp_path / "out" / "better.txt").read_text(
        encoding="utf-8"
    ) == "红发, 微笑"  # the only caption of the group


def test_one_image_that_fails_does_not_end_the_others(raw, prepare, tmp_path, monkeypatch):
    clean = cleaning.Cleaner.clean

    def fails(self, image, stem):
        if stem == "large":
            raise RuntimeError("strange")
        return clean(self, image, stem)

    monkeypatch.setattr(cleaning.Cleaner, "clean", fails)
    said = prepare()
    assert "could not be used: 2 (broken.jpg, large.bmp)" in said
    assert "RuntimeError: strange" in (tmp_path / "out" / "summary.html").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "角色 1.png").exists()


# ---- mistakes ----


def test_contradictions_are_told_all_at_once(tmp_path):
    values = {"images_dir": str(tmp_path), "output_dir": str(tmp_path / "out"), "background_colour": "whit",
              "upscale": "4x.pth", "device": "gpu"}  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        check_tool(DECLARED, values, {"background_colour": "prepare_images.py:30"})
    starts = ["output_dir = ", 'prepare_images.py:30: background_colour = "whit" is not a color',
              'upscale = "4x.pth" is',
              'device = "gpu" is not one of']  # fmt: skip
    assert all(map(str.startswith, caught.value.problems, starts))
    assert len(caught.value.problems) == 4
    for colour in ("#ffffff80", "transparent", ""):
        with pytest.raises(ConfigError, match="background_colour"):
            check_tool(DECLARED, {"images_dir": str(tmp_path), "background_colour": colour}, {})
    with pytest.raises(ConfigError, match="is inside output_dir"):
        check_tool(DECLARED, {"images_dir": str(tmp_path), "output_dir": str(tmp_path.parent)}, {})


def test_a_folder_without_images_is_told(prepare, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="no images in"):
        prepare()
    assert not (tmp_path / "out").exists()
    (tmp_path / "raw" / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.png: the file is empty"):
        prepare()


def test_a_regions_file_with_mistakes_is_told_before_anything_is_made(raw, prepare, tmp_path):
    (tmp_path / "r.txt").write_text("cut.png: 1,2,3\nnothing.png: 1,2,3,4\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        prepare(regions=str(tmp_path / "r.txt"))
    assert [problem[:8] for problem in caught.value.problems] == ["r.txt:1:", "r.txt:2:"]
    assert not (tmp_path / "out").exists()


def test_it_speaks_chinese(raw, prepare, tmp_path):
    set_language("zh")
    try:
        said = prepare()
    finally:
        set_language("en")
    assert "略过 1 张" in said
    assert "去掉重复 2 张" in said
    assert "图片整理结果" in (tmp_path / "out" / "summary.html").read_text(encoding="utf-8")


def test_what_is_packed_is_lossless():
    data = io.BytesIO(cleaning._png(photo(1)))
    assert np.array_equal(Image.open(data), photo(1))
