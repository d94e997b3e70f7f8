"""The plan of a run, worked out and shown before any model is loaded: what is seen how often, in how many steps.

An epoch is a list of batches that follows from (seed, epoch) alone. The number of steps is exact: with `reg_rotate` the
epochs hold different regularization images, so buckets and batches may differ by epoch, and the epochs are added up one
by one instead of multiplying the first. As in sd-scripts, short last batches of a bucket are kept, and an epoch's last
step takes what is left where the batches are not a multiple of `gradient_accumulation_steps`.

There may be several data sets (`dataset_config`). Each has sizes, buckets, batches and a balance of regularization
images of its own; an epoch has the batches of all of them, shuffled together.
"""

import random
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from library.contracts import Fit, Sample
from library.data import captions
from library.data.buckets import BucketRule, fit
from library.data.folders import Folder, some
from library.data.held_out import AUTO_LEAST
from library.data.samples import Samples, balance, balanced_epochs
from library.files import JsonObject
from library.messages import Note, UserError, plural, say
from library.options.training import Config

MUCH_ENLARGED = 1.1  # below, nobody sees it
TOLD_OF_SUBSETS = (  # in ss_datasets
    "color_aug", "flip_aug", "random_crop", "face_crop_aug_range", "shuffle_caption", "keep_tokens",
    "keep_tokens_separator", "secondary_separator", "enable_wildcard", "caption_prefix", "caption_suffix",
    "caption_dropout_rate", "caption_dropout_every_n_epochs", "caption_tag_dropout_rate", "token_warmup_min",
    "token_warmup_step", "resize_interpolation",
)  # fmt: skip
MUCH_CUT_OFF = 1 / 3  # a share of the image lost by cropping that deserves a warning


@dataclass(frozen=True)
class SetPlan:
    """One data set of the run."""

    config: Config  # the run's, with what is otherwise in this set
    rule: BucketRule
    train: list[Sample]
    regularization: list[Sample]
    fits: dict[Path, Fit]  # of every image, with the usual kernel

    @property
    def batch_size(self) -> int:
        return self.config.train_batch_size

    @property
    def wanted(self) -> int:
        """Training samples of an epoch: as many regularization samples join them."""
        return sum(sample.repeats for sample in self.train)


@dataclass(frozen=True)
class Plan:
    """What the run will see. Epochs count from 1, steps are optimizer steps."""

    samples: Samples
    sets: list[SetPlan]
    reg_rotate: bool
    batch_counts: list[int]  # of each epoch
    step_counts: list[int]  # of each epoch; the last may be cut by max_train_steps
    samples_used: list[Sample]  # images that some epoch uses: what is worth caching
    batches_per_step: int = 1  # that one optimizer step sees, in all processes together
    whole_batches: bool = False  # a bucket's last batch is filled up with images of that bucket

    def fit(self, sample: Sample) -> Fit:
        """How an image is brought to its bucket."""
        own = self.sets[sample.dataset]
        fit, kernel = own.fits[sample.image_path], (sample.options or own.config).resize_interpolation
        return fit._replace(kernel=kernel) if kernel else fit

    @property
    def rule(self) -> BucketRule:
        """Of the first data set: what previews are drawn at."""
        return self.sets[0].rule

    @property
    def batch_size(self) -> int:
        """The largest of all data sets."""
        return max(own.batch_size for own in self.sets)

    @property
    def sizes(self) -> set[tuple[int, int]]:
        """Buckets that some epoch uses."""
        return {self.fit(sample).bucket for sample in self.samples_used}

    @property
    def epoch_count(self) -> int:
        return len(self.step_counts)

    @property
    def step_count(self) -> int:
        return sum(self.step_counts)


