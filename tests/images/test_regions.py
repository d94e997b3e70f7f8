"""Regions of an image: text over it, faces, and what is its subject."""

import random
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw, ImageFilter

from library.images import background, faces, local_models, text_regions
from library.images.region import Region, clipped, merged, overlap, union
from library.messages import UserError
from library.miniature.drawings import CharacterScene, draw_character
from library.options.declaration import PROJECT
from tests import overlaid_text

SCENES = [
    CharacterScene("waving", "center", "large", "blue", "striped"),
    CharacterScene("standing", "left", "", "pink", "gradient"),
    CharacterScene("arms up", "right", "", "white", "dotted"),
    CharacterScene("looking left", "center", "", "black", "plain"),
]

# ---- Rectangles ------------------------------------------------------------------------------------------------------

REGIONS = st.builds(Region, st.integers(-20, 60), st.integers(-20, 60), st.integers(1, 40), st.integers(1, 40),
                    st.floats(0, 1))  # fmt: skip


@pytest.mark.slow("looks for text in many pictures")
@given(REGIONS)
def test_what_is_clipped_lies_in_the_image(region):
    inside = clipped(region, 50, 40)
    if inside is None:
        assert overlap(region, Region(0, 0, 50, 40)) == 0
    else:
        assert 0 <= inside.left < inside.right <= 50
        assert 0 <= inside.top < inside.bottom <= 40
        assert inside.area == overlap(region, Region(0, 0, 50, 40))


@given(st.lists(REGIONS, max_size=12))
@settings(max_examples=50, deadline=None)
def test_merged_regions_cover_all_and_no_longer_one_another(regions):
    found = merged(regions, share=0.3)
    for region in regions:
        assert any(overlap(region, other) == region.area for other in found)
    for number, one in enumerate(found):
        for other in found[:number]:
            assert overlap(one, other) < 0.3 * min(one.area, other.area)
    assert [region.score for region in found] == sorted((region.score for region in found), reverse=True)


def test_a_union_has_the_surer_ones_kind():
    assert union(Region(0, 0, 2, 2, 0.4, "text"), Region(5, 1, 1, 9, 0.9, "face")) == Region(0, 0, 6, 10, 0.9, "face")


# ---- Text ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow("looks for text in many pictures")
def test_most_text_is_found_over_most_grounds_and_little_else():
    """The figures over more images, and photos, are in docs/log.md; here they may only not fall far below them."""
    rows = overlaid_text.measured(random.Random(1), 6)
    everything = [row for kind in rows.values() for row in kind]
    assert len(everything) >= 4
    assert np.mean([row["found"] for row in everything]) >= 0.6
    assert np.mean([row["stray"] for row in everything]) <= 0.005
    assert np.mean([row["alone"] for row in everything]) <= 0.15


@pytest.mark.parametrize(
    ("words", "place"), [("@somebody", (330, 460)), ("2024-05-01 12:30", (16, 16)), ("样片 请勿转载", (150, 240))]
)
def test_text_is_found_wherever_it_stands(words, place):
    face = overlaid_text.font(overlaid_text.CHINESE if not words.isascii() else overlaid_text.LATIN, 28)
    if face is None and not words.isascii():
        pytest.skip("no Chinese font on this machine")
    face = face or overlaid_text.ImageFont.load_default(28)
    image = draw_character(CharacterScene("waving", background="blue"), (512, 512)).convert("RGB")
    pen = ImageDraw.Draw(image)
    box = pen.textbbox(place, words, font=face)
    pen.text(place, words, font=face, fill="white", stroke_width=1, stroke_fill="black")
    text = clipped(Region(box[0], box[1], box[2] - box[0], box[3] - box[1]), 512, 512)
    found = text_regions.find_text(np.asarray(image))
    assert overlaid_text.found_share(text, found, image.size) > 0.7
    assert overlaid_text.stray_share(text, found, image.size) < 0.02
    assert all(region.kind == "text" and 0 < region.score <= 1 for region in found)


