"""Whatever bytes, texts and values come: a UserError or a valid result, and nothing kept that should go or lost.

hypothesis makes the input, the same at every run; more of it: raise EXAMPLES.
"""

import dataclasses
import io
import json
import random
import struct
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from library import families
from library.data import captions, samples
from library.data.folders import offered_name, repeats_and_text
from library.diffusion import sampling
from library.families.recognise import UNET
from library.families.weights_file import read_header
from library.messages import UserError
from library.options import command_line, parameter_block, sd_scripts
from library.options.checks import check
from library.options.training import OPTIONS, Config

pytestmark = pytest.mark.slow("hundreds of random inputs")

EXAMPLES = 100
fuzz = settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)

tag = st.text(st.characters(exclude_characters=",", exclude_categories=["Cc", "Cs", "Z"]), min_size=1, max_size=8)
caption = st.lists(tag | st.just(""), max_size=8).map(",".join) | st.text(max_size=40)
some_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
named = st.sampled_from(
    [*OPTIONS, *sd_scripts.RENAMED, *sd_scripts.SWITCHES, *sd_scripts.REFUSED, "network_args"]
) | st.text(max_size=9)
path_like = st.sampled_from([r"C:\new", "~nobody", "a\0b", ".", "/", "x" * 5000, "org/name", "\ufeff", "’“，"])
value = some_json | path_like | st.binary(max_size=4) | st.lists(path_like, max_size=2).map(tuple)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """A file that every example writes anew."""
    return tmp_path_factory.mktemp("fuzz") / "file"


# ---- captions and folders ----


@fuzz
@given(
    caption, st.integers(0, 9), st.booleans(), st.sampled_from([0.0, 0.5]), st.integers(0, 5),
    st.sampled_from(["", "mytag,"]),
)  # fmt: skip
def test_processing_keeps_the_first_tags_and_loses_or_makes_none(text, keep, shuffle, dropout, seed, prefix):
    config = Config(shuffle_caption=shuffle, caption_tag_dropout_rate=dropout, keep_tokens=keep, caption_prefix=prefix)
    whole = captions.whole(text, config)
    before, after = captions.tags(whole), captions.process(text, config, rng=random.Random(seed), epoch=1)
    if not shuffle and not dropout:
        assert after == whole
    after = captions.tags(after)
    assert after[:keep] == before[:keep]
    assert not Counter(after) - Counter(before)
    assert dropout or Counter(after) == Counter(before)


@fuzz
@given(caption, st.sampled_from([0.0, 0.5]), st.integers(0, 5))
def test_what_processing_makes_was_listed_as_possible(text, dropout, seed):
    config = Config(caption_dropout_rate=dropout)
    made = captions.process(text, config, rng=random.Random(seed), epoch=1)
    assert made in captions.possible([text], config)


@fuzz
@given(st.binary(max_size=40))
def test_bytes_are_text_without_zero_bytes_or_refused(data):
    try:
        text, encoding = captions.decode(data)
    except ValueError:
        return
    assert "\0" not in text
    assert data.decode(encoding) == text


@fuzz
@given(st.text(max_size=40), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_texts_come_back_from_unicode_files(text, encoding):
    assume("\0" not in text and not text.startswith("\ufeff"))
    assert captions.decode(text.encode(encoding))[0] == text


@fuzz
@given(st.text(st.sampled_from("ab,字é 👨\n\t\x07\x85\xad\u200b\u200c\u200d\u202e\u2066\ufeff\U000e0041"), max_size=20))
def test_what_is_seen_stays_and_what_is_not_goes_at_once(text):
    shown = captions.without_invisible(text)
    assert captions.without_invisible(shown) == shown
    for letter in "ab,字é👨\n\t":
        assert shown.count(letter) == text.count(letter)
    assert not set(shown) & set("\x07\x85\xad\u200b\u202e\u2066\ufeff\U000e0041")


@fuzz
@given(st.integers(0, 10**30), st.text(max_size=20))
def test_names_of_folders_mean_what_they_say(repeats, concept):
    assert repeats_and_text(f"{repeats}_{concept}") == (repeats, concept)


@fuzz
@given(st.text(max_size=20) | st.from_regex(r"[0-9]{0,3}[ ._-]?\w{0,5}", fullmatch=True))
def test_any_name_is_read_or_offered_a_better_one(name):
    meaning = repeats_and_text(name)
    assert meaning is None or (isinstance(meaning[0], int) and meaning[1] == name.partition("_")[2])
    assert repeats_and_text(offered_name(name))[0] >= 1


@settings(fuzz, max_examples=EXAMPLES // 2)
@given(st.integers(1, 500), st.text(max_size=40), caption)
def test_folders_and_captions_are_found_whatever_they_are_called(repeats, concept, text):
    assume(not set(concept) & set("/\0") and "\0" not in text)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, f"{repeats}_{concept}")
        folder.mkdir()
        for name in ("a.png", "b.png"):
            Image.new("1", (2, 2)).save(folder / name)
        (folder / "b.txt").write_bytes(text.encode())
        first, second = samples.find_samples(root).train
    assert (first.repeats, first.caption) == (repeats, captions.without_invisible(concept))
    assert captions.tags(second.caption) == captions.tags(captions.without_invisible(text.removeprefix("\ufeff")))


# ---- weights ----

BASE = save({"a.weight": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.float16)}, {"format": "pt"})


