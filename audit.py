"""
Is the number of a run worth believing? Three checks, called by agent_loop.py; each returns "" or one line that says why
not, in words that a proposer can act on.

    audit_source(source, baseline)     before a run: does the edit touch what it must not?
    check_integrity(paths, expected)   before a run: are the evaluator and the data still what they were?
    check_result(...)                  after a run: do its summary, the evaluator's record and the clocks agree?

The source check reads the syntax tree and knows the ordinary ways, and the ordinary mistakes: a second evaluation, a
patched clock, validation rows in the training. Whatever the baseline does itself is allowed as it does it. It is no
jail, and cannot be one: a name put together at run time, an attribute fetched from an object it does not follow, a
kernel that writes where it should not are invisible to it. Behind it stand the evaluator's own probes (prepare_data.py:
causal, rows independent, no memory, arithmetic checked against numpy), its record, the clocks, and the sandbox.
"""

import ast
import functools
import hashlib
import json
import lzma
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RECORD = "record.json"  # in a run's folder; AUTORESEARCH_RECORD names it to the evaluator

# -----------------------------------------------------------------------------
# Rules for a source

OURS = "prepare_data"
FROM_OURS = {  # what train.py may import from prepare_data
    *("MAX_SEQ_LEN", "SCALE", "SEED", "STEPS", "TIME_BUDGET", "Tokenizer"),
    *("default_device", "evaluate_bpb", "make_dataloader", "training_clock"),
}
NEEDED = ("TIME_BUDGET", "evaluate_bpb", "make_dataloader", "training_clock")

NETWORK, PROCESSES, THREADS = "uses the network", "starts or controls processes", "starts threads"
FILES, INTERPRETER = "reads or writes files", "reaches into the interpreter"
ENVIRONMENT, OWN_LIMITS = "reads or changes the environment", "changes the process's own limits"
LOOP = "imports a part of the loop"
NATIVE = "calls native code (a Triton kernel is fine)"
TORCH = "changes what torch's own functions do"

MODULES = {  # refused wherever they are imported, unless the baseline imports them
    LOOP: "agent_loop audit cluster experiments judge ledger mutate prompt proposers report repository researcher "
    "run_experiment sandbox search settings",
    NETWORK: "socket socketserver ssl urllib http ftplib smtplib poplib imaplib telnetlib xmlrpc webbrowser requests "
    "httpx httpx2 aiohttp urllib3 websockets anthropic openai huggingface_hub datasets kernels transformers wandb git",
    PROCESSES: "subprocess multiprocessing pty psutil joblib ray sched torch.multiprocessing torch.utils.data",
    THREADS: "threading _thread concurrent asyncio queue selectors select torch.futures",
    "handles signals": "signal faulthandler",
    "leaves code behind for when the run ends": "atexit",
    FILES: "pathlib shutil tempfile io _io glob fileinput mmap sqlite3 pickle _pickle shelve dbm zipfile tarfile gzip "
    "bz2 lzma csv configparser pyarrow pandas h5py safetensors fcntl posix nt torch.hub torch.serialization "
    "numpy.lib.format",
    INTERPRETER: "inspect importlib builtins ast code codeop dis traceback tracemalloc linecache runpy pkgutil site "
    "pdb bdb unittest imp zipimport torch.package",
    NATIVE: "ctypes _ctypes cffi numba torch.utils.cpp_extension torch.utils._cpp_extension_versioner numpy.ctypeslib",
    ENVIRONMENT: "getpass platform pwd",
    TORCH: "torch.overrides torch.utils._python_dispatch",
}
SAFE_MODULES = """
    __future__ abc array bisect cmath collections contextlib copy dataclasses datetime decimal enum fractions functools
    gc hashlib heapq itertools json logging math numbers operator os pprint random re resource statistics string struct
    sys textwrap time types typing uuid warnings weakref zlib
"""  # of the standard library
NAMES = {  # what is refused in modules that may be imported: full names, as far as the source tells them
    NETWORK: "torch.distributed.init_process_group torch.distributed.TCPStore torch.distributed.rpc",
    FILES: "torch.save torch.load torch.from_file torch.jit.save torch.jit.load torch.export.save torch.export.load "
    "numpy.load numpy.save numpy.savez numpy.savez_compressed numpy.savetxt numpy.loadtxt numpy.genfromtxt "
    "numpy.fromfile numpy.memmap numpy.DataSource numpy.lib.npyio logging.FileHandler json.dump",
    NATIVE: "torch.ops.load_library torch.classes.load_library",
    INTERPRETER: "types.FunctionType types.CodeType",
    "leaves code behind for when the run ends": "weakref.finalize",
}
MEMBERS = {  # of these modules nothing but the following
    "os": "cpu_count",
    "sys": "exit stdout stderr version_info float_info maxsize byteorder platform",
    "gc": "collect disable enable freeze",
    "resource": "getrusage RUSAGE_SELF",
}
WORDS = {  # attributes and names, whatever they belong to
    INTERPRETER: "__globals__ __code__ __closure__ __builtins__ __subclasses__ __loader__ __spec__ __import__ "
    "__defaults__ __kwdefaults__ f_back f_locals f_globals f_builtins tb_frame gi_frame cr_frame _getframe",
    FILES: "tofile fromfile from_file memmap savetxt open_memmap write_text write_bytes read_text read_bytes savefig",
    TORCH: "__torch_function__ __torch_dispatch__ TorchFunctionMode TorchDispatchMode",
    "reads the packed rows itself; use make_dataloader(..., 'train')": "load_rows DATA_DIR DATA_ROOT read_meta",
}
BUILTINS = {  # names that no assignment of the source brought
    FILES: "open input",
    INTERPRETER: "exec eval compile globals breakpoint __import__ __builtins__ memoryview",
}
TEXTS = {  # in string constants that are not docstrings
    "names a file of the data or of the loop": r"\b(val|train)\.bin\b|tokenizer\.json|meta\.json|record\.json"
    r"|prepare_data|program\.md|results\.tsv|\.git\b|/proc\b|/etc\b|/home\b|/root\b",
    ENVIRONMENT: r"API_KEY|AUTH_TOKEN|HF_TOKEN|AUTORESEARCH_",
    TORCH: r"^(aten|prims)(::.*)?$",
}
MAY_BE_SET = re.compile(  # attributes of imported modules that are settings, not functions
    r"torch\.backends\.[\w.]+|torch\._(dynamo|inductor|functorch)(\.\w+)?\.config(\.\w+)*|os\.environ"
)
MAY_BE_EXPORTED = re.compile(r"os\.environ(\.get|\.setdefault)?[\[(]'(PYTORCH|TORCH|TORCHINDUCTOR|TRITON|CUDA)_\w+'.*")

