"""What is said of wrong, contradictory and doubtful values, word by word, in both languages."""

import ast
import importlib.metadata
import importlib.util
import math
import re
from pathlib import Path

import pytest

from library.messages import set_language
from library.options import checks, training
from library.options.checks import ConfigError, check
from library.options.training import GROUPS, OPTIONS

CHINESE = re.compile("[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]")
ENGLISH_SENTENCE = re.compile(r"\b[a-z]+ [a-z]+ [a-z]+\b")
SCRIPT = "lora_train_command_line.py"


@pytest.fixture(autouse=True)
def _english():
    set_language("en")
    yield
    set_language("en")


@pytest.fixture
def places(tmp_path):
    """A base model and a training set that are there."""
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "train").mkdir()
    (tmp_path / "reg").mkdir()
    return {
        "pretrained_model_name_or_path": str(tmp_path / "model.safetensors"),
        "train_data_dir": str(tmp_path / "train"),
        "reg_data_dir": str(tmp_path / "reg"),
    }


def problems_of(values, where=None):
    with pytest.raises(ConfigError) as caught:
        check(values, where or {})
    return caught.value.problems


WRONG = [
    ({"network_dims": 4}, "network_dims: there is no such parameter. Did you mean network_dim?"),
    ({"qqqqqqqq": 4}, "qqqqqqqq: there is no such parameter."),
    ({"network_dim": "large"}, 'network_dim = "large" is not a number'),
    ({"network_dim": 4.5}, "network_dim = 4.5 is not a whole number"),
    ({"network_dim": True}, "network_dim = True is not a number"),
    ({"network_dim": None}, "network_dim = None is not allowed here; the default is 32"),
    ({"network_dim": 0}, "network_dim = 0 is below 1, the least possible"),
    (
        {"network_dim": [4, 8]},
        "network_dim = [4, 8] are 2 values, one is expected; put quotes around a text with spaces",
    ),
    ({"learning_rate": 0}, "learning_rate = 0 is not above 0"),
    ({"learning_rate": math.nan}, "learning_rate = nan is not a number"),
    ({"clip_skip": 13}, "clip_skip = 13 is not between 1 and 12"),
    ({"seed": -1}, "seed = -1 is not between 0 and 4294967295"),
    ({"learning_rate": "0"}, 'learning_rate = "0" is not above 0'),
    ({"cache_latents": "off"}, 'cache_latents = "off" is neither True nor False'),
    ({"save_precision": "fp61"}, 'save_precision = "fp61" is not one of "fp16", "bf16", "float". Did you mean "fp16"?'),
    ({"output_name": 7}, 'output_name = 7 is not text; put it in quotes: "7"'),
    ({"output_name": "a.safetensors"}, 'output_name = "a.safetensors" has an extension; remove it: "a"'),
    (
        {"output_name": "my:tag"},
        'output_name = "my:tag" contains ":", which is not allowed in a file name; a folder goes into output_dir',
    ),
    ({"output_name": "con"}, 'output_name = "con" is not a valid file name on every system; use another'),
    ({"output_name": ""}, 'output_name = "" is not a valid file name on every system; use another'),
    ({"resolution": "big"}, 'resolution = "big" is not a size: 512, "512,768" (width,height) or "auto"'),
    ({"lr_warmup_steps": 1.5}, 'lr_warmup_steps = 1.5 is neither steps (100) nor a share (0.05, "5%")'),
    ({"lr_warmup_steps": "120%"}, 'lr_warmup_steps = "120%" is neither steps (100) nor a share (0.05, "5%")'),
    ({"optimizer_args": ["fast"]}, "optimizer_args = ['fast'] contains \"fast\", which is not name=value"),
    ({"optimizer_args": 3}, 'optimizer_args = 3 is not a list of texts such as ["a", "b"]'),
    (
        {"vae": "stabilityai/sd-vae-ft-mse"},
        'vae = "stabilityai/sd-vae-ft-mse" is not on this machine, and nothing is downloaded: use a .safetensors file '
        "or a diffusers folder",
    ),
    ({"output_dir": ""}, 'output_dir = "" is empty; set a path'),
    ({"output_dir": __file__}, f'output_dir = "{__file__}" is a file; a folder is needed'),
    # contradictions
    (
        {"color_aug": True, "cache_latents": True},
        "color_aug = True changes the images at every use, so they cannot be cached. Set cache_latents to False, "
        "or this",
    ),
    (
        {"random_crop": True, "cache_latents": True},
        "random_crop = True changes the images at every use, so they cannot be cached. Set cache_latents to False, "
        "or this",
    ),
    (
        {"network_train_unet_only": True, "network_train_text_encoder_only": True},
        "network_train_unet_only = True can't be combined with network_train_text_encoder_only. Set one of them to "
        "False",
    ),
    (
        {"unet_lr": 0, "text_encoder_lr": 0},
        "unet_lr = 0.0 leaves nothing to train, because the other part is not trained either. Set a learning rate",
    ),
    (
        {"network_train_text_encoder_only": True, "text_encoder_lr": 0},
        "text_encoder_lr = 0.0 leaves nothing to train, because the other part is not trained either. Set a "
        "learning rate",
    ),
    (
        {"network_train_unet_only": True, "unet_lr": 0},
        "unet_lr = 0.0 leaves nothing to train, because the other part is not trained either. Set a learning rate",
    ),
    (
        {"cache_text_encoder_outputs": True},
        "cache_text_encoder_outputs = True is not possible while the text encoder is trained. "
        "Set text_encoder_lr to 0, or this to False",
    ),
    (
        {"cache_text_encoder_outputs": True, "text_encoder_lr": 0, "shuffle_caption": True},
        "cache_text_encoder_outputs = True is not possible with shuffle_caption, which changes the captions. Turn "
        "one of them off",
    ),
    (
        {"max_train_epochs": None},
        "max_train_epochs = None and max_train_steps = None: how long should it train? Set one of them",
    ),
    (
        {"lr_warmup_steps": 100, "lr_scheduler": "constant"},
        'lr_warmup_steps = 100 has no effect with lr_scheduler = "constant", which has no warmup. Use '
        '"constant_with_warmup", or set it to 0',
    ),
    (
        {"lr_warmup_steps": 200, "max_train_steps": 100},
        "lr_warmup_steps = 200 is not less than max_train_steps = 100: the learning rate would never reach its value. "
        "Lower it, or train longer.",
    ),
    (
        {"lr_scheduler": "adafactor", "optimizer_type": "Lion"},
        'lr_scheduler = "adafactor" needs optimizer_type = "Adafactor", not "Lion". Use "constant" or another schedule',
    ),
    (
        {"resolution": 512, "min_bucket_reso": 576},
        "min_bucket_reso = 576 is more than the resolution 512. Lower it, or set it to None",
    ),
    (
        {"resolution": "512,768", "max_bucket_reso": 640},
        "max_bucket_reso = 640 is less than the resolution 512,768. Raise it, or set it to None",
    ),
    (
        {"min_bucket_reso": 1024, "max_bucket_reso": 512},
        "min_bucket_reso = 1024 is more than max_bucket_reso = 512",
    ),
    ({"bucket_reso_steps": 20}, "bucket_reso_steps = 20 is not a multiple of 8"),
]


