"""The embedded default: exact answers, teachers as described, and the packaged student as recorded."""

import itertools
import json
import math
import random
import re
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lalp_jax.data.pool import read_pool
from lalp_jax.data.prompts import end_of_turn
from lalp_jax.data.tokens import load_tokenizer
from lalp_jax.mini import corpus, exam, pool, task, teachers, train
from lalp_jax.mini.tokenizer import save_tokenizer
from lalp_jax.student.hf import load_student

_NUMBER = {task.words(n): n for n in range(100)}
_ADDING = ("buys", "finds", "gets", "wins", "picks up")
_TAKING = ("gives away", "loses", "sells", "drops", "hands")


def _take(split, count, seed=0):
    return list(itertools.islice(task.problems(split, seed), count))


def _solve_words(question):
    """Solves a question from its words alone: the independent evaluator."""
    opening, rest = question.split(". ", 1)
    value = next(_NUMBER[word] for word in opening.split() if word in _NUMBER)
    for change in re.split(r"[.,]\s(?:and then )?", rest.rpartition(".")[0]):
        number = next((_NUMBER[word] for word in change.split() if word in _NUMBER), None)
        if "doubles" in change or "twice" in change:
            value *= 2
        elif "triples" in change or "three times" in change:
            value *= 3
        elif "half" in change:
            value /= 2
        elif "third" in change:
            value /= 3
        elif any(verb in change for verb in _ADDING):
            value += number
        elif any(verb in change for verb in _TAKING):
            value -= number
        else:
            raise AssertionError(f"not understood: {change!r}")
        assert value == int(value)
        assert 0 <= value <= task.LIMIT
    return int(value)


def test_problems_are_the_same_for_the_same_seed():
    assert _take("train", 50, seed=3) == _take("train", 50, seed=3)
    assert _take("train", 50, seed=3) != _take("train", 50, seed=4)


def test_the_words_of_every_question_lead_to_its_answer():
    for problem in _take("train", 1000) + _take("heldout", 1000):
        assert _solve_words(problem.question) == problem.answer, problem.question
        assert task.MIN_OPERATIONS <= len(problem.operations) <= task.MAX_OPERATIONS


def test_splits_share_no_chain():
    chains = {
        split: {(p.start, p.operations) for p in _take(split, 1500)} for split in ("train", "pool", "heldout")
    }
    assert all(len(found) == 1500 for found in chains.values())
    assert not chains["train"] & chains["heldout"]
    assert not chains["train"] & chains["pool"]
    assert not chains["pool"] & chains["heldout"]


def test_the_student_is_trained_on_no_held_out_question_and_on_no_teacher():
    trained = list(itertools.islice(corpus.texts(0), 2000))
    problems = _take("heldout", 2000) + _take("pool", 300)
    assert not {question for question, _ in trained} & {problem.question for problem in problems}
    rng = random.Random(0)
    for problem in (p for p in (task.problem(rng) for _ in range(300)) if p.split == "train"):
        said = {teachers.answer(teacher, problem, 0) for teacher in teachers.TEACHERS}
        assert corpus.plain(problem) not in said
        assert teachers.stated_answer(corpus.plain(problem)) == problem.answer


@pytest.mark.parametrize("teacher", sorted(set(teachers.TEACHERS) - {"erratic"}))
def test_other_teachers_are_always_right(teacher):
    for problem in _take("pool", 300):
        response = teachers.answer(teacher, problem, 0)
        assert response.endswith(f"The answer is {problem.answer}.")
        for left, sign, right, result in re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", response):
            signs = {"+": "__add__", "-": "__sub__", "*": "__mul__", "/": "__floordiv__"}
            assert getattr(int(left), signs[sign])(int(right)) == int(result)


def test_the_erratic_teacher_errs_about_as_often_as_it_slips():
    problems = _take("pool", 1000)
    wrong = [p for p in problems if teachers.stated_answer(teachers.answer("erratic", p, 0)) != p.answer]
    # A few slips heal: a division rounds them away. Three standard deviations of 1000 draws are 0.046.
    assert teachers.SLIP_RATE - 0.08 < len(wrong) / 1000 < teachers.SLIP_RATE + 0.046


def test_a_response_depends_on_the_seed_and_on_nothing_hidden():
    problem = _take("pool", 1)[0]
    assert teachers.answer("stepwise", problem, 0) == teachers.answer("stepwise", problem, 0)
    assert len({teachers.answer("stepwise", problem, seed) for seed in range(10)}) > 1


def test_teachers_differ_as_documented():
    problems = _take("pool", 200)
    said = {t: [teachers.answer(t, p, 0) for p in problems] for t in teachers.TEACHERS}
    length = {t: statistics.mean(map(len, responses)) for t, responses in said.items()}
    pieces = {t: statistics.mean(len(re.split(r"(?<=\.)\s|\n", r)) for r in said[t]) for t in said}
    assert length["terse"] < length["skipper"] < length["erratic"] < length["checker"] < length["restater"]
    assert pieces["skipper"] < 5 < pieces["stepwise"] < pieces["checker"] < pieces["restater"]
    assert all(p.question in response for p, response in zip(problems, said["restater"], strict=True))
    assert not any(re.search("[a-z]", r.rpartition("\n")[0]) for r in said["terse"])
    operations = statistics.mean(len(p.operations) for p in problems)
    assert pieces["stepwise"] == pytest.approx(operations + 2)
    assert pieces["checker"] == pytest.approx(2 * operations + 3)


