"""What a user can get wrong: each mistake has its message, a status that is not 0, and harms no earlier result."""

import json
import pathlib
import shutil

import pyarrow.parquet as pq
import pytest

from lalp_jax.commands import cli
from lalp_jax.mini.pool import student_directory

QUESTIONS = ("What is 2 plus 3?", "What is 4 plus 5?")
ANSWERS = {"ann": "2 + 3 = 5\nThe answer is {}.", "bob": "We add.\nThe answer is {}."}


def write(path: pathlib.Path, rows: list[dict[str, object] | str]) -> pathlib.Path:
    """JSON lines; a text is written as it is."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def good(teacher: str) -> list[dict[str, object] | str]:
    return [
        {"id": f"p{i}", "question": text, "answer": str(gold), "response": ANSWERS[teacher].format(gold)}
        for i, (text, gold) in enumerate(zip(QUESTIONS, (5, 9), strict=True))
    ]


def tree(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Desk:
    """A folder with two teachers' files, a student, and `out` with the results of an earlier run."""

    def __init__(self, folder: pathlib.Path, capsys: pytest.CaptureFixture[str]):
        self.folder, self.capsys = folder, capsys
        self.out, self.student = folder / "out", folder / "student"
        self.files = {teacher: folder / f"{teacher}.jsonl" for teacher in ANSWERS}

    def start(self, *flags: object) -> tuple[int, str, str]:
        """Status, output and messages of `select` on the teachers' files."""
        sources = [f"{teacher}={file}" for teacher, file in self.files.items()]
        argv = ["--student", self.student, "--out", self.out, "--teachers", *sources]
        self.capsys.readouterr()
        try:
            status = cli.run_command("select", [str(item) for item in (*argv, *flags)])
        except SystemExit as ended:  # argparse
            status = int(ended.code or 0)
        said = self.capsys.readouterr()
        return status, said.out, said.err

    def refused(self, *flags: object, scores: bool = False) -> str:
        """The message of a command that must fail and leave `out` as it was.

        Args:
          scores: it may add parts, as it cannot know that it fails before it has scored.
        """
        before = tree(self.out)
        status, _, message = self.start(*flags)
        assert status == 2
        assert "Traceback" not in message
        after = tree(self.out)
        assert {name: data for name, data in after.items() if not scores or name in before} == before
        return message

    def student_tensors(self) -> dict:
        from safetensors.numpy import load_file

        return load_file(self.student / "model.safetensors")

    def save_tensors(self, tensors: dict) -> None:
        from safetensors.numpy import save_file

        save_file(tensors, self.student / "model.safetensors", metadata={"format": "pt"})

    def set_config(self, **fields: object) -> None:
        path = self.student / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> pathlib.Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(student_directory(), folder / "student")
    sources = [f"{teacher}={write(folder / f'{teacher}.jsonl', good(teacher))}" for teacher in ANSWERS]
    argv = ["--student", folder / "student", "--out", folder / "out", "--teachers", *sources]
    assert cli.run_command("select", [str(item) for item in argv]) == 0
    return folder


@pytest.fixture
def desk(finished, tmp_path, capsys) -> Desk:
    shutil.copytree(finished, tmp_path / "desk")
    made = Desk(tmp_path / "desk", capsys)
    assert (made.out / "manifest.json").is_file()
    return made


def test_the_desk_itself_is_in_order(desk):
    before = tree(desk.out)
    status, said, message = desk.start()
    assert (status, message) == (0, "")
    assert "already" in said
    after = tree(desk.out)
    assert after.keys() == before.keys()
    assert after["selected.jsonl"] == before["selected.jsonl"]


def test_malformed_line(desk):
    write(desk.files["ann"], [good("ann")[0], '{"id": "p1", "question":'])
    message = desk.refused()
    assert f"lalp select: {desk.files['ann']}:2: malformed row" in message
    assert "remedy: " in message
    assert "--on-bad-row skip" in message
    status, said, _ = desk.start("--on-bad-row", "skip")
    assert status == 0
    assert "4 rows = 3 scored + 1 skipped" in said


def test_missing_column(desk):
    write(desk.files["bob"], [{"id": "p0", "question": QUESTIONS[0], "text": "5"}])
    message = desk.refused()
    assert str(desk.files["bob"]) in message
    assert "no column is known to hold the response" in message
    assert "id, question, text" in message
    assert "remedy: name it: --map response=COLUMN" in message


def test_ambiguous_mapping(desk):
    rows = [{**row, "output": "another"} for row in good("bob") if isinstance(row, dict)]
    write(desk.files["bob"], list(rows))
    message = desk.refused()
    assert str(desk.files["bob"]) in message
    assert "several columns can be the response: response, output" in message
    assert "remedy: --map response=response or --map response=output" in message
    assert desk.start("--map", "response=response")[0] == 0


@pytest.mark.parametrize("flags", [("reply=response",), ("response",), ("response=reply",)])
def test_wrong_map(desk, flags):
    message = desk.refused("--map", *flags)
    assert "--map" in message
    assert "remedy: " in message


