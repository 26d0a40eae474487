"""The task `fantom`: who knows and believes what in chats that people join and leave."""
