"""Measure everything that the book's page of benchmarks shows, and write the page.

    python -m benchmarks              all parts, about fifteen minutes on a quiet machine with two cores
    python -m benchmarks --only layer loss
    python -m benchmarks --page       write book/benchmarks.md anew from the results that are there

On a GPU where there is one. Results are CSV files in benchmarks/results, with the machine in machine.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks import contestants as c
from benchmarks.measure import (
    DEVICE,
    Made,
    Row,
    flops,
    held_bytes,
    interleaved,
    kept_bytes,
    machine,
    peak_bytes,
    summary,
)
from benchmarks.page import PAGE, RESULTS, render
from lora_lib import GPT2Model, PeftModel, get_peft_model
from lora_lib.training import chunked_cross_entropy

SWEEPS: dict[str, list[dict[str, int]]] = {
    "layer": [{}],
    "rank": [{"rank": r} for r in (1, 4, 16, 64, 256)],
    "tokens": [{"tokens": n} for n in (64, 256, 1024, 4096)],
    "adapters": [{"adapters": n} for n in (1, 2, 4, 8)],
}
SIZES = ((576, 576), (768, 2304), (320, 1280))  # (d, k): SmolLM2's attention, GPT-2's, gpt2-mini's MLP
ROWS = (32, 128, 512, 2048)
# glibc gives large blocks back to the system when they are freed, and gets them anew, page by page. So it does not.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}


def layer(rounds: int) -> Iterator[Row]:
    """One adapted layer, forward and backward, and how its cost grows."""
    for sweep, settings in SWEEPS.items():
        for setting in settings:
            yield from layer_rows(rounds if sweep == "layer" else max(5, rounds // 4), sweep, setting)
    yield from alone("layer_rows", rounds, "memory kept", {}, environment=KEEP_MEMORY)


def layer_rows(rounds: int, sweep: str, setting: dict[str, int]) -> list[Row]:
    """A row for every contestant at one setting."""
    sizes = {"d": 768, "k": 2304, "tokens": 1024, "rank": c.RANK, "adapters": 1, **setting}
    made = c.layers(**sizes)
    unit = 2 * sizes["tokens"] * sizes["d"] * sizes["k"]
    times = interleaved(made, rounds)
    return [
        {
            "sweep": sweep, **sizes, "who": name,
            **summary(times, name, {"of_floor": c.FLOOR, "of_peft": c.PEFT}),
            "flops_of_2Ndk": round(flops(one) / unit, 4),
            "kept_bytes": kept_bytes(one.forward, one.module, one.x),
        }
        for name, one in made.items()
    ]  # fmt: skip


def sizes(rounds: int) -> Iterator[Row]:
    """One adapted layer at every size, in processor time of one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    clock = time.perf_counter if DEVICE.type == "cuda" else time.process_time
    for d, k in SIZES:
        for rows in ROWS:
            made = c.layers(d=d, k=k, tokens=rows)
            shown = {name: made[name] for name in (c.FLOOR, c.PEFT, c.FORMULA, c.OURS)}
            repeats = max(1, round(2e9 / (4 * rows * d * k)))  # about as long for each size
            times = interleaved(shown, rounds, repeats=repeats, clock=clock)
            floor = flops(made[c.FLOOR])
            for name in shown:
                ratios = summary(times, name, {"of_floor": c.FLOOR, "of_peft": c.PEFT})
                more = round(flops(made[name]) / floor, 4)
                yield {"d": d, "k": k, "rows": rows, "who": name, **ratios, "flops_of_floor": more}
    torch.set_num_threads(threads)


