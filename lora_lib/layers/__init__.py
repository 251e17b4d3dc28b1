"""What `LoRALinear` is built on: the layers that it can wrap, and what all wrapped layers share."""
