"""
Before a run: what is worth saying of an edit of train.py. "" or one line, in words that a proposer can act on.

That it parses, keeps the names that it shares with prepare_data.py, uses the clock, the seed and the training split;
and that it leaves network, processes and files alone, for those who have no bubblewrap. What the baseline does is
allowed.

This is no wall: a name that is put together at run time passes it. The number is guarded by the scorer, which runs none
of train.py's code, and the budget by clocks outside the run (trust.py).
"""

import ast
import functools
import re
from collections.abc import Iterator

from autoresearch.source import NOT_PYTHON, parse

OURS = "prepare_data"
NEEDED = ("SEED", "TIME_BUDGET", "evaluate_bpb", "make_dataloader", "training_clock")
FROM_OURS = {*NEEDED, "check_model", "MAX_SEQ_LEN", "SCALE", "STEPS", "Tokenizer", "default_device"}

NETWORK, PROCESSES, FILES = "uses the network", "starts or controls processes", "reads or writes files"
HIDDEN = "runs code that can't be read here"
MODULES = {
    "imports a part of the loop": "agent_loop autoresearch",
    NETWORK: "socket socketserver ssl urllib http ftplib smtplib xmlrpc requests httpx httpx2 aiohttp urllib3 "
    "websockets anthropic openai huggingface_hub datasets transformers wandb torch.hub",
    PROCESSES: "subprocess multiprocessing pty psutil joblib ray signal atexit ctypes cffi torch.multiprocessing "
    "torch.utils.data",
    "starts threads": "threading _thread concurrent asyncio",
    FILES: "pathlib shutil tempfile io fileinput mmap sqlite3 pickle shelve dbm zipfile tarfile gzip bz2 lzma pyarrow "
    "pandas h5py safetensors glob",
    HIDDEN: "importlib runpy builtins code imp zipimport",
}
WORDS = {  # attributes, whatever they belong to
    PROCESSES: "system popen fork forkpty kill killpg prctl setrlimit posix_spawn execv execve execvp spawnv spawnl",
    FILES: "fromfile from_file tofile memmap loadtxt savetxt genfromtxt write_text write_bytes read_text read_bytes "
    "unlink rmtree makedirs listdir scandir",
    "reads the packed rows itself; use make_dataloader(..., 'train')": "load_rows DATA_DIR DATA_ROOT read_meta",
}
NAMES = {
    FILES: "open torch.save torch.load numpy.save numpy.load numpy.savez np.save np.load np.savez "
    "os.open os.fdopen os.replace os.link os.symlink os.remove os.rename os.rmdir os.mkdir os.walk",
    HIDDEN: "exec eval compile __import__",
}
TEXTS = {  # in strings that are not docstrings
    "names a file of the data or of the loop": r"\b(val|test|train)\.bin\b|\b(graph|record|meta)\.json\b|tensors\.bin"
    r"|\.git\b|/proc\b|/etc\b|/home\b|/root\b",
    "reads or changes the environment": r"API_KEY|AUTH_TOKEN|HF_TOKEN|AUTORESEARCH_\w+",
}

Finding = tuple[int, str, str]  # line, reason, the text that was found


def table(rules: dict[str, str]) -> dict[str, str]:
    """{word: reason} from {reason: "word word"}."""
    return {word: reason for reason, words in rules.items() for word in words.split()}


MODULES, WORDS, NAMES = table(MODULES), table(WORDS), table(NAMES)

# -----------------------------------------------------------------------------
# What there is to find: each function yields it


