"""
The researcher at work, as one transcript: 40 experiments of the real loop with a scripted model behind the real API.

    python benchmarks/scripted_researcher.py | tee benchmarks/scripted_researcher.txt     # some minutes; no GPU, no key

agent_loop.py runs as it always does, in a fresh git repository, with the anthropic SDK; only ANTHROPIC_BASE_URL names a
server of ours (tests/propose/messages_server.py). The model behind it is a script that knows nothing but what it is
sent: it reads history, notebook, hint and traceback out of the prompt and acts on them. At fixed proposals it also does
what models do wrong (half of an idea, a slip, a repair that ends in words), and the server what servers do. train.py is
a stub that prints a number with some noise, as it is the talk that is shown here, not the training. Nothing is proposed
ahead (look_ahead: 0), so that the story is in order.

    loop  | what agent_loop.py printed
    sent  | what a request held;  tokens by what they cost: new + written to the cache + read from it
    model | what the scripted model answered;  <- what the tools answered

A second session meets a spend limit of the account, and ends with the line that says so; a third, with a cap of its own
in program.md, ends by that. Then come the figures, out of the ledger, the journal and the server.
"""

import ast
import itertools
import json
import platform
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "propose"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import conftest  # noqa: F401 (a data folder of this run's own, at the cpu scale)
from loop_helpers import LEAVE_RECORD, ROOT, git, make_repository, rows_of, start_loop
from messages_rules import shares
from messages_server import (
    Failure,
    Reply,
    Server,
    editor,
    note,
    refuse,
    replace,
    say,
    start_server,
    submit,
    thinking,
    tool,
)

from autoresearch.propose.prices import PRICES

EXPERIMENTS = 40
SETTINGS = {
    "look_ahead: null": "look_ahead: 0",
    "plateau: 12": "plateau: 6",
    "suspicious_gain: 0.03": "suspicious_gain: 1",
}

TRAIN = (
    """
import json, math, os, random

LEARNING_RATE = 0.02
DEPTH = 2
WARMDOWN = 0.3
MOMENTUM = 0.9
GATED = False
CHECKING = "AUTORESEARCH_STEPS" in os.environ

val_bpb = 2 + 0.03 * abs(math.log2(LEARNING_RATE / 0.06)) + 0.02 * abs(DEPTH - 4) + 0.1 * abs(WARMDOWN - 0.7)
val_bpb += 0.2 * abs(MOMENTUM - 0.93) - 0.04 * GATED
val_bpb += random.Random(f"{os.environ['AUTORESEARCH_SEED']} {val_bpb}").gauss(0, 0.004)
for step in range(1, 13):
    print(f"\\rstep {step} | {step / 0.12:.1f} % | loss {val_bpb + 2 / step:.4f} | 1 s left", end="")
print(f"\\n---\\nval_bpb:          {val_bpb:.6f}")
print("training_seconds: 20.0\\npeak_vram_mb:     512.0\\nmfu_percent:      30.00")
print("total_tokens_M:   0.2\\nnum_steps:        12")
"""
    + LEAVE_RECORD
)

# -----------------------------------------------------------------------------
# What the scripted model reads

STEPS = {  # what it tries on each constant, in this order
    "LEARNING_RATE": (2, 1.5, 0.7),
    "DEPTH": (1, 2, -1),
    "WARMDOWN": (0.2, 0.1, -0.1),
    "MOMENTUM": (0.02, -0.02, 0.04),
}