def pickled(is_zip: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": {"a": torch.ones(2, 3)}}, buffer, _use_new_zipfile_serialization=is_zip)
    return buffer.getvalue()


def changes(data: bytes, below: int | None = None) -> st.SearchStrategy[bytes]:
    """The same with some bytes changed, of the first `below`, and perhaps cut short or with more at its end."""

    def changed(edits: list[tuple[int, int]], end: int, more: bytes) -> bytes:
        copy = bytearray(data)
        for at, byte in edits:
            copy[at] = byte
        return bytes(copy[: len(copy) - end]) + more

    edit = st.tuples(
        st.integers(0, (below or len(data)) - 1), st.integers(0, 255) | st.sampled_from(b'0123456789[]{}",')
    )
    return st.builds(
        changed,
        st.lists(edit, max_size=4),
        st.just(0) | st.integers(0, len(data)),
        st.just(b"") | st.binary(max_size=3),
    )


def read(file: Path, data: bytes) -> dict | None:
    """Shapes by name; None: refused."""
    file.write_bytes(data)
    try:
        return read_header(file).shapes
    except UserError:
        return None


def shapes_of_library(file: Path) -> dict | None:
    try:
        with safe_open(str(file), "np") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError:
        return None


header_like = st.dictionaries(
    st.sampled_from(["a", "b", "__metadata__"]),
    some_json
    | st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F16", "BOOL", "Q7", None]),
            "shape": st.lists(st.integers(-1, 3), max_size=2),
            "data_offsets": st.lists(st.integers(-4, 24), min_size=1, max_size=3),
        }
    ),
    max_size=2,
)


@fuzz
@given(st.one_of(st.binary(max_size=60), changes(BASE), changes(BASE, below=16)))
def test_damaged_safetensors_are_refused_or_read_as_the_library_reads_them(file, data):
    assert read(file, data) == shapes_of_library(file)


@fuzz
@given(header_like, st.integers(0, 24))
def test_invented_headers_are_refused_or_read_as_the_library_reads_them(file, header, size):
    text = json.dumps(header).encode()
    assert read(file, struct.pack("<Q", len(text)) + text + bytes(size)) == shapes_of_library(file)


telling = st.sampled_from(
    [
        f"{UNET}input_blocks.0.0.weight",
        f"{UNET}label_emb.0.0.weight",
        f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
        f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias",
        "cond_stage_model.model.ln_final.weight",
        "conditioner.embedders.1.model.ln_final.weight",
        "v_pred",
        "emb_params",
        "",
    ]
)
numbers = st.lists(st.sampled_from([0.0, 1.0, -0.1, float("nan"), float("inf")]), max_size=8)


@fuzz
@given(
    st.dictionaries(telling, numbers, max_size=9), st.integers(0, 2), st.booleans(),
    st.dictionaries(st.text(max_size=4), caption),
)  # fmt: skip
def test_any_names_shapes_and_values_are_refused_or_recognised(file, tensors, dims, is_unet, metadata):
    shaped = {name: torch.tensor(values).reshape([1] * dims + [-1]) for name, values in tensors.items() if values}
    if is_unet:
        shaped |= {f"{UNET}input_blocks.0.0.weight": torch.ones(1, 4, 1, 1), "cond_stage_model.a": torch.ones(1)}
    file.write_bytes(save(shaped, metadata))
    try:
        info = families.inspect(file)
    except UserError:
        return
    assert info.family in families.FAMILIES


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own about odd pickles
@settings(fuzz, max_examples=2 * EXAMPLES)
@given(changes(pickled(is_zip=True)) | changes(pickled(is_zip=False)))
def test_damaged_pickles_are_refused_or_give_tensors(file, data):
    assert all(isinstance(shape, tuple) for shape in (read(file, data) or {}).values())


