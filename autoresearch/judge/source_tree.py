"""
A train.py as a syntax tree in which names can be followed to where they come from. Used by static_check.py.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from autoresearch.source import parse


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
    nodes = list(ast.walk(parse(source)))
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


def line_of(node: ast.AST) -> int:
    """Where a node stands; 0 for the few kinds that have no place."""
    return getattr(node, "lineno", 0)


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
        if parent is None or not inner or getattr(parent, inner) is not node:
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


def assigned(name: str, tree: Tree) -> list[ast.AST]:
    """All values that a name is plainly assigned; the whole statement where it is unpacked, added to, or a loop's."""
    values: list[ast.AST] = []
    for node in tree.names.get(name, []):
        if not isinstance(node.ctx, ast.Load):
            parent = tree.parents[node]
            plain = parent.value if isinstance(parent, ast.Assign | ast.AnnAssign | ast.NamedExpr) else None
            values.append(plain or parent)
    return values


def calls_of(name: str, tree: Tree) -> list[ast.Call]:
    parents = [(tree.parents[node], node) for node in tree.names.get(name, [])]
    return [parent for parent, node in parents if isinstance(parent, ast.Call) and parent.func is node]


def holders(node: ast.AST, tree: Tree) -> Iterator[ast.AST]:
    """Everything that a node stands in."""
    holder = tree.parents.get(node)
    while holder:
        yield holder
        holder = tree.parents.get(holder)


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