class Prompt:
    """The first message of a conversation, taken apart."""

    def __init__(self, body: dict):
        texts = [block["text"] for block in body["messages"][0]["content"] if block["type"] == "text"]
        self.blocks, text = len(texts), "\n".join(texts)
        self.source = text.partition("```python\n")[2].partition("\n```")[0]
        self.best = int(re.search(r"The best train.py so far: experiment (\d+)", text)[1])
        self.history = re.findall(r"^(\d+)(?: on (\d+))? \| (\w+) \| (.*)$", text, re.MULTILINE)
        self.failed = re.findall(r"^- \| no proposal \| «(.*)»$", text, re.MULTILINE)
        self.notebook = re.search(r"# Your notebook\n(.*?)\n\n#", text, re.DOTALL)[1]
        self.plateau = "# A plateau" in text
        self.trainings = len(re.findall(r"^Experiment \d+: .*num_steps", text, re.MULTILINE))

    @property
    def constants(self) -> dict:
        found = re.findall(r"^([A-Z_]+) = ([\d.]+|True|False)$", self.source, re.M)
        return {name: ast.literal_eval(value) for name, value in found}

    @property
    def tried(self) -> list[str]:
        """The lines of what was tried on this very best."""
        return [rest for _, parent, _, rest in self.history if parent == str(self.best)]


def change(name: str, before, step) -> tuple[str, str]:
    """(the line as it is, the line as it is to be) of a constant."""
    after = round(before * step, 4) if name == "LEARNING_RATE" else round(before + step, 4)
    return f"{name} = {before}", f"{name} = {after}"


def ideas(prompt: Prompt):
    """What it would try on this best, best ideas first: (category, [edits], description)."""
    singles = []
    for turn, name in itertools.product(range(3), STEPS):
        singles.append((name, change(name, prompt.constants[name], STEPS[name][turn])))
    described = [("hyperparameter", [edit], f"{edit[0]} -> {edit[1].split()[-1]}") for _, edit in singles]
    if prompt.plateau:  # it does as it is told: structure, and two changes together
        if not prompt.constants["GATED"]:
            yield "architecture", [("GATED = False", "GATED = True")], "a gate on the values: GATED = False -> True"
        for (one, first), (other, second) in itertools.combinations(singles, 2):
            if one != other:
                yield "optimizer", [first, second], f"{first[1]} and {second[1]} together"
    yield from described
    for count in itertools.count(1):
        edit = change("MOMENTUM", prompt.constants["MOMENTUM"], 0.003 * count)
        yield "hyperparameter", [edit], f"{edit[0]} -> {edit[1].split()[-1]}"


def next_idea(prompt: Prompt):
    return next(idea for idea in ideas(prompt) if not any(idea[2] in line for line in prompt.tried))


def lessons(prompt: Prompt) -> str:
    """Its notebook: of each constant, what the history says was kept and how often it was tried."""
    tries = Counter(name for _, _, _, rest in prompt.history for name in STEPS if name in rest)
    kept = [(number, rest.split(" | ")) for number, _, status, rest in prompt.history if status == "keep"]
    kept = [f"#{number} {cells[3]}" for number, cells in kept if len(cells) > 3]
    lines = [f"After {len(prompt.history)} experiments. Tries: {dict(tries)}.", f"Kept: {'; '.join(kept)}."]
    crashes = [number for number, _, status, _ in prompt.history if status != "keep" and status != "discard"]
    return "\n".join(lines + ([f"Crashed: {', '.join(crashes)}: mind the spelling."] if crashes else []))


def begins(body: dict, before: dict) -> bool:
    """Whether a request begins a conversation: it is not the one before sent again, with or without a word on that."""
    told = body["messages"][0]["content"][-1]["text"].startswith("Your last answer")
    return len(body["messages"]) == 1 and body != before and not told


# -----------------------------------------------------------------------------
# The scripted model