@pytest.mark.parametrize(
    ("values", "line"), WRONG, ids=[line.split(" = ")[0] + f"-{n}" for n, (_, line) in enumerate(WRONG)]
)
def test_a_wrong_value_is_told_with_its_cure_in_one_language(places, values, line):
    assert problems_of(places | values) == [line]
    set_language("zh")
    (chinese,) = problems_of(places | values)
    assert_chinese(chinese)


def assert_chinese(line):
    assert CHINESE.search(line), line
    assert not ENGLISH_SENTENCE.search(re.sub('"[^"]*"', "", line)), line


DOUBTFUL = [
    ({"learning_rate": 1}, "learning_rate = 1.0 is far above the usual for AdamW: 1e-06 to 0.01"),
    ({"learning_rate": 1e-7}, "learning_rate = 1e-07 is far below the usual for AdamW: 1e-06 to 0.01"),
    ({"unet_lr": 1}, "unet_lr = 1.0 is far above the usual for AdamW: 1e-06 to 0.01"),
    (
        {"optimizer_type": "Prodigy", "text_encoder_lr": None, "learning_rate": 1e-4},
        "learning_rate = 0.0001 is far below the usual for Prodigy: 0.1 to 10",
    ),
    ({"max_train_steps": 50, "max_train_epochs": 3}, "max_train_steps = 50 overrides max_train_epochs = 3"),
    (
        {"keep_tokens": 1},
        "keep_tokens = 1 has no effect without shuffle_caption / caption_tag_dropout_rate / token_warmup_step",
    ),
    ({"conv_alpha": 4}, "conv_alpha = 4.0 has no effect without conv_dim"),
    (
        {"lr_scheduler_num_cycles": 3},
        'lr_scheduler_num_cycles = 3 has no effect without lr_scheduler = "cosine_with_restarts"',
    ),
    ({"lr_scheduler_power": 2}, 'lr_scheduler_power = 2.0 has no effect without lr_scheduler = "polynomial"'),
    (
        {"save_every_n_epochs": None, "save_last_n_epochs": 2},
        "save_last_n_epochs = 2 has no effect without save_every_n_epochs",
    ),
    ({"reg_data_dir": None, "prior_loss_weight": 0.5}, "prior_loss_weight = 0.5 has no effect without reg_data_dir"),
    (
        {"prior_loss_weight": 0},
        "prior_loss_weight = 0.0 leaves the regularization images without effect, they only take time; "
        "set reg_data_dir to None instead",
    ),
    (
        {"save_model_as": "ckpt"},
        'save_model_as = "ckpt" has no room for metadata: programs and show_lora.py can\'t tell its trigger words, '
        'base model or settings. "safetensors" has',
    ),
    ({"color_aug": True}, "cache_latents is off, because color_aug changes the images at every use"),
    (
        {"optimizer_type": "AdamW8bit", "device": "cpu"},
        'optimizer_type = "AdamW8bit" cannot work here (device cpu): the same without 8 bits is used instead',
    ),
]


