"""Load and save GPT-2 checkpoints in Hugging Face's folder format (`config.json`, `*.safetensors`)."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from lora_lib.gpt2.model import GPT2Config, GPT2Model, hf_name, other_layout, own_name
from lora_lib.gpt2.tokenizer import Tokenizer
from lora_lib.tensor_files import digest, read_json, read_tensors, replaced, write_tensors

MINI_FOLDER = Path(__file__).parent / "mini"
HUB_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")  # the released checkpoints, of openai-community
OUR_FILES = ("config.json", "bpe.tiktoken", "model.safetensors")  # what save_pretrained_folder writes, in this order
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # the types that a model can be saved in


def load_pretrained(name_or_folder: str | Path) -> tuple[GPT2Model, Tokenizer]:
    """A trained GPT-2 and its tokenizer: the model is in evaluation mode, float32, on the CPU.

    `"gpt2-mini"` ships with this package and needs no network. `"gpt2"`, `"gpt2-medium"`, `"gpt2-large"` and
    `"gpt2-xl"` are downloaded once, as safetensors, and kept in Hugging Face's cache. Anything else is a folder in
    Hugging Face's format.

    Raises FileNotFoundError (no such name or folder, or a part is not in it), ConnectionError (the download failed), or
    ValueError (the folder does not hold a GPT-2, or not the one that its config describes).
    """
    folder = find_folder(name_or_folder)
    model, tokenizer = load_model(folder), read_tokenizer(folder)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} tokens, its model only {model.config.vocab_size}"
        )
    return model, tokenizer


def load_model(name_or_folder: str | Path) -> GPT2Model:
    """The model alone, without its tokenizer. Raises as `load_pretrained` does."""
    folder = find_folder(name_or_folder)
    model = GPT2Model(read_config(folder))
    load_weights(model, folder)
    return model.eval()


def find_folder(name_or_folder: str | Path) -> Path:
    """The folder of a model: in this package, in the cache, or the one named. Raises as `load_pretrained` does."""
    if name_or_folder == "gpt2-mini":
        return MINI_FOLDER
    if name_or_folder in HUB_NAMES:
        return _download(str(name_or_folder))
    folder = Path(name_or_folder)
    if not folder.is_dir() or not str(name_or_folder):
        known = ", ".join(["gpt2-mini", *HUB_NAMES])
        raise FileNotFoundError(f"no model {str(name_or_folder)!r}: expected one of {known}, or a folder on disk")
    return folder


def read_config(folder: Path) -> GPT2Config:
    """The `GPT2Config` in a folder's `config.json`. Raises ValueError if it is not a GPT-2 that we can build."""
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} has no config.json: expected a folder in Hugging Face's format")
    values = read_json(path)
    if not isinstance(values, dict) or values.get("model_type") != "gpt2":
        found = values.get("model_type") if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"{path}: expected model_type 'gpt2', found {found!r}")
    try:
        config = GPT2Config(**{f.name: values[f.name] for f in fields(GPT2Config) if f.name in values})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    # Options that change the logits and that this GPT-2 does not have are refused, not ignored.
    supported = {"activation_function": ("gelu_new",), "n_inner": (None, 4 * config.n_embd),
                 "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,)}  # fmt: skip
    for key, allowed in supported.items():
        if values.get(key, allowed[0]) not in allowed:
            raise ValueError(f"{path}: {key} is {values[key]!r}; this GPT-2 supports {allowed[0]!r}")
    return config


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
        source = other_layout(name, found[name])
        if source.shape != target.shape:
            raise ValueError(f"{folder}: {name} is {tuple(source.shape)}, config.json says {tuple(target.shape)}")
        target.copy_(source)


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors in a folder, under our names and in the file's layout."""
    found: dict[str, Tensor] = {}
    for path in weight_files(folder):
        tensors, texts = read_tensors(path)
        if (save := texts.get("save")) and read_json(folder / "config.json").get("save", save) != save:
            raise ValueError(f"{folder}: config.json and {path.name} are of two saves, one cut short: save it again")
        for key, tensor in tensors.items():
            name = own_name(key)
            if name.endswith((".attn.bias", ".attn.masked_bias")):  # the causal mask is not a weight
                continue
            if name in found:
                raise ValueError(f"{path}: {key} is in two of this model's files; delete one of them")
            found[name] = tensor
    return found


def weight_files(folder: Path) -> list[Path]:
    """The files with a model's weights: `model.safetensors`, or those in its index, or the only candidate."""
    whole = folder / "model.safetensors"
    if whole.exists():  # first, as in transformers: an index may be left from an older save
        return [whole]
    if (index := folder / "model.safetensors.index.json").exists():
        values = read_json(index)
        try:
            listed = [folder / str(name) for name in sorted(set(values["weight_map"].values()))]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index}: expected an object with a weight_map, which maps tensors to files") from error
        for path in listed:
            if not path.is_file():
                raise FileNotFoundError(f"{index} lists {path.name}, which is not there: download the model again")
        return listed
    files = [path for path in sorted(folder.glob("*.safetensors")) if path.name != "adapter_model.safetensors"]
    if not files:
        adapter = (folder / "adapter_model.safetensors").exists()
        hint = "it holds an adapter: load its base, then PeftModel.from_pretrained(base, folder)" if adapter else (
            "pickled .bin weights are never opened"
        )  # fmt: skip
        raise FileNotFoundError(f"{folder} has no .safetensors file of a model ({hint})")
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise ValueError(
            f"{folder} has several files of weights, {names}, and neither a model.safetensors nor an index that lists "
            "them: keep the one that you mean"
        )
    return files


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a folder: `bpe.tiktoken`, or Hugging Face's `vocab.json` or `tokenizer.json`."""
    path = folder / "bpe.tiktoken"
    if path.exists():
        return Tokenizer.from_file(path)
    for path in (folder / "vocab.json", folder / "tokenizer.json"):
        if path.exists():
            values = read_json(path)
            try:
                return Tokenizer.from_vocab(values if path.name == "vocab.json" else values["model"]["vocab"])
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise ValueError(f"{path} is not a tokenizer of GPT-2's kind: {error}") from error
    raise FileNotFoundError(
        f"{folder} has no tokenizer: expected bpe.tiktoken, vocab.json or tokenizer.json; load_model needs none"
    )


