"""Folders as users really have them: what is read, what is skipped, and what the user is told."""

import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from library import messages
from library.contracts import Sample
from library.data import decoding, file_index, shards
from library.data.folders import offered_name
from library.data.samples import balance, find_samples
from library.messages import UserError


@pytest.fixture(autouse=True)
def _english():
    messages.set_language("en")
    yield
    messages.set_language("en")


def image(path, size=(12, 8), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path, **options)
    return path


def told(found):
    return "\n".join(found.warnings)


def test_several_folders_repeats_and_captions_in_sorted_order(tmp_path):
    for name in ("2_b/2.png", "2_b/1.JPG", "10_my tag/x.WebP", "3_/y.bmp", "10_my tag/w.jpeg"):
        image(tmp_path / "train" / name)
    (tmp_path / "train/2_b/1.txt").write_text("b, one")
    (tmp_path / "train/3_/y.txt").write_text("three")
    image(tmp_path / "reg/5_my tag/r.png")
    found = find_samples(tmp_path / "train", tmp_path / "reg")
    assert [(s.folder, s.image_path.name, s.repeats, s.caption) for s in found.train] == [
        ("10_my tag", "w.jpeg", 10, "my tag"),
        ("10_my tag", "x.WebP", 10, "my tag"),
        ("2_b", "1.JPG", 2, "b, one"),
        ("2_b", "2.png", 2, "b"),
        ("3_", "y.bmp", 3, "three"),
    ]
    assert [(s.caption, s.is_regularization, s.caption_path) for s in found.regularization] == [("my tag", True, None)]
    assert [(f.name, f.image_count, f.caption_count) for f in found.folders] == [
        ("10_my tag", 2, 0), ("2_b", 2, 1), ("3_", 1, 1), ("5_my tag", 1, 0)]  # fmt: skip
    assert found.warnings == [
        f'{tmp_path / "train/2_b"}: 1 of 2 images without a caption file; the caption is "b": 2.png'
    ]


def test_images_with_sizes_of_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image(tmp_path / "1_a/phone.jpg", (40, 30), exif=exif)
    (sample,) = find_samples(tmp_path).train
    assert (sample.width, sample.height) == (30, 40)


def test_mixed_cases_and_unicode_forms_belong_together(tmp_path):
    """macOS writes names decomposed, Windows ignores cases: the same folder must mean the same on Linux."""
    image(tmp_path / "1_a" / unicodedata.normalize("NFD", "Käse.PNG"))
    (tmp_path / "1_a" / unicodedata.normalize("NFC", "käse.TXT")).write_text("cheese")
    assert find_samples(tmp_path).train[0].caption == "cheese"


def test_cut_out_faces_take_the_caption_of_their_image(tmp_path):
    image(tmp_path / "1_a/my_wife_10_20_30_40.png")
    (tmp_path / "1_a/my_wife.txt").write_text("smile")
    assert find_samples(tmp_path).train[0].caption == "smile"


def test_chinese_users_files(tmp_path):
    folder = tmp_path / "训练集" / "6_我的衣服"
    for name, text in (("正面", "连衣裙, 红色".encode("gbk")), ("背面", "连衣裙".encode("utf-16"))):
        image(folder / f"{name}.png")
        (folder / f"{name}.txt").write_bytes(text)
    image(folder / "侧面.png")
    (folder / "侧面.txt").write_text("裙子，鞋", encoding="utf-8-sig")
    found = find_samples(tmp_path / "训练集")
    assert {s.image_path.stem: s.caption for s in found.train} == {
        "正面": "连衣裙, 红色", "背面": "连衣裙", "侧面": "裙子，鞋"}  # fmt: skip
    assert '1 caption is not UTF-8 and read as GB18030 (GBK), e.g. 正面.txt: "连衣裙, 红色"' in told(found)
    assert "Chinese commas, which don't separate tags. Replace ， with ,: 侧面.txt" in told(found)
    messages.set_language("zh")
    assert "个标注文件不是 UTF-8，按 GB18030 (GBK) 读取，如 正面.txt：“连衣裙, 红色”" in told(
        find_samples(tmp_path / "训练集")
    )


