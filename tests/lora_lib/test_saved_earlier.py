"""What an earlier version saved still opens, and computes what it computed then."""

import pytest
import torch
from earlier import ADAPTERS, SAVED, base
from safetensors.torch import load_file
from small_models import IDS

from lora_lib import PeftModel


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_that_was_saved_by_an_earlier_version_opens(name):
    model = PeftModel.from_pretrained(base(), SAVED / name)
    torch.testing.assert_close(model(IDS), load_file(SAVED / "logits.safetensors")[name], atol=1e-4, rtol=1e-4)
