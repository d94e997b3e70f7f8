"""The page of a run: all that run.jsonl tells is on it, in the reader's language, and it asks nobody for anything."""

import html
import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from library.data.plan import Overview
from library.messages import Note, set_language
from library.options import checks
from library.training import caption_mismatch, report_page
from library.training.caption_mismatch import extent, ranked
from library.training.report_facts import Facts, TagRow, TrainedImage
from library.training.report_history import History
from library.training.report_page import ReportPage, compose
from tests.conftest import events
from tests.reporting.test_pages import NASTY, Reader

STEPS, EPOCHS = 10, 4  # in an epoch, in all


def facts(folder: Path, **changes) -> Facts:
    config, _ = checks.check({"pretrained_model_name_or_path": __file__}, {})
    values = dict(
        name="it",
        folder=folder,
        suffix="safetensors",
        settings=config,
        step_counts=[STEPS] * EPOCHS,
        held_out_count=2,
        family="SD 1.x",
        model="base.safetensors",
        machine="cpu, float32",
        memory="planned: 34 MiB",
        plan=Overview([["folder", "pictures"], ["10_mytag", "12"]], [["bucket"], ["64x64"]], ["run: 4 epochs"]),
        trigger_words=["mytag"],
        prompts=["mytag, smile", "a house"],
        tags=[TagRow("mytag", 12, "100%", "the trigger word"), TagRow("hat", 3, "25%", "stays controllable")],
        tag_count=2,
        images={f"10_mytag/{at}.png": TrainedImage(folder / f"{at}.png", f"mytag, caption {at}") for at in range(5)},
        notes=[Note("keep an eye on it", "red")],
        command="python train_network.py --seed 23",
    )
    return Facts(**(values | changes))


def told_events(folder: Path, until: int = EPOCHS, *, is_finished: bool = False) -> list[dict]:
    """What a run tells up to the end of an epoch; its held-out loss is lowest after the second."""
    found = [dict(event="start", time=1000.0, name="it", steps=STEPS * EPOCHS), validation(0)]
    for epoch in range(1, until + 1):
        for place in range(1, STEPS + 1):
            step = (epoch - 1) * STEPS + place
            rates = {"lr/unet": 1e-4, "lr/text_encoder": 1e-4}
            found.append(dict(event="step", time=1000 + 2 * step, epoch=epoch, step=step, loss=1 / step, **rates))
        at = dict(time=1000.5 + 2 * epoch * STEPS, epoch=epoch, step=epoch * STEPS)
        found.append(dict(event="epoch", loss=0.5 / epoch, **at))
        found.append(dict(event="norms", blocks={"BASE": 0.5 * epoch, "IN01": 1.0 * epoch}, **at))
        found.append(validation(epoch))
        found.append(dict(event="preview", strengths=[1.0], files=[drawn(folder, f"e{epoch}")], **at))
    if is_finished:
        at = dict(time=1000.7 + 2 * STEPS * EPOCHS, step=STEPS * EPOCHS)
        files = [drawn(folder, f"end{strength}") for strength in (0, 0.5, 1)]
        found.append(dict(event="preview", epoch=EPOCHS, strengths=[0.0, 0.5, 1.0], files=files, **at))
        found.append(images_event(0.9, 1.1, 0.5, 0.5, 0.52, **at))
        found.append(dict(event="end", file="it.safetensors", **at))
    return found


def validation(epoch: int) -> dict:
    losses = [0.30, 0.22, 0.10, 0.16, 0.24][epoch]
    rows = [[losses + 0.001 * image, 2 * losses] for image in range(2)]
    old = [[0.2 + 0.01 * epoch] * 2]
    return dict(
        event="validation", time=1000.6 + 2 * epoch * STEPS, epoch=epoch, step=epoch * STEPS, ends_epoch=epoch > 0,
        loss=losses, training_loss=losses - 0.02 * epoch, gap=0.02 * epoch, timesteps=[300, 700],
        rows=dict(held_out=rows, training=rows, regularization=old),
    )  # fmt: skip


