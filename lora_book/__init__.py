"""What the LoRA book is made of: pictures and sliders, tasks, measurements, and the findings with their rows."""