@pytest.mark.parametrize(
    ("values", "line"), DOUBTFUL, ids=[line.split(" ")[0] + f"-{n}" for n, (_, line) in enumerate(DOUBTFUL)]
)
def test_a_doubtful_value_is_told_and_taken(places, values, line):
    assert check(places | values, {})[1] == [line]
    set_language("zh")
    (chinese,) = check(places | values, {})[1]
    assert_chinese(chinese)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"optimizer_type": "Prodigy", "learning_rate": 1, "text_encoder_lr": None},
        {"optimizer_type": "Prodigy", "learning_rate": 1, "network_train_unet_only": True},
        {"keep_tokens": 1, "shuffle_caption": True},
        {"lr_scheduler": "COSINE_with_restarts", "lr_scheduler_num_cycles": 3},
        {"max_train_steps": 50},
        {"resolution": 512, "min_bucket_reso": 320, "max_bucket_reso": 960},
        {"resolution": 500, "min_bucket_reso": 510},  # rounded down to 448, as sd-scripts does
    ],
)
def test_usual_values_are_taken_without_a_word(places, values):
    assert check(places | values, {})[1] == []


@pytest.mark.parametrize(
    ("name", "value", "taken"),
    [
        ("network_dim", 10 * 2, 20),
        ("network_dim", 64 / 2, 32),
        ("network_alpha", 8, 8.0),
        ("cache_latents", 1, True),
        ("save_precision", "FP16", "fp16"),
        ("cache_text_encoder_outputs", "AUTO", "auto"),
        ("cache_text_encoder_outputs", False, False),
        ("vae", "None", None),
        ("vae", "", None),
        ("save_every_n_epochs", 0, None),
        ("sample_every_n_epochs", 0, 0),
        ("seed", 0, 0),
        ("resolution", "512", 512),
        ("resolution", (512, 768), "512,768"),
        ("resolution", "512,512", 512),
        ("resolution", "512 x 768", "512,768"),
        ("lr_warmup_steps", "5%", 0.05),
        ("lr_warmup_steps", 0.05, 0.05),
        ("lr_warmup_steps", 100.0, 100),
        ("optimizer_args", "weight_decay=0.1 betas=0.9,0.99", ["weight_decay=0.1", "betas=0.9,0.99"]),
        ("optimizer_args", [], None),
        ("output_name", "我的 LoRA v1.2", "我的 LoRA v1.2"),
        ("output_dir", Path("a") / "b", str(Path("a") / "b")),
    ],
)
def test_values_come_out_in_one_spelling(places, name, value, taken):
    result = getattr(check(places | {name: value}, {})[0], name)
    assert result == taken
    assert type(result) is type(taken)


