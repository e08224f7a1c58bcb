"""Everything that changes a model's weights: data, losses, the one training loop, what builds on them."""
