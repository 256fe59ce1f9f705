"""Every layout that users bring, each from a small file through `read_pool`, and the traps in their names."""

import json
import pathlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lalp_jax.data.columns import COLUMNS
from lalp_jax.data.pool import read_pool
from lalp_jax.data.records import Pool, Turn
from lalp_jax.errors import InputError

Q = (Turn("user", "q"),)


def write(path: pathlib.Path, *rows: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rows[0]) if path.suffix == ".json" else "\n".join(map(json.dumps, rows))
    path.write_text(text)
    return str(path)


def read(path: pathlib.Path, *rows: Any, **options: Any) -> Pool:
    return read_pool(write(path / "t.jsonl", *rows), **options)


def summary(pool: Pool) -> list[tuple]:
    return [
        (c.teacher, c.prompt.id, c.prompt.turns, c.response, c.correct, c.prompt.answer)
        for c in pool.candidates
    ]


def test_one_file_per_teacher(tmp_path: pathlib.Path) -> None:
    """L1, and SCAS: {id, instruction, teacher_output}."""
    a = write(tmp_path / "a.jsonl", {"id": 7, "system": "s", "instruction": "q", "teacher_output": "A"})
    b = write(tmp_path / "b.json", [{"id": "7", "system": "s", "instruction": "q", "teacher_output": "B"}])
    turns = (Turn("system", "s"), Turn("user", "q"))
    expected = [("a", "7", turns, "A", None, None), ("b", "7", turns, "B", None, None)]
    for sources in (str(tmp_path), [(None, a), (None, b)]):
        assert summary(read_pool(sources)) == expected
    named = read_pool([("x/../y", a), ("é", b)])
    assert [c.teacher for c in named.candidates] == ["x/../y", "é"]
    assert named.candidates[0].prompt is named.candidates[1].prompt


def test_list_columns(tmp_path: pathlib.Path) -> None:
    """L2, OpenR1-Math: parallel lists; `messages` holds one of them again, `solution` is gold prose."""
    row = {
        "problem": "q",
        "solution": "gold prose",
        "answer": "5",
        "uuid": "u1",
        "generations": ["A", "B"],
        "correctness_math_verify": [True, False],
        "correctness_llama": None,
        "finish_reasons": None,
        "correctness_count": 1,
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "A"}],
    }
    pool = read(tmp_path, row)
    assert summary(pool) == [("t", "u1", Q, "A", True, "5"), ("t", "u1", Q, "B", False, "5")]
    assert "response ← generations" in pool.mapping[0]
    assert "correct ← correctness_math_verify" in pool.mapping[0]


def test_list_columns_with_teachers_and_steps(tmp_path: pathlib.Path) -> None:
    row = {
        "problem": "q",
        "responses": ["ab", "c"],
        "model_names": ["x", "y"],
        "reasoning_content": [None, "t"],
        "steps": [["a", "b"], None],
    }
    pool = read(tmp_path, row)
    assert [(c.teacher, c.response, c.steps) for c in pool.candidates] == [
        ("x", "ab", ("a", "b")),
        ("y", "<think>\nt\n</think>\n\nc", None),
    ]


def test_grace(tmp_path: pathlib.Path) -> None:
    pool = read(tmp_path, {"problem": "q", "responses": ["A", "B"]}, {"problem": "q2", "responses": ["C"]})
    assert [c.response for c in pool.candidates] == ["A", "B", "C"]
    assert pool.candidates[0].prompt is pool.candidates[1].prompt


def test_columns_per_teacher(tmp_path: pathlib.Path) -> None:
    """L3, s1K-1.1."""
    row = {
        "solution": "gold",
        "question": "q",
        "cot_type": "math",
        "gemini_thinking_trajectory": "g1",
        "gemini_attempt": "g2",
        "gemini_grade": "Yes",
        "deepseek_thinking_trajectory": "d1",
        "deepseek_attempt": "d2",
    }
    pool = read(tmp_path, row)
    assert [(c.teacher, c.response, c.prompt.answer) for c in pool.candidates] == [
        ("gemini", "<think>\ng1\n</think>\n\ng2", "gold"),
        ("deepseek", "<think>\nd1\n</think>\n\nd2", "gold"),
    ]
    assert "teacher ← gemini | deepseek" in pool.mapping[0]
    assert "response ← gemini_attempt | deepseek_attempt" in pool.mapping[0]


