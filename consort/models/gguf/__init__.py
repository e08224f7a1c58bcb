"""GGUF files that llama.cpp computes, without torch: the file, its tokenizer, its cache, the model."""
