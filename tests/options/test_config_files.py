"""A configuration that is written is read back as it was; files of others are read as they are meant."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import train_network
from library.options import config_files
from library.options.checks import check
from library.options.training import OPTIONS, SECRETS, Config
from tests.options.test_command_line import CONFIGS

LETTERS = st.characters(blacklist_categories=("Cs",))  # control characters, quotes and backslashes among them


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("files") / "x"


@pytest.mark.slow("hundreds of random configurations")
@settings(max_examples=60, deadline=None)
@given(config=CONFIGS, note=st.text(LETTERS, min_size=1).filter(lambda text: text.strip().lower() not in ("", "none")))
def test_a_configuration_that_is_written_is_read_back_the_same(file, config, note):
    config = replace(config, training_comment=note)
    for suffix, text in ((".toml", config_files.as_toml(config)), (".json", config_files.as_json(config))):
        path = file.with_suffix(suffix)
        path.write_text(text, encoding="utf-8", newline="\n")
        values, where = config_files.read_values(path)
        assert replace(Config(), **values) == config
        assert where.keys() == values.keys()


def test_every_option_stands_in_the_file_but_for_secrets_and_what_only_the_block_needs():
    config = replace(Config(), wandb_api_key="k3y")
    names = {option.name for option in OPTIONS.values() if option.is_flag} - SECRETS
    assert config_files.values_of(config).keys() == names
    written = config_files.as_toml(config)
    assert {line.lstrip("# ").split(" =")[0] for line in written.splitlines() if " =" in line} == names
    assert "k3y" not in written + config_files.as_json(config)


def test_output_config_writes_the_file_that_config_file_reads(tmp_path, capsys):
    places = [f"--pretrained_model_name_or_path={tmp_path}", f"--train_data_dir={tmp_path}", "--seed", "none"]
    for name in ("a.toml", "b.json", "c"):
        path = tmp_path / name
        flags = [
            *places,
            "--network_dim",
            "5",
            "--config_file",
            str(path),
            "--output_config",
            "--save_every_n_epochs=none",
        ]
        assert train_network.main(flags) == 0
        written = path if path.suffix else path.with_suffix(".toml")
        config, _ = check(*config_files.read_values(written))
        assert (config.network_dim, config.seed, config.save_every_n_epochs) == (5, None, None)
        assert train_network.main(flags) == 2  # never over another
        assert "exists already" in capsys.readouterr().err
    assert train_network.main(["--output_config", *places]) == 2
    assert "--output_config needs --config_file x.toml" in capsys.readouterr().err


def test_an_empty_text_is_not_given_and_numbers_may_stand_in_quotes(tmp_path):
    (tmp_path / "p.json").write_text(
        '{"seed": "", "network_dim": "8",\n "learning_rate": "1e-4", "vae": " ", "flip_aug": "true"}', encoding="utf-8"
    )
    values, where = config_files.read_values(tmp_path / "p.json")
    assert values == {"network_dim": 8, "learning_rate": 1e-4, "flip_aug": True}
    assert where == {"network_dim": "p.json:1", "learning_rate": "p.json:2", "flip_aug": "p.json:1"}


def test_a_line_of_json_is_found(tmp_path):
    (tmp_path / "p.json").write_text('{\n  "network_dim": 8,\n  "network_dims": 9\n}', encoding="utf-8")
    assert config_files.read_values(tmp_path / "p.json")[1] == {"network_dim": "p.json:2", "network_dims": "p.json:3"}


def test_what_only_the_block_needs_is_refused_in_a_file_of_the_command_line(tmp_path, capsys):
    (tmp_path / "p.json").write_text('{"multi_run_folder": "x"}', encoding="utf-8")
    assert train_network.main(["--config_file", str(tmp_path / "p.json")]) == 2
    assert 'multi_run_folder = "x" is only for lora_train_command_line.py' in capsys.readouterr().err
    assert not OPTIONS["multi_run_folder"].is_flag
