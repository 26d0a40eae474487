"""The processes of one run: what they agree on between steps, and what they tell each other meanwhile."""
