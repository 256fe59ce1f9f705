"""`lalp select` from the command line against a plain loop on transformers and torch, for every family."""

import json
import math
import pathlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from students import FAMILIES, make_student

from lalp_jax.commands import cli

K = 4
TOLERANCE = 1e-4

QUESTIONS = (
    "A crate holds 12 apples. Tom brings 3 crates and eats 4 apples. How many are left?",
    "What is the area of a square with a side of 7 cm?",
    "Solve $2x + 6 = 20$ for x.",
    "Lena reads 15 pages a day. How long does a book of 240 pages take her?",
    "Which is larger, 5/8 or 3/5?\n\nAnswer with the fraction.",
    "三只猫有几条腿？",
)
FACTS = (
    ("3 * 12 = 36", "36 - 4 = 32", "32"),
    ("7 * 7 = 49", "the unit is cm squared", "49"),
    ("$2x = 14$", "$x = 7$", "7"),
    ("240 / 15 = 16", "a day has 15 pages", "16"),
    ("5/8 = 0.625", "3/5 = 0.6", "5/8"),
    ("一只猫有四条腿。", "3 * 4 = 12", "12"),
)


def answers(number: int) -> dict[str, str]:
    """Three styles: sentences in a row, lines, and long-winded with reflection and other scripts."""
    first, second, final = FACTS[number]
    return {
        "plain": f"First, {first}. Then we see that {second}. So the answer is {final}. That is all. Done! Is it? Yes.",
        "lines": f"{first}\n{second}\n\nTherefore:\n- step one, e.g. {first}\n- step two\nAnswer: \\boxed{{{final}}}\n",
        "wordy": (
            f"<think>\nOkay, let me think about this. We know {first}, I am sure. Hmm, wait. Is {second} right? "
            f"Let me check it again: {first}. Yes — naïve, but right 🙂. 好的。So it holds.\n</think>\n\n"
            f"We found that {second}. Dr. Lee would agree. The answer is {final}."
        ),
    }


def write_inputs(folder: pathlib.Path) -> list[str]:
    sources = []
    for teacher in answers(0):
        path = folder / f"{teacher}.jsonl"
        rows = [
            {"id": f"q{i}", "question": question, "response": answers(i)[teacher]}
            for i, question in enumerate(QUESTIONS)
        ]
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        sources.append(f"{teacher}={path}")
    return sources


class Loop:
    """What the paper's definitions say, one forward pass at a time."""

    def __init__(self, torch, model, tokenizer):
        self.torch, self.model, self.tokenizer = torch, model, tokenizer

    def logprobs(self, before: list[int], after: list[int]) -> np.ndarray:
        """Log-prob of each token of `after` given all before it, nats."""
        with self.torch.no_grad():
            logits = self.model(input_ids=self.torch.tensor([before + after])).logits[0].double()
        table = self.torch.log_softmax(logits, -1)
        rows = self.torch.arange(len(before) - 1, len(before) + len(after) - 1)
        return table[rows, self.torch.tensor(after)].numpy()

    def prompt(self, question: str) -> list[int]:
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def score(self, question: str, response: str, spans: list[tuple[int, int]]) -> tuple[float, float, list[float]]:
        """LALP, GALP and the LocalLP of each step."""
        x = self.prompt(question)
        encoding = self.tokenizer(response, add_special_tokens=False, return_offsets_mapping=True)
        steps: list[list[int]] = [[] for _ in spans]
        for token, (start, _) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
            steps[next(i for i, (a, b) in enumerate(spans) if a <= start < b)].append(token)
        local = []
        for i, step in enumerate(steps):
            context = [token for before in steps[max(0, i - K) : i] for token in before]
            local.append(float(self.logprobs(x + context, step).mean()))
        galp = float(self.logprobs(x, encoding["input_ids"]).mean())
        return sum(local) / len(local), galp, local


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_selection_are_those_of_a_plain_loop(family, tmp_path, torch):
    import transformers

    model = make_student(tmp_path / "student", family, tokenizer=True)
    # Not AutoTokenizer: for some families it replaces how tokenizer.json cuts text into words by its own way.
    loop = Loop(torch, model, transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "student"))
    out = tmp_path / "out"
    argv = ["--student", tmp_path / "student", "--out", out, "--tokens-per-batch", 2048]
    assert cli.run_command("select", [str(item) for item in (*argv, "--teachers", *write_inputs(tmp_path))]) == 0

    rows = pq.read_table(out / "scores.parquet").to_pylist()
    spans: dict[str, list[tuple[int, int]]] = {}
    means: dict[str, list[float]] = {}
    for step in pq.read_table(out / "steps.parquet").to_pylist():
        spans.setdefault(step["candidate_id"], []).append((step["char_start"], step["char_end"]))
        means.setdefault(step["candidate_id"], []).append(step["logprob_mean"])
    assert len(rows) == 3 * len(QUESTIONS)
    assert sum(len(s) > K + 1 for s in spans.values()) > 10, "most answers must be longer than a window"

    best: dict[str, tuple[float, str]] = {}
    spread = []
    for row in rows:
        number = int(row["prompt_id"][1:])
        response = answers(number)[row["teacher"]]
        own = spans[row["candidate_id"]]
        assert "".join(response[a:b] for a, b in own) == response
        lalp, galp, local = loop.score(QUESTIONS[number], response, own)
        assert abs(row["lalp"] - lalp) <= TOLERANCE
        assert abs(row["galp"] - galp) <= TOLERANCE
        assert np.abs(np.array(means[row["candidate_id"]]) - local).max() <= TOLERANCE
        spread.append(abs(lalp - galp))
        best[row["prompt_id"]] = max(best.get(row["prompt_id"], (-math.inf, "")), (lalp, row["teacher"]))
    assert np.mean(spread) > 10 * TOLERANCE, "the two signals must differ, else windows are not tested"

    selected = [json.loads(line) for line in (out / "selected.jsonl").read_text().splitlines()]
    assert {item["prompt_id"]: item["teacher"] for item in selected} == {p: t for p, (_, t) in best.items()}
    by_teacher: dict[str, list[float]] = {}
    for row in rows:
        number = int(row["prompt_id"][1:])
        by_teacher.setdefault(row["teacher"], []).append(row["lalp"])
        assert row["n_tokens"] == len(
            loop.tokenizer(answers(number)[row["teacher"]], add_special_tokens=False)["input_ids"]
        )
    ranking = next(s for s in json.loads((out / "teachers.json").read_text())["signals"] if s["signal"] == "lalp")
    assert ranking["best"] == max(by_teacher, key=lambda teacher: np.mean(by_teacher[teacher]))
