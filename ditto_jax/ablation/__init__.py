"""Many runs side by side: methods times seeds at one setting, trained, read back, and compared with their spread."""
