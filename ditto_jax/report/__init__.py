"""Run directories → the page that people look at, its charts, its rollout browser, its exports."""