def test_one_id_for_two_prompts(desk):
    rows = good("bob")
    rows[1] = {**rows[1], "id": "p0"}
    write(desk.files["bob"], rows)
    message = desk.refused()
    assert f"{desk.files['bob']}:2: the id 'p0' has another prompt here than at {desk.files['ann']}:1" in message
    assert "remedy: give each prompt its own id" in message


def test_teachers_without_a_common_prompt(desk):
    write(desk.files["bob"], [{**row, "id": f"q{i}"} for i, row in enumerate(good("bob"))])
    message = desk.refused()
    assert "shares no prompt with another teacher" in message
    assert "id 'p0'" in message
    assert "id 'q0'" in message
    assert "remedy: " in message
    assert "--map id=" in message


def test_empty_response_is_skipped_and_counted(desk):
    rows = good("bob")
    rows[0] = {**rows[0], "response": ""}
    write(desk.files["bob"], rows)
    status, said, _ = desk.start()
    assert status == 0
    assert "4 rows = 3 scored + 1 skipped" in said
    accounting = json.loads((desk.out / "manifest.json").read_text())["accounting"]
    assert accounting == {"rows": 4, "scored": 3, "skipped": {"empty response": 1}}
    assert pq.read_table(desk.out / "scores.parquet").num_rows == 3


def test_nothing_but_empty_responses(desk):
    for teacher, file in desk.files.items():
        write(file, [{**row, "response": ""} for row in good(teacher) if isinstance(row, dict)])
    message = desk.refused()
    assert "no answer can be scored (empty response: 4)" in message


def test_response_beyond_the_students_positions(desk):
    """The ordinary pass does not fit, every window does."""
    lines = "\n".join(f"{i} + 1 = {i + 1}" for i in range(1, 15))
    rows = good("ann")
    rows[0] = {**rows[0], "response": lines}
    write(desk.files["ann"], rows)
    desk.set_config(max_position_embeddings=64)
    desk.out = desk.folder / "short"
    status, said, message = desk.start()
    assert status == 0, message
    table = {(r["prompt_id"], r["teacher"]): r for r in pq.read_table(desk.out / "scores.parquet").to_pylist()}
    row = table["p0", "ann"]
    assert row["galp"] is None
    assert row["lalp"] < 0
    assert row["status"] == "scored"
    assert row["skip_reason"].startswith("galp: ")
    assert row["skip_reason"].endswith("tokens exceed the student's 64 positions")
    others = [r for key, r in table.items() if key != ("p0", "ann")]
    assert all(r["skip_reason"] is None and r["galp"] < 0 for r in others)
    steps = pq.read_table(desk.out / "steps.parquet").to_pylist()
    steps = [step for step in steps if step["candidate_id"] == row["candidate_id"]]
    assert len(steps) == row["n_steps"]
    assert all(step["ordinary_logprob_sum"] is None and step["logprob_sum"] < 0 for step in steps)
    ranked = {s["signal"]: s for s in json.loads((desk.out / "teachers.json").read_text())["signals"]}
    assert (ranked["galp"]["n_prompts"], ranked["lalp"]["n_prompts"]) == (1, 2)
    assert "4 rows = 4 scored + 0 skipped" in said


def test_answer_that_no_window_holds(desk):
    """One sentence longer than the student's positions: neither signal has a value, and the answer is counted."""
    rows = good("ann")
    rows[0] = {**rows[0], "response": "1 + " * 80 + "1 = 81"}
    write(desk.files["ann"], rows)
    desk.set_config(max_position_embeddings=64)
    desk.out = desk.folder / "short"
    status, said, message = desk.start()
    assert status == 0, message
    assert "4 rows = 3 scored + 1 skipped" in said
    table = {(r["prompt_id"], r["teacher"]): r for r in pq.read_table(desk.out / "scores.parquet").to_pylist()}
    row = table["p0", "ann"]
    assert (row["status"], row["lalp"], row["galp"]) == ("skipped", None, None)
    assert "lalp: step 1 with its context takes" in row["skip_reason"]
    accounting = json.loads((desk.out / "manifest.json").read_text())["accounting"]
    assert (accounting["rows"], accounting["scored"], sum(accounting["skipped"].values())) == (4, 3, 1)


def test_tokenizer_larger_than_the_embedding(desk):
    desk.set_config(vocab_size=900)
    message = desk.refused()
    assert f"{desk.student}: the tokenizer has ids up to " in message
    assert "the embedding 900 rows" in message
    assert "remedy: use the tokenizer that the student was trained with" in message


@pytest.mark.parametrize("surplus", [False, True])
def test_wrong_tensors(desk, surplus):
    tensors = desk.student_tensors()
    if surplus:
        name = "model.layers.0.mlp.extra.weight"
        tensors[name] = next(iter(tensors.values())).copy()
    else:
        name = "model.layers.1.mlp.up_proj.weight"
        del tensors[name]
    desk.save_tensors(tensors)
    desk.out = desk.folder / "other"
    status, _, message = desk.start()
    assert status == 2
    assert f"tensor {name} is " in message
    assert str(desk.student / "model.safetensors") in message
    assert ("not one that config.json calls for" if surplus else "missing") in message
    assert "Traceback" not in message
    assert not (desk.out / "manifest.json").exists()


