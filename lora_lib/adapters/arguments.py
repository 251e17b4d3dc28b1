"""Arguments of PEFT's methods that ours do not need: what asks for nothing is taken, anything else refused in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_lib.settings import did_you_mean

# PEFT's other arguments: the values that ask for nothing here, and what to do instead of any other.
_ARGUMENTS: dict[str, tuple[tuple[Any, ...], str]] = {
    "safe_serialization": ((True,), "weights are always saved as safetensors"),
    "selected_adapters": ((None,), "name one adapter, save_pretrained(folder, adapter_name), in each call"),
    "save_embedding_layers": ((False, "auto"), "name the embedding in modules_to_save, and it is trained and saved"),
    "is_main_process": ((True,), "call save_pretrained in the main process only"),
    "torch_device": ((None,), "an adapter goes where its base is: move the model with .to(device)"),
    "low_cpu_mem_usage": ((True, False), ""),
    "autocast_adapter_dtype": ((True,), "A and B are float32 where the base is narrower"),
    "config": ((None,), "the config is read from the folder"),
    "revision": ((None,), "download the adapter's folder first, with huggingface_hub's snapshot_download"),
    "adapter_names": ((None,), "what is merged are the active adapters: call set_adapter first"),
    "progressbar": ((True, False), ""),
    "inference_mode": ((False,), "call requires_grad_(False) afterwards"),
    "svd_rank": ((None,), "the sum is exact, and has the rank that it needs"),
    "density": ((None,), "the sum is exact, and leaves nothing out"),
}


def check_arguments(given: Mapping[str, Any]) -> None:
    """Raise TypeError for an argument that nobody knows, or one of PEFT's that asks for something else than is done."""
    for name, value in given.items():
        if name not in _ARGUMENTS:
            raise TypeError(f"there is no argument {name!r}.{did_you_mean(name, _ARGUMENTS)}")
        harmless, instead = _ARGUMENTS[name]
        if not any(value is one or value == one for one in harmless):
            raise TypeError(f"{name}={value!r} is PEFT's and not supported here: {instead}")


def folder_of(folder: str | Path, others: dict[str, Any]) -> Path:
    """The folder to open, in PEFT's `subfolder` of it if that is among the `others`."""
    subfolder = others.pop("subfolder", None)
    check_arguments(others)
    return Path(folder) / (subfolder or "")
