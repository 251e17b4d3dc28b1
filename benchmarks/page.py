from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "book" / "benchmarks.md"


def render(results):
    return "x"
