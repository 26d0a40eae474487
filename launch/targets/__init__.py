"""Scripts and manifests that start a run somewhere: settings → a folder of files that says everything it will do."""
