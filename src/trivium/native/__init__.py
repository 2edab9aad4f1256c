"""The native engine: a whole Graph compiled to machine code through LLVM."""
