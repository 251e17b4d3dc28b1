"""Break the library's core on purpose, a little at a time, and count what the tests notice: `make mutants`.

A mutant is one file with one small change: a comparison turned, a constant moved, a condition negated, an argument
dropped, a statement removed. The tests of that module run against it, and if they pass, all tests of the library do.
A mutant that passes those too has survived, and is printed. A survivor that changes nothing a caller could see is
listed in survivors.json with the reason; any other makes the run fail. The seed decides which mutants are drawn.
Nothing is written to the tree: each mutant runs in a copy.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parent.parent
SURVIVORS = Path(__file__).with_name("survivors.json")  # {module: {the changed line: why no test can notice it}}
# module -> the test files that should notice
CORE = {
    "lora_linear": "test_lora_linear test_nothing_skipped test_adapter_algebra test_adapter_kinds test_variants",
    "layers/adapted": "test_peft_wrapper test_robustness test_no_silence test_other_models test_lora_linear "
    "test_nothing_skipped test_adapter_algebra test_variants",
    "layers/fused": "test_lora_linear test_nothing_skipped",
    "layers/hooks": "test_nothing_skipped test_losses",
    "layers/modules_to_save": "test_other_models test_no_silence",
    "adapters/variants": "test_variants test_adapter_kinds",
    "peft_wrapper": "test_peft_wrapper test_robustness test_variants test_other_models test_wrong_input "
    "test_adapter_algebra test_adapter_kinds test_peft_both_ways test_no_silence",
    "adapters/combine": "test_peft_wrapper test_variants test_other_models",
    "adapters/load": "test_no_silence test_saved_earlier test_adapter_files test_other_models test_wrong_input "
    "test_robustness test_adapter_kinds test_peft_both_ways",
    "adapters/save": "test_no_silence test_saved_earlier test_peft_wrapper test_other_models test_peft_both_ways",
    "adapters/names": "test_other_models test_peft_wrapper test_robustness test_peft_both_ways",
    "adapters/config": "test_adapter_files test_wrong_input test_peft_both_ways test_adapter_kinds test_variants "
    "test_no_silence",
    "adapters/plan": "test_peft_wrapper test_robustness test_other_models test_wrong_input test_peft_both_ways",
    "settings": "test_settings test_wrong_input",
    "tensor_files": "test_adapter_files test_robustness test_checkpoints",
    "training/loop": "test_training test_checkpoints test_command_line test_wrong_input",
    "training/config": "test_training test_command_line",
    "training/losses": "test_losses test_training",
    "gpt2/loss": "test_losses",
    "gpt2/pretrained": "test_pretrained test_gpt2",
    "training/checkpoints": "test_checkpoints",
    "data/examples": "test_files test_wrong_input",
    "data/readers": "test_files test_wrong_input",
    "data/chats": "test_chats test_files",
    "data/scores": "test_scores",
}
# All tests of the library, but for those of its size and its packaging, which would not notice a fault in its core.
ALL = {
    f"tests/lora_lib/{path.name}"
    for path in (ROOT / "tests" / "lora_lib").glob("test_*.py")
    if path.name not in ("test_package.py", "test_house.py", "test_mutants.py")
}
os.environ["OMP_NUM_THREADS"] = "1"  # read when PyTorch is imported, below
os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"  # of a test that was stopped on its way
# Imported once: a mutant's process is a copy of one that has them. Windows cannot copy processes, and macOS not safely.
_CONTEXT = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
if sys.platform == "linux":
    _CONTEXT.set_forkserver_preload(["torch._dynamo", "transformers", "hypothesis", "playwright.sync_api"])
OTHER_COMPARISON = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
OTHER_OPERATION = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """What may replace a node."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in OTHER_COMPARISON:
        yield ast.Compare(node.left, [OTHER_COMPARISON[type(node.ops[0])](), *node.ops[1:]], node.comparators)
    if isinstance(node, ast.BinOp) and type(node.op) in OTHER_OPERATION:
        yield ast.BinOp(node.left, OTHER_OPERATION[type(node.op)](), node.right)
    if isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values)
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        yield ast.Constant(not node.value if isinstance(node.value, bool) else node.value + 1)
    if isinstance(node, (ast.If, ast.IfExp)):
        turned = copy.copy(node)
        turned.test = ast.UnaryOp(ast.Not(), node.test)
        yield turned
    if isinstance(node, ast.Call) and node.keywords:
        yield ast.Call(node.func, node.args, node.keywords[:-1])
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()