Finding = tuple[int, str, str]  # line, reason, the text that was found


def table(rules: dict[str, str]) -> dict[str, str]:
    """{word: reason} from {reason: "word word"}."""
    return {word: reason for reason, words in rules.items() for word in words.split()}


MODULES, NAMES, WORDS, BUILTINS = table(MODULES), table(NAMES), table(WORDS), table(BUILTINS)

# -----------------------------------------------------------------------------
# Reading a source


@dataclass
class Tree:
    """A parsed source, with what each node's parent is and where each imported name comes from."""

    nodes: list[ast.AST]
    parents: dict[ast.AST, ast.AST]
    origins: dict[str, str]  # name -> full name: {"F": "torch.nn.functional"}
    bound: set[str]  # every name that the source gives a value to
    names: dict[str, list[ast.Name]]  # every place of a name


def read_tree(source: str) -> Tree:
    """Parse a source. Raises SyntaxError (or ValueError, RecursionError) if it is not Python."""
    nodes = list(ast.walk(ast.parse(source)))
    tree = Tree(nodes, {child: node for node in nodes for child in ast.iter_child_nodes(node)}, {}, set(), {})
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [(item.asname or item.name.partition(".")[0], item) for item in node.names]
            tree.origins |= {name: item.name if item.asname else name for name, item in names}
        elif isinstance(node, ast.ImportFrom):
            tree.origins |= {item.asname or item.name: f"{node.module}.{item.name}" for item in node.names}
        tree.bound.update(name for name, _ in bindings(node))
        if isinstance(node, ast.Name):
            tree.names.setdefault(node.id, []).append(node)
    arguments = {node.arg for node in nodes if isinstance(node, ast.arg)}
    for name in tree.bound - arguments - tree.origins.keys():  # `f = torch.nn.functional` is an import too
        origins = {full_name(value, tree) for value in assigned(name, tree)}
        if len(origins) == 1 and "" not in origins:
            tree.origins |= {name: origins.pop()}
    return tree