def test_s1k_v1(tmp_path: pathlib.Path) -> None:
    pool = read(tmp_path, {"question": "q", "solution": "g", "thinking_trajectories": ["t"], "attempt": "a"})
    assert summary(pool)[0][3:] == ("<think>\nt\n</think>\n\na", None, "g")


@pytest.mark.parametrize("column", ["teacher", "model", "model_name", "generator", "generation_model"])
def test_long_rows(tmp_path: pathlib.Path, column: str) -> None:
    """L4, OpenMathReasoning: "n/a" is a missing gold answer."""
    rows = [
        {"problem": "q", "generated_solution": text, column: name, "expected_answer": "n/a"}
        for name, text in (("R1", "A"), ("QwQ", "B"))
    ]
    assert [c[0::3] for c in summary(read(tmp_path, *rows))] == [("R1", "A"), ("QwQ", "B")]
    assert read(tmp_path, *rows).candidates[0].prompt.answer is None


def test_nemotron(tmp_path: pathlib.Path) -> None:
    """`reasoning` is a switch here, and `input` a list of messages."""
    row = {
        "input": [{"role": "user", "content": "q"}],
        "output": "A",
        "reasoning": "on",
        "generator": "R1",
        "system_prompt": "s",
        "license": "x",
    }
    assert summary(read(tmp_path, row))[0][2:4] == ((Turn("system", "s"), Turn("user", "q")), "A")


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_file_per_prompt(tmp_path: pathlib.Path, suffix: str) -> None:
    """L5, ASLEC: the folder names the teacher."""
    for n in range(3):
        answers = [
            {"think": f"t{n}", "answer": f"a{n}", "correct": n > 0, "usage": {"x": 1}},
            {"answer": "b"},
        ]
        row = {"id": n, "input": f"q{n}", "output": "gold", "distilled_answers": answers}
        write(tmp_path / "qwen" / f"{n}{suffix}", row)
    pool = read_pool(str(tmp_path / "qwen"))
    assert summary(pool)[2:4] == [
        ("qwen", "1", (Turn("user", "q1"),), "<think>\nt1\n</think>\n\na1", True, "gold"),
        ("qwen", "1", (Turn("user", "q1"),), "b", None, "gold"),
    ]
    assert len(pool.candidates) == 6
    assert "thinking ← distilled_answers[].think" in pool.mapping[0]


def test_file_per_seed(tmp_path: pathlib.Path) -> None:
    """L6, NeMo-Skills: seeds are samples of one teacher, named by the folder."""
    for seed in range(3):
        rows = [
            {"problem": f"q{n}", "expected_answer": str(n), "generation": f"{n} {seed}"} for n in range(2)
        ]
        write(tmp_path / "qwen" / f"output-rs{seed}.jsonl", *rows)
    pool = read_pool(str(tmp_path / "qwen" / "output-rs*.jsonl"))
    assert [(c.teacher, c.response) for c in pool.candidates] == [
        ("qwen", f"{n} {seed}") for seed in range(3) for n in range(2)
    ]
    assert len({c.prompt.id for c in pool.candidates}) == 2
    assert read_pool([("me", str(tmp_path / "qwen"))]).candidates[0].teacher == "me"


