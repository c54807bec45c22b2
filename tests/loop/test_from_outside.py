"""What a person does to a search that runs: its end moved by program.md; and what it tells one who does not look."""

import http.server
import json
import queue
import re
import resource
import subprocess
import sys
import threading
import time

import pytest
from loop_helpers import (
    ROOT,
    make_session,
    processes_in,
    proposer_script,
    rows_of,
    run_loop,
    set_level,
    start_loop,
    wait_for,
)

from autoresearch import notify
from autoresearch.loop.session import set_limits
from autoresearch.settings import Settings, parse_program


def set_in_program(repo, **values) -> None:
    text = (repo / "program.md").read_text()
    for name, value in values.items():
        assert f"\n{name}: null" in text
        text = text.replace(f"\n{name}: null", f"\n{name}: {value}")
    (repo / "program.md.new").write_text(text)
    (repo / "program.md.new").rename(repo / "program.md")


def status_of(repo) -> dict:
    return json.loads(subprocess.check_output([sys.executable, "agent_loop.py", "status", "--json"], cwd=repo))


# -----------------------------------------------------------------------------
# Its end


def test_program_md_goes_before_the_command_line_and_null_gives_it_back(tmp_path):
    session = make_session(tmp_path / "log", settings=Settings(hours=2, experiments=7))
    session.asked, session.started = session.options, 1000.0
    assert set_limits(session) and (session.options.deadline, session.options.experiments) == (8200.0, 7)
    assert not set_limits(session)
    session.settings = Settings()
    assert set_limits(session) and session.options == session.asked


@pytest.mark.slow
def test_a_night_is_shortened_and_lengthened_from_outside(repo):
    """The first edit waits until a person has set another end; `status` tells of it."""
    go = repo.parent / "go"
    wait = f"while [ ! -e {go} ]; do sleep 0.1; done; "
    command = proposer_script(repo, [wait + set_level(1.9), set_level(1.8), set_level(1.7)])
    loop = start_loop(repo, "--hours", "1", "--experiments", "1", "--command", command)
    try:
        wait_for(lambda: (repo / "runs/t/proposals/0001/work").exists(), 200)
        assert status_of(repo)["pace"]["experiments_wanted"] == 1 and status_of(repo)["pace"]["hours_left"] < 1
        set_in_program(repo, hours=5, experiments=2)
        wait_for(lambda: "until 2 experiments and" in (repo / "runs/t/loop.log").read_text(), 60)
        pace = status_of(repo)["pace"]
        assert pace["experiments_wanted"] == 2 and 4.5 < pace["hours_left"] < 5
        go.touch()
        out, err = loop.communicate(timeout=900)
    finally:
        loop.kill()
    assert "2 experiments done" in out and [row.val_bpb for row in rows_of(repo)] == [2.0, 1.9, 1.8], out + err


@pytest.mark.slow
def test_hours_in_program_md_are_enough_and_end_what_runs(repo):
    loop = start_loop(repo, "--command", "touch thinking; sleep 600")
    assert "how long?" in loop.communicate(timeout=900)[1]
    set_in_program(repo, hours=3)
    loop = start_loop(repo, "--command", "touch thinking; sleep 600")
    wait_for(lambda: (repo / "runs/t/proposals/0001/work/thinking").exists(), 200)
    text = (repo / "program.md").read_text()
    (repo / "program.md").write_text(text.replace("hours: 3", "hours: 0"))
    out, _ = loop.communicate(timeout=900)
    assert loop.returncode == 0 and "no time is left" in out
    assert not processes_in(repo)


# -----------------------------------------------------------------------------
# What it tells


@pytest.mark.slow
def test_a_command_is_told_of_keeps_and_of_the_end(repo):
    told = repo.parent / "told"
    set_in_program(repo, notify=f"cat >> {told}")
    command = proposer_script(repo, [set_level(2.1), set_level(1.9)])
    done = run_loop(repo, "--experiments", "2", "--command", command, timeout=900)
    assert done.returncode == 0, done.stderr
    wait_for(lambda: told.exists() and told.read_text().count("\n") == 2)
    kept, end = sorted(told.read_text().splitlines(), key=lambda line: "experiments done" in line)
    assert kept.startswith("t: kept") and "1.900000" in kept
    assert "2 experiments done" in end and "best seen" in end and "look further" not in end


@pytest.mark.slow
@pytest.mark.parametrize("command", ["exec sleep 1000", "echo no network; exit 6", "/no/such/thing"])
def test_a_command_that_fails_or_hangs_does_no_harm(repo, command):
    set_in_program(repo, notify=command)
    began = time.monotonic()
    done = run_loop(repo, "--experiments", "1", "--command", proposer_script(repo, [set_level(1.9)]), timeout=900)
    assert done.returncode == 0 and [row.val_bpb for row in rows_of(repo)] == [2.0, 1.9]
    if "exec" in command:  # it is still there, and nobody waits for it
        assert time.monotonic() - began < notify.SECONDS + 100
    else:
        wait_for(lambda: "notify: the command ended with code" in (repo / "runs/t/loop.log").read_text())


@pytest.mark.slow
def test_a_person_is_told_when_one_is_needed(repo):
    told = repo.parent / "told"
    set_in_program(repo, notify=f"cat >> {told}")
    (repo / "train.py").write_text("raise ValueError('no good')\n")
    subprocess.run(["git", "commit", "-qam", "broken"], cwd=repo, check=True)
    assert run_loop(repo, "--experiments", "3", "--command", "false", timeout=900).returncode == 1
    wait_for(told.exists)
    assert told.read_text().startswith("t: a person is needed: the baseline does not train")


def test_the_lines_of_the_page_deliver_what_is_told():
    """Each goes to a local server in place of its own."""
    page = (ROOT / "docs/night.md").read_text()
    blocks = re.findall(r"^    (notify: .*\n(?:      .*\n)*)", page, re.MULTILINE)
    received: queue.Queue[tuple[str, str]] = queue.Queue()

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            received.put((self.headers["Content-Type"], body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for block in blocks:
            settings, _ = parse_program(f"---\n{block}---\n")
            command = re.sub(r"https://\S+", f"http://127.0.0.1:{server.server_port}/x", settings.notify)
            assert notify.run(f"export no_proxy=127.0.0.1; {command}", 't: kept 1 "quoted"') == ""
        server.shutdown()
    (_, plain), (kind, slack) = received.get(timeout=60), received.get(timeout=60)
    assert plain == 't: kept 1 "quoted"' and kind == "application/json"
    assert json.loads(slack) == {"text": 't: kept 1 "quoted"\n'}


def test_what_hangs_is_killed_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(notify, "SECONDS", 1.0)
    assert notify.run(f"cd {tmp_path}; sleep 1000 & sleep 1000", "x") == "was killed after 1 s"
    wait_for(lambda: not processes_in(tmp_path))


def test_of_what_a_command_prints_without_end_only_the_end_is_kept(monkeypatch):
    monkeypatch.setattr(notify, "SECONDS", 1.0)
    assert notify.run("cat /dev/zero", "x") == "was killed after 1 s"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4e6  # kB
    assert notify.run("exec > /dev/null 2>&1; sleep 1000", "x") == "was killed after 1 s"


def test_what_a_failing_command_printed_is_told(tmp_path):
    notify.main(str(tmp_path / "log"), "read line; echo not $line; exit 6", "this")
    assert (tmp_path / "log").read_text().endswith("notify: the command ended with code 6: not this\n")
    notify.main(str(tmp_path / "log"), "cat > /dev/null", "this")
    assert (tmp_path / "log").read_text().count("\n") == 1