def bindings(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """The names that a node gives a value to, imports aside."""
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        yield node.id, node
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name, node
    elif isinstance(node, ast.arg):
        yield node.arg, node
    elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
        yield node.name, node


def full_name(node: ast.AST, tree: Tree) -> str:
    """`F.cross_entropy` -> torch.nn.functional.cross_entropy; "" if it is not a plain path from an imported name."""
    if isinstance(node, ast.Name):
        return tree.origins.get(node.id, "")
    if isinstance(node, ast.Attribute):
        origin = full_name(node.value, tree)
        return origin and f"{origin}.{node.attr}"
    return ""


def root_of(node: ast.AST) -> ast.AST:
    """What a chain of attributes, subscripts and calls begins with."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call | ast.Starred):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node


def whole_chain(node: ast.AST, tree: Tree) -> ast.AST:
    """The longest chain that begins with a name: all of `ctypes.CDLL(None).mallopt(-1, 5)` from its `ctypes`."""
    while True:
        parent = tree.parents.get(node)
        inner = {ast.Attribute: "value", ast.Subscript: "value", ast.Call: "func"}.get(type(parent))
        if not inner or getattr(parent, inner) is not node:
            return node
        node = parent


def chain_text(node: ast.AST, tree: Tree) -> str:
    """The chain as text, without the arguments of its last call: those may change."""
    chain = whole_chain(node, tree)
    return ast.unparse(chain.func if isinstance(chain, ast.Call) else chain)


def docstrings(tree: Tree) -> set[ast.AST]:
    return {node.value for node in tree.nodes if isinstance(node, ast.Expr)}


def under(name: str, rules: dict[str, str]) -> str:
    """The reason of the longest rule that `name` or what holds it stands under, or ""."""
    parts = name.split(".")
    return next((rules[stem] for n in range(len(parts), 0, -1) if (stem := ".".join(parts[:n])) in rules), "")


# -----------------------------------------------------------------------------
# What a source must not do: each function yields what it finds


def find_imports(tree: Tree) -> Iterator[Finding]:
    """Modules that no training needs; from prepare_data, names only, under their own names."""
    for node in tree.nodes:
        if isinstance(node, ast.Import):
            names = [item.name for item in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{item.name}" for item in node.names]
            if node.module == OURS:
                yield from find_our_imports(node)
        else:
            continue
        for name in names:
            top = name.partition(".")[0]
            if name == OURS:
                yield node.lineno, f"imports {OURS} as a whole; import names from it", name
            elif reason := under(name, MODULES):
                yield node.lineno, reason, name if isinstance(node, ast.Import) else node.module
            elif top not in SAFE_MODULES.split() and top in sys.stdlib_module_names:
                yield node.lineno, "imports a module that no training needs", top


def find_our_imports(node: ast.ImportFrom) -> Iterator[Finding]:
    for item in node.names:
        if item.name not in FROM_OURS:
            yield node.lineno, f"imports from {OURS} what is not for train.py", item.name
        elif item.asname:
            yield node.lineno, f"gives a name of {OURS} another name", f"{item.name} as {item.asname}"


def find_names(tree: Tree) -> Iterator[Finding]:
    """Uses of modules and names that are refused, and of a module's members beyond those allowed."""
    for node in tree.nodes:
        if isinstance(node, ast.Name) and node.id in tree.origins:
            origin = tree.origins[node.id]
            text, chain = chain_text(node, tree), whole_chain(node, tree)
            path = origin + text.removeprefix(node.id)
            top = origin.partition(".")[0]
            if "__dict__" in text:
                yield node.lineno, "patches an imported module", text
            elif top in MEMBERS:
                if not allowed_member(path, ast.unparse(chain)):
                    yield node.lineno, member_reason(path), text
            elif reason := under(path, NAMES) or under(path, MODULES) if top != OURS else "":
                yield node.lineno, reason, text
        elif isinstance(node, ast.Name) and node.id not in tree.bound and node.id in BUILTINS:
            yield node.lineno, BUILTINS[node.id], node.id
        if reason := WORDS.get(word_of(node), ""):
            yield node.lineno, reason, word_of(node)


def word_of(node: ast.AST) -> str:
    """The name in a node: of an attribute, a variable, a function, an imported thing."""
    for field in ("attr", "id", "name"):
        word = getattr(node, field, None)
        if isinstance(word, str):
            return word.rpartition(".")[2]
    return ""


def allowed_member(path: str, whole: str) -> bool:
    module, _, member = path.partition(".")
    if module == "os" and MAY_BE_EXPORTED.fullmatch(whole):
        return True
    return re.split(r"\W", member)[0] in MEMBERS[module].split()


def member_reason(path: str) -> str:
    module, _, member = path.partition(".")
    if module == "resource":
        return OWN_LIMITS
    if re.match(r"environ|getenv|putenv|unsetenv", member):
        return ENVIRONMENT
    if re.match(r"fork|exec|spawn|system|popen|kill|set|wait|nice|posix_spawn|sched|_exit|abort", member):
        return INTERPRETER if module == "sys" else PROCESSES
    return INTERPRETER if module in ("sys", "gc") else FILES


def find_texts(tree: Tree) -> Iterator[Finding]:
    """String constants that name what a training has nothing to do with."""
    skipped = docstrings(tree)
    for node in tree.nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in skipped:
            for reason, pattern in TEXTS.items():
                if match := re.search(pattern, node.value):
                    yield node.lineno, reason, match[0]


def find_patches(tree: Tree) -> Iterator[Finding]:
    """Imported modules, classes and functions that are changed, and names of prepare_data that get another value."""
    ours = {name for name, origin in tree.origins.items() if origin == f"{OURS}.{name}"}
    made_of_ours = {name for name in tree.bound if built_from(name, ours & {"Tokenizer"}, tree)}
    for node in tree.nodes:
        for name, place in bindings(node):
            if name in ours:
                yield place.lineno, f"gives {name} of {OURS} another value", name
        if isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
            yield from find_patch(node, made_of_ours, tree)
        elif isinstance(node, ast.Call) and is_setter(node.func) and node.args:
            yield from find_patch(node.args[0], made_of_ours, tree)


def is_setter(function: ast.AST) -> bool:
    """setattr(x, ...), delattr, object.__setattr__(x, ...), vars(x)."""
    setters = ("setattr", "delattr", "vars", "__setattr__", "__delattr__")
    return word_of(function) in setters and (isinstance(function, ast.Name) or ast.unparse(function.value) == "object")


def find_patch(target: ast.AST, made_of_ours: set[str], tree: Tree) -> Iterator[Finding]:
    root = root_of(target)
    if not isinstance(root, ast.Name):
        return
    text = ast.unparse(target)
    origin = tree.origins.get(root.id, "")
    path = origin + text.removeprefix(root.id)
    if root.id in made_of_ours or origin.startswith(OURS):
        yield target.lineno, f"patches what {OURS} gave", text
    elif origin and not MAY_BE_SET.match(path):
        yield target.lineno, "patches an imported module", path


def built_from(name: str, sources: set[str], tree: Tree) -> bool:
    """Whether `name` is assigned a value that begins with one of `sources`: tokenizer = Tokenizer.from_directory()."""
    values = assigned(name, tree)
    return any(isinstance(root_of(value), ast.Name) and root_of(value).id in sources for value in values)


def assigned(name: str, tree: Tree) -> list[ast.AST]:
    """All values that a name is plainly assigned; the whole statement where it is unpacked, added to, or a loop's."""
    values = []
    for node in tree.names.get(name, []):
        if not isinstance(node.ctx, ast.Load):
            parent = tree.parents[node]
            plain = isinstance(parent, ast.Assign | ast.AnnAssign | ast.NamedExpr) and parent.value is not None
            values.append(parent.value if plain else parent)
    return values


def calls_of(name: str, tree: Tree) -> list[ast.Call]:
    parents = [(tree.parents[node], node) for node in tree.names.get(name, [])]
    return [parent for parent, node in parents if isinstance(parent, ast.Call) and parent.func is node]


def find_data(tree: Tree) -> Iterator[Finding]:
    """Batches of anything but the training split, and make_dataloader under another name."""
    calls = calls_of("make_dataloader", tree)
    for call in calls:
        given = call.args[3:4] + [word.value for word in call.keywords if word.arg == "split"]
        if [getattr(value, "value", None) for value in given] != ["train"]:
            yield call.lineno, 'the split of make_dataloader() is not the literal "train"', ast.unparse(call)
    for node in tree.names.get("make_dataloader", []):
        if node not in [call.func for call in calls]:
            yield node.lineno, "make_dataloader is handed on instead of called", node.id


def find_metric(tree: Tree) -> Iterator[Finding]:
    """evaluate_bpb is called once, and its result is what is printed as val_bpb."""
    calls, uses = calls_of("evaluate_bpb", tree), tree.names.get("evaluate_bpb", [])
    if len(calls) != 1 or len(uses) != 1:
        yield 0, f"evaluate_bpb should be called once; it is used {len(uses)} times", f"{len(uses)} uses"
        return
    call, statement = calls[0], tree.parents[calls[0]]
    if not (isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)):
        yield call.lineno, "the result of evaluate_bpb should be assigned to a name", ast.unparse(statement)
        return
    if any(isinstance(node, ast.For | ast.While) for node in holders(call, tree)):
        yield call.lineno, "evaluate_bpb should be called once, not in a loop", ast.unparse(call)
    name = statement.targets[0].id
    if len(assigned(name, tree)) != 1:
        yield call.lineno, f"{name}, the result of evaluate_bpb, gets another value", name
    shown = printed("val_bpb", tree)
    if [ast.unparse(value) for value in shown] != [name]:
        yield (
            call.lineno,
            f"the one val_bpb line should print {name}, the result of evaluate_bpb",
            f"{len(shown)} lines",
        )


