"""autoresearch/data/documents.py: real files."""

import json

import pytest
from data_helpers import write_parquet

from autoresearch.data.documents import DOCUMENT_CHARS, documents, is_pinned, read_documents, source_files
from autoresearch.data.download import PINNED_TEST_FILE, PINNED_VAL_FILE
from autoresearch.text import BadInput


def test_validation_documents_are_never_training_documents(texts, tmp_path):
    files = [
        write_parquet(tmp_path / "a.parquet", [*texts[:300], *texts[:50], "", " \n", None]),
        write_parquet(tmp_path / "b.parquet", texts[200:400]),
    ]
    train, val, test = (list(documents(files, split)) for split in ("train", "val", "test"))
    assert sorted(train + val + test) == sorted(texts[:400])
    assert 5 < len(val) < 40 and 5 < len(test) < 40
    # The side of a document does not depend on what else there is.
    assert set(documents(files[1:], "val")) == set(val) & set(texts[200:400])


def test_pinned_validation_file(texts, tmp_path):
    write_parquet(tmp_path / PINNED_VAL_FILE, [*texts[:100], texts[0]])
    write_parquet(tmp_path / "a.parquet", texts[50:400])
    files = source_files(str(tmp_path), 0, 1, tmp_path)
    assert list(documents(files, "val")) == texts[:100]
    by_hash = set(documents(files, "test"))
    assert list(documents(files, "train")) == [text for text in texts[100:400] if text not in by_hash]
    assert 5 < len(by_hash) < 40 and by_hash < set(texts[100:400])


def test_pinned_test_file(texts, tmp_path):
    write_parquet(tmp_path / PINNED_VAL_FILE, texts[:100])
    write_parquet(tmp_path / "a.parquet", texts[100:300])
    without = source_files(str(tmp_path), 0, 1, tmp_path)
    write_parquet(tmp_path / PINNED_TEST_FILE, [*texts[90:110], *texts[300:400], texts[300]])
    files = source_files(str(tmp_path), 0, 1, tmp_path)
    assert files[:-1] == without and is_pinned(files, "test")
    assert list(documents(files, "train")) == texts[100:300] and list(documents(files, "val")) == texts[:100]
    assert list(documents(files, "test")) == texts[300:400], "what is seen elsewhere tests nothing"


def test_plain_text_and_json_lines(tmp_path):
    lines = "".join(f"line {i} äöü\n" for i in range(20_000)) + "x" * 100_000
    (tmp_path / "a.txt").write_text(lines)
    pieces = list(read_documents(tmp_path / "a.txt"))
    assert "".join(pieces) == lines and max(map(len, pieces)) <= DOCUMENT_CHARS
    assert all(piece.endswith("\n") for piece in pieces[:3])
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"text": "half a pair \\ud800"}\n')
    assert list(read_documents(tmp_path / "b.jsonl")) == ["one", "half a pair \ufffd"]
    assert len(source_files(str(tmp_path), 0, 1, tmp_path)) == 2


@pytest.mark.slow
def test_endless_document(tokenizer, tmp_path):
    text = "x" + " " * 1_000_000 + "x"  # in one piece it overflows the stack of tiktoken's regular expression
    files = [write_parquet(tmp_path / "a.parquet", [text])]
    pieces = [piece for split in ("train", "val", "test") for piece in documents(files, split)]
    assert "".join(pieces) == text
    assert "".join(tokenizer.decode(tokenizer.encode(piece)) for piece in pieces) == text


def test_text_behind_a_link_to_a_folder_is_found_once(tmp_path):
    corpus, apart = tmp_path / "corpus", tmp_path / "apart"
    for folder in (corpus / "own", apart / "deeper"):
        folder.mkdir(parents=True)
        (folder / "text.txt").write_text(folder.name)
    (corpus / "linked").symlink_to(apart)
    (corpus / "again").symlink_to(apart / "deeper")
    (apart / "circle").symlink_to(corpus)
    (corpus / "file.txt").symlink_to(apart / "deeper/text.txt")
    (corpus / "broken.txt").symlink_to(tmp_path / "gone")
    found = source_files(str(corpus), 0, 1, tmp_path)
    assert sorted(path.resolve().parent.name for path in found) == ["deeper", "deeper", "own"]  # and the link to a file


@pytest.mark.parametrize("pieces", [1, 3, 40])
@pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet"])
def test_few_documents_are_split_by_size(texts, tmp_path, pieces, suffix):
    """One long text, and some: the end of each is held out, whatever its hash is."""
    whole = "\n".join(texts[:500])
    size = len(whole) // pieces + 1
    documents_of_it = [whole[start : start + size] for start in range(0, len(whole), size)]
    if suffix == "txt":
        for number, text in enumerate(documents_of_it):
            (tmp_path / f"{number}.txt").write_text(text)
    elif suffix == "jsonl":
        (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents_of_it))
    else:
        write_parquet(tmp_path / "a.parquet", documents_of_it)
    files = source_files(str(tmp_path), 0, 1, tmp_path)
    splits = {split: "".join(documents(files, split)) for split in ("train", "val", "test")}
    assert sum(map(len, splits.values())) == len(whole)
    for split in ("val", "test"):
        assert 0.015 < len(splits[split]) / len(whole) < 0.15, split
    if pieces == 1 and suffix != "txt":
        assert splits["train"] + splits["val"] + splits["test"] == whole


def test_blank_lines_marks_and_nulls_do_no_harm(tmp_path):
    lines = b'\xef\xbb\xbf{"text": "one"}\r\n\n  \n{"text": null}\n{"text": ""}\n{"text": "two\xc3\xa9", "id": 1}\n\n'
    (tmp_path / "a.jsonl").write_bytes(lines)
    assert [text for text in read_documents(tmp_path / "a.jsonl") if text] == ["one", "two\u00e9"]
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    assert list(read_documents(tmp_path / "a.txt")) == ["one\ntwo"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"text": "one"}\n{"text": "two"', r"a\.jsonl: line 2 "),
        ("a.jsonl", b'{"text": "one"}\n\n{"body": "two"}', r"a\.jsonl: line 3 "),
        ("a.jsonl", b'{"text": 5}', r"a\.jsonl: line 1 "),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl: line 1 "),
        ("a.jsonl", b'{"text": "one"}\n{"text": "\xe9t\xe9"}', r"a\.jsonl: line 2 has the byte 0xe9.*iconv"),
        ("a.jsonl", '{"text": "one"}'.encode("utf-16"), r"a\.jsonl: this is UTF-16; convert it: iconv -f UTF-16"),
        ("a.txt", "one".encode("utf-16"), r"a\.txt: this is UTF-16; convert it"),
        ("a.txt", "one".encode("utf-16-le"), r"a\.txt: it has NUL characters, as UTF-16 does"),
        (
            "a.md",
            b"one\ntwo\n\xe9t\xe9\n",
            r"a\.md: line 3 has the byte 0xe9, which is not UTF-8; convert it: iconv -f",
        ),
    ],
)
def test_damaged_text_is_refused_with_its_file(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=words):
        list(read_documents(tmp_path / name))
