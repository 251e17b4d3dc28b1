"""2,000 adapter folders, each spoiled in its own way: it opens with equal tensors, or AdapterError is raised."""

import json
import random
import shutil
import struct
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from small_models import scatter, stir

from lora_lib import AdapterError, GPT2Config, GPT2Model, LoRALinear, PeftModel, get_peft_model
from lora_lib.adapters import CONFIG_FILE, WEIGHTS_FILE

IDS = torch.arange(5)[None]
JUNK = [
    None, True, False, 0, -1, 1, 3, 10**9, 10**400, 2.5, -0.0, 1e308, float("nan"), float("inf"), "", "x", "all-linear",
    "(", ".*", "default", [], [[]], [None], ["c_attn"], ["c_fc"], ["out_head"], [3], {}, {"c_attn": 2}, {"(": 1},
    {"c_attn": -1}, {"c_attn": "x"}, {"": 0}, "\ud800", "../../x", "A" * 9999, [["c_attn"] * 3] * 3,
    "(" * 9999 + ")" * 9999, "a{99999999999999999999}",
]  # fmt: skip


def base() -> GPT2Model:
    config = GPT2Config(vocab_size=13, n_positions=8, n_embd=8, n_head=2, n_layer=1, embd_pdrop=0)
    return scatter(GPT2Model(config))


# --- bytes ----------------------------------------------------------------------------------------


def flip_bits(rng, data):
    for _ in range(rng.choice([1, 1, 1, 2, 8, 64])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def flip_in_the_beginning(rng, data):  # where a safetensors file has its header
    data[rng.randrange(min(len(data), 700))] = rng.randrange(256)
    return data


def truncate(rng, data):
    return data[: rng.randrange(len(data))]


def append(rng, data):
    return data + rng.randbytes(rng.choice([1, 8, 1000]))


def insert(rng, data):
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at:]


def repeat_a_part(rng, data):
    a, b = sorted(rng.randrange(len(data)) for _ in range(2))
    return data[:b] + data[a:]


def blank_a_part(rng, data):
    a, b = sorted(rng.randrange(len(data)) for _ in range(2))
    return data[:a] + bytes(b - a) + data[b:]


def make_noise(rng, data):
    return rng.randbytes(rng.choice([0, 1, 7, 8, 9, 500]))


def lie_about_the_length(rng, data):
    return struct.pack("<Q", rng.choice([0, 1, 2**31, 2**63, 2**64 - 1, rng.randrange(5000)])) + data[8:]


BYTES = [
    flip_bits, flip_in_the_beginning, truncate, append, insert, repeat_a_part, blank_a_part, make_noise,
    lie_about_the_length,
]  # fmt: skip


def spoil_bytes(rng, folder):
    path = folder / rng.choice([WEIGHTS_FILE, WEIGHTS_FILE, CONFIG_FILE])
    path.write_bytes(rng.choice(BYTES)(rng, bytearray(path.read_bytes())))


# --- structure ------------------------------------------------------------------------------------


