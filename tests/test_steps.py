"""Segmenters: RE2 against a scanner that reads character by character, and what every user relies on."""

import itertools
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lalp_jax.data import steps
from lalp_jax.data.records import Candidate, Prompt
from lalp_jax.errors import InputError

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CAPITALS = LETTERS.upper()
DIGITS = "0123456789"
WORD = LETTERS + CAPITALS + DIGITS + "_"
FOLLOWED = ["E.g.", "I.e.", "Fig.", "Eq.", "Eqs.", "Resp.", "Approx."]
FOLLOWED += [word[0].lower() + word[1:] for word in FOLLOWED]
FOLLOWED += [
    "vs.",
    "cf.",
    "Figs.",
    "Sec.",
    "Secs.",
    "Thm.",
    "Lem.",
    "Prop.",
    "Mr.",
    "Mrs.",
    "Ms.",
    "Dr.",
    "Prof.",
    "St.",
]
ENDING = ("etc.", "al.", "a.m.", "p.m.", "Inc.", "Ltd.", "Co.", "Jr.", "Sr.")


def blank(char: str) -> bool:
    return char.isspace() and char != "\n"


class Scanner:
    """The sentence rules again, as a plain reader without patterns."""

    def __init__(self, text: str):
        self.text = text

    def at(self, i: int) -> str:
        """The character, or "" beyond the ends (which is in no set: test with `and`)."""
        return self.text[i] if 0 <= i < len(self.text) else ""

    def isin(self, i: int, chars: str) -> bool:
        return self.at(i) != "" and self.at(i) in chars

    def skip(self, i: int, test) -> int:
        while i < len(self.text) and test(self.text[i]):
            i += 1
        return i

    def ends(self) -> list[int]:
        found, start = [], 0
        while start < len(self.text):
            end, start = self.step(start)
            found.append(end)
        # The blank after the last stop, with nothing behind it.
        return found + [len(self.text)] * (found != [] and found[-1] != len(self.text))

    def step(self, i: int) -> tuple[int, int]:
        """End of the step that starts at i, and where the search for the next one goes on."""
        i = self.initials(i) or self.list_mark(i) or i
        while i < len(self.text):
            if cut := self.boundary(i):
                return cut
            i = self.whole(i) or i + 1
        return i, i

    def boundary(self, i: int) -> tuple[int, int] | None:
        ended = self.ended(i)
        j = self.skip(ended or i, blank)
        if self.at(j) == "\n":
            run = self.skip(j, str.isspace)
            end = self.text.rindex("\n", j, run) + 1
            return end, end
        if ended and self.at(ended) and blank(self.at(ended)):
            return ended, ended + 1
        run = self.skip(i, lambda c: c in ".!?．。！？｡")
        if set(self.text[i:run]) & set("。！？｡"):
            end = self.skip(run, lambda c: c in "”’»›)]}）］｝」』】〉》〕")
            return end, end
        return None

    def ended(self, i: int) -> int | None:
        """End of the stops, or of the formula with a stop, and of what closes after it."""
        run = self.skip(i, lambda c: c in ".!?．。！？｡")
        if run == i:
            formula = self.formula(i)
            if formula is None or not formula[1]:
                return None
            run = formula[0]
        return self.skip(run, lambda c: c in "”’»›)]}）］｝」』】〉》〕\"'*_")

    def whole(self, i: int) -> int | None:
        """End of what is taken as one from i on."""
        if self.text.startswith("```", i):
            close = self.text.find("```", i + 3)
            return (i if close < 0 else close) + 3
        if self.at(i) == "\\" and self.isin(i + 1, "\\$"):
            return i + 2
        formula = self.formula(i)
        if formula is not None and self.text.startswith(("$$", "\\"), i):
            return formula[0]
        if self.text.startswith("$$", i):
            return i + 2
        if formula is not None and not self.isin(formula[0], DIGITS):
            return formula[0] + self.isin(formula[0], LETTERS + CAPITALS + "_")
        return self.abbreviation(i) or self.initials(i)

    def formula(self, i: int) -> tuple[int, bool] | None:
        """End of the formula that opens at i, and whether it ends in a stop."""
        for opening, closing in (("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)")):
            if self.text.startswith(opening, i):
                return self.lines(i + 2, opening, closing)
        return self.dollars(i + 1) if self.at(i) == "$" else None

    def lines(self, i: int, opening: str, closing: str) -> tuple[int, bool] | None:
        units: list[str] = []
        fresh = False  # at the start of a line
        while not self.text.startswith(closing, i):
            unit = self.unit(i)
            if unit is None or unit == opening or (opening == "$$" and unit == "$"):
                return None
            if fresh and (unit == "\n" or (len(unit) == 2 and blank(unit[1]))):
                return None
            fresh = unit == "\n" or (fresh and unit.isspace())
            units.append(unit)
            i += len(unit)
        last = [u for u in units if not u.isspace()][-1:]
        return i + 2, last in (["."], ["!"], ["?"])

    def unit(self, i: int) -> str | None:
        """One character, or a backslash and the one after it."""
        if self.at(i) != "\\":
            return self.at(i) or None
        return None if self.at(i + 1) in ("", "\n") else self.text[i : i + 2]

    def dollars(self, i: int) -> tuple[int, bool] | None:
        units: list[str] = []
        while self.at(i) != "$":
            unit = self.unit(i)
            if unit is None or unit == "\n":
                return None
            units.append(unit)
            i += len(unit)
        if not units or units[0][-1].isspace() or units[-1][-1].isspace() or units[0] == "<":
            return None
        if units[0] in DIGITS:
            for unit, after in itertools.pairwise(units):
                if unit in (".", "?") and after[-1].isspace():
                    return None
        return i + 1, len(units) > 1 and units[-1] in (".", "!", "?")

    def starts_word(self, i: int) -> bool:
        return not self.isin(i - 1, WORD)

    def abbreviation(self, i: int) -> int | None:
        if not self.starts_word(i):
            return None
        for short in FOLLOWED:
            if self.text.startswith(short, i):
                return i + len(short)
        for short in ("No.", "Nos."):
            if self.text.startswith(short, i) and self.goes_on(i + len(short), DIGITS):
                return i + len(short) + 2
        for short in ENDING:
            if self.text.startswith(short, i) and self.goes_on(i + len(short), LETTERS + DIGITS + "("):
                return i + len(short) + 2
        return None

    def goes_on(self, i: int, chars: str) -> bool:
        return self.at(i) != "" and blank(self.at(i)) and self.isin(i + 1, chars)

    def initials(self, i: int) -> int | None:
        if not self.starts_word(i) or not self.isin(i, CAPITALS):
            return None
        small = self.skip(i + 1, lambda c: c in LETTERS)
        needed, j = (1, small + 1) if small > i + 1 and self.at(small) == " " else (2, i)
        count = end = 0
        while self.isin(j, CAPITALS) and self.at(j + 1) == ".":
            count, end = count + 1, j + 2
            j = end + (self.at(end) == " ")
        return end if count >= needed else None

    def list_mark(self, i: int) -> int | None:
        i = self.skip(i, lambda c: blank(c) or c in "*_#>(-")
        if self.isin(i, LETTERS + CAPITALS):
            j = i + 1
        else:
            j = i - 1
            while j < i or (self.at(j) == "." and self.isin(j + 1, DIGITS)):
                number = self.skip(j + 1, lambda c: c in DIGITS)
                if not 1 <= number - j - 1 <= 3:
                    return None
                j = number
        return j + 2 if self.at(j) == "." and self.at(j + 1) and blank(self.at(j + 1)) else None


