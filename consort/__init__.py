"""One large language model in the cloud and many small ones at the edge, co-tuned and served as one."""

__version__ = "0.1.0"
