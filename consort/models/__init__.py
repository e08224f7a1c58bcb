"""Models as the rest of consort sees them: `local` (transformers) and `zoo` (the bundled tiny consort)."""
