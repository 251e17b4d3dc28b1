"""A model by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lora_lib.data.readers import read_object
from lora_lib.gpt2.pretrained import HUB_NAMES, find_folder, load_pretrained
from lora_lib.run.smollm2 import load_smollm2, no_progress_bars


def load_any(name: str, dtype: str = "float32") -> tuple[Any, Any]:
    """A model and its tokenizer: our GPT-2 by name or folder, smollm2, or a folder of Hugging Face's.

    Raises as `load_pretrained` and `load_smollm2` do, ImportError without transformers, and ValueError for our GPT-2
    in bfloat16.
    """
    if name == "smollm2":
        return load_smollm2(getattr(torch, dtype))
    if name not in ("gpt2-mini", *HUB_NAMES) and not Path(name).is_dir():
        known = ", ".join(["gpt2-mini", *HUB_NAMES, "smollm2"])
        raise FileNotFoundError(f"no model {name!r}: expected one of {known}, or a folder with a model in it")
    folder = find_folder(name)
    if read_object(folder / "config.json").get("model_type") == "gpt2":
        if dtype != "float32":
            raise ValueError(f"our GPT-2 is held in float32, got dtype {dtype!r}: set fit.bf16 to compute in bfloat16")
        return load_pretrained(folder)
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ImportError(f"{folder} needs transformers: pip install transformers") from error
    with no_progress_bars():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        return model.eval(), AutoTokenizer.from_pretrained(folder)
