"""Files that hold parameters and data sets: each reader takes its part, and no value gets lost between them.

The second has the layout and the usual values of a file saved by LoRA_Easy_Training_Scripts.
"""

import re
from pathlib import Path

import pytest

from library.data.dataset_config import read_dataset_config
from library.messages import set_language
from library.options import config_files, sd_scripts
from library.options.checks import ConfigError, check
from library.options.training import Config

BESIDE_PARAMETERS = """
pretrained_model_name_or_path = "<model>"
[general]
batch_size = 3
shuffle_caption = true
num_repeats = 4
[training]
learning_rate = 2e-4
[[datasets]]
resolution = 64
[[datasets.subsets]]
image_dir = "<images>"
keep_tokens = 1
"""
EASY_SCRIPTS = """
[[subsets]]
image_dir = "<images>"
name = "subset 1"
keep_tokens = 1
num_repeats = 8
caption_extension = ".txt"
shuffle_caption = true
random_crop = false
caption_tag_dropout_rate = 0.0

[train_mode]
train_mode = "lora"

[general_args.args]
pretrained_model_name_or_path = "<model>"
seed = 0
max_token_length = 225
prior_loss_weight = 1.0
sdpa = true
max_train_epochs = 4

[general_args.dataset_args]
resolution = [ 768, 512,]
batch_size = 2

[network_args.args]
network_dim = 16
network_alpha = 8.0

[network_args.args.network_args]
conv_dim = 8
conv_alpha = 1.0
algo = "loha"
preset = ""

[optimizer_args.args]
optimizer_type = "AdamW"
lr_scheduler = "cosine"
learning_rate = 0.0003
text_encoder_lr = 0.0
warmup_ratio = 0.05

[optimizer_args.args.optimizer_args]
weight_decay = "0.1"
betas = "0.9,0.99"

[bucket_args.dataset_args]
enable_bucket = true
min_bucket_reso = 256
"""


@pytest.fixture(autouse=True)
def _english():
    set_language("en")


@pytest.fixture
def read(tmp_path):
    """read(text) -> the configuration of a file, and the data sets it describes."""
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "images").mkdir()

    def read(text: str):
        file = tmp_path / "x.toml"
        places = {"<model>": tmp_path / "model.safetensors", "<images>": tmp_path / "images"}
        for name, path in places.items():
            text = text.replace(name, path.as_posix())
        file.write_text(text, encoding="utf-8")
        values, where, _, problems = sd_scripts.translate(*config_files.read_values(file))
        config, _ = check(values, where, problems)
        return config, read_dataset_config(config)

    return read


def test_data_sets_may_stand_beside_the_parameters(read):
    config, sets = read(BESIDE_PARAMETERS)
    assert (config.learning_rate, Path(config.dataset_config).name) == (2e-4, "x.toml")
    (subset,) = sets.subsets
    assert (subset.repeats, subset.options.resolution, subset.options.keep_tokens) == (4, 64, 1)
    assert (subset.options.train_batch_size, subset.options.shuffle_caption) == (3, True)
    assert sets.notes == []


def test_a_file_of_easy_training_scripts_is_taken(read):
    config, sets = read(EASY_SCRIPTS)
    expected = dict(
        seed=None, max_train_epochs=4, network_module="loha", conv_dim=8, conv_alpha=1.0, network_alpha=8.0,
        text_encoder_lr=None, lr_warmup_steps=0.05, optimizer_args=["weight_decay=0.1", "betas=0.9,0.99"],
    )  # fmt: skip
    assert {name: getattr(config, name) for name in expected} == expected
    (subset,) = sets.subsets
    assert (subset.repeats, subset.options.resolution, subset.options.train_batch_size) == (8, "768,512", 2)
    assert (subset.options.shuffle_caption, subset.options.min_bucket_reso) == (True, 256)
    assert sets.notes == []


def test_what_easy_training_scripts_sends_to_its_trainer_is_taken_too(read):
    sent = EASY_SCRIPTS.replace("[[subsets]]", "[[dataset.subsets]]").replace('[train_mode]\ntrain_mode = "lora"', "")
    sent = re.sub(r"\[(\w+)\.args", r"[args.\1", sent)
    sent = re.sub(r"\[(\w+)\.dataset_args\]", r"[dataset.\1]", sent)
    config, sets = read(sent)
    saved, saved_sets = read(EASY_SCRIPTS)
    assert config == saved
    assert sets == saved_sets


@pytest.mark.parametrize("header", ["[[subsets]]", "[dataset]\ntrain_batch_size = 2\n[[dataset.subsets]]"])
def test_folders_under_other_headings_are_taken(read, header):
    text = f'pretrained_model_name_or_path = "<model>"\n{header}\nimage_dir = "<images>"\nnum_repeats = 3\n'
    _, sets = read(text)
    assert [subset.repeats for subset in sets.subsets] == [3]


def test_data_sets_under_no_known_heading_are_answered(read):
    with pytest.raises(ConfigError, match=r"dataset is not supported: data sets are written as tables headed"):
        read('pretrained_model_name_or_path = "<model>"\n[[dataset]]\nimage_dir = "<images>"\n')


def test_a_configuration_given_as_data_sets_is_told_in_one_line(tmp_path):
    (tmp_path / "x.toml").write_text("learning_rate = 1e-4\nbucket_no_upscale = true\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_dataset_config(Config(dataset_config=str(tmp_path / "x.toml")))
    assert caught.value.problems == [
        "x.toml holds parameters and no data sets ([[datasets]]): give it as --config_file, or as load_json_path"
    ]


@pytest.mark.parametrize(
    "text", ["subsets = [1]", "[a]\nargs = 1\ndataset_args = 2", "args = 1\n[dataset]\nsubsets = [2]"]
)
def test_a_file_of_no_known_form_is_no_traceback(read, text):
    with pytest.raises(ConfigError):
        read(f'pretrained_model_name_or_path = "<model>"\n{text}\n')


@pytest.mark.parametrize("text", [BESIDE_PARAMETERS, EASY_SCRIPTS])
def test_a_mistake_in_a_subset_is_told_at_its_line(read, text):
    line = text.replace("keep_tokens", "keep_token").splitlines().index("keep_token = 1") + 1
    with pytest.raises(ConfigError, match=f"x.toml:{line}: keep_token: there is no such option. Did you mean keep_t"):
        read(text.replace("keep_tokens", "keep_token"))


def test_parameters_that_do_not_count_are_told(read):
    config, _ = read(BESIDE_PARAMETERS)
    (line,) = read_dataset_config(Config(dataset_config=config.dataset_config, shuffle_caption=True)).notes
    assert line.startswith("x.toml: not read from there: learning_rate, train_batch_size. As dataset_config a file")