def lines(text: str) -> list[int]:
    """Ends of lines with the run of newlines (and blank lines) after each."""
    after_newline = [i + 1 for i, char in enumerate(text) if char == "\n"]
    kept = [end for end in after_newline if "\n" not in leading_space(text[end:])]
    return kept + [len(text)] * (text != "" and (not kept or kept[-1] != len(text)))


def leading_space(text: str) -> str:
    return text[: len(text) - len(text.lstrip())]


def paragraphs(text: str) -> list[int]:
    """Ends of paragraphs: the line ends above that have a second newline in the white space before them."""
    ends = [end for end in lines(text) if text[end - 1] == "\n"]
    kept = [end for end in ends if text[len(text[:end].rstrip()) : end].count("\n") > 1]
    return kept + [len(text)] * (text != "" and (not kept or kept[-1] != len(text)))


PIECES = [*".!?$\\[]()`\n\r\t 17aBx<", "$$", "\\[", "\\]", "\\(", "\\)", "```", "\\$", "\\\\", ". ", "\n\n"]
PIECES += ["e.g. ", "Mr. ", "U.S. ", "a.m. ", "No. 5", "etc. ", "John ", "1. ", "2.1. ", "- ", "**", '"', "”"]
PIECES += ["。", "！", "？", "」", "．", "漢", "字", "\u3000", "$5. ", "=$<<2=2>>", "$x.$", "$5?!$", "$x$5"]
PIECES += ["👩‍🚀", "é", "e\u0301", "ש", "\u200f", "\0", "\xa0", "\x1c", "\x85", "\u2028"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=40).map("".join) | st.text(max_size=30)


