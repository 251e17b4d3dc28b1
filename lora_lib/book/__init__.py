"""An old name, for one release."""

raise ImportError(
    "lora_lib.book is now lora_book: figures, knobs and check are in lora_book.show, data sets in lora_book.tasks, "
    "results in lora_book.findings; load_smollm2 is in lora_lib.run"
)
