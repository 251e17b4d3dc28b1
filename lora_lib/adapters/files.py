"""Adapters on disk, in the format of Hugging Face PEFT: two files in one folder.

`adapter_config.json` says how the adapter was made. `adapter_model.safetensors` holds, for each layer,
`base_model.model.<layer>.lora_A.weight` (r, d) and `.lora_B.weight` (k, r): our A and B, transposed. Modules that
were trained in full are in it under their names. Nothing is ever unpickled.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lora_lib.adapters.config import LoRAConfig
from lora_lib.adapters.names import Samples

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."

Layers = dict[str, dict[str, Tensor]]  # for each layer A (d, r) and B (r, k), or whatever its kind of adapter has


class AdapterError(ValueError):
    """An adapter folder that cannot be opened, or does not fit the model; the message says why."""


class AdapterFile(NamedTuple):
    """What `read_adapter` finds in a folder.

    `copies` are the tensors of modules that were trained in full. The last three show which base it was made for:
    `base_sample` are numbers from the adapted layers' weights and `model_sample` from embeddings and head (both are
    empty in PEFT's files); `base_weights` are whole (d, k) weights, which PEFT adds for an adapted head.
    """

    config: LoRAConfig
    layers: Layers
    copies: dict[str, Tensor]
    base_sample: list[float]
    model_sample: Samples
    base_weights: dict[str, Tensor]
