"""posttrain: the whole post-training of language models as one cached, resumable recipe."""

__version__ = "0.1.0"
