"""
The view of a person: stdout and stderr, which only a thread waits for.

A terminal can be gone, suspended (Ctrl-S) or unable to show a character; a pipe can be full, its reader dead; a file
can lie on a full disk. A search must neither wait for that nor end with it. So whatever is printed goes into a queue,
and a thread of each stream writes it. What the stream does not take is dropped: loop.log has it.
"""

import atexit
import contextlib
import io
import locale
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import TextIO, cast

WAITING = 500  # pieces of text that wait for a stream; then the oldest go
PATIENCE = 1.0  # seconds that the end of the program waits for what is still to be shown
BLOCKED = "it takes nothing at present"


class View(io.TextIOBase):
    """A stream whose write() never waits and never fails."""

    encoding = "utf-8"

    def __init__(self, stream: TextIO | None, file: int):
        self.file, self.encoding = file, getattr(stream, "encoding", None) or "utf-8"
        self.name = "stdout" if file == 1 else "stderr"
        self.waiting: SimpleQueue[bytes | Callable[[], None]] = SimpleQueue()  # its put() may interrupt itself
        self.problems: list[str] = []
        self.complain_to: Callable[[str], None] = lambda problem: None
        threading.Thread(target=self.work, daemon=True).start()
        atexit.register(self.drain)

    def write(self, text: str) -> int:
        if self.waiting.qsize() >= WAITING:
            self.complain(BLOCKED)
            with contextlib.suppress(Empty):
                self.waiting.get_nowait()
        self.waiting.put(text.encode(self.encoding, "replace"))
        return len(text)

    def isatty(self) -> bool:
        return os.isatty(self.file)

    def fileno(self) -> int:
        return self.file

    def work(self) -> None:
        """Write what waits, for ever."""
        while True:
            piece = self.waiting.get()
            if callable(piece):
                piece()
                continue
            try:
                write_all(self.file, piece)
            except OSError as error:
                self.complain(error.strerror or str(error))

    def complain(self, problem: str) -> None:
        """Tell of a problem once."""
        if problem not in self.problems:
            self.problems.append(problem)
            with contextlib.suppress(OSError):  # the log's disk is full, too: the loop says that by itself
                self.complain_to(self.said(problem))

    def said(self, problem: str) -> str:
        return f"the view is gone: {self.name} cannot be written ({problem}); everything goes on, and is told here"

    def drain(self) -> None:
        """Wait a moment for what is still to be shown."""
        done = threading.Event()
        self.waiting.put(done.set)
        if not done.wait(PATIENCE):
            self.complain(BLOCKED)


def write_all(file: int, piece: bytes) -> None:
    """Write all of it, also where another program has set the terminal to return at once."""
    while piece:
        try:
            piece = piece[os.write(file, piece) :]
        except BlockingIOError:
            select.select([], [file], [], 1)


# -----------------------------------------------------------------------------
# At the start of the program


def use_utf8() -> None:
    """Begin the program again in Python's UTF-8 mode where the locale is of another encoding.

    Files, git and what an LLM writes are UTF-8, whatever the terminal can show.
    """
    is_utf8 = sys.flags.utf8_mode or locale.getencoding().lower() in ("utf-8", "utf8")
    if not is_utf8 and os.environ.get("PYTHONUTF8") != "1":  # that nothing begins again for ever
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"PYTHONUTF8": "1"})


def open_files() -> None:
    """Fill the places of stdin, stdout and stderr where they are closed, or the next file that is opened takes one."""
    for file in (0, 1, 2):
        try:
            os.fstat(file)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True)


@contextlib.contextmanager
def long_look() -> Iterator[None]:
    """For what runs for hours: nothing that is printed can stop it."""
    open_files()
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # a program in the background may write to its terminal
    sys.stdout = cast(TextIO, View(sys.stdout, 1))
    sys.stderr = sys.stdout if os.path.sameopenfile(1, 2) else cast(TextIO, View(sys.stderr, 2))
    yield


def listen(tell: Callable[[str], None]) -> None:
    """Have told what happens to the view; at once, what has happened already."""
    for view in {sys.stdout, sys.stderr}:
        if isinstance(view, View):
            view.complain_to = tell
            for problem in view.problems:
                tell(view.said(problem))


@contextlib.contextmanager
def short_look() -> Iterator[None]:
    """For what prints and ends: `status | head` ends in silence."""
    open_files()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        try:
            yield
        finally:
            print(end="", flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what Python flushes at its end
        if not isinstance(error, BrokenPipeError):
            raise