def cut(text: str, segmenter: steps.Segmenter = steps.SENTENCE) -> list[str]:
    ends = steps.segment_texts(segmenter, [text])[0].tolist()
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=20))
def test_sentences_agree_with_the_scanner(texts):
    for text, ends in zip(texts, steps.segment_texts(steps.SENTENCE, texts), strict=True):
        assert ends.tolist() == Scanner(text).ends(), text


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=8))
def test_lines_and_paragraphs_agree_with_the_readers(texts):
    for segmenter, reader in ((steps.LINE, lines), (steps.PARAGRAPH, paragraphs)):
        for text, ends in zip(texts, steps.segment_texts(segmenter, texts), strict=True):
            assert ends.tolist() == reader(text), (segmenter.name, text)


@pytest.mark.parametrize("name", ["sentence", "line", "paragraph"])
@settings(max_examples=30, deadline=None)
@given(texts=st.lists(TEXTS, max_size=5))
def test_steps_tile_the_text(name, texts):
    for text, ends in zip(texts, steps.segment_texts(steps.parse_segmenter(name), texts), strict=True):
        assert ends.dtype == np.int32
        assert (np.diff(ends, prepend=0) > 0).all()
        assert (ends[-1] if len(ends) else 0) == len(text)


@pytest.mark.parametrize(
    "parts",
    [
        ["Hello world.", " Next one!", " Is it?!", " Yes…"],
        ["Pi is 3.14.", " See e.g. Mr. Smith vs. Dr. Who, Fig. 3 and Eq. 4, i.e. all.", " Done"],
        ["1. First do.", " 2. Then do.\n", "3) Third.\n", "### 2.1. Set up.\n", "- a. One.", " B"],
        [
            "Milk, eggs etc. and bread.",
            " From 9 a.m. to 5 p.m. daily.",
            " Milk etc.",
            " At 5 p.m.",
            " He stayed.",
        ],
        ["The U.S. army.", " By J. K. Rowling.", " John F. Kennedy.", " The answer is B.", " Next."],
        ["One.\n\n", "Two.\r\n\r\n", "Three. \n", "  Four\n \n", "Five"],
        ['He said "stop."', " (It was ok.)", " **Done.**", " ‘Yes!’", " End"],
        ["今天天气很好。", "我们走吧！", "“真的？”", "他说。", "好"],
        ["so $n! + 1. x$ and", ""],
        ["Let $x = 5.$", " Then \\(y = 2!\\)", " and $$z = 1 .$$", " But \\[a\n= b. c.\n\\]", " end"],
        ["The $n$th $5! \\cdot 3$ is \\( n! + 1 \\) or \\[ a. b\n c! d \\] or $$a. b$$ x.", " y"],
        ["See:\n", "```python\na = 1. # x! \n\nb\n```\n", "Then.", " ```open a.", " b"],
        ["It costs $5.", " So 3*5=$<<3*5=15>>15.", " From $5 to $6.", " Then ($6) more.", " Also $7,"],
        ["Paid \\$5.", " And \\$6.", " \\\\[2pt] a.", " b"],
        ["A $ b.", " \\[ c.", " \\( d.", " $$ e.", " f"],
        ["No. 5 is it.", " No.", " It is not."],
        ["text\0.", " \0"],
    ],
)
def test_sentences(parts):
    parts = [part for part in parts if part]
    assert cut("".join(parts)) == parts


def test_a_formula_does_not_cross_a_blank_line():
    assert cut("\\[ a.\n\nbb. c \\] d") == ["\\[ a.\n\n", "bb.", " c \\] d"]
    assert cut("x $a\nbb. c$ d") == ["x $a\n", "bb.", " c$ d"]


