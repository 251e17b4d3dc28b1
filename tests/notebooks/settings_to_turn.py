"""What a reader may turn: one setting of a chapter at a time, for test_turn_anything.py.

Add a line for a setting that is new: the chapter, a text that stands in one of its cells, and what a reader might write
in its place. Where the library is to refuse the value, `error` is a part of what it says.
"""

from __future__ import annotations

from typing import NamedTuple


class Turn(NamedTuple):
    """One setting of a chapter, and another value for it."""

    chapter: str
    old: str
    new: str
    error: str = ""


# Long trainings are cut short in every run; a text that a turn has changed is left as the turn made it.
SHORTER = {
    "00_lora_in_one_sitting": [("steps=120", "steps=4"), ("data.test[:40]", "data.test[:4]")],
    "01_rank_math": [('"steps": 80', '"steps": 6')],
    "05_fine_tuning": [("steps=250", "steps=10"), ("validate_every=50", "validate_every=5"), ("test[:60]", "test[:4]")],
    "13_a_real_model": [("WATCHED = 0.33", "WATCHED = 0.02"), ("test[:16]", "test[:4]")],
    "07_rank_comparison": [
        ("STEPS, RATE, ALPHA = 40", "STEPS, RATE, ALPHA = 3"),
        ("FACTS, FACT_STEPS = 256, 150", "FACTS, FACT_STEPS = 60, 5"),
    ],
    "08_lora_vs_full": [("STEPS = 40", "STEPS = 3")],
    "09_adapters": [('STEPS = {"writer": 150, "reader": 80}', 'STEPS = {"writer": 2, "reader": 2}')],
    "10_your_own_data": [
        ("steps=60", "steps=2"),
        ("3e-2], 25", "3e-2], 2"),
        ("PASSES = 3\n", "PASSES = 0.05\n"),
        ("TEXT_PASSES = 3 if yours else 0.35", "TEXT_PASSES = 0.02"),
    ],
}

