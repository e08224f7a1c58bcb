"""Co-tuning: what travels (`packets`), how it is averaged (`aggregate`), how a round survives (`journal`)."""
