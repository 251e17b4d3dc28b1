"""Training: the loop, the loss, checkpoints and several processes."""

from lora_lib.gpt2.loss import chunked_cross_entropy
from lora_lib.moved import say_where
from lora_lib.training.checkpoints import check_writable, fingerprint, load_checkpoint, save_checkpoint
from lora_lib.training.config import FitConfig
from lora_lib.training.loop import History, evaluate, fit, lr_factor
from lora_lib.training.losses import loss_sum

say_where(__name__)
