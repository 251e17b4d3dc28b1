"""Write the book's restaurants as a file of examples: `python -m lora_book restaurants > restaurants.jsonl`."""

from __future__ import annotations

import argparse
import json

from lora_book.tasks.restaurants import restaurant_data, to_examples


def main() -> None:
    """Print one JSON object a line, {"prompt": …, "completion": …}."""
    parser = argparse.ArgumentParser("python -m lora_book", description="Write a task of the LoRA book as JSON lines.")
    parser.add_argument("task", choices=["restaurants"])
    parser.parse_args()
    for example in to_examples(restaurant_data().train):
        print(json.dumps({"prompt": example.prompt, "completion": example.completion}))


if __name__ == "__main__":
    main()
