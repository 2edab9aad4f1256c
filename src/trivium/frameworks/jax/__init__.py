"""JAX: pure functions with nested parameters."""
