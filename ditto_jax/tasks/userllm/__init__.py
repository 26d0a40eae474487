"""The task `userllm`: one message of a user to an assistant, given what the user is after and the chat so far."""
