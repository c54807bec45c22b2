"""
notify: in program.md: a shell command of the user's that gets one line on stdin when there is something to tell.

It runs outside the search, in a session of its own: it may fail, hang, or outlive the loop. This file is also the
program that sees to that: it kills a command that hangs, and writes one line into loop.log where it failed.

    python -I -S notify.py LOG COMMAND LINE
"""

import os
import select
import signal
import subprocess
import sys
import time

SECONDS = 60.0  # for one message
LONGEST = 2000  # characters of one
KEPT = 300  # bytes of the end of what the command prints


def send(command: str, line: str, log: str) -> None:
    """Start the command with a line on its stdin. Nobody waits for it. Raises OSError if nothing can be started."""
    own = [sys.executable, "-I", "-S", __file__, log, command, line[:LONGEST]]
    nowhere = subprocess.DEVNULL
    subprocess.Popen(own, stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True)


def run(command: str, line: str) -> str:
    """Run the command to its end or kill it and all that it started. Returns how it failed, or ""."""
    its_end, our_end = os.pipe()
    os.write(our_end, f"{line}\n".encode())  # it fits into the pipe, so nobody need read it
    os.close(our_end)
    pipe, deadline, printed = subprocess.PIPE, time.monotonic() + SECONDS, b""
    shell = subprocess.Popen(
        ["/bin/sh", "-c", command], stdin=its_end, stdout=pipe, stderr=subprocess.STDOUT, start_new_session=True
    )
    os.close(its_end)
    assert shell.stdout
    while (left := deadline - time.monotonic()) > 0 and select.select([shell.stdout], [], [], left)[0]:
        chunk = os.read(shell.stdout.fileno(), 65536)
        if not chunk:
            break
        printed = (printed + chunk)[-KEPT:]
    try:
        code = shell.wait(max(0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
        return f"was killed after {SECONDS:.0f} s"
    return f"ended with code {code}: {' '.join(printed.decode(errors='replace').split())}" if code else ""


def main(log: str, command: str, line: str) -> None:
    if problem := run(command, line):
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} notify: the command {problem}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
