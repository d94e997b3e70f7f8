"""Tags changed by rules, in an order in which doing it twice is doing it once.

    replace, delete, imply, add, duplicates out, order, trigger word first

Rules meet tags in whatever spelling (`Long_Hair`, `long hair`); `*` in a rule stands for any letters. What a rule
writes no other rule may take away again: `check` refuses that, so the second time nothing is left to do. A caption that
is a sentence keeps the order of its parts, and its trigger word where that stands already.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from library.data import captions
from library.data.tag_statistics import has_word, is_sentence, spelled
from library.messages import say

ARROW = re.compile("->|→")
CHINESE_COMMA = "，"


class Rule(NamedTuple):
    """`old -> new`; `old` may hold *."""

    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.old} -> {self.new}"


@dataclass(frozen=True)
class Edits:
    """What shall be done to every caption."""

    replace: list[Rule] = field(default_factory=list)
    delete: list[str] = field(default_factory=list)
    imply: list[Rule] = field(default_factory=list)
    add: list[str] = field(default_factory=list)
    remove_duplicates: bool = True
    order: str = "keep"  # "frequent first", "alphabetical"


# ---- reading the rules ----


def read_rules(option: str, texts: Iterable[str], problems: list[str]) -> list[Rule]:
    """Rules from "old -> new"; what is wrong with them is added to `problems`."""
    rules = []
    for text in texts:
        parts = [part.strip() for part in ARROW.split(text)]
        if len(parts) != 2:
            problems.append(
                say(
                    f'{option}: "{text}" is not of the form "old tag -> new tag"',
                    f'{option}："{text}" 不是 "旧标签 -> 新标签" 的形式',
                )
            )
        elif not parts[0] or not parts[1]:
            cure = say(". To remove a tag, put it in delete_tags", "。要删掉标签请写进 delete_tags") if parts[0] else ""
            problems.append(
                say(f'{option}: "{text}" has nothing on one side{cure}', f'{option}："{text}" 有一边是空的{cure}')
            )
        elif "*" in parts[1]:
            problems.append(
                say(f'{option}: "{text}": * is allowed only left of ->', f'{option}："{text}"：* 只能写在 -> 左边')
            )
        else:
            rules.append(Rule(*parts))
    return rules


def refuse_commas(option: str, texts: Iterable[str], problems: list[str]) -> None:
    """A comma separates tags, so none has one."""
    for text in texts:
        if not re.search("[,，\n]", text):
            continue
        several = [part.strip() for part in re.split("[,，\n]", text) if part.strip()]
        if option == "trigger_word" or ARROW.search(text):
            cure = say("give one tag each", "每处只能写一个标签")
        else:
            listed = ", ".join(f'"{part}"' for part in several)
            cure = say(f"write {listed}", f"请写成 {listed}")
        problems.append(
            say(
                f'{option}: "{text}" contains a comma, which separates tags: {cure}',
                f'{option}："{text}" 含逗号，{cure}',
            )
        )


def check(edits: Edits, words: Iterable[str]) -> list[str]:
    """Rules that contradict each other.

    Args:
        words: the trigger words.
    """
    problems = []
    written = [(f'add_tags "{tag}"', tag) for tag in edits.add]
    written += [(f'imply_tags "{rule}"', rule.new) for rule in edits.imply]
    replaced = [(f'replace_tags "{rule}"', rule.new) for rule in edits.replace]
    trigger = [(f'trigger_word "{word}"', word) for word in words]
    for told, tag in trigger + written + replaced:
        problems += [
            say(
                f'delete_tags "{pattern}" would remove what {told} adds. Delete one of them',
                f'delete_tags "{pattern}" 会删掉 {told} 写入的标签，请去掉其中一个',
            )
            for pattern in edits.delete
            if matches(pattern, tag)
        ]
    for told, tag in trigger + written:
        problems += [
            say(
                f'replace_tags "{rule}" would remove what {told} adds. Delete one of them',
                f'replace_tags "{rule}" 会换掉 {told} 写入的标签，请去掉其中一个',
            )
            for rule in edits.replace
            if matches(rule.old, tag) and rule.new != tag
        ]
    for rule in edits.replace:
        if _replaced(rule.new, edits.replace) is None:
            problems.append(
                say(
                    f'replace_tags "{rule}" is circular with the others. Delete one of them',
                    f'replace_tags "{rule}" 与其他规则互相循环，请去掉其中一条',
                )
            )
    return problems


def unused(edits: Edits, tags: Iterable[str]) -> list[tuple[str, str]]:
    """(option, pattern) of what stands in no caption, so that the rule does nothing.

    Args:
        tags: every tag of the set.
    """
    present = {spelled(tag) for tag in tags}
    present |= {spelled(_replaced(tag, edits.replace) or tag) for tag in present}
    rules = [("replace_tags", rule.old) for rule in edits.replace]
    rules += [("delete_tags", pattern) for pattern in edits.delete]
    rules += [("imply_tags", rule.old) for rule in edits.imply]
    present |= {spelled(tag) for tag in edits.add} | {spelled(rule.new) for rule in edits.imply}
    return [(option, pattern) for option, pattern in rules if not any(matches(pattern, tag) for tag in present)]


@lru_cache(maxsize=1000)
def _pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in spelled(pattern).split("*")))


def matches(pattern: str, tag: str) -> bool:
    """Whether a tag, in any spelling, is what a rule speaks of."""
    return bool(_pattern(pattern).fullmatch(spelled(tag)))


# ---- doing it ----


def edited(lines: Iterable[tuple[str, str | None]], edits: Edits) -> Iterator[str]:
    """The first lines of captions as the rules make them.

    Args:
        lines: of each caption its first line, and its trigger word or None.
    """
    lines, changed = list(lines), []
    for line, word in lines:
        parts = _tags_of(line, word, edits)
        is_prose = is_sentence(", ".join(parts))
        first = None
        if word and not (is_prose and has_word(", ".join(parts), word)):
            own = next((part for part in parts if spelled(part) == spelled(word)), word)
            first = _weighted_as(own, word)
            parts = [part for part in parts if spelled(part) != spelled(word)]
        changed.append((parts, is_prose, first))
    rank = Counter(tag for parts, _, _ in changed for tag in {spelled(part) for part in parts})
    for (line, _), (parts, is_prose, first) in zip(lines, changed, strict=True):
        if not is_prose and edits.order == "frequent first":
            parts = sorted(parts, key=lambda part: (-rank[spelled(part)], spelled(part)))
        elif not is_prose and edits.order == "alphabetical":
            parts = sorted(parts, key=spelled)
        if first:
            parts = [first, *parts]
        same = CHINESE_COMMA not in line and parts == [str(tag) for tag in captions.weighted_tags(line)]
        yield line if same else ", ".join(parts)


def _tags_of(line: str, word: str | None, edits: Edits) -> list[str]:
    """The parts of a caption, all but ordered."""
    parts = [_renamed(tag, edits.replace) for tag in captions.weighted_tags(line.replace(CHINESE_COMMA, ","))]
    parts = [part for part in parts if not any(matches(pattern, part) for pattern in edits.delete)]
    parts = _implied(parts, [*edits.add, *([word] if word else [])], edits.imply)
    present = {spelled(part) for part in parts}
    parts = [tag for tag in dict.fromkeys(edits.add) if spelled(tag) not in present] + parts
    if not edits.remove_duplicates or is_sentence(", ".join(parts)):
        return parts
    once: dict[str, str] = {}
    for part in parts:
        once.setdefault(spelled(part), part)
    return list(once.values())


def _renamed(tag: captions.WeightedTag, rules: list[Rule]) -> str:
    """A tag after all replacements, with its weight; a rule that names the weight changes that, too."""
    exact = next((rule.new for rule in rules if tag.before and rule.old == str(tag)), None)
    return exact or _weighted_as(str(tag), _replaced(tag.text, rules) or tag.text)


def _weighted_as(own: str, text: str) -> str:
    """A text with the weight that a tag has, unless it brings one."""
    given, new = captions.weighted_tags(own)[0], captions.weighted_tags(text)[0]
    return text if new.before else str(new._replace(before=given.before, after=given.after))


def _replaced(tag: str, rules: list[Rule]) -> str | None:
    """A tag after all replacements; None where they never end."""
    for _ in range(len(rules) + 1):
        new = next((rule.new for rule in rules if matches(rule.old, tag) and rule.new != tag), None)
        if new is None:
            return tag
        tag = new
    return None


def _implied(parts: list[str], also: list[str], rules: list[Rule]) -> list[str]:
    """The parts with what they imply behind each.

    Args:
        also: what will stand in the caption too.
    """
    parts = list(parts)
    is_complete = False
    while not is_complete:
        is_complete = True
        present = {spelled(part) for part in [*parts, *also]}
        for rule in rules:
            if spelled(rule.new) in present or not any(matches(rule.old, part) for part in [*parts, *also]):
                continue
            at = next((at for at, part in enumerate(parts) if matches(rule.old, part)), len(parts) - 1)
            parts.insert(at + 1, rule.new)
            present.add(spelled(rule.new))
            is_complete = False
    return parts


def with_first_line(caption: str, line: str) -> str:
    """A caption with another first line; what follows it stays."""
    for whole in caption.splitlines(keepends=True):
        if whole.strip():
            before, _, rest = caption.partition(whole)
            end = whole[len(whole.splitlines()[0]) :]
            return before + line + end + rest
    return line