def batch_output(key: str, content: str | None, **more: Any) -> dict:
    message = {"role": "assistant", "content": content} | more
    body = {"model": "gpt", "choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
    return {
        "id": f"batch_{key}",
        "custom_id": key,
        "response": {"status_code": 200, "body": body},
        "error": None,
    }


def test_api_batch(tmp_path: pathlib.Path) -> None:
    """L7: requests hold the prompts, responses the answers, in either order; a failed request is counted."""
    requests = [
        {
            "custom_id": k,
            "method": "POST",
            "url": "/v1",
            "body": {"model": "gpt", "messages": [{"role": "user", "content": k}]},
        }
        for k in "abc"
    ]
    write(tmp_path / "z_requests.jsonl", *requests)
    failed = {"custom_id": "c", "response": {"status_code": 500, "body": {"error": "x"}}, "error": "x"}
    outputs = [batch_output("b", "B", reasoning_content="t"), batch_output("a", "A"), failed]
    outputs.append({"custom_id": "c", "response": None, "error": {"code": "expired"}})
    write(tmp_path / "output.jsonl", *outputs)
    pool = read_pool(str(tmp_path))
    assert summary(pool) == [
        ("gpt", "b", (Turn("user", "b"),), "<think>\nt\n</think>\n\nB", None, None),
        ("gpt", "a", (Turn("user", "a"),), "A", None, None),
    ]
    assert pool.skipped == {"empty response": 2}
    assert "response ← response.body.choices[].message.content" in pool.mapping[0]


def test_api_batch_without_requests(tmp_path: pathlib.Path) -> None:
    with pytest.raises(
        InputError, match="no column is known to hold the prompt; the columns are: id, custom_id"
    ):
        read(tmp_path, batch_output("a", "A"))


def test_answers_alone_take_prompts_of_another_source(tmp_path: pathlib.Path) -> None:
    a = write(tmp_path / "a.jsonl", {"id": 1, "response": "A"}, {"id": 2, "response": "A2"})
    b = write(tmp_path / "b.jsonl", {"id": 1, "prompt": "q", "response": "B"})
    with pytest.raises(InputError, match=r"a\.jsonl:2: malformed row: no prompt .*'2'"):
        read_pool([(None, a), (None, b)])
    pool = read_pool([(None, a), (None, b)], on_bad_row="skip")
    assert [(c.teacher, c.prompt.turns) for c in pool.candidates] == [("a", Q), ("b", Q)]
    assert pool.skipped == {"malformed row: no prompt": 1}


def test_llama_factory_predictions(tmp_path: pathlib.Path) -> None:
    """L7: all runs write the same file name, so the folder names the teacher."""
    for name in ("x", "y"):
        row = {"prompt": "q", "predict": f"by {name}", "label": "5"}
        write(tmp_path / name / "generated_predictions.jsonl", row)
    pool = read_pool(str(tmp_path / "*" / "generated_predictions.jsonl"))
    assert [(c.teacher, c.response, c.prompt.answer) for c in pool.candidates] == [
        ("x", "by x", "5"),
        ("y", "by y", "5"),
    ]


CONVERSATIONS: dict[str, dict[str, Any]] = {
    "openai": {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "A"}]},
    "rsr": {"id": 3, "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "A"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "A"}]},
    "openthoughts": {"conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "A"}]},
    "numina": {
        "problem": "q",
        "solution": "A",
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "A"}],
    },
    "parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "q"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A"}]},
        ]
    },
    "columnar": {"messages": {"role": ["user", "assistant"], "content": ["q", "A"]}},
    "completion": {
        "prompt": [{"role": "user", "content": "q"}],
        "completion": [{"role": "assistant", "content": "A"}],
    },
    "prompt_messages": {"messages": [{"role": "user", "content": "q"}], "response": "A"},
    "alpaca": {"instruction": "q", "input": "", "output": "A"},
    "acereason": {"category": "math", "source": "x", "input": "q", "output": "A"},
    "prompt_answer": {"prompt": "q", "answer": "A"},
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations(tmp_path: pathlib.Path, name: str) -> None:
    (candidate,) = read(tmp_path, CONVERSATIONS[name]).candidates
    assert (candidate.prompt.turns, candidate.response) == (Q, "A")


def test_lark(tmp_path: pathlib.Path) -> None:
    rows = [
        {
            "problem_id": "p",
            "candidate_id": f"c{n}",
            "teacher": t,
            "messages": CONVERSATIONS["openai"]["messages"],
        }
        for n, t in enumerate("xy")
    ]
    assert [(c.teacher, c.prompt.id) for c in read(tmp_path, *rows).candidates] == [("x", "p"), ("y", "p")]


def test_several_turns(tmp_path: pathlib.Path) -> None:
    """Everything before the last answer is the prompt; thinking of the last message is joined."""
    messages = [
        {"role": "developer", "content": "s"},
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "a1"},
        {"role": "user", "content": "q2"},
        {"role": "assistant", "content": "A", "reasoning_content": "t"},
    ]
    (candidate,) = read(tmp_path, {"messages": messages}, system="not this").candidates
    assert [turn.role for turn in candidate.prompt.turns] == ["system", "user", "assistant", "user"]
    assert candidate.response == "<think>\nt\n</think>\n\nA"
    (candidate,) = read(tmp_path, {"messages": messages}, system="this", column_map={"system": ""}).candidates
    assert candidate.prompt.turns[0] == Turn("system", "this")


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"role": "user", "content": "q"}], "conversation does not end with an answer"),
        ([{"role": "tool", "content": "q"}, {"role": "assistant", "content": "A"}], "unknown role"),
        ([{"role": "system", "content": "q"}, {"role": "assistant", "content": "A"}], "empty prompt"),
        (
            [{"role": "user", "content": {"x": 1}}, {"role": "assistant", "content": "A"}],
            "message is not text",
        ),
        ("text", "not a conversation"),
        (None, "not a conversation"),
    ],
)
def test_malformed_conversation(tmp_path: pathlib.Path, messages: Any, reason: str) -> None:
    good = CONVERSATIONS["openai"]
    rows = [good] * 64 + [{"messages": messages}]
    with pytest.raises(InputError, match=rf"t\.jsonl:65: malformed row: {reason}"):
        read(tmp_path, *rows)
    pool = read(tmp_path, *rows, on_bad_row="skip")
    assert pool.skipped == {f"malformed row: {reason}": 1}
    assert pool.answers == 65