def save_pretrained_folder(
    model: GPT2Model, tokenizer: Tokenizer, folder: str | Path, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write `model` and `tokenizer` as a folder that `load_pretrained` and transformers open.

    Raises ValueError for a model that is not a plain GPT-2 or not finite in `dtype`, and OSError if the files cannot be
    written. A model that was in the folder before is then unchanged.
    """
    folder = Path(folder)
    tensors, tied = _stored(model, dtype)
    eot = tokenizer.eot_token
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new",
              "bos_token_id": eot, "eos_token_id": eot, "torch_dtype": str(dtype).removeprefix("torch."),
              **asdict(model.config), "tie_word_embeddings": tied}  # fmt: skip
    # In both files, so that a process killed between their renames leaves no model of two saves that opens.
    config["save"] = digest(tensors, json.dumps(config))
    with replaced(*(folder / name for name in OUR_FILES)) as parts:
        parts[0].write_text(json.dumps(config, indent=1) + "\n", encoding="utf8")
        tokenizer.save(parts[1])
        write_tensors(parts[2], tensors, {"format": "pt", "save": config["save"]})


def _stored(model: GPT2Model, dtype: torch.dtype) -> tuple[dict[str, Tensor], bool]:
    """The model's tensors under Hugging Face's names, in `dtype`, and whether the head is tied to the embedding."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype}")
    _check_plain(model)
    tied = model.out_head.weight is model.wte.weight  # merging an adapter into the head unties it
    tensors = {}
    for name, tensor in model.state_dict().items():
        if tied and name == "out_head.weight":
            continue
        stored = other_layout(name, tensor).to("cpu", dtype)
        if not stored.isfinite().all():
            raise ValueError(f"{name} is not finite in {dtype}, so the model cannot be used: nothing was saved")
        tensors[hf_name(name)] = stored
    return tensors, tied


def _check_plain(model: nn.Module) -> None:
    """Raise ValueError unless the model has the tensors of its config and no others."""
    if not isinstance(model, GPT2Model):
        raise ValueError(
            f"expected a GPT2Model, got a {type(model).__name__}: save a wrapped model's adapter with save_pretrained, "
            "or the model that merge_and_unload returns with this function"
        )
    with torch.device("meta"):
        plain = {name: tensor.shape for name, tensor in GPT2Model(model.config).state_dict().items()}
    found = {name: tensor.shape for name, tensor in model.state_dict().items()}
    wrong = sorted({name for name, _ in plain.items() ^ found.items()})
    if wrong:
        raise ValueError(
            f"this model is not the GPT-2 of its config ({', '.join(wrong[:3])}): merge its adapters first, with "
            "merge_and_unload, or give it a config with its sizes"
        )


def _download(name: str) -> Path:
    """Download a released checkpoint into Hugging Face's cache, with a progress bar; returns its folder."""
    from huggingface_hub import hf_hub_download  # imported here: it is slow, and not needed offline

    repo = f"openai-community/{name}"
    try:
        paths = [Path(hf_hub_download(repo, f)) for f in ("config.json", "vocab.json", "model.safetensors")]
    except Exception as error:  # which errors it raises depends on its version
        raise ConnectionError(
            f"could not download {name!r} ({repo}) from the Hugging Face hub: {error}\n"
            'Without a network use load_pretrained("gpt2-mini"), or pass a folder that holds the model.'
        ) from error
    return paths[0].parent
