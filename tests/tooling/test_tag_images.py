"""tools/tag_images.py: every image gets its caption, and no word a person wrote is lost."""

import html
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from library.images import local_models, tagger
from library.messages import Stopped, UserError, set_language
from library.options.declaration import PROJECT
from library.options.tools import TagImages
from library.storage.undo import undo
from tests.conftest import edit_block
from tests.images import small_tagger

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def tool():
    specification = importlib.util.spec_from_file_location("tag_images", PROJECT / "tools" / "tag_images.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def no_other_models(tmp_path, monkeypatch):
    """What lies on the machine of the test is not found."""
    monkeypatch.setattr(local_models, "places", lambda extra=None: [Path(path) for path in extra or ()])


@pytest.fixture
def run(tool, tmp_path, capsys):
    """run(option=value, ...) -> what was printed; the images lie in tmp_path / "set"."""

    def run(**options) -> str:
        values = dict(images_dir=str(tmp_path / "set"), output_dir=str(tmp_path / "page"), device="cpu")
        assert tool.run(TagImages(**(values | options))) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def model(tmp_path) -> str:
    return str(small_tagger.colours(tmp_path / "models" / "wd-vit-tagger-v3").parent)


COLOURS = {"red.png": "red", "teal.jpg": "teal", "深 蓝.webp": "navy", "below/white.bmp": "white"}


@pytest.fixture
def images(tmp_path) -> Path:
    """Four images of one colour without captions."""
    for name, colour in COLOURS.items():
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), colour).save(path)
    return tmp_path / "set"


def caption(image: Path) -> str:
    return image.with_suffix(".txt").read_text(encoding="utf-8")


def expected(image: Path, general: float = 0.35, character: float = 0.85) -> str:
    """An image's caption by plain numpy."""
    pixels = np.full((8, 8, 3), 255.0)
    pixels[1:7] = np.asarray(Image.open(image).convert("RGB"))[0, 0, ::-1]
    found = zip(small_tagger.probabilities(pixels), small_tagger.TAGS, strict=True)
    limits = {0: general, 4: character, 9: 1}
    names = [name for value, (name, category) in sorted(found, reverse=True) if value > limits[category]]
    words = [name if name in ("^_^", "(o)_(o)") else name.replace("_", " ") for name in names]
    return ", ".join(["mytag", *words])


def test_captions_are_what_the_tagger_sees(run, images, model):
    said = run(tagger=model)
    seen = {name: caption(images / name) for name in COLOURS}
    assert seen == {name: expected(images / name) for name in COLOURS}
    assert len(set(seen.values())) > 2  # the test would not notice a tagger that is blind
    assert "4 captions written" in said
    assert 'action = "undo"' in said


def test_the_full_images_of_the_face_recipe_get_no_tags(run, images, model):
    for name, folder in zip(COLOURS, ("train", "train", "reg", "reg"), strict=True):
        (images / folder).mkdir(exist_ok=True)
        (images / name).rename(images / folder / Path(name).name)
    said = run(tagger=model)
    assert {path.parent.name for path in images.rglob("*.txt")} == {"train"}
    assert "2 full images in reg/" in said
    assert "2 captions written" in said


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_the_batch_changes_nothing(run, images, model, batch_size):
    run(tagger=model, batch_size=batch_size, general_threshold=0.2, character_threshold=0.5)
    for name in COLOURS:
        assert caption(images / name) == expected(images / name, 0.2, 0.5)


def test_options_of_writing(run, images, model):
    wide = dict(tagger=model, general_threshold=0, character_threshold=0, trigger_word=None)
    run(**wide, underscores=True, escape_brackets=True, rating_tags=True, exclude_tags=["Long Hair", "signat*, 1GIRL"])
    tags = caption(images / "red.png").split(", ")
    assert sorted(tags[:-1]) == [r"\(o\)_\(o\)", "^_^", r"ganyu_\(genshin_impact\)", "hatsune_miku", "red_theme"]
    assert tags[-1] in ("general", "sensitive")