class Model:
    """Answers every request; `proposal` counts the conversations that it was asked for."""

    def __init__(self):
        self.proposal, self.faults, self.before = 0, Counter(), {}
        self.is_new = False  # whether the present request begins a conversation
        self.slip = ""  # what is being repaired
        self.spent_out = False  # the account's spend limit is reached

    def __call__(self, body: dict) -> Reply | Failure:
        if self.spent_out:
            return Failure(429, "rate_limit_error", "Your spend limit is reached", code="enforced_spend_limit_reached")
        last = body["messages"][-1]["content"][-1].get("text", "")
        self.is_new, self.before = begins(body, self.before), body
        if "crashed (repair" in last:
            return self.repair(last)
        if self.slip:  # the repair goes on
            return self.end_repair(body)
        self.proposal += self.is_new
        return self.fault() or self.answer(Prompt(body), body)

    def fault(self) -> Reply | Failure | None:
        """What goes wrong at certain proposals, once each (an overload twice)."""
        faults = {
            9: [Failure(529, "overloaded_error", "Overloaded")] * 2,
            13: [Failure(429, "rate_limit_error", "too many tokens a minute", {"retry-after": "1"})],
            17: [say("I think", fault="reset")],
            21: [say("I think", fault="error event")],
            25: [refuse("frontier_llm", "This could assist the development of competing AI models.")],
            29: [say(editor("str_replace") | {"input": '{"command": "str_replace", "old_str": oops'})],
            33: [say(editor("view"), stop_reason="max_tokens")],
        }
        done = self.faults[self.proposal]
        planned = faults.get(self.proposal, [])
        if done == len(planned):
            return None
        self.faults[self.proposal] += 1
        return planned[done]

    def answer(self, prompt: Prompt, body: dict) -> Reply:
        """One turn of an ordinary conversation."""
        category, edits, description = next_idea(prompt)
        answers = [block for message in body["messages"] for block in message["content"]]
        results = [block for block in answers if block["type"] == "tool_result"]
        calls = [replace(*edit) for edit in edits]
        last = submit(
            description,
            hypothesis=f"tried on #{prompt.best}, where {len(prompt.tried)} other changes were tried",
            expected_gain=0.01,
            category=category,
        )
        if self.proposal % 4 == 0 and not results:
            calls.append(note(lessons(prompt)))
        if self.proposal % 10 == 5 and not results and len(prompt.history) > 3:  # it looks before it edits
            number = int(prompt.history[-1][0])
            return say(
                "Let me look at the last one.",
                *(tool("read_experiment", number=number, what=what) for what in ("diff", "log")),
            )
        if self.proposal % 12 == 3 and not results:  # an edit that matches nothing, and submit in the same answer
            return say(replace(edits[0][0] + "  # as I remember it", edits[0][1]), last)
        if self.proposal % 12 == 7 and not results:  # what the static check refuses
            return say(*calls, replace("import json", "import socket, json"), last)
        if results and "socket" in json.dumps(results[-1]):
            return say(replace("import socket, json", "import json"), last)
        if self.proposal % 14 == 6 and not results:  # a slip that the check does not see
            return say(*calls, replace("val_bpb = 2 +", "val_bpb = (2 if CHECKING else two) +"), last)
        if self.proposal % 14 == 10 and not results:  # one that it sees
            return say(*calls, replace("val_bpb = 2 +", "val_bpb = tow +"), last)
        if results and "'tow' is not defined" in json.dumps(results[-1]):
            return say(replace("val_bpb = tow +", "val_bpb = 2 +"), last)
        if self.proposal % 3 == 0:  # edit, look at the answer, then submit
            wrong = any(result.get("is_error") for result in results)
            edit = say(thinking(f"Of three candidates, {description} looks best."), *calls)
            return edit if not results or (wrong and len(results) < 3) else say(last)
        return say(thinking(f"Next is {description}."), *calls, last)

    def repair(self, told: str) -> Reply:
        """It reads the traceback for the name that is not defined, mends it, and at first forgets to submit."""
        name = re.search(r"name '(\w+)' is not defined", told)[1]
        self.slip = f"(2 if CHECKING else {name})"
        return say(thinking(f"The name {name} does not exist."), replace(self.slip, "2"))

    def end_repair(self, body: dict) -> Reply:
        """First words, which are answered; then it submits."""
        if "Nothing is submitted yet" not in json.dumps(body["messages"][-1]):
            return say("I mended the slip; submitting it next.")
        self.slip = ""
        return say(submit("mended"))


# -----------------------------------------------------------------------------
# The transcript


def show(mark: str, text: str) -> None:
    for line in text.rstrip().splitlines():
        print(f"{mark:5} | {line.rstrip()}"[:200], flush=True)