def make_plan(
    found: Samples, config: Config, *rules: BucketRule, whole_batches: bool = False, process_count: int = 1
) -> Plan:
    """Count the batches and steps of every epoch.

    Args:
        rules: of each data set.
        process_count: of all machines together.
        whole_batches: for devices where each size of a batch costs minutes of tuning; see `Plan`.

    Raises:
        UserError: neither `max_train_steps` nor `max_train_epochs` is given. Steps win where both are.
    """
    if config.max_train_steps is None and config.max_train_epochs is None:
        raise UserError(
            say(
                "max_train_epochs and max_train_steps are both None: set one of them, e.g. max_train_epochs = 10",
                "max_train_epochs 和 max_train_steps 都是 None：请给出其中之一，如 max_train_epochs = 10",
            )
        )
    assert found.train, "find() refuses an empty set"
    batches_per_step = config.gradient_accumulation_steps * process_count
    sets = _sets(found, found.configs(config), rules)
    train_counts: list[Counter[tuple[int, int]]] = []  # of each set's samples, by bucket
    for own in sets:
        counts: Counter[tuple[int, int]] = Counter()
        for sample in own.train:
            counts[own.fits[sample.image_path].bucket] += sample.repeats
        train_counts.append(counts)
    batch_counts: list[int] = []
    step_counts: list[int] = []
    reg_used: list[set[Path]] = [set() for _ in sets]
    turns = [balanced_epochs(own.wanted, own.regularization, rotate=config.reg_rotate) for own in sets]
    for uses_of_sets in zip(*turns, strict=True):
        batches = 0
        for own, of_train, uses, used in zip(sets, train_counts, uses_of_sets, reg_used, strict=True):
            counts = of_train.copy()
            for sample, count in uses:
                counts[own.fits[sample.image_path].bucket] += count
            used.update(sample.image_path for sample, _ in uses)
            batches += sum(-(-count // own.batch_size) for count in counts.values())
        steps = -(-batches // batches_per_step)
        batch_counts.append(batches)
        if config.max_train_steps is None:
            step_counts.append(steps)
            if len(step_counts) == config.max_train_epochs:
                break
        else:
            step_counts.append(min(steps, config.max_train_steps - sum(step_counts)))
            if sum(step_counts) == config.max_train_steps:
                break
    used = found.train + [sample for sample in found.regularization if sample.image_path in reg_used[sample.dataset]]
    return Plan(found, sets, config.reg_rotate, batch_counts, step_counts, used, batches_per_step, whole_batches)


def _sets(found: Samples, configs: list[Config], rules: Sequence[BucketRule]) -> list[SetPlan]:
    train, regularization, validation = (
        [samples]
        if len(configs) == 1
        else [[one for one in samples if one.dataset == at] for at in range(len(configs))]
        for samples in (found.train, found.regularization, found.validation)
    )
    sets = []
    for config, rule, learned, kept, measured in zip(configs, rules, train, regularization, validation, strict=True):
        fits = {one.image_path: fit((one.width, one.height), rule) for one in learned + kept + measured}
        sets.append(SetPlan(config, rule, learned, kept, fits))
    return sets


def uses_of_epoch(plan: Plan, epoch: int) -> list[tuple[Sample, int]]:
    """Every image of an epoch and how often it is used, by data sets: training images, then the regularization
    images' turn."""
    return [use for own in plan.sets for use in _uses_of_set(own, plan.reg_rotate, epoch)]


def _uses_of_set(own: SetPlan, rotate: bool, epoch: int) -> list[tuple[Sample, int]]:
    train = [(sample, sample.repeats) for sample in own.train]
    return train + balance(own.train, own.regularization, rotate=rotate, epoch=epoch)


def batches_of_epoch(plan: Plan, seed: int, epoch: int) -> list[list[Sample]]:
    """The batches of an epoch in their order, each from one bucket: shuffled within buckets, then among them."""
    rng = random.Random(f"{seed} {epoch} order")
    batches = []
    for own in plan.sets:
        buckets: dict[tuple[int, int], list[Sample]] = {}
        for sample, count in _uses_of_set(own, plan.reg_rotate, epoch):
            buckets.setdefault(own.fits[sample.image_path].bucket, []).extend([sample] * count)
        for bucket in sorted(buckets):
            samples = buckets[bucket]
            rng.shuffle(samples)
            if plan.whole_batches:  # the same number of batches
                missing = -len(samples) % own.batch_size
                samples += (samples * own.batch_size)[:missing]
            batches += [samples[at : at + own.batch_size] for at in range(0, len(samples), own.batch_size)]
    rng.shuffle(batches)
    return batches


def typical_captions(plan: Plan, config: Config, count: int = 4) -> list[str]:
    """A few captions to draw previews of: half of the training images (the new), half of regularization (the old)."""
    found = plan.samples
    new, old = (
        list(dict.fromkeys(captions.whole_of(sample, config) for sample in samples if sample.caption))
        for samples in (found.train, found.regularization)
    )
    old_count = min(count // 2, len(old))
    spread = [old[len(old) * (index + 1) // old_count - 1] for index in range(old_count)]  # the first may be alike
    return new[: count - old_count] + spread


def metadata(plan: Plan) -> JsonObject:
    """What the saved file tells of the data, by sd-scripts' keys; values are numbers, plain dicts and lists.

    Where `dataset_config` describes several data sets, each tells its own sizes, buckets and subsets (`ss_datasets`).
    """
    found = plan.samples
    entries = {
        "ss_num_train_images": sum(sample.repeats for sample in found.train),
        "ss_num_reg_images": sum(sample.repeats for sample in found.regularization),  # before balancing
        "ss_num_validation_images": len(found.validation),
        "ss_num_batches_per_epoch": plan.batch_counts[0],
        "ss_num_epochs": plan.epoch_count,
        "ss_max_train_steps": plan.step_count,
        "ss_resolution": (plan.rule.width, plan.rule.height),
        "ss_masked_loss": any(sample.mask for sample in plan.samples_used),
    }
    if plan.sets[0].config.dataset_config:
        sets = [_set_metadata(plan, at) for at in range(len(plan.sets))]
        directories: dict[str, dict[str, int]] = {}
        for folder in (folder for folder in found.folders if not folder.is_regularization):
            name, number = folder.name, 2
            while name in directories:
                name, number = f"{folder.name} ({number})", number + 1
            directories[name] = _counts_of(folder)
        frequencies = {name: tags for of_set in reversed(sets) for name, tags in of_set["tag_frequency"].items()}
        return entries | {"ss_datasets": sets, "ss_dataset_dirs": directories, "ss_tag_frequency": frequencies}
    of_kind = {
        is_reg: {folder.name: _counts_of(folder) for folder in found.folders if folder.is_regularization == is_reg}
        for is_reg in (False, True)
    }
    return entries | {
        "ss_dataset_dirs": of_kind[False],
        "ss_reg_dataset_dirs": of_kind[True],
        "ss_tag_frequency": captions.tag_frequency(found.train + found.regularization, plan.sets[0].config),
        "ss_bucket_info": _bucket_info(plan.sets[0], plan.reg_rotate),
    }


def _counts_of(folder: Folder) -> dict[str, int]:
    return {"n_repeats": folder.repeats, "img_count": folder.image_count}


def _bucket_info(own: SetPlan, rotate: bool) -> JsonObject:
    counts: Counter[tuple[int, int]] = Counter()
    errors = []
    for sample, count in _uses_of_set(own, rotate, 1):
        width, height = own.fits[sample.image_path].bucket
        counts[width, height] += count
        errors.append(abs(width / height - sample.width / sample.height))
    return {
        "buckets": {
            str(index): {"resolution": list(bucket), "count": counts[bucket]}
            for index, bucket in enumerate(sorted(counts))
        },
        "mean_img_ar_error": sum(errors) / len(errors) if errors else 0.0,
    }


def _set_metadata(plan: Plan, at: int) -> JsonObject:
    """An entry of ss_datasets."""
    own, rule = plan.sets[at], plan.sets[at].rule
    folders = [folder for folder in plan.samples.folders if folder.dataset == at]
    subsets = []
    for folder in folders:
        options = folder.options
        told: JsonObject = {"img_count": folder.image_count, "num_repeats": folder.repeats}
        told |= {name: getattr(options, name) for name in TOLD_OF_SUBSETS}
        told["image_dir"] = folder.path.name
        if folder.metadata_file:
            told["metadata_file"] = folder.metadata_file.name
        else:
            told |= {"class_tokens": folder.text or None, "is_reg": folder.is_regularization}
        subsets.append(told)
    return {
        "is_dreambooth": not any(folder.metadata_file for folder in folders),
        "batch_size_per_device": own.batch_size,
        "num_train_images": own.wanted,
        "num_reg_images": sum(sample.repeats for sample in own.regularization),
        "resolution": [rule.width, rule.height],
        "enable_bucket": rule.enable_bucket,
        "bucket_no_upscale": rule.bucket_no_upscale,
        "min_bucket_reso": rule.minimum,
        "max_bucket_reso": rule.maximum,
        "skip_image_resolution": own.config.skip_image_resolution,
        "tag_frequency": captions.tag_frequency(own.train + own.regularization, own.config),
        "bucket_info": _bucket_info(own, plan.reg_rotate),
        "subsets": subsets,
    }


def check(
    plan: Plan,
    config: Config,
    *,
    token_counts: Callable[[list[str]], list[tuple[int, int]]] | None = None,
    is_everyday_word: Callable[[str], bool] | None = None,
) -> list[str]:
    """Everything about the data that the user should know, what `find` noticed first; each says how to fix it.

    Args:
        token_counts: of each caption, its tokens and how many of them the text encoder sees.
        is_everyday_word: whether the base model's tokenizer knows a word, so that it means something already.
    """
    warnings = list(plan.samples.warnings)
    warnings += _check_sizes(plan)
    warnings += _check_concepts(plan, config, is_everyday_word)
    if token_counts:
        warnings += _check_lengths(plan, config, token_counts)
    unused = len(plan.samples.train + plan.samples.regularization) - len(plan.samples_used)
    if unused:
        cure = (
            say("More epochs would reach them", "增加轮数才会用到")
            if plan.reg_rotate
            else say("reg_rotate = True rotates them", "设 reg_rotate = True 可轮流使用")
        )
        line = say(
            f"{unused} of {len(plan.samples.regularization)} regularization images are never used. {cure}",
            f"{len(plan.samples.regularization)} 张正则化图片中有 {unused} 张始终不会用到。{cure}",
        )
        warnings.append(Note(line, topic="regularization"))
    return warnings


def _check_sizes(plan: Plan) -> list[str]:
    enlarged: list[tuple[float, Path]] = []
    cut: list[tuple[float, Path]] = []
    for sample in plan.samples_used:
        bucket, resized = plan.fit(sample)[:2]
        factor = resized[0] / sample.width
        lost = 1 - bucket[0] * bucket[1] / (resized[0] * resized[1])
        if factor > MUCH_ENLARGED:
            enlarged.append((factor, sample.image_path))
        if lost > MUCH_CUT_OFF:
            cut.append((lost, sample.image_path))
    warnings: list[str] = []
    if enlarged:
        enlarged.sort(reverse=True)
        names = some([f"{path.parent.name}/{path.name} (x{factor:.1f})" for factor, path in enlarged])
        line = say(
            f"{plural(len(enlarged), 'image is', 'images are')} smaller than the bucket and enlarged, which "
            f"teaches blur: {names}. Use larger images, a lower resolution, or bucket_no_upscale = True",
            f"{len(enlarged)} 张图片小于所在的桶，会被放大，容易学到模糊：{names}。"
            "请换更大的图、降低 resolution，或设 bucket_no_upscale = True",
        )
        warnings.append(Note(line, topic="pictures", images=[path for _, path in enlarged]))
    if cut:
        cut.sort(reverse=True)
        names = some([f"{path.parent.name}/{path.name} ({lost:.0%})" for lost, path in cut])
        line = say(
            f"{plural(len(cut), 'image loses', 'images lose')} more than a third by cropping: {names}. Crop them "
            "yourself, or let buckets be more elongated (enable_bucket, min_bucket_reso, max_bucket_reso)",
            f"{len(cut)} 张图片裁掉的部分超过三分之一：{names}。请自行裁剪，"
            "或允许更狭长的桶（enable_bucket、min_bucket_reso、max_bucket_reso）",
        )
        warnings.append(Note(line, topic="pictures", images=[path for _, path in cut]))
    return warnings


def _check_concepts(plan: Plan, config: Config, is_everyday_word: Callable[[str], bool] | None) -> list[str]:
    """The concept word should be new to the base model, and must stand in the captions to be learnt."""
    warnings: list[str] = []
    for place, folder in enumerate(plan.samples.folders):
        word = folder.text.strip()
        if folder.is_regularization or not word or not folder.image_count:
            continue
        texts = [captions.whole_of(sample, config) for sample in plan.samples.train if sample.subset == place]
        if not any(_plain(word) in _plain(text) for text in texts):
            line = say(
                f'{folder.path}: "{word}" is in none of its captions, so nothing is learned for that word '
                f"({folder.source} is used only for images without a caption file). Add it to the captions, or set "
                f'caption_prefix = "{word},"',
                f"{folder.path}：所有标注里都没有“{word}”，因此不会学到这个词（{folder.source}只用于没有标注文件的图"
                f'片）。请把它加入标注，或设 caption_prefix = "{word},"',
            )
            warnings.append(Note(line, "red", topic="captions"))
        elif is_everyday_word and is_everyday_word(word):
            line = say(
                f'{folder.path}: "{word}" is a common word that the base model already knows, so what is learned '
                f"mixes with its meaning. Use a made-up word in {folder.source} and in the captions",
                f"{folder.path}：“{word}”是底模已经认识的常用词，学到的内容会与原意混在一起。请在{folder.source}和标"
                "注里改用自造的词",
            )
            warnings.append(Note(line, topic="captions"))
    return warnings


def _plain(text: str) -> str:
    return text.lower().replace("_", " ")


def _check_lengths(plan: Plan, config: Config, token_counts: Callable[[list[str]], list[tuple[int, int]]]) -> list[str]:
    used = plan.samples_used
    counts = token_counts([captions.whole_of(sample, config) for sample in used])
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
        f"{plural(len(cut), 'caption is', 'captions are')} longer than the {cut[0][1]} tokens that are read; the "
        f"rest is cut: {names}. Shorten them, put what matters first, or raise max_token_length",
        f"{len(cut)} 个标注文件超过可读取的 {cut[0][1]} 个 token，超出部分会被截掉：{names}。请缩短、把重要的放前面，"
        "或调大 max_token_length",
    )
    return [Note(line, topic="captions")]


def plan_table(plan: Plan, config: Config) -> str:
    """Folders, buckets, batches, steps and epochs, as aligned text in the user's language."""
    told = overview(plan, config)
    return "\n".join([*_aligned(told.folders, left=(0, 4)), "", *_aligned(told.buckets, left=()), "", *told.lines])


class Overview(NamedTuple):
    """A plan in words and numbers; the first row of each table is its head."""

    folders: list[list[str]]
    buckets: list[list[str]]
    lines: list[str]


def overview(plan: Plan, config: Config) -> Overview:
    """What will be trained, in the user's language."""
    found = plan.samples
    uses = uses_of_epoch(plan, 1)
    reg_uses = [count for sample, count in uses if sample.is_regularization]
    lines = [
        *_reg_lines(found, plan, reg_uses),
        *_mask_lines(found),
        *_validation_lines(found, config),
        *_step_lines(plan, config, sum(count for _, count in uses)),
    ]
    return Overview(_folder_rows(plan, uses), _bucket_rows(plan, uses), lines)


def _folder_rows(plan: Plan, uses: list[tuple[Sample, int]]) -> list[list[str]]:
    per_epoch: Counter[int] = Counter()
    for sample, count in uses:
        per_epoch[sample.subset] += count
    rows = [
        [
            say("folder", "目录"),
            say("images", "图片"),
            say("repeats", "重复"),
            say("samples per epoch", "每轮样本"),
            say("captions", "标注"),
        ]
    ]
    for place, folder in enumerate(plan.samples.folders):
        name = say(f"set {folder.dataset + 1}: ", f"数据集 {folder.dataset + 1}：") if len(plan.sets) > 1 else ""
        name += folder.name + (say(" (regularization)", "（正则化）") if folder.is_regularization else "")
        without = folder.image_count - folder.caption_count
        told = []
        if folder.caption_count:
            told.append(say(f"{folder.caption_count} from files", f"{folder.caption_count} 个来自文件"))
        if without:
            told.append(
                say(f'{without} from {folder.source}, "{folder.text}"', f"{without} 个用{folder.source}“{folder.text}”")
            )
        numbers = [str(folder.image_count), str(folder.repeats), str(per_epoch[place])]
        rows.append([name, *numbers, say(", ", "，").join(told)])
    return rows


def _bucket_rows(plan: Plan, uses: list[tuple[Sample, int]]) -> list[list[str]]:
    images: Counter[tuple[int, tuple[int, int]]] = Counter()
    samples: Counter[tuple[int, tuple[int, int]]] = Counter()
    for sample, count in uses:
        key = sample.dataset, plan.fit(sample).bucket
        images[key] += 1
        samples[key] += count
    rows = [[say("bucket", "桶"), say("images", "图片"), say("samples", "样本"), say("batches", "批次")]]
    for dataset, bucket in sorted(samples):
        key = dataset, bucket
        batches = -(-samples[key] // plan.sets[dataset].batch_size)
        rows.append([f"{bucket[0]}x{bucket[1]}", str(images[key]), str(samples[key]), str(batches)])
        if len(plan.sets) > 1:
            rows[-1][0] = say(f"set {dataset + 1}: ", f"数据集 {dataset + 1}：") + rows[-1][0]
    return rows


def _reg_lines(found: Samples, plan: Plan, reg_uses: list[int]) -> list[str]:
    total = len(found.regularization)
    if not total:
        return [say("regularization: none", "正则化图片：无")]
    fewest, most = min(reg_uses), max(reg_uses)
    times = str(most) if fewest == most else f"{fewest}~{most}"
    turns = ""
    used_count = len(plan.samples_used) - len(found.train)
    if used_count > len(reg_uses):
        turns = say(
            f"; they rotate, {used_count} of {total} over all epochs (reg_rotate)",
            f"；各轮轮流使用，全部轮次共用到 {used_count} 张（reg_rotate）",
        )
    captions_used = (
        say("captions are read from their files", "读取其标注文件")
        if found.reg_captions
        else say("caption files are not read, the folder's name is the caption", "不读标注文件，以目录名作标注")
    )
    return [
        say(
            f"regularization: {len(reg_uses)} of {plural(total, 'image')} per epoch, {times} "
            f"{'time' if times == '1' else 'times'} each, "
            f"{plural(sum(reg_uses), 'sample')}"
            f"{turns}; {captions_used} (reg_captions = {found.reg_captions})",
            f"正则化图片：每轮使用 {total} 张中的 {len(reg_uses)} 张，每张 {times} 次，共 {sum(reg_uses)} 个样本"
            f"{turns}；{captions_used}（reg_captions = {found.reg_captions}）",
        )
    ]


def _mask_lines(found: Samples) -> list[str]:
    images = found.train + found.regularization
    shares = [sample.mask.share for sample in images if sample.mask]
    if not shares:
        return []
    mean = sum(shares) / len(shares)
    return [
        say(
            f"masks: {len(shares)} of {plural(len(images), 'image')} {'has' if len(shares) == 1 else 'have'} one; on "
            "average "
            f"{mean:.0%} of their area is trained",
            f"蒙版：{len(images)} 张图片中有 {len(shares)} 张带蒙版，平均学习其面积的 {mean:.0%}",
        )
    ]


def _validation_lines(found: Samples, config: Config) -> list[str]:
    if not found.validation:
        if config.validation_split != "auto":
            return []
        return [
            say(
                f"validation: none, with fewer than {AUTO_LEAST} images; put other images of the same subject in "
                "validation_data_dir",
                f"验证：训练图片不足 {AUTO_LEAST} 张，不做验证；可用 validation_data_dir 另给同一主题的图片",
            )
        ]
    epochs, steps = config.validate_every_n_epochs or 1, config.validate_every_n_steps
    when_en = ["every epoch" if epochs == 1 else f"every {epochs} epochs"] + (
        [f"every {plural(steps, 'step')}"] if steps else []
    )
    when_zh = ["每轮" if epochs == 1 else f"每 {epochs} 轮"] + ([f"每 {steps} 步"] if steps else [])
    count, source = len(found.validation), "validation_data_dir" if config.validation_data_dir else "validation_split"
    return [
        say(
            f"validation: {plural(count, 'image is', 'images are')} held out for validation ({source}), measured "
            f"{' and '.join(when_en)}, along with as many training images",
            f"验证：{count} 张图片留作验证，不参加训练（{source}），{'、'.join(when_zh)}一次，并与同样数量的训练图片"
            "对照",
        )
    ]


def _step_lines(plan: Plan, config: Config, sample_count: int) -> list[str]:
    """The arithmetic, so that nobody has to guess where the number of steps comes from."""
    batches, steps = plan.batch_counts[0], -(-plan.batch_counts[0] // plan.batches_per_step)
    same = len(set(plan.batch_counts)) == 1
    accumulation = plan.batches_per_step
    grouped_en = f" / {accumulation} accumulated" if accumulation > 1 else ""
    grouped_zh = f" / 累积 {accumulation}" if accumulation > 1 else ""
    first_en, first_zh = ("epoch", "每轮") if same else ("first epoch", "第一轮")
    sizes = list(dict.fromkeys(str(own.batch_size) for own in plan.sets))
    sentences = [
        say(
            f"{first_en}: {plural(sample_count, 'sample')} in batches of {' or '.join(sizes)}, each from one bucket: "
            f"{plural(batches, 'batch', 'batches')}{grouped_en} = {plural(steps, 'step')}",
            f"{first_zh}：{sample_count} 个样本，每批 {' 或 '.join(sizes)} 个且来自同一个桶："
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
            f"run: {plural(plan.epoch_count, 'epoch')}, {plural(plan.step_count, 'step')} in total{limit}",
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
