"""LoRA in the format GGUF of llama.cpp."""
