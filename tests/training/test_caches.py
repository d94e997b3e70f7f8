"""What is encoded once before training, and when it is encoded anew."""

from types import SimpleNamespace

from library.data import cache, dataset
from library.families import tiny
from library.options.training import Config
from library.training import caches


def test_captions_encoded_of_older_tokens_are_not_taken_from_the_cache(tmp_path, monkeypatch):
    run = SimpleNamespace(
        settings=Config(cache_text_encoder_outputs=True, network_train_unet_only=True),
        plan=SimpleNamespace(batch_size=1),
        device=SimpleNamespace(torch_device="cpu"),
        cache_folder=tmp_path,
    )
    made = []
    monkeypatch.setattr(dataset, "captions_wanted", lambda *_: ["woman\u2019s hair"])
    monkeypatch.setattr(dataset, "captions_measured", lambda *_: [])
    monkeypatch.setattr(caches, "_captions_filled", lambda filled: made.append(filled.made) or "")
    current = cache.CAPTION_FORMAT
    for number in (current - 1, current, current):
        monkeypatch.setattr(cache, "CAPTION_FORMAT", number)
        caches.fill_texts(run, tiny("sd1"))
    assert made == [1, 1, 0]
