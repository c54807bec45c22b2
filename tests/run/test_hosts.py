"""A search on several hosts: network namespaces on this machine. benchmarks/hosts.py has the other cases."""

import re
import subprocess
import sys

import hosts
import pytest
from loop_helpers import ROOT

pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
WHY_NOT = hosts.problem()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("cluster"),
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]


@pytest.mark.parametrize("case", ["unfit"])
def test_a_search_on_several_hosts(case):
    command = [sys.executable, ROOT / "benchmarks/hosts.py", case]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0 and re.match(rf"{case} +\d+ s  ", ended.stdout), ended.stdout + ended.stderr
    assert "10.97.0" not in subprocess.run(["ip", "address"], capture_output=True, text=True).stdout
