"""The task `paratomi`: where people look for a moved object, answered by naming the place (ToMi, ParaToMi)."""