HOSTILE = {
    "one line": "a" * 1_000_000,
    "prose in one line": "This is a sentence of words. " * 34_000,
    "dollars": "$" * 100_000,
    "open dollars": "$a. " * 100_000,
    "open displays": "$$ a. " * 100_000,
    "open brackets": "\\[" * 100_000,
    "open brackets and stops": "\\[ a. " * 100_000,
    "open rounds and stops": "\\( a. " * 100_000,
    "fences": "``` a. " * 100_001,
    "all open": "$$\\[\\(```$a. " * 20_000,
    "one open, many stops": "\\[ $$ \\( ``` $ " + "a. " * 200_000,
    "stops": "." * 1_000_000,
    "blanks": "a. " + " " * 1_000_000,
    "newlines": "\n \n" * 200_000,
    "initials": "A. " * 100_000,
    "prices": "$5 a. b=$<" * 50_000,
    "backslashes": "\\" * 200_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_takes_bounded_time(name):
    for segmenter in (steps.SENTENCE, steps.LINE, steps.PARAGRAPH):
        start = time.monotonic()
        ends = steps.segment_texts(segmenter, [HOSTILE[name]])[0]
        assert ends[-1] == len(HOSTILE[name])
        assert time.monotonic() - start < 15  # measured: below 2; a quadratic search takes hours


def test_real_answers_agree_with_the_scanner(shared_data):
    path = shared_data / "gsm8k_teachers" / "175b_verification.jsonl"
    texts = [json.loads(line)["response"] for line in path.read_text(encoding="utf-8").splitlines()[:300]]
    path = shared_data / "benchmarks" / "math500.jsonl"
    texts += [json.loads(line)["solution"] for line in path.open(encoding="utf-8")][:100]
    for text, ends in zip(texts, steps.segment_texts(steps.SENTENCE, texts), strict=True):
        assert ends.tolist() == Scanner(text).ends()
    assert np.mean([len(ends) for ends in steps.segment_texts(steps.SENTENCE, texts)]) > 3


def test_runs_inside_a_dataset():
    import tensorflow as tf

    texts = ["One. Two.", "", "Three\nfour\nfive. é。"]
    dataset = tf.data.Dataset.from_tensor_slices([text.encode() for text in texts]).batch(2)
    found = [row for batch in dataset.map(steps.segment_ops(steps.SENTENCE)) for row in batch.to_list()]
    assert found == [[4, 5], [], [6, 5, 5, 3]]


def test_importing_does_not_load_tensorflow():
    code = "import sys; from lalp_jax.data import encode, prompts, steps, tokens; "
    code += "assert not {'tensorflow', 'transformers', 'tokenizers', 'jax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names():
    for name in ("sentence", "line", "paragraph", "given", "tokens:64"):
        assert steps.parse_segmenter(name).name == name
    assert steps.parse_segmenter("tokens:64").every == 64


@pytest.mark.parametrize(
    "name", ["lines", "", "tokens", "tokens:", "tokens:0", "tokens:-1", "tokens:1.5", "tokens:²"]
)
def test_an_unknown_name_lists_all(name):
    with pytest.raises(InputError, match="sentence, line, paragraph, given, or tokens:N"):
        steps.parse_segmenter(name)


@pytest.mark.parametrize("name", ["given", "tokens:4"])
def test_segmenters_that_do_not_look_at_the_text_have_no_ops(name):
    with pytest.raises(ValueError, match=name):
        steps.segment_ops(steps.parse_segmenter(name))


def candidate(response: str, parts: tuple[str, ...] | None) -> Candidate:
    return Candidate("c", Prompt("p", ()), "t", response, steps=parts, origin="f.jsonl:3")


def test_given_steps():
    assert steps.given_ends(candidate("ab 漢c", ("ab", "", " 漢", "c"))).tolist() == [2, 4, 5]
    with pytest.raises(InputError, match=r"f\.jsonl:3.*brings no steps"):
        steps.given_ends(candidate("ab", None))
    with pytest.raises(InputError, match=r"f\.jsonl:3.*do not join"):
        steps.given_ends(candidate("ab", ("a",)))


def test_steps_of_n_tokens_never_divide_a_character():
    starts = np.array([0, 2, 2, 2, 5, 6, 8], np.int32)
    assert steps.token_ends(2, starts, 9).tolist() == [2, 5, 8, 9]
    assert steps.token_ends(1, starts, 9).tolist() == [2, 5, 6, 8, 9]
    assert steps.token_ends(100, starts, 9).tolist() == [9]