def test_unknown_architecture(desk):
    desk.set_config(model_type="mamba")
    message = desk.refused()
    assert "config.json" in message
    assert "model_type" in message
    assert "supported are llama, mistral, qwen2, qwen3" in message


def test_no_student_there(desk):
    assert "there is no directory" in desk.refused("--student", desk.folder / "nobody")


def test_no_answers_there(desk):
    message = desk.refused("--teachers", f"ann={desk.folder}/none.jsonl")
    assert f"{desk.folder}/none.jsonl: no such file or directory" in message
    assert "remedy: check the path" in message


def test_out_of_another_run(desk):
    message = desk.refused("--k", "2")
    assert f"{desk.out}: was written by another run" in message
    assert "context was 'k=4', is 'k=2'" in message
    assert "remedy: give another --out" in message


def test_out_of_another_program(desk):
    shutil.rmtree(desk.out / "parts")
    message = desk.refused()
    assert "but not the parts they were made of" in message
    assert "remedy: give another --out" in message


def test_signal_that_is_not_computed(desk):
    message = desk.refused("--signal", "galp", "--signals", "lalp")
    assert "--signal: 'galp' is not computed" in message
    assert "remedy: one of --signals: lalp" in message


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--dtype", "float16"], "invalid choice: 'float16'"),
        (["--by", "coin"], "invalid choice: 'coin'"),
        (["--k", "four"], "invalid int value: 'four'"),
        (["--colour", "red"], "unrecognized arguments: --colour red"),
        (["--signals", "lalp,grape"], "--signals: unknown signal 'grape'"),
        (["--segmenter", "words"], "--segmenter: unknown segmenter 'words'"),
        (["--segmenter", "tokens:0"], "--segmenter: unknown segmenter 'tokens:0'"),
        (["--k", "-1"], "--k: k is -1"),
        (["--k", "2", "--window-fraction", "0.5"], "--k, --window-fraction: give either"),
        (["--window-fraction", "1.5"], "1.5 is no fraction"),
        (["--keep", "0"], "--keep: keep is 0"),
        (["--limit", "0"], "--limit: 0 is less than 1"),
        (["--tokens-per-batch", "-4"], "--tokens-per-batch: -4 is less than 1"),
        (["--mesh", "data=3"], "--mesh: data=3 needs"),
        (["--mesh", "rows=8"], "--mesh: cannot read 'rows=8'"),
        (["--segmenter", "given"], "the segmenter is `given`, but this answer brings no steps"),
        (["--candidates", "x.jsonl"], "both --teachers and --candidates are given"),
    ],
)
def test_unknown_values_of_flags(desk, flags, words):
    assert words in desk.refused(*flags)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kk: 4\n", "no setting 'kk'"),
        ("k: four\n", "k: 'four' does not fit"),
        ("dry_run: 3\n", "dry_run: 3 does not fit"),
        ("dtype: float16\n", "dtype: 'float16' does not fit"),
        ("- k\n", "is not a mapping of settings"),
        ("k: [\n", "cannot be read"),
        ("!!python/object/apply:os.getcwd []\n", "cannot be read"),
    ],
)
def test_wrong_configuration(desk, text, words):
    path = desk.folder / "run.yaml"
    path.write_text(text)
    message = desk.refused("--config", path)
    assert str(path) in message
    assert words in message
    assert "remedy: " in message


def test_no_correct_answer(desk):
    for teacher, file in desk.files.items():
        write(file, [{**row, "answer": "77"} for row in good(teacher) if isinstance(row, dict)])
    message = desk.refused("--require-correct")
    assert "--require-correct: no answer is correct" in message
    assert "remedy: check the gold answers" in message


def test_correct_answers_asked_of_an_input_that_cannot_tell(desk):
    for teacher, file in desk.files.items():
        write(file, [{k: v for k, v in row.items() if k != "answer"} for row in good(teacher) if isinstance(row, dict)])
    message = desk.refused("--require-correct")
    assert "neither gold answers nor a column" in message
    assert "--map answer=COLUMN" in message


def test_no_prompt_that_every_teacher_answered(desk):
    """Three teachers in a ring share prompts two by two, so that there is no best one."""
    extra = [{"id": "p2", "question": "What is 1 plus 1?", "response": "It is 2."}]
    write(desk.files["ann"], good("ann"))
    write(desk.files["bob"], [good("bob")[1], *extra])
    desk.files["cat"] = write(desk.folder / "cat.jsonl", [good("bob")[0], *extra])
    message = desk.refused("--by", "teacher", scores=True)
    assert "--by teacher: no best teacher: no prompt has a scored answer from every teacher" in message