@pytest.mark.parametrize(
    ("typed", "what"),
    [
        ("C:\new", "a line break"),
        ("D:\train", "a tab"),
        ("D:\1_me", "a control character"),
        ("D:\benis", "a control character"),
    ],
)
def test_a_windows_path_without_r_is_recognised(places, typed, what):
    meant = {"C:\new": r"C:\new", "D:\train": r"D:\train", "D:\1_me": r"D:\1_me", "D:\benis": r"D:\benis"}[typed]
    (line,) = problems_of(places | {"output_dir": typed}, {"output_dir": f"{SCRIPT}:12"})
    assert line.startswith(f"{SCRIPT}:12: output_dir = '")
    assert line.endswith(
        f"contains {what}, because \\ in plain quotes is special: "
        f"""write it with / or as r"{meant}" (in .toml: '{meant}')"""
    )


def test_a_missing_path_is_told_with_what_is_there(places, tmp_path):
    (line,) = problems_of(places | {"train_data_dir": str(tmp_path / "trian")})
    assert line.endswith(f'does not exist: there is no "trian" in "{tmp_path}". Did you mean "{tmp_path / "train"}"?')
    (tmp_path / "train" / "deep").mkdir()
    (line,) = problems_of(places | {"train_data_dir": str(tmp_path / "Trian" / "deep")})
    assert line.endswith(f'Did you mean "{tmp_path / "train" / "deep"}"?')
    (line,) = problems_of(places | {"train_data_dir": str(tmp_path / "train") + " "})
    assert line.endswith(f'does not exist. Did you mean "{tmp_path / "train"}"?')
    (line,) = problems_of(places | {"vae": str(tmp_path / "nowhere" / "vae.pt")})
    assert line.endswith(f'does not exist: there is no "nowhere" in "{tmp_path}".')
    (line,) = problems_of(places | {"network_weights": str(tmp_path / "train")})
    assert line.endswith("is a folder; a file is needed")


def test_the_training_folder_cannot_be_the_regularization_folder(places):
    (line,) = problems_of(places | {"reg_data_dir": places["train_data_dir"]})
    assert line.endswith("is the training folder itself. Choose another folder, or None")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("network_dim", "32", 32),
        ("learning_rate", "1e-4", 1e-4),
        ("text_encoder_lr", "0", 0.0),
        ("seed", " 23 ", 23),
        ("cache_latents", "False", False),
        ("flip_aug", "1", True),
        ("lr_warmup_steps", "100", 100),
        ("max_token_length", "225", 225),
    ],
)
def test_quotes_around_a_number_or_a_switch_do_not_change_it(places, name, text, value):
    assert getattr(check(places | {name: text}, {})[0], name) == value


