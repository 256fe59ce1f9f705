"""A run that is killed and started again ends where an undisturbed one does; settings are never mixed."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from lalp_jax.commands import cli
from lalp_jax.mini.pool import student_directory, write_teacher_files

ROOT = pathlib.Path(__file__).resolve().parent.parent

# `lalp` that writes a part after every batch and waits for its end just before a file is put in its place.
RUNNER = """
import os, sys, time
from lalp_jax.commands.cli import main
from lalp_jax.scoring import store
store.FLUSH_SECONDS = -1.0
held, reached, *arguments = sys.argv[1:]
place = os.replace
def replace(source, target):
    if os.path.basename(target) == held:
        open(reached, "w").close()
        time.sleep(600)
    place(source, target)
os.replace = replace
sys.exit(main(arguments))
"""


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return {**kept, "JAX_PLATFORMS": "cpu"}


def start(out: pathlib.Path, held: str, reached: pathlib.Path) -> subprocess.Popen[str]:
    """`lalp select` on the embedded default, in small batches, as a process of its own."""
    reached.unlink(missing_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", RUNNER, held, str(reached), "select", "--out", str(out), "--limit", "6",
         "--tokens-per-batch", "2048"],
        cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def kill_before(out: pathlib.Path, held: str, reached: pathlib.Path) -> None:
    """Starts a run and kills it, beyond any clean-up, when it is about to put the file `held` in place."""
    process = start(out, held, reached)
    try:
        until = time.monotonic() + 240
        while not reached.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until, f"{held} was never written"
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()


def finish(out: pathlib.Path) -> str:
    said, message = (process := start(out, "nothing", out.parent / "never")).communicate(timeout=300)
    assert process.returncode == 0, message
    return said


def parts(out: pathlib.Path) -> list[str]:
    return sorted(path.name for path in (out / "parts").glob("part-*.parquet"))


@pytest.mark.slow
def test_a_run_that_is_killed_three_times_ends_as_an_undisturbed_one(tmp_path):
    whole, out, reached = tmp_path / "whole", tmp_path / "out", tmp_path / "reached"
    assert "already" not in finish(whole)
    total = len(parts(whole))
    assert total >= 5
    half = total // 2

    kill_before(out, "part-000001.parquet", reached)
    assert parts(out) == parts(whole)[:1]
    kill_before(out, f"part-{half:06d}.parquet", reached)
    assert parts(out) == parts(whole)[:half]
    assert not (out / "scores.parquet").exists()
    kill_before(out, "selected.jsonl", reached)
    assert parts(out) == parts(whole)
    assert (out / "scores.parquet").exists()
    assert not (out / "manifest.json").exists()
    assert not (out / "selected.jsonl").exists()
    assert f"{total} of {total} batches are in {out} already" in finish(out)

    assert (out / "selected.jsonl").read_bytes() == (whole / "selected.jsonl").read_bytes()
    assert (out / "teachers.json").read_bytes() == (whole / "teachers.json").read_bytes()
    for name in ("scores.parquet", "steps.parquet"):
        assert pq.read_table(out / name).equals(pq.read_table(whole / name))
    assert (out / "manifest.json").exists()


def tree(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> pathlib.Path:
    """Two teachers' files, the packaged student and the results of scoring two prompts with it."""
    folder = tmp_path_factory.mktemp("resume")
    shutil.copytree(student_directory(), folder / "student")
    write_teacher_files(folder / "answers", n_prompts=2)
    assert cli.run_command("select", argv(folder)) == 0
    return folder


def argv(folder: pathlib.Path, *flags: str) -> list[str]:
    files = [f"{name}={folder}/answers/{name}.jsonl" for name in ("terse", "stepwise")]
    return ["--student", f"{folder}/student", "--out", f"{folder}/out", "--teachers", *files, *flags]


def change_student(student: pathlib.Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(student / "model.safetensors")
    tensors["model.norm.weight"] = (tensors["model.norm.weight"].astype("float32") * 1.5).astype(
        tensors["model.norm.weight"].dtype
    )
    save_file(tensors, student / "model.safetensors", metadata={"format": "pt"})


def change_template(student: pathlib.Path) -> None:
    path = student / "tokenizer_config.json"
    fields = json.loads(path.read_text())
    fields["chat_template"] = "Be brief. " + fields["chat_template"]
    path.write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("change", "flags", "named"),
    [
        (change_student, (), {"student"}),
        (change_template, (), {"template", "rendered"}),
        (None, ("--segmenter", "line"), {"segmenter"}),
        (None, ("--k", "3"), {"context"}),
        (None, ("--window-fraction", "0.5"), {"context"}),
        (None, ("--dtype", "bfloat16"), {"dtype"}),
    ],
    ids=["student", "template", "segmenter", "k", "fraction", "dtype"],
)
def test_another_setting_in_the_same_folder_is_refused(finished, tmp_path, capsys, change, flags, named):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    if change is not None:
        change(tmp_path / "student")
    before = tree(tmp_path / "out")
    assert cli.run_command("select", argv(tmp_path, *flags)) == 2
    message = capsys.readouterr().err
    assert f"{tmp_path}/out: was written by another run (" in message
    everything = {"student", "tokenizer", "template", "rendered", "segmenter", "context", "dtype", "version"}
    assert {name for name in everything if f"{name} was " in message} == named
    assert "remedy: give another --out" in message
    assert tree(tmp_path / "out") == before


def test_same_settings_in_the_same_folder_load_no_weights(finished, tmp_path, capsys, monkeypatch):
    """The comparison above is not always unequal, and scores that are there are not computed again."""
    import lalp_jax.student.hf

    def forbidden(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(lalp_jax.student.hf, "load_student", forbidden)
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    before = tree(tmp_path / "out")
    assert cli.run_command("select", argv(tmp_path)) == 0
    assert "already" in capsys.readouterr().out
    after = tree(tmp_path / "out")
    assert after["selected.jsonl"] == before["selected.jsonl"]
    assert {n for n in after if n.startswith("parts")} == {n for n in before if n.startswith("parts")}
    with pytest.raises(AssertionError, match="weights were loaded"):
        cli.run_command("select", [*argv(tmp_path), "--out", str(tmp_path / "new")])
