"""The pool: prompts matched across sources, every answer accounted for, conflicts named."""

import json
import pathlib
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lalp_jax.data.pool import Coverage, read_pool
from lalp_jax.data.records import candidate_id, prompt_hash
from lalp_jax.errors import InputError


def write(path: pathlib.Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_real_teachers(shared_data: pathlib.Path) -> None:
    """The real files need no flags: 4 teachers, 1,000 questions, each answered by all."""
    folder = shared_data / "gsm8k_teachers"
    pool = read_pool(str(folder))
    coverage = Coverage.of(pool)
    assert coverage == Coverage(dict.fromkeys(sorted(p.stem for p in folder.iterdir()), 1000), 1000, 1000)
    assert (len(pool.candidates), pool.skipped, pool.answers) == (4000, {}, 4000)
    assert len({c.id for c in pool.candidates}) == 4000
    assert len({id(c.prompt) for c in pool.candidates}) == 1000
    stored = [
        json.loads(line) for p in sorted(folder.iterdir()) for line in p.read_bytes().split(b"\n") if line
    ]
    for row, candidate in zip(stored, pool.candidates, strict=True):
        assert row["response"] == candidate.response
        assert (row["id"], row["answer"], row["is_correct"]) == (
            candidate.prompt.id,
            candidate.prompt.answer,
            candidate.correct,
        )
        assert row["question"] == candidate.prompt.turns[0].content


def test_real_teachers_by_text(shared_data: pathlib.Path) -> None:
    """Without the id the same prompts are matched by their text."""
    folder = str(shared_data / "gsm8k_teachers")
    by_text = read_pool(folder, column_map={"id": ""})
    assert Coverage.of(by_text) == Coverage.of(read_pool(folder))
    assert "matched by their text" in by_text.mapping[-1]


def test_order_and_ids(tmp_path: pathlib.Path) -> None:
    """Candidates come in the order of sources and rows; ids follow from content, repeats are numbered."""
    a = write(
        tmp_path / "a.jsonl",
        *({"id": n, "prompt": f"q{n}", "response": r} for n, r in [(2, "x"), (1, "x"), (2, "x")]),
    )
    b = write(tmp_path / "b.jsonl", {"id": 1, "prompt": "q1", "response": "y"})
    pool = read_pool([("B", b), ("A", a)])
    assert [(c.teacher, c.prompt.id, c.origin) for c in pool.candidates] == [
        ("B", "1", f"{b}:1"),
        ("A", "2", f"{a}:1"),
        ("A", "1", f"{a}:2"),
        ("A", "2", f"{a}:3"),
    ]
    turns = pool.candidates[1].prompt.turns
    assert [pool.candidates[i].id for i in (1, 3)] == [
        candidate_id("2", turns, "A", "x", None, n) for n in (0, 1)
    ]
    assert pool == read_pool([("B", b), ("A", a)])
    alone = read_pool([("A", a)])
    assert {c.id for c in alone.candidates} < {c.id for c in pool.candidates}


def test_matched_by_text_unless_all_have_an_id(tmp_path: pathlib.Path) -> None:
    """One source without an id: texts are compared, blind to white space and Unicode form."""
    a = write(tmp_path / "a.jsonl", {"id": "1", "prompt": "caf\u00e9  au lait\n", "response": "A"})
    b = write(tmp_path / "b.jsonl", {"prompt": "cafe\u0301 au lait", "response": "B"})
    pool = read_pool([(None, a), (None, b)])
    first, second = pool.candidates
    assert first.prompt is second.prompt
    assert first.prompt.id == prompt_hash(second.prompt.turns)
    assert pool.mapping[-1] == "prompts are matched by their text (not all sources have an id)"
    assert len(pool.mapping) == 3


def test_row_without_id(tmp_path: pathlib.Path) -> None:
    rows = [{"id": 1, "prompt": "q", "response": "A"}, {"id": None, "prompt": "q", "response": "A"}]
    with pytest.raises(InputError, match=r"a\.jsonl:2: malformed row: no id"):
        read_pool(write(tmp_path / "a.jsonl", *rows))


def test_id_of_two_prompts(tmp_path: pathlib.Path) -> None:
    a = write(tmp_path / "a.jsonl", {"id": 1, "prompt": "q", "response": "A"})
    b = write(
        tmp_path / "b.jsonl",
        {"id": 0, "prompt": "p", "response": "B"},
        {"id": 1, "prompt": "r", "response": "B"},
    )
    for policy in ("error", "skip"):
        with pytest.raises(InputError) as error:
            read_pool([(None, a), (None, b)], on_bad_row=policy)
        assert error.value.where == f"{b}:2"
        assert f"the id '1' has another prompt here than at {a}:1" in str(error.value)
        assert "--map id=" in str(error.value)


def test_same_prompt_but_for_white_space(tmp_path: pathlib.Path) -> None:
    rows = [{"id": 1, "prompt": "q  r", "response": "A"}, {"id": 1, "prompt": "q r\n", "response": "B"}]
    pool = read_pool(write(tmp_path / "a.jsonl", *rows))
    assert pool.candidates[0].prompt is pool.candidates[1].prompt


def test_gold_answers(tmp_path: pathlib.Path) -> None:
    """The first that is there counts, for the earlier candidates too; another one is a conflict."""
    rows = [
        {"id": 1, "prompt": "q", "response": r, "answer": g} for r, g in (("A", None), ("B", "5"), ("C", 5))
    ]
    pool = read_pool(write(tmp_path / "a.jsonl", *rows))
    assert {c.prompt.answer for c in pool.candidates} == {"5"}
    path = write(tmp_path / "a.jsonl", *rows, {"id": 1, "prompt": "q", "response": "D", "answer": "6"})
    with pytest.raises(InputError) as error:
        read_pool(path)
    assert f"{path}:4: the gold answer '6' is '5' at {path}:2" in str(error.value)


def test_no_shared_prompt(tmp_path: pathlib.Path) -> None:
    """One teacher that shares nothing is an error; a partial overlap is not."""
    sources = []
    for name, ids in {"a": "123", "b": "34", "c": "xy"}.items():
        rows = [{"id": i, "prompt": f"q{i}", "response": name} for i in ids]
        sources.append((None, write(tmp_path / f"{name}.jsonl", *rows)))
    with pytest.raises(InputError) as error:
        read_pool(sources)
    assert "teacher 'c' shares no prompt with another teacher" in str(error.value)
    assert "a: 3, such as id '1'; b: 2, such as id '3'; c: 2, such as id 'x'" in str(error.value)
    assert "--map id=COLUMN" in str(error.value)
    assert Coverage.of(read_pool(sources[:2])) == Coverage({"a": 3, "b": 2}, 1, 4)
    with pytest.raises(InputError, match=r"c: 2, such as 'qx'"):
        read_pool(sources, column_map={"id": ""})


def test_name_for_a_source_of_several_teachers(tmp_path: pathlib.Path) -> None:
    rows = [{"prompt": "q", "response": "A", "teacher": t} for t in ("x", "x", "y")]
    path = write(tmp_path / "a.jsonl", *rows)
    with pytest.raises(
        InputError, match=r"a\.jsonl:3: the source of teacher 'me' names several teachers: x, y"
    ):
        read_pool([("me", path)])
    assert {c.teacher for c in read_pool([("me", write(tmp_path / "b.jsonl", *rows[:2]))]).candidates} == {
        "me"
    }
    assert {c.teacher for c in read_pool([("me", path)], column_map={"teacher": ""}).candidates} == {"me"}
    assert [c.teacher for c in read_pool(path).candidates] == ["x", "x", "y"]


def test_two_files_of_one_name(tmp_path: pathlib.Path) -> None:
    """Nameless teachers are never merged; in one glob the folders tell files of one name apart."""
    paths = []
    for folder in "ab":
        (tmp_path / folder).mkdir()
        paths.append(write(tmp_path / folder / "data.jsonl", {"id": 1, "prompt": "q", "response": folder}))
    with pytest.raises(InputError, match=r"the teacher's name 'data' is that of .*a/data\.jsonl too"):
        read_pool([(None, path) for path in paths])
    assert [c.teacher for c in read_pool(str(tmp_path / "*" / "data.jsonl")).candidates] == ["a", "b"]


def test_shards_are_one_teacher(tmp_path: pathlib.Path) -> None:
    for n in range(2):
        write(tmp_path / f"train-0000{n}-of-00002.jsonl", {"id": n, "prompt": f"q{n}", "response": "A"})
    assert {c.teacher for c in read_pool(str(tmp_path)).candidates} == {tmp_path.name}


def test_limit(tmp_path: pathlib.Path) -> None:
    """The first prompts of the input, with all their answers; the rest is accounted for."""
    rows = [{"id": n % 5, "prompt": f"q{n % 5}", "response": str(n)} for n in range(20)]
    path = write(tmp_path / "a.jsonl", {"id": 9, "prompt": "q9", "response": " "}, *rows)
    pool = read_pool(path, limit=2)
    assert [c.response for c in pool.candidates] == ["0", "1", "5", "6", "10", "11", "15", "16"]
    assert pool.skipped == {"beyond the limit": 12, "empty response": 1}
    assert read_pool(path, limit=100).skipped == {"empty response": 1}


def test_limit_looks_for_shared_prompts_everywhere(tmp_path: pathlib.Path) -> None:
    a = write(tmp_path / "a.jsonl", *({"id": n, "prompt": f"q{n}", "response": "A"} for n in range(5)))
    b = write(tmp_path / "b.jsonl", {"id": 4, "prompt": "q4", "response": "B"})
    assert len(read_pool([(None, a), (None, b)], limit=1).candidates) == 1


def test_only_malformed_rows(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{\n[\n")
    with pytest.raises(InputError, match=r"a\.jsonl: every row is malformed"):
        read_pool(str(path), on_bad_row="skip")


def test_one_bad_answer_of_a_row(tmp_path: pathlib.Path) -> None:
    """The other answers of the row stay."""
    row = {"problem": "q", "generations": ["ab", "cd", ""], "steps": [["a", "b"], ["x"], None]}
    pool = read_pool(write(tmp_path / "a.jsonl", row), on_bad_row="skip")
    assert [c.response for c in pool.candidates] == ["ab"]
    assert pool.skipped == {"malformed row: steps do not tile the response": 1, "empty response": 1}
    assert pool.answers == 3


def test_mapping_lines(tmp_path: pathlib.Path) -> None:
    path = write(
        tmp_path / "a.jsonl", {"id": 1, "question": "q", "answer": "5", "response": "A", "is_correct": True}
    )
    assert read_pool(path).mapping == (
        f"{path}: one answer per row; id ← id, prompt ← question, response ← response, answer ← answer, "
        "correct ← is_correct, teacher ← NAME=, else the name of the file",
        "prompts are matched by id",
    )


def corrupted(rng: random.Random, line: bytes) -> bytes:
    """One line, damaged in one of the ways that files are: it must not become a blank line, nor two."""
    at = rng.randrange(len(line))
    return rng.choice(
        [
            line[: max(at, 1)],
            line[:at] + bytes([rng.randrange(11, 256)]) + line[at + 1 :],
            b"[" + line + b"]",
            line.replace(b'"response"', b'"respond"'),
            line.replace(b'"q', b'"\\ud800q'),
            json.dumps({"id": 1, "response": 5}).encode(),
        ]
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(seed=st.integers(0, 2**32), damaged=st.sets(st.integers(0, 39)))
def test_accounting_under_corruption(tmp_path: pathlib.Path, seed: int, damaged: set[int]) -> None:
    """Answers offered = candidates + skipped, whatever happens to some of the lines."""
    rng = random.Random(seed)
    lines = [
        json.dumps({"id": n, "prompt": f"q{n}", "response": rng.choice(["A", "B", " "])}).encode()
        for n in range(40)
    ]
    whole = [line for n, line in enumerate(lines) if n not in damaged]
    lines = [corrupted(rng, line) if n in damaged else line for n, line in enumerate(lines)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n\n".join(lines))
    try:
        pool = read_pool(str(path), on_bad_row="skip")
    except InputError as error:
        # A damaged digit can give a row the id of another prompt; of too few whole rows no column is known.
        assert "has another prompt" in error.what or len(whole) < 20  # noqa: PT017
    else:
        assert pool.answers == 40
        kept = {c.origin for c in pool.candidates}
        for n, line in enumerate(lines):
            if n not in damaged and json.loads(line)["response"] != " ":
                assert f"{path}:{2 * n + 1}" in kept
