"""The laboratory's statistics, its eyes, a claim of toy size. True ones take minutes: `python -m tests.laboratory`."""

import dataclasses
import json
import random
import re

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from library.diffusion import sampling
from library.lora_files import merging
from library.lora_files.factors import canonical
from library.miniature import MODEL_FOLDER
from library.miniature.checker import character_score
from library.miniature.drawings import Person, Scene, draw
from library.tooling import lora_files
from tests.laboratory import CLAIMS, caption_mismatch, experiment, people, written
from tests.laboratory.__main__ import DOCS
from tests.laboratory.diffusers_script import train_as_diffusers
from tests.laboratory.experiment import BASE, Claim, Comparison, Effect, Lora, Training, effect, verdict
from tests.laboratory.eyes import head_share, see

# ---- Statistics ----


def test_effect_is_the_mean_difference_its_t_interval_and_cohens_d():
    found = effect([3.0, 6.0, 9.0], [1.0, 2.0, 3.0])  # differences 2, 4, 6: mean 4, standard deviation 2
    assert found == pytest.approx((4.0, 4.303 * 2 / 3**0.5, 2.0))
    assert effect([1.0, 1.0], [0.0, 0.0]) == Effect(1.0, 0.0, float("inf"))
    assert effect([1.0, 1.0], [1.0, 1.0]) == Effect(0.0, 0.0, 0.0)


def test_quantiles_hold_95_percent_of_students_t():
    t = np.linspace(-2000, 2000, 400_001)
    for freedom, quantile in enumerate(experiment.STUDENT, 1):
        density = (1 + t**2 / freedom) ** (-(freedom + 1) / 2)
        assert density[abs(t) <= quantile].sum() / density.sum() == pytest.approx(0.95, abs=1e-3)


@pytest.mark.parametrize(
    ("difference", "half_width", "expected", "word"),
    [
        (0.5, 0.2, "more", "confirmed"),
        (0.5, 0.6, "more", "not shown"),  # 0 is in the interval
        (0.08, 0.05, "more", "not shown"),  # surely more, but of no account
        (-0.5, 0.2, "more", "contradicted"),
        (0.01, 0.05, "more", "contradicted"),  # there is surely no such difference
        (-0.5, 0.2, "less", "confirmed"),
        (0.5, 0.2, "less", "contradicted"),
        (0.01, 0.05, "same", "confirmed"),
        (0.01, 0.20, "same", "not shown"),
        (0.5, 0.2, "same", "contradicted"),
    ],
)
def test_verdicts(difference, half_width, expected, word):
    assert verdict(Effect(difference, half_width, 0.0), expected, margin=0.1) == word


# ---- Eyes ----

SCENES = [people.person(random.Random(seed), hat_colour=["", "purple"][seed % 2]) for seed in range(24)]
ALWAYS_SEEN = {"framing": "framing", "hair": "hair_colour", "hat": "hat_colour"}  # field of Seen -> of Person
SEEN_ON_BODIES = {"garment_colour": "garment_colour"}
SEEN_WHOLE = {"garment": "garment", "legwear": "legwear", "legwear_colour": "legwear_colour"}
SURE = ("framing", "garment_colour", "hat", "background")


def rights(images) -> dict[str, float]:
    """Share of right answers by field, of the images in which it can be seen."""
    answers: dict[str, list[bool]] = {}
    for scene, image in zip(SCENES, images, strict=True):
        fields = dict(ALWAYS_SEEN)
        fields |= SEEN_ON_BODIES if scene.person.framing != "face" else {}
        if scene.person.framing == "full body" and scene.person.garment_colour != scene.person.legwear_colour:
            fields |= SEEN_WHOLE  # a shirt and a skirt of one colour are a dress to any eye
        seen = see(image)
        answers.setdefault("background", []).append(seen.background == scene.background)
        for field, of_person in fields.items():
            answers.setdefault(field, []).append(getattr(seen, field) == getattr(scene.person, of_person))
    return {field: float(np.mean(found)) for field, found in answers.items()}


def test_eyes_read_the_drawings():
    shares = rights([np.asarray(draw(scene)) for scene in SCENES])
    assert min(shares[field] for field in SURE) == 1.0, shares
    assert min(shares.values()) >= 0.9, shares


@torch.no_grad()
def test_eyes_read_the_drawings_after_the_vae():
    family = experiment.base_model()
    pixels = torch.tensor(np.stack([np.asarray(draw(scene)) for scene in SCENES])).permute(0, 3, 1, 2) / 127.5 - 1
    images = [np.asarray(sampling.to_image(one)) for one in family.decode_latents(family.encode_images(pixels))]
    shares = rights(images)
    assert min(shares[field] for field in SURE) >= 0.97, shares
    assert min(shares.values()) >= 0.8, shares