def test_a_second_run_has_nothing_to_do_and_opens_no_model(run, images, model, monkeypatch):
    run(tagger=model)
    before = {path: path.stat().st_mtime_ns for path in images.rglob("*.txt")}
    monkeypatch.setattr(local_models, "open_onnx", None)
    assert "nothing left to tag" in run(tagger=model)
    for existing in ("add", "replace"):
        assert "no caption needed to change" in run(tagger=model, existing=existing)
    assert {path: path.stat().st_mtime_ns for path in images.rglob("*.txt")} == before


def test_another_threshold_needs_no_second_look(run, images, model, monkeypatch):
    run(tagger=model)
    monkeypatch.setattr(local_models, "open_onnx", None)
    said = run(tagger=model, existing="replace", general_threshold=0.6)
    assert "4 images were already processed by this tagger" in said
    assert caption(images / "red.png") == expected(images / "red.png", 0.6)


GBK = "角色, Long_Hair,".encode("gb18030")


def test_kept_captions_stay_to_the_byte(run, images, model):
    written = {"red.txt": GBK, "teal.txt": b"\xef\xbb\xbfmytag, smile\r\nmore\r\n"}
    for name, data in written.items():
        (images / name).write_bytes(data)
    (images / "深 蓝.txt").write_bytes(b" \n")  # holds nothing
    said = run(tagger=model)
    assert "2 with tags already (kept)" in said
    assert "1 image keeps tags without the trigger word: red.png." in said
    assert {name: (images / name).read_bytes() for name in written} == written
    assert caption(images / "深 蓝.webp") == expected(images / "深 蓝.webp")


def test_kept_captions_get_the_trigger_word_and_it_can_be_undone(run, images, model):
    """A photo's own caption file must not lead into "missing in the captions" of the next script."""
    (images / "red.txt").write_bytes(b"smile, Long_Hair\nsecond line\n")
    (images / "teal.txt").write_text("a photo of mytag in the rain", encoding="utf-8")
    said = run(tagger=model)
    assert "`mytag` is put first in 1 caption that had tags without it: red.png" in said
    assert (images / "red.txt").read_text(encoding="utf-8").splitlines()[0] == "mytag, smile, Long_Hair"
    assert caption(images / "teal.jpg") == "a photo of mytag in the rain"
    assert "is put first" not in run(tagger=model)
    undo(images)


def test_add_adds_what_is_missing_and_replace_replaces_and_both_can_be_undone(run, images, model):
    (images / "red.txt").write_bytes(GBK)
    tags = expected(images / "red.png", 0).split(", ")[1:]
    assert "long hair" in tags
    run(tagger=model, existing="add", general_threshold=0)
    added = [tag for tag in tags if tag != "long hair"]
    assert caption(images / "red.png") == ", ".join(["mytag", "角色", "Long_Hair", *added])
    run(tagger=model, existing="replace", general_threshold=0)
    assert caption(images / "red.png") == ", ".join(["mytag", *tags])
    undo(images)
    undo(images)
    assert (images / "red.txt").read_bytes() == GBK
    assert not list(images.rglob("teal.txt"))


def test_an_addition_that_adds_nothing_leaves_the_encoding_alone(run, images, model):
    data = "mytag, 角色, red theme".encode("gb18030")
    (images / "red.txt").write_bytes(data)
    run(tagger=model, existing="add", general_threshold=1, character_threshold=1)
    assert (images / "red.txt").read_bytes() == data


def test_a_word_within_a_sentence_is_not_put_before_it_again(run, images, model):
    (images / "red.txt").write_text("a photo of MyTag.", encoding="utf-8")
    run(tagger=model, existing="add", general_threshold=1, character_threshold=1)
    assert caption(images / "red.png") == "a photo of MyTag."