def test_an_empty_caption_file_is_an_empty_caption(tmp_path):
    image(tmp_path / "1_word/a.png")
    (tmp_path / "1_word/a.txt").write_bytes(b"")
    found = find_samples(tmp_path)
    assert found.train[0].caption == ""
    assert found.train[0].caption_path
    assert "1 caption file is empty: trained without a caption: a.txt" in told(found)


def test_captions_with_another_ending_are_told_with_the_option_to_set(tmp_path):
    image(tmp_path / "1_a/x.png")
    (tmp_path / "1_a/x.caption").write_text("smile")
    found = find_samples(tmp_path)
    assert found.train[0].caption == "a"
    assert 'Set caption_extension = ".caption"' in told(found)
    assert find_samples(tmp_path, caption_extension="caption").train[0].caption == "smile"


def test_captions_of_no_image_are_told(tmp_path):
    image(tmp_path / "1_a/x.png")
    (tmp_path / "1_a/x.png.txt").write_text("smile")
    assert "1 caption file has no image: x.png.txt. Rename x.png.txt to x.txt" in told(find_samples(tmp_path))


def test_a_caption_is_not_to_be_renamed_over_another(tmp_path):
    for name in ("x", "y"):
        image(tmp_path / f"1_a/{name}.png")
        (tmp_path / f"1_a/{name}.png.txt").write_text("smile")
    (tmp_path / "1_a/X.TXT").write_text("hat")
    (tmp_path / "1_a/z.png.txt").write_text("of no image at all")
    text = told(find_samples(tmp_path))
    assert "Rename y.png.txt to y.txt" in text
    assert "Rename x.png.txt" not in text
    assert "Compare x.png.txt with x.txt, which exists too and is the one that is read" in text
    assert "to z.txt" not in text


def test_brackets_as_in_prompts_are_told(tmp_path):
    image(tmp_path / "1_a/x.png")
    (tmp_path / "1_a/x.txt").write_text(r"mash \(arknights\)")
    assert r"1 caption has \( and \), as prompts do: trained as ( and )" in told(find_samples(tmp_path))


def test_neither_caption_nor_concept(tmp_path):
    image(tmp_path / "1_/x.png")
    assert "neither a caption file nor a concept" in told(find_samples(tmp_path))


def test_a_caption_that_is_no_text_stops_the_run_by_name(tmp_path):
    image(tmp_path / "1_a/x.png")
    (tmp_path / "1_a/x.txt").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0")
    with pytest.raises(UserError, match=r"x\.txt: neither UTF-8.* Save it as UTF-8"):
        find_samples(tmp_path)


def test_reg_captions_off_gives_the_folders_text(tmp_path):
    image(tmp_path / "train/1_a/x.png")
    image(tmp_path / "reg/1_woman/x.png")
    (tmp_path / "reg/1_woman/x.txt").write_text("smile")
    assert find_samples(tmp_path / "train", tmp_path / "reg").regularization[0].caption == "smile"
    found = find_samples(tmp_path / "train", tmp_path / "reg", reg_captions=False)
    assert (found.regularization[0].caption, found.reg_captions) == ("woman", False)


def test_broken_images_are_skipped_by_name_and_the_rest_is_used(tmp_path):
    folder = tmp_path / "1_a"
    image(folder / "good.png")
    whole = image(folder / "cut.jpg", (400, 300), quality=95).read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    png = image(folder / "cut.png", (90, 90)).read_bytes()
    (folder / "cut.png").write_bytes(png[:-40])
    (folder / "empty.png").write_bytes(b"")
    (folder / "page.jpg").write_text("<html>404</html>")
    (folder / "cut.txt").write_text("its caption")
    found = find_samples(tmp_path)
    assert [s.image_path.name for s in found.train] == ["good.png"]
    assert len(found.warnings) == 4
    for name, why in (
        ("cut.jpg", "truncated"),
        ("cut.png", "truncated"),
        ("empty.png", "0 bytes"),
        ("page.jpg", "not a"),
    ):
        assert any(f"{folder / name}: skipped:" in line and why in line for line in found.warnings), name