def images_event(*helped: float, **at) -> dict:
    """Images whose losses with their captions are these shares of those without."""
    rows = {f"{model}, with caption": [[0.2 * share] for share in helped] for model in ("trained", "unchanged")}
    rows |= {f"{model}, without caption": [[0.2] for _ in helped] for model in ("trained", "unchanged")}
    names = [f"10_mytag/{place}.png" for place in range(len(helped))]
    return dict(event="pictures", timesteps=[500], pictures=names, rows=rows, of=len(helped), **at)


def drawn(folder: Path, name: str) -> list[str]:
    (folder / "sample").mkdir(exist_ok=True)
    names = [f"sample/{name}_{place}.png" for place in range(2)]
    for file in names:
        Image.new("RGB", (32, 24), "teal").save(folder / file)
    return names


def write(path: Path, told: list[dict]) -> Path:
    path.write_text("".join(json.dumps(event) + "\n" for event in told), encoding="utf-8")
    return path


def page_of(folder: Path, told: list[dict], known: Facts | None = None, *, peak: int | None = None) -> str:
    read = History(write(folder / "it.run.jsonl", told))
    read.read()
    shown = ReportPage(folder / "it.report.html", read.path, known or facts(folder), None)
    return compose(shown.facts, read, shown.thumbnail, time.time(), peak)


def text_of(page: str) -> str:
    return Reader(re.sub("(?s)<script>.*</script>", "", page)).text


def test_the_page_says_which_epoch_to_use_with_its_file_and_how(tmp_path):
    told = told_events(tmp_path, is_finished=True)
    (tmp_path / "it-best.safetensors").touch()
    text = text_of(page_of(tmp_path, told))
    assert "Epoch 2: it-best.safetensors" in text
    assert "It overfits from epoch 3 on" in text
    assert "<lora:it-best:0.8>, mytag" in text
    assert "models/Lora" in text  # AUTOMATIC1111, Forge
    assert "models/loras" in text  # ComfyUI
    assert "40 / 40" in text
    sections = ["Epoch 2:", "How to use", "Previews", "Curves", "possible mismatches first"]
    sections += ["Where did this feature go?", "Speed and memory", "Plan and warnings", "Reproduce this run"]
    places = [text.index(words) for words in sections]
    assert places == sorted(places)


def test_a_lora_of_the_miniature_is_for_no_other_program(tmp_path):
    settings, _ = checks.check({}, {})
    text = text_of(page_of(tmp_path, told_events(tmp_path, is_finished=True), facts(tmp_path, settings=settings)))
    assert "it.safetensors works with the built-in miniature only: tools/try_lora.py generates with it" in text
    assert "models/Lora" not in text


def test_while_training_it_says_what_is_known_and_the_time_that_is_left(tmp_path):
    text = text_of(page_of(tmp_path, told_events(tmp_path, until=2)))
    assert "Epoch 2 so far" in text
    assert "this may change" in text
    assert "20 / 40" in text
    assert "40 sleft, about" in text  # 20 steps of 2 s
    assert "They are ranked after training ends" in text
    first = text_of(page_of(tmp_path, told_events(tmp_path, until=0)))
    assert "not known yet" in first
    assert "None yet" in first


def test_everything_told_is_there(tmp_path):
    page = page_of(tmp_path, told_events(tmp_path, is_finished=True), peak=3 * 2**30)
    read = Reader(re.sub("(?s)<script>.*</script>", "", page))
    headings = re.findall("<figcaption><b>(.*?)</b>", page)
    assert {"Training loss", "Held-out images", "Gap", "Held-out loss by timestep", "Drift from the base model"} <= {
        *headings
    }
    assert {"Learning rate", "Seconds per step", "Update per block"} <= {*headings}
    assert "epoch 4: drift +20.0 %" in page or "epoch 4: drift +20 %" in page
    assert "epoch 2: gap 0.0400" in page
    for words in ("3.00 GiB", "planned: 34 MiB", "2s/step", "keep an eye on it", "10_mytag", "64x64", "run: 4 epochs"):
        assert words in read.text, words
    assert "python train_network.py --seed 23" in read.text
    assert "hat325%stays controllable" in read.text
    assert len([image for image in read.all("img") if "mytag, smile" in image["alt"]]) == EPOCHS + 3  # and strengths


