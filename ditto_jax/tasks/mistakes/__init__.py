"""The task `mistakes`: the wrong option that a pupil with a named misconception picks."""
