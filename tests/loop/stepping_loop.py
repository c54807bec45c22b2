"""
printed_loop.py on a machine whose clock is set: time.time() is off by the seconds in a file, once there is one.

    python stepping_loop.py FILE ARGUMENTS OF agent_loop.py
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where printed_loop is

import printed_loop

FILE = Path(sys.argv.pop(1))
TRUE_TIME = time.time


def stepped_time() -> float:
    return TRUE_TIME() + (float(FILE.read_text()) if FILE.exists() else 0.0)


if __name__ == "__main__":
    time.time = stepped_time
    printed_loop.main()
