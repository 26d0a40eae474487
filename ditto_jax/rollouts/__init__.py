"""Prompts → draft rollouts → feedback → refined rollouts → views: episodes as they are played and kept."""
