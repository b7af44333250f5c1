"""TRL in an environment of its own: made beside the project on first use, or one that is named.

POSTTRAIN_TRL_PYTHON names the interpreter of an existing environment. Imported by the
process of `run.py`; run as a script it prints the interpreter's path.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

TORCH, TRL = "2.13.0", "1.16.0"
ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = Path(__file__).resolve().parent / "trl-constraints.txt"


def interpreter() -> Path:
    """The Python that has TRL; creates `.venv-trl` where none is named. Raises SystemExit where versions
    differ.
    """
    named = os.environ.get("POSTTRAIN_TRL_PYTHON")
    python = Path(named) if named else ROOT / ".venv-trl" / "bin" / "python"
    if not named and not python.exists():
        _create(python)
    found = versions(python)
    if found["trl"] != TRL or found["torch"].split("+")[0] != TORCH:
        raise SystemExit(
            f"{python} has TRL {found['trl']} and torch {found['torch']}, wanted {TRL} and {TORCH}"
        )
    return python


def versions(python: Path) -> dict[str, str]:
    """Versions of what the comparison rests on, as the given interpreter sees them."""
    names = ("torch", "transformers", "accelerate", "trl", "posttrain")
    code = (
        "import importlib.metadata as m, json\n"
        "def v(n):\n"
        "    try: return m.version(n)\n"
        "    except m.PackageNotFoundError: return ''\n"
        f"print(json.dumps({{n: v(n) for n in {names!r}}}))"
    )
    return json.loads(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout)


def _create(python: Path) -> None:
    """torch goes first, by itself: a CPU build that the user's pip is set up to find then satisfies TRL's
    own range.
    """
    folder = python.parent.parent
    print(f"making {folder} with torch {TORCH} and TRL {TRL}", file=sys.stderr)
    venv.create(folder, with_pip=True)
    for what in ([f"torch=={TORCH}"], [f"trl=={TRL}", "-c", str(CONSTRAINTS)]):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *what], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    print(interpreter())