def test_a_figures_head_is_a_third_of_its_height_and_a_face_has_no_body():
    figure = Person("red", "short hair", "shirt", "blue", "short sleeves", "skirt", "yellow", "", "full body")
    assert head_share(np.asarray(draw(Scene("gray", person=figure))), "blue") == pytest.approx(0.32, abs=0.02)
    face = dataclasses.replace(figure, framing="face")
    assert head_share(np.asarray(draw(Scene("gray", person=face))), "blue") == 1.0


# ---- Claims ----


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_compares_what_it_measures(name):
    claim = experiment.claim_of(name)
    conditions = claim.all_conditions()
    assert {lora.training for loras in conditions.values() for lora in loras} == set(claim.trainings)
    for question, index in claim.shown:
        assert claim.questions[question][index]


def make_set(folder, rng):
    scenes = [people.person(rng, framing="full body") for _ in range(4)]
    people.write(folder / "train" / "2_mytag", scenes, [people.described(scene) for scene in scenes])


@pytest.mark.slow("trains four LoRAs")
def test_a_claim_is_trained_measured_kept_and_written(tmp_path, monkeypatch):
    claim = Claim(
        title="Learning changes pictures",
        sentence="机器会学习。",
        method="Two steps.",
        trainings={"learned": Training(make_set, dict(learning_rate=1e-2))},
        questions={"one": ["mytag, person"], "two": ["red circle", "blue circle"]},
        measure=lambda drawn: {"brightness": float(np.mean(drawn["one"][0]))},
        comparisons=[Comparison("it is brighter", ("half", "brightness"), "more", (BASE, "brightness"))],
        conditions={BASE: (), "half": (Lora("learned", 0.5),), "whole": (Lora("learned"),)},
        shown=[("one", 0), ("two", 1)],
    )
    monkeypatch.setattr(experiment, "claim_of", lambda name: claim)
    monkeypatch.setattr(experiment, "SAMPLING_STEPS", 2)
    quick = dict(max_train_steps=2, network_dim=2)
    results = [experiment.run_seed("toy", seed, tmp_path / "kept", quick) for seed in (1, 2)]
    brightness = [results[0][condition]["brightness"] for condition in claim.conditions]
    assert len(set(brightness)) == 3  # without, at half, at whole strength
    base_again = experiment.drawn(["mytag, person", "red circle", "blue circle"], 1)
    assert np.mean(base_again[0]) == results[0][BASE]["brightness"]  # the base model's weights are its own again

    monkeypatch.setattr(experiment, "drawn", None)  # what is kept is neither trained nor drawn again
    monkeypatch.setattr(experiment.train_network, "run", None)
    assert experiment.run_seed("toy", 1, tmp_path / "kept", quick) == results[0]

    monkeypatch.setattr(written, "CLAIMS", ("toy", "other"))
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "laboratory.md").write_text("old\n<!-- other -->\n## Another\n<!-- end -->\n", encoding="utf-8")
    study = written.Study("toy", claim, results)
    written.write([study], docs, tmp_path / "kept")
    page = (docs / "laboratory.md").read_text(encoding="utf-8")
    found, word = study.outcome(claim.comparisons[0])
    assert f"| it is brighter | **{word}** | {found.difference:+.2f} ± {found.half_width:.2f} |" in page
    assert page.index("## Learning changes pictures") < page.index("## Another")
    counts = ["1" if word == one else "" for one in ("confirmed", "contradicted", "not shown")]
    assert f"| [Learning changes pictures](#learning-changes-pictures) | {' | '.join(counts)} |" in page
    assert 0 < (docs / "images" / "laboratory" / "toy.webp").stat().st_size < written.LARGEST_IMAGE
    assert "it is brighter" in written.table([study])


def test_names_of_conditions_are_not_cut_off():
    rows = [[Image.new("RGB", (64, 64), "red")]]
    for name in ("short", "beside regularization images, the best epoch"):
        sheet = np.asarray(written.labelled([name], rows))
        before = sheet[:, : np.flatnonzero((sheet == (255, 0, 0)).all(axis=2).any(axis=0))[0]]
        assert (before < 128).any()  # the name
        assert (before[:, -4:] == 255).all()  # and a gap after it


@pytest.mark.slow("trains")
def test_a_claim_may_be_about_what_a_run_leaves_beside_its_lora(tmp_path, monkeypatch):
    claim = Claim(
        title="Wrong pictures stand first",
        sentence="",
        method="Two steps.",
        trainings={"two steps": Training(caption_mismatch.make_wrong_set, dict(max_train_steps=2))},
        questions={},
        measure=None,
        read=lambda folder: {"lines": float(len((folder / "it.run.jsonl").read_text().splitlines()))},
        comparisons=[Comparison("it tells", ("two steps", "lines"), "same", ("two steps", "lines"))],
        shown=[],
        limits="None.",
    )
    monkeypatch.setattr(experiment, "claim_of", lambda name: claim)
    monkeypatch.setattr(experiment, "drawn", None)
    monkeypatch.setattr(written, "CLAIMS", ("toy",))
    results = [experiment.run_seed("toy", seed, tmp_path / "kept", dict(network_dim=2)) for seed in (1, 2)]
    assert list(results[0]) == ["two steps"]
    assert results[0]["two steps"]["lines"] > 2
    written.write([written.Study("toy", claim, results)], tmp_path, tmp_path / "kept")
    page = (tmp_path / "laboratory.md").read_text(encoding="utf-8")
    assert "images/" not in page
    assert "None.\n\n<!-- end -->" in page


