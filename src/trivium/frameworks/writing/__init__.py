"""How any source is written: blocks and classes, names, lines, numbers in place."""
