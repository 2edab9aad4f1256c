"""Keras 3: its layers, its models read."""