def test_a_folders_concept_stands_for_the_trigger_word(run, tmp_path, model):
    for folder in ("10_red cat/close up", "3_狗", "2023 other"):
        (tmp_path / "set" / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "set" / folder / "a.png")
    none = dict(tagger=model, general_threshold=1, character_threshold=1)
    run(**none, trigger_word=None)
    found = {path.parent.name: path.read_text(encoding="utf-8") for path in (tmp_path / "set").rglob("*.txt")}
    assert found == {"close up": "red cat", "3_狗": "狗", "2023 other": ""}
    run(**none, trigger_word="mytag, cat", existing="replace")
    assert caption(tmp_path / "set" / "3_狗" / "a.png") == "mytag, cat"


def test_images_of_one_name_do_not_write_one_caption_twice(run, tmp_path, model):
    (tmp_path / "set").mkdir()
    for name, colour in (("a.jpg", "red"), ("a.png", "blue"), ("b.png", "blue")):
        Image.new("RGB", (40, 30), colour).save(tmp_path / "set" / name)
    said = run(tagger=model)
    assert "1 image shares a caption file with another image" in said
    assert "a.png = a.jpg" in said
    assert caption(tmp_path / "set" / "a.jpg") == expected(tmp_path / "set" / "a.jpg")


def test_a_cut_out_face_gets_a_caption_of_its_own(run, tmp_path, model):
    """Without one it takes that of its whole image, which must not be overwritten."""
    (tmp_path / "set").mkdir()
    for name in ("a.png", "a_0_0_8_8.png"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / "set" / name)
    (tmp_path / "set" / "a.txt").write_text("mytag, smile")
    assert "note:" not in run(tagger=model, general_threshold=1, character_threshold=1)
    assert [path.name for path in (tmp_path / "set").glob("*.txt")] == ["a.txt"]
    run(tagger=model, general_threshold=1, character_threshold=1, existing="replace")
    assert caption(tmp_path / "set" / "a_0_0_8_8.png") == "mytag"


def test_images_are_seen_upright_and_transparency_is_white(run, tmp_path, monkeypatch):
    """By a model that hands its input through: what it saw is in the record."""
    (tmp_path / "set").mkdir()
    upright = Image.fromarray(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "set" / "turned.png", exif=exif)
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    clear.putpixel((2, 1), (10, 20, 30, 255))
    clear.save(tmp_path / "set" / "clear.png")
    path = small_tagger.pixels(tmp_path / "pixels")
    run(tagger=str(path), general_threshold=0)
    table = tagger.read_table(tagger.table_of(path))
    with tagger.Sightings(tmp_path / "set", table, f"pixels {path.stat().st_size}") as sightings:
        for name, image in (("turned.png", upright), ("clear.png", None)):
            wanted = np.full((8, 8, 3), 255)
            if image:
                wanted = np.asarray(image)[:, :, ::-1]
            else:
                wanted[1, 2] = (30, 20, 10)
            got = {tag.name: tag.probability for tag in sightings.get(tmp_path / "set" / name, 0)}
            values = [got.get(f"pixel {number}", 0) * 255 for number in range(192)]
            np.testing.assert_allclose(values, wanted.ravel(), atol=0.05)


BROKEN = {"empty.png": b"", "page.jpg": b"<html>", "half.jpg": None}


