"""Ways of answering together, a function each, and what they decide by. Loads no framework."""
