"""`lalp score` and `lalp select` from the command line to the files, on the embedded default."""

import json
import pathlib
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from students import make_student

from lalp_jax.commands import cli
from lalp_jax.mini.pool import student_directory, write_teacher_files
from lalp_jax.mini.teachers import TEACHERS

LIMIT = 10
MADE_BY_SCORE = {"scores.parquet", "steps.parquet", "manifest.json"}
MADE_BY_SELECT = MADE_BY_SCORE | {"selected.jsonl", "teachers.json", "report.html"}
SCORES = pa.schema([
    ("prompt_id", pa.string()), ("candidate_id", pa.string()), ("teacher", pa.string()), ("status", pa.string()),
    ("skip_reason", pa.string()), ("n_tokens", pa.int32()), ("n_steps", pa.int32()), ("correct", pa.bool_()),
    ("lalp", pa.float64()), ("galp", pa.float64()),
])  # fmt: skip
STEPS = pa.schema([
    ("candidate_id", pa.string()), ("step", pa.int32()), ("char_start", pa.int32()), ("char_end", pa.int32()),
    ("n_tokens", pa.int32()), ("logprob_sum", pa.float32()), ("logprob_mean", pa.float64()),
    ("ordinary_logprob_sum", pa.float32()),
])  # fmt: skip


def files(out: pathlib.Path) -> set[str]:
    return {path.name for path in out.iterdir() if path.is_file()}


