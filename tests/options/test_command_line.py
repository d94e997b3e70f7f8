"""Flags and .toml files become the values that were meant, and back."""

import shlex
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import train_network
from library import messages
from library.messages import set_language
from library.options import command_line
from library.options.checks import ConfigError, check
from library.options.command_line import parse, to_arguments
from library.options.training import OPTIONS, SECRETS, Config


@pytest.fixture(autouse=True)
def _english(monkeypatch):
    monkeypatch.setattr(messages, "locale_language", lambda: "en")
    set_language("en")


TEXTS = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=12)


def values_of(option):
    """Any value that the option can have once it is checked."""
    kinds = OPTIONS[option.name].kinds
    if option.choices:
        values = st.sampled_from(option.choices)
    elif option.name == "resolution":
        values = st.one_of(st.just("auto"), st.integers(16, 4096), st.just("512,768"))
    elif option.name == "skip_image_resolution":
        values = st.one_of(st.integers(16, 4096), st.just("512,768"))
    elif option.name == "lr_warmup_steps":
        values = st.one_of(st.integers(0, 9999), st.floats(1e-6, 0.999))
    elif list in kinds:
        values = st.lists(TEXTS.map(lambda text: f"key={text}"), min_size=1, max_size=3)
    elif bool in kinds:
        values = st.booleans()
    elif int in kinds:
        values = st.integers(int(option.minimum), int(option.maximum or 10**6))
    elif float in kinds:
        low = option.minimum if option.above is None else option.above
        values = st.floats(low, option.maximum or 1e6, exclude_min=option.above is not None)
    else:
        values = TEXTS.filter(lambda text: text.strip().lower() not in ("", "none"))
    return st.one_of(st.none(), values) if type(None) in kinds else values


CONFIGS = st.builds(
    Config, **{name: values_of(option) for name, option in command_line.FLAGS.items() if name not in SECRETS}
)


@settings(max_examples=60, deadline=None)
@given(CONFIGS)
def test_the_arguments_of_a_configuration_give_it_again(config):
    values, where = parse(to_arguments(config))
    assert replace(Config(), **values) == config
    assert where == {name: f"--{name}" for name in values}


@settings(max_examples=20, deadline=None)
@given(CONFIGS)
def test_the_printed_command_gives_the_configuration_again(config):
    python, script, *argv = shlex.split(command_line.command(config))
    assert script.endswith("train_network.py")
    assert replace(Config(), **parse(argv)[0]) == config


def test_only_what_differs_is_printed_beside_what_must_be_given():
    config = replace(Config(), network_dim=8, cache_latents=False, save_state=True, seed=None, reg_data_dir=None)
    must = [option.name for option in OPTIONS.values() if option.group == "must" and option.is_flag]
    assert to_arguments(config)[-6:] == ["--network_dim", "8", "--seed", "none", "--no-cache_latents", "--save_state"]
    assert [word[2:] for word in to_arguments(config)[:-6] if word.startswith("--")] == must


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("--network_dim 8 --network_alpha 4", {"network_dim": 8, "network_alpha": 4}),
        ("--network_dim=8", {"network_dim": 8}),
        ("--network-dim 8", {"network_dim": 8}),
        ("--network_dim 8 --network_dim 16", {"network_dim": 16}),
        ("--learning_rate 1e-4", {"learning_rate": 1e-4}),
        ("--shuffle_caption --flip_aug", {"shuffle_caption": True, "flip_aug": True}),
        ("--no-cache_latents --no_enable_bucket", {"cache_latents": False, "enable_bucket": False}),
        ("--cache_latents false", {"cache_latents": False}),
        ("--no_metadata", {"no_metadata": True}),
        ("--no-no_metadata", {"no_metadata": False}),
        ("--cache_text_encoder_outputs", {"cache_text_encoder_outputs": True}),
        ("--cache_text_encoder_outputs auto", {"cache_text_encoder_outputs": "auto"}),
        ("--reg_data_dir none", {"reg_data_dir": None}),
        (
            "--optimizer_args weight_decay=0.1 betas=0.9,0.99",
            {"optimizer_args": ["weight_decay=0.1", "betas=0.9,0.99"]},
        ),
        ("--optimizer_args none", {"optimizer_args": None}),
        ("--resolution 512,768 --output_name 001", {"resolution": "512,768", "output_name": "001"}),
        ("--net_dim 8 --sdpa --no_half_vae", {"net_dim": 8, "sdpa": True, "no_half_vae": True}),  # kohya knows them
    ],
)
def test_flags_are_read_as_in_sd_scripts(line, values):
    assert parse(line.split())[0] == values


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--network_dims", "8"], "--network_dims: there is no such flag. Did you mean --network_dim?"),
        (["--network_dim"], "--network_dim has no value"),
        (["--resume"], "--resume has no value"),
        (["--network_dim", "eight"], '--network_dim "eight" is not a number'),
        (["--network_dim", "8.5"], "--network_dim 8.5 is not a whole number"),
        (
            ["--output_dir", "my", "pictures"],
            '--output_dir "my" "pictures" are 2 values, one is expected; put quotes around a text with spaces',
        ),
        (["--load_json_path", "x.json"], '--load_json_path "x.json" is only for lora_train_command_line.py'),
    ],
)
def test_a_wrong_flag_is_told_with_its_cure(tmp_path, argv, line):
    values, where = parse([*argv, "--pretrained_model_name_or_path", str(tmp_path), "--train_data_dir", str(tmp_path)])
    with pytest.raises(ConfigError) as caught:
        check(values, where)
    assert caught.value.problems == [line]


