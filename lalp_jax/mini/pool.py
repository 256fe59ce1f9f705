"""What the commands use when they are given no files: the teachers' answers, a benchmark, the student."""

import importlib.resources
import itertools
import json
import pathlib
from collections.abc import Iterable

from lalp_jax.mini.task import Problem, problems
from lalp_jax.mini.teachers import TEACHERS, answer


def student_directory() -> pathlib.Path:
    """The packaged student's folder, in HF format (the package is never installed as a zip)."""
    return pathlib.Path(str(importlib.resources.files("lalp_jax.mini") / "student"))


def write_teacher_files(
    directory: str | pathlib.Path, n_prompts: int = 100, seed: int = 0
) -> list[tuple[str, pathlib.Path]]:
    """Writes one JSONL file per teacher, rows of id, question, answer (the right one) and response.

    Every teacher answers the same problems, of a split on which the student was not trained.

    Returns:
      (teacher, file) of every teacher.
    """
    chosen = list(itertools.islice(problems("pool", seed), n_prompts))
    files = []
    for teacher in TEACHERS:
        path = pathlib.Path(directory) / f"{teacher}.jsonl"
        _write(path, ({**_row(problem), "response": answer(teacher, problem, seed)} for problem in chosen))
        files.append((teacher, path))
    return files


def write_benchmark_file(directory: str | pathlib.Path, n_prompts: int = 200, seed: int = 0) -> pathlib.Path:
    """Writes heldout.jsonl, rows of id, question and answer: neither student nor teachers have seen them."""
    path = pathlib.Path(directory) / "heldout.jsonl"
    _write(path, map(_row, itertools.islice(problems("heldout", seed), n_prompts)))
    return path


def _row(problem: Problem) -> dict[str, str]:
    return {"id": problem.id, "question": problem.question, "answer": str(problem.answer)}


def _write(path: pathlib.Path, rows: Iterable[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
