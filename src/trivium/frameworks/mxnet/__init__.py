"""MXNet 1.9.1: its models and files, its source, its engine."""
