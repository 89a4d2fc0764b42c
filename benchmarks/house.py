"""Measure the source tree: sizes, parameters, import cycles, and what a change touches.

    python benchmarks/house.py                  # the working tree
    python benchmarks/house.py 5c46ab5 HEAD     # two commits side by side

Every figure is counted from the syntax trees of ``src/gmail_align``. "Files that name" an example
is a proxy for the cost of one more of its kind: the files whose code (not comments or docstrings)
mentions the example. The models of the tabletop world are left out there, and so are studies, which
name what they measure.
"""

from __future__ import annotations

import argparse
import ast
import io
import statistics
import subprocess
import tarfile
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "gmail_align"
EXAMPLES = {
    "loss term distill_generated": {"distill_generated"},
    "backbone SigLIP": {"SiglipModel"},
    "importer urban1k": {"urban1k"},
    "caption metric CIDEr": {"CIDEr"},
    "captioner IFCap": {"ifcap"},
}
"""What one more would look like: an example of each kind, and the words that name it in code."""
LEFT_OUT = (f"{PACKAGE}/tabletop/", f"{PACKAGE}/studies/")
OWN_FOLDERS = {"captioner IFCap": f"{PACKAGE}/captioning/ifcap/"}
"""Folders that hold nothing but the example: their files count as one."""
LONG_FUNCTIONS = {"loop.py", "pipeline.py"}
"""Their longest function may have 120 lines."""

Sources = dict[str, str]
"""Text of every module by its path below ``src``."""


def working_tree() -> Sources:
    """Read the modules as they are on disk."""
    folder = ROOT / "src"
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*.py"))}


