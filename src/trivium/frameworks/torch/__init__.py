"""PyTorch: source for it, its models read, its training steps."""
