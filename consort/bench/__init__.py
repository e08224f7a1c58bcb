"""Measuring: scores of answers, the results of a run, and the report a person reads."""
