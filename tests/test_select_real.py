"""`lalp select` on real answers: four models, 1,000 questions of GSM8K, GPT-2's tokenizer and a random student."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
from students import make_student

from lalp_jax.commands import cli

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def desk(tmp_path_factory, shared_data, torch):
    """A folder with the student, and the four teachers as arguments."""
    folder = tmp_path_factory.mktemp("real")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 50257, "max_position_embeddings": 2048}
    make_student(folder / "student", "qwen2", **sizes)
    shutil.copy(shared_data / "tokenizers/gpt2/tokenizer.json", folder / "student")
    teachers = sorted((shared_data / "gsm8k_teachers").glob("*.jsonl"))
    assert len(teachers) == 4
    return folder, [f"{path.stem}={path}" for path in teachers]


def select(desk, out: str, *flags: str):
    folder, teachers = desk
    # Eight shards share 4,000 short answers: with the default of 8,192 tokens the last of 12 batches is mostly empty.
    flags = ("--tokens-per-batch", "4096", *flags)
    argv = ["--student", folder / "student", "--out", folder / out, "--teachers", *teachers, *flags]
    assert cli.run_command("select", [str(item) for item in argv]) == 0
    scores = {row["candidate_id"]: row for row in pq.read_table(folder / out / "scores.parquet").to_pylist()}
    chosen = [json.loads(line) for line in (folder / out / "selected.jsonl").read_text().splitlines()]
    return json.loads((folder / out / "manifest.json").read_text()), scores, chosen


@pytest.fixture(scope="module")
def float32(desk):
    return select(desk, "float32")


def teacher_order(scores, signal: str) -> list[str]:
    sums: dict[str, float] = {}
    for row in scores.values():
        sums[row["teacher"]] = sums.get(row["teacher"], 0.0) + row[signal]
    return sorted(sums, key=lambda teacher: sums[teacher])


def test_every_answer_is_accounted_for(float32):
    manifest, scores, chosen = float32
    accounting = manifest["accounting"]
    assert accounting["rows"] == 4000
    assert accounting["scored"] + sum(accounting["skipped"].values()) == 4000
    assert accounting["scored"] == sum(row["status"] == "scored" for row in scores.values())
    assert len(chosen) == len({item["prompt_id"] for item in chosen}) == 1000
    assert manifest["plan"]["useful_share"] >= 0.9


def test_only_correct_answers_are_selected(desk, float32, capsys):
    _, scores, chosen = select(desk, "float32", "--require-correct")
    assert "already" in capsys.readouterr().out
    assert 0 < len(chosen) < 1000
    correct = {row["prompt_id"] for row in scores.values() if row["correct"]}
    assert {item["prompt_id"] for item in chosen} == correct
    assert all(scores[item["candidate_id"]]["correct"] is True for item in chosen)


def test_bfloat16_gives_the_same_order_of_teachers(desk, float32):
    _, scores, _ = select(desk, "bfloat16", "--dtype", "bfloat16")
    for signal in ("lalp", "galp"):
        assert teacher_order(scores, signal) == teacher_order(float32[1], signal)
    assert any(scores[key]["lalp"] != row["lalp"] for key, row in float32[1].items())
