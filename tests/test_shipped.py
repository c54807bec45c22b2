"""Which train.py the tests read."""

from loop_helpers import STUB, git, make_repository, make_row
from shipped import shipped_train

from autoresearch.row import row_message


def test_the_tests_read_the_train_py_from_before_any_search(tmp_path):
    repo = make_repository(tmp_path / "repo")
    (repo / "train.py").write_text("def broken(")
    assert shipped_train(repo) == STUB, "not the file: a search or a person may be at work on it"
    git(repo, "switch", "-qc", "autoresearch/t")
    for number in (1, 2):
        (repo / "train.py").write_text(STUB + f"# {number}\n")
        git(repo, "commit", "-qam", row_message(f"000{number}: better", "keep", make_row(number=number)))
    git(repo, "commit", "-q", "--allow-empty", "-m", "Results of autoresearch/t")
    (repo / "train.py").write_text(STUB + "# by hand\n")
    git(repo, "commit", "-qam", "by hand, on the branch of a search")
    assert shipped_train(repo) == STUB
    git(repo, "switch", "-q", "main")
    (repo / "train.py").write_text(STUB + "# another version\n")
    git(repo, "commit", "-qam", "a change of the project's own")
    assert shipped_train(repo) == STUB + "# another version\n"
