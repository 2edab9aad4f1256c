"""Evidence: is a model what it was read as, and is another model the same?"""
