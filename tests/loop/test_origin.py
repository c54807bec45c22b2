"""Where a new search begins: on the user's branch, whatever is checked out, or where --from says; and what it says."""

import json
import subprocess

import pytest
from loop_helpers import commit_all, git

from autoresearch.loop import origin
from autoresearch.loop.origin import find_origin
from autoresearch.record.repository import Repository

SHIPPED, FOUND = "A = 1\n", "A = 2\n"


def commit(repo, text: str, message: str) -> str:
    (repo / "train.py").write_text(text)
    git(repo, "commit", "-qam", message)
    return git(repo, "rev-parse", "HEAD")


def search(repo, tag: str, clock: str = "paced") -> None:
    """A search as one leaves it: two experiments, the second kept, its branch checked out."""
    git(repo, "switch", "-qc", f"autoresearch/{tag}")
    git(repo, "commit", "-q", "--allow-empty", "-m", "0000: baseline (val_bpb 2.000000)")
    git(repo, "update-ref", f"refs/autoresearch/{tag}/0000", "HEAD")
    commit(repo, f"{FOUND}# {tag}\n", "0001: A 1 -> 2 (val_bpb 1.900000)")
    git(repo, "update-ref", f"refs/autoresearch/{tag}/0001", "HEAD")
    (repo / "runs" / tag).mkdir(parents=True)
    (repo / "runs" / tag / "measure.json").write_text(json.dumps({"expected": {"clock": clock}, "files": {}}))


@pytest.fixture
def repo(tmp_path, monkeypatch):
    """A repository with one commit on main."""
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    (tmp_path / "train.py").write_text(SHIPPED)
    (tmp_path / ".gitignore").write_text("runs/\n")
    git(tmp_path, "init", "-q", "-b", "main")
    commit_all(tmp_path, "start")
    return tmp_path


def begin(repo, wanted=None, scale="cpu") -> tuple[str, str]:
    return find_origin(Repository(repo), wanted, scale)


def refusal(repo, capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as ended:
        begin(repo, *arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_it_is_what_is_checked_out_where_no_search_is(repo):
    head = git(repo, "rev-parse", "HEAD")
    assert begin(repo) == (head, f"begins from main, commit {head[:7]} start")
    git(repo, "switch", "-q", "--detach")
    assert begin(repo) == (head, f"begins from HEAD, commit {head[:7]} start")


def test_on_the_branch_of_a_search_it_is_the_users_branch_as_it_is_now(repo):
    git(repo, "switch", "-qc", "mine")
    search(repo, "one")
    git(repo, "switch", "-q", "mine")
    moved_on = commit(repo, "A = 1  # mine\n", "my own")
    git(repo, "switch", "-q", "autoresearch/one")
    search(repo, "two")  # made on top of one's best, as loops did that did not look
    commit_found, line = begin(repo)
    assert commit_found == moved_on and line == f"begins from mine, commit {moved_on[:7]} my own"


def test_a_look_at_an_experiment_is_not_the_users_branch(repo):
    search(repo, "one")
    git(repo, "switch", "-q", "--detach", "refs/autoresearch/one/0001")
    git(repo, "switch", "-q", "autoresearch/one")
    assert begin(repo)[1].startswith("begins from main, ")


def test_where_git_does_not_remember_a_branch_it_is_the_commit_below_the_search(repo, tmp_path_factory):
    start = git(repo, "rev-parse", "HEAD")
    search(repo, "one")
    clone = tmp_path_factory.mktemp("cloned") / "repo"
    git(repo, "clone", "-q", "-b", "autoresearch/one", str(repo), str(clone))
    assert begin(clone)[0] == start


def test_where_nothing_tells_it_the_user_has_to(repo, tmp_path_factory, capsys):
    git(repo, "switch", "-qc", "autoresearch/one")
    clone = tmp_path_factory.mktemp("cloned") / "repo"
    git(repo, "clone", "-q", "-b", "autoresearch/one", str(repo), str(clone))
    assert "name it: --from main, for example" in refusal(clone, capsys)
    assert begin(clone, "origin/main")[0] == git(repo, "rev-parse", "main")


WAYS = {  # how a search's best comes to be what is checked out -> the name that it is then known by
    "git switch -q --detach": "HEAD",
    "git switch -qc mine; echo '# mine' >> train.py; git commit -qam mine": "mine",
    "git switch -q main; git merge -q --no-ff autoresearch/one": "main",
    "git switch -q main; git merge -q --squash autoresearch/one; git commit -qm better": "main",
    "git switch -q main; git restore -s autoresearch/one train.py; git commit -qam better": "main",
}


@pytest.mark.parametrize("way", WAYS)
def test_the_best_of_another_search_is_said_and_one_of_the_other_scale_is_refused(repo, way, capsys):
    start, name = git(repo, "rev-parse", "HEAD"), WAYS[way]
    search(repo, "one")
    best = git(repo, "rev-parse", "HEAD")
    subprocess.run(way, shell=True, cwd=repo, check=True)
    told = "; its train.py has what the search one kept (scale cpu)"
    assert begin(repo)[1].endswith(told)
    refused = refusal(repo, capsys, None, "h100")
    assert refused == (
        f"error: train.py of {name} has what the search one kept, whose scale is cpu, not h100; begin from it "
        f"with --from {name}, or from what was there before with --from {start[:7]}\n"
    )
    assert begin(repo, name, "h100")[1].endswith(told)
    assert begin(repo, "autoresearch/one", "h100")[0] == best
    assert begin(repo, start, "h100") == (start, f"begins from {start}, commit {start[:7]} start")


def test_what_was_taken_back_is_not_another_searchs_best(repo):
    search(repo, "one")
    git(repo, "switch", "-q", "main")
    git(repo, "merge", "-q", "--ff-only", "autoresearch/one")
    git(repo, "revert", "--no-edit", "HEAD")
    assert "search one" not in begin(repo, None, "h100")[1]


def test_a_search_whose_scale_nobody_knows_counts_as_the_other(repo, capsys):
    search(repo, "one")
    (repo / "runs/one/measure.json").unlink()
    git(repo, "switch", "-qc", "mine")
    assert "whose scale is not known any more, not cpu" in refusal(repo, capsys)


def test_a_name_that_is_none_is_one_line(repo, capsys):
    assert refusal(repo, capsys, "nowhere").startswith("error: --from nowhere is not a commit with a train.py; ")
