"""The plan of a run, worked out and shown before any model is loaded: what is seen how often, in how many steps.

An epoch is a list of batches that follows from (seed, epoch) alone. The number of steps is exact: with `reg_rotate` the
epochs hold different regularization images, so buckets and batches may differ by epoch, and the epochs are added up one
by one instead of multiplying the first. As in sd-scripts, short last batches of a bucket are kept, and an epoch's last
step takes what is left where the batches are not a multiple of `gradient_accumulation_steps`.
"""

import random
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from library.config import Config
from library.contracts import Fit, Sample
from library.data import captions
from library.data.buckets import BucketRule, fit
from library.data.folders import some
from library.data.samples import Found, balance, balanced_epochs
from library.messages import Note, UserError, say

MUCH_ENLARGED = 1.1  # below, nobody sees it
MUCH_CUT_OFF = 1 / 3  # a share of the picture lost by cropping that deserves a warning


@dataclass(frozen=True)
class Plan:
    """What the run will see. Epochs count from 1, steps are optimizer steps."""

    found: Found
    rule: BucketRule
    fits: dict[Path, Fit]  # of every picture that was found
    batch_size: int
    reg_rotate: bool
    batch_counts: list[int]  # of each epoch
    step_counts: list[int]  # of each epoch; the last may be cut by max_train_steps
    samples_used: list[Sample]  # pictures that some epoch uses: what is worth caching
    whole_batches: bool = False  # a bucket's last batch is filled up with pictures of that bucket

    @property
    def sizes(self) -> set[tuple[int, int]]:
        """Buckets that some epoch uses."""
        return {self.fits[sample.image_path].bucket for sample in self.samples_used}

    @property
    def epoch_count(self) -> int:
        return len(self.step_counts)

    @property
    def step_count(self) -> int:
        return sum(self.step_counts)


def batches_of_step(config: Config) -> int:
    """How many batches one optimizer step sees, in all processes together."""
    return config.gradient_accumulation_steps * config.num_processes * config.num_machines


