"""Prompts in the web UI's writing; the cases are the examples of its own documentation and code."""

import pytest

from library.diffusion import prompts
from library.diffusion.prompts import Lora
from library.messages import UserError, set_language


def weighted(text):
    return prompts.parse(text).weighted


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0),
                ("house", 1.5730000000000004),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641000000000006),
                (".", 1.1),
            ],
        ),
    ],
)
def test_weights_are_those_of_the_web_uis_own_examples(text, pieces):
    assert weighted(text) == [[(words, pytest.approx(weight)) for words, weight in pieces]]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("[weak]", [("weak", 1 / 1.1)]),
        ("(a:.5)", [("a", 0.5)]),
        ("(a: -1 ) b", [("a", -1.0), (" b", 1.0)]),
        ("(a (b:2):0.5)", [("a ", 0.5), ("b", 1.0)]),
        ("a:1.2) b", [("a:1.2) b", 1.0)]),
        ("a) b] c", [("a) b] c", 1.0)]),
        ("fox \\(series\\), a\\\\b \\c", [("fox (series), a\\b c", 1.0)]),
        ("(red fox \\(x\\):1.2)", [("red fox (x)", 1.2)]),
        ("[a:b], 3:4, a|b, (a|b)", [("a:b", 1 / 1.1), (", 3:4, a|b, ", 1.0), ("a|b", 1.1)]),
        ("裙子，(白色:1.3)", [("裙子，", 1.0), ("白色", 1.3)]),
        ("a # (not this:3)\nb", [("a \nb", 1.0)]),
    ],
)
def test_brackets_and_letters_of_their_own(text, pieces):
    assert weighted(text) == [[(words, pytest.approx(weight)) for words, weight in pieces]]


def test_break_begins_a_section():
    assert weighted("a, b BREAK (c:2)") == [[("a, b", 1.0)], [("", 1.0), ("c", 2.0)]]
    assert weighted("BREAK\na BREAK BREAK b") == [[("", 1.0)], [("a", 1.0)], [("", 1.0)], [("b", 1.0)]]
    assert weighted("BREAKFAST, tie-break, break") == [[("BREAKFAST, tie-break, break", 1.0)]]


def test_loras_are_taken_out_with_their_strengths():
    prompt = prompts.parse("a <lora:liyuu:0.6><lora:my cloths>, b <lyco:x:0.5:0.8> <lora:y:te=0.1:unet=.2>")
    assert prompt.weighted == [[("a , b  ", 1.0)]]
    assert prompt.loras == [
        Lora("liyuu", 0.6, 0.6),
        Lora("my cloths", 1.0, 1.0),
        Lora("x", 0.5, 0.8),
        Lora("y", 0.1, 0.2),
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a [cat:dog:0.4]", r"\[cat:dog:0.4\]: prompt scheduling"),
        ("[(a:2):3]", r"\[\(a:2\):3\]: prompt scheduling"),
        ("[ in front::0.6]", "prompt scheduling"),
        ("a [b:.5]", "prompt scheduling"),
        ("[cow|horse] in a field", r"\[cow\|horse\]: alternating words"),
        ("a cat AND a dog", "AND combines several prompts"),
        ("a cat :1.2", '":1.2" at the end weights the whole prompt'),
        ("a <hypernet:agm:1.1>", "this is a hypernet, not a LoRA"),
        ("<lora:x:0,6>", '"0,6" is not a number. Write 0.6'),
        ("<lora:x:0.6:0.5:32>", "only its strengths can be set"),
        ("<lora:x:1:dyn=8>", "only its strengths can be set"),
        ("<lora:x:1> a <lora:x:0.5>", "x is given more than once"),
        ("(a:1.2.3) b", 'the weight "1.2.3" is not a number'),
        ("(a BREAK b:1.2), c", "BREAK inside brackets"),
    ],
)
def test_what_would_be_drawn_otherwise_is_refused_by_name(text, told):
    with pytest.raises(UserError, match=told):
        prompts.parse(text)


def test_all_problems_are_told_at_once_in_the_users_language():
    set_language("zh")
    with pytest.raises(UserError) as caught:
        prompts.parse("[a|b] AND <hypernet:x:1> [c:d:3] :1.1")
    assert [problem.partition("：")[0] for problem in caught.value.problems] == [
        "<hypernet:x:1>",
        "AND 表示混合多条提示词，这里不支持。请改用逗号或小写 and",
        "末尾的“:1.1”表示整条提示词的权重，这里不支持。请去掉，或补上后括号",
        "[a|b]",
        "[c:d:3]",
    ]


def test_a_negative_prompt_may_say_and_but_name_no_lora():
    """There the web UI reads neither."""
    assert prompts.parse("bad AND ugly, low:1", is_negative=True).weighted == [[("bad AND ugly, low:1", 1.0)]]
    with pytest.raises(UserError, match="has no effect in the negative prompt"):
        prompts.parse("bad <lora:x:1>", is_negative=True)
