"""The task `mirrorbench`: every user turn of a chat with an assistant, given a summary of the goal."""
