"""Graph to Graph: gradients, decomposition, simplification, layout, the training step."""