def test_images_whose_captions_do_not_help_come_first(tmp_path):
    event = images_event(0.5, 0.52, 1.1, 0.48, 0.51)
    found = ranked(event)
    assert [one.image for one in found][0] == "10_mytag/2.png"
    assert [one.is_odd for one in found] == [True, False, False, False, False]
    assert found[0].help == pytest.approx(-0.1)
    assert found[-1].help == pytest.approx(0.52)
    text = text_of(page_of(tmp_path, [*told_events(tmp_path), event | dict(time=0, step=40), end()]))
    assert text.index("caption harms 10%") < text.index("caption helps 48%") < text.index("caption helps 52%")
    assert "1 image worth a look" in text


def end() -> dict:
    return dict(event="end", time=1100.0, step=STEPS * EPOCHS, file="it.safetensors")


@pytest.mark.parametrize(
    ("images", "samples", "expected"),
    [
        (10, 2000, (10, 4, 2)),
        (10, 100_000, (10, 8, 2)),
        (30, 1800, (30, 2, 1)),
        (100, 2000, (45, 2, 1)),
        (3, 24, (0, 2, 1)),
    ],
)
def test_measuring_the_images_takes_three_percent_of_the_run_at_most(images, samples, expected):
    much = extent(images, samples)
    assert (much.images, much.timesteps, len(much.models)) == expected
    passes = much.images * much.timesteps * len(much.models) * 2  # a step's sample takes about three
    assert passes <= 0.03 * 3 * samples


def test_the_unchanged_model_alone_ranks_too():
    event = images_event(0.5, 1.1, 0.4)
    event["rows"] = {name: rows for name, rows in event["rows"].items() if name.startswith("unchanged")}
    assert [one.image[-5] for one in ranked(event)] == ["1", "0", "2"]


def test_without_validation_it_says_why(tmp_path):
    told = [event for event in told_events(tmp_path) if event["event"] != "validation"]
    few = text_of(page_of(tmp_path, [*told, end()], facts(tmp_path, held_out_count=0)))
    assert "Choose the epoch from the previews" in few
    assert "with only 5, none can be spared" in few
    config, _ = checks.check(dict(validation_split=0.0), {})
    off = text_of(page_of(tmp_path, [*told, end()], facts(tmp_path, held_out_count=0, settings=config)))
    assert "No images were held out (validation_split)" in off


def test_a_run_that_went_on_has_its_whole_history(tmp_path):
    whole = told_events(tmp_path)
    again = dict(event="start", time=9000.0, name="it", steps=40)
    cut = next(place for place, event in enumerate(whole) if event.get("step") == 25)
    later = [event | dict(time=event["time"] + 8000) for event in whole[cut:]]
    told = History(
        write(tmp_path / "it.run.jsonl", [*whole[:cut], dict(event="stopped", time=1060.0, step=24), again, *later])
    )
    told.read()
    assert [step for step, _ in told.losses] == list(range(1, 41))
    assert sorted(told.epoch_losses) == [1, 2, 3, 4]
    assert told.state == "running"
    assert {round(seconds, 1) for _, seconds in told.step_seconds} == {2.0}  # the hours between are no steps
    assert told.seconds_per_step == pytest.approx(2)


