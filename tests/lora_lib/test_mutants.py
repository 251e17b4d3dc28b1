"""A part of `make mutants`, so that it keeps working: a fault that it plants in the library is noticed."""

import sys

import mutants
import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each process imports everything again")
def test_a_fault_that_is_planted_in_the_fused_product_is_noticed():
    module = "layers/fused"
    source = (mutants.ROOT / "lora_lib" / f"{module}.py").read_text(encoding="utf8")
    own = [f"tests/lora_lib/{name}.py" for name in mutants.CORE[module].split()]
    assert mutants.passes(module, source, own)  # else anything would count as noticed
    _, text = mutants.mutant(source, *mutants.places(source)[1])  # the first changes only the speed
    assert text != source and not mutants.survives(module, text, others=False)
