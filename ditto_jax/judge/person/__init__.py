"""A person as judge, partner or writer of feedback: an OpenAI-compatible endpoint whose answers are typed on a page."""
