"""Ways of answering together, one file a strategy: a function, or one that makes it of others."""