@pytest.mark.parametrize("side", [48, 256])
def test_no_text_is_found_on_the_character(side):
    """Two round eyes are read as "00", and a whole drawing of few lines as one Chinese letter."""
    for scene in SCENES:
        assert text_regions.find_text(np.asarray(draw_character(scene, (side, side)))) == []


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (640, 7), (33, 65)])
def test_images_of_any_size_can_be_looked_at(size):
    image = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    for find in (text_regions.find_text, faces.find_faces):
        assert all(clipped(region, *size) == region for region in find(image))
    assert background.subject(image).shape == image.shape[:2]


def test_the_same_is_found_in_threads():
    image = np.asarray(overlaid_text.overlaid(random.Random(2), Image.new("RGB", (300, 300), "gray"))[0])
    expected, answers = text_regions.find_text(image), []
    threads = [threading.Thread(target=lambda: answers.append(text_regions.find_text(image))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert expected
    assert answers == [expected] * 3


def test_what_nobody_can_read_is_no_text(monkeypatch):
    """The detector's boxes count only with a reading: fur and eyes have none, and a flag's stars are read as "***"."""
    box = [[10, 20], [60, 20], [60, 30], [10, 30]]
    words = {"SAMPLE": 0.9, "***": 0.9, "a": 0.9, "样片": 0.6, "fur": 0.3, "60": 0.9, "1": 0.9}
    boxes = np.array([np.add(box, (0, 30 * number)) for number in range(len(words))])
    read = SimpleNamespace(boxes=boxes, txts=[*words], scores=[*words.values()])
    monkeypatch.setattr(text_regions, "open_reader", lambda: lambda image: read)
    image = np.zeros((960, 400, 3), np.uint8)
    assert text_regions.find_text(image) == [Region(9, 19, 52, 12, 0.9, "text"), Region(9, 109, 52, 12, 0.6, "text")]
    small = np.zeros((300, 200, 3), np.uint8)  # was shown to the reader twice as large
    assert text_regions.find_text(small)[0] == Region(5, 10, 25, 5, 0.9, "text")
    nothing = SimpleNamespace(boxes=None, txts=None, scores=None)
    monkeypatch.setattr(text_regions, "open_reader", lambda: lambda image: nothing)
    assert text_regions.find_text(image) == []


def test_the_reader_is_quiet_and_needs_no_network(capfd, monkeypatch):
    import socket

    monkeypatch.setattr(socket.socket, "connect", lambda *given: pytest.fail("the network was asked"))
    text_regions.open_reader.cache_clear()
    image = np.asarray(overlaid_text.overlaid(random.Random(2), Image.new("RGB", (300, 300), "gray"))[0])
    assert text_regions.find_text(image)
    assert text_regions.find_text(np.zeros((300, 300, 3), np.uint8)) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("missing", ["rapidocr", "onnxruntime", "its models"])
def test_a_reader_that_does_not_run_is_told_with_the_line_to_install(monkeypatch, tmp_path, missing):
    if missing == "its models":
        monkeypatch.setitem(sys.modules, "rapidocr", SimpleNamespace(__file__=str(tmp_path / "__init__.py")))
    else:
        for name in [name for name in sys.modules if name.partition(".")[0] in ("rapidocr", missing)]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, missing, None)
    text_regions.open_reader.cache_clear()
    with pytest.raises(UserError, match=rf"{missing}[^:]*\): pip install -r requirements.txt"):
        text_regions.find_text(np.zeros((300, 300, 3), np.uint8))


def test_text_over_a_face_or_much_of_the_image_needs_a_person():
    face = Region(40, 40, 20, 20)
    for text, asks in (
        (Region(10, 90, 30, 5), False),
        (Region(10, 45, 31, 5), True),  # it reaches into the face
        (Region(10, 45, 30, 5), False),
        (Region(0, 80, 100, 5), False),
        (Region(0, 80, 100, 6), True),  # 6 % of the image
    ):
        assert text_regions.needs_a_person(text, [face], 100, 100) is asks


def test_whoever_looks_for_no_text_does_not_load_the_reader():
    """rapidocr and onnxruntime take half a second."""
    program = "import sys, library.tooling.cleaning; sys.exit(bool({'rapidocr', 'onnxruntime'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], cwd=PROJECT).returncode == 0


# ---- Faces -----------------------------------------------------------------------------------------------------------


def drawn_face(height: int) -> Image.Image:
    """A face as light and dark as a photographed one, which is what the network looks at."""
    image = Image.new("RGB", (200, 260), (90, 110, 130))
    pen = ImageDraw.Draw(image)
    pen.rectangle((70, 190, 130, 260), fill=(180, 140, 118))
    pen.ellipse((38, 16, 162, 170), fill=(50, 36, 28))  # hair
    pen.ellipse((46, 60, 154, 215), fill=(214, 172, 148))
    for x in (74, 126):
        pen.line((x - 16, 98, x + 16, 98), fill=(60, 42, 34), width=6)
        pen.ellipse((x - 15, 106, x + 15, 124), fill=(170, 128, 108))
        pen.ellipse((x - 12, 109, x + 12, 122), fill=(235, 230, 225))
        pen.ellipse((x - 7, 108, x + 7, 122), fill=(40, 28, 22))
    pen.polygon([(100, 112), (88, 152), (112, 152)], fill=(198, 154, 130))
    pen.line((86, 153, 114, 153), fill=(120, 80, 66), width=5)
    pen.ellipse((76, 170, 124, 186), fill=(160, 80, 78))
    pen.line((78, 178, 122, 178), fill=(90, 36, 36), width=3)
    return image.filter(ImageFilter.GaussianBlur(3)).resize((round(height * 200 / 260), height))


@pytest.mark.parametrize("height", [150, 600])
def test_a_face_is_found_where_it_is(height):
    image = Image.new("RGB", (800, 700), (120, 130, 140))
    image.paste(drawn_face(height), (100, 60))
    (face,) = faces.find_faces(np.asarray(image))
    middle = (face.left + face.width / 2 - 100) / height, (face.top + face.height / 2 - 60) / height
    assert middle == pytest.approx((0.38, 0.5), abs=0.06)
    assert 0.4 < face.height / height < 0.75
    assert face.kind == "face"
    assert face.score > 0.5


@pytest.mark.parametrize("ground", overlaid_text.GROUNDS, ids=lambda ground: ground.__name__)
def test_no_face_is_found_where_none_is(ground):
    for seed in range(2):
        assert faces.find_faces(np.asarray(ground(random.Random(seed), (512, 512)))) == []


@pytest.mark.parametrize("height", [1000, 110])
def test_close_ups_and_small_faces_are_found(height):
    """A face that fills the image, and one of a person seen from head to foot: the network alone misses both."""
    image = Image.new("RGB", (1000, 1500), (120, 130, 140))
    face = drawn_face(height)
    image.paste(face, (300, 100))
    if height == 1000:
        image = face.crop((100, 200, 660, 840))
    (face,) = faces.find_faces(np.asarray(image))
    if height == 1000:
        assert face.width > 0.7 * image.width
    else:
        assert 40 < face.width < 80
        assert overlap(face, Region(300, 100, 85, 110)) > 0.9 * face.area


def test_a_face_in_several_parts_of_the_image_comes_once():
    one, other = Region(10, 10, 30, 30, 0.8), Region(100, 10, 30, 30, 0.6)
    assert faces._surest([Region(14, 12, 30, 30, 0.7), other, one]) == [one, other]


def test_what_is_only_possible_counts_where_no_face_may_be_harmed(monkeypatch):
    answers = [Region(1, 1, 9, 9, 0.7, "face"), Region(30, 1, 9, 9, 0.55, "face")]
    monkeypatch.setattr(faces, "_own", lambda name, made: lambda image: answers)
    image, drawn = np.zeros((50, 50, 3), np.uint8), Region(1, 30, 9, 9, 0.4, "face")
    model = faces.Detector(Path("yolo.onnx"), lambda image: [drawn])
    assert faces.find_faces(image) == answers[:1]
    assert faces.find_faces(image, unsure=True) == answers
    assert faces.find_faces(image, model) == [drawn]
    assert faces.find_faces(image, model, unsure=True) == [*answers, drawn]


@given(st.integers(0, 300), st.integers(0, 200), st.integers(1, 200), st.integers(1, 200), st.floats(0, 3))
def test_what_is_around_a_face_is_a_square_in_the_image(left, top, width, height, margin):
    face = clipped(Region(left, top, width, height), 320, 240)
    if face:
        square = faces.around(face, (320, 240), margin)
        assert square.width == square.height
        assert clipped(square, 320, 240) == square
        assert square.width == min(round(max(face.width, face.height) * (1 + 2 * margin)), 240)
        if square.width >= max(face.width, face.height):
            assert overlap(square, face) == face.area


def constant_file(path: Path, output: np.ndarray, side: int | str) -> Path:
    """An ONNX model that gives the same for every image."""
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "constant"], ["output0"]),
    ]
    graph = helper.make_graph(
        nodes, "constant", [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, list(output.shape))],
        [numpy_helper.from_array(np.zeros((), np.float32), "zero"), numpy_helper.from_array(output, "constant")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


# Of a 320 x 160 image in a square of 640: a face at (40, 20), 60 x 80, that comes twice, and one too unsure to count.
MIDDLES = np.array([[140, 120, 120, 160], [144, 120, 120, 160], [500, 200, 60, 60]], np.float32)
SCORES = np.array([0.9, 0.6, 0.1], np.float32)
CORNERS = np.concatenate([MIDDLES[:, :2] - MIDDLES[:, 2:] / 2, MIDDLES[:, :2] + MIDDLES[:, 2:] / 2], 1)
ONE, POINTS = np.ones((3, 1), np.float32), np.zeros((3, 10), np.float32)
HALF = SCORES[:, None] ** 0.5  # version 5 multiplies two
YOLO = {
    "version 8": np.concatenate([MIDDLES, SCORES[:, None]], 1).T[None],
    "version 8 with points": np.concatenate([MIDDLES, SCORES[:, None], np.zeros((3, 15), np.float32)], 1).T[None],
    "version 5": np.concatenate([np.tile(MIDDLES, (101, 1)), np.tile(HALF, (101, 2))], 1)[None],
    "version 5 with points": np.concatenate([MIDDLES, HALF, POINTS, HALF], 1)[None],
    "version 10": np.concatenate([CORNERS, SCORES[:, None], 0 * ONE], 1)[None],
}


@pytest.mark.parametrize("side", [640, "side"])
@pytest.mark.parametrize("version", YOLO)
def test_every_kind_of_yolo_model_gives_its_face_once(tmp_path, version, side):
    path = constant_file(tmp_path / "face_yolov8n.onnx", np.ascontiguousarray(YOLO[version], np.float32), side)
    (face,) = faces.find_faces(np.zeros((160, 320, 3), np.uint8), faces.open_model(path, local_models.open_onnx))
    assert face == (40, 20, 60, 80, pytest.approx(0.9, abs=1e-3), "face")


def test_yolo_sees_the_image_in_a_grey_square(monkeypatch):
    seen = []

    class Session:
        def get_inputs(self):
            return [SimpleNamespace(name="images", shape=[1, 3, 320, 320], type="tensor(float)")]

        def run(self, _, inputs):
            seen.append(inputs["images"])
            return [YOLO["version 8"]]

    model = faces.open_model(Path("face_yolo.onnx"), lambda path: SimpleNamespace(session=Session()))
    faces.find_faces(np.full((40, 80, 3), (255, 51, 0), np.uint8), model)
    pixels = seen[-1]
    assert (pixels.shape, pixels.dtype) == ((1, 3, 320, 320), np.float32)
    assert pixels[0, :, 0, 0] == pytest.approx([1, 0.2, 0])  # red first
    assert pixels[0, :, 159, 319] == pytest.approx([1, 0.2, 0])
    assert pixels[0, :, 160, 0] == pytest.approx(114 / 255)


def test_opencv_opens_no_file_of_ours_by_name():
    """On Windows it cannot, below a folder with a Chinese name; what it is given are bytes."""
    for file in (PROJECT / "library" / "images").glob("*.py"):
        source = file.read_text(encoding="utf-8")
        assert not re.search(r"(readNet\w*|FaceDetectorYN.create|\.load|imread|imwrite)\(str\(", source), file.name


def test_a_cascade_file_is_used(tmp_path):
    path = tmp_path / "lbpcascade_animeface.xml"
    path.write_bytes((Path(cv2.data.haarcascades) / "haarcascade_frontalface_alt.xml").read_bytes())
    image = Image.new("RGB", (300, 300), (120, 130, 140))
    image.paste(drawn_face(240), (40, 20))
    (face,) = faces.find_faces(np.asarray(image), faces.open_model(path, local_models.open_onnx))
    assert 80 < face.width < 200


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("face_yolov8n.onnx", "<html>404</html>", "pointer or web page"),
        ("face_detection_yunet_2023mar.onnx", "<html>404</html>", "no face can be found with this file"),
        ("lbpcascade_animeface.xml", "<html>404</html>", "no cascade of OpenCV"),
    ],
)
def test_a_file_that_finds_no_faces_is_named(tmp_path, name, content, reason):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"{name}: .*{reason}"):
        faces.open_model(tmp_path / name, local_models.open_onnx)


