"""Parts of bench/latency.py and bench/train_step.py: the models that are compared, and how they are timed."""