def places(source: str) -> list[tuple[int, int]]:
    """Every change there is to make: the number of a node in `ast.walk`, and which of its `changes`."""
    nodes = ast.walk(ast.parse(source))
    return [(at, i) for at, node in enumerate(nodes) for i, _ in enumerate(changes(node))]


def mutant(source: str, at: int, i: int) -> tuple[int, str]:
    """Make one of them: the line that differs, and the module's text."""
    tree = ast.parse(source)
    node = list(ast.walk(tree))[at]
    new = list(changes(node))[i]
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            if value is node:
                setattr(parent, field, new)
            elif isinstance(value, list) and any(child is node for child in value):
                setattr(parent, field, [new if child is node else child for child in value])
    return getattr(node, "lineno", 0), ast.unparse(ast.fix_missing_locations(tree))


def survives(module: str, text: str, others: bool = True) -> bool:
    """Whether the module's tests, and (`others`) then all tests of the library, pass although its text is this."""
    own = [f"tests/lora_lib/{name}.py" for name in CORE[module].split()]
    return passes(module, text, own) and not (others and not passes(module, text, sorted(ALL - set(own))))


def passes(module: str, text: str, tests: list[str]) -> bool:
    """Whether these tests pass although the module's text is this."""
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder)
        shutil.copytree(ROOT / "lora_lib", copied / "lora_lib", ignore=shutil.ignore_patterns("__pycache__"))
        for name in (
            "tests",
            "tools",
            "experiments",
            "book",
            "notebooks",
            "lora_book",
            "lab",
            "examples",
            "benchmarks",
        ):
            (copied / name).symlink_to(ROOT / name)
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, copied)
        (copied / "lora_lib" / f"{module}.py").write_text(text, encoding="utf8")
        run = _CONTEXT.Process(target=_run, args=(folder, tests))
        run.start()
        run.join(1800)
        if run.exitcode is None:  # an infinite loop counts as noticed, too
            run.kill()
            run.join()
        return run.exitcode == 0


def _run(folder: str, tests: list[str]) -> NoReturn:
    """In a new process, run pytest on these tests with the `lora_lib` of this folder, without output."""
    os.chdir(folder)
    sys.path.insert(0, folder)
    os.environ["PYTHONPATH"] = folder  # for the processes that tests start
    sys.dont_write_bytecode = True
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nothing, stream)
    sys.exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))


def main() -> None:
    """Draw mutants of each module, and print those that survive and the share that does not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", default=list(CORE), help=f"of {', '.join(CORE)}")
    parser.add_argument("--count", type=int, default=20, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--own", action="store_true", help="run only the tests that belong to the modules")
    args = parser.parse_args()
    known, unexplained = json.loads(SURVIVORS.read_text(encoding="utf8")), 0
    sources = {name: (ROOT / "lora_lib" / f"{name}.py").read_text(encoding="utf8") for name in args.modules}
    own = sorted({f"tests/lora_lib/{name}.py" for module in sources for name in CORE[module].split()})
    if not passes(*next(iter(sources.items())), own if args.own else sorted(ALL)):  # else every mutant is noticed
        sys.exit("the tests of the library fail without any mutant")
    for module, source in sources.items():
        found = places(source)
        chosen = random.Random(f"{args.seed} {module}").sample(found, min(args.count, len(found)))
        drawn = [mutant(source, *place) for place in chosen]
        plain = ast.unparse(ast.parse(source)).splitlines()
        with ThreadPoolExecutor(2) as pool:
            alive = list(pool.map(lambda text, name=module: survives(name, text, not args.own), [t for _, t in drawn]))
        for (line, text), survived in zip(drawn, alive):
            if survived:
                new = next((b for a, b in zip(plain, text.splitlines()) if a != b), "")
                reason = known.get(module, {}).get(new.strip())
                unexplained += reason is None
                print(f"  {module}, line {line}: survived as {new.strip()} ({reason or 'unexplained'})")
        caught = len(drawn) - sum(alive)
        print(f"{module}: {caught} of {len(drawn)} noticed ({caught / len(drawn):.0%})", flush=True)
    if unexplained:
        sys.exit(f"{unexplained} survived: write the test that notices each, or its reason into {SURVIVORS.name}")


if __name__ == "__main__":
    main()
