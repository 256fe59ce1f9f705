"""`manifest.json`: what a folder of results was made from. Written last, it is the mark of completion."""

import dataclasses
import datetime
import importlib.metadata
import json
import platform
from typing import Any

from lalp_jax import __version__
from lalp_jax.commands.work import Work
from lalp_jax.scoring.results import ScoredAnswer
from lalp_jax.scoring.store import write_atomically

_PACKAGES = ("jax", "jaxlib", "flax", "transformers", "tokenizers", "tensorflow", "numpy", "pyarrow", "math-verify")


def withdraw(work: Work) -> None:
    """Takes the mark of completion away, before results are written anew."""
    (work.out / "manifest.json").unlink(missing_ok=True)


def write(work: Work, command: str, answers: list[ScoredAnswer], more: dict[str, Any]) -> None:
    """Writes the manifest.

    Args:
      more: what the command adds, such as the selection.
    """
    plan = work.plan
    content = {
        "command": command,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": dataclasses.asdict(work.options),
        "student": str(work.student_dir),
        "identity": work.identity,
        "signals": [
            {f.name: getattr(s, f.name) for f in dataclasses.fields(s) if f.name != "value"} for s in work.signals
        ],
        "end_of_turn": "not scored",
        "accounting": work.accounting(answers),
        "mapping": list(work.mapping),
        "plan": {
            "useful_tokens": plan.useful_tokens,
            "computed_tokens": plan.computed_tokens,
            "useful_share": plan.useful_tokens / max(1, plan.computed_tokens),
            "scored_tokens": plan.scored_tokens,
            "batches": len(plan.batches),
            "programs": len(plan.shapes),
            "mesh": {str(axis): int(size) for axis, size in work.mesh.shape.items()},
        },
        "versions": {"lalp_jax": __version__, "python": platform.python_version(), **_versions()},
        **more,
    }
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomically(work.out / "manifest.json", text.encode("utf-8", "backslashreplace"))


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