def test_a_word_before_the_first_flag_is_told():
    with pytest.raises(ConfigError, match='"pictures" comes before the first --flag'):
        parse(["pictures", "--network_dim", "8"])


def test_a_toml_file_is_read_and_the_command_line_wins(tmp_path):
    file = tmp_path / "x.toml"
    text = "seed = 7\n[network]\nnetwork_dim = 8\n\n[a.b]\nc = 1\n"
    text += "[learning]\n  learning_rate = 2e-4\ntext_encoder_lr = [5e-5]\n"
    file.write_text(text, encoding="utf-8")
    values, where = parse(["--config_file", str(file), "--network_dim", "16"])
    assert values == {"seed": 7, "network_dim": 16, "b": {"c": 1}, "learning_rate": 2e-4, "text_encoder_lr": [5e-5]}
    assert where["seed"] == "x.toml:1"
    assert where["learning_rate"] == "x.toml:8"
    assert where["network_dim"] == "--network_dim"
    assert parse(["--config_file", str(tmp_path / "x")])[0]["seed"] == 7  # sd-scripts adds the ending, too


def test_an_unknown_key_of_a_toml_file_is_refused(tmp_path):
    (tmp_path / "x.toml").write_text("\n[network]\nnetwork_dims = 8\n", encoding="utf-8")
    values, where = parse(["--config_file", str(tmp_path / "x.toml")])
    place = {"pretrained_model_name_or_path": str(tmp_path), "train_data_dir": str(tmp_path)}
    with pytest.raises(ConfigError) as caught:
        check(values | place, where)
    assert caught.value.problems == ["x.toml:3: network_dims: there is no such parameter. Did you mean network_dim?"]


def test_a_toml_file_from_a_chinese_editor_is_read(tmp_path):
    for encoding in ("gb18030", "utf-8-sig"):
        (tmp_path / "x.toml").write_text("training_comment = '一只睡觉的猫'\nlanguage = 'zh'", encoding=encoding)
        assert parse(["--config_file", str(tmp_path / "x.toml")])[0]["training_comment"] == "一只睡觉的猫"
        assert messages.say("en", "zh") == "zh"


def test_a_broken_toml_file_is_told_with_its_line(tmp_path):
    (tmp_path / "x.toml").write_text("seed = 1\nvae = C:/x\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="x.toml:2: not valid TOML at column 7"):
        parse(["--config_file", str(tmp_path / "x.toml")])
    with pytest.raises(ConfigError, match="x.toml:2：第 7 列不合 TOML 写法"):
        parse(["--config_file", str(tmp_path / "x.toml"), "--language", "zh"])
    with pytest.raises(ConfigError, match="nowhere.toml cannot be read"):
        parse(["--config_file", str(tmp_path / "nowhere.toml")])


def test_help_lists_every_flag_in_both_languages(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(["--help"])
    assert stopped.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    for name, option in OPTIONS.items():
        at = [n for n, line in enumerate(lines) if line.split()[:1] == [f"--{name}"] and "[" in line]
        assert len(at) == option.is_flag, name
        for n in at:
            assert lines[n + 1].strip() == option.english
            assert lines[n + 2].strip() == option.chinese


def test_a_command_or_file_without_a_base_model_asks_for_one(tmp_path, capsys):
    (tmp_path / "x.toml").write_text("network_dim = 8\n", encoding="utf-8")
    for flags in (["--network_dim=8"], ["--config_file", str(tmp_path / "x.toml")], []):
        assert train_network.main(flags) == 2
        told = capsys.readouterr().err
        assert "pretrained_model_name_or_path is missing: the base model. On a command line: --pretrained_model" in told
        assert "train_data_dir is missing: the folder that holds your folders of images" in told
    assert train_network.main(["--device_plan", "print only"]) == 0