def test_huge_images_are_named_instead_of_filling_the_memory(tmp_path, monkeypatch):
    image(tmp_path / "1_a/huge.png", (50, 50))
    image(tmp_path / "1_a/large.png", (30, 40))  # beyond Pillow's limit, where it only warns
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    found = find_samples(tmp_path)
    assert [s.image_path.name for s in found.train] == ["large.png"]
    assert "huge.png: skipped: more than 0 million pixels; make it smaller" in told(found)


def test_no_usable_image_is_an_error_that_names_the_broken_ones(tmp_path):
    (tmp_path / "1_a").mkdir()
    (tmp_path / "1_a/x.png").write_bytes(b"")
    with pytest.raises(UserError) as error:
        find_samples(tmp_path)
    assert "no usable image in 1_a" in str(error.value)
    assert "x.png: skipped: the file is empty" in str(error.value)


def test_files_that_are_no_images_of_ours(tmp_path):
    folder = tmp_path / "1_a"
    image(folder / "good.png")
    (folder / "._good.png").write_bytes(b"\0\5\26\7")
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / "dir.png").mkdir()
    (folder / "moving.gif").write_bytes(b"GIF89a")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    image(folder / "more/inner.png")
    (tmp_path / "__MACOSX").mkdir()
    found = find_samples(tmp_path)
    assert [s.image_path.name for s in found.train] == ["good.png"]
    assert len(found.warnings) == 4
    assert "dir.png: is a folder" in told(found)
    assert "1 file in unsupported formats: moving.gif. Convert them to .png" in told(found)
    assert "gone.png: broken link" in told(found)
    assert "more: 1 image is not used, in a folder within a [repeats]_[concept] folder" in told(found)


def test_animations_give_their_first_frame_and_a_note(tmp_path):
    (tmp_path / "1_a").mkdir()
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "1_a/moving.webp", save_all=True, append_images=frames[1:])
    assert "of animated images only the first frame is used: moving.webp" in told(find_samples(tmp_path))


def test_regularization_folder_within_the_training_folder(tmp_path):
    """The layout of the guide: train/10_x beside train/reg/5_x."""
    image(tmp_path / "10_mywife/a.png")
    image(tmp_path / "reg/5_mywife/b.png")
    found = find_samples(tmp_path, tmp_path / "reg")
    assert [s.folder for s in found.train + found.regularization] == ["10_mywife", "5_mywife"]
    assert found.warnings == [f"{tmp_path / 'reg'}: left out of train_data_dir, it belongs to reg_data_dir"]
    assert "reg: skipped: its name does not begin with [repeats]_" in told(find_samples(tmp_path))


def test_a_numbered_regularization_folder_is_not_trained_on(tmp_path):
    image(tmp_path / "10_a/a.png")
    image(tmp_path / "5_reg/1_a/b.png")
    found = find_samples(tmp_path, tmp_path / "5_reg")
    assert [s.folder for s in found.train] == ["10_a"]


def test_regularization_folder_within_a_numbered_folder_takes_nothing_from_it(tmp_path):
    image(tmp_path / "10_a/a.png")
    image(tmp_path / "10_a/reg/1_a/b.png")
    found = find_samples(tmp_path, tmp_path / "10_a/reg")
    assert [s.folder for s in found.train + found.regularization] == ["10_a", "1_a"]
    assert found.warnings == []


def problem(*arguments):
    with pytest.raises(UserError) as error:
        find_samples(*arguments)
    return str(error.value)


def test_one_level_too_deep(tmp_path):
    image(tmp_path / "10_mytag/a.png")
    told = problem(tmp_path / "10_mytag")
    assert f"one level too deep. Choose the folder that contains it: {tmp_path}" in told


