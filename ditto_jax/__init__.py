"""Learning from verbal feedback: prompt → draft → judge → feedback → refined → views and pools → sharded update."""
