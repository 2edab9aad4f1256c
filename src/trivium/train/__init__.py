"""Training: one step as one call; fit and its neighbours; sessions; metrics."""