def test_one_level_too_high(tmp_path):
    image(tmp_path / "project/train/10_mytag/a.png")
    assert f"is one level too high. Choose {tmp_path / 'project/train'}" in problem(tmp_path / "project")


def test_missing_prefix_is_offered(tmp_path):
    image(tmp_path / "mytag/a.png")
    image(tmp_path / "6-cloths/a.png")
    assert "Rename: 6-cloths -> 6_cloths; mytag -> 10_mytag" in problem(tmp_path)
    image(tmp_path / "2_good/a.png")
    assert "mytag: skipped: its name does not begin with [repeats]_. To use it, rename it to 10_mytag" in told(
        find_samples(tmp_path)
    )


def test_images_directly_in_the_folder(tmp_path):
    image(tmp_path / "mine/a.png")
    assert f"Move them into a sub-folder named [repeats]_[concept], such as {tmp_path / 'mine/10_mytag'}" in problem(
        tmp_path / "mine"
    )
    image(tmp_path / "mine/2_good/a.png")
    assert "1 image is not used, beside the folders: a.png" in told(find_samples(tmp_path / "mine"))


def test_nothing_there_and_both_folders_are_told_at_once(tmp_path):
    (tmp_path / "empty").mkdir()
    text = problem(tmp_path / "none", tmp_path / "empty")
    assert f"train_data_dir: there is no folder {tmp_path / 'none'}" in text
    assert f"reg_data_dir = {tmp_path / 'empty'}: no [repeats]_[concept] folder" in text


def test_training_folder_as_regularization_folder(tmp_path):
    image(tmp_path / "1_a/a.png")
    assert "are the same folder" in problem(tmp_path, tmp_path / "1_a" / "..")


def test_numbers_that_are_no_repeats(tmp_path):
    image(tmp_path / "0_a/a.png")
    image(tmp_path / "2023_b/a.png")
    found = find_samples(tmp_path)
    assert [s.repeats for s in found.train] == [2023]
    assert "0_a: skipped: 0 repeats" in told(found)
    assert (
        "2023_b: this name means 2023 repeats of every image. If you didn't mean that, rename it, e.g. 10_2023_b"
        in told(found)
    )


@pytest.mark.parametrize(
    ("name", "offered"), [("mytag", "10_mytag"), ("6 x", "6_x"), ("6x", "6_x"), ("007", "10_007"), ("0-a", "10_0-a")]
)
def test_offered_names(name, offered):
    assert offered_name(name) == offered


def test_images_are_checked_without_torch():
    code = "import sys, library.data.samples, library.data.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


# ---- what earlier runs found out ----


@pytest.fixture
def decoded(monkeypatch):
    """Names of the images that were decoded, in any order; none of them counts as too young to be remembered."""
    names, really = [], decoding.inspect
    monkeypatch.setattr(decoding, "inspect", lambda path: names.append(path.name) or really(path))
    monkeypatch.setattr(file_index, "SETTLED_SECONDS", -60)
    return names


def test_the_next_run_decodes_only_what_was_broken_and_finds_the_same(tmp_path, decoded):
    image(tmp_path / "1_a/wide.png", (50, 7))
    image(tmp_path / "1_a/broken.png").write_bytes(b"no picture")
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "1_a/moving.webp", save_all=True, append_images=frames[1:])
    first = find_samples(tmp_path, memory=tmp_path / ".cache")
    assert sorted(decoded) == ["broken.png", "moving.webp", "wide.png"]
    decoded.clear()
    assert find_samples(tmp_path, memory=tmp_path / ".cache") == first == find_samples(tmp_path)
    assert decoded == ["broken.png", "broken.png", "moving.webp", "wide.png"]  # the last three: without a memory
    assert "broken.png: skipped" in told(first)
    assert "only the first frame is used: moving.webp" in told(first)


