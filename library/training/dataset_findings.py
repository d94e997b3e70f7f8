"""What plan and captions of a set tell, without a look at the images: cheap, so that every run does it.

A thousand images take a tenth of a second. `examination` looks at the images too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from library.contracts import Sample
from library.files import sha256_of_file
from library.messages import plural, say
from library.options.training import Config
from library.reporting import findings as doctor
from library.reporting.findings import Finding
from library.training.invocation import trained_text, word_cannot_be_typed

if TYPE_CHECKING:
    from library.data.plan import Plan
    from library.data.tag_statistics import TagStatistics

MOST_TAGGED = 20_000  # images beyond which a start does not wait for the tags to be counted
MOST_LINES = 6  # said before a run begins


def of_set(
    plan: Plan,
    config: Config,
    *,
    groups: Sequence[Sequence[Sample]],
    drawn_by: Mapping[Path, str],
    statistics: TagStatistics | None,
    knows_english_only: bool = True,
) -> list[Finding]:
    """What plan and captions tell, beyond what `plan.check` says of them. Reads no image.

    Args:
        groups: images that are there more than once.
        drawn_by: regularization images that say which model drew them.
        statistics: from `statistics_of`; None: the tags are not looked at.
        knows_english_only: of the base model, where that is known.
    """
    from library.data import captions, held_out, tag_statistics
    from library.data.plan import uses_of_epoch

    found, uses = plan.samples, uses_of_epoch(plan, 1)
    train, reg, subject = found.train, found.regularization, held_out.of_subject(found, config)
    texts = {sample.image_path: captions.compared(sample, config) for sample in subject + reg}
    steps_of_epoch = -(-plan.batch_counts[0] // plan.batches_per_step)
    views = sum(sample.repeats for sample in train) / len(train) * plan.step_count / steps_of_epoch
    used = [folder for folder in found.folders if folder.image_count]
    words = {folder.name: folder.text.strip() for folder in used if not folder.is_regularization}
    buckets: list[dict[tuple[int, int], list[Path]]] = [{} for _ in plan.sets]
    for sample in train:
        buckets[sample.dataset].setdefault(plan.fit(sample).bucket, []).append(sample.image_path)
    findings = [
        *doctor.steps(plan.step_count, plan.epoch_count, round(views), config.max_train_steps is None),
        *doctor.saving(plan.epoch_count, plan.step_count, config.save_every_n_epochs, config.save_every_n_steps),
        *doctor.image_counts({folder.name: folder.image_count for folder in used if not folder.is_regularization}),
        *doctor.duplicates(groups),
        *(
            finding
            for own, of_set in zip(plan.sets, buckets, strict=True)
            for finding in doctor.small_buckets(of_set, own.batch_size)
        ),
    ]
    for name, word in words.items():
        own = [sample for sample in subject if sample.folder == name and sample.caption_path]
        findings += of_typing(word, config)
        if own and word:
            findings += doctor.trigger_word(
                word,
                name,
                {sample.image_path: captions.tags(texts[sample.image_path]) for sample in own},
                tag_statistics.has_word,
                shuffles=(own[0].options or config).shuffle_caption,
                drops=(own[0].options or config).caption_tag_dropout_rate > 0,
                keep_tokens=(own[0].options or config).keep_tokens,
            )
    if statistics:
        findings += of_tags(statistics, words, subject, texts)
    findings += of_weights(subject, config)
    if knows_english_only:
        written = [texts[sample.image_path] for sample in subject + reg if sample.caption_path]
        for level, text, cure, _ in tag_statistics.about_language(written, words.values()):
            findings.append(Finding(level, "captions", text, cure))
    if not reg:
        text = say("no regularization images: faster, but overfits sooner", "没有正则化图片：更快，但更容易过拟合")
        return [*findings, Finding("green", "regularization", text)]
    rows = {is_reg: [(folder.name, folder.repeats, folder.image_count) for folder in used
                     if folder.is_regularization == is_reg] for is_reg in (False, True)}  # fmt: skip
    reg_buckets: Counter[tuple[int, int]] = Counter()
    for sample, count in uses:
        if sample.is_regularization:
            reg_buckets[plan.fit(sample).bucket] += count
    return [
        *findings,
        *doctor.regularization_rule(
            rows[False],
            rows[True],
            uses=[count for sample, count in uses if sample.is_regularization],
            unused=len(train) + len(reg) - len(plan.samples_used),
        ),
        *doctor.words_in_regularization(filter(None, words.values()), reg, texts, tag_statistics.has_word, drawn_by),
        *doctor.other_buckets(set().union(*buckets), reg_buckets),
    ]


def statistics_of(plan: Plan, config: Config) -> TagStatistics | None:
    """The tags of the subject's images, as they are trained; None where there are none to count."""
    from library.data import captions, held_out, tag_statistics

    written = [sample for sample in held_out.of_subject(plan.samples, config) if sample.caption_path]
    if not written or len(written) > MOST_TAGGED:
        return None
    return tag_statistics.count(
        tag_statistics.Captioned(
            sample.folder, f"{sample.folder}/{sample.image_path.name}", captions.compared(sample, config)
        )
        for sample in written
    )