@fuzz
@given(changes(zipfile.ZipFile(io.BytesIO(pickled(is_zip=True))).read("archive/data.pkl")))
def test_zips_with_damaged_pickles_are_refused_or_give_tensors(file, data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(pickled(is_zip=True))) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            new.writestr(name, data if name.endswith("data.pkl") else old.read(name))
    assert all(isinstance(shape, tuple) for shape in (read(file, buffer.getvalue()) or {}).values())


# ---- parameters and prompts ----


def configuration(values: dict, where: dict) -> Config | None:
    """What is trained; None: refused."""
    try:
        values, where, _, problems = sd_scripts.translate(values, where)
        config, warnings = check(values, where, problems)
    except UserError:
        return None
    assert all(isinstance(line, str) for line in warnings)
    return config


@settings(fuzz, max_examples=3 * EXAMPLES)
@given(st.dictionaries(named, value, min_size=1, max_size=4))
def test_any_values_in_the_block_are_refused_or_make_a_configuration(values):
    where = {name: "lora_train_command_line.py:1" for name in values}
    config = configuration(values, where)
    if config is not None:  # what the printed command gives again must be the same, but for presets
        config = dataclasses.replace(config, **{name: OPTIONS[name].default for name in parameter_block.OF_PRESETS})
        assert configuration(*command_line.parse(command_line.to_arguments(config))) == config


@fuzz
@given(st.lists(named.map(lambda name: f"--{name}") | st.text(max_size=6) | path_like, max_size=5))
def test_any_words_on_the_command_line_are_refused_or_make_a_configuration(words):
    assume(not {"--help", "-h"} & set(words))
    try:
        given_values = command_line.parse(words)
    except UserError:
        return
    configuration(*given_values)


@fuzz
@given(
    st.text(max_size=60)
    | st.lists(st.tuples(named, some_json), max_size=4).map(
        lambda rows: "\n".join(f"{json.dumps(name)} = {json.dumps(value)}" for name, value in rows)
    )
)
def test_any_toml_is_refused_or_makes_a_configuration(file, text):
    file.write_text(text, encoding="utf-8")
    try:
        given_values = command_line.parse(["--config_file", str(file)])
    except UserError:
        return
    configuration(*given_values)


@fuzz
@given(st.binary(max_size=20) | st.dictionaries(named, some_json, max_size=3).map(lambda v: json.dumps(v).encode()))
def test_any_preset_is_refused_or_makes_a_configuration(file, data):
    file.write_bytes(data)
    try:
        given_values = parameter_block.load_preset(file)
    except UserError:
        return
    configuration(*given_values)


option = st.tuples(st.sampled_from([*sampling.LINE_OPTIONS, "zz"]), st.text(max_size=5) | st.floats().map(str))
line = st.tuples(st.text(max_size=9), st.lists(option, max_size=3)).map(
    lambda row: " ".join([row[0], *(f"--{name} {value}" for name, value in row[1])])
)
entries = st.lists(st.dictionaries(st.sampled_from([*sampling.FILE_KEYS, "x"]), some_json, max_size=4), max_size=2)


@settings(fuzz, max_examples=2 * EXAMPLES)
@given(
    st.tuples(st.just("txt"), line | st.binary(max_size=30))
    | st.tuples(st.just("json"), (entries | some_json).map(json.dumps))
    | st.tuples(st.just("toml"), some_json.map(lambda value: f"prompt = {json.dumps(value)}") | st.text(max_size=30))
)
def test_any_prompt_file_is_refused_or_gives_prompts_that_can_be_drawn(file, kind_and_content):
    kind, content = kind_and_content
    path = file.with_suffix(f".{kind}")
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    try:
        prompts = sampling.read_prompts(path)
    except UserError:
        return
    for prompt in sampling.complete(prompts, size=(512, 512), seed=1, sampler="ddim"):
        assert 64 <= prompt.width <= sampling.LARGEST_SIDE
        assert 64 <= prompt.height <= sampling.LARGEST_SIDE
        torch.Generator().manual_seed(prompt.seed)
        assert isinstance(prompt.text, str)
        assert isinstance(prompt.negative, str)
        assert abs(prompt.scale) < float("inf")