def test_system_message(tmp_path: pathlib.Path) -> None:
    rows = [
        {"prompt": "q", "response": "A", "system": "own"},
        {"prompt": "r", "response": "B", "system": None},
    ]
    turns = [c.prompt.turns[0] for c in read(tmp_path, *rows, system="given").candidates]
    assert turns == [Turn("system", "own"), Turn("system", "given")]


def test_alpaca_input(tmp_path: pathlib.Path) -> None:
    pool = read(tmp_path, {"instruction": "Add.", "input": "1 1", "output": "2", "system": ""})
    assert pool.candidates[0].prompt.turns == (Turn("user", "Add.\n1 1"),)
    assert "prompt ← instruction + input" in pool.mapping[0]


@pytest.mark.parametrize(
    ("row", "field", "ways"),
    [
        ({"question": "q", "solution": "trace", "answer": "5"}, "response", ("solution", "answer")),
        ({"question": "q", "output": "A", "generation": "B"}, "response", ("output", "generation")),
        ({"question": "q", "prompt": "<user>q", "response": "A"}, "prompt", ("prompt", "question")),
        (
            {"question": "q", "response": "A", "x_response": "B", "y_response": "C"},
            "response",
            ("response", "x_response"),
        ),
    ],
)
def test_ambiguity(tmp_path: pathlib.Path, row: dict, field: str, ways: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path, row)
    assert f"several columns can be the {field}: {', '.join(ways)}" in str(error.value)
    assert str(tmp_path / "t.jsonl") in str(error.value)
    for way in ways:
        assert f"--map {field}={way}" in str(error.value)
    for way in ways:
        (candidate,) = read(tmp_path, row, column_map={field: way}).candidates
        text = candidate.response if field == "response" else candidate.prompt.turns[0].content
        assert text == row[way]


def test_equal_columns_are_no_ambiguity(tmp_path: pathlib.Path) -> None:
    assert summary(read(tmp_path, {"question": "q", "problem": "q", "response": "A"}))[0][2] == Q


def test_solution_trap(tmp_path: pathlib.Path) -> None:
    """LIMO: told that `solution` is the trace, `answer` is gold; told the opposite, `solution` is."""
    row = {"question": "q", "solution": "s", "answer": "a"}
    for response, gold in (("solution", "answer"), ("answer", "solution")):
        (candidate,) = read(tmp_path, row, column_map={"response": response}).candidates
        assert (candidate.response, candidate.prompt.answer) == (row[response], row[gold])


def test_map_of_every_field(tmp_path: pathlib.Path) -> None:
    """Odd names, all mapped; the known names beside them hold other things."""
    row = {
        "c_id": 5, "c_prompt": "q", "c_response": "ab", "c_thinking": "", "c_answer": 27.0, "c_correct": 1,
        "c_teacher": "x", "c_steps": [["a"], ["b"]], "c_system": "s",
        "id": "no", "prompt": "no", "response": "no", "answer": "no", "correct": False, "teacher": "no",
    }  # fmt: skip
    (c,) = read(tmp_path, row, column_map={field: f"c_{field}" for field in COLUMNS}).candidates
    assert (c.prompt.id, c.prompt.turns, c.prompt.answer) == ("5", (Turn("system", "s"), *Q), "27")
    assert (c.teacher, c.response, c.correct, c.steps) == ("x", "ab", True, ("a", "b"))


def test_map_to_nothing(tmp_path: pathlib.Path) -> None:
    row = {"id": "1", "prompt": "q", "response": "A", "answer": "5", "teacher": "x", "correct": True}
    unread = dict.fromkeys(("id", "answer", "teacher", "correct"), "")
    (candidate,) = read(tmp_path, row, column_map=unread).candidates
    assert (candidate.teacher, candidate.correct, candidate.prompt.answer) == ("t", None, None)
    assert candidate.prompt.id != "1"