def find_imports(tree: ast.Module) -> Iterator[Finding]:
    """Modules that no training needs; from prepare_data, names only, under their own names."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        for name in [module + item.name for item in node.names]:
            if found := of_module(name):
                yield node.lineno, found, name
            elif name == OURS:
                yield node.lineno, f"imports {OURS} as a whole; import names from it", name
            elif name.startswith(f"{OURS}.") and name.removeprefix(f"{OURS}.") not in FROM_OURS:
                yield node.lineno, f"imports from {OURS} what is not for train.py", name
        if module == f"{OURS}.":
            renamed = [item for item in node.names if item.asname not in (None, item.name)]
            yield from ((node.lineno, f"gives a name of {OURS} another name", str(item.asname)) for item in renamed)


def of_module(path: str) -> str:
    """Why a module that a dotted name begins with is refused, or ""."""
    parts = path.split(".")
    return next((MODULES[stem] for n in range(1, len(parts) + 1) if (stem := ".".join(parts[:n])) in MODULES), "")


def find_names(tree: ast.Module) -> Iterator[Finding]:
    """Names and attributes that reach files, processes or hidden code. A name that the source binds is its own."""
    own = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {
        item.asname or item.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for item in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in NAMES and node.id not in own:
            yield node.lineno, NAMES[node.id], node.id
        elif isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            reason = NAMES.get(text) or (WORDS.get(node.attr, "") if node.attr not in own else "")
            if reason or (reason := of_module(text) if text.startswith("torch.") else ""):
                yield node.lineno, reason, text


def find_texts(tree: ast.Module) -> Iterator[Finding]:
    """Strings that name what a training has nothing to do with."""
    docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
            for reason, pattern in TEXTS.items():
                if match := re.search(pattern, node.value):
                    yield node.lineno, reason, match[0]


def find_contract(tree: ast.Module) -> Iterator[Finding]:
    """The names that a training shares with prepare_data are imported, used, and stay what they are."""
    imported = {
        item.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == OURS
        for item in node.names
    }
    read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    for name in NEEDED:
        if name not in imported:
            yield 0, f"does not import {name} from {OURS}", name
        elif name not in read:
            yield 0, f"does not use {name}", name
    for statement in tree.body:  # inside a function a name is another one
        for name in bound_by(statement) & set(NEEDED):
            yield statement.lineno, f"gives {name} of {OURS} another value", name


def bound_by(statement: ast.stmt) -> set[str]:
    """The names that a statement of the module gives a value to, imports aside."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def find_calls(tree: ast.Module) -> Iterator[Finding]:
    """Batches of another split than the training one, and a seed that is written in."""
    assigned = assigned_values(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called == "make_dataloader":
            for value in [*node.args[3:4], *(word.value for word in node.keywords if word.arg == "split")]:
                if isinstance(value, ast.Constant) and value.value != "train":
                    yield node.lineno, 'the split of make_dataloader() is not "train"', ast.unparse(node)
        elif called.endswith("manual_seed") and node.args and is_written_in(node.args[0], assigned):
            yield node.lineno, "a seed that is written in makes all runs one; derive it from SEED", ast.unparse(node)


def assigned_values(tree: ast.Module) -> dict[str, list[ast.expr]]:
    """All that the names of a source are given by plain assignments."""
    values: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                values.setdefault(ast.unparse(target), []).append(node.value)
    return values


def is_written_in(value: ast.expr, assigned: dict[str, list[ast.expr]], depth: int = 5) -> bool:
    """Return whether a value is the same for every seed: of constants and the environment alone, also by names."""
    names = {node.id for node in ast.walk(value) if isinstance(node, ast.Name)} - {"int", "hash", "abs", "len", "str"}
    if "environ" in ast.unparse(value) or "getenv" in ast.unparse(value):
        names -= {"os"}
    return depth > 0 and all(
        name in assigned and all(is_written_in(each, assigned, depth - 1) for each in assigned[name]) for name in names
    )


CHECKS = (find_contract, find_calls, find_imports, find_names, find_texts)


@functools.lru_cache(4)
def find_all(source: str) -> list[Finding]:
    """What there is to find in a source; the baseline's is asked for again and again."""
    tree = parse(source)
    return [finding for check in CHECKS for finding in check(tree)]


def audit_source(source: str, baseline: str) -> str:
    """ "" or the first thing that `source` does, the `baseline` does not do, and a training must not do."""
    try:
        findings = find_all(source)
    except NOT_PYTHON as error:
        return f"it is not Python: {error}"
    allowed = {(reason, text) for _, reason, text in find_all(baseline)}
    for line, reason, text in findings:
        if (reason, text) not in allowed:
            where = f"line {line}: " if line else ""
            return f"{where}{reason} (`{' '.join(text.split())[:80]}`)"
    return ""