@pytest.mark.parametrize("change", ["painted over", "another file in its place", "truncated", "other rules"])
def test_an_image_that_changed_is_looked_at_again(tmp_path, decoded, monkeypatch, change):
    path, kept = image(tmp_path / "1_a/a.bmp", (16, 8)), image(tmp_path / "1_a/b.bmp")
    find_samples(tmp_path, memory=tmp_path / ".cache")
    decoded.clear()
    before = path.stat()
    if change == "other rules":
        monkeypatch.setattr(decoding, "INSPECTION_FORMAT", 0)
    elif change == "truncated":
        path.write_bytes(path.read_bytes()[:60])
    else:
        other = image(tmp_path / "other.bmp", (8, 16))  # of the same length
        assert other.stat().st_size == before.st_size
        if change == "painted over":
            path.write_bytes(other.read_bytes())
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000_000))
        else:
            os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
            os.replace(other, path)
    found = find_samples(tmp_path, memory=tmp_path / ".cache")
    assert found == find_samples(tmp_path)
    assert decoded.count("a.bmp") == 2
    assert decoded.count(kept.name) == (2 if change == "other rules" else 1)


@pytest.mark.parametrize("damage", ["overwritten", "row", "read-only"])
def test_a_memory_that_is_damaged_or_cannot_be_written_costs_time_only(tmp_path, decoded, monkeypatch, damage):
    monkeypatch.setattr(file_index, "FILES_AT_ONCE", 1)
    memory = tmp_path / ".cache"
    for name in (f"{number}.png" for number in range(8)):
        image(tmp_path / "1_a" / name)
    if damage == "read-only":
        memory.write_text("a file is in the way")
    else:
        find_samples(tmp_path, memory=memory)
        (rows,) = (memory / "pictures").glob("*.rows")
        (index,) = (memory / "pictures").glob("*.index")
        data = rows.read_bytes()
        rows.write_bytes(bytes(len(data)) if damage == "overwritten" else b"\1" + data[1:])
        if damage == "row":  # nobody wrote, so size and dates still agree
            with open(index, "r+b") as file:
                file.write(shards._header(rows))
    for _ in range(2):
        assert find_samples(tmp_path, memory=memory) == find_samples(tmp_path)


