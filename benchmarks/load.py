"""
A busy machine: a command next to bursts of load, up to twelve busy processes that come and go.

    python benchmarks/load.py python benchmarks/demo.py --repeats 3

The number of busy processes changes every half second to six seconds, by chance and the same for a seed. Half of them
only compute, half also move memory. They end with the command, and also when this process is killed.
"""

import contextlib
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

AT_ONCE = (0, 0, 1, 2, 4, 8, 12)
HEAD = """
import ctypes, os
os.environ["OPENBLAS_NUM_THREADS"] = "1"
ctypes.CDLL(None).prctl(1, 9)  # SIGKILL when the one that started it is gone, also while it is stopped
"""
COMPUTES = "while True: sum(range(100_000))"
MOVES = """
import numpy
square, long = numpy.ones((500, 500), numpy.float32), numpy.ones(4_000_000)
while True:
    square @ square
    long += 1
"""


@contextlib.contextmanager
def bursts(seed: int = 0) -> Iterator[None]:
    """Load while the block runs."""
    chance, stop = random.Random(seed), threading.Event()
    codes = [HEAD + (MOVES if number % 2 else COMPUTES) for number in range(max(AT_ONCE))]
    busy = [subprocess.Popen([sys.executable, "-c", code]) for code in codes]

    def change() -> None:
        while not stop.is_set():
            count = chance.choice(AT_ONCE)
            for number, process in enumerate(busy):
                process.send_signal(signal.SIGCONT if number < count else signal.SIGSTOP)
            stop.wait(chance.uniform(0.5, 6))

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        for process in busy:
            process.kill()
            process.wait()


if __name__ == "__main__":
    with bursts():
        code = subprocess.run(sys.argv[1:]).returncode
    sys.exit(code)
