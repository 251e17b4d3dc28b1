"""The model card of an adapter: a README.md that says what the folder is, and asks the model a question."""

from __future__ import annotations

import json
from pathlib import Path

from lora_lib.adapters.files import CONFIG_FILE, AdapterError

_CARD = """---
base_model: {base}
library_name: peft
pipeline_tag: text-generation
---

A LoRA adapter (r = {rank}, alpha = {alpha}) for {base}. To ask it, in this folder:

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained({base!r})
chat = {chat}
ids = tokenizer.apply_chat_template(
    chat, add_generation_prompt=True, enable_thinking=False, return_tensors="pt", return_dict=False
)
out = model.generate(input_ids=ids, max_new_tokens={room}, do_sample=False)
print(tokenizer.decode(out[0, ids.shape[1]:], skip_special_tokens=True))
```
"""


def model_card(folder: str | Path, question: str, *, system: str | None = None, max_new_tokens: int = 64) -> str:
    """The text of a model card for a saved adapter: its base, and lines that load it and ask it this question.

    `system` is the system turn that the adapter was trained with. A chat goes to the model through its template, with
    the part that opens the answer (`add_generation_prompt`): without it the model has to guess that it is its turn. A
    model that can think is told not to, as in training.

    Raises AdapterError where the folder has no config, or the config does not name the base.
    """
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise AdapterError(f"{folder} has no {CONFIG_FILE}: expected a folder written by save_pretrained")
    values = json.loads(path.read_text(encoding="utf8"))
    if not (base := values.get("base_model_name_or_path")):
        raise AdapterError(
            f"{path} does not name its base: set base_model_name_or_path in the LoRAConfig and save again"
        )
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": question})
    chat = "[\n" + "".join(f"    {turn!r},\n" for turn in turns) + "]"
    return _CARD.format(base=base, rank=values["r"], alpha=values["lora_alpha"], chat=chat, room=max_new_tokens)
