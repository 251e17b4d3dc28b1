"""What the chapters train on: restaurants, tickets, downloaded data sets, a story."""

from lora_book.tasks.card import model_card
from lora_book.tasks.downloads import Message, balanced_splits, load_e2e, load_sms_spam
from lora_book.tasks.restaurants import (
    PROMPT_END,
    Restaurant,
    restaurant_data,
    score_texts,
    slot_accuracy,
    slot_report,
    to_examples,
)
from lora_book.tasks.story import STORY
from lora_book.tasks.tickets import FIELDS, SYSTEM, Ticket, few_shot, make_tickets, score_tickets