def jsonl(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def rows(path: pathlib.Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def manifest(out: pathlib.Path) -> dict:
    return json.loads((out / "manifest.json").read_text())


def select(out: pathlib.Path, *flags: object, command: str = "select") -> None:
    assert cli.run_command(command, ["--out", str(out), *map(str, flags)]) == 0


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> pathlib.Path:
    """The results of `lalp select --limit 10`."""
    out = tmp_path_factory.mktemp("first") / "out"
    select(out, "--limit", LIMIT)
    return out


@pytest.fixture
def again(first, tmp_path, monkeypatch) -> pathlib.Path:
    """A copy of the same, on which no weights can be loaded."""
    forbid_weights(monkeypatch)
    shutil.copytree(first, tmp_path / "out")
    return tmp_path / "out"


def forbid_weights(monkeypatch) -> None:
    import lalp_jax.student.hf

    def forbidden(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(lalp_jax.student.hf, "load_student", forbidden)


def responses(out: pathlib.Path) -> dict[tuple[str, str], str]:
    """Answers by prompt and teacher, from the files that the embedded default writes."""
    return {
        (row["id"], teacher): row["response"]
        for teacher in TEACHERS
        for row in jsonl(out / f"teachers/{teacher}.jsonl")
    }


def test_files_and_columns(first):
    assert files(first) == MADE_BY_SELECT
    scores, steps = pq.read_table(first / "scores.parquet"), pq.read_table(first / "steps.parquet")
    assert scores.schema.equals(SCORES)
    assert steps.schema.equals(STEPS)
    assert scores.num_rows == LIMIT * len(TEACHERS)
    assert set(scores["status"].to_pylist()) == {"scored"}
    assert len(set(scores["candidate_id"].to_pylist())) == scores.num_rows
    assert all(value < 0 for name in ("lalp", "galp") for value in scores[name].to_pylist())


def test_steps_tile_the_responses_and_make_the_scores(first):
    steps: dict[str, list[dict]] = {}
    for step in rows(first / "steps.parquet"):
        steps.setdefault(step["candidate_id"], []).append(step)
    texts = responses(first)
    for row in rows(first / "scores.parquet"):
        own = steps.pop(row["candidate_id"])
        text = texts[row["prompt_id"], row["teacher"]]
        assert [step["step"] for step in own] == list(range(row["n_steps"]))
        assert [step["char_start"] for step in own] == [0, *(step["char_end"] for step in own)][:-1]
        assert own[-1]["char_end"] == len(text)
        assert sum(step["n_tokens"] for step in own) == row["n_tokens"]
        sums, counts = (np.array([step[name] for step in own]) for name in ("logprob_sum", "n_tokens"))
        assert row["lalp"] == pytest.approx(np.mean(sums / counts), abs=1e-9)
        assert [step["logprob_mean"] for step in own] == pytest.approx(list(sums / counts))
        assert row["galp"] == pytest.approx(sum(s["ordinary_logprob_sum"] for s in own) / row["n_tokens"], abs=1e-9)
        for step in own[:5]:  # steps 1 … k+1 are those of the ordinary pass
            assert step["logprob_sum"] == pytest.approx(step["ordinary_logprob_sum"], abs=1e-4)
    assert not steps


def test_selected_answers_are_the_best_of_each_prompt(first):
    scores: dict[str, list[dict]] = {}
    for row in rows(first / "scores.parquet"):
        scores.setdefault(row["prompt_id"], []).append(row)
    texts = responses(first)
    chosen = jsonl(first / "selected.jsonl")
    assert [item["prompt_id"] for item in chosen] == list(scores)
    for item in chosen:
        assert list(item) == ["messages", "prompt_id", "teacher", "candidate_id", "signal", "score"]
        best = max(scores[item["prompt_id"]], key=lambda row: row["lalp"])
        assert (item["candidate_id"], item["score"], item["signal"]) == (best["candidate_id"], best["lalp"], "lalp")
        assert [message["role"] for message in item["messages"]] == ["user", "assistant"]
        assert item["messages"][-1]["content"] == texts[item["prompt_id"], item["teacher"]]


def test_teachers_and_manifest(first):
    ranking = json.loads((first / "teachers.json").read_text())
    assert {teacher["name"] for teacher in ranking["teachers"]} == set(TEACHERS)
    lalp, _ = ranking["signals"]
    means = {t: [r["lalp"] for r in rows(first / "scores.parquet") if r["teacher"] == t] for t in TEACHERS}
    expected = sorted(TEACHERS, key=lambda teacher: -np.mean(means[teacher]))
    assert [entry["teacher"] for entry in lalp["teachers"]] == expected
    assert [entry["mean"] for entry in lalp["teachers"]] == pytest.approx([np.mean(means[t]) for t in expected])
    facts = manifest(first)
    accounting = facts["accounting"]
    assert accounting == {"rows": 600, "scored": 60, "skipped": {"beyond the limit": 540}}
    assert facts["selection"]["selected"] == LIMIT
    assert facts["selection"]["best_teacher"] == expected[0]
    assert (facts["command"], facts["config"]["limit"], facts["config"]["signal"]) == ("select", LIMIT, "lalp")
    assert facts["identity"]["context"] == "k=4"
    assert {"student", "tokenizer", "template", "rendered"} <= facts["identity"].keys()
    assert all(facts["versions"][name] for name in ("lalp_jax", "jax", "transformers"))
    newest = max(first.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert newest.name == "manifest.json"


def test_the_same_again_computes_nothing(first, again, capsys):
    before = (again / "selected.jsonl").read_bytes()
    select(again, "--limit", LIMIT)
    said = capsys.readouterr().out
    assert "already" in said
    assert (again / "selected.jsonl").read_bytes() == before
    assert pq.read_table(again / "scores.parquet").equals(pq.read_table(first / "scores.parquet"))


def test_the_preview_says_what_will_be_done(again, capsys):
    select(again, "--limit", LIMIT)
    said = capsys.readouterr().out
    for words in (
        "response ← response", "prompts are matched by id", "left out: 540 (beyond the limit)", "rendered prompt:",
        "6 steps (sentence)", "windows (k=4)", "60 answers to 10 prompts", "600 rows = 60 scored + 540 skipped",
    ):  # fmt: skip
        assert words in said


def test_other_selections_reuse_the_scores(again):
    scores = rows(again / "scores.parquet")
    select(again, "--limit", LIMIT, "--keep", 2)
    chosen = jsonl(again / "selected.jsonl")
    assert len(chosen) == 2 * LIMIT
    for best, second in zip(chosen[::2], chosen[1::2], strict=True):
        group = sorted((r["lalp"] for r in scores if r["prompt_id"] == best["prompt_id"]), reverse=True)
        assert [best["score"], second["score"]] == group[:2]

    select(again, "--limit", LIMIT, "--by", "teacher", "--signal", "galp")
    means = {t: np.mean([r["galp"] for r in scores if r["teacher"] == t]) for t in TEACHERS}
    chosen = jsonl(again / "selected.jsonl")
    assert {item["teacher"] for item in chosen} == {max(means, key=lambda t: means[t])}
    assert {item["signal"] for item in chosen} == {"galp"}
    assert len(chosen) == LIMIT


def test_only_correct_answers(again):
    select(again, "--limit", LIMIT, "--require-correct", "--by", "teacher")
    scores = {row["candidate_id"]: row for row in rows(again / "scores.parquet")}
    verdicts = [row["correct"] for row in scores.values()]
    assert set(verdicts) == {True, False}, "the embedded teachers must err somewhere"
    chosen = jsonl(again / "selected.jsonl")
    assert chosen
    assert all(scores[item["candidate_id"]]["correct"] is True for item in chosen)
    correct = [row for row in scores.values() if row["correct"]]
    ranking = json.loads((again / "teachers.json").read_text())
    assert {t["name"]: t["n_answers"] for t in ranking["teachers"]} == {
        teacher: sum(row["teacher"] == teacher for row in correct) for teacher in {r["teacher"] for r in correct}
    }


def test_fewer_prompts_reuse_the_scores(first, again):
    select(again, "--limit", 4)
    before = {row["candidate_id"]: row for row in rows(first / "scores.parquet")}
    after = rows(again / "scores.parquet")
    assert len(after) == 4 * len(TEACHERS)
    assert all(row == before[row["candidate_id"]] for row in after)
    assert manifest(again)["accounting"]["skipped"] == {"beyond the limit": 576}


def test_more_prompts_add_to_the_scores(first, tmp_path):
    shutil.copytree(first, tmp_path / "out")
    select(tmp_path / "out", "--limit", LIMIT + 2)
    before = {row["candidate_id"]: row for row in rows(first / "scores.parquet")}
    after = {row["candidate_id"]: row for row in rows(tmp_path / "out/scores.parquet")}
    assert len(after) == (LIMIT + 2) * len(TEACHERS)
    for name in ("lalp", "galp"):
        assert all(after[key][name] == pytest.approx(row[name], abs=1e-5) for key, row in before.items())


def test_score_then_select(first, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(first, out, ignore=shutil.ignore_patterns("selected.jsonl", "teachers.json", "report.html"))
    forbid_weights(monkeypatch)
    select(out, "--limit", LIMIT, command="score")
    assert files(out) == MADE_BY_SCORE
    assert manifest(out)["command"] == "score"
    assert "selection" not in manifest(out)
    select(out, "--limit", LIMIT)
    assert (out / "selected.jsonl").read_bytes() == (first / "selected.jsonl").read_bytes()


def test_flags_win_over_the_file(again, tmp_path):
    (tmp_path / "run.yaml").write_text(f"limit: {LIMIT}\nkeep: 3\nsignal: galp\nrequire-correct: false\n")
    select(again, "--config", tmp_path / "run.yaml", "--keep", 2)
    chosen = jsonl(again / "selected.jsonl")
    assert len(chosen) == 2 * LIMIT
    assert {item["signal"] for item in chosen} == {"galp"}
    assert (manifest(again)["config"]["keep"], manifest(again)["config"]["limit"]) == (2, LIMIT)


@pytest.mark.parametrize("command", ["score", "select"])
def test_dry_run_loads_and_scores_nothing(command, tmp_path, monkeypatch, capsys):
    forbid_weights(monkeypatch)
    out = tmp_path / "out"
    select(out, "--limit", 3, "--dry-run", command=command)
    said = capsys.readouterr().out
    for words in ("Example: answer ", "18 answers to 3 prompts", "FLOPs", "about 1 s on ", "compilation comes on top"):
        assert words in said
    assert not (out / "parts").exists()
    assert files(out) == set()


def own_teachers(folder: pathlib.Path) -> list[str]:
    """Two of the embedded teachers on three prompts."""
    write_teacher_files(folder, n_prompts=3)
    return [f"{name}={folder}/{name}.jsonl" for name in ("stepwise", "checker")]


@pytest.mark.parametrize(
    ("flags", "context", "segmenter"),
    [
        (("--window-fraction", 0.5), "fraction=0.5", "sentence"),
        (("--segmenter", "line", "--k", 1), "k=1", "line"),
        (("--segmenter", "tokens:16"), "k=4", "tokens:16"),
    ],
    ids=["fraction", "line", "tokens"],
)
def test_contexts_and_segmenters(flags, context, segmenter, tmp_path):
    sources = own_teachers(tmp_path)
    out = tmp_path / "out"
    select(out, "--student", student_directory(), "--teachers", *sources, *flags)
    identity = manifest(out)["identity"]
    assert (identity["context"], identity["segmenter"]) == (context, segmenter)
    texts = {(r["id"], t): r["response"] for t in ("stepwise", "checker") for r in jsonl(tmp_path / f"{t}.jsonl")}
    steps: dict[str, list[dict]] = {}
    for step in rows(out / "steps.parquet"):
        steps.setdefault(step["candidate_id"], []).append(step)
    for row in rows(out / "scores.parquet"):
        own, text = steps[row["candidate_id"]], texts[row["prompt_id"], row["teacher"]]
        pieces = [text[step["char_start"] : step["char_end"]] for step in own]
        assert "".join(pieces) == text
        if segmenter == "line":
            assert pieces == text.splitlines(keepends=True)
        if segmenter == "tokens:16":
            assert all(step["n_tokens"] == 16 for step in own[:-1])
            assert own[-1]["n_tokens"] <= 16


def test_given_steps(tmp_path):
    steps = ["We take 2", " and 3.", "\nThat makes 5.", "\nThe answer is 5."]
    turn = {"id": "p", "question": "What is 2 plus 3?"}
    path = tmp_path / "ann.jsonl"
    path.write_text(json.dumps({**turn, "response": "".join(steps), "steps": steps}) + "\n")
    select(tmp_path / "out", "--student", student_directory(), "--teachers", f"ann={path}", "--segmenter", "given")
    spans = [(row["char_start"], row["char_end"]) for row in rows(tmp_path / "out/steps.parquet")]
    assert ["".join(steps)[a:b] for a, b in spans] == steps


@pytest.mark.slow
def test_every_mesh_gives_the_same_scores(tmp_path, torch):
    import jax

    assert jax.device_count() == 8
    make_student(tmp_path / "student", tokenizer=True)
    sources = own_teachers(tmp_path)
    found = {}
    for name, flags in {"data": (), "all": ("--mesh", "data=2,fsdp=2,tensor=2")}.items():
        select(tmp_path / name, "--student", tmp_path / "student", "--teachers", *sources, *flags)
        found[name] = rows(tmp_path / name / "steps.parquet")
    assert manifest(tmp_path / "data")["plan"]["mesh"] == {"data": 8, "fsdp": 1, "tensor": 1}
    assert manifest(tmp_path / "all")["plan"]["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2}
    assert len(found["data"]) > 50
    for ours, theirs in zip(found["data"], found["all"], strict=True):
        assert (ours["candidate_id"], ours["step"]) == (theirs["candidate_id"], theirs["step"])
        for name in ("logprob_sum", "ordinary_logprob_sum"):
            assert abs(ours[name] - theirs[name]) / ours["n_tokens"] <= 1e-5