def test_teacher_files_bring_every_answer_once(tmp_path):
    files = pool.write_teacher_files(tmp_path, n_prompts=7, seed=1)
    assert [teacher for teacher, _ in files] == list(teachers.TEACHERS)
    problems = _take("pool", 7, seed=1)
    for teacher, path in files:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["id"] for row in rows] == [p.id for p in problems]
        assert [row["answer"] for row in rows] == [str(p.answer) for p in problems]
        assert [row["response"] for row in rows] == [teachers.answer(teacher, p, 1) for p in problems]
    held_out = [
        json.loads(line)["id"] for line in pool.write_benchmark_file(tmp_path, 20).read_text().splitlines()
    ]
    assert held_out == [p.id for p in _take("heldout", 20)]


def test_teacher_files_are_what_the_reader_reads(tmp_path):
    files = pool.write_teacher_files(tmp_path, n_prompts=12)
    read = read_pool([(teacher, str(path)) for teacher, path in files])
    assert not read.skipped
    assert len(read.candidates) == 12 * len(teachers.TEACHERS)
    problems = {p.id: p for p in _take("pool", 12)}
    for candidate in read.candidates:
        problem = problems[candidate.prompt.id]
        assert candidate.prompt.answer == str(problem.answer)
        assert candidate.prompt.turns[-1].content == problem.question
        assert candidate.response == teachers.answer(candidate.teacher, problem, 0)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(pool.student_directory())


def test_the_tokenizer_is_learnt_the_same_again(tmp_path):
    save_tokenizer(tmp_path, seed=0)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (pool.student_directory() / name).read_bytes()


def test_the_tokenizer_gives_every_text_back(tokenizer):
    texts = [teachers.answer("restater", p, 0) for p in _take("pool", 20)] + [
        "Ünïcode, 漢字 \t\n 3.5 <think>"
    ]
    for text in texts:
        assert tokenizer.hf.decode(tokenizer.encode_response([text])[0].ids) == text
    assert all(len(tokenizer.encode_prompt(f" {n}")) == 1 for n in range(100))


def test_the_template_marks_the_turns(tokenizer):
    turns = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}]
    whole = tokenizer.hf.apply_chat_template(turns, tokenize=False)
    assert whole == "<|user|>One?<|end|><|assistant|>Two.<|end|>"
    assert tokenizer.hf.decode(exam.render(tokenizer, "One?")) == "<|user|>One?<|end|><|assistant|>"
    assert end_of_turn(tokenizer) == tokenizer.hf.eos_token_id


def test_batches_bring_every_text_whole_and_mark_its_answer(tokenizer):
    batch = next(train.batches(tokenizer, seed=0))
    assert batch.shape == (4, train.ROWS, train.WIDTH)
    tokens, positions, segments, answered = batch
    end, answers = end_of_turn(tokenizer), {answer for _, answer in itertools.islice(corpus.texts(0), 200)}
    for number in range(1, segments.max() + 1):
        mine = segments == number
        assert positions[mine].tolist() == list(range(mine.sum()))
        said = tokens[mine & (answered == 1)].tolist()
        assert said.pop() == end
        assert tokenizer.hf.decode(said) in answers
    assert not answered[segments == 0].any()
    assert (segments > 0).mean() > 0.7


@pytest.fixture(scope="module")
def student():
    return load_student(pool.student_directory(), dtype=jnp.float32)


def test_greedy_decoding_is_the_likeliest_token_each_time(student, tokenizer):
    prompts = [exam.render(tokenizer, p.question) for p in _take("heldout", 3)]
    lengths = np.array([len(p) for p in prompts], np.int32)
    padded = np.zeros((3, lengths.max()), np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    chosen = np.asarray(exam.greedy(student.params, padded, lengths, graphdef=student.graphdef, n_new=24))

    @jax.jit
    def likeliest(params, tokens):
        decoder = nnx.merge(student.graphdef, params)
        hidden, _ = decoder(tokens, jnp.arange(len(tokens), dtype=jnp.int32), jnp.ones_like(tokens))
        return jnp.argmax(decoder.logits(hidden), axis=-1)

    for prompt, answer in zip(prompts, chosen, strict=True):
        whole = np.zeros(lengths.max() + 24, np.int32)
        whole[: len(prompt) + 24] = [*prompt, *answer]
        expected = np.asarray(likeliest(student.params, whole))[len(prompt) - 1 :][:24]
        assert answer.tolist() == expected.tolist()


def test_the_packaged_student_is_as_good_as_recorded(student, tokenizer):
    recorded = json.loads((pool.student_directory() / "metrics.json").read_text())
    sample = exam.heldout(100)
    share = exam.accuracy(student, tokenizer, sample)
    # The sample is part of what was measured: three standard deviations of drawing 100.
    spread = (recorded["accuracy"] * (1 - recorded["accuracy"]) / 100) ** 0.5
    assert 0.3 <= recorded["accuracy"] <= 0.8
    assert recorded["n_problems"] >= 500
    assert abs(share - recorded["accuracy"]) < 3 * spread
    assert recorded["parameters"] == sum(x.size for x in jax.tree.leaves(student.params))
    assert f"{recorded['accuracy']:.1%}" in (pool.student_directory() / "README.md").read_text()


def test_the_package_stays_small():
    assert sum(path.stat().st_size for path in pool.student_directory().iterdir()) < 5_000_000


def test_a_few_steps_of_training_lower_the_loss_and_leave_a_student(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "ROWS", 4)
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer step
        metrics = train.train(tmp_path, seed=1, steps=20, n_problems=4)
    assert 2 < metrics.loss < 6 < math.log(load_tokenizer(tmp_path).vocab_bound)  # the last: knowing nothing
    assert metrics.steps == 20
    assert json.loads((tmp_path / "metrics.json").read_text())["loss"] == metrics.loss
    stored = load_student(tmp_path, dtype=jnp.float32)
    assert sum(x.size for x in jax.tree.leaves(stored.params)) == metrics.parameters
    assert load_tokenizer(tmp_path).vocab_bound == stored.config.vocab_size