def describe_call(block: dict) -> str:
    if block["type"] != "tool_use":
        return (block.get("thinking") and f"[thinks: {block['thinking']}]") or block["text"]
    arguments = block["input"] if isinstance(block["input"], dict) else {"input": block["input"]}
    values = {name: value for name, value in arguments.items() if name not in ("path", "command", "hypothesis")}
    named = block["name"].replace("editor", arguments.get("command", "edit"))
    return f"{named}({', '.join(f'{name}={textwrap.shorten(str(value), 60)!r}' for name, value in values.items())})"


def narrate(model: Model, body: dict, reply: Reply | Failure, bill: dict) -> None:
    """One request and its answer."""
    messages = body["messages"]
    if model.is_new:
        narrate_prompt(Prompt(body), model.proposal)
    for block in messages[-1]["content"]:
        if block["type"] == "tool_result":
            show("", f"  <- {textwrap.shorten(block['content'], 150)}")
        elif len(messages) > 1 or block["text"].startswith("Your last answer"):
            show("sent", textwrap.shorten(block["text"], 170))
    if isinstance(reply, Failure):
        return show("model", f"[HTTP {reply.status} {reply.type} {reply.headers or ''}]")
    new, written, read = (bill[f"{kind}input_tokens"] for kind in ("", "cache_creation_", "cache_read_"))
    show("sent", f"{new} + {written} + {read} tokens, {read / (new + written + read):.0%} from the cache")
    if reply.stop_reason not in ("tool_use", "end_turn") or reply.fault:
        show("model", f"[{reply.fault or reply.stop_reason} {reply.stop_details or ''}]")
    for block in reply.blocks:
        show("model", describe_call(block))


def narrate_prompt(prompt: Prompt, number: int) -> None:
    """What a conversation begins with."""
    hint = "; THE PLATEAU HINT" if prompt.plateau else ""
    history = f"experiments {len(prompt.history)}, failed proposals {len(prompt.failed)}, trainings {prompt.trainings}"
    print()
    show("sent", f"conversation {number}: {history}; best #{prompt.best}, tried on it {len(prompt.tried)}{hint}")
    show("sent", f"notebook: {textwrap.shorten(prompt.notebook, 160)}")


def run(repo: Path, experiments: int, server: Server) -> int:
    """One session of the loop, with what it prints among what it sends."""
    command = ["--proposer", "anthropic", "--experiments", str(experiments)]
    show("loop", f"$ python agent_loop.py --tag t {' '.join(command)}")
    process = start_loop(repo, *command, env={"ANTHROPIC_BASE_URL": server.url, "ANTHROPIC_API_KEY": "good-key"})
    for line in process.stdout:
        show("loop", line)
    show("error", process.stderr.read())
    return process.wait()


def set_program(repo: Path, changes: dict[str, str]) -> None:
    text = (repo / "program.md").read_text()
    for before, after in changes.items():
        assert before in text, f"program.md has no line {before!r}"
        text = text.replace(before, after)
    (repo / "program.md").write_text(text)
    git(repo, "commit", "-qm", "settings", "program.md")


# -----------------------------------------------------------------------------
# The figures


def print_figures(repo: Path, server: Server) -> None:
    rows, journal = rows_of(repo), read_journal(repo / "runs/t/journal.jsonl")
    print("\n# The ledger: number, on which best, status, gain in units of the noise, repairs, cost, description\n")
    numbers = {row.commit: row.number for row in rows}
    for row in rows:
        parent = numbers.get(row.parent, "")
        gain = f"{row.gain / row.noise:+5.1f}" if row.gain == row.gain else "     "
        print(
            f"{row.number:3d} on {parent:>2}  {row.status:8} {gain}  {row.repairs}  ${row.cost:.4f}  ",
            end="",
        )
        print(f"{row.category:14} {row.description}")
    print("\n# Proposals that failed, as the journal has them\n")
    for event in journal:
        if event["event"] == "failed":
            print(f"after {event['after']} rows, ${event['cost']:.4f}: {event['reason']}")
    print("\n# The notebook, as it was left in runs/t/notebook.md\n")
    print((repo / "runs/t/notebook.md").read_text())
    print_cache(server)
    print_spend(repo, server)


