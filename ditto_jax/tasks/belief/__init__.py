"""What the theory-of-mind tasks on moved objects share: story grammar, belief oracle, words about mistakes."""