def make_plan(found: Found, config: Config, rule: BucketRule, whole_batches: bool = False) -> Plan:
    """Count the batches and steps of every epoch.

    Args:
        whole_batches: for devices where each size of a batch costs minutes of tuning; see `Plan`.

    Raises:
        UserError: neither `max_train_steps` nor `max_train_epochs` is given. Steps win where both are.
    """
    if config.max_train_steps is None and config.max_train_epochs is None:
        raise UserError(
            say(
                "max_train_epochs and max_train_steps are both None: give one of them, e.g. max_train_epochs = 10",
                "max_train_epochs 和 max_train_steps 都是 None：请给出其中之一，如 max_train_epochs = 10",
            )
        )
    assert found.train, "find() refuses an empty set"
    fits = {
        sample.image_path: fit((sample.width, sample.height), rule) for sample in found.train + found.regularization
    }
    train_counts: Counter = Counter()  # of samples, by bucket
    for sample in found.train:
        train_counts[fits[sample.image_path].bucket] += sample.repeats
    wanted = sum(sample.repeats for sample in found.train)
    batch_counts: list[int] = []
    step_counts: list[int] = []
    reg_used: set[Path] = set()
    for uses in balanced_epochs(wanted, found.regularization, rotate=config.reg_rotate):
        counts = train_counts.copy()
        for sample, count in uses:
            counts[fits[sample.image_path].bucket] += count
        reg_used.update(sample.image_path for sample, _ in uses)
        batches = sum(-(-count // config.train_batch_size) for count in counts.values())
        steps = -(-batches // batches_of_step(config))
        batch_counts.append(batches)
        if config.max_train_steps is None:
            step_counts.append(steps)
            if len(step_counts) == config.max_train_epochs:
                break
        else:
            step_counts.append(min(steps, config.max_train_steps - sum(step_counts)))
            if sum(step_counts) == config.max_train_steps:
                break
    used = found.train + [sample for sample in found.regularization if sample.image_path in reg_used]
    counts = batch_counts, step_counts
    return Plan(found, rule, fits, config.train_batch_size, config.reg_rotate, *counts, used, whole_batches)


def uses_of_epoch(plan: Plan, epoch: int) -> list[tuple[Sample, int]]:
    """Every picture of an epoch and how often it is used: training pictures, then the regularization images' turn."""
    found = plan.found
    return [(sample, sample.repeats) for sample in found.train] + balance(
        found.train, found.regularization, rotate=plan.reg_rotate, epoch=epoch
    )


def batches_of_epoch(plan: Plan, seed: int, epoch: int) -> list[list[Sample]]:
    """The batches of an epoch in their order, each from one bucket: shuffled within buckets, then among them."""
    rng = random.Random(f"{seed} {epoch} order")
    buckets: dict[tuple[int, int], list[Sample]] = {}
    for sample, count in uses_of_epoch(plan, epoch):
        buckets.setdefault(plan.fits[sample.image_path].bucket, []).extend([sample] * count)
    batches = []
    for bucket in sorted(buckets):
        samples = buckets[bucket]
        rng.shuffle(samples)
        if plan.whole_batches:  # the same number of batches
            missing = -len(samples) % plan.batch_size
            samples += (samples * plan.batch_size)[:missing]
        batches += [samples[at : at + plan.batch_size] for at in range(0, len(samples), plan.batch_size)]
    rng.shuffle(batches)
    return batches


def typical_captions(plan: Plan, config: Config, count: int = 4) -> list[str]:
    """A few captions to draw previews of: half of the training pictures (the new), half of regularization (the old)."""
    found = plan.found
    new, old = (
        list(dict.fromkeys(captions.whole(sample.caption, config) for sample in samples if sample.caption))
        for samples in (found.train, found.regularization)
    )
    old_count = min(count // 2, len(old))
    spread = [old[len(old) * (index + 1) // old_count - 1] for index in range(old_count)]  # the first may be alike
    return new[: count - old_count] + spread


def metadata(plan: Plan) -> dict:
    """What the saved file tells of the data, by sd-scripts' keys; values are numbers and plain dicts."""
    found = plan.found
    uses = uses_of_epoch(plan, 1)
    counts: Counter = Counter()
    errors = []
    for sample, count in uses:
        width, height = plan.fits[sample.image_path].bucket
        counts[width, height] += count
        errors.append(abs(width / height - sample.width / sample.height))
    folders: dict[bool, dict] = {False: {}, True: {}}
    for folder in found.folders:
        folders[folder.is_regularization][folder.name] = {
            "n_repeats": folder.repeats,
            "img_count": folder.picture_count,
        }
    return {
        "ss_num_train_images": sum(sample.repeats for sample in found.train),
        "ss_num_reg_images": sum(sample.repeats for sample in found.regularization),  # before balancing
        "ss_num_batches_per_epoch": plan.batch_counts[0],
        "ss_num_epochs": plan.epoch_count,
        "ss_max_train_steps": plan.step_count,
        "ss_resolution": (plan.rule.width, plan.rule.height),
        "ss_dataset_dirs": folders[False],
        "ss_reg_dataset_dirs": folders[True],
        "ss_tag_frequency": captions.tag_frequency(found.train + found.regularization),
        "ss_masked_loss": any(sample.mask for sample in plan.samples_used),
        "ss_bucket_info": {
            "buckets": {
                str(index): {"resolution": list(bucket), "count": counts[bucket]}
                for index, bucket in enumerate(sorted(counts))
            },
            "mean_img_ar_error": sum(errors) / len(errors),
        },
    }


def check(
    plan: Plan,
    config: Config,
    *,
    token_counts: Callable[[list[str]], list[tuple[int, int]]] | None = None,
    is_everyday_word: Callable[[str], bool] | None = None,
) -> list[str]:
    """Everything about the data that the user should know, what `find` noticed first; each with its cure.

    Args:
        token_counts: of each caption, its tokens and how many of them the text encoder sees.
        is_everyday_word: whether the base model's tokenizer knows a word, so that it means something already.
    """
    warnings = list(plan.found.warnings)
    warnings += _check_sizes(plan)
    warnings += _check_concepts(plan, config, is_everyday_word)
    if token_counts:
        warnings += _check_lengths(plan, config, token_counts)
    unused = len(plan.found.train + plan.found.regularization) - len(plan.samples_used)
    if unused:
        cure = (
            say("More epochs would reach them", "增加轮数才会用到")
            if plan.reg_rotate
            else say("reg_rotate = True lets them take turns", "设 reg_rotate = True 可轮流使用")
        )
        line = say(
            f"{unused} of {len(plan.found.regularization)} regularization images are never used. {cure}",
            f"{len(plan.found.regularization)} 张正则化图片中有 {unused} 张始终不会用到。{cure}",
        )
        warnings.append(Note(line, topic="regularization"))
    return warnings


def _check_sizes(plan: Plan) -> list[str]:
    enlarged: list[tuple[float, Path]] = []
    cut: list[tuple[float, Path]] = []
    for sample in plan.samples_used:
        bucket, resized, _ = plan.fits[sample.image_path]
        factor = resized[0] / sample.width
        lost = 1 - bucket[0] * bucket[1] / (resized[0] * resized[1])
        if factor > MUCH_ENLARGED:
            enlarged.append((factor, sample.image_path))
        if lost > MUCH_CUT_OFF:
            cut.append((lost, sample.image_path))
    warnings = []
    if enlarged:
        enlarged.sort(reverse=True)
        names = some([f"{path.parent.name}/{path.name} (x{factor:.1f})" for factor, path in enlarged])
        line = say(
            f"{len(enlarged)} picture(s) are smaller than their bucket and get enlarged, which teaches blur: "
            f"{names}. Use larger ones, a lower resolution, or bucket_no_upscale = True",
            f"{len(enlarged)} 张图片小于所在的桶，会被放大，容易学到模糊：{names}。"
            "请换更大的图、降低 resolution，或设 bucket_no_upscale = True",
        )
        warnings.append(Note(line, topic="pictures", pictures=[path for _, path in enlarged]))
    if cut:
        cut.sort(reverse=True)
        names = some([f"{path.parent.name}/{path.name} ({lost:.0%})" for lost, path in cut])
        line = say(
            f"{len(cut)} picture(s) lose more than a third by cropping: {names}. Crop them yourself, or let "
            "buckets be more elongated (enable_bucket, min_bucket_reso, max_bucket_reso)",
            f"{len(cut)} 张图片裁掉的部分超过三分之一：{names}。请自行裁剪，"
            "或允许更狭长的桶（enable_bucket、min_bucket_reso、max_bucket_reso）",
        )
        warnings.append(Note(line, topic="pictures", pictures=[path for _, path in cut]))
    return warnings


def _check_concepts(plan: Plan, config: Config, is_everyday_word: Callable[[str], bool] | None) -> list[str]:
    """The concept word should be new to the base model, and must stand in the captions to be learnt."""
    warnings = []
    for folder in plan.found.folders:
        word = folder.text.strip()
        if folder.is_regularization or not word or not folder.picture_count:
            continue
        texts = [
            captions.whole(sample.caption, config)
            for sample in plan.found.train
            if sample.image_path.parent == folder.path
        ]
        if not any(_plain(word) in _plain(text) for text in texts):
            line = say(
                f'{folder.path}: "{word}" stands in none of its captions, so nothing is learnt under that word '
                f"(the folder's name counts only for pictures without caption file). Add it to the captions, or "
                f'set caption_prefix = "{word},"',
                f"{folder.path}：所有标签里都没有“{word}”，因此不会学到这个词（目录名只用于没有标签文件的图片）。"
                f'请把它加入标签，或设 caption_prefix = "{word},"',
            )
            warnings.append(Note(line, "red", topic="captions"))
        elif is_everyday_word and is_everyday_word(word):
            line = say(
                f'{folder.path}: "{word}" is an everyday word that the base model already knows, so what is learnt '
                "mixes with its meaning. Choose a made-up word, in the folder's name and in the captions",
                f"{folder.path}：“{word}”是底模已经认识的常用词，学到的内容会与原意混在一起。"
                "请在目录名和标签里改用自造的词",
            )
            warnings.append(Note(line, topic="captions"))
    return warnings


def _plain(text: str) -> str:
    return text.lower().replace("_", " ")


def _check_lengths(plan: Plan, config: Config, token_counts: Callable[[list[str]], list[tuple[int, int]]]) -> list[str]:
    used = plan.samples_used
    counts = token_counts([captions.whole(sample.caption, config) for sample in used])
    cut = [
        (tokens, seen, sample.caption_path or sample.image_path)
        for sample, (tokens, seen) in zip(used, counts, strict=True)
        if tokens > seen
    ]
    if not cut:
        return []
    cut.sort(key=lambda row: -row[0])
    names = some([f"{path.parent.name}/{path.name} ({tokens})" for tokens, _, path in cut])
    line = say(
        f"{len(cut)} caption(s) are longer than the {cut[0][1]} tokens that are read; the rest is cut: {names}. "
        "Shorten them, put what matters first, or raise max_token_length",
        f"{len(cut)} 条标签超过可读取的 {cut[0][1]} 个 token，超出部分会被截掉：{names}。"
        "请缩短、把重要的放前面，或调大 max_token_length",
    )
    return [Note(line, topic="captions")]


def plan_table(plan: Plan, config: Config) -> str:
    """Folders, buckets, batches, steps and epochs, as aligned text in the user's language."""
    found = plan.found
    uses = uses_of_epoch(plan, 1)
    reg_uses = [count for sample, count in uses if sample.is_regularization]
    return "\n".join(
        [
            *_aligned(_folder_rows(plan, uses), left=(0, 4)),
            "",
            *_aligned(_bucket_rows(plan, uses), left=()),
            "",
            *_reg_lines(found, plan, reg_uses),
            *_mask_lines(found),
            *_step_lines(plan, config, sum(count for _, count in uses)),
        ]
    )


def _folder_rows(plan: Plan, uses: list[tuple[Sample, int]]) -> list[list[str]]:
    per_epoch: Counter = Counter()
    for sample, count in uses:
        per_epoch[sample.image_path.parent] += count
    rows = [
        [
            say("folder", "目录"),
            say("pictures", "图片"),
            say("repeats", "重复"),
            say("samples per epoch", "每轮样本"),
            say("captions", "标签"),
        ]
    ]
    for folder in plan.found.folders:
        name = folder.name + (say(" (regularization)", "（正则化）") if folder.is_regularization else "")
        without = folder.picture_count - folder.caption_count
        told = []
        if folder.caption_count:
            told.append(say(f"{folder.caption_count} from files", f"{folder.caption_count} 个来自文件"))
        if without:
            told.append(
                say(f'{without} from the folder\'s name, "{folder.text}"', f"{without} 个用目录名“{folder.text}”")
            )
        numbers = [str(folder.picture_count), str(folder.repeats), str(per_epoch[folder.path])]
        rows.append([name, *numbers, say(", ", "，").join(told)])
    return rows


def _bucket_rows(plan: Plan, uses: list[tuple[Sample, int]]) -> list[list[str]]:
    pictures: Counter = Counter()
    samples: Counter = Counter()
    for sample, count in uses:
        bucket = plan.fits[sample.image_path].bucket
        pictures[bucket] += 1
        samples[bucket] += count
    rows = [[say("bucket", "桶"), say("pictures", "图片"), say("samples", "样本"), say("batches", "批次")]]
    for bucket in sorted(samples):
        batches = -(-samples[bucket] // plan.batch_size)
        rows.append([f"{bucket[0]}x{bucket[1]}", str(pictures[bucket]), str(samples[bucket]), str(batches)])
    return rows


def _reg_lines(found: Found, plan: Plan, reg_uses: list[int]) -> list[str]:
    total = len(found.regularization)
    if not total:
        return [say("regularization: none", "正则化图片：无")]
    fewest, most = min(reg_uses), max(reg_uses)
    times = str(most) if fewest == most else f"{fewest}~{most}"
    turns = ""
    used_count = len(plan.samples_used) - len(found.train)
    if used_count > len(reg_uses):
        turns = say(
            f"; they take turns, {used_count} of {total} over all epochs (reg_rotate)",
            f"；各轮轮流使用，全部轮次共用到 {used_count} 张（reg_rotate）",
        )
    captions_used = (
        say("captions are read from their files", "读取其标签文件")
        if found.reg_captions
        else say("caption files are not read, the folder's name is the caption", "不读标签文件，以目录名为标签")
    )
    return [
        say(
            f"regularization: {len(reg_uses)} of {total} images per epoch, {times} times each, {sum(reg_uses)} samples"
            f"{turns}; {captions_used} (reg_captions = {found.reg_captions})",
            f"正则化图片：每轮使用 {total} 张中的 {len(reg_uses)} 张，每张 {times} 次，共 {sum(reg_uses)} 个样本"
            f"{turns}；{captions_used}（reg_captions = {found.reg_captions}）",
        )
    ]


def _mask_lines(found: Found) -> list[str]:
    pictures = found.train + found.regularization
    shares = [sample.mask.share for sample in pictures if sample.mask]
    if not shares:
        return []
    mean = sum(shares) / len(shares)
    return [
        say(
            f"masks: {len(shares)} of {len(pictures)} pictures have one; on average {mean:.0%} of their area is learnt",
            f"蒙版：{len(pictures)} 张图片中有 {len(shares)} 张带蒙版，平均学习其面积的 {mean:.0%}",
        )
    ]


def _step_lines(plan: Plan, config: Config, sample_count: int) -> list[str]:
    """The arithmetic, so that nobody has to guess where the number of steps comes from."""
    batches, steps = plan.batch_counts[0], -(-plan.batch_counts[0] // batches_of_step(config))
    same = len(set(plan.batch_counts)) == 1
    accumulation = batches_of_step(config)
    grouped_en = f" / {accumulation} accumulated" if accumulation > 1 else ""
    grouped_zh = f" / 累积 {accumulation}" if accumulation > 1 else ""
    first_en, first_zh = ("epoch", "每轮") if same else ("first epoch", "第一轮")
    sentences = [
        say(
            f"{first_en}: {sample_count} samples in batches of {plan.batch_size}, each from one bucket: "
            f"{batches} batches{grouped_en} = {steps} steps",
            f"{first_zh}：{sample_count} 个样本，每批 {plan.batch_size} 个且来自同一个桶："
            f"{batches} 批{grouped_zh} = {steps} 步",
        )
    ]
    if not same:
        fewest, most = min(plan.batch_counts), max(plan.batch_counts)
        sentences.append(
            say(
                f"the other epochs: {fewest}~{most} batches, as their regularization images differ",
                f"其余各轮：{fewest}~{most} 批，因各轮的正则化图片不同",
            )
        )
    limit = say(", ended by max_train_steps", "，由 max_train_steps 截止") if config.max_train_steps else ""
    sentences.append(
        say(
            f"run: {plan.epoch_count} epochs, {plan.step_count} steps in all{limit}",
            f"全程：{plan.epoch_count} 轮，共 {plan.step_count} 步{limit}",
        )
    )
    return sentences


def _aligned(rows: list[list[str]], left: tuple[int, ...]) -> list[str]:
    """Rows as lines with aligned columns; the columns in `left` begin together, the others end together."""
    widths = [max(_columns(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = []
        for at, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - _columns(cell))
            cells.append(cell + space if at in left else space + cell)
        lines.append("  ".join(cells).rstrip())
    return lines


def _columns(text: str) -> int:
    """Columns on a terminal: Chinese characters take two."""
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text
    )