def holders(node: ast.AST, tree: Tree) -> Iterator[ast.AST]:
    """Everything that a node stands in."""
    while node := tree.parents.get(node):
        yield node


def printed(label: str, tree: Tree) -> list[ast.AST]:
    """What follows each `label` in a string that could be printed; the string itself where nothing is formatted in."""
    skipped, values = docstrings(tree), []
    for node in tree.nodes:
        if isinstance(node, ast.JoinedStr):
            for piece, following in zip(node.values, [*node.values[1:], node], strict=True):
                if isinstance(piece, ast.Constant) and label in str(piece.value):
                    values.append(getattr(following, "value", following))
        elif isinstance(node, ast.Constant) and label in str(node.value):
            values += [node] if node not in skipped and not isinstance(tree.parents[node], ast.JoinedStr) else []
    return values


def find_clock(tree: Tree) -> Iterator[Finding]:
    """The clock is training_clock and the budget is TIME_BUDGET."""
    for name in NEEDED:
        if tree.origins.get(name) != f"{OURS}.{name}":
            yield 0, f"does not import {name} from {OURS}", name
        elif name not in tree.names:
            yield 0, f"does not use {name}", name
    for value in printed("training_seconds", tree):
        sources = assigned(value.id, tree) if isinstance(value, ast.Name) else [value]
        sources = [source for source in sources if not (isinstance(source, ast.Constant) and source.value == 0)]
        if not sources or not all(reads_clock(source, tree, set()) for source in sources):
            yield value.lineno, "training_seconds is not measured with training_clock()", ast.unparse(value)