def test_a_model_of_many_kinds_of_things_is_refused(tmp_path):
    path = constant_file(tmp_path / "yolov8n-face.onnx", np.zeros((1, 84, 10), np.float32), 640)
    with pytest.raises(UserError, match=r"\(1, 84, 10\), which is not one kind of face"):
        faces.open_model(path, local_models.open_onnx)


def test_models_are_found_as_other_programs_keep_them(tmp_path):
    hub = "models--deepghs--anime_face_detection/snapshots/0123/face_detect_v1.4_s/model.onnx"
    kept = [hub, "adetailer/face_yolov8n.onnx", "sd-face-editor/assets/lbpcascade_animeface.xml",
            "opencv/face_detection_yunet_2023mar.onnx"]  # fmt: skip
    for name in [*kept, "models--deepghs--anime_face_detection/snapshots/0123/face_detect_v1.4_s/meta.json",
                 "adetailer/hand_yolov8n.onnx", "antelopev2/scrfd_10g_bnkps.onnx"]:  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = local_models.find_models(faces.MODEL_PATTERNS, [str(tmp_path)])
    assert [path.relative_to(tmp_path).as_posix() for path in found if tmp_path in path.parents] == kept


# ---- Background ------------------------------------------------------------------------------------------------------


def truth(scene: CharacterScene, size: tuple[int, int]) -> np.ndarray:
    """Where the character is: what stays as it is before another background."""
    on_white, on_black = (
        np.asarray(draw_character(replace(scene, background=colour, pattern="plain"), size), np.int16)
        for colour in ("white", "black")
    )
    return np.abs(on_white - on_black).max(axis=2) < 128


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: f"{scene.background} {scene.pattern}")
def test_the_subject_of_a_drawing_is_found(scene):
    size = (512, 640)
    grain = np.random.default_rng(0).normal(0, 4, (640, 512, 3))
    image = (np.asarray(draw_character(scene, size), np.float32) + grain).clip(0, 255).astype(np.uint8)
    mask = background.subject(image)
    inside, true = mask > 127, truth(scene, size)
    assert (inside & true).sum() / (inside | true).sum() > 0.95
    assert not background.is_doubtful(mask)
    assert np.array_equal(mask, background.subject(image))  # GrabCut begins at random