def test_broken_images_are_named_and_the_others_tagged(run, images, model, monkeypatch, tmp_path):
    whole = (images / "teal.jpg").read_bytes()
    for name, data in BROKEN.items():
        (images / name).write_bytes(whole[: len(whole) // 2] if data is None else data)
    said = run(tagger=model)
    assert "4 captions written" in said
    assert "3 images skipped" in said
    for name in BROKEN:
        assert f"  {name}: " in said
        assert name in (tmp_path / "page" / "tagged.html").read_text(encoding="utf-8")
        assert not (images / name).with_suffix(".txt").exists()
    monkeypatch.setattr(local_models, "open_onnx", None)  # for broken images alone no model is opened
    assert "no caption needed to change" in run(tagger=model)


# ---- without a tagger ----


def test_without_a_tagger_folders_and_facts_are_written_and_the_cure_is_told(run, images):
    said = run()
    assert caption(images / "red.png") == "mytag, landscape format, red background"
    assert caption(images / "below" / "white.bmp") == (
        "mytag, below, landscape format, white background, greyscale, monochrome"
    )
    assert "Put model.onnx and selected_tags.csv of SmilingWolf/wd-swinv2-tagger-v3 into models/" in said


def test_a_person_who_wants_no_tagger_is_told_of_none(run, images):
    assert "SmilingWolf" not in run(tagger=None, picture_facts=False, exclude_tags=["below"])
    assert caption(images / "red.png") == caption(images / "below" / "white.bmp") == "mytag"


def test_facts_are_written_with_underscores_where_tags_are(run, images):
    run(tagger=None, underscores=True, trigger_word=None)
    assert caption(images / "red.png") == "landscape_format, red_background"


# ---- which tagger ----


def test_auto_takes_the_best_known_of_several(run, images, tmp_path, model):
    small_tagger.colours(tmp_path / "models", name="wd-v1-4-moat-tagger-v2.onnx")
    small_tagger.colours(tmp_path / "models" / "models--SmilingWolf--wd-swinv2-tagger-v3" / "snapshots" / "0")
    said = run(models_dirs=[str(tmp_path / "models")])
    assert "tagger SmilingWolf/wd-swinv2-tagger-v3 (" in said
    assert " on the CPU: 10 tags" in said


@pytest.mark.parametrize("name", ["SmilingWolf/wd-vit-tagger-v3", "wd-vit-tagger-v3"])
def test_a_hub_name_is_found_on_this_machine(run, images, tmp_path, model, name):
    small_tagger.colours(tmp_path / "models" / "wd-eva02-large-tagger-v3")
    assert "tagger wd-vit-tagger-v3 (" in run(tagger=name, models_dirs=[str(tmp_path / "models")])


def test_taggers_that_are_not_there_are_told_with_where_to_put_them(run, images, tmp_path, model):
    with pytest.raises(UserError) as caught:
        run(tagger="SmilingWolf/wd-eva02-large-tagger-v3", models_dirs=[str(tmp_path / "models")])
    told = str(caught.value)
    assert told.startswith('tagger = "SmilingWolf/wd-eva02-large-tagger-v3": not on this machine')
    assert "of SmilingWolf/wd-eva02-large-tagger-v3 into models/wd-eva02-large-tagger-v3/" in told
    assert told.endswith("Available here: wd-vit-tagger-v3")
    with pytest.raises(UserError, match="there is no such file or folder, and it is not a hub name"):
        run(tagger="D:/models/model.onnx")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match=r"there is no \.onnx file in it"):
        run(tagger=str(tmp_path / "nothing"))
    (Path(model) / "selected_tags.csv").unlink()
    with pytest.raises(UserError, match=r"there is no selected_tags\.csv beside model\.onnx"):
        run(tagger=model)
    (Path(model) / "selected_tags.csv").touch()
    (Path(model) / "preprocess.json").touch()
    with pytest.raises(UserError, match="only WD-style taggers are supported"):
        run(tagger=model)


def test_without_onnxruntime_it_is_said_what_to_install_and_how_to_go_on(run, images, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError) as caught:
        run(tagger=model)
    assert "needs onnxruntime: pip install onnxruntime" in caught.value.problems[0]
    assert caught.value.problems[1:] == ["to continue without a tagger: tagger = None"]
    assert not list(images.rglob("*.txt"))


# ---- what interrupts ----


def test_an_interruption_keeps_what_is_done_and_the_next_run_goes_on(tool, run, images, model, monkeypatch, capsys):
    whole = tagger.Tagger.probabilities
    calls = []

    def interrupted(self, prepared):
        calls.append(len(prepared))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, prepared)

    monkeypatch.setattr(tagger.Tagger, "probabilities", interrupted)
    with pytest.raises(Stopped):
        run(tagger=model, batch_size=1)
    said = capsys.readouterr().out
    assert "stopped: 2 captions written and kept" in said
    page = Path(said.split("summary: ")[1].strip()).read_text(encoding="utf-8")
    assert "Tags by wd-vit-tagger-v3." in page
    assert "no tagger was found" not in page
    assert len(list(images.rglob("*.txt"))) == 2
    assert "2 captions written" in run(tagger=model, batch_size=1)
    assert calls == [1] * 5  # none was looked at twice
    for name in COLOURS:
        assert caption(images / name) == expected(images / name)


