"""What the tests of runs share: the shortest good train.py, both sandboxes, processes that are told by their sleep."""

from pathlib import Path

import pytest

from autoresearch.run import sandbox

ROOT = Path(__file__).parents[2]
GOOD = "print('---\\nval_bpb: 1.5\\npeak_vram_mb: 1024.0')\n"

problem = sandbox.bubblewrap_problem()
needs_bubblewrap = pytest.mark.skipif(bool(problem), reason=problem)
inside = pytest.param("on", marks=needs_bubblewrap)


def sleepers(nap: str) -> int:
    """How many processes sleep for `nap` (a zombie has no command line)."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_text())
        except OSError:  # it ended meanwhile
            continue
    return sum(line == f"sleep\0{nap}\0" for line in lines)
