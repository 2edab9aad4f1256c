"""All that is known about a foreign framework, a folder each; none is imported before its use."""
