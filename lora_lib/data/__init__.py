"""Data: examples to train on, from your own files and from two generators of ours."""

from lora_lib.data.chats import encode_chat, prompt_ids, write_answers
from lora_lib.data.examples import (
    IGNORE,
    Encoded,
    Example,
    Record,
    Splits,
    batches,
    collate,
    encode_examples,
    encode_records,
    pack,
    split,
)
from lora_lib.data.readers import MISSING, chat_prompt, read_chats, read_csv, read_jsonl, read_records, read_text
from lora_lib.data.restaurants import (
    PROMPT_END,
    Restaurant,
    restaurant_data,
    score_texts,
    slot_accuracy,
    slot_report,
    to_examples,
)
from lora_lib.data.tickets import FIELDS, SYSTEM, Ticket, few_shot, make_tickets, score_tickets

__all__ = [
    "FIELDS",
    "IGNORE",
    "MISSING",
    "PROMPT_END",
    "SYSTEM",
    "Encoded",
    "Example",
    "Record",
    "Restaurant",
    "Splits",
    "Ticket",
    "batches",
    "chat_prompt",
    "collate",
    "encode_chat",
    "encode_examples",
    "encode_records",
    "few_shot",
    "make_tickets",
    "pack",
    "prompt_ids",
    "read_chats",
    "read_csv",
    "read_jsonl",
    "read_records",
    "read_text",
    "restaurant_data",
    "score_texts",
    "score_tickets",
    "slot_accuracy",
    "slot_report",
    "split",
    "to_examples",
    "write_answers",
]