def print_cache(server: Server) -> None:
    """Shares of the input that the request before had sent too, and that the (simulated) cache served."""
    billed = [request["body"] for request in server.requests if isinstance(request["reply"], Reply)]
    first_ones = [index for index, body in enumerate(billed) if begins(body, billed[index - 1] if index else {})]
    print("\n# The prompt cache: share of the input in a prefix that the request before had sent; share read\n")
    for start in range(0, len(first_ones), 10):
        ten = first_ones[start : start + 10]
        end = (first_ones[start + 10 :] or [len(billed)])[0]
        everything, openings = shares(server.bills[ten[0] : end]), shares([server.bills[index] for index in ten])
        print(f"conversations {start + 1:2d} to {start + len(ten):2d}: all requests ", end="")
        print(f"{everything[0]:.1%}, {everything[1]:.1%}; first requests alone {openings[0]:.1%}, {openings[1]:.1%}")
    print("train.py is small here; for the real one: pytest -n 0 -s tests/propose/test_prompt.py -k ten_proposals")


def total_spent(repo: Path) -> float:
    """US dollars by the ledger: of the experiments, and of proposals that failed."""
    failed = [event for event in read_journal(repo / "runs/t/journal.jsonl") if event["event"] == "failed"]
    return sum(row.cost for row in rows_of(repo)) + sum(event["cost"] for event in failed)


def print_spend(repo: Path, server: Server) -> None:
    """What the ledger says was spent, and what the server billed."""
    prices = PRICES["claude-opus-5-5"]
    kinds = {
        "new": ("input_tokens", prices.input),
        "written for an hour": ("ephemeral_1h_input_tokens", prices.cache_write),
        "written for five minutes": ("ephemeral_5m_input_tokens", prices.cache_write_5m),
        "read from the cache": ("cache_read_input_tokens", prices.cache_read),
    }
    bills = [bill | bill["cache_creation"] for bill in server.bills]
    tokens = {kind: sum(bill[name] for bill in bills) for kind, (name, _) in kinds.items()}
    exchanges = [json.loads(path.read_text()) for path in (repo / "runs/t").rglob("exchange.json")]
    turns = [turn["usage"] for exchange in exchanges for turn in exchange["turns"]]
    print("\n# Spend\n")
    print(f"the ledger (rows and failed proposals): ${total_spent(repo):.4f}")
    print(f"the exchanges (runs/t/**/exchange.json): ${sum(turn['cost'] for turn in turns):.4f}")
    print(f"the server's input tokens: {tokens}; recorded output tokens: {sum(turn['output'] for turn in turns)}")
    paid = sum(price * tokens[kind] for kind, (_, price) in kinds.items()) / 1e6
    print(f"input: ${paid:.4f}; without a cache it would have been ${prices.input * sum(tokens.values()) / 1e6:.4f}")
    print(f"requests that the API would have refused as invalid: {len(server.problems)}")


def read_journal(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def prepare() -> None:
    """The data that the loop wants to see, though the stub does not read them."""
    subprocess.run([sys.executable, ROOT / "prepare_data.py"], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    print(f"{time.strftime('%Y-%m-%d')} | Python {platform.python_version()} | anthropic {version('anthropic')}\n")
    prepare()
    model = Model()
    server = start_server(model, lambda *values: narrate(model, *values))
    with tempfile.TemporaryDirectory() as folder:
        repo = make_repository(Path(folder) / "repo", TRAIN, serial=False)
        set_program(repo, SETTINGS)
        run(repo, EXPERIMENTS, server)
        spent = total_spent(repo)
        print("\n# A second session: the account's spend limit is reached\n")
        model.spent_out = True
        run(repo, EXPERIMENTS + 20, server)
        model.spent_out = False
        print("\n# A third session, with a spend cap a little above what is spent\n")
        set_program(repo, {"max_cost: null": f"max_cost: {1.08 * spent:.2f}"})
        run(repo, EXPERIMENTS + 20, server)
        print_figures(repo, server)
    server.stop()


if __name__ == "__main__":
    main()
