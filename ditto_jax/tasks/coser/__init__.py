"""The task `coser`: book scenes in which the policy plays every character."""
