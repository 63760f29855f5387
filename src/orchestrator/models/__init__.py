"""The language models, each provider behind one protocol."""