def test_a_tagger_that_fails_in_the_middle_loses_nothing(run, images, model, monkeypatch):
    whole = tagger.Tagger.probabilities
    left = [1]

    def failing(self, prepared):
        if not left:
            raise UserError("out of memory")
        left.pop()
        return whole(self, prepared)

    monkeypatch.setattr(tagger.Tagger, "probabilities", failing)
    with pytest.raises(UserError) as caught:
        run(tagger=model, batch_size=2)
    assert caught.value.problems == [
        "out of memory",
        "2 captions were written before that and kept; run it again to continue",
    ]
    assert len(list(images.rglob("*.txt"))) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_ends_the_script_without_a_traceback(tmp_path):
    """As a person does it: the block edited, the script started, and Ctrl-C when the first captions are there."""
    home = tmp_path / "project"
    (home / "tools").mkdir(parents=True)
    (home / "library").symlink_to(PROJECT / "library")
    script = home / "tools" / "tag_images.py"
    script.write_text((PROJECT / "tools" / "tag_images.py").read_text(encoding="utf-8"), encoding="utf-8")
    images = tmp_path / "照片"
    images.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)).save(images / "0.png")
    for number in range(1, 2000):
        os.link(images / "0.png", images / f"{number}.png")
    edit_block(
        script,
        images_dir=str(images),
        output_dir=str(tmp_path / "page"),
        tagger=None,
        language="zh",
        trigger_word="词",
    )
    environment = os.environ | {"PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )
    deadline = time.monotonic() + 60
    while not any(images.glob("*.txt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    written = list(images.glob("*.txt"))
    assert (process.returncode, errors) == (0, "")
    counts = [len(written), len(written) - 1]  # Ctrl-C may come between a file's new name and its count
    assert any(f"已停止：已写好 {count:,} 个标注文件" in said for count in counts)
    assert 0 < len(written) < 2000
    assert all(path.read_text(encoding="utf-8").startswith("词, square format") for path in written)
    assert not list(images.glob(".*.tmp"))


# ---- what is shown ----


def test_the_page_tells_what_was_done(run, images, model, tmp_path):
    (images / "red.txt").write_text("<b>smile</b>")
    said = run(tagger=model)
    path = tmp_path / "page" / "tagged.html"
    assert f"summary: {path}" in said
    page = path.read_text(encoding="utf-8")
    for text in (
        "&lt;b&gt;smile&lt;/b&gt;",
        "深 蓝.webp",
        "Tags by wd-vit-tagger-v3 on the CPU. 1 image already had tags",
    ):
        assert text in page
    assert page.count("<img") >= 3
    assert f'images_dir = "{images.as_posix()}"' in html.unescape(page)
    assert "Where the tagger is unsure" in page


def test_the_page_is_chinese_for_the_chinese(run, images, model, tmp_path):
    set_language("zh")
    run(tagger=model)
    page = (tmp_path / "page" / "tagged.html").read_text(encoding="utf-8")
    for text in ("set 的标签", "平均每张标签数", "接下来", "标签来自 wd-vit-tagger-v3（CPU）。"):
        assert text in page


def test_the_record_is_one_line_for_each_image(run, images, model):
    run(tagger=model)
    lines = (images / tagger.Sightings.FILE).read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(line)["picture"] for line in lines) == sorted(COLOURS)


def test_an_empty_folder_is_told(run, tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match="contains no images"):
        run()
