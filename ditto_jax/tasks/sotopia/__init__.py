"""The task `sotopia`: one side of a talk between two people, each with a goal that the other does not know."""
