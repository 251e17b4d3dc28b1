"""A small random Llama, as a GGUF file and with LoRA beside all its layers: what the tests of the lab compare with."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

KINDS = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "Ġ t", "he ll", "hell o"]
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_letters() -> list[str]:
    """How GPT-2's vocabulary writes each byte."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in seen]
    return [chr(byte) if byte in seen else chr(256 + rest.index(byte)) for byte in range(256)]


TOKENS = [*SPECIAL, *byte_letters(), *(merge.replace(" ", "") for merge in MERGES)]


def tiny_llama(**changes: Any) -> Any:
    """A random Llama of transformers': three heads of queries to one of keys, a vocabulary of single bytes."""
    from transformers import LlamaConfig, LlamaForCausalLM  # slow to import, and most tests do without

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": len(TOKENS), "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8,
        "intermediate_size": 104, "num_hidden_layers": 3, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "tie_word_embeddings": True,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, **changes})).eval()
    for name, weights in model.named_parameters():
        torch.nn.init.normal_(weights, mean=float("norm" in name), std=0.15)
    return model


IN_GGUF = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def in_gguf(name: str) -> str:
    """A tensor's name there."""
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in whole:
        return whole[name]
    _, _, block, *part = name.removesuffix(".weight").split(".")
    return f"blk.{block}.{IN_GGUF['.'.join(part)]}.weight"


def write_gguf(model: Any, path: Path, kind: str = "F32", **changes: Any) -> bytes:
    """The model as llama.cpp's converter writes it, with `changes` to its fields; None leaves a field out."""
    gguf = pytest.importorskip("gguf", reason="the tests write GGUF files with the package gguf")
    config, kept = model.config, gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, changes.pop("architecture", "llama"))
    fields: dict[str, Any] = {
        "block_count": config.num_hidden_layers, "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size, "feed_forward_length": config.intermediate_size,
        "head_count": config.num_attention_heads, "head_count_kv": config.num_key_value_heads,
        "key_length": config.head_dim, "layer_norm_rms_eps": config.rms_norm_eps, "rope_freq_base": 10000.0,
        "tokenizer_model": "gpt2", "tokenizer_pre": "smollm", "token_list": TOKENS, "token_merges": MERGES,
        "token_types": [3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)), "eos_token_id": 2,
        "chat_template": TEMPLATE,
    }  # fmt: skip
    for field, value in {**fields, **changes}.items():
        if value is not None:
            getattr(writer, f"add_{field}")(value)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weights in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        array = weights.numpy()
        if count := heads.get(name.split(".")[-2]):
            array = array.reshape(count, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        if array.ndim == 2 and array.shape[1] % gguf.GGML_QUANT_SIZES[kept][0] == 0:
            writer.add_tensor(in_gguf(name), gguf.quantize(np.ascontiguousarray(array), kept), raw_dtype=kept)
        else:
            writer.add_tensor(in_gguf(name), np.ascontiguousarray(array))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return path.read_bytes()


def with_lora(model: Any, r: int, alpha: float) -> Any:
    """Beside all linear layers, B not zero."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=r, lora_alpha=alpha, target_modules=KINDS, task_type="CAUSAL_LM")
    wrapped = get_peft_model(copy.deepcopy(model), config)
    for name, weights in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.05)
    return wrapped


def lora_layers(wrapped: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of each layer, by the lab's names."""
    found = {n: m for n, m in wrapped.named_modules() if hasattr(m, "lora_A")}
    prefix = "base_model.model.model."
    return {n.removeprefix(prefix): (m.lora_A["default"].weight, m.lora_B["default"].weight) for n, m in found.items()}
