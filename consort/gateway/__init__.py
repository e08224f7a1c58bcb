"""One endpoint for the whole consort: HTTP in, strategies behind it, a ledger beside it."""
