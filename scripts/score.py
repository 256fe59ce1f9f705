"""`python scripts/score.py`: the same as `lalp score`."""

import os
import sys

# This folder holds a select.py, the name of a standard module: left on the path, the first `import subprocess`
# anywhere would load it. The checkout takes its place, so that the script runs without an installed package.
_here = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [p for p in sys.path if os.path.abspath(p or os.curdir) != _here]
sys.path.insert(0, os.path.dirname(_here))

if __name__ == "__main__":
    from lalp_jax.commands.cli import run_command

    sys.exit(run_command("score"))
