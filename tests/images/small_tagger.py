"""A tagger of the true form and a few hundred bytes: `model.onnx` and `selected_tags.csv`, made in a moment.

It sees no shapes: `colours` tells mean colours apart, `pixels` hands its input through, so that a test can look at it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

TAGS = (  # name and danbooru's category, as in a selected_tags.csv
    ("general", 9), ("sensitive", 9), ("1girl", 0), ("long_hair", 0), ("red_theme", 0), ("^_^", 0), ("(o)_(o)", 0),
    ("signature", 0), ("hatsune_miku", 4), ("ganyu_(genshin_impact)", 4),
)  # fmt: skip


def weights(tag_count: int = len(TAGS)) -> tuple[np.ndarray, np.ndarray]:
    """What `colours` computes with: (3, T) for a mean of BGR from 0 to 255, and (T,)."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(0, 8, (3, tag_count)).astype(np.float32)
    return matrix / 255, (rng.normal(0, 1, tag_count) - matrix.mean(axis=0)).astype(np.float32)


def probabilities(bgr: np.ndarray) -> np.ndarray:
    """(T,) what `colours` gives for one prepared image, (S, S, 3), in plain numpy."""
    matrix, offset = weights()
    return 1 / (1 + np.exp(-(bgr.astype(np.float64).mean(axis=(0, 1)) @ matrix + offset)))


def colours(folder: Path, *, size: int = 8, tags: Sequence = TAGS, name: str = "model.onnx", **form) -> Path:
    """A model that gives each tag a probability by the mean colour.

    Args:
        form: batch=2 fixes it, channels_first, half (float16), logits (its last layer is missing), broken (NaN).
    """
    from onnx import helper, numpy_helper

    matrix, offset = weights(len(TAGS))
    axes = [2, 3] if form.get("channels_first") else [1, 2]
    nodes = [
        helper.make_node("Cast", ["picture"], ["wide"], to=1),
        helper.make_node("ReduceMean", ["wide"], ["mean"], axes=axes, keepdims=0),
        helper.make_node("MatMul", ["mean", "matrix"], ["product"]),
        helper.make_node("Add", ["product", "offset"], ["sum"]),
        helper.make_node("Identity" if form.get("logits") else "Sigmoid", ["sum"], ["found"]),
    ]
    if form.get("broken"):
        offset = np.full_like(offset, np.nan)
    constants = [numpy_helper.from_array(matrix, "matrix"), numpy_helper.from_array(offset, "offset")]
    return _save(folder, name, nodes, constants, size, len(TAGS), tags, form)


def pixels(folder: Path, *, size: int = 8) -> Path:
    """A model whose "probabilities" are its input's values / 255, one tag for each."""
    from onnx import helper, numpy_helper

    nodes = [
        helper.make_node("Flatten", ["picture"], ["flat"], axis=1),
        helper.make_node("Div", ["flat", "white"], ["found"]),
    ]
    constants = [numpy_helper.from_array(np.float32([255]), "white")]
    count = size * size * 3
    tags = [(f"pixel {number}", 0) for number in range(count)]
    return _save(folder, "model.onnx", nodes, constants, size, count, tags, {})


def _save(folder: Path, name: str, nodes, constants, size: int, outputs: int, tags: Sequence, form: dict) -> Path:
    import onnx
    from onnx import TensorProto, helper

    batch = form.get("batch", "N")
    shape = [batch, 3, size, size] if form.get("channels_first") else [batch, size, size, 3]
    kind = TensorProto.FLOAT16 if form.get("half") else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "tagger",
        [helper.make_tensor_value_info("picture", kind, shape)],
        [helper.make_tensor_value_info("found", TensorProto.FLOAT, [batch, outputs])],
        constants,
    )
    folder.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, folder / name)
    rows = "".join(f"{9000 + number},{tag},{category},100\n" for number, (tag, category) in enumerate(tags))
    table = "selected_tags.csv" if name == "model.onnx" else f"{Path(name).stem}.csv"
    (folder / table).write_text("tag_id,name,category,count\n" + rows, encoding="utf-8")
    return folder / name
