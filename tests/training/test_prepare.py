"""LoRA files that a run begins with: of other kinds, and with embeddings beside the layers."""

import dataclasses

import torch
from safetensors.torch import save_file

from library import adapters, families
from library.options.declaration import PROJECT
from library.options.training import Config
from library.training import prepare

BUNDLED = {"bundle_emb.sks.string_to_param.*": torch.ones(2, 32)}


def with_an_embedding(path, kind):
    """A file for the miniature, of two of its layers."""
    info = families.inspect(PROJECT / Config().pretrained_model_name_or_path)
    few = families.blueprint(info).targets()[:2]
    for target in few:
        target.layer.to_empty(device="cpu").weight.data.fill_(0.1)
    attached = adapters.attach(few, module=kind, rank=2)
    save_file({name: tensor.clone() for name, tensor in attached.state_dict().items()} | BUNDLED, path)
    return info, {target.saved_as for target in few}


def test_the_lora_to_begin_with_is_read_and_its_embedding_kept(tmp_path):
    path = tmp_path / "a.safetensors"
    info, layers = with_an_embedding(path, "lora")
    asked = dataclasses.replace(Config(), network_weights=str(path))
    for model in (info, None):
        assert {name.partition(".")[0] for name in prepare.read_start(asked, model)} == layers
    bundled, notes = prepare.read_bundled(asked)
    assert bundled.keys() == BUNDLED.keys()
    assert notes == ["a.safetensors also holds the embedding sks: not trained, and kept in the files of this run"]


def test_files_of_every_kind_may_be_base_weights(tmp_path, capsys):
    kinds, layers = ("lora", "loha", "lokr", "dora"), set()
    paths = [tmp_path / f"{kind}.safetensors" for kind in kinds]
    for path, kind in zip(paths, kinds, strict=True):
        info, layers = with_an_embedding(path, kind)
    asked = dataclasses.replace(Config(), base_weights=[str(path) for path in paths], base_weights_multiplier=[0.5])
    strengths = prepare.read_base(asked, info)
    assert [one.unet for one in strengths] == [0.5, 1.0, 1.0, 1.0]
    assert all(one.factors.keys() == layers for one in strengths)
    assert (
        "dora.safetensors also holds the embedding sks: only the LoRA goes into the base model"
        in capsys.readouterr().out
    )
