"""The task `lifechoices`: which way a character of a novel decides, given a life up to then."""