def test_an_interruption_and_a_mistake_elsewhere_lose_little_of_what_was_found_out(tmp_path, decoded, monkeypatch):
    monkeypatch.setattr(file_index, "FILES_AT_ONCE", 2)
    for number in range(40):
        image(tmp_path / f"1_a/{number:02}.png")
    really = decoding.inspect

    def interrupted(path):
        if path.name == "37.png":
            raise KeyboardInterrupt
        return really(path)

    monkeypatch.setattr(decoding, "inspect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        find_samples(tmp_path, memory=tmp_path / ".cache")
    monkeypatch.setattr(decoding, "inspect", really)
    (tmp_path / "1_a/00.txt").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0")
    decoded.clear()
    with pytest.raises(UserError, match="neither UTF-8"):
        find_samples(tmp_path, memory=tmp_path / ".cache")
    assert sorted(decoded)[-4:] == ["36.png", "37.png", "38.png", "39.png"]
    assert len(decoded) == 4
    (tmp_path / "1_a/00.txt").unlink()
    assert len(find_samples(tmp_path, memory=tmp_path / ".cache").train) == 40
    assert len(decoded) == 4


def test_an_image_written_just_now_is_not_remembered(tmp_path, decoded, monkeypatch):
    """It may change once more within the same tick of the clock."""
    monkeypatch.setattr(file_index, "SETTLED_SECONDS", 60)
    image(tmp_path / "1_a/a.png")
    for _ in range(2):
        find_samples(tmp_path, memory=tmp_path / ".cache")
    assert decoded == ["a.png", "a.png"]


# ---- balancing ----


def rows(count, repeats, is_regularization=False):
    return [
        Sample(Path(f"{index:04}.png"), "", 8, 8, f"{repeats}_a", repeats, is_regularization) for index in range(count)
    ]


@pytest.mark.parametrize("rotate", [True, False])
@pytest.mark.parametrize(
    ("train", "reg", "used", "samples"),
    [
        ((100, 10), (100, 5), 100, 1000),
        ((10, 10), (50, 3), 34, 102),
        ((100, 1), (300, 1), 100, 100),
        ((10, 1), (5, 4), 3, 12),
        ((30, 10), (100, 1), 100, 300),
        ((100, 10), (7, 1), 7, 1000),
    ],
)
def test_balancing_of_sd_scripts(train, reg, used, samples, rotate):
    uses = balance(rows(*train), rows(*reg, True), rotate=rotate)
    assert (len(uses), sum(count for _, count in uses)) == (used, samples)
    assert [sample.image_path for sample, _ in uses] == [Path(f"{index:04}.png") for index in range(used)]


def sd_scripts_balance(wanted, regularization):
    """The loop as sd-scripts has it."""
    uses, n, first = {}, 0, True
    while n < wanted:
        for sample in regularization:
            added = sample.repeats if first else 1
            uses[sample] = uses.get(sample, 0) + added
            n += added
            if n >= wanted:
                break
        first = False
    return list(uses.items())


@pytest.mark.parametrize("counts", [(3, 2, 4, 1), (1, 7, 2, 5), (9, 1, 1, 3)])
@pytest.mark.parametrize("wanted", [1, 5, 23, 100])
def test_closed_form_equals_the_loop_of_sd_scripts_for_mixed_repeats(counts, wanted):
    regularization = [
        Sample(Path(f"{index}.png"), "", 8, 8, "x", repeats, True) for index, repeats in enumerate(counts)
    ]
    assert balance(rows(wanted, 1), regularization) == sd_scripts_balance(wanted, regularization)


@pytest.mark.parametrize(("train", "reg"), [((10, 10), (50, 3)), ((10, 1), (35, 1)), ((100, 10), (7, 1))])
def test_a_surplus_takes_turns_until_all_were_used_equally_often(train, reg):
    images = rows(*reg, True)
    counts = dict.fromkeys(images, 0)
    for epoch in range(1, 51):
        for sample, count in balance(rows(*train), images, rotate=True, epoch=epoch):
            counts[sample] += count
    assert max(counts.values()) - min(counts.values()) <= reg[1]


def test_without_rotation_every_epoch_is_the_first():
    train, reg = rows(10, 1), rows(35, 1, True)
    assert balance(train, reg, rotate=False, epoch=3) == balance(train, reg, rotate=False, epoch=1)
    assert balance(train, reg, rotate=True, epoch=2) != balance(train, reg, rotate=True, epoch=1)


def test_without_regularization_there_is_none():
    assert balance(rows(3, 2), [], epoch=2) == []


def test_captions_of_a_folder_are_read_in_one_encoding_and_doubt_is_told_with_both_readings(tmp_path):
    for name, text in (("a", "woman\u2019s hair"), ("b", "Pok\u00e9mon")):
        image(tmp_path / f"1_a/{name}.png")
        (tmp_path / f"1_a/{name}.txt").write_bytes(text.encode("cp1252"))
    image(tmp_path / "1_b/c.png")
    (tmp_path / "1_b/c.txt").write_bytes("교복".encode("cp949"))
    found = find_samples(tmp_path)
    assert [sample.caption for sample in found.train][:2] == ["woman\u2019s hair", "Pok\u00e9mon"]
    assert '2 captions are not UTF-8 and read as Windows-1252, e.g. a.txt: "woman\u2019s hair"' in told(found)
    (doubt,) = [line for line in found.warnings if "not certain" in line]
    assert "1_b: 1 caption is not UTF-8" in doubt
    assert 'c.txt reads "교복" in EUC-KR and "背汗" in GB18030 (GBK); the first is taken' in doubt
    assert "save them as UTF-8" in doubt
    assert doubt.level == "red"
