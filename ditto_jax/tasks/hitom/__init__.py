"""The task `hitom`: nested beliefs about an object's place, as a lettered choice (Hi-ToM)."""