def test_everything_wrong_is_told_at_once_each_with_its_place(places):
    values = places | {"network_dims": 3, "max_train_steps": 100, "lr_warmup_steps": 200, "seed": "many"}
    where = {"network_dims": f"{SCRIPT}:41", "lr_warmup_steps": f"{SCRIPT}:58", "seed": "--seed"}
    with pytest.raises(ConfigError) as caught:
        check(values, where, ["what kohya found"])
    assert str(caught.value).splitlines() == [
        "4 problems in the parameters:",
        "  what kohya found",
        f"  {SCRIPT}:41: network_dims: there is no such parameter. Did you mean network_dim?",
        '  --seed "many" is not a number',
        f"  {SCRIPT}:58: lr_warmup_steps = 200 is not less than max_train_steps = 100: "
        "the learning rate would never reach its value. Lower it, or train longer.",
    ]


def test_a_value_that_was_refused_causes_no_further_complaint(places):
    """The default that stands in for it must not be held against the user."""
    assert problems_of(places | {"cache_text_encoder_outputs": True, "text_encoder_lr": "none at all"}) == [
        'text_encoder_lr = "none at all" is not a number'
    ]


def test_regularization_images_of_the_miniature_are_not_mixed_into_other_sets(places):
    del places["reg_data_dir"]
    assert check(places, {})[0].reg_data_dir is None


def test_what_is_left_of_the_miniature_is_told(places, tmp_path, monkeypatch):
    monkeypatch.setattr("library.options.checks.doubtful.PROJECT", tmp_path)
    (tmp_path / OPTIONS["reg_data_dir"].default).mkdir(parents=True)
    left = str(tmp_path / OPTIONS["reg_data_dir"].default)
    (line,) = check(places | {"reg_data_dir": left}, {})[1]
    assert line.endswith("is still the built-in miniature's: set your own")


def test_presets_are_not_flags(places):
    assert problems_of(places | {"multi_run_folder": "x"}, {"multi_run_folder": "--multi_run_folder"}) == [
        '--multi_run_folder "x" is only for lora_train_command_line.py'
    ]


def test_defaults_are_taken_as_they_are(places):
    """A default that its own check would refuse or change could not be written into the block."""
    for name, option in OPTIONS.items():
        if option.path not in ("folder", "model") or option.default is None:
            checked = getattr(check(places | {name: option.default}, {})[0], name)
            assert checked == option.default, name


def test_both_texts_of_every_option_are_there_and_unmixed():
    for name, option in OPTIONS.items():
        assert option.group in GROUPS
        assert not CHINESE.search(option.english), name
        assert_chinese(option.chinese)
        assert "\n" not in option.english + option.chinese
        assert option.kinds, name
        for number in re.findall(r"\d\S*~\S*\d", option.english):
            assert number in option.chinese, f"{name}: the range {number} is told in one language only"


@pytest.mark.parametrize(
    "part",
    ["checks/__init__", "checks/values", "checks/impossible", "checks/doubtful", "resuming"]
    + ["command_line", "config_files", "sd_scripts", "window_presets", "parameter_block"],
)
def test_messages_are_never_two_languages_glued_together(part):
    source = (Path(training.__file__).parent / f"{part}.py").read_text(encoding="utf-8")
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    pairs = [call.args for call in calls if getattr(call.func, "id", "") in ("say", "_refuse") and len(call.args) == 2]
    assert pairs
    for english, chinese in pairs:
        assert not CHINESE.search(literal_part(english)), ast.unparse(english)
        if literal_part(chinese).strip():
            assert_chinese(literal_part(chinese))


def literal_part(node):
    """The text of a literal or f-string, without what is put into it."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str))


def test_eight_bit_adam_is_told_to_be_impossible_before_torch_is_imported(monkeypatch):
    builds = iter(["2.5.0+rocm6.2", "2.5.0+cpu", "2.5.0+cu124"])
    monkeypatch.setattr(importlib.metadata, "version", lambda package: next(builds))
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    assert checks.why_no_8bit_adam() == "torch is a rocm6.2 build"
    assert checks.why_no_8bit_adam() == "torch is a cpu build"
    assert checks.why_no_8bit_adam() == "the package bitsandbytes is not installed"