def commit(name: str) -> Sources:
    """Read the modules of a commit."""
    data = subprocess.run(
        ["git", "archive", name, "src"], cwd=ROOT, check=True, capture_output=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = [m for m in archive.getmembers() if m.name.endswith(".py")]
        texts = {m.name.removeprefix("src/"): archive.extractfile(m) for m in members}
        return {name: file.read().decode() for name, file in texts.items() if file is not None}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function and method."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines from the signature to the last line."""
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how many parameters a function takes, without ``self`` and ``cls``."""
    names = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    return sum(name.arg not in ("self", "cls") for name in names)


def module_name(path: str) -> str:
    """Return the dotted name of a module's path."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(tree: ast.AST, names: set[str]) -> Iterator[str]:
    """Yield the package's modules that a module imports when it loads or when it is type-checked.

    Imports inside functions run later and cannot make a circle at load time.
    """
    inside = {id(n) for f in functions(tree) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if id(node) in inside or not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                target = full if full in names else node.module
                if target in names:
                    yield target


def cycles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Return the groups of modules that reach each other (strongly connected components)."""
    reach = {name: _reachable(graph, name) for name in graph}
    groups: list[set[str]] = []
    for name in graph:
        group = {other for other in reach[name] if name in reach[other]}
        if len(group) > 1 and group not in groups:
            groups.append(group)
    return groups


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen, queue = {start}, [start]
    while queue:
        for name in graph.get(queue.pop(), set()) - seen:
            seen.add(name)
            queue.append(name)
    return seen


def words(text: str) -> set[str]:
    """Return the names and the words of string literals in code, docstrings left out."""
    tree = ast.parse(text)
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    loose = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    skipped = {
        n.lineno
        for n in ast.walk(tree)
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) in docs | loose
    }
    found: set[str] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            found.add(token.string)
        elif token.type == tokenize.STRING and token.start[0] not in skipped:
            found.update(part for part in _split(token.string))
    return found


def _split(text: str) -> Iterable[str]:
    return "".join(c if c.isalnum() or c == "_" else " " for c in text).split()


def percentile(values: list[int], share: float) -> int:
    """Return the value below which ``share`` of the sorted values lie."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def measure(sources: Sources) -> dict[str, str]:
    """Return every figure of a tree, by its name."""
    trees = {path: ast.parse(text) for path, text in sources.items()}
    lines = {path: text.count("\n") for path, text in sources.items()}
    modules = {path: n for path, n in lines.items() if not path.endswith("__init__.py")}
    all_functions = [(path, f) for path, tree in trees.items() for f in functions(tree)]
    sizes = [length(f) for _, f in all_functions]
    counts = [parameters(f) for _, f in all_functions]
    names = {module_name(path) for path in sources}
    graph = {
        module_name(path): set(imports(tree, names)) - {module_name(path)}
        for path, tree in trees.items()
    }
    rooms: dict[str, list[int]] = defaultdict(list)
    for path, n in modules.items():
        parts = path.split("/")
        rooms[parts[1] if len(parts) > 2 else "(top)"].append(n)
    tabletop = sum(n for path, n in lines.items() if path.startswith(f"{PACKAGE}/tabletop/"))
    too_long = sum(
        length(f) > (120 if Path(path).name in LONG_FUNCTIONS else 60) for path, f in all_functions
    )
    figures = {
        "modules": f"{len(modules)}",
        "classes": str(
            sum(isinstance(n, ast.ClassDef) for tree in trees.values() for n in ast.walk(tree))
        ),
        "command files": str(len(rooms["cli"])),
        "lines": f"{sum(lines.values())}",
        "lines without tabletop": f"{sum(lines.values()) - tabletop}",
        "file median / p90 / max": f"{statistics.median(modules.values()):.0f} / "
        f"{percentile(list(modules.values()), 0.9)} / {max(modules.values())}",
        "function median / p90 / max": f"{statistics.median(sizes):.0f} / "
        f"{percentile(sizes, 0.9)} / {max(sizes)}",
        "parameters p95 / max": f"{percentile(counts, 0.95)} / {max(counts)}",
        "files over 400 lines": str(sum(n > 400 for n in lines.values())),
        "functions over their budget": str(too_long),
        "functions with more than 8 parameters": str(sum(n > 8 for n in counts)),
        "import cycles, type checking included": str(len(cycles(graph))),
        "comments": str(sum(_comments(text) for text in sources.values())),
    }
    vocabulary = vocabulary_of(sources)
    for label in EXAMPLES:
        figures[f"files that name: {label}"] = str(len(naming(label, vocabulary)))
    for room, sizes_of_room in sorted(rooms.items()):
        figures[f"{room}: modules / lines"] = f"{len(sizes_of_room)} / {sum(sizes_of_room)}"
    return figures


def vocabulary_of(sources: Sources) -> dict[str, set[str]]:
    """Return the words of every file in which an example counts."""
    return {p: words(text) for p, text in sources.items() if not p.startswith(LEFT_OUT)}


def naming(label: str, vocabulary: dict[str, set[str]]) -> list[str]:
    """Return the files that name an example; the files of a folder of its own count as one."""
    own = OWN_FOLDERS.get(label, "/")
    files = [path for path, known in vocabulary.items() if known & EXAMPLES[label]]
    return list(dict.fromkeys(own if path.startswith(own) else path for path in files))


def over_budget(sources: Sources) -> list[str]:
    """Name every file, function and import circle that is over a budget."""
    names = {module_name(path) for path in sources}
    trees = {path: ast.parse(text) for path, text in sources.items()}
    graph = {module_name(p): set(imports(t, names)) - {module_name(p)} for p, t in trees.items()}
    rows = [f"{p}: {n} lines" for p, text in sources.items() if (n := text.count("\n")) > 400]
    for path, tree in trees.items():
        limit = 120 if Path(path).name in LONG_FUNCTIONS else 60
        for one in functions(tree):
            if length(one) > limit:
                rows.append(f"{path}:{one.lineno} {one.name}: {length(one)} lines")
            if parameters(one) > 8:
                rows.append(f"{path}:{one.lineno} {one.name}: {parameters(one)} parameters")
    return rows + [f"circle: {', '.join(sorted(group))}" for group in cycles(graph)]


def _comments(text: str) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(token.type == tokenize.COMMENT for token in tokens)


def main() -> None:
    """Print the figures of the working tree, or of commits side by side."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("commits", nargs="*", help="commits to measure; the working tree if none")
    parser.add_argument("--files", action="store_true", help="name the files behind each example")
    parser.add_argument("--over", action="store_true", help="name what is over a budget")
    options = parser.parse_args()
    trees = {name: commit(name) for name in options.commits} or {"now": working_tree()}
    figures = {name: measure(sources) for name, sources in trees.items()}
    rows = list(dict.fromkeys(row for own in figures.values() for row in own))
    print("| | " + " | ".join(figures) + " |")
    print("| --- |" + " --- |" * len(figures))
    for row in rows:
        print(f"| {row} | " + " | ".join(own.get(row, "") for own in figures.values()) + " |")
    if options.files:
        _print_files(trees)
    if options.over:
        for sources in trees.values():
            print("\n".join(over_budget(sources)))


def _print_files(trees: dict[str, Sources]) -> None:
    for name, sources in trees.items():
        vocabulary = vocabulary_of(sources)
        for label in EXAMPLES:
            print(f"\n{name}, {label}:")
            print("\n".join(f"  {path}" for path in naming(label, vocabulary)))


if __name__ == "__main__":
    main()