def step(rounds: int) -> Iterator[Row]:
    """A whole training step of GPT-2 124M, timed side by side; its peak memory in a process of its own."""
    for dropout in (0.0, 0.1):
        steps = {name: c.step(name, dropout) for name in c.STEPS}
        times = interleaved(steps, max(3, rounds // (4 if dropout else 2)), warm_up=1)
        work = {name: flops(run) for name, run in steps.items()}
        del steps
        for name in c.STEPS:
            memory = alone("step_memory", name, dropout)
            against = {"of_floor": c.STEP_FLOOR, "of_peft": c.STEP_PEFT, "of_full": c.STEP_FULL}
            work_done = {"gflops": round(work[name] / 1e9, 1)}
            yield {"dropout": dropout, "who": name, **summary(times, name, against), **work_done, **memory}


def step_memory(name: str, dropout: float) -> Row:
    """Peak memory of three training steps: of the whole process, and beyond what its imports hold."""
    if name == c.STEP_PEFT:
        import peft  # noqa: F401
        import transformers  # noqa: F401
    before = held_bytes()
    run = c.step(name, dropout)
    for _ in range(3):
        run()
    return {"peak_bytes": peak_bytes(), "beyond_imports_bytes": peak_bytes() - before}


def compiled(rounds: int) -> Iterator[Row]:
    """The step with LoRA as it is and with its blocks compiled, in both precisions, and what compiling takes."""
    for bf16 in (False, True):
        steps = {name: c.step(name, bf16=bf16) for name in (c.STEP_OURS, c.STEP_COMPILED)}
        with tempfile.TemporaryDirectory() as empty:  # what was compiled before is not to be found
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty
            (first,) = interleaved({"": steps[c.STEP_COMPILED]}, 1, warm_up=0)[""]
            times = interleaved(steps, max(3, rounds // 2), warm_up=1)
        for name in steps:
            yield {
                "precision": "bfloat16" if bf16 else "float32", "who": name,
                **summary(times, name, {"of_plain": c.STEP_OURS}),
                "first_step_s": round(first, 1) if name == c.STEP_COMPILED else "",
            }  # fmt: skip


def loss(rounds: int) -> Iterator[Row]:
    """Peak memory of the loss alone, for longer and longer vocabularies and texts."""
    for tokens, vocabulary in ((512, 12500), (512, 25000), (512, 50257), (512, 100000), (2048, 50257), (8192, 50257)):
        for how in ("chunked", "plain"):
            yield {"tokens": tokens, "vocabulary": vocabulary, "how": how,
                   **alone("loss_memory", tokens, vocabulary, how)}  # fmt: skip


def loss_memory(tokens: int, vocabulary: int, how: str) -> Row:
    """Peak memory of the loss's forward and backward beyond the head's weight and the hidden states."""
    head = torch.nn.Linear(768, vocabulary, bias=False).to(DEVICE).requires_grad_(False)
    targets = torch.randint(vocabulary, (tokens,), device=DEVICE)
    for n in (8, tokens):  # the first, short, is there to load what the operations need
        features = torch.randn(n, 768, device=DEVICE, requires_grad=True)
        before = held_bytes()
        if how == "chunked":
            total = chunked_cross_entropy(head, features, targets[:n])
        else:
            total = F.cross_entropy(head(features), targets[:n], reduction="sum")
        total.backward()
    return {"peak_bytes": max(0, peak_bytes() - before), "logits_bytes": 4 * tokens * vocabulary}


def inference(rounds: int) -> Iterator[Row]:
    """A forward pass of GPT-2 124M: the base, with an adapter, and with the adapter merged."""
    base = GPT2Model(c.step_config()).to(DEVICE).eval()
    adapted = get_peft_model(GPT2Model(c.step_config()).to(DEVICE), "all-linear", c.RANK, c.ALPHA).eval()
    merged = (
        get_peft_model(GPT2Model(c.step_config()).to(DEVICE), "all-linear", c.RANK, c.ALPHA).merge_and_unload().eval()
    )
    ids = torch.randint(50257, (c.BATCH, c.TIME), device=DEVICE)
    models = {"base": base, "adapter": adapted, "merged": merged}
    with torch.inference_mode():
        times = interleaved({name: lambda m=model: m(ids) for name, model in models.items()}, rounds)
    for name, model in models.items():
        yield {"who": name, "modules": sum(1 for _ in model.modules()), **summary(times, name, {"of_base": "base"})}


def adapters(rounds: int) -> Iterator[Row]:
    """What sixteen adapters on one base cost: memory, switching, files."""
    model = get_peft_model(GPT2Model(c.step_config()).to(DEVICE), "all-linear", c.RANK, c.ALPHA)
    own = 4 * model.get_nb_trainable_parameters()[0]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        size = (Path(folder) / "adapter_model.safetensors").stat().st_size
        before = held_parameters(model)
        for i in range(15):
            model.load_adapter(folder, f"a{i}")
    yield {"what": "one adapter's own bytes", "value": own}
    yield {"what": "bytes of the 15 adapters loaded beside it", "value": held_parameters(model) - before}
    places = [p.data_ptr() for p in model.parameters()]
    with Made() as made:
        for i in range(15):
            model.set_adapter(f"a{i}")
    moved = sum(a != b for a, b in zip(places, [p.data_ptr() for p in model.parameters()]))
    yield {"what": "bytes that 15 switches computed or copied", "value": made.bytes}
    yield {"what": "tensors that 15 switches moved", "value": moved}
    times = interleaved({"switch": lambda: model.set_adapter("a0")}, rounds)
    yield {"what": "one switch, microseconds", "value": round(1e3 * summary(times, "switch", {})["median_ms"])}
    yield {"what": "adapter file beyond its parameters, all 48 layers", "value": size - own}
    one = get_peft_model(GPT2Model(c.step_config()), ["c_attn"], c.RANK, c.ALPHA)
    with tempfile.TemporaryDirectory() as folder:
        one.save_pretrained(folder)
        size = (Path(folder) / "adapter_model.safetensors").stat().st_size
    beyond = size - 4 * one.get_nb_trainable_parameters()[0]
    yield {"what": "adapter file beyond its parameters, c_attn's 12 layers", "value": beyond}


def held_parameters(model: PeftModel) -> int:
    """Bytes of all parameters, each block of memory once."""
    return sum({p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}.values())


def alone(function: str, *arguments: object, environment: Mapping[str, str] = {}) -> Any:
    """What a function of this module returns in a process of its own, so that its memory is nobody else's."""
    command = [sys.executable, "-m", "benchmarks", "--alone", json.dumps([function, *arguments])]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **environment})
    return json.loads(done.stdout.splitlines()[-1])


PARTS: dict[str, Callable[[int], Iterator[Row]]] = {
    "layer": layer, "sizes": sizes, "step": step, "compiled": compiled, "loss": loss, "inference": inference,
    "adapters": adapters,
}  # fmt: skip
ALONE: dict[str, Callable[..., Any]] = {run.__name__: run for run in (layer_rows, step_memory, loss_memory)}


def main() -> None:
    """Read the command line; measure; write results and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=20, help="of the single layer; a whole step gets half as many")
    parser.add_argument("--page", action="store_true", help="measure nothing")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        function, *arguments = json.loads(args.alone)
        print(json.dumps(ALONE[function](*arguments)))
        return
    for part in [] if args.page else args.only:
        where = {**machine(), "rounds": args.rounds}
        rows = []
        for row in PARTS[part](args.rounds):
            print(part, row, flush=True)
            rows.append(row)
        with (RESULTS / f"{part}.csv").open("w", newline="", encoding="utf8") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        known = RESULTS / "machine.json"
        machines = json.loads(known.read_text()) if known.exists() else {}
        known.write_text(json.dumps({**machines, part: where}, indent=2) + "\n")
    PAGE.write_text(render(RESULTS), encoding="utf8")


if __name__ == "__main__":
    main()
