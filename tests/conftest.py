"""What several test files share."""

from pathlib import Path

import pytest

from lora_lib import Tokenizer
from lora_lib.examples import Splits
from lora_lib.pretrained import MINI_FOLDER, read_tokenizer
from lora_lib.restaurants import Restaurant, restaurant_data


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the repository."""
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def splits() -> Splits[Restaurant]:
    """The book's restaurants, as many as `restaurant_data` makes by itself."""
    return restaurant_data(seed=0)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """gpt2-mini's."""
    return read_tokenizer(MINI_FOLDER)
