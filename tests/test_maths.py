"""The judge of mathematics, on answers as models write them, each graded by hand."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest
from pydantic import ValidationError

from posttrain.feedback.judge_use import read_judge
from posttrain.feedback.maths.answers import final_answer
from posttrain.feedback.maths.child import MEMORY_BYTES
from posttrain.feedback.maths.comparer import Comparer
from posttrain.feedback.maths.judge import Maths
from posttrain.feedback.maths.plain import read_number
from posttrain.records import Message, Prompt, Provenance, Response

JUDGE = Maths().open()


def prompt(*references):
    tags = {"references": json.dumps(references)} if len(references) > 1 else {}
    messages = (Message(role="user", content="?"),)
    reference = references[0] if references else None
    return Prompt(provenance=Provenance(id="p"), messages=messages, reference=reference, tags=tags)


def verdict(text, *references, judge=JUDGE, finish=None):
    (said,) = judge.score([(prompt(*references), Response(text=text, finish=finish))])
    return said


# reference, answer, whether they are the same; None: it cannot be told
EQUAL = [
    # whole numbers and decimals
    ("42", "42", True),
    ("42", "42.0", True),
    ("42", "042", True),
    ("42", "+42", True),
    ("42", "43", False),
    ("42", "420", False),
    ("4", "42", False),
    ("142", "42", False),
    ("0.5", ".5", True),
    ("0.50", "0.5", True),
    ("3.14", "3.1", False),
    ("0.0000001", "0.0000002", False),
    ("1000000", "1000001", False),
    # negative
    ("-5", "-5", True),
    ("-5", "−5", True),  # a minus sign as typesetters have it
    ("-5", "5", False),
    ("-5", "$-5$", True),
    ("-1/2", "-0.5", True),
    # thousands
    ("1234", "1,234", True),
    ("1,234,567", "1234567", True),
    ("1234", "1{,}234", True),
    ("1234", "1\\,234", True),
    ("10000", "10 000", True),
    ("1234", "1.234", False),
    ("1234", "12,34", False),
    ("1234.5", "1,234.50", True),
    # fractions
    ("1/2", "0.5", True),
    ("1/2", "\\frac{1}{2}", True),
    ("1/2", "\\dfrac12", True),
    ("1/2", "2/4", True),
    ("1/2", "½", True),
    ("\\frac{3}{2}", "1 1/2", True),
    ("\\frac{3}{2}", "1\\frac{1}{2}", True),
    ("-\\frac{3}{4}", "\\frac{-3}{4}", True),
    ("1/2", "1/3", False),
    ("1/2", "12", False),
    ("1/3", "0.333333", True),
    ("1/3", "0.3333333333", True),
    ("1/3", "0.33", False),
    ("2/3", "0.666667", True),
    ("2/3", "0.666666", False),
    ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt{2}}", True),
    # percent
    ("50", "50%", True),
    ("0.5", "50%", True),
    ("0.5", "50\\%", True),
    ("50%", "0.5", True),
    ("12.5", "12.5 percent", True),
    ("0.5", "0.5%", False),
    ("5%", "50%", False),
    ("33.3333%", "1/3", True),
    # currency and units
    ("18", "$18", True),
    ("18", "\\$18", True),
    ("18", "$18.00", True),
    ("18", "18 dollars", True),
    ("$18", "18 USD", True),
    ("18", "-$18", False),
    ("18", "€18", True),
    ("$18", "€18", None),
    ("3000000", "3 million", True),
    ("3", "3 million", False),
    ("5000", "$5k", True),
    ("5", "5 cm", True),
    ("5\\text{ cm}", "5 cm", True),
    ("5 cm", "5\\,\\mathrm{cm}", True),
    ("5 cm", "5 m", None),
    ("25 cm^2", "25\\text{ cm}^2", True),
    ("15", "15 miles per hour", True),
    ("90", "90^\\circ", True),
    ("90^\\circ", "90 degrees", True),
    ("12", "12 apples", True),
    ("12 apple", "12 apples", True),
    ("2x", "2", False),
    ("5", "5x", False),
    # intervals, sets, pairs
    ("(0, 1]", "(0,1]", True),
    ("[0, 1]", "(0, 1)", False),
    ("(-\\infty, 3]", "x \\le 3", True),
    ("(-\\infty, 2) \\cup (3, \\infty)", "(-∞,2)∪(3,∞)", True),
    ("(1, 2)", "(2, 1)", False),
    ("(3, \\frac{\\pi}{2})", "(3, pi/2)", True),
    ("1, 2", "2, 1", True),
    ("1, 2", "1 and 2", True),
    ("\\{1, 2\\}", "2 or 1", True),
    ("1, 2", "1", False),
    ("1", "1 or 2", False),
    ("\\pm 2", "2, -2", True),
    # formulas
    ("\\frac{\\pi}{2}", "π/2", True),
    ("\\pi", "3.14", False),
    ("\\pi", "3.14159265", True),
    ("2\\sqrt{2}", "\\sqrt{8}", True),
    ("2\\sqrt{2}", "2√2", True),
    ("2\\sqrt{2}", "2*sqrt(2)", True),
    ("x^2 + 2x + 1", "(x+1)^2", True),
    ("x^2 + 2x + 1", "(x-1)^2", False),
    ("x = 5", "5", True),
    ("5", "x = 5", True),
    ("x = 5", "y = 5", False),
    ("42", "6 \\times 7 = 42", True),
    ("1024", "2^{10}", True),
    ("6 \\times 10^{23}", "6e23", True),
    ("y = 2x + 3", "y = 3 + 2x", True),
    ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}", True),
    ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix}2\\\\1\\end{pmatrix}", False),
    ("2 + 3i", "3i + 2", True),
    ("ab + c", "c + ba", True),
    ("a b + c", "a", False),
    ("x + 5 m", "x + 5", False),
    ("5m + x", "x + 5m", True),
    ("x", "x + 0", True),
    ("x", "2x/2", True),
    ("x", "2x", False),
    ("C", "(C)", True),
    ("C", "B", False),
    # words
    ("even", "Even", True),
    ("\\text{even}", "odd", False),
    ("Evelyn", "\\text{Evelyn}", True),
    ("Evelyn", "5", False),
    ("42", "forty-two", None),
    ("42", "not 42", None),
    ("42", "between 40 and 44", None),
    ("5 hours and 30 minutes", "5.5 hours", None),
    ("x \\in \\frac{", "5", None),
]


@pytest.mark.parametrize(("reference", "answer", "same"), EQUAL)
def test_an_answer_is_or_is_not_the_reference(reference, answer, same):
    said = verdict(
        f"So it is \\boxed{{{answer}}}." if same is not None else f"The answer is {answer}", reference
    )
    assert said.score == (None if same is None else float(same)), said.reason


FINAL = [
    ("Half of 48 is 24.\n48 + 24 = 72\n#### 72", "72"),
    ("#### 1,234", "1,234"),
    ("#### 10\nOh no.\n#### 12", "12"),
    ("#### Step 1: add\nThe answer is 5.", "5"),
    ("The answer is 5.\n#### Conclusion", "5"),
    ("Thus \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
    ("$\\boxed{x = \\{1, 2\\}}$", "x = \\{1, 2\\}"),
    ("First \\boxed{1}, but then \\boxed{2}.", "2"),
    ("$x=\\boxed{1}$ or $\\boxed{2}$", "1, 2"),
    ("\\fbox{7}", "7"),
    ("\\boxed{7", None),
    ("\\boxed{\\boxed{5}}", "5"),
    ("\\boxed{ \\boxed{5}", "5"),
    ("The answer is 42.", "42"),
    ("The answer is: 42", "42"),
    ("Answer: **42**", "42"),
    ("**Final Answer:** 42", "42"),
    ("### Final Answer\n\n42", "42"),
    ("The final answer is $\\frac{1}{2}$. I hope it is correct.", "\\frac{1}{2}"),
    ("The answer is $3.50 a day.", "$3.50 a day"),
    ("The answer is:\n\n$$\n42\n$$\nas we wanted", "42"),
    ("The answer to 3 + 4 is 7.", "7"),
    ("The answers are 3 and 5.", "3 and 5"),
    ("So the answer is \\boxed{42}.", "42"),
    ("The answer is 41. No: the answer is 42.", "42"),
    ("<think>The answer is 41.</think> The answer is 42.", "42"),
    ("<think>The answer is 41.</think> Hm.", None),
    ("42", "42"),
    (" $42$ ", "42"),
    ("$18", "$18"),
    ("x = 5", "x = 5"),
    ("12 apples", "12 apples"),
    ("There are 12 apples.", None),
    ("I do not know.", None),
    ("6 * 7\n= 42", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "answer"), FINAL)
def test_the_final_answer_of_a_text(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("There are 12 apples, 3 of them green.", "3"),
        ("She makes $1,018.50.", "$1,018.50"),
        ("It is -5", "-5"),
        ("From 2019-2020", "2020"),
        ("One half, 1/2, of it", "1/2"),
        ("The answer is 4, and 5 is not.", "4, and 5 is not"),  # what is marked goes before
        ("No number", None),
        ("In 3D", None),
    ],
)
def test_the_last_number_is_taken_where_that_is_asked_for(text, answer):
    assert final_answer(text, last_number=True) == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("about 5", Fraction(5)),
        ("2.5e-3", Fraction(1, 400)),
        ("6 × 10^2", Fraction(600)),
        ("1,000,000", Fraction(10**6)),
        ("2 dozen", Fraction(24)),
        ("1/0", None),
        ("1e999999999", None),
        ("5!", None),
        ("3²", None),
        ("2xy", None),
        ("2 n", None),
        ("5-10", None),
        ("5 to 10", None),
        ("1,2", None),
        ("1.2.3", None),
        ("5 is wrong", None),
        ("", None),
        ("apples", None),
    ],
)
def test_plain_numbers(text, value):
    found = read_number(text)
    assert (found and found.value) == value


def test_gsm8k_as_it_is_written():
    reference = "He sold 48/2 = 24 clips in May.\nAltogether 48+24 = 72.\n#### 72"
    assert verdict("So 72.\n#### 72", reference).score == 1.0
    assert verdict("So 72.\n#### 172", reference).score == 0.0
    assert verdict("So 72 clips were sold.", reference).score is None
    assert (
        verdict("So 72 clips were sold.", reference, judge=Maths(unmarked="last_number").open()).score == 1.0
    )


def test_any_of_several_references_will_do():
    assert verdict("#### 5", "4", "5").score == 1.0
    assert verdict("#### 6", "4", "5").score == 0.0
    assert verdict("#### 6", "4", "5 hours and 30 minutes").score is None
    assert verdict("#### 6", "5 hours and 30 minutes", "6").score == 1.0


def test_what_cannot_be_graded_is_no_answer():
    assert verdict("#### 5").reason == "the prompt has no reference"
    assert verdict("#### 5", "5", finish="length").reason == "cut off"
    assert verdict("Well.", "5").reason == "no answer found in the response"
    assert verdict("#### 5", " ").score is None
    unread = verdict("\\boxed{\\frac{1}{}", "\\sqrt{2}")
    assert unread.score is None


def test_the_digits_that_a_decimal_needs_are_a_field():
    assert verdict("0.333", "1/3", judge=Maths(digits=3).open()).score == 1.0
    with pytest.raises(ValidationError):
        Maths(digits=0)
    assert read_judge({"name": "maths", "limit_s": 1}).settings.limit_s == 1


def test_a_comparison_without_end_is_ended_also_in_a_thread_and_the_next_one_works():
    comparer = Comparer(limit_s=0.5)
    found = []
    endless = "100000000!"  # one multiplication after another of numbers with millions of digits

    def ask():
        began = time.monotonic()
        found.append(comparer.same(endless, "5"))
        found.append(time.monotonic() - began)
        found.append(comparer.same("x+1", "1+x"))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(60)
    why, seconds, after = found
    assert why == "comparing took longer than 0.5 s"
    assert seconds < 20
    assert after is True
    assert comparer.started == 2


def test_one_process_serves_many_threads_and_a_killed_one_is_replaced():
    comparer = Comparer(limit_s=5)
    found = []

    def ask(n):
        found.append((n % 2 == 0, comparer.same(f"x+{n}", f"{n - n % 2}+x")))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 20
    assert all(wanted is said for wanted, said in found)
    assert comparer.started == 1
    limits = Path(f"/proc/{comparer._process.pid}/limits").read_text()
    assert re.search(rf"Max address space +{MEMORY_BYTES} ", limits)
    os.kill(comparer._process.pid, 9)
    comparer._process.wait()
    assert comparer.same("x", "x+0") is True
    assert comparer.started == 2


def test_a_forked_process_has_its_own():
    comparer = Comparer(limit_s=5)
    assert comparer.same("x", "y") is False
    pid = os.fork()
    if pid == 0:
        os._exit(0 if comparer.same("x", "x+0") is True and comparer.started == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert comparer.same("x", "x+0") is True
    assert comparer.started == 1


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{1}" + " " * 20000 + "x\\boxed{2}",
        "The answer is a" + "-" * 20000,
        "The answer is " + "1" * 20000,
        "The answer to" + " " * 20000,
        "\\boxed{" * 2000,
        "answer " * 3000,
        "#### " + "1," * 10000,
    ],
)
def test_degenerate_responses_take_no_time(text):
    began = time.process_time()
    verdict(text, "5")
    assert time.process_time() - began < 2