def test_map_errors(tmp_path: pathlib.Path) -> None:
    row = {"prompt": "q", "response": "A"}
    with pytest.raises(InputError, match=r"--map: 'respond' is not a field[^$]*response"):
        read(tmp_path, row, column_map={"respond": "x"})
    with pytest.raises(
        InputError, match=r"--map response: no source has the column 'text'[^$]*prompt, response"
    ):
        read(tmp_path, row, column_map={"response": "text"})


@pytest.mark.parametrize(
    ("row", "field"), [({"prompt": "q", "x": 1}, "response"), ({"response": "A", "x": 1}, "prompt")]
)
def test_missing_column(tmp_path: pathlib.Path, row: dict, field: str) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path, row)
    assert f"no column is known to hold the {field}; the columns are: {', '.join(row)}" in str(error.value)
    assert f"--map {field}=COLUMN" in str(error.value)
    assert error.value.where == str(tmp_path / "t.jsonl")


def test_answer_objects_without_text(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match="hold the response; the columns are: score"):
        read(tmp_path, {"prompt": "q", "responses": [{"score": 1}]})


def test_columns_of_other_meaning_are_left_alone(tmp_path: pathlib.Path) -> None:
    """`correct: "B"` is a choice, `steps: 12` a count, `teacher: 3` a number: not what the names promise."""
    row = {"prompt": "q", "response": "A", "correct": "B", "steps": 12, "teacher": 3, "system": {"os": "x"}}
    assert summary(read(tmp_path, row))[0][0::4] == ("t", None)
    with pytest.raises(
        InputError, match=r"t\.jsonl:1: malformed row: correct is neither true nor false \('B'\)"
    ):
        read(tmp_path, row, column_map={"correct": "correct"})


@pytest.mark.parametrize(
    ("stored", "read_as"), [(True, True), (0, False), (1.0, True), (None, None), (False, False)]
)
def test_correct(tmp_path: pathlib.Path, stored: Any, read_as: bool | None) -> None:
    rows = [
        {"prompt": "q", "response": "A", "is_correct": True},
        {"prompt": "q", "response": "B", "is_correct": stored},
    ]
    assert read(tmp_path, *rows).candidates[1].correct is read_as


@pytest.mark.parametrize(
    ("stored", "gold"),
    [
        ("18 ", "18"),
        (18, "18"),
        (27.0, "27"),
        (0.5, "0.5"),
        (["7"], "7"),
        (["1", "2"], '["1", "2"]'),
        ("N/A", None),
        ("", None),
        (None, None),
        ({"a": "é"}, '{"a": "é"}'),
    ],
)
def test_gold(tmp_path: pathlib.Path, stored: Any, gold: str | None) -> None:
    assert (
        read(tmp_path, {"prompt": "q", "response": "A", "answer": stored}).candidates[0].prompt.answer == gold
    )


def test_number_that_is_no_truth_value(tmp_path: pathlib.Path) -> None:
    rows = [{"prompt": "q", "response": "A", "correct": value} for value in (1, 0, 2)]
    with pytest.raises(
        InputError, match=r"t\.jsonl:3: malformed row: correct is neither true nor false \(2\)"
    ):
        read(tmp_path, *rows)