def test_a_large_image_has_a_sharp_edge():
    scene, size = SCENES[0], (1600, 1600)
    mask, true = background.subject(np.asarray(draw_character(scene, size))), truth(scene, size).astype(np.uint8)
    kernel = np.ones((13, 13), np.uint8)  # 6 pixels: about one of those that GrabCut saw
    assert mask[cv2.erode(true, kernel) > 0].mean() > 250
    assert mask[cv2.dilate(true, kernel) == 0].mean() < 5


def test_people_are_found_by_the_network_and_drawings_are_left_to_grabcut(monkeypatch):
    image = np.asarray(drawn_face(600))
    person = background._person(background._small(image))
    assert person is not None
    rows, columns = person.shape
    assert person[rows // 2, columns // 2] == 1
    assert person[:, 0].mean() < 0.5
    for scene in SCENES:
        assert background._person(background._small(np.asarray(draw_character(scene, (512, 640))))) is None
    assert background._person(np.full((320, 320, 3), 128, np.uint8)) is None
    monkeypatch.setattr(background, "_by_grabcut", lambda small: pytest.fail("the network was sure"))
    mask = background.subject(image)
    assert mask.shape == image.shape[:2]
    assert mask[300, 230] > 200


@pytest.mark.parametrize(
    ("filled", "doubtful"),
    [(np.s_[40:60, 40:60], False), (np.s_[20:, 20:80], False), (np.s_[:0], True), (np.s_[:], True),
     (np.s_[48:52, 48:52], True), (np.s_[:, :85], True)],
)  # fmt: skip
def test_masks_of_nearly_nothing_or_nearly_all_are_doubtful(filled, doubtful):
    mask = np.zeros((100, 100), np.uint8)
    mask[filled] = 255
    assert background.is_doubtful(mask) is doubtful


class Session:
    """Gives the red of what it is given, as logits, and remembers it."""

    def __init__(self, side: int | str, output=None):
        self.side, self.output, self.seen = side, output, []

    def get_inputs(self):
        return [SimpleNamespace(name="input", shape=[1, 3, self.side, self.side], type="tensor(float)")]

    def run(self, _, inputs):
        self.seen.append(inputs["input"])
        return [inputs["input"][:, :1] if self.output is None else self.output]


@pytest.mark.parametrize(
    ("name", "side", "mean", "std"),
    [
        ("u2net.onnx", 320, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("u2net_human_seg.onnx", 320, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("silueta.onnx", 320, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("isnet-general-use.onnx", 1024, (0.485, 0.456, 0.406), (1, 1, 1)),
        ("isnet-anime.onnx", 1024, (0.485, 0.456, 0.406), (1, 1, 1)),
        ("BiRefNet-general-epoch_244.onnx", 1024, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_models_are_fed_as_rembg_feeds_them(name, side, mean, std):
    session = Session("side")
    image = np.zeros((30, 40, 3), np.uint8)
    image[:, :20] = (255, 102, 51)
    mask = background.subject(image, SimpleNamespace(session=session, path=Path("models") / name))
    pixels = session.seen[0]
    assert (pixels.shape, pixels.dtype) == ((1, 3, side, side), np.float32)
    assert pixels[0, :, 5, 5] == pytest.approx((np.array([1, 0.4, 0.2]) - mean) / std, abs=1e-3)
    assert pixels[0, :, 5, -5] == pytest.approx(-np.array(mean) / std, abs=1e-3)
    assert (mask.shape, mask.dtype) == ((30, 40), np.uint8)
    assert [mask[15, 5], mask[15, -5]] == [255, 0]


def test_the_largest_value_counts_as_one():
    """As in rembg: a dark image is brightened before it is looked at."""
    session = Session("side")
    background.subject(np.full((9, 9, 3), 100, np.uint8), SimpleNamespace(session=session, path=Path("silueta.onnx")))
    assert session.seen[0][0, :, 0, 0] == pytest.approx((np.ones(3) - background.IMAGENET[0]) / background.IMAGENET[1])


def test_logits_become_shares_before_they_are_stretched():
    """An area at logit 0 lies halfway between far ones below and above; without the sigmoid it would lie elsewhere."""
    logits = np.full((1, 1, 8, 8), -8, np.float32)
    logits[..., 4:] = 40
    logits[..., :4, :4] = 0
    model = SimpleNamespace(session=Session(8, logits), path=Path("birefnet-general.onnx"))
    mask = background.subject(np.full((8, 8, 3), 128, np.uint8), model)
    assert [mask[0, 0], mask[7, 0], mask[0, 7]] == [127, 0, 255]


def test_a_file_that_fixes_the_size_is_fed_that_size():
    session = Session(64)
    background.subject(np.full((8, 8, 3), 128, np.uint8), SimpleNamespace(session=session, path=Path("u2net.onnx")))
    assert session.seen[0].shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("name", "output", "what"),
    [
        ("my_model.onnx", None, "my_model.onnx: unknown model. Supported: birefnet"),
        ("u2net.onnx", np.zeros((1, 4, 8, 8), np.float32), r"u2net.onnx: gives \(1, 4, 8, 8\) where a mask"),
    ],
)
def test_a_model_that_is_none_of_these_is_named(name, output, what):
    model = SimpleNamespace(session=Session(8, output), path=Path(name))
    with pytest.raises(UserError, match=what):
        background.subject(np.full((8, 8, 3), 128, np.uint8), model)
