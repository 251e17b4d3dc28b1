"""Data: examples to train on, from your own files, and scores of answers."""

from lora_lib.data.chats import ask_records, encode_chat, encode_records, prompt_ids, record_chat, write_answers
from lora_lib.data.examples import Encoded, Example, Record, Splits, batches, collate, encode_examples, pack, split
from lora_lib.data.readers import MISSING, chat_prompt, read_records, read_text
from lora_lib.data.scores import Interval, difference, interval, items_needed, judge_answers, score_table
from lora_lib.gpt2.loss import IGNORE
from lora_lib.moved import say_where

say_where(__name__)