def test_missing_values_of_a_table(tmp_path: pathlib.Path) -> None:
    """Tables store a missing truth value or id as NaN, and those beside it as floats."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {"id": [7.0, 8.0], "prompt": ["q", "r"], "response": ["A", "B"], "correct": [1.0, float("nan")]}
    )
    pq.write_table(table, tmp_path / "t.parquet")
    pool = read_pool(str(tmp_path / "t.parquet"))
    assert [(c.prompt.id, c.correct) for c in pool.candidates] == [("7", True), ("8", None)]


def test_thinking_is_not_doubled(tmp_path: pathlib.Path) -> None:
    row = {"prompt": "q", "response": "<think>t</think>A", "reasoning_content": "t"}
    assert read(tmp_path, row).candidates[0].response == row["response"]


def test_think_only_is_kept(tmp_path: pathlib.Path) -> None:
    rows = [
        {"prompt": "q", "response": None, "thinking": "never done"},
        {"prompt": "q", "response": "<think>unclosed"},
        {"prompt": "q", "response": " \n", "thinking": " "},
        {"prompt": "q"},
    ]
    pool = read(tmp_path, *rows)
    assert [c.response for c in pool.candidates] == ["<think>\nnever done\n</think>\n\n", "<think>unclosed"]
    assert pool.skipped == {"empty response": 2}
    assert pool.answers == 4


def test_steps(tmp_path: pathlib.Path) -> None:
    rows = [
        {"prompt": "q", "response": "One. Two.\n", "steps": ["One. ", "Two.\n"]},
        {"prompt": "q", "response": "abc", "steps": [["a", "b"], ["c"]]},
        {"prompt": "q", "response": "abc", "steps": None},
    ]
    steps = [c.steps for c in read(tmp_path, *rows).candidates]
    assert steps == [("One. ", "Two.\n"), ("ab", "c"), None]
    groups = {"prompt": "q", "response": "abc", "sentence_groups": [["a", "b"], ["c"]]}
    assert read(tmp_path, groups).candidates[0].steps == ("ab", "c")


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (["One. ", "Tow."], r"from character 6: steps 'ow\.', response 'wo\.'"),
        (["One. "], r"from character 5: steps '', response 'Two\.'"),
        (["One. ", "Two.", " "], "from character 9: steps ' ', response ''"),
        (["One. ", 2], "not a list of texts"),
        ([["One. ", ["Two."]]], "not a list of texts"),
        ([], r"from character 0: steps '', response 'One\. Two\.'"),
    ],
)
def test_steps_that_do_not_tile(tmp_path: pathlib.Path, steps: Any, message: str) -> None:
    with pytest.raises(InputError, match=rf"t\.jsonl:1: malformed row: steps .*{message}"):
        read(tmp_path, {"prompt": "q", "response": "One. Two.", "steps": steps})


def test_parallel_lists_of_unequal_length(tmp_path: pathlib.Path) -> None:
    row = {"problem": "q", "generations": ["A", "B"], "correctness": [True]}
    with pytest.raises(InputError, match=r"differ in length \(generations: 2, correctness: 1\)"):
        read(tmp_path, row)


def test_union_of_first_rows(tmp_path: pathlib.Path) -> None:
    """A column that the first row lacks is known all the same."""
    rows = [
        {"prompt": "q", "response": "A"},
        {"prompt": "q", "response": "B", "teacher": "x", "correct": True},
    ]
    with pytest.raises(InputError, match=r"t\.jsonl:1: malformed row: no teacher"):
        read(tmp_path, *rows)


def test_response_of_wrong_type_later_on(tmp_path: pathlib.Path) -> None:
    rows = [{"prompt": "q", "response": "A"}] * 70 + [{"prompt": "q", "response": {"x": 1}}]
    with pytest.raises(InputError, match=r"t\.jsonl:71: malformed row: response is not text \(a dict\)"):
        read(tmp_path, *rows)


def test_saved_data_set_and_parquet(tmp_path: pathlib.Path) -> None:
    """The same rows from every container give the same candidates; NaN is a missing value."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "id": n,
            "problem": f"q{n}",
            "generations": ["A", "B"],
            "correct": [True, False],
            "score": float("nan"),
        }
        for n in range(3)
    ]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved" / "t")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    for row in rows:
        row["score"] = None
    pools = [
        read(tmp_path, *rows),
        read_pool(str(tmp_path / "t.parquet")),
        read_pool(str(tmp_path / "saved" / "t")),
    ]
    assert len({tuple(c.id for c in pool.candidates) for pool in pools}) == 1
    assert len(pools[0].candidates) == 6


names = st.sampled_from(sorted({name for tiers in COLUMNS.values() for tier in tiers for name in tier}))
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            names | st.sampled_from(["role", "content", "from", "value", "choices", "body"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


overlays = st.lists(st.dictionaries(names, junk, max_size=4), max_size=5)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=400)
@given(base=st.sampled_from(sorted(CONVERSATIONS)), overlays=overlays, spoil_all=st.booleans())
def test_any_values_under_known_names(
    tmp_path: pathlib.Path, base: str, overlays: list[dict], spoil_all: bool
) -> None:
    """Whatever is stored under the known names: a pool, or an error that the user can mend; never a crash."""
    good = CONVERSATIONS[base]
    rows = [good] * (0 if spoil_all else 6) + [good | overlay for overlay in overlays]
    message = None
    try:
        pool = read(tmp_path, *(rows or [good]), on_bad_row="skip")
    except InputError as error:
        message = error
    if message is not None:
        assert message.remedy
        return
    assert all(c.response.strip() and c.prompt.turns for c in pool.candidates)
    requests = sum("body" in row for row in rows)
    assert pool.answers >= len(rows) - requests