def spoil_header(rng, folder):
    """Change one entry of the safetensors header: a name, a type, a shape, offsets, or the metadata."""
    data = (folder / WEIGHTS_FILE).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    name = rng.choice([key for key in header if key != "__metadata__"])
    field = rng.choice(["name", "dtype", "shape", "data_offsets", "drop", "junk", "metadata"])
    if field == "name":
        header[rng.choice([name.replace("c_attn", "c_fc"), name + "x", "../" + name, ""])] = header.pop(name)
    elif field == "drop":
        del header[name]
    elif field == "junk":
        header[name] = rng.choice(JUNK)
    elif field == "metadata":
        header["__metadata__"] = {
            **header["__metadata__"],
            rng.choice(["tensors", "base_sample"]): rng.choice(["", "x", "1 2", "nan"]),
        }
    elif field == "dtype":
        header[name]["dtype"] = rng.choice(["F64", "F16", "BF16", "I32", "U8", "BOOL", "F8_E4M3", "C64", "X", 3])
    elif field == "shape":
        shape = header[name]["shape"]
        header[name]["shape"] = rng.choice([shape[::-1], [], [-1], [0], [*shape, 1], [2**62, 4], [shape[0] * shape[1]]])
    else:
        header[name]["data_offsets"] = [rng.randrange(-4, 900), rng.randrange(900)]
    text = json.dumps(header).encode()
    (folder / WEIGHTS_FILE).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def spoil_tensors(rng, folder):
    """Write other tensors with a proper header, and with the metadata of the good ones."""
    path = folder / WEIGHTS_FILE
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
    a, b = rng.sample(sorted(tensors), 2)
    change = rng.randrange(10)
    if change == 0:
        tensors[a], tensors[b] = tensors[b], tensors[a]
    elif change == 1:
        tensors[a] = tensors[a].T.contiguous()
    elif change == 2:
        tensors[a] = tensors[a].flatten()
    elif change == 3:
        tensors[a] = tensors[a].to(rng.choice([torch.float64, torch.float16, torch.int32, torch.bool, torch.complex64]))
    elif change == 4:
        tensors[a].view(-1)[0] = rng.choice([float("nan"), float("inf"), 1e-30, 1e30])
    elif change == 5:
        tensors.pop(a)
    elif change == 6:
        tensors[rng.choice(["x", a + "2", a.replace("h.0", "h.1"), a.replace("lora_A", "base_layer")])] = tensors[
            b
        ].clone()
    elif change == 7:
        tensors[a] = torch.cat([tensors[a], tensors[a]])
    elif change == 8:
        tensors = {}
    else:
        tensors[a.replace("c_attn", "c_fc").replace("c_proj", "c_attn")] = tensors.pop(a)
    save_file(tensors, path, metadata=metadata)


def spoil_config(rng, folder):
    values = json.loads((folder / CONFIG_FILE).read_text())
    for _ in range(rng.choice([1, 1, 2])):
        key = rng.choice([*values, "use_dora", "modules_to_save", "__class__", "kind"])
        if rng.random() < 0.2:
            values.pop(key, None)
        else:
            values[key] = rng.choice(JUNK)
    (folder / CONFIG_FILE).write_text(json.dumps(rng.choice([values, values, values, values, [values], "x", None])))


def spoil_folder(rng, folder):
    weights, config = folder / WEIGHTS_FILE, folder / CONFIG_FILE
    change, path = rng.randrange(4), rng.choice([weights, config])
    if change == 0:
        path.unlink()
    elif change == 1:
        path.unlink()
        path.mkdir()
    elif change == 2:
        path.write_bytes((weights if path == config else config).read_bytes())
    else:
        path.unlink()
        path.symlink_to(rng.choice(["/dev/null", str(folder), str(path)]))  # the last leads round in a circle


WAYS = [spoil_bytes] * 8 + [spoil_header] * 4 + [spoil_tensors] * 3 + [spoil_config] * 4 + [spoil_folder]


@pytest.mark.parametrize("part", range(4))
def test_a_spoiled_folder_opens_with_equal_tensors_or_raises_adapter_error(tmp_path, part):
    good, spoiled, model = tmp_path / "good", tmp_path / "spoiled", base()
    wrapped = stir(get_peft_model(model, ["c_attn", "c_proj"], 2, 4))
    wrapped.save_pretrained(good)
    tensors = {n: p.clone() for n, p in wrapped.named_parameters() if ".adapters." in n}
    model = wrapped.unload()
    logits, opened = model(IDS), 0
    for number in range(500 * part, 500 * part + 500):
        rng = random.Random(number)
        shutil.rmtree(spoiled, ignore_errors=True)
        shutil.copytree(good, spoiled)
        way = rng.choice(WAYS)
        way(rng, spoiled)
        start = time.perf_counter()
        again, error = None, None
        try:
            again = PeftModel.from_pretrained(model, spoiled)
        except Exception as raised:
            error = raised
        if again is None:
            assert isinstance(error, AdapterError) and str(spoiled) in str(error), (number, way, error)
        else:
            opened += 1
            found = {n: p for n, p in again.named_parameters() if ".adapters." in n}
            assert found.keys() == tensors.keys(), (number, way)
            assert all(torch.equal(found[n], tensors[n]) for n in tensors), (number, way)
            again.unload()
        assert time.perf_counter() - start < 5, (number, way)
        assert not any(isinstance(m, LoRALinear) for m in model.modules()), (number, way)
    assert torch.equal(model(IDS), logits)
    assert 10 < opened < 250  # both ends are tried
