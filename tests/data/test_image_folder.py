"""What lies in any folder: every image with its caption, whatever the names, encodings and other things there."""

import os

import pytest

from library.data import image_folder
from library.messages import UserError


def fill(folder, files):
    """Files by name; an image's bytes do not matter here."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def found(folder, **options):
    """Name of each image -> its caption."""
    whole = image_folder.find_images(folder, **options)
    return {whole.name(image): image.caption for image in whole.images}


def test_images_of_all_folders_are_found_with_their_captions(tmp_path):
    files = {
        "b.png": "", "b.txt": "b", "a.JPG": "", "a.TXT": "a, second tag\nanother line",
        "10_mytag/照片（1）.webp": "", "10_mytag/照片（1）.txt": "猫",
        "deep/er/ミク.jpeg": "", "deep/er/x.y.png": "", "deep/er/x.y.txt": "xy", "empty.bmp": "", "empty.txt": "",
    }  # fmt: skip
    assert found(fill(tmp_path, files)) == {
        "a.JPG": "a, second tag\nanother line",
        "b.png": "b",
        "empty.bmp": "",
        "10_mytag/照片（1）.webp": "猫",
        "deep/er/x.y.png": "xy",
        "deep/er/ミク.jpeg": None,
    }


def test_a_missing_caption_has_a_place_where_it_would_be(tmp_path):
    fill(tmp_path, {"x.y.png": ""})
    (image,) = image_folder.find_images(tmp_path, caption_extension="caption").images
    assert (image.caption, image.caption_path) == (None, tmp_path / "x.y.caption")
    assert image.tags == []


def test_only_the_first_line_holds_tags(tmp_path):
    fill(tmp_path, {"a.png": "", "a.txt": "\n  red hair ,, 1girl,\nsecond, line"})
    assert image_folder.find_images(tmp_path).images[0].tags == ["red hair", "1girl"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_captions_are_read_in_whatever_encoding_and_it_is_known(tmp_path, encoding):
    fill(tmp_path, {"a.png": "", "a.txt": "红色头发, 1girl".encode(encoding)})
    (image,) = image_folder.find_images(tmp_path).images
    assert image.tags == ["红色头发", "1girl"]
    assert image.encoding == {"utf-8": "utf-8-sig"}.get(encoding, encoding)


def test_masks_hidden_things_and_what_systems_make_are_left_out(tmp_path):
    names = (
        "masks/a.png",
        "Masks/a.png",
        ".backup/a.png",
        ".hidden.png",
        "__MACOSX/a.png",
        "notes.md",
        "deep/.x/b.png",
    )
    assert list(found(fill(tmp_path, {"a.png": ""} | dict.fromkeys(names, "")))) == ["a.png"]


def test_links_to_folders_are_not_followed_and_those_to_images_are(tmp_path):
    fill(tmp_path, {"set/a.png": "", "other/b.png": "", "other/b.txt": "b"})
    (tmp_path / "set" / "circle").symlink_to(tmp_path)
    (tmp_path / "set" / "b.png").symlink_to(tmp_path / "other" / "b.png")
    (tmp_path / "set" / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "set" / "itself.png").symlink_to(tmp_path / "set" / "itself.png")
    assert list(found(tmp_path / "set")) == ["a.png", "b.png"]


def test_a_folder_named_like_an_image_is_none(tmp_path):
    assert list(found(fill(tmp_path, {"a.png/b.png": ""}))) == ["a.png/b.png"]


def test_images_of_kinds_that_are_not_read_are_named(tmp_path):
    whole = image_folder.find_images(fill(tmp_path, {"a.png": "", "b.gif": "", "d/c.HEIC": ""}))
    assert [note.partition(":")[2] for note in whole.notes] == [
        " 1 file in unsupported formats: b.gif. Convert them to .png",
        " 1 file in unsupported formats: c.HEIC. Convert them to .png",
    ]


def test_captions_of_another_ending_are_named(tmp_path):
    fill(tmp_path, {"a.png": "", "a.caption": "a", "b.png": "", "b.txt": "b", "b.caption": "b"})
    (note,) = image_folder.find_images(tmp_path).notes
    assert note.endswith(
        "1 image has captions ending in .caption, which are not read: a.png. To read them, set "
        'caption_extension = ".caption"'
    )
    assert found(tmp_path, caption_extension=".caption") == {"a.png": "a", "b.png": "b"}
    assert image_folder.find_images(tmp_path, caption_extension=".CAPTION").notes == []


def test_all_captions_that_cannot_be_read_are_named_at_once(tmp_path):
    """They would be lost if they were written."""
    fill(tmp_path, {"a.png": "", "a.txt": b"\xff\xfe\x00", "b.png": "", "b.txt": b"\x81", "c.png": "", "c.txt": "c"})
    with pytest.raises(UserError) as caught:
        image_folder.find_images(tmp_path)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        str(tmp_path / "a.txt"),
        str(tmp_path / "b.txt"),
    ]
    assert caught.value.problems[0].endswith("Save it as UTF-8")


def test_a_caption_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    """By the error itself: the superuser may read all."""
    fill(tmp_path, {"a.png": "", "a.txt": "a"})
    monkeypatch.setattr(
        image_folder.Path, "read_bytes", lambda path: (_ for _ in ()).throw(PermissionError(13, "denied"))
    )
    with pytest.raises(UserError, match=r"a\.txt: cannot be read \(denied\)"):
        image_folder.find_images(tmp_path)


def test_a_sub_folder_that_may_not_be_read_is_named_and_the_rest_is_found(tmp_path, monkeypatch):
    fill(tmp_path, {"a.png": "", "locked/b.png": ""})
    real = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    whole = image_folder.find_images(tmp_path)
    assert [image.path.name for image in whole.images] == ["a.png"]
    assert "locked: this folder cannot be read (denied)" in whole.notes[0]


def test_no_image_is_told_with_what_was_passed_over(tmp_path):
    fill(tmp_path, {"a.gif": "", "a.txt": "a"})
    with pytest.raises(UserError) as caught:
        image_folder.find_images(tmp_path)
    assert caught.value.problems[0] == f"{tmp_path}: contains no images"
    assert "a.gif" in caught.value.problems[1]


@pytest.mark.parametrize("extension", ["", ".", ".png", "WEBP", ".txt/x", "../a"])
def test_an_ending_that_would_overwrite_something_else_is_refused(tmp_path, extension):
    with pytest.raises(UserError, match="is not an extension of caption files"):
        image_folder.find_images(fill(tmp_path, {"a.png": ""}), caption_extension=extension)


@pytest.mark.skipif(os.name == "nt", reason="names there are Unicode")
def test_a_name_that_is_no_utf8_is_a_name_too(tmp_path):
    """As old Chinese archives leave them."""
    name = os.fsdecode("照片.png".encode("gb18030"))
    fill(tmp_path, {name: "", name.replace(".png", ".txt"): "a"})
    assert found(tmp_path) == {name: "a"}
