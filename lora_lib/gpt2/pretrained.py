"""Load and save GPT-2 checkpoints in Hugging Face's folder format (`config.json`, `*.safetensors`)."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import Tensor

from lora_lib.gpt2.model import GPT2Config, GPT2Model, hf_name
from lora_lib.gpt2.tokenizer import MissingTokenizer, Tokenizer
from lora_lib.tensor_files import read_tensors, replaced, write_tensors

MINI_FOLDER = Path(__file__).parent / "mini"
# Released checkpoints, by the short name that a reader types.
HUB_NAMES = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
}
# Hugging Face keeps these weights as (in, out), in a layer called Conv1D; nn.Linear wants (out, in).
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def load_pretrained(name_or_folder: str | Path) -> tuple[GPT2Model, Tokenizer]:
    """A trained GPT-2 and its tokenizer, in evaluation mode, float32, on the CPU.

    `"gpt2-mini"` ships with this package and needs no network. `"gpt2"`, `"gpt2-medium"`,
    `"gpt2-large"` and `"gpt2-xl"` are downloaded once, as safetensors, and kept in Hugging Face's
    cache. Anything else is a folder in Hugging Face's format.

    Raises FileNotFoundError (no such name or folder), ConnectionError (the download failed), or
    ValueError (the folder does not hold a GPT-2, or not the one that its config describes).
    """
    if name_or_folder == "gpt2-mini":
        folder = MINI_FOLDER
    elif name_or_folder in HUB_NAMES:
        folder = _download(str(name_or_folder))
    else:
        folder = Path(name_or_folder)
        if not folder.is_dir():
            known = ", ".join(["gpt2-mini", *HUB_NAMES])
            raise FileNotFoundError(f"no model {str(name_or_folder)!r}: expected one of {known}, or a folder on disk")
    model = GPT2Model(read_config(folder))
    load_weights(model, folder)
    tokenizer = read_tokenizer(folder)
    if not isinstance(tokenizer, MissingTokenizer) and tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} tokens, its model only {model.config.vocab_size}"
        )
    return model.eval(), tokenizer


def load_model(name_or_folder: str | Path) -> GPT2Model:
    """The model of `load_pretrained` alone, for those who have the tokenizer already."""
    return load_pretrained(name_or_folder)[0]


def read_config(folder: Path) -> GPT2Config:
    """The `GPT2Config` in a folder's `config.json`. Raises ValueError when it is not a GPT-2 we can build."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder} has no config.json: expected a folder in Hugging Face's format") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict) or values.get("model_type") != "gpt2":
        found = values.get("model_type") if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"{path}: expected model_type 'gpt2', found {found!r}")
    # Options that would change the logits and that this GPT-2 does not have: refuse, never ignore.
    supported = {"activation_function": ("gelu_new",), "n_inner": (None, 4 * values.get("n_embd", 768)),
                 "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,)}  # fmt: skip
    for key, allowed in supported.items():
        if values.get(key, allowed[0]) not in allowed:
            raise ValueError(f"{path}: {key} is {values[key]!r}; this GPT-2 supports {allowed[0]!r}")
    return GPT2Config(**{f.name: values[f.name] for f in fields(GPT2Config) if f.name in values})


def load_weights(model: GPT2Model, folder: Path) -> None:
    """Copy a folder's weights into `model`. Raises ValueError, naming the tensors, if they do not fit."""
    found = _read_tensors(folder)
    wanted = {k: v for k, v in model.state_dict().items() if k != "out_head.weight" or k in found
              or not model.config.tie_word_embeddings}  # fmt: skip
    missing, unexpected = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or unexpected:
        raise ValueError(
            f"{folder}: weights and config.json differ; missing {missing[:5]}, unexpected {unexpected[:5]}"
        )
    for name, target in wanted.items():
        source = found[name].T if name.endswith(TRANSPOSED) else found[name]
        if source.shape != target.shape:
            raise ValueError(f"{folder}: {name} is {tuple(source.shape)}, config.json says {tuple(target.shape)}")
        target.copy_(source)


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """A folder's tensors under our names, as they are stored. Old releases have no `transformer.` prefix."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} has no .safetensors file (pickled .bin weights are never opened)")
    found: dict[str, Tensor] = {}
    for path in files:
        for key, tensor in read_tensors(path)[0].items():
            name = "out_head.weight" if key == "lm_head.weight" else key.removeprefix("transformer.")
            if not name.endswith((".attn.bias", ".attn.masked_bias")):  # the causal mask, not a weight
                found[name] = tensor
    return found


def save_pretrained_folder(
    model: GPT2Model, tokenizer: Tokenizer, folder: str | Path, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write `model` and `tokenizer` as a folder that `load_pretrained` and transformers open.

    Raises OSError when the disk will not take it; a model that was there is then unharmed.
    """
    folder = Path(folder)
    tied = model.out_head.weight is model.wte.weight  # a merged adapter of the head unties it
    tensors = {}
    for name, tensor in model.state_dict().items():
        if not (tied and name == "out_head.weight"):
            stored = tensor.T if name.endswith(TRANSPOSED) else tensor
            tensors[hf_name(name)] = stored.to("cpu", dtype)
    eot = tokenizer.eot_token
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new",
              "bos_token_id": eot, "eos_token_id": eot, "torch_dtype": str(dtype).removeprefix("torch."),
              **asdict(model.config), "tie_word_embeddings": tied}  # fmt: skip
    with replaced(*(folder / name for name in ("model.safetensors", "config.json", "bpe.tiktoken"))) as parts:
        write_tensors(parts[0], tensors, {"format": "pt"})
        parts[1].write_text(json.dumps(config, indent=1) + "\n", encoding="utf8")
        tokenizer.save(parts[2])


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a folder: `bpe.tiktoken`, or Hugging Face's `vocab.json` or `tokenizer.json`.

    A folder with none of them (as transformers' `model.save_pretrained` alone leaves) still has a usable
    model: its tokenizer is then a stand-in that raises FileNotFoundError once it is used.
    """
    if (folder / "bpe.tiktoken").exists():
        return Tokenizer.from_file(folder / "bpe.tiktoken")
    for file in ("vocab.json", "tokenizer.json"):
        if (folder / file).exists():
            values = json.loads((folder / file).read_text(encoding="utf8"))
            return Tokenizer.from_vocab(values if file == "vocab.json" else values["model"]["vocab"])
    return MissingTokenizer(folder)


def _download(name: str) -> Path:
    """Fetch a released checkpoint into Hugging Face's cache, with a progress bar; returns its folder."""
    from huggingface_hub import hf_hub_download  # here, so that offline readers never pay for the import

    repo = HUB_NAMES[name]
    try:
        paths = [Path(hf_hub_download(repo, f)) for f in ("config.json", "vocab.json", "model.safetensors")]
    except Exception as error:  # whichever HTTP library is behind it, its errors differ by version
        raise ConnectionError(
            f"could not download {name!r} ({repo}) from the Hugging Face hub: {error}\n"
            'Without a network use load_pretrained("gpt2-mini"), or pass a folder that holds the model.'
        ) from error
    return paths[0].parent