TURNS = [
    Turn("00_lora_in_one_sitting", '("name", "food", "area")', '("name", "near", "priceRange")'),
    Turn("00_lora_in_one_sitting", "data.test[:40]", "data.test[:5]"),
    Turn("00_lora_in_one_sitting", "return ...  #", "return self.base(x) + self.A  #"),
    Turn("00_lora_in_one_sitting", "with_lora(rank=8, alpha=32)", "with_lora(rank=3, alpha=7)"),
    Turn("00_lora_in_one_sitting", "with_lora(rank=8, alpha=32)", "with_lora(rank=8, alpha=0)", error="alpha = 0"),
    Turn("00_lora_in_one_sitting", "steps=120, batch_size=8, learning_rate=5e-3", "steps=3, learning_rate=1e-4"),
    Turn("01_rank_math", "landscape(120, 160)", "landscape(40, 60)"),
    Turn("01_rank_math", "torch.arange(1.0, 4), torch.arange(1.0, 5)", "torch.arange(2.0, 8), torch.arange(1.0, 4)"),
    Turn("01_rank_math", "for r in (1, 2, 5, 20)", "for r in (3,)"),
    Turn("01_rank_math", "start=(75, 0.8)", "start=(10, 0.4)"),
    Turn("01_rank_math", "for r in (1, 8, 64, 96)", "for r in (2, 50)"),
    Turn("01_rank_math", "0.01 * torch.randn_like(times)", "1.0 * torch.randn_like(times)"),
    Turn("01_rank_math", "A, B = cut(plus, 1)", "A, B = cut(plus, 2)"),
    Turn("01_rank_math", "r = 4\ntorch", "r = 7\ntorch"),
    Turn("01_rank_math", "model.h[3].mlp.c_fc", "model.h[0].attn.c_proj"),
    Turn("01_rank_math", 'slots=("name", "food", "area")', 'slots=("name", "eatType", "near", "area")'),
    Turn("01_rank_math", "data.test[:16]", "data.test[:8]"),
    Turn(
        "01_rank_math", "picture = landscape(120, 160)", "picture = torch.zeros(120, 160)", error="zeros has no shares"
    ),
    Turn("01_rank_math", "learning_rate=5e-3", "learning_rate=1e-4"),
    Turn("01_rank_math", '"steps": 80', '"steps": 0', error="steps must be a whole number"),
    Turn("01_rank_math", "ranks = [1, 4, 8, 16, 32, 64, 128]", "ranks = [100]"),
    Turn("01_rank_math", "lora_rank=r, lora_alpha=32", "lora_rank=2, lora_alpha=1"),
    Turn("01_rank_math", "lora_rank=r", "lora_rank=400", error="rank must be from 1 to 320"),
    Turn("02_lora_layer", "d, k = 768, 2304", "d, k = 64, 96"),
    Turn("02_lora_layer", "B = torch.tensor([[10.0, 1.0]])", "B = torch.tensor([[0.3, -7.0]])"),
    Turn("02_lora_layer", "torch.tensor([1.0, 1.0, 1.0]), 0.5", "torch.tensor([0.1, 0.2, 0.3]), -2.0"),
    Turn("02_lora_layer", "MyLoRA(layer, rank=8, alpha=32)", "MyLoRA(layer, rank=3, alpha=7)"),
    Turn("02_lora_layer", '"both random": (0.1, 0.1)', '"both random": (2.0, 0.001)'),
    Turn("02_lora_layer", "drawn = [1, 8, 32, 64, 192]", "drawn = [320]"),
    Turn("02_lora_layer", "ranks = [1, 2, 4, 8, 16, 32, 64]", "ranks = [3, 5]"),
    Turn("02_lora_layer", "lr=1e-3", "lr=1.0"),
    Turn("02_lora_layer", "rank=4, alpha=8, dropout=0.5", "rank=2, alpha=9, dropout=0.0"),
    Turn("02_lora_layer", "dropout=0.5", "dropout=1.5", error="dropout"),
    Turn("02_lora_layer", "needed = 2", "needed = 5"),
    Turn("02_lora_layer", "for rank in (1, 2, 4, 8)}", "for rank in (3, 6)}"),
    Turn("02_lora_layer", "steps=300", "steps=2"),
    Turn("03_gpt2", "One morning the little mouse", "Rain"),
    Turn("03_gpt2", '"photosynthesis"', '"Lörrach 🙂"'),
    Turn("03_gpt2", "Lily had a red ball. Tom wanted the ball, so Lily threw it to him.", "Dragons sleep all day."),
    Turn("03_gpt2", "Lily had a red ball. Tom wanted the ball, so Lily threw it to him.", "猫は猫である。 Привет"),
    Turn("03_gpt2", '(" mother", " red", " ran")', '(" dog", " two", "photosynthesis")'),
    Turn("03_gpt2", '(" mother", " red", " ran")', '("",)', error="an empty word has no token"),
    Turn("03_gpt2", "q = torch.tensor([[0.0, 0.0]", "q = torch.tensor([[1.0, 9.0]"),
    Turn("03_gpt2", '"Once upon a", "In the box there was a"', '"Yes", "No"'),
    Turn("03_gpt2", "One day Tom found a small key under a stone.", "Kings die."),
    Turn("03_gpt2", "The king had a daughter who", "A"),
    Turn("03_gpt2", "for _ in range(20)", "for _ in range(3)"),
    Turn("03_gpt2", "z = torch.tensor([4.0, 3.0, 2.0, 0.0])", "z = torch.tensor([1.0, -3.0, 2.0])"),
    Turn("03_gpt2", "temperature=[0, 0.4, 0.7, 1.0, 1.5]", "temperature=[0.3, 0.7]"),
    Turn("03_gpt2", '["The king", "The old', '["Soon", "Then the old'),
    Turn("03_gpt2", "write(prompt, 100, use_cache=False)", "write(prompt, 300, use_cache=False)", error="256"),
    Turn("03_gpt2", "r = 8", "r = 3"),
    Turn("04_injection", "nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)", "nn.Linear(8, 4), nn.Linear(4, 8)"),
    Turn("04_injection", "rank=2, alpha=4", "rank=1, alpha=9"),
    Turn("04_injection", 'inject(fresh(), "c_attn", rank=8, alpha=32)', 'inject(fresh(), "c_proj", rank=2, alpha=1)'),
    Turn("04_injection", 'fresh(), ["c_attn"], lora_rank=8', 'fresh(), ["mlp.c_fc"], lora_rank=5'),
    Turn("04_injection", "The old ferry crosses the river twice a day.", "The old dog sleeps."),
    Turn("04_injection", "The old ferry crosses the river twice a day.", "I", error="got no token"),
    Turn("04_injection", '["h.5.mlp.c_fc"]', '["h.0.attn.c_proj"]'),
    Turn("04_injection", '["h.5.mlp.c_fc"]', '["h.9.mlp.c_fc"]', error="h.9.mlp.c_fc"),
    Turn("04_injection", "r = 8", "r = 2"),
    Turn("04_injection", "ranks=(4, 8, 16, 32, 64)", "ranks=(1, 2, 512)"),
    Turn("04_injection", '"attention": ["attn.c_attn", "attn.c_proj"],', ""),
    Turn("04_injection", '["out_head"], lora_rank=16', '["out_head"], lora_rank=1'),
    Turn("04_injection", "steps=12", "steps=1"),
    Turn("04_injection", 'LoRAConfig(["c_attn", "c_fc"], r=8, lora_alpha=32)', 'LoRAConfig(["mlp.c_proj"], r=1)'),
    Turn("04_injection", "alpha_pattern={", 'alpha_pattern={"h.0.attn.c_attn": 1, '),
    Turn(
        "05_fine_tuning", '"eatType", "food", "area"', '"priceRange"', error="slots must be name and two or more others"
    ),
    Turn("05_fine_tuning", "seed=0, slots", "seed=7, slots"),
    Turn("05_fine_tuning", '"food": "Thai", "area": "riverside"', '"area": "old town"'),
    Turn("05_fine_tuning", "test[:60]", "test[:1]"),
    Turn("05_fine_tuning", "max_length=256", "max_length=20", error="20"),
    Turn("05_fine_tuning", '"all-linear", lora_rank=8', '["c_attn"], lora_rank=2'),
    Turn("05_fine_tuning", "lora_alpha=32, lora_dropout=0.1", "lora_alpha=1, lora_dropout=0.0"),
    Turn("05_fine_tuning", "validation[:2]", "validation[3:4]"),
    Turn("05_fine_tuning", '"food": "Thai", "area": "riverside"', '"food": "Thai", "near": "The Green Heron"'),
    Turn("05_fine_tuning", "batch_size=8", "batch_size=3"),
    Turn("05_fine_tuning", "learning_rate=5e-3", "learning_rate=1e-5"),
    Turn("05_fine_tuning", "steps=250", "steps=1"),
    Turn("05_fine_tuning", "validate_every=50", "validate_every=4"),
    Turn("05_fine_tuning", '"temperature": 0.7', '"temperature": 0'),
    Turn("13_a_real_model", "4, [1e-3]", "2, [1e-3, 2e-3]"),
    Turn("13_a_real_model", '{"role": "user", "content": "And of Italy?"}', '{"role": "user", "content": "$5?"}'),
    Turn("13_a_real_model", '["customer", "order", "product", "problem", "wants"]', '["problem"]'),
    Turn("06_gpu_training", "BATCH, TIME, RANK = 8, 128, 8", "BATCH, TIME, RANK = 3, 100, 24"),
    Turn("06_gpu_training", "vocabularies = [5_000, 20_000, 50_257]", "vocabularies = [3_000, 9_000]"),
    Turn("06_gpu_training", "d, k, r, N = 768, 2304, 16, 1024", "d, k, r, N = 300, 500, 3, 200"),
    Turn("06_gpu_training", "CARDS = [8, 12, 16, 24, 40, 80]", "CARDS = [6, 11, 48]"),
    Turn("06_gpu_training", "collate(data[:8], pad_id=0)", "collate(data[:4], pad_id=0)"),
    Turn("06_gpu_training", '    "774M": replace(lora_lib.GPT_CONFIG_774M, **NO_DROPOUT),\n', ""),
    Turn("07_rank_comparison", "for rank in (1, 4, 16)}", "for rank in (2, 3)}"),
    Turn("07_rank_comparison", "STEPS, RATE, ALPHA = 40, 5e-3, 32", "STEPS, RATE, ALPHA = 5, 2e-2, 8"),
    Turn("07_rank_comparison", "RANKS = (1, 2, 4, 8, 16, 64, 0)", "RANKS = (1, 4)"),
    Turn("07_rank_comparison", "RANKS = (1, 2, 4, 8, 16, 64, 0)", "RANKS = (3,)", error="no runs of rank [3]"),
    Turn("07_rank_comparison", "FACTS, FACT_STEPS = 256, 150", "FACTS, FACT_STEPS = 60, 5"),
    Turn("07_rank_comparison", 'slots=("name", "food", "area")', 'slots=("name", "area", "near")'),
    Turn("08_lora_vs_full", "STEPS = 40", "STEPS = 2"),
    Turn("08_lora_vs_full", 'LAYER = "h.3.mlp.c_fc"', 'LAYER = "h.0.attn.c_attn"'),
    Turn("08_lora_vs_full", '"all-linear", 8, lora_alpha=32', '["c_attn", "c_fc", "c_proj"], 3, lora_alpha=6'),
    Turn("08_lora_vs_full", "GOAL = 3.0", "GOAL = 1.0"),
    Turn("08_lora_vs_full", "for r in (1, 8, 64)}", "for r in (2, 16)}"),
    Turn("09_adapters", 'STEPS = {"writer": 150, "reader": 80}', 'STEPS = {"writer": 2, "reader": 3}'),
    Turn(
        "09_adapters",
        'config = LoRAConfig("all-linear", r=8, lora_alpha=32)',
        'config = LoRAConfig("all-linear", r=3, lora_alpha=5)',
    ),
    Turn("09_adapters", "test = data.test[:24]", "test = data.test[:1]"),
    Turn("09_adapters", "[0, 0.2, 0.35, 0.5, 0.65, 0.8, 1]", "[0.3]"),
    Turn("09_adapters", "TASKS = 16", "TASKS = 1"),
    Turn(
        "09_adapters",
        '["writer", "reader"], [0.5, 0.5], "half-and-half"',
        '["writer", "reader"], [0.3, 0.9], "half-and-half"',
    ),
    Turn("10_your_own_data", "rates, TRY = [1e-4, 1e-3, 5e-3, 3e-2], 25", "rates, TRY = [1e-3, 1e30], 2"),
    Turn("10_your_own_data", "BLOCK = 128", "BLOCK = 40"),
    Turn("10_your_own_data", "SHOTS = 3", "SHOTS = 1"),
    Turn("10_your_own_data", "factors = [0, 0.25, 0.5, 0.75, 1]", "factors = [0, 0.1, 2]"),
    Turn("11_beyond_lora", '    "PiSSA": ("pissa", "float32", 8, 8, 1),\n', ""),
    Turn("11_beyond_lora", "RATIO = 16", "RATIO = 4"),
    Turn("12_quantised_base", "SIZES = [16, 64, 256, 1024, 4096]", "SIZES = [32, 128]"),
    Turn("12_quantised_base", '    "4 even": library.even_levels(4),\n', ""),
]

# Where a chapter asks for a file: the text that stands there, what a reader puts in its place, and a file.
PAIRS = "prompt,completion\n" + "".join(f"{n} plus 1 =>, {n + 1}\n" for n in range(80))
REVIEWS = "review,category,mood\n" + "".join(
    f"Order {n}: the box {('broke', 'is fine')[n % 2]}.,{('quality', 'other')[n % 2]},{('bad', 'good')[n % 2]}\n"
    for n in range(40)
)
YOUR_FILES = {
    "10_your_own_data": (
        "MY_FILE, read, too_long = None, read_text",
        "MY_FILE, read, too_long = PATH, read_records",
        PAIRS,
    ),
    "13_a_real_model": (
        'MY_FILE, ASK = None, ["message"]\nANSWER = ["customer", "order", "product", "problem", "wants"]',
        'MY_FILE, ASK = PATH, ["review"]\nANSWER = ["category", "mood"]',
        REVIEWS,
    ),
}