def test_reading_on_is_reading_anew(tmp_path):
    whole = told_events(tmp_path, is_finished=True)
    path = write(tmp_path / "it.run.jsonl", whole[:30])
    grown = History(path)
    grown.read()
    text = "".join(json.dumps(event) + "\n" for event in whole)
    path.write_text(text[: len(text) // 2], encoding="utf-8")  # in the middle of a line
    grown.read()
    path.write_text(text, encoding="utf-8")
    grown.read()
    anew = History(path)
    anew.read()
    assert grown == anew


def test_names_of_any_kind_stay_text(tmp_path):
    known = facts(
        tmp_path, name=NASTY.replace("/", "-"), trigger_words=[NASTY], prompts=[NASTY, NASTY], model=NASTY,
        machine=NASTY, memory=NASTY, command=NASTY, notes=[NASTY], tags=[TagRow(NASTY, 1, "1%", NASTY)],
        images={"10_mytag/2.png": TrainedImage(tmp_path / NASTY, NASTY)},
        plan=Overview([[NASTY], [NASTY]], [[NASTY], [NASTY]], [NASTY]),
    )  # fmt: skip
    told = told_events(tmp_path, is_finished=True)
    for event in told:
        if event["event"] == "norms":
            event["blocks"] = {NASTY: 1.0}
        if event["event"] == "step":
            event[f"lr/{NASTY}"] = event.pop("lr/unet")
    read = Reader(re.sub("(?s)<script>.*</script>", "", page_of(tmp_path, told, known)))
    assert read.open == []
    assert not any("onclick" in attributes for _, attributes in read.tags)
    assert read.text.count(NASTY) > 10


def test_nothing_is_fetched(tmp_path):
    page = page_of(tmp_path, told_events(tmp_path, is_finished=True))
    assert not re.search(r"""(?:src|href)=(?!"data:)|url\(|@import|https?:|<link|<iframe""", page)


def test_the_page_speaks_chinese(tmp_path):
    set_language("zh")
    plan = Overview([["目录"], ["10_mytag"]], [["桶"], ["64x64"]], ["全程：4 轮"])
    known = facts(tmp_path, plan=plan, tags=[TagRow("hat", 3, "25%", "可自由控制")], memory="计划", command="x")
    known.prompts, known.notes[:] = ["mytag"], []
    page = page_of(tmp_path, told_events(tmp_path, is_finished=True), known)
    text = text_of(page)
    for words in (
        "建议使用第 2 轮",
        "如何使用",
        "预览图",
        "曲线",
        "训练图片，可疑的在前",
        "这个特征去哪儿了",
        "速度与内存",
    ):
        assert words in text, words
    assert 'lang="zh-CN"' in page
    assert re.findall("[a-z]{2,} [a-z]{2,}", text) == []


def test_many_previews_are_thinned_and_the_chosen_one_stays(tmp_path):
    known = facts(tmp_path, step_counts=[1] * 100)
    row = drawn(tmp_path, "e")
    told = [dict(event="preview", time=0, epoch=n, step=n, strengths=[1.0], files=[row]) for n in range(1, 101)]
    shown = report_page.evenly(told, 16, lambda event: report_page.is_end_of(known, event, 37))
    at = [event["step"] for event in shown]
    assert at[0] == 1
    assert at[-1] == 100
    assert 37 in at
    assert len(at) == 17
    assert "16 of 100 times are shown" in text_of(page_of(tmp_path, told, known))


def test_writing_waits_longer_the_longer_it_takes(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(report_page, "compose", lambda *rest: clock.__setitem__(0, clock[0] + 0.1) or "page")
    shown = ReportPage(tmp_path / "it.html", write(tmp_path / "it.run.jsonl", []), facts(tmp_path), None)
    monkeypatch.setattr("library.hardware.memory.peak", lambda device: None)
    count = 0

    def written(after: float, news: int, **how) -> bool:
        clock[0] += after
        before = shown.written
        shown.write(news, **how)
        return shown.written != before

    assert written(0, 1)
    assert not written(10, 2)  # 0.1 s may be spent every 20 s: 0.5 %
    assert written(11, 2)
    assert not written(59, 2)  # nothing new
    assert written(2, 2)
    assert written(0, 2, is_due=True)
    assert count == 0


# ---- A real run ----


@pytest.fixture
def small_run(run, small_set, tmp_path):
    """A run that does all of it: validation, previews, several strengths."""
    return run(
        "sd1", max_train_epochs=3, validation_data_dir=str(small_set[1]), reg_data_dir=None,
        validation_split=0.0, sample_every_n_epochs=2,
        sample_prompts="mytag --s 2 --w 64 --h 64", sample_strengths=[0.25, 0.5], save_every_n_epochs=1,
    )  # fmt: skip


def test_a_run_leaves_its_page(small_run, capsys):
    text = text_of((small_run / "it.report.html").read_text(encoding="utf-8"))
    assert "finished" in text
    assert "Which epoch to use is not known" not in text
    (norms, *_) = events(small_run, "norms")
    assert {"BASE", "IN01", "MID"} <= set(norms["blocks"])
    assert [event["epoch"] for event in events(small_run, "norms")] == [1, 2, 3]
    previews = events(small_run, "preview")
    assert [event["strengths"] for event in previews] == [[1.0], [0.0, 0.25, 0.5, 1.0]]
    for event in previews:
        for row in event["files"]:
            assert all((small_run / file).exists() for file in row)
    assert "the report page is not written" not in capsys.readouterr().out


def test_a_run_that_goes_on_shows_the_epochs_before(run):
    out = run(save_state=True)
    run(resume=str(out / "it-state"), max_train_epochs=3)
    page = (out / "it-2.report.html").read_text(encoding="utf-8")  # the finished run's own page stays
    assert re.findall(r"text encoder, epoch (\d)", page) == ["1", "2", "3"]
    assert "18 / 18" in text_of(page)


def test_images_are_measured_with_and_without_captions_by_both_models(run, monkeypatch):
    monkeypatch.setattr(caption_mismatch, "LEAST", 3)
    monkeypatch.setattr(caption_mismatch, "TIME_SHARE", 10.0)
    options = dict(text_encoder_lr=0.0, network_dim=4)
    found = []
    for cached in (True, False):  # an empty caption is in no cache
        (event,) = events(run("sdxl", output=f"{cached}", cache_text_encoder_outputs=cached, **options), "pictures")
        found.append(torch.tensor([event["rows"][name] for name in sorted(event["rows"])]))
        assert sorted(event["pictures"]) == ["2_mytag/0.png", "2_mytag/1.png", "2_mytag/2.png"]
        assert list(event["rows"]) == [
            f"{m}, {c} caption" for m in ("trained", "unchanged") for c in ("with", "without")
        ]
    assert found[0].shape == (4, 3, 8)
    torch.testing.assert_close(*found, rtol=0.02, atol=1e-3)  # the cache rounds to fp16
    for first in range(4):
        for second in range(first):
            assert not torch.equal(found[0][first], found[0][second])


def test_telling_more_changes_no_bit_of_the_training(run, monkeypatch):
    """Neither the page, the norms nor the losses of the images move what is random."""
    from library.training.outputs import Outputs

    options = dict(max_train_epochs=2, save_every_n_epochs=1, shuffle_caption=True, network_dropout=0.1)
    run("sd1", output="with", **options)
    monkeypatch.setattr(Outputs, "write_page", lambda *rest, **more: None)
    monkeypatch.setattr(Outputs, "end_epoch", lambda self, epoch: self.run_log.epoch_end(epoch))
    folder = run("sd1", output="without", **options)
    for name in ("it-000001.safetensors", "it.safetensors"):
        ours, theirs = (load(folder.parent / kind / name) for kind in ("with", "without"))
        assert ours == theirs


def load(path: Path) -> dict[str, list]:
    from safetensors.torch import load_file

    return {name: tensor.tolist() for name, tensor in load_file(path).items()}


def test_a_fault_of_the_page_costs_no_training(run, monkeypatch, capsys):
    monkeypatch.setattr(report_page, "compose", lambda *rest: 1 / 0)
    folder = run("sd1")
    assert (folder / "it.safetensors").exists()
    assert capsys.readouterr().out.count("the report page is not written: ZeroDivisionError") == 1


# ---- In a browser ----

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OUTSIDE = """<!doctype html><body style="margin:0"><script>
addEventListener("message", event => {
  document.body.innerHTML = "<pre id=found></pre>";
  document.getElementById("found").textContent = event.data;
});
</script><iframe style="border:0;width:WIDTHpx;height:900px" srcdoc="PAGE"></iframe></body>"""
# within a frame, because a window cannot be as narrow as a phone
BEFORE = """<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<script>
  const wrong = [];
  addEventListener("error", event => wrong.push(event.message || "a picture is broken"), true);
  addEventListener("securitypolicyviolation", event => wrong.push("asked for " + event.blockedURI));
</script>"""
AFTER = """<script>addEventListener("load", () => setTimeout(() => {
  const slider = document.querySelector(".slider input"), seen = [];
  for (const value of [0, 1, 2]) {
    slider.value = value;
    slider.dispatchEvent(new Event("input"));
    const shown = [...document.querySelectorAll(".slider figure")].filter(one => one.offsetParent);
    seen.push(shown.map(one => one.querySelector("img").alt));
  }
  const hit = document.querySelector(".chart .hit rect");
  hit.dispatchEvent(new PointerEvent("pointerdown", {bubbles: true}));
  const wide = [...document.querySelectorAll("body *")].filter(one => !one.closest(".strip, .scroll, pre"))
    .filter(one => one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 80));
  parent.postMessage(JSON.stringify({wrong, seen, wide, width: innerWidth, body: document.documentElement.scrollWidth,
    told: hit.closest(".chart").querySelector("output").textContent,
    asked: performance.getEntriesByType("resource").map(one => one.name).filter(name => !name.startsWith("data:"))
  }), "*");
}, 50))</script>"""


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        pytest.skip("no Chromium on this machine: the page was not looked at in a browser")
    return found


@pytest.mark.slow("starts a browser")
@pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desktop"])
def test_a_browser_shows_it_without_a_mistake_a_request_or_anything_too_wide(browser, tmp_path, width):
    prompts = ["mytag, " + "a_very_long_tag_without_any_space_in_it_" * 3, "a house"]
    known = facts(tmp_path, prompts=prompts, name="name_" * 20, command="x" * 300)
    page = page_of(tmp_path, told_events(tmp_path, is_finished=True), known)
    page = page.replace("<title>", f"{BEFORE}<title>", 1).replace("</body>", f"{AFTER}</body>")
    done = opened(browser, tmp_path, OUTSIDE.replace("WIDTH", str(width)).replace("PAGE", html.escape(page)))
    told = re.search('<pre id="found">(.*)</pre>', done.stdout)
    assert told, done.stderr
    found = json.loads(html.unescape(told[1]))
    assert found["width"] == width
    assert found["wrong"] == []
    assert found["asked"] == []
    assert "CONSOLE" not in done.stderr
    assert found["body"] == width
    assert found["wide"] == []
    assert found["told"].startswith("epoch ")
    for strength, alts in zip(("0", "0.5", "1"), found["seen"], strict=True):
        assert [alt.rpartition(" ")[2] for alt in alts] == [f"({strength})"] * 2


@pytest.mark.slow("starts a browser")
@pytest.mark.parametrize(
    ("is_finished", "unfolded", "loads"), [(False, 0, 3), (False, 700, 3), (False, 10_000, 1), (True, 0, 1)]
)
def test_a_browser_loads_it_again_while_training_but_not_what_is_being_read(
    browser, tmp_path, is_finished, unfolded, loads
):
    page = page_of(tmp_path, told_events(tmp_path, EPOCHS if is_finished else 2, is_finished=is_finished))
    assert page.count("60000") == 1  # milliseconds
    counting = """<script>
    name += "x";  // outlives a reload
    document.body.dataset.loads = name.length;
    const part = document.querySelector("details"), isLast = name.length == 3;  // or it would go on for ever
    part.open = isLast || UNFOLDED > 0;
    setTimeout(() => part.open = isLast, UNFOLDED);
    </script></body>""".replace("UNFOLDED", str(unfolded))
    page = page.replace("60000", "500").replace("</body>", counting)
    found = re.search(r'data-loads="(\d+)"', opened(browser, tmp_path, page).stdout)
    assert int(found[1]) == loads


def opened(browser: str, folder: Path, page: str) -> subprocess.CompletedProcess:
    """What a browser makes of a page within three seconds of its own time: its elements, and what it complains of."""
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync --disable-component-update "
        "--disable-background-networking --enable-logging=stderr --hide-scrollbars --window-size=1400,1000 "
        "--virtual-time-budget=3000"
    )
    command = [browser, *flags.split(), f"--user-data-dir={folder / 'profile'}", "--dump-dom", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)