def of_tags(
    statistics: TagStatistics, words: Mapping[str, str], subject: Sequence[Sample], texts: Mapping[Path, str]
) -> Iterator[Finding]:
    """What the tags will do; what `data.samples` and `data.plan` say of captions is left to them."""
    from library.data import tag_statistics, tag_views

    named = {name: words[name] or None for name in words}
    for level, text, cure, tags in [*tag_statistics.advice(statistics, named), *tag_views.advice(statistics)]:
        if not tags:
            continue
        images: list[Path] = []
        if level == "red":  # the trigger word is missing
            own = [sample for sample in subject if words.get(sample.folder) == tags[0] and sample.caption_path]
            images = [
                sample.image_path for sample in own if not tag_statistics.has_word(texts[sample.image_path], tags[0])
            ]
            if len(images) == len(own):
                continue  # in all: `data.plan` says so
        yield Finding(level, "captions", text, cure, tuple(images))


def of_typing(word: str, config: Config) -> Iterator[Finding]:
    """Whether a trigger word can be typed into a web UI."""
    from library.diffusion import prompts

    text = trained_text(word, config.weighted_captions)
    if prompts.literal(text) is None:
        yield Finding("amber", "captions", word_cannot_be_typed(text))


def of_weights(subject: Sequence[Sample], config: Config) -> Iterator[Finding]:
    """Weights that are trained as letters, or brackets that are trained as weights."""
    from library.data import captions

    doubtful: dict[Path, str] = {}  # image -> the first tag of its caption that is not trained as it looks
    for sample in subject:
        tags = captions.weighted_tags(captions.whole_of(sample, config))
        if config.weighted_captions:
            odd = [tag.text for tag in tags if re.search(r"(?<!\\)\(.*(?<!\\)\)", tag.text)]
        else:
            odd = [str(tag) for tag in tags if ":" in tag.after]
        if odd:
            doubtful[sample.image_path] = odd[0]
    if doubtful:
        text, cure = (_brackets_are_weights if config.weighted_captions else _weights_are_letters)(doubtful)
        yield Finding("amber", "captions", text, cure, tuple(doubtful))


def exact_copies(samples: Iterable[Sample]) -> list[list[Sample]]:
    """Images whose files are the same byte by byte. Only those of equal length and size are read."""
    alike: dict[tuple[int, int, int], list[Sample]] = {}
    for sample in {sample.image_path: sample for sample in samples}.values():  # one may be in several data sets
        with suppress(OSError):
            size = sample.image_path.stat().st_size
            alike.setdefault((size, sample.width, sample.height), []).append(sample)
    groups: dict[bytes, list[Sample]] = {}
    for candidates in alike.values():
        for sample in candidates if len(candidates) > 1 else ():
            with suppress(OSError):
                digest = sha256_of_file(sample.image_path)
                groups.setdefault(digest, []).append(sample)
    return [group for group in groups.values() if len(group) > 1]


def short(
    plan: Plan, config: Config, notes: Sequence[str], *, knows_english_only: bool = True
) -> tuple[list[str], str]:
    """What every run says before it begins, beyond `notes`: the most urgent findings, and a line that counts all."""
    from library.data import held_out

    copies = exact_copies(held_out.of_subject(plan.samples, config) + plan.samples.regularization)
    new = of_set(
        plan,
        config,
        groups=copies,
        drawn_by={},
        statistics=statistics_of(plan, config),
        knows_english_only=knows_english_only,
    )
    new = [finding for finding in doctor.in_order(new) if finding.level != "green"]
    counts = doctor.count(new + [doctor.of_line(line, "pictures") for line in notes])
    if not counts["red"] + counts["amber"]:
        return [], ""
    return [finding.line for finding in new[:MOST_LINES]], say(
        f"doctor: {counts['red']} red, {counts['amber']} amber; python tools/doctor.py shows all, with images",
        f"体检：红色 {counts['red']} 项，黄色 {counts['amber']} 项；运行 python tools/doctor.py 查看全部（附图片）",
    )


# ---- What is said ----


def _weights_are_letters(doubtful: Mapping[Path, str]) -> tuple[str, str]:
    tag = next(iter(doubtful.values()))
    text = say(
        f"{plural(len(doubtful), 'caption has', 'captions have')} weights such as `{tag}`, but weighted_captions is "
        f"off: brackets and numbers are trained as letters. {doctor.names_of(doubtful)}",
        f"{len(doubtful)} 个标注文件含权重，如 `{tag}`，但未启用 weighted_captions：括号和数字会被当作文字训练。"
        f"{doctor.names_of(doubtful)}",
    )
    return text, say(
        "Set weighted_captions = True, or remove the weights", "请设 weighted_captions = True，或去掉这些权重"
    )


def _brackets_are_weights(doubtful: Mapping[Path, str]) -> tuple[str, str]:
    tag = next(iter(doubtful.values()))
    escaped = re.sub(r"([()])", r"\\\1", tag)
    text = say(
        f"{plural(len(doubtful), 'caption has', 'captions have')} brackets within a tag, such as `{tag}`, which "
        f"weighted_captions reads as a weight: {doctor.names_of(doubtful)}",
        f"{len(doubtful)} 个标注文件的标签里含括号，如 `{tag}`，weighted_captions 会把它当作权重："
        f"{doctor.names_of(doubtful)}",
    )
    return text, say(f"For plain brackets write `{escaped}`", f"普通括号请写成 `{escaped}`")
