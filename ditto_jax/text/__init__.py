"""Text ↔ token ids: tokenizers, chat formats, and what may be shown."""