def test_where_wrong_images_stand_is_read_from_the_run(tmp_path):
    names = [f"10_mytag/{at:02}.png" for at in range(4)]
    rows = {"with": [1.0, 0.9, 0.3, 0.2], "without": [0.8, 0.6, 0.7, 0.5]}  # the captions of the first two harm
    told = {f"{model}, {kind} caption": [[one] for one in losses] for model in ("trained", "unchanged")
            for kind, losses in rows.items()}  # fmt: skip
    event = dict(event="pictures", timesteps=[500], pictures=names, rows=told)
    (tmp_path / "it.run.jsonl").write_text(json.dumps(event) + "\n", encoding="utf-8")
    found = caption_mismatch.read(tmp_path)
    assert (found["both on top"], found["by loss, both on top"], found["timesteps"]) == (1.0, 1.0, 1.0)
    event["pictures"] = names[::-1]
    (tmp_path / "it.run.jsonl").write_text(json.dumps(event) + "\n", encoding="utf-8")
    found = caption_mismatch.read(tmp_path)
    assert (found["both on top"], found["one on top"], found["by loss, both on top"]) == (0.0, 0.0, 0.0)
    assert found["wrong ones marked"] == 0.0


def test_a_wrong_set_has_one_wrong_caption_and_one_wrong_image(tmp_path):
    for seed in range(5):
        caption_mismatch.make_wrong_set(tmp_path / f"{seed}", random.Random(seed))
        place = tmp_path / f"{seed}" / "train" / "10_mytag"
        assert len(list(place.glob("*.png"))) == caption_mismatch.COUNT
        grounds = []
        for name in (caption_mismatch.MISLABELLED, "02.png"):
            ground = see(np.asarray(Image.open(place / name))).background
            grounds.append(f"{ground} background" in (place / name).with_suffix(".txt").read_text())
        assert grounds == [False, True]
        shown = [character_score(np.asarray(Image.open(place / name))) for name in (caption_mismatch.ODD, "02.png")]
        assert shown[0] < 0.3 < shown[1]
        assert (place / caption_mismatch.ODD).with_suffix(".txt").read_text().startswith("mytag, ")


@pytest.mark.slow("trains as the script of diffusers does")
@torch.no_grad()
def test_the_peers_lora_acts_on_our_model_as_on_diffusers_own(tmp_path):
    make_set(tmp_path, random.Random(1))
    given = dict(train_data_dir=str(tmp_path / "train"), seed=1, learning_rate=1e-2, network_dim=4, max_train_steps=3)
    with torch.enable_grad():
        train_as_diffusers(tmp_path, experiment.OPTIONS | given)
    pipeline = StableDiffusionPipeline.from_pretrained(MODEL_FOLDER, safety_checker=None, dtype=torch.float32)
    noisy, t, states = torch.randn(2, 4, 8, 8), torch.tensor([500, 100]), torch.randn(2, 77, 128)
    without = pipeline.unet(noisy, t, states).sample
    pipeline.load_lora_weights(tmp_path, weight_name=experiment.LORA)
    with_lora = pipeline.unet(noisy, t, states).sample
    family, factors = experiment.base_model(), lora_files.read_lora(tmp_path / experiment.LORA).factors
    with merging.Merging(family.layers()) as weights:
        weights.apply([merging.Strength(canonical(factors, family.layers())[0], text_encoder=1.0, unet=1.0)])
        ours = family.predict(noisy, t, {"states": states})
    torch.testing.assert_close(ours, with_lora, rtol=1e-4, atol=1e-4)
    assert (with_lora - without).abs().max() > 0.01


def test_the_page_says_how_the_claims_are_tried():
    """What was found takes hours to find again; what was asked must be what the programs ask."""
    page = (DOCS / "laboratory.md").read_text(encoding="utf-8")
    assert page.startswith(written.HEAD)
    parts = written._parts(page)
    assert list(parts) == list(CLAIMS)
    for name, part in parts.items():
        claim = experiment.claim_of(name)
        for text in (f"## {claim.title}\n", f"\n{claim.method}\n", claim.limits or ""):
            assert text in part, name
        assert re.findall(r"^\| (.*) \| \*\*(?:confirmed|contradicted|not shown)", part, re.M) == [
            comparison.words for comparison in claim.comparisons
        ]
