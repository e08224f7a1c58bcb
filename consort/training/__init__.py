"""Everything that changes a model's weights: data, losses, the one training loop, and what is built on them.
"""