def reads_clock(value: ast.AST, tree: Tree, seen: set[str]) -> bool:
    """Whether a value comes from training_clock(), by whatever names."""
    names = {node.id for node in ast.walk(value) if isinstance(node, ast.Name)} - seen
    return "training_clock" in names or any(
        reads_clock(source, tree, seen | names) for name in names for source in assigned(name, tree)
    )


def find_threads(tree: Tree) -> Iterator[Finding]:
    """The number of threads, whose time the clock of the cpu scale adds up."""
    for node in tree.nodes:
        if isinstance(node, ast.Call):
            name = full_name(node.func, tree)
            if name in ("torch.set_num_threads", "torch.set_num_interop_threads"):
                yield node.lineno, "changes the number of threads, whose time the clock adds up", ast.unparse(node)


CHECKS = (*(find_patches, find_data, find_metric, find_clock, find_imports, find_names, find_texts, find_threads),)


@functools.lru_cache(4)
def find_all(source: str) -> list[Finding]:
    """What there is to find in a source; the baseline's is asked for again and again."""
    tree = read_tree(source)
    return [finding for check in CHECKS for finding in check(tree)]


def audit_source(source: str, baseline: str) -> str:
    """ "" or the first thing that `source` does, the `baseline` does not do, and a training must not do."""
    try:
        findings = find_all(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"it is not Python: {error}"
    allowed = {(reason, text) for _, reason, text in find_all(baseline)}
    for line, reason, text in findings:
        if (reason, text) not in allowed:
            where = f"line {line}: " if line else ""
            return f"{where}{reason} (`{' '.join(text.split())[:80]}`)"
    return ""


# -----------------------------------------------------------------------------
# The result of a run


@dataclass(frozen=True)
class Limits:
    """How far the clocks of a run may be apart, in seconds where nothing else is said."""

    tolerance: float  # share of the budget
    slack: float  # of the training, besides one step: what happens between the last step and the evaluation
    overhead: float  # before the clock starts, beyond what the baseline needed: another import, more to compile
    optimizer_steps: int = 64  # before the clock starts: a warm-up, which is undone
    batches: int = 64  # likewise


# Compiling takes 70 s on two slow cores (benchmarks/train_bench.txt), and twice that for a model of twice the depth.
LIMITS = {"cpu": Limits(tolerance=0.03, slack=1, overhead=5), "h100": Limits(tolerance=0.02, slack=5, overhead=140)}
SQUEEZE = 0.25  # a model may be so much better than lzma, and no more: the best public one is at 0.4


def measure_expected() -> dict:
    """What the evaluator of every honest run on this machine's data will record. The scale is prepare_data's."""
    import prepare_data

    rows = prepare_data.load_rows("val")
    tokenizer = prepare_data.Tokenizer.from_directory()
    token_bytes = tokenizer.token_bytes()
    return {
        "fingerprint": prepare_data.scored_fingerprint(rows, token_bytes),
        "bytes": int(token_bytes[rows[:, 1:]].sum()),
        "tokens": rows[:, 1:].size,
        "lowest_bpb": lowest_believable(rows, tokenizer),
        "time_budget": 0 if prepare_data.STEPS else prepare_data.TIME_BUDGET,  # 0: by steps, whatever they take
        "clock": "paced" if prepare_data.SCALE == "cpu" else "wall",
        "before_clock": None,  # the baseline's, from before_clock(), once it has run
    }


def lowest_believable(rows, tokenizer, size: int = 1_000_000) -> float:
    """A val_bpb that no model of this text gets below: a part of what lzma makes of a megabyte of it."""
    row_length = rows.shape[1]
    tokens = rows[: size // row_length].flatten().tolist()
    text = b"".join(tokenizer.ranks[token] for token in tokens if token < tokenizer.bos)
    return SQUEEZE * 8 * len(lzma.compress(text)) / len(text)


def read_record(folder: Path) -> dict | None:
    """What evaluate_bpb wrote in a run's folder: the last evaluation, and how many there were. None: none or broken."""
    path = Path(folder) / RECORD
    if not path.is_file() or path.stat().st_size > 1_000_000:
        return None
    try:
        evaluations = [json.loads(line) for line in path.read_text().splitlines()]
        numbers = [float(evaluations[-1][name]) for name in ("val_bpb", "nats", "bytes", "tokens", "batches")]
        moments = [float(evaluations[-1][name][kind]) for name in MOMENTS for kind in ("cpu", "paced", "wall")]
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    return evaluations[-1] | {"evaluations": len(evaluations)} if all(map(math.isfinite, numbers + moments)) else None


MOMENTS = ("imported", "first_batch", "clock_started", "evaluated", "finished")


def elapsed(record: dict, first: str, last: str, kind: str) -> float:
    """Seconds between two moments of a run: of CPU time ("cpu"), at a fixed pace ("paced"), or by the wall ("wall")."""
    return record[last][kind] - record[first][kind]


def before_clock(record: dict, seconds: float, kind: str) -> float:
    """Seconds that a run took besides its training and its evaluation. "wall" goes by the loop's own clock."""
    return (
        record["clock_started"]["cpu"]
        if kind != "wall"
        else seconds - elapsed(record, "clock_started", "finished", kind)
    )


def check_result(summary: dict, record: dict | None, expected: dict, limits: Limits, seconds: float) -> str:
    """ "" or why the number of a run is invalid.

    `summary`: the printed lines; `record`: read_record(); `expected`: measure_expected(), with the baseline's
    before_clock; `seconds`: how long the run took by the loop's clock.
    """
    if record is None:
        return "it printed a val_bpb, but there is no record of evaluate_bpb"
    return next(wrong_numbers(summary, record, expected), "") or next(
        wrong_times(summary, record, expected, limits, seconds), ""
    )


def wrong_numbers(summary: dict, record: dict, expected: dict) -> Iterator[str]:
    """Where the printed number, the record and the data do not agree."""
    val_bpb, evaluations = record["val_bpb"], record["evaluations"]
    if evaluations != 1:
        yield f"val_bpb was measured {evaluations} times; once is allowed"
    if any(record[name] != expected[name] for name in ("fingerprint", "bytes", "tokens")):
        yield "what was scored is not the validation set"
    if not math.isclose(val_bpb, record["nats"] / record["bytes"] / math.log(2), rel_tol=1e-9):
        yield "the record of evaluate_bpb does not add up"
    if not abs(summary.get("val_bpb", math.nan) - val_bpb) < 1e-5:
        yield f"it printed val_bpb {summary.get('val_bpb')}, but evaluate_bpb measured {val_bpb:.6f}"
    if val_bpb < expected["lowest_bpb"]:
        yield f"val_bpb {val_bpb:.4f} is below {expected['lowest_bpb']:.2f}, which no model of this text can reach"
    if record["val_reads"] != evaluations:
        yield "validation rows were read outside evaluate_bpb"
    if not record["batches"]:
        yield "no training batch came from make_dataloader"


def wrong_times(summary: dict, record: dict, expected: dict, limits: Limits, seconds: float) -> Iterator[str]:
    """Where more was trained than the budget allows, by the evaluator's clocks and the loop's own."""
    start, kind, budget = record["clock_started"], expected["clock"], expected["time_budget"]
    if elapsed(record, "clock_started", "evaluated", "wall") < 0:
        yield "training_clock() was not read before the evaluation"
    training = elapsed(record, "clock_started", "evaluated", kind)
    step = min(training / max(summary.get("num_steps", 0), 1), 0.1 * budget)
    if budget and training > budget * (1 + limits.tolerance) + limits.slack + step:
        yield f"it trained for {training:.1f} s; the budget is {budget} s"
    if (
        budget
        and abs(summary.get("training_seconds", 0) - training) > training * limits.tolerance + limits.slack + step
    ):
        yield f"it printed {summary.get('training_seconds')} training_seconds, but they were {training:.1f}"
    if start["optimizer_steps"] > limits.optimizer_steps or start["batches"] > limits.batches:
        count = f"{start['optimizer_steps']} optimizer steps on {start['batches']} batches"
        yield f"training before the clock started: {count}"
    if elapsed(record, "imported", "finished", "wall") > seconds + 1:
        yield "the clocks of the run are ahead of the loop's"
    usual, needed = expected["before_clock"], before_clock(record, seconds, kind)
    if usual is not None and needed > 1.5 * usual + limits.overhead:
        yield f"{needed:.0f} s of work before the clock started; the baseline needed {usual:.0f} s"


# -----------------------------------------------------------------------------
# The evaluator and the data


def protected_files(data: Path) -> list[Path]:
    """What no run and nobody else may change while a search goes on."""
    return [Path(__file__).resolve().parent / f"{OURS}.py", *(Path(data) / name for name in DATA_FILES)]


DATA_FILES = ("meta.json", "tokenizer.json", "train.bin", "val.bin")


def measure_files(paths: list[Path]) -> dict[str, list]:
    """{path: [stamp, sha256]}: what check_integrity() compares with. Can be kept as JSON between sessions."""
    return {str(path): [stamp(path), file_hash(path)] for path in paths}


def stamp(path: Path) -> list[int]:
    """What changes whenever a file does; the ctime can't be set back."""
    if not path.is_file():
        return []
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def file_hash(path: Path) -> str:
    if not path.is_file():
        return "missing"
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_integrity(paths: list[Path], expected: dict[str, list]) -> str:
    """ "" or which files are not what they were. A file is hashed again only where its stamp differs."""
    changed = []
    for path in paths:
        now, known = stamp(path), expected[str(path)]
        if now != known[0] and file_hash(path) != known[1]:
            changed.append(path.name + (" is missing" if not now else " has changed"))
        else:
            known[0] = now
    return f"{', '.join(changed)} since this search began; restore it, or begin a new search" if changed else ""


def check_fingerprint(data: Path) -> str:
    """ "" or that the prepared files are not those that meta.json was written for. Hashes them all: once a session."""
    import prepare_data

    stored, found = prepare_data.read_meta(data)["fingerprint"], prepare_data.fingerprint(data)
    problem = f"tokenizer.json, train.bin or val.bin in {data} is not what meta.json says"
    return (
        "" if stored == found else f"{problem} (fingerprint {found}, not {stored}); delete meta.json and prepare again"
    )
