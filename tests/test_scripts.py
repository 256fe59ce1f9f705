"""The scripts as they are started: by their file, on a Python whose `select` could be taken for ours."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from lalp_jax import __version__
from lalp_jax.commands import cli

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
HEAVY = ("jax", "tensorflow", "transformers", "torch", "pyarrow", "numpy", "datasets")

# Runs a script as `python FILE ARGUMENTS` does, and tells at the end what it left in this process.
PROBE = """
import atexit, json, os, runpy, sys
script, told, *arguments = sys.argv[1:]
def tell():
    import select
    json.dump({"modules": sorted(sys.modules), "path": sys.path, "select": getattr(select, "__file__", None),
               "poll": hasattr(select, "select")}, open(told, "w"))
atexit.register(tell)
sys.argv = [script, *arguments]
sys.path[0] = os.path.dirname(os.path.abspath(script))
runpy.run_path(script, run_name="__main__")
"""


def start(*arguments: object, cwd: pathlib.Path = ROOT) -> subprocess.CompletedProcess[str]:
    """This Python with no settings of the tests."""
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PYTHONPATH", "PYTHONSAFEPATH")}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env={**kept, "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def shadowable() -> None:
    """A Python that looks `select` up on its path; where it is built in, no script can hide it."""
    if "select" in sys.builtin_module_names:
        pytest.skip("select is built into this Python, so that scripts/select.py cannot be taken for it")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_is_a_command(script):
    assert script.stem in cli.COMMANDS


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_loads_nothing_heavy_and_the_standard_select(script, tmp_path, shadowable):
    import json

    told = tmp_path / "told.json"
    done = start("-c", PROBE, script, told, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: lalp {script.stem}" in done.stdout
    assert "--out" in done.stdout
    state = json.loads(told.read_text())
    assert not set(state["modules"]) & set(HEAVY)
    assert str(script.parent) not in [os.path.abspath(p or os.curdir) for p in state["path"]]
    assert state["select"] != str(ROOT / "scripts" / "select.py")
    assert state["poll"], "this is not the standard module"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
@pytest.mark.parametrize("cwd", [ROOT, ROOT / "scripts"], ids=["checkout", "scripts"])
def test_scripts_start_as_files(script, cwd, shadowable):
    done = start(os.path.relpath(script, cwd), "--help", cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_probe_would_notice_a_hidden_module(tmp_path, shadowable):
    """Without the drop of its folder a script does hide `select`: what the tests above guard against is real."""
    (tmp_path / "select.py").write_text("")
    (tmp_path / "plain.py").write_text("import subprocess\n")
    done = start(tmp_path / "plain.py")
    assert done.returncode != 0
    assert "select" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_importing_a_script_runs_nothing(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [str(script.parent), *sys.path])
    spec = importlib.util.spec_from_file_location(f"script_{script.stem}", script)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert capsys.readouterr() == ("", "")
    assert str(script.parent) not in sys.path
    assert sys.path[0] == str(ROOT)


def test_a_script_hands_on_the_exit_status(tmp_path):
    done = start(ROOT / "scripts" / "select.py", "--out", tmp_path, "--keep", "0")
    assert done.returncode == 2
    assert done.stderr.startswith("lalp select: --keep: ")
    assert "Traceback" not in done.stderr


def test_lalp_without_a_command_tells_its_commands(capsys):
    assert cli.main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("usage: lalp COMMAND")
    assert all(f"  {name}" in said.err for name in cli.COMMANDS)


def test_lalp_help_version_and_unknown_commands(capsys):
    assert cli.main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: lalp COMMAND")
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"
    assert cli.main(["sellect", "--out", "x"]) == 2
    assert "usage" in capsys.readouterr().err


def test_lalp_passes_arguments_on(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["score", "--help"])
    assert ended.value.code == 0
    assert "usage: lalp score" in capsys.readouterr().out


def test_an_interrupt_is_no_traceback(monkeypatch, capsys):
    from lalp_jax.commands import score

    def stopped(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(score, "main", stopped)
    assert cli.run_command("score", []) == 130
    assert "start it again to go on" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch):
    from lalp_jax.commands import score

    def broken(argv):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(score, "main", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli.run_command("score", [])
